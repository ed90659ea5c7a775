//! The hot path of versions: what every get, put and exchange does to a record in memory.
//!
//! The record is a busy key's: 3 context entries, 3 siblings with values of 100 bytes. For merge the two
//! records have 3 entries and 3 siblings each, two siblings common, one known to one side alone, over 4 actors;
//! the result has 4. Set-up (clones) stands outside the measured part.
//! Targets on a quiet core: merge and put below 200 ns. The others are for information.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ringdove::dynamo::version::{
    ActorMint, Caps, Content, Dot, LocalCopy, Overwrite, Record, Sibling, Token, TokenSecret, VersionVector,
    Write,
};
use ringdove::types::{ActorId, ClusterId, Incarnation, Key, Namespace, Wall, WriteId};

fn actor(number: u64) -> ActorId {
    ActorId { incarnation: Incarnation(number << 40), epoch: number }
}

/// A record of one sibling of each of these actors.
fn record(actors: &[u64]) -> Record {
    let siblings = actors.iter().map(|&number| Sibling {
        dot: Dot { actor: actor(number), counter: 7 },
        write_id: WriteId(u128::from(number)),
        content: Content::Value(Bytes::from(vec![7; 100])),
        meta: None,
        expires_at: None,
        written_at: Wall(1_000 + number),
    });
    let siblings: Vec<Sibling> = siblings.collect();
    let context: VersionVector = siblings.iter().map(|sibling| sibling.dot).collect();
    Record::from_parts(context, siblings).expect("sorted and covered")
}

fn write() -> Write {
    Write {
        write_id: WriteId(99),
        content: Content::Value(Bytes::from(vec![9; 100])),
        meta: None,
        expires_at: None,
    }
}

fn merge(c: &mut Criterion) {
    let ours = record(&[1, 2, 3]);
    let equal = record(&[1, 2, 3]);
    let differing = record(&[2, 3, 4]);
    let mut newer = LocalCopy::of(ours.clone());
    newer
        .put(&mut ActorMint::new(Incarnation(1)), Overwrite::Current, write(), Wall(2_000), &Caps::default())
        .expect("within the caps");
    let mut bench = |name: &str, other: &Record| {
        c.bench_function(name, |b| {
            b.iter_batched_ref(|| ours.clone(), |own| own.merge(black_box(other)), BatchSize::SmallInput);
        });
    };
    bench("merge 3+3 siblings, 2 common, into 4", &differing);
    bench("merge 3 siblings, equal", &equal);
    bench("merge 3 siblings with their successor", &newer.record);
}

fn put(c: &mut Criterion) {
    let caps = Caps::default();
    let before = LocalCopy::of(record(&[1, 2, 3]));
    let seen = before.record.context().clone();
    // A warm copy has a live actor of its own already: 4 entries, its last write among 3 siblings.
    let mut mint = ActorMint::new(Incarnation(5));
    let mut warm = LocalCopy::of(record(&[1, 2]));
    warm.put(&mut mint, Overwrite::Nothing, write(), Wall(1_000), &caps).expect("within the caps");
    let warm_seen = warm.record.context().clone();

    let mut bench = |name: &str, copy: &LocalCopy, over: Overwrite<'_>| {
        c.bench_function(name, |b| {
            b.iter_batched_ref(
                || (copy.clone(), mint.clone(), Some(write())),
                |(copy, mint, write)| {
                    let write = write.take().expect("one put for each set-up");
                    copy.put(mint, black_box(over), write, Wall(2_000), &caps)
                },
                BatchSize::SmallInput,
            );
        });
    };
    bench("put with a covering token, new actor", &before, Overwrite::Seen(&seen));
    bench("put with a covering token, live actor", &warm, Overwrite::Seen(&warm_seen));
    bench("put blind, new actor", &before, Overwrite::Nothing);
    bench("put blind, live actor", &warm, Overwrite::Nothing);
}

fn hash_and_token(c: &mut Criterion) {
    let record = record(&[1, 2, 3]);
    let secret = TokenSecret([3; 32]);
    let key = Key::new("user:4711").expect("a key");
    let token =
        Token { secret: &secret, cluster: ClusterId(0xC1), namespace: Namespace::default(), key: &key };
    let sealed = token.seal(record.context()).expect("three entries");
    c.bench_function("version_hash, 3 siblings of 100 bytes", |b| {
        b.iter(|| black_box(black_box(&record).version_hash()));
    });
    c.bench_function("token seal, 3 entries", |b| {
        b.iter(|| black_box(token.seal(black_box(record.context()))));
    });
    c.bench_function("token open, 3 entries", |b| {
        b.iter(|| black_box(token.open(black_box(&sealed))));
    });
}

criterion_group!(benches, merge, put, hash_and_token);
criterion_main!(benches);
