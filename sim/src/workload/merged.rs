//! Sets and counters over siblings: read, merge what stands side by side, change, write back with the context.
//!
//! ```text
//!   set       siblings {1 2}, {1 3}          ──▶ {1 2 3} + 4          a union
//!   counter   siblings {a=5 b=2}, {a=5 b=3}  ──▶ {a=5 b=3}, a += 1    the larger of each client's own count
//! ```
//! The set is the test that Jepsen gave Riak and Cassandra: no element that was acknowledged may be missing in the end. A
//! client whose outcome is unknown goes on counting under another name, since the count may have arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jepsen_like_checks::event::{Event, Kind, Payload};
use jepsen_like_checks::value::Value;
use rand::RngExt;
use ringdove::client::{ClientError, ReadOptions, WriteOptions};
use ringdove::net::message::{Durability, Version};
use ringdove::types::Key;

use super::{Quorum, Session};
use crate::history::event;

/// Keys of sets, and as many of counters.
const KEYS: u32 = 2;

pub(super) fn set_key(number: u32) -> Key {
    Key::new(format!("set{number}").into_bytes()).expect("a short key")
}

pub(super) fn counter_key(number: u32) -> Key {
    Key::new(format!("counter{number}").into_bytes()).expect("a short key")
}

/// All keys of sets and counters, with whether it is a counter.
pub(crate) fn keys() -> impl Iterator<Item = (Key, bool)> {
    (0..KEYS).flat_map(|number| [(set_key(number), false), (counter_key(number), true)])
}

fn words(values: &[Version]) -> impl Iterator<Item = &str> {
    values
        .iter()
        .flat_map(|version| std::str::from_utf8(&version.value).unwrap_or_default().split_whitespace())
}

fn set_of(values: &[Version]) -> BTreeSet<i64> {
    words(values).filter_map(|word| word.parse().ok()).collect()
}

fn counts_of(values: &[Version]) -> BTreeMap<i64, i64> {
    let mut counts = BTreeMap::new();
    for word in words(values) {
        if let Some((client, count)) = word.split_once('=')
            && let (Ok(client), Ok(count)) = (client.parse(), count.parse::<i64>())
        {
            let largest = counts.entry(client).or_insert(count);
            *largest = count.max(*largest);
        }
    }
    counts
}

fn text<T: std::fmt::Display>(words: impl Iterator<Item = T>) -> String {
    let words: Vec<String> = words.map(|word| word.to_string()).collect();
    words.join(" ")
}

impl Session {
    fn options(&mut self) -> WriteOptions {
        let Quorum { r, w, strict } = self.quorum();
        // What an interval may take is no loss that the checks of sets and counters know.
        let durability = self.settings.mixed.then_some(Durability::Sync);
        WriteOptions { r: Some(r), w: Some(w), strict, durability, ..WriteOptions::default() }
    }

    /// Adds an element that nobody adds again.
    pub(super) async fn add_to_set(&mut self) {
        let key = set_key(self.chance.random_range(0..KEYS));
        let element = self.history.element();
        let options = self.options();
        let (process, asked_at) = (self.process, self.now());
        self.push(added(Kind::Invoke, process, &key, element));
        let done = self.client.update(&key, &options, |siblings| {
            let mut set = set_of(siblings);
            set.insert(element);
            text(set.into_iter())
        });
        let done = done.await.map(|_| ());
        self.changed("set add", process, &key, element, asked_at, &done);
    }

    /// Counts up or down.
    pub(super) async fn count(&mut self) {
        let key = counter_key(self.chance.random_range(0..KEYS));
        let delta = self.chance.random_range(-3..=5);
        let options = self.options();
        let (process, asked_at) = (self.process, self.now());
        // Up and down apart: the larger of two counts is the later one only where it never falls.
        let own = if delta < 0 { -process } else { process };
        self.push(added(Kind::Invoke, process, &key, delta));
        let id = (key.clone(), own);
        // A read may be of a replica that has not heard of its last count.
        let known = self.counts.get(&id).copied().unwrap_or(0);
        let mut counted = known;
        let done = self.client.update(&key, &options, |siblings| {
            let mut counts = counts_of(siblings);
            let count = counts.entry(own).or_insert(0);
            *count = known.max(*count) + delta.abs();
            counted = *count;
            text(counts.into_iter().map(|(client, count)| format!("{client}={count}")))
        });
        let done = done.await.map(|_| ());
        if done.is_ok() {
            self.counts.insert(id, counted);
        }
        self.changed("counter add", process, &key, delta, asked_at, &done);
    }

    fn changed(
        &mut self,
        what: &'static str,
        process: i64,
        key: &Key,
        value: i64,
        asked_at: Duration,
        done: &Result<(), ClientError>,
    ) {
        let (kind, outcome) = match done {
            Ok(()) => (Kind::Ok, "ok"),
            Err(ClientError::Unknown(_)) => (Kind::Info, self.unknown_outcome(asked_at)),
            Err(_) => (Kind::Fail, "fail"),
        };
        self.world.record(&self.name, "changed", format_args!("{key} {value} {outcome}"));
        self.push(added(kind, process, key, value));
        self.history.count(what, outcome);
        if kind == Kind::Info {
            self.process = self.history.process();
        }
    }

    /// Reads a whole set, on the way.
    pub(super) async fn read_set(&mut self) {
        let key = set_key(self.chance.random_range(0..KEYS));
        let Quorum { r, strict, .. } = self.quorum();
        let options = ReadOptions { r: Some(r), strict, ..ReadOptions::default() };
        let process = self.process;
        self.push(event(Kind::Invoke, process, "read", &key));
        let read = self.client.get(&key, &options).await;
        self.read_whole(process, &key, false, read.map(|reply| reply.values));
    }

    /// Writes down what a read of a set or counter gave. True if it gave something.
    pub(super) fn read_whole(
        &mut self,
        process: i64,
        key: &Key,
        is_counter: bool,
        read: Result<Vec<Version>, ClientError>,
    ) -> bool {
        let Ok(values) = read else {
            self.push(event(Kind::Fail, process, "read", key));
            self.history.count("whole read", "fail");
            return false;
        };
        let value = if is_counter {
            Value::Int(counts_of(&values).into_iter().map(|(client, count)| count * client.signum()).sum())
        } else {
            Value::Vector(set_of(&values).into_iter().map(Value::Int).collect())
        };
        self.world.record(&self.name, "whole", format_args!("{key} {value:?}"));
        let value = Some(Payload::Value(value));
        self.push(Event { value, ..event(Kind::Ok, process, "read", key) });
        self.history.count("whole read", "ok");
        true
    }
}

fn added(kind: Kind, process: i64, key: &Key, value: i64) -> Event<'static> {
    Event { value: Some(Payload::Value(Value::Int(value))), ..event(kind, process, "add", key) }
}
