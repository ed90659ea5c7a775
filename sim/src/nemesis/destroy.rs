//! Disks destroyed, and convergence demanded before the next ones.
//!
//! ```text
//!   keep-image n2 ──▶ … ──▶ destroy n2 ──▶ budget? ──▶ (power goes) ──▶ the image changes ──▶ the watch reads it anew
//!                                            │ beyond: the run fails, nothing is done
//!   converge ──▶ destroyed machines off and on; links, disks, nodes whole ──▶ read every key from all N, over and over ──▶ W disks hold every
//!                                    acknowledged write, by their media, and every node has refilled ──▶ the budget is whole
//! ```
//! The reads are what brings a destroyed disk up to date at once; anti-entropy fills what nobody reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringdove::io::fault_disk::{Fault, Image, Rates};
use ringdove::storage::evidence;

use super::Nemesis;
use crate::cluster::Cluster;
use crate::holdings::DIR;
use crate::plan::Destruction;
use crate::play::bound::{Past, bound};
use crate::seed;
use crate::workload::Session;
use crate::world::Host;

/// Nodes that went down so often sit out the longest penalty.
const FALLS: u32 = 8;
/// Between two readings of all keys.
const READ_EVERY: Duration = Duration::from_millis(500);

/// The files that hold the log of a disk, by number.
fn segments(image: &Image) -> Vec<PathBuf> {
    let dir = Path::new(DIR);
    let names = image.names_on_medium(dir);
    let mut segments: Vec<(u64, PathBuf)> =
        names.iter().filter_map(|name| Some((evidence::segment_of(name)?, dir.join(name)))).collect();
    segments.sort();
    segments.into_iter().map(|(_, path)| path).collect()
}

/// The file that a plan means, and how long it is.
fn file(image: &Image, number: u32) -> Option<(PathBuf, u64)> {
    let all = segments(image);
    let path = all.get(usize::try_from(number).ok()?.checked_rem(all.len())?)?.clone();
    let len = image.on_medium(&path, 0)?.len() as u64;
    Some((path, len))
}

fn part(len: u64, thousandths: u32) -> u64 {
    len * u64::from(thousandths.min(1000)) / 1000
}

/// Who does not hold all of its partitions yet, in words.
fn refilling(cluster: &Cluster) -> Vec<String> {
    let told = |(name, host): (&str, &Host)| {
        let Some(node) = cluster.node(name).filter(|_| host.is_running()) else {
            return Some(format!("{name} does not run"));
        };
        let status = node.status();
        let (has, of) = (status.partitions_refilled, status.partitions);
        (has < of).then(|| format!("{name} has refilled {has} of {of} partitions"))
    };
    cluster.hosts().filter_map(told).collect()
}

/// Changes the image as the destruction says. Gives whether all of it is another one now.
fn change(image: &mut Image, how: &Destruction, kept: Option<&Image>) -> bool {
    match how {
        Destruction::Wipe => {
            image.wipe();
            return true;
        }
        Destruction::Rollback => {
            if let Some(older) = kept {
                image.rollback(older);
                return true;
            }
        }
        Destruction::Truncate { file: number, thousandths } => {
            if let Some((path, len)) = file(image, *number) {
                image.arm(Fault::Truncate { path, len: part(len, *thousandths) });
            }
        }
        Destruction::BitFlips { file: number, places } => {
            if let Some((path, len)) = file(image, *number) {
                for (thousandths, bit) in places {
                    let offset = part(len, *thousandths);
                    image.arm(Fault::BitFlip { path: path.clone(), offset, bit: *bit });
                }
            }
        }
        Destruction::BadSector { file: number, thousandths } => {
            if let Some((path, len)) = file(image, *number) {
                image.arm(Fault::BadSector { path, offset: part(len, *thousandths) });
            }
        }
        Destruction::Decay { astray, lies, seed } => {
            let rates = Rates {
                misdirected_write: f64::from(*astray) / 1000.0,
                sync_lie: f64::from(*lies) / 1000.0,
                ..Rates::default()
            };
            image.set_rates(rates, seed::stream(*seed, "decay"));
        }
        Destruction::Misdirect { nth, file: number, thousandths } => {
            if let Some((to, len)) = file(image, *number) {
                let (path, offset) = (PathBuf::from(DIR), part(len, *thousandths));
                image.arm(Fault::MisdirectedWrite { path, nth: *nth, to, offset });
            }
        }
        Destruction::SyncLie { nth, syncs } => {
            for nth in *nth..nth.saturating_add(*syncs) {
                image.arm(Fault::SyncLie { path: PathBuf::from(DIR), nth });
            }
        }
    }
    false
}

/// Takes back what was armed and what comes by chance.
pub(super) fn no_more(image: &mut Image) {
    image.disarm();
    image.set_rates(Rates::default(), seed::stream(0, "none"));
}

impl Nemesis {
    /// Keeps what a disk is now, for a rollback.
    pub(super) fn keep_image(&mut self, node: &str, cluster: &Cluster) {
        if let Some(host) = cluster.host(node) {
            self.images.insert(node.to_owned(), host.with_disk(|image| image.clone()));
        }
    }

    pub(super) async fn destroy(
        &mut self,
        node: &str,
        how: &Destruction,
        back_after_ms: u64,
        cluster: &mut Cluster,
    ) {
        let Some(host) = cluster.host(node).cloned() else { return };
        if let Err(exceeded) = self.budget.spend(node) {
            self.history.wrong(exceeded.to_string());
            return;
        }
        self.watch.destroyed(node);
        if how.takes_the_power() {
            cluster.down(node);
            self.lost_with_the_power(node, &host);
            host.power_loss().await;
            self.back.push((self.world.now() + Duration::from_millis(back_after_ms), node.to_owned()));
        }
        host.harm_disk(|image| change(image, how, self.images.get(node)));
        if *how == Destruction::Wipe {
            cluster.replace(node);
        }
    }

    /// A node whose directory is damaged does not start. The operator gives the disk up and replaces the member, as the
    /// error says; if nobody has damaged the disk, that is no answer. A sector that cannot be read fails a start too where the
    /// head of a segment is in it: of that the node cannot tell whether it passes, so the operator waits a while.
    pub(super) fn replace_damaged(&mut self, cluster: &mut Cluster) {
        let damaged = cluster.damaged_directories();
        let unreadable = cluster.unreadable_disks().into_iter().filter(|(node, _)| self.budget.has(node));
        for (node, why) in damaged.into_iter().chain(unreadable.collect::<Vec<_>>()) {
            if !self.budget.has(&node) {
                self.history.wrong(format!("{node} cannot start, and nobody has touched its disk: {why}"));
                continue;
            }
            self.world.record("nemesis", "replace", format_args!("{node} {why}"));
            self.history.hit("a damaged directory was given up and the member replaced");
            if let Some(host) = cluster.host(&node).cloned() {
                host.harm_disk(|image| change(image, &Destruction::Wipe, None));
            }
            cluster.replace(&node);
        }
    }

    /// The machines whose disks were destroyed go off and on. Until then a node believes in what a lying sync or a write that
    /// went astray has not left on its disk, and goes on building on it: without the head of its segment, for one, all that
    /// it writes there later is lost too.
    pub(super) async fn power_cycle_destroyed(&mut self, cluster: &mut Cluster) {
        for node in self.budget.spent().map(str::to_owned).collect::<Vec<_>>() {
            let Some(host) = cluster.host(&node).cloned() else { continue };
            host.with_disk(no_more);
            cluster.down(&node);
            self.lost_with_the_power(&node, &host);
            host.power_loss().await;
        }
    }

    /// Makes everything whole and has every key read from all replicas until each acknowledged write is on W disks.
    pub(super) async fn converge(&mut self, cluster: &mut Cluster) {
        self.power_cycle_destroyed(cluster).await;
        self.mend(cluster);
        let past = Past {
            guests: self.watch.guests() as u64,
            records: self.watch.records_max() as u64,
            destroyed: true,
            layouts: 0,
            falls: FALLS,
        };
        let within = bound(cluster.settings(), past);
        let by = self.world.now() + within;
        let thin = loop {
            self.readings += 1;
            let name = format!("refiller{}", self.readings);
            let (world, settings) = (self.world.clone(), cluster.settings().clone());
            let (descriptor, history) = (cluster.descriptor().clone(), self.history.clone());
            let host: Host = world.host(&name);
            let running = host.start(move |io, start| async move {
                let session = Session::new(&world, io, start, &name, &settings, &descriptor, &history);
                session.read_all(by).await;
            });
            self.tend_until(cluster, running.output()).await;
            // What was repaired gets to the disks meanwhile.
            let pause = self.world.clone();
            self.tend_until(cluster, pause.sleep(READ_EVERY)).await;
            let mut thin = self.watch.on_fewer_than(cluster.settings().w.into());
            // A node that cannot start yet may be one whose disk is to be replaced: within this round's budget.
            if cluster.tend() > 0 {
                thin.push("a node does not run".to_owned());
            }
            thin.extend(refilling(cluster));
            if thin.is_empty() || self.world.now() >= by {
                break thin;
            }
        };
        if let Some(first) = thin.first() {
            let within = within.as_secs_f64();
            self.history
                .wrong(format!("no convergence within {within:.1} s after disks were destroyed: {first}"));
        }
        self.world.record("nemesis", "converged", thin.len());
        self.budget.converged();
        self.watch.converged();
    }
}
