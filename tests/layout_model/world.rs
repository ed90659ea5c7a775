//! One partition with one key, members that come and go, and everything that can be late or lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringdove::dynamo::get::ReplicaFailure;
use ringdove::dynamo::layout::{Layout, LayoutHistory, Member};
use ringdove::dynamo::preference::PreferenceList;
use ringdove::dynamo::put::{PutAction, PutEvent, PutMachine, PutOutcome, PutRequest};
use ringdove::dynamo::quorum::Tally;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::{ActorMint, Caps, Content, Dot, LocalCopy, Overwrite, Record, Write};
use ringdove::types::{Incarnation, LayoutRef, Mono, NodeId, PartitionId, Wall, WriteId};

use crate::tasks::{Compare, LetGo, Retire};

/// Nodes that there are; some of them are members at a time.
pub(crate) const NODES: usize = 6;
/// Writes and reads of one run.
pub(crate) const PUTS_MAX: usize = 6;
pub(crate) const READS_MAX: usize = 8;
/// Messages that may be under way; beyond it the oldest is lost.
const UNDER_WAY_MAX: usize = 24;
/// Layouts that may be active before another is made.
const ACTIVE_MAX: usize = 3;
/// Rounds of everything in the end.
const ROUNDS: usize = 12;

/// Which rules hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// W counts in the layouts that are active when a put is answered.
    pub(crate) on_layout: bool,
    /// A copy is merged only while the node goes by the layout that its sender went by.
    pub(crate) same_layout: bool,
    /// Nothing comes into a partition that is not the node's any more.
    pub(crate) has_moved: bool,
    /// Whoever becomes a primary does not count as refilled.
    pub(crate) unmark: bool,
    /// And that is durable before the layout is.
    pub(crate) unmark_first: bool,
    /// A comparison under earlier layouts sets no mark.
    pub(crate) epoch_of_comparison: bool,
    /// A primary counts as refilled only once it was compared with enough others.
    pub(crate) enough: bool,
    /// A layout retires once everybody says that nothing is left.
    pub(crate) ask_first: bool,
    /// Members that are down are waited for.
    pub(crate) wait_for_members: bool,
    /// What has retired anywhere has retired.
    pub(crate) hear_retired: bool,
    /// A partition is let go only under the layouts under which it was handed over.
    pub(crate) epoch_of_letting_go: bool,
    /// And once it is on the disks of the others.
    pub(crate) root_of: bool,
    /// A read that went by other layouts is made again.
    pub(crate) reads_again: bool,
}

impl Rules {
    pub(crate) const fn production() -> Rules {
        Rules {
            on_layout: true,
            same_layout: true,
            has_moved: true,
            unmark: true,
            unmark_first: true,
            epoch_of_comparison: true,
            enough: true,
            ask_first: true,
            wait_for_members: true,
            hear_retired: true,
            epoch_of_letting_go: true,
            root_of: true,
            reads_again: true,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// An operator has a node make the next layout.
    Change { node: usize, add: Option<usize>, remove: Option<usize> },
    /// The same, with these members.
    Members { node: usize, members: Vec<usize> },
    /// The same, with the members that there were once before.
    Back { node: usize, at: usize },
    /// A node meets damage: it may lack something, as far as it knows.
    Doubt { node: usize },
    /// A node takes over what another goes by; `dies`: it loses power half-way.
    Learn { node: usize, from: usize, dies: bool },
    /// A node begins to coordinate a write.
    Put { node: usize },
    /// It makes the dot on its own copy.
    Apply { put: usize },
    /// The time of a write is up.
    Deadline { put: usize },
    /// A node begins to coordinate a read.
    Read { node: usize },
    /// Something under way arrives.
    Deliver { at: usize },
    /// It is lost.
    Lose { at: usize },
    /// A node does what it was asked, some time after it has looked at the layout of the message.
    Finish { node: usize, at: usize },
    /// All that a disk has gathered becomes durable, and is answered for.
    Sync { node: usize },
    /// A node takes a step of its comparison with the other primaries.
    Compare { node: usize },
    /// A node takes a step towards the end of older layouts.
    Retire { node: usize },
    /// A node takes a step towards letting go what is not its any more.
    LetGo { node: usize },
    /// A node does one of these to its end.
    Whole { node: usize, task: Task },
    /// Everybody learns what a node goes by.
    LearnAll { from: usize },
    /// All that is under way arrives, and is done and answered.
    Quiet,
    /// A node loses power.
    Crash { node: usize },
    /// It starts again.
    Start { node: usize },
    /// A node takes another for down that may well be up, or no longer.
    Suspect { node: usize, other: usize },
}

/// What a node does by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    Compare,
    Retire,
    LetGo,
}

/// What came about, so that a search that sees nothing shows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) acked: u64,
    pub(crate) read: u64,
    pub(crate) moved: u64,
    pub(crate) refilled: u64,
    pub(crate) retired: u64,
    pub(crate) let_go: u64,
    pub(crate) taken_back: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        self.acked += other.acked;
        self.read += other.read;
        self.moved += other.moved;
        self.refilled += other.refilled;
        self.retired += other.retired;
        self.let_go += other.let_go;
        self.taken_back += other.taken_back;
    }
}

/// What a node keeps of the partition.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) copy: LocalCopy,
    pub(crate) refilled: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Message {
    Store { put: usize, from: usize, start: u64, to: usize, layout: LayoutRef, record: Record },
    Kept { put: usize, from: usize, start: u64 },
    Refused { put: usize, from: usize, start: u64 },
    Fetch { read: usize, from: usize, start: u64, to: usize, layout: LayoutRef },
    Fetched { read: usize, from: usize, start: u64, record: Record, refilled: bool },
}

pub(crate) struct Node {
    pub(crate) is_up: bool,
    pub(crate) start: u64,
    pub(crate) history: LayoutHistory,
    /// What the node goes by, and what a crash leaves.
    pub(crate) now: State,
    pub(crate) disk: State,
    mint: ActorMint,
    pub(crate) epoch: u64,
    /// How often it has met damage.
    pub(crate) doubts: u64,
    suspects: BTreeSet<usize>,
    /// Asked under the node's layout, not done yet.
    arrived: Vec<Message>,
    /// Writes that are answered for once the disk has synced; and whether they are the node's own.
    owed: Vec<(usize, Option<(usize, u64)>)>,
    pub(crate) compare: Option<Compare>,
    pub(crate) retire: Option<Retire>,
    pub(crate) letting_go: Option<LetGo>,
}

impl Node {
    pub(crate) fn record(&self) -> &Record {
        &self.now.copy.record
    }

    pub(crate) fn current(&self) -> LayoutRef {
        self.history.current().reference()
    }
}

struct Put {
    coordinator: usize,
    start: u64,
    machine: PutMachine,
    layout: (LayoutRef, usize),
    made: Option<(Dot, Record)>,
}

struct Read {
    coordinator: usize,
    start: u64,
    layout: LayoutRef,
    tally: Tally,
    seen: Record,
    /// What was acknowledged before it began.
    must: Vec<Dot>,
}

pub(crate) struct World {
    pub(crate) rules: Rules,
    pub(crate) nodes: Vec<Node>,
    pub(crate) partition: PartitionId,
    pub(crate) n: usize,
    r: usize,
    w: usize,
    /// Whether nodes may stay down, and be taken for down: then R and W are majorities.
    nodes_die: bool,
    puts: Vec<Option<Put>>,
    reads: Vec<Option<Read>>,
    under_way: Vec<Message>,
    acked: Vec<Dot>,
    /// What has been on a disk.
    durable: BTreeSet<Dot>,
    /// The members of each layout so far.
    earlier: Vec<Vec<Member>>,
    starts: u64,
    salt: u64,
    wrong: Option<String>,
    pub(crate) counts: Counts,
}

pub(crate) fn id(node: usize) -> NodeId {
    NodeId(node as u64)
}

#[expect(clippy::cast_possible_truncation, reason = "below NODES")]
pub(crate) fn index(node: NodeId) -> usize {
    node.0 as usize
}

fn member(node: usize) -> Member {
    let (peer_addr, client_addr) = (format!("n{node}:1"), format!("n{node}:2"));
    Member { id: id(node), peer_addr, client_addr, zone: String::new(), capacity: 1 }
}

impl World {
    /// `shape` chooses N, R and W, the partition, whether nodes die, and whether there is a member more than N.
    pub(crate) fn new(seed: u64, shape: u64, rules: Rules) -> World {
        let n = if shape & 1 == 0 { 2 } else { 3 };
        let nodes_die = shape & 2 == 0;
        let majority = n / 2 + 1;
        let (r, w) = match (nodes_die, shape >> 2 & 3) {
            (true, _) | (_, 0 | 1) => (majority, majority),
            (_, 2) => (1, n),
            _ => (n, 1),
        };
        let q = PartitionCount::new(8).expect("a power of two");
        let members = (0..n + usize::from(shape >> 7 & 1 == 0)).map(member).collect();
        let layout = Layout::first(q, u32::try_from(n).expect("2 or 3"), members).expect("sound");
        let history = LayoutHistory::new(layout);
        let mut world = World {
            rules,
            nodes: Vec::new(),
            partition: PartitionId(u32::try_from(shape >> 4 & 7).expect("below 8")),
            n,
            r,
            w,
            nodes_die,
            puts: Vec::new(),
            reads: Vec::new(),
            under_way: Vec::new(),
            acked: Vec::new(),
            durable: BTreeSet::new(),
            earlier: vec![history.current().members().to_vec()],
            starts: 0,
            salt: seed << 16,
            wrong: None,
            counts: Counts::default(),
        };
        for _ in 0..NODES {
            let (start, mint) = world.next_start();
            let state = State { copy: LocalCopy::default(), refilled: true };
            world.nodes.push(Node {
                is_up: true,
                start,
                history: history.clone(),
                now: state.clone(),
                disk: state,
                mint,
                epoch: 0,
                doubts: 0,
                suspects: BTreeSet::new(),
                arrived: Vec::new(),
                owed: Vec::new(),
                compare: None,
                retire: None,
                letting_go: None,
            });
        }
        world
    }

    fn next_start(&mut self) -> (u64, ActorMint) {
        self.starts += 1;
        (self.starts, ActorMint::new(Incarnation(self.salt | self.starts)))
    }

    pub(crate) fn list(&self, node: usize) -> PreferenceList {
        PreferenceList::new(&self.nodes[node].history, self.partition)
    }

    pub(crate) fn is_primary(&self, node: usize) -> bool {
        self.list(node).is_primary(id(node))
    }

    pub(crate) fn is_down(&self, node: usize, other: usize) -> bool {
        !self.nodes[other].is_up || self.nodes[node].suspects.contains(&other)
    }

    fn down(&self, node: usize) -> Vec<NodeId> {
        (0..NODES).filter(|other| self.is_down(node, *other)).map(id).collect()
    }

    /// Whether two nodes go by one layout, after each has told the other.
    pub(crate) fn settle(&mut self, a: usize, b: usize) -> bool {
        if self.nodes[a].current() != self.nodes[b].current() {
            self.learn(a, b, false);
            self.learn(b, a, false);
        }
        self.nodes[a].current() == self.nodes[b].current()
    }

    /// Applies an event; whether it did anything.
    pub(crate) fn apply(&mut self, event: &Event) -> bool {
        match *event {
            Event::Change { node, add, remove } => {
                let mut members: Vec<Member> = self.nodes[node].history.current().members().to_vec();
                members.retain(|member| remove.map(id) != Some(member.id));
                if let Some(add) = add.filter(|add| members.iter().all(|member| member.id != id(*add))) {
                    members.push(member(add));
                }
                self.change(node, members)
            }
            Event::Members { node, ref members } => {
                self.change(node, members.iter().copied().map(member).collect())
            }
            Event::Back { node, at } => {
                let members = self.earlier[at % self.earlier.len()].clone();
                self.change(node, members)
            }
            Event::Doubt { node } => {
                let this = &mut self.nodes[node];
                this.doubts += 1;
                std::mem::take(&mut this.now.refilled)
            }
            Event::Learn { node, from, dies } => {
                node != from && self.nodes[from].is_up && self.learn(node, from, dies)
            }
            Event::Put { node } => self.put(node),
            Event::Apply { put } => self.make_dot(put),
            Event::Deadline { put } => {
                let begun = self.puts.get(put).is_some_and(Option::is_some);
                self.put_event(put, PutEvent::Deadline);
                begun
            }
            Event::Read { node } => self.read(node),
            Event::Deliver { at } => {
                if self.under_way.is_empty() {
                    return false;
                }
                let message = self.under_way.remove(at % self.under_way.len());
                self.deliver(message);
                true
            }
            Event::Lose { at } => {
                let any = !self.under_way.is_empty();
                if any {
                    self.under_way.remove(at % self.under_way.len());
                }
                any
            }
            Event::Finish { node, at } => {
                let arrived = &mut self.nodes[node].arrived;
                if arrived.is_empty() {
                    return false;
                }
                let message = arrived.remove(at % arrived.len());
                self.finish(message);
                true
            }
            Event::Sync { node } => self.sync(node),
            Event::Compare { node } => self.nodes[node].is_up && self.compare(node),
            Event::Retire { node } => self.nodes[node].is_up && self.retire(node),
            Event::LetGo { node } => self.nodes[node].is_up && self.let_go(node),
            Event::Whole { node, task } => self.nodes[node].is_up && self.whole(node, task),
            Event::LearnAll { from } => {
                let learned: Vec<bool> =
                    (0..NODES).map(|node| self.nodes[from].is_up && self.learn(node, from, false)).collect();
                learned.contains(&true)
            }
            Event::Quiet => {
                let any = !self.under_way.is_empty();
                self.quiet();
                any
            }
            Event::Crash { node } => {
                self.crash(node);
                if !self.nodes_die {
                    self.start(node);
                }
                true
            }
            Event::Start { node } => self.start(node),
            Event::Suspect { node, other } => {
                if node == other || !self.nodes_die {
                    return false;
                }
                let suspects = &mut self.nodes[node].suspects;
                if !suspects.remove(&other) {
                    suspects.insert(other);
                }
                true
            }
        }
    }

    fn change(&mut self, node: usize, members: Vec<Member>) -> bool {
        let history = &self.nodes[node].history;
        let current = history.current();
        let may = self.nodes[node].is_up && current.member(id(node)).is_some();
        if !may || history.active().len() >= ACTIVE_MAX || members.len() < self.n {
            return false;
        }
        let Ok(next) = current.next(members) else { return false };
        if next.primaries(self.partition) == current.primaries(self.partition) {
            return false;
        }
        let mut after = history.clone();
        if after.adopt(next).is_err() {
            return false;
        }
        self.earlier.push(after.current().members().to_vec());
        self.go_by(node, after, false);
        true
    }

    pub(crate) fn learn(&mut self, node: usize, from: usize, dies: bool) -> bool {
        let mut after = self.nodes[node].history.clone();
        let theirs = self.nodes[from].history.clone();
        // Messages show which layout is the newest, and not which older ones have retired.
        let differs = self.nodes[node].current() != self.nodes[from].current();
        if !self.nodes[node].is_up || !differs || after.catch_up(&theirs).is_err() {
            return false;
        }
        if after == self.nodes[node].history {
            return false;
        }
        self.go_by(node, after, dies);
        true
    }

    /// The order of `begin_transfer` and `go_by`.
    pub(crate) fn go_by(&mut self, node: usize, after: LayoutHistory, dies: bool) {
        let (rules, partition) = (self.rules, self.partition);
        let this = &mut self.nodes[node];
        this.epoch += 1;
        let gained = after.gained_since(&this.history, id(node)).contains(&partition) && rules.unmark;
        if gained && rules.unmark_first {
            this.now.refilled = false;
            self.write(node);
        }
        let this = &mut self.nodes[node];
        if dies && rules.unmark_first {
            return self.apply_crash(node);
        }
        this.history = after;
        this.epoch += 1;
        self.counts.moved += u64::from(gained);
        if dies {
            return self.apply_crash(node);
        }
        if gained && !rules.unmark_first {
            self.nodes[node].now.refilled = false;
        }
    }

    fn apply_crash(&mut self, node: usize) {
        self.crash(node);
        if !self.nodes_die {
            self.start(node);
        }
    }

    fn crash(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        self.counts.taken_back += u64::from(this.now.copy.record != this.disk.copy.record);
        this.is_up = false;
        this.now = this.disk.clone();
        this.arrived.clear();
        this.owed.clear();
        this.suspects.clear();
        this.compare = None;
        this.retire = None;
        this.letting_go = None;
        for put in &mut self.puts {
            put.take_if(|put| put.coordinator == node);
        }
        for read in &mut self.reads {
            read.take_if(|read| read.coordinator == node);
        }
    }

    fn start(&mut self, node: usize) -> bool {
        if self.nodes[node].is_up {
            return false;
        }
        let (start, mint) = self.next_start();
        let this = &mut self.nodes[node];
        this.is_up = true;
        this.start = start;
        this.mint = mint;
        this.epoch += 1;
        true
    }

    fn put(&mut self, node: usize) -> bool {
        if !self.nodes[node].is_up || self.puts.len() == PUTS_MAX {
            return false;
        }
        let list = self.list(node);
        let request = PutRequest {
            w: self.w,
            strict: true,
            hint_after: Duration::from_secs(1),
            deadline: Mono::from_origin(Duration::from_secs(10)),
        };
        let down = self.down(node);
        let Ok((machine, _)) = PutMachine::new(request, id(node), &list, &down, Mono::default()) else {
            return false;
        };
        let layout = (self.nodes[node].current(), list.layouts.len());
        let start = self.nodes[node].start;
        self.puts.push(Some(Put { coordinator: node, start, machine, layout, made: None }));
        true
    }

    fn make_dot(&mut self, put: usize) -> bool {
        let Some(begun) = self.puts.get(put).and_then(Option::as_ref) else { return false };
        let node = begun.coordinator;
        if begun.made.is_some() {
            return false;
        }
        if self.rules.has_moved && !self.is_primary(node) {
            self.put_event(put, PutEvent::Refused);
            return true;
        }
        let content = Content::Value(Bytes::new());
        let write = Write { write_id: WriteId(put as u128), content, meta: None, expires_at: None };
        let this = &mut self.nodes[node];
        let made = this.now.copy.put(&mut this.mint, Overwrite::Nothing, write, Wall(1), &Caps::default());
        let Ok(done) = made else { return false };
        this.owed.push((put, None));
        let record = this.record().clone();
        if let Some(begun) = &mut self.puts[put] {
            begun.made = Some((done.dot, record));
        }
        self.put_event(put, PutEvent::Applied);
        true
    }

    fn put_event(&mut self, put: usize, event: PutEvent) {
        let Some(node) = self.puts.get(put).and_then(Option::as_ref).map(|put| put.coordinator) else {
            return;
        };
        let list = self.list(node);
        let layout = (self.nodes[node].current(), list.layouts.len());
        let Some(begun) = self.puts[put].as_mut() else { return };
        let mut actions = Vec::new();
        if self.rules.on_layout && begun.layout != layout {
            begun.layout = layout;
            actions.extend(begun.machine.on_layout(&list));
        }
        actions.extend(begun.machine.on_event(event));
        let (made, start) = (begun.made.clone(), begun.start);
        for action in actions {
            match action {
                PutAction::Replicate(to) => {
                    let Some((_, record)) = made.clone() else { continue };
                    let layout = self.nodes[node].current();
                    self.push(Message::Store { put, from: node, start, to: index(to), layout, record });
                }
                PutAction::Answer(PutOutcome::Applied(_)) => {
                    self.acked.extend(made.as_ref().map(|(dot, _)| *dot));
                    self.counts.acked += 1;
                }
                PutAction::Finished => self.puts[put] = None,
                _ => {}
            }
        }
    }

    fn push(&mut self, message: Message) {
        if self.under_way.len() == UNDER_WAY_MAX {
            self.under_way.remove(0);
        }
        self.under_way.push(message);
    }

    fn read(&mut self, node: usize) -> bool {
        if !self.nodes[node].is_up || self.acked.is_empty() || self.reads.len() == READS_MAX {
            return false;
        }
        let must = self.acked.clone();
        self.reads.push(None);
        self.begin_read(self.reads.len() - 1, node, must);
        true
    }

    fn begin_read(&mut self, read: usize, node: usize, must: Vec<Dot>) {
        let list = self.list(node);
        let (start, layout) = (self.nodes[node].start, self.nodes[node].current());
        let tally = Tally::new(&list.layouts, self.r);
        let seen = Record::new();
        self.reads[read] = Some(Read { coordinator: node, start, layout, tally, seen, must });
        for to in list.primaries().map(index).collect::<Vec<_>>() {
            if to == node {
                self.write(node);
                let (record, refilled) = (self.nodes[node].record().clone(), self.nodes[node].now.refilled);
                self.fetched(read, node, &record, refilled);
            } else {
                self.push(Message::Fetch { read, from: node, start, to, layout });
            }
        }
    }

    /// A copy has come in for a read.
    fn fetched(&mut self, read: usize, from: usize, record: &Record, refilled: bool) {
        let Some(begun) = self.reads[read].as_mut() else { return };
        begun.seen.merge(record);
        if refilled {
            begun.tally.count_primary(id(from));
        }
        if !begun.tally.is_met() {
            return;
        }
        let node = begun.coordinator;
        let Some(ended) = self.reads[read].take() else { return };
        if self.rules.reads_again && self.nodes[node].current() != ended.layout {
            return self.begin_read(read, node, ended.must);
        }
        self.counts.read += 1;
        if let Some(dot) = ended.must.iter().find(|dot| !ended.seen.context().covers(**dot)) {
            self.wrong =
                Some(format!("a read at node {node} does not show {dot:?}, acknowledged before it began"));
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Store { from, start, to, layout, .. }
            | Message::Fetch { from, start, to, layout, .. } => {
                if !self.nodes[to].is_up {
                    return;
                }
                if self.nodes[to].current() != layout {
                    // Refused unread; sent again if its sender is still there and both agree.
                    if self.nodes[from].start == start && self.nodes[from].is_up && self.settle(from, to) {
                        let again = self.nodes[from].current();
                        let mut message = message;
                        match &mut message {
                            Message::Store { layout, .. } | Message::Fetch { layout, .. } => *layout = again,
                            _ => {}
                        }
                        self.push(message);
                    }
                    return;
                }
                self.nodes[to].arrived.push(message);
            }
            Message::Kept { put, from, start } => {
                if self.is_of(put, start) {
                    self.put_event(put, PutEvent::Ack(id(from)));
                }
            }
            Message::Refused { put, from, start } => {
                if self.is_of(put, start) {
                    let why = ReplicaFailure::WrongLayout;
                    self.put_event(put, PutEvent::Failed { from: id(from), why });
                }
            }
            Message::Fetched { read, from, start, record, refilled } => {
                if self.reads[read].as_ref().is_some_and(|read| read.start == start) {
                    self.fetched(read, from, &record, refilled);
                }
            }
        }
    }

    fn is_of(&self, put: usize, start: u64) -> bool {
        self.puts[put].as_ref().is_some_and(|put| put.start == start)
    }

    fn finish(&mut self, message: Message) {
        match message {
            Message::Store { put, start, to, layout, ref record, .. } => {
                if self.rules.same_layout && self.nodes[to].current() != layout {
                    // As if it had come now.
                    return self.deliver(message);
                }
                if self.rules.has_moved && !self.is_primary(to) {
                    return self.push(Message::Refused { put, from: to, start });
                }
                let record = record.clone();
                self.merge(to, &record);
                self.nodes[to].owed.push((put, Some((to, start))));
            }
            Message::Fetch { read, start, to, .. } => {
                self.write(to);
                let (record, refilled) = (self.nodes[to].record().clone(), self.nodes[to].now.refilled);
                self.push(Message::Fetched { read, from: to, start, record, refilled });
            }
            _ => {}
        }
    }

    pub(crate) fn merge(&mut self, node: usize, record: &Record) {
        let this = &mut self.nodes[node];
        this.now.copy.merge(&this.mint, record);
    }

    fn sync(&mut self, node: usize) -> bool {
        if !self.nodes[node].is_up || self.nodes[node].owed.is_empty() {
            return false;
        }
        self.write(node);
        true
    }

    /// All that a node holds becomes durable, and whoever waits for that is answered.
    pub(crate) fn write(&mut self, node: usize) {
        self.nodes[node].disk = self.nodes[node].now.clone();
        let dots = self.nodes[node].record().siblings().iter().map(|sibling| sibling.dot);
        self.durable.extend(dots.collect::<Vec<_>>());
        for (put, asker) in std::mem::take(&mut self.nodes[node].owed) {
            match asker {
                Some((from, start)) => self.push(Message::Kept { put, from, start }),
                None => self.put_event(put, PutEvent::LocalDurable),
            }
        }
    }

    fn whole(&mut self, node: usize, task: Task) -> bool {
        let begun = match task {
            Task::Compare => self.compare(node),
            Task::Retire => self.retire(node),
            Task::LetGo => self.let_go(node),
        };
        match task {
            Task::Compare => while self.nodes[node].compare.is_some() && self.compare(node) {},
            Task::Retire => while self.nodes[node].retire.is_some() && self.retire(node) {},
            Task::LetGo => while self.nodes[node].letting_go.is_some() && self.let_go(node) {},
        }
        begun
    }

    fn quiet(&mut self) {
        while let Some(message) = self.under_way.pop() {
            self.deliver(message);
            for node in 0..NODES {
                while let Some(message) = self.nodes[node].arrived.pop() {
                    self.finish(message);
                }
                self.sync(node);
            }
        }
    }

    /// # Errors
    /// With what is wrong now.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.wrong.clone().map_or(Ok(()), Err)?;
        for node in (0..NODES).filter(|node| self.nodes[*node].is_up) {
            if let Some(dot) = self.acked.iter().find(|dot| self.would_miss(node, **dot)) {
                return Err(format!("a read at node {node} would not show {dot:?}, which was acknowledged"));
            }
        }
        Ok(())
    }

    /// Whether a strict read that this node makes now would not show a write if the wrong replicas are the first to answer.
    fn would_miss(&self, node: usize, dot: Dot) -> bool {
        let current = self.nodes[node].current();
        let lacks = |primary: &NodeId| {
            let node = &self.nodes[index(*primary)];
            node.is_up
                && node.current() == current
                && node.now.refilled
                && !node.record().context().covers(dot)
        };
        let layouts = self.list(node).layouts;
        layouts.iter().all(|primaries| primaries.iter().filter(|node| lacks(node)).count() >= self.r)
    }

    /// Everything heals.
    ///
    /// # Errors
    /// With what is wrong then.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        for node in 0..NODES {
            self.start(node);
            self.nodes[node].suspects.clear();
        }
        for _ in 0..ROUNDS {
            self.quiet();
            for node in 0..NODES {
                for from in 0..NODES {
                    self.learn(node, from, false);
                }
            }
            for node in 0..NODES {
                for task in [Task::Compare, Task::Retire, Task::LetGo] {
                    self.whole(node, task);
                }
            }
        }
        self.check()?;
        let active: BTreeMap<usize, usize> =
            (0..NODES).map(|node| (node, self.nodes[node].history.active().len())).collect();
        let current: Arc<Layout> = self
            .nodes
            .iter()
            .map(|node| node.history.current().clone())
            .max_by_key(|layout| layout.reference().version)
            .expect("some nodes");
        for member in current.members() {
            let node = &self.nodes[index(member.id)];
            if node.current() != current.reference() || node.history.active().len() > 1 {
                return Err(format!("older layouts stay at node {}: {active:?}", member.id));
            }
        }
        let mut records = Vec::new();
        for node in 0..NODES {
            let record = self.nodes[node].record();
            if current.is_primary(self.partition, id(node)) {
                records.push(record);
            } else if !record.is_empty() {
                return Err(format!("node {node} keeps what is not its any more"));
            }
        }
        if records.iter().any(|record| *record != records[0]) {
            return Err(format!("primaries hold different things: {records:?}"));
        }
        let lost = |dot: &&Dot| !records[0].context().covers(**dot);
        if let Some(dot) = self.acked.iter().find(lost) {
            return Err(format!("{dot:?} was acknowledged and is lost"));
        }
        self.durable.iter().find(lost).map_or(Ok(()), |dot| Err(format!("{dot:?} was on a disk and is lost")))
    }
}
