//! A value that others can wait on: what `tokio::sync::watch` is, without chance.
//!
//! tokio's watch spreads its waiters over eight lists and picks one by a per-thread generator that depends on
//! what ran in the process before. The order in which waiters wake then differs from run to run, which the
//! simulator sees (seed 7 beside another run of itself). Here they wake in the order in which they came.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A value, and whoever waits for it to change.
#[derive(Debug, Default)]
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Clone> Watched<T> {
    /// Holds this value.
    pub fn new(value: T) -> Watched<T> {
        Watched { value: Mutex::new(value), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value now.
    pub fn get(&self) -> T {
        self.lock().clone()
    }

    /// Sets the value and wakes everybody who waits, in the order in which they came.
    pub fn set(&self, value: T) {
        *self.lock() = value;
        self.changed.notify_waiters();
    }

    /// Changes the value in place; wakes everybody who waits when `change` says that it did.
    pub fn modify(&self, change: impl FnOnce(&mut T) -> bool) {
        let changed = change(&mut self.lock());
        if changed {
            self.changed.notify_waiters();
        }
    }

    /// Waits until `found` gives something for the value. Cancel-safe.
    pub async fn wait_for<R>(&self, mut found: impl FnMut(&T) -> Option<R>) -> R {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look: a change between the two is not missed.
            changed.as_mut().enable();
            let seen = found(&self.lock());
            match seen {
                Some(value) => return value,
                None => changed.await,
            }
        }
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn waiters_wake_in_the_order_in_which_they_came() {
        let number = Arc::new(Watched::new(0));
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for waiter in 0..50 {
            let (number, order) = (number.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let seen = number.wait_for(|number| (*number > 1).then_some(*number)).await;
                order.lock().unwrap().push(waiter);
                seen
            }));
        }
        tokio::task::yield_now().await;
        number.set(1);
        tokio::task::yield_now().await;
        number.set(2);
        for task in tasks {
            assert_eq!(task.await.unwrap(), 2);
        }
        assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
    }
}
