//! `POST /batch`.

use serde_json::{Value, json};

use crate::http::{Answer, Rest};

async fn batch(rest: &Rest, query: &str, operations: Value) -> Answer {
    let body = json!({ "operations": operations }).to_string();
    rest.ask("POST", &format!("/batch{query}"), &[("content-type", "application/json")], body).await
}

fn statuses(answer: &Answer) -> Vec<u64> {
    let results = answer.json()["results"].clone();
    results.as_array().unwrap().iter().map(|result| result["status"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn each_operation_has_the_status_that_it_would_have_alone() {
    let rest = Rest::start(4).await;
    rest.put("/kv/there", "old").await;
    let written = batch(
        &rest,
        "?w=2&timeout=5s",
        json!([
            {"op": "put", "key": "text", "value": "grey", "ttl": "1h"},
            {"op": "put", "key_base64": "/w==", "value_base64": "/wA=", "content_type": "x/y", "meta": {"a": "b"}},
            {"op": "put", "key": "there", "value": "new", "if_absent": true},
            {"op": "delete", "key": "there"},
            {"op": "put", "key": "text", "value": "twice"},
            {"op": "delete", "key": "never"},
        ]),
    )
    .await;
    assert_eq!(
        (written.status, statuses(&written)),
        (200, vec![204, 204, 412, 400, 400, 204]),
        "{}",
        written.text()
    );
    let results = written.json()["results"].clone();
    assert_eq!(results[1]["key_base64"], "/w==");
    assert_eq!((&results[2]["error"], &results[2]["applied"]), (&json!("conflict"), &json!("no")));
    assert!(results[4]["message"].as_str().unwrap().contains("before"));
    assert!(results[0]["context"].is_string() && results[0]["write_id"].is_string());

    let read = batch(
        &rest,
        "?r=2",
        json!([
            {"op": "get", "key": "text"},
            {"op": "get", "key_base64": "/w=="},
            {"op": "get", "key": "there"},
            {"op": "get", "key": "never"},
        ]),
    )
    .await;
    assert_eq!(statuses(&read), [200, 200, 200, 404]);
    let results = read.json()["results"].clone();
    assert_eq!((&results[0]["value"], &results[2]["value"]), (&json!("grey"), &json!("old")));
    assert_eq!((&results[1]["value_base64"], &results[1]["content_type"]), (&json!("/wA="), &json!("x/y")));
    assert!(results[0]["expires_at"].is_string());

    // What a read gave, a write takes.
    let token = results[2]["context"].clone();
    let goes_by = batch(
        &rest,
        "",
        json!([
            {"op": "delete", "key": "there", "if_match": token},
            {"op": "put", "key": "text", "value": "white", "context": results[0]["context"]},
        ]),
    )
    .await;
    assert_eq!(statuses(&goes_by), [204, 204], "{}", goes_by.text());
    assert_eq!(rest.get("/kv/there").await.status, 404);
    assert_eq!(rest.get("/kv/text").await.text(), "white");
    assert_eq!(batch(&rest, "", json!([])).await.json(), json!({"results": []}));
}

#[tokio::test]
async fn a_batch_that_makes_no_sense_is_refused_whole() {
    let rest = Rest::start(3).await;
    let put = json!({"op": "put", "key": "a", "value": "x"});
    for (operations, words) in [
        (json!({}), "JSON body"),
        (json!([1]), "JSON body"),
        (json!([{"key": "a"}]), "op"),
        (json!([{"op": "increment", "key": "a"}]), "increment"),
        (json!([{"op": "get", "key": "a", "colour": 1}]), "colour"),
        (json!([put, {"op": "get", "key": "a"}]), "no order"),
        (json!([put, {"op": "delete", "key": "b", "value": "x"}]), "operation 1 has the field `value`"),
        (json!([{"op": "get", "key": "a", "context": "x"}]), "operation 0 has the field `context`"),
        (json!([put, {"op": "put", "key": "b"}]), "operation 1: there is neither value"),
        (json!([put, {"op": "put", "value": "x"}]), "operation 1: an operation has either key"),
        (json!([put, {"op": "put", "key": "", "value": "x"}]), "operation 1: a key needs"),
        (json!([put, {"op": "put", "key_base64": "?", "value": "x"}]), "operation 1: key_base64"),
        (json!([put, {"op": "put", "key": "b", "value": "x", "ttl": "1"}]), "operation 1: ttl"),
        (
            json!([put, {"op": "put", "key": "b", "value": "x", "if_absent": true, "context": "AA"}]),
            "one of them",
        ),
    ] {
        batch(&rest, "", operations).await.refused(400, "bad-request", words);
    }
    let token = json!([put, {"op": "put", "key": "b", "value": "x", "context": "!"}]);
    batch(&rest, "", token).await.refused(400, "bad-context", "operation 1: ");
    batch(&rest, "?r=0", json!([])).await.refused(400, "bad-request", "r is 1 to 3");
    batch(&rest, "?ttl=1s", json!([])).await.refused(
        400,
        "bad-request",
        "`ttl` is no parameter of POST /batch",
    );
    assert_eq!(rest.get("/kv/a").await.status, 404, "nothing of all that was written");
}

#[tokio::test]
async fn a_batch_has_a_thousand_operations_at_most() {
    let rest = Rest::start(3).await;
    let gets =
        |count: usize| (0..count).map(|n| json!({"op": "get", "key": n.to_string()})).collect::<Value>();
    batch(&rest, "", gets(1_234)).await.refused(413, "too-large", "1234 operations, at most 1000");
    let most = batch(&rest, "", gets(1_000)).await;
    assert_eq!(statuses(&most), vec![404; 1_000]);
}
