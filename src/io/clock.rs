//! The clock seam: `mono` for timers, `wall` for dates; and the operating system's clocks as its real
//! implementation.
//!
//! The two are never mixed: `mono` may drift by a few percent but never jumps, `wall` may be wrong and may
//! jump. Timers follow `mono` alone. Both are durations, `mono` since an origin of its own, `wall` since the
//! Unix epoch; `types::{Mono, Wall}` give them their types.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::BoxFuture;

/// What time it is on this node, and a way to wait.
pub trait Clock: Send + Sync + 'static {
    /// Since this clock's origin; never goes back.
    fn mono(&self) -> Duration;

    /// Since the Unix epoch (UTC), as this node believes.
    fn wall(&self) -> Duration;

    /// Completes when `mono()` has reached `deadline`, at once if it has. Dropping the future frees the timer.
    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()>;
}

/// The operating system's clocks; `mono` counts from the clock's creation.
#[derive(Debug, Clone, Copy)]
pub struct RealClock {
    origin: Instant,
}

impl RealClock {
    /// A clock whose `mono` starts at zero now.
    #[allow(clippy::disallowed_methods)] // this is the seam that the ban points to
    pub fn new() -> RealClock {
        RealClock { origin: Instant::now() }
    }
}

impl Default for RealClock {
    fn default() -> RealClock {
        RealClock::new()
    }
}

#[allow(clippy::disallowed_methods)] // this is the seam that the bans point to
impl Clock for RealClock {
    fn mono(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wall(&self) -> Duration {
        // A clock set before 1970 reads as 1970: a wrong date, which the rest of the node must bear anyway.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
        let wait = deadline.saturating_sub(self.mono());
        Box::pin(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        })
    }
}
