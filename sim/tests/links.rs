//! What a link does under faults that only some bytes feel, and when acknowledgements cannot come back.
#![cfg(madsim)]

use std::io::ErrorKind;
use std::time::Duration;

use ringdove::io::Io;
use ringdove::io::net::Stream;
use ringdove::net::envelope::{Frame, FrameHead};
use sim::net::UNACKED_MAX;
use sim::net::fault::{FrameKind, NetFault};
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
