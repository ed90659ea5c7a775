//! Batches: many reads or many writes in one request, each judged and answered for itself.
//!
//! ```text
//!   MultiPut ─▶ by partition ─┬─ a primary here: each put coordinated here, some at once
//!                             └─ else: the partition's puts to its primary in one message, never a second time
//! ```
//!
//! No transaction, no common moment, no order among the items: so a key may stand in a batch of writes once. What is
//! in progress at a time is bounded, and so is what is kept for the reply.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use futures_util::stream;

use super::metrics::Operation;
use super::reply::unknown;
use super::{Node, Request};
use crate::net::link::CallError;
use crate::net::message::{
    BATCH_ITEMS_MAX, Get, GetReply, MultiGet, MultiGetReply, MultiPut, MultiPutReply, Put, PutReply, Refusal,
    RefusalCode, Version,
};
use crate::types::{NodeId, PartitionId};

/// Reads, writes or messages of one batch that are in progress at a time.
const AT_ONCE: usize = 16;
/// Bytes of values in a reply, beyond which further reads are not made.
const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

type Puts = Vec<(usize, Put)>;

/// Something to do for a batch of writes, with the places of its answers.
enum Part {
    Here(usize, Box<Put>),
    There(NodeId, Puts),
}

impl Node {
    /// Reads several keys. Some may be refused; the others are answered.
    ///
    /// # Errors
    /// When the whole request makes no sense, or the node is overloaded.
    pub async fn multi_get(&self, batch: MultiGet, request: Request) -> Result<MultiGetReply, Refusal> {
        let work = Box::pin(async move {
            check_len(batch.gets.len())?;
            batch.gets.iter().for_each(|get| self.touch(get.namespace, &get.key, request));
            Ok(MultiGetReply { replies: self.get_all(batch.gets, request).await })
        });
        self.watch(Operation::MultiGet, request, work).await
    }

    async fn get_all(&self, gets: Vec<Get>, request: Request) -> Vec<Result<GetReply, Refusal>> {
        let wanted = gets.len();
        let mut reads =
            stream::iter(gets).map(|get| Box::pin(self.get_unwatched(get, request))).buffered(AT_ONCE);
        let (mut replies, mut bytes) = (Vec::new(), 0);
        while let Some(reply) = reads.next().await {
            bytes += reply.as_ref().map_or(0, |reply| bytes_of(&reply.values));
            if bytes > REPLY_BYTES_MAX && !replies.is_empty() {
                break;
            }
            replies.push(reply);
        }
        drop(reads);
        let message = "the reply has no room for it: ask for it again";
        replies.resize_with(wanted, || Err(Refusal::new(RefusalCode::TooLarge, message)));
        replies
    }

    /// Writes or deletes several keys. Some may be refused or unknown; the others are applied.
    ///
    /// # Errors
    /// When the whole request makes no sense, or the node is overloaded: nothing was written.
    pub async fn multi_put(&self, batch: MultiPut, request: Request) -> Result<MultiPutReply, Refusal> {
        let work = Box::pin(async move {
            check_len(batch.puts.len())?;
            batch.puts.iter().for_each(|put| self.touch(put.namespace, &put.key, request));
            Ok(MultiPutReply { replies: self.put_all(batch.puts, request).await })
        });
        self.watch(Operation::MultiPut, request, work).await
    }

    async fn put_all(&self, puts: Vec<Put>, request: Request) -> Vec<Result<PutReply, Refusal>> {
        let mut replies: Vec<Option<Result<PutReply, Refusal>>> = vec![None; puts.len()];
        let parts = self.parts(puts, &mut replies);
        let mut work =
            stream::iter(parts).map(|part| Box::pin(self.part(part, request))).buffer_unordered(AT_ONCE);
        while let Some(answered) = work.next().await {
            for (at, reply) in answered {
                replies[at] = Some(reply);
            }
        }
        drop(work);
        let lost = || Ok(unknown(0, 0, "the batch was given up inside the node".to_owned()));
        replies.into_iter().map(|reply| reply.unwrap_or_else(lost)).collect()
    }

    /// Cuts a batch up by who is to carry it out. Keys that stand in it before are refused at once.
    fn parts(&self, puts: Vec<Put>, replies: &mut [Option<Result<PutReply, Refusal>>]) -> Vec<Part> {
        let inner = &self.inner;
        let down = inner.down();
        let mut seen = BTreeSet::new();
        let mut here = Vec::new();
        let mut there: BTreeMap<PartitionId, (NodeId, Puts)> = BTreeMap::new();
        for (at, put) in puts.into_iter().enumerate() {
            if !seen.insert((put.namespace, put.key.clone())) {
                let message = "the key stands in the batch before: a batch has no order, send it on its own";
                replies[at] = Some(Err(Refusal::new(RefusalCode::BadRequest, message)));
                continue;
            }
            let (list, _) = inner.preference(put.namespace, &put.key);
            let primary = list.primaries().find(|node| !down.contains(node));
            match primary.filter(|_| !put.forwarded && !list.is_primary(inner.id)) {
                Some(primary) => {
                    there.entry(list.partition).or_insert_with(|| (primary, Vec::new())).1.push((at, put));
                }
                None => here.push(Part::Here(at, Box::new(put))),
            }
        }
        let there = there.into_values().map(|(primary, puts)| Part::There(primary, puts));
        here.into_iter().chain(there).collect()
    }

    async fn part(&self, part: Part, request: Request) -> Vec<(usize, Result<PutReply, Refusal>)> {
        let (primary, puts) = match part {
            Part::Here(at, put) => return vec![(at, self.put_unwatched(*put, request).await)],
            Part::There(primary, puts) => (primary, puts),
        };
        let inner = &self.inner;
        let forwarded = puts.iter().map(|(_, put)| Put { forwarded: true, ..put.clone() });
        let batch = MultiPut { puts: forwarded.collect() };
        let sent = inner.call::<MultiPutReply>(primary, &batch, request).await;
        match sent {
            Ok(reply) if reply.replies.len() == puts.len() => {
                puts.iter().map(|(at, _)| *at).zip(reply.replies).collect()
            }
            // Not a byte left: each finds its own way, to another primary or by this node as a fallback.
            Err(CallError::NotSent(_)) => {
                let mut replies = Vec::new();
                for (at, put) in puts {
                    replies.push((at, self.put_unwatched(put, request).await));
                }
                replies
            }
            Err(CallError::Refused(refusal)) => {
                puts.iter().map(|(at, _)| (*at, Err(refusal.clone()))).collect()
            }
            Ok(_) | Err(CallError::MaybeDelivered(_)) => {
                let reason = match sent {
                    Err(error) => format!("{primary}: {error}"),
                    Ok(_) => format!("{primary} answered for other writes"),
                };
                let reply = |put: &Put| unknown(0, put.quorum.w.map_or(0, u32::from), reason.clone());
                puts.iter().map(|(at, put)| (*at, Ok(reply(put)))).collect()
            }
        }
    }
}

fn bytes_of(versions: &[Version]) -> usize {
    versions.iter().map(|version| version.value.len()).sum()
}

fn check_len(items: usize) -> Result<(), Refusal> {
    if items <= BATCH_ITEMS_MAX {
        return Ok(());
    }
    let message = format!("the batch has {items} items, at most {BATCH_ITEMS_MAX} are taken: send several");
    Err(Refusal::new(RefusalCode::TooLarge, message))
}
