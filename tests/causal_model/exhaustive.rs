//! Breadth-first over all executions, with states that differ only by names folded into one.
//!
//! A level holds every state that some execution of exactly that many events reaches, once, with the number of
//! executions that reach it. Names are those of the nodes, the clients, the slots under way, the actors and the
//! writes: a state's key calls a write by the place of its node, the age of its actor there and its counter,
//! and is the least over all orders of the nodes. That the key may leave the contexts out rests on [`Policy::EXACT`]:
//! the check has proved each of them equal to the dots of `seen`. The last level is checked, not stored.
//!
//! Nothing hangs on time or on the number of threads: the same depth is the same search everywhere.

use std::collections::hash_map::Entry as Slot;
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_128;

use super::world::{CLIENTS, Event, Held, NODES, Over, Policy, World, Writes, members, node_of};

/// The longest execution that a path can tell.
pub(crate) const EVENTS_MAX: usize = 12;
const THREADS: usize = 2;
/// Records under way at one time in this search.
const SLOTS_SEARCHED: u8 = 2;

/// The keys are hashes already, and no order is ever seen.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u128");
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = (key >> 64) as u64;
    }
}

#[expect(clippy::disallowed_types, reason = "fixed hasher, and the order is never seen")]
type ByKey = std::collections::HashMap<u128, usize, BuildHasherDefault<AsIs>>;

#[derive(Clone, Copy)]
pub(crate) struct Path {
    events: [Option<Event>; EVENTS_MAX],
}

impl Path {
    fn then(mut self, at: usize, event: Event) -> Path {
        self.events[at] = Some(event);
        self
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.iter().copied().flatten().collect()
    }
}

struct State {
    world: World,
    /// The first execution found that leads here.
    path: Path,
    /// How many executions lead here, over all names.
    executions: u128,
}

/// What a search has seen.
pub(crate) struct Report {
    /// For each number of events from 1: distinct states before the event, events tried from them that change
    /// something, executions of that length.
    pub(crate) levels: Vec<Level>,
    /// The first violation in order of length, with its execution.
    pub(crate) violation: Option<(Path, String)>,
}

pub(crate) struct Level {
    pub(crate) states_before: usize,
    pub(crate) transitions: u64,
    pub(crate) executions: u128,
}

/// Everything that may happen next, some of it without effect.
pub(crate) fn events() -> Vec<Event> {
    let nodes = 0..NODES;
    let clients = 0..CLIENTS;
    let mut all = Vec::new();
    for node in nodes.clone() {
        let overs = [Over::Blind, Over::Current].into_iter().chain(clients.clone().map(Over::Token));
        for over in overs {
            all.push(Event::Put { node, over });
            all.extend((0..SLOTS_SEARCHED).map(|slot| Event::FailedPut { node, over, slot }));
        }
        all.extend([Event::Sync { node }, Event::Crash { node }]);
        for slot in 0..SLOTS_SEARCHED {
            all.extend([Event::Send { from: node, slot }, Event::Deliver { slot, to: node }]);
        }
        for to in nodes.clone().filter(|to| *to != node) {
            all.extend([Event::Copy { from: node, to }, Event::HandOff { from: node, to }]);
        }
        for client in clients.clone() {
            all.push(Event::Read { client, node });
            all.extend((node + 1..NODES).map(|other| Event::ReadTwo { client, nodes: [node, other] }));
        }
    }
    all
}

/// What counts as the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// States that differ only by names. Right for policies that are [`Policy::EXACT`].
    Folded,
    /// Only what is equal to the last name.
    Kept,
}

/// All executions of up to `depth` of these events.
pub(crate) fn search<P: Policy>(depth: usize, events: &[Event], names: Names) -> Report {
    assert!(depth <= EVENTS_MAX, "a path tells at most {EVENTS_MAX} events");
    assert!(P::EXACT || names == Names::Kept, "contexts that claim more than was seen are not in the key");
    let first = State { world: World::new(0), path: Path { events: [None; EVENTS_MAX] }, executions: 1 };
    let mut frontier = vec![first];
    let mut report = Report { levels: Vec::new(), violation: None };
    for at in 0..depth {
        let share = frontier.len().div_ceil(THREADS);
        let found: Vec<Found> = std::thread::scope(|scope| {
            let threads: Vec<_> = frontier
                .chunks(share)
                .map(|states| scope.spawn(move || expand::<P>(states, events, names, at, at + 1 == depth)))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic in the search")).collect()
        });
        report.levels.push(Level {
            states_before: frontier.len(),
            transitions: found.iter().map(|found| found.transitions).sum(),
            executions: found.iter().map(|found| found.executions).sum(),
        });
        report.violation = found.iter().find_map(|found| found.violation.clone());
        if report.violation.is_some() {
            break;
        }
        drop(frontier);
        frontier = found.into_iter().reduce(Found::join).map_or_else(Vec::new, |found| found.states);
    }
    report
}

#[derive(Default)]
struct Found {
    states: Vec<State>,
    by_key: ByKey,
    transitions: u64,
    executions: u128,
    violation: Option<(Path, String)>,
}

impl Found {
    fn add(&mut self, key: u128, state: State) {
        match self.by_key.entry(key) {
            Slot::Occupied(known) => self.states[*known.get()].executions += state.executions,
            Slot::Vacant(free) => {
                free.insert(self.states.len());
                self.states.push(state);
            }
        }
    }

    /// Two threads' findings as one; keys are looked up again by the place that they had.
    fn join(mut self, other: Found) -> Found {
        let mut keys = vec![0; other.states.len()];
        for (key, at) in other.by_key {
            keys[at] = key;
        }
        for (key, state) in keys.into_iter().zip(other.states) {
            self.add(key, state);
        }
        self
    }
}

fn expand<P: Policy>(states: &[State], events: &[Event], names: Names, at: usize, last: bool) -> Found {
    let mut found = Found::default();
    for state in states {
        for &event in events {
            let mut world = state.world.clone();
            match world.apply::<P>(event) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(why) => {
                    found.violation = Some((state.path.then(at, event), why));
                    return found;
                }
            }
            found.transitions += 1;
            found.executions += state.executions;
            if !last {
                let key = match names {
                    Names::Folded => folded_key(&world),
                    Names::Kept => plain_key(&world),
                };
                let path = state.path.then(at, event);
                found.add(key, State { world, path, executions: state.executions });
            }
        }
    }
    found
}

fn folded_key(world: &World) -> u128 {
    // What no record has seen any more can come back by nothing but a dot made twice, and only under the
    // incarnation that its node has now: older ones are never minted again.
    let mut known = world.acknowledged;
    for held in world.nodes.iter().flat_map(|node| [&node.now, &node.synced]) {
        known |= seen(held.as_deref());
    }
    for held in world.under_way.iter().chain(&world.clients) {
        known |= seen(held.as_deref());
    }
    for (number, put) in world.writes.iter().enumerate() {
        let node = &world.nodes[node_of(put.dot.actor)];
        if put.dot.actor.incarnation == node.mint.incarnation() {
            known |= 1 << number;
        }
    }

    // Orders that put unlike nodes in another order than this one cannot give the least key.
    let likeness = world.nodes.each_ref().map(|node| {
        let own =
            members(known).filter(|write| node_of(world.writes[*write].dot.actor) == usize::from(node.id));
        let live = node.now.as_ref().is_some_and(|held| held.copy.live_actor(&node.mint).is_some());
        let sizes = [&node.now, &node.synced].map(|held| match held {
            Some(held) => (held.seen.count_ones(), held.copy.record.siblings().len()),
            None => (u32::MAX, 0),
        });
        (sizes, live, own.count())
    });
    let mut at: [usize; NODES as usize] = std::array::from_fn(|node| node);
    at.sort_by_key(|node| likeness[*node]);
    let mut least = form_of(world, &at, known);
    while next_order(&mut at, &likeness) {
        least = least.min(form_of(world, &at, known));
    }
    xxh3_128(&least)
}

/// The next order of the nodes in which like nodes change places among each other; false after the last one.
fn next_order<T: PartialEq>(at: &mut [usize; NODES as usize], likeness: &[T]) -> bool {
    let mut start = 0;
    while start < at.len() {
        let alike = at[start..].iter().take_while(|node| likeness[**node] == likeness[at[start]]).count();
        let group = &mut at[start..start + alike];
        // The next permutation of the group in dictionary order; after the last, the first, and on to the next group.
        if let Some(pivot) = group.windows(2).rposition(|pair| pair[0] < pair[1]) {
            let with =
                group.iter().rposition(|node| *node > group[pivot]).expect("its right neighbour at least");
            group.swap(pivot, with);
            group[pivot + 1..].reverse();
            return true;
        }
        group.reverse();
        start += alike;
    }
    false
}

fn seen(held: Option<&Held>) -> Writes {
    held.map_or(0, |held| held.seen)
}

/// The state with writes called by (place of the node, age of the actor there, counter), the nodes at these
/// places.
fn form_of(world: &World, at: &[usize; NODES as usize], known: Writes) -> Vec<u8> {
    let mut order = [0; NODES as usize];
    for (place, node) in (0..).zip(at) {
        order[*node] = place;
    }
    let mut names: Vec<_> = members(known)
        .map(|write| {
            let dot = world.writes[write].dot;
            (order[node_of(dot.actor)], dot, write)
        })
        .collect();
    names.sort_unstable();
    let mut new_number = [0_u8; 64];
    for (number, (_, _, write)) in (0..).zip(&names) {
        new_number[*write] = number;
    }
    let renamed =
        |set: Writes| members(set).fold(0_u16, |set, write| set | 1 << new_number[write]).to_le_bytes();
    let renamed_or_none = |held: Option<&Held>| held.map_or([u8::MAX; 2], |held| renamed(held.seen));

    let mut form = Vec::with_capacity(96);
    let mut age = 0;
    let mut live = [0_u8; NODES as usize];
    for (at, (place, dot, write)) in names.iter().enumerate() {
        if at > 0 && names[at - 1].1.actor != dot.actor {
            age += 1;
        }
        let node = &world.nodes[node_of(dot.actor)];
        if node.now.as_ref().is_some_and(|held| held.copy.live_actor(&node.mint) == Some(dot.actor)) {
            live[usize::from(*place)] = age + 1;
        }
        form.extend_from_slice(&[*place, age, u8::try_from(dot.counter).expect("a short execution")]);
        form.extend_from_slice(&renamed(world.writes[*write].past & known));
    }
    let mut nodes = [[0; 5]; NODES as usize];
    for node in &world.nodes {
        let place = usize::from(order[usize::from(node.id)]);
        let (now, synced) = (renamed_or_none(node.now.as_deref()), renamed_or_none(node.synced.as_deref()));
        nodes[place] = [now[0], now[1], synced[0], synced[1], live[place]];
    }
    form.extend(nodes.iter().flatten());
    let mut under_way = world.under_way.each_ref().map(|held| renamed_or_none(held.as_deref()));
    under_way.sort_unstable();
    form.extend(under_way.iter().flatten());
    let mut clients = world.clients.each_ref().map(|held| renamed_or_none(held.as_deref()));
    clients.sort_unstable();
    form.extend(clients.iter().flatten());
    form.extend(renamed(world.acknowledged));
    form
}

/// The state with all its names.
fn plain_key(world: &World) -> u128 {
    xxh3_128(format!("{world:?}").as_bytes())
}
