//! What a power loss may do, and what it may not.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use rand::RngExt;

use super::*;

#[test]
fn synced_bytes_and_names_survive_any_power_loss() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[7; 10_000]);
    append(&mut image, id, &[8; 5_000]);
    let mut random = random(1);
    for _ in 0..500 {
        let mut left = image.clone();
        left.power_loss(&mut random, LossOdds::default());
        assert_eq!(read(&mut left, "/a").unwrap()[..10_000], [7; 10_000]);
    }
}

#[test]
fn an_unsynced_write_is_lost_kept_or_torn_at_a_sector_and_nothing_else() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[b'a'; 20_000]);
    image.write_at(id, 100, vec![b'b'; 12_000].into()).unwrap();
    let mut random = random(2);
    let mut seen = BTreeSet::new();
    for _ in 0..500 {
        let mut left = image.clone();
        left.power_loss(&mut random, LossOdds::default());
        let bytes = read(&mut left, "/a").unwrap();
        assert_eq!(bytes.len(), 20_000);
        assert!(bytes[..100].iter().chain(&bytes[12_100..]).all(|byte| *byte == b'a'));
        // Inside, each piece of a sector is whole.
        let kept: Vec<bool> = (0..12_100_usize.div_ceil(512))
            .map(|sector| {
                let piece = &bytes[(sector * 512).max(100)..(sector * 512 + 512).min(12_100)];
                assert!(piece.iter().all(|byte| *byte == piece[0]), "torn inside a sector");
                piece[0] == b'b'
            })
            .collect();
        let torn = if kept.contains(&true) == kept.contains(&false) { "torn" } else { "whole" };
        let pages_whole = kept.chunks(8).all(|page| page.iter().all(|sector| *sector == page[0]));
        seen.insert((torn, kept[0], pages_whole));
        let (torn_count, lost_count) =
            (counted(&left, FaultKind::TornWrite), counted(&left, FaultKind::LostWrite));
        match torn {
            "torn" => assert_eq!((torn_count, lost_count), ((1, 1), (0, 0))),
            _ if kept[0] => assert_eq!((torn_count, lost_count), ((0, 0), (0, 0))),
            _ => assert_eq!((torn_count, lost_count), ((0, 0), (1, 1))),
        }
    }
    for shape in [("whole", false, true), ("whole", true, true), ("torn", true, true), ("torn", false, true)]
    {
        assert!(seen.contains(&shape), "no outcome was {shape:?}: {seen:?}");
    }
    assert!(seen.iter().any(|(_, _, pages_whole)| !pages_whole), "nothing was torn inside a page");
}

#[test]
fn an_unsynced_append_may_leave_the_length_without_the_bytes() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"synced");
    append(&mut image, id, b"appended");
    let mut random = random(3);
    let mut seen = BTreeSet::new();
    for _ in 0..300 {
        let mut left = image.clone();
        left.power_loss(&mut random, LossOdds::default());
        seen.insert(read(&mut left, "/a").unwrap());
    }
    let expected: [&[u8]; 3] = [b"synced", b"syncedappended", b"synced\0\0\0\0\0\0\0\0"];
    assert_eq!(seen, expected.into_iter().map(<[u8]>::to_vec).collect());
}

#[test]
fn what_was_synced_stands_when_a_later_write_to_the_same_place_is_lost() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"first");
    image.write_at(id, 0, Bytes::from_static(b"SECOND")).unwrap();
    assert_eq!(read(&mut image, "/a").unwrap(), b"SECOND");
    image.lose_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap(), b"first");
}

#[test]
fn a_later_write_may_survive_an_earlier_one() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"......");
    image.write_at(id, 0, Bytes::from_static(b"11")).unwrap();
    image.write_at(id, 4, Bytes::from_static(b"22")).unwrap();
    let mut in_order = image.clone();
    in_order.keep_only(|n| n == 0);
    assert_eq!(read(&mut in_order, "/a").unwrap(), b"11....");
    assert_eq!(counted(&in_order, FaultKind::ReorderedWrite), (0, 0));
    image.keep_only(|n| n == 1);
    let id = image.open(Path::new("/a"), false).unwrap();
    image.read_at(id, 0, 4).unwrap();
    assert_eq!(counted(&image, FaultKind::ReorderedWrite), (1, 0), "its bytes were not read");
    assert_eq!(image.read_at(id, 0, 6).unwrap(), "....22");
    assert_eq!(counted(&image, FaultKind::ReorderedWrite), (1, 1));
}

#[test]
fn a_lost_write_counts_as_effective_only_when_its_place_is_read() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[1; 1000]);
    image.write_at(id, 500, vec![2; 100].into()).unwrap();
    image.write_at(id, 700, vec![1; 100].into()).unwrap(); // what stands there already
    image.lose_unsynced();
    let id = image.open(Path::new("/a"), false).unwrap();
    assert_eq!(image.size(id).unwrap(), 1000);
    image.read_at(id, 0, 500).unwrap();
    image.read_at(id, 600, 400).unwrap();
    assert_eq!(counted(&image, FaultKind::LostWrite), (2, 0));
    let mut over = image.clone();
    let id_over = over.open(Path::new("/a"), false).unwrap();
    over.write_at(id_over, 450, vec![3; 200].into()).unwrap();
    read(&mut over, "/a").unwrap();
    assert_eq!(counted(&over, FaultKind::LostWrite), (2, 0), "it was written over");
    image.read_at(id, 0, 501).unwrap();
    assert_eq!(counted(&image, FaultKind::LostWrite), (2, 1));
    read(&mut image, "/a").unwrap();
    assert_eq!(counted(&image, FaultKind::LostWrite), (2, 1), "the other changed nothing");
}

#[test]
fn a_lost_append_is_seen_by_who_asks_for_the_length_or_reads_there() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"synced");
    append(&mut image, id, b" not");
    image.lose_unsynced();
    let id = image.open(Path::new("/a"), false).unwrap();
    image.read_at(id, 0, 6).unwrap();
    assert_eq!(counted(&image, FaultKind::LostWrite), (1, 0));
    let mut by_read = image.clone();
    assert_eq!(by_read.read_at(id, 4, 4).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(counted(&by_read, FaultKind::LostWrite), (1, 1));
    assert_eq!(image.size(id).unwrap(), 6);
    assert_eq!(counted(&image, FaultKind::LostWrite), (1, 1));
}

#[test]
fn an_unsynced_cut_is_undone_and_a_synced_one_is_not() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"abcdef");
    image.set_len(id, 2).unwrap();
    image.write_at(id, 4, Bytes::from_static(b"x")).unwrap();
    assert_eq!(read(&mut image, "/a").unwrap(), b"ab\0\0x");
    let mut kept = image.clone();
    kept.keep_unsynced();
    assert_eq!(read(&mut kept, "/a").unwrap(), b"ab\0\0x");
    image.sync_data(id).unwrap();
    image.set_len(id, 1).unwrap();
    image.set_len(id, 3).unwrap();
    image.lose_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap(), b"ab\0\0x");
    assert_eq!(counted(&image, FaultKind::LostWrite), (2, 2));
}

#[test]
fn a_name_is_durable_only_after_its_directory_was_synced() {
    let mut image = Image::new();
    let (dir, file) = (Path::new("/data/log"), "/data/log/1");
    image.create_dir_all(dir).unwrap();
    let id = write(&mut image, file, b"x");
    image.sync_data(id).unwrap();
    image.sync_dir(dir).unwrap();
    let mut left = image.clone();
    left.lose_unsynced();
    assert_eq!(left.list(dir).unwrap_err().kind(), ErrorKind::NotFound, "its parents were not synced");
    assert_eq!(counted(&left, FaultKind::LostName), (2, 1), "nobody gets to the lower one");
    image.sync_dir(root()).unwrap();
    image.sync_dir(Path::new("/data")).unwrap();
    let unsynced = write(&mut image, "/data/log/2", b"y");
    image.sync_data(unsynced).unwrap();
    image.lose_unsynced();
    assert_eq!(read(&mut image, file).unwrap(), b"x");
    assert_eq!(counted(&image, FaultKind::LostName), (1, 0));
    assert_eq!(image.list(dir).unwrap(), ["1"]);
    assert_eq!(counted(&image, FaultKind::LostName), (1, 1));
}

#[test]
fn a_rename_without_a_sync_shows_the_old_file_or_the_new_one_and_never_none() {
    let mut image = Image::new();
    write_synced(&mut image, "/meta", b"old");
    let new = write(&mut image, "/meta.new", b"new");
    image.sync_data(new).unwrap();
    image.rename(Path::new("/meta.new"), Path::new("/meta")).unwrap();
    let mut random = random(4);
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let mut left = image.clone();
        left.power_loss(&mut random, LossOdds::default());
        let names = left.list(root()).unwrap();
        seen.insert((read(&mut left, "/meta").unwrap(), names.len()));
    }
    let expected = [(b"old".to_vec(), 1), (b"old".to_vec(), 2), (b"new".to_vec(), 1)];
    assert_eq!(seen, expected.into_iter().collect());
}

#[test]
fn a_rename_between_directories_is_one_step_and_durable_with_either() {
    for synced in ["/from", "/to"] {
        let mut image = Image::new();
        image.create_dir_all(Path::new("/from")).unwrap();
        image.create_dir_all(Path::new("/to")).unwrap();
        image.sync_dir(root()).unwrap();
        let id = write(&mut image, "/from/a", b"x");
        image.sync_data(id).unwrap();
        image.rename(Path::new("/from/a"), Path::new("/to/b")).unwrap();
        let mut random = random(5);
        for _ in 0..100 {
            let mut left = image.clone();
            left.power_loss(&mut random, LossOdds::default());
            let (from, to) =
                (left.list(Path::new("/from")).unwrap().len(), left.list(Path::new("/to")).unwrap().len());
            assert!(from + to <= 1, "the file has two names");
        }
        image.sync_dir(Path::new(synced)).unwrap();
        image.lose_unsynced();
        assert_eq!(read(&mut image, "/to/b").unwrap(), b"x");
        assert!(image.list(Path::new("/from")).unwrap().is_empty());
    }
}

#[test]
fn a_removal_without_a_sync_may_be_undone() {
    let mut image = Image::new();
    write_synced(&mut image, "/a", b"x");
    image.remove(Path::new("/a")).unwrap();
    assert_eq!(read(&mut image, "/a").unwrap_err().kind(), ErrorKind::NotFound);
    let mut undone = image.clone();
    undone.lose_unsynced();
    assert_eq!(read(&mut undone, "/a").unwrap(), b"x");
    assert_eq!(counted(&undone, FaultKind::LostName), (1, 1));
    image.sync_dir(root()).unwrap();
    image.lose_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(counted(&image, FaultKind::LostName), (0, 0));
}

#[test]
fn a_removed_or_replaced_file_lives_on_for_its_handles_and_is_freed_after() {
    let mut image = Image::new();
    let removed = write_synced(&mut image, "/a", b"removed");
    image.remove(Path::new("/a")).unwrap();
    let replaced = write(&mut image, "/b", b"replaced");
    let new = write(&mut image, "/c", b"new");
    image.rename(Path::new("/c"), Path::new("/b")).unwrap();
    image.sync_dir(root()).unwrap();
    append(&mut image, removed, b"!");
    image.sync_data(removed).unwrap();
    assert_eq!(image.read_at(removed, 0, 8).unwrap(), "removed!");
    assert_eq!(image.read_at(replaced, 0, 8).unwrap(), "replaced");
    image.close(removed);
    image.close(replaced);
    assert_eq!(image.nodes.len(), 1);
    assert_eq!(image.read_at(new, 0, 3).unwrap(), "new");
}

#[test]
fn a_power_loss_ends_handles_and_locks() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"x");
    let lock = image.lock(Path::new("/LOCK")).unwrap();
    assert_eq!(image.lock(Path::new("/LOCK")).unwrap_err().kind(), ErrorKind::WouldBlock);
    image.lose_unsynced();
    assert!(is_off(&image.read_at(id, 0, 1).unwrap_err()));
    let again = image.lock(Path::new("/LOCK")).unwrap();
    image.unlock(lock);
    assert_eq!(image.lock(Path::new("/LOCK")).unwrap_err().kind(), ErrorKind::WouldBlock);
    image.unlock(again);
    image.lock(Path::new("/LOCK")).unwrap();
}

#[test]
fn the_death_of_the_process_loses_nothing_that_was_written() {
    let mut image = Image::new();
    let id = write(&mut image, "/a", b"x");
    image.lock(Path::new("/LOCK")).unwrap();
    image.process_death();
    assert!(is_off(&image.sync_data(id).unwrap_err()));
    assert_eq!(read(&mut image, "/a").unwrap(), b"x");
    image.lock(Path::new("/LOCK")).unwrap();
    image.lose_unsynced();
    assert!(image.list(root()).unwrap().is_empty(), "it was not made durable either");
}

/// A run with every kind of boundary. Gives what was acknowledged as durable.
fn reference(image: &mut Image) -> (Vec<u8>, io::Result<()>) {
    let mut acknowledged = Vec::new();
    let mut run = || {
        image.create_dir_all(Path::new("/d"))?;
        image.sync_dir(root())?;
        let id = image.open(Path::new("/d/log"), true)?;
        image.sync_dir(Path::new("/d"))?;
        for n in 0..4 {
            let end = image.size(id)?;
            image.write_at(id, end, vec![n + 1; 700].into())?;
            image.sync_data(id)?;
            acknowledged.extend([n + 1; 700]);
        }
        image.rename(Path::new("/d/log"), Path::new("/d/old"))?;
        image.sync_dir(Path::new("/d"))?;
        image.remove(Path::new("/d/old"))
    };
    let result = run();
    (acknowledged, result)
}

#[test]
fn a_crash_at_every_boundary_keeps_what_was_acknowledged_whatever_becomes_of_the_rest() {
    let mut whole = Image::new();
    reference(&mut whole).1.unwrap();
    assert_eq!(whole.boundaries(), 15);
    let mut random = random(6);
    for boundary in 0..=whole.boundaries() {
        let mut image = Image::new();
        image.crash_at(boundary);
        let (acknowledged, result) = reference(&mut image);
        assert_eq!(image.boundaries(), boundary);
        if boundary < whole.boundaries() {
            assert!(is_off(&result.unwrap_err()));
            assert!(image.is_machine_off());
            assert!(is_off(&image.list(root()).unwrap_err()), "a machine that is off reads nothing");
        }
        for _ in 0..20 {
            let mut left = image.clone();
            left.power_loss(&mut random, LossOdds::default());
            assert!(!left.is_machine_off());
            let bytes = read(&mut left, "/d/log").or_else(|_| read(&mut left, "/d/old"));
            let bytes =
                if boundary < whole.boundaries() { bytes } else { bytes.or(Ok(acknowledged.clone())) };
            assert!(bytes.unwrap_or_default().starts_with(&acknowledged), "crash at {boundary}");
        }
    }
}

#[test]
fn a_drawn_power_loss_hangs_on_its_generator_alone() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[1; 3000]);
    for n in 0..20_u8 {
        image.write_at(id, u64::from(n) * 900, vec![n; 2000].into()).unwrap();
    }
    let outcome = |seed| {
        let mut left = image.clone();
        left.power_loss(&mut random(seed), LossOdds::default());
        (read(&mut left, "/a").unwrap(), left.counts().clone())
    };
    let outcomes: BTreeSet<Vec<u8>> = (0..100).map(|seed| outcome(seed).0).collect();
    assert!(outcomes.len() > 30, "only {} different outcomes of 100", outcomes.len());
    for seed in 0..100 {
        assert_eq!(outcome(seed), outcome(seed));
    }
}

#[test]
fn unsynced_events_are_bounded_by_writing_the_older_half_back() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"x");
    let mut random = random(7);
    for _ in 0..20_000 {
        image.write_at(id, random.random_range(0..100), Bytes::from_static(b"y")).unwrap();
    }
    assert!(image.unsynced() <= 16_384);
    let before = read(&mut image, "/a").unwrap();
    image.keep_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap(), before);
}
