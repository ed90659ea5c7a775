//! Bytes that may be held at a time: what is taken in is reserved first, and refused when there is no room.
//!
//! Reserving never waits. Who waited for room while it holds some could wait for another who does the same; a refusal
//! costs its sender another try, and nothing was done yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for so many bytes, shared.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    used: AtomicUsize,
}

/// Some of it; given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Room for `max` bytes.
    pub fn new(max: usize) -> Arc<Budget> {
        Arc::new(Budget { max, used: AtomicUsize::new(0) })
    }

    /// Takes room for `bytes`, if there is.
    pub fn reserve(self: &Arc<Budget>, bytes: usize) -> Option<Reserved> {
        let mut reserved = self.nothing();
        reserved.grow(bytes).then_some(reserved)
    }

    /// Room for nothing, that may grow.
    pub fn nothing(self: &Arc<Budget>) -> Reserved {
        Reserved { budget: self.clone(), bytes: 0 }
    }

    /// Bytes that are taken.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }
}

impl Reserved {
    /// Takes so many bytes more; `false` when there is no room, and then it is as it was.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let budget = &self.budget;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= budget.max);
        let taken = budget.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok();
        if taken {
            self.bytes += bytes;
        }
        taken
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_not_taken_and_what_is_dropped_makes_room() {
        let budget = Budget::new(10);
        let seven = budget.reserve(7);
        assert!(seven.is_some());
        assert!(budget.reserve(4).is_none() && budget.reserve(usize::MAX).is_none());
        assert_eq!(budget.used(), 7);
        let three = budget.reserve(3);
        drop(seven);
        assert_eq!((budget.used(), three.is_some()), (3, true));
    }

    #[test]
    fn what_grows_takes_room_and_gives_all_of_it_back() {
        let budget = Budget::new(10);
        let mut room = budget.nothing();
        assert!(room.grow(4) && room.grow(6) && !room.grow(1) && !room.grow(usize::MAX));
        assert_eq!(budget.used(), 10);
        drop(room);
        assert_eq!(budget.used(), 0);
    }
}
