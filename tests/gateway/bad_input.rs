//! What makes no sense is answered with what is wrong and what to do; nothing of it is applied, and the node goes on.

use std::time::Duration;

use ringdove::gateway::GatewayConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::http::{Answer, Rest, watched};

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const VALUE_MAX: usize = 100_000;

type Headers<'a> = &'a [(&'a str, &'a str)];

async fn start(config: GatewayConfig) -> Rest {
    Rest::start_with(3, config, |_, config| config.value_len_max = VALUE_MAX).await
}

#[tokio::test]
async fn parameters_are_judged_by_name_and_range() {
    let rest = Rest::start(3).await;
    for (method, path, words) in [
        ("GET", "/kv/a?r=0", "r is 1 to 3"),
        ("GET", "/kv/a?r=4", "r is 1 to 3"),
        ("GET", "/kv/a?r=-1", "r is 1 to 3"),
        ("GET", "/kv/a?r=many", "r is 1 to 3"),
        ("GET", "/kv/a?r=", "r is 1 to 3"),
        ("GET", "/kv/a?r=99999999999999999999", "r is 1 to 3"),
        ("PUT", "/kv/a?w=0", "w is 1 to 3"),
        ("PUT", "/kv/a?w=4", "w is 1 to 3"),
        ("PUT", "/kv/a?r=9", "r is 1 to 3"),
        ("DELETE", "/kv/a?w=4", "w is 1 to 3"),
        ("GET", "/kv/a?colour=red", "`colour` is no parameter of GET /kv/{key}: it takes r, strict"),
        ("GET", "/kv/a?w=2", "`w` is no parameter of GET"),
        ("DELETE", "/kv/a?ttl=1s", "`ttl` is no parameter of DELETE"),
        ("PUT", "/kv/a?W=3", "`W` is no parameter"),
        ("PUT", "/kv/a?%77=3&w=2", "given twice"),
        ("GET", "/kv/a?r=1&r=2", "given twice"),
        ("GET", "/kv/a?strict=maybe", "true or false"),
        ("GET", "/kv/a?resolve=newest", "lww"),
        ("GET", "/kv/a?timeout=5", "unit"),
        ("GET", "/kv/a?timeout=0s", "no time left"),
        ("GET", "/kv/a?timeout=%zz", "percent"),
        ("GET", "/kv/a?timeout=2h", "at most 60000 ms"),
        ("PUT", "/kv/a?timeout=61s", "at most 60000 ms"),
        ("PUT", "/kv/a?ttl=10", "unit"),
        ("PUT", "/kv/a?ttl=0s", "at least 1 ms"),
        ("PUT", "/kv/a?durability=later", "interval"),
        ("PUT", "/kv/a?durability=interval:2h", "60000 ms"),
        ("PUT", "/kv/a?context=token", "Ringdove-Context"),
        ("GET", "/scan?limit=0", "1 to 1000"),
        ("GET", "/scan?limit=1001", "1 to 1000"),
        ("GET", "/scan?cursor=!", "cursor"),
        ("GET", "/scan?prefix=a&start=b", "prefix"),
        ("GET", "/scan?start=b&end=a", "ends before it starts"),
        ("GET", "/scan?w=1", "`w` is no parameter of GET /scan"),
    ] {
        rest.ask(method, path, &[], "x").await.refused(400, "bad-request", words);
    }
    assert_eq!(rest.get("/kv/a").await.status, 404, "nothing of all that was written");
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_named() {
    let rest = Rest::start(3).await;
    rest.get("/elsewhere").await.refused(404, "no-such-path", "/kv/{key}");
    rest.get("/").await.refused(404, "no-such-path", "/scan");
    let wrong = rest.ask("POST", "/kv/a", &[], "x").await;
    wrong.refused(405, "wrong-method", "Allow");
    assert!(wrong.header("allow").unwrap().contains("PUT"));
    rest.get("/batch").await.refused(405, "wrong-method", "Allow");
}

#[tokio::test]
async fn a_token_must_be_whole_and_of_its_key() {
    let rest = Rest::start(3).await;
    rest.put("/kv/a", "x").await;
    let token = rest.get("/kv/a").await.context().to_owned();
    let mut damaged = token.clone().into_bytes();
    let middle = damaged.len() - 4;
    damaged[middle] = if damaged[middle] == b'A' { b'B' } else { b'A' };
    let damaged = String::from_utf8(damaged).unwrap();
    for (path, token, words) in [
        ("/kv/b", token.as_str(), "another key"),
        ("/kv/a", damaged.as_str(), "damaged"),
        ("/kv/a", &token[..token.len() - 4], "context"),
        ("/kv/a", "AAAA", "version 0"),
        ("/kv/a", "!", "base64url"),
        ("/kv/a", "", "damaged"),
    ] {
        for (method, header) in
            [("PUT", "Ringdove-Context"), ("DELETE", "Ringdove-Context"), ("PUT", "If-Match")]
        {
            rest.ask(method, path, &[(header, token)], "y").await.refused(400, "bad-context", words);
        }
    }
    assert_eq!(rest.get("/kv/a").await.text(), "x");
    assert_eq!(rest.get("/kv/b").await.status, 404);
}

#[tokio::test]
async fn headers_that_contradict_are_refused() {
    let rest = Rest::start(3).await;
    let token = rest.put("/kv/a", "x").await.context().to_owned();
    let quoted = format!("\"{token}\"");
    let cases: [(&str, Headers<'_>, &str); 9] = [
        ("PUT", &[("If-Match", &quoted), ("If-None-Match", "*")], "one of them"),
        ("PUT", &[("If-Match", &quoted), ("Ringdove-Context", &token)], "one of them"),
        ("PUT", &[("Ringdove-Context", &token), ("Ringdove-Context", &token)], "twice"),
        ("PUT", &[("If-Match", "*")], "one entity tag"),
        ("PUT", &[("If-Match", "W/\"a\"")], "one entity tag"),
        ("PUT", &[("If-None-Match", &quoted)], "*"),
        ("DELETE", &[("If-None-Match", "*")], "PUT"),
        ("PUT", &[("Ringdove-Write-Id", "7")], "32 hexadecimal"),
        ("PUT", &[("Ringdove-Write-Id", "+0112233445566778899aabbccddeeff")], "32 hexadecimal"),
    ];
    for (method, headers, words) in cases {
        rest.ask(method, "/kv/a", headers, "y").await.refused(400, "bad-request", words);
    }
    let both = rest.ask("PUT", "/kv/a?context=none", &[("Ringdove-Context", &token)], "y").await;
    both.refused(400, "bad-request", "one of them");
    assert_eq!(rest.get("/kv/a").await.text(), "x");
}

#[tokio::test]
async fn json_bodies_are_judged_by_syntax_types_and_fields() {
    let rest = Rest::start(3).await;
    for (body, words) in [
        ("", "JSON body"),
        ("{", "JSON body"),
        ("[]", "JSON body"),
        ("null", "JSON body"),
        ("\"text\"", "JSON body"),
        ("{}", "neither value"),
        (r#"{"value": 5}"#, "expected a string"),
        (r#"{"value": {"a": 1}}"#, "store JSON itself"),
        (r#"{"value": "a", "value_base64": "YQ=="}"#, "one of them"),
        (r#"{"value_base64": "?"}"#, "not base64"),
        (r#"{"value": "a", "colour": "red"}"#, "colour"),
        (r#"{"value": "a", "ttl": 10}"#, "expected a string"),
        (r#"{"value": "a", "ttl": "10"}"#, "unit"),
        (r#"{"value": "a", "meta": {"a": 1}}"#, "expected a string"),
        (r#"{"value": "a"} x"#, "trailing"),
        ("{\"value\": \"\\ud800\"}", "JSON body"),
    ] {
        rest.ask("PUT", "/kv/a", JSON, body).await.refused(400, "bad-request", words);
    }
    let twice = rest.ask("PUT", "/kv/a?ttl=1s", JSON, r#"{"value": "a", "ttl": "1s"}"#).await;
    twice.refused(400, "bad-request", "once");
    let deep = "[".repeat(100_000);
    rest.ask("PUT", "/kv/a", JSON, &deep).await.refused(400, "bad-request", "JSON body");
    rest.ask("POST", "/batch", JSON, &deep).await.refused(400, "bad-request", "JSON body");
    let meta = format!(r#"{{"value": "a", "meta": {{"m": "{}"}}}}"#, "x".repeat(5_000));
    rest.ask("PUT", "/kv/a", JSON, meta).await.refused(400, "bad-request", "4096");
    let long_type = [("content-type", "x".repeat(5_000))];
    let long_type = [("content-type", long_type[0].1.as_str())];
    rest.ask("PUT", "/kv/a", &long_type, "x").await.refused(413, "too-large", "4096");
    assert_eq!(rest.get("/kv/a").await.status, 404);
}

#[tokio::test]
async fn a_value_over_the_limit_is_refused_however_it_comes() {
    let rest = start(GatewayConfig::default()).await;
    let large = vec![b'x'; VALUE_MAX + 1];
    rest.ask("PUT", "/kv/a", &[], &large).await.refused(413, "too-large", "100000 bytes");
    // Without a length ahead.
    let mut chunked =
        b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..11 {
        chunked.extend_from_slice(b"2710\r\n");
        chunked.extend_from_slice(&[b'x'; 10_000]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    rest.raw(&chunked).await.expect("an answer").refused(413, "too-large", "100000 bytes");
    // Announced, and never sent: a client that waits for leave is told at once.
    let announced =
        b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n";
    rest.raw(announced).await.expect("an answer").refused(413, "too-large", "100000 bytes");
    // In JSON it is the value that counts, not the body.
    let base64 = |bytes: usize| format!(r#"{{"value_base64": "{}"}}"#, "AAAA".repeat(bytes / 3));
    rest.ask("PUT", "/kv/a", JSON, base64(VALUE_MAX + 2)).await.refused(413, "too-large", "at most 100000");
    rest.ask("PUT", "/kv/a", JSON, base64(3 * VALUE_MAX)).await.refused(413, "too-large", "JSON body");
    assert_eq!(rest.get("/kv/a").await.status, 404);
    let most = rest.ask("PUT", "/kv/a", &[], &large[1..]).await;
    assert_eq!(most.status, 204);
    assert_eq!(rest.get("/kv/a").await.body.len(), VALUE_MAX);
    assert_eq!(rest.ask("PUT", "/kv/a", JSON, base64(99_999)).await.status, 204);
}

#[tokio::test]
async fn a_refusal_reaches_who_is_still_sending_its_body() {
    let rest = Rest::start(3).await;
    let large = vec![b'x'; 20 * 1024 * 1024];
    rest.ask("PUT", "/kv/a?w=9", &[], &large).await.refused(400, "bad-request", "w is 1 to 3");
    rest.ask("PUT", "/kv/a", &[], &large).await.refused(413, "too-large", "8388608 bytes");
    rest.ask("POST", "/batch?w=9", &[], &large).await.refused(400, "bad-request", "w is 1 to 3");
}

#[tokio::test]
async fn what_is_no_http_or_too_much_of_it_costs_the_connection_alone() {
    let rest = Rest::start(3).await;
    let huge = format!("GET /kv/a HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "x".repeat(200_000));
    assert_eq!(rest.raw(huge.as_bytes()).await.expect("an answer").status, 431);
    let many: String = (0..200).map(|n| format!("A{n}: x\r\n")).collect();
    let many = format!("GET /kv/a HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    assert_eq!(rest.raw(many.as_bytes()).await.expect("an answer").status, 431);
    assert_eq!(rest.raw(b"\x00\x01\x02\x03\r\n\r\n").await.expect("an answer").status, 400);
    assert_eq!(rest.raw(b"GET /kv/a b HTTP/1.1\r\n\r\n").await.expect("an answer").status, 400);
    let torn = b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    rest.raw(torn).await.expect("an answer").refused(400, "bad-body", "broke off");
    // A large token is carried.
    let token = "A".repeat(60_000);
    rest.ask("PUT", "/kv/a", &[("Ringdove-Context", &token)], "x").await.refused(
        400,
        "bad-context",
        "version 0",
    );
    rest.put("/kv/a", "x").await;
}

#[tokio::test]
async fn a_slow_body_is_given_up_and_nothing_of_it_is_written() {
    let config = GatewayConfig { stall_after: Duration::from_millis(200), ..GatewayConfig::default() };
    let rest = start(config).await;
    // One byte, then silence, with the connection held open.
    let head = b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx";
    rest.raw(head).await.expect("an answer").refused(408, "slow-body", "only 1 bytes");
    assert_eq!(rest.get("/kv/a").await.status, 404);
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up_as_well() {
    let config = GatewayConfig {
        stall_after: Duration::from_secs(60),
        body_time_max: Duration::from_millis(200),
        ..GatewayConfig::default()
    };
    let rest = start(config).await;
    let mut stream = rest.connect().await;
    stream.write_all(b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut bytes = Vec::new();
    let trickle = async {
        // Never a pause as long as the limit; ends when the other side has closed.
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answered = async {
        tokio::select! {
            biased;
            _ = reader.read_to_end(&mut bytes) => {}
            () = trickle => {}
        }
        if bytes.is_empty() {
            let _ = reader.read_to_end(&mut bytes).await;
        }
    };
    watched(answered).await;
    Answer::parse(&bytes).refused(408, "slow-body", "too slowly");
}

#[tokio::test]
async fn a_head_that_never_ends_is_closed() {
    let config = GatewayConfig { head_time_max: Duration::from_millis(200), ..GatewayConfig::default() };
    let rest = start(config).await;
    // `raw` returns when the node closes: one that waited for ever would hang the test.
    assert!(rest.raw(b"GET /kv/a HTTP/1.1\r\nHost: ").await.is_none());
    assert!(rest.raw(b"").await.is_none(), "an idle connection ends too");
    rest.put("/kv/a", "x").await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_room_comes_back() {
    let config = GatewayConfig { connections_max: 2, ..GatewayConfig::default() };
    let rest = start(config).await;
    let mut held = rest.connect().await;
    held.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    held.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let second = rest.connect().await;
    let third = rest.raw(b"").await.expect("an answer");
    third.refused(503, "overloaded", "too many connections");
    assert_eq!(third.header("retry-after"), Some("1"));
    drop((held, second));
    while rest
        .raw(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .is_none_or(|a| a.status == 503)
    {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn bodies_that_find_no_room_are_turned_away_and_room_comes_back() {
    let config = GatewayConfig { held_bytes_max: 150_000, ..GatewayConfig::default() };
    let rest = start(config).await;
    let mut held = rest.connect().await;
    held.write_all(b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 90001\r\n\r\n").await.unwrap();
    held.write_all(&[b'x'; 90_000]).await.unwrap();
    // It is read by and by; from then on there is no room for another.
    let refused = loop {
        let answer = rest.ask("PUT", "/kv/b", &[], vec![b'x'; 90_000]).await;
        if answer.status != 204 {
            break answer;
        }
    };
    refused.refused(503, "overloaded", "nothing was done");
    assert_eq!(refused.header("retry-after"), Some("1"));
    rest.put("/kv/small", "x").await;
    held.write_all(b"x").await.unwrap();
    let mut head = [0; 12];
    held.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 204");
    assert_eq!(rest.ask("PUT", "/kv/b", &[], vec![b'x'; 90_000]).await.status, 204);
    let scrape = rest.get("/metrics").await.text();
    assert!(scrape.contains("ringdove_rest_held_bytes 0\n"), "all room is given back");
    assert!(!scrape.contains("ringdove_shed_total{why=\"memory\"} 0\n"));
}
