use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::ring::key_hash;
use super::*;

const SECRET: MerkleKey = MerkleKey(*b"0123456789abcdef");

fn q() -> PartitionCount {
    PartitionCount::new(8).unwrap()
}

fn key(i: u64) -> Key {
    Key::new(format!("key-{i}").into_bytes()).unwrap()
}

fn bits(bits: u32) -> LeafBits {
    LeafBits::new(bits).unwrap()
}

/// A partition's keys with their version hashes, from which everything can be computed again.
type Keys = BTreeMap<Key, u64>;

/// Computes the leaves from nothing, by the definition in the module's docs.
fn naive_leaves(keys: &Keys, count: LeafBits) -> Vec<u64> {
    let mut leaves = vec![0; count.leaves()];
    for (key, version) in keys {
        let mut hasher = SipHasher13::new_with_key(&SECRET.0);
        let mut input = 0u32.to_le_bytes().to_vec();
        input.extend(u32::try_from(key.as_bytes().len()).unwrap().to_le_bytes());
        input.extend(key.as_bytes());
        input.extend(version.to_le_bytes());
        hasher.write(&input);
        // The leaf is the place of the hash within the partition, as a fraction of the partition.
        let hash = key_hash(Namespace(0), key);
        let range = q().range(q().partition_of_hash(hash)).unwrap();
        let width = u128::from(range.end() - range.start()) + 1;
        let leaf = u128::from(hash - range.start()) * count.leaves() as u128 / width;
        leaves[usize::try_from(leaf).unwrap()] ^= hasher.finish();
    }
    leaves
}

fn tree_of(keys: &Keys, count: LeafBits) -> MerkleTree {
    let mut tree = MerkleTree::new(&SECRET, q(), count);
    for (key, version) in keys {
        tree.update(Namespace(0), key, key_hash(Namespace(0), key), None, Some(*version));
    }
    tree
}

/// Puts or deletes a key in both the model and the tree.
fn set(keys: &mut Keys, tree: &mut MerkleTree, key: &Key, new: Option<u64>) {
    let old = match new {
        Some(version) => keys.insert(key.clone(), version),
        None => keys.remove(key),
    };
    tree.update(Namespace(0), key, key_hash(Namespace(0), key), old, new);
}

fn naive_difference(a: &Keys, b: &Keys, count: LeafBits) -> Vec<u32> {
    let (a, b) = (naive_leaves(a, count), naive_leaves(b, count));
    (0u32..).zip(a.iter().zip(&b)).filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect()
}

fn changes() -> impl Strategy<Value = Vec<(u64, Option<u64>)>> {
    proptest::collection::vec((0u64..300, proptest::option::weighted(0.8, 0u64..5)), 0..400)
}

proptest! {
    #[test]
    fn a_tree_kept_up_by_updates_equals_one_computed_from_the_keys(changes in changes(), k in 0u32..10) {
        let (mut keys, mut tree) = (Keys::new(), MerkleTree::new(&SECRET, q(), bits(k)));
        for (i, version) in changes {
            set(&mut keys, &mut tree, &key(i), version);
        }
        let leaves = naive_leaves(&keys, bits(k));
        prop_assert_eq!(tree.leaves(), &leaves[..]);
        prop_assert_eq!(tree.root(), leaves.iter().fold(0, |x, y| x ^ y));
        for level in 0..k {
            for index in 0..1 << level {
                let [left, right] = tree.children(level, index).unwrap();
                prop_assert_eq!(tree.hash(level, index).unwrap(), left ^ right);
            }
        }
        let restored = MerkleTree::from_leaves(&SECRET, q(), bits(k), tree.leaves()).unwrap();
        prop_assert_eq!(restored.nodes, tree.nodes);
    }

    #[test]
    fn the_difference_is_what_comparing_all_leaves_finds(
        both in changes(), mine in changes(), theirs in changes(), j in 0u32..11, k in 0u32..11,
    ) {
        let mut keys = Keys::new();
        let mut scratch = MerkleTree::new(&SECRET, q(), bits(0));
        for (i, version) in both {
            set(&mut keys, &mut scratch, &key(i), version);
        }
        let (mut a, mut b) = (keys.clone(), keys);
        for (i, version) in mine {
            set(&mut a, &mut scratch, &key(i), version);
        }
        for (i, version) in theirs {
            set(&mut b, &mut scratch, &key(i), version);
        }
        let found = diff(&tree_of(&a, bits(j)), &tree_of(&b, bits(k))).unwrap();
        prop_assert_eq!(found.bits, bits(j.min(k)));
        prop_assert_eq!(&found.leaves, &naive_difference(&a, &b, bits(j.min(k))));
        let differing = found.leaves.len() as u64;
        prop_assert!(found.hashes <= 1 + differing * 16 * u64::from(j.min(k).div_ceil(4)));
    }

    #[test]
    fn a_cut_tree_is_the_tree_with_fewer_leaves(changes in changes(), k in 0u32..10, less in 0u32..10) {
        let (mut keys, mut tree) = (Keys::new(), MerkleTree::new(&SECRET, q(), bits(k)));
        for (i, version) in changes {
            set(&mut keys, &mut tree, &key(i), version);
        }
        let j = k.saturating_sub(less);
        tree.shrink(bits(j)).unwrap();
        prop_assert_eq!(tree.leaves(), &naive_leaves(&keys, bits(j))[..]);
        prop_assert_eq!(tree.nodes, tree_of(&keys, bits(j)).nodes);
    }
}

#[test]
fn equal_trees_cost_one_hash_however_many_keys_they_hold() {
    let keys: Keys = (0..20_000).map(|i| (key(i), i)).collect();
    let (a, b) = (tree_of(&keys, bits(12)), tree_of(&keys, bits(9)));
    assert_eq!(diff(&a, &b).unwrap(), Difference { bits: bits(9), leaves: vec![], hashes: 1, rounds: 1 });
}

#[test]
fn the_cost_of_a_comparison_follows_the_difference_and_not_the_data() {
    for (count, k) in [(2_000, 6), (20_000, 10), (60_000, 12)] {
        let keys: Keys = (0..count).map(|i| (key(i), i)).collect();
        for changed in [1u64, 5, 25] {
            let mut other = keys.clone();
            for i in 0..changed {
                other.insert(key(i * 7), u64::MAX);
            }
            let found = diff(&tree_of(&keys, bits(k)), &tree_of(&other, bits(k))).unwrap();
            assert_eq!(found.leaves, naive_difference(&keys, &other, bits(k)));
            assert!(!found.leaves.is_empty() && found.leaves.len() as u64 <= changed);
            let rounds = u64::from(k.div_ceil(LEVELS_PER_ROUND));
            assert!(found.hashes <= 1 + changed * 16 * rounds, "{found:?}");
            assert_eq!(u64::from(found.rounds), 1 + rounds);
        }
    }
}

#[test]
fn a_difference_everywhere_is_asked_for_in_bounded_rounds() {
    let (a, b) = (Keys::new(), (0..200_000).map(|i| (key(i), i)).collect::<Keys>());
    let (a, b) = (tree_of(&a, bits(14)), tree_of(&b, bits(14)));
    let mut descent = Descent::new(a.bits(), b.bits());
    while let Some(ask) = descent.ask() {
        assert!((1..=HASHES_PER_ROUND_MAX).contains(&ask.indices.len()));
        descent.on_hashes(&a, &b.hashes(ask.level, &ask.indices).unwrap()).unwrap();
    }
    let differing: BTreeSet<u32> = descent.finish().into_iter().collect();
    assert_eq!(differing, (0..1 << 14).collect());
}

#[test]
fn a_leaf_names_the_range_of_key_hashes_it_covers() {
    for (count, k) in [(8, 0), (256, 5), (65_536, 20)] {
        let q = PartitionCount::new(count).unwrap();
        let partition = PartitionId(count - 1);
        let mut next = *q.range(partition).unwrap().start();
        for leaf in 0..u32::try_from(bits(k).leaves()).unwrap() {
            let range = bits(k).range(q, partition, leaf).unwrap();
            assert_eq!(*range.start(), next);
            assert_eq!(bits(k).leaf_of(q, *range.start()), leaf);
            assert_eq!(bits(k).leaf_of(q, *range.end()), leaf);
            next = range.end().wrapping_add(1);
        }
        assert_eq!(next, 0, "the last leaf of the last partition ends with the hash space");
        assert_eq!(bits(k).range(q, partition, 1 << k), None);
        assert_eq!(bits(k).range(q, PartitionId(count), 0), None);
    }
}

#[test]
fn namespace_key_and_cluster_key_all_change_an_item() {
    let leaf = |secret: &MerkleKey, namespace: u32, name: &str, version: u64| {
        let mut tree = MerkleTree::new(secret, q(), bits(0));
        tree.update(Namespace(namespace), &Key::new(name.to_owned()).unwrap(), 0, None, Some(version));
        tree.root()
    };
    let one = leaf(&SECRET, 0, "a", 1);
    let others = [
        leaf(&MerkleKey([0; 16]), 0, "a", 1),
        leaf(&SECRET, 1, "a", 1),
        leaf(&SECRET, 0, "b", 1),
        leaf(&SECRET, 0, "a\0", 1),
        leaf(&SECRET, 0, "a", 2),
    ];
    assert!(others.iter().all(|&other| other != one && other != 0));
    // The wire format depends on it: this never changes.
    assert_eq!(format!("{one:016x}"), "e305f6ed926d8af2");
}

#[test]
fn the_leaf_count_follows_the_number_of_keys() {
    let sizes =
        [(0, 0), (1, 0), (32, 0), (33, 1), (64, 1), (65, 2), (1_000_000, 15), (u64::MAX, LEAF_BITS_MAX)];
    for (keys, expected) in sizes {
        assert_eq!(LeafBits::for_keys(keys).get(), expected, "{keys}");
    }
}

#[test]
fn what_a_peer_sends_wrong_is_an_error_and_changes_nothing() {
    let keys: Keys = (0..100).map(|i| (key(i), i)).collect();
    let mut tree = tree_of(&keys, bits(3));
    assert_eq!(LeafBits::new(21), Err(MerkleError::TooManyLeaves { bits: 21 }));
    assert_eq!(tree.hash(3, 8), Err(MerkleError::NoSuchNode { bits: 3, level: 3, index: 8 }));
    assert_eq!(tree.hash(4, 0), Err(MerkleError::NoSuchNode { bits: 3, level: 4, index: 0 }));
    assert!(tree.hash(u32::MAX, u32::MAX).is_err());
    assert!(tree.children(u32::MAX, u32::MAX).is_err());
    assert!(tree.children(3, 0).is_err());
    assert_eq!(tree.shrink(bits(4)), Err(MerkleError::Grows { from: 3, to: 4 }));
    let short = MerkleTree::from_leaves(&SECRET, q(), bits(3), &[0; 7]);
    assert_eq!(short.unwrap_err(), MerkleError::LeafCount { expected: 8, found: 7 });

    let mut descent = Descent::new(tree.bits(), bits(20));
    let asked = descent.ask();
    assert_eq!(descent.on_hashes(&tree, &[]), Err(MerkleError::HashCount { expected: 1, found: 0 }));
    assert_eq!(descent.on_hashes(&tree, &[0, 0]), Err(MerkleError::HashCount { expected: 1, found: 2 }));
    assert_eq!(descent.ask(), asked);
    descent.on_hashes(&tree, &[tree.root()]).unwrap();
    assert_eq!(descent.ask(), None);
    // Late hashes after the end are refused too.
    assert_eq!(descent.on_hashes(&tree, &[1]), Err(MerkleError::HashCount { expected: 0, found: 1 }));
}
