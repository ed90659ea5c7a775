//! Condition (c) of the frontier check, told by small histories: what a read claims to have seen, it returns, or
//! something that it may have seen accounts for the absence.
//!
//! Each pair differs in one thing, and that thing decides.

use jepsen_like_checks::formats::{self, json};
use jepsen_like_checks::{Options, frontier};

/// The verdict of a history of one key, an event a line. The bound on clocks is 10 ms.
fn verdict(lines: &[&str]) -> &'static str {
    let lines: Vec<String> = lines.iter().map(|line| format!("{{{line}}}\n")).collect();
    let history = formats::read(&mut json::Reader::new(lines.concat().as_bytes())).expect("a sound history");
    let options = Options { clock_skew_ms: 10, ..Options::default() };
    frontier::check(&history, &options).verdict.word()
}

const PUT_W1: &str = r#""type":"invoke","process":0,"f":"put","id":"w1""#;
const W1_DONE: &str = r#""type":"ok","process":0,"f":"put","id":"w1","dot":["a",1]"#;
const READ: &str = r#""type":"invoke","process":9,"f":"get""#;

#[test]
fn a_claimed_put_is_returned_or_the_read_is_wrong() {
    let returned = r#""type":"ok","process":9,"f":"get","value":[{"id":"w1"}],"covers":{"a":1}"#;
    let absent = r#""type":"ok","process":9,"f":"get","value":[],"covers":{"a":1}"#;
    assert_eq!(verdict(&[PUT_W1, W1_DONE, READ, returned]), "valid");
    assert_eq!(verdict(&[PUT_W1, W1_DONE, READ, absent]), "invalid");
}

#[test]
fn a_hidden_sibling_is_returned_too() {
    let hidden = r#""type":"ok","process":9,"f":"get","value":[{"id":"w1","hidden":true}],"covers":{"a":1}"#;
    assert_eq!(verdict(&[PUT_W1, W1_DONE, READ, hidden]), "valid");
}

#[test]
fn a_put_of_unknown_outcome_may_have_expired_at_any_time() {
    // Its dot is learned from the first read; no clock says when it was written, so none says when it ends.
    let unknown = r#""type":"info","process":0,"f":"put","id":"w1""#;
    let seen = r#""type":"ok","process":9,"f":"get","value":[{"id":"w1","dot":["a",1]}],"covers":{"a":1},"clock":[0,0]"#;
    let gone = r#""type":"ok","process":9,"f":"get","value":[],"covers":{"a":1},"clock":[1,1]"#;
    let mortal = r#""type":"invoke","process":0,"f":"put","id":"w1","ttl":1000000"#;
    assert_eq!(verdict(&[mortal, unknown, READ, seen, READ, gone]), "valid");
    assert_eq!(verdict(&[PUT_W1, unknown, READ, seen, READ, gone]), "invalid", "without a time to live");
}

#[test]
fn a_put_that_was_acknowledged_expires_by_its_clock() {
    let mortal = r#""type":"invoke","process":0,"f":"put","id":"w1","ttl":100"#;
    let done = r#""type":"ok","process":0,"f":"put","id":"w1","dot":["a",1],"clock":[0,5]"#;
    let gone = |clock: &str| {
        format!(r#""type":"ok","process":9,"f":"get","value":[],"covers":{{"a":1}},"clock":[{clock}]"#)
    };
    // It may end at 100 at the earliest, and clocks may be 10 apart.
    assert_eq!(verdict(&[mortal, done, READ, &gone("80,89")]), "invalid");
    assert_eq!(verdict(&[mortal, done, READ, &gone("80,90")]), "valid");
}

#[test]
fn what_an_expired_put_of_unknown_outcome_overwrote_is_accounted_for() {
    let seen = r#""type":"ok","process":9,"f":"get","value":[{"id":"w1"}],"covers":{"a":1},"clock":[0,0]"#;
    let unknown = r#""type":"info","process":1,"f":"put","id":"w2""#;
    let gone = r#""type":"ok","process":9,"f":"get","value":[],"covers":{"a":1},"clock":[2,2]"#;
    let over = |ttl: &str| format!(r#""type":"invoke","process":1,"f":"put","id":"w2","after":3{ttl}"#);
    let history = |ttl: &str| verdict(&[PUT_W1, W1_DONE, READ, seen, &over(ttl), unknown, READ, gone]);
    assert_eq!(history(r#","ttl":1"#), "valid", "w2 overwrote w1, and went");
    assert_eq!(history(""), "invalid", "w2 would be there");
}

#[test]
fn a_claim_demands_puts_alone() {
    // The claim holds a deletion's dot. Its tombstone may be reaped: nothing need be returned.
    let delete = r#""type":"invoke","process":1,"f":"delete","id":"d1","after":1"#;
    let deleted = r#""type":"ok","process":1,"f":"delete","id":"d1","dot":["b",1]"#;
    let nothing = r#""type":"ok","process":9,"f":"get","value":[],"covers":{"b":1}"#;
    assert_eq!(verdict(&[PUT_W1, W1_DONE, delete, deleted, READ, nothing]), "valid");
    // The same with a put.
    let put = r#""type":"invoke","process":1,"f":"put","id":"d1","after":1"#;
    let done = r#""type":"ok","process":1,"f":"put","id":"d1","dot":["b",1]"#;
    assert_eq!(verdict(&[PUT_W1, W1_DONE, put, done, READ, nothing]), "invalid");
}

#[test]
fn a_claim_demands_what_it_covers_and_no_more() {
    // w2 overwrote w1, so whoever has seen w2 returns w2 alone; whoever has seen w1 alone returns w1.
    let put = r#""type":"invoke","process":1,"f":"put","id":"w2","after":1"#;
    let done = r#""type":"ok","process":1,"f":"put","id":"w2","dot":["b",1]"#;
    let history = |returned: &str, covers: &str| {
        let read = format!(r#""type":"ok","process":9,"f":"get","value":[{returned}],"covers":{{{covers}}}"#);
        verdict(&[PUT_W1, W1_DONE, put, done, READ, &read])
    };
    let (w1, w2) = (r#"{"id":"w1"}"#, r#"{"id":"w2"}"#);
    assert_eq!(history(w2, r#""a":1,"b":1"#), "valid");
    assert_eq!(history(w2, r#""a":1"#), "valid", "w2 is returned, and it saw w1");
    assert_eq!(history(w1, r#""a":1"#), "valid", "nobody said that w2 was seen");
    assert_eq!(history(w1, r#""a":1,"b":1"#), "invalid", "w2 is missing");
    assert_eq!(history("", r#""a":1"#), "invalid", "w1 is missing, and nobody said that w2 was seen");
}

#[test]
fn a_deletion_counts_if_it_began_before_the_read_ended() {
    let absent = r#""type":"ok","process":9,"f":"get","value":[],"covers":{"a":1}"#;
    let delete = r#""type":"invoke","process":1,"f":"delete","id":"d1","after":1"#;
    assert_eq!(verdict(&[PUT_W1, W1_DONE, READ, delete, absent]), "valid", "it is still running");
    assert_eq!(verdict(&[PUT_W1, W1_DONE, READ, absent, delete]), "invalid", "it began too late");
}

#[test]
fn a_deletion_counts_unless_it_failed() {
    let absent = r#""type":"ok","process":9,"f":"get","value":[],"covers":{"a":1}"#;
    let delete = r#""type":"invoke","process":1,"f":"delete","id":"d1","after":1"#;
    let ends = |how: &str| format!(r#""type":"{how}","process":1,"f":"delete","id":"d1""#);
    let history = |how: &str| verdict(&[PUT_W1, W1_DONE, delete, &ends(how), READ, absent]);
    assert_eq!([history("ok"), history("info"), history("fail")], ["valid", "valid", "invalid"]);
}

#[test]
fn a_deletion_that_had_not_seen_the_put_accounts_for_nothing() {
    let absent = r#""type":"ok","process":9,"f":"get","value":[],"covers":{"a":1}"#;
    // Its context is that of a read that found nothing.
    let empty = r#""type":"ok","process":9,"f":"get","value":[],"covers":{}"#;
    let delete = |after: &str| format!(r#""type":"invoke","process":1,"f":"delete","id":"d1"{after}"#);
    let ends = r#""type":"ok","process":1,"f":"delete","id":"d1""#;
    let history = |after: &str| verdict(&[READ, empty, PUT_W1, W1_DONE, &delete(after), ends, READ, absent]);
    assert_eq!(history(r#","after":1"#), "invalid");
    assert_eq!(history(""), "valid", "without a context it overwrote what was there, and did not say what");
}
