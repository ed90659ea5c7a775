//! The operator who adds and removes members, as with `ringdove layout`.

use std::time::Duration;

use ringdove::client::{Client, ClientConfig, ClientError};
use ringdove::dynamo::layout::Member;
use ringdove::net::message::ChangeMembers;
use ringdove::types::NodeId;

use super::Nemesis;
use crate::cluster::{Cluster, client_addr, member};
use crate::seed;

/// He gives up after so long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// For one try.
const TIMEOUT: Duration = Duration::from_secs(2);

impl Nemesis {
    /// Asks one node after the other until one has done it, or says that it is done.
    pub(super) fn change_members(&mut self, node: &str, add: bool, cluster: &Cluster) {
        let Some(id) = cluster.id_of(node) else { return };
        self.watch.moves(node);
        self.operators += 1;
        let host = self.world.host(&format!("operator{}", self.operators));
        let timers = self.world.timers().clone();
        let until = self.world.now() + PATIENCE;
        let asked: Vec<NodeId> = cluster.ids().filter(|other| *other != id).collect();
        let members: Vec<Member> = if add { vec![member(id)] } else { Vec::new() };
        let change =
            ChangeMembers { add: members, remove: if add { Vec::new() } else { vec![id] }, apply: true };
        let world = self.world.clone();
        let _ = host.start(move |io, start| async move {
            let mut bits = [0; 32];
            rand::Rng::fill_bytes(&mut seed::stream(start.seed, "operator"), &mut bits);
            let addrs: Vec<String> = asked.iter().map(|id| client_addr(*id)).collect();
            let client = Client::new(io.net.clone(), io.clock.clone(), bits, ClientConfig::new(addrs));
            for of in asked.iter().cycle() {
                if world.now() > until {
                    return;
                }
                match client.change_members(&client_addr(*of), &change, Some(TIMEOUT)).await {
                    // Refused for good: an earlier try has done it, or it cannot be.
                    Ok(_) | Err(ClientError::Refused(_)) => return,
                    Err(_) => timers.sleep_until(world.now() + PAUSE).await,
                }
            }
        });
        self.bursts.push(host);
    }
}
