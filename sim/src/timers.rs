//! Everything that waits, in one ordered queue with one task behind it.
//!
//! madsim's own timers cannot be taken back: a `Sleep` that is dropped or polled again leaves its entry in
//! the runtime's queue until the deadline passes (61 MB a million messages in one select loop). Here a timer
//! is an entry in an ordered map, and giving it up removes the entry. One driver task sleeps for all of them,
//! so that the number of sleeping tasks, and with it the schedule, does not hang on how much is waiting.
//!
//! Resolution. `madsim::time::sleep` and `sleep_until` wait at least 1 ms. `Sleep::reset` sets the deadline
//! with no such floor, so the driver makes a `Sleep` and resets it before its first poll. What is left is
//! madsim's step: 50 ns when time moves to a timer, 50–100 ns for each poll of any task. Two timers a
//! microsecond apart fire apart.
//!
//! Order: by deadline, then by the order in which they were made. The tasks that they wake run in an order
//! that madsim draws from its seed.
//!
//! The driver arms a new `Sleep` only for a deadline before all that are armed, so the entries that it leaves
//! behind in madsim's queue are few: each is earlier than all the ones before it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use madsim::time::TimeHandle;

/// Names one pending timer. Never reused within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerId {
    deadline: Duration,
    seq: u64,
}

enum Action {
    Wake(Waker),
    Run(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct Queue {
    pending: BTreeMap<TimerId, Action>,
    next_seq: u64,
    /// Deadlines of the driver's sleeps that madsim still holds.
    armed: BTreeSet<Duration>,
    driver: Option<Waker>,
    ended: bool,
}

/// The timers of one simulation; clones share them. Times are simulated time since the start of the run.
#[derive(Clone)]
pub struct Timers {
    time: TimeHandle,
    queue: Arc<Mutex<Queue>>,
}

impl Timers {
    /// Timers on the time of the runtime that is running; nothing fires until [`Timers::drive`] is polled.
    pub fn new() -> Timers {
        Timers { time: TimeHandle::current(), queue: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Simulated time since the start of the run.
    pub fn now(&self) -> Duration {
        self.time.elapsed()
    }

    /// Runs `action` in the driver's task when `deadline` has come. It must not block; it may set timers.
    pub fn at(&self, deadline: Duration, action: impl FnOnce() + Send + 'static) -> TimerId {
        self.add(deadline, Action::Run(Box::new(action)))
    }

    /// As [`Timers::at`], `delay` from now.
    pub fn after(&self, delay: Duration, action: impl FnOnce() + Send + 'static) -> TimerId {
        self.at(self.now() + delay, action)
    }

    /// Gives a timer up and frees what it holds. Nothing happens when it has fired.
    pub fn cancel(&self, id: TimerId) {
        let action = self.lock().pending.remove(&id);
        drop(action); // after the lock: dropping it may run other destructors
    }

    /// How many timers are waiting.
    pub fn pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// Completes when `deadline` has come, at once if it has. Dropping it frees the timer.
    pub fn sleep_until(&self, deadline: Duration) -> Sleep {
        Sleep { timers: self.clone(), deadline, id: None }
    }

    /// Completes after `delay`. Dropping it frees the timer.
    pub fn sleep(&self, delay: Duration) -> Sleep {
        self.sleep_until(self.now() + delay)
    }

    fn add(&self, deadline: Duration, action: Action) -> TimerId {
        let mut queue = self.lock();
        let id = TimerId { deadline, seq: queue.next_seq };
        queue.next_seq += 1;
        if queue.ended {
            drop(queue); // the action is dropped without the lock
            return id;
        }
        queue.pending.insert(id, action);
        let driver = if queue.pending.first_key_value().is_some_and(|(first, _)| *first == id) {
            queue.driver.take()
        } else {
            None
        };
        drop(queue);
        if let Some(driver) = driver {
            driver.wake();
        }
        id
    }

    /// Fires timers until [`Timers::end`]. One task of the run polls this.
    pub async fn drive(self) {
        poll_fn(|cx| self.poll_drive(cx)).await;
    }

    fn poll_drive(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = self.now();
            let mut queue = self.lock();
            if queue.ended {
                return Poll::Ready(());
            }
            queue.driver = Some(cx.waker().clone());
            queue.armed = queue.armed.split_off(&(now + Duration::from_nanos(1)));
            let Some((first, _)) = queue.pending.first_key_value() else {
                return Poll::Pending;
            };
            let deadline = first.deadline;
            if deadline <= now {
                let action = queue.pending.pop_first().map(|(_, action)| action);
                drop(queue);
                // Without the lock: a woken task is only put in line, but a call sets timers of its own.
                match action {
                    Some(Action::Wake(waker)) => waker.wake(),
                    Some(Action::Run(run)) => run(),
                    None => {}
                }
                continue;
            }
            if queue.armed.first().is_some_and(|armed| *armed <= deadline) {
                return Poll::Pending;
            }
            queue.armed.insert(deadline);
            drop(queue);
            let instant = self.time.now_instant() + (deadline - now);
            let mut sleep = pin!(self.time.sleep_until(instant));
            sleep.as_mut().reset(instant); // lifts the floor of 1 ms
            if sleep.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Ends the driver and frees every timer; later ones are dropped at once. For the end of a run.
    pub fn end(&self) {
        let mut queue = self.lock();
        queue.ended = true;
        let pending = std::mem::take(&mut queue.pending);
        let driver = queue.driver.take();
        drop(queue);
        drop(pending);
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl Default for Timers {
    fn default() -> Timers {
        Timers::new()
    }
}

/// Waits for a deadline; made by [`Timers::sleep_until`].
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    timers: Timers,
    deadline: Duration,
    id: Option<TimerId>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.timers.now() >= self.deadline {
            return Poll::Ready(());
        }
        // Polled again, perhaps by another task: the entry keeps its place in the order, with the new waker.
        if let Some(id) = self.id
            && let Some(action) = self.timers.lock().pending.get_mut(&id)
        {
            if !matches!(action, Action::Wake(waker) if waker.will_wake(cx.waker())) {
                *action = Action::Wake(cx.waker().clone());
            }
            return Poll::Pending;
        }
        self.id = Some(self.timers.add(self.deadline, Action::Wake(cx.waker().clone())));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.timers.cancel(id);
        }
    }
}
