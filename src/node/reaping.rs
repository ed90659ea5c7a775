//! Rounds of reaping: this node leads those of the partitions of which it is the first primary that is up, and votes in those
//! of others. Why a round is as it is: `dynamo::reaping`.
//!
//! A leader begins a round only while every member is up by its view: one that is away would make it fail, and a fence that is
//! raised costs whoever is sending a record at that moment one more message. What was refused is asked again in the next round.
//!
//! The bad orders
//! - The leader dies between the vote and the commit, or some members never hear of it: the key stays there, is given back to
//!   those that let it go, and goes in a later round. Fences are raised, which harms nothing.
//! - A commit comes an hour late: it takes away only what still is exactly the version that all agreed to.
//! - A write comes between vote and commit: the version is another one, and stays.
//! - A layout comes between vote and commit, with a member that has no vote and old copies: a round ends with the layouts under
//!   which it began, and a node without a vote gives up what others have voted on before it gives anybody anything (`fences`).

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Mutex;

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use rand::RngExt;

use super::fences::fences_of;
use super::metrics::Look;
use super::replica::storage_refusal;
use super::{Inner, Node, lock};
use crate::dynamo::reaping::{Against, Ballot, Fences, KeyVote, reapable, vote};
use crate::net::link::CallError;
use crate::net::message::{
    Commit, CommitReply, DROPPED_MAX, REAP_AGAINST_MAX, REAP_ROUNDS_MAX, ReapKey, ReapRound, ReapingReply,
    Refusal, RefusalCode, Vote, VoteReply,
};
use crate::storage::{Change, Durability, Entry, LogPosition, PartitionState, Slot, Table};
use crate::types::{Key, Mono, Namespace, NodeId, PartitionId};

/// Keys of a round.
const KEYS_MAX: usize = 1024;
/// Keys judged at once.
const AT_ONCE: usize = 16;

/// What came of the rounds that this node has led.
#[derive(Default)]
pub(super) struct ReapLog {
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    rounds: u64,
    keys: u64,
    agreed: u64,
    against: BTreeMap<(NodeId, Against), u64>,
    last: VecDeque<(Mono, ReapRound)>,
}

impl Node {
    /// How far this node is with forgetting what was deleted. Visits every partition.
    pub fn reaping(&self) -> ReapingReply {
        let inner = &self.inner;
        inner.metrics.looks(Look::Reaping).one();
        let (now, told) = (inner.now(), lock(&inner.reap_log.told));
        let last = told.last.iter().map(|(ended, round)| {
            let ago_ms = u64::try_from(now.since(*ended).as_millis()).unwrap_or(u64::MAX);
            ReapRound { ago_ms, ..round.clone() }
        });
        ReapingReply {
            reapable: inner.store.reapable_len() as u64,
            grace_ms: u64::try_from(inner.config.reap_grace.as_millis()).unwrap_or(u64::MAX),
            away: inner.away(),
            rounds: told.rounds,
            keys: told.keys,
            agreed: told.agreed,
            against: against(&told.against),
            last: last.collect(),
        }
    }
}

fn against(counts: &BTreeMap<(NodeId, Against), u64>) -> Vec<(NodeId, Against, u64)> {
    counts.iter().take(REAP_AGAINST_MAX).map(|((node, why), keys)| (*node, *why, *keys)).collect()
}

impl Inner {
    /// Members that no round can do without and that are not up.
    fn away(&self) -> Vec<NodeId> {
        let (members, down) = (self.others(), self.down());
        members.into_iter().filter(|node| down.contains(node)).collect()
    }

    /// Compares fences with members that are heard of for the first time, and leads rounds.
    pub(super) async fn reap(&self) -> Infallible {
        let mut after: BTreeMap<PartitionId, (Namespace, Key)> = BTreeMap::new();
        let mut next = self.now();
        loop {
            // Fences first and soon: a copy that is too old should not be shown for long. Not at once: where a whole cluster
            // starts, the others do not listen yet, and would be taken for down.
            let pause = self.config.detector.interval.min(self.config.reap_interval);
            let pause = pause.mul_f64(lock(&self.rng).random_range(0.75..1.25));
            self.io.clock.sleep_until((self.now() + pause).since_origin()).await;
            self.compare_fences().await;
            if self.now() < next {
                continue;
            }
            next = self.now() + self.config.reap_interval.mul_f64(lock(&self.rng).random_range(0.75..1.0));
            if self.store.reapable_len() == 0 {
                continue;
            }
            let (rounds, agreed) = (self.metrics.reap_rounds.get(), self.metrics.reap_agreed.get());
            for partition in self.descriptor.partitions.partitions() {
                if !self.leads(partition) {
                    continue;
                }
                if let Err(why) = Box::pin(self.reap_partition(partition, &mut after)).await {
                    self.metrics.reap_failures.one();
                    tracing::debug!(%partition, %why, "a round of reaping ended early");
                }
            }
            let keys = self.metrics.reap_agreed.get() - agreed;
            if keys > 0 {
                let rounds = self.metrics.reap_rounds.get() - rounds;
                tracing::info!(rounds, keys, "all members agreed to forget something of these keys");
            }
        }
    }

    /// Whether this node is the first primary that is up, of the only layout, and every member is up.
    fn leads(&self, partition: PartitionId) -> bool {
        let list = self.preference_of(partition);
        let down = self.down();
        let first = list.primaries().find(|node| !down.contains(node));
        list.layouts.len() == 1
            && first == Some(self.id)
            && self.away().is_empty()
            && self.is_settled(partition)
    }

    /// Leads one round about the next keys of a partition that may go.
    async fn reap_partition(
        &self,
        partition: PartitionId,
        after: &mut BTreeMap<PartitionId, (Namespace, Key)>,
    ) -> Result<(), String> {
        let words = |error| storage_refusal(&error).message;
        let epoch = self.epoch.get();
        let page = self.store.reapable(partition, after.get(&partition), KEYS_MAX);
        match page.last().filter(|_| page.len() == KEYS_MAX) {
            Some(last) => drop(after.insert(partition, last.clone())),
            None => drop(after.remove(&partition)),
        }
        let mut keys = Vec::new();
        let mut judging = stream::iter(page)
            .map(|(namespace, key)| self.candidate(partition, namespace, key))
            .buffered(AT_ONCE);
        while let Some(candidate) = judging.next().await {
            keys.extend(candidate);
        }
        if keys.is_empty() {
            return Ok(());
        }
        point!("reap-voted");
        let fence = self.store.partition_state(partition).0.fence + 1;
        let others = self.others();
        let members = others.iter().copied().chain([self.id]);
        let mut ballot = Ballot::new(keys.len(), members);
        let vote = Vote { partition, fence, keys };
        let own = self.answer_vote(&vote).await.map_err(|refusal| refusal.message)?;
        ballot.votes(self.id, &own.votes);
        let mut highest = Fences::default();
        let mut asking: FuturesUnordered<_> = others
            .iter()
            .map(|other| {
                let vote = &vote;
                async move { (*other, self.call::<VoteReply>(*other, vote, self.errand()).await) }
            })
            .collect();
        while let Some((other, reply)) = asking.next().await {
            match reply {
                Ok(reply) if reply.votes.is_empty() => {
                    ballot.refused(other, Against::Fence);
                    highest = highest.join(reply.fences);
                }
                Ok(reply) => {
                    self.heard_vote(partition, other, fence);
                    ballot.votes(other, &reply.votes);
                }
                Err(_) => ballot.refused(other, Against::Silent),
            }
        }
        drop(asking);
        if self.epoch.get() != epoch {
            // Who votes was decided under the layouts of before.
            return Err("another layout has come meanwhile".to_owned());
        }
        let agreed = ballot.agreed();
        self.tell_round(&vote, agreed.len(), &ballot);
        // The next round begins above whoever stands higher.
        self.raise_fence(partition, highest).await.map_err(words)?;
        if agreed.is_empty() {
            return Ok(());
        }
        point!("reap-agreed");
        let mut keys: Vec<Option<ReapKey>> = vote.keys.into_iter().map(Some).collect();
        let keys = agreed.into_iter().filter_map(|at| keys[at].take()).collect();
        let commit = Commit { partition, fence, keys };
        self.answer_commit(&commit).await.map_err(|refusal| refusal.message)?;
        let mut telling: FuturesUnordered<_> = others
            .iter()
            .map(|other| {
                let commit = &commit;
                async move { self.call::<CommitReply>(*other, commit, self.errand()).await }
            })
            .collect();
        let mut failed: Result<(), CallError> = Ok(());
        while let Some(told) = telling.next().await {
            failed = failed.and(told.map(|_| ()));
        }
        // Who did not hear of it gives its copy back to the others, and a later round is about it again.
        failed.map_err(|error| error.to_string())
    }

    /// The key as a round would be about it, if something of it may go.
    async fn candidate(&self, partition: PartitionId, namespace: Namespace, key: Key) -> Option<ReapKey> {
        let slot = Slot { table: Table::Data, partition, namespace, key };
        let (entry, version_hash) = self.store.read_with_hash(&slot).await.ok()??;
        let mut drop = reapable(&entry.copy.record, self.wall(), self.config.reap_grace)?;
        drop.truncate(DROPPED_MAX);
        Some(ReapKey { namespace, key: slot.key, version_hash, drop })
    }

    fn tell_round(&self, vote: &Vote, agreed: usize, ballot: &Ballot) {
        let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
        let round = ReapRound {
            partition: vote.partition,
            fence: vote.fence,
            ago_ms: 0,
            keys: count(vote.keys.len()),
            agreed: count(agreed),
            against: against(ballot.against()),
        };
        tracing::debug!(partition = %round.partition, fence = round.fence, keys = round.keys, agreed, "voted");
        self.metrics.reap_rounds.one();
        self.metrics.reap_keys.add(u64::from(round.keys));
        self.metrics.reap_agreed.add(u64::from(round.agreed));
        let told = &mut *lock(&self.reap_log.told);
        told.rounds += 1;
        told.keys += u64::from(round.keys);
        told.agreed += u64::from(round.agreed);
        for (why, keys) in ballot.against() {
            *told.against.entry(*why).or_default() += keys;
        }
        told.last.push_front((self.now(), round));
        told.last.truncate(REAP_ROUNDS_MAX);
    }

    fn check_round(&self, partition: PartitionId, keys: &[ReapKey]) -> Result<(), Refusal> {
        let q = self.descriptor.partitions;
        let belongs = |key: &ReapKey| q.partition_of(key.namespace, &key.key) == partition;
        if partition.0 < q.get() && keys.iter().all(belongs) {
            return Ok(());
        }
        let message = format!("the round is not about keys of one partition: {partition}");
        Err(Refusal::new(RefusalCode::BadRequest, message))
    }

    /// Votes: raises the fence, then looks at each key.
    pub(super) async fn answer_vote(&self, asked: &Vote) -> Result<VoteReply, Refusal> {
        let disk = |error| storage_refusal(&error);
        self.check_round(asked.partition, &asked.keys)?;
        if !self.is_settled(asked.partition) {
            // Perhaps this disk has forgotten a vote.
            let fences = self.fences(asked.partition).await.map_err(disk)?;
            return Ok(VoteReply { fences, votes: Vec::new() });
        }
        let (fences, raised_at) = self
            .store
            .update_partition(asked.partition, |state| {
                // What is being given up is not voted on: the fence shows how far that is.
                if state.fence >= asked.fence || self.is_stale_at(asked.partition, state.fence) {
                    return (Change::Keep, Err(fences_of(state)));
                }
                state.fence = asked.fence;
                (Change::Write, Ok(fences_of(state)))
            })
            .await
            .map_err(disk)?;
        let fences = match fences {
            Ok(fences) => fences,
            Err(fences) => return Ok(VoteReply { fences, votes: Vec::new() }),
        };
        // Before the look: what comes in from here on comes with this fence.
        self.store.wait_synced(raised_at).await.map_err(disk)?;
        point!("vote-raised");
        let is_primary = self.preference_of(asked.partition).is_primary(self.id);
        let (mut votes, mut until) = (Vec::new(), raised_at);
        let judge = asked.keys.iter().cloned().map(|key| self.judge_key(asked.partition, key, is_primary));
        let mut judging = stream::iter(judge).buffered(AT_ONCE);
        while let Some(judged) = judging.next().await {
            let (vote, position) = judged?;
            votes.push(vote);
            until = until.max(position);
        }
        // Neither what is held nor that nothing is held may be taken back by a crash.
        self.store.wait_synced(until).await.map_err(disk)?;
        self.metrics.reap_votes.one();
        Ok(VoteReply { fences, votes })
    }

    /// This node's vote on one key, and the position it depends on.
    async fn judge_key(
        &self,
        partition: PartitionId,
        key: ReapKey,
        is_primary: bool,
    ) -> Result<(KeyVote, LogPosition), Refusal> {
        let slot = |table| Slot { table, partition, namespace: key.namespace, key: key.key.clone() };
        let (guest, until) = self.store.has(&slot(Table::Guest));
        if guest {
            return Ok((KeyVote::Guest, until));
        }
        if !is_primary {
            let (held, until) = self.store.has(&slot(Table::Data));
            return Ok((if held { KeyVote::Differs } else { KeyVote::Yes }, until));
        }
        let (now, grace) = (self.wall(), self.config.reap_grace);
        let look = |entry: &mut Entry| {
            (Change::Keep, vote(&entry.copy.record, key.version_hash, &key.drop, now, grace))
        };
        match self.store.update(&slot(Table::Data), Durability::Sync, look).await {
            Ok((vote, position)) => Ok((vote, position.max(until))),
            Err(crate::storage::StorageError::Corrupt(_)) => Ok((KeyVote::Unreadable, until)),
            Err(error) => Err(storage_refusal(&error)),
        }
    }

    /// Takes away what all have agreed to.
    pub(super) async fn answer_commit(&self, asked: &Commit) -> Result<CommitReply, Refusal> {
        let disk = |error| storage_refusal(&error);
        self.check_round(asked.partition, &asked.keys)?;
        self.catch_up(asked.partition, Fences { raised: asked.fence, committed: asked.fence })
            .await
            .map_err(disk)?;
        // First: a copy that is cut is never shown as of a node that knows of no commit.
        self.store
            .update_partition(asked.partition, |state| {
                if state.committed >= asked.fence {
                    return (Change::Keep, ());
                }
                state.committed = asked.fence;
                (Change::Write, ())
            })
            .await
            .map_err(disk)?;
        let mut reaped = 0;
        if self.preference_of(asked.partition).is_primary(self.id) {
            let reap = asked.keys.iter().cloned().map(|key| self.reap_key(asked.partition, key));
            let mut reaping = stream::iter(reap).buffer_unordered(AT_ONCE);
            while let Some(done) = reaping.next().await {
                reaped += u32::from(done?);
            }
        }
        // All of it, the note and what was taken away behind it.
        let (_, position) = self.store.partition_state(asked.partition);
        self.store.wait_synced(position).await.map_err(disk)?;
        point!("reap-committed");
        self.metrics.reaped.add(u64::from(reaped));
        Ok(CommitReply { reaped })
    }

    async fn reap_key(&self, partition: PartitionId, reap: ReapKey) -> Result<bool, Refusal> {
        let ReapKey { namespace, key, version_hash, drop } = reap;
        let slot = Slot { table: Table::Data, partition, namespace, key };
        let reap = |entry: &mut Entry, _: &PartitionState| {
            let record = &mut entry.copy.record;
            if record.version_hash() != version_hash || record.is_empty() {
                return (Change::Keep, false);
            }
            let left = record.reaped(&drop);
            fact!(Reaped { node: self.id, slot: &slot, before: record, after: &left });
            *record = left;
            (if record.is_empty() { Change::Remove } else { Change::Write }, true)
        };
        match self.store.update_with_state(&slot, Durability::Sync, reap).await {
            Ok((done, _)) => Ok(done),
            // It cannot be the version that all agreed to: whoever repairs it brings what the others have.
            Err(crate::storage::StorageError::Corrupt(_)) => Ok(false),
            Err(error) => Err(storage_refusal(&error)),
        }
    }
}
