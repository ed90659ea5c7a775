//! What goes wrong in a run: processes that are killed or paused, links that are cut, slow or reset, drawn from a seed.
//!
//! | phase | what |
//! |---|---|
//! | [`Nemesis::one_at_a_time`] | one node is faulty for one to three seconds, in one way; all are whole in between |
//! | [`Nemesis::at_once`] | up to as many faults as there are nodes, of any kind, overlapping; now and then all are killed |
//!
//! The seed fixes which faults come, for how long and after which pauses. What they meet, real time decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use ringdove::types::NodeId;

use crate::history::{Recorder, remark};
use crate::processes::Cluster;
use crate::proxy::{Links, Way};
use crate::workload::Times;

/// Something that goes wrong, and how it is mended.
#[derive(Debug, Clone)]
enum Fault {
    /// The process ends, and is started again.
    Kill(NodeId),
    /// All of them at once.
    KillAll,
    /// The process does nothing.
    Pause(NodeId),
    /// These links hold what they are given.
    Cut(&'static str, Vec<Way>),
    /// These links are slow.
    Slow(Vec<Way>, Duration),
    /// The connections over these links break. Nothing is to be mended.
    Reset(Vec<Way>),
}

/// Acts on a cluster and its links.
pub(crate) struct Nemesis {
    cluster: Cluster,
    links: Links,
    history: Recorder,
    times: Arc<Times>,
    chance: ChaCha8Rng,
    began: Instant,
    /// What is wrong now, and until when.
    faults: Vec<(Instant, Fault)>,
    /// Faults so far, in words.
    pub(crate) said: Vec<String>,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Nemesis {
    pub(crate) fn new(
        cluster: Cluster,
        links: Links,
        history: Recorder,
        times: Arc<Times>,
        seed: u64,
    ) -> Nemesis {
        let chance = ChaCha8Rng::seed_from_u64(seed);
        let began = Instant::now();
        Nemesis { cluster, links, history, times, chance, began, faults: Vec::new(), said: Vec::new() }
    }

    fn ids(&self) -> Vec<NodeId> {
        self.cluster.nodes.iter().map(|node| node.id).collect()
    }

    /// Makes one node at a time faulty, until `end`, and mends the last.
    pub(crate) fn one_at_a_time(&mut self, end: Instant) {
        loop {
            let pause = ms(self.chance.random_range(500..1500));
            self.sleep_until(Instant::now() + pause);
            let lasts = ms(self.chance.random_range(1000..3000));
            if Instant::now() + lasts >= end {
                break;
            }
            let fault = self.draw(false);
            self.begin(fault, lasts);
            self.sleep_until(Instant::now() + lasts);
            self.mend(|_| true);
        }
        self.sleep_until(end);
    }

    /// Lets faults overlap, until `end`, and leaves them.
    pub(crate) fn at_once(&mut self, end: Instant) {
        while Instant::now() < end {
            let pause = ms(self.chance.random_range(100..1200));
            self.sleep_until((Instant::now() + pause).min(end));
            let now = Instant::now();
            self.mend(|until| until <= now);
            if self.faults.len() < self.cluster.nodes.len() {
                let fault = self.draw(true);
                let lasts = ms(self.chance.random_range(200..4000));
                self.begin(fault, lasts);
            }
        }
    }

    /// Mends everything, starts what does not run, and hands the cluster back.
    pub(crate) fn heal(mut self) -> (Cluster, Vec<String>) {
        self.mend(|_| true);
        self.tell("heal", "everything");
        self.cluster.nodes.iter_mut().for_each(|node| node.start());
        assert!(self.links.are_whole() && self.cluster.nodes.iter().all(|node| node.is_running()));
        (self.cluster, self.said)
    }

    fn sleep_until(&self, moment: Instant) {
        std::thread::sleep(moment.saturating_duration_since(Instant::now()));
    }

    fn tell(&mut self, what: &'static str, of: &str) {
        let line = format!("{:7.2} s  {what} {of}", self.began.elapsed().as_secs_f64());
        println!("{line}");
        self.times.done(&line);
        self.said.push(line);
        self.history.push(remark(what, of.to_owned()));
    }

    fn draw(&mut self, many: bool) -> Fault {
        let mut ids = self.ids();
        ids.shuffle(&mut self.chance);
        let (node, others) = (ids[0], &ids[1..]);
        let out = |of: &[NodeId], to: &[NodeId]| {
            of.iter().flat_map(|a| to.iter().map(|b| (*a, *b))).collect::<Vec<Way>>()
        };
        let both = |a: &[NodeId], b: &[NodeId]| [out(a, b), out(b, a)].concat();
        match self.chance.random_range(0..if many { 11 } else { 8 }) {
            0 | 1 => Fault::Kill(node),
            2 | 3 => Fault::Pause(node),
            4 => Fault::Cut("isolate", both(&[node], others)),
            5 if self.chance.random() => Fault::Cut("mute", out(&[node], others)),
            5 => Fault::Cut("deafen", out(others, &[node])),
            6 => Fault::Slow(both(&[node], others), ms(self.chance.random_range(20..400))),
            7 => Fault::Reset(both(&[node], others)),
            8 => Fault::Cut("cut one way", vec![(node, others[0])]),
            9 => {
                let (one, other) = ids.split_at(ids.len() / 2);
                Fault::Cut("cut in two", both(one, other))
            }
            _ => Fault::KillAll,
        }
    }

    fn begin(&mut self, fault: Fault, lasts: Duration) {
        let words = |ways: &[Way]| {
            let mut words: Vec<String> = ways.iter().map(|(from, to)| format!("{from}→{to}")).collect();
            words.truncate(8);
            format!("{} for {} ms", words.join(" "), lasts.as_millis())
        };
        match &fault {
            Fault::Kill(id) | Fault::Pause(id) => {
                let (what, id) = (if matches!(fault, Fault::Kill(_)) { "kill" } else { "pause" }, *id);
                let node = self.node(id);
                if !node.is_running() {
                    return;
                }
                if what == "kill" {
                    node.kill();
                } else {
                    node.pause();
                }
                self.tell(what, &format!("{id} for {} ms", lasts.as_millis()));
            }
            Fault::KillAll => {
                self.cluster.nodes.iter_mut().for_each(|node| node.kill());
                self.tell("kill", &format!("all for {} ms", lasts.as_millis()));
            }
            Fault::Cut(what, ways) => {
                ways.iter().for_each(|way| self.links.cut(*way));
                self.tell(what, &words(ways));
            }
            Fault::Slow(ways, delay) => {
                ways.iter().for_each(|way| self.links.delay(*way, *delay));
                self.tell("slow", &format!("by {} ms {}", delay.as_millis(), words(ways)));
            }
            Fault::Reset(ways) => {
                ways.iter().for_each(|way| self.links.reset(*way));
                self.tell("reset", &words(ways));
            }
        }
        self.faults.push((Instant::now() + lasts, fault));
    }

    /// Takes back the faults whose end is due.
    fn mend(&mut self, due: impl Fn(Instant) -> bool) {
        let (mended, left) = std::mem::take(&mut self.faults).into_iter().partition(|(until, _)| due(*until));
        self.faults = left;
        let mended: Vec<(Instant, Fault)> = mended;
        for (_, fault) in mended {
            match fault {
                Fault::Kill(id) => {
                    self.node(id).start();
                    self.tell("started", &id.to_string());
                }
                Fault::KillAll => {
                    self.cluster.nodes.iter_mut().for_each(|node| node.start());
                    self.tell("started", "all");
                }
                Fault::Pause(id) => {
                    self.node(id).resume();
                    self.tell("resumed", &id.to_string());
                }
                Fault::Cut(what, ways) => {
                    // One time in three what the links held is lost with its connections.
                    if self.chance.random_ratio(1, 3) {
                        ways.iter().for_each(|way| self.links.reset(*way));
                    }
                    ways.iter().for_each(|way| self.links.heal(*way));
                    self.tell("healed", what);
                }
                Fault::Slow(ways, _) => {
                    ways.iter().for_each(|way| self.links.delay(*way, Duration::ZERO));
                    self.tell("healed", "slow");
                }
                Fault::Reset(_) => {}
            }
        }
        for node in &mut self.cluster.nodes {
            // Nobody has killed it: it must not end.
            assert_eq!(node.ended(), None, "{} has ended by itself", node.id);
        }
    }

    fn node(&mut self, id: NodeId) -> &mut crate::processes::NodeProcess {
        self.cluster.nodes.iter_mut().find(|node| node.id == id).expect("a member")
    }
}
