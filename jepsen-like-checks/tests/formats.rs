//! The rules of the formats, each by the smallest history that shows it.

use jepsen_like_checks::event::{Event, Payload, Process};
use jepsen_like_checks::formats::{self, Source, edn, etcd, json};
use jepsen_like_checks::history::{History, NONE, Outcome};
use jepsen_like_checks::value::Value;

fn edn(text: &str) -> History {
    formats::read(&mut edn::Reader::new(text.as_bytes())).unwrap()
}

fn json(text: &str) -> History {
    formats::read(&mut json::Reader::new(text.as_bytes())).unwrap()
}

const INVOKE: &str = "{:process 0, :type :invoke, :f :write, :value 7}";
const OK: &str = "{:process 0, :type :ok, :f :write}";

#[test]
fn edn_is_maps_on_lines_in_a_vector_or_in_a_list() {
    for text in [
        format!("{INVOKE}\n{OK}\n"),
        format!("[{INVOKE} {OK}]"),
        format!("({INVOKE}\n\n ,, {OK})\n"),
        format!("; said before\n[{INVOKE} ; said after\n #_ {{:ignored 1}} {OK}]"),
    ] {
        let history = edn(&text);
        assert_eq!((history.ops.len(), history.ops[0].outcome), (1, Outcome::Ok), "{text}");
    }
}

#[test]
fn a_completion_without_a_value_has_its_invocations() {
    let history = edn(&format!("{INVOKE}{OK}"));
    assert_eq!(history.values.name(history.ops[0].value), "7");
}

#[test]
fn what_has_no_index_has_the_one_after_the_last() {
    let history = edn("{:process 0, :type :invoke, :f :read, :index 4} {:process 0, :type :ok, :f :read}
        {:process 0, :type :invoke, :f :read, :index 9}");
    let places: Vec<u64> = (0..3).map(|position| history.index(position)).collect();
    assert_eq!(places, [4, 5, 9]);
    assert_eq!(edn(&format!("{INVOKE}{OK}")).index(1), 1);
}

#[test]
fn what_never_ends_and_what_ends_with_info_are_open() {
    for end in ["", "{:process 0, :type :info, :f :write}"] {
        let history = edn(&format!("{INVOKE}{end}"));
        assert_eq!((history.ops[0].outcome, history.ops[0].complete), (Outcome::Info, NONE), "{end:?}");
    }
}

#[test]
fn the_rules_of_processes_bind_integers_alone() {
    // The nemesis completes nothing that it began, and begins twice.
    let nemesis =
        "{:process :nemesis, :type :info, :f :kill} {:process :nemesis, :type :info, :f :kill, :value [:n1]}
        {:process :nemesis, :type :invoke, :f :start} {:process :nemesis, :type :invoke, :f :start}";
    let history = edn(&format!("{nemesis} {INVOKE} {OK}"));
    assert_eq!(history.marks.len(), 2, "the infos stand alone");
    assert_eq!(history.ops.iter().filter(|op| op.outcome == Outcome::Ok).count(), 1);
    let client = nemesis.replace(":nemesis", "1");
    assert!(formats::read(&mut edn::Reader::new(client.as_bytes())).is_err());
}

#[test]
fn unknown_keys_and_tagged_values_are_kept() {
    let text = "{:process 0, :type :ok, :f :read, :value #inst \"2020\", :node \"n1\", :link/cut {:a #{1}}}";
    let mut reader = edn::Reader::new(text.as_bytes());
    let (_, event) = reader.next().unwrap().unwrap();
    assert!(
        matches!(&event.value, Some(Payload::Value(Value::Tagged(tag, _))) if tag == "inst"),
        "{event:?}"
    );
    assert_eq!(event.extra.len(), 1);
    let mut written = Vec::new();
    edn::write(&mut written, &event).unwrap();
    let mut again = edn::Reader::new(&written[..]);
    assert_eq!(again.next().unwrap().unwrap().1, event);
}

#[test]
fn json_and_edn_say_the_same() {
    let as_json = json(
        "{\"type\":\"invoke\",\"process\":0,\"f\":\"put\",\"key\":\"k\",\"id\":\"w\",\"value\":\"x\"}
        {\"type\":\"ok\",\"process\":0,\"f\":\"put\",\"dot\":[\"a\",1]}"
            .replace("\n        ", "\n")
            .as_str(),
    );
    let as_edn = edn(
        "{:type :invoke :process 0 :f :put :key \"k\" :id \"w\" :value \"x\"} {:type :ok :process 0 :f :put :dot [\"a\" 1]}",
    );
    for history in [as_json, as_edn] {
        let op = &history.ops[0];
        assert_eq!((history.keys.name(op.key), history.ids.name(op.id)), ("\"k\"", "w"));
        assert_eq!((history.values.name(op.value), history.dot(op.dot)), ("\"x\"", Some((0, 1))));
    }
}

#[test]
fn a_line_of_the_etcd_log_is_an_event_and_others_are_passed_over() {
    let log = "INFO  jepsen.util - 3\t:invoke\t:cas\t[1 2]
WARN  jepsen.core - something else
INFO  jepsen.util - 3\t:info\t:cas\t:timed-out
INFO  jepsen.util - :nemesis\t:info\t:start\tnil
";
    let history = formats::read(&mut etcd::Reader::new(log.as_bytes())).unwrap();
    assert_eq!((history.ops.len(), history.ops[0].outcome), (1, Outcome::Info));
    assert_eq!((history.marks.len(), &*history.marks[0].f), (1, "start"));
    let mut reader = etcd::Reader::new(log.as_bytes());
    assert_eq!(reader.next().unwrap().unwrap().1.process, Process::Client(3));
}

#[test]
fn what_a_line_of_the_etcd_log_cannot_say_is_not_written() {
    let line = "INFO  jepsen.util - 3\t:ok\t:read\t[1 {:a \"b\"}]\n";
    let mut reader = etcd::Reader::new(line.as_bytes());
    let (_, event) = reader.next().unwrap().unwrap();
    let written = |event: &Event<'_>| {
        let mut out = Vec::new();
        etcd::write(&mut out, event).map(|()| String::from_utf8(out).unwrap())
    };
    assert_eq!(written(&event).unwrap(), line);
    let put = |change: &dyn Fn(&mut Event<'_>)| {
        let mut changed = event.clone();
        change(&mut changed);
        written(&changed)
    };
    assert_eq!(put(&|event| event.index = Some(7)).unwrap(), line, "the order says it");
    assert!(put(&|event| event.key = Some(Value::Int(1))).is_err());
    assert!(put(&|event| event.value = None).is_err());
    assert!(put(&|event| event.value = Some(Payload::Value(Value::Keyword("timed-out".into())))).is_err());
    assert!(put(&|event| event.f = "append".into()).is_err());
    assert!(put(&|event| event.process = Process::Named("a b".into())).is_err());
}
