//! Replies: what a client is shown of a record, and how the replicas did, in words and numbers.

use bytes::Bytes;

use super::Node;
use crate::dynamo::get::{ReplicaFailure, ReplicaReport};
use crate::dynamo::put::PutOutcome;
use crate::dynamo::version::{Content, PutDone, Record, Sibling, Token, VersionVector};
use crate::net::message::{
    GetReply, Hidden, HiddenWhy, PutOutcome as Outcome, PutReply, Refusal, RefusalCode, Replicas, Resolve,
    Version,
};
use crate::types::{Key, LayoutRef, Namespace, Wall, WriteId};

/// What a reader is shown of a record.
pub(super) struct Shown {
    pub(super) values: Vec<Version>,
    pub(super) hidden: Vec<Hidden>,
    pub(super) tombstones: u32,
    pub(super) expired: u32,
}

/// The live values of a record at `now`, or the newest of all if it is one, and why the others are not shown.
pub(super) fn shown(record: &Record, resolve: Resolve, now: Wall) -> Shown {
    let view = record.view(now);
    let values = match resolve {
        Resolve::Siblings => view.values,
        Resolve::Lww => {
            let newest = record.newest().filter(|newest| is_live(newest, now));
            newest.into_iter().collect()
        }
    };
    let is_shown = |sibling: &Sibling| values.iter().any(|shown| shown.dot == sibling.dot);
    let hidden = record.siblings().iter().filter(|sibling| !is_shown(sibling)).map(|sibling| {
        let why = if sibling.content == Content::Tombstone {
            HiddenWhy::Tombstone
        } else if sibling.is_expired(now) {
            HiddenWhy::Expired
        } else if resolve == Resolve::Lww {
            HiddenWhy::Older
        } else {
            HiddenWhy::SameWrite
        };
        Hidden { write_id: sibling.write_id, dot: sibling.dot, why }
    });
    Shown {
        hidden: hidden.collect(),
        tombstones: count(view.tombstones),
        expired: count(view.expired),
        values: values.into_iter().map(version_of).collect(),
    }
}

fn is_live(sibling: &Sibling, now: Wall) -> bool {
    sibling.content != Content::Tombstone && !sibling.is_expired(now)
}

fn count(many: usize) -> u32 {
    u32::try_from(many).unwrap_or(u32::MAX)
}

fn version_of(sibling: &Sibling) -> Version {
    let value = match &sibling.content {
        Content::Value(bytes) => bytes.clone(),
        Content::Tombstone => Bytes::new(),
    };
    Version {
        write_id: sibling.write_id,
        dot: sibling.dot,
        value,
        meta: sibling.meta.clone(),
        expires_at: sibling.expires_at,
        written_at: sibling.written_at,
    }
}

pub(super) fn replicas_of(report: &ReplicaReport, layout: LayoutRef) -> Replicas {
    Replicas {
        asked: count(report.asked),
        primaries: report.primaries.clone(),
        fallbacks: report.fallbacks.clone(),
        layout,
    }
}

/// Who failed and how, in words, to go behind a sentence.
pub(super) fn failures(report: &ReplicaReport) -> String {
    let mut words = String::new();
    for (node, why) in &report.failed {
        let why = match why {
            ReplicaFailure::Unreachable => "is not reachable",
            ReplicaFailure::Corrupt => "has a damaged copy",
            ReplicaFailure::Unavailable => "is not available",
            ReplicaFailure::WrongLayout => "goes by another layout",
            ReplicaFailure::HintsFull => "keeps no more guest records",
        };
        words.push_str(&format!("; {node} {why}"));
    }
    words
}

/// The reply of a write of which nothing more is known than what the caller was told.
pub(super) fn unknown(have: u32, need: u32, reason: String) -> PutReply {
    PutReply {
        outcome: Outcome::Unknown { have, need, reason },
        dot: None,
        overwrote: Vec::new(),
        siblings: Vec::new(),
        written: None,
        context: Bytes::new(),
        replicas: Replicas::default(),
    }
}

impl Node {
    fn token<'a>(&'a self, namespace: Namespace, key: &'a Key) -> Token<'a> {
        let descriptor = &self.inner.descriptor;
        Token { secret: &descriptor.token_secret, cluster: descriptor.cluster, namespace, key }
    }

    pub(super) fn seal(
        &self,
        namespace: Namespace,
        key: &Key,
        context: &VersionVector,
    ) -> Result<Bytes, Refusal> {
        let sealed = self.token(namespace, key).seal(context);
        sealed.map(Bytes::from).map_err(|error| Refusal::new(RefusalCode::TooLarge, error.to_string()))
    }

    pub(super) fn unseal(
        &self,
        namespace: Namespace,
        key: &Key,
        token: &[u8],
    ) -> Result<VersionVector, Refusal> {
        let opened = self.token(namespace, key).open(token);
        opened.map_err(|error| Refusal::new(RefusalCode::BadToken, error.to_string()))
    }

    pub(super) fn get_reply(
        &self,
        namespace: Namespace,
        key: &Key,
        record: &Record,
        resolve: Resolve,
        replicas: Replicas,
    ) -> Result<GetReply, Refusal> {
        let Shown { values, hidden, tombstones, expired } = shown(record, resolve, self.inner.wall());
        let context = self.seal(namespace, key, record.context())?;
        Ok(GetReply { values, hidden, tombstones, expired, context, replicas })
    }

    /// The reply of a put that this node coordinated. `applied` is what the reply may reveal of the record.
    pub(super) fn put_reply(
        &self,
        put: &Written<'_>,
        outcome: PutOutcome,
        applied: Option<(Record, PutDone)>,
    ) -> Result<PutReply, Refusal> {
        let (outcome, report) = match outcome {
            PutOutcome::Applied(report) => (Outcome::Applied, report),
            PutOutcome::NotApplied => {
                return Err(Refusal::new(RefusalCode::Unavailable, "nothing was written; try again"));
            }
            PutOutcome::Unknown { have, need, timed_out, replicas } => {
                let why = if timed_out { "time ran out" } else { "too many replicas failed" };
                let reason = format!("{why}{}", failures(&replicas));
                (Outcome::Unknown { have: count(have), need: count(need), reason }, replicas)
            }
        };
        let mut reply =
            PutReply { outcome, replicas: replicas_of(&report, put.layout), ..unknown(0, 0, String::new()) };
        if let Some((record, done)) = applied {
            // A context alone would cover siblings that the client never saw, so it comes with all of them.
            let view = record.view(self.inner.wall());
            let others = view.values.into_iter().filter(|sibling| sibling.write_id != put.write_id);
            reply.siblings = others.map(version_of).collect();
            reply.context = self.seal(put.namespace, put.key, record.context()).unwrap_or_default();
            if put.return_record {
                let written = record.siblings().iter().find(|sibling| sibling.dot == done.dot);
                reply.written = written.map(version_of);
            }
            reply.dot = Some(done.dot);
            reply.overwrote = done.overwrote;
        }
        Ok(reply)
    }
}

/// What the reply of a put needs to know of its request.
pub(super) struct Written<'a> {
    pub(super) namespace: Namespace,
    pub(super) key: &'a Key,
    pub(super) write_id: WriteId,
    pub(super) return_record: bool,
    pub(super) layout: LayoutRef,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::version::{Caps, Overwrite, Write};
    use crate::types::{ActorId, Incarnation};

    const NOW: Wall = Wall(1_000);

    fn write(record: &mut Record, id: u64, at: u64, content: Content, expires_at: Option<Wall>) {
        let actor = ActorId { incarnation: Incarnation(id), epoch: 1 };
        let write = Write { write_id: WriteId(id.into()), content, meta: None, expires_at };
        record.put(Overwrite::Nothing, actor, write, Wall(at), &Caps::default()).unwrap();
    }

    fn value(text: &'static str) -> Content {
        Content::Value(Bytes::from_static(text.as_bytes()))
    }

    fn ids(shown: &Shown) -> (Vec<u128>, Vec<(u128, HiddenWhy)>) {
        let values = shown.values.iter().map(|version| version.write_id.0).collect();
        (values, shown.hidden.iter().map(|hidden| (hidden.write_id.0, hidden.why)).collect())
    }

    #[test]
    fn lww_shows_the_newest_and_names_the_others() {
        let mut record = Record::new();
        write(&mut record, 1, 30, value("newest"), None);
        write(&mut record, 2, 20, value("older"), None);
        write(&mut record, 3, 10, Content::Tombstone, None);
        let all = shown(&record, Resolve::Siblings, NOW);
        assert_eq!(ids(&all), (vec![1, 2], vec![(3, HiddenWhy::Tombstone)]));
        let newest = shown(&record, Resolve::Lww, NOW);
        assert_eq!(ids(&newest), (vec![1], vec![(2, HiddenWhy::Older), (3, HiddenWhy::Tombstone)]));
    }

    #[test]
    fn lww_shows_nothing_when_the_newest_is_deleted_or_expired() {
        for (content, expires_at) in [(Content::Tombstone, None), (value("gone"), Some(Wall(999)))] {
            let mut record = Record::new();
            write(&mut record, 1, 10, value("older"), None);
            write(&mut record, 2, 20, content, expires_at);
            assert!(shown(&record, Resolve::Lww, NOW).values.is_empty());
            assert_eq!(shown(&record, Resolve::Siblings, NOW).values.len(), 1);
        }
    }

    #[test]
    fn one_write_under_two_dots_is_shown_once() {
        let mut record = Record::new();
        let twice = Write { write_id: WriteId(9), content: value("v"), meta: None, expires_at: None };
        for by in [1, 2] {
            let actor = ActorId { incarnation: Incarnation(by), epoch: 1 };
            record.put(Overwrite::Nothing, actor, twice.clone(), Wall(5), &Caps::default()).unwrap();
        }
        assert_eq!(ids(&shown(&record, Resolve::Siblings, NOW)), (vec![9], vec![(9, HiddenWhy::SameWrite)]));
    }
}
