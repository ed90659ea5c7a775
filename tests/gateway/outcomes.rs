//! Applied, not applied, or unknown: each has its answer, and says what to do.

use std::path::Path;
use std::time::Duration;

use ringdove::dynamo::version::Caps;
use ringdove::gateway::GatewayConfig;
use ringdove::io::fault_disk::{FaultDisk, Image};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::member;
use crate::http::{Answer, Rest, watched};

#[tokio::test]
async fn a_write_that_may_have_happened_is_504_and_one_that_cannot_begin_is_503() {
    let rest = Rest::start(3).await;
    for id in [2, 3] {
        rest.cluster.net.close(&member(id).peer_addr);
    }
    // Nobody knows yet that the others are gone: the write is made here, and nowhere else.
    let unknown = rest.ask("PUT", "/kv/dove", &[], "grey").await;
    let body = unknown.json();
    assert_eq!((unknown.status, unknown.header("ringdove-error")), (504, Some("unknown-outcome")), "{body}");
    assert_eq!((&body["error"], &body["applied"]), (&"unknown-outcome".into(), &"unknown".into()));
    assert_eq!((body["acks"].as_u64(), body["needed"].as_u64()), (Some(1), Some(2)));
    assert!(body["message"].as_str().unwrap().contains("may have happened"));
    assert_eq!(body["write_id"], unknown.header("ringdove-write-id").unwrap());

    let refused = rest.ask("PUT", "/kv/dove", &[], "white").await;
    refused.refused(503, "too-few-replicas", "nothing was written");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.json()["retry_after"], 1);
    rest.get("/kv/dove?timeout=2s").await.refused(503, "too-few-replicas", "1 of the 2 replicas");
    assert_eq!(rest.get("/kv/dove?r=1").await.text(), "grey");
    rest.put("/kv/dove?w=1", "brown").await;
    // What a batch does not know, it says for each.
    let ready = rest.get("/health/ready").await;
    assert_eq!(ready.status, 200, "other nodes are no reason to send requests elsewhere");
    assert_eq!(ready.json()["peers_down"].as_array().unwrap().len(), 2);

    let scrape = rest.get("/metrics").await.text();
    assert!(scrape.contains("ringdove_peer_up{peer=\"n2\"} 0\n"), "{scrape}");
    assert!(scrape.contains("ringdove_quorum_shortfalls_total{kind=\"read\"} 1\n"));
    assert!(scrape.contains("ringdove_quorum_shortfalls_total{kind=\"write\"} 1\n"));
    assert!(
        scrape.contains(
            "ringdove_request_seconds_count{operation=\"put\",door=\"rest\",outcome=\"unknown\"} 1\n"
        )
    );
}

#[tokio::test]
async fn an_unknown_outcome_comes_with_the_siblings_that_its_context_covers() {
    let rest = Rest::start(3).await;
    // By another node, so that the first one has opened no connection yet.
    assert_eq!(rest.ask_at(1, "PUT", "/kv/dove?w=3", &[], "grey").await.status, 204);
    for id in [2, 3] {
        rest.cluster.net.close(&member(id).peer_addr);
    }
    let unknown = rest.ask("PUT", "/kv/dove?context=none", &[], "white").await;
    let body = unknown.json();
    assert_eq!((unknown.status, &body["applied"]), (504, &"unknown".into()), "{body}");
    assert_eq!(body["siblings"][0]["value"], "grey");
    assert_eq!(body["context"], unknown.context());
    let both = rest.ask("PUT", "/kv/dove?w=1", &[("Ringdove-Context", unknown.context())], "both").await;
    assert_eq!(both.status, 204, "{}", both.text());
}

#[tokio::test]
async fn a_batch_names_the_writes_whose_outcome_is_unknown() {
    let rest = Rest::start(3).await;
    for id in [2, 3] {
        rest.cluster.net.close(&member(id).peer_addr);
    }
    let body = r#"{"operations": [{"op": "put", "key": "a", "value": "x"}]}"#;
    let answer = rest.ask("POST", "/batch", &[], body).await;
    let result = answer.json()["results"][0].clone();
    assert_eq!((answer.status, result["status"].as_u64()), (200, Some(504)), "{result}");
    assert_eq!((&result["applied"], &result["key"]), (&"unknown".into(), &"a".into()));
}

#[tokio::test]
async fn an_overloaded_node_says_when_to_come_again() {
    let rest = Rest::start_with(3, GatewayConfig::default(), |_, config| config.in_flight_max = 0).await;
    let batch = r#"{"operations": [{"op": "get", "key": "a"}]}"#;
    for (method, path, body) in [
        ("GET", "/kv/a", ""),
        ("PUT", "/kv/a", "x"),
        ("DELETE", "/kv/a", ""),
        ("GET", "/scan", ""),
        ("POST", "/batch", batch),
    ] {
        let answer = rest.ask(method, path, &[], body).await;
        answer.refused(503, "overloaded", "nothing was done");
        assert_eq!(answer.header("retry-after"), Some("1"), "{method} {path}");
    }
    assert!(rest.get("/metrics").await.text().contains("ringdove_shed_total{why=\"in-flight\"} 5\n"));
    assert_eq!(rest.get("/health/live").await.status, 200, "health is told under any load");
}

#[tokio::test]
async fn a_key_with_too_many_siblings_takes_no_more_until_they_are_resolved() {
    let settings = |_, config: &mut ringdove::node::NodeConfig| {
        config.caps = Caps { siblings_max: 2, ..Caps::default() };
    };
    let rest = Rest::start_with(3, GatewayConfig::default(), settings).await;
    rest.put("/kv/dove", "1").await;
    assert_eq!(rest.ask("PUT", "/kv/dove?context=none", &[], "2").await.status, 200);
    rest.ask("PUT", "/kv/dove?context=none", &[], "3").await.refused(
        409,
        "too-many-siblings",
        "read it and write back",
    );
    let context = rest.get("/kv/dove").await.context().to_owned();
    assert_eq!(rest.ask("PUT", "/kv/dove", &[("Ringdove-Context", &context)], "4").await.status, 204);
}

#[tokio::test]
async fn a_node_that_stops_ends_what_it_has_begun() {
    let rest = Rest::start(3).await;
    let mut stream = rest.connect().await;
    stream
        .write_all(b"PUT /kv/dove HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await
        .unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n", "the request is in progress");
    rest.cluster.nodes[0].stop();
    // The listener closes; what is in progress may end. Which end it takes is the node's: its storage may be closed.
    stream.write_all(b"grey").await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let answer = Answer::parse(&bytes);
    assert!(matches!(answer.status, 204 | 503 | 504), "{}", answer.status);
    assert_eq!(answer.header("connection"), Some("close"));
    while tokio::net::TcpStream::connect(rest.addrs[0]).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

/// Asks until the answer has this status.
async fn until(rest: &Rest, status: u16, method: &str, path: &str) -> Answer {
    let asking = async {
        loop {
            let answer = rest.ask(method, path, &[], "x").await;
            if answer.status == status {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    watched(asking).await
}

#[tokio::test]
async fn a_full_disk_takes_no_writes_and_leaves_the_node_ready_to_read() {
    let disk = FaultDisk::new(Image::new());
    let rest = Rest::start_on(&disk, |_, _| {}).await;
    rest.put("/kv/dove", "grey").await;
    disk.control().set_capacity(Some(0));
    // The first writes may find out, and be held by the others.
    until(&rest, 507, "PUT", "/kv/wren").await.refused(507, "disk-full", "full");
    let ready = rest.get("/health/ready").await;
    assert_eq!((ready.status, &ready.json()["writes"]), (200, &"disk-full".into()), "{}", ready.text());
    assert_eq!(rest.get("/kv/dove").await.text(), "grey");
    assert!(rest.get("/metrics").await.text().contains("ringdove_storage_writable 0\n"));
    disk.control().set_capacity(None);
    until(&rest, 204, "PUT", "/kv/wren").await;
    assert_eq!(rest.get("/health/ready").await.json()["writes"], "taken");
}

#[tokio::test]
async fn a_node_whose_disk_stalls_is_not_ready_until_it_goes_on() {
    let disk = FaultDisk::new(Image::new());
    let short =
        |_, config: &mut ringdove::node::NodeConfig| config.store.stall_max = Duration::from_millis(1);
    let rest = Rest::start_on(&disk, short).await;
    disk.stall(Path::new("/data"));
    // The others hold it: the write is done, and this node's disk is not.
    assert_eq!(rest.ask("PUT", "/kv/dove", &[], "grey").await.status, 204);
    let unready = until(&rest, 503, "GET", "/health/ready").await;
    assert_eq!(
        (&unready.json()["writes"], unready.header("retry-after")),
        (&"unavailable".into(), Some("1"))
    );
    until(&rest, 503, "PUT", "/kv/wren").await.refused(503, "unavailable", "");
    assert!(rest.get("/metrics").await.text().contains("ringdove_storage_writable 0\n"));
    disk.release(Path::new("/data"));
    until(&rest, 200, "GET", "/health/ready").await;
    until(&rest, 204, "PUT", "/kv/wren").await;
}
