//! The disk against a naive one, over small files and all subsets of what is unsynced.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Write(u8, u8, u8),
    SetLen(u8),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..20_u8, 1..8_u8, 1..=255_u8).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
        1 => (0..20_u8).prop_map(Step::SetLen),
        1 => Just(Step::Sync),
    ]
}

fn apply(bytes: &mut Vec<u8>, step: &Step) {
    match *step {
        Step::Write(at, len, byte) => {
            let (from, to) = (usize::from(at), usize::from(at + len));
            bytes.resize(bytes.len().max(to), 0);
            bytes[from..to].fill(byte);
        }
        Step::SetLen(len) => bytes.resize(usize::from(len), 0),
        Step::Sync => {}
    }
}

/// Moves the small file across the border of two pages, where there is more to get wrong.
const BASE: u64 = content::PAGE as u64 - 10;

fn tail(image: &mut Image, path: &str) -> Vec<u8> {
    let base = usize::try_from(BASE).unwrap();
    read(image, path).unwrap().split_off(base)
}

fn run(image: &mut Image, id: FileId, step: &Step) {
    match *step {
        Step::Write(at, len, byte) => {
            let bytes = vec![byte; usize::from(len)];
            image.write_at(id, BASE + u64::from(at), bytes.into()).unwrap();
        }
        Step::SetLen(len) => image.set_len(id, BASE + u64::from(len)).unwrap(),
        Step::Sync => image.sync_data(id).unwrap(),
    }
}

#[derive(Debug, Clone)]
enum NameStep {
    Create(usize),
    Rename(usize, usize),
    Remove(usize),
    Sync,
}

const NAMES: [&str; 3] = ["/a", "/b", "/c"];

fn name_step() -> impl Strategy<Value = NameStep> {
    prop_oneof![
        3 => (0..3_usize).prop_map(NameStep::Create),
        3 => (0..3_usize, 0..3_usize).prop_map(|(from, to)| NameStep::Rename(from, to)),
        2 => (0..3_usize).prop_map(NameStep::Remove),
        1 => Just(NameStep::Sync),
    ]
}

/// Name to the number that stands in the file.
type Shown = BTreeMap<usize, u8>;

fn shown(image: &mut Image) -> Shown {
    let mut shown = Shown::new();
    for (n, name) in NAMES.iter().enumerate() {
        if let Ok(bytes) = read(image, name) {
            shown.insert(n, bytes[0]);
        }
    }
    assert_eq!(image.list(root()).unwrap().len(), shown.len());
    shown
}

/// What a naive disk may show after a crash: for each file and name the changes up to some point. Found by
/// trying all subsets and leaving out those in which a change is kept whose forerunner on a name or file is not.
fn allowed(durable: &Shown, changes: &[(Option<usize>, Option<usize>, u8)]) -> BTreeSet<Shown> {
    let mut all = BTreeSet::new();
    for kept in 0..1_u32 << changes.len() {
        let is_kept = |n: usize| kept & (1 << n) != 0;
        let tied = |a: usize, b: usize| {
            let (from, to, file) = changes[a];
            let (other_from, other_to, other_file) = changes[b];
            let names = [from, to];
            file == other_file
                || [other_from, other_to].iter().any(|name| name.is_some() && names.contains(name))
        };
        if (0..changes.len()).any(|later| is_kept(later) && (0..later).any(|n| !is_kept(n) && tied(n, later)))
        {
            continue;
        }
        let mut shown = durable.clone();
        for (from, to, file) in (0..changes.len()).filter(|n| is_kept(*n)).map(|n| changes[n]) {
            if let Some(from) = from {
                shown.remove(&from);
            }
            if let Some(to) = to {
                shown.insert(to, file);
            }
        }
        all.insert(shown);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_subset_of_unsynced_writes_gives_what_a_naive_disk_gives(
        steps in prop::collection::vec(step(), 1..14)
    ) {
        let mut image = Image::new();
        let id = write_synced(&mut image, "/a", &vec![9; usize::try_from(BASE).unwrap()]);
        let (mut present, mut durable, mut unsynced) = (Vec::new(), Vec::new(), Vec::new());
        for step in &steps {
            run(&mut image, id, step);
            apply(&mut present, step);
            if matches!(step, Step::Sync) {
                durable.clone_from(&present);
                unsynced.clear();
            } else {
                unsynced.push(step);
            }
            let mut seen = image.clone();
            prop_assert_eq!(&tail(&mut seen, "/a"), &present);
            seen.evict(Path::new("/a"));
            prop_assert_eq!(&tail(&mut seen, "/a"), &present, "eviction lost a dirty page");
        }
        prop_assert_eq!(image.unsynced(), unsynced.len());
        for kept in 0..1_u32 << unsynced.len() {
            let mut left = image.clone();
            left.keep_only(|n| kept & (1 << n) != 0);
            let mut expected = durable.clone();
            for n in (0..unsynced.len()).filter(|n| kept & (1 << n) != 0) {
                apply(&mut expected, unsynced[n]);
            }
            let bytes = tail(&mut left, "/a");
            prop_assert_eq!(&bytes, &expected);
            // Nothing is effective unless something is missing or was overtaken.
            let effective: u64 = left.counts().iter().map(|(_, count)| count.effective).sum();
            let all_kept = kept + 1 == 1_u32 << unsynced.len();
            prop_assert!(!all_kept || effective == 0);
            prop_assert!(bytes == present || effective > 0, "a loss that was read was not counted");
        }
    }

    #[test]
    fn names_after_a_crash_are_those_of_a_history_and_all_of_them_come_up(
        steps in prop::collection::vec(name_step(), 1..9)
    ) {
        let mut image = Image::new();
        let (mut present, mut durable, mut changes) = (Shown::new(), Shown::new(), Vec::new());
        let mut number = 0;
        for step in &steps {
            match *step {
                NameStep::Create(name) if present.contains_key(&name) => {}
                NameStep::Create(name) => {
                    number += 1;
                    let id = write(&mut image, NAMES[name], &[number]);
                    image.sync_data(id).unwrap();
                    image.close(id);
                    present.insert(name, number);
                    changes.push((None, Some(name), number));
                }
                NameStep::Rename(from, to) => {
                    let result = image.rename(Path::new(NAMES[from]), Path::new(NAMES[to]));
                    prop_assert_eq!(result.is_ok(), present.contains_key(&from));
                    if from != to && let Some(file) = present.remove(&from) {
                        present.insert(to, file);
                        changes.push((Some(from), Some(to), file));
                    }
                }
                NameStep::Remove(name) => {
                    let result = image.remove(Path::new(NAMES[name]));
                    prop_assert_eq!(result.is_ok(), present.contains_key(&name));
                    if let Some(file) = present.remove(&name) {
                        changes.push((Some(name), None, file));
                    }
                }
                NameStep::Sync => {
                    image.sync_dir(root()).unwrap();
                    durable.clone_from(&present);
                    changes.clear();
                }
            }
            prop_assert_eq!(&shown(&mut image.clone()), &present);
        }
        let expected = allowed(&durable, &changes);
        let mut seen = BTreeSet::new();
        for kept in 0..1_u32 << changes.len() {
            let mut left = image.clone();
            left.keep_only(|n| kept & (1 << n) != 0);
            let left = shown(&mut left);
            prop_assert!(expected.contains(&left), "{left:?} is none of {expected:?}");
            seen.insert(left);
        }
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn a_drawn_outcome_holds_no_byte_that_was_never_at_its_place(
        steps in prop::collection::vec(step(), 1..14), seed in 0..u64::MAX
    ) {
        let mut image = Image::new();
        let id = write_synced(&mut image, "/a", &vec![9; usize::try_from(BASE).unwrap()]);
        let (mut durable, mut unsynced) = (Vec::new(), Vec::new());
        let mut present = Vec::new();
        for step in &steps {
            run(&mut image, id, step);
            apply(&mut present, step);
            if matches!(step, Step::Sync) {
                durable.clone_from(&present);
                unsynced.clear();
            } else {
                unsynced.push(step);
            }
        }
        image.power_loss(&mut random(seed), LossOdds::default());
        for (at, byte) in tail(&mut image, "/a").into_iter().enumerate() {
            let written = unsynced.iter().any(|step| match **step {
                Step::Write(from, len, value) => {
                    (usize::from(from)..usize::from(from + len)).contains(&at) && value == byte
                }
                _ => false,
            });
            // Zero: a gap, or what a lengthening left.
            let zero = byte == 0 && !unsynced.is_empty();
            prop_assert!(written || zero || durable.get(at) == Some(&byte), "byte {at} is {byte}");
        }
    }
}
