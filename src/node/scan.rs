//! Scans: a page of the live keys of a range, from all partitions at once.
//!
//! ```text
//!   each partition ─▶ R refilled primaries ─▶ one ScanKeys a node: "your first `limit` keys, all these partitions"
//!        keys and version hashes of all nodes, merged ─▶ up to the nearest end of a list that goes on
//!        ─▶ FetchMany to who holds them; where replicas differ, from each and merged ─▶ live ones are the page
//! ```
//!
//! So a page of 100 keys over 256 partitions and three nodes costs three lists of at most 100 keys and hashes, and 100
//! records. Keys that turn out deleted or expired leave room, which further rounds fill; a page that has looked at
//! enough is given short, with its cursor.
//!
//! The cursor is the last key that was passed, so it survives layout changes, restarts and other nodes. There is no
//! snapshot: what is written behind the cursor while a scan goes on is seen, what is written before it is not.
//!
//! A page passes no key that it could not read, unless `partial` is asked for: a partition without R refilled primaries
//! in reach could hold any key, so then the page is empty and names it; a key whose copies are all damaged ends the page.
//! `partial` passes over both and names them, and that is all it does: what a page shows was read from R primaries, never
//! from those few of a partition that happened to answer.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::fences::fences_of;
use super::metrics::Operation;
use super::reply::shown;
use super::{Inner, Node, Request};
use crate::dynamo::quorum::Tally;
use crate::dynamo::reaping::{Fences, Joint};
use crate::dynamo::version::Record;
use crate::io::BoxFuture;
use crate::net::message::{
    FetchMany, FetchManyReply, HeldKey, Order, Quorum, Refusal, RefusalCode, SCAN_ITEMS_MAX, Scan, ScanItem,
    ScanKeys, ScanKeysReply, ScanReply, Version,
};
use crate::types::{Key, NodeId, PartitionId};

/// Rounds of one page.
const ROUNDS_MAX: usize = 8;
/// Bytes of records that a page reads, beyond which it ends.
const PAGE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Which nodes are asked for which partitions, and which partitions have too few.
struct Plan {
    nodes: BTreeMap<NodeId, Vec<PartitionId>>,
    missing: BTreeSet<PartitionId>,
}

/// What the nodes hold of a range, merged.
struct Listed {
    /// In ascending order, with who holds which version.
    keys: BTreeMap<Key, Vec<(NodeId, HeldKey)>>,
    /// The fences of those who were asked: who holds a key no more may have let it go in a round.
    heard: BTreeMap<PartitionId, Joint>,
    /// Keys beyond this one may be missing from `keys`.
    horizon: Option<Key>,
    missing: BTreeSet<PartitionId>,
}

/// Copies as they were given, with who gave them under which fences.
type Fetches = Vec<(NodeId, Key, Option<(Record, Fences)>)>;

/// A page in the making.
struct Page {
    items: Vec<ScanItem>,
    cursor: Option<Key>,
    missing: BTreeSet<PartitionId>,
    bytes: u64,
    more: bool,
}

impl Node {
    /// Reads a page of a range.
    ///
    /// # Errors
    /// When the request makes no sense, or nothing could be read in time.
    pub async fn scan(&self, scan: Scan, request: Request) -> Result<ScanReply, Refusal> {
        let work = async {
            loop {
                let reply = self.scan_unwatched(scan.clone(), request).await?;
                // Answers that came in under a newer layout are of nodes that need not hold what was written under that.
                if self.inner.layout_ref() == reply.layout {
                    return Ok(reply);
                }
            }
        };
        self.watch(Operation::Scan, request, Box::pin(work)).await
    }

    async fn scan_unwatched(&self, scan: Scan, request: Request) -> Result<ScanReply, Refusal> {
        point!("scan-page");
        let limit = usize::try_from(scan.limit).unwrap_or(usize::MAX);
        if !(1..=SCAN_ITEMS_MAX).contains(&limit) {
            let message = format!("limit={}: a page has 1 to {SCAN_ITEMS_MAX} keys", scan.limit);
            return Err(Refusal::new(RefusalCode::BadRequest, message));
        }
        if !scan.to.is_empty() && scan.from > scan.to {
            let message = "the range ends before it starts: give the smaller key as its start";
            return Err(Refusal::new(RefusalCode::BadRequest, message));
        }
        let r = match scan.r {
            None => 1,
            r => self.quorum_size("r", r)?,
        };
        let layout = self.inner.layout_ref();
        let cursor = scan.after.clone();
        let mut page = Page { items: Vec::new(), cursor, missing: BTreeSet::new(), bytes: 0, more: true };
        for round in 0..ROUNDS_MAX {
            let listed =
                match self.list(&scan, page.cursor.as_ref(), limit - page.items.len(), r, request).await {
                    Ok(listed) => listed,
                    // What was passed in earlier rounds is a page all the same.
                    Err(_) if round > 0 => break,
                    Err(refusal) => return Err(refusal),
                };
            page.missing.extend(&listed.missing);
            if !listed.missing.is_empty() && !scan.partial {
                break;
            }
            let is_over = self.take(&scan, limit, r, listed, &mut page, request).await;
            if is_over || page.items.len() == limit || page.bytes >= PAGE_BYTES_MAX {
                break;
            }
        }
        let Page { items, cursor, missing, more, .. } = page;
        Ok(ScanReply { items, more, cursor, missing: missing.into_iter().collect(), layout })
    }

    /// Puts the next keys on the page; whether it must end here.
    async fn take(
        &self,
        scan: &Scan,
        limit: usize,
        r: usize,
        listed: Listed,
        page: &mut Page,
        request: Request,
    ) -> bool {
        let in_sight = |key: &Key| match (&listed.horizon, scan.order) {
            (None, _) => true,
            (Some(horizon), Order::Ascending) => key <= horizon,
            (Some(horizon), Order::Descending) => key >= horizon,
        };
        let room = limit - page.items.len();
        let all = listed.keys.len();
        let mut ordered: Vec<(Key, Vec<(NodeId, HeldKey)>)> = listed.keys.into_iter().collect();
        if scan.order == Order::Descending {
            ordered.reverse();
        }
        let (mut taken, mut is_full) = (Vec::new(), false);
        let mut wanted = 0;
        for (key, holders) in ordered.into_iter().take_while(|(key, _)| in_sight(key)) {
            if wanted == room {
                break;
            }
            // A list of fewer than R primaries: passed over. Nobody holds it, as far as this page goes.
            let partition = self.inner.descriptor.partitions.partition_of(scan.namespace, &key);
            if listed.missing.contains(&partition) {
                taken.push((key, Vec::new()));
                continue;
            }
            wanted += 1;
            let bytes = holders.iter().map(|(_, held)| u64::from(held.bytes)).max().unwrap_or(0);
            if page.bytes + bytes > PAGE_BYTES_MAX && page.bytes > 0 {
                is_full = true;
                break;
            }
            page.bytes += bytes;
            taken.push((key, holders));
        }
        let goes_on = taken.len() < all || listed.horizon.is_some();
        let records = self.inner.fetch_held(scan, &taken, &listed.heard, request).await;
        let now = self.inner.wall();
        for (key, holders) in taken {
            if holders.is_empty() {
                page.cursor = Some(key);
                continue;
            }
            let record = match records.get(&key) {
                Some(record) => Some(record.clone()),
                None => {
                    let r = u8::try_from(r).unwrap_or(u8::MAX);
                    let quorum = Quorum { r: Some(r), w: None, strict: false };
                    let read = self.read(scan.namespace, &key, quorum, request).await;
                    read.ok().map(|(done, _)| done.record)
                }
            };
            let item = record.map(|record| self.item(scan, &key, &record, now));
            match item {
                Some(Ok(item)) => page.items.extend(item),
                None | Some(Err(_)) => {
                    page.missing.insert(self.inner.descriptor.partitions.partition_of(scan.namespace, &key));
                    if !scan.partial {
                        page.more = true;
                        return true;
                    }
                }
            }
            page.cursor = Some(key);
        }
        page.more = goes_on;
        is_full || !goes_on
    }

    /// A key as it is shown; none when it has no live value.
    fn item(
        &self,
        scan: &Scan,
        key: &Key,
        record: &Record,
        now: crate::types::Wall,
    ) -> Result<Option<ScanItem>, Refusal> {
        let mut values = shown(record, scan.resolve, now).values;
        if values.is_empty() {
            return Ok(None);
        }
        if scan.keys_only {
            values.iter_mut().for_each(|version: &mut Version| version.value.clear());
        }
        let context = self.seal(scan.namespace, key, record.context())?;
        Ok(Some(ScanItem { key: key.clone(), values, context }))
    }

    /// Asks R primaries of every partition for their first keys; who fails is replaced as long as there are others.
    async fn list(
        &self,
        scan: &Scan,
        after: Option<&Key>,
        limit: usize,
        r: usize,
        request: Request,
    ) -> Result<Listed, Refusal> {
        let inner = &self.inner;
        let mut unfit: BTreeSet<(NodeId, PartitionId)> = BTreeSet::new();
        let mut answers: BTreeMap<NodeId, Vec<ScanKeysReply>> = BTreeMap::new();
        let mut asked: BTreeSet<(NodeId, PartitionId)> = BTreeSet::new();
        loop {
            inner.in_time(request)?;
            let plan = inner.plan(r, &unfit, &asked);
            if plan.nodes.is_empty() {
                return Ok(merge(answers, scan.order, plan.missing));
            }
            let mut calls: FuturesUnordered<BoxFuture<'_, _>> = FuturesUnordered::new();
            for (node, partitions) in plan.nodes {
                let keys = ScanKeys {
                    namespace: scan.namespace,
                    from: scan.from.clone(),
                    to: scan.to.clone(),
                    order: scan.order,
                    after: after.cloned(),
                    limit: u32::try_from(limit).unwrap_or(u32::MAX),
                    partitions,
                };
                calls.push(Box::pin(async move {
                    let reply = inner.list_of(node, &keys, request).await;
                    (node, keys.partitions, reply)
                }));
            }
            while let Some((node, partitions, reply)) = calls.next().await {
                // A list that breaks its own rules could make a page pass keys: its sender has failed.
                match reply.filter(|reply| is_sound(reply, scan.order, after)) {
                    Some(reply) => {
                        unfit.extend(reply.unready.iter().map(|partition| (node, *partition)));
                        let ready = partitions.into_iter().filter(|id| !reply.unready.contains(id));
                        asked.extend(ready.map(|partition| (node, partition)));
                        answers.entry(node).or_default().push(reply);
                    }
                    None => unfit.extend(partitions.into_iter().map(|partition| (node, partition))),
                }
            }
        }
    }
}

/// Whether a list is in order, and goes on only where it has an end to go on from.
fn is_sound(reply: &ScanKeysReply, order: Order, after: Option<&Key>) -> bool {
    let follows = |earlier: &Key, later: &Key| match order {
        Order::Ascending => earlier < later,
        Order::Descending => earlier > later,
    };
    let first = reply.keys.first();
    reply.keys.windows(2).all(|pair| follows(&pair[0].key, &pair[1].key))
        && first.zip(after).is_none_or(|(first, after)| follows(after, &first.key))
        && (!reply.more || first.is_some())
}

fn merge(
    answers: BTreeMap<NodeId, Vec<ScanKeysReply>>,
    order: Order,
    missing: BTreeSet<PartitionId>,
) -> Listed {
    let mut listed = Listed { keys: BTreeMap::new(), heard: BTreeMap::new(), horizon: None, missing };
    for (node, reply) in
        answers.into_iter().flat_map(|(node, lists)| lists.into_iter().map(move |list| (node, list)))
    {
        if let Some(last) = reply.keys.last().filter(|_| reply.more) {
            let nearest = match listed.horizon.take() {
                None => last.key.clone(),
                Some(other) if order == Order::Ascending => other.min(last.key.clone()),
                Some(other) => other.max(last.key.clone()),
            };
            listed.horizon = Some(nearest);
        }
        for (partition, fences) in reply.fences {
            listed.heard.entry(partition).or_default().hear(fences);
        }
        for held in reply.keys {
            listed.keys.entry(held.key.clone()).or_default().push((node, held));
        }
    }
    listed
}

impl Inner {
    /// Whom to ask for what: enough primaries of each partition in each active layout, besides those that were
    /// `asked`, without those that are `unfit`.
    fn plan(
        &self,
        r: usize,
        unfit: &BTreeSet<(NodeId, PartitionId)>,
        asked: &BTreeSet<(NodeId, PartitionId)>,
    ) -> Plan {
        let down = self.down();
        let mut plan = Plan { nodes: BTreeMap::new(), missing: BTreeSet::new() };
        for partition in self.descriptor.partitions.partitions() {
            let list = self.preference_of(partition);
            let mut tally = Tally::new(&list.layouts, r);
            let is_asked = |node: &NodeId| asked.contains(&(*node, partition));
            list.primaries().filter(is_asked).for_each(|node| tally.count_primary(node));
            // This node's own copies cost no message.
            let own = list.primaries().filter(|node| *node == self.id);
            let others = list.primaries().filter(|node| *node != self.id && !down.contains(node));
            let mut chosen = Vec::new();
            for node in own.chain(others) {
                if tally.is_met() {
                    break;
                }
                if !unfit.contains(&(node, partition)) && !is_asked(&node) {
                    tally.count_primary(node);
                    chosen.push(node);
                }
            }
            if tally.is_met() {
                for node in chosen {
                    plan.nodes.entry(node).or_default().push(partition);
                }
            } else {
                plan.missing.insert(partition);
            }
        }
        plan
    }

    async fn list_of(&self, node: NodeId, keys: &ScanKeys, request: Request) -> Option<ScanKeysReply> {
        if node == self.id {
            return self.list_own(keys).await.ok();
        }
        self.call(node, keys, request).await.ok()
    }

    /// The records of listed keys: one copy where the holders agree, else one of each version, merged. What could not
    /// be had is left out, and so is a copy from before a round of which others are from behind.
    async fn fetch_held(
        &self,
        scan: &Scan,
        keys: &[(Key, Vec<(NodeId, HeldKey)>)],
        heard: &BTreeMap<PartitionId, Joint>,
        request: Request,
    ) -> BTreeMap<Key, Record> {
        let mut wanted: BTreeMap<NodeId, Vec<Key>> = BTreeMap::new();
        for (key, holders) in keys {
            let mut versions = BTreeSet::new();
            for (node, held) in holders {
                if versions.insert(held.version_hash) {
                    wanted.entry(*node).or_default().push(key.clone());
                }
            }
        }
        let fetches: FuturesUnordered<BoxFuture<'_, _>> = wanted
            .into_iter()
            .map(|(node, keys)| {
                let fetch = FetchMany { namespace: scan.namespace, keys };
                Box::pin(self.fetch_all(node, fetch, request)) as BoxFuture<'_, _>
            })
            .collect();
        let fetched: Vec<Fetches> = fetches.collect().await;
        let mut records: BTreeMap<Key, (Record, Joint)> = BTreeMap::new();
        let mut failed = BTreeSet::new();
        for (node, key, copy) in fetched.into_iter().flatten() {
            let Some((copy, fences)) = copy else {
                failed.insert(key);
                continue;
            };
            let partition = self.descriptor.partitions.partition_of(scan.namespace, &key);
            let (record, joint) = records.entry(key).or_insert_with(|| {
                let mut joint = heard.get(&partition).copied().unwrap_or_default();
                joint.hear(fences_of(&self.store.partition_state(partition).0));
                (Record::new(), joint)
            });
            record.merge(&copy);
            joint.join(fences, self.votes(node));
        }
        records.retain(|key, (_, joint)| joint.is_sound() && !failed.contains(key));
        records.into_iter().map(|(key, (record, _))| (key, record)).collect()
    }

    /// One node's copies of these keys, none of each that it cannot give.
    async fn fetch_all(&self, node: NodeId, mut fetch: FetchMany, request: Request) -> Fetches {
        let mut copies = Vec::new();
        while !fetch.keys.is_empty() {
            let reply: Option<FetchManyReply> = if node == self.id {
                Some(self.fetch_many_own(&fetch).await)
            } else {
                self.call(node, &fetch, request).await.ok()
            };
            let records = reply.map(|reply| reply.records).unwrap_or_default();
            if records.is_empty() || records.len() > fetch.keys.len() {
                copies.extend(fetch.keys.drain(..).map(|key| (node, key, None)));
                break;
            }
            let keys = fetch.keys.drain(..records.len());
            copies.extend(keys.zip(records).map(|(key, copy)| (node, key, copy.ok())));
        }
        copies
    }
}
