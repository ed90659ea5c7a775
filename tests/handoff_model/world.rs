//! One key, three primaries, two fallbacks, and everything that can be late or lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use ringdove::dynamo::get::ReplicaFailure;
use ringdove::dynamo::layout::{Layout, LayoutHistory, Member};
use ringdove::dynamo::preference::PreferenceList;
use ringdove::dynamo::put::{PutAction, PutEvent, PutMachine, PutOutcome, PutRequest};
use ringdove::dynamo::quorum::Tally;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::{ActorMint, Caps, Content, Dot, Overwrite, Record, Write};
use ringdove::storage::Entry;
use ringdove::types::{Incarnation, Mono, NodeId, PartitionId, Wall, WriteId};

/// N. Nodes are numbered in the order of the preference list: the primaries first.
pub(crate) const PRIMARIES: usize = 3;
pub(crate) const NODES: usize = 5;
/// Writes of one run.
pub(crate) const PUTS_MAX: usize = 8;
/// Messages that may be under way; beyond it the oldest is lost.
const UNDER_WAY_MAX: usize = 24;
/// Rounds of handoff in the end: one for each primary that may be owed something would do.
const ROUNDS: usize = 2 * PRIMARIES;

/// Which rules hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// A target is struck off only while the guest is the one that was delivered.
    pub(crate) compare: bool,
    /// A target confirms what its disk has synced.
    pub(crate) sync_first: bool,
    /// A confirmation strikes off one target.
    pub(crate) strike_one: bool,
}

impl Rules {
    pub(crate) fn production() -> Rules {
        Rules { compare: true, sync_first: true, strike_one: true }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A node coordinates a write, going by its view of who is down.
    Put { node: usize, blind: bool, w: usize, down: Vec<usize> },
    /// Something under way arrives; `again`: and stays under way.
    Deliver { at: usize, again: bool },
    /// All that a disk has gathered becomes durable, and is answered for.
    Sync { node: usize },
    /// A node reads what it keeps for a target and sends it.
    Offer { node: usize, target: usize },
    /// The coordinator of a write hears that a node failed, which may have it all the same.
    Fail { put: usize, node: usize },
    /// The coordinator of a write waits no longer for silent primaries.
    HintTimer { put: usize },
    /// The time of a write is up.
    Deadline { put: usize },
    /// A node dies and starts again with what was synced, and the first of what was gathered.
    Crash { node: usize, kept: usize },
}

/// What came about, so that a search that sees nothing shows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) acked: u64,
    pub(crate) guests: u64,
    pub(crate) struck: u64,
    pub(crate) outrun: u64,
    pub(crate) taken_back: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        self.acked += other.acked;
        self.guests += other.guests;
        self.struck += other.struck;
        self.outrun += other.outrun;
        self.taken_back += other.taken_back;
    }
}

/// Whoever waits for an answer, and what for.
#[derive(Debug, Clone, Copy)]
enum Errand {
    Put(usize),
    HandOff { version_hash: u64 },
}

/// What is answered as soon as the disk has synced.
#[derive(Debug, Clone)]
enum Owed {
    Kept(Message),
    LocalDurable(usize),
}

#[derive(Debug, Clone)]
enum Message {
    Store { from: usize, start: u64, to: usize, record: Record, guest_of: Vec<NodeId>, errand: Errand },
    Kept { from: usize, to: usize, start: u64, errand: Errand },
}

/// A state of the slot in the log, and whether its writer waits for it.
#[derive(Debug, Clone, Default)]
struct State {
    entry: Entry,
    is_awaited: bool,
}

struct Node {
    /// The state that is durable, then each that was gathered since, oldest first. Never empty.
    log: VecDeque<State>,
    answers: Vec<Owed>,
    mint: ActorMint,
    start: u64,
}

impl Node {
    fn durable(&self) -> &Entry {
        &self.log.front().expect("never empty").entry
    }

    fn latest(&self) -> &Entry {
        &self.log.back().expect("never empty").entry
    }

    /// Whether what is shown now can be taken back by a crash, in a way that matters to others.
    fn is_readable(&self) -> bool {
        self.log.iter().skip(1).all(|state| !state.is_awaited)
    }
}

struct Put {
    coordinator: usize,
    start: u64,
    w: usize,
    dot: Dot,
    record: Record,
    machine: PutMachine,
}

pub(crate) struct World {
    rules: Rules,
    list: Arc<PreferenceList>,
    nodes: Vec<Node>,
    under_way: Vec<Message>,
    puts: Vec<Put>,
    /// By dot: the write's past.
    writes: BTreeMap<Dot, BTreeSet<Dot>>,
    /// Acknowledged, at which W.
    acked: Vec<(Dot, usize)>,
    /// Writes of which a durable copy was kept for a primary.
    owed: BTreeSet<(Dot, usize)>,
    starts: u64,
    salt: u64,
    pub(crate) counts: Counts,
}

/// The preference list of a partition of the smallest cluster with two fallbacks.
fn list() -> Arc<PreferenceList> {
    static LIST: OnceLock<Arc<PreferenceList>> = OnceLock::new();
    let make = || {
        let members = (1..=NODES as u64).map(|id| Member {
            id: NodeId(id),
            peer_addr: String::new(),
            client_addr: String::new(),
            zone: String::new(),
            capacity: 1,
        });
        let partitions = PartitionCount::new(8).expect("a power of two");
        let layout = Layout::first(partitions, 3, members.collect()).expect("a sound layout");
        Arc::new(PreferenceList::new(&LayoutHistory::new(layout), PartitionId(0)))
    };
    LIST.get_or_init(make).clone()
}

impl World {
    pub(crate) fn new(seed: u64, rules: Rules) -> World {
        let mut world = World {
            rules,
            list: list(),
            nodes: Vec::new(),
            under_way: Vec::new(),
            puts: Vec::new(),
            writes: BTreeMap::new(),
            acked: Vec::new(),
            owed: BTreeSet::new(),
            starts: 0,
            salt: seed << 16,
            counts: Counts::default(),
        };
        for _ in 0..NODES {
            let (mint, start) = world.mint();
            let log = VecDeque::from([State::default()]);
            world.nodes.push(Node { log, answers: Vec::new(), mint, start });
        }
        world
    }

    fn mint(&mut self) -> (ActorMint, u64) {
        self.starts += 1;
        (ActorMint::new(Incarnation(self.salt | self.starts)), self.starts)
    }

    fn id(&self, node: usize) -> NodeId {
        self.list.candidates[node].node
    }

    fn node(&self, id: NodeId) -> usize {
        self.list.candidates.iter().position(|candidate| candidate.node == id).expect("a member")
    }

    fn append(&mut self, node: usize, entry: Entry, is_awaited: bool) {
        self.nodes[node].log.push_back(State { entry, is_awaited });
    }

    /// False when it means nothing now.
    pub(crate) fn apply(&mut self, event: &Event) -> bool {
        match event {
            Event::Put { node, blind, w, down } => return self.put(*node, *blind, *w, down),
            Event::Deliver { at, again } => {
                if self.under_way.is_empty() {
                    return false;
                }
                let at = at % self.under_way.len();
                let message = if *again { self.under_way[at].clone() } else { self.under_way.remove(at) };
                self.deliver(message);
            }
            Event::Sync { node } => {
                if self.nodes[*node].log.len() == 1 && self.nodes[*node].answers.is_empty() {
                    return false;
                }
                self.sync(*node);
            }
            Event::Offer { node, target } => return self.offer(*node, *target),
            Event::Fail { put, node } => {
                let from = self.id(*node);
                return self.tell(*put, PutEvent::Failed { from, why: ReplicaFailure::Unreachable });
            }
            Event::HintTimer { put } => return self.tell(*put, PutEvent::HintTimer),
            Event::Deadline { put } => return self.tell(*put, PutEvent::Deadline),
            Event::Crash { node, kept } => self.crash(*node, *kept),
        }
        true
    }

    fn put(&mut self, node: usize, blind: bool, w: usize, down: &[usize]) -> bool {
        if self.puts.len() == PUTS_MAX {
            return false;
        }
        let deadline = Mono::default() + Duration::from_secs(5);
        let request = PutRequest { w, strict: false, hint_after: Duration::from_millis(300), deadline };
        let down: Vec<NodeId> =
            down.iter().filter(|other| **other != node).map(|other| self.id(*other)).collect();
        let started = PutMachine::new(request, self.id(node), &self.list, &down, Mono::default());
        let Ok((mut machine, actions)) = started else { return false };
        let targets = actions.iter().find_map(|action| match action {
            PutAction::ApplyLocally { targets, .. } => Some(targets.clone()),
            _ => None,
        });
        let mut entry = self.nodes[node].latest().clone();
        let siblings = entry.copy.record.siblings().iter().filter(|_| !blind);
        let past =
            siblings.flat_map(|sibling| self.writes[&sibling.dot].iter().copied().chain([sibling.dot]));
        let past: BTreeSet<Dot> = past.collect();
        let over = if blind { Overwrite::Nothing } else { Overwrite::Current };
        let content = Content::Value(Bytes::new());
        let write =
            Write { write_id: WriteId(self.writes.len() as u128), content, meta: None, expires_at: None };
        let done = entry.copy.put(&mut self.nodes[node].mint, over, write, Wall(1), &Caps::default());
        let dot = done.expect("neither a cap nor a forgotten dot").dot;
        self.writes.insert(dot, past);
        entry.add_targets(&targets.expect("a put is applied locally first"));
        let record = entry.copy.record.clone();
        self.append(node, entry, true);
        let (put, start) = (self.puts.len(), self.nodes[node].start);
        self.nodes[node].answers.push(Owed::LocalDurable(put));
        let actions = machine.on_event(PutEvent::Applied);
        self.puts.push(Put { coordinator: node, start, w, dot, record, machine });
        self.carry_out(put, actions);
        true
    }

    /// Tells the machine of a put what has happened; false when its coordinator has forgotten it.
    fn tell(&mut self, put: usize, event: PutEvent) -> bool {
        let Some(told) = self.puts.get_mut(put) else { return false };
        if self.nodes[told.coordinator].start != told.start {
            return false;
        }
        let actions = told.machine.on_event(event);
        self.carry_out(put, actions);
        true
    }

    fn carry_out(&mut self, put: usize, actions: Vec<PutAction>) {
        let Put { coordinator, start, w, dot, .. } = self.puts[put];
        for action in actions {
            let (to, guest_of) = match action {
                PutAction::Replicate(node) => (node, Vec::new()),
                PutAction::StoreGuest { node, target } => (node, vec![target]),
                PutAction::NoteTarget(target) => {
                    let mut entry = self.nodes[coordinator].latest().clone();
                    entry.add_targets(&[target]);
                    self.append(coordinator, entry, true);
                    continue;
                }
                PutAction::Answer(PutOutcome::Applied(_)) => {
                    self.counts.acked += 1;
                    self.acked.push((dot, w));
                    continue;
                }
                _ => continue,
            };
            let (to, record) = (self.node(to), self.puts[put].record.clone());
            let errand = Errand::Put(put);
            self.push(Message::Store { from: coordinator, start, to, record, guest_of, errand });
        }
    }

    fn push(&mut self, message: Message) {
        if self.under_way.len() == UNDER_WAY_MAX {
            self.under_way.remove(0);
        }
        self.under_way.push(message);
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Store { from, start, to, record, guest_of, errand } => {
                self.counts.guests += u64::from(!guest_of.is_empty());
                let mut entry = self.nodes[to].latest().clone();
                let known = entry.targets.len();
                entry.add_targets(&guest_of);
                let done = entry.copy.merge(&self.nodes[to].mint, &record);
                assert!(!done.actor_ahead && done.merged.collisions.is_empty(), "one dot was made twice");
                if done.merged.changed || entry.targets.len() != known {
                    self.append(to, entry, true);
                }
                let kept = Message::Kept { from: to, to: from, start, errand };
                let waits = self.rules.sync_first || matches!(errand, Errand::Put(_));
                if self.nodes[to].log.len() == 1 || !waits {
                    self.push(kept);
                } else {
                    self.nodes[to].answers.push(Owed::Kept(kept));
                }
            }
            Message::Kept { from, to, start, errand } => {
                if self.nodes[to].start != start {
                    return;
                }
                match errand {
                    Errand::Put(put) => {
                        let event = PutEvent::Ack(self.id(from));
                        self.tell(put, event);
                    }
                    Errand::HandOff { version_hash } => self.strike(to, from, version_hash),
                }
            }
        }
    }

    fn sync(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        this.log.drain(..this.log.len() - 1);
        for answer in std::mem::take(&mut this.answers) {
            match answer {
                Owed::Kept(message) => self.push(message),
                Owed::LocalDurable(put) => {
                    self.tell(put, PutEvent::LocalDurable);
                }
            }
        }
    }

    fn offer(&mut self, node: usize, target: usize) -> bool {
        let this = &self.nodes[node];
        if !this.latest().targets.contains(&self.id(target)) || !this.is_readable() {
            return false;
        }
        let record = this.latest().copy.record.clone();
        let errand = Errand::HandOff { version_hash: record.version_hash() };
        let start = this.start;
        self.push(Message::Store { from: node, start, to: target, record, guest_of: Vec::new(), errand });
        true
    }

    fn strike(&mut self, node: usize, target: usize, version_hash: u64) {
        let target = self.id(target);
        let mut entry = self.nodes[node].latest().clone();
        if entry.copy.record.version_hash() != version_hash && self.rules.compare {
            self.counts.outrun += 1;
            return;
        }
        if !entry.targets.contains(&target) {
            return;
        }
        self.counts.struck += 1;
        entry.targets.retain(|other| *other != target && self.rules.strike_one);
        if node >= PRIMARIES && entry.targets.is_empty() {
            entry = Entry::default();
        }
        // Nobody waits for a strike: one that a crash undoes is done again.
        self.append(node, entry, false);
    }

    fn crash(&mut self, node: usize, kept: usize) {
        let (mint, start) = self.mint();
        let this = &mut self.nodes[node];
        let kept = 1 + kept % this.log.len();
        self.counts.taken_back += u64::from(kept < this.log.len());
        this.log.truncate(kept);
        // A start syncs what it serves.
        this.log.drain(..kept - 1);
        this.answers.clear();
        (this.mint, this.start) = (mint, start);
    }

    /// Whether a record shows a write, or one that has it in its past.
    fn shows(&self, record: &Record, dot: Dot) -> bool {
        record.siblings().iter().any(|sibling| sibling.dot == dot || self.writes[&sibling.dot].contains(&dot))
    }

    /// # Errors
    /// With what is wrong now.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        for (dot, w) in &self.acked {
            let mut tally = Tally::new(&self.list.layouts, *w);
            for (node, this) in self.nodes.iter().enumerate() {
                if !self.shows(&this.durable().copy.record, *dot) {
                    continue;
                }
                if node < PRIMARIES {
                    tally.count_primary(self.id(node));
                } else {
                    tally.count_for(self.id(node), &this.durable().targets);
                }
            }
            if !tally.is_met() {
                return Err(format!("{dot:?} was acknowledged at {w} and is on {} nodes", tally.have()));
            }
        }
        for (dot, target) in &self.owed {
            let has = self.shows(&self.nodes[*target].durable().copy.record, *dot);
            let keeps = |node: &Node| {
                let entry = node.durable();
                entry.targets.contains(&self.id(*target)) && self.shows(&entry.copy.record, *dot)
            };
            if !has && !self.nodes.iter().any(keeps) {
                return Err(format!("{dot:?} was kept for node {target}, which never got it"));
            }
        }
        let mut owed = std::mem::take(&mut self.owed);
        for entry in self.nodes.iter().map(Node::durable) {
            for target in entry.targets.iter().map(|target| self.node(*target)) {
                let shown = self.writes.keys().filter(|dot| self.shows(&entry.copy.record, **dot));
                owed.extend(shown.map(|dot| (*dot, target)));
            }
        }
        self.owed = owed;
        Ok(())
    }

    fn settle(&mut self) {
        while !self.under_way.is_empty() {
            let message = self.under_way.remove(0);
            self.deliver(message);
            (0..NODES).for_each(|node| self.sync(node));
        }
    }

    /// Everything heals.
    ///
    /// # Errors
    /// With what is wrong then.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        (0..NODES).for_each(|node| self.sync(node));
        self.settle();
        for put in 0..self.puts.len() {
            self.tell(put, PutEvent::Deadline);
        }
        for _ in 0..ROUNDS {
            for (node, target) in (0..NODES).flat_map(|node| (0..PRIMARIES).map(move |target| (node, target)))
            {
                self.offer(node, target);
                self.settle();
            }
            self.check()?;
        }
        for (node, this) in self.nodes.iter().enumerate() {
            let entry = this.durable();
            if !entry.targets.is_empty() || (node >= PRIMARIES && *entry != Entry::default()) {
                return Err(format!("node {node} still keeps {entry:?}"));
            }
            let there: BTreeSet<Dot> =
                entry.copy.record.siblings().iter().map(|sibling| sibling.dot).collect();
            if let Some(dot) = there.iter().find(|dot| there.iter().any(|at| self.writes[at].contains(*dot)))
            {
                return Err(format!("node {node} shows {dot:?} beside a write that has it in its past"));
            }
        }
        Ok(())
    }
}
