//! The world of the model: nodes that hold real copies, messages, clients with real contexts, and beside each
//! record the plain truth: the set of writes that it has seen.
//!
//! The truth needs no vectors. A write has an explicit set of writes in its past: nothing for a blind put, what
//! the client had seen for one with a token, what the copy had seen for `current`. A record's `seen` is the
//! union over everything that flowed into it. Since every `seen` is closed under "in the past of", a record is
//! right exactly when its siblings are the maximal writes of `seen`, no more and no less.

use std::sync::Arc;

use bytes::Bytes;
use ringdove::dynamo::version::{
    ActorMint, Content, Dot, LocalCopy, Overwrite, PutDone, Record, VersionVector, Write,
};
use ringdove::types::{ActorId, Incarnation, WriteId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Any of them may hold a copy and hand it off: a fallback its guest, a replica what it no longer owns.
pub(crate) const NODES: u8 = 4;
pub(crate) const CLIENTS: u8 = 2;
/// Records under way at one time at most; sending into a used slot loses the older one.
pub(crate) const SLOTS: u8 = 3;

/// A set of writes, by number.
pub(crate) type Writes = u64;

/// A real copy and what it has truly seen.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) copy: LocalCopy,
    pub(crate) seen: Writes,
    /// The writes that the real siblings account for: themselves and their pasts.
    pub(crate) shown: Writes,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) id: u8,
    /// What the node serves and sends: all appends.
    pub(crate) now: Option<Arc<Held>>,
    /// What a crash goes back to: the appends up to the last sync.
    pub(crate) synced: Option<Arc<Held>>,
    pub(crate) mint: ActorMint,
    pub(crate) starts: u64,
    /// Only for the weaker policies: the node's own count of its dots.
    pub(crate) counter: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Put {
    pub(crate) dot: Dot,
    pub(crate) past: Writes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Blind,
    Current,
    Token(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A put at the node, appended and not yet synced.
    Put { node: u8, over: Over },
    /// A put whose record leaves for a peer while its local append fails.
    FailedPut { node: u8, over: Over, slot: u8 },
    /// The node's whole record goes to another, which merges it at once.
    Copy { from: u8, to: u8 },
    /// The node's whole record is under way: it may arrive late, anywhere, never, or many times.
    Send { from: u8, slot: u8 },
    /// What is under way arrives; it stays under way.
    Deliver { slot: u8, to: u8 },
    /// A client reads; the context is its token from now on.
    Read { client: u8, node: u8 },
    /// A client reads from two nodes and gets the merged context.
    ReadTwo { client: u8, nodes: [u8; 2] },
    /// The node's appends become durable.
    Sync { node: u8 },
    /// The node goes back to its last sync and starts under a new incarnation.
    Crash { node: u8 },
    /// The copy moves: the target merges and syncs it, then the holder removes its own (not yet synced).
    HandOff { from: u8, to: u8 },
}

/// Who makes dots, and how.
pub(crate) trait Policy: Sync {
    /// Whether contexts must name exactly the dots of what was seen. The weaker rules claim more.
    const EXACT: bool;
    fn put(
        node: &mut Node,
        copy: &mut LocalCopy,
        over: Overwrite<'_>,
        write: Write,
    ) -> Result<PutDone, String>;
    fn append_failed(node: &mut Node);
    fn restarted(node: &mut Node);
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) nodes: [Node; NODES as usize],
    pub(crate) under_way: [Option<Arc<Held>>; SLOTS as usize],
    pub(crate) clients: [Option<Arc<Held>>; CLIENTS as usize],
    pub(crate) writes: Arc<Vec<Put>>,
    /// Writes that some disk has held synced: all that may have been acknowledged, whatever W is.
    pub(crate) acknowledged: Writes,
    /// Zero: incarnations tell their node. Else they are random bits that hang on it.
    salt: u64,
}

/// Members of a set, in order.
pub(crate) fn members(mut set: Writes) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if set == 0 {
            return None;
        }
        let first = set.trailing_zeros();
        set &= set - 1;
        Some(first as usize)
    })
}

fn incarnation(salt: u64, node: u8, start: u64) -> Incarnation {
    if salt == 0 {
        return Incarnation((u64::from(node) + 1) << 32 | start);
    }
    Incarnation(xxh3_64_with_seed(&[&[node], start.to_le_bytes().as_slice()].concat(), salt))
}

/// The node of an actor, where incarnations tell it.
pub(crate) fn node_of(actor: ActorId) -> usize {
    usize::try_from((actor.incarnation.0 >> 32) - 1).expect("a small number")
}

impl World {
    pub(crate) fn new(salt: u64) -> World {
        let node = |id: u8| Node {
            id,
            now: None,
            synced: None,
            mint: ActorMint::new(incarnation(salt, id, 1)),
            starts: 1,
            counter: 0,
        };
        World {
            nodes: [node(0), node(1), node(2), node(3)],
            under_way: [const { None }; SLOTS as usize],
            clients: [const { None }; CLIENTS as usize],
            writes: Arc::new(Vec::new()),
            acknowledged: 0,
            salt,
        }
    }

    /// Does what the event says and checks everything that it touched. `Ok(false)`: it cannot happen here, or
    /// would change nothing.
    ///
    /// # Errors
    /// What is violated, in words.
    pub(crate) fn apply<P: Policy>(&mut self, event: Event) -> Result<bool, String> {
        let changed = match event {
            Event::Put { node, over } => self.put::<P>(node, over, None)?,
            Event::FailedPut { node, over, slot } => self.put::<P>(node, over, Some(slot))?,
            Event::Copy { from, to } => match self.node(from).now.clone() {
                Some(held) if from != to => self.merge_into::<P>(to, &held)?,
                _ => false,
            },
            Event::Send { from, slot } => {
                let slot = &mut self.under_way[usize::from(slot)];
                match &self.nodes[usize::from(from)].now {
                    Some(held) if !same_record(slot.as_ref(), Some(held)) => {
                        *slot = Some(Arc::clone(held));
                        true
                    }
                    _ => false,
                }
            }
            Event::Deliver { slot, to } => match self.under_way[usize::from(slot)].clone() {
                Some(held) => self.merge_into::<P>(to, &held)?,
                None => false,
            },
            Event::Read { client, node } => {
                let read = self.node(node).now.clone();
                self.take_token(client, read)
            }
            Event::ReadTwo { client, nodes: [a, b] } => {
                match (self.node(a).now.clone(), self.node(b).now.clone()) {
                    (Some(left), Some(right)) if left.seen != right.seen => {
                        let mut record = left.copy.record.clone();
                        let collisions = record.merge(&right.copy.record).collisions;
                        if !collisions.is_empty() {
                            return Err(format!("a dot has two contents: {collisions:?}"));
                        }
                        let held = self.hold::<P>(LocalCopy::of(record), left.seen | right.seen)?;
                        self.take_token(client, Some(held))
                    }
                    _ => false,
                }
            }
            Event::Sync { node } => {
                let node = self.node_mut(node);
                let changed = !same_record(node.now.as_ref(), node.synced.as_ref());
                node.synced.clone_from(&node.now);
                changed
            }
            Event::Crash { node } => self.crash::<P>(node),
            Event::HandOff { from, to } => match self.node(from).now.clone() {
                Some(held) if from != to => {
                    self.merge_into::<P>(to, &held)?;
                    let target = self.node_mut(to);
                    target.synced.clone_from(&target.now);
                    self.node_mut(from).now = None;
                    true
                }
                _ => false,
            },
        };
        if changed {
            self.check_disks()?;
        }
        Ok(changed)
    }

    fn node(&self, node: u8) -> &Node {
        &self.nodes[usize::from(node)]
    }

    fn node_mut(&mut self, node: u8) -> &mut Node {
        &mut self.nodes[usize::from(node)]
    }

    fn take_token(&mut self, client: u8, read: Option<Arc<Held>>) -> bool {
        let token = &mut self.clients[usize::from(client)];
        match read {
            Some(held) if !same_record(token.as_ref(), Some(&held)) => {
                *token = Some(held);
                true
            }
            _ => false,
        }
    }

    fn put<P: Policy>(&mut self, at: u8, over: Over, failing_into: Option<u8>) -> Result<bool, String> {
        let before = self.node(at).now.clone();
        let seen = before.as_ref().map_or(0, |held| held.seen);
        let token = match over {
            Over::Token(client) => self.clients[usize::from(client)].clone(),
            Over::Blind | Over::Current => None,
        };
        let (over, past) = match (over, &token) {
            (Over::Blind, _) => (Overwrite::Nothing, 0),
            (Over::Current, _) if before.is_some() => (Overwrite::Current, seen),
            (Over::Token(_), Some(token)) => (Overwrite::Seen(token.copy.record.context()), token.seen),
            _ => return Ok(false),
        };

        let number = self.writes.len();
        let mut copy = before.as_ref().map_or_else(LocalCopy::default, |held| held.copy.clone());
        let write = Write {
            write_id: WriteId(number as u128),
            content: Content::Value(Bytes::new()),
            meta: None,
            expires_at: None,
        };
        let node = self.node_mut(at);
        let done = P::put(node, &mut copy, over, write)?;
        if failing_into.is_some() {
            P::append_failed(node);
        }
        if let Some(other) = self.writes.iter().position(|other| other.dot == done.dot) {
            return Err(format!("one dot names two writes, w{other} and w{number}: {:?}", done.dot));
        }
        let siblings = before.iter().flat_map(|held| held.copy.record.siblings());
        let gone = siblings.map(|sibling| sibling.write_id).filter(|id| past >> id.0 & 1 == 1);
        if !gone.eq(done.overwrote.iter().copied()) {
            return Err(format!("the put of w{number} says that it overwrote {:?}", done.overwrote));
        }

        Arc::make_mut(&mut self.writes).push(Put { dot: done.dot, past });
        let held = self.hold::<P>(copy, seen | past | 1 << number)?;
        match failing_into {
            None => self.node_mut(at).now = Some(held),
            Some(slot) => self.under_way[usize::from(slot)] = Some(held),
        }
        Ok(true)
    }

    fn merge_into<P: Policy>(&mut self, to: u8, held: &Held) -> Result<bool, String> {
        let target = self.node(to);
        let (copy, seen) = match &target.now {
            None => (LocalCopy::of(held.copy.record.clone()), 0),
            Some(own) => {
                let mut copy = own.copy.clone();
                let done = copy.merge(&target.mint, &held.copy.record);
                if !done.merged.collisions.is_empty() {
                    return Err(format!("a dot has two contents: {:?}", done.merged.collisions));
                }
                if P::EXACT && done.actor_ahead {
                    return Err(format!("{} is told that it forgot a write of its own", name(to)));
                }
                if done.merged.changed != (copy.record != own.copy.record) {
                    return Err(format!("merge says changed: {}", done.merged.changed));
                }
                if copy == own.copy && own.seen | held.seen == own.seen {
                    return Ok(false);
                }
                (copy, own.seen)
            }
        };
        let held = self.hold::<P>(copy, seen | held.seen)?;
        self.node_mut(to).now = Some(held);
        Ok(true)
    }

    fn crash<P: Policy>(&mut self, at: u8) -> bool {
        let salt = self.salt;
        let node = self.node_mut(at);
        let live = node.now.as_ref().is_some_and(|held| held.copy.live_actor(&node.mint).is_some());
        if same_record(node.now.as_ref(), node.synced.as_ref()) && !live && node.counter == 0 {
            return false;
        }
        node.now.clone_from(&node.synced);
        node.starts += 1;
        node.mint = ActorMint::new(incarnation(salt, at, node.starts));
        P::restarted(node);
        true
    }

    /// The writes of the set that no other of the set has in its past.
    fn maximal(&self, set: Writes) -> Writes {
        set & !members(set).fold(0, |pasts, write| pasts | self.writes[write].past)
    }

    /// Checks a record that has just come to be against what it has truly seen.
    fn hold<P: Policy>(&self, copy: LocalCopy, seen: Writes) -> Result<Arc<Held>, String> {
        let expected = self.maximal(seen);
        let (mut present, mut shown) = (0, 0);
        for sibling in copy.record.siblings() {
            let number = usize::try_from(sibling.write_id.0).expect("a small number");
            let put = &self.writes[number];
            if put.dot != sibling.dot || present >> number & 1 == 1 {
                return Err(format!("w{number} was made as {:?} and stands as {:?}", put.dot, sibling.dot));
            }
            present |= 1 << number;
            shown |= put.past | 1 << number;
        }
        if let Some(lost) = members(expected & !present).next() {
            return Err(format!(
                "false overwriting: w{lost} is gone and no write with w{lost} in its past is there"
            ));
        }
        if let Some(kept) = members(present & !expected).next() {
            return Err(format!(
                "false concurrency: w{kept} stands beside a write that has w{kept} in its past"
            ));
        }
        if P::EXACT && !self.is_exact(copy.record.context(), seen) {
            return Err(format!(
                "the context {:?} claims other writes than were seen",
                copy.record.context()
            ));
        }
        Ok(Arc::new(Held { copy, seen, shown }))
    }

    /// Whether the context names the dots of these writes and no others.
    fn is_exact(&self, context: &VersionVector, seen: Writes) -> bool {
        let named = self.writes.iter().enumerate();
        let all_told =
            named.clone().all(|(number, put)| context.covers(put.dot) == (seen >> number & 1 == 1));
        let mut entries = context.entries();
        all_told
            && entries.all(|(actor, counter)| named.clone().any(|(_, put)| put.dot == Dot { actor, counter }))
    }

    /// No acknowledged write is lost: what some disk once held synced, some disk still holds, itself or in the
    /// past of a sibling. Disks survive in this model, so one is enough.
    fn check_disks(&mut self) -> Result<(), String> {
        let held =
            self.nodes.iter().filter_map(|node| node.synced.as_ref()).fold(0, |all, held| all | held.shown);
        if let Some(lost) = members(self.acknowledged & !held).next() {
            return Err(format!("acknowledged write lost: no disk holds w{lost} or a successor"));
        }
        self.acknowledged |= held;
        Ok(())
    }

    /// One line: what every node, message and client holds, in real dots.
    pub(crate) fn describe(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        for node in &self.nodes {
            if let Some(held) = &node.now {
                let unsynced = if same_record(Some(held), node.synced.as_ref()) { "" } else { "*" };
                parts.push(format!("{}{unsynced} {}", name(node.id), self.show(&held.copy.record)));
            }
        }
        for (slot, held) in self.under_way.iter().enumerate() {
            parts.extend(
                held.as_ref().map(|held| format!("under way {slot} {}", self.show(&held.copy.record))),
            );
        }
        for (client, held) in self.clients.iter().enumerate() {
            parts.extend(
                held.as_ref().map(|held| format!("client {client} {}", self.show(&held.copy.record))),
            );
        }
        parts.join("   ")
    }

    fn show(&self, record: &Record) -> String {
        let entries: Vec<String> = record
            .context()
            .entries()
            .map(|(actor, counter)| format!("{}:{counter}", self.actor_name(actor)))
            .collect();
        let siblings: Vec<String> =
            record.siblings().iter().map(|sibling| format!("w{}", sibling.write_id.0)).collect();
        format!("{{{}}}[{}]", entries.join(" "), siblings.join(" "))
    }

    /// `A2.1`: node A's second start, its first epoch.
    fn actor_name(&self, actor: ActorId) -> String {
        for node in &self.nodes {
            for start in 0..=node.starts {
                if incarnation(self.salt, node.id, start) == actor.incarnation {
                    return format!("{}{start}.{}", name(node.id), actor.epoch);
                }
            }
        }
        format!("{actor:?}")
    }
}

pub(crate) fn name(node: u8) -> &'static str {
    ["A", "B", "C", "D"][usize::from(node)]
}

/// Headers do not count: a live one is lost at every crash, synced or not.
fn same_record(left: Option<&Arc<Held>>, right: Option<&Arc<Held>>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => Arc::ptr_eq(left, right) || left.copy.record == right.copy.record,
        (None, None) => true,
        _ => false,
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let over = |over: Over| match over {
            Over::Blind => "blind".to_owned(),
            Over::Current => "over current".to_owned(),
            Over::Token(client) => format!("with the token of client {client}"),
        };
        match *self {
            Event::Put { node, over: how } => write!(f, "put at {}, {}", name(node), over(how)),
            Event::FailedPut { node, over: how, slot } => write!(
                f,
                "put at {}, {}: its record is under way ({slot}), the local append fails",
                name(node),
                over(how)
            ),
            Event::Copy { from, to } => write!(f, "{} sends its record to {}", name(from), name(to)),
            Event::Send { from, slot } => write!(f, "{}'s record is under way ({slot})", name(from)),
            Event::Deliver { slot, to } => write!(f, "what is under way ({slot}) arrives at {}", name(to)),
            Event::Read { client, node } => write!(f, "client {client} reads from {}", name(node)),
            Event::ReadTwo { client, nodes: [a, b] } => {
                write!(f, "client {client} reads from {} and {}", name(a), name(b))
            }
            Event::Sync { node } => write!(f, "{} syncs", name(node)),
            Event::Crash { node } => write!(f, "{} crashes and starts again", name(node)),
            Event::HandOff { from, to } => {
                write!(f, "{} hands its copy off to {} and removes it", name(from), name(to))
            }
        }
    }
}

/// The execution in words, and how it ends.
pub(crate) fn tell<P: Policy>(events: &[Event], salt: u64) -> String {
    let mut world = World::new(salt);
    let mut lines = Vec::new();
    for (at, event) in events.iter().enumerate() {
        let end = world
            .apply::<P>(*event)
            .err()
            .map_or_else(|| world.describe(), |why| format!("VIOLATION: {why}"));
        lines.push(format!("  {}. {event}\n       {end}", at + 1));
    }
    lines.join("\n")
}
