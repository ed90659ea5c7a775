//! Keys in paths: any bytes, percent-encoded.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringdove::net::message::Get;
use ringdove::types::{KEY_LEN_MAX, Key};
use serde_json::json;

use crate::http::Rest;

#[tokio::test]
async fn a_key_may_have_any_bytes() {
    let rest = Rest::start(3).await;
    let keys: [(&str, &[u8]); 8] = [
        ("a%00b", b"a\x00b"),
        ("a%2Fb%2fc", b"a/b/c"),
        ("d%C3%BCne", "düne".as_bytes()),
        ("%FF%fe", b"\xff\xfe"),
        ("a+b", b"a+b"),
        ("100%25", b"100%"),
        ("a%20b", b"a b"),
        ("%2e%2E", b".."),
    ];
    for (path, bytes) in keys {
        rest.put(&format!("/kv/{path}"), path).await;
        assert_eq!(rest.get(&format!("/kv/{path}")).await.text(), path);
        // What the gateway wrote is the key that the other doors know.
        let get = Get::new(Key::new(bytes.to_vec()).unwrap());
        let reply = rest.cluster.nodes[1].get(get, rest.cluster.request(1)).await.unwrap();
        assert_eq!(reply.values[0].value, path.as_bytes(), "{path}");
    }
    assert_eq!(rest.get_json("/kv/%FF%fe").await["key_base64"], "//4=");
    assert_eq!(rest.get_json("/kv/d%C3%BCne").await["key"], "düne");
}

#[tokio::test]
async fn what_is_no_key_is_refused() {
    let rest = Rest::start(3).await;
    for path in ["/kv/a%", "/kv/a%2", "/kv/%zz", "/kv/%2"] {
        rest.get(path).await.refused(400, "bad-request", "percent");
        rest.ask("PUT", path, &[], "x").await.refused(400, "bad-request", "percent");
    }
    rest.get("/kv/").await.refused(400, "bad-request", "at least one byte");
    rest.ask("PUT", "/kv/a/b", &[], "x").await.refused(400, "bad-request", "%2F");
}

#[tokio::test]
async fn a_key_over_64_kib_is_refused_and_one_of_64_kib_is_not() {
    let rest = Rest::start(3).await;
    // A path holds 65,534 bytes; longer keys go by the batch.
    let long = rest.get(&format!("/kv/{}", "k".repeat(KEY_LEN_MAX + 1))).await;
    assert_eq!(long.status, 414);
    let fits = format!("/kv/{}", "k".repeat(65_000));
    rest.put(&fits, "grey").await;
    assert_eq!(rest.get(&fits).await.text(), "grey");

    let batch = |len: usize| {
        let key = STANDARD.encode(vec![7; len]);
        json!({"operations": [{"op": "put", "key_base64": key, "value": "x"}]}).to_string()
    };
    let written = rest.ask("POST", "/batch", &[], batch(KEY_LEN_MAX)).await;
    assert_eq!(written.json()["results"][0]["status"], 204, "{}", written.text());
    let refused = rest.ask("POST", "/batch", &[], batch(KEY_LEN_MAX + 1)).await;
    refused.refused(413, "too-large", "at most 65536");
}
