//! SimClock: a host's own idea of the time.
//!
//! `mono` counts from the start of the host's life and may run fast or slow; `wall` is the simulated date
//! plus a skew. Both faults are set from outside ([`ClockFaults`]) and outlive a restart, as a bad oscillator
//! does. Setting the drift never makes `mono` go back or jump.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringdove::io::{BoxFuture, Clock};

use crate::net::fault::{Counts, effective, fired};
use crate::plan::Why;
use crate::timers::Timers;
use crate::world::Life;

/// The simulated date at which every run starts: 2026-01-01T00:00:00Z.
pub const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// Parts per million: drift is a whole number of these.
const MILLION: i128 = 1_000_000;

#[derive(Default)]
struct State {
    skew_ms: i64,
    drift_ppm: i32,
    /// Where the present drift began: simulated time, and this host's count at that moment.
    since: Duration,
    counted: Duration,
    /// The names of what is wrong with each clock and was not read yet.
    skew_unread: Vec<&'static str>,
    drift_unread: Vec<&'static str>,
    counts: Counts,
}

/// What is wrong with one host's clocks. Clones share it.
#[derive(Clone)]
pub struct ClockFaults {
    timers: Timers,
    state: Arc<Mutex<State>>,
}

impl ClockFaults {
    pub(crate) fn new(timers: Timers) -> ClockFaults {
        ClockFaults { timers, state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The wall clock shows this much more (or less) than the simulated date, from now on.
    pub fn set_wall_skew_ms(&self, skew_ms: i64) {
        self.skew_as(skew_ms, None);
    }

    /// The same, counted also under the name of what it is a part of: as effective when the clock is read.
    pub fn skew_as(&self, skew_ms: i64, why: Option<Why>) {
        let state = &mut *self.lock();
        state.skew_ms = skew_ms;
        state.skew_unread = names("wall-skew", skew_ms != 0, why);
        state.skew_unread.iter().for_each(|name| fired(&mut state.counts, name));
    }

    /// The same of [`ClockFaults::set_mono_drift_ppm`].
    ///
    /// # Panics
    /// As that.
    pub fn drift_as(&self, drift_ppm: i32, why: Option<Why>) {
        self.set_mono_drift_ppm(drift_ppm);
        let state = &mut *self.lock();
        state.drift_unread = names("mono-drift", drift_ppm != 0, why);
        state.drift_unread.iter().for_each(|name| fired(&mut state.counts, name));
    }

    /// How often each fault was set, and read.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// `mono` runs fast (or slow) by this many parts per million, from now on.
    ///
    /// # Panics
    /// For a drift of half the speed and more: a clock that stands or goes back is not a drifting one.
    pub fn set_mono_drift_ppm(&self, drift_ppm: i32) {
        assert!(drift_ppm.unsigned_abs() < 500_000, "drift must stay under half the speed");
        let counted = self.counted();
        let mut state = self.lock();
        state.since = self.timers.now();
        state.counted = counted;
        state.drift_ppm = drift_ppm;
    }

    fn mono_is_read(&self) {
        let state = &mut *self.lock();
        for name in std::mem::take(&mut state.drift_unread) {
            effective(&mut state.counts, name);
        }
    }

    /// The host's oscillator: its count since the start of the run, over all lives.
    fn counted(&self) -> Duration {
        let state = self.lock();
        let real = self.timers.now() - state.since;
        state.counted + scale(real, MILLION + i128::from(state.drift_ppm), MILLION)
    }

    /// How long the count needs for `ahead`, rounded up, at the present drift.
    fn real_for(&self, ahead: Duration) -> Duration {
        let rate = MILLION + i128::from(self.lock().drift_ppm);
        scale(ahead, MILLION, rate) + Duration::from_nanos(1)
    }
}

/// What a fault of a clock is counted as; nothing when it is none.
fn names(name: &'static str, is_one: bool, why: Option<Why>) -> Vec<&'static str> {
    [name].into_iter().chain(why.map(Why::name)).filter(|_| is_one).collect()
}

/// `time` × `times` / `over`, in nanoseconds; no longer than some 580 years.
fn scale(time: Duration, times: i128, over: i128) -> Duration {
    let nanos = i128::try_from(time.as_nanos()).unwrap_or(i128::MAX / MILLION / 2);
    Duration::from_nanos(u64::try_from(nanos.saturating_mul(times) / over).unwrap_or(u64::MAX))
}

/// The clock of one life of one host.
#[derive(Clone)]
pub struct SimClock {
    faults: ClockFaults,
    origin: Duration,
    life: Life,
}

impl SimClock {
    pub(crate) fn new(faults: ClockFaults, life: Life) -> SimClock {
        let origin = faults.counted();
        SimClock { faults, origin, life }
    }
}

impl Clock for SimClock {
    fn mono(&self) -> Duration {
        self.faults.mono_is_read();
        self.faults.counted() - self.origin
    }

    fn wall(&self) -> Duration {
        let skew_ms = {
            let state = &mut *self.faults.lock();
            for name in std::mem::take(&mut state.skew_unread) {
                effective(&mut state.counts, name);
            }
            state.skew_ms
        };
        let skew = Duration::from_millis(skew_ms.unsigned_abs());
        let date = EPOCH + self.faults.timers.now();
        if skew_ms < 0 { date.saturating_sub(skew) } else { date + skew }
    }

    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move {
            loop {
                if !clock.life.is_on() {
                    // Nobody is left to wake. The timer is not even set.
                    std::future::pending::<()>().await;
                }
                let ahead = deadline.saturating_sub(clock.mono());
                if ahead.is_zero() {
                    return;
                }
                // A slower drift may be set meanwhile: look again, and wait for the rest. In steps, so that a
                // deadline of centuries ("never") does not overflow.
                let step = clock.faults.real_for(ahead).min(STEP_MAX);
                clock.faults.timers.sleep(step).await;
            }
        })
    }
}

/// The longest sleep in one piece, simulated.
const STEP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
