//! The disk behind the traits: fencing, stalls and delays.

use std::io::ErrorKind;

use futures_util::FutureExt;

use super::*;

/// The answer of an operation that does not wait.
fn now<T>(operation: BoxFuture<'static, io::Result<T>>) -> io::Result<T> {
    operation.now_or_never().expect("it answers at once")
}

fn opened(disk: &FaultDisk, path: &str) -> Arc<dyn File> {
    now(disk.open(Path::new(path), true)).unwrap()
}

#[test]
fn the_traits_do_what_the_image_does() {
    let disk = FaultDisk::new(Image::new());
    now(disk.create_dir_all(Path::new("/d"))).unwrap();
    let file = opened(&disk, "/d/a");
    now(file.write_at(3, Bytes::from_static(b"abc"))).unwrap();
    now(file.sync_data()).unwrap();
    assert_eq!(now(file.size()).unwrap(), 6);
    assert_eq!(now(file.read_at(0, 6)).unwrap()[..], *b"\0\0\0abc");
    assert_eq!(now(file.read_at(4, 3)).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    now(file.set_len(4)).unwrap();
    assert_eq!(now(file.size()).unwrap(), 4);
    now(disk.rename(Path::new("/d/a"), Path::new("/d/b"))).unwrap();
    now(disk.sync_dir(Path::new("/d"))).unwrap();
    assert_eq!(now(disk.list(Path::new("/d"))).unwrap(), ["b"]);
    now(disk.remove(Path::new("/d/b"))).unwrap();
    assert!(now(disk.list(Path::new("/d"))).unwrap().is_empty());
    drop(file);
    now(disk.sync_dir(Path::new("/d"))).unwrap();
    assert_eq!(disk.image().nodes.len(), 0, "the last handle frees a removed file");
    assert_eq!(now(disk.open(Path::new("/d/b"), false)).err().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn a_lock_is_held_by_one_until_its_guard_or_its_process_goes() {
    let disk = FaultDisk::new(Image::new());
    let path = Path::new("/LOCK");
    let guard = now(disk.lock(path)).unwrap();
    assert_eq!(now(disk.lock(path)).err().unwrap().kind(), ErrorKind::WouldBlock);
    drop(guard);
    let guard = now(disk.lock(path)).unwrap();
    disk.power_loss(&mut random(1), LossOdds::default());
    let again = disk.boot();
    let held = now(again.lock(path)).unwrap();
    drop(guard);
    assert_eq!(now(again.lock(path)).err().unwrap().kind(), ErrorKind::WouldBlock);
    drop(held);
    again.control().process_death();
    now(again.boot().lock(path)).unwrap();
}

#[test]
fn handles_of_a_process_that_is_gone_do_nothing() {
    let disk = FaultDisk::new(Image::new());
    let file = opened(&disk, "/a");
    now(disk.sync_dir(root())).unwrap();
    disk.power_loss(&mut random(1), LossOdds::default());
    assert!(is_off(&now(file.write_at(0, Bytes::from_static(b"x"))).unwrap_err()));
    assert!(is_off(&now(disk.list(root())).unwrap_err()));
    let again = disk.boot();
    let open = opened(&again, "/a");
    drop(file);
    now(open.write_at(0, Bytes::from_static(b"y"))).unwrap();
    assert_eq!(now(open.size()).unwrap(), 1);
}

#[test]
fn a_disk_over_an_image_of_a_running_one_is_another_disk() {
    let disk = FaultDisk::new(Image::new());
    let file = opened(&disk, "/a");
    let _guard = now(disk.lock(Path::new("/LOCK"))).unwrap();
    let copy = FaultDisk::new(disk.image());
    now(copy.lock(Path::new("/LOCK"))).unwrap();
    now(opened(&copy, "/a").write_at(0, Bytes::from_static(b"copy"))).unwrap();
    assert_eq!(now(file.size()).unwrap(), 0);
}

#[test]
fn a_stalled_operation_waits_for_the_release_and_those_elsewhere_do_not() {
    let disk = FaultDisk::new(Image::new());
    let (log, other) = (opened(&disk, "/log"), opened(&disk, "/other"));
    disk.stall(Path::new("/log"));
    now(other.sync_data()).unwrap();
    assert_eq!(disk.counts().of(FaultKind::Stall), Count { fired: 1, effective: 0 });
    let mut write = log.write_at(0, Bytes::from_static(b"late"));
    let mut size = log.size();
    drop(log.write_at(4, Bytes::from_static(b"r"))); // nobody waits for this one
    assert!((&mut write).now_or_never().is_none());
    assert!((&mut size).now_or_never().is_none());
    assert_eq!(disk.counts().of(FaultKind::Stall), Count { fired: 1, effective: 1 });
    assert_eq!(read(&mut disk.image(), "/log").unwrap(), b"");
    disk.release(Path::new("/log"));
    now(write).unwrap();
    assert_eq!(now(size).unwrap(), 4, "in the order in which they came");
    assert_eq!(read(&mut disk.image(), "/log").unwrap(), b"later");
}

#[test]
fn a_stall_holds_what_another_stall_still_covers_and_a_power_loss_ends_what_waits() {
    let disk = FaultDisk::new(Image::new());
    let file = opened(&disk, "/a");
    disk.stall(root());
    disk.stall(Path::new("/a"));
    let mut size = file.size();
    let open = disk.open(Path::new("/b"), true);
    disk.release(root());
    drop(now(open).unwrap());
    assert!((&mut size).now_or_never().is_none());
    disk.power_loss(&mut random(1), LossOdds::default());
    assert!(is_off(&now(size).unwrap_err()));
    drop(file);
}

#[test]
fn an_opening_that_waits_and_that_nobody_wants_any_more_leaves_no_handle() {
    let disk = FaultDisk::new(Image::new());
    disk.stall(root());
    drop(disk.open(Path::new("/a"), true));
    disk.release(root());
    now(disk.remove(Path::new("/a"))).unwrap();
    now(disk.sync_dir(root())).unwrap();
    assert_eq!(disk.image().nodes.len(), 0);
}

type Sleeper = (Duration, oneshot::Sender<()>);

/// A clock that stands until it is told.
#[derive(Default)]
struct Stepped(Mutex<(Duration, Vec<Sleeper>)>);

impl Stepped {
    fn step(&self, by: Duration) {
        let mut state = self.0.lock().unwrap();
        state.0 += by;
        let now = state.0;
        let all = std::mem::take(&mut state.1).into_iter();
        let (due, left): (Vec<Sleeper>, Vec<Sleeper>) = all.partition(|(at, _)| *at <= now);
        state.1 = left;
        for (_, wake) in due {
            let _ = wake.send(());
        }
    }
}

impl Clock for Stepped {
    fn mono(&self) -> Duration {
        self.0.lock().unwrap().0
    }

    fn wall(&self) -> Duration {
        self.mono()
    }

    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
        let (wake, woken) = oneshot::channel();
        self.0.lock().unwrap().1.push((deadline, wake));
        Box::pin(async move {
            let _ = woken.await;
        })
    }
}

#[test]
fn a_slow_operation_is_answered_after_its_delay() {
    let clock = Arc::new(Stepped::default());
    let disk = FaultDisk::with_clock(Image::new(), clock.clone());
    let (slow, quick) = (opened(&disk, "/slow/../a"), opened(&disk, "/b"));
    disk.control().slow(Path::new("/a"), Duration::from_millis(10));
    now(quick.size()).unwrap();
    assert_eq!(disk.counts().of(FaultKind::Slow), Count { fired: 1, effective: 0 });
    let mut size = slow.size();
    assert!((&mut size).now_or_never().is_none());
    clock.step(Duration::from_millis(9));
    assert!((&mut size).now_or_never().is_none());
    clock.step(Duration::from_millis(1));
    now(size).unwrap();
    assert_eq!(disk.counts().of(FaultKind::Slow), Count { fired: 1, effective: 1 });
    disk.control().slow(Path::new("/a"), Duration::ZERO);
    now(slow.size()).unwrap();
}

#[test]
fn at_a_crash_point_everything_fails_until_the_power_comes_back() {
    let disk = FaultDisk::new(Image::new());
    let file = opened(&disk, "/a");
    now(disk.sync_dir(root())).unwrap();
    let boundary = disk.control().boundaries();
    disk.control().crash_at(boundary + 1);
    now(file.write_at(0, Bytes::from_static(b"x"))).unwrap();
    assert!(is_off(&now(file.sync_data()).unwrap_err()));
    assert!(is_off(&now(file.read_at(0, 1)).unwrap_err()));
    assert!(is_off(&now(disk.list(root())).unwrap_err()));
    let mut left = disk.image();
    left.lose_unsynced();
    assert_eq!(now(opened(&FaultDisk::new(left), "/a").size()).unwrap(), 0);
}
