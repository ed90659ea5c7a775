//! `GET /explain/{key}`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{Rest, watched};

#[tokio::test]
async fn a_key_is_explained_in_words_and_in_figures() {
    let rest = Rest::start(4).await;
    rest.put("/kv/dove?w=3", "grey").await;
    let told = rest.get("/explain/dove").await;
    assert_eq!(told.status, 200, "{}", told.text());
    let told = told.json();
    assert_eq!((&told["key"], &told["namespace"], &told["asked"]), (&json!("dove"), &json!(0), &json!("n1")));
    assert_eq!(told["words"][1], "all 3 replicas agree", "{told}");
    let members = told["members"].as_array().unwrap();
    let roles: Vec<&Value> = members.iter().map(|member| &member["role"]).collect();
    assert_eq!(roles, ["primary", "primary", "primary", "fallback"]);
    for member in &members[..3] {
        let sibling = &member["data"]["siblings"][0];
        assert_eq!((&sibling["size"], &sibling["tombstone"]), (&json!(4), &json!(false)), "{member}");
        assert!(sibling["dot"]["node"].is_string() && member["guest"].is_null(), "{member}");
        assert_eq!((&member["refilled"], &member["leaf"]["of"]), (&json!(true), &json!(1)), "{member}");
        assert_eq!(member["data"]["version_hash"], members[0]["data"]["version_hash"]);
    }
    assert!(members[3]["data"].is_null() && members[3]["answered"] == true, "{told}");
}

#[tokio::test]
async fn siblings_and_a_node_that_does_not_answer_are_told() {
    let rest = Rest::start(4).await;
    rest.put("/kv/dove?w=3", "grey").await;
    let beside = rest.ask("PUT", "/kv/dove?w=3&context=none", &[], "white").await;
    assert_eq!(beside.status, 200);
    let told = rest.get_json("/explain/dove").await;
    assert!(told["words"][1].as_str().unwrap().starts_with("siblings: two writes (by n"), "{told}");
    assert_eq!(told["members"][0]["data"]["siblings_count"], 2);
    assert_eq!(rest.get_json("/explain/%ff%00").await["key_base64"], "/wA=");
    assert_eq!(rest.get_json("/explain/dove?namespace=7").await["words"][1], "all 3 replicas agree");

    rest.cluster.nodes[3].stop();
    rest.cluster.net.close("n4:peer");
    watched(async {
        loop {
            let told = rest.get_json("/explain/dove").await;
            let silent =
                told["members"].as_array().unwrap().iter().find(|member| member["answered"] == false);
            if let Some(silent) = silent {
                assert_eq!(silent["node"], "n4", "{told}");
                assert!(silent["message"].is_string() && silent["data"].is_null(), "{told}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let rest = Rest::start(3).await;
    for (path, words) in [
        ("/explain/", "at least one byte"),
        ("/explain/a/b", "%2F"),
        ("/explain/%zz", "percent"),
        ("/explain/a?r=2", "`r` is no parameter of GET /explain/{key}: it takes namespace, timeout"),
        ("/explain/a?namespace=-1", "namespace=-1"),
        ("/explain/a?namespace=4294967296", "namespace=4294967296"),
        ("/explain/a?timeout=5", "unit"),
        ("/explain/a?timeout=0s", "no time left"),
    ] {
        rest.get(path).await.refused(400, "bad-request", words);
    }
    rest.ask("PUT", "/explain/a", &[], "x").await.refused(405, "wrong-method", "Allow");
    rest.get("/explain").await.refused(404, "no-such-path", "/explain/{key}");
}
