//! ringdove's log engine under the workload: records of one sibling, as a node keeps them.

use std::path::Path;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::Xoshiro256PlusPlus;
use ringdove::dynamo::merkle::MerkleKey;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::dynamo::version::{ActorMint, Caps, Content, Overwrite, Write};
use ringdove::io::{RealClock, RealDisk};
use ringdove::storage::{Change, Durability, SaltSeed, Slot, Store, StoreConfig, Table};
use ringdove::types::{Incarnation, Key, Namespace, Wall, WriteId};

use super::{Engine, Result, changed};

pub(crate) struct Ours {
    runtime: tokio::runtime::Runtime,
    store: Store,
    partitions: PartitionCount,
    mint: ActorMint,
}

impl Ours {
    pub(crate) fn open(dir: &Path) -> Result<Ours> {
        let dir = dir.join("ringdove");
        std::fs::create_dir_all(&dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let partitions = PartitionCount::new(256)?;
        let config = StoreConfig::new(partitions, MerkleKey([7; 16]));
        let (disk, clock) = (Arc::new(RealDisk::new()?), Arc::new(RealClock::new()));
        let opened = runtime.block_on(Store::open(disk, clock, &dir, Incarnation(1), SaltSeed(1), config));
        Ok(Ours { runtime, store: opened?.0, partitions, mint: ActorMint::new(Incarnation(1)) })
    }

    fn slot(&self, key: &super::Key) -> Result<Slot> {
        let key = Key::new(key.to_vec())?;
        let partition = self.partitions.partition_of(Namespace(0), &key);
        Ok(Slot { table: Table::Data, partition, namespace: Namespace(0), key })
    }

    fn write_all(
        &mut self,
        keys: impl Iterator<Item = super::Key>,
        mut value: impl FnMut(Option<&[u8]>) -> Vec<u8>,
    ) -> Result<()> {
        let slots: Vec<Slot> = keys.map(|key| self.slot(&key)).collect::<Result<_>>()?;
        let Ours { runtime, store, mint, .. } = self;
        runtime.block_on(async {
            let mut last = Default::default();
            for slot in &slots {
                let (put, position) = store
                    .update(slot, Durability::Sync, |entry| {
                        let old = entry.copy.record.siblings().first().map(|sibling| &sibling.content);
                        let new = value(match old {
                            Some(Content::Value(bytes)) => Some(bytes),
                            _ => None,
                        });
                        let content = Content::Value(new.into());
                        let write = Write { write_id: WriteId(1), content, meta: None, expires_at: None };
                        let put = entry.copy.put(mint, Overwrite::Current, write, Wall(1), &Caps::default());
                        (Change::Write, put.map(|_| ()))
                    })
                    .await?;
                put?;
                last = position.max(last);
            }
            Ok(store.wait_synced(last).await?)
        })
    }
}

impl Engine for Ours {
    fn name(&self) -> &'static str {
        "ringdove"
    }

    fn load(&mut self, records: &[(super::Key, Vec<u8>)]) -> Result<()> {
        let mut values = records.iter().map(|(_, value)| value.clone());
        self.write_all(records.iter().map(|(key, _)| *key), |_| values.next().unwrap_or_default())
    }

    fn rewrite(&mut self, keys: &[super::Key], chance: &mut Xoshiro256PlusPlus) -> Result<()> {
        let _ = chance.next_u64();
        self.write_all(keys.iter().copied(), |old| changed(old.unwrap_or_default(), chance))
    }
}
