//! The simulated world: hosts with a network, a disk and a clock each, and what may happen to them.
//!
//! A **host** is a machine with a name. A **life** is one run of a program on it: it begins with
//! [`Host::start`] and ends when the program returns, is killed, or the host loses its power. Every handle of
//! the [`Io`] that a life was given is dead once that life is over, whoever still holds it.
//!
//! ```text
//!            start                 the program returns, or kill            power_loss
//!   stopped ───────▶ running ────────▶ stopped (host answers "refused")   running ────▶ off (host is silent)
//!                                       disk keeps what was written       disk keeps what was synced,
//!                                                                         and of the rest what chance leaves
//! ```
//!
//! The end of a life is one order of steps, because madsim runs the tasks of a restarted node before the
//! destructors of the old ones, and destroys the tasks of a paused node in the wrong context: fence the life,
//! end its connections and disk operations, resume the node if it is paused, kill its tasks, wait until they
//! are gone. Only then may the next life begin.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use madsim::runtime::Handle;
use madsim::task::{JoinHandle, NodeId};
use ringdove::io::fault_disk::Image;
use ringdove::io::{Io, Net, TcpNet};
use tokio::sync::{Notify, oneshot};

use crate::clock::{ClockFaults, SimClock};
use crate::disk::{DiskTimes, DiskWatch, Drive, SimDisk};
use crate::gray::Gray;
use crate::net::{NetTimes, Network, SimNet};
use crate::plan::GrayClass;
use crate::seed;
use crate::tcp::{TcpWires, Weather};
use crate::timers::Timers;
use crate::trace::Trace;

/// How the world behaves where no fault is set.
#[derive(Clone, Default)]
pub struct Settings {
    /// The network's times and sizes.
    pub net: NetTimes,
    /// The disks' times.
    pub disk: DiskTimes,
    /// The product's `TcpNet` on madsim's network with this weather, in place of `SimNet`.
    pub tcp: Option<Weather>,
    /// Who watches the disks.
    pub watch: Option<Arc<dyn DiskWatch>>,
}

/// Whether a life goes on. Every handle of it holds one.
#[derive(Clone)]
pub struct Life(Arc<LifeState>);

struct LifeState {
    host: String,
    number: u32,
    on: AtomicBool,
}

impl Life {
    /// False from the moment on at which the life was ended.
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    /// The host's name.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    fn end(&self) {
        self.0.on.store(false, Ordering::Relaxed);
    }
}

/// What a program is told at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// 1 for the first life of this host.
    pub number: u32,
    /// For the program's own generators; differs from life to life, or a restart would mint the same ids.
    pub seed: u64,
}

struct WorldState {
    seed: u64,
    settings: Settings,
    timers: Timers,
    trace: Trace,
    net: Network,
    tcp: Option<TcpWires>,
    madsim: Handle,
    hosts: Mutex<BTreeMap<String, Host>>,
    /// A program has returned.
    ended: Notify,
    /// Hosts with a gray failure.
    gray: AtomicU32,
    driver: Mutex<Option<JoinHandle<()>>>,
}

/// One simulated world. Clones share it.
#[derive(Clone)]
pub struct World(Arc<WorldState>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// An empty world in the madsim runtime that is running; [`crate::run::simulate`] makes both.
    pub(crate) fn new(seed: u64, settings: Settings, trace: Trace) -> World {
        let timers = Timers::new();
        let net = Network::new(seed, settings.net.clone(), timers.clone(), trace.clone());
        let tcp = settings.tcp.map(TcpWires::new);
        let driver = madsim::task::spawn(timers.clone().drive());
        World(Arc::new(WorldState {
            seed,
            settings,
            timers,
            trace,
            net,
            tcp,
            madsim: Handle::current(),
            hosts: Mutex::default(),
            ended: Notify::new(),
            gray: AtomicU32::new(0),
            driver: Mutex::new(Some(driver)),
        }))
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Simulated time since the start of the run.
    pub fn now(&self) -> Duration {
        self.0.timers.now()
    }

    /// Timers in simulated time, for the fault plan and the scenario. Programs use their `Io`'s clock.
    pub fn timers(&self) -> &Timers {
        &self.0.timers
    }

    /// Waits in simulated time.
    pub async fn sleep(&self, delay: Duration) {
        self.0.timers.sleep(delay).await;
    }

    /// The links: cutting and healing.
    pub fn net(&self) -> &Network {
        &self.0.net
    }

    /// madsim's network, where the product's `TcpNet` runs on it.
    pub fn tcp(&self) -> Option<&TcpWires> {
        self.0.tcp.as_ref()
    }

    /// What happened so far.
    pub fn trace(&self) -> &Trace {
        &self.0.trace
    }

    /// The host whose task is running; none in the scenario's own.
    pub fn running_host(&self) -> Option<String> {
        self.present_host().map(|host| host.0.name.clone())
    }

    fn present_host(&self) -> Option<Host> {
        let node = madsim::plugin::node();
        lock(&self.0.hosts).values().find(|host| host.0.node == node).cloned()
    }

    /// Returns once a program has returned since the last call. For one who waits.
    pub async fn ended(&self) {
        self.0.ended.notified().await;
    }

    /// Whether a request of this kind has to wait at the host whose task is running.
    pub(crate) fn withholds(&self, kind: u16) -> bool {
        self.0.gray.load(Ordering::Relaxed) > 0
            && self.present_host().is_some_and(|host| lock(&host.0.gray).withholds(kind))
    }

    /// Adds an event of `node` (or of the scenario itself) to the trace.
    pub fn record(&self, node: &str, kind: &str, payload: impl std::fmt::Display) {
        self.0.trace.record(self.now(), node, kind, payload);
    }

    /// The host of that name; made, switched off, at the first call.
    pub fn host(&self, name: &str) -> Host {
        if let Some(host) = lock(&self.0.hosts).get(name) {
            return host.clone();
        }
        let state = &self.0;
        let mut node = state.madsim.create_node().name(name);
        let ip = state.tcp.as_ref().map(TcpWires::next_ip);
        if let Some(ip) = ip {
            node = node.ip(ip);
        }
        let node = node.build();
        if let (Some(tcp), Some(ip)) = (&state.tcp, ip) {
            tcp.add(name, node.id(), ip);
        }
        let chance = seed::stream(state.seed, &format!("disk/{name}"));
        let host = Host(Arc::new(HostState {
            world: self.clone(),
            name: name.to_owned(),
            node: node.id(),
            drive: Drive::new(
                name,
                state.settings.watch.clone(),
                chance,
                state.settings.disk.clone(),
                state.timers.clone(),
                state.trace.clone(),
            ),
            clock: ClockFaults::new(state.timers.clone()),
            present: Mutex::default(),
            gray: Mutex::default(),
        }));
        lock(&state.hosts).insert(name.to_owned(), host.clone());
        host
    }

    /// Ends all lives and the driver. Without it the runtime would leak every task (118 kB a seed).
    pub(crate) async fn shut_down(&self) {
        let hosts: Vec<Host> = lock(&self.0.hosts).values().cloned().collect();
        for host in &hosts {
            host.kill().await;
        }
        self.0.net.clear();
        self.0.timers.end();
        let driver = lock(&self.0.driver).take();
        if let Some(driver) = driver {
            let _ = driver.await;
        }
        lock(&self.0.hosts).clear();
    }
}

#[derive(Default)]
struct Present {
    life: Option<Life>,
    starts: u32,
    root: Option<JoinHandle<()>>,
    paused: bool,
}

struct HostState {
    world: World,
    name: String,
    node: NodeId,
    drive: Drive,
    clock: ClockFaults,
    present: Mutex<Present>,
    gray: Mutex<Gray>,
}

/// One host of a world. Clones share it.
#[derive(Clone)]
pub struct Host(Arc<HostState>);

/// Steps of waiting for the tasks and operations of a life that was ended; the longest disk operation takes
/// fewer. A handle kept beyond (by a test, say) only costs this wait: it is fenced.
const SETTLE: (u32, Duration) = (20, Duration::from_millis(1));

impl Host {
    /// The host's name: the part before the colon in its addresses.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether a life goes on here.
    pub fn is_running(&self) -> bool {
        lock(&self.0.present).life.is_some()
    }

    /// How often the host was started.
    pub fn starts(&self) -> u32 {
        lock(&self.0.present).starts
    }

    /// The faults of this host's clocks.
    pub fn clock(&self) -> &ClockFaults {
        &self.0.clock
    }

    /// Looks at (or into) the host's disk from outside, without time passing: to arm faults, to read counts.
    /// Its power goes with [`Host::power_loss`], and a stall ends with [`Host::release_disk`].
    pub fn with_disk<T>(&self, look: impl FnOnce(&mut Image) -> T) -> T {
        look(&mut self.0.drive.image())
    }

    /// Changes the disk at rest, and has whoever watches it look at all of it again. `harm` says whether it is another
    /// disk now; then the host must be stopped.
    pub fn harm_disk(&self, harm: impl FnOnce(&mut Image) -> bool) {
        self.0.drive.harm(harm);
    }

    /// Ends a stall of the disk that was set with the same path, and carries out what waited for it.
    pub fn release_disk(&self, path: &Path) {
        self.0.drive.release(path);
    }

    /// Requests of this class wait from now on before the host's node looks at them.
    pub fn begin_gray(&self, waits: GrayClass) {
        lock(&self.0.gray).begin(waits);
        self.0.world.0.gray.fetch_add(1, Ordering::Relaxed);
    }

    /// The oldest such failure ends, if there is one. Gives the class that waited, and whether a request of the other passed
    /// meanwhile.
    pub fn end_gray(&self) -> Option<(GrayClass, bool)> {
        let ended = lock(&self.0.gray).end()?;
        self.0.world.0.gray.fetch_sub(1, Ordering::Relaxed);
        Some(ended)
    }

    /// Begins a life without a program, and gives its seams: for a test that plays the program itself.
    ///
    /// # Panics
    /// When a life goes on already.
    pub fn boot(&self) -> (Io, Start) {
        let state = &self.0;
        let world = &state.world.0;
        let (life, start) = {
            let mut present = lock(&state.present);
            assert!(present.life.is_none(), "{} is running", state.name);
            present.starts += 1;
            let number = present.starts;
            let on = AtomicBool::new(true);
            let life = Life(Arc::new(LifeState { host: state.name.clone(), number, on }));
            present.life = Some(life.clone());
            let seed = seed::derive(world.seed, &format!("start/{}/{number}", state.name));
            (life, Start { number, seed })
        };
        if start.number > 1 {
            world.madsim.restart(state.node);
        }
        state.world.record(&state.name, "start", start.number);
        world.net.power_on(&state.name);
        // Sockets of madsim's belong to the node's tasks and end with them: they need no fence.
        let net: Arc<dyn Net> = match &world.tcp {
            Some(_) => Arc::new(TcpNet),
            None => Arc::new(SimNet::new(world.net.clone(), life.clone())),
        };
        let io = Io {
            net,
            disk: Arc::new(SimDisk::new(state.drive.clone(), life.clone())),
            clock: Arc::new(SimClock::new(state.clock.clone(), life)),
        };
        (io, start)
    }

    /// Begins a life: switches the host on and runs `program` on it. What the program spawns ends with it.
    ///
    /// # Panics
    /// When a life goes on already.
    pub fn start<T, F>(&self, program: impl FnOnce(Io, Start) -> F) -> Running<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (io, start) = self.boot();
        let program = program(io, start);
        let (answer, output) = oneshot::channel();
        let host = self.clone();
        let node = self.0.world.0.madsim.get_node(self.0.node).expect("made with the host");
        let root = node.spawn(async move {
            let value = program.await;
            // The process has returned. Its remaining tasks cannot be ended from inside one of them.
            let timers = host.0.world.0.timers.clone();
            timers.after(Duration::ZERO, move || {
                let of_this_life =
                    lock(&host.0.present).life.as_ref().is_some_and(|l| l.0.number == start.number);
                if of_this_life {
                    host.end_of_life("exit", false);
                }
                let _ = answer.send(value);
                host.0.world.0.ended.notify_one();
            });
        });
        lock(&self.0.present).root = Some(root);
        Running { output, timers: self.0.world.0.timers.clone() }
    }

    /// Ends the process as `kill -9` does: what was written stays, peers read what was sent and are reset.
    /// Nothing happens when no life goes on.
    pub async fn kill(&self) {
        let ended = self.end_of_life("kill", false);
        self.settle(ended).await;
    }

    /// Takes the host's power away: what was not synced is lost, kept or torn by chance, and peers hear nothing.
    pub async fn power_loss(&self) {
        Host::power_loss_of([self]).await;
    }

    /// Takes the power of all these hosts away at one moment.
    pub async fn power_loss_of(hosts: impl IntoIterator<Item = &Host>) {
        let hosts = hosts.into_iter();
        let ended: Vec<_> = hosts.map(|host| (host, host.end_of_life("power-loss", true))).collect();
        for (host, ended) in ended {
            host.settle(ended).await;
        }
    }

    /// Stops the host's tasks from running, as a stalled virtual machine; its clocks go on and its kernel
    /// still takes connections and bytes.
    pub fn pause(&self) {
        let mut present = lock(&self.0.present);
        if present.life.is_some() && !present.paused {
            present.paused = true;
            drop(present);
            self.0.world.record(self.name(), "pause", "");
            self.0.world.0.madsim.pause(self.0.node);
        }
    }

    /// Lets a paused host go on.
    pub fn resume(&self) {
        let was = std::mem::take(&mut lock(&self.0.present).paused);
        if was {
            self.0.world.record(self.name(), "resume", "");
            self.0.world.0.madsim.resume(self.0.node);
        }
    }

    fn end_of_life(&self, why: &str, power: bool) -> Option<(Life, Option<JoinHandle<()>>)> {
        let state = &self.0;
        let world = &state.world.0;
        let (life, root, paused) = {
            let mut present = lock(&state.present);
            (present.life.take(), present.root.take(), std::mem::take(&mut present.paused))
        };
        let Some(life) = life else {
            if power {
                // The process is gone already; the machine is not.
                state.world.record(&state.name, why, "stopped");
                world.net.end_of_life(&state.name, true);
                state.world.record(&state.name, "unsynced", state.drive.power_loss());
            }
            return None;
        };
        state.world.record(&state.name, why, life.0.number);
        life.end();
        world.net.end_of_life(&state.name, power);
        if power {
            state.world.record(&state.name, "unsynced", state.drive.power_loss());
        } else {
            state.drive.process_death();
        }
        if paused {
            world.madsim.resume(state.node);
        }
        world.madsim.kill(state.node);
        Some((life, root))
    }

    async fn settle(&self, ended: Option<(Life, Option<JoinHandle<()>>)>) {
        let Some((life, root)) = ended else { return };
        if let Some(root) = root {
            let _ = root.await;
        }
        for _ in 0..SETTLE.0 {
            self.0.world.sleep(SETTLE.1).await;
            if Arc::strong_count(&life.0) == 1 {
                break;
            }
        }
    }
}

/// A program that was started.
pub struct Running<T> {
    output: oneshot::Receiver<T>,
    timers: Timers,
}

impl<T> Running<T> {
    /// What the program returned, once its life is over; nothing when it was ended from outside.
    pub async fn output(self) -> Option<T> {
        let value = self.output.await.ok();
        // The destructors of its tasks run first.
        self.timers.sleep(SETTLE.1).await;
        value
    }
}
