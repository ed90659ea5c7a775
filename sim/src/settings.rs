//! The settings of one run: how large the cluster is, how it is set up, what its clients do.
//!
//! Drawn per seed (*swarm*, Groce et al., ISSTA 2012): a run that does not use a feature finds what runs that use all
//! of them hide. Sizes are scaled down, so that each mechanism takes place several times in a run of seconds.

use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;
use ringdove::net::message::Durability;
use ringdove::observe::SITES;
use ringdove::types::Key;
use serde::{Deserialize, Serialize};

use crate::scenario::Scenario;
use crate::seed::{self, Stream};

/// Everything about a run but its faults. Times are in milliseconds unless the name says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// Members of the cluster, 3 to 9.
    pub nodes: u64,
    /// Replicas of a key (N).
    pub replicas: u32,
    /// Partitions (Q).
    pub partitions: u32,
    /// Copies that a write asks for, unless it draws its own.
    pub w: u8,
    /// Replicas that a read asks for, unless it draws its own.
    pub r: u8,
    /// Whether an operation may draw an `r` or `w` of its own.
    pub own_quorums: bool,
    /// Writes count primaries alone.
    pub strict: bool,
    /// Nodes' default: 0 is `sync`, anything else `interval` of so many milliseconds.
    pub interval_ms: u32,
    /// Where nodes go by an interval: keys of even rank, sets and counters are written `sync` all the same, others now and then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mixed: bool,
    /// Client hosts.
    pub clients: u32,
    /// Operations of each client.
    pub operations: u32,
    /// Keys in use.
    pub keys: u32,
    /// Exponent of the keys' Zipf distribution; 0 is uniform.
    pub skew: f64,
    /// Longest pause of a client between operations, in microseconds.
    pub pause_us: u64,
    /// A client's time for one operation.
    pub timeout_ms: u64,
    /// Longest value in bytes.
    pub value_len_max: u32,
    /// What clients do, by weight.
    pub mix: Mix,
    /// Shortest and longest time to live.
    pub ttl_ms: (u64, u64),
    /// Time after which a fallback takes the place of a silent primary.
    pub hint_after_ms: u64,
    /// Time between two heartbeats.
    #[serde(default = "gossip_ms")]
    pub gossip_ms: u64,
    /// Suspicion (phi, in tenths) from which on a node is taken for down.
    #[serde(default = "phi_tenths")]
    pub phi_tenths: u32,
    /// Time between two rounds of handoff.
    #[serde(default = "handoff_ms")]
    pub handoff_ms: u64,
    /// Time within which each partition is compared with its other primaries'.
    #[serde(default = "anti_entropy_ms")]
    pub anti_entropy_ms: u64,
    /// Time within which every record is read in search of damage.
    #[serde(default = "scrub_ms")]
    pub scrub_ms: u64,
    /// Time between two rounds of reaping.
    #[serde(default = "reap_ms")]
    pub reap_ms: u64,
    /// How long ago something must have been deleted or have expired to be reaped.
    #[serde(default = "grace_ms")]
    pub grace_ms: u64,
    /// Guest records that a node takes.
    #[serde(default = "guests_max")]
    pub guests_max: u64,
    /// Time after which a reader asks one more.
    pub hedge_after_ms: u64,
    /// Siblings that a put may make.
    pub siblings_max: usize,
    /// Length at which a segment is closed, in bytes.
    pub segment_bytes: u64,
    /// Growth of the log after which a snapshot is written, in bytes.
    pub snapshot_bytes_min: u64,
    /// Dead share at which compaction begins, in percent.
    pub dead_percent_max: u32,
    /// Bytes of the cache of records.
    pub cache_bytes: u64,
    /// Ordinary delay of a segment on a link, in microseconds: shortest and longest.
    pub delay_us: (u64, u64),
    /// Bytes that a direction of a connection holds on the way, and as many that arrived and are not read.
    #[serde(default = "buffer_bytes")]
    pub buffer_bytes: usize,
    /// Time of a sync, in microseconds: shortest and longest.
    pub sync_us: (u64, u64),
    /// Wall clocks are at most this far off.
    pub skew_ms_max: i64,
    /// The product's `TcpNet` on madsim's network, in place of `SimNet`: of the network's faults it knows cuts and weather.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tcp: bool,
    /// Convergence may take so long after the heal, whatever the other settings say; nothing: as long as they say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converge_within_ms: Option<u64>,
    /// The plan destroys disks, within the budget.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub destroys: bool,
    /// Sites of node code (`ringdove::observe::SITES`) that take their unusual way now and then.
    #[serde(default)]
    pub buggify: Vec<String>,
}

/// Of plans that say nothing of it.
fn gossip_ms() -> u64 {
    1_000
}

/// Of plans that say nothing of it.
fn phi_tenths() -> u32 {
    38
}

/// Of plans that say nothing of it.
fn handoff_ms() -> u64 {
    1_000
}

/// Of plans that say nothing of it.
fn anti_entropy_ms() -> u64 {
    5_000
}

/// Of plans that say nothing of it.
fn scrub_ms() -> u64 {
    60_000
}

/// Of plans that say nothing of it: there was no reaping.
fn reap_ms() -> u64 {
    24 * 3_600_000
}

/// Of plans that say nothing of it.
fn grace_ms() -> u64 {
    3_600_000
}

/// Of plans that say nothing of it.
fn guests_max() -> u64 {
    1_000_000
}

/// The keys of which every write is `sync`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SyncKeys {
    /// None for certain.
    #[default]
    None,
    /// Those of even rank, and those of sets and counters.
    Even,
    /// All.
    All,
}

impl SyncKeys {
    /// Whether this is one.
    pub fn has(self, key: &Key) -> bool {
        match self {
            SyncKeys::None => false,
            SyncKeys::All => true,
            SyncKeys::Even => {
                let name = key.as_bytes();
                let rank = name.strip_prefix(b"key").and_then(|rank| rank.last().copied());
                rank.is_none_or(|last| last % 2 == 0)
            }
        }
    }
}

/// Settings of a node that an operator may change from one start to the next; what is absent stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSettings {
    /// Length at which a segment is closed, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment_bytes: Option<u64>,
    /// Growth of the log after which a snapshot is written, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_bytes_min: Option<u64>,
    /// Dead share at which compaction begins, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_percent_max: Option<u32>,
    /// Bytes of the cache of records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
    /// Time after which a fallback takes the place of a silent primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint_after_ms: Option<u64>,
    /// Suspicion from which on a node is taken for down, in tenths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phi_tenths: Option<u32>,
    /// Time within which each partition is compared with its other primaries'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anti_entropy_ms: Option<u64>,
    /// Time between two rounds of handoff.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handoff_ms: Option<u64>,
}

/// Weights of the kinds of operations; all zero is reads alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// Reads of one key.
    pub get: u32,
    /// Writes with the context of the client's last read of the key.
    pub put: u32,
    /// Writes without a context.
    pub blind: u32,
    /// Writes over what the coordinator holds.
    pub current: u32,
    /// Deletions, with and without a context.
    pub delete: u32,
    /// Writes that expire.
    pub ttl: u32,
    /// Writes under a condition.
    pub conditional: u32,
    /// Several keys at once, reads and writes.
    pub batch: u32,
    /// Scans of all keys.
    pub scan: u32,
    /// Elements added to sets, and sets read.
    pub set: u32,
    /// Counters counted up and down.
    pub counter: u32,
}

impl Mix {
    /// Each kind with its weight, by name.
    pub fn weights(&self) -> [(&'static str, u32); 11] {
        [
            ("get", self.get),
            ("put", self.put),
            ("blind", self.blind),
            ("current", self.current),
            ("delete", self.delete),
            ("ttl", self.ttl),
            ("conditional", self.conditional),
            ("batch", self.batch),
            ("scan", self.scan),
            ("set", self.set),
            ("counter", self.counter),
        ]
    }
}

/// What plans of before had.
fn buffer_bytes() -> usize {
    256 * 1024
}

fn one<T: Copy>(chance: &mut Stream, of: &[T]) -> T {
    *of.choose(chance).expect("a choice of something")
}

impl RunSettings {
    /// The settings of a seed of the default swarm.
    pub fn draw(run_seed: u64) -> RunSettings {
        let chance = &mut seed::stream(run_seed, "settings");
        let replicas = one(chance, &[3, 3, 3, 3, 2, 5]);
        let nodes = (u64::from(replicas) + one(chance, &[0, 0, 0, 1, 2, 4])).max(3);
        let majority = u8::try_from(replicas / 2 + 1).expect("small");
        let all = u8::try_from(replicas).expect("small");
        let (r, w) = one(
            chance,
            &[
                (majority, majority),
                (majority, majority),
                (1, 1),
                (1, majority),
                (majority, 1),
                (all, 1),
                (1, all),
            ],
        );
        let mut weight = |high: u32| if chance.random_bool(0.5) { chance.random_range(1..=high) } else { 0 };
        let mix = Mix {
            get: 4 + weight(6),
            put: 2 + weight(6),
            blind: weight(3),
            current: weight(3),
            delete: weight(3),
            ttl: weight(2),
            conditional: weight(2),
            batch: weight(1),
            scan: weight(1),
            set: weight(3),
            counter: weight(2),
        };
        let interval_ms = one(chance, &[0, 0, 0, 20, 100]);
        let mixed = interval_ms > 0 && chance.random_bool(0.75);
        // The checks of sets and counters know nothing of writes that a power loss may take.
        let mix = if interval_ms == 0 || mixed { mix } else { Mix { set: 0, counter: 0, ..mix } };
        // So many operations in so long, if every one took no time.
        let clients = chance.random_range(2..=6);
        let operations = chance.random_range(2_000..=5_000) / clients;
        let span_us: u64 = chance.random_range(20_000_000..=40_000_000);
        let slow_links = chance.random_bool(0.25);
        let ttl_low = chance.random_range(100..2_000);
        RunSettings {
            nodes,
            replicas,
            partitions: one(chance, &[8, 8, 16, 64]),
            w,
            r,
            own_quorums: chance.random_bool(0.3),
            strict: chance.random_bool(0.3),
            interval_ms,
            mixed,
            clients,
            operations,
            keys: one(chance, &[1, 3, 10, 30, 100]),
            skew: one(chance, &[0.0, 0.0, 0.8, 1.2]),
            pause_us: 2 * span_us / u64::from(operations),
            timeout_ms: one(chance, &[50, 300, 1_500, 5_000]),
            value_len_max: one(chance, &[16, 100, 400, 4_000]),
            mix,
            ttl_ms: (ttl_low, ttl_low + chance.random_range(0..8_000)),
            hint_after_ms: one(chance, &[20, 100, 300]),
            gossip_ms: one(chance, &[200, 1_000, 1_000]),
            phi_tenths: one(chance, &[20, 38, 38, 80]),
            handoff_ms: one(chance, &[100, 500, 1_000, 5_000]),
            anti_entropy_ms: one(chance, &[2_000, 5_000, 10_000]),
            scrub_ms: one(chance, &[10_000, 60_000]),
            guests_max: one(chance, &[3, 20, 1_000, 1_000]),
            hedge_after_ms: one(chance, &[10, 50, 200]),
            siblings_max: one(chance, &[2, 5, 20, 100]),
            segment_bytes: one(chance, &[4, 8, 16, 64]) * 1024,
            snapshot_bytes_min: one(chance, &[8, 32, 128]) * 1024,
            dead_percent_max: one(chance, &[10, 30, 50, 101]),
            cache_bytes: one(chance, &[0, 4 * 1024, 64 * 1024]),
            delay_us: if slow_links { (1_000, 60_000) } else { (100, 2_000) },
            sync_us: one(chance, &[(200, 4_000), (200, 4_000), (2_000, 40_000)]),
            skew_ms_max: one(chance, &[0, 0, 50, 2_000]),
            tcp: false,
            converge_within_ms: None,
            destroys: false,
            buggify: SITES
                .iter()
                .filter(|_| chance.random_bool(0.25))
                .map(|site| (*site).to_owned())
                .collect(),
            // A connection carries a buffer a round trip: with 2 KiB and 60 ms each way huge values never arrive in time.
            buffer_bytes: one(chance, &[2, 16, 256, 256]).max(if slow_links { 64 } else { 0 }) * 1024,
            reap_ms: one(chance, &[500, 1_000, 5_000]),
            // Down to nothing: no promise rests on it.
            grace_ms: one(chance, &[0, 500, 500, 3_000]),
        }
    }

    /// The settings of a seed of a scenario.
    pub fn draw_for(scenario: Scenario, run_seed: u64) -> RunSettings {
        let drawn = RunSettings::draw(run_seed);
        match scenario {
            Scenario::Swarm => drawn,
            Scenario::Away | Scenario::Held | Scenario::Rolling | Scenario::Members => {
                drawn.about(scenario, run_seed)
            }
            // What `NodeConfig` says where nobody says anything. Sizes and caps stay the swarm's: time is what this is about.
            Scenario::Defaults => RunSettings {
                hint_after_ms: 300,
                hedge_after_ms: 200,
                gossip_ms: 1_000,
                phi_tenths: 38,
                handoff_ms: 1_000,
                anti_entropy_ms: 30_000,
                scrub_ms: 7 * 24 * 3_600_000,
                reap_ms: 60_000,
                grace_ms: 3_600_000,
                guests_max: 1_000_000,
                converge_within_ms: Some(60_000),
                ..drawn
            },
            Scenario::Backup | Scenario::Wiped => {
                let settings = RunSettings::draw_for(Scenario::Destroy, run_seed);
                settings.about(scenario, run_seed)
            }
            // Its latency is a whole number of milliseconds, and each flush waits for the one before.
            Scenario::Destroy => {
                let chance = &mut seed::stream(run_seed, "destroy");
                let (replicas, w) = one(chance, &[(3, 2), (3, 2), (5, 3), (5, 2)]);
                let all = u8::try_from(replicas).expect("small");
                RunSettings {
                    nodes: u64::from(replicas) + one(chance, &[0, 0, 1]),
                    replicas,
                    // A read of all meets whichever disk is left. Scans wait for partitions that have refilled.
                    r: all,
                    w,
                    // Without it damaged disks hold guests too.
                    strict: chance.random_bool(0.6),
                    own_quorums: false,
                    interval_ms: 0,
                    mixed: false,
                    cache_bytes: one(chance, &[0, 0, 16 * 1024]),
                    // A convergence waits until everybody has refilled, and the rounds of the plan for it.
                    anti_entropy_ms: one(chance, &[300, 500, 1_000]),
                    timeout_ms: drawn.timeout_ms.max(1_500),
                    mix: Mix { scan: 0, ..drawn.mix },
                    destroys: true,
                    ..drawn
                }
            }
            Scenario::Tcp => {
                let tcp = RunSettings { tcp: true, timeout_ms: drawn.timeout_ms.max(300), ..drawn };
                // Its network holds no frame back, so what fences refuse comes about only where rounds follow on one another.
                match seed::stream(run_seed, "tcp-reaping").random_bool(0.5) {
                    true => tcp.about(scenario, run_seed),
                    false => tcp,
                }
            }
        }
    }

    /// Whether members may come and go: there are enough of them, and a node that is removed while it is down holds nothing
    /// alone that was acknowledged.
    pub fn may_change_members(&self) -> bool {
        let is_majority = u32::from(self.w) > self.replicas / 2;
        self.nodes > u64::from(self.replicas) && is_majority && !self.own_quorums && !self.destroys
    }

    /// Settings under which what the scenario is about takes place often.
    fn about(self, scenario: Scenario, run_seed: u64) -> RunSettings {
        let chance = &mut seed::stream(run_seed, scenario.name());
        let deleting = Mix { delete: 4, blind: 1 + self.mix.blind, ..self.mix };
        let reaping = RunSettings {
            mix: deleting,
            keys: one(chance, &[3, 10, 30]),
            reap_ms: one(chance, &[300, 500, 1_000]),
            grace_ms: one(chance, &[0, 200, 500]),
            gossip_ms: one(chance, &[200, 500]),
            operations: chance.random_range(350..=600),
            pause_us: one(chance, &[40_000, 60_000]),
            ..self
        };
        match scenario {
            Scenario::Away => RunSettings {
                nodes: u64::from(reaping.replicas) + one(chance, &[0, 1, 2]),
                grace_ms: one(chance, &[100, 300, 500]),
                ..reaping
            },
            Scenario::Held => RunSettings { hint_after_ms: one(chance, &[20, 100]), ..reaping },
            Scenario::Members => {
                let majority = u8::try_from(reaping.replicas / 2 + 1).expect("small");
                let w = reaping.w.max(majority);
                let meeting = u8::try_from(reaping.replicas).expect("small") + 1 - w;
                // What a read must see although the members have changed is judged of strict ones whose quorums meet.
                let is_strict = chance.random_bool(0.6);
                RunSettings {
                    nodes: u64::from(reaping.replicas) + one(chance, &[1, 2, 3]),
                    w,
                    r: if is_strict { reaping.r.max(meeting) } else { reaping.r },
                    strict: is_strict,
                    interval_ms: if chance.random_bool(0.5) { 0 } else { reaping.interval_ms },
                    mix: Mix { get: reaping.mix.get + 6, ..reaping.mix },
                    own_quorums: false,
                    anti_entropy_ms: one(chance, &[500, 1_000, 2_000]),
                    ..reaping
                }
            }
            Scenario::Rolling => RunSettings {
                nodes: u64::from(reaping.replicas) + 5,
                hint_after_ms: one(chance, &[20, 100]),
                siblings_max: 100,
                mix: Mix { get: 6, blind: 8, delete: 1, ..Mix::default() },
                ..reaping
            },
            _ => reaping,
        }
    }

    /// The keys of which every write is `sync`.
    pub fn sync_keys(&self) -> SyncKeys {
        match (self.interval_ms, self.mixed) {
            (0, _) => SyncKeys::All,
            (_, true) => SyncKeys::Even,
            (_, false) => SyncKeys::None,
        }
    }

    /// The nodes' default durability.
    pub fn durability(&self) -> Durability {
        if self.interval_ms == 0 { Durability::Sync } else { Durability::Interval(self.interval_ms) }
    }

    /// The time that clients need at the least, for the length of a fault plan.
    pub fn span(&self) -> Duration {
        Duration::from_micros(u64::from(self.operations) * self.pause_us / 2)
    }

    /// Why these settings make no sense, if they do not.
    ///
    /// # Errors
    /// With the reason, in words.
    pub fn check(&self) -> Result<(), String> {
        let n = self.replicas;
        let sound = |is: bool, why: &str| if is { Ok(()) } else { Err(why.to_owned()) };
        sound((1..=64).contains(&self.nodes), "nodes: 1 to 64")?;
        sound(n >= 1 && u64::from(n) <= self.nodes, "replicas: 1 to the number of nodes")?;
        sound(
            (8..=65_536).contains(&self.partitions) && self.partitions.is_power_of_two(),
            "partitions: a power of two from 8",
        )?;
        sound((1..=n).contains(&self.w.into()) && (1..=n).contains(&self.r.into()), "r, w: 1 to replicas")?;
        sound(self.keys > 0, "keys: at least 1")?;
        sound(self.skew.is_finite() && self.skew >= 0.0, "skew: a number from 0")?;
        sound(self.timeout_ms > 0, "timeout_ms: at least 1")?;
        sound(self.ttl_ms.0 > 0 && self.ttl_ms.0 <= self.ttl_ms.1, "ttl_ms: from 1, in order")?;
        sound(self.delay_us.0 <= self.delay_us.1, "delay_us: in order")?;
        sound(self.sync_us.0 <= self.sync_us.1, "sync_us: in order")?;
        sound(self.buggify.iter().all(|site| SITES.contains(&site.as_str())), "buggify: names of sites")?;
        sound(self.buffer_bytes > 0, "buffer_bytes: at least 1")?;
        sound(self.siblings_max > 0, "siblings_max: at least 1")
    }
}
