//! What a sweep must have seen at least once, or it does not test what it seems to.
//!
//! Points and sites of node code (`ringdove::observe`) are probes too; these are what only clients and the nemesis can see.

/// Their names, for a tally that shows also those that were never hit.
pub const PROBES: [&str; 17] = [
    "two siblings met",
    "a hidden sibling was shown",
    "more siblings than a put may make, by a merge",
    "a put was refused for its siblings",
    "put unknown yet applied",
    "put unknown and not applied",
    "a context older than five seconds",
    "a context of another key was refused",
    "a write under a condition met another",
    "a read answered by fewer primaries than asked",
    "a read answered by no primary",
    "a scan that was not whole",
    "a scan passed over what it could not read",
    "a damaged directory was given up and the member replaced",
    "power lost during compaction",
    "power lost during a snapshot",
    "power lost during recovery",
];
