//! Scans of all keys, of a prefix or a range, forth and back, whole or in part.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use jepsen_like_checks::event::{Event, Kind, Payload};
use rand::RngExt;
use rand::seq::IndexedRandom;
use ringdove::dynamo::ring::PartitionCount;
use ringdove::net::message::{Order, Scan};
use ringdove::types::{Key, Namespace};

use super::{Quorum, Seen, Session, sibling_of};
use crate::history::{covers, event};

impl Session {
    /// What to scan.
    fn draw_scan(&mut self, r: u8) -> Scan {
        let (one, other) = (self.key(), self.key());
        let range = match self.chance.random_range(0..4) {
            0 => Scan::prefix(b"key"),
            1 => Scan::prefix(&one.as_bytes()[..one.as_bytes().len().min(4)]),
            2 => {
                let (from, to) = (one.clone().min(other.clone()), one.max(other));
                let bytes = |key: &Key| Bytes::copy_from_slice(key.as_bytes());
                Scan { from: bytes(&from), to: bytes(&to), ..Scan::all() }
            }
            _ => Scan::all(),
        };
        let order = *[Order::Ascending, Order::Descending].choose(&mut self.chance).expect("some");
        let (limit, partial) = (self.chance.random_range(1..=50), self.chance.random_bool(0.3));
        Scan { limit, r: Some(r), order, partial, ..range }
    }

    /// A range of keys, page by page. Each page reads the keys that it passes, those that are not there too.
    pub(super) async fn scan(&mut self) {
        let asked_at = self.now();
        let quorum = Quorum { r: self.settings.r, strict: true, ..self.quorum() };
        let scan = self.draw_scan(quorum.r);
        let (order, partial) = (scan.order, scan.partial);
        let is_in = |key: &Key| {
            key.as_bytes() >= &scan.from[..] && (scan.to.is_empty() || key.as_bytes() < &scan.to[..])
        };
        let mut keys: Vec<Key> = self.keys.iter().map(|(key, _)| key.clone()).filter(is_in).collect();
        keys.sort();
        let processes: Vec<i64> = keys.iter().map(|_| self.history.process()).collect();
        for (key, process) in keys.iter().zip(&processes) {
            self.push(self.asked(Kind::Invoke, *process, "get", key, quorum));
        }
        let mut pages = self.client.scan(scan.clone());
        let (mut passed, mut found) = (None, BTreeMap::new());
        let mut left_out = BTreeSet::new();
        let mut whole = false;
        let deadline = self.now() + Duration::from_millis(self.settings.timeout_ms * 4);
        while self.now() < deadline {
            match pages.next_page().await {
                Ok(Some(page)) => {
                    passed = page.cursor.clone().or(passed);
                    found.extend(page.items.into_iter().map(|item| (item.key.clone(), item)));
                    left_out.extend(page.missing.iter().copied());
                    if !page.missing.is_empty() && !partial {
                        break;
                    }
                }
                Ok(None) => {
                    whole = true;
                    break;
                }
                Err(_) => break,
            }
        }
        let is_whole = whole && left_out.is_empty();
        let outcome = if is_whole { "ok" } else { "fail" };
        self.history.count(if order == Order::Ascending { "scan" } else { "scan back" }, outcome);
        if !is_whole {
            self.history.hit("a scan that was not whole");
        }
        if whole && !left_out.is_empty() {
            self.history.hit("a scan passed over what it could not read");
        }
        let partitions = PartitionCount::new(self.settings.partitions).expect("checked");
        for (key, process) in keys.iter().zip(processes) {
            let is_passed = whole
                || passed.as_ref().is_some_and(|cursor| match order {
                    Order::Ascending => key <= cursor,
                    Order::Descending => key >= cursor,
                });
            if !is_passed || left_out.contains(&partitions.partition_of(Namespace::default(), key)) {
                self.push(event(Kind::Fail, process, "get", key));
                continue;
            }
            let item = found.remove(key);
            item.iter().for_each(|item| self.judge_values(key, &item.values));
            let covers = item.as_ref().map(|item| covers(&self.context(key, &item.context)));
            let values = item.iter().flat_map(|item| item.values.iter()).map(sibling_of).collect();
            let clock = Some(self.clock(asked_at));
            let value = Some(Payload::Siblings(values));
            let index = self.push(Event { value, covers, clock, ..event(Kind::Ok, process, "get", key) });
            if let Some(item) = item {
                let seen = Seen { token: item.context, index, at: self.now() };
                self.seen.insert(key.clone(), seen);
            }
        }
    }
}
