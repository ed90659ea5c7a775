//! Gray failures of a host: requests of one class are taken in and wait, those of the other are carried out.
//!
//! Nodes have one connection to each other, and no byte may overtake another in it. So what is held up is not bytes but whole requests,
//! at the host that they have reached, between their arrival and their handling (`withheld!` in the node's `net/serve.rs`): as where
//! the threads for data hang and the one for heartbeats goes on, so that the failure detector sees nothing, or the reverse. Requests
//! of a class that waits are let go in the order in which their waits end, which for requests of one moment is any.

use std::collections::VecDeque;

use ringdove::net::message::{Gossip, Message, Ping};

use crate::plan::GrayClass;

/// What waits at one host.
#[derive(Debug, Default)]
pub(crate) struct Gray {
    failures: VecDeque<Failure>,
}

#[derive(Debug)]
struct Failure {
    waits: GrayClass,
    /// A request of that class has had to wait, and after it one of the other passed.
    has_held: bool,
    has_passed: bool,
}

fn class_of(kind: u16) -> GrayClass {
    if [Gossip::KIND, Ping::KIND].contains(&kind) { GrayClass::Heartbeats } else { GrayClass::Data }
}

impl Gray {
    pub(crate) fn begin(&mut self, waits: GrayClass) {
        self.failures.push_back(Failure { waits, has_held: false, has_passed: false });
    }

    /// Ends the oldest; whether it did anything that only a gray failure does.
    pub(crate) fn end(&mut self) -> Option<(GrayClass, bool)> {
        self.failures.pop_front().map(|failure| (failure.waits, failure.has_passed))
    }

    /// Whether a request of this kind waits.
    pub(crate) fn withholds(&mut self, kind: u16) -> bool {
        let class = class_of(kind);
        let waits = self.failures.iter().any(|failure| failure.waits == class);
        for failure in &mut self.failures {
            failure.has_held |= failure.waits == class;
            failure.has_passed |= failure.has_held && failure.waits != class && !waits;
        }
        waits
    }
}

#[cfg(test)]
mod tests {
    use ringdove::net::message::Store;

    use super::*;

    #[test]
    fn one_class_waits_and_the_other_passes_and_only_both_together_count() {
        let mut gray = Gray::default();
        assert!(!gray.withholds(Store::KIND));
        gray.begin(GrayClass::Data);
        assert!(!gray.withholds(Gossip::KIND), "a heartbeat passes");
        assert_eq!(gray.end(), Some((GrayClass::Data, false)), "nothing had to wait");
        gray.begin(GrayClass::Data);
        assert!(gray.withholds(Store::KIND));
        assert!(!gray.withholds(Gossip::KIND));
        gray.begin(GrayClass::Heartbeats);
        assert!(gray.withholds(Store::KIND) && gray.withholds(Gossip::KIND));
        assert_eq!(gray.end(), Some((GrayClass::Data, true)));
        assert!(!gray.withholds(Store::KIND) && gray.withholds(Ping::KIND));
        assert_eq!(gray.end(), Some((GrayClass::Heartbeats, true)));
        assert_eq!(gray.end(), None);
    }
}
