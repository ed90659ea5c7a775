//! The wires between the nodes: a proxy that copies bytes, over links that can be cut, slowed and reset.
//!
//! ```text
//!   n1 ──dials the advertised address of n2──▶ listener of n2 ── reads Hello: "I am n1" ──▶ n2 where it really listens
//!        bytes to n2 ─────────────────────────▶ link n1→n2 ─────────────────────────────▶
//!        ◀───────────────────────────── link n2→n1 ◀─────────────────────────── bytes to n1
//! ```
//! Who dials is known from the first frame of a connection, in which a node greets with its id. So each ordered
//! pair of nodes has a link of its own, shared by the connections that either has opened to the other.
//!
//! As between real machines, a cut link loses nothing: what was sent over it waits and arrives after the heal, however
//! late, unless the connection was reset meanwhile. An end of a connection, a refused one included, passes no cut
//! either. What a link holds is bounded ([`HELD_MAX`] chunks a connection, then the sender's window fills).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ringdove::net::envelope::{FRAME_HEAD_LEN, Frame, message_len};
use ringdove::net::link::HANDSHAKE_LEN_MAX;
use ringdove::net::message::{Hello, Message};
use ringdove::types::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Bytes that are passed on at once.
const CHUNK: usize = 64 * 1024;
/// Chunks of one direction of a connection that are on the way.
const HELD_MAX: usize = 64;
/// A connection that has not said who it is by then says nothing any more.
const GREETS_WITHIN: Duration = Duration::from_secs(10);

/// From whom, to whom.
pub(crate) type Way = (NodeId, NodeId);

/// What holds for a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Rule {
    /// How many have cut it and not healed it yet.
    cuts: u32,
    delay: Duration,
    /// How often its connections were reset.
    resets: u64,
}

type Rules = BTreeMap<Way, Rule>;

fn rule(rules: &Rules, way: Way) -> Rule {
    rules.get(&way).copied().unwrap_or_default()
}

/// The links between all nodes. All are whole at first. Clones share them.
#[derive(Clone)]
pub(crate) struct Links(Arc<watch::Sender<Rules>>);

impl Links {
    pub(crate) fn new() -> Links {
        Links(Arc::new(watch::Sender::new(Rules::new())))
    }

    /// Holds what goes this way. Cuts add up: each must be healed.
    pub(crate) fn cut(&self, way: Way) {
        self.0.send_modify(|rules| rules.entry(way).or_default().cuts += 1);
    }

    /// Takes one cut back.
    pub(crate) fn heal(&self, way: Way) {
        self.0.send_modify(|rules| {
            let rule = rules.entry(way).or_default();
            rule.cuts = rule.cuts.checked_sub(1).expect("only what was cut is healed");
        });
    }

    /// Lets what goes this way take so much longer.
    pub(crate) fn delay(&self, way: Way, delay: Duration) {
        self.0.send_modify(|rules| rules.entry(way).or_default().delay = delay);
    }

    /// Breaks the connections that use this link. What they held is lost.
    pub(crate) fn reset(&self, way: Way) {
        self.0.send_modify(|rules| rules.entry(way).or_default().resets += 1);
    }

    /// Whether every link is whole.
    pub(crate) fn are_whole(&self) -> bool {
        self.0.borrow().values().all(|rule| rule.cuts == 0 && rule.delay.is_zero())
    }

    /// Takes connections for `target`, who listens at `to`, as long as the runtime lives.
    pub(crate) fn serve(&self, target: NodeId, listener: TcpListener, to: String) {
        let links = self.clone();
        tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { return };
                let (links, to) = (links.clone(), to.clone());
                // However it ends, it ended for both sides.
                tokio::spawn(async move { links.connect(near, target, &to).await });
            }
        });
    }

    async fn connect(&self, mut near: TcpStream, target: NodeId, to: &str) -> std::io::Result<()> {
        near.set_nodelay(true)?;
        let greeted = tokio::time::timeout(GREETS_WITHIN, greeting(&mut near)).await;
        let Ok(Ok((who, first))) = greeted else { return Ok(()) };
        let (there, back) = ((who, target), (target, who));
        let mut rules = self.0.subscribe();
        let resets = |rules: &Rules| rule(rules, there).resets + rule(rules, back).resets;
        let resets_before = resets(&rules.borrow());
        // A handshake of TCP needs both ways.
        whole(&mut rules, &[there, back]).await;
        let far = match TcpStream::connect(to).await {
            Ok(far) => far,
            Err(error) => {
                near.set_zero_linger()?;
                return Err(error);
            }
        };
        far.set_nodelay(true)?;
        let (near_reader, near_writer) = near.into_split();
        let (far_reader, far_writer) = far.into_split();
        let (mut near_to_far, mut far_to_near) = (
            Pump { from: near_reader, to: far_writer, way: there, rules: rules.clone() },
            Pump { from: far_reader, to: near_writer, way: back, rules: rules.clone() },
        );
        let broken = {
            let mut rules = rules.clone();
            let copying = async {
                let copied = tokio::try_join!(near_to_far.run(first), far_to_near.run(Bytes::new()));
                // That one side is gone the other one must not learn through a cut.
                if copied.is_err() {
                    whole(&mut rules, &[there, back]).await;
                }
                copied.is_err()
            };
            let mut reset = self.0.subscribe();
            select! {
                biased;
                _ = reset.wait_for(|rules| resets(rules) != resets_before) => true,
                broken = copying => broken,
            }
        };
        if broken {
            // Both sides are to see a reset. A writer that is dropped would end in order first.
            for writer in [near_to_far.to, far_to_near.to] {
                let _ = writer.as_ref().set_zero_linger();
                writer.forget();
            }
        }
        Ok(())
    }
}

/// Waits until none of these links is cut.
async fn whole(rules: &mut watch::Receiver<Rules>, ways: &[Way]) {
    let is_whole = |rules: &Rules| ways.iter().all(|way| rule(rules, *way).cuts == 0);
    // The sender is shared with whoever waits: it is there.
    let _ = rules.wait_for(is_whole).await;
}

/// Who dials, and the bytes that said so.
async fn greeting(near: &mut TcpStream) -> std::io::Result<(NodeId, Bytes)> {
    let malformed = |reason: String| std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
    let mut prefix = [0; 4];
    near.read_exact(&mut prefix).await?;
    let len = message_len(prefix, FRAME_HEAD_LEN, HANDSHAKE_LEN_MAX);
    let len = len.map_err(|error| malformed(error.to_string()))?;
    let mut bytes = BytesMut::zeroed(len);
    bytes[..4].copy_from_slice(&prefix);
    near.read_exact(&mut bytes[4..]).await?;
    let bytes = bytes.freeze();
    let frame = Frame::decode(&bytes).map_err(|error| malformed(error.to_string()))?;
    let hello = Hello::from_frame(&frame).map_err(|error| malformed(error.to_string()))?;
    let who = hello.node.ok_or_else(|| malformed("a client on the peer port".to_owned()))?;
    Ok((who, bytes))
}

/// One direction of a connection.
struct Pump {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    way: Way,
    rules: watch::Receiver<Rules>,
}

impl Pump {
    /// Copies until the sender ends, then ends towards the receiver.
    async fn run(&mut self, first: Bytes) -> std::io::Result<()> {
        let Pump { from, to, way, rules } = self;
        let way = *way;
        let (sender, mut on_the_way) = mpsc::channel::<(Instant, Bytes)>(HELD_MAX);
        // The sender goes with it, which is how `giving` learns of the end.
        let taking = async move {
            if !first.is_empty() {
                let _ = sender.send((Instant::now(), first)).await;
            }
            loop {
                let mut chunk = BytesMut::with_capacity(CHUNK);
                if from.read_buf(&mut chunk).await? == 0 {
                    return Ok(());
                }
                if sender.send((Instant::now(), chunk.freeze())).await.is_err() {
                    return Ok(());
                }
            }
        };
        let giving = async {
            while let Some((since, chunk)) = on_the_way.recv().await {
                let delay = rule(&rules.borrow(), way).delay;
                tokio::time::sleep_until(since + delay).await;
                whole(rules, &[way]).await;
                to.write_all(&chunk).await?;
            }
            whole(rules, &[way]).await;
            to.shutdown().await
        };
        tokio::try_join!(taking, giving).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use ringdove::net::envelope::FrameHead;
    use ringdove::net::link::hello;
    use ringdove::net::message::{HANDSHAKE_VERSION, Spoken};

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    /// A connection of node A to a node B that says all again that it hears.
    async fn connected(links: &Links) -> TcpStream {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (to, at) = (echo.local_addr().unwrap().to_string(), proxy.local_addr().unwrap());
        tokio::spawn(async move {
            let (stream, _) = echo.accept().await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
        links.serve(B, proxy, to);
        let mut near = TcpStream::connect(at).await.unwrap();
        let head = FrameHead { version: HANDSHAKE_VERSION, ..FrameHead::default() };
        let greeting = hello(Spoken::default(), None, Some(A)).to_frame(head).unwrap().encode();
        near.write_all(&greeting).await.unwrap();
        let mut echoed = vec![0; greeting.len()];
        near.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, greeting, "the greeting is passed on as it was");
        near
    }

    /// Whether a word comes back within this time.
    async fn echoes(near: &mut TcpStream, within: Duration) -> bool {
        let mut word = [0; 4];
        let read = tokio::time::timeout(within, near.read_exact(&mut word)).await;
        read.is_ok_and(|read| read.is_ok() && word == *b"dove")
    }

    const SOON: Duration = Duration::from_secs(20);
    const A_WHILE: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn what_is_sent_over_a_cut_link_arrives_after_the_heal() {
        for way in [(A, B), (B, A)] {
            let links = Links::new();
            let mut near = connected(&links).await;
            links.cut(way);
            links.cut(way);
            assert!(!links.are_whole());
            near.write_all(b"dove").await.unwrap();
            assert!(!echoes(&mut near, A_WHILE).await, "{way:?} is cut");
            links.heal(way);
            assert!(!echoes(&mut near, A_WHILE).await, "{way:?} is still cut");
            links.heal(way);
            assert!(echoes(&mut near, SOON).await, "{way:?} is whole");
            assert!(links.are_whole());
        }
    }

    #[tokio::test]
    async fn an_end_passes_no_cut() {
        let links = Links::new();
        let mut near = connected(&links).await;
        links.cut((B, A));
        near.shutdown().await.unwrap();
        let mut end = [0; 1];
        let heard = tokio::time::timeout(A_WHILE, near.read(&mut end)).await;
        assert!(heard.is_err(), "{heard:?}");
        links.heal((B, A));
        assert_eq!(tokio::time::timeout(SOON, near.read(&mut end)).await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_slow_link_takes_its_time_and_a_reset_one_breaks() {
        let links = Links::new();
        let mut near = connected(&links).await;
        links.delay((A, B), A_WHILE);
        let began = Instant::now();
        near.write_all(b"dove").await.unwrap();
        assert!(echoes(&mut near, SOON).await && began.elapsed() >= A_WHILE);
        links.reset((B, A));
        let broken = tokio::time::timeout(SOON, near.read(&mut [0; 1])).await.expect("it is told");
        assert_eq!(broken.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn links_of_other_nodes_are_left_alone() {
        let links = Links::new();
        let mut near = connected(&links).await;
        links.cut((A, NodeId(3)));
        links.reset((NodeId(3), B));
        near.write_all(b"dove").await.unwrap();
        assert!(echoes(&mut near, SOON).await);
    }
}
