//! Each fault fires, is effective, and is not effective where nobody can have seen it.

use std::io::ErrorKind;

use super::*;

fn path(path: &str) -> PathBuf {
    PathBuf::from(path)
}

#[test]
fn after_a_failed_sync_the_next_one_succeeds_and_the_bytes_are_gone_with_the_power() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"synced");
    append(&mut image, id, b" not");
    image.arm(Fault::SyncError { path: path("/a"), nth: 1 });
    assert_eq!(image.sync_data(id).unwrap_err().raw_os_error(), Some(5));
    image.sync_data(id).unwrap();
    assert_eq!(read(&mut image, "/a").unwrap(), b"synced not", "it reads back, so it looks well");
    assert_eq!(image.unsynced(), 0);
    assert_eq!(counted(&image, FaultKind::SyncError), (1, 0));
    let mut kept = image.clone();
    kept.keep_unsynced();
    for mut left in [image, kept] {
        left.lose_unsynced();
        assert_eq!(read(&mut left, "/a").unwrap(), b"synced");
        assert_eq!(counted(&left, FaultKind::SyncError), (1, 1));
    }
}

#[test]
fn after_a_failed_sync_an_eviction_shows_the_medium() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"old");
    image.write_at(id, 0, Bytes::from_static(b"new!")).unwrap();
    image.arm(Fault::SyncError { path: path("/"), nth: 1 });
    image.sync_data(id).unwrap_err();
    assert_eq!(read(&mut image, "/a").unwrap(), b"new!");
    image.evict(Path::new("/a"));
    assert_eq!(counted(&image, FaultKind::SyncError), (1, 0));
    assert_eq!(read(&mut image, "/a").unwrap(), b"old\0", "the length is kept elsewhere");
    assert_eq!(counted(&image, FaultKind::SyncError), (1, 1));
}

#[test]
fn a_write_to_a_page_that_a_failed_sync_gave_up_takes_its_bytes_along() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[1; 12_000]);
    image.write_at(id, 0, vec![2; 12_000].into()).unwrap();
    image.arm(Fault::SyncError { path: path("/a"), nth: 1 });
    image.sync_data(id).unwrap_err();
    image.write_at(id, 5_000, vec![3; 10].into()).unwrap();
    image.sync_data(id).unwrap();
    image.lose_unsynced();
    let bytes = read(&mut image, "/a").unwrap();
    assert!(bytes[..4096].iter().chain(&bytes[8192..]).all(|byte| *byte == 1));
    assert_eq!(bytes[5_000..5_010], [3; 10]);
    assert!(bytes[4096..5_000].iter().chain(&bytes[5_010..8192]).all(|byte| *byte == 2));
}

#[test]
fn a_failed_sync_whose_bytes_are_written_again_and_synced_has_no_effect() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"old");
    image.write_at(id, 0, Bytes::from_static(b"new")).unwrap();
    image.arm(Fault::SyncError { path: path("/a"), nth: 1 });
    image.sync_data(id).unwrap_err();
    image.write_at(id, 0, Bytes::from_static(b"new")).unwrap();
    image.sync_data(id).unwrap();
    image.lose_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap(), b"new");
    assert_eq!(counted(&image, FaultKind::SyncError), (1, 0));
}

#[test]
fn a_failed_directory_sync_loses_its_names_with_the_power_although_the_next_succeeds() {
    let mut image = Image::new();
    let id = write(&mut image, "/a", b"x");
    image.sync_data(id).unwrap();
    image.arm(Fault::SyncError { path: path("/"), nth: 1 });
    image.sync_dir(root()).unwrap_err();
    image.sync_dir(root()).unwrap();
    assert_eq!(image.list(root()).unwrap(), ["a"]);
    image.keep_unsynced();
    assert_eq!(counted(&image, FaultKind::SyncError), (1, 0));
    assert!(image.list(root()).unwrap().is_empty());
    assert_eq!(counted(&image, FaultKind::SyncError), (1, 1));
}

#[test]
fn an_armed_fault_waits_for_its_file_and_its_turn() {
    let mut image = Image::new();
    let (a, b) = (write_synced(&mut image, "/a", b"x"), write_synced(&mut image, "/b", b"x"));
    image.arm(Fault::SyncError { path: path("a"), nth: 3 });
    for _ in 0..5 {
        image.sync_data(b).unwrap();
    }
    image.sync_data(a).unwrap();
    image.sync_data(a).unwrap();
    assert_eq!(counted(&image, FaultKind::SyncError), (0, 0));
    image.sync_data(a).unwrap_err();
    image.sync_data(a).unwrap();
    assert_eq!(counted(&image, FaultKind::SyncError), (1, 0));
}

#[test]
fn a_lying_sync_loses_with_the_power() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"old");
    image.write_at(id, 0, Bytes::from_static(b"new")).unwrap();
    image.arm(Fault::SyncLie { path: path("/a"), nth: 1 });
    image.sync_data(id).unwrap();
    assert_eq!(read(&mut image, "/a").unwrap(), b"new");
    let mut true_sync = image.clone();
    assert_eq!(counted(&image, FaultKind::SyncLie), (1, 0));
    image.lose_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap(), b"old");
    assert_eq!(counted(&image, FaultKind::SyncLie), (1, 1));
    assert_eq!(counted(&image, FaultKind::LostWrite), (0, 0), "one loss, one cause");
    // A later sync that tells the truth makes it good.
    true_sync.sync_data(id).unwrap();
    true_sync.lose_unsynced();
    assert_eq!(read(&mut true_sync, "/a").unwrap(), b"new");
    assert_eq!(counted(&true_sync, FaultKind::SyncLie), (1, 0));
}

#[test]
fn a_lying_directory_sync_loses_the_name_with_the_power() {
    let mut image = Image::new();
    write(&mut image, "/a", b"x");
    image.arm(Fault::SyncLie { path: path("/"), nth: 1 });
    image.sync_dir(root()).unwrap();
    image.lose_unsynced();
    assert_eq!(counted(&image, FaultKind::SyncLie), (1, 0));
    assert!(read(&mut image, "/a").is_err());
    assert_eq!(counted(&image, FaultKind::SyncLie), (1, 1));
}

#[test]
fn a_read_error_passes_and_a_bad_sector_stays_until_it_is_written_over() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[1; 2000]);
    image.arm(Fault::ReadError { path: path("/a"), nth: 2 });
    image.read_at(id, 0, 10).unwrap();
    assert_eq!(counted(&image, FaultKind::ReadError), (0, 0));
    assert_eq!(image.read_at(id, 0, 10).unwrap_err().raw_os_error(), Some(5));
    image.read_at(id, 0, 10).unwrap();
    assert_eq!(counted(&image, FaultKind::ReadError), (1, 1));

    image.arm(Fault::BadSector { path: path("/a"), offset: 700 });
    image.arm(Fault::BadSector { path: path("/a"), offset: 7000 }); // there is no such place
    image.read_at(id, 0, 512).unwrap();
    image.read_at(id, 1024, 900).unwrap();
    assert_eq!(counted(&image, FaultKind::ReadError), (2, 1));
    for _ in 0..2 {
        assert_eq!(image.read_at(id, 511, 2).unwrap_err().raw_os_error(), Some(5));
    }
    assert_eq!(counted(&image, FaultKind::ReadError), (2, 2));
    image.write_at(id, 512, vec![2; 512].into()).unwrap();
    image.read_at(id, 0, 2000).unwrap();
}

#[test]
fn a_short_read_looks_like_the_end_of_the_file() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[1; 100]);
    image.arm(Fault::ShortRead { path: path("/a"), nth: 1 });
    assert_eq!(counted(&image, FaultKind::ShortRead), (0, 0));
    assert_eq!(image.read_at(id, 0, 100).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    image.read_at(id, 0, 100).unwrap();
    assert_eq!(counted(&image, FaultKind::ShortRead), (1, 1));
}

#[test]
fn a_flipped_bit_is_seen_by_who_reads_its_byte() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[0; 100]);
    image.arm(Fault::BitFlip { path: path("/a"), offset: 50, bit: 3 });
    image.read_at(id, 0, 50).unwrap();
    image.read_at(id, 51, 49).unwrap();
    assert_eq!(counted(&image, FaultKind::BitFlip), (1, 0));
    let mut over = image.clone();
    over.write_at(id, 50, Bytes::from_static(&[0])).unwrap();
    over.read_at(id, 0, 100).unwrap();
    assert_eq!(counted(&over, FaultKind::BitFlip), (1, 0));
    assert_eq!(image.read_at(id, 50, 1).unwrap()[..], [8]);
    assert_eq!(counted(&image, FaultKind::BitFlip), (1, 1));
    image.keep_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap()[50], 8, "it is on the medium");
}

#[test]
fn a_bit_that_flips_under_a_dirty_page_shows_only_if_the_page_is_lost() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[0; 100]);
    image.write_at(id, 0, vec![1; 100].into()).unwrap();
    image.arm(Fault::BitFlip { path: path("/a"), offset: 50, bit: 0 });
    assert_eq!(read(&mut image, "/a").unwrap(), [1; 100]);
    let mut lost = image.clone();
    image.sync_data(id).unwrap();
    image.lose_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap(), [1; 100]);
    assert_eq!(counted(&image, FaultKind::BitFlip), (1, 0));
    lost.lose_unsynced();
    assert_eq!(read(&mut lost, "/a").unwrap()[50], 1);
    assert_eq!(counted(&lost, FaultKind::BitFlip), (1, 1));
}

#[test]
fn a_misdirected_write_is_missed_where_it_belongs_and_found_where_it_landed() {
    let mut image = Image::new();
    write_synced(&mut image, "/b", &[2; 100]);
    let id = write_synced(&mut image, "/a", &[1; 100]);
    image.arm(Fault::MisdirectedWrite { path: path("/a"), nth: 1, to: path("/b"), offset: 90 });
    image.write_at(id, 10, vec![3; 20].into()).unwrap();
    assert_eq!(read(&mut image, "/a").unwrap()[10..30], [3; 20], "the page cache shows it still");
    image.sync_data(id).unwrap();
    assert_eq!(counted(&image, FaultKind::MisdirectedWrite), (1, 0));
    let other = image.open(Path::new("/b"), false).unwrap();
    image.read_at(other, 0, 90).unwrap();
    image.read_at(id, 30, 70).unwrap();
    assert_eq!(counted(&image, FaultKind::MisdirectedWrite), (1, 0), "neither place was read");
    let mut where_it_belongs = image.clone();
    assert_eq!(where_it_belongs.read_at(id, 0, 100).unwrap()[..], [1; 100]);
    assert_eq!(counted(&where_it_belongs, FaultKind::MisdirectedWrite), (1, 1));
    assert_eq!(image.read_at(other, 89, 11).unwrap()[..], [2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]);
    assert_eq!(counted(&image, FaultKind::MisdirectedWrite), (1, 1));
    assert_eq!(image.size(other).unwrap(), 100, "it lengthens nothing");
}

#[test]
fn a_misdirected_append_leaves_zeros_and_may_land_in_the_same_file() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"abcdef");
    image.arm(Fault::MisdirectedWrite { path: path("/a"), nth: 2, to: path("/a"), offset: 1 });
    append(&mut image, id, b"GH");
    append(&mut image, id, b"IJ");
    image.sync_data(id).unwrap();
    assert_eq!(read(&mut image, "/a").unwrap(), b"aIJdefGH\0\0");
    image.lose_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap(), b"aIJdefGH\0\0");
    assert_eq!(counted(&image, FaultKind::MisdirectedWrite), (1, 1));
}

#[test]
fn a_full_disk_takes_what_fits_and_goes_on_reading_and_writing_in_place() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", &[1; 100]);
    image.set_capacity(Some(150));
    append(&mut image, id, &[2; 20]);
    assert_eq!(counted(&image, FaultKind::NoSpace), (0, 0));
    let other = image.open(Path::new("/b"), true).unwrap();
    let refused = image.write_at(other, 0, vec![3; 40].into()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    assert_eq!(image.size(other).unwrap(), 30);
    assert_eq!(counted(&image, FaultKind::NoSpace), (1, 1));
    image.write_at(id, 0, vec![4; 120].into()).unwrap();
    assert_eq!(read(&mut image, "/a").unwrap(), [4; 120]);
    // Room comes with a removed file, once nobody has it open.
    image.remove(Path::new("/b")).unwrap();
    assert_eq!(image.write_at(id, 120, vec![5; 30].into()).unwrap_err().kind(), ErrorKind::StorageFull);
    image.close(other);
    image.write_at(id, 120, vec![5; 30].into()).unwrap();
}

#[test]
fn a_truncated_file_is_seen_by_its_length_or_at_its_end() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/a", b"abcdef");
    image.arm(Fault::Truncate { path: path("/a"), len: 4 });
    image.arm(Fault::Truncate { path: path("/a"), len: 9 }); // it is shorter already
    image.read_at(id, 0, 4).unwrap();
    assert_eq!(counted(&image, FaultKind::Truncate), (1, 0));
    let mut by_read = image.clone();
    assert_eq!(by_read.read_at(id, 0, 6).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(counted(&by_read, FaultKind::Truncate), (1, 1));
    assert_eq!(image.size(id).unwrap(), 4);
    assert_eq!(counted(&image, FaultKind::Truncate), (1, 1));
    image.keep_unsynced();
    assert_eq!(read(&mut image, "/a").unwrap(), b"abcd");
}

#[test]
fn a_rollback_brings_a_whole_older_image_back() {
    let mut image = Image::new();
    let id = write_synced(&mut image, "/kept", b"same");
    let changed = write_synced(&mut image, "/changed", b"old");
    write_synced(&mut image, "/removed", b"here");
    append(&mut image, id, b" unsynced");
    let older = image.clone();
    image.set_len(id, 4).unwrap();
    image.sync_data(id).unwrap();
    image.write_at(changed, 0, Bytes::from_static(b"new")).unwrap();
    image.sync_data(changed).unwrap();
    image.remove(Path::new("/removed")).unwrap();
    write_synced(&mut image, "/made", b"later");
    image.rollback(&older);
    assert!(is_off(&image.read_at(changed, 0, 1).unwrap_err()));
    assert_eq!(read(&mut image, "/kept").unwrap(), b"same");
    assert_eq!(counted(&image, FaultKind::Rollback), (1, 0), "this file is as it was");
    let mut by_name = image.clone();
    assert_eq!(read(&mut image, "/changed").unwrap(), b"old");
    assert_eq!(counted(&image, FaultKind::Rollback), (1, 1));
    assert_eq!(by_name.list(root()).unwrap(), ["changed", "kept", "removed"]);
    assert_eq!(counted(&by_name, FaultKind::Rollback), (1, 1));
}

#[test]
fn after_a_rollback_no_number_comes_again() {
    let mut image = Image::new();
    write_synced(&mut image, "/LOCK", b"");
    let older = image.clone();
    let before = image.lock(Path::new("/LOCK")).unwrap();
    image.rollback(&older);
    image.lock(Path::new("/LOCK")).unwrap();
    image.unlock(before);
    assert_eq!(image.lock(Path::new("/LOCK")).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_wiped_disk_is_empty_and_one_that_was_empty_does_not_show_it() {
    let mut empty = Image::new();
    empty.wipe();
    assert!(empty.list(root()).unwrap().is_empty());
    assert_eq!(counted(&empty, FaultKind::Wipe), (1, 0));
    let mut image = Image::new();
    image.create_dir_all(Path::new("/data")).unwrap();
    let id = write(&mut image, "/data/a", b"x");
    image.wipe();
    assert!(is_off(&image.size(id).unwrap_err()));
    assert_eq!(read(&mut image, "/other").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(counted(&image, FaultKind::Wipe), (1, 0));
    assert_eq!(read(&mut image, "/data/a").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(counted(&image, FaultKind::Wipe), (1, 1));
}

/// A busy history under all faults by chance.
fn under_rates(rates: Rates, seed: u64) -> (FaultCounts, Vec<Option<Vec<u8>>>) {
    let mut image = Image::new();
    let mut written = Vec::new();
    image.set_rates(rates, random(seed));
    let mut losses = random(seed + 1);
    for round in 0..30_u8 {
        let Ok(id) = image.open(Path::new("/a"), true) else { continue };
        let _ = image.sync_dir(root());
        for n in 0..20_u8 {
            let _ = image.write_at(id, u64::from(n) * 600, vec![round + 1; 600].into());
            let _ = image.sync_data(id);
            let _ = image.size(id).and_then(|len| image.read_at(id, 0, usize::try_from(len).unwrap()));
        }
        image.power_loss(&mut losses, LossOdds::default());
        written.push(read(&mut image, "/a").ok());
    }
    (image.counts().clone(), written)
}

#[test]
fn every_fault_that_has_a_rate_comes_by_chance_and_the_same_generator_brings_the_same() {
    let rates = Rates {
        sync_error: 0.05,
        sync_lie: 0.05,
        read_error: 0.05,
        short_read: 0.05,
        misdirected_write: 0.05,
        bit_flip: 0.05,
        evict: 0.2,
    };
    let (counts, written) = under_rates(rates, 11);
    assert_eq!((counts.clone(), written), under_rates(rates, 11));
    assert_ne!(counts, under_rates(rates, 12).0);
    for kind in [
        FaultKind::SyncError,
        FaultKind::SyncLie,
        FaultKind::ReadError,
        FaultKind::ShortRead,
        FaultKind::MisdirectedWrite,
        FaultKind::BitFlip,
    ] {
        let count = counts.of(kind);
        assert!(count.effective > 0 && count.fired < 200, "{kind:?}: {count:?}");
    }
    for (kind, count) in counts.iter() {
        assert!(count.effective <= count.fired, "{kind:?}: {count:?}");
    }
    let (none, _) = under_rates(Rates::default(), 11);
    assert_eq!(none, FaultCounts::default(), "without rates nothing was unsynced or wrong");
}

#[test]
fn counts_of_several_disks_add_up() {
    let mut empty = Image::new();
    empty.wipe();
    let mut sum = empty.counts().clone();
    sum.add(empty.counts());
    assert_eq!(sum.of(FaultKind::Wipe), Count { fired: 2, effective: 0 });
    assert_eq!(sum.iter().map(|(_, count)| count.fired).sum::<u64>(), 2);
    for (place, kind) in FaultKind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, place);
    }
}
