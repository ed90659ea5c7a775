//! Real processes on loopback under a nemesis: nodes that are killed, paused, cut off and slowed while clients write, and
//! every check that the simulator makes over what the clients saw.
//!
//! ```text
//!   sessions ──▶ history ──────────────────────────────────────────────────────────────┐
//!   users ─────▶ times                                                                 ▼
//!      │ client ports            one node faulty at a time   │ faults at once   │ heal, at rest, read all ──▶ checks
//!      ▼                                                     │                  │
//!   ringdove serve × 3 or 5 ◀──▶ proxy, a link each way between two nodes
//! ```
//! `RINGDOVE_CHAOS=600` runs for 600 s instead of 50, half on three nodes and half on five. `RINGDOVE_CHAOS_SEED` draws the
//! same faults again. The history of a run that fails stays where the message says, with the nodes' logs and data.
//!
//! | file | what it holds |
//! |---|---|
//! | `processes` | the nodes; also for benches/failover |
//! | `proxy` | the wires between them |
//! | `nemesis` | what goes wrong |
//! | `workload`, `history` | what clients do, and how it is written down |
//! | `judgement` | the end: at rest, final reads, checks |

// Tests may use clocks, files and threads; the bans are for node code.
#![cfg(not(madsim))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod history;
mod judgement;
mod nemesis;
mod processes;
mod proxy;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jepsen_like_checks::Verdict;
use rand::rngs::ChaCha8Rng;
use rand::{Rng, RngExt, SeedableRng};
use ringdove::types::NodeId;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use history::Recorder;
use judgement::{at_rest, judge, read_all, without_a_write};
use nemesis::Nemesis;
use processes::{Addresses, Cluster, free_addr};
use proxy::Links;
use workload::{Done, Session, Times, client, user};

const SESSIONS: u64 = 8;
const USERS: u64 = 4;
/// Of all runs together, when nobody says.
const SECONDS: u64 = 50;
/// Settings of the nodes: rounds so short that each takes place in a run.
const SETTINGS: [&str; 6] =
    ["--log", "ringdove=info", "--anti-entropy-interval", "3s", "--handoff-interval", "500ms"];

/// One run has the machine for itself.
static ALONE: Mutex<()> = Mutex::const_new(());

/// What a run is made by.
struct Run {
    name: &'static str,
    nodes: u64,
    seed: u64,
    phases: Phases,
}

/// How long nothing is wrong, one node at a time is faulty, anything may be.
#[derive(Default)]
struct Phases {
    calm: Duration,
    one: Duration,
    many: Duration,
}

/// What is left of a run.
struct Ran {
    dir: PathBuf,
    history: PathBuf,
    wrong: Vec<String>,
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// A seed that was asked for, or one that nobody had before.
fn seed() -> u64 {
    number("RINGDOVE_CHAOS_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        ChaCha8Rng::seed_from_u64(now.as_secs() ^ u64::from(now.subsec_nanos()) << 32).next_u64() >> 32
    })
}

impl Ran {
    /// Takes away what a run that went well has left.
    fn forget(self) {
        let _ = std::fs::remove_dir_all(self.dir);
    }
}

impl Run {
    /// A share of the time that there is, half of it with one fault at a time.
    fn of(name: &'static str, nodes: u64) -> Run {
        let share = Duration::from_secs(number("RINGDOVE_CHAOS").unwrap_or(SECONDS)) / 2;
        let (one, many) = (share / 2, share / 2);
        Run { name, nodes, seed: seed(), phases: Phases { one, many, ..Phases::default() } }
    }

    async fn play(&self) -> Ran {
        println!("{}: {}", self.name, self.to_repeat());
        let mut chance = ChaCha8Rng::seed_from_u64(self.seed);
        let dir =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}-{}", self.name, self.seed));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a directory can be made");
        let history = Recorder::new(&dir.join("history.jsonl"));

        let links = Links::new();
        let cluster = self.start(&dir, &links, &mut chance).await;
        let (addrs, descriptor) = (cluster.client_addrs(), cluster.descriptor.clone());
        let (stop, users_stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|_| {
                let session = Session::new(&addrs, &descriptor, &history, chance.random());
                tokio::spawn(session.run(stop.clone()))
            })
            .collect();
        let times = Arc::new(Times::default());
        let users: Vec<_> = (0..USERS)
            .map(|_| tokio::spawn(user(addrs.clone(), chance.random(), times.clone(), users_stop.clone())))
            .collect();

        let nemesis = Nemesis::new(cluster, links, history.clone(), times.clone(), chance.random());
        let Phases { calm, one, many } = self.phases;
        // It waits for processes, so it has a thread of its own.
        let acting = tokio::task::spawn_blocking(move || {
            let mut nemesis = nemesis;
            std::thread::sleep(calm);
            nemesis.one_at_a_time(Instant::now() + one);
            users_stop.store(true, Ordering::SeqCst);
            nemesis.at_once(Instant::now() + many);
            nemesis.heal()
        });
        let acted = acting.await;
        // Also when the nemesis has failed, so that nobody goes on asking.
        stop.store(true, Ordering::SeqCst);
        let (cluster, faults) =
            acted.unwrap_or_else(|failed| panic!("{failed}; see {}; {}", dir.display(), self.to_repeat()));
        let mut done = Done::default();
        for session in sessions {
            done.add(session.await.expect("a session does not panic"));
        }
        for user in users {
            user.await.expect("a user does not panic");
        }
        println!("{}: {} things were done to it; operations {:?}", self.name, faults.len(), done.outcomes);
        let what = if calm.is_zero() { "one node faulty at a time" } else { "no fault" };
        println!("{}: {what}, with retries: {}", self.name, times.figures());
        times.slow().iter().for_each(|line| println!("{}:   {line}", self.name));

        let client = client(&addrs, Duration::from_secs(5), &mut chance);
        let rested = at_rest(&cluster, &client, &done.keys).await;
        println!(
            "{}: equal and nothing kept for others {:.1} s after the heal",
            self.name,
            rested.as_secs_f64()
        );
        read_all(&cluster, &client, &done.keys, &history).await;
        let mut cluster = cluster;
        tokio::task::block_in_place(|| cluster.nodes.iter_mut().for_each(|node| node.stop()));
        let (judged, history) = history.finish();
        let (verdicts, wrong) = judge(&judged);
        for (name, verdict) in verdicts {
            println!("{}: {name}: {verdict}", self.name);
        }
        Ran { dir, history, wrong }
    }

    /// The nodes with a proxy between them.
    async fn start(&self, dir: &std::path::Path, links: &Links, chance: &mut ChaCha8Rng) -> Cluster {
        let mut addrs = Vec::new();
        for id in 1..=self.nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let peer = listener.local_addr().expect("it is bound").to_string();
            // Not drawn from the seed: two runs of one seed must not meet.
            let mut any = ChaCha8Rng::seed_from_u64(u64::from(std::process::id()) ^ chance.next_u64());
            let node = Addresses { client: free_addr(&mut any), peer, listen_peer: free_addr(&mut any) };
            links.serve(NodeId(id), listener, node.listen_peer.clone());
            addrs.push(node);
        }
        Cluster::start(dir, 32, addrs, &SETTINGS, chance).await
    }

    /// The command that draws the same faults again.
    fn to_repeat(&self) -> String {
        let Phases { calm, one, many } = self.phases;
        let seconds = (calm + one + many).as_secs() * 2;
        format!(
            "RINGDOVE_CHAOS_SEED={} RINGDOVE_CHAOS={seconds} cargo test --test chaos {} -- --nocapture",
            self.seed, self.name
        )
    }

    /// Plays it and demands that nothing is wrong.
    async fn must_be_valid(&self) -> Ran {
        let ran = self.play().await;
        let (wrong, dir) = (ran.wrong.join("\n"), ran.dir.display());
        assert!(
            ran.wrong.is_empty(),
            "{wrong}\nhistory, logs and data are in {dir}; again: {}",
            self.to_repeat()
        );
        ran
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes() {
    let _alone = ALONE.lock().await;
    Run::of("three_nodes", 3).must_be_valid().await.forget();
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes() {
    let _alone = ALONE.lock().await;
    Run::of("five_nodes", 5).must_be_valid().await.forget();
}

/// The judgement itself: the history of a calm run is valid, and no longer once a write that was acknowledged is taken
/// out of what the replicas hold in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_taken_away_fails_the_verdict() {
    let _alone = ALONE.lock().await;
    let phases = Phases { calm: Duration::from_secs(2), ..Phases::default() };
    let run = Run { name: "a_write_that_is_taken_away", nodes: 3, seed: seed(), phases };
    let ran = run.must_be_valid().await;
    let (lost, history) = without_a_write(&ran.history).expect("a write is there in the end");
    let (verdicts, wrong) = judge(&history);
    assert!(matches!(verdicts["durability"], Verdict::Invalid { .. }), "{lost} is gone, yet {verdicts:?}");
    assert!(wrong.iter().any(|wrong| wrong.contains(&lost)), "{lost} is gone, but {wrong:?}");
    ran.forget();
}
