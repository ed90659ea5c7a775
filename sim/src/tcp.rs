//! The product's own `TcpNet` on madsim's network simulator: the code that production runs, unchanged, where every other
//! scenario has `SimNet` in its place.
//!
//! ```text
//!   node code ──▶ ringdove::io::TcpNet ──▶ tokio::net (madsim's) ──▶ NetSim: names, latency, loss, clogged links
//! ```
//! What this can show is that `TcpNet` names, listens, accepts, splits, flushes and ends connections as `SimNet` promised.
//! It is no second fault model. madsim's TCP is kind (DESIGN §9): an end of stream leaks through a clogged link, connecting
//! over one is refused at once, a lost message is only late, nothing is ever reset, and all links share one latency and one
//! loss. So of the network's faults only cuts and their heals are allowed in its plans, and the [`Weather`] of all links.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use madsim::net::NetSim;
use madsim::task::NodeId;
use serde::{Deserialize, Serialize};

/// What all links are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weather {
    /// Of a hundred messages so many are lost, and sent again later; below 100.
    pub loss_percent: u32,
    /// Shortest and longest latency of a message, in microseconds; madsim's clock makes at least 1 ms of it.
    pub latency_us: (u64, u64),
}

/// madsim's network, seen from the fault plan. Clones share it.
#[derive(Clone)]
pub struct TcpWires {
    net: Arc<NetSim>,
    calm: Weather,
    hosts: Arc<Mutex<BTreeMap<String, NodeId>>>,
    /// How often each link is cut.
    cuts: Arc<Mutex<BTreeMap<(String, String), u32>>>,
}

impl TcpWires {
    /// In the runtime that is running; `calm` is the weather that a heal brings back.
    pub(crate) fn new(calm: Weather) -> TcpWires {
        let wires = TcpWires { net: NetSim::current(), calm, hosts: Arc::default(), cuts: Arc::default() };
        wires.set_weather(calm);
        wires
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<String, NodeId>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cuts(&self) -> MutexGuard<'_, BTreeMap<(String, String), u32>> {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of the next host.
    pub(crate) fn next_ip(&self) -> IpAddr {
        let number = u16::try_from(self.hosts().len() + 1).expect("few hosts");
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(10, 0, high, low).into()
    }

    /// A host has this address and this name from now on.
    pub(crate) fn add(&self, name: &str, node: NodeId, ip: IpAddr) {
        self.net.add_dns_record(name, ip);
        self.hosts().insert(name.to_owned(), node);
    }

    fn on_link(&self, from: &str, to: &str, act: impl FnOnce(&NetSim, NodeId, NodeId)) {
        let hosts = self.hosts();
        if let (Some(from), Some(to)) = (hosts.get(from), hosts.get(to)) {
            act(&self.net, *from, *to);
        }
    }

    /// Nothing that is sent from one host to the other arrives until it is healed.
    pub fn cut(&self, from: &str, to: &str) {
        *self.cuts().entry((from.to_owned(), to.to_owned())).or_default() += 1;
        self.on_link(from, to, NetSim::clog_link);
    }

    /// Takes one cut back; the link is whole when it was the last.
    pub fn mend(&self, from: &str, to: &str) {
        let left = {
            let mut cuts = self.cuts();
            let left = cuts.entry((from.to_owned(), to.to_owned())).or_default();
            *left = left.saturating_sub(1);
            *left
        };
        if left == 0 {
            self.on_link(from, to, NetSim::unclog_link);
        }
    }

    /// Takes all cuts of a link back.
    pub fn heal(&self, from: &str, to: &str) {
        self.cuts().remove(&(from.to_owned(), to.to_owned()));
        self.on_link(from, to, NetSim::unclog_link);
    }

    /// All links are like this from now on.
    pub fn set_weather(&self, weather: Weather) {
        let us = Duration::from_micros;
        self.net.update_config(|config| {
            config.packet_loss_rate = f64::from(weather.loss_percent.min(99)) / 100.0;
            config.send_latency = us(weather.latency_us.0)..us(weather.latency_us.1 + 1);
        });
    }

    /// Whether this is what the links are like without a fault.
    pub fn is_calm(&self, weather: Weather) -> bool {
        weather == self.calm
    }

    /// All links are whole and calm.
    pub fn heal_all(&self) {
        self.cuts().clear();
        let nodes: Vec<NodeId> = self.hosts().values().copied().collect();
        for from in &nodes {
            for to in &nodes {
                self.net.unclog_link(*from, *to);
            }
        }
        self.set_weather(self.calm);
    }

    /// Messages that were sent and not lost, over the whole run.
    pub fn messages(&self) -> u64 {
        self.net.stat().msg_count
    }
}
