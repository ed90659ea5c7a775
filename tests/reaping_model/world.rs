//! One key, three primaries, a fallback, and everything that can be late.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use ringdove::dynamo::reaping::{Admission, Ballot, Fences, Joint, KeyVote, reapable, vote};
use ringdove::dynamo::version::{ActorMint, Caps, Content, Dot, LocalCopy, Overwrite, Record, Write};
use ringdove::types::{Incarnation, NodeId, Wall, WriteId};

pub(crate) const PRIMARIES: usize = 3;
pub(crate) const NODES: usize = 4;
/// Messages that may be under way.
const UNDER_WAY: usize = 24;
/// Reads that may be under way.
pub(crate) const READS: usize = 3;
/// Rounds of exchanges in the end.
const ROUNDS: usize = 8;

mod outdated;

use outdated::GivingUp;

/// Which rules hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) fences: bool,
    pub(crate) all_members: bool,
    pub(crate) fresh_vote: bool,
    pub(crate) read_again: bool,
    pub(crate) catch_up: bool,
    pub(crate) settle_first: bool,
    pub(crate) compare: bool,
    pub(crate) vote_is_no_commit: bool,
    pub(crate) joint: bool,
    pub(crate) hear_commits: bool,
    /// Nothing is taken into a partition while its copies are given up.
    pub(crate) closed_meanwhile: bool,
    /// A guest becomes data under the fences that it was read under, not those of a later moment.
    pub(crate) turned_as_read: bool,
}

impl Rules {
    pub(crate) fn production() -> Rules {
        Rules {
            fences: true,
            all_members: true,
            fresh_vote: true,
            read_again: true,
            catch_up: true,
            settle_first: true,
            compare: true,
            vote_is_no_commit: true,
            joint: true,
            hear_commits: true,
            closed_meanwhile: true,
            turned_as_read: true,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// A write on the node's copy; its record leaves for the primaries.
    Put { node: usize, blind: bool, delete: bool },
    /// The node's record leaves for another.
    Send { from: usize, to: usize },
    /// The node's record is at another at once.
    Give { from: usize, to: usize },
    /// Something under way arrives; `again`: and stays under way.
    Deliver { at: usize, again: bool },
    /// What a read found at two nodes leaves for a third.
    Repair { nodes: [usize; 2], to: usize },
    /// A node's copy comes in for a read that is under way.
    Look { node: usize, read: usize },
    /// The read is answered with what has come in.
    Answer { read: usize },
    /// A primary begins a round.
    Begin { leader: usize },
    /// The round's question reaches a member, its answer the leader.
    Vote { leader: usize, member: usize },
    /// The question reaches everybody who was not asked yet.
    VoteAll { leader: usize },
    /// A node asks everybody how far they are.
    AskAll { node: usize },
    /// Everybody compares and hands over; what is under way stays so.
    Agree,
    /// Two primaries compare fences and records.
    Exchange { nodes: [usize; 2] },
    /// A node asks another how far it is.
    Ask { node: usize, other: usize },
    /// A node starts again.
    Restart { node: usize },
    /// The node's next giving up stops after each step.
    Slowly { node: usize },
    /// It does the next step.
    GoOn { node: usize },
    /// A primary takes a record as a guest, as it did when it was none.
    Keep { from: usize, to: usize },
    /// It begins to turn the guest into data.
    Read { node: usize },
    /// And ends it.
    Turn { node: usize },
    /// A node's disk is copied.
    Backup { node: usize },
    /// The copy takes the place of the disk.
    SetBack { node: usize },
}

#[derive(Clone, Default)]
struct Disk {
    copy: LocalCopy,
    /// Guests: for whom.
    targets: BTreeSet<usize>,
    /// What a primary kept for others before it was one.
    guest: Record,
    fences: Fences,
}

struct Round {
    fence: u64,
    version_hash: u64,
    drop: Vec<Dot>,
    asked: BTreeSet<usize>,
    ballot: Ballot,
}

struct Node {
    disk: Disk,
    backup: Option<Disk>,
    set_back: bool,
    mint: ActorMint,
    asked: BTreeSet<usize>,
    /// Under which fence members voted last in rounds of this start.
    heard: BTreeMap<usize, u64>,
    round: Option<Round>,
    /// Whether the next giving up is done step by step.
    slowly: bool,
    giving_up: Option<GivingUp>,
    /// The guest as it was read, to become data.
    turning: Option<(Record, Fences)>,
}

#[derive(Clone)]
enum Message {
    Store { from: usize, to: usize, record: Record, fences: Fences },
    Commit { to: usize, fence: u64, version_hash: u64, drop: Vec<Dot> },
}

/// A read that is under way.
#[derive(Clone, Default)]
struct Read {
    copies: Vec<Record>,
    joint: Joint,
}

pub(crate) struct World {
    rules: Rules,
    reads: [Read; READS],
    /// What is wrong with a read that was answered.
    misread: Option<String>,
    nodes: Vec<Node>,
    under_way: Vec<Message>,
    /// By dot: the write's past, and whether it is a deletion.
    writes: BTreeMap<Dot, (BTreeSet<Dot>, bool)>,
    /// What rounds have taken away for good: all that their records had seen, but for the siblings that stayed.
    dead: BTreeSet<Dot>,
    /// What two primaries held at one time.
    safe: BTreeSet<Dot>,
    starts: u64,
    salt: u64,
    budget: u32,
    pub(crate) reaped: u64,
}

impl World {
    pub(crate) fn new(seed: u64, rules: Rules) -> World {
        let mut world = World {
            rules,
            reads: Default::default(),
            misread: None,
            nodes: Vec::new(),
            under_way: Vec::new(),
            writes: BTreeMap::new(),
            dead: BTreeSet::new(),
            safe: BTreeSet::new(),
            starts: 0,
            salt: seed << 16,
            budget: 1,
            reaped: 0,
        };
        for id in 0..NODES {
            let mint = world.mint();
            // The first start of a cluster: there was no other disk.
            let asked = (0..NODES).filter(|other| *other != id).collect();
            world.nodes.push(Node {
                disk: Disk::default(),
                backup: None,
                set_back: false,
                mint,
                asked,
                heard: BTreeMap::new(),
                round: None,
                slowly: false,
                giving_up: None,
                turning: None,
            });
        }
        world
    }

    fn mint(&mut self) -> ActorMint {
        self.starts += 1;
        ActorMint::new(Incarnation(self.salt | self.starts))
    }

    fn record(&self, node: usize) -> &Record {
        &self.nodes[node].disk.copy.record
    }

    fn is_settled(&self, node: usize) -> bool {
        !self.rules.settle_first
            || (0..PRIMARIES).all(|other| other == node || self.nodes[node].asked.contains(&other))
    }

    /// Applies an event; whether it did anything.
    pub(crate) fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Put { node, blind, delete } => self.put(node, blind, delete),
            Event::Send { from, to } => self.send(from, to),
            Event::Give { from, to } => {
                if self.record(from).is_empty() || self.is_giving_up(from) {
                    return false;
                }
                let (record, fences) = (self.record(from).clone(), self.nodes[from].disk.fences);
                self.take(from, to, &record, fences);
            }
            Event::Slowly { node } => self.nodes[node].slowly = true,
            Event::GoOn { node } => return self.go_on(node),
            Event::Keep { from, to } => return self.keep(from, to),
            Event::Read { node } => return self.read_guest(node),
            Event::Turn { node } => return self.turn(node),
            Event::Deliver { at, again } => {
                if self.under_way.is_empty() {
                    return false;
                }
                let at = at % self.under_way.len();
                let message = self.under_way[at].clone();
                if !again {
                    self.under_way.remove(at);
                }
                self.deliver(message);
            }
            Event::Repair { nodes: [a, b], to } => {
                if self.is_giving_up(a) || self.is_giving_up(b) {
                    return false;
                }
                let mut record = self.record(a).clone();
                record.merge(self.record(b));
                let (one, other) = (self.nodes[a].disk.fences, self.nodes[b].disk.fences);
                // A reply that is older than what the other knows to be forgotten does not count.
                if record.is_empty()
                    || self.rules.catch_up
                        && one.raised.min(other.raised) < one.committed.max(other.committed)
                {
                    return false;
                }
                let fences = Fences {
                    raised: one.raised.min(other.raised),
                    committed: one.committed.max(other.committed),
                };
                self.push(Message::Store { from: a, to, record, fences });
            }
            Event::Look { node, read } => {
                if self.is_giving_up(node) {
                    return false;
                }
                let (record, fences) = (self.record(node).clone(), self.nodes[node].disk.fences);
                let read = &mut self.reads[read];
                read.copies.push(record);
                read.joint.join(fences, true);
            }
            Event::Answer { read } => return self.answer(read),
            Event::Begin { leader } => return self.begin(leader),
            Event::Vote { leader, member } => return self.vote(leader, member),
            Event::Exchange { nodes: [a, b] } => {
                self.exchange(a, b);
            }
            Event::VoteAll { leader } => {
                let voted: Vec<bool> = (0..NODES).map(|member| self.vote(leader, member)).collect();
                if !voted.contains(&true) {
                    return false;
                }
            }
            Event::AskAll { node } => {
                for other in (0..NODES).filter(|other| *other != node) {
                    self.ask(node, other);
                }
            }
            Event::Agree => {
                for (a, b) in [(0, 1), (1, 2), (0, 2), (0, 1)] {
                    self.hand_over(a);
                    self.exchange(a, b);
                }
            }
            Event::Ask { node, other } => return self.ask(node, other),
            Event::Restart { node } => self.restart(node),
            Event::Backup { node } => self.nodes[node].backup = Some(self.nodes[node].disk.clone()),
            Event::SetBack { node } => {
                let Some(backup) = self.nodes[node].backup.clone().filter(|_| self.budget > 0) else {
                    return false;
                };
                self.budget -= 1;
                self.nodes[node].disk = backup;
                self.nodes[node].set_back = true;
                self.restart(node);
            }
        }
        self.learn();
        true
    }

    /// A read ends. Nothing that it shows may be in the past of what stands beside it, as long as no disk was set back: then the past
    /// of what was given up is no longer known to anybody.
    fn answer(&mut self, read: usize) -> bool {
        let Read { copies, joint } = std::mem::take(&mut self.reads[read]);
        if copies.len() < 2 || self.rules.joint && !joint.is_sound() || self.budget == 0 {
            return false;
        }
        let mut shown = Record::new();
        copies.iter().for_each(|copy| {
            shown.merge(copy);
        });
        let dots: Vec<Dot> = shown.siblings().iter().map(|sibling| sibling.dot).collect();
        for dot in &dots {
            if let Some(over) = dots.iter().find(|other| self.writes[other].0.contains(dot)) {
                self.misread =
                    Some(format!("a read shows {dot:?} beside {over:?}, which has it in its past"));
            }
        }
        true
    }

    /// A node hears of a commit from whoever sends it a record.
    fn hear_commit(&mut self, node: usize, committed: u64) {
        let fences = &mut self.nodes[node].disk.fences;
        if self.rules.hear_commits && fences.raised >= committed {
            fences.committed = fences.committed.max(committed);
        }
    }

    fn restart(&mut self, node: usize) {
        self.nodes[node].mint = self.mint();
        self.nodes[node].asked.clear();
        self.nodes[node].heard.clear();
        self.nodes[node].round = None;
        self.nodes[node].giving_up = None;
        self.nodes[node].turning = None;
    }

    fn put(&mut self, node: usize, blind: bool, delete: bool) {
        let past: BTreeSet<Dot> = if blind {
            BTreeSet::new()
        } else {
            let seen = self.record(node).siblings().iter().map(|sibling| sibling.dot);
            seen.flat_map(|dot| self.writes[&dot].0.iter().copied().chain([dot]).collect::<Vec<_>>())
                .collect()
        };
        let content = if delete { Content::Tombstone } else { Content::Value(Bytes::new()) };
        let write_id = WriteId(self.writes.len() as u128);
        let write = Write { write_id, content, meta: None, expires_at: None };
        let over = if blind { Overwrite::Nothing } else { Overwrite::Current };
        let this = &mut self.nodes[node];
        let Ok(done) = this.disk.copy.put(&mut this.mint, over, write, Wall(1), &Caps::default()) else {
            return;
        };
        if node >= PRIMARIES {
            this.disk.targets = (0..PRIMARIES).collect();
        }
        self.writes.insert(done.dot, (past, delete));
        for to in (0..PRIMARIES).filter(|to| *to != node) {
            self.send(node, to);
        }
    }

    fn push(&mut self, message: Message) {
        if self.under_way.len() == UNDER_WAY {
            self.under_way.remove(0);
        }
        self.under_way.push(message);
    }

    fn send(&mut self, from: usize, to: usize) {
        let disk = &self.nodes[from].disk;
        if disk.copy.record.is_empty() || self.is_giving_up(from) {
            return;
        }
        let message = Message::Store { from, to, record: disk.copy.record.clone(), fences: disk.fences };
        self.push(message);
    }

    /// Raises a fence to another's; whether it is as high now.
    fn raise(&mut self, node: usize, to: Fences) -> bool {
        if !self.catch_up(node, to) || self.is_giving_up(node) {
            return false;
        }
        if self.nodes[node].disk.fences.raised < to.raised && !self.is_settled(node) {
            return false;
        }
        let fences = &mut self.nodes[node].disk.fences;
        fences.raised = fences.raised.max(to.raised);
        true
    }

    fn catch_up(&mut self, node: usize, theirs: Fences) -> bool {
        self.catch_up_to(node, theirs, theirs.committed)
    }

    /// Gives up what nobody else holds, if the disk must have known the fence `known` and does not; whether none is left.
    fn catch_up_to(&mut self, node: usize, theirs: Fences, known: u64) -> bool {
        let own = self.nodes[node].disk.fences;
        if own.raised >= known || !self.rules.catch_up {
            self.hear_commit(node, theirs.committed);
            return true;
        }
        if !self.begin_giving_up(node, theirs, known) {
            return false;
        }
        while self.go_on(node) && self.is_giving_up(node) && !self.nodes[node].slowly {}
        self.nodes[node].slowly = false;
        !self.is_giving_up(node)
    }

    /// A copy without anything is none: its header goes with it.
    fn cleared(&mut self, node: usize) {
        let disk = &mut self.nodes[node].disk;
        if disk.copy.record.is_empty() {
            disk.copy = LocalCopy::default();
            disk.targets.clear();
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Store { from, to, record, fences } => self.take(from, to, &record, fences),
            Message::Commit { to, fence, version_hash, drop } => self.commit(to, fence, version_hash, &drop),
        }
    }

    fn take(&mut self, from: usize, to: usize, record: &Record, fences: Fences) {
        let own = self.nodes[to].disk.fences;
        let is_empty = self.record(to).is_empty() && self.nodes[to].disk.guest.is_empty();
        if is_empty && own.raised < fences.raised {
            self.nodes[to].disk.fences.raised = fences.raised;
        }
        self.hear_commit(to, fences.committed);
        let mut admission = self.nodes[to].disk.fences.admit(fences);
        if admission == Admission::CatchUp {
            if !self.catch_up(to, fences) {
                return;
            }
            admission = self.nodes[to].disk.fences.admit(fences);
        }
        if admission == Admission::Refuse && self.rules.fences {
            let theirs = self.nodes[to].disk.fences;
            if self.raise(from, theirs) {
                if self.rules.read_again {
                    self.send(from, to);
                } else {
                    let fences = self.nodes[from].disk.fences;
                    self.push(Message::Store { from, to, record: record.clone(), fences });
                }
            }
            return;
        }
        if self.is_giving_up(to) && self.rules.closed_meanwhile {
            return;
        }
        let this = &mut self.nodes[to];
        this.disk.copy.merge(&this.mint, record);
        if to >= PRIMARIES {
            this.disk.targets = (0..PRIMARIES).collect();
        }
        // The answer comes at once: a guest that is still the same is struck off.
        let sender = &mut self.nodes[from].disk;
        if from >= PRIMARIES && to < PRIMARIES && sender.copy.record == *record {
            sender.targets.remove(&to);
            if sender.targets.is_empty() {
                sender.copy = LocalCopy::default();
            }
        }
    }

    fn members(&self) -> usize {
        if self.rules.all_members { NODES } else { PRIMARIES }
    }

    fn begin(&mut self, leader: usize) -> bool {
        let Some(drop) = reapable(self.record(leader), Wall::MAX, Duration::ZERO) else { return false };
        if !self.is_settled(leader) || self.is_giving_up(leader) {
            return false;
        }
        let fence = self.nodes[leader].disk.fences.raised + 1;
        let version_hash = self.record(leader).version_hash();
        let members = (0..self.members() as u64).map(NodeId);
        let ballot = Ballot::new(1, members);
        self.nodes[leader].round = Some(Round { fence, version_hash, drop, asked: BTreeSet::new(), ballot });
        self.vote(leader, leader)
    }

    fn vote(&mut self, leader: usize, member: usize) -> bool {
        let Some(round) = &self.nodes[leader].round else { return false };
        let (fence, version_hash, drop) = (round.fence, round.version_hash, round.drop.clone());
        let is_ready = self.is_settled(member) && !self.is_giving_up(member);
        if round.asked.contains(&member) || member >= self.members() || !is_ready {
            return false;
        }
        let id = NodeId(member as u64);
        let fences = &mut self.nodes[member].disk.fences;
        let fresh = fences.raised < fence || !self.rules.fresh_vote;
        fences.raised = fences.raised.max(fence);
        let held = self.record(member);
        let judged = match member < PRIMARIES {
            true if !self.nodes[member].disk.guest.is_empty() => KeyVote::Guest,
            true => vote(held, version_hash, &drop, Wall::MAX, Duration::ZERO),
            false if held.is_empty() => KeyVote::Yes,
            false => KeyVote::Guest,
        };
        let node = &mut self.nodes[leader];
        if fresh {
            node.heard.insert(member, fence);
        }
        let Some(round) = &mut node.round else { return false };
        round.asked.insert(member);
        round.ballot.votes(id, if fresh { std::slice::from_ref(&judged) } else { &[] });
        if !round.ballot.agreed().is_empty() {
            node.round = None;
            // The leader's own disk first.
            self.commit(leader, fence, version_hash, &drop);
            for to in (0..NODES).filter(|to| *to != leader) {
                self.push(Message::Commit { to, fence, version_hash, drop: drop.clone() });
            }
        }
        true
    }

    fn commit(&mut self, to: usize, fence: u64, version_hash: u64, drop: &[Dot]) {
        if !self.catch_up(to, Fences { raised: fence, committed: fence }) {
            return;
        }
        let before = self.record(to).clone();
        let same = before.version_hash() == version_hash || !self.rules.compare;
        if to < PRIMARIES && !before.is_empty() && same {
            let after = before.reaped(drop);
            if before.version_hash() == version_hash {
                let stays = |dot: Dot| after.siblings().iter().any(|sibling| sibling.dot == dot);
                let seen = self.writes.keys().filter(|dot| before.context().covers(**dot) && !stays(**dot));
                let seen: Vec<Dot> = seen.copied().collect();
                self.dead.extend(seen);
            }
            self.nodes[to].disk.copy.record = after;
            self.cleared(to);
            self.reaped += 1;
        }
        let fences = &mut self.nodes[to].disk.fences;
        fences.committed = fences.committed.max(fence);
        fences.raised = fences.raised.max(fence);
    }

    fn ask(&mut self, node: usize, other: usize) -> bool {
        let theirs = self.nodes[other].disk.fences;
        let heard = self.nodes[other].heard.get(&node).copied().unwrap_or(0);
        if !self.catch_up_to(node, theirs, theirs.committed.max(heard)) {
            return false;
        }
        self.nodes[node].asked.insert(other)
    }

    /// The fallback gives a primary what it keeps for it.
    fn hand_over(&mut self, to: usize) {
        for _ in 0..2 {
            let disk = &self.nodes[PRIMARIES].disk;
            if disk.targets.contains(&to) && !self.is_giving_up(PRIMARIES) {
                let (record, fences) = (disk.copy.record.clone(), disk.fences);
                self.take(PRIMARIES, to, &record, fences);
            }
        }
    }

    fn exchange(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let theirs = self.nodes[to].disk.fences;
            if self.raise(from, theirs) && !self.record(from).is_empty() && !self.is_giving_up(from) {
                let (record, fences) = (self.record(from).clone(), self.nodes[from].disk.fences);
                self.take(from, to, &record, fences);
            }
        }
    }

    /// Takes note of what two primaries hold.
    fn learn(&mut self) {
        for dot in self.writes.keys() {
            let holds = |node: &&Node| node.disk.copy.record.context().covers(*dot) && !node.set_back;
            if self.nodes[..PRIMARIES].iter().filter(holds).count() > 1 {
                self.safe.insert(*dot);
            }
        }
    }

    /// # Errors
    /// With what is wrong now.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.misread.clone().map_or(Ok(()), Err)?;
        for (id, node) in self.nodes.iter().enumerate().filter(|(_, node)| !node.set_back) {
            self.has_no_dead(id, node)?;
        }
        Ok(())
    }

    fn has_no_dead(&self, id: usize, node: &Node) -> Result<(), String> {
        for sibling in node.disk.copy.record.siblings() {
            if self.dead.contains(&sibling.dot) && sibling.content != Content::Tombstone {
                return Err(format!("node {id} holds {:?}, which was taken away for good", sibling.dot));
            }
        }
        Ok(())
    }

    /// Everything heals.
    ///
    /// # Errors
    /// With what is wrong then.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        self.under_way.clear();
        self.nodes.iter_mut().for_each(|node| node.slowly = false);
        for _ in 0..ROUNDS {
            for node in 0..NODES {
                while self.go_on(node) {}
                if self.read_guest(node) {
                    self.turn(node);
                }
            }
            for (a, b) in (0..NODES).flat_map(|a| (0..NODES).map(move |b| (a, b))).filter(|(a, b)| a != b) {
                self.ask(a, b);
                if a < PRIMARIES && b < PRIMARIES {
                    self.exchange(a, b);
                } else if a >= PRIMARIES {
                    self.hand_over(b);
                }
                self.under_way.clear();
            }
        }
        for (id, node) in self.nodes.iter().enumerate() {
            self.has_no_dead(id, node)?;
        }
        if !(1..PRIMARIES).all(|other| self.record(other) == self.record(0))
            || self.nodes.iter().any(|node| !node.disk.guest.is_empty())
            || !self.record(PRIMARIES).is_empty()
        {
            let records: Vec<&Record> = (0..NODES).map(|node| self.record(node)).collect();
            return Err(format!("the nodes hold different things in the end: {records:?}"));
        }
        let there: BTreeSet<Dot> = self.record(0).siblings().iter().map(|sibling| sibling.dot).collect();
        let stale = there.iter().find(|dot| there.iter().any(|other| self.writes[other].0.contains(*dot)));
        // Of a disk that was set back more is forgotten than has to be: it may show what it had overwritten.
        if let Some(dot) = stale.filter(|_| self.budget > 0) {
            return Err(format!("{dot:?} stands beside a write that has it in its past"));
        }
        for (dot, (_, deleted)) in self.writes.iter().filter(|(dot, _)| self.safe.contains(*dot)) {
            let overwritten = self.writes.values().any(|(past, _)| past.contains(dot));
            if !deleted && !overwritten && !there.contains(dot) {
                return Err(format!("{dot:?} was on two primaries and is lost"));
            }
        }
        Ok(())
    }
}
