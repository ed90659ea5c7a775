//! What an explanation says in words: a pure function of what the members told.
//!
//! Their copies are merged as replicas would merge them, without the values. What that record holds is what there is of the
//! key; a primary that holds less is behind. Then the first of these reasons that holds is given: it does not answer, its
//! copy is damaged, it refills, somebody keeps the record for it, the next comparison has not come yet.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use crate::dynamo::version::{Content, Record, Sibling, VersionVector};
use crate::net::message::{
    CopyView, ExplainReply, HeldCopy, InspectReply, MemberView, PeerState, SiblingView, WORDS_MAX,
};
use crate::types::{Incarnation, NodeId, Wall, WriteId};

/// After how long, at the most, what goes by itself begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    /// A round of handing over.
    pub(super) handoff: Duration,
    /// A comparison.
    pub(super) anti_entropy: Duration,
}

/// The sentences: what there is, whether the replicas agree, what is odd about each of them.
pub(super) fn words(told: &ExplainReply, waits: Waits) -> Vec<String> {
    let seen = Seen::new(told, waits);
    let mut words = vec![seen.what_there_is()];
    words.extend(seen.siblings());
    words.extend(seen.agreement());
    words.extend(seen.primaries().filter_map(|member| seen.trouble(member)));
    words.extend(seen.guests());
    words.extend(seen.leaf());
    if words.len() > WORDS_MAX {
        words.truncate(WORDS_MAX - 1);
        words.push("… and more".to_owned());
    }
    words
}

struct Seen<'a> {
    told: &'a ExplainReply,
    waits: Waits,
    /// All copies that were told, merged. None when one of them is too large to be told whole.
    merged: Option<Record>,
}

/// Who wrote something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Writer {
    Node(NodeId),
    /// A start of which no node that answered knows.
    Forgotten(Incarnation),
}

/// The parts of a copy that a merge looks at; none when it was not told whole, or is none.
fn record_of(held: &HeldCopy) -> Option<Record> {
    let is_whole =
        held.context.len() == held.context_len as usize && held.siblings.len() == held.siblings_len as usize;
    let sibling = |sibling: &SiblingView| Sibling {
        dot: sibling.dot,
        write_id: sibling.write_id,
        content: sibling.value_len.map_or(Content::Tombstone, |_| Content::Value(Bytes::new())),
        meta: None,
        expires_at: sibling.expires_at,
        written_at: sibling.written_at,
    };
    let context = VersionVector::try_from(held.context.clone()).ok()?;
    let record = Record::from_parts(context, held.siblings.iter().map(sibling).collect()).ok()?;
    is_whole.then_some(record)
}

fn held(copy: &CopyView) -> Option<&HeldCopy> {
    if let CopyView::Held(held) = copy { Some(held) } else { None }
}

impl<'a> Seen<'a> {
    fn new(told: &'a ExplainReply, waits: Waits) -> Seen<'a> {
        let copies = told.members.iter().filter_map(|member| member.told.as_ref().ok());
        let copies = copies.flat_map(|told| [&told.data, &told.guest]).filter_map(held);
        let merged = copies.map(record_of).try_fold(Record::new(), |mut merged, record| {
            merged.merge(&record?);
            Some(merged)
        });
        Seen { told, waits, merged }
    }

    fn primaries(&self) -> impl Iterator<Item = &'a MemberView> {
        self.told.members.iter().filter(|member| member.is_primary)
    }

    /// What the primaries that answered hold.
    fn answers(&self) -> impl Iterator<Item = (NodeId, &'a InspectReply)> {
        self.primaries().filter_map(|member| Some((member.node, member.told.as_ref().ok()?)))
    }

    fn writer(&self, sibling: &Sibling) -> Writer {
        let actor = sibling.dot.actor;
        self.told.writer_of(actor).map_or(Writer::Forgotten(actor.incarnation), Writer::Node)
    }

    fn ago(&self, at: Wall) -> String {
        ago(Duration::from_millis(self.told.now.0.saturating_sub(at.0)))
    }

    fn made(&self, sibling: &Sibling) -> String {
        let writer = match self.writer(sibling) {
            Writer::Node(node) => node.to_string(),
            Writer::Forgotten(_) if self.told.members.iter().any(|member| member.told.is_err()) => {
                "a node that does not answer or has restarted since".to_owned()
            }
            Writer::Forgotten(_) => "a node that has restarted since".to_owned(),
        };
        format!("by {writer}, {}", self.ago(sibling.written_at))
    }

    fn what_there_is(&self) -> String {
        let Some(merged) = &self.merged else {
            return "the record is too large to be told whole: whose copy is newer is not judged here"
                .to_owned();
        };
        let now = self.told.now;
        let is_dead = |sibling: &&Sibling| sibling.content == Content::Tombstone;
        let unknown = self.primaries().any(|member| match &member.told {
            Err(_) => true,
            Ok(told) => matches!(told.data, CopyView::Unreadable(_)),
        });
        let siblings = merged.siblings();
        let newest = siblings.iter().max_by_key(|sibling| sibling.written_at);
        let goes = "it stays until every member agrees that it can go (reaping)";
        match (merged.view(now).values.as_slice(), newest) {
            ([], None) if unknown => "no replica that can be read holds anything under this key".to_owned(),
            ([], None) => {
                "no replica holds anything under this key: it was never written, or all trace of it is gone"
                    .to_owned()
            }
            ([], Some(newest)) if siblings.iter().all(|sibling| is_dead(&sibling)) => {
                format!("the key is deleted, {}: the tombstone reads as absent; {goes}", self.made(newest))
            }
            ([], Some(newest)) => {
                let end = siblings.iter().filter_map(|sibling| sibling.expires_at).max().unwrap_or(now);
                let made = self.made(newest);
                format!("the value, written {made}, expired {}: it reads as absent; {goes}", self.ago(end))
            }
            ([value], _) => {
                let mut one = format!("the key has one value, written {}", self.made(value));
                if let Some(at) = value.expires_at {
                    let left = Duration::from_millis(at.0.saturating_sub(now.0));
                    one.push_str(&format!("; it expires in {}", span(left)));
                }
                one
            }
            (values, _) => format!("the key has {} values, siblings of each other", values.len()),
        }
    }

    /// Why there are siblings.
    fn siblings(&self) -> Option<String> {
        let siblings = self.merged.as_ref()?.siblings();
        if siblings.len() < 2 {
            return None;
        }
        let count = siblings.len();
        let writes: BTreeSet<WriteId> = siblings.iter().map(|sibling| sibling.write_id).collect();
        let writers: BTreeSet<Writer> = siblings.iter().map(|sibling| self.writer(sibling)).collect();
        let (mut dead, mut expired) = (0, 0);
        for sibling in siblings {
            dead += usize::from(sibling.content == Content::Tombstone);
            expired += usize::from(sibling.is_expired(self.told.now));
        }
        const LISTED: usize = 8;
        let listed = siblings.iter().take(LISTED).map(|sibling| {
            let what = if sibling.content == Content::Tombstone { "deletion " } else { "" };
            format!("{what}{}", self.made(sibling))
        });
        let mut listed: Vec<String> = listed.collect();
        if count > LISTED {
            listed.push(format!("{} more", count - LISTED));
        }
        let listed = listed.join("; ");
        if writes.len() == 1 {
            return Some(format!(
                "{} siblings are one write that was sent more than once ({listed}): readers see it once",
                number(count)
            ));
        }
        let why = match (writers.len(), count) {
            // One copy made all of them, one after the other.
            (1, 2) => "both through one node, the later one without the context of the earlier",
            (1, _) => "all through one node, each without the context of those before",
            (_, 2) => "neither saw the other",
            _ => "none saw another",
        };
        let mut words = format!("siblings: {} writes ({listed}): {why}", number(count));
        if dead + expired > 0 {
            words.push_str("; what is deleted or expired is not shown to readers, and stays beside the rest");
        }
        Some(words)
    }

    /// The primaries' readable copies by what they are: none, or a version.
    fn versions(&self) -> Vec<Option<u64>> {
        let version = |(_, told): (NodeId, &InspectReply)| match &told.data {
            CopyView::Absent => Some(None),
            CopyView::Held(held) => Some(Some(held.version_hash)),
            CopyView::Unreadable(_) => None,
        };
        self.answers().filter_map(version).collect()
    }

    fn agreement(&self) -> Option<String> {
        let versions = self.versions();
        let (all, same) = (self.primaries().count(), versions.len());
        let first = versions.first()?;
        // A guest may hold what all of them lack.
        if self.merged.is_some() && self.answers().any(|(_, told)| self.lack(&told.data).is_some()) {
            return None;
        }
        if versions.iter().any(|version| version != first) {
            let broken = "replicas hold different contents under one event: this must never be, report it";
            return self.merged.is_some().then(|| broken.to_owned());
        }
        Some(match same == all {
            true if all == 1 => "the only replica was read".to_owned(),
            true => format!("all {all} replicas agree"),
            false if same == 1 => format!("one of {all} replicas could be read"),
            false => format!("the {same} of {all} replicas that could be read agree"),
        })
    }

    /// What a copy lacks of all there is.
    fn lack(&self, copy: &CopyView) -> Option<String> {
        let held = match copy {
            CopyView::Unreadable(_) => return None,
            CopyView::Absent => None,
            CopyView::Held(held) => Some(held),
        };
        let Some(merged) = &self.merged else {
            // Whose is newer is not known; that it differs from the first is.
            let first = self.versions().into_iter().next()?;
            return (held.map(|held| held.version_hash) != first).then(|| "holds another version".to_owned());
        };
        let Some(record) = held.and_then(record_of) else {
            return (!merged.is_empty()).then(|| "has no copy of the key".to_owned());
        };
        if record == *merged {
            return None;
        }
        let lacked: Vec<&Sibling> = merged
            .siblings()
            .iter()
            .filter(|sibling| !record.siblings().iter().any(|other| other.dot == sibling.dot))
            .collect();
        let kept = record
            .siblings()
            .iter()
            .filter(|sibling| !merged.siblings().iter().any(|other| other.dot == sibling.dot));
        Some(match (lacked.as_slice(), kept.count()) {
            ([], 0) => "has the same values and has not heard of all that they overwrote".to_owned(),
            ([], 1) => "still has a value that was overwritten".to_owned(),
            ([], many) => format!("still has {many} values that were overwritten"),
            ([one], _) if one.content == Content::Tombstone => {
                format!("lacks the deletion {}", self.made(one))
            }
            ([one], _) => format!("lacks the write {}", self.made(one)),
            (many, _) => format!("lacks {} writes", number(many.len())),
        })
    }

    /// Who keeps the record for a node: as a guest, or noted beside its own copy.
    fn kept_for(&self, node: NodeId) -> Option<String> {
        let keeps = |copy: &CopyView| held(copy).is_some_and(|held| held.owed_to.contains(&node));
        let (mut guests, mut notes) = (Vec::new(), Vec::new());
        for member in &self.told.members {
            if let Ok(told) = &member.told {
                guests.extend(keeps(&told.guest).then_some(member.node));
                notes.extend(keeps(&told.data).then_some(member.node));
            }
        }
        let verb = |nodes: &[NodeId], one: &str, many: &str, rest: &str| {
            let verb = if nodes.len() == 1 { one } else { many };
            (!nodes.is_empty()).then(|| format!("{} {verb} {rest}", list(nodes)))
        };
        let guests = verb(&guests, "keeps", "keep", "a guest for it");
        let notes = verb(&notes, "has", "have", "noted that it lacks the record");
        let both: Vec<String> = [guests, notes].into_iter().flatten().collect();
        (!both.is_empty()).then(|| both.join(", "))
    }

    /// What is wrong with a primary's copy, and what will be done about it.
    fn trouble(&self, member: &MemberView) -> Option<String> {
        let (node, partition) = (member.node, self.told.partition.0);
        let (handoff, comparison) = (span(self.waits.handoff), span(self.waits.anti_entropy));
        let kept = self.kept_for(node);
        let told = match &member.told {
            Ok(told) => told,
            Err(why) => {
                let heard = match member.heard_ms_ago {
                    u64::MAX => "never heard".to_owned(),
                    ms => format!("last heard {}", ago(Duration::from_millis(ms))),
                };
                let state = match member.state {
                    PeerState::Up => format!("{node} does not answer ({why})"),
                    PeerState::Unreachable => format!("{node} cannot be connected to, {heard}"),
                    PeerState::Down(_) => format!("{node} is down, {heard}"),
                    PeerState::Damped => format!("{node} comes and goes, {heard}"),
                };
                let then = kept
                    .map_or("what it lacks it gets by comparing when it is back".to_owned(), |kept| {
                        format!("{kept}, which is handed over when it is back")
                    });
                return Some(format!("{state}: what it holds is not known; {then}"));
            }
        };
        if let CopyView::Unreadable(why) = &told.data {
            return Some(format!(
                "{node}: its copy is damaged ({why}): it is never served, and is written over from the other replicas \
                 within {comparison}, or when the key is read"
            ));
        }
        let refills = format!("it refills partition {partition}");
        let Some(lack) = self.lack(&told.data) else {
            return (!told.refilled).then(|| {
                format!(
                    "{node} has what the others have, but {refills} and counts in no strict read until it has compared \
                     all of it with every other primary"
                )
            });
        };
        let then = if !told.refilled {
            let kept = kept.map(|kept| format!("; {kept}")).unwrap_or_default();
            format!("{refills}, and has it when it has compared all of it with every other primary{kept}")
        } else if let Some(kept) = kept {
            format!("{kept}, which is handed over within {handoff} when all is well")
        } else {
            format!("a comparison brings it within {comparison}, or the next read of the key at once")
        };
        Some(format!("{node} is behind, it {lack}: {then}"))
    }

    /// Guests that are still there though nobody waits for them, and such as cannot be read.
    fn guests(&self) -> Vec<String> {
        let mut words = Vec::new();
        for member in &self.told.members {
            let Ok(told) = &member.told else { continue };
            let node = member.node;
            match &told.guest {
                CopyView::Absent => {}
                CopyView::Unreadable(why) => {
                    words.push(format!("{node}: its guest record is damaged ({why})"));
                }
                CopyView::Held(guest) => {
                    let has_it = |target: &&NodeId| {
                        let mut answers = self.answers();
                        answers.any(|(primary, told)| primary == **target && self.lack(&told.data).is_none())
                    };
                    let done: Vec<NodeId> = guest.owed_to.iter().filter(has_it).copied().collect();
                    if !done.is_empty() {
                        let handoff = span(self.waits.handoff);
                        let (them, has) = (list(&done), if done.len() == 1 { "has" } else { "have" });
                        words.push(format!(
                            "{node} still keeps a guest for {them}, who {has} it already: it goes within {handoff}"
                        ));
                    }
                }
            }
        }
        words
    }

    /// Something else may differ in the same leaf.
    fn leaf(&self) -> Option<String> {
        let leaves: BTreeSet<(u32, u64)> =
            self.answers().map(|(_, told)| (told.bits, told.leaf_hash)).collect();
        let one_size = leaves.iter().map(|(bits, _)| bits).collect::<BTreeSet<_>>().len() == 1;
        let versions: BTreeSet<Option<u64>> = self.versions().into_iter().collect();
        (leaves.len() > 1 && one_size && versions.len() == 1).then(|| {
            let comparison = span(self.waits.anti_entropy);
            format!("another key of the same Merkle leaf differs: a comparison finds it within {comparison}")
        })
    }
}

/// Small numbers as words.
fn number(number: usize) -> String {
    const WORDS: [&str; 10] = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    WORDS.get(number).map_or_else(|| number.to_string(), |word| (*word).to_owned())
}

/// `n1, n2 and n3`.
fn list(nodes: &[NodeId]) -> String {
    match nodes {
        [] => String::new(),
        [one] => one.to_string(),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(ToString::to_string).collect();
            format!("{} and {last}", first.join(", "))
        }
    }
}

fn ago(duration: Duration) -> String {
    if duration < Duration::from_secs(1) { "just now".to_owned() } else { format!("{} ago", span(duration)) }
}

/// A time in its largest unit.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
