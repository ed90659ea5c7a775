//! `/metrics`: what the node counts, as Prometheus text (exposition format 0.0.4).
//!
//! A scrape reads atomics and visits every partition's index once; it stops nothing. Families are always there with
//! their help, series of a family from their first event on. docs/OPERATIONS.md lists the same families with the same
//! words; `tests/gateway` compares them.

use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::{App, Gateway};
use crate::measure::Histogram;
use crate::net::serve::Load;
use crate::node::metrics::{Door, Look, Operation, Outcome};

const MICROSECONDS: f64 = 1e6;

/// The text in the making.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    /// A family of one number.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.one(name, "counter", help, value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.one(name, "gauge", help, value);
    }

    /// The series of a histogram; `unit` is how many of its numbers make one of the family's.
    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], unit: f64, histogram: &Histogram) {
        #[allow(clippy::cast_precision_loss)] // figures for people; 2^53 µs are 285 years
        let in_unit = |number: u64| number as f64 / unit;
        let bounds = histogram.bounds().iter().map(|bound| in_unit(*bound).to_string());
        // All from one look at the buckets: the last is the count, whatever is entered meanwhile.
        let mut count = 0;
        let bucket = format!("{name}_bucket");
        for (bound, numbers) in bounds.chain(["+Inf".to_owned()]).zip(histogram.buckets()) {
            count += numbers;
            let labels: Vec<(&str, &str)> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&bucket, &labels, count);
        }
        self.sample(&format!("{name}_sum"), labels, in_unit(histogram.sum()));
        self.sample(&format!("{name}_count"), labels, count);
    }
}

/// GET.
pub(super) async fn metrics(State(gateway): App) -> Response {
    let mut text = Text(String::with_capacity(32 * 1024));
    requests(&mut text, &gateway);
    quorums(&mut text, &gateway);
    storage(&mut text, &gateway);
    peers(&mut text, &gateway);
    doors(&mut text, &gateway);
    rest(&mut text, &gateway);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.0).into_response()
}

fn requests(text: &mut Text, gateway: &Gateway) {
    let (node, metrics) = (&gateway.node, gateway.node.metrics());
    let status = node.status();
    let (id, cluster) = (node.id().to_string(), status.cluster.to_string());
    text.family(
        "ringdove_info",
        "gauge",
        "Always 1; its labels say which program, node and cluster this is.",
    );
    text.sample("ringdove_info", &[("version", &status.program), ("node", &id), ("cluster", &cluster)], 1);
    #[allow(clippy::cast_precision_loss)] // for people
    let uptime = status.uptime_ms as f64 / 1000.0;
    text.gauge("ringdove_uptime_seconds", "Time since the node's start.", uptime);

    let name = "ringdove_request_seconds";
    let help = "Requests of clients, by operation, door (binary, rest, peer: passed on by another node) and outcome (of a \
                batch, that of the item that ended worst), with the time that they took.";
    text.family(name, "histogram", help);
    for operation in Operation::ALL {
        for door in Door::ALL {
            for outcome in Outcome::ALL {
                let histogram = metrics.requests(operation, door, outcome);
                if histogram.count() > 0 {
                    let labels =
                        [("operation", operation.name()), ("door", door.name()), ("outcome", outcome.name())];
                    text.histogram(name, &labels, MICROSECONDS, histogram);
                }
            }
        }
    }
    let name = "ringdove_looks_total";
    let help = "Requests to look at the node rather than its data, by kind: explain (a key, for a client), inspect (the same, for \
                another node), trees, reaping.";
    text.family(name, "counter", help);
    for look in Look::ALL {
        text.sample(name, &[("kind", look.name())], metrics.looks(look).get());
    }
    text.gauge("ringdove_requests_in_flight", "Requests that are being carried out.", metrics.in_flight());
    let help = "How long a request that comes now would wait, by the pace at which others get done; 0 while the node is not busy.";
    text.gauge("ringdove_admission_wait_seconds", help, gateway.node.estimated_wait().as_secs_f64());
    let help = "Requests turned away so that others are done in time, by why: in-flight (too many at once), late (their time \
                was up before they began), wait (they would not be done in time), connections (too many, REST), memory (too many bytes held, REST).";
    text.family("ringdove_shed_total", "counter", help);
    for (why, count) in [
        ("in-flight", &metrics.shed_in_flight),
        ("late", &metrics.shed_late),
        ("wait", &metrics.shed_wait),
        ("connections", &gateway.counts.connections_refused),
        ("memory", &gateway.counts.memory_refused),
    ] {
        text.sample("ringdove_shed_total", &[("why", why)], count.get());
    }
    text.gauge("ringdove_partitions", "Partitions of which the node is a primary.", status.partitions);
    let help = "Of these, those whose data it holds for certain.";
    text.gauge("ringdove_partitions_refilled", help, status.partitions_refilled);
    text.gauge(
        "ringdove_layout_version",
        "Version of the layout that the node goes by.",
        status.layout.version,
    );
}

fn quorums(text: &mut Text, gateway: &Gateway) {
    let metrics = gateway.node.metrics();
    let (reads, writes) = ([("kind", "read")], [("kind", "write")]);
    let name = "ringdove_quorum_wait_seconds";
    let help = "Time from the start of a read until R replicas had answered, and of a write until W replicas held it.";
    text.family(name, "histogram", help);
    text.histogram(name, &reads, MICROSECONDS, &metrics.read_quorum_wait);
    text.histogram(name, &writes, MICROSECONDS, &metrics.write_quorum_wait);
    let name = "ringdove_quorum_shortfalls_total";
    let help = "Reads that fewer than R replicas answered, and writes of which it is not known whether W replicas hold them.";
    text.family(name, "counter", help);
    text.sample(name, &reads, metrics.read_shortfalls.get());
    text.sample(name, &writes, metrics.write_shortfalls.get());
    let name = "ringdove_siblings_per_read";
    text.family(name, "histogram", "Live values that a read found; above 1 they are siblings.");
    text.histogram(name, &[], 1.0, &metrics.siblings_per_read);
    let help = "Records sent to replicas that a read found behind.";
    text.counter("ringdove_read_repairs_total", help, metrics.read_repairs.get());
    let help = "Of these, those that did not arrive.";
    text.counter("ringdove_read_repairs_failed_total", help, metrics.read_repairs_failed.get());
    let help = "Of the records sent after reads, those to be kept for primaries that were down.";
    text.counter("ringdove_guests_repaired_total", help, metrics.guests_repaired.get());
    let help = "Records sent to fallbacks, to be kept for primaries.";
    text.counter("ringdove_guests_sent_total", help, metrics.guests_sent.get());
    let help = "Records kept for another node that were handed to it.";
    text.counter("ringdove_guests_delivered_total", help, metrics.guests_delivered.get());
    let help = "Of these, those that changed meanwhile and are handed over once more.";
    text.counter("ringdove_guests_outrun_total", help, metrics.guests_outrun.get());
    let help = "Records kept for other nodes that could not be read, let go once every primary had what any of them held.";
    text.counter("ringdove_guests_lost_total", help, metrics.guests_lost.get());
    let help = "Times that a round of handing over ended early.";
    text.counter("ringdove_handoff_failures_total", help, metrics.handoff_failures.get());
    let help = "Records to be kept for other nodes that were refused because too many are.";
    text.counter("ringdove_guests_refused_total", help, metrics.guests_refused.get());
    let help = "Times that another node came to tell whose heartbeats it has heard.";
    text.counter("ringdove_gossip_total", help, metrics.gossip.get());
    let help = "Times that this node found that it had been stalled, and accused nobody for a while.";
    text.counter("ringdove_stalls_total", help, metrics.stalls.get());
    let help = "Partitions compared with another primary's.";
    text.counter("ringdove_exchanges_total", help, metrics.exchanges.get());
    let help = "Times that a partition could not be compared with those of all other primaries.";
    text.counter("ringdove_exchanges_failed_total", help, metrics.exchanges_failed.get());
    let help =
        "Keys found to differ from another primary's, counted again in each comparison that finds them.";
    text.counter("ringdove_exchange_keys_total", help, metrics.exchange_keys.get());
    let name = "ringdove_exchanged_records_total";
    let help = "Records found to differ: pulled from another primary, or pushed to it.";
    text.family(name, "counter", help);
    text.sample(name, &[("way", "pulled")], metrics.exchange_pulled.get());
    text.sample(name, &[("way", "pushed")], metrics.exchange_pushed.get());
    let help = "Partitions that count as refilled again, after they may have lost something.";
    text.counter("ringdove_partitions_refilled_total", help, metrics.partitions_refilled.get());
    let help = "Records read in search of damage.";
    text.counter("ringdove_scrubbed_records_total", help, metrics.scrubbed.get());
    let name = "ringdove_fenced_records_total";
    let help =
        "Records refused because they were read before a vote: by this node, or another's answer to it.";
    text.family(name, "counter", help);
    text.sample(name, &[("by", "this")], metrics.fenced_here.get());
    text.sample(name, &[("by", "other")], metrics.fenced.get());
    let help = "Times that this node raised a partition's fence to another's.";
    text.counter("ringdove_fences_raised_total", help, metrics.fences_raised.get());
    let help = "Copies given up because all have voted on things of which this node's disk knows nothing.";
    text.counter("ringdove_copies_given_up_total", help, metrics.copies_given_up.get());
    let help = "Rounds of reaping that this node has led.";
    text.counter("ringdove_reap_rounds_total", help, metrics.reap_rounds.get());
    let help = "Rounds of reaping that this node led and that ended early.";
    text.counter("ringdove_reap_failures_total", help, metrics.reap_failures.get());
    let help = "Keys voted on in rounds that this node has led.";
    text.counter("ringdove_reap_keys_total", help, metrics.reap_keys.get());
    let help = "Of these, those that every member agreed to.";
    text.counter("ringdove_reap_keys_agreed_total", help, metrics.reap_agreed.get());
    let help = "Rounds in which this node has voted.";
    text.counter("ringdove_reap_votes_total", help, metrics.reap_votes.get());
    let help = "Copies of which this node has taken something away after a vote.";
    text.counter("ringdove_reaped_copies_total", help, metrics.reaped.get());
    let help = "Messages that came under another layout than the node's.";
    text.counter("ringdove_wrong_layouts_total", help, metrics.wrong_layouts.get());
    let help = "Layouts taken over from other nodes.";
    text.counter("ringdove_layouts_adopted_total", help, metrics.layouts_adopted.get());
    let help = "Layouts retired here, because all that their successor moves had moved.";
    text.counter("ringdove_layouts_retired_total", help, metrics.layouts_retired.get());
    let help = "Partitions that this node let go, because other nodes hold them now.";
    text.counter("ringdove_partitions_let_go_total", help, metrics.partitions_let_go.get());
}

fn storage(text: &mut Text, gateway: &Gateway) {
    let node = &gateway.node;
    let stats = node.storage_stats();
    text.family("ringdove_storage_keys", "gauge", "Keys held: data as a primary, guest for other nodes.");
    text.sample("ringdove_storage_keys", &[("table", "data")], stats.data_keys);
    text.sample("ringdove_storage_keys", &[("table", "guest")], stats.guest_keys);
    text.gauge("ringdove_storage_segments", "Segments of the log on the disk.", stats.segments);
    text.gauge("ringdove_storage_log_bytes", "Bytes of these segments.", stats.log_bytes);
    text.gauge("ringdove_storage_live_bytes", "Bytes of the records that are needed.", stats.live_bytes);
    let dead = stats.log_bytes.saturating_sub(stats.live_bytes);
    #[allow(clippy::cast_precision_loss)] // a ratio for people
    let ratio = dead as f64 / stats.log_bytes.max(1) as f64;
    text.gauge("ringdove_storage_dead_ratio", "Share of the log that is not needed, 0 to 1.", ratio);
    text.gauge("ringdove_storage_index_bytes", "Bytes of the indexes in memory.", stats.index_bytes);
    text.gauge("ringdove_storage_cached_bytes", "Bytes of decoded records in memory.", stats.cached_bytes);
    let help = "Records wanted that were found decoded in memory.";
    text.counter("ringdove_storage_cache_hits_total", help, stats.cache_hits);
    let help = "Records wanted that were not.";
    text.counter("ringdove_storage_cache_misses_total", help, stats.cache_misses);
    let name = "ringdove_storage_sync_seconds";
    text.family(name, "histogram", "Time to write a commit group and have the disk sync it.");
    text.histogram(name, &[], MICROSECONDS, node.sync_time());
    let help = "Bytes that wait for the disk.";
    text.gauge("ringdove_storage_waiting_bytes", help, stats.gathered_bytes);
    let help = "1 when the storage takes writes, 0 when its disk is full or stalled, or has failed.";
    text.gauge("ringdove_storage_writable", help, u8::from(node.writable().is_ok()));
    let help = "Bytes written to the log, compaction included.";
    text.counter("ringdove_storage_written_bytes_total", help, stats.written_bytes);
    text.counter("ringdove_storage_compacted_bytes_total", "Of these, by compaction.", stats.copied_bytes);
    text.counter("ringdove_storage_removed_bytes_total", "Bytes of segments removed.", stats.removed_bytes);
    text.counter("ringdove_storage_snapshots_total", "Snapshots of the index written.", stats.snapshots);
    text.counter("ringdove_storage_snapshot_bytes_total", "Their bytes.", stats.snapshot_bytes);
    let help = "Records found that cannot be read as they were written.";
    text.counter("ringdove_storage_damaged_records_total", help, stats.damaged.values().sum());
}

fn peers(text: &mut Text, gateway: &Gateway) {
    let node = &gateway.node;
    let down = node.peers_down();
    let peers: Vec<(String, bool, (usize, usize))> = node
        .peers()
        .into_iter()
        .map(|peer| (peer.to_string(), !down.contains(&peer), node.peer_load(peer)))
        .collect();
    let name = "ringdove_peer_up";
    text.family(
        name,
        "gauge",
        "1 for a peer to which calls are made, 0 for one that is left alone since a call failed.",
    );
    peers.iter().for_each(|(peer, up, _)| text.sample(name, &[("peer", peer)], u8::from(*up)));
    let name = "ringdove_peer_phi";
    text.family(
        name,
        "gauge",
        "The node's suspicion of the peer: it grows while nothing is heard; see phi_threshold.",
    );
    for view in node.views() {
        let phi = f64::from(view.phi_thousandths) / 1000.0;
        text.sample(name, &[("peer", &view.node.to_string())], phi);
    }
    let name = "ringdove_hints";
    let help = "Records kept for the target: guests, and own copies of which it is noted that the target lacks them.";
    text.family(name, "gauge", help);
    for (target, count) in node.hints_kept() {
        text.sample(name, &[("target", &target.to_string())], count);
    }
    let name = "ringdove_peer_in_flight";
    text.family(name, "gauge", "Requests to the peer that wait for its answer.");
    peers.iter().for_each(|(peer, _, load)| text.sample(name, &[("peer", peer)], load.0));
    let name = "ringdove_peer_queue_bytes";
    text.family(name, "gauge", "Bytes that wait to be written to the peer.");
    peers.iter().for_each(|(peer, _, load)| text.sample(name, &[("peer", peer)], load.1));
}

/// What each door has in hand: the client port (binary), the peer port, REST.
fn doors(text: &mut Text, gateway: &Gateway) {
    let ports: Vec<(Door, Arc<Load>)> =
        Door::ALL.into_iter().filter_map(|door| Some((door, gateway.node.port_load(door)?))).collect();
    let by_door = |text: &mut Text, name, rest, of: &dyn Fn(&Load) -> usize| {
        for (door, load) in &ports {
            text.sample(name, &[("door", door.name())], of(load));
        }
        if let Some(rest) = rest {
            text.sample(name, &[("door", Door::Rest.name())], rest);
        }
    };
    let name = "ringdove_connections";
    text.family(name, "gauge", "Open connections, by door (binary, rest, peer).");
    let open = gateway.config.connections_max.saturating_sub(gateway.places.available_permits());
    by_door(text, name, Some(open), &Load::connections);
    let name = "ringdove_request_bytes";
    text.family(name, "gauge", "Bytes of requests above 64 KiB that are held, by door (binary, peer).");
    by_door(text, name, None, &Load::request_bytes);
    let name = "ringdove_unread_bytes";
    text.family(name, "gauge", "Bytes of answers that wait to be written, by door (binary, peer).");
    by_door(text, name, None, &Load::unread_bytes);
}

fn rest(text: &mut Text, gateway: &Gateway) {
    let name = "ringdove_rest_responses_total";
    text.family(name, "counter", "Answers of the REST gateway by status.");
    for (status, count) in (100..).zip(&gateway.counts.responses).filter(|(_, count)| count.get() > 0) {
        text.sample(name, &[("status", &format!("{status:03}"))], count.get());
    }
    let help = "Bytes of requests and answers that the REST gateway holds.";
    text.gauge("ringdove_rest_held_bytes", help, gateway.budget.used());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_in_the_familys_unit() {
        let histogram = Histogram::of_latency();
        for micros in [100, 300, 40_000_000] {
            histogram.enter(micros);
        }
        let mut text = Text(String::new());
        text.histogram("time", &[("a", "b")], MICROSECONDS, &histogram);
        assert!(
            text.0
                .starts_with("time_bucket{a=\"b\",le=\"0.0001\"} 1\ntime_bucket{a=\"b\",le=\"0.00025\"} 1\n")
        );
        assert!(text.0.contains("le=\"30\"} 2\ntime_bucket{a=\"b\",le=\"+Inf\"} 3\n"));
        assert!(text.0.ends_with("time_sum{a=\"b\"} 40.0004\ntime_count{a=\"b\"} 3\n"));
    }

    #[test]
    fn labels_are_escaped() {
        let mut text = Text(String::new());
        text.sample("name", &[("a", "\"\\\n"), ("b", "")], 1.5);
        assert_eq!(text.0, "name{a=\"\\\"\\\\\\n\",b=\"\"} 1.5\n");
    }
}
