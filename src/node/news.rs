//! What is worth a line in the log only now and then.
//!
//! Trouble repeats itself: a full node refuses every guest, a peer that is down fails every exchange. The first of a kind is
//! told at once and the next a minute later at the earliest; the metrics count all of them. A kind is a word in the code and a
//! small number (a node, mostly), so what is remembered is bounded by the cluster.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use super::{Inner, lock};
use crate::types::Mono;

/// Between two lines of one kind.
const APART: Duration = Duration::from_secs(60);

/// When what was told last.
#[derive(Debug, Default)]
pub(super) struct News(Mutex<BTreeMap<(&'static str, u64), Mono>>);

impl News {
    /// Whether to tell of this kind of thing about this one now; if so, not again for a while.
    fn is_due(&self, now: Mono, what: &'static str, about: u64) -> bool {
        let mut told = lock(&self.0);
        if told.get(&(what, about)).is_some_and(|last| now.since(*last) < APART) {
            return false;
        }
        told.insert((what, about), now);
        true
    }
}

impl Inner {
    /// Whether a line about this is written now.
    pub(super) fn is_news(&self, what: &'static str, about: u64) -> bool {
        self.news.is_due(self.now(), what, about)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_is_told_once_a_minute_and_holds_back_no_other() {
        let news = News::default();
        let at = |seconds| Mono::from_origin(Duration::from_secs(seconds));
        assert!(news.is_due(at(5), "full", 1));
        assert!(!news.is_due(at(6), "full", 1));
        assert!(news.is_due(at(6), "full", 2));
        assert!(news.is_due(at(6), "failed", 1));
        assert!(!news.is_due(at(64), "full", 1));
        assert!(news.is_due(at(65), "full", 1));
        assert!(!news.is_due(at(66), "full", 1));
    }
}
