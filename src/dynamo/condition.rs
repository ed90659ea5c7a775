//! What a conditional write looks at before it is made (DESIGN §5).
//!
//! The coordinator reads max(R, W) replicas, judges the merge of what they hold, and on success overwrites exactly
//! that. Between the read and the write others may write; then both values stand as siblings. It is a condition on
//! what was seen, not compare-and-swap.
//!
//! - `Absent`: no live value. A tombstone is none, and neither is a value that has expired by the coordinator's clock.
//! - `Match`: nothing happened that the reader of the token had not seen, deletions included. A key that was deleted
//!   and written again since is another key to it. What merely expired since was seen: that is no event.
//!
//! A write that other replicas hold and those asked do not is not seen. With R + W > N at least one acknowledged write
//! is: the newest that was acknowledged before the read began.

use super::version::{Record, VersionVector};
use crate::types::Wall;

/// What must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The key has no value.
    Absent,
    /// The key is as the reader with this context saw it.
    Seen(VersionVector),
}

/// The condition does not hold; nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    /// There are values.
    #[error("the key has {}, the write asked for none", counted(*.values))]
    Present {
        /// How many.
        values: usize,
    },
    /// The key was written or deleted since.
    #[error("the key was written or deleted since the context was read")]
    Changed,
}

fn counted(values: usize) -> String {
    if values == 1 { "a value".to_owned() } else { format!("{values} values") }
}

/// Judges what the replicas hold at `now`; what the write then overwrites.
///
/// # Errors
/// When the condition does not hold.
pub fn judge(expected: Expected, found: &Record, now: Wall) -> Result<VersionVector, Unmet> {
    let mut over = found.context().clone();
    match expected {
        Expected::Absent => {
            let values = found.view(now).values.len();
            if values > 0 {
                return Err(Unmet::Present { values });
            }
        }
        Expected::Seen(seen) => {
            if !seen.includes(found.context()) {
                return Err(Unmet::Changed);
            }
            // The token may know writes that the replicas asked do not: they are overwritten too.
            over.join(&seen);
        }
    }
    Ok(over)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::dynamo::version::{Caps, Content, Dot, Overwrite, Write};
    use crate::types::{ActorId, Incarnation, WriteId};

    const NOW: Wall = Wall(1_000);

    fn actor(n: u64) -> ActorId {
        ActorId { incarnation: Incarnation(n), epoch: 1 }
    }

    fn write(record: &mut Record, by: u64, content: Content, expires_at: Option<Wall>) {
        let write = Write { write_id: WriteId(by.into()), content, meta: None, expires_at };
        record.put(Overwrite::Current, actor(by), write, NOW, &Caps::default()).unwrap();
    }

    fn value() -> Content {
        Content::Value(Bytes::from_static(b"v"))
    }

    #[test]
    fn tombstones_and_expired_values_count_as_absent() {
        let mut record = Record::new();
        assert_eq!(judge(Expected::Absent, &record, NOW), Ok(VersionVector::new()));
        write(&mut record, 1, value(), Some(Wall(1_001)));
        assert_eq!(judge(Expected::Absent, &record, NOW), Err(Unmet::Present { values: 1 }));
        let over = judge(Expected::Absent, &record, Wall(1_001)).unwrap();
        assert_eq!(&over, record.context(), "what is absent is overwritten too");
        write(&mut record, 1, Content::Tombstone, None);
        assert!(judge(Expected::Absent, &record, NOW).is_ok());
    }

    #[test]
    fn a_match_fails_when_anything_happened_since() {
        let mut record = Record::new();
        write(&mut record, 1, value(), None);
        let seen = record.context().clone();
        assert_eq!(judge(Expected::Seen(seen.clone()), &record, NOW), Ok(seen.clone()));
        for content in [value(), Content::Tombstone] {
            let mut later = record.clone();
            write(&mut later, 2, content, None);
            assert_eq!(judge(Expected::Seen(seen.clone()), &later, NOW), Err(Unmet::Changed));
        }
    }

    #[test]
    fn replicas_behind_the_token_match_and_the_write_overwrites_what_the_token_saw() {
        let mut record = Record::new();
        write(&mut record, 1, value(), None);
        let behind = record.clone();
        write(&mut record, 2, value(), None);
        let seen = record.context().clone();
        let over = judge(Expected::Seen(seen.clone()), &behind, NOW).unwrap();
        assert_eq!(over, seen);
        assert!(over.covers(Dot { actor: actor(2), counter: 1 }));
    }
}
