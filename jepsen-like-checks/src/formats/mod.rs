//! The formats of histories: readers that stream events, and writers.
//!
//! | format | one event is | extension |
//! |---|---|---|
//! | [`json`] | a JSON object on a line of its own | `.jsonl`, `.json` |
//! | [`edn`] | an EDN map: one a line, or all of them in one vector or list | `.edn`, `.txt` |
//! | [`etcd`] | a line of Jepsen's log of its etcd test | `.log` |
//!
//! A reader holds one event at a time, takes at most [`EVENT_BYTES_MAX`] for it and lets brackets nest
//! [`DEPTH_MAX`] deep: past either it gives an error with line and column, never a panic or an endless allocation.

pub mod edn;
pub mod etcd;
mod fields;
pub mod json;
mod lines;

use crate::build::Builder;
use crate::event::{Event, InputError};
use crate::history::History;

/// The largest event that a reader takes, in bytes. A set of a million integers still fits.
pub const EVENT_BYTES_MAX: usize = 64 << 20;

/// How deep brackets may stand in each other.
pub const DEPTH_MAX: usize = 100;

/// Where something stands in an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Counted from 1.
    pub line: u64,
    /// In bytes from the line's start, counted from 1.
    pub column: u64,
}

/// A stream of events.
pub trait Source {
    /// The next event and where it begins; `None` at the end.
    ///
    /// # Errors
    /// The input is not of the format, or cannot be read. The source must not be used again.
    fn next(&mut self) -> Result<Option<(Place, Event<'_>)>, InputError>;
}

/// Reads a whole history.
///
/// # Errors
/// The input is not of the format, or its events cannot follow each other.
pub fn read(source: &mut impl Source) -> Result<History, InputError> {
    let mut builder = Builder::new();
    while let Some((Place { line, column }, event)) = source.next()? {
        builder.push(&event).map_err(|error| InputError { line, column, kind: error.into() })?;
    }
    Ok(builder.finish())
}

/// What a fuzz target does with a reader: reads events until the end or an error, and writes each in every format.
/// Returns how many there were; never more than `bytes`, since each takes one at least.
pub fn survives(mut source: impl Source, bytes: usize) -> usize {
    let (mut written, mut events) = (Vec::new(), 0);
    while let Ok(Some((_, event))) = source.next() {
        written.clear();
        json::write(&mut written, &event).expect("memory takes everything");
        edn::write(&mut written, &event).expect("memory takes everything");
        // It may well be one that such a line cannot say.
        let _ = etcd::write(&mut written, &event);
        events += 1;
        assert!(events <= bytes, "a reader that gives events out of nothing never ends");
    }
    events
}
