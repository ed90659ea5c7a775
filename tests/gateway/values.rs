//! Values and what is told about them: types, JSON, siblings, conditions, time to live.

use std::time::Duration;

use ringdove::gateway::GatewayConfig;
use serde_json::json;

use crate::http::Rest;

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

#[tokio::test]
async fn raw_bytes_come_back_with_their_type_and_what_is_known_of_them() {
    let rest = Rest::start(3).await;
    let value = b"\x89PNG\x00\xff".as_slice();
    let put = rest.ask("PUT", "/kv/dove", &[("Content-Type", "image/png")], value).await;
    assert_eq!((put.status, put.body.len()), (204, 0));
    let id = put.header("ringdove-write-id").unwrap().to_owned();
    assert!(!put.context().is_empty(), "a write without siblings gives the context that covers it");

    for method in ["GET", "HEAD"] {
        let read = rest.ask_at(1, method, "/kv/dove", &[], "").await;
        assert_eq!(read.status, 200);
        assert_eq!(read.body, if method == "GET" { value } else { b"" });
        assert_eq!(read.header("content-type"), Some("image/png"));
        assert_eq!(read.header("content-length"), Some("6"), "{method}");
        assert_eq!(read.header("ringdove-size"), Some("6"));
        assert_eq!(read.header("ringdove-siblings"), Some("1"));
        assert_eq!(read.header("ringdove-write-id"), Some(id.as_str()));
        assert_eq!(read.header("ringdove-expires-at"), None);
        assert_eq!(read.header("etag"), Some(format!("\"{}\"", read.context()).as_str()));
        let written = read.header("ringdove-written-at").unwrap();
        assert!(written.starts_with("20") && written.ends_with('Z') && written.len() == 24, "{written}");
        assert_eq!(read.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(read.header("ringdove-hits"), None, "access is not counted unless it is asked for");
    }
    rest.put("/kv/untyped", "x").await;
    assert_eq!(rest.get("/kv/untyped").await.header("content-type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn json_writes_text_or_base64_and_json_is_read_by_who_asks_for_it() {
    let rest = Rest::start(3).await;
    let put = |path, body: serde_json::Value| {
        let rest = &rest;
        async move {
            let answer = rest.ask("PUT", path, JSON, body.to_string()).await;
            assert_eq!(answer.status, 204, "{}", answer.text());
        }
    };
    put("/kv/text", json!({"value": "gräy", "ttl": "10m", "meta": {"colour": "grey"}})).await;
    let read = rest.get("/kv/text").await;
    assert_eq!(
        (read.text().as_str(), read.header("content-type")),
        ("gräy", Some("text/plain; charset=utf-8"))
    );
    assert!(read.header("ringdove-expires-at").is_some());
    let json = rest.get_json("/kv/text").await;
    assert_eq!(json["key"], "text");
    assert_eq!(json["value"], "gräy");
    assert_eq!(json["size"], 5);
    assert_eq!(json["meta"], json!({"colour": "grey"}));
    assert_eq!(json["context"], read.context());
    assert_eq!(json["expires_at"], read.header("ringdove-expires-at").unwrap());

    put("/kv/bytes", json!({"value_base64": "/wA="})).await;
    let read = rest.get("/kv/bytes").await;
    assert_eq!(
        (read.body.as_slice(), read.header("content-type")),
        (b"\xff\x00".as_slice(), Some("application/octet-stream"))
    );
    assert_eq!(rest.get_json("/kv/bytes").await["value_base64"], "/wA=");

    // JSON as a value: under its own type in the body, or as any other type that ends in json.
    put("/kv/doc", json!({"value": "{\"a\":1}", "content_type": "application/json"})).await;
    let read = rest.get("/kv/doc").await;
    assert_eq!((read.text().as_str(), read.header("content-type")), ("{\"a\":1}", Some("application/json")));
    let raw = rest.ask("PUT", "/kv/raw", &[("content-type", "application/ld+json")], "{}").await;
    assert_eq!(raw.status, 204);
    assert_eq!(rest.get("/kv/raw").await.text(), "{}");

    let accept_any = rest.ask("GET", "/kv/text", &[("accept", "*/*")], "").await;
    assert_eq!(accept_any.text(), "gräy", "a wildcard is no wish for JSON");
}

#[tokio::test]
async fn siblings_are_all_answered_until_a_write_with_their_context() {
    let rest = Rest::start(3).await;
    let missing = rest.get("/kv/dove").await;
    missing.refused(404, "not-found", "no value");
    assert!(!missing.context().is_empty(), "also a key that is not there has a context");
    rest.put("/kv/dove", "grey").await;
    rest.cluster.clock.move_wall(Duration::from_secs(1));
    let beside = rest.ask("PUT", "/kv/dove?context=none", &[], "white").await;
    assert_eq!(beside.status, 200, "the writer is told what stands beside it");
    assert_eq!(beside.json()["siblings"][0]["value"], "grey");
    assert_eq!(beside.json()["context"], beside.context());

    let both = rest.ask_at(1, "GET", "/kv/dove?r=3&strict=true", &[], "").await;
    assert_eq!((both.status, both.header("ringdove-siblings")), (300, Some("2")));
    let mut values: Vec<_> =
        both.json()["siblings"].as_array().unwrap().iter().map(|one| one["value"].clone()).collect();
    values.sort_by_key(ToString::to_string);
    assert_eq!(values, ["grey", "white"]);
    let head = rest.ask("HEAD", "/kv/dove", &[], "").await;
    assert_eq!(
        (head.status, head.header("ringdove-siblings"), head.header("ringdove-size")),
        (300, Some("2"), Some("9"))
    );

    let newest = rest.get("/kv/dove?resolve=lww").await;
    assert_eq!(
        (newest.status, newest.text().as_str(), newest.header("ringdove-hidden")),
        (200, "white", Some("1"))
    );
    let newest = rest.get_json("/kv/dove?resolve=lww").await;
    assert_eq!(newest["hidden"][0]["why"], "older");

    let resolved = rest.ask_at(2, "PUT", "/kv/dove", &[("Ringdove-Context", both.context())], "both").await;
    assert_eq!(resolved.status, 204);
    assert_eq!(rest.get("/kv/dove").await.text(), "both");
}

#[tokio::test]
async fn a_condition_holds_or_nothing_is_written() {
    let rest = Rest::start(3).await;
    let absent = [("If-None-Match", "*")];
    assert_eq!(rest.ask("PUT", "/kv/dove", &absent, "grey").await.status, 204);
    rest.ask("PUT", "/kv/dove", &absent, "white").await.refused(412, "conflict", "nothing was written");
    let tag = rest.get("/kv/dove").await.header("etag").unwrap().to_owned();
    assert_eq!(rest.ask("PUT", "/kv/dove", &[("If-Match", &tag)], "white").await.status, 204);
    rest.ask("PUT", "/kv/dove", &[("If-Match", &tag)], "brown").await.refused(
        412,
        "conflict",
        "nothing was written",
    );
    rest.ask("DELETE", "/kv/dove", &[("If-Match", &tag)], "").await.refused(
        412,
        "conflict",
        "nothing was written",
    );
    assert_eq!(rest.get("/kv/dove").await.text(), "white");
    let read = rest.get("/kv/dove").await;
    let bare = [("If-Match", read.context())];
    assert_eq!(
        rest.ask("DELETE", "/kv/dove", &bare, "").await.status,
        204,
        "the context does as well as the tag"
    );
    rest.get("/kv/dove").await.refused(404, "not-found", "deleted");
    assert_eq!(rest.ask("PUT", "/kv/dove", &absent, "again").await.status, 204, "what was deleted is absent");
}

#[tokio::test]
async fn a_value_expires_after_its_time_to_live() {
    let rest = Rest::start(3).await;
    rest.put("/kv/dove?ttl=10m", "grey").await;
    rest.cluster.clock.move_wall(Duration::from_secs(599));
    assert_eq!(rest.get("/kv/dove").await.status, 200);
    rest.cluster.clock.move_wall(Duration::from_secs(1));
    let gone = rest.get("/kv/dove").await;
    gone.refused(404, "not-found", "expired");
    assert_eq!(gone.header("ringdove-siblings"), Some("0"));
}

#[tokio::test]
async fn every_option_of_a_write_is_taken() {
    let rest = Rest::start(3).await;
    rest.put("/kv/dove?w=1&strict&timeout=2s&durability=interval:100ms", "a").await;
    rest.put("/kv/dove?w=3&strict=false&durability=sync&context=current", "b").await;
    assert_eq!(rest.get("/kv/dove?r=1&strict=true&resolve=siblings&timeout=500ms").await.text(), "b");
    let deleted = rest.ask("DELETE", "/kv/dove?r=2&w=2&timeout=2s&durability=sync", &[], "").await;
    assert_eq!(deleted.status, 204);
}

#[tokio::test]
async fn a_write_sent_again_with_its_id_is_one_write() {
    let rest = Rest::start(3).await;
    let id = [("Ringdove-Write-Id", "00112233445566778899aabbccddeeff")];
    for _ in 0..2 {
        let put = rest.ask("PUT", "/kv/dove?context=none", &id, "grey").await;
        assert!(put.status < 300, "{}", put.text());
        assert_eq!(put.header("ringdove-write-id"), Some(id[0].1));
    }
    let read = rest.get("/kv/dove?r=3").await;
    assert_eq!((read.status, read.text().as_str()), (200, "grey"));
}

#[tokio::test]
async fn accesses_are_counted_on_the_node_that_was_asked_and_a_look_is_none() {
    let rest = Rest::start_with(3, GatewayConfig::default(), |_, config| config.track_access = true).await;
    assert_eq!(rest.ask("HEAD", "/kv/dove", &[], "").await.header("ringdove-hits"), None);
    rest.put("/kv/dove", "grey").await;
    rest.get("/kv/dove").await;
    rest.ask("POST", "/batch", &[], r#"{"operations": [{"op": "get", "key": "dove"}]}"#).await;
    for _ in 0..2 {
        let head = rest.ask("HEAD", "/kv/dove", &[], "").await;
        assert_eq!(head.header("ringdove-hits"), Some("3"));
        assert!(head.header("ringdove-last-access").unwrap().ends_with('Z'));
    }
    let other = rest.ask_at(1, "HEAD", "/kv/dove", &[], "").await;
    assert_eq!(other.header("ringdove-hits"), None, "what was asked elsewhere counts there");
}
