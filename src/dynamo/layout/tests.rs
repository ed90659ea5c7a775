use super::*;
use crate::net::codec;

fn members(ids: impl IntoIterator<Item = u64>) -> Vec<Member> {
    ids.into_iter()
        .map(|id| Member {
            id: NodeId(id),
            peer_addr: format!("10.0.0.{id}:7000"),
            client_addr: format!("10.0.0.{id}:7001"),
            zone: format!("z{}", id % 3),
            capacity: 1,
        })
        .collect()
}

fn q(q: u32) -> PartitionCount {
    PartitionCount::new(q).unwrap()
}

fn first(nodes: u64) -> Layout {
    Layout::first(q(64), 3, members(1..=nodes)).unwrap()
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode_into(value, &mut bytes).unwrap();
    bytes
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    codec::decode(bytes).map_err(|error| error.to_string())
}

/// What decoding says about a sound layout's parts after `break_it`.
fn decoded(break_it: impl FnOnce(&mut Parts)) -> LayoutError {
    let mut parts = Parts::from(first(5));
    break_it(&mut parts);
    let bytes = encode(&parts);
    let error = Layout::try_from(parts).unwrap_err();
    assert!(decode::<Layout>(&bytes).unwrap_err().contains(&error.to_string()), "{error}");
    error
}

mod making {
    use super::*;

    #[test]
    fn bad_members_are_refused_with_what_to_do() {
        let make = |n, members| Layout::first(q(8), n, members).unwrap_err();
        let changed = |change: fn(&mut Vec<Member>)| {
            let mut members = members(1..=3);
            change(&mut members);
            make(3, members)
        };
        assert_eq!(make(0, members(1..=3)), LayoutError::ReplicasZero);
        assert_eq!(make(17, members(1..=30)), LayoutError::ReplicasTooMany { n: 17 });
        assert_eq!(make(4, members(1..=3)), LayoutError::ReplicasAboveMembers { n: 4, members: 3 });
        assert_eq!(make(3, vec![]), LayoutError::NoMembers);
        assert_eq!(make(3, members(0..1025)), LayoutError::TooManyMembers { members: 1025 });
        assert_eq!(changed(|m| m[1].capacity = 0), LayoutError::ZeroCapacity { node: NodeId(2) });
        assert_eq!(changed(|m| m[0].id = NodeId(3)), LayoutError::DuplicateNode { node: NodeId(3) });
        let long = LayoutError::MemberTextTooLong { node: NodeId(1), len: 256 };
        assert_eq!(changed(|m| m[0].zone = "z".repeat(256)), long);
        assert_eq!(
            LayoutError::PartitionsNotPowerOfTwo { q: 100 }.to_string(),
            "100 partitions are not a power of two; choose 64 or 128"
        );
        assert_eq!(
            make(4, members(1..=3)).to_string(),
            "N is 4 but there are only 3 members; add members or start the cluster with a smaller N"
        );
    }

    #[test]
    fn a_change_that_leaves_fewer_members_than_n_is_refused() {
        let error = first(3).next(members(1..=2)).unwrap_err();
        assert_eq!(error, LayoutError::ReplicasAboveMembers { n: 3, members: 2 });
    }

    #[test]
    fn a_layout_names_its_parent_and_changes_its_hash_with_any_part() {
        let one = first(5);
        assert_eq!((one.reference().version, one.parent()), (1, None));
        let two = one.next(members(1..=6)).unwrap();
        assert_eq!((two.reference().version, two.parent()), (2, Some(one.reference())));
        let changes: [fn(&mut Parts); 8] = [
            |p| p.parent_hash ^= 1,
            |p| p.version += 1,
            |p| p.members[0].capacity += 1,
            |p| p.members[0].zone.push('x'),
            |p| p.members[0].peer_addr.push('x'),
            |p| p.members[0].client_addr.push('x'),
            |p| p.members[5].id = NodeId(99),
            |p| p.primaries.rotate_right(3),
        ];
        let mut hashes = vec![two.reference().hash];
        for change in changes {
            let mut parts = Parts::from(two.clone());
            change(&mut parts);
            hashes.push(Layout::try_from(parts).unwrap().reference().hash);
        }
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    #[test]
    fn the_hash_of_a_layout_never_changes() {
        let parts = Parts {
            version: 1,
            parent_hash: 0,
            q: q(8),
            n: 1,
            members: vec![
                Member {
                    id: NodeId(1),
                    peer_addr: "a:1".into(),
                    client_addr: "a:2".into(),
                    zone: "é".into(),
                    capacity: 10,
                },
                Member {
                    id: NodeId(u64::MAX),
                    peer_addr: "b:1".into(),
                    client_addr: "b:2".into(),
                    zone: String::new(),
                    capacity: 5,
                },
            ],
            primaries: vec![0, 1, 0, 1, 0, 1, 0, 0],
        };
        let layout = Layout::try_from(parts).unwrap();
        assert_eq!(
            layout.canonical().len(),
            17 + 8 + 8 + 4 + 4 + 4 + (8 + 4 + 12 + 8) + (8 + 4 + 12 + 6) + 16
        );
        assert_eq!(format!("{:016x}", layout.reference().hash), "cd06e679004b0c0b");
    }

    #[test]
    fn the_assignment_of_given_members_never_changes() {
        // Nodes never compute an assignment again, but simulations and tests replay by it.
        let layout = Layout::first(q(8), 3, members(1..=5)).unwrap();
        let layout = layout.next(members(1..=6)).unwrap();
        assert_eq!(format!("{:016x}", layout.reference().hash), "083a3efcc2edfd55");
    }

    #[test]
    fn a_capacity_change_in_proportion_or_a_new_address_moves_nothing() {
        let one = first(7);
        let mut doubled = members(1..=7);
        for member in &mut doubled {
            member.capacity *= 2;
            member.peer_addr.push('0');
        }
        let two = one.next(doubled).unwrap();
        assert_eq!(diff(&one, &two).unwrap(), []);
        assert_ne!(one.reference().hash, two.reference().hash);
    }

    #[test]
    fn the_difference_of_two_layouts_lists_each_replica_that_changes_hands() {
        let one = first(5);
        let two = one.next(members(2..=6)).unwrap();
        let moves = diff(&one, &two).unwrap();
        assert!(moves.is_sorted());
        for p in one.q().partitions() {
            let mut primaries: Vec<NodeId> = one.primaries(p).to_vec();
            for step in moves.iter().filter(|m| m.partition == p) {
                let from = step.from.expect("N stays");
                let slot = primaries.iter().position(|&id| id == from).expect("a primary leaves");
                assert!(!primaries.contains(&step.to.unwrap()));
                primaries[slot] = step.to.expect("N stays");
            }
            primaries.sort_unstable();
            assert_eq!(primaries, two.primaries(p));
        }
        let other = Layout::first(q(8), 3, members(1..=3)).unwrap();
        assert_eq!(diff(&one, &other), Err(LayoutError::OtherShape { q: 8, n: 3 }));
    }
}

mod decoding {
    use super::*;

    #[test]
    fn a_layout_survives_encoding_with_its_hash() {
        let layout = first(5).next(members(2..=9)).unwrap();
        let back: Layout = decode(&encode(&layout)).unwrap();
        assert_eq!(back, layout);
        assert_eq!(back.reference(), layout.reference());
    }

    #[test]
    fn an_inconsistent_layout_is_a_typed_error() {
        assert_eq!(decoded(|p| p.version = 0), LayoutError::VersionImpossible { version: 0 });
        assert_eq!(decoded(|p| p.parent_hash = 1), LayoutError::FirstHasParent);
        assert_eq!(decoded(|p| p.n = 0), LayoutError::ReplicasZero);
        assert_eq!(decoded(|p| p.n = u32::MAX), LayoutError::ReplicasTooMany { n: u32::MAX });
        assert_eq!(decoded(|p| p.n = 6), LayoutError::ReplicasAboveMembers { n: 6, members: 5 });
        assert_eq!(decoded(|p| p.n = 2), LayoutError::AssignmentLength { expected: 128, found: 192 });
        assert_eq!(decoded(|p| p.q = q(128)), LayoutError::AssignmentLength { expected: 384, found: 192 });
        assert_eq!(decoded(|p| p.members.clear()), LayoutError::NoMembers);
        assert_eq!(decoded(|p| p.members[2].capacity = 0), LayoutError::ZeroCapacity { node: NodeId(3) });
        assert_eq!(decoded(|p| p.members[1].id = NodeId(1)), LayoutError::DuplicateNode { node: NodeId(1) });
        assert_eq!(decoded(|p| p.members.swap(1, 2)), LayoutError::MembersOutOfOrder { node: NodeId(2) });
        assert_eq!(decoded(|p| p.primaries[5] = 5), LayoutError::NotAMember { partition: PartitionId(1) });
        let repeated = LayoutError::PrimariesOutOfOrder { partition: PartitionId(2) };
        assert_eq!(decoded(|p| p.primaries[7] = p.primaries[6]), repeated);
        assert_eq!(decoded(|p| p.primaries.swap(6, 7)), repeated);
    }

    #[test]
    fn a_partition_count_is_checked_on_decode() {
        assert!(decode::<PartitionCount>(&encode(&100u32)).unwrap_err().contains("choose 64 or 128"));
        assert_eq!(decode::<PartitionCount>(&encode(&128u32)), Ok(q(128)));
    }

    #[test]
    fn cut_or_flipped_bytes_never_panic_and_never_decode_to_an_unsound_layout() {
        let bytes = encode(&Layout::first(q(8), 3, members(1..=4)).unwrap());
        for cut in 0..bytes.len() {
            assert!(decode::<Layout>(&bytes[..cut]).is_err());
        }
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[place] ^= 1 << bit;
                if let Ok(layout) = decode::<Layout>(&flipped) {
                    assert_eq!(layout.validate(), Ok(()));
                }
            }
        }
    }

    #[test]
    fn a_history_is_checked_on_decode() {
        let one = first(5);
        let two = one.next(members(1..=6)).unwrap();
        let three = two.next(members(1..=7)).unwrap();
        let mut history = LayoutHistory::new(one.clone());
        history.adopt(two.clone()).unwrap();
        history.adopt(three.clone()).unwrap();
        assert_eq!(decode::<LayoutHistory>(&encode(&history)), Ok(history));
        for (bad, message) in [
            (vec![], "a layout needs members"),
            (vec![&three, &one], "does not follow"),
            (vec![&one, &two], "older"),
            (vec![&one, &one], "does not follow"),
        ] {
            let error = decode::<LayoutHistory>(&encode(&bad)).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}

mod history {
    use super::super::history::ACTIVE_MAX;
    use super::*;

    /// Two children of one layout, the one with the larger hash first.
    fn rivals(parent: &Layout) -> (Layout, Layout) {
        let a = parent.next(members(1..=8)).unwrap();
        let b = parent.next(members(1..=9)).unwrap();
        if a.reference().hash > b.reference().hash { (a, b) } else { (b, a) }
    }

    fn refs(history: &LayoutHistory) -> Vec<LayoutRef> {
        history.active().iter().map(|layout| layout.reference()).collect()
    }

    fn of<const K: usize>(layouts: [&Layout; K]) -> [LayoutRef; K] {
        layouts.map(Layout::reference)
    }

    fn holding(layouts: &[&Layout]) -> LayoutHistory {
        let mut history = LayoutHistory::new(layouts[0].clone());
        for &layout in &layouts[1..] {
            assert_eq!(history.adopt(layout.clone()), Ok(Adopted::Newer));
        }
        history
    }

    #[test]
    fn layouts_are_adopted_in_order_and_retire_from_the_oldest() {
        let one = first(5);
        let two = one.next(members(1..=6)).unwrap();
        let three = two.next(members(1..=7)).unwrap();
        let mut history = holding(&[&one, &two, &three]);
        assert_eq!(refs(&history), of([&three, &two, &one]));
        assert_eq!(history.current().reference(), three.reference());
        assert_eq!(history.find(two.reference()).unwrap().reference(), two.reference());
        for known in [&one, &two, &three] {
            assert_eq!(history.adopt(known.clone()), Ok(Adopted::AlreadyKnown));
        }
        assert_eq!(history.retire_below(1), [], "nothing is older");
        // Retiring one retires what is older.
        assert_eq!(history.retire_below(3), of([&two, &one]));
        assert_eq!(refs(&history), of([&three]));
        assert_eq!(history.retire_below(3), [], "again is harmless");
        assert_eq!(history.retire_below(9), [], "the current one stays");
    }

    #[test]
    fn what_a_node_gains_it_gains_once_by_each_layout_that_is_new_to_it() {
        let one = first(5);
        let two = one.next(members(1..=6)).unwrap();
        let three = two.next(members([1, 2, 3, 4, 6])).unwrap();
        let four = three.next(members(1..=6)).unwrap();
        let gained =
            |before: &LayoutHistory, after: &LayoutHistory, node| after.gained_since(before, NodeId(node));
        let all = |layout: &Layout, node| layout.partitions_of(NodeId(node)).collect::<Vec<_>>();
        let (old, both) = (holding(&[&one]), holding(&[&one, &two]));
        assert_eq!(gained(&old, &both, 6), all(&two, 6), "it comes: everything");
        for node in 1..=5 {
            let new = |p: &PartitionId| !one.is_primary(*p, NodeId(node));
            let expected: Vec<_> = all(&two, node).into_iter().filter(new).collect();
            assert_eq!(gained(&old, &both, node), expected);
            assert_eq!(gained(&both, &both, node), [], "once");
        }
        // Removed, and added again with the disk that it had: nothing that it holds says anything.
        let back = holding(&[&three, &four]);
        assert_eq!(gained(&holding(&[&two]), &back, 5), all(&four, 5));
        // Away while it was removed and added again: it does not know what came between.
        assert_eq!(gained(&old, &holding(&[&four]), 5), all(&four, 5));
        assert_eq!(gained(&both, &holding(&[&four]), 2), all(&four, 2));
    }

    #[test]
    fn a_layout_older_than_those_held_is_refused() {
        let one = first(5);
        let two = one.next(members(1..=6)).unwrap();
        let mut history = LayoutHistory::new(two.clone());
        let error = LayoutError::Older { offered: one.reference(), current: two.reference() };
        assert_eq!(history.adopt(one), Err(error));
        assert_eq!(
            error.to_string(),
            "layout version 1 is older than version 2 held here; send its sender the current layout"
        );
    }

    #[test]
    fn a_layout_that_does_not_follow_from_the_current_one_is_refused() {
        let one = first(5);
        let (winner, loser) = rivals(&one);
        let after_loser = loser.next(members(1..=10)).unwrap();
        let mut history = holding(&[&one, &winner]);
        let before = history.clone();
        let unknown = |offered: &Layout| {
            Err(LayoutError::UnknownParent { offered: offered.reference(), current: winner.reference() })
        };
        assert_eq!(history.adopt(after_loser.clone()), unknown(&after_loser));
        // A gap: version 4 where 2 is current.
        let gap = after_loser.next(members(1..=11)).unwrap();
        assert_eq!(history.adopt(gap.clone()), unknown(&gap));
        // The same version, but from another parent: the conflict is further down.
        let mut longer = holding(&[&one, &winner, &winner.next(members(1..=10)).unwrap()]);
        assert!(matches!(longer.adopt(after_loser), Err(LayoutError::UnknownParent { .. })));
        assert_eq!(history, before);
    }

    #[test]
    fn of_two_layouts_of_one_version_the_larger_hash_wins_everywhere() {
        let one = first(5);
        let (winner, loser) = rivals(&one);
        let mut kept = holding(&[&one, &winner]);
        let mut replaced = holding(&[&one, &loser]);
        let conflict = LayoutError::Conflict { held: winner.reference(), offered: loser.reference() };
        assert_eq!(kept.adopt(loser.clone()), Err(conflict));
        assert_eq!(replaced.adopt(winner.clone()), Ok(Adopted::Replaced { lost: vec![loser.reference()] }));
        assert_eq!(kept, replaced);
        assert_eq!(refs(&kept), of([&winner, &one]));
    }

    #[test]
    fn a_conflict_in_the_middle_takes_what_followed_from_the_loser_with_it() {
        let one = first(5);
        let (winner, loser) = rivals(&one);
        let after = loser.next(members(1..=10)).unwrap();
        let mut history = holding(&[&one, &loser, &after]);
        let lost = of([&after, &loser]).to_vec();
        assert_eq!(history.adopt(winner.clone()), Ok(Adopted::Replaced { lost }));
        assert_eq!(refs(&history), of([&winner, &one]));
        assert!(history.adopt(after).is_err(), "what followed from the loser never comes back");
    }

    #[test]
    fn the_oldest_layout_is_never_replaced() {
        let one = first(5);
        let (winner, loser) = rivals(&one);
        let mut history = holding(&[&one, &loser]);
        history.retire_below(2);
        let error = LayoutError::ConflictWithOldest { held: loser.reference(), offered: winner.reference() };
        assert_eq!(history.adopt(winner.clone()), Err(error));
        assert_eq!(refs(&history), of([&loser]));
        // The node that holds the winner gives it up instead, because its layout 1 has retired over there.
        let mut other = holding(&[&one, &winner]);
        let lost = of([&winner, &one]).to_vec();
        assert_eq!(other.catch_up(&history), Ok(Adopted::CaughtUp { lost }));
        assert_eq!(other, history);
    }

    #[test]
    fn a_layout_of_another_shape_is_refused() {
        let mut history = LayoutHistory::new(first(5));
        let other = Layout::first(q(64), 2, members(1..=5)).unwrap();
        assert_eq!(history.adopt(other.clone()), Err(LayoutError::OtherShape { q: 64, n: 2 }));
        let other = LayoutHistory::new(other);
        assert_eq!(history.catch_up(&other), Err(LayoutError::OtherShape { q: 64, n: 2 }));
    }

    #[test]
    fn the_number_of_active_layouts_is_bounded() {
        let mut history = LayoutHistory::new(first(5));
        for added in 1..ACTIVE_MAX as u64 {
            history.adopt(history.current().next(members(1..=5 + added)).unwrap()).unwrap();
        }
        let one_more = history.current().next(members(1..=20)).unwrap();
        let error = LayoutError::TooManyActive { active: ACTIVE_MAX };
        assert_eq!(history.adopt(one_more.clone()), Err(error));
        let oldest = history.active()[ACTIVE_MAX - 1].reference();
        history.retire_below(oldest.version + 1);
        assert_eq!(history.adopt(one_more), Ok(Adopted::Newer));
    }

    #[test]
    fn a_node_that_was_away_catches_up_with_a_whole_history() {
        let one = first(5);
        let two = one.next(members(1..=6)).unwrap();
        let three = two.next(members(1..=7)).unwrap();
        let four = three.next(members(2..=7)).unwrap();
        // The peer retired 1; two layouts follow from what is held.
        let mut peer = holding(&[&one, &two, &three]);
        peer.retire_below(2);
        let mut behind = LayoutHistory::new(one.clone());
        assert_eq!(behind.catch_up(&peer), Ok(Adopted::Newer));
        assert_eq!(behind, peer);
        assert_eq!(behind.catch_up(&peer), Ok(Adopted::AlreadyKnown));
        // All that is held has retired at the peer, and there is a gap.
        peer.adopt(four.clone()).unwrap();
        peer.retire_below(4);
        let mut behind = LayoutHistory::new(two.clone());
        assert_eq!(behind.catch_up(&peer), Ok(Adopted::CaughtUp { lost: vec![two.reference()] }));
        assert_eq!(behind, peer);
        // The other way round nothing is learnt.
        let error = LayoutError::Older { offered: two.reference(), current: four.reference() };
        assert_eq!(peer.catch_up(&LayoutHistory::new(two)), Err(error));
    }

    #[test]
    fn two_histories_that_fork_settle_on_one_whoever_asks() {
        let one = first(5);
        let (winner, loser) = rivals(&one);
        let after_winner = winner.next(members(1..=10)).unwrap();
        let after_loser = loser.next(members(1..=11)).unwrap();
        let right = holding(&[&one, &winner, &after_winner]);
        let mut wrong = holding(&[&one, &loser, &after_loser]);
        let mut asked = right.clone();
        let conflict = LayoutError::Conflict { held: winner.reference(), offered: loser.reference() };
        assert_eq!(asked.catch_up(&wrong), Err(conflict));
        assert_eq!(asked, right);
        let lost = of([&after_loser, &loser]).to_vec();
        assert_eq!(wrong.catch_up(&right), Ok(Adopted::Replaced { lost }));
        assert_eq!(wrong, right);
    }

    #[test]
    fn two_clusters_under_one_name_are_never_joined() {
        let mut a = LayoutHistory::new(first(5));
        let b = LayoutHistory::new(first(6));
        assert!(matches!(a.adopt(b.current().clone()), Err(LayoutError::ConflictWithOldest { .. })));
        assert!(matches!(a.catch_up(&b), Err(LayoutError::ConflictWithOldest { .. })));
        let later = LayoutHistory::new(first(6).next(members(1..=7)).unwrap());
        assert!(matches!(a.catch_up(&later), Err(LayoutError::ConflictWithOldest { .. })));
        assert_eq!(a, LayoutHistory::new(first(5)));
    }
}
