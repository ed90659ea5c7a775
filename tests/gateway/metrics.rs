//! `/metrics` and `/health`.

use std::collections::{BTreeMap, BTreeSet};

use ringdove::net::message::Trees;
use ringdove::types::PartitionId;

use crate::http::Rest;

/// Name, kind and meaning of each family.
type Families = BTreeMap<String, (String, String)>;

fn families_of(scrape: &str) -> Families {
    let (mut help, mut families) = (BTreeMap::new(), Families::new());
    for line in scrape.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect("a name and its help");
            assert!(help.insert(name.to_owned(), words.to_owned()).is_none(), "{name} twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and its kind");
            families.insert(name.to_owned(), (kind.to_owned(), help[name].clone()));
        }
    }
    assert_eq!(help.len(), families.len());
    families
}

/// The rows of the table in docs/OPERATIONS.md: `name` | kind | labels | meaning.
fn families_of_the_docs() -> (Families, BTreeMap<String, BTreeSet<String>>) {
    let (mut families, mut labels) = (Families::new(), BTreeMap::new());
    let page = include_str!("../../docs/OPERATIONS.md");
    for row in page.lines().filter(|line| line.starts_with("| `ringdove_")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, its_labels, meaning] = cells[..] else { panic!("four cells: {row}") };
        let name = name.trim_matches('`').to_owned();
        let its_labels = its_labels.split(',').map(str::trim).filter(|label| !label.is_empty());
        labels.insert(name.clone(), its_labels.map(str::to_owned).collect());
        assert!(families.insert(name, (kind.to_owned(), meaning.to_owned())).is_none(), "twice: {row}");
    }
    (families, labels)
}

/// One sample: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

fn samples_of(scrape: &str) -> Vec<Sample> {
    let lines = scrape.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').expect("a closing brace");
            let labels = labels.split("\",").filter(|label| !label.is_empty()).map(|label| {
                let (name, value) = label.split_once("=\"").expect("a label");
                (name.to_owned(), value.trim_end_matches('"').to_owned())
            });
            (name.to_owned(), labels.collect(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
        })
        .collect()
}

#[tokio::test]
async fn the_operators_page_lists_what_a_scrape_shows_in_the_same_words() {
    let rest = Rest::start(3).await;
    rest.put("/kv/dove", "grey").await;
    rest.get("/kv/dove").await;
    let scrape = rest.get("/metrics").await;
    assert_eq!(scrape.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let (documented, labels) = families_of_the_docs();
    let shown = families_of(&scrape.text());
    for (name, family) in &shown {
        assert_eq!(documented.get(name), Some(family), "{name} in docs/OPERATIONS.md");
    }
    for name in documented.keys() {
        assert!(shown.contains_key(name), "{name} is documented and not shown");
    }
    // The labels too, of every series.
    for (name, its_labels, _) in samples_of(&scrape.text()) {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            name.strip_suffix(end)
                .filter(|base| shown.get(*base).is_some_and(|family| family.0 == "histogram"))
        });
        let family = family.unwrap_or(&name);
        let mut names: BTreeSet<String> = its_labels.keys().cloned().collect();
        names.remove("le");
        assert_eq!(labels.get(family), Some(&names), "labels of {name} in docs/OPERATIONS.md");
    }
}

#[tokio::test]
async fn a_scrape_is_well_formed_and_its_histograms_add_up() {
    let rest = Rest::start(3).await;
    for n in 0..20 {
        rest.put(&format!("/kv/{n}"), "x").await;
        rest.get(&format!("/kv/{n}")).await;
    }
    let spoken = ringdove::net::message::Spoken::default();
    let _links = (rest.cluster.link(0, spoken).await, rest.cluster.link(0, spoken).await);
    let _peer = rest.cluster.peer_link(0).await;
    let text = rest.get("/metrics").await.text();
    let families = families_of(&text);
    let samples = samples_of(&text);
    let mut seen = BTreeSet::new();
    let mut cumulative: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    for (name, labels, value) in &samples {
        assert!(seen.insert((name.clone(), format!("{labels:?}"))), "{name} {labels:?} twice");
        if let Some(base) = name.strip_suffix("_bucket") {
            let bound = labels["le"].parse().unwrap_or(f64::INFINITY);
            let others: BTreeMap<_, _> = labels.iter().filter(|(label, _)| *label != "le").collect();
            cumulative.entry((base.to_owned(), format!("{others:?}"))).or_default().push((bound, *value));
        }
        if families.get(name).is_some_and(|family| family.0 == "counter") {
            assert!(name.ends_with("_total"), "{name} is a counter by its kind and not by its name");
        }
    }
    for ((name, labels), buckets) in &cumulative {
        assert_eq!(families[name].0, "histogram");
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {labels}: {buckets:?}");
        let count = samples.iter().find(|sample| {
            sample.0 == format!("{name}_count")
                && format!("{:?}", sample.1.iter().collect::<BTreeMap<_, _>>()) == *labels
        });
        assert_eq!(count.unwrap().2, buckets.last().unwrap().1, "{name} {labels}");
    }
    let value = |name: &str, wanted: &[(&str, &str)]| {
        let is_it = |sample: &&Sample| {
            sample.0 == name
                && wanted.iter().all(|(label, value)| sample.1.get(*label).is_some_and(|v| v == value))
        };
        samples.iter().find(is_it).unwrap_or_else(|| panic!("no {name} {wanted:?}")).2
    };
    let done = |operation| {
        value(
            "ringdove_request_seconds_count",
            &[("operation", operation), ("door", "rest"), ("outcome", "done")],
        )
    };
    assert_eq!((done("put"), done("get")), (20.0, 20.0));
    assert_eq!(value("ringdove_quorum_wait_seconds_count", &[("kind", "write")]), 20.0);
    assert_eq!(value("ringdove_siblings_per_read_bucket", &[("le", "1")]), 20.0);
    assert_eq!(value("ringdove_rest_responses_total", &[("status", "204")]), 20.0);
    assert_eq!(value("ringdove_storage_keys", &[("table", "data")]), 20.0);
    assert_eq!(value("ringdove_storage_writable", &[]), 1.0);
    assert_eq!(value("ringdove_peer_up", &[("peer", "n2")]), 1.0);
    assert!(value("ringdove_storage_sync_seconds_count", &[]) >= 1.0);
    let hits =
        value("ringdove_storage_cache_hits_total", &[]) + value("ringdove_storage_cache_misses_total", &[]);
    assert!(hits >= 20.0, "each read looked for its record");
    let dead = value("ringdove_storage_dead_ratio", &[]);
    assert!((0.0..1.0).contains(&dead), "{dead}");
    let connections = |door| value("ringdove_connections", &[("door", door)]);
    assert_eq!(connections("rest"), 1.0, "the scrape's own");
    assert_eq!(connections("binary"), 2.0);
    let peers = connections("peer");
    assert!(
        (1.0..=3.0).contains(&peers),
        "{peers}: the test's own, and of the others those that have come to gossip"
    );
    for name in ["ringdove_request_bytes", "ringdove_unread_bytes"] {
        assert_eq!((value(name, &[("door", "binary")]), value(name, &[("door", "peer")])), (0.0, 0.0));
    }
    assert_eq!(value("ringdove_admission_wait_seconds", &[]), 0.0, "it is not busy");
}

#[tokio::test]
async fn health_says_live_and_ready() {
    let rest = Rest::start(3).await;
    let live = rest.get("/health/live").await;
    assert_eq!((live.status, &live.json()["status"]), (200, &"live".into()));
    let ready = rest.get("/health/ready").await;
    assert_eq!(
        (ready.status, &ready.json()["status"], &ready.json()["writes"]),
        (200, &"ready".into(), &"taken".into())
    );
    assert_eq!(rest.ask("HEAD", "/health/ready", &[], "").await.status, 200);
}

#[tokio::test]
async fn looks_are_counted_by_kind_on_the_node_that_was_looked_at() {
    let rest = Rest::start(3).await;
    rest.get("/explain/dove").await;
    rest.get("/explain/dove").await;
    let node = &rest.cluster.nodes[0];
    node.reaping();
    node.trees(Trees { partition: None }).await.unwrap();
    assert!(
        node.trees(Trees { partition: Some(PartitionId(u32::MAX)) }).await.is_err(),
        "refused, and counted"
    );
    let looks = |scrape: String| -> BTreeMap<String, f64> {
        let samples = samples_of(&scrape).into_iter();
        let looks = samples.filter(|(name, ..)| name == "ringdove_looks_total");
        looks.map(|(_, labels, value)| (labels["kind"].clone(), value)).collect()
    };
    let of = |explain, inspect, trees, reaping| -> BTreeMap<String, f64> {
        let counts = [("explain", explain), ("inspect", inspect), ("trees", trees), ("reaping", reaping)];
        counts.map(|(kind, count)| (kind.to_owned(), f64::from(count))).into()
    };
    assert_eq!(looks(rest.get("/metrics").await.text()), of(2, 0, 2, 1));
    let second = rest.ask_at(1, "GET", "/metrics", &[], "").await;
    assert_eq!(looks(second.text()), of(0, 2, 0, 0), "it was asked by the first");
}
