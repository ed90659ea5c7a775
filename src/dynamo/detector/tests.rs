use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::*;

const PEER: NodeId = NodeId(2);

fn at(seconds: f64) -> Mono {
    Mono::from_origin(Duration::from_secs_f64(seconds))
}

fn detector() -> Detector {
    let mut detector = Detector::new(DetectorConfig::default(), at(0.0));
    detector.set_peers(at(0.0), [PEER]);
    detector
}

/// Ticks and heartbeats once a second over a range of seconds.
fn healthy(detector: &mut Detector, seconds: std::ops::Range<u32>) {
    for second in seconds {
        detector.heartbeat(at(second.into()), PEER);
        detector.tick(at(second.into()));
    }
}

/// Ticks alone: the peer is silent.
fn silent(detector: &mut Detector, seconds: std::ops::Range<u32>) {
    seconds.for_each(|second| {
        detector.tick(at(second.into()));
    });
}

fn view(detector: &Detector, second: u32) -> View {
    detector.view(at(second.into()), PEER)
}

#[test]
fn suspicion_grows_with_silence_and_ends_with_a_heartbeat() {
    let mut detector = detector();
    healthy(&mut detector, 0..50);
    assert!(detector.phi(at(50.0), PEER) < detector.phi(at(53.0), PEER));
    silent(&mut detector, 50..57);
    assert_eq!(view(&detector, 56), View::Up);
    silent(&mut detector, 57..62);
    assert_eq!(view(&detector, 61), View::Down(Reason::Silent));
    detector.heartbeat(at(62.0), PEER);
    assert_eq!(view(&detector, 62), View::Up, "the first return is at once");
    assert_eq!(detector.view(at(62.0), NodeId(9)), View::Down(Reason::Silent), "nobody knows it");
}

#[test]
fn one_long_silence_does_not_teach_patience() {
    let mut detector = detector();
    healthy(&mut detector, 0..20);
    silent(&mut detector, 20..3600);
    healthy(&mut detector, 3600..3700);
    silent(&mut detector, 3700..3712);
    assert_eq!(view(&detector, 3711), View::Down(Reason::Silent));
}

#[test]
fn a_refused_connection_counts_at_once() {
    let mut detector = detector();
    healthy(&mut detector, 0..20);
    detector.refused(at(20.1), PEER);
    assert_eq!(detector.view(at(20.1), PEER), View::Down(Reason::Refused));
    detector.heartbeat(at(25.0), PEER);
    assert_eq!(view(&detector, 25), View::Up);
}

#[test]
fn heartbeats_do_not_excuse_a_peer_that_answers_nothing() {
    let mut detector = detector();
    healthy(&mut detector, 0..20);
    detector.timed_out(at(20.1), PEER);
    detector.timed_out(at(20.2), PEER);
    detector.answered(at(20.3), PEER);
    detector.timed_out(at(20.4), PEER);
    detector.timed_out(at(20.5), PEER);
    assert_eq!(view(&detector, 21), View::Up, "never three in a row");
    detector.timed_out(at(21.0), PEER);
    assert_eq!(view(&detector, 21), View::Down(Reason::Unanswered));
    detector.heartbeat(at(22.0), PEER);
    assert_eq!(view(&detector, 22), View::Down(Reason::Unanswered));
    // It is tried again after its penalty, and fails again: longer.
    detector.heartbeat(at(23.1), PEER);
    assert!(detector.view(at(23.1), PEER).is_up());
    (0..3).for_each(|_| detector.timed_out(at(23.2), PEER));
    detector.answered(at(23.5), PEER);
    assert!(detector.view(at(23.5), PEER).is_up(), "an answer excuses it");
}

#[test]
fn many_short_calls_without_a_word_in_between_are_noticed_as_soon_as_three_long_ones() {
    let mut detector = detector();
    healthy(&mut detector, 0..20);
    // Twenty-five calls a second, each given 40 ms.
    let ask = |detector: &mut Detector, from: f64, calls: u32, since: f64| {
        for call in 1..=calls {
            detector.silent(at(from + 0.04 * f64::from(call)), PEER, at(since));
        }
    };
    ask(&mut detector, 20.0, 29, 20.0);
    assert!(detector.view(at(21.16), PEER).is_up(), "less than three times the time of one");
    ask(&mut detector, 21.16, 3, 20.0);
    assert_eq!(detector.view(at(21.28), PEER), View::Down(Reason::Unanswered));
}

#[test]
fn a_peer_that_sends_anything_at_all_is_not_accused_for_short_calls() {
    let mut detector = detector();
    healthy(&mut detector, 0..20);
    // Overload: each call is given up, and its answer comes a little later.
    for call in 0..1000 {
        let now = 20.0 + 0.04 * f64::from(call);
        detector.silent(at(now), PEER, at(now - 0.3));
    }
    assert!(detector.view(at(60.0), PEER).is_up());
    // Nor is a call that comes once in a while; and a stalled node accuses nobody for this either.
    detector.silent(at(60.1), PEER, at(59.0));
    detector.silent(at(60.2), PEER, at(59.0));
    detector.silent(at(60.3), PEER, at(59.0));
    assert!(detector.view(at(60.3), PEER).is_up(), "time is counted once");
    detector.answered(at(60.4), PEER);
    assert!(detector.tick(at(120.0)));
    (0..3).for_each(|call| detector.silent(at(120.0 + 0.5 * f64::from(call)), PEER, at(60.5)));
    assert!(detector.view(at(121.0), PEER).is_up());
}

#[test]
fn a_peer_that_flaps_sits_out_ever_longer_and_never_for_ever() {
    let mut detector = detector();
    let mut penalties = Vec::new();
    let mut now = 0.0;
    for _ in 0..9 {
        detector.tick(at(now));
        detector.refused(at(now), PEER);
        detector.heartbeat(at(now + 0.1), PEER);
        let mut penalty = 0.0;
        while !detector.view(at(now + 0.1 + penalty), PEER).is_up() {
            penalty += 0.5;
        }
        penalties.push(penalty);
        now += penalty + 1.0;
    }
    assert_eq!(penalties, [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0]);
    // Long after, it is as good as new.
    detector.tick(at(now + 700.0));
    detector.refused(at(now + 700.0), PEER);
    detector.heartbeat(at(now + 700.1), PEER);
    assert!(detector.view(at(now + 700.1), PEER).is_up());
}

#[test]
fn a_node_that_was_stalled_itself_accuses_nobody() {
    let mut detector = detector();
    healthy(&mut detector, 0..50);
    // A minute in which this node did not run at all: its peers' heartbeats wait in its sockets.
    assert!(detector.tick(at(110.0)));
    detector.timed_out(at(110.0), PEER);
    detector.timed_out(at(110.1), PEER);
    detector.timed_out(at(110.2), PEER);
    assert_eq!(view(&detector, 110), View::Up);
    // If the peer is gone all the same, that is noticed in the usual time.
    silent(&mut detector, 111..125);
    assert_eq!(view(&detector, 124), View::Down(Reason::Silent));
}

#[test]
fn who_leaves_the_layout_is_forgotten_and_who_stays_keeps_its_past() {
    let mut detector = detector();
    healthy(&mut detector, 0..10);
    detector.refused(at(10.0), PEER);
    detector.set_peers(at(11.0), [NodeId(1), PEER]);
    assert_eq!(view(&detector, 11), View::Down(Reason::Refused));
    assert_eq!(detector.view(at(11.0), NodeId(1)), View::Up);
    detector.set_peers(at(12.0), [NodeId(1)]);
    assert_eq!(detector.views(at(12.0)).map(|(node, _)| node).collect::<Vec<_>>(), [NodeId(1)]);
}

/// Heartbeats every second, ±20% jitter, 10% lost: what DESIGN asks of the default threshold.
#[test]
fn a_million_seconds_of_lossy_heartbeats_accuse_nobody_and_a_death_is_noticed_in_twelve() {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(7);
    let (mut false_accusations, mut latest) = (0, 0.0_f64);
    for _ in 0..100 {
        let mut detector = detector();
        let (mut beat, mut tick) = (0.0, 0.0);
        while beat < 10_000.0 {
            beat += random.random_range(0.8..1.2);
            while tick < beat {
                let was = detector.view(at(tick), PEER);
                detector.tick(at(tick));
                false_accusations += u32::from(was.is_up() && !detector.view(at(tick), PEER).is_up());
                tick += 1.0;
            }
            if random.random_bool(0.9) {
                detector.heartbeat(at(beat), PEER);
            }
        }
        // It dies.
        let died = beat;
        while detector.view(at(tick), PEER).is_up() {
            detector.tick(at(tick));
            tick += 1.0;
        }
        latest = latest.max(tick - 1.0 - died);
    }
    assert_eq!(false_accusations, 0);
    assert!(latest < 12.0, "{latest}");
}

#[test]
fn what_wakes_up_before_the_tick_after_a_pause_accuses_nobody() {
    let mut detector = detector();
    healthy(&mut detector, 0..20);
    // The process stood still from second 19 to 39; calls of before it come to their deadlines first.
    for _ in 0..2 * TIMEOUTS_MAX {
        detector.timed_out(at(39.0), PEER);
        detector.silent(at(39.0), PEER, at(18.0));
    }
    detector.refused(at(39.0), PEER);
    assert_eq!(view(&detector, 39), View::Up);
    assert!(detector.tick(at(39.1)), "and then the tick finds it");
    detector.timed_out(at(39.2), PEER);
    assert_eq!(view(&detector, 40), View::Up);
    healthy(&mut detector, 40..45);
    detector.refused(at(44.5), PEER);
    assert_eq!(view(&detector, 45), View::Down(Reason::Refused), "it counts again");
}
