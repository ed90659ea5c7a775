//! The simulated network, disk and clock keep their contracts; the same seed gives the same run.
#![cfg(madsim)]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ringdove::io::fault_disk::{Fault, FaultKind};
use ringdove::io::net::Stream;
use ringdove::io::{Io, Listener};
use sim::run::simulate;
use sim::trace::Trace;
use sim::world::{Settings, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MS: Duration = Duration::from_millis(1);

fn in_world<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(World) -> F + Send + 'static) {
    in_world_with(seed, Settings::default(), test);
}

fn in_world_with<F: Future<Output = ()>>(
    seed: u64,
    settings: Settings,
    test: impl FnOnce(World) -> F + Send + 'static,
) {
    simulate(seed, settings, Trace::new(), test).unwrap();
}

/// Gives up after `limit`: `None`.
async fn within<T>(world: &World, limit: Duration, wait: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = wait => Some(value),
        () = world.sleep(limit) => None,
    }
}

struct Pair {
    a: Io,
    b: Io,
    listener: Box<dyn Listener>,
    /// At `a`, which connected.
    near: Stream,
    /// At `b`, which listened.
    far: Stream,
}

async fn pair(world: &World) -> Pair {
    let a = world.host("a").boot().0;
    let b = world.host("b").boot().0;
    let mut listener = b.net.listen("b:7000").await.unwrap();
    let (near, far) = tokio::join!(a.net.connect("b:7000"), listener.accept());
    Pair { a, b, listener, near: near.unwrap(), far: far.unwrap() }
}

#[test]
fn bytes_arrive_once_and_in_order_in_pieces_of_any_size() {
    for seed in 0..20 {
        in_world(seed, |world| async move {
            let Pair { mut near, mut far, .. } = pair(&world).await;
            let sent: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)]).collect();
            let expected = sent.clone();
            let writing = tokio::task::spawn(async move {
                for part in sent.chunks(7_001) {
                    near.writer.write_all(part).await.unwrap();
                }
                near.writer.shutdown().await.unwrap();
                near
            });
            let mut read = Vec::new();
            far.reader.read_to_end(&mut read).await.unwrap();
            assert!(read == expected, "what arrived differs from what was sent");
            writing.await.unwrap();
        });
    }
}

#[test]
fn a_full_direction_leaves_the_writer_pending_until_the_reader_reads() {
    let mut settings = Settings::default();
    (settings.net.send_buffer, settings.net.recv_buffer) = (10_000, 10_000);
    in_world_with(1, settings, |world| async move {
        let Pair { mut near, mut far, .. } = pair(&world).await;
        let mut taken = 0;
        while let Some(n) = within(&world, 1000 * MS, near.writer.write(&[7; 900])).await {
            taken += n.unwrap();
            assert!(taken <= 20_000, "the buffers have no bound");
        }
        assert!(taken > 10_000, "only {taken} bytes were taken");
        let mut there = vec![0; taken];
        far.reader.read_exact(&mut there).await.unwrap();
        assert!(within(&world, 1000 * MS, near.writer.write(&[7; 900])).await.is_some());
    });
}

#[test]
fn reads_and_writes_are_cut_short_now_and_then() {
    in_world(3, |world| async move {
        let Pair { mut near, mut far, .. } = pair(&world).await;
        let (mut short_writes, mut short_reads) = (0, 0);
        for _ in 0..200 {
            let n = near.writer.write(&[1; 1000]).await.unwrap();
            short_writes += usize::from(n < 1000);
            world.sleep(50 * MS).await;
            let mut left = n;
            while left > 0 {
                let read = far.reader.read(&mut [0; 2000]).await.unwrap();
                left -= read;
                short_reads += usize::from(left > 0);
            }
        }
        assert!((5..100).contains(&short_writes), "{short_writes} short writes of 200");
        assert!((5..100).contains(&short_reads), "{short_reads} short reads");
    });
}

#[test]
fn a_host_where_nobody_listens_refuses_after_a_delay() {
    in_world(1, |world| async move {
        let a = world.host("a").boot().0;
        world.host("b").boot();
        let before = world.now();
        let error = a.net.connect("b:7000").await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(world.now() - before >= Duration::from_micros(200), "one delay there and one back");
        assert_eq!(world.net().usage(), (0, 0));
    });
}

#[test]
fn an_address_is_listened_on_once_and_by_its_own_host() {
    in_world(1, |world| async move {
        let b = world.host("b").boot().0;
        let error = |addr: &'static str| {
            let b = b.clone();
            async move { b.net.listen(addr).await.err().unwrap().kind() }
        };
        let listener = b.net.listen("b:7000").await.unwrap();
        assert_eq!(error("b:7000").await, ErrorKind::AddrInUse);
        assert_eq!(error("a:7000").await, ErrorKind::AddrNotAvailable);
        assert_eq!(error("b").await, ErrorKind::InvalidInput);
        drop(listener);
        b.net.listen("b:7000").await.unwrap();
        let free = b.net.listen("b:0").await.unwrap();
        assert_ne!(free.local_addr(), "b:0");
    });
}

#[test]
fn connecting_over_a_cut_link_hangs_until_the_heal() {
    in_world(1, |world| async move {
        let Pair { a, mut listener, .. } = pair(&world).await;
        world.net().cut("a", "b");
        assert!(within(&world, 60_000 * MS, a.net.connect("b:7000")).await.is_none());
        // Given up: nothing of it arrives later.
        world.net().heal("a", "b");
        assert!(within(&world, 1000 * MS, listener.accept()).await.is_none());
        // Not given up: it succeeds after the heal, also when the answer is what is cut.
        world.net().cut("b", "a");
        let mut connecting = a.net.connect("b:7000");
        assert!(within(&world, 60_000 * MS, &mut connecting).await.is_none());
        assert!(within(&world, MS, listener.accept()).await.is_some());
        world.net().heal("b", "a");
        assert!(connecting.await.is_ok());
    });
}

#[test]
fn a_cut_holds_bytes_and_end_back_and_the_heal_delivers_them() {
    in_world(1, |world| async move {
        let Pair { mut near, mut far, .. } = pair(&world).await;
        world.net().cut("a", "b");
        near.writer.write_all(b"held").await.unwrap();
        drop(near);
        let mut there = Vec::new();
        let mut reading = Box::pin(far.reader.read_to_end(&mut there));
        assert!(
            within(&world, 60_000 * MS, &mut reading).await.is_none(),
            "something leaked through the cut"
        );
        world.net().heal("a", "b");
        assert_eq!(within(&world, 1000 * MS, &mut reading).await.unwrap().unwrap(), 4);
        drop(reading);
        assert_eq!(there, b"held");
    });
}

#[test]
fn a_one_way_cut_lets_the_other_way_through() {
    in_world(1, |world| async move {
        let Pair { mut near, mut far, .. } = pair(&world).await;
        world.net().cut("a", "b");
        near.writer.write_all(b"x").await.unwrap();
        far.writer.write_all(b"y").await.unwrap();
        assert_eq!(within(&world, 1000 * MS, near.reader.read_u8()).await.unwrap().unwrap(), b'y');
        assert!(within(&world, 1000 * MS, far.reader.read_u8()).await.is_none());
        world.net().heal_all();
        assert_eq!(within(&world, 1000 * MS, far.reader.read_u8()).await.unwrap().unwrap(), b'x');
    });
}

#[test]
fn an_idle_connection_notices_neither_cut_nor_power_loss() {
    in_world(1, |world| async move {
        let Pair { mut near, .. } = pair(&world).await;
        world.net().cut_both("a", "b");
        assert!(within(&world, 60_000 * MS, near.reader.read_u8()).await.is_none());
        world.net().heal_all();
        world.host("b").power_loss().await;
        assert!(within(&world, 60_000 * MS, near.reader.read_u8()).await.is_none());
        // What it sends waits for the host, which then knows nothing of the connection.
        near.writer.write_all(b"x").await.unwrap();
        assert!(within(&world, 60_000 * MS, near.reader.read_u8()).await.is_none());
        world.host("b").boot();
        let read = within(&world, 1000 * MS, near.reader.read_u8()).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn after_a_kill_behind_a_cut_the_heal_delivers_what_was_sent_and_then_a_reset() {
    in_world(1, |world| async move {
        let Pair { mut near, mut far, .. } = pair(&world).await;
        world.net().cut_both("a", "b");
        far.writer.write_all(b"last words").await.unwrap();
        world.host("b").kill().await;
        assert!(within(&world, 60_000 * MS, near.reader.read_u8()).await.is_none());
        world.net().heal_both("a", "b");
        let mut there = Vec::new();
        let error =
            within(&world, 1000 * MS, near.reader.read_to_end(&mut there)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(there, b"last words");
        assert_eq!(near.writer.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_power_loss_takes_what_was_on_the_way() {
    in_world(1, |world| async move {
        let Pair { mut near, mut far, .. } = pair(&world).await;
        world.net().cut("b", "a");
        far.writer.write_all(b"lost").await.unwrap();
        world.host("b").power_loss().await;
        world.net().heal_all();
        assert!(within(&world, 60_000 * MS, near.reader.read_u8()).await.is_none());
    });
}

#[test]
fn a_host_without_power_leaves_connecting_to_hang_and_one_without_a_process_refuses() {
    in_world(1, |world| async move {
        let Pair { a, .. } = pair(&world).await;
        world.host("b").kill().await;
        let refused = within(&world, 1000 * MS, a.net.connect("b:7000")).await.unwrap();
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::ConnectionRefused);
        world.host("b").power_loss().await;
        assert!(within(&world, 60_000 * MS, a.net.connect("b:7000")).await.is_none());
    });
}

#[test]
fn a_handle_of_an_earlier_life_fails_and_delivers_nothing() {
    in_world(1, |world| async move {
        let Pair { b, mut far, mut near, mut listener, .. } = pair(&world).await;
        let file = b.disk.open(Path::new("f"), true).await.unwrap();
        let late_write = file.write_at(0, Bytes::from_static(b"late"));
        let late_sleep = b.clock.sleep_until(b.clock.mono() + 5 * MS);
        let host = world.host("b");
        host.power_loss().await;
        let (again, start) = host.boot();
        assert_eq!(start.number, 2);
        assert_eq!(late_write.await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(file.sync_data().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(b.disk.list(Path::new("/")).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        let file_again = again.disk.open(Path::new("f"), true).await.unwrap();
        assert_eq!(file_again.size().await.unwrap(), 0, "the late write was carried out");
        for error in [
            far.writer.write(b"x").await.err(),
            far.reader.read_u8().await.err(),
            listener.accept().await.err(),
            b.net.connect("a:1").await.err(),
            b.net.listen("b:1").await.err(),
        ] {
            assert_eq!(error.unwrap().kind(), ErrorKind::ConnectionAborted);
        }
        assert!(within(&world, 1000 * MS, late_sleep).await.is_none());
        // Dropping the old handles does nothing to the new life's listener on the same address.
        let mut listening = again.net.listen("b:7000").await.unwrap();
        drop((far, listener, file, b));
        let a = world.host("c").boot().0;
        assert!(within(&world, 1000 * MS, a.net.connect("b:7000")).await.unwrap().is_ok());
        assert!(within(&world, 1000 * MS, listening.accept()).await.unwrap().is_ok());
        assert!(within(&world, 1000 * MS, near.reader.read_u8()).await.is_none());
    });
}

#[test]
fn connections_leave_nothing_behind() {
    in_world(1, |world| async move {
        let Pair { a, mut listener, near, far, .. } = pair(&world).await;
        drop((near, far));
        for n in 0..100 {
            let (near, far) = tokio::join!(a.net.connect("b:7000"), listener.accept());
            let (mut near, mut far) = (near.unwrap(), far.unwrap());
            near.writer.write_all(b"unread").await.unwrap();
            if n % 2 == 0 {
                drop(far);
                let _ = near.reader.read_u8().await;
            } else {
                drop(near);
                let _ = far.reader.read_u8().await;
            }
        }
        world.sleep(1000 * MS).await;
        assert_eq!(world.net().usage(), (0, 0));
        assert_eq!(world.timers().pending(), 0);
    });
}

#[test]
fn a_power_loss_leaves_what_chance_leaves_of_the_unsynced_and_a_kill_keeps_all() {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    for (seed, power) in (0..300).flat_map(|seed| [(seed, false), (seed, true)]) {
        let seen = seen.clone();
        in_world(seed, move |world| async move {
            let host = world.host("a");
            let io = host.boot().0;
            let file = io.disk.open(Path::new("/f"), true).await.unwrap();
            file.write_at(0, Bytes::from_static(b"synced")).await.unwrap();
            file.sync_data().await.unwrap();
            io.disk.sync_dir(Path::new("/")).await.unwrap();
            file.write_at(6, Bytes::from_static(b" not")).await.unwrap();
            io.disk.open(Path::new("/g"), true).await.unwrap();
            if power {
                host.power_loss().await;
            } else {
                host.kill().await;
            }
            let io = host.boot().0;
            let file = io.disk.open(Path::new("/f"), false).await.unwrap();
            let len = usize::try_from(file.size().await.unwrap()).unwrap();
            let bytes = file.read_at(0, len).await.unwrap();
            assert!(bytes.starts_with(b"synced"));
            let names = io.disk.list(Path::new("/")).await.unwrap().len();
            seen.lock().unwrap().insert((power, bytes, names));
        });
    }
    let outcomes = [&b"synced"[..], b"synced not", b"synced\0\0\0\0"].into_iter().map(Bytes::from_static);
    let by_power = outcomes.flat_map(|bytes| [1, 2].map(|names| (true, bytes.clone(), names)));
    let by_kill = (false, Bytes::from_static(b"synced not"), 2);
    assert_eq!(*seen.lock().unwrap(), by_power.chain([by_kill]).collect());
}

#[test]
fn a_sync_covers_what_was_complete_when_it_was_called_and_of_the_rest_chance_decides() {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    for seed in 0..100 {
        let seen = seen.clone();
        in_world(seed, move |world| async move {
            let host = world.host("a");
            let io = host.boot().0;
            let file = io.disk.open(Path::new("/f"), true).await.unwrap();
            file.write_at(0, Bytes::from_static(b"before")).await.unwrap();
            let (bytes, names) = (file.sync_data(), io.disk.sync_dir(Path::new("/")));
            let (write, made) =
                (file.write_at(6, Bytes::from_static(b" behind")), io.disk.open(Path::new("/g"), true));
            // Both are done well before the syncs, which take 200 µs at least.
            let (write, made, bytes, names) = tokio::join!(write, made, bytes, names);
            for done in [write, bytes, names] {
                done.unwrap();
            }
            drop(made.unwrap());
            host.power_loss().await;
            let io = host.boot().0;
            let file = io.disk.open(Path::new("/f"), false).await.unwrap();
            let bytes = file.read_at(0, 6).await.unwrap();
            assert_eq!(&bytes[..], b"before", "seed {seed}");
            let behind = file.read_at(6, 7).await.is_ok_and(|bytes| &bytes[..] == b" behind");
            let names = io.disk.list(Path::new("/")).await.unwrap().len();
            seen.lock().unwrap().insert((behind, names));
        });
    }
    let outcomes = [(false, 1), (false, 2), (true, 1), (true, 2)];
    assert_eq!(*seen.lock().unwrap(), outcomes.into());
}

#[test]
fn a_disk_fault_that_is_armed_reaches_the_program() {
    in_world(1, |world| async move {
        let host = world.host("a");
        let io = host.boot().0;
        let file = io.disk.open(Path::new("/f"), true).await.unwrap();
        host.with_disk(|disk| disk.arm(Fault::SyncError { path: "/f".into(), nth: 1 }));
        file.write_at(0, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(file.sync_data().await.unwrap_err().raw_os_error(), Some(5));
        file.sync_data().await.unwrap();
        let fired = host.with_disk(|disk| disk.counts().of(FaultKind::SyncError).fired);
        assert_eq!(fired, 1);
    });
}

#[test]
fn a_stalled_disk_operation_waits_for_the_release_and_a_slow_one_takes_longer() {
    in_world(1, |world| async move {
        let host = world.host("a");
        let io = host.boot().0;
        let file = io.disk.open(Path::new("/f"), true).await.unwrap();
        host.with_disk(|disk| disk.stall(Path::new("/f")));
        let mut write = file.write_at(0, Bytes::from_static(b"x"));
        assert!(within(&world, 60_000 * MS, &mut write).await.is_none());
        assert!(io.disk.list(Path::new("/")).await.is_ok(), "it stalls the one file");
        host.release_disk(Path::new("/f"));
        write.await.unwrap();
        host.with_disk(|disk| disk.slow(Path::new("/f"), 500 * MS));
        let before = world.now();
        file.size().await.unwrap();
        assert!(world.now() - before >= 500 * MS);
        // What waits when the power goes is never carried out.
        host.with_disk(|disk| disk.stall(Path::new("/")));
        let opening = io.disk.open(Path::new("/g"), true);
        world.sleep(MS).await;
        host.power_loss().await;
        assert_eq!(opening.await.err().unwrap().kind(), ErrorKind::BrokenPipe);
        host.release_disk(Path::new("/"));
        let names = host.boot().0.disk.list(Path::new("/")).await.unwrap();
        assert!(!names.contains(&"g".to_owned()));
    });
}

#[test]
fn a_disk_carries_out_what_was_asked_also_when_the_asker_has_gone() {
    in_world(1, |world| async move {
        let io = world.host("a").boot().0;
        let file = io.disk.open(Path::new("/f"), true).await.unwrap();
        drop(file.write_at(0, Bytes::from_static(b"x")));
        drop(io.disk.open(Path::new("/g"), true));
        world.sleep(10 * MS).await;
        assert_eq!(file.size().await.unwrap(), 1);
        assert_eq!(io.disk.list(Path::new("/")).await.unwrap(), ["f", "g"]);
    });
}

#[test]
fn a_directory_is_locked_for_one_life_at_a_time() {
    in_world(1, |world| async move {
        let host = world.host("a");
        let io = host.boot().0;
        let path = Path::new("/LOCK");
        let guard = io.disk.lock(path).await.unwrap();
        assert_eq!(io.disk.lock(path).await.err().unwrap().kind(), ErrorKind::WouldBlock);
        // Another host has another disk.
        world.host("b").boot().0.disk.lock(path).await.unwrap();
        host.kill().await;
        let io = host.boot().0;
        let _held = io.disk.lock(path).await.unwrap();
        drop(guard);
        assert_eq!(io.disk.lock(path).await.err().unwrap().kind(), ErrorKind::WouldBlock);
    });
}

#[test]
fn a_cancelled_timer_is_freed_and_a_pending_one_is_polled_for_nothing() {
    in_world(1, |world| async move {
        let clock = world.host("a").boot().0.clock;
        let far_away = clock.mono() + Duration::from_secs(1000);
        for _ in 0..1000 {
            assert!(within(&world, Duration::from_nanos(1), clock.sleep_until(far_away)).await.is_none());
        }
        assert_eq!(world.timers().pending(), 0);
        let mut one = clock.sleep_until(far_away);
        for _ in 0..1000 {
            assert!(within(&world, Duration::from_nanos(1), &mut one).await.is_none());
        }
        assert_eq!(world.timers().pending(), 1);
    });
}

#[test]
fn timers_fire_in_order_and_finer_than_a_millisecond() {
    in_world(1, |world| async move {
        let fired = Arc::new(Mutex::new(Vec::new()));
        let start = world.now();
        for n in [5_u32, 3, 4, 3, 1, 2] {
            let (fired, at) = (fired.clone(), world.clone());
            let due = start + n * Duration::from_micros(10);
            world.timers().at(due, move || fired.lock().unwrap().push((n, at.now() - due)));
        }
        let second_of_three = world.timers().at(start + MS, || panic!("it was cancelled"));
        world.timers().cancel(second_of_three);
        world.sleep(2 * MS).await;
        let fired = fired.lock().unwrap();
        assert_eq!(fired.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3, 3, 4, 5]);
        assert!(fired.iter().all(|(_, late)| *late < Duration::from_micros(1)), "{fired:?}");
    });
}

#[test]
fn two_timers_of_one_moment_fire_as_they_were_made() {
    in_world(1, |world| async move {
        let fired = Arc::new(Mutex::new(Vec::new()));
        let due = world.now() + MS;
        for n in 0..10 {
            let fired = fired.clone();
            world.timers().at(due, move || fired.lock().unwrap().push(n));
        }
        world.sleep(2 * MS).await;
        assert_eq!(*fired.lock().unwrap(), (0..10).collect::<Vec<_>>());
    });
}

#[test]
fn each_host_has_clocks_of_its_own() {
    in_world(1, |world| async move {
        let (a, b) = (world.host("a").boot().0.clock, world.host("b").boot().0.clock);
        world.host("a").clock().set_wall_skew_ms(-90_000);
        world.host("a").clock().set_mono_drift_ppm(50_000);
        let (wall, mono, real) = (b.wall() - a.wall(), a.mono(), world.now());
        assert!(wall.abs_diff(Duration::from_secs(90)) < MS);
        a.sleep_until(mono + Duration::from_secs(105)).await;
        assert!(
            (world.now() - real).abs_diff(Duration::from_secs(100)) < MS,
            "105 s of a clock 5% fast are 100 s"
        );
        assert!((a.mono() - mono).abs_diff(Duration::from_secs(105)) < MS);
        // Slowed down while somebody sleeps: the sleep still ends no earlier than the clock says.
        let due = a.mono() + Duration::from_secs(10);
        let sleep = a.sleep_until(due);
        let host = world.host("a");
        let (_, before) = tokio::join!(sleep, async {
            host.clock().set_mono_drift_ppm(-50_000);
            world.now()
        });
        assert!(a.mono() >= due);
        assert!(world.now() - before > Duration::from_secs(10));
    });
}

#[test]
fn mono_starts_again_with_each_life_and_never_goes_back() {
    in_world(1, |world| async move {
        let host = world.host("a");
        let clock = host.boot().0.clock;
        world.sleep(Duration::from_secs(5)).await;
        let mut before = clock.mono();
        assert!(before >= Duration::from_secs(5));
        for drift in [100_000, -100_000, 0] {
            host.clock().set_mono_drift_ppm(drift);
            let now = clock.mono();
            assert!(now >= before && now - before < MS + MS);
            world.sleep(MS).await;
            before = now;
        }
        host.kill().await;
        assert!(host.boot().0.clock.mono() < MS);
    });
}

#[test]
fn a_program_ends_with_all_that_it_spawned() {
    in_world(1, |world| async move {
        let host = world.host("a");
        let count = Arc::new(Mutex::new(0));
        let counting = count.clone();
        let running = host.start(|io, start| async move {
            let clock = io.clock.clone();
            tokio::task::spawn(async move {
                loop {
                    clock.sleep_until(clock.mono() + MS).await;
                    *counting.lock().unwrap() += 1;
                }
            });
            io.clock.sleep_until(Duration::from_millis(100)).await;
            start.number
        });
        assert_eq!(running.output().await, Some(1));
        assert!(!host.is_running());
        let at_exit = *count.lock().unwrap();
        assert!(at_exit > 50);
        world.sleep(1000 * MS).await;
        assert_eq!(*count.lock().unwrap(), at_exit);
        assert_eq!(Arc::strong_count(&count), 1, "the task is still there");
        let killed = host.start(|_, _| std::future::pending::<()>());
        host.kill().await;
        assert_eq!(killed.output().await, None);
    });
}

#[test]
fn a_paused_host_runs_nothing_until_it_is_resumed_or_killed() {
    in_world(1, |world| async move {
        let host = world.host("a");
        let count = Arc::new(Mutex::new(0));
        let counting = count.clone();
        host.start(|io, _| async move {
            loop {
                io.clock.sleep_until(io.clock.mono() + MS).await;
                *counting.lock().unwrap() += 1;
            }
        });
        world.sleep(10 * MS).await;
        host.pause();
        world.sleep(MS).await;
        let before = *count.lock().unwrap();
        world.sleep(1000 * MS).await;
        assert_eq!(*count.lock().unwrap(), before);
        host.resume();
        world.sleep(10 * MS).await;
        assert!(*count.lock().unwrap() > before);
        host.pause();
        host.power_loss().await;
        assert_eq!(Arc::strong_count(&count), 1, "the task is still there");
    });
}

/// Notes on whose behalf it is dropped.
struct Dropped(Arc<Mutex<Option<madsim::task::NodeId>>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = Some(madsim::plugin::node());
    }
}

#[test]
fn the_tasks_of_a_paused_host_are_destroyed_as_its_own() {
    in_world(1, |world| async move {
        let host = world.host("a");
        let (by, own) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
        let (guard, noted) = (Dropped(by.clone()), own.clone());
        host.start(|io, _| async move {
            let _guard = guard;
            *noted.lock().unwrap() = Some(madsim::plugin::node());
            loop {
                io.clock.sleep_until(io.clock.mono() + MS).await;
            }
        });
        world.sleep(10 * MS).await;
        host.pause();
        world.sleep(10 * MS).await; // its task has been put aside
        host.kill().await;
        let (by, own) = (*by.lock().unwrap(), *own.lock().unwrap());
        assert!(own.is_some());
        assert_eq!(by, own);
    });
}

#[test]
fn a_panic_in_a_program_ends_the_run_and_leaves_the_trace() {
    let trace = Trace::new();
    let result = simulate(1, Settings::default(), trace.clone(), |world| async move {
        world.host("a").start(|_, _| async { panic!("broken invariant") });
        world.sleep(1000 * MS).await;
    });
    assert_eq!(result.unwrap_err().message, "broken invariant");
    assert!(trace.events() > 0);
}
