//! Clients that come in a burst.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Nemesis, lock};
use crate::cluster::Cluster;
use crate::net::fault::effective;
use crate::plan::Load;
use crate::workload::Session;

/// They begin no operation after so long.
const BURST_MAX: Duration = Duration::from_secs(5);

impl Nemesis {
    pub(super) fn burst(&mut self, load: &Load, cluster: &Cluster) {
        let settings = load.settings(cluster.settings());
        // It has done something once one of its clients has done one thing.
        let (name_of_load, worked) = (load.name(), Arc::new(AtomicBool::new(false)));
        let deadline = self.world.now() + BURST_MAX;
        for _ in 0..load.clients {
            self.burst_clients += 1;
            let name = format!("b{}", self.burst_clients);
            let (world, settings) = (self.world.clone(), settings.clone());
            let (descriptor, history) = (cluster.descriptor().clone(), self.history.clone());
            let host = world.host(&name);
            let (worked, counts) = (worked.clone(), self.of_bursts.clone());
            let _ = host.start(move |io, start| {
                let session = Session::new(&world, io, start, &name, &settings, &descriptor, &history);
                async move {
                    let done = session.run(deadline).await;
                    if done > 0 && !worked.swap(true, Ordering::Relaxed) {
                        effective(&mut lock(&counts), name_of_load);
                    }
                }
            });
            self.bursts.push(host);
        }
    }
}
