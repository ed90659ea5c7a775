//! What a simulator may see of a node beyond its disk, its network and its answers; and where it may damage it.
//!
//! ```text
//!   node code ── point!("hint-durable") ──────▶ Observer::point     a place in the code was reached
//!             ── fact!(Acked { … }) ──────────▶ Observer::fact      something that must hold from here on
//!             ── buggify!("hedge-early") ◀───── Observer::buggify   whether to take a way that is allowed and seldom taken
//!             ── canary!(AckBeforeSync) ◀────── Observer::canary    whether a known mistake shall be made here
//!             ── withheld!(kind) ◀───────────── Observer::withheld  whether requests of this kind have to wait
//! ```
//!
//! In production all of them are nothing: the macros expand to no code, their arguments are not evaluated, and
//! `buggify!`, `canary!` and `withheld!` are the constant `false`. (Buggification: FoundationDB, SIGMOD 2021, section 4.)
//! The `cfg` that chooses stands here and nowhere else.
//!
//! The observer belongs to the thread, because a simulated run has one thread of its own. It must not call back into
//! node code.

use crate::dynamo::version::{Dot, Record};
use crate::storage::Slot;
use crate::types::{Key, Namespace, NodeId, PartitionId, WriteId};

/// Every point that node code names, for triggers of a fault plan. A test holds this list against the sources.
pub const POINTS: &[&str] = &[
    "compaction-begun",
    "copies-given-up",
    "copy-merged",
    "damaged-copy-replaced",
    "damaged-guest-settled",
    "disk-full",
    "dot-made",
    "exchange-differs",
    "exchange-repaired",
    "fence-raised",
    "group-durable",
    "guest-sent",
    "guest-struck",
    "guest-turned-data",
    "handoff-acked",
    "handoff-sent",
    "hedge-timer",
    "hint-timer",
    "incarnation-renewed",
    "layout-adopted",
    "layout-retired",
    "log-latched",
    "names-to-sync",
    "node-drained",
    "node-serving",
    "partition-dirty",
    "partition-let-go",
    "partition-refilled",
    "put-answered",
    "put-forwarded",
    "put-sent",
    "read-mixed",
    "read-repair",
    "reap-agreed",
    "reap-committed",
    "reap-voted",
    "record-fenced",
    "recovery-examined",
    "recovery-segment-named",
    "recovery-tail-cut",
    "scan-page",
    "segment-begun",
    "segment-dead",
    "segment-removed",
    "snapshot-begun",
    "snapshot-named",
    "target-noted",
    "vote-raised",
];

/// Every site at which node code can be made to take a way that is allowed and seldom taken.
pub const SITES: &[&str] =
    &["cache-missed", "group-early", "hedge-early", "hint-early", "hints-full", "shed", "snapshot-early"];

/// A mistake that a node makes when it is told to, to see whether the checks find it. Each is a real one, made by
/// some store before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Canary {
    /// A replica answers for a write before its disk has it.
    AckBeforeSync,
    /// The actor of a local copy goes on counting after a restart, also where the copy lost its end (riak_kv issue 679).
    ActorKept,
    /// A merge keeps the siblings and forgets what they had overwritten.
    ContextDropped,
    /// A replica takes what was read before a round of reaping in which it has voted.
    FenceIgnored,
    /// A fallback drops a guest record once its target has it, without a look at whether it has changed meanwhile.
    StrikeUnseen,
}

impl Canary {
    /// All of them.
    pub const ALL: [Canary; 5] = [
        Canary::AckBeforeSync,
        Canary::ActorKept,
        Canary::ContextDropped,
        Canary::FenceIgnored,
        Canary::StrikeUnseen,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Canary::AckBeforeSync => "ack-before-sync",
            Canary::ActorKept => "actor-kept",
            Canary::ContextDropped => "context-dropped",
            Canary::FenceIgnored => "fence-ignored",
            Canary::StrikeUnseen => "strike-unseen",
        }
    }
}

/// Something that happened in a node, and that its surroundings must bear out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact<'a> {
    /// A node makes a dot. It may still fail to make it durable; it never makes it again.
    Made {
        /// Who.
        node: NodeId,
        /// Of what.
        slot: &'a Slot,
        /// The event.
        dot: Dot,
        /// The copy with it.
        record: &'a Record,
    },
    /// A coordinator answers that a write is applied.
    Acked {
        /// Who coordinated it.
        coordinator: NodeId,
        /// Keyspace.
        namespace: Namespace,
        /// The key.
        key: &'a Key,
        /// The operation.
        write_id: WriteId,
        /// The event that it became.
        dot: Dot,
        /// Copies that were asked for.
        w: usize,
        /// Whether each of them is to be on a disk.
        sync: bool,
    },
    /// A node shows its copy of a key to somebody.
    Shown {
        /// Whose copy.
        node: NodeId,
        /// Of what.
        slot: &'a Slot,
        /// The copy.
        record: &'a Record,
    },
    /// A primary takes away of a key what every member has agreed to.
    Reaped {
        /// Who.
        node: NodeId,
        /// Of what.
        slot: &'a Slot,
        /// What it holds, and all primaries did.
        before: &'a Record,
        /// What is left.
        after: &'a Record,
    },
    /// A node begins to give up its copies of a partition, which are older than what the others have agreed to forget.
    GivenUp {
        /// Who.
        node: NodeId,
        /// Which.
        partition: PartitionId,
    },
    /// A node is to become a primary of a partition.
    Gained {
        /// Who.
        node: NodeId,
        /// Of which.
        partition: PartitionId,
    },
    /// A node begins to remove its copies of a partition that others hold now.
    LetGo {
        /// Who.
        node: NodeId,
        /// Which.
        partition: PartitionId,
        /// Whose it is: each has merged what the node holds.
        primaries: &'a [NodeId],
    },
    /// A guest record goes to others than it was kept for: the layout has changed.
    Retargeted {
        /// Who keeps it.
        node: NodeId,
        /// It.
        slot: &'a Slot,
        /// For whom it is kept no more.
        gone: NodeId,
        /// For whom it is.
        primaries: &'a [NodeId],
    },
    /// A guest record is to go, because this node is a primary now and has it as data.
    TurnedIntoData {
        /// Who.
        node: NodeId,
        /// The guest's.
        slot: &'a Slot,
    },
}

/// Who watches. All methods are called in the node's own tasks.
pub trait Observer {
    /// A named place was reached.
    fn point(&self, name: &'static str);
    /// Something must hold from here on.
    fn fact(&self, fact: &Fact<'_>);
    /// Whether to take the unusual way at this site, this time.
    fn buggify(&self, site: &'static str) -> bool;
    /// Whether to make this mistake.
    fn canary(&self, canary: Canary) -> bool;
    /// Whether requests of this kind, which have arrived whole, wait on before they are looked at: as where the threads for
    /// one class of them hang, and those for another go on (Huang and others, "Gray Failure", HotOS 2017).
    fn withheld(&self, kind: u16) -> bool;
}

#[cfg(madsim)]
mod watched {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::{Canary, Fact, Observer};

    thread_local! {
        static OBSERVER: RefCell<Option<Rc<dyn Observer>>> = const { RefCell::new(None) };
    }

    fn observer() -> Option<Rc<dyn Observer>> {
        // None while the thread ends.
        OBSERVER.try_with(|observer| observer.borrow().clone()).ok().flatten()
    }

    /// Watches this thread's nodes from now on; nobody, with `None`.
    pub fn install(observer: Option<Rc<dyn Observer>>) {
        OBSERVER.with(|slot| *slot.borrow_mut() = observer);
    }

    #[doc(hidden)]
    pub fn point(name: &'static str) {
        if let Some(observer) = observer() {
            observer.point(name);
        }
    }

    #[doc(hidden)]
    pub fn fact(fact: &Fact<'_>) {
        if let Some(observer) = observer() {
            observer.fact(fact);
        }
    }

    #[doc(hidden)]
    pub fn buggify(site: &'static str) -> bool {
        observer().is_some_and(|observer| observer.buggify(site))
    }

    #[doc(hidden)]
    pub fn canary(canary: Canary) -> bool {
        observer().is_some_and(|observer| observer.canary(canary))
    }

    #[doc(hidden)]
    pub fn withheld(kind: u16) -> bool {
        observer().is_some_and(|observer| observer.withheld(kind))
    }
}

#[cfg(madsim)]
pub use watched::{buggify, canary, fact, install, point, withheld};

/// Names a place in node code.
#[cfg(madsim)]
macro_rules! point {
    ($name:literal) => {
        $crate::observe::point($name)
    };
}

/// Names a place in node code.
#[cfg(not(madsim))]
macro_rules! point {
    ($name:literal) => {};
}

/// States a [`Fact`](crate::observe::Fact).
#[cfg(madsim)]
macro_rules! fact {
    ($fact:ident { $($fields:tt)* }) => {
        $crate::observe::fact(&$crate::observe::Fact::$fact { $($fields)* })
    };
}

/// States a [`Fact`](crate::observe::Fact).
#[cfg(not(madsim))]
macro_rules! fact {
    ($fact:ident { $($fields:tt)* }) => {
        // Type-checked, never run: an argument that no longer compiles is seen in both builds.
        if false {
            let _ = $crate::observe::Fact::$fact { $($fields)* };
        }
    };
}

/// Whether to take a way that is allowed and seldom taken.
#[cfg(madsim)]
macro_rules! buggify {
    ($site:literal) => {
        $crate::observe::buggify($site)
    };
}

/// Whether to take a way that is allowed and seldom taken.
#[cfg(not(madsim))]
macro_rules! buggify {
    ($site:literal) => {
        false
    };
}

/// Whether to make a [`Canary`](crate::observe::Canary)'s mistake.
#[cfg(madsim)]
macro_rules! canary {
    ($canary:ident) => {
        $crate::observe::canary($crate::observe::Canary::$canary)
    };
}

/// Whether to make a [`Canary`](crate::observe::Canary)'s mistake.
#[cfg(not(madsim))]
macro_rules! canary {
    ($canary:ident) => {
        false
    };
}

/// Whether requests of this kind have to wait.
#[cfg(madsim)]
macro_rules! withheld {
    ($kind:expr) => {
        $crate::observe::withheld($kind)
    };
}

/// Whether requests of this kind have to wait.
#[cfg(not(madsim))]
macro_rules! withheld {
    ($kind:expr) => {
        false
    };
}
