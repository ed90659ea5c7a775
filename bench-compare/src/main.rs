//! The workload of `benches/storage.rs` on other engines, in one run, so that the disk's mood is the same for all.
//!
//! 1M records of 32-byte keys and 580-byte values are loaded once into each engine. A *group of G* is one task that
//! submits G read-modify-writes on random keys, waits until all are durable, and repeats. The engines take turns
//! (A B C D, A B C D), each when the background work of the others is done; beside them stands the floor: the same bytes appended to a file and one fdatasync a group.
//!
//! ```sh
//! cargo run --release --manifest-path bench-compare/Cargo.toml -- [records] [seconds a turn] [directory] [engines]
//! ```

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};

mod ours;

/// The one of the program `ringdove`, for all engines.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VALUE_LEN: usize = 580;
const GROUPS: [usize; 3] = [64, 256, 1024];
const TURNS: usize = 3;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Key = [u8; 32];

/// An engine under the workload.
trait Engine {
    fn name(&self) -> &'static str;
    /// Writes these records; durable at the latest after the last load.
    fn load(&mut self, records: &[(Key, Vec<u8>)]) -> Result<()>;
    /// Reads each key, changes its value, writes it back; durable on return.
    fn rewrite(&mut self, keys: &[Key], chance: &mut Xoshiro256PlusPlus) -> Result<()>;
}

/// A key that looks random and hangs on its number alone.
fn key(number: u64) -> Key {
    let mut key = [0; 32];
    Xoshiro256PlusPlus::seed_from_u64(number).fill_bytes(&mut key);
    key
}

fn value(chance: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let mut value = vec![0; VALUE_LEN];
    chance.fill_bytes(&mut value);
    value
}

/// The change of a read-modify-write: all of the value, so that no engine saves bytes by luck.
fn changed(old: &[u8], chance: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let mask = chance.next_u64().to_le_bytes();
    let mut new = old.to_vec();
    for part in new.chunks_mut(mask.len()) {
        part.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    new
}

struct Fjall {
    db: fjall::Database,
    records: fjall::Keyspace,
}

impl Fjall {
    fn open(dir: &Path) -> Result<Fjall> {
        let db = fjall::Database::builder(dir.join("fjall")).open()?;
        let records = db.keyspace("records", fjall::KeyspaceCreateOptions::default)?;
        Ok(Fjall { db, records })
    }
}

impl Engine for Fjall {
    fn name(&self) -> &'static str {
        "fjall 3"
    }

    fn load(&mut self, records: &[(Key, Vec<u8>)]) -> Result<()> {
        let mut batch = self.db.batch();
        for (key, value) in records {
            batch.insert(&self.records, key.as_slice(), value.as_slice());
        }
        batch.commit()?;
        Ok(self.db.persist(fjall::PersistMode::SyncData)?)
    }

    fn rewrite(&mut self, keys: &[Key], chance: &mut Xoshiro256PlusPlus) -> Result<()> {
        let mut batch = self.db.batch().durability(Some(fjall::PersistMode::SyncData));
        for key in keys {
            let old = self.records.get(key)?.ok_or("a loaded key is missing")?;
            batch.insert(&self.records, key.as_slice(), changed(&old, chance));
        }
        Ok(batch.commit()?)
    }
}

const TABLE: redb::TableDefinition<&[u8], &[u8]> = redb::TableDefinition::new("records");

struct Redb {
    db: redb::Database,
}

impl Redb {
    fn open(dir: &Path) -> Result<Redb> {
        Ok(Redb { db: redb::Database::create(dir.join("redb"))? })
    }
}

impl Engine for Redb {
    fn name(&self) -> &'static str {
        "redb 4"
    }

    fn load(&mut self, records: &[(Key, Vec<u8>)]) -> Result<()> {
        let write = self.db.begin_write()?;
        {
            let mut table = write.open_table(TABLE)?;
            for (key, value) in records {
                table.insert(key.as_slice(), value.as_slice())?;
            }
        }
        Ok(write.commit()?)
    }

    fn rewrite(&mut self, keys: &[Key], chance: &mut Xoshiro256PlusPlus) -> Result<()> {
        // Durability::Immediate is the default of a write transaction.
        let write = self.db.begin_write()?;
        {
            let mut table = write.open_table(TABLE)?;
            for key in keys {
                let new = {
                    use redb::ReadableTable;
                    let old = table.get(key.as_slice())?.ok_or("a loaded key is missing")?;
                    changed(old.value(), chance)
                };
                table.insert(key.as_slice(), new.as_slice())?;
            }
        }
        Ok(write.commit()?)
    }
}

/// Appends the bytes that a group's records have and syncs: what the disk allows.
struct Floor {
    file: File,
}

impl Engine for Floor {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn load(&mut self, _: &[(Key, Vec<u8>)]) -> Result<()> {
        Ok(())
    }

    fn rewrite(&mut self, keys: &[Key], chance: &mut Xoshiro256PlusPlus) -> Result<()> {
        let mut bytes = Vec::with_capacity(keys.len() * (VALUE_LEN + 32));
        let value = value(chance);
        for key in keys {
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(&value);
        }
        self.file.write_all(&bytes)?;
        Ok(self.file.sync_data()?)
    }
}

/// CPU time of this process, all threads.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// Bytes that this process has sent to the disk.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// Waits until what engines do in the background is done, or goes on for too long: it would be counted as the CPU time
/// of the engine whose turn comes.
fn settle() {
    for _ in 0..40 {
        let before = cpu();
        std::thread::sleep(Duration::from_millis(250));
        if cpu() - before <= Duration::from_millis(10) {
            return;
        }
    }
}

#[derive(Default)]
struct Sum {
    operations: usize,
    wall: Duration,
    cpu: Duration,
    written: u64,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let records: u64 = args.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let seconds: f64 = args.next().map_or(Ok(4.0), |text| text.parse())?;
    let temporary = tempfile::tempdir()?;
    let dir = args.next().map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let wanted = args.next().unwrap_or_else(|| "floor,ringdove,fjall,redb".to_owned());
    std::fs::create_dir_all(&dir)?;

    let mut chance = Xoshiro256PlusPlus::seed_from_u64(7);
    let mut engines: Vec<Box<dyn Engine>> = Vec::new();
    for name in wanted.split(',') {
        engines.push(match name {
            "floor" => Box::new(Floor { file: File::create(dir.join("floor"))? }),
            "ringdove" => Box::new(ours::Ours::open(&dir)?),
            "fjall" => Box::new(Fjall::open(&dir)?),
            "redb" => Box::new(Redb::open(&dir)?),
            other => return Err(format!("{other} is no engine here").into()),
        });
    }
    for engine in &mut engines {
        let start = Instant::now();
        for first in (0..records).step_by(10_000) {
            let batch: Vec<(Key, Vec<u8>)> = (first..records.min(first + 10_000))
                .map(|number| (key(number), value(&mut chance)))
                .collect();
            engine.load(&batch)?;
        }
        println!("{:8} loaded {records} records in {:.1} s", engine.name(), start.elapsed().as_secs_f64());
    }

    println!(
        "{:>6} {:8} {:>10} {:>9} {:>12} {:>14}",
        "group", "engine", "ops/s", "of floor", "CPU µs/op", "written/user B"
    );
    for group in GROUPS {
        let mut sums: Vec<Sum> = engines.iter().map(|_| Sum::default()).collect();
        for _ in 0..TURNS {
            for (engine, sum) in engines.iter_mut().zip(&mut sums) {
                settle();
                let (start, cpu_before, written_before) = (Instant::now(), cpu(), written());
                while start.elapsed().as_secs_f64() < seconds {
                    let keys: Vec<Key> = (0..group).map(|_| key(chance.random_range(0..records))).collect();
                    engine.rewrite(&keys, &mut chance)?;
                    sum.operations += group;
                }
                sum.wall += start.elapsed();
                sum.cpu += cpu() - cpu_before;
                sum.written += written() - written_before;
            }
        }
        let floor = engines.iter().zip(&sums).find(|(engine, _)| engine.name() == "floor");
        let floor = floor.map_or(f64::NAN, |(_, sum)| sum.operations as f64 / sum.wall.as_secs_f64());
        for (engine, sum) in engines.iter().zip(&sums) {
            let rate = sum.operations as f64 / sum.wall.as_secs_f64();
            let cpu = sum.cpu.as_secs_f64() * 1e6 / sum.operations as f64;
            let user = (sum.operations * (VALUE_LEN + 32)) as f64;
            let (of_floor, written) = (rate / floor, sum.written as f64 / user);
            println!(
                "{group:>6} {:8} {rate:>10.0} {of_floor:>9.2} {cpu:>12.1} {written:>14.2}",
                engine.name()
            );
        }
    }
    Ok(())
}
