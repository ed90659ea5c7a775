//! Hostile input: an error with its place, or a history; never a panic, never an allocation without bound.

use std::io::{BufRead, BufReader, Read};

use jepsen_like_checks::event::{InputError, InputErrorKind};
use jepsen_like_checks::formats::{self, EVENT_BYTES_MAX, Source, edn, etcd, json};
use proptest::prelude::*;

fn json(text: &str) -> Result<jepsen_like_checks::history::History, InputError> {
    formats::read(&mut json::Reader::new(text.as_bytes()))
}

fn edn(text: &str) -> Result<jepsen_like_checks::history::History, InputError> {
    formats::read(&mut edn::Reader::new(text.as_bytes()))
}

fn place(error: &InputError) -> (u64, u64) {
    (error.line, error.column)
}

#[test]
fn an_error_says_where_it_stands() {
    let good = r#"{"type":"invoke","process":1,"f":"read","value":null}"#;
    let error = json(&format!("{good}\n\n{{\"type\":\"ok\",\"process\":1,\"f\":\"read\",\"value\":NaN}}\n"))
        .unwrap_err();
    assert_eq!(place(&error), (3, 45), "{error}");
    let error =
        edn("[{:process 0, :type :invoke, :f :read}\n {:process 0, :type :ok,\n  :f :read, :value ##NaN}]")
            .unwrap_err();
    assert_eq!(place(&error), (3, 21), "{error}");
    let log = "INFO  jepsen.util - 0\t:invoke\t:read\tnil\nINFO  jepsen.util - 0\t:okay\t:read\tnil\n";
    let error = formats::read(&mut etcd::Reader::new(log.as_bytes())).unwrap_err();
    assert_eq!(place(&error), (2, 23), "{error}");
}

#[test]
fn input_that_is_cut_off_anywhere_gives_an_error_or_a_shorter_history() {
    let text = "; comment\n[{:process 0, :type :invoke, :f :cas, :value [1 2], :x #t {:y \"a\\n\\u0041\"}}\n #_ {:a 1}\n {:process 0, :type :ok, :f :cas, :c \\newline}]\n";
    assert_eq!(edn(text).unwrap().ops.len(), 1);
    for end in 0..text.len() {
        let _ = edn(&text[..end]);
    }
    assert!(edn(&text[..text.len() - 3]).is_err(), "the vector is not closed");
    assert!(edn("{:process 0 :type :invoke :f").is_err());
    assert!(edn("{:process 0 :type :invoke}}").is_err());
    assert!(edn("[{:process 0 :type :invoke :f :read}] 7").is_err());
}

#[test]
fn deep_nesting_is_refused_by_every_reader() {
    for depth in [50, 100_000] {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        let events = [
            json(&format!("{{\"type\":\"invoke\",\"process\":1,\"f\":\"read\",\"value\":{open}{close}}}")),
            edn(&format!("{{:type :invoke :process 1 :f :read :value {open}{close}}}")),
            edn(&format!("{{:type :invoke :process 1 :f :read :value {}1}}", "#a ".repeat(depth))),
            edn(&format!("{{:type :invoke :process 1 :f :read :value {}1 1}}", "#_ ".repeat(depth))),
        ];
        for (at, event) in events.into_iter().enumerate() {
            // An odd number of discarded forms leaves a key without its value; that it is an error is enough.
            assert!(event.is_ok() == (depth == 50) || at == 3, "{at} at {depth}");
        }
    }
}

/// Gives the same byte for ever.
struct Endless(u8);

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        buffer.fill(self.0);
        Ok(buffer.len())
    }
}

#[test]
fn a_line_of_a_gigabyte_is_refused_before_it_is_held() {
    let endless = |start: &'static str, byte: u8| {
        BufReader::with_capacity(1 << 16, start.as_bytes().chain(Endless(byte).take(1 << 30)))
    };
    fn too_long(mut source: impl Source) {
        match source.next() {
            Err(InputError { kind: InputErrorKind::TooLong { limit }, .. }) => {
                assert_eq!(limit, EVENT_BYTES_MAX);
            }
            Err(other) => panic!("{other}"),
            Ok(event) => panic!("{event:?}"),
        }
    }
    too_long(json::Reader::new(endless("{", b' ')));
    too_long(edn::Reader::new(endless("{:a \"", b'x')));
    too_long(etcd::Reader::new(endless("jepsen.util - ", b' ')));
}

#[test]
fn what_cannot_follow_is_refused() {
    let event = |kind: &str, process: &str, rest: &str| {
        format!("{{\"type\":\"{kind}\",\"process\":{process},\"f\":\"put\"{rest}}}\n")
    };
    let cases = [
        (event("ok", "1", ""), "did not begin"),
        (event("invoke", "1", "") + &event("invoke", "1", ""), "is open"),
        (event("invoke", "1", "") + &event("info", "1", "") + &event("invoke", "1", ""), "ended with info"),
        (
            event("invoke", "1", ",\"index\":3") + &event("ok", "1", ",\"index\":3"),
            "index 3 comes after index 3",
        ),
        (event("invoke", "1", ",\"id\":\"w\"") + &event("invoke", "2", ",\"id\":\"w\""), "was used before"),
        (event("invoke", "1", ",\"after\":0"), "no earlier event"),
        (event("invoke", "1", ",\"id\":\"w\",\"id\":\"v\""), "given once"),
        (event("invoke", "1", ",\"r\":256"), "below 256"),
        (event("invoke", "1", "") + &event("ok", "1", ",\"covers\":{\"a\":1,\"a\":2}"), "each actor once"),
        (event("invoke", "1", ",\"clock\":[2,1]"), "[lo, hi]"),
        (event("begin", "1", ""), "invoke, ok, fail or info"),
        ("[1]\n".to_owned(), "an event"),
        ("{\"type\":\"ok\"}\n".to_owned(), "`process` is missing"),
    ];
    for (text, expected) in cases {
        let error = json(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let nemesis = event("info", "\"nemesis\"", "")
        + &event("info", "\"nemesis\"", "")
        + &event("ok", "\"nemesis\"", "");
    assert_eq!(json(&nemesis).unwrap().marks.len(), 3);
}

/// What a fuzz target does with its input, in every format.
fn survives(bytes: &[u8]) {
    formats::survives(json::Reader::new(bytes), bytes.len());
    formats::survives(edn::Reader::new(bytes), bytes.len());
    formats::survives(etcd::Reader::new(bytes), bytes.len());
    for history in [
        formats::read(&mut json::Reader::new(bytes)),
        formats::read(&mut edn::Reader::new(bytes)),
        formats::read(&mut etcd::Reader::new(bytes)),
    ]
    .into_iter()
    .flatten()
    {
        let options = jepsen_like_checks::Options { steps: 1000, ..Default::default() };
        jepsen_like_checks::frontier::check(&history, &options);
        jepsen_like_checks::set_full::check(&history, &options);
        for model in jepsen_like_checks::linearizability::Model::ALL {
            jepsen_like_checks::linearizability::check(&history, model, &options);
        }
    }
}

const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "#{",
    "#_",
    "#t ",
    "\"",
    "\\",
    "\\u0041",
    ":",
    ";",
    "\n",
    "\t",
    " ",
    ",",
    "nil",
    "null",
    "1",
    "-9223372036854775809",
    "1e400",
    "NaN",
    "##Inf",
    "é",
    "\u{0}",
    "{:process 1, :type :invoke, :f :get",
    "{\"type\":\"invoke\",\"process\":1,\"f\":\"put\",\"id\":\"a\"",
    "\"value\":[{\"id\":\"a\",\"dot\":[\"x\",1]}]",
    "{\"type\":\"ok\",\"process\":1,\"f\":\"put\"}\n",
    ":value",
    "INFO jepsen.util - 1\t:invoke\t:cas\t[1 2]\n",
    "\"covers\":{\"a\":18446744073709551615}",
    "\"after\":0",
    "\"saw\":[\"a\"]",
    "{:process 1, :type :ok, :f :get}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_an_error_or_a_history(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        survives(&bytes);
    }

    #[test]
    fn any_pieces_of_the_formats_give_an_error_or_a_history(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..60),
    ) {
        survives(pieces.concat().as_bytes());
    }
}

/// Lines of the usual form, which the JSON reader reads in one pass. Builds with assertions read each once more the
/// long way and compare: a line that both take is the same event for both.
const USUAL: &[&str] = &[
    r#"{"type":"invoke","process":3,"f":"put","key":"k","id":"w9","after":12,"r":2,"w":2,"n":3,"strict":true,"ttl":null,"index":14,"time":-5}"#,
    r#"{"type":"ok","process":3,"f":"put","id":"w9","dot":["a",6],"copies":2,"durable":"sync","layout":4}"#,
    r#" { "type" : "ok", "process":5,"f":"get","key":7,"value":[{"id":"w9","v":"x","dot":["a",6]},{"dot":["b",2],"hidden":true,"id":"w7","dead":false}],"covers":{"a":6,"b":2},"clock":[-1,0],"strict":false}"#,
    r#"{"type":"ok","process":5,"f":"delete","key":null,"saw":["w1","w2"],"after":"current","ttl":100}"#,
    r#"{"type":"info","process":"nemesis","f":"lost","value":null,"node":"n2"}"#,
    r#"{"type":"ok","process":0,"f":"get","value":[],"covers":{},"saw":[]}"#,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn usual_lines_with_a_few_changes_give_an_error_or_one_event(
        line in proptest::sample::select(USUAL),
        changes in proptest::collection::vec(
            (any::<proptest::sample::Index>(), 0..4_usize, proptest::sample::select(
                &["", "0", "1", "-", ".", "e", "\"", "\\", "\\u0041", "{", "}", "[", "]", ",", ":", " ", "\t", "\u{1}", "é",
                  "null", "true", "\"id\":", "\"v\":1,", "\"r\":1,", "18446744073709551615", "999999999999999999"][..],
            )),
            0..4,
        ),
    ) {
        let mut line = line.to_owned();
        for (at, taken, put) in changes {
            let start = at.index(line.len() + 1);
            let end = (start + taken).min(line.len());
            if line.is_char_boundary(start) && line.is_char_boundary(end) {
                line.replace_range(start..end, put);
            }
        }
        let _ = json::Reader::new(line.as_bytes()).next();
    }
}

#[test]
fn what_is_written_is_read_again() {
    let line = r#"{"after":2,"clock":[1,9],"copies":2,"covers":{"a":6},"dot":["a",6],"durable":"sync","expires_at":7,"f":"put","id":"w9","index":14,"key":"k","layout":4,"n":3,"node":"n1","other":{"x":[1,2.5,null]},"process":3,"r":2,"saw":["w1"],"strict":true,"time":5,"ttl":100,"type":"invoke","value":[{"dead":true,"dot":["b",2],"hidden":true,"id":"w7","v":"x","z":1}],"w":2}"#;
    let mut reader = json::Reader::new(line.as_bytes());
    let (_, event) = reader.next().unwrap().unwrap();
    let mut written = Vec::new();
    json::write(&mut written, &event).unwrap();
    assert_eq!(std::str::from_utf8(&written).unwrap().trim_end(), line);
    let mut as_edn = Vec::new();
    edn::write(&mut as_edn, &event).unwrap();
    let mut reader = edn::Reader::new(&as_edn[..]);
    let (_, again) = reader.next().unwrap().unwrap();
    assert_eq!(again, event);
    let mut lines = BufReader::new(&as_edn[..]).lines();
    assert_eq!(lines.by_ref().count(), 1);
}
