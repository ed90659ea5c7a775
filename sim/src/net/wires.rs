//! What is between the hosts: links, connections, the segments on the way, and their delivery in time.
//!
//! All of it is one value behind one lock, so that what happens at one instant of simulated time happens in one
//! order. An operation takes the lock, changes the state, notes whom to wake and gives the lock back ([`Locked`]).
//! A direction has one timer, that of its first segment. [`Network::due`] delivers that segment and sets the
//! timer of the next; a segment that is held back has none, and whatever lets it through again sets it.
//!
//! Absent: nothing here knows of lives, futures or the traits of `io`. Those are the handles in [`super`], which
//! read and change a [`Side`] under the lock.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::RngExt;
use xxhash_rust::xxh3::xxh3_64;

use super::NetTimes;
use super::fault::{Counts, Fate, LARGE, Link, Passage, effective, fired};
use super::frames::Frames;
use crate::seed;
use crate::timers::{TimerId, Timers};
use crate::trace::Trace;

/// First port that is given out where the caller asked for none.
const FIRST_FREE_PORT: u16 = 40_000;

#[derive(Debug)]
pub(super) enum Segment {
    Syn,
    SynAck,
    Refuse,
    Data(Bytes),
    Fin,
    Reset,
    /// One that was lost as often as it was sent: when its turn comes its sender gives up.
    Lost,
}

/// A host's place in [`Wires::names`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostId(pub(super) u32);

/// How one side of a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The client, before the answer to its SYN; the server, before the SYN came.
    Connecting,
    Open,
    /// Nobody listened: the client's `connect` fails.
    Refused,
    /// Ended by the other side; reads fail once the inbox is empty.
    Reset,
    /// Both halves dropped, or the life is over. Whatever arrives is answered with a reset.
    Closed,
}

pub(super) struct Side {
    pub(super) host: HostId,
    pub(super) addr: String,
    pub(super) state: State,
    reader_dropped: bool,
    writer_dropped: bool,
    /// Shut down for writing: a FIN is on the way or there.
    pub(super) finished: bool,
    pub(super) inbox: VecDeque<Bytes>,
    pub(super) inbox_bytes: usize,
    /// The other side's FIN has arrived.
    pub(super) ended: bool,
    pub(super) read_waker: Option<Waker>,
    pub(super) write_waker: Option<Waker>,
}

impl Side {
    pub(super) fn new(host: HostId, addr: String) -> Side {
        Side {
            host,
            addr,
            state: State::Connecting,
            reader_dropped: false,
            writer_dropped: false,
            finished: false,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            ended: false,
            read_waker: None,
            write_waker: None,
        }
    }
}

/// The segments on the way in one direction.
#[derive(Default)]
pub(super) struct Pipe {
    pub(super) segments: VecDeque<(Duration, Segment)>,
    /// Bytes that the sender may not forget yet: on the way, and arrived without an acknowledgement.
    pub(super) bytes: usize,
    /// Of these, those that have arrived.
    pub(super) unacked: usize,
    /// Since when the first of them waits.
    pub(super) unacked_since: Option<Duration>,
    frames: Frames,
    /// For the first segment; none while that segment is held back.
    pub(super) timer: Option<TimerId>,
}

/// `sides[0]` is the client. `pipes[i]` leads from side `i` to the other.
pub(super) struct Conn {
    pub(super) sides: [Side; 2],
    pub(super) pipes: [Pipe; 2],
    /// The holds by which each direction stands still, by number.
    pub(super) held: [Vec<u32>; 2],
    /// Sides that bytes have reached which were changed on the way.
    pub(super) misled: [bool; 2],
    /// It ended under the hands of one side, who told the other nothing.
    pub(super) broken: bool,
}

/// A connection of which at least one side still knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The host that opened it, and the one that accepted.
    pub hosts: [String; 2],
    /// Which of them has not closed it.
    pub is_open: [bool; 2],
    /// It ended under the hands of one side, who told the other nothing: that one may go on knowing of it.
    pub broken: bool,
}

#[derive(Default)]
pub(super) struct Listening {
    pub(super) backlog: VecDeque<u64>,
    pub(super) waker: Option<Waker>,
    /// Tells a listener from a later one on the same address.
    pub(super) id: u64,
}

#[derive(Default)]
pub(super) struct HostState {
    on: bool,
    next_port: u16,
}

pub(super) struct Wires {
    pub(super) hosts: BTreeMap<String, HostState>,
    pub(super) listening: BTreeMap<String, Listening>,
    pub(super) conns: BTreeMap<u64, Conn>,
    pub(super) names: Vec<Arc<str>>,
    numbers: BTreeMap<Arc<str>, HostId>,
    pub(super) links: BTreeMap<(HostId, HostId), Link>,
    pub(super) counts: Counts,
    pub(super) next_conn: u64,
    pub(super) next_listener: u64,
    pub(super) next_hold: u32,
    /// To be woken once the lock is given back.
    pub(super) woken: Vec<Waker>,
}

impl Wires {
    /// The number of a host; it gets one at the first call.
    pub(super) fn number(&mut self, host: &str) -> HostId {
        if let Some(number) = self.numbers.get(host) {
            return *number;
        }
        let number = HostId(u32::try_from(self.names.len()).expect("few hosts"));
        let name: Arc<str> = host.into();
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }
}

pub(super) struct Shared {
    seed: u64,
    pub(super) times: NetTimes,
    pub(super) timers: Timers,
    trace: Trace,
    wires: Mutex<Wires>,
}

/// The network of one run: all hosts, links and connections. Clones share it.
#[derive(Clone)]
pub struct Network(pub(super) Arc<Shared>);

/// Wakes what was marked, after the lock is gone: a waker may run code of ours.
pub(super) struct Locked<'a>(Option<MutexGuard<'a, Wires>>);

impl std::ops::Deref for Locked<'_> {
    type Target = Wires;
    fn deref(&self) -> &Wires {
        self.0.as_ref().expect("held until dropped")
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Wires {
        self.0.as_mut().expect("held until dropped")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let woken = std::mem::take(&mut self.woken);
        self.0 = None;
        woken.into_iter().for_each(Waker::wake);
    }
}

pub(super) fn host_of(addr: &str) -> io::Result<(&str, u16)> {
    let malformed = || io::Error::new(ErrorKind::InvalidInput, format!("{addr:?} is not host:port"));
    let (host, port) = addr.rsplit_once(':').ok_or_else(malformed)?;
    if host.is_empty() {
        return Err(malformed());
    }
    Ok((host, port.parse().map_err(|_| malformed())?))
}

impl Network {
    pub(crate) fn new(seed: u64, times: NetTimes, timers: Timers, trace: Trace) -> Network {
        let wires = Wires {
            hosts: BTreeMap::new(),
            listening: BTreeMap::new(),
            conns: BTreeMap::new(),
            names: Vec::new(),
            numbers: BTreeMap::new(),
            links: BTreeMap::new(),
            counts: Counts::new(),
            next_conn: 0,
            next_listener: 0,
            next_hold: 0,
            woken: Vec::new(),
        };
        Network(Arc::new(Shared { seed, times, timers, trace, wires: Mutex::new(wires) }))
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked(Some(self.0.wires.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    pub(super) fn record(&self, host: &str, kind: &str, payload: impl std::fmt::Display) {
        self.0.trace.record(self.0.timers.now(), host, kind, payload);
    }

    pub(crate) fn power_on(&self, host: &str) {
        let mut wires = self.lock();
        let state = wires.hosts.entry(host.to_owned()).or_default();
        state.on = true;
        if state.next_port == 0 {
            state.next_port = FIRST_FREE_PORT;
        }
        self.resume(&mut wires);
    }

    /// The host's process is gone. With `power` also the host: what it had sent is lost and it answers nothing.
    pub(crate) fn end_of_life(&self, host: &str, power: bool) {
        let mut wires = self.lock();
        let number = wires.number(host);
        if power && let Some(state) = wires.hosts.get_mut(host) {
            state.on = false;
        }
        wires.listening.retain(|addr, _| host_of(addr).is_ok_and(|(of, _)| of != host));
        let ids: Vec<u64> = wires.conns.keys().copied().collect();
        for id in ids {
            for side in 0..2 {
                let Some(conn) = wires.conns.get_mut(&id) else { break };
                if conn.sides[side].host != number {
                    continue;
                }
                if power {
                    conn.broken = true;
                    let pipe = &mut conn.pipes[side];
                    if let Some(timer) = pipe.timer.take() {
                        self.0.timers.cancel(timer);
                    }
                    *pipe = Pipe::default();
                }
                let before = conn.sides[side].state;
                let unheard = side == 1 && before == State::Connecting;
                if unheard || before == State::Closed {
                    continue; // a SYN on the way finds the next life; a closed socket is the kernel's
                }
                close(&mut conn.sides[side]);
                if before == State::Open && !power {
                    self.send(&mut wires, id, side, Segment::Reset);
                }
                self.sweep(&mut wires, id);
            }
        }
    }

    /// Connections that either side still knows, and segments on the way: both zero when nothing leaks.
    pub fn usage(&self) -> (usize, usize) {
        let wires = self.lock();
        let segments = wires.conns.values().flat_map(|c| &c.pipes).map(|p| p.segments.len()).sum();
        (wires.conns.len(), segments)
    }

    /// Forgets everything, for the end of a run.
    pub(crate) fn clear(&self) {
        let mut wires = self.lock();
        let conns = std::mem::take(&mut wires.conns);
        let listening = std::mem::take(&mut wires.listening);
        drop(wires);
        drop((conns, listening));
    }

    /// Sets the timers of all first segments again that were held back, and acknowledges what can be.
    pub(super) fn resume(&self, wires: &mut Wires) {
        let ids: Vec<u64> = wires.conns.keys().copied().collect();
        for id in ids {
            for side in 0..2 {
                if self.is_acked(wires, id, side) {
                    self.acknowledge(wires, id, side);
                }
                let held = wires
                    .conns
                    .get(&id)
                    .is_some_and(|c| c.pipes[side].timer.is_none() && !c.pipes[side].segments.is_empty());
                if held {
                    let due = self.0.timers.now() + self.delay(wires, id, side);
                    self.arm(wires, id, side, due);
                }
            }
        }
    }

    pub(super) fn link<'a>(&self, wires: &'a mut Wires, link: (HostId, HostId)) -> &'a mut Link {
        let Wires { links, names, .. } = wires;
        links.entry(link).or_insert_with_key(|(a, b)| {
            let purpose = format!("net/{}/{}", names[a.0 as usize], names[b.0 as usize]);
            Link::new(seed::stream(self.0.seed, &purpose))
        })
    }

    pub(super) fn link_of<'a>(&self, wires: &'a mut Wires, id: u64, from: usize) -> &'a mut Link {
        let sides = &wires.conns[&id].sides;
        let link = (sides[from].host, sides[1 - from].host);
        self.link(wires, link)
    }

    fn delay(&self, wires: &mut Wires, id: u64, from: usize) -> Duration {
        let times = &self.0.times;
        let chance = &mut self.link_of(wires, id, from).chance;
        let delay = chance.random_range(times.delay.0..=times.delay.1);
        if chance.random_range(0..times.slow_one_in.max(1)) > 0 {
            return delay;
        }
        fired(&mut wires.counts, "slow-tail");
        effective(&mut wires.counts, "slow-tail");
        delay * 10
    }

    /// How much of `len` bytes a read or write takes: now and then fewer.
    pub(super) fn share(&self, wires: &mut Wires, id: u64, from: usize, len: usize) -> usize {
        let one_in = self.0.times.short_one_in.max(1);
        let chance = &mut self.link_of(wires, id, from).chance;
        if len > 1 && chance.random_range(0..one_in) == 0 { chance.random_range(1..=len) } else { len }
    }

    /// Puts a segment in line from side `from` to the other.
    pub(super) fn send(&self, wires: &mut Wires, id: u64, from: usize, segment: Segment) {
        if !wires.conns.contains_key(&id) {
            return;
        }
        let now = self.0.timers.now();
        let delay = self.delay(wires, id, from);
        let len = if let Segment::Data(bytes) = &segment { bytes.len() } else { 0 };
        let mut counts = std::mem::take(&mut wires.counts);
        let begun = match (&segment, wires.conns.get_mut(&id)) {
            (Segment::Data(bytes), Some(conn)) => conn.pipes[from].frames.begun(bytes),
            _ => Vec::new(),
        };
        let link = self.link_of(wires, id, from);
        let by_kind = link.later_by_kind(&begun, &mut counts);
        let passage = link.passage(now, len, &mut counts);
        wires.counts = counts;
        let (due, segment) = match passage {
            Passage::Later(later) => (now + delay + later + by_kind, segment),
            Passage::Lost(tried) => (now + tried, Segment::Lost),
        };
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        let pipe = &mut conn.pipes[from];
        pipe.bytes += len;
        pipe.segments.push_back((due, segment));
        if pipe.segments.len() == 1 {
            self.arm(wires, id, from, due);
        }
    }

    pub(super) fn arm(&self, wires: &mut Wires, id: u64, from: usize, due: Duration) {
        let net = Arc::downgrade(&self.0);
        let timer = self.0.timers.at(due, move || Network::due(&net, id, from));
        if let Some(conn) = wires.conns.get_mut(&id) {
            conn.pipes[from].timer = Some(timer);
        }
    }

    /// The first segment of a direction has come to its time.
    fn due(net: &Weak<Shared>, id: u64, from: usize) {
        let Some(net) = net.upgrade().map(Network) else { return };
        let mut wires = net.lock();
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        conn.pipes[from].timer = None;
        net.deliver(&mut wires, id, from);
        net.sweep(&mut wires, id);
    }

    /// Delivers the first segment, if nothing holds it back, and sets the timer of the next.
    fn deliver(&self, wires: &mut Wires, id: u64, from: usize) {
        let to = 1 - from;
        let conn = &wires.conns[&id];
        if let Some((_, Segment::Lost)) = conn.pipes[from].segments.front() {
            return self.lost(wires, id, from);
        }
        let link = (conn.sides[from].host, conn.sides[to].host);
        let names = [link.0, link.1].map(|host| wires.names[host.0 as usize].clone());
        if !wires.hosts.get(&*names[1]).is_some_and(|host| host.on) {
            return; // `resume` comes back to it
        }
        let held_by = self.held_by(wires, id, from);
        if !held_by.is_empty() {
            held_by.into_iter().for_each(|name| effective(&mut wires.counts, name));
            return; // so here
        }
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        let Some((_, segment)) = conn.pipes[from].segments.front() else { return };
        if let Segment::Data(bytes) = segment {
            let target = &conn.sides[to];
            let room = self.0.times.recv_buffer.saturating_sub(target.inbox_bytes);
            if target.state == State::Open && target.inbox_bytes > 0 && bytes.len() > room {
                return; // the reader comes back to it
            }
        }
        let Some((_, mut segment)) = conn.pipes[from].segments.pop_front() else { return };
        if let Segment::Data(bytes) = &mut segment {
            let len = bytes.len();
            if self.is_acked(&mut *wires, id, from) {
                if let Some(conn) = wires.conns.get_mut(&id) {
                    conn.pipes[from].bytes -= len;
                    let waker = conn.sides[from].write_waker.take();
                    wires.woken.extend(waker);
                }
                self.acknowledge(wires, id, from);
            } else {
                self.not_acknowledged(wires, id, from, len);
            }
            let mut counts = std::mem::take(&mut wires.counts);
            // Who has opened the connection asks, and is answered: `sides[0]` is the client.
            let fate = self.link(wires, link).fate(to == 0, &mut counts);
            wires.counts = counts;
            match fate {
                Fate::Whole => {}
                Fate::Corrupt(at) => {
                    flip(bytes, at);
                    if let Some(conn) = wires.conns.get_mut(&id) {
                        conn.misled[to] = true;
                    }
                }
                Fate::Reset => {
                    self.record(&names[1], "reply-lost", format_args!("c{id}"));
                    self.clear_pipe(wires, id, from);
                    // The reset stands in the answer's place, and goes to its sender over the way back.
                    self.send(wires, id, to, Segment::Reset);
                    segment = Segment::Reset;
                }
            }
        }
        self.trace_segment(id, &names, &segment);
        self.arrive(wires, id, to, segment);
        let next = wires.conns.get(&id).and_then(|conn| conn.pipes[from].segments.front()).map(|next| next.0);
        if let Some(due) = next {
            self.arm(wires, id, from, due);
        }
    }

    /// The faults that keep the first segment of a direction where it is, by all their names.
    fn held_by(&self, wires: &mut Wires, id: u64, from: usize) -> Vec<&'static str> {
        let conn = &wires.conns[&id];
        let held = !conn.held[from].is_empty();
        let data = match conn.pipes[from].segments.front() {
            Some((_, Segment::Data(bytes))) => Some(bytes.len()),
            _ => None,
        };
        let link = self.link_of(wires, id, from);
        match () {
            () if link.is_cut() => {
                let named = link.cuts.iter().flatten().map(|why| why.name());
                ["cut"].into_iter().chain(named).collect()
            }
            () if held => vec!["hold"],
            () if link.large_stalls > 0 && data.is_some_and(|len| len > LARGE) => vec!["large-stall"],
            () if link.small_stalls > 0 && data.is_some_and(|len| len <= LARGE) => vec!["small-stall"],
            () => Vec::new(),
        }
    }

    fn trace_segment(&self, id: u64, [from, to]: &[Arc<str>; 2], segment: &Segment) {
        match segment {
            Segment::Syn => self.record(to, "net-syn", format_args!("c{id} from {from}")),
            Segment::SynAck => self.record(to, "net-syn-ack", format_args!("c{id} from {from}")),
            Segment::Refuse => self.record(to, "net-refuse", format_args!("c{id} from {from}")),
            Segment::Fin => self.record(to, "net-fin", format_args!("c{id} from {from}")),
            Segment::Reset => self.record(to, "net-reset", format_args!("c{id} from {from}")),
            Segment::Lost => {} // never gets here
            Segment::Data(bytes) => {
                let (len, hash) = (bytes.len(), xxh3_64(bytes));
                self.record(to, "net-data", format_args!("c{id} from {from} {len} {hash:016x}"));
            }
        }
    }

    /// What a segment does at the side it has reached.
    fn arrive(&self, wires: &mut Wires, id: u64, to: usize, segment: Segment) {
        if let Segment::Syn = segment {
            return self.arrive_syn(wires, id);
        }
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        let side = &mut conn.sides[to];
        match (segment, side.state) {
            // Nobody is left: whoever sends to a side that has ended is told so, unless this was its last word.
            (Segment::Data(_) | Segment::SynAck, State::Closed | State::Reset | State::Refused) => {
                return self.send(wires, id, to, Segment::Reset);
            }
            (Segment::SynAck, State::Connecting) => side.state = State::Open,
            // A connection that was never made cannot break: connecting fails.
            (Segment::Refuse | Segment::Reset, State::Connecting) => side.state = State::Refused,
            (Segment::Data(bytes), State::Open) => {
                side.inbox_bytes += bytes.len();
                side.inbox.push_back(bytes);
            }
            (Segment::Fin, State::Open) => side.ended = true,
            (Segment::Reset, State::Open) => side.state = State::Reset,
            _ => return,
        }
        wires.woken.extend(conn.sides[to].read_waker.take());
        // A writer minds only the end of the connection.
        if conn.sides[to].state != State::Open {
            wires.woken.extend(conn.sides[to].write_waker.take());
        }
    }

    fn arrive_syn(&self, wires: &mut Wires, id: u64) {
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        let Some(listening) = wires.listening.get_mut(&conn.sides[1].addr) else {
            return self.send(wires, id, 1, Segment::Refuse);
        };
        if listening.backlog.len() >= self.0.times.backlog {
            return self.send(wires, id, 1, Segment::Refuse);
        }
        conn.sides[1].state = State::Open;
        listening.backlog.push_back(id);
        wires.woken.extend(listening.waker.take());
        self.send(wires, id, 1, Segment::SynAck);
    }

    /// Forgets a connection that neither side can use and that has no word left to deliver.
    pub(super) fn sweep(&self, wires: &mut Wires, id: u64) {
        let Some(conn) = wires.conns.get(&id) else { return };
        let ended = |side: &Side| matches!(side.state, State::Closed | State::Refused);
        // A client that gives up before its SYN was heard leaves nothing behind.
        let unheard = conn.sides[1].state == State::Connecting;
        if ended(&conn.sides[0])
            && (ended(&conn.sides[1]) || unheard)
            && let Some(conn) = wires.conns.remove(&id)
        {
            for timer in conn.pipes.iter().filter_map(|pipe| pipe.timer) {
                self.0.timers.cancel(timer);
            }
        }
    }

    /// A half of side `side` was dropped, in the life that made it.
    pub(super) fn drop_half(&self, id: u64, side: usize, reader: bool) {
        let mut wires = self.lock();
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        let this = &mut conn.sides[side];
        if reader {
            this.reader_dropped = true;
        } else {
            this.writer_dropped = true;
        }
        if this.reader_dropped && this.writer_dropped && this.state != State::Closed {
            self.hang_up(&mut wires, id, side);
        }
    }

    /// Closes a side: FIN, or a reset when bytes were left unread.
    pub(super) fn hang_up(&self, wires: &mut Wires, id: u64, side: usize) {
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        let this = &mut conn.sides[side];
        // It closes what is whole but for a changed byte: so the checksum has told.
        if this.state == State::Open && !this.ended && std::mem::take(&mut conn.misled[side]) {
            effective(&mut wires.counts, "corrupt");
        }
        let last = match (this.state, this.inbox_bytes) {
            (State::Open, 0) if this.finished => None,
            (State::Open, 0) => Some(Segment::Fin),
            (State::Open, _) => Some(Segment::Reset),
            (State::Connecting | State::Refused | State::Reset | State::Closed, _) => None,
        };
        close(this);
        if let Some(last) = last {
            self.send(wires, id, side, last);
        }
        self.sweep(wires, id);
    }
}

/// Changes one bit of some bytes.
fn flip(bytes: &mut Bytes, at: u64) {
    let mut changed = BytesMut::from(&bytes[..]);
    if let Some(byte) =
        usize::try_from(at).ok().and_then(|at| at.checked_rem(bytes.len())).and_then(|at| changed.get_mut(at))
    {
        *byte ^= 1 << (at >> 61);
    }
    *bytes = changed.freeze();
}

pub(super) fn close(side: &mut Side) {
    side.state = State::Closed;
    side.inbox.clear();
    side.inbox_bytes = 0;
    side.read_waker = None;
    side.write_waker = None;
}

/// The next address of the host that nobody listens on.
pub(super) fn free_addr(wires: &mut Wires, host: &str) -> io::Result<String> {
    for _ in FIRST_FREE_PORT..=u16::MAX {
        let state = wires.hosts.get_mut(host).ok_or(ErrorKind::NotFound)?;
        let addr = format!("{host}:{}", state.next_port);
        state.next_port = state.next_port.checked_add(1).unwrap_or(FIRST_FREE_PORT);
        if !wires.listening.contains_key(&addr) {
            return Ok(addr);
        }
    }
    Err(ErrorKind::AddrInUse.into())
}
