//! What the clients of a run do: sessions of the product's client, which write down all that they ask and are told.
//!
//! A client remembers the context of its last read of each key and passes it on as a real one would, also when it is old.
//! An operation whose outcome is unknown ends the process it was done by, in the history's sense; the client goes on as
//! another.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use jepsen_like_checks::event::{After, Event, Kind, Payload, Sibling};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use ringdove::client::{BatchWrite, Client, ClientConfig, ClientError, ReadOptions, WriteOptions};
use ringdove::dynamo::cluster::ClusterDescriptor;
use ringdove::dynamo::version::{Token, VersionVector};
use ringdove::io::Io;
use ringdove::net::message::{
    Condition, Context, Durability, Expiry, GetReply, HiddenWhy, PutReply, RefusalCode, Resolve, Version,
};
use ringdove::types::{Key, Namespace, WriteId};

use crate::clock::EPOCH;
use crate::cluster::client_addr;
use crate::history::{Recorder, claimed, covers, event, id_of};
use crate::plan::node_name;
use crate::report::{UNKNOWN, UNKNOWN_CUT_OFF};
use crate::seed::{self, Stream};
use crate::settings::RunSettings;
use crate::world::{Start, World};
use ringdove::types::NodeId;

pub(crate) mod merged;
mod scan;

/// One client host's session.
pub struct Session {
    world: World,
    settings: RunSettings,
    descriptor: ClusterDescriptor,
    history: Recorder,
    name: String,
    client: Client,
    io: Io,
    chance: Stream,
    keys: Vec<(Key, f64)>,
    process: i64,
    /// What the last read of each key returned: its context, and the index of its completion.
    seen: BTreeMap<Key, Seen>,
    /// How far each counter was counted, by the name it was counted under.
    counts: BTreeMap<(Key, i64), i64>,
    value_next: u64,
}

/// What a read returned that a write may pass on.
#[derive(Clone)]
struct Seen {
    token: Bytes,
    /// Index of its completion.
    index: u64,
    at: Duration,
}

/// A context that is this old is worth a probe.
const OLD: Duration = Duration::from_secs(5);

/// The keys of a run with their weights, Zipf by rank.
pub fn keys(settings: &RunSettings) -> Vec<(Key, f64)> {
    let key = |rank: u32| Key::new(format!("key{rank}").into_bytes()).expect("a short key");
    (0..settings.keys).map(|rank| (key(rank), f64::from(rank + 1).powf(-settings.skew))).collect()
}

/// What an operation was asked with and is judged by.
#[derive(Clone, Copy)]
struct Quorum {
    r: u8,
    w: u8,
    strict: bool,
}

impl Session {
    /// A session on a host of its own.
    pub fn new(
        world: &World,
        io: Io,
        start: Start,
        name: &str,
        settings: &RunSettings,
        descriptor: &ClusterDescriptor,
        history: &Recorder,
    ) -> Session {
        let mut chance = seed::stream(start.seed, "operations");
        let first = chance.random_range(0..settings.nodes);
        let addrs = (0..settings.nodes).map(|turn| client_addr(NodeId((first + turn) % settings.nodes + 1)));
        let mut bits = [0; 32];
        seed::stream(start.seed, "client").fill_bytes(&mut bits);
        let timeout = Duration::from_millis(settings.timeout_ms);
        let config = ClientConfig { timeout, ..ClientConfig::new(addrs) };
        Session {
            world: world.clone(),
            settings: settings.clone(),
            descriptor: descriptor.clone(),
            history: history.clone(),
            name: name.to_owned(),
            client: Client::new(io.net.clone(), io.clock.clone(), bits, config),
            io,
            chance,
            keys: keys(settings),
            process: history.process(),
            seen: BTreeMap::new(),
            counts: BTreeMap::new(),
            value_next: 0,
        }
    }

    /// Does its operations, one after another; begins none after the deadline. How many it did.
    pub async fn run(mut self, deadline: Duration) -> u32 {
        for done in 0..self.settings.operations {
            if self.now() >= deadline {
                return done;
            }
            let pause = Duration::from_micros(self.chance.random_range(0..=self.settings.pause_us));
            self.io.clock.sleep_until(self.io.clock.mono() + pause).await;
            let kinds = self.settings.mix.weights();
            let total: u32 = kinds.iter().map(|(_, weight)| weight).sum();
            let mut turn = self.chance.random_range(0..total.max(1));
            let kind = kinds.iter().find(|(_, weight)| {
                let chosen = turn < *weight;
                turn = turn.saturating_sub(*weight);
                chosen
            });
            match kind.map_or("get", |(name, _)| name) {
                "put" => self.write("put").await,
                "blind" => self.write("blind").await,
                "current" => self.write("current").await,
                "delete" => self.write("delete").await,
                "ttl" => self.write("ttl").await,
                "conditional" => self.write("conditional").await,
                "batch" => self.batch().await,
                "scan" => self.scan().await,
                "set" if self.chance.random_bool(0.3) => self.read_set().await,
                "set" => self.add_to_set().await,
                "counter" => self.count().await,
                _ => self.get().await,
            }
        }
        self.settings.operations
    }

    fn now(&self) -> Duration {
        self.world.now()
    }

    fn push(&self, event: Event<'static>) -> u64 {
        self.history.push(self.now(), event)
    }

    fn key(&mut self) -> Key {
        let total: f64 = self.keys.iter().map(|(_, weight)| weight).sum();
        let mut turn = self.chance.random_range(0.0..total);
        for (key, weight) in &self.keys {
            turn -= weight;
            if turn <= 0.0 {
                return key.clone();
            }
        }
        self.keys.last().expect("at least one").0.clone()
    }

    fn quorum(&mut self) -> Quorum {
        let n = u8::try_from(self.settings.replicas).unwrap_or(u8::MAX);
        let Quorum { mut r, mut w, strict } =
            Quorum { r: self.settings.r, w: self.settings.w, strict: self.settings.strict };
        if self.settings.own_quorums && self.chance.random_bool(0.3) {
            (r, w) = (self.chance.random_range(1..=n), self.chance.random_range(1..=n));
        }
        Quorum { r, w, strict }
    }

    fn asked(&self, kind: Kind, process: i64, f: &'static str, key: &Key, quorum: Quorum) -> Event<'static> {
        Event {
            r: Some(quorum.r),
            w: Some(quorum.w),
            n: u8::try_from(self.settings.replicas).ok(),
            strict: Some(quorum.strict),
            ..event(kind, process, f, key)
        }
    }

    fn context(&self, key: &Key, token: &[u8]) -> VersionVector {
        let secret = &self.descriptor.token_secret;
        let token_of =
            Token { secret, cluster: self.descriptor.cluster, namespace: Namespace::default(), key };
        token_of.open(token).expect("a node's own token")
    }

    /// Between which moments the answering node's wall clock was, in milliseconds.
    fn clock(&self, asked_at: Duration) -> (i64, i64) {
        let ms = |at: Duration| i64::try_from((EPOCH + at).as_millis()).unwrap_or(i64::MAX);
        (ms(asked_at) - self.settings.skew_ms_max, ms(self.now()) + self.settings.skew_ms_max + 1)
    }

    async fn get(&mut self) {
        let (key, quorum) = (self.key(), self.quorum());
        let resolve = if self.chance.random_bool(0.1) { Resolve::Lww } else { Resolve::Siblings };
        let asked_at = self.now();
        let process = self.process;
        self.push(self.asked(Kind::Invoke, process, "get", &key, quorum));
        let options =
            ReadOptions { r: Some(quorum.r), strict: quorum.strict, resolve, ..ReadOptions::default() };
        let read = self.client.get(&key, &options).await;
        self.read(process, &key, asked_at, read);
    }

    /// Writes down how a read ended.
    fn read(&mut self, process: i64, key: &Key, asked_at: Duration, read: Result<GetReply, ClientError>) {
        match read {
            Ok(reply) => {
                let payload = siblings_of(&reply);
                self.probe_read(key, &reply);
                self.world.record(&self.name, "read", format_args!("{key} {payload:?}"));
                let covers = Some(covers(&self.context(key, &reply.context)));
                let layout = Some(reply.replicas.layout.version);
                let clock = Some(self.clock(asked_at));
                let value = Some(payload);
                let index =
                    self.push(Event { value, covers, layout, clock, ..event(Kind::Ok, process, "get", key) });
                self.history.count("get", "ok");
                let seen = Seen { token: reply.context, index, at: self.now() };
                self.seen.insert(key.clone(), seen);
            }
            Err(error) => {
                self.world.record(&self.name, "not-read", format_args!("{key} {error}"));
                self.push(event(Kind::Fail, process, "get", key));
                self.history.count("get", "fail");
            }
        }
    }

    /// Each value that came back is what its write wrote.
    fn judge_values(&self, key: &Key, values: &[Version]) {
        for version in values {
            self.history.judge_value(key, version.write_id, &version.value);
        }
    }

    fn probe_read(&self, key: &Key, reply: &GetReply) {
        self.judge_values(key, &reply.values);
        let ids = reply.values.iter().map(|version| version.write_id);
        ids.chain(reply.hidden.iter().map(|hidden| hidden.write_id)).for_each(|id| self.history.read(id));
        if reply.values.len() > 1 {
            self.history.hit("two siblings met");
        }
        if !reply.hidden.is_empty() {
            self.history.hit("a hidden sibling was shown");
        }
        if reply.values.len() > self.settings.siblings_max {
            self.history.hit("more siblings than a put may make, by a merge");
        }
        if reply.replicas.primaries.len() < usize::from(self.settings.r) && !self.settings.own_quorums {
            self.history.hit("a read answered by fewer primaries than asked");
        }
        if reply.replicas.primaries.is_empty() {
            self.history.hit("a read answered by no primary");
        }
    }

    /// A write with the context of another key: it must be refused.
    async fn write_with_anothers_context(&mut self) {
        let key = self.key();
        let Some(seen) = self.seen.iter().find(|(other, _)| **other != key).map(|(_, seen)| seen.clone())
        else {
            return;
        };
        let options = WriteOptions { context: Some(Context::Token(seen.token)), ..WriteOptions::default() };
        match self.client.put(&key, "of another key", &options).await {
            Err(ClientError::Refused(refusal)) if refusal.code == RefusalCode::BadToken => {
                self.history.hit("a context of another key was refused");
            }
            Err(_) => {}
            Ok(_) => {
                self.history.wrong(format!("a write of {key} with the context of another key was taken"));
            }
        }
    }

    async fn write(&mut self, kind: &'static str) {
        if kind == "put" && self.chance.random_ratio(1, 50) {
            return self.write_with_anothers_context().await;
        }
        let key = self.key();
        let asked_at = self.now();
        let Some((options, value, invoke)) = self.draw(kind, &key) else { return };
        let process = self.process;
        self.push(Event { process: jepsen_like_checks::event::Process::Client(process), ..invoke });
        let write_id = options.write_id.expect("given by draw");
        let f = if value.is_some() { "put" } else { "delete" };
        self.world.record(&self.name, f, format_args!("{key} {write_id:?} {kind}"));
        let outcome = match value {
            Some(value) => self.client.put(&key, value, &options).await,
            None => self.client.delete(&key, &options).await,
        };
        if self.written(process, kind, f, &key, write_id, asked_at, outcome) {
            self.process = self.history.process();
        }
    }

    /// A write of a kind: what to ask, and the event that invokes it.
    fn draw(
        &mut self,
        kind: &'static str,
        key: &Key,
    ) -> Option<(WriteOptions, Option<Bytes>, Event<'static>)> {
        let quorum = self.quorum();
        let write_id = WriteId(self.chance.random());
        let value = self.value();
        let seen = self.seen.get(key).cloned();
        if seen.as_ref().is_some_and(|seen| self.now() > seen.at + OLD) {
            self.history.hit("a context older than five seconds");
        }
        let mut options = WriteOptions {
            r: Some(quorum.r),
            w: Some(quorum.w),
            strict: quorum.strict,
            write_id: Some(write_id),
            return_record: true,
            ..WriteOptions::default()
        };
        let mut after = None;
        let mut ttl = None;
        let mut content = Some(value);
        match (kind, seen) {
            ("put" | "ttl", Some(Seen { token, index, .. })) => {
                options.context = Some(Context::Token(token));
                after = Some(After::Index(index));
            }
            ("current", _) => {
                options.context = Some(Context::Current);
                after = Some(After::Current);
            }
            ("delete", seen) => {
                content = None;
                match seen.filter(|_| self.chance.random_bool(0.5)) {
                    Some(Seen { token, index, .. }) => {
                        options.context = Some(Context::Token(token));
                        after = Some(After::Index(index));
                    }
                    None => after = Some(After::Current),
                }
            }
            ("conditional", Some(Seen { token, index, .. })) if self.chance.random_bool(0.7) => {
                options.condition = Condition::Match(token);
                after = Some(After::Index(index));
            }
            ("conditional", _) => {
                options.condition = Condition::Absent;
                after = Some(After::Current);
            }
            _ => options.context = Some(Context::Nothing),
        }
        if kind == "ttl" {
            let (low, high) = self.settings.ttl_ms;
            let ms = self.chance.random_range(low..=high);
            options.expiry = Expiry::After(ms);
            ttl = Some(ms);
        }
        let f = if content.is_some() { "put" } else { "delete" };
        options.durability = self.durability(key);
        let is_sync = self.settings.interval_ms == 0 || options.durability == Some(Durability::Sync);
        let durable = Some(if is_sync { "sync" } else { "interval" }.into());
        self.history.wrote(write_id, content.as_deref());
        let id = Some(id_of(write_id).into());
        let invoke = Event { id, after, ttl, durable, ..self.asked(Kind::Invoke, 0, f, key, quorum) };
        Some((options, content, invoke))
    }

    /// What a write of the key asks for beside its node's own way.
    fn durability(&mut self, key: &Key) -> Option<Durability> {
        let is_sync = self.settings.sync_keys().has(key);
        let asks = self.settings.mixed && (is_sync || self.chance.random_bool(0.5));
        asks.then_some(Durability::Sync)
    }

    fn value(&mut self) -> Bytes {
        self.value_next += 1;
        let len = self.chance.random_range(0..=self.settings.value_len_max) as usize;
        let mut value = format!("{} {} ", self.name, self.value_next).into_bytes();
        value.resize(value.len().max(len), b'.');
        value.into()
    }

    /// Writes down how a write ended; true when nobody knows.
    #[allow(clippy::too_many_arguments)] // what is known of one operation
    fn written(
        &mut self,
        process: i64,
        kind: &'static str,
        f: &'static str,
        key: &Key,
        write_id: WriteId,
        asked_at: Duration,
        outcome: Result<PutReply, ClientError>,
    ) -> bool {
        match outcome {
            Ok(reply) => {
                self.world.record(&self.name, "written", format_args!("{write_id:?}"));
                self.judge_values(key, &reply.siblings);
                if f == "put" {
                    self.judge_values(key, reply.written.as_slice());
                }
                let copies = reply.replicas.primaries.len() + reply.replicas.fallbacks.len();
                let expires_at = reply.written.as_ref().and_then(|written| written.expires_at);
                let done = Event {
                    dot: reply.dot.map(claimed),
                    saw: Some(reply.overwrote.iter().map(|id| id_of(*id).into()).collect()),
                    copies: u8::try_from(copies).ok(),
                    layout: Some(reply.replicas.layout.version),
                    expires_at: expires_at.and_then(|at| i64::try_from(at.0).ok()),
                    clock: Some(self.clock(asked_at)),
                    ..event(Kind::Ok, process, f, key)
                };
                self.push(done);
                self.history.count(kind, "ok");
                false
            }
            Err(error) => {
                self.world.record(&self.name, "not-written", format_args!("{write_id:?} {error}"));
                let unknown = matches!(error, ClientError::Unknown(_));
                match &error {
                    ClientError::Unknown(_) => self.history.unknown(write_id),
                    ClientError::Refused(refusal) if refusal.code == RefusalCode::TooManySiblings => {
                        self.history.hit("a put was refused for its siblings");
                    }
                    ClientError::Refused(refusal) if refusal.code == RefusalCode::Conflict => {
                        self.history.hit("a write under a condition met another");
                    }
                    _ => {}
                }
                self.push(event(if unknown { Kind::Info } else { Kind::Fail }, process, f, key));
                let outcome = if unknown { self.unknown_outcome(asked_at) } else { "fail" };
                self.history.count(kind, outcome);
                unknown
            }
        }
    }

    /// How an unknown outcome is counted: whether this client was cut off from all nodes since then.
    fn unknown_outcome(&self, asked_at: Duration) -> &'static str {
        let nodes = (1..=self.settings.nodes).map(node_name);
        match self.world.net().was_cut_off_since(&self.name, nodes, asked_at) {
            true => UNKNOWN_CUT_OFF,
            false => UNKNOWN,
        }
    }

    /// Some keys at once: reads, or writes.
    async fn batch(&mut self) {
        let mut some: Vec<Key> = (0..self.chance.random_range(1..=5)).map(|_| self.key()).collect();
        some.sort();
        some.dedup();
        let asked_at = self.now();
        // One process for each: they happen at the same time.
        let processes: Vec<i64> = some.iter().map(|_| self.history.process()).collect();
        if self.chance.random_bool(0.5) {
            let quorum = self.quorum();
            for (key, process) in some.iter().zip(&processes) {
                self.push(self.asked(Kind::Invoke, *process, "get", key, quorum));
            }
            let options = ReadOptions { r: Some(quorum.r), strict: quorum.strict, ..ReadOptions::default() };
            let replies = self.client.multi_get(&some, &options).await;
            for ((key, process), reply) in some.iter().zip(processes).zip(replies) {
                self.read(process, key, asked_at, reply);
            }
            return;
        }
        let (mut writes, mut ids) = (Vec::new(), Vec::new());
        for (key, process) in some.iter().zip(&processes) {
            let kind =
                *["put", "put", "current", "current", "delete"].choose(&mut self.chance).expect("some");
            let Some((options, value, invoke)) = self.draw(kind, key) else { continue };
            self.push(Event { process: jepsen_like_checks::event::Process::Client(*process), ..invoke });
            let f = if value.is_some() { "put" } else { "delete" };
            ids.push((f, options.write_id.expect("given by draw")));
            writes.push(BatchWrite { key: key.clone(), value, options });
        }
        let timeout = Some(Duration::from_millis(self.settings.timeout_ms));
        let replies = self.client.multi_put(&writes, timeout).await;
        for (((key, process), (f, id)), reply) in some.iter().zip(processes).zip(ids).zip(replies) {
            self.written(process, "batch", f, key, id, asked_at, reply);
        }
    }

    /// Reads every key from all replicas once, for what the reads repair; writes nothing down.
    pub async fn read_all(self, deadline: Duration) {
        let options = ReadOptions {
            r: u8::try_from(self.settings.replicas).ok(),
            strict: true,
            timeout: Some(Duration::from_secs(2)),
            ..ReadOptions::default()
        };
        let merged = merged::keys().map(|(key, _)| key);
        for key in self.keys.iter().map(|(key, _)| key.clone()).chain(merged) {
            if self.now() >= deadline {
                return;
            }
            // What fails now is read again the next time.
            let _ = self.client.get(&key, &options).await;
        }
    }

    /// Reads every key from all replicas, as often as it takes until `deadline`. Names what could not be read.
    pub async fn finals(&mut self, deadline: Duration) -> Vec<String> {
        let mut failed = Vec::new();
        let all = u8::try_from(self.settings.replicas).unwrap_or(u8::MAX);
        for (key, _) in self.keys.clone() {
            let options = ReadOptions {
                r: Some(all),
                strict: true,
                timeout: Some(Duration::from_secs(5)),
                ..ReadOptions::default()
            };
            let process = self.history.process();
            let quorum = Quorum { r: all, w: all, strict: true };
            loop {
                let asked_at = self.now();
                match self.client.get(&key, &options).await {
                    Ok(reply) => {
                        self.push(self.asked(Kind::Invoke, process, "final", &key, quorum));
                        let payload = siblings_of(&reply);
                        self.probe_read(&key, &reply);
                        self.world.record(&self.name, "final", format_args!("{key} {payload:?}"));
                        let covers = Some(covers(&self.context(&key, &reply.context)));
                        let clock = Some(self.clock(asked_at));
                        let value = Some(payload);
                        self.push(Event { value, covers, clock, ..event(Kind::Ok, process, "final", &key) });
                        break;
                    }
                    Err(error) if self.now() >= deadline => {
                        failed
                            .push(format!("{key} cannot be read from all replicas after the heal: {error}"));
                        break;
                    }
                    Err(_) => {
                        let again = self.io.clock.mono() + Duration::from_millis(200);
                        self.io.clock.sleep_until(again).await;
                    }
                }
            }
        }
        let (sets, counters) = (self.settings.mix.set > 0, self.settings.mix.counter > 0);
        for (key, is_counter) in merged::keys() {
            if !(if is_counter { counters } else { sets }) {
                continue;
            }
            let options = ReadOptions {
                r: Some(all),
                strict: true,
                timeout: Some(Duration::from_secs(5)),
                ..ReadOptions::default()
            };
            loop {
                let process = self.history.process();
                self.push(event(Kind::Invoke, process, "read", &key));
                let read = self.client.get(&key, &options).await.map(|reply| reply.values);
                if self.read_whole(process, &key, is_counter, read) {
                    break;
                }
                if self.now() >= deadline {
                    failed.push(format!("{key} cannot be read from all replicas after the heal"));
                    break;
                }
                let again = self.io.clock.mono() + Duration::from_millis(200);
                self.io.clock.sleep_until(again).await;
            }
        }
        failed
    }
}

fn sibling_of(version: &Version) -> Sibling<'static> {
    let dot = (version.dot.counter > 0).then(|| claimed(version.dot));
    Sibling { id: id_of(version.write_id).into(), dot, ..Sibling::default() }
}

/// What a read returned.
fn siblings_of(reply: &GetReply) -> Payload<'static> {
    let mut all: Vec<Sibling<'static>> = reply.values.iter().map(sibling_of).collect();
    for hidden in &reply.hidden {
        if hidden.why == HiddenWhy::SameWrite {
            continue;
        }
        let dead = matches!(hidden.why, HiddenWhy::Tombstone | HiddenWhy::Expired);
        let (id, dot) = (id_of(hidden.write_id).into(), Some(claimed(hidden.dot)));
        all.push(Sibling { id, dot, hidden: true, dead, ..Sibling::default() });
    }
    Payload::Siblings(all)
}
