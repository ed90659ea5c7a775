use std::time::Duration;

use super::value::{Kind, Value, nearest, parse_address};
use super::*;

/// Loads these layers; `env` and `flags` are pairs of name and text.
fn read(
    file: Option<&str>,
    env: &[(&str, &str)],
    flags: &[(&'static str, &str)],
) -> Result<Effective, Vec<String>> {
    let flags = flags.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
    let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, text)| OsString::from(text));
    let layers = Layers { file: file.map(|text| ("dove.toml", text)), env: &env, flags: &flags };
    load(&layers).map_err(|problems| problems.iter().map(Problem::to_string).collect())
}

fn wrong(file: &str) -> Vec<String> {
    read(Some(file), &[], &[]).expect_err("it is wrong")
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let file = "hint_after = \"101ms\"\nhedge_after = \"101ms\"\ntimeout = \"4s\"\n";
    let env = [("RINGDOVE_HINT_AFTER", "102ms"), ("RINGDOVE_HEDGE_AFTER", "102ms")];
    let set = read(Some(file), &env, &[("hint_after", "103ms")]).unwrap();
    let node = &set.settings.node;
    assert_eq!(node.hint_after, Duration::from_millis(103));
    assert_eq!(node.hedge_after, Duration::from_millis(102));
    assert_eq!(node.timeout, Duration::from_secs(4));
    assert_eq!(node.timeout_max, NodeConfig::new(PathBuf::new()).timeout_max);
    let source = |name: &str| set.source(name).to_string();
    assert_eq!(source("hint_after"), "--hint-after");
    assert_eq!(source("hedge_after"), "RINGDOVE_HEDGE_AFTER");
    assert_eq!(source("timeout"), "dove.toml:3");
    assert_eq!(source("timeout_max"), "default");
}

#[test]
fn every_setting_can_be_set_by_all_three_and_arrives_where_it_belongs() {
    for setting in SETTINGS {
        // A value that is allowed and not the default.
        let text = match setting.kind {
            Kind::Time { .. } => "700ms",
            Kind::Size { .. } => "31MiB",
            Kind::Count { .. } => "17",
            Kind::Decimal { .. } => "6.5",
            Kind::Choice(words) => words[1],
            Kind::Durability => "interval:100ms",
            Kind::Address => "[::1]:7",
            Kind::Path => "else/where",
            Kind::Filter => "ringdove=trace",
        };
        // What must stay on its side of it.
        let others: &[(&'static str, &str)] = match setting.name {
            "value_len_max" | "record_bytes_max" => {
                &[("value_len_max", "1MiB"), ("record_bytes_max", "32MiB")]
            }
            _ => &[],
        };
        let text = match setting.name {
            "timeout_max" | "connection_stall_max" => "7s",
            "rest_body_time_max" => "70s",
            "connection_idle_max" => "7m",
            "frame_len_max" => "40MiB",
            _ => text,
        };
        let flags: Vec<_> = others.iter().copied().filter(|(name, _)| *name != setting.name).collect();
        let value = Some(setting.kind.parse(text).unwrap());
        assert_ne!(setting.get(&Settings::default()), value, "{}: take another value", setting.name);
        let line = format!("{} = {}", setting.name, setting.kind.toml(value.as_ref().unwrap()));
        let by_file = read(Some(&line), &[], &flags).unwrap();
        let by_env = read(None, &[(&setting.env(), text)], &flags).unwrap();
        let by_flag = read(None, &[], &[&flags[..], &[(setting.name, text)]].concat()).unwrap();
        for set in [by_file, by_env, by_flag] {
            assert_eq!(setting.get(&set.settings), value, "{}", setting.name);
            // And nowhere else.
            let rest = SETTINGS.iter().filter(|other| {
                other.name != setting.name && !flags.iter().any(|(name, _)| *name == other.name)
            });
            for other in rest {
                assert_eq!(other.get(&set.settings), other.get(&Settings::default()), "{}", other.name);
            }
        }
    }
}

#[test]
fn what_is_printed_sets_the_same_when_it_is_read() {
    let file = "dir = '/a \"quoted\" \\ dir'\nlog = \"ringdove=debug,info\"\ncache_bytes = 1_000_001\n";
    let set = read(Some(file), &[("RINGDOVE_STORAGE", "memory")], &[("drain_max", "0")]).unwrap();
    let printed = set.to_toml();
    assert!(printed.contains("# dove.toml:3\n") && printed.contains("# RINGDOVE_STORAGE\n"), "{printed}");
    assert!(printed.contains("# listen_rest is not set") && printed.contains("# no gateway\n"), "{printed}");
    let again = read(Some(&printed), &[], &[]).unwrap_or_else(|problems| panic!("{problems:?}\n{printed}"));
    for setting in SETTINGS {
        assert_eq!(setting.get(&again.settings), setting.get(&set.settings), "{}", setting.name);
    }
}

#[test]
fn every_default_is_in_its_range_and_all_fit_together() {
    for setting in SETTINGS {
        if let Some(value) = setting.get(&Settings::default()) {
            assert_eq!(setting.kind.parse(&setting.kind.text(&value)), Ok(value), "{}", setting.name);
        }
    }
    read(None, &[], &[]).unwrap();
}

#[test]
fn a_wrong_setting_is_named_with_line_reason_and_range() {
    assert_eq!(
        wrong("# times\ntimeout = \"3d\"\n\nhint_after = \"2h\"\nsiblings_max = 1"),
        [
            "dove.toml:2: timeout: \"3d\" is no time: give a whole number with ms, s, m or h, like 300ms or 10s, from 10ms to 1h",
            "dove.toml:4: hint_after: 2h is out of range: choose from 1ms to 1m",
            "dove.toml:5: siblings_max: 1 is out of range: choose from 2 to 1000",
        ]
    );
    assert_eq!(
        wrong("timeout = 5"),
        ["dove.toml:1: timeout: 5 has no unit: give a text like \"5ms\" or \"5s\", from 10ms to 1h"]
    );
    let both = read(None, &[("RINGDOVE_STORAGE", "disk")], &[("dead_percent_max", "all")]);
    assert_eq!(
        both.unwrap_err(),
        [
            "RINGDOVE_STORAGE: storage: \"disk\" is not possible: choose log or memory",
            "--dead-percent-max: dead_percent_max: \"all\" is no whole number: give one from 10 to 90",
        ]
    );
}

#[test]
fn a_wrong_setting_is_an_error_also_where_another_one_wins() {
    let problems = read(Some("timeout = \"x\""), &[], &[("timeout", "5s")]).unwrap_err();
    assert!(problems[0].starts_with("dove.toml:1: timeout"), "{problems:?}");
}

#[test]
fn an_unknown_key_is_an_error_with_the_nearest_name() {
    assert_eq!(
        wrong("\nhint_aftr = \"1s\""),
        ["dove.toml:2: hint_aftr is no setting: did you mean hint_after?"]
    );
    assert_eq!(
        wrong("hint-after = \"1s\""),
        ["dove.toml:1: hint-after is no setting: did you mean hint_after?"]
    );
    assert_eq!(
        wrong("colour = \"red\""),
        ["dove.toml:1: colour is no setting: `ringdove config` lists them all"]
    );
    assert_eq!(
        wrong("[node]\ntimeout = \"1s\""),
        ["dove.toml:1: [node]: settings stand at the top level, without a table"]
    );
    assert_eq!(nearest("tiemout", ["timeout", "storage"]), Some("timeout"));
    assert_eq!(nearest(&"x".repeat(1_000_000), ["timeout"]), None);
}

#[test]
fn what_is_not_toml_is_shown_by_its_line() {
    let problems = wrong("timeout = \"5s\"\nhint_after = 300ms\n");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("dove.toml:2: not TOML: "), "{problems:?}");
    let twice = wrong("timeout = \"5s\"\ntimeout = \"6s\"\n");
    assert!(twice[0].starts_with("dove.toml:2: not TOML: duplicate"), "{twice:?}");
}

#[test]
fn a_value_of_another_type_is_told_what_is_wanted() {
    assert_eq!(
        wrong("timeout = true\nlog = 3\nsiblings_max = 1.5"),
        [
            "dove.toml:1: timeout: boolean is not possible here: give a text in quotes, 10ms to 1h",
            "dove.toml:2: log: integer is not possible here: give a text in quotes, `tracing` directives",
            "dove.toml:3: siblings_max: float is not possible here: give a number from 2 to 1000",
        ]
    );
}

#[test]
fn settings_that_do_not_fit_together_are_both_named_with_their_places() {
    let problems = read(Some("timeout = \"200ms\""), &[("RINGDOVE_HINT_AFTER", "200ms")], &[]).unwrap_err();
    assert_eq!(
        problems,
        [
            "RINGDOVE_HINT_AFTER: hint_after is 200ms and must be below timeout, which is 200ms (dove.toml:1)",
            "default: hedge_after is 200ms and must be below timeout, which is 200ms (dove.toml:1)",
        ]
    );
    let large = read(None, &[], &[("record_bytes_max", "39MiB"), ("frame_len_max", "39MiB")]).unwrap_err();
    assert_eq!(large.len(), 1, "{large:?}");
}

#[test]
fn an_empty_variable_is_not_set() {
    let set = read(None, &[("RINGDOVE_TIMEOUT", "")], &[]).unwrap();
    assert_eq!(*set.source("timeout"), Source::Default);
}

#[test]
fn times_and_sizes_are_read_as_people_write_them() {
    let time = Kind::Time { min: Duration::ZERO, max: Duration::from_secs(7200) };
    for (text, ms) in
        [("300ms", 300), ("10s", 10_000), ("5m", 300_000), ("2h", 7_200_000), ("0", 0), ("1 s", 1000)]
    {
        assert_eq!(time.parse(text), Ok(Value::Time(Duration::from_millis(ms))), "{text}");
    }
    for text in ["", "5", "1.5s", "-1s", "ms", "5 minutes", "99999999999999999999s", "18446744073709551615h"]
    {
        assert!(time.parse(text).is_err(), "{text}");
    }
    let size = Kind::Size { min: 0, max: u64::MAX };
    for (text, bytes) in [("64MiB", 64 << 20), ("1_000", 1000), ("3 kib", 3072), ("0x10", 0), ("7B", 7)] {
        let read = size.parse(text);
        assert_eq!(read.ok(), (text != "0x10").then_some(Value::Number(bytes)), "{text}");
    }
    for text in ["64MB", "64M", "-1", "18446744073709551615GiB", "MiB"] {
        assert!(size.parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_durability_is_a_word_or_an_interval() {
    for good in ["sync", "interval:1ms", "interval:1m"] {
        assert_eq!(Kind::Durability.parse(good), Ok(Value::Text(good.to_owned())));
    }
    for bad in ["", "none", "interval", "interval:", "interval:0ms", "interval:2m", "sync:1s"] {
        assert!(Kind::Durability.parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_threshold_out_of_its_range_is_refused_and_the_range_named() {
    assert_eq!(
        wrong("phi_threshold = 1.9"),
        ["dove.toml:1: phi_threshold: 1.9 is out of range: choose from 2.0 to 16.0"]
    );
    let both = read(None, &[("RINGDOVE_PHI_THRESHOLD", "high")], &[("phi_threshold", "16.1")]);
    assert_eq!(
        both.unwrap_err(),
        [
            "RINGDOVE_PHI_THRESHOLD: phi_threshold: \"high\" is no number with at most one decimal place: give one from \
             2.0 to 16.0",
            "--phi-threshold: phi_threshold: 16.1 is out of range: choose from 2.0 to 16.0",
        ]
    );
    for text in ["3.85", ".5", "5.", "-3", "+3", "3e0", "inf", "nan", "", "3.-", "99999999999999999999"] {
        assert!(Kind::Decimal { min: 0, max: u64::MAX }.parse(text).is_err(), "{text}");
    }
    for (text, threshold) in [("2", 2.0), ("\"3.8\"", 3.8), ("12.5", 12.5), ("16.0", 16.0)] {
        let set = read(Some(&format!("phi_threshold = {text}")), &[], &[]).unwrap();
        assert_eq!(set.settings.node.detector.threshold.to_bits(), f64::to_bits(threshold), "{text}");
    }
}

#[test]
fn an_address_has_a_host_and_a_port() {
    for good in ["127.0.0.1:7001", "db1.example:65535", "[::1]:7001", "0.0.0.0:1"] {
        assert_eq!(parse_address(good), Ok(good.to_owned()));
    }
    for bad in [
        "",
        "7001",
        ":7001",
        "host",
        "host:",
        "host:0",
        "host:65536",
        "::1:7001",
        "[x]:1",
        "http://h:1",
        "a b:1",
    ] {
        assert!(parse_address(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_mistyped_log_level_is_no_target() {
    assert!(Kind::Filter.parse("ringdove=debug,warn,hyper").is_ok());
    assert!(Kind::Filter.parse("debgu").unwrap_err().contains("did you mean debug"));
    assert!(Kind::Filter.parse("ringdove=loud").is_err());
}

#[test]
fn the_operations_page_shows_the_table_of_settings() {
    let table = table::markdown();
    let page = include_str!("../../docs/OPERATIONS.md");
    assert!(page.contains(&table), "put this into docs/OPERATIONS.md:\n{table}");
}

#[test]
fn each_setting_says_what_it_is_and_names_are_told_apart() {
    let mut names: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), SETTINGS.len());
    for setting in SETTINGS {
        assert!(setting.doc.ends_with('.') && !setting.doc.contains(['|', '\n']), "{}", setting.name);
        assert!(!setting.default().is_empty(), "{}", setting.name);
    }
}
