//! What faults do to links and connections, and what a sender does whose bytes are not acknowledged.
//!
//! Who is told of the end of a connection, and how: a process that dies has its kernel send a reset, a sender that gives up says
//! nothing, and whoever ends a connection from the middle sends a reset to both sides. Each of these resets is a segment: a link
//! that is cut holds it back.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::fault::{Counts, Link, NetFault, effective, fired};
use super::wires::{Conn, Connection, Network, Segment, Shared, State, Wires};
use crate::plan::Why;

/// For how long a sender waits for an acknowledgement: six retries, the first after 200 ms, each twice as long.
pub const UNACKED_MAX: Duration = Duration::from_millis(12_600);

/// Whether a side would notice the end of a connection: it has not closed it, and has heard of it.
fn is_felt(wires: &Wires, id: u64, side: usize) -> bool {
    let state = wires.conns.get(&id).map(|conn| conn.sides[side].state);
    matches!((side, state), (_, Some(State::Open)) | (0, Some(State::Connecting)))
}

impl Network {
    /// Holds back everything from `from` to `to` until it is healed. The other direction is not touched.
    pub fn cut(&self, from: &str, to: &str) {
        self.apply(&NetFault::Cut { from: from.to_owned(), to: to.to_owned() });
    }

    /// Lets through again, in order, what waits from `from` to `to`.
    pub fn heal(&self, from: &str, to: &str) {
        self.apply(&NetFault::Heal { from: from.to_owned(), to: to.to_owned() });
    }

    /// Does to the network what the fault says.
    pub fn apply(&self, fault: &NetFault) {
        self.apply_as(fault, None);
    }

    /// The same, counted also under the name of what it is a part of.
    pub fn apply_as(&self, fault: &NetFault, why: Option<Why>) {
        let (from, to) = fault.link();
        let mut wires = self.lock();
        let link = (wires.number(from), wires.number(to));
        if !fault.is_an_end() {
            fired(&mut wires.counts, fault.name());
            why.into_iter().for_each(|why| fired(&mut wires.counts, why.name()));
        }
        let now = self.0.timers.now();
        self.link(&mut wires, link).set(fault, why, now);
        let between = |conn: &Conn| {
            let [a, b] = [conn.sides[0].host, conn.sides[1].host];
            if (a, b) == link { Some(0) } else { ((b, a) == link).then_some(1) }
        };
        let conns: Vec<(u64, usize)> =
            wires.conns.iter().filter_map(|(id, conn)| Some((*id, between(conn)?))).collect();
        self.record(from, fault.name(), format_args!("to {to}, {} connections", conns.len()));
        let mut hold = None;
        if let NetFault::Hold { .. } = fault {
            wires.next_hold += 1;
            hold = Some(wires.next_hold);
            let number = wires.next_hold;
            self.link(&mut wires, link).holds.push(number);
        }
        for (id, side) in conns {
            match fault {
                NetFault::Hold { .. } => {
                    if let Some(conn) = wires.conns.get_mut(&id) {
                        conn.held[side].extend(hold);
                    }
                }
                NetFault::Reset { .. } => self.reset_from_the_middle(&mut wires, id),
                NetFault::HalfOpen { .. } => {
                    if is_felt(&wires, id, side) {
                        effective(&mut wires.counts, "half-open");
                    }
                    self.break_off(&mut wires, id, side);
                }
                _ => {}
            }
        }
        if fault.is_an_end() {
            self.let_go(&mut wires);
        }
    }

    /// Ends the holds that last no longer, and lets go on what nothing holds any more.
    fn let_go(&self, wires: &mut Wires) {
        let Wires { conns, links, .. } = wires;
        for conn in conns.values_mut() {
            for side in 0..2 {
                let link = (conn.sides[side].host, conn.sides[1 - side].host);
                conn.held[side].retain(|hold| links.get(&link).is_some_and(|link| link.holds.contains(hold)));
            }
        }
        self.resume(wires);
    }

    /// What is on the way from a side is gone.
    pub(super) fn clear_pipe(&self, wires: &mut Wires, id: u64, from: usize) {
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        if let Some(timer) = std::mem::take(&mut conn.pipes[from]).timer {
            self.0.timers.cancel(timer);
        }
    }

    /// Somebody between the hosts ends a connection: each side that knows of it gets a reset, over the link to it.
    fn reset_from_the_middle(&self, wires: &mut Wires, id: u64) {
        let told = [0, 1].map(|side| is_felt(wires, id, side));
        if told.contains(&true) {
            effective(&mut wires.counts, "reset");
        }
        for from in 0..2 {
            self.clear_pipe(wires, id, from);
        }
        for from in (0..2).filter(|from| told[1 - from]) {
            self.send(wires, id, from, Segment::Reset);
        }
        self.sweep(wires, id);
    }

    /// The first segment of a direction was lost as often as it was sent. Its sender gives up; nobody tells the other side.
    pub(super) fn lost(&self, wires: &mut Wires, id: u64, from: usize) {
        effective(&mut wires.counts, "loss-exhausted");
        self.record("net", "lost", format_args!("c{id}"));
        self.break_off(wires, id, from);
    }

    /// A connection ends under the hands of one side: nothing is sent, and what was on the way from it is gone. One that was
    /// not made yet cannot be made any more.
    fn break_off(&self, wires: &mut Wires, id: u64, side: usize) {
        self.clear_pipe(wires, id, side);
        if !is_felt(wires, id, side) {
            return;
        }
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        conn.broken = true;
        let this = &mut conn.sides[side];
        this.state = if this.state == State::Connecting { State::Refused } else { State::Reset };
        this.inbox.clear();
        this.inbox_bytes = 0;
        wires.woken.extend(this.read_waker.take());
        wires.woken.extend(this.write_waker.take());
    }

    /// How often each fault was set, and did something.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Cuts both directions between two hosts.
    pub fn cut_both(&self, a: &str, b: &str) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Heals both directions between two hosts.
    pub fn heal_both(&self, a: &str, b: &str) {
        self.heal(a, b);
        self.heal(b, a);
    }

    /// Heals every link.
    pub fn heal_all(&self) {
        let mut wires = self.lock();
        let now = self.0.timers.now();
        wires.links.values_mut().for_each(|link| link.heal(now));
        self.record("net", "heal-all", "");
        self.let_go(&mut wires);
    }

    /// Whether what a side sends is acknowledged: the way back is not cut.
    pub(super) fn is_acked(&self, wires: &mut Wires, id: u64, from: usize) -> bool {
        !self.link_of(wires, id, 1 - from).is_cut()
    }

    /// What has arrived of a side's bytes is acknowledged: there is room again.
    pub(super) fn acknowledge(&self, wires: &mut Wires, id: u64, from: usize) {
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        let pipe = &mut conn.pipes[from];
        if pipe.unacked == 0 {
            return;
        }
        pipe.bytes -= std::mem::take(&mut pipe.unacked);
        pipe.unacked_since = None;
        let waker = conn.sides[from].write_waker.take();
        wires.woken.extend(waker);
    }

    /// Bytes have arrived and the acknowledgement cannot go back. The sender tries for a while.
    pub(super) fn not_acknowledged(&self, wires: &mut Wires, id: u64, from: usize, len: usize) {
        let now = self.0.timers.now();
        let Some(conn) = wires.conns.get_mut(&id) else { return };
        let pipe = &mut conn.pipes[from];
        pipe.unacked += len;
        if pipe.unacked_since.is_none() {
            pipe.unacked_since = Some(now);
            fired(&mut wires.counts, "unacknowledged");
            let net = Arc::downgrade(&self.0);
            self.0.timers.at(now + UNACKED_MAX, move || Network::give_up(&net, id, from, now));
        }
    }

    /// The retries for bytes that wait for an acknowledgement since `since` are over.
    fn give_up(net: &Weak<Shared>, id: u64, from: usize, since: Duration) {
        let Some(net) = net.upgrade().map(Network) else { return };
        let mut wires = net.lock();
        let still = wires.conns.get(&id).is_some_and(|conn| conn.pipes[from].unacked_since == Some(since));
        if still {
            net.count_unacked(&mut wires);
            net.record("net", "unacknowledged", format_args!("c{id}"));
            net.break_off(&mut wires, id, from);
        }
    }

    /// A missing acknowledgement did something: a writer stands still, or a connection ended.
    pub(super) fn count_unacked(&self, wires: &mut Wires) {
        effective(&mut wires.counts, "unacknowledged");
    }

    /// Whether the host was cut off from every one of the others at some moment since then, there or back. With one that it
    /// could reach it may have found its answer.
    pub fn was_cut_off_since(&self, host: &str, from: impl Iterator<Item = String>, since: Duration) -> bool {
        let mut wires = self.lock();
        let host = wires.number(host);
        let is_cut = |link: &Link| link.is_cut() || link.cut_ended.is_some_and(|ended| ended >= since);
        let mut cut_off = true;
        for other in from {
            let other = wires.number(&other);
            let mut links =
                [(host, other), (other, host)].into_iter().filter_map(|link| wires.links.get(&link));
            cut_off &= links.any(is_cut);
        }
        cut_off
    }

    /// The connections that either side still knows.
    pub fn connections(&self) -> Vec<Connection> {
        let wires = self.lock();
        let told = |conn: &Conn| Connection {
            hosts: [0, 1].map(|side: usize| wires.names[conn.sides[side].host.0 as usize].to_string()),
            is_open: [0, 1].map(|side: usize| conn.sides[side].state != State::Closed),
            broken: conn.broken,
        };
        wires.conns.values().map(told).collect()
    }
}
