//! What the clients of a run do.
//!
//! - **Sessions** read, write and delete some tens of keys, each with the contexts of its own earlier reads, and write
//!   down all that they ask and are told. They never make a write twice: what is unknown stays so, because a write
//!   that arrives late a second time, after somebody has overwritten the first, is a sibling again, and rightly.
//! - **Users** are measured: keys of their own, half reads and half writes, each tried again at once, a write under its
//!   id, until it is answered. The time of a request is that from its first try to the answer. Requests begin by the
//!   clock, whether or not earlier ones are answered: who is held up does not hide others who would have been.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jepsen_like_checks::event::{After, Event, Kind};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use ringdove::client::{Client, ClientConfig, ClientError, GetReply, PutReply, ReadOptions, WriteOptions};
use ringdove::dynamo::cluster::ClusterDescriptor;
use ringdove::dynamo::version::{Token, VersionVector};
use ringdove::io::{RealClock, TcpNet};
use ringdove::net::message::Context;
use ringdove::types::{Key, Namespace, WriteId};
use tokio::task::JoinSet;

use crate::history::{Recorder, claimed, covers, event, id_of, siblings_of};

/// Replicas of a key, and how many of them an operation asks for.
const N: u8 = 3;
const R: u8 = 2;
const W: u8 = 2;
/// Keys that sessions use at a time.
const KEYS: u64 = 30;
/// After so long they go on to others. Contexts grow with every start of a node; until they are cut, keys that live as
/// long as a run of minutes would make it a test of contexts.
const KEYS_FOR: Duration = Duration::from_secs(15);
/// Longest pause of a session between two operations.
const PAUSE_MS: u64 = 12;
/// A session's time for one operation.
const SESSION_TIMEOUT: Duration = Duration::from_secs(1);

/// Keys of the users, and the time between two requests of one.
const USER_KEYS: u64 = 1000;
const USER_PACE: Duration = Duration::from_millis(5);
/// A user's time for one try.
const TRY: Duration = Duration::from_millis(40);
/// A user gives a request up after so long.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);
/// And asks again after this, if the answer was "not now".
const AGAIN_AFTER: Duration = Duration::from_millis(2);

/// A client of these nodes. Each has a seed of its own, which names its writes.
pub(crate) fn client(addrs: &[String], timeout: Duration, chance: &mut ChaCha8Rng) -> Client {
    let config = ClientConfig { timeout, ..ClientConfig::new(addrs.iter().cloned()) };
    Client::new(Arc::new(TcpNet), Arc::new(RealClock::new()), chance.random(), config)
}

/// The context that a token carries, as the cluster's secret shows it.
pub(crate) fn context_of(descriptor: &ClusterDescriptor, key: &Key, token: &[u8]) -> VersionVector {
    let (secret, cluster) = (&descriptor.token_secret, descriptor.cluster);
    let token_of = Token { secret, cluster, namespace: Namespace::default(), key };
    token_of.open(token).expect("a node's own token")
}

/// What a read returned that a write may pass on.
#[derive(Clone)]
struct Seen {
    token: Bytes,
    /// Index of its completion.
    index: u64,
}

/// One session.
pub(crate) struct Session {
    client: Client,
    descriptor: ClusterDescriptor,
    history: Recorder,
    chance: ChaCha8Rng,
    process: i64,
    seen: BTreeMap<Key, Seen>,
    began: Instant,
    done: Done,
}

/// How many operations of sessions ended how, by name, and the keys that they used.
#[derive(Debug, Default, Clone)]
pub(crate) struct Done {
    pub(crate) outcomes: BTreeMap<(&'static str, &'static str), u64>,
    pub(crate) keys: std::collections::BTreeSet<Key>,
}

impl Done {
    pub(crate) fn add(&mut self, other: Done) {
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.keys.extend(other.keys);
    }
}

impl Session {
    pub(crate) fn new(
        addrs: &[String],
        descriptor: &ClusterDescriptor,
        history: &Recorder,
        seed: u64,
    ) -> Session {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        Session {
            client: client(addrs, SESSION_TIMEOUT, &mut chance),
            descriptor: descriptor.clone(),
            history: history.clone(),
            chance,
            process: history.process(),
            seen: BTreeMap::new(),
            began: Instant::now(),
            done: Done::default(),
        }
    }

    /// Does one operation after another until `stop`.
    pub(crate) async fn run(mut self, stop: Arc<AtomicBool>) -> Done {
        while !stop.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(self.chance.random_range(0..=PAUSE_MS))).await;
            let key = self.key();
            match self.chance.random_range(0..12) {
                0..5 => self.get(&key).await,
                5..8 => self.write("put", &key).await,
                8 => self.write("blind", &key).await,
                9..11 => self.write("current", &key).await,
                _ => self.write("delete", &key).await,
            }
        }
        self.done
    }

    fn key(&mut self) -> Key {
        let round = self.began.elapsed().as_secs() / KEYS_FOR.as_secs();
        let key = format!("key{}", round * KEYS + self.chance.random_range(0..KEYS));
        let key = Key::new(key.into_bytes()).expect("a short key");
        self.done.keys.insert(key.clone());
        key
    }

    fn ended(&mut self, name: &'static str, outcome: &'static str) {
        *self.done.outcomes.entry((name, outcome)).or_default() += 1;
    }

    fn asked(&mut self, f: &'static str, key: &Key, strict: bool) -> Event<'static> {
        let invoke = event(Kind::Invoke, self.process, f, key);
        Event { r: Some(R), w: Some(W), n: Some(N), strict: Some(strict), ..invoke }
    }

    async fn get(&mut self, key: &Key) {
        let strict = self.chance.random();
        let invoke = self.asked("get", key, strict);
        self.history.push(invoke);
        let options = ReadOptions { r: Some(R), strict, ..ReadOptions::default() };
        match self.client.get(key, &options).await {
            Ok(reply) => {
                let GetReply { context, replicas, .. } = &reply;
                let done = Event {
                    value: Some(siblings_of(&reply)),
                    covers: Some(covers(&context_of(&self.descriptor, key, context))),
                    layout: Some(replicas.layout.version),
                    ..event(Kind::Ok, self.process, "get", key)
                };
                let index = self.history.push(done);
                self.seen.insert(key.clone(), Seen { token: reply.context, index });
                self.ended("get", "ok");
            }
            Err(_) => {
                self.history.push(event(Kind::Fail, self.process, "get", key));
                self.ended("get", "fail");
            }
        }
    }

    async fn write(&mut self, kind: &'static str, key: &Key) {
        let (strict, write_id) = (self.chance.random(), WriteId(self.chance.random()));
        let seen = self.seen.get(key).cloned();
        let f = if kind == "delete" { "delete" } else { "put" };
        let (context, after) = match (kind, seen) {
            ("put" | "delete", Some(Seen { token, index })) => {
                (Some(Context::Token(token)), Some(After::Index(index)))
            }
            ("current", _) => (Some(Context::Current), Some(After::Current)),
            ("delete", None) => (None, Some(After::Current)),
            _ => (Some(Context::Nothing), None),
        };
        let options = WriteOptions {
            r: Some(R),
            w: Some(W),
            strict,
            context,
            write_id: Some(write_id),
            ..WriteOptions::default()
        };
        let invoke = self.asked(f, key, strict);
        let (id, durable) = (Some(id_of(write_id).into()), Some("sync".into()));
        self.history.push(Event { id, after, durable, ..invoke });
        let value = (f == "put").then(|| Bytes::from(format!("{write_id:?} of {key}")));
        let outcome = self.client.write(key, value, &options).await;
        self.written(kind, f, key, outcome);
    }

    fn written(
        &mut self,
        kind: &'static str,
        f: &'static str,
        key: &Key,
        outcome: Result<PutReply, ClientError>,
    ) {
        match outcome {
            Ok(reply) => {
                let copies = reply.replicas.primaries.len() + reply.replicas.fallbacks.len();
                self.history.push(Event {
                    dot: reply.dot.map(claimed),
                    saw: Some(reply.overwrote.iter().map(|id| id_of(*id).into()).collect()),
                    copies: u8::try_from(copies).ok(),
                    layout: Some(reply.replicas.layout.version),
                    ..event(Kind::Ok, self.process, f, key)
                });
                self.ended(kind, "ok");
            }
            Err(ClientError::Unknown(_)) => {
                self.history.push(event(Kind::Info, self.process, f, key));
                self.process = self.history.process();
                self.ended(kind, "unknown");
            }
            Err(_) => {
                self.history.push(event(Kind::Fail, self.process, f, key));
                self.ended(kind, "fail");
            }
        }
    }
}

/// How long requests took, and what was done to the cluster before they began.
#[derive(Debug, Default)]
pub(crate) struct Times {
    requests: Mutex<Vec<Measured>>,
    /// What was done last, and when.
    last: Mutex<Option<(String, Instant)>>,
}

#[derive(Debug, Clone)]
struct Measured {
    /// `None`: it was given up.
    micros: Option<u64>,
    /// What was done last before it began, how long before, and what the tries were told that failed. Of slow ones.
    after: Option<(String, Duration, String)>,
}

/// What is soon enough, in microseconds.
const SOON: u64 = 100_000;
/// Deeds that are named for the slow requests behind them.
const NAMED: usize = 12;

impl Times {
    /// Something is done to the cluster.
    pub(crate) fn done(&self, line: &str) {
        *self.last.lock().unwrap() = Some((line.trim().to_owned(), Instant::now()));
    }

    fn add(&self, began: Instant, last: Option<(String, Instant)>, ended: &Ended) {
        let micros = ended.time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        let is_slow = micros.is_none_or(|micros| micros > SOON);
        let after = last
            .filter(|_| is_slow)
            .map(|(line, at)| (line, began.saturating_duration_since(at), ended.told.join(", then ")));
        self.requests.lock().unwrap().push(Measured { micros, after });
    }

    /// After what requests were slow: how many, when they began, the longest, and what most were told.
    pub(crate) fn slow(&self) -> Vec<String> {
        #[derive(Default)]
        struct Slow {
            begun: Vec<Duration>,
            longest: u64,
            told: BTreeMap<String, usize>,
        }
        let mut behind: BTreeMap<String, Slow> = BTreeMap::new();
        for Measured { micros, after } in self.requests.lock().unwrap().iter() {
            if let Some((line, since, told)) = after {
                let slow = behind.entry(line.clone()).or_default();
                slow.begun.push(*since);
                slow.longest = slow.longest.max(micros.unwrap_or(u64::MAX));
                *slow.told.entry(told.clone()).or_default() += 1;
            }
        }
        let mut behind: Vec<_> = behind.into_iter().collect();
        behind.sort_by_key(|(_, slow)| std::cmp::Reverse(slow.begun.len()));
        behind.truncate(NAMED);
        let words = |(line, slow): (String, Slow)| {
            let (first, last) = (slow.begun.iter().min(), slow.begun.iter().max());
            let [first, last] = [first, last].map(|at| at.map_or(0, Duration::as_millis));
            let told = slow.told.iter().max_by_key(|(_, many)| **many);
            format!(
                "{} slow, begun {first} to {last} ms after {line:?}, longest {} ms; most were told: {}",
                slow.begun.len(),
                slow.longest / 1000,
                told.map_or("", |(told, _)| told)
            )
        };
        behind.into_iter().map(words).collect()
    }

    /// Share of answers within 100 ms, percentiles, longest.
    pub(crate) fn figures(&self) -> String {
        let mut times: Vec<Option<u64>> =
            self.requests.lock().unwrap().iter().map(|one| one.micros).collect();
        // What was never answered took longest.
        times.sort_unstable_by_key(|time| time.unwrap_or(u64::MAX));
        let Some(last) = times.len().checked_sub(1) else { return "no request".to_owned() };
        let soon = times.iter().flatten().filter(|time| **time <= SOON).count();
        #[allow(clippy::cast_precision_loss)] // figures for people
        let percent = soon as f64 * 100.0 / times.len() as f64;
        let shown = |time: Option<u64>| {
            time.map_or("never answered".to_owned(), |time| format!("{}.{} ms", time / 1000, time / 100 % 10))
        };
        let at = |of_1000: usize| shown(times[last * of_1000 / 1000]);
        format!(
            "{percent:.3}% of {} requests within 100 ms ({} not); p50 {}, p99 {}, p99.9 {}, longest {}",
            times.len(),
            times.len() - soon,
            at(500),
            at(990),
            at(999),
            shown(times[last])
        )
    }
}

/// Makes measured requests until `stop`, and waits for their ends.
pub(crate) async fn user(addrs: Vec<String>, seed: u64, times: Arc<Times>, stop: Arc<AtomicBool>) {
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let client = client(&addrs, TRY, &mut chance);
    let mut requests = JoinSet::new();
    let mut ticks = tokio::time::interval(USER_PACE);
    while !stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        let key = format!("user{}", chance.random_range(0..USER_KEYS));
        let key = Key::new(key.into_bytes()).expect("a short key");
        let write_id = chance.random_bool(0.5).then(|| WriteId(chance.random()));
        let (client, times) = (client.clone(), times.clone());
        requests.spawn(async move {
            let (began, last) = (Instant::now(), times.last.lock().unwrap().clone());
            times.add(began, last, &request(&client, &key, write_id).await);
        });
        while requests.try_join_next().is_some() {}
    }
    requests.join_all().await;
}

/// How a request ended.
#[derive(Default)]
struct Ended {
    /// How long it took until it was answered.
    time: Option<Duration>,
    /// Why its tries before that failed, one after the other.
    told: Vec<String>,
}

/// A read, or a write under this id.
async fn request(client: &Client, key: &Key, write_id: Option<WriteId>) -> Ended {
    let began = Instant::now();
    let mut ended = Ended::default();
    while began.elapsed() < GIVEN_UP_AFTER {
        let tried = match write_id {
            None => client.get(key, &ReadOptions::default()).await.map(drop),
            Some(_) => {
                let context = Some(Context::Current);
                let options = WriteOptions { context, write_id, ..WriteOptions::default() };
                client.put(key, "coo", &options).await.map(drop)
            }
        };
        let Err(error) = tried else {
            return Ended { time: Some(began.elapsed()), ..ended };
        };
        ended.told.push(error.to_string());
        if !matches!(error, ClientError::Unknown(_)) {
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
    ended
}
