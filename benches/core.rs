//! Hot paths of the pure core, and the assignment of a large cluster. `cargo bench --bench core`.
//!
//! Targets: the partition of a 32-byte key under 20 ns, a Merkle leaf update under 50 ns, a layout of 100 nodes and
//! 4,096 partitions under 1 s.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ringdove::dynamo::layout::{Layout, LayoutHistory, Member};
use ringdove::dynamo::merkle::{LeafBits, MerkleKey, MerkleTree};
use ringdove::dynamo::preference::PreferenceList;
use ringdove::dynamo::ring::{PartitionCount, key_hash};
use ringdove::types::{Key, Namespace, NodeId, PartitionId};

/// 4,096 keys of 32 bytes.
fn keys() -> Vec<Key> {
    (0..4096).map(|i| Key::new(format!("bench-key-{i:022}").into_bytes()).expect("a key")).collect()
}

fn q(q: u32) -> PartitionCount {
    PartitionCount::new(q).expect("a power of two")
}

fn ring(c: &mut Criterion) {
    let keys = keys();
    let mut at = 0;
    c.bench_function("partition_of/32_byte_key", |b| {
        b.iter(|| {
            at = (at + 1) % keys.len();
            q(256).partition_of(Namespace(0), black_box(&keys[at]))
        });
    });
}

fn merkle(c: &mut Criterion) {
    let keys = keys();
    let hashes: Vec<u64> = keys.iter().map(|key| key_hash(Namespace(0), key)).collect();
    for bits in [6, 12, 16] {
        let bits = LeafBits::new(bits).expect("in range");
        let mut tree = MerkleTree::new(&MerkleKey([7; 16]), q(256), bits);
        let (mut at, mut version) = (0, 0);
        c.bench_function(&format!("merkle_update/32_byte_key_2^{}_leaves", bits.get()), |b| {
            b.iter(|| {
                at = (at + 1) % keys.len();
                version += 1;
                tree.update(Namespace(0), black_box(&keys[at]), hashes[at], Some(version - 1), Some(version));
            });
        });
        black_box(tree.root());
    }
}

/// Members in five zones. With `uneven`, capacities of 1 to 4.
fn members(count: u64, uneven: bool) -> Vec<Member> {
    (1..=count)
        .map(|id| Member {
            id: NodeId(id),
            peer_addr: format!("10.0.0.{id}:7000"),
            client_addr: format!("10.0.0.{id}:7001"),
            zone: format!("z{}", id % 5),
            capacity: if uneven { 1 + u32::try_from(id % 4).expect("small") } else { 1 },
        })
        .collect()
}

fn layout(c: &mut Criterion) {
    let mut group = c.benchmark_group("layout");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for (name, uneven) in [("equal", false), ("uneven", true)] {
        let first = Layout::first(q(4096), 3, members(100, uneven)).expect("sound");
        group.bench_function(format!("first/{name}_100_nodes_q4096"), |b| {
            b.iter(|| Layout::first(q(4096), 3, members(100, uneven)).expect("sound"));
        });
        group.bench_function(format!("add_one/{name}_100_nodes_q4096"), |b| {
            b.iter(|| first.next(members(101, uneven)).expect("sound"));
        });
        group.bench_function(format!("remove_one/{name}_100_nodes_q4096"), |b| {
            b.iter(|| first.next(members(99, uneven)).expect("sound"));
        });
        // The most that can move at once: a zone of one node joins two others, so it takes every partition.
        let mut two_zones = members(100, uneven);
        two_zones.iter_mut().for_each(|m| m.zone = format!("z{}", m.id.0 % 2));
        let first = Layout::first(q(4096), 3, two_zones.clone()).expect("sound");
        let mut third = two_zones;
        third.push(Member { zone: "z2".into(), ..members(101, uneven).pop().expect("some") });
        group.bench_function(format!("add_zone/{name}_100_nodes_q4096"), |b| {
            b.iter(|| first.next(third.clone()).expect("sound"));
        });
    }
    let history = LayoutHistory::new(Layout::first(q(4096), 3, members(100, false)).expect("sound"));
    group.bench_function("preference_list/100_nodes_q4096", |b| {
        b.iter(|| PreferenceList::new(&history, black_box(PartitionId(77))));
    });
    group.finish();
}

criterion_group!(benches, ring, merkle, layout);
criterion_main!(benches);
