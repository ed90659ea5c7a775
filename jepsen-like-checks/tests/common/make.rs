//! Ways to make small histories: every one there is, random ones, and valid ones with something changed.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::{Context, End, Small, Spec};

/// Where decisions come from.
pub trait Choose {
    /// A number below `n`.
    fn choose(&mut self, n: usize) -> usize;
}

/// Every sequence of decisions, one after the other.
#[derive(Default, Clone)]
pub struct Every {
    /// (taken, of how many)
    path: Vec<(usize, usize)>,
    at: usize,
    started: bool,
    /// So many decisions at the start of the path stay as they are.
    fixed: usize,
}

impl Every {
    /// Goes to the next sequence; false after the last.
    pub fn advance(&mut self) -> bool {
        self.at = 0;
        if !std::mem::replace(&mut self.started, true) {
            return true;
        }
        while self.path.len() > self.fixed
            && let Some((taken, of)) = self.path.pop()
        {
            if taken + 1 < of {
                self.path.push((taken + 1, of));
                return true;
            }
        }
        false
    }

    /// All sequences, split by their first `depth` decisions, so that several threads can share them.
    pub fn split(depth: usize, mut decide: impl FnMut(&mut Every)) -> Vec<Every> {
        let (mut parts, mut every) = (Vec::new(), Every::default());
        while every.advance() {
            decide(&mut every);
            every.path.truncate(depth);
            parts.push(Every { fixed: every.path.len(), path: every.path.clone(), ..Every::default() });
        }
        parts
    }
}

impl Choose for Every {
    fn choose(&mut self, n: usize) -> usize {
        if self.at == self.path.len() {
            self.path.push((0, n));
        }
        assert_eq!(self.path[self.at].1, n, "decisions hang on nothing but decisions");
        self.at += 1;
        self.path[self.at - 1].0
    }
}

/// Random decisions.
pub struct Random(pub ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(ChaCha8Rng::seed_from_u64(seed))
    }
}

impl Choose for Random {
    fn choose(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }
}

/// What operations a history is made of.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    pub fs: &'static [&'static str],
    pub keys: u8,
    pub ends: &'static [End],
    /// Writes may be `current`, and say what they overwrote.
    pub current: bool,
    pub contexts: bool,
    pub claims: bool,
    pub quorums: bool,
    /// The contexts that reads may claim; without end for random histories.
    pub covers: &'static [Option<[u64; 2]>],
    /// Dots may be given twice.
    pub dots: bool,
    /// Ids that nobody wrote, or not yet.
    pub thin: bool,
    pub mortal: bool,
    pub copies: bool,
    pub dead: bool,
    /// How many values a register, set or counter has.
    pub values: i64,
    /// Of histories that differ only in the order of two invocations, or of two completions, with nothing in between,
    /// one stands for both: neither order makes anything happen before anything else.
    pub sorted: bool,
}

pub const PLAIN: Profile = Profile {
    fs: &["put", "get"],
    keys: 2,
    ends: &[End::Ok, End::Info],
    current: false,
    contexts: true,
    claims: false,
    quorums: false,
    covers: &[None, Some([0, 0]), Some([1, 0]), Some([2, 0]), Some([0, 1]), Some([1, 1]), Some([2, 1])],
    dots: false,
    thin: false,
    mortal: false,
    copies: false,
    dead: false,
    values: 0,
    sorted: false,
};

fn is_sibling_f(profile: &Profile, f: &str) -> bool {
    profile.values == 0 && matches!(f, "put" | "delete" | "get" | "final")
}

/// A history of `count` operations by at most `clients` clients at a time.
pub fn make(profile: &Profile, count: usize, clients: usize, rich: bool, choose: &mut dyn Choose) -> Small {
    let mut small = Small::default();
    // Each client: its process, and the operation it is busy with.
    let mut slots: Vec<(i64, Option<usize>)> = Vec::new();
    let mut processes = 0;
    let mut moves: Vec<Option<usize>> = Vec::with_capacity(8);
    // Whether the last event was a completion, and by which client.
    let mut before: Option<(bool, usize)> = None;
    let is_busy =
        |slots: &[(i64, Option<usize>)], at: usize| slots.get(at).is_some_and(|slot| slot.1.is_some());
    small.ops.reserve(count);
    small.order.reserve(2 * count);
    loop {
        let started = small.ops.len();
        moves.clear();
        if started < count {
            let idle = slots.iter().enumerate().filter(|(_, slot)| slot.1.is_none());
            moves.extend(idle.map(|(at, _)| Some(at)));
            if slots.len() < clients {
                moves.push(Some(slots.len()));
            }
        }
        let busy = slots.iter().enumerate().filter(|(_, slot)| slot.1.is_some());
        moves.extend(busy.map(|(at, _)| Some(at)));
        if started == count {
            moves.push(None);
        }
        if profile.sorted
            && let Some((was, by)) = before
            && (was || !profile.fs.contains(&"lost"))
        {
            // The same kind of event by a client of a lower number would have come first. A loss begins like an
            // operation, but what began before it is hit.
            moves.retain(|slot| slot.is_none_or(|at| at >= by || is_busy(&slots, at) != was));
        }
        let taken = if moves.len() == 1 { 0 } else { choose.choose(moves.len()) };
        let Some(slot) = moves[taken] else { return small };
        before = Some((is_busy(&slots, slot), slot));
        if slot == slots.len() {
            slots.push((processes, None));
            processes += 1;
        }
        if let Some(op) = slots[slot].1.take() {
            complete(profile, &mut small, op, rich, choose);
            small.order.push(op);
            if small.ops[op].end == End::Info {
                slots[slot].0 = processes;
                processes += 1;
            }
        } else {
            let op = invoke(profile, &small, slots[slot].0, slot, count, rich, choose);
            let mark = op.f == "lost";
            small.ops.push(op);
            small.order.push(started);
            if !mark {
                slots[slot].1 = Some(started);
            }
        }
    }
}

fn invoke(
    profile: &Profile,
    small: &Small,
    process: i64,
    slot: usize,
    count: usize,
    rich: bool,
    choose: &mut dyn Choose,
) -> Spec {
    let mut pick = |n: usize| if n == 1 { 0 } else { choose.choose(n) };
    let mut op = Spec::new(process, profile.fs[pick(profile.fs.len())]);
    op.end = End::Never;
    if op.f == "lost" {
        op.node = Some(u8::try_from(pick(2)).unwrap());
        op.end = if rich && pick(2) == 1 { End::Info } else { End::Ok };
        return op;
    }
    if profile.keys > 1 {
        op.key = Some(u8::try_from(pick(usize::from(profile.keys))).unwrap());
    }
    if profile.values > 0 {
        let value = |n: usize| i64::try_from(n).unwrap();
        let values = usize::try_from(profile.values).unwrap();
        match op.f {
            "write" | "cas" => {
                // Up to renaming: a value is one of those before, or the next.
                let used = small.ops.iter().flat_map(|op| [op.value, Some(op.value2)]).flatten().max();
                let known = |used: Option<i64>| {
                    if rich { values } else { used.map_or(1, |max| usize::try_from(max).unwrap() + 2) }
                };
                op.value = Some(value(pick(values.min(known(used)))));
                if op.f == "cas" {
                    op.value2 = value(pick(values.min(known(used.max(op.value)))));
                }
            }
            // Up to renaming: what is added or put has a value of its own.
            "put" | "append" => op.value = Some(value(small.ops.len())),
            "add" if profile.dead => op.value = Some([1, -2, 3][pick(if rich { 3 } else { 2 })]),
            "add" => op.value = Some(value(small.ops.len()) % if rich { 4 } else { 2 }),
            _ => {}
        }
        return op;
    }
    if op.writes() {
        let mut contexts = vec![Context::Blind];
        if profile.current {
            contexts.push(Context::Current);
        }
        if profile.contexts {
            let ended = |at: &usize| small.ops[*at].end == End::Ok && small.ops[*at].key == op.key;
            contexts.extend(
                (0..small.ops.len()).filter(ended).filter(|at| small.ops[*at].f != "lost").map(Context::Of),
            );
        }
        op.context = contexts[pick(contexts.len())];
        if profile.claims {
            let count = 1 + small
                .ops
                .iter()
                .filter(|other| other.dot.is_some_and(|dot| usize::from(dot.0) == slot % 2))
                .count();
            op.dot = Some((u8::try_from(slot % 2).unwrap(), count as u64));
            if profile.dots && !rich && pick(2) == 1 {
                op.dot = Some((0, 1));
            }
            if rich {
                match pick(12) {
                    0 => op.dot = None,
                    1 => op.dot = Some((0, 1)),
                    _ => {}
                }
            }
        }
        if profile.mortal && op.f == "put" && pick(2) == 1 {
            op.ttl = Some(20);
        }
    }
    if profile.quorums {
        let strict = !rich || pick(6) > 0;
        let sync = !rich || pick(6) > 0;
        let of_a_get = op.f == "get";
        let (r, w) = match (rich, of_a_get) {
            (true, _) => (1 + pick(3), 1 + pick(3)),
            (false, true) => (1 + pick(2), 2),
            (false, false) => (2, 2),
        };
        op.quorum = Some((strict, sync, u8::try_from(r).unwrap(), u8::try_from(w).unwrap(), 3));
        op.layout = (rich && pick(5) == 0).then_some(2);
    }
    if profile.copies && op.f == "put" {
        op.copies = Some(u8::try_from(1 + pick(2)).unwrap());
    }
    if op.f == "final" && profile.dead {
        // Up to renaming: one of those before, or the next.
        let used = small.ops.iter().filter_map(|op| op.node).max().map_or(0, |node| usize::from(node) + 1);
        op.node = Some(u8::try_from(pick(if rich { 3 } else { 3.min(used + 1) })).unwrap());
    }
    let _ = count;
    op
}

fn complete(profile: &Profile, small: &mut Small, at: usize, rich: bool, choose: &mut dyn Choose) {
    let mut pick = |n: usize| if n == 1 { 0 } else { choose.choose(n) };
    let position = i64::try_from(small.order.len()).unwrap();
    // Its place stays: others are counted by theirs.
    let hollow = Spec { key: small.ops[at].key, ..Spec::new(0, small.ops[at].f) };
    let mut op = std::mem::replace(&mut small.ops[at], hollow);
    let reads = matches!(op.f, "get" | "final" | "read");
    op.end = if reads { End::Ok } else { profile.ends[pick(profile.ends.len())] };
    if op.end == End::Ok && is_sibling_f(profile, op.f) {
        let mut ids: Vec<usize> = (0..small.ops.len()).filter(|at| small.ops[*at].writes()).collect();
        ids.retain(|id| *id != at && (rich || small.ops[*id].key == op.key));
        if profile.thin {
            ids.push(small.ops.len());
        }
        let subset = |pick: &mut dyn FnMut(usize) -> usize| -> Vec<usize> {
            let mask = pick(1 << ids.len().min(6));
            ids.iter().enumerate().filter(|(at, _)| mask >> (at % 6) & 1 == 1).map(|(_, id)| *id).collect()
        };
        if reads {
            op.returned = subset(&mut pick);
            if profile.dead && !op.returned.is_empty() && pick(3) == 0 {
                op.dead = vec![op.returned[0]];
            }
        } else {
            let moment = op.context == Context::Current || (op.f == "delete" && op.context == Context::Blind);
            if moment && (!rich || pick(4) > 0) && pick(2) == 0 {
                op.saw = Some(subset(&mut pick));
            }
            if rich && pick(3) == 0 {
                op.returned = subset(&mut pick);
            }
        }
        if profile.claims && reads {
            op.covers = if rich && pick(2) == 0 {
                Some([pick(5) as u64, pick(5) as u64])
            } else {
                profile.covers[pick(profile.covers.len())]
            };
            op.shift = u64::from(rich && pick(20) == 0);
        }
        if profile.mortal && (!rich || pick(5) > 0) {
            op.clock = Some((position * 10, position * 10 + 5));
        }
    }
    if profile.values > 0 && reads && op.end == End::Ok {
        match profile.fs {
            fs if fs.contains(&"append") => {
                let parts: Vec<i64> =
                    small.ops.iter().filter(|other| other.key == op.key).filter_map(|op| op.value).collect();
                let mut list = Vec::new();
                while list.len() < parts.len() {
                    let next = pick(parts.len() + 1);
                    match parts.get(next) {
                        Some(part) if !list.contains(part) => list.push(*part),
                        _ => break,
                    }
                }
                op.elements = Some(list);
            }
            fs if fs.contains(&"add") && profile.dead => {
                op.value = Some(if rich { pick(9) as i64 - 3 } else { [-2, 0, 1, 3][pick(4)] });
            }
            fs if fs.contains(&"add") => {
                // Without chance: every set of the two values that are added, and one with a third.
                let mask = if rich { pick(16) } else { pick(5) };
                op.elements = Some((0..4).filter(|bit| mask >> bit & 1 == 1).collect());
                if rich && pick(8) == 0 && mask > 0 {
                    op.elements.as_mut().unwrap().push((0..4).find(|bit| mask >> bit & 1 == 1).unwrap());
                }
            }
            fs if fs.contains(&"put") => {
                let written: Vec<i64> =
                    small.ops.iter().filter_map(|op| op.value.filter(|value| *value >= 0)).collect();
                op.value = Some(written.get(pick(written.len() + 1)).copied().unwrap_or(-1));
            }
            _ => {
                let value = pick(usize::try_from(profile.values).unwrap() + 1) as i64;
                op.value = (value < profile.values).then_some(value);
            }
        }
    }
    small.ops[at] = op;
}

/// What a correct object holds while [`valid`] runs.
#[derive(Default, Clone)]
struct Object {
    /// Of siblings: the write, its dot and when it expires.
    siblings: Vec<(usize, (u8, u64), Option<i64>)>,
    covers: [u64; 2],
    value: Option<i64>,
    list: Vec<i64>,
    sum: i64,
}

/// A history of a correct object: every operation takes effect at one moment between its ends.
pub fn valid(profile: &Profile, count: usize, random: &mut Random) -> Small {
    let mut small = Small::default();
    let mut objects = [Object::default(), Object::default()];
    // What each completed operation's context covers.
    let mut contexts: Vec<[u64; 2]> = Vec::new();
    let mut slots: Vec<(i64, Option<(usize, bool)>)> = vec![(0, None), (1, None), (2, None)];
    let mut processes = 3;
    loop {
        let started = small.ops.len();
        let busy: Vec<usize> = (0..3).filter(|at| slots[*at].1.is_some()).collect();
        if started == count && busy.is_empty() {
            return small;
        }
        let slot = if started == count { busy[random.choose(busy.len())] } else { random.choose(3) };
        let now = i64::try_from(small.order.len()).unwrap() * 10;
        if let Some((op, done)) = slots[slot].1.take() {
            if !done {
                effect(profile, &mut small, op, &mut objects, &mut contexts, now);
            }
            if small.ops[op].end == End::Never {
                small.ops[op].end = End::Ok;
            }
            if profile.mortal && small.ops[op].end == End::Ok {
                let begun = small.order.iter().position(|at| *at == op).unwrap();
                small.ops[op].clock = Some((i64::try_from(begun).unwrap() * 10, now));
            }
            small.order.push(op);
            if small.ops[op].end == End::Info {
                slots[slot].0 = processes;
                processes += 1;
            }
            continue;
        }
        let mut op = invoke(profile, &small, slots[slot].0, slot, count, true, random);
        op.dot = None;
        if op.f == "final" && started < count * 2 / 3 {
            op.f = profile.fs[0];
            continue;
        }
        let (mark, reads) = (op.f == "lost", matches!(op.f, "get" | "final" | "read"));
        if !mark && !reads && profile.ends.contains(&End::Info) && random.choose(8) == 0 {
            op.end = End::Info;
        }
        let unknown = op.end == End::Info;
        small.ops.push(op);
        contexts.push([0, 0]);
        small.order.push(started);
        if mark {
            continue;
        }
        let early = random.choose(2) == 0;
        if early {
            effect(profile, &mut small, started, &mut objects, &mut contexts, now);
        }
        // An unknown one takes effect at once or never.
        slots[slot].1 = Some((started, early || unknown));
    }
}

fn effect(
    profile: &Profile,
    small: &mut Small,
    at: usize,
    objects: &mut [Object; 2],
    contexts: &mut [[u64; 2]],
    now: i64,
) {
    let mut op = small.ops[at].clone();
    let object = &mut objects[usize::from(op.key.unwrap_or(0))];
    let alive = |object: &Object| -> Vec<usize> {
        object
            .siblings
            .iter()
            .filter(|sibling| sibling.2.is_none_or(|end| now <= end))
            .map(|sibling| sibling.0)
            .collect()
    };
    if profile.values > 0 {
        match op.f {
            "write" => object.value = op.value,
            "put" => object.value = op.value,
            "cas" if object.value == op.value => object.value = Some(op.value2),
            "cas" => op.end = if op.end == End::Info { End::Info } else { End::Fail },
            "append" => object.list.push(op.value.unwrap()),
            "add" => {
                object.sum += op.value.unwrap();
                if !object.list.contains(&op.value.unwrap()) {
                    object.list.push(op.value.unwrap());
                }
            }
            "read" if profile.fs.contains(&"add") && profile.dead => op.value = Some(object.sum),
            "read" if profile.fs.contains(&"add") => op.elements = Some(object.list.clone()),
            "get" if profile.fs.contains(&"append") => op.elements = Some(object.list.clone()),
            "get" => op.value = Some(object.value.unwrap_or(-1)),
            _ => op.value = object.value,
        }
        small.ops[at] = op;
        return;
    }
    if op.writes() {
        let moment = op.context == Context::Current || (op.f == "delete" && op.context == Context::Blind);
        let token = match op.context {
            Context::Of(other) => contexts[other],
            _ if moment => object.covers,
            _ => [0, 0],
        };
        if moment && op.end != End::Info {
            op.saw = Some(object.siblings.iter().map(|sibling| sibling.0).collect());
        }
        object.siblings.retain(|(_, (actor, counter), _)| *counter > token[usize::from(*actor)]);
        op.returned = alive(object);
        let actor = u8::try_from(at % 2).unwrap();
        object.covers[usize::from(actor)] += 1;
        let dot = (actor, object.covers[usize::from(actor)]);
        op.dot = profile.claims.then_some(dot);
        if op.f == "put" {
            let end = op.ttl.map(|ttl| now + i64::try_from(ttl).unwrap());
            object.siblings.push((at, dot, end));
        }
    } else {
        op.returned = alive(object);
        op.covers = profile.claims.then_some(object.covers);
    }
    contexts[at] = object.covers;
    small.ops[at] = op;
}

/// Changes one thing.
pub fn mutate(small: &mut Small, random: &mut Random) {
    let count = small.ops.len();
    let at = random.choose(count);
    let last_of_process = !small.ops[at + 1..].iter().any(|op| op.process == small.ops[at].process);
    match random.choose(10) {
        0 | 1 => {
            let place = random.choose(small.order.len().max(2) - 1);
            let (one, two) = (small.order[place], small.order[place + 1]);
            if small.ops[one].process != small.ops[two].process {
                small.order.swap(place, place + 1);
            }
        }
        2 | 3 => {
            let id = random.choose(count);
            let op = &mut small.ops[at];
            let list = match &mut op.saw {
                Some(saw) if random.choose(2) == 0 => saw,
                _ => &mut op.returned,
            };
            match list.iter().position(|known| *known == id) {
                Some(place) => drop(list.remove(place)),
                None => list.push(id),
            }
        }
        4 => {
            let op = &mut small.ops[at];
            if op.end == End::Ok && !matches!(op.f, "get" | "final" | "read" | "lost") {
                op.end = if last_of_process && random.choose(2) == 0 { End::Info } else { End::Fail };
            }
        }
        5 => {
            let op = &mut small.ops[at];
            let change = if random.choose(2) == 0 { 1 } else { -1 };
            if let Some(value) = &mut op.value {
                *value = (*value + change).max(-1);
            }
            if let Some(list) = &mut op.elements {
                let element = random.choose(count) as i64;
                match list.iter().position(|known| *known == element) {
                    Some(place) => drop(list.remove(place)),
                    None => list.push(element),
                }
            }
        }
        6 => {
            let other = random.choose(count);
            if small.ops[at].writes() && other < at {
                small.ops[at].context = Context::Of(other);
            }
        }
        7 => {
            let up = random.choose(2) == 0;
            if let Some(covers) = &mut small.ops[at].covers {
                let actor = random.choose(2);
                covers[actor] = if up { covers[actor] + 1 } else { covers[actor].saturating_sub(1) };
            }
            if let Some(dot) = &mut small.ops[at].dot
                && random.choose(3) == 0
            {
                dot.1 += 1;
            }
        }
        8 => {
            if let Some(quorum) = &mut small.ops[at].quorum {
                match random.choose(4) {
                    0 => quorum.0 = !quorum.0,
                    1 => quorum.1 = !quorum.1,
                    2 => quorum.2 = 1 + quorum.2 % 3,
                    _ => quorum.3 = 1 + quorum.3 % 3,
                }
            }
        }
        _ => {
            let op = &mut small.ops[at];
            op.dead =
                if op.dead.is_empty() { op.returned.iter().take(1).copied().collect() } else { Vec::new() };
        }
    }
}
