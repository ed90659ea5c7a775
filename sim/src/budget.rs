//! How much a run may destroy: at most W−1 distinct disks between convergences.
//!
//! ```text
//!   destroy n1    (W = 2: spent)    converge: every acknowledged write    destroy n3 …
//!      │  destroy n1 again: the       is on W disks again, by their           │
//!      │  same disk, still within     media ──▶ the budget is whole            │
//! ```
//! An acknowledged write is on W disks. With W−1 of them destroyed one is left, and a read of all N replicas meets it: so
//! within the budget nothing that was acknowledged may be missing, at any moment. Beyond it a loss would say nothing about
//! the product, and a run that goes beyond is not judged more kindly but fails: its plan is wrong.
//!
//! *Destroyed* is whatever takes from a disk what it has synced: wipe, rollback, a file cut short, bits that flipped, a
//! write that went astray, and a sync that lied. A disk counts from the moment on at which it was armed.

use std::collections::BTreeSet;

/// The disks that were destroyed since the last convergence. Pure.
#[derive(Debug, Clone)]
pub struct Budget {
    max: usize,
    spent: BTreeSet<String>,
}

/// A plan wants more destroyed than may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the plan destroys the disk of {node} too, beside {}: more than W-1 = {max} since the last convergence",
    spent.join(", ")
)]
pub struct Exceeded {
    node: String,
    max: usize,
    spent: Vec<String>,
}

impl Budget {
    /// For writes that are on `w` disks when they are acknowledged.
    pub fn of(w: usize) -> Budget {
        Budget { max: w.saturating_sub(1), spent: BTreeSet::new() }
    }

    /// Takes a disk's destruction on the account.
    ///
    /// # Errors
    /// When that is one disk too many. Nothing is taken then.
    pub fn spend(&mut self, node: &str) -> Result<(), Exceeded> {
        if !self.spent.contains(node) && self.spent.len() >= self.max {
            let spent = self.spent.iter().cloned().collect();
            return Err(Exceeded { node: node.to_owned(), max: self.max, spent });
        }
        self.spent.insert(node.to_owned());
        Ok(())
    }

    /// Whether this disk was destroyed since the last convergence.
    pub fn has(&self, node: &str) -> bool {
        self.spent.contains(node)
    }

    /// The disks that were destroyed since the last convergence.
    pub fn spent(&self) -> impl Iterator<Item = &str> {
        self.spent.iter().map(String::as_str)
    }

    /// Every acknowledged write is on W disks again.
    pub fn converged(&mut self) {
        self.spent.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_w_minus_one_distinct_disks_are_destroyed_between_convergences() {
        let mut budget = Budget::of(3);
        for node in ["n1", "n1", "n4", "n1"] {
            assert_eq!(budget.spend(node), Ok(()));
        }
        let exceeded = budget.spend("n2").unwrap_err();
        assert!(exceeded.to_string().contains("n2 too, beside n1, n4: more than W-1 = 2"), "{exceeded}");
        assert!(!budget.has("n2") && budget.has("n4"));
        budget.converged();
        assert_eq!(budget.spend("n2"), Ok(()));
        assert!(Budget::of(1).spend("n1").is_err(), "with W=1 nothing may be destroyed");
    }
}
