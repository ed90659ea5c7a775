//! Many keys at once: cut up by who holds them, the parts on their way side by side.
//!
//! Each key has an outcome of its own, and the rules of `attempts` hold for each: what was not applied, and reads, go
//! into the next round, to another node; a write whose part brought no answer is unknown. A batch has no order and is
//! no transaction.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::attempts::{Asked, Kind, Tried, Tries};
use super::error::passes;
use super::routes::{Addr, Target};
use super::{
    Client, ClientError, GetReply, Inner, PutReply, ReadOptions, RefusalCode, WriteOptions, written,
};
use crate::net::message::{
    BATCH_ITEMS_MAX, Get, Message, MultiGet, MultiGetReply, MultiPut, MultiPutReply, Put, PutOutcome, Refusal,
};
use crate::types::{Key, Namespace, TraceId};

/// Most bytes of keys and values in one part: well below a frame, and enough to make its head cheap.
const PART_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Parts on their way at once.
const AT_ONCE: usize = 16;

/// One write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchWrite {
    /// The key.
    pub key: Key,
    /// The value; none deletes.
    pub value: Option<Bytes>,
    /// As of a single write. Its time is not used, and the first trace id of a batch follows all of it.
    pub options: WriteOptions,
}

/// What a batch is made of.
trait Item: Clone {
    type Batch: Message;
    type Replies: Message;
    type Reply;
    const KIND: Kind;
    fn key(&self) -> &Key;
    fn bytes(&self) -> usize;
    fn batch(items: Vec<Self>) -> Self::Batch;
    fn replies(replies: Self::Replies) -> Vec<Result<Self::Reply, Refusal>>;
    /// Whether the node could say what became of it.
    fn is_known(reply: &Self::Reply) -> bool;
}

impl Item for Get {
    type Batch = MultiGet;
    type Replies = MultiGetReply;
    type Reply = GetReply;
    const KIND: Kind = Kind::Read;

    fn key(&self) -> &Key {
        &self.key
    }

    fn bytes(&self) -> usize {
        self.key.as_bytes().len()
    }

    fn batch(gets: Vec<Get>) -> MultiGet {
        MultiGet { gets }
    }

    fn replies(replies: MultiGetReply) -> Vec<Result<GetReply, Refusal>> {
        replies.replies
    }

    fn is_known(_: &GetReply) -> bool {
        true
    }
}

impl Item for Put {
    type Batch = MultiPut;
    type Replies = MultiPutReply;
    type Reply = PutReply;
    const KIND: Kind = Kind::Write;

    fn key(&self) -> &Key {
        &self.key
    }

    fn bytes(&self) -> usize {
        self.key.as_bytes().len() + self.value.as_ref().map_or(0, Bytes::len)
    }

    fn batch(puts: Vec<Put>) -> MultiPut {
        MultiPut { puts }
    }

    fn replies(replies: MultiPutReply) -> Vec<Result<PutReply, Refusal>> {
        replies.replies
    }

    fn is_known(reply: &PutReply) -> bool {
        reply.outcome == PutOutcome::Applied
    }
}

impl Client {
    /// Reads several keys; the outcomes are in their order. There is no common snapshot.
    pub async fn multi_get(&self, keys: &[Key], options: &ReadOptions) -> Vec<Result<GetReply, ClientError>> {
        let asked = self.inner.asked(options.timeout, options.trace_id);
        let gets: Vec<Get> = keys.iter().map(|key| options.get(key)).collect();
        let mut replies = self.inner.run_batch(&gets, asked).await;
        // The reply of a batch had no room for these; alone each has.
        for (reply, key) in replies.iter_mut().zip(keys) {
            if matches!(reply, Err(ClientError::Refused(refusal)) if refusal.code == RefusalCode::TooLarge) {
                let target = Target::Key(Namespace::default(), key);
                *reply = self.inner.run(Kind::Read, target, &options.get(key), asked).await;
            }
        }
        replies
    }

    /// Writes or deletes several keys, each at most once; the outcomes are in their order.
    pub async fn multi_put(
        &self,
        writes: &[BatchWrite],
        timeout: Option<std::time::Duration>,
    ) -> Vec<Result<PutReply, ClientError>> {
        let given = writes.iter().map(|write| write.options.trace_id).find(|id| *id != TraceId::default());
        let asked = self.inner.asked(timeout, given.unwrap_or_default());
        let put = |write: &BatchWrite| {
            let write_id = write.options.write_id.unwrap_or_else(|| self.write_id());
            write.options.put(&write.key, write.value.clone(), write_id)
        };
        let puts: Vec<Put> = writes.iter().map(put).collect();
        let mut keys = BTreeSet::new();
        let again: Vec<bool> = puts.iter().map(|put| !keys.insert(put.key.clone())).collect();
        let mut firsts = Vec::with_capacity(puts.len());
        for (put, again) in puts.into_iter().zip(&again) {
            if !again {
                firsts.push(put);
            }
        }
        let mut replies = self.inner.run_batch(&firsts, asked).await.into_iter();
        let twice = || {
            let message = "the key stands in the batch before: a batch has no order, send it on its own";
            Err(ClientError::Invalid(message.to_owned()))
        };
        let reply = |again: bool| match again {
            true => twice(),
            false => replies.next().unwrap_or_else(twice).and_then(written),
        };
        again.into_iter().map(reply).collect()
    }
}

/// Whether others are better asked before a node that said this of one key, as after a single operation.
fn is_doubtful<I: Item>(reply: &Result<I::Reply, Refusal>) -> bool {
    match reply {
        Ok(reply) => !I::is_known(reply),
        Err(refusal) => passes(refusal.code) && refusal.code != RefusalCode::WrongLayout,
    }
}

impl Inner {
    async fn run_batch<I: Item>(&self, items: &[I], asked: Asked) -> Vec<Result<I::Reply, ClientError>> {
        self.see_to_layout(asked).await;
        let mut done: Vec<Option<Result<I::Reply, ClientError>>> = items.iter().map(|_| None).collect();
        let mut tries = Tries::new(self.config.tries);
        let mut pending: Vec<usize> = (0..items.len()).collect();
        // What an item came to last, if that is no result yet.
        let mut last: BTreeMap<usize, ClientError> = BTreeMap::new();
        while !pending.is_empty() && tries.another() {
            let (parts, homeless) = self.parts(items, &pending, &tries.avoid);
            pending = homeless;
            let mut pause = !pending.is_empty();
            let mut work = stream::iter(parts)
                .map(|(addr, places)| async {
                    let tried = self.try_part(&addr, items, &places, asked).await;
                    (addr, places, tried)
                })
                .buffer_unordered(AT_ONCE);
            while let Some((addr, places, tried)) = work.next().await {
                let mut again = |places: &[usize], error: &ClientError| {
                    for place in places {
                        last.insert(*place, error.clone());
                        pending.push(*place);
                    }
                };
                let mut fail = |error: &ClientError| {
                    for place in &places {
                        done[*place] = Some(Err(error.clone()));
                    }
                };
                match tried {
                    Tried::Answered(replies) => {
                        if replies.iter().any(|reply| is_doubtful::<I>(reply)) {
                            self.pool.doubt(&addr);
                        }
                        for (place, reply) in places.iter().zip(replies) {
                            match reply {
                                Ok(reply) => done[*place] = Some(Ok(reply)),
                                Err(refusal) if passes(refusal.code) => {
                                    pause |= refusal.code == RefusalCode::Overloaded;
                                    let avoided = tries.avoid.contains(&addr);
                                    if !avoided && refusal.code != RefusalCode::WrongLayout {
                                        tries.avoid.push(addr.clone());
                                    }
                                    again(&[*place], &ClientError::Refused(refusal));
                                }
                                Err(refusal) => done[*place] = Some(Err(ClientError::Refused(refusal))),
                            }
                        }
                    }
                    Tried::Refused(refusal) if passes(refusal.code) => {
                        pause |= refusal.code == RefusalCode::Overloaded;
                        again(&places, &ClientError::Refused(refusal.clone()));
                        if refusal.code == RefusalCode::WrongLayout {
                            self.adopt(refusal.layouts);
                        } else {
                            self.pool.doubt(&addr);
                            tries.avoid.push(addr);
                        }
                    }
                    Tried::Refused(refusal) => fail(&ClientError::Refused(refusal)),
                    Tried::OtherCluster(reason) => {
                        let unreached = self.pool.unreached(&self.routes.all());
                        again(&places, &unreached.unwrap_or(ClientError::Unreachable(reason)));
                        tries.avoid.push(addr);
                    }
                    Tried::Unspeakable(reason) => fail(&ClientError::Invalid(reason)),
                    Tried::NoAnswer(reason) if I::KIND == Kind::Write => fail(&ClientError::Unknown(reason)),
                    Tried::NotSent(reason) | Tried::NoAnswer(reason) => {
                        again(&places, &ClientError::Unreachable(reason));
                        tries.avoid.push(addr);
                    }
                }
            }
            drop(work);
            pending.sort_unstable();
            if pause && !pending.is_empty() && self.pause(&mut tries, asked).await.is_err() {
                break;
            }
        }
        let unreached = || {
            let unreached = self.pool.unreached(&self.routes.all());
            unreached.unwrap_or_else(|| ClientError::Unreachable("there was no time to try".to_owned()))
        };
        let result = |(place, reply): (usize, Option<_>)| {
            reply.unwrap_or_else(|| Err(last.remove(&place).unwrap_or_else(unreached)))
        };
        done.into_iter().enumerate().map(result).collect()
    }

    /// The items by the node to go to, and those that have none now.
    fn parts<I: Item>(
        &self,
        items: &[I],
        pending: &[usize],
        avoid: &[Addr],
    ) -> (Vec<(Addr, Vec<usize>)>, Vec<usize>) {
        let mut full = Vec::new();
        let mut open: BTreeMap<Addr, (usize, Vec<usize>)> = BTreeMap::new();
        let mut homeless = Vec::new();
        for place in pending {
            let item = &items[*place];
            let candidates = self.routes.candidates(Target::Key(Namespace::default(), item.key()));
            let Some(addr) = self.pool.pick(&candidates, avoid) else {
                homeless.push(*place);
                continue;
            };
            let (bytes, places) = open.entry(addr.clone()).or_default();
            if places.len() == BATCH_ITEMS_MAX || *bytes + item.bytes() > PART_BYTES_MAX {
                full.push((addr.clone(), std::mem::take(places)));
                *bytes = 0;
            }
            *bytes += item.bytes();
            places.push(*place);
        }
        let open = open.into_iter().map(|(addr, (_, places))| (addr, places));
        full.extend(open);
        full.retain(|(_, places)| !places.is_empty());
        (full, homeless)
    }

    async fn try_part<I: Item>(
        &self,
        addr: &Addr,
        items: &[I],
        places: &[usize],
        asked: Asked,
    ) -> Tried<Vec<Result<I::Reply, Refusal>>> {
        let Ok(_room) = self.room(asked).await else {
            return Tried::NotSent("too many operations are on their way".to_owned());
        };
        let batch = I::batch(places.iter().map(|place| items[*place].clone()).collect());
        let tried = self.try_at::<I::Replies>(addr, &batch, asked, self.limit(I::KIND, asked)).await;
        match tried {
            Tried::Answered(replies) => {
                let replies = I::replies(replies);
                if replies.len() == places.len() {
                    return Tried::Answered(replies);
                }
                Tried::NoAnswer(format!("{addr} answered for other keys"))
            }
            Tried::Refused(refusal) => Tried::Refused(refusal),
            Tried::NotSent(reason) => Tried::NotSent(reason),
            Tried::OtherCluster(reason) => Tried::OtherCluster(reason),
            Tried::NoAnswer(reason) => Tried::NoAnswer(reason),
            Tried::Unspeakable(reason) => Tried::Unspeakable(reason),
        }
    }
}
