//! Load that comes in a burst: many clients for a moment, all on one key, huge values, or siblings without end.

use serde::{Deserialize, Serialize};

use crate::settings::{Mix, RunSettings};

/// A burst. Its clients are hosts of their own, with names of their own, and are judged like all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// What they do.
    pub kind: LoadKind,
    /// How many.
    pub clients: u32,
    /// Operations of each, one after another, with next to no pause.
    pub operations: u32,
    /// Longest value in bytes.
    pub value_len_max: u32,
}

/// What the clients of a burst do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadKind {
    /// What the others do.
    Crowd,
    /// Reads and writes of one key.
    HotKey,
    /// Values longer than a segment of the log.
    HugeValues,
    /// Writes of one key without a context, past its cap of siblings.
    Siblings,
}

impl Load {
    /// Its name in summaries.
    pub fn name(&self) -> &'static str {
        match self.kind {
            LoadKind::Crowd => "burst",
            LoadKind::HotKey => "hot-key",
            LoadKind::HugeValues => "huge-values",
            LoadKind::Siblings => "many-siblings",
        }
    }

    /// The settings of its clients in a run with these.
    pub fn settings(&self, of_run: &RunSettings) -> RunSettings {
        let mix = match self.kind {
            LoadKind::Crowd => of_run.mix,
            LoadKind::HotKey => Mix { get: 3, put: 3, blind: 1, current: 1, ..Mix::default() },
            LoadKind::HugeValues => Mix { get: 1, put: 3, blind: 1, ..Mix::default() },
            LoadKind::Siblings => Mix { get: 1, blind: 6, ..Mix::default() },
        };
        let one_key = matches!(self.kind, LoadKind::HotKey | LoadKind::Siblings);
        RunSettings {
            operations: self.operations,
            pause_us: 1_000,
            value_len_max: self.value_len_max,
            keys: if one_key { 1 } else { of_run.keys },
            mix,
            ..of_run.clone()
        }
    }
}
