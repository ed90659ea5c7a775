//! Frames to and from a byte stream, within bounds: of a frame's length, of the time it takes once it has begun, of the
//! bytes held for it, and of the bytes that wait for a reader who does not read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::sync::mpsc;

use super::budget::{Budget, Reserved};
use super::envelope::{EnvelopeError, FRAME_HEAD_LEN, Frame, FrameHead, message_len};
use crate::io::Clock;
use crate::sync::Watched;

/// Room that is given to a frame before its bytes have come: a peer that announces much and sends nothing
/// holds no more than this. A frame that is no longer needs no reservation.
const FIRST_ROOM: usize = 64 * 1024;

/// Why no further frame can be read. The connection is over.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection broke, ended inside a frame, or a frame that had begun did not go on.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// The other side sent something that is not a frame.
    #[error("not a frame: {0}")]
    Envelope(#[from] EnvelopeError),
    /// A part of a message that does not fit it.
    #[error("not a part: {0}")]
    Part(String),
}

/// Bounds of reading.
#[derive(Clone, Copy)]
pub struct ReadLimits<'a> {
    /// Most bytes of a frame.
    pub len_max: usize,
    /// Time for a frame, from its first byte.
    pub within: Duration,
    /// Where room for large frames is reserved; none: they are taken without.
    pub budget: Option<&'a Arc<Budget>>,
}

/// A frame that came in.
#[derive(Debug)]
pub enum Incoming {
    /// With the room it holds.
    Whole(Frame, Option<Reserved>),
    /// There was no room for it: its body was dropped as it came. Its checksum was right.
    NoRoom(FrameHead),
}

/// Bytes that a connection reads at a time: at first, for those that are idle; and once it has filled that.
const READ_ROOM_FIRST: usize = 1024;
const READ_ROOM: usize = 16 * 1024;
const _: () = assert!(READ_ROOM <= FIRST_ROOM, "a frame that fits the buffer needs no reservation");

/// Takes frames out of one stream. It reads what there is, so that many small frames cost one call to the system.
pub struct FrameReader {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Bytes `from..to` have come and were not taken yet.
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl FrameReader {
    /// Nothing is read yet.
    pub fn new(reader: Box<dyn AsyncRead + Send + Unpin>) -> FrameReader {
        FrameReader { reader, buffer: vec![0; READ_ROOM_FIRST], from: 0, to: 0 }
    }

    /// Waits without end until some of the next frame has come, or the connection has ended. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn begun(&mut self) -> io::Result<()> {
        if self.from == self.to {
            self.fill().await?;
        }
        Ok(())
    }

    /// Reads the next frame; `None` when the other side has ended the connection between two frames. Waits for its
    /// first byte without end. Not cancel-safe: a dropped read may leave the stream inside a frame.
    ///
    /// # Errors
    /// When the connection breaks, the bytes are not a frame, or they do not come in time.
    pub async fn next(
        &mut self,
        clock: &dyn Clock,
        limits: ReadLimits<'_>,
    ) -> Result<Option<Incoming>, ReadError> {
        if self.from == self.to && self.fill().await? == 0 {
            return Ok(None);
        }
        if let Some(frame) = self.take_whole(limits)? {
            return Ok(Some(frame));
        }
        select! {
            biased;
            rest = self.rest(limits) => rest.map(Some),
            () = clock.sleep_until(clock.mono() + limits.within) => {
                Err(ReadError::Io(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    fn held(&self) -> &[u8] {
        &self.buffer[self.from..self.to]
    }

    /// Reads what there is into the buffer, which has room behind its bytes or before them.
    async fn fill(&mut self) -> io::Result<usize> {
        if self.from > 0 {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        let have = self.reader.read(&mut self.buffer[self.to..]).await?;
        self.to += have;
        if self.to == self.buffer.len() && self.to < READ_ROOM {
            self.buffer.resize(READ_ROOM, 0);
        }
        Ok(have)
    }

    /// The length of the next frame, once that much of it has come.
    fn len(&self, limits: ReadLimits<'_>) -> Result<Option<usize>, ReadError> {
        let prefix = self.held().first_chunk::<4>();
        Ok(prefix.map(|prefix| message_len(*prefix, FRAME_HEAD_LEN, limits.len_max)).transpose()?)
    }

    /// The next frame, if all of it has come. It is copied, so that a value which is kept does not keep its
    /// neighbours.
    fn take_whole(&mut self, limits: ReadLimits<'_>) -> Result<Option<Incoming>, ReadError> {
        let Some(len) = self.len(limits)?.filter(|len| *len <= self.to - self.from) else { return Ok(None) };
        let bytes = Bytes::copy_from_slice(&self.held()[..len]);
        self.from += len;
        Ok(Some(Incoming::Whole(Frame::decode(&bytes)?, None)))
    }

    async fn rest(&mut self, limits: ReadLimits<'_>) -> Result<Incoming, ReadError> {
        let ended = || ReadError::Io(io::ErrorKind::UnexpectedEof.into());
        let len = loop {
            if let Some(frame) = self.take_whole(limits)? {
                return Ok(frame);
            }
            match self.len(limits)? {
                Some(len) if len > self.buffer.len() => break len,
                _ => {}
            }
            if self.fill().await? == 0 {
                return Err(ended());
            }
        };
        let room = match limits.budget.filter(|_| len > FIRST_ROOM) {
            None => None,
            Some(budget) => match budget.reserve(len) {
                None => return self.drop_frame(len).await.map(Incoming::NoRoom),
                room => room,
            },
        };
        let mut bytes = BytesMut::with_capacity(len.min(FIRST_ROOM));
        bytes.extend_from_slice(self.held());
        self.from = self.to;
        while bytes.len() < len {
            let missing = (len - bytes.len()) as u64;
            if (&mut self.reader).take(missing).read_buf(&mut bytes).await? == 0 {
                return Err(ended());
            }
        }
        Ok(Incoming::Whole(Frame::decode(&bytes.freeze())?, room))
    }

    /// Reads over a frame of which only the head is kept.
    async fn drop_frame(&mut self, len: usize) -> Result<FrameHead, ReadError> {
        let mut head = [0; FRAME_HEAD_LEN];
        self.read_exact(&mut head).await?;
        let mut checksum = crc32c::crc32c(&head[8..]);
        let (mut left, mut buffer) = (len - FRAME_HEAD_LEN, vec![0; READ_ROOM]);
        while left > 0 {
            let some = left.min(buffer.len());
            self.read_exact(&mut buffer[..some]).await?;
            checksum = crc32c::crc32c_append(checksum, &buffer[..some]);
            left -= some;
        }
        if checksum.to_le_bytes() != head[4..8] {
            return Err(EnvelopeError::Checksum.into());
        }
        Ok(Frame::head_of(&head))
    }

    async fn read_exact(&mut self, out: &mut [u8]) -> io::Result<()> {
        let held = out.len().min(self.to - self.from);
        out[..held].copy_from_slice(&self.held()[..held]);
        self.from += held;
        self.reader.read_exact(&mut out[held..]).await?;
        Ok(())
    }
}

/// Bytes that are gathered into one write.
const WRITE_ROOM: usize = 64 * 1024;

/// The way to a connection's writing task. Clones share it.
#[derive(Clone)]
pub(super) struct Outgoing {
    queue: mpsc::Sender<Queued>,
    waiting: Arc<Waiting>,
    bytes_max: usize,
}

/// A frame, and the room that its message takes, in the message's last one.
type Queued = (Bytes, Option<Reserved>);

/// What waits to be written.
#[derive(Default)]
struct Waiting {
    bytes: Watched<usize>,
    /// More waited than may.
    overflowed: Watched<bool>,
}

impl Waiting {
    fn less(&self, bytes: usize) {
        self.bytes.modify(|waiting| {
            *waiting = waiting.saturating_sub(bytes);
            bytes > 0
        });
    }
}

/// Bytes that are counted as waiting and not queued yet.
struct Counted<'a> {
    waiting: &'a Waiting,
    bytes: usize,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.waiting.less(self.bytes);
    }
}

/// The writing task's end. Nothing waits any more once it is gone.
pub(super) struct ToWrite {
    queue: mpsc::Receiver<Queued>,
    waiting: Arc<Waiting>,
}

impl Drop for ToWrite {
    fn drop(&mut self) {
        self.queue.close();
        self.waiting.less(usize::MAX);
    }
}

/// Nothing is written any more.
#[derive(Debug)]
pub(super) struct Closed;

/// A queue of so many frames, of no more than `bytes_max` bytes together: who makes it longer ends the connection.
pub(super) fn queue(frames_max: usize, bytes_max: usize) -> (Outgoing, ToWrite) {
    let (sender, receiver) = mpsc::channel(frames_max);
    let waiting = Arc::new(Waiting::default());
    let outgoing = Outgoing { queue: sender, waiting: waiting.clone(), bytes_max };
    (outgoing, ToWrite { queue: receiver, waiting })
}

impl Outgoing {
    /// Queues the frames of one message, in order; waits while the queue is full. Cancelled between two frames it leaves
    /// the message cut off.
    pub(super) async fn send(&self, frames: Vec<Bytes>) -> Result<(), Closed> {
        self.send_with(frames, None).await
    }

    /// The same; `room` is given back when all of it is written, or never will be.
    pub(super) async fn send_with(
        &self,
        mut frames: Vec<Bytes>,
        room: Option<Reserved>,
    ) -> Result<(), Closed> {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        let mut fits = true;
        self.waiting.bytes.modify(|waiting| {
            *waiting += bytes;
            // One message alone is always taken.
            fits = *waiting <= self.bytes_max || *waiting == bytes;
            false
        });
        if !fits {
            self.overflow();
            return Err(Closed);
        }
        // Whoever gives up here has queued a part of it, or nothing: the rest waits no more.
        let mut counted = Counted { waiting: &self.waiting, bytes };
        let Some(last) = frames.pop() else { return Ok(()) };
        for (frame, room) in frames.into_iter().map(|frame| (frame, None)).chain([(last, room)]) {
            let len = frame.len();
            self.queue.send((frame, room)).await.map_err(|_| Closed)?;
            counted.bytes -= len;
        }
        Ok(())
    }

    /// Ends the connection: there is no room for a message that must not be left out.
    pub(super) fn overflow(&self) {
        self.waiting.overflowed.set(true);
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.bytes.get()
    }

    /// Waits until no more than `bytes` wait to be written.
    pub(super) async fn below(&self, bytes: usize) {
        self.waiting.bytes.wait_for(|waiting| (*waiting <= bytes).then_some(())).await;
    }
}

/// Writes the frames that come through the queue until all its senders are gone, many small ones at once.
///
/// # Errors
/// When the connection breaks, takes nothing for `stall_after`, or too much waits for it.
pub(super) async fn write_frames(
    mut writer: Box<dyn AsyncWrite + Send + Unpin>,
    mut to_write: ToWrite,
    clock: &dyn Clock,
    stall_after: Duration,
) -> io::Result<()> {
    let waiting = to_write.waiting.clone();
    let overflowed = waiting.overflowed.wait_for(|overflowed| overflowed.then_some(()));
    tokio::pin!(overflowed);
    loop {
        // What overflowed was never queued and is counted for ever: once it has, nobody may wait for more.
        let first = select! {
            biased;
            () = &mut overflowed => return Err(io::ErrorKind::OutOfMemory.into()),
            first = to_write.queue.recv() => first,
        };
        let Some((first, room)) = first else { break };
        // Who queued it woke this task, which would run before others that have a frame ready too: each frame would go
        // out in a call to the system of its own, most of what a small request costs. So they go first.
        tokio::task::yield_now().await;
        let (mut frames, mut rooms) = (BytesMut::from(first), Vec::from_iter(room));
        while frames.len() < WRITE_ROOM {
            match to_write.queue.try_recv() {
                Ok((frame, room)) => {
                    frames.extend_from_slice(&frame);
                    rooms.extend(room);
                }
                Err(_) => break,
            }
        }
        let written = async {
            writer.write_all(&frames).await?;
            writer.flush().await
        };
        select! {
            biased;
            () = &mut overflowed => return Err(io::ErrorKind::OutOfMemory.into()),
            written = written => written?,
            () = clock.sleep_until(clock.mono() + stall_after) => return Err(io::ErrorKind::TimedOut.into()),
        }
        waiting.less(frames.len());
    }
    writer.shutdown().await
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::io::RealClock;
    use crate::net::envelope::FRAME_LEN_MAX;

    fn frame(body: &'static [u8]) -> Frame {
        Frame { head: FrameHead::default(), body: Bytes::from_static(body) }
    }

    const LIMITS: ReadLimits<'static> =
        ReadLimits { len_max: FRAME_LEN_MAX, within: Duration::from_secs(20), budget: None };

    fn reader(reader: impl AsyncRead + Send + Unpin + 'static) -> FrameReader {
        FrameReader::new(Box::new(reader))
    }

    async fn read(reader: &mut FrameReader) -> Result<Option<Frame>, ReadError> {
        match reader.next(&RealClock::new(), LIMITS).await? {
            None => Ok(None),
            Some(Incoming::Whole(frame, _)) => Ok(Some(frame)),
            Some(Incoming::NoRoom(_)) => panic!("no budget was given"),
        }
    }

    #[tokio::test]
    async fn frames_come_out_of_a_stream_that_gives_one_byte_at_a_time() {
        let mut bytes = frame(b"one").encode().to_vec();
        bytes.extend_from_slice(&frame(b"two").encode());
        let (mut far, near) = tokio::io::duplex(1);
        tokio::spawn(async move { far.write_all(&bytes).await });
        let mut near = reader(near);
        assert_eq!(read(&mut near).await.unwrap(), Some(frame(b"one")));
        assert_eq!(read(&mut near).await.unwrap(), Some(frame(b"two")));
        assert_eq!(read(&mut near).await.unwrap(), None);
    }

    /// The bad order: a queue is full, its sender gives up, and what it had counted is counted for ever; after enough of
    /// that a connection ends for want of room although nothing waits.
    #[tokio::test]
    async fn what_was_given_up_or_can_never_be_written_waits_no_more() {
        let (outgoing, to_write) = queue(1, 1000);
        outgoing.send(vec![Bytes::from_static(b"first")]).await.unwrap();
        let parts = vec![Bytes::from_static(b"second"), Bytes::from_static(b"third")];
        let mut sending = Box::pin(outgoing.send(parts));
        let mut context = Context::from_waker(Waker::noop());
        assert!(sending.as_mut().poll(&mut context).is_pending());
        assert_eq!(outgoing.waiting(), 16);
        drop(sending);
        assert_eq!(outgoing.waiting(), 5);
        drop(to_write);
        assert_eq!(outgoing.waiting(), 0);
        assert!(outgoing.send(vec![Bytes::from_static(b"late")]).await.is_err());
        assert_eq!(outgoing.waiting(), 0);
    }

    /// Keeps what is written, each write for itself.
    #[derive(Clone, Default)]
    struct Written(Arc<std::sync::Mutex<Vec<Vec<u8>>>>);

    impl AsyncWrite for Written {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn frames_of_tasks_that_are_ready_together_go_out_in_one_write() {
        let (written, clock) = (Written::default(), RealClock::new());
        let (outgoing, to_write) = queue(8, 1024);
        let writing = write_frames(Box::new(written.clone()), to_write, &clock, Duration::from_secs(20));
        tokio::pin!(writing);
        let mut poll = || writing.as_mut().poll(&mut Context::from_waker(Waker::noop()));

        outgoing.send(vec![Bytes::from_static(b"one ")]).await.unwrap();
        assert!(poll().is_pending());
        outgoing.send(vec![Bytes::from_static(b"two ")]).await.unwrap();
        outgoing.send(vec![Bytes::from_static(b"three")]).await.unwrap();
        assert!(poll().is_pending());
        assert_eq!(*written.0.lock().unwrap(), [b"one two three".to_vec()]);
        assert_eq!(outgoing.waiting(), 0);
    }

    #[tokio::test]
    async fn too_much_at_once_ends_a_connection_that_would_have_taken_the_rest() {
        let clock = RealClock::new();
        let (outgoing, to_write) = queue(8, 10);
        outgoing.send(vec![Bytes::from_static(b"8 bytes.")]).await.unwrap();
        assert!(outgoing.send(vec![Bytes::from_static(b"8 bytes.")]).await.is_err());
        let writing = write_frames(Box::new(Written::default()), to_write, &clock, Duration::from_secs(20));
        assert_eq!(writing.await.unwrap_err().kind(), io::ErrorKind::OutOfMemory);

        // Also while it waits for something to write.
        let (outgoing, to_write) = queue(8, 10);
        let writing = write_frames(Box::new(Written::default()), to_write, &clock, Duration::from_secs(20));
        let sending = async {
            for _ in 0..2 {
                let _ = outgoing.send(vec![Bytes::from_static(b"8 bytes.")]).await;
            }
        };
        let (written, ()) = tokio::join!(writing, sending);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }

    /// Counts the reads that its stream is asked for.
    struct Counted(io::Cursor<Vec<u8>>, Arc<std::sync::atomic::AtomicUsize>);

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    #[tokio::test]
    async fn frames_of_all_sizes_come_out_of_a_stream_in_order_with_few_reads() {
        let sizes = [0usize, 1, 3, 900, 20_000, 5, 16 * 1024, 7, 100_000, 200, 963, 964, 965];
        let frames = sizes.map(|size| Frame { body: vec![size.to_le_bytes()[0]; size].into(), ..frame(b"") });
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        let mut stream = reader(io::Cursor::new(bytes));
        for frame in frames {
            assert_eq!(read(&mut stream).await.unwrap(), Some(frame));
        }
        assert_eq!(read(&mut stream).await.unwrap(), None);

        let reads = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let small: Vec<u8> = (0..100).flat_map(|_| frame(b"small").encode().to_vec()).collect();
        let mut stream = reader(Counted(io::Cursor::new(small), reads.clone()));
        while read(&mut stream).await.unwrap().is_some() {}
        let reads = reads.load(std::sync::atomic::Ordering::SeqCst);
        assert!(reads <= 4, "{reads} reads for 100 frames");
    }

    #[tokio::test]
    async fn an_end_inside_a_frame_is_an_error_and_not_an_orderly_end() {
        let bytes = frame(b"whole").encode();
        for cut in 1..bytes.len() {
            let mut part = reader(io::Cursor::new(bytes.slice(..cut)));
            assert!(read(&mut part).await.is_err(), "{cut} bytes");
        }
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_by_its_length_alone() {
        let mut four_gib = reader(io::Cursor::new(u32::MAX.to_le_bytes()));
        assert!(matches!(read(&mut four_gib).await, Err(ReadError::Envelope(_))));
    }

    #[tokio::test]
    async fn half_a_frame_and_then_silence_is_an_error_in_the_end() {
        let bytes = frame(b"whole").encode();
        for cut in [1, 4, 30, bytes.len() - 1] {
            let (mut far, near) = tokio::io::duplex(1024);
            far.write_all(&bytes[..cut]).await.unwrap();
            let limits = ReadLimits { within: Duration::from_millis(1), ..LIMITS };
            let read = reader(near).next(&RealClock::new(), limits).await;
            let Err(ReadError::Io(error)) = read else { panic!("{read:?}") };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{cut} bytes");
            drop(far);
        }
    }

    #[tokio::test]
    async fn a_frame_without_room_is_read_over_and_the_next_one_is_read() {
        let large = Frame { body: vec![7; 3 * FIRST_ROOM].into(), ..frame(b"") };
        let large = Frame { head: FrameHead { kind: 9, ..large.head }, ..large };
        let mut bytes = large.encode().to_vec();
        bytes.extend_from_slice(&frame(b"small").encode());
        let (budget, clock) = (Budget::new(2 * FIRST_ROOM), RealClock::new());
        let limits = ReadLimits { budget: Some(&budget), ..LIMITS };
        let mut stream = reader(io::Cursor::new(bytes.clone()));
        let first = stream.next(&clock, limits).await.unwrap();
        assert!(matches!(first, Some(Incoming::NoRoom(head)) if head == large.head));
        let second = stream.next(&clock, limits).await.unwrap();
        assert!(matches!(second, Some(Incoming::Whole(small, None)) if small == frame(b"small")));
        // Damaged on the way: its head means nothing.
        bytes[1000] ^= 1;
        assert!(reader(io::Cursor::new(bytes)).next(&clock, limits).await.is_err());
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_dropped_once_too_much_waits_for_it() {
        let (near, _far) = tokio::io::duplex(1024);
        let (outgoing, to_write) = queue(100, 10_000);
        let writing = tokio::spawn(async move {
            write_frames(Box::new(near), to_write, &RealClock::new(), Duration::from_secs(600)).await
        });
        // One is always taken, however long.
        outgoing.send(vec![Bytes::from(vec![0; 20_000])]).await.unwrap();
        assert!(outgoing.send(vec![Bytes::from(vec![0; 10])]).await.is_err());
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }
}
