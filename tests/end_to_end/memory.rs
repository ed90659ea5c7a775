//! What a node holds in memory for clients that send garbage, or half of something, or take no answers: no more than
//! its settings say.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use ringdove::net::envelope::FrameHead;
use ringdove::net::link::hello;
use ringdove::net::message::{Get, Message, Ping, Put, Spoken, VERSION};
use ringdove::net::serve::Limits;
use ringdove::types::{Key, RequestId, WriteId};

use crate::idle::resident;
use crate::program::{Program, free_addr, said};

const MIB: usize = 1024 * 1024;
/// What a node takes besides: connections, stacks of tasks, and what the allocator keeps of what was freed.
const MARGIN: usize = 96 * MIB;
const VALUE: usize = 8 * MIB;

struct Node {
    program: Program,
    addr: String,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start() -> Node {
        let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
        let data = dir.path().join("n1").to_str().unwrap().to_owned();
        assert_eq!(said(&["init", "--dir", &data, "--new-cluster", "--client-addr", &addr]).0, Some(0));
        Node { program: Program::serve(&data, &[]), addr, _dir: dir }
    }

    fn resident(&self) -> usize {
        resident(self.program.pid())
    }

    /// By how much it has grown at the most since `before`, until it has not changed for a second.
    fn growth(&self, before: usize) -> usize {
        let (mut most, mut last, mut same) = (0, 0, 0);
        while same < 10 {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.resident();
            same = if now.abs_diff(last) < MIB { same + 1 } else { 0 };
            (most, last) = (most.max(now), now);
        }
        most.saturating_sub(before)
    }

    /// A connection past its handshake.
    fn shaken(&self) -> TcpStream {
        let mut stream = TcpStream::connect(&self.addr).unwrap();
        let hello = hello(Spoken::default(), None, None);
        let frame = hello.to_frame(FrameHead { version: 1, ..FrameHead::default() }).unwrap();
        stream.write_all(&frame.encode()).unwrap();
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix).unwrap();
        std::io::copy(&mut (&mut stream).take(u32::from_le_bytes(prefix).into()), &mut std::io::sink())
            .unwrap();
        stream
    }

    fn serves(&self) {
        assert_eq!(said(&["put", "--addr", &self.addr, "wren", "small"]).0, Some(0));
    }
}

fn head(request: u64) -> FrameHead {
    let request_id = RequestId(request);
    FrameHead { version: VERSION, request_id, remaining_ms: 30_000, ..FrameHead::default() }
}

fn dove() -> Key {
    Key::new(&b"dove"[..]).unwrap()
}

#[test]
fn garbage_and_lengths_that_lie_take_no_memory() {
    let node = Node::start();
    node.serves();
    let before = node.resident();
    let garbage: Vec<u8> =
        (0..64 * 1024_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    for turn in 0..400 {
        let mut stream = TcpStream::connect(&node.addr).unwrap();
        let four_gib = u32::MAX.to_le_bytes();
        // It may be closed before all is written.
        let _ = stream.write_all(if turn % 2 == 0 { &garbage } else { &four_gib });
        let _ = stream.read_to_end(&mut Vec::new());
        let mut stream = node.shaken();
        let _ = stream.write_all(if turn % 2 == 0 { &garbage } else { &four_gib });
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let growth = node.growth(before);
    assert!(growth < MARGIN, "{} MiB for garbage", growth / MIB);
    node.serves();
}

#[test]
fn half_a_frame_and_then_silence_takes_what_came_and_no_more_than_the_bound() {
    let node = Node::start();
    node.serves();
    let before = node.resident();
    let put = Put::new(dove(), WriteId(1), vec![7; VALUE]).to_frame(head(1)).unwrap().encode();
    let ping = Ping.to_frame(head(1)).unwrap().encode();
    let held: Vec<TcpStream> = (0..300)
        .map(|turn| {
            if turn % 3 == 0 {
                // Half a handshake.
                let mut stream = TcpStream::connect(&node.addr).unwrap();
                stream.write_all(&ping[..20]).unwrap();
                return stream;
            }
            let mut stream = node.shaken();
            let half = if turn % 3 == 1 { &put[..1000] } else { &put[..put.len() / 2] };
            stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            // What finds no room is read and thrown away, or not read on.
            let _ = stream.write_all(half);
            stream
        })
        .collect();
    let (growth, bound) = (node.growth(before), Limits::default().request_bytes_max);
    assert!(growth < bound + MARGIN, "{} MiB for half frames", growth / MIB);
    drop(held);
    node.serves();
}

#[test]
fn clients_that_take_no_answers_cost_no_more_than_the_bound() {
    let node = Node::start();
    let mut writer = node.shaken();
    let put = Put::new(dove(), WriteId(1), vec![7; VALUE]).to_frame(head(1)).unwrap().encode();
    writer.write_all(&put).unwrap();
    writer.read_exact(&mut [0; 4]).unwrap();
    let before = node.resident();
    let gets: Vec<u8> = (1..=3)
        .flat_map(|request| Get::new(dove()).to_frame(head(request)).unwrap().encode().to_vec())
        .collect();
    let held: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = node.shaken();
            stream.write_all(&gets).unwrap();
            stream
        })
        .collect();
    let (growth, bound) = (node.growth(before), Limits::default().unread_bytes_max);
    assert!(bound <= 128 * MIB, "a node that nobody reads from shall not take half a machine");
    assert!(growth < bound + MARGIN, "{} MiB for clients that read nothing", growth / MIB);
    // Who reads is served meanwhile with what is small, and large values once the others are gone.
    node.serves();
    drop(held);
    let answered = || said(&["get", "--addr", &node.addr, "--json", "dove"]).0;
    crate::support::until("a large value has room again", || answered() == Some(0));
}
