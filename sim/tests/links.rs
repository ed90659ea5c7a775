//! What a link does under faults that only some bytes feel, and when acknowledgements cannot come back.
#![cfg(madsim)]

use std::io::ErrorKind;
use std::time::Duration;

use ringdove::io::Io;
use ringdove::io::net::Stream;
use ringdove::net::envelope::{Frame, FrameHead};
use sim::net::UNACKED_MAX;
use sim::net::fault::{FrameKind, Lasting, NetFault};
use sim::run::simulate;
use sim::trace::Trace;
use sim::world::{Settings, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MS: Duration = Duration::from_millis(1);

fn in_world<F: Future<Output = ()>>(settings: Settings, test: impl FnOnce(World) -> F + Send + 'static) {
    simulate(1, settings, Trace::new(), test).unwrap();
}

/// Gives up after `limit`: `None`.
async fn within<T>(world: &World, limit: Duration, wait: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = wait => Some(value),
        () = world.sleep(limit) => None,
    }
}

/// A connection from `a` to `b`; the hosts' seams stay with it.
async fn pair(world: &World) -> (Stream, Stream, [Io; 2]) {
    let a = world.host("a").boot().0;
    let b = world.host("b").boot().0;
    let mut listener = b.net.listen("b:7000").await.unwrap();
    let (near, far) = tokio::join!(a.net.connect("b:7000"), listener.accept());
    (near.unwrap(), far.unwrap(), [a, b])
}

fn link(from: &str, to: &str) -> (String, String) {
    (from.to_owned(), to.to_owned())
}

fn frame(kind: u16, len: usize) -> Vec<u8> {
    Frame { head: FrameHead { kind, ..FrameHead::default() }, body: vec![7; len].into() }.encode().to_vec()
}

#[test]
fn bytes_that_cannot_be_acknowledged_fill_the_senders_buffer_until_the_heal() {
    let mut settings = Settings::default();
    settings.net.send_buffer = 10_000;
    in_world(settings, |world| async move {
        let (mut near, mut far, _io) = pair(&world).await;
        world.net().cut("b", "a");
        let (mut sent, mut read) = (0, vec![0; 100_000]);
        while let Some(n) = within(&world, 100 * MS, near.writer.write(&[7; 900])).await {
            sent += n.unwrap();
        }
        assert_eq!(sent, 10_000, "the buffer, although all of it arrived");
        far.reader.read_exact(&mut read[..sent]).await.unwrap();
        assert!(
            within(&world, 1000 * MS, near.writer.write(&[7; 900])).await.is_none(),
            "read is not acknowledged"
        );
        world.net().heal("b", "a");
        assert!(within(&world, MS, near.writer.write(&[7; 900])).await.unwrap().is_ok());
        assert!(world.net().counts()["unacknowledged"].1 > 0);
    });
}

#[test]
fn a_sender_whose_bytes_are_not_acknowledged_gives_up_and_the_receiver_is_not_told() {
    in_world(Settings::default(), |world| async move {
        let (mut near, mut far, _io) = pair(&world).await;
        near.writer.write_all(b"before").await.unwrap();
        let mut read = [0; 6];
        far.reader.read_exact(&mut read).await.unwrap();
        world.net().cut("b", "a");
        assert!(
            within(&world, 10 * UNACKED_MAX, near.reader.read_u8()).await.is_none(),
            "what is idle breaks never"
        );
        near.writer.write_all(b"behind").await.unwrap();
        far.reader.read_exact(&mut read).await.unwrap();
        assert!(within(&world, UNACKED_MAX - 100 * MS, near.reader.read_u8()).await.is_none());
        let broken = within(&world, 200 * MS, near.reader.read_u8()).await.unwrap();
        assert_eq!(broken.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(
            within(&world, UNACKED_MAX, far.reader.read_u8()).await.is_none(),
            "nobody told the receiver"
        );
        assert_eq!(world.net().counts()["unacknowledged"], (1, 1));
    });
}

#[test]
fn a_connection_whose_syn_was_never_heard_cannot_be_made() {
    for half_open in [false, true] {
        in_world(Settings::default(), move |world| async move {
            let a = world.host("a").boot().0;
            let b = world.host("b").boot().0;
            let _listener = b.net.listen("b:7000").await.unwrap();
            world.net().cut("a", "b");
            let mut connecting = a.net.connect("b:7000");
            assert!(within(&world, 100 * MS, &mut connecting).await.is_none());
            let (from, to) = link("a", "b");
            let fault =
                if half_open { NetFault::HalfOpen { from, to } } else { NetFault::Reset { from, to } };
            world.net().apply(&fault);
            let made = within(&world, 100 * MS, connecting).await.expect("it is told");
            assert!(made.is_err(), "nobody has heard of it");
            assert_eq!(world.net().usage(), (0, 0));
        });
    }
}

#[test]
fn a_reset_from_the_middle_obeys_the_links() {
    in_world(Settings::default(), |world| async move {
        let (mut near, mut far, _io) = pair(&world).await;
        world.net().cut("b", "a");
        let (from, to) = link("a", "b");
        world.net().apply(&NetFault::Reset { from, to });
        let told = within(&world, 100 * MS, far.reader.read_u8()).await.unwrap();
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(within(&world, 60_000 * MS, near.reader.read_u8()).await.is_none(), "the way to it is cut");
        world.net().heal("b", "a");
        let told = within(&world, 100 * MS, near.reader.read_u8()).await.unwrap();
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let (from, to) = link("a", "b");
        world.net().apply(&NetFault::Reset { from, to });
        assert_eq!(world.net().counts()["reset"], (2, 1), "the second finds nobody who would notice");
    });
}

#[test]
fn after_six_losses_the_sender_gives_up_and_the_receiver_hears_of_it_when_it_sends() {
    let mut lost = 0;
    for seed in 0..12 {
        let was_lost = simulate(seed, Settings::default(), Trace::new(), |world| async move {
            let (mut near, mut far, _io) = pair(&world).await;
            let (from, to) = link("a", "b");
            world.net().apply(&NetFault::Loss { from, to, percent: 95 });
            let before = world.now();
            near.writer.write_all(b"x").await.unwrap();
            let arrived = within(&world, UNACKED_MAX - 100 * MS, far.reader.read_u8()).await;
            if arrived.is_some() {
                return false;
            }
            let broken = within(&world, 200 * MS, near.reader.read_u8()).await;
            if broken.is_none() {
                return false; // the sixth try arrives
            }
            assert_eq!(broken.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert!(world.now() - before >= UNACKED_MAX, "it has tried for so long");
            assert!(within(&world, 10 * UNACKED_MAX, far.reader.read_u8()).await.is_none(), "nobody told it");
            // What it sends is answered with a reset, which obeys the link.
            let (from, to) = link("a", "b");
            world.net().apply(&NetFault::Mend { from, to, what: Lasting::Loss });
            world.net().cut("a", "b");
            far.writer.write_all(b"y").await.unwrap();
            // Not for ever: nobody acknowledges what it sends, and then it gives up by itself.
            assert!(within(&world, UNACKED_MAX - 1000 * MS, far.reader.read_u8()).await.is_none());
            world.net().heal("a", "b");
            let told = within(&world, 100 * MS, far.reader.read_u8()).await.unwrap();
            assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(world.net().counts()["loss-exhausted"], (1, 1));
            true
        });
        lost += u32::from(was_lost.unwrap());
    }
    assert!(lost >= 3, "{lost} of 12");
}

#[test]
fn only_what_answers_is_lost_as_a_reply() {
    in_world(Settings::default(), |world| async move {
        let (mut near, mut far, [a, b]) = pair(&world).await;
        // One that the replying host has opened itself: what it sends there are requests.
        let mut listener = a.net.listen("a:7000").await.unwrap();
        let (own, other) = tokio::join!(b.net.connect("a:7000"), listener.accept());
        let (mut own, mut other) = (own.unwrap(), other.unwrap());
        let (from, to) = link("b", "a");
        world.net().apply(&NetFault::ReplyLost { from, to, nth: 1 });
        own.writer.write_all(b"q").await.unwrap();
        assert_eq!(within(&world, 100 * MS, other.reader.read_u8()).await.unwrap().unwrap(), b'q');
        near.writer.write_all(b"q").await.unwrap();
        assert_eq!(far.reader.read_u8().await.unwrap(), b'q');
        world.net().cut("a", "b");
        far.writer.write_all(b"r").await.unwrap();
        let told = within(&world, 100 * MS, near.reader.read_u8()).await.unwrap();
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(within(&world, 10_000 * MS, far.reader.read_u8()).await.is_none(), "its way is cut");
        world.net().heal("a", "b");
        assert!(within(&world, 100 * MS, far.reader.read_u8()).await.unwrap().is_err());
        assert_eq!(world.net().counts()["reply-lost"], (1, 1));
    });
}

#[test]
fn a_link_that_was_cut_twice_is_whole_when_it_was_mended_twice() {
    in_world(Settings::default(), |world| async move {
        let (mut near, mut far, _io) = pair(&world).await;
        let mend = |what| {
            let (from, to) = link("a", "b");
            world.net().apply(&NetFault::Mend { from, to, what });
        };
        let hold = || {
            let (from, to) = link("a", "b");
            world.net().apply(&NetFault::Hold { from, to });
        };
        world.net().cut("a", "b");
        world.net().cut("a", "b");
        hold();
        near.writer.write_all(b"x").await.unwrap();
        mend(Lasting::Cut);
        assert!(within(&world, 1000 * MS, far.reader.read_u8()).await.is_none());
        mend(Lasting::Cut);
        assert!(within(&world, 1000 * MS, far.reader.read_u8()).await.is_none(), "it is held too");
        hold();
        mend(Lasting::Hold);
        assert!(within(&world, 1000 * MS, far.reader.read_u8()).await.is_none(), "by the second hold");
        mend(Lasting::Hold);
        assert!(within(&world, 1000 * MS, far.reader.read_u8()).await.is_some());
    });
}

#[test]
fn frames_of_one_kind_are_slow_and_others_are_not() {
    in_world(Settings::default(), |world| async move {
        let (mut near, mut far, _io) = pair(&world).await;
        let (from, to) = link("a", "b");
        world.net().apply(&NetFault::SlowFrames { from, to, frames: FrameKind::Store, ms: 700 });
        for (kind, least, most) in
            [(FrameKind::Fetch, 0, 100), (FrameKind::Store, 700, 800), (FrameKind::Get, 0, 100)]
        {
            let sent = frame(kind.number(), 200);
            let (before, mut read) = (world.now(), vec![0; sent.len()]);
            near.writer.write_all(&sent).await.unwrap();
            far.reader.read_exact(&mut read).await.unwrap();
            let took = world.now() - before;
            assert!(took >= least * MS && took < most * MS, "{kind:?} took {took:?}");
        }
        assert!(world.net().counts()["slow-frames"].1 >= 1);
    });
}

#[test]
fn small_segments_stall_and_large_ones_pass_or_the_reverse() {
    for large_stalls in [false, true] {
        in_world(Settings::default(), move |world| async move {
            // A connection for each: what stands still holds back what is behind it.
            let (mut near, mut far, [a, b]) = pair(&world).await;
            let mut listener = b.net.listen("b:7001").await.unwrap();
            let (second, other) = tokio::join!(a.net.connect("b:7001"), listener.accept());
            let (mut second, mut other) = (second.unwrap(), other.unwrap());
            let (from, to) = link("a", "b");
            world.net().apply(&if large_stalls {
                NetFault::LargeStall { from, to }
            } else {
                NetFault::SmallStall { from, to }
            });
            // A write may be cut short: the first segment decides.
            near.writer.write_all(&[7; 100]).await.unwrap();
            let n = second.writer.write(&[7; 60_000]).await.unwrap();
            assert!(n > 600, "the seed draws no short write here");
            let small = within(&world, 1000 * MS, far.reader.read_u8()).await;
            let large = within(&world, 1000 * MS, other.reader.read_u8()).await;
            assert_eq!((small.is_some(), large.is_some()), (large_stalls, !large_stalls));
            world.net().heal("a", "b");
            let rest = if large_stalls { &mut other } else { &mut far };
            assert!(within(&world, 1000 * MS, rest.reader.read_u8()).await.unwrap().is_ok());
        });
    }
}

#[test]
fn a_host_is_cut_off_only_when_it_can_reach_nobody() {
    in_world(Settings::default(), |world| async move {
        let nodes = || ["n1", "n2"].into_iter().map(str::to_owned);
        let cut_off = |since| world.net().was_cut_off_since("c1", nodes(), since);
        assert!(!cut_off(Duration::ZERO));
        world.net().cut("c1", "n1");
        assert!(!cut_off(Duration::ZERO), "n2 answers");
        world.net().cut("n2", "c1");
        assert!(cut_off(Duration::ZERO), "an answer of n2 does not come through");
        world.sleep(MS).await;
        world.net().heal_all();
        assert!(cut_off(Duration::ZERO), "it was");
        world.sleep(MS).await;
        assert!(!cut_off(world.now()));
    });
}
