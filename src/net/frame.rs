//! Frames to and from a byte stream.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::sync::mpsc;

use crate::io::Clock;

use super::envelope::{EnvelopeError, FRAME_HEAD_LEN, Frame, message_len};

/// Room that is given to a frame before its bytes have come: a peer that announces much and sends nothing
/// holds no more than this.
const FIRST_ROOM: usize = 64 * 1024;

/// Why no further frame can be read. The connection is over.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection broke, or ended inside a frame.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// The other side sent something that is not a frame.
    #[error("not a frame: {0}")]
    Envelope(#[from] EnvelopeError),
}

/// Reads the next frame of at most `max` bytes; `None` when the other side has ended the connection between
/// two frames. Not cancel-safe: a dropped read leaves the stream inside a frame.
///
/// # Errors
/// When the connection breaks or the bytes are not a frame.
pub async fn read_frame(
    reader: &mut (dyn AsyncRead + Send + Unpin),
    max: usize,
) -> Result<Option<Frame>, ReadError> {
    let mut prefix = [0; 4];
    let mut have = 0;
    while have < prefix.len() {
        match reader.read(&mut prefix[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into())),
            read => have += read,
        }
    }
    let len = message_len(prefix, FRAME_HEAD_LEN, max)?;
    let mut bytes = BytesMut::with_capacity(len.min(FIRST_ROOM));
    bytes.extend_from_slice(&prefix);
    while bytes.len() < len {
        let missing = (len - bytes.len()) as u64;
        if reader.take(missing).read_buf(&mut bytes).await? == 0 {
            return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(Some(Frame::decode(&bytes.freeze())?))
}

/// Bytes that are gathered into one write.
const WRITE_ROOM: usize = 64 * 1024;

/// Writes the frames that come through the queue until all its senders are gone, many small ones at once.
///
/// # Errors
/// When the connection breaks, or takes nothing for `stall_after`.
pub async fn write_frames(
    mut writer: Box<dyn AsyncWrite + Send + Unpin>,
    mut queue: mpsc::Receiver<Bytes>,
    clock: &dyn Clock,
    stall_after: Duration,
) -> io::Result<()> {
    while let Some(first) = queue.recv().await {
        let mut frames = BytesMut::from(first);
        while frames.len() < WRITE_ROOM {
            match queue.try_recv() {
                Ok(frame) => frames.extend_from_slice(&frame),
                Err(_) => break,
            }
        }
        let written = async {
            writer.write_all(&frames).await?;
            writer.flush().await
        };
        select! {
            biased;
            written = written => written?,
            () = clock.sleep_until(clock.mono() + stall_after) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    writer.shutdown().await
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use super::*;
    use crate::net::envelope::{FRAME_LEN_MAX, FrameHead};

    fn frame(body: &'static [u8]) -> Frame {
        Frame { head: FrameHead::default(), body: Bytes::from_static(body) }
    }

    #[tokio::test]
    async fn frames_come_out_of_a_stream_that_gives_one_byte_at_a_time() {
        let mut bytes = frame(b"one").encode().to_vec();
        bytes.extend_from_slice(&frame(b"two").encode());
        let (mut far, mut near) = tokio::io::duplex(1);
        tokio::spawn(async move { far.write_all(&bytes).await });
        assert_eq!(read_frame(&mut near, FRAME_LEN_MAX).await.unwrap(), Some(frame(b"one")));
        assert_eq!(read_frame(&mut near, FRAME_LEN_MAX).await.unwrap(), Some(frame(b"two")));
        assert_eq!(read_frame(&mut near, FRAME_LEN_MAX).await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_end_inside_a_frame_is_an_error_and_not_an_orderly_end() {
        let bytes = frame(b"whole").encode();
        for cut in 1..bytes.len() {
            let mut part = &bytes[..cut];
            assert!(read_frame(&mut part, FRAME_LEN_MAX).await.is_err(), "{cut} bytes");
        }
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_by_its_length_alone() {
        let mut four_gib: &[u8] = &u32::MAX.to_le_bytes();
        assert!(matches!(read_frame(&mut four_gib, FRAME_LEN_MAX).await, Err(ReadError::Envelope(_))));
    }
}
