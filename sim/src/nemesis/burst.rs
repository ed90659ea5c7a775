//! Clients that come in a burst.

use std::time::Duration;

use super::Nemesis;
use crate::cluster::Cluster;
use crate::plan::Load;
use crate::workload::Session;

/// They begin no operation after so long.
const BURST_MAX: Duration = Duration::from_secs(5);

impl Nemesis {
    pub(super) fn burst(&mut self, load: &Load, cluster: &Cluster) {
        let settings = load.settings(cluster.settings());
        let deadline = self.world.now() + BURST_MAX;
        for _ in 0..load.clients {
            self.burst_clients += 1;
            let name = format!("b{}", self.burst_clients);
            let (world, settings) = (self.world.clone(), settings.clone());
            let (descriptor, history) = (cluster.descriptor().clone(), self.history.clone());
            let host = world.host(&name);
            let _ = host.start(move |io, start| {
                Session::new(&world, io, start, &name, &settings, &descriptor, &history).run(deadline)
            });
            self.bursts.push(host);
        }
    }
}
