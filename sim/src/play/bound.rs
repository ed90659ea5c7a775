//! How long convergence may take after the heal, from the settings of a run: promise P2's bound.
//!
//! ```text
//!   heal ─▶ every node runs ─▶ who was down is dialled and counts as up ─▶ guests are handed over   ─▶ equal, refilled,
//!           START               REACH + heartbeats + penalties              two rounds, and each       no guest left
//!                                                                           record's way
//!                                                                        ─▶ every pair of primaries compares each partition
//!                                                                           1.5 anti-entropy intervals: a partition's turn
//!                                                                           comes after a share that is drawn from 0.5 to 1.5
//! ```
//! A comparison that fails (a fence was raised meanwhile, a layout has come) comes round again; so does one that a refill
//! waits for. Handoff and comparing go on side by side; they are added up here all the same, since a comparison that began
//! before the handover ended may have missed what came by it.

use std::time::Duration;

use crate::settings::RunSettings;

/// The operator starts a node that has ended; it stops in time, recovers, and opens its ports.
const START: Duration = Duration::from_secs(4);
/// The longest back-off of a peer (3 s), and a dial that hangs (2 s).
const REACH: Duration = Duration::from_secs(5);
/// Heartbeats until a node that is heard again counts as up.
const HEARTBEATS: u32 = 3;

/// What of a run its settings do not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// Records that are kept for others at the heal.
    pub guests: u64,
    /// Records of the fullest node.
    pub records: u64,
    /// Disks were destroyed.
    pub destroyed: bool,
    /// Layout changes that were asked for.
    pub layouts: u32,
    /// How often a node went down, of the one that did so most often: a node that flaps sits a penalty out.
    pub falls: u32,
}

/// Within this time after the heal the primaries are equal, no guest is left, and everybody has refilled.
pub fn bound(settings: &RunSettings, past: Past) -> Duration {
    let ms = Duration::from_millis;
    // There and back with the slow tail of the links, and a sync: records go eight at a time and more.
    let round_trip = Duration::from_micros(20 * settings.delay_us.1 + 2 * settings.sync_us.1);
    let each = round_trip / 8;
    let many = |count: u64| each * u32::try_from(count).unwrap_or(u32::MAX);
    // A peer that went down for the nth time is down for 2^(n-2) intervals, at most 32.
    let penalty = ms(settings.gossip_ms) * (1 << past.falls.saturating_sub(2).min(5));
    let penalty = if past.falls < 2 { Duration::ZERO } else { penalty };
    let compare = ms(settings.anti_entropy_ms) * 3 / 2;
    let mut bound = START + REACH + HEARTBEATS * ms(settings.gossip_ms) + penalty;
    bound += ms(settings.handoff_ms) * 5 / 2 + many(past.guests);
    bound += compare + many(past.records);
    if past.destroyed {
        // What rotted unread only a scrub finds, and the refill that follows compares with everybody anew.
        bound += ms(settings.scrub_ms) * 3 / 2 + 2 * compare;
    }
    // The new primaries are compared with before the old layout retires, and once more for what came meanwhile.
    bound + past.layouts.min(2) * 2 * compare
}
