//! `GET /scan`.

use serde_json::Value;

use crate::cluster::member;
use crate::http::Rest;

fn keys(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().unwrap_or_else(|| panic!("no page: {page}"));
    items.iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect()
}

async fn page(rest: &Rest, query: &str) -> Value {
    rest.get(&format!("/scan{query}")).await.json()
}

#[tokio::test]
async fn a_range_is_read_page_by_page_in_both_directions() {
    let rest = Rest::start(4).await;
    for n in 0..25 {
        rest.put(&format!("/kv/bird%2F{n:02}"), &n.to_string()).await;
    }
    rest.put("/kv/aardvark", "x").await;
    rest.put("/kv/zebra", "x").await;
    let all: Vec<String> = (0..25).map(|n| format!("bird/{n:02}")).collect();
    for (reverse, expected) in [("", all.clone()), ("&reverse=true", all.iter().rev().cloned().collect())] {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = page(&rest, &format!("?prefix=bird/&limit=7{reverse}{cursor}")).await;
            assert_eq!(page["complete"], true);
            let keys = keys(&page);
            assert!(keys.len() <= 7);
            found.extend(keys);
            if page["more"] == false {
                break;
            }
            cursor = format!("&cursor={}", page["cursor"].as_str().unwrap());
        }
        assert_eq!(found, expected);
    }
    let range = page(&rest, "?start=bird/03&end=bird/06").await;
    assert_eq!(keys(&range), ["bird/03", "bird/04", "bird/05"], "the end is not part of it");
    assert_eq!(range["items"][0]["value"], "3");
    assert!(range["items"][0]["context"].is_string());
    let names = page(&rest, "?keys_only&limit=1").await;
    assert_eq!(keys(&names), ["aardvark"]);
    assert!(names["items"][0].get("value").is_none() && names["items"][0]["written_at"].is_string());
    assert_eq!(keys(&page(&rest, "").await).len(), 27);
    assert_eq!(keys(&page(&rest, "?prefix=none").await), [""; 0]);
    // In a query + is a space.
    rest.put("/kv/a%20b", "x").await;
    assert_eq!(keys(&page(&rest, "?prefix=a+").await), ["a b"]);
    assert_eq!(keys(&page(&rest, "?prefix=a%2B").await), [""; 0]);
}

#[tokio::test]
async fn siblings_stand_in_a_page_together() {
    let rest = Rest::start(3).await;
    rest.put("/kv/dove", "grey").await;
    rest.ask("PUT", "/kv/dove?context=none", &[], "white").await;
    let siblings = page(&rest, "").await["items"][0]["siblings"].clone();
    assert_eq!(siblings.as_array().unwrap().len(), 2);
    assert_eq!(page(&rest, "?resolve=lww").await["items"][0].get("siblings"), None);
}

#[tokio::test]
async fn a_page_that_cannot_be_read_is_no_page_unless_a_partial_one_is_asked_for() {
    let rest = Rest::start(5).await;
    for n in 0..20 {
        rest.put(&format!("/kv/{n:02}"), "x").await;
    }
    let fresh = Rest::start(5).await;
    for id in 2..=5 {
        fresh.cluster.net.close(&member(id).peer_addr);
    }
    // Of five nodes three hold each partition; the one that is left has some of them.
    let refused = fresh.get("/scan?timeout=5s").await;
    refused.refused(503, "too-few-replicas", "partial=true");
    let partial = page(&fresh, "?partial=true&timeout=5s").await;
    assert_eq!(partial["complete"], false);
    assert!(!partial["missing_partitions"].as_array().unwrap().is_empty());
    assert_eq!(keys(&page(&rest, "").await).len(), 20, "the other cluster is whole");
}
