//! Histories recorded from real systems: every verdict as it is listed beside them.

#![allow(clippy::disallowed_methods)] // a test that reads files where they are

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use jepsen_like_checks::event::Event;
use jepsen_like_checks::formats::{self, Source, edn, etcd, json};
use jepsen_like_checks::history::History;
use jepsen_like_checks::linearizability::{self, Model};
use jepsen_like_checks::{Options, Verdict};

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("RINGDOVE_HISTORIES").map(PathBuf::from);
    if folder.is_none() {
        println!("RINGDOVE_HISTORIES is not set: no recorded history was judged");
    }
    folder
}

fn listed(folder: &Path) -> Vec<(String, Model, bool)> {
    let list = fs::read_to_string(folder.join("verdicts.tsv")).unwrap();
    let rows = list.lines().skip(1).map(|line| {
        let [file, model, valid] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let model = Model::ALL.into_iter().find(|known| known.name() == model).unwrap();
        (file.to_owned(), model, valid.parse().unwrap())
    });
    rows.collect()
}

fn source(path: &Path) -> Box<dyn Source> {
    let input = BufReader::new(File::open(path).unwrap());
    if path.extension().is_some_and(|extension| extension == "log") {
        Box::new(etcd::Reader::new(input))
    } else {
        Box::new(edn::Reader::new(input))
    }
}

struct Boxed(Box<dyn Source>);

impl Source for Boxed {
    fn next(&mut self) -> Result<Option<(formats::Place, Event<'_>)>, jepsen_like_checks::event::InputError> {
        self.0.next()
    }
}

fn read(path: &Path) -> History {
    formats::read(&mut Boxed(source(path))).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn recorded_histories_get_the_verdicts_that_are_listed() {
    let Some(folder) = folder() else { return };
    let (mut valid, mut invalid) = (0, 0);
    let mut wrong = Vec::new();
    for (file, model, expected) in listed(&folder) {
        let history = read(&folder.join(&file));
        let verdict = linearizability::check(&history, model, &Options::default());
        let found = match verdict {
            Verdict::Valid { .. } => true,
            Verdict::Invalid { .. } => false,
            Verdict::Unknown { .. } => !expected,
        };
        if found != expected {
            wrong.push(format!("{file}: {verdict}"));
        }
        *if expected { &mut valid } else { &mut invalid } += 1;
    }
    println!("{valid} linearizable and {invalid} other histories");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(valid > 10 && invalid > 10);
}

#[test]
fn recorded_histories_are_the_same_after_a_trip_through_each_format() {
    let Some(folder) = folder() else { return };
    for (file, model, _) in listed(&folder) {
        let (mut as_edn, mut as_json, mut as_log) = (Vec::new(), Vec::new(), Vec::new());
        let mut reader = source(&folder.join(&file));
        let mut events = Vec::new();
        while let Some((_, event)) = reader.next().unwrap() {
            edn::write(&mut as_edn, &event).unwrap();
            json::write(&mut as_json, &event).unwrap();
            if file.ends_with(".log") {
                etcd::write(&mut as_log, &event).unwrap();
            }
            events.push(format!("{event:?}"));
        }
        let mut log = etcd::Reader::new(&as_log[..]);
        let mut at = 0;
        while let Some((_, event)) = log.next().unwrap() {
            assert_eq!(format!("{event:?}"), events[at], "{file}, event {at}");
            at += 1;
        }
        assert!(at == events.len() || !file.ends_with(".log"), "{file}");
        let mut again = edn::Reader::new(&as_edn[..]);
        let mut at = 0;
        while let Some((_, event)) = again.next().unwrap() {
            assert_eq!(format!("{event:?}"), events[at], "{file}, event {at}");
            at += 1;
        }
        assert_eq!(at, events.len());
        let options = Options::default();
        let from_json = formats::read(&mut json::Reader::new(&as_json[..])).unwrap();
        let from_file = read(&folder.join(&file));
        let verdicts =
            [&from_json, &from_file].map(|history| linearizability::check(history, model, &options));
        assert_eq!(verdicts[0].word(), verdicts[1].word(), "{file}");
        assert_eq!(verdicts[0].judged(), verdicts[1].judged(), "{file}");
    }
}
