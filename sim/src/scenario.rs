//! The scenario that `sim run` plays: three hosts that log and echo what two clients send, one cut link, one
//! power loss. It exercises the simulator alone; the store's own scenario takes its place behind [`run`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use ringdove::io::net::Stream;
use ringdove::io::{File, Io};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::run::{Panicked, simulate};
use crate::seed;
use crate::trace::Trace;
use crate::world::{Settings, Start, World};

/// What to change about a run besides its seed.
#[derive(Default)]
pub struct Options {
    /// Print every event as a line.
    pub log: bool,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The hash over all events: equal for equal runs.
    pub trace_hash: u64,
    /// How many events there were.
    pub events: u64,
    /// Requests that were answered.
    pub answered: u32,
    /// Requests whose outcome the client does not know.
    pub unknown: u32,
    /// Simulated time at the end.
    pub simulated: Duration,
}

/// Plays the scenario.
///
/// # Errors
/// When anything panicked. The trace up to there is printed if `log` is set.
pub fn run(seed: u64, options: &Options) -> Result<Report, Panicked> {
    let trace = if options.log { Trace::with_log(io::stdout()) } else { Trace::new() };
    let (answered, unknown, simulated) = simulate(seed, Settings::default(), trace.clone(), play)?;
    Ok(Report { trace_hash: trace.hash(), events: trace.events(), answered, unknown, simulated })
}

const SERVERS: [&str; 3] = ["n1", "n2", "n3"];
const CLIENTS: [&str; 2] = ["c1", "c2"];
const PORT: u16 = 7000;
const REQUESTS: u32 = 100;
const PATIENCE: Duration = Duration::from_millis(200);

async fn play(world: World) -> (u32, u32, Duration) {
    for name in SERVERS {
        world.host(name).start(|io, _| async move { serve(&io, name).await });
    }
    let clients: Vec<_> = CLIENTS
        .iter()
        .map(|name| world.host(name).start(|io, start| async move { ask(&io, start).await }))
        .collect();

    world.sleep(Duration::from_millis(100)).await;
    world.net().cut_both("c1", "n1");
    world.sleep(Duration::from_millis(300)).await;
    let failing = world.host("n2");
    failing.power_loss().await;
    world.sleep(Duration::from_millis(200)).await;
    failing.start(|io, _| async move { serve(&io, "n2").await });
    world.net().heal_all();

    let (mut answered, mut unknown) = (0, 0);
    for client in clients {
        let (a, u) = client.output().await.expect("clients are not killed");
        answered += a;
        unknown += u;
    }
    (answered, unknown, world.now())
}

/// Appends what each connection sends, in frames of a length byte, to a log; answers when it is durable.
async fn serve(io: &Io, name: &str) -> io::Result<()> {
    let dir = Path::new("/data");
    io.disk.create_dir_all(dir).await?;
    let _lock = io.disk.lock(&dir.join("LOCK")).await?;
    let log = io.disk.open(&dir.join("log"), true).await?;
    io.disk.sync_dir(Path::new("/")).await?;
    io.disk.sync_dir(dir).await?;
    let mut listener = io.net.listen(&format!("{name}:{PORT}")).await?;
    loop {
        let stream = listener.accept().await?;
        let log = log.clone();
        tokio::task::spawn(async move {
            // A connection that breaks is the client's to notice.
            let _ = echo(stream, &log).await;
        });
    }
}

async fn echo(mut stream: Stream, log: &Arc<dyn File>) -> io::Result<()> {
    loop {
        let len = stream.reader.read_u8().await?;
        let mut frame = vec![0; len.into()];
        stream.reader.read_exact(&mut frame).await?;
        let at = log.size().await?;
        log.write_at(at, Bytes::from(frame.clone())).await?;
        log.sync_data().await?;
        stream.writer.write_u8(len).await?;
        stream.writer.write_all(&frame).await?;
    }
}

/// Sends requests to servers at random; answered and unknown ones are counted.
async fn ask(io: &Io, start: Start) -> (u32, u32) {
    let mut chance = seed::stream(start.seed, "requests");
    let (mut answered, mut unknown) = (0, 0);
    for n in 0..REQUESTS {
        let pause = Duration::from_micros(chance.random_range(0..10_000));
        io.clock.sleep_until(io.clock.mono() + pause).await;
        let server = SERVERS[chance.random_range(0..SERVERS.len())];
        let text = vec![chance.random(); chance.random_range(1..200)];
        let deadline = io.clock.sleep_until(io.clock.mono() + PATIENCE);
        tokio::select! {
            biased;
            reply = request(io, server, &text) => match reply {
                Ok(reply) => {
                    assert_eq!(reply, text, "request {n} to {server} was answered with something else");
                    answered += 1;
                }
                Err(_) => unknown += 1,
            },
            () = deadline => unknown += 1,
        }
    }
    (answered, unknown)
}

async fn request(io: &Io, server: &str, text: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = io.net.connect(&format!("{server}:{PORT}")).await?;
    let len = u8::try_from(text.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.writer.write_u8(len).await?;
    stream.writer.write_all(text).await?;
    let mut reply = vec![0; stream.reader.read_u8().await?.into()];
    stream.reader.read_exact(&mut reply).await?;
    Ok(reply)
}
