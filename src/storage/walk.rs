//! Walks over a segment's records from front to back, and over damage to the next whole record behind it.
//!
//! A record is whole when its checksum, which starts from its place, is right. Behind a bad byte the length field
//! cannot be trusted, so every following byte is tried as the beginning of a record; the cheap conditions of
//! `format::plausible_len` come first. What lies between is one stretch of damage.
//!
//! A client may have filled the stretch with beginnings that are plausible and long, and each costs its length to try. So
//! what is spent on them is bounded; behind that only short records, and all heads of groups, are tried. A long record
//! that is passed over so is damage like what stands around it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::format::{GroupHead, KIND_GROUP, Salted, open_record, plausible_len, seed_of};
use crate::io::File;
use crate::net::envelope::{Opened, PREFIX_LEN};

/// Read at once.
const WINDOW: usize = 1024 * 1024;
/// Bytes of candidates that were none, above which a search only tries those of at most [`SHORT`] bytes.
const SPENT_MAX: usize = 256 * 1024 * 1024;
const SHORT: usize = 64 * 1024;
/// Where a read of a window fails, it is read again in pieces of this length; a piece that fails is damage.
const PIECE: usize = 4096;

/// What stands at an offset of a segment.
#[derive(Debug)]
pub(super) enum Item {
    /// The head of a group.
    Group { offset: u64, head: GroupHead },
    /// A record of another kind.
    Record { offset: u64, bytes: Bytes, opened: Opened },
    /// Nothing whole in between.
    Bad { from: u64, to: u64 },
}

/// A walk over the bytes `offset..limit` of one segment.
pub(super) struct Walk {
    file: Arc<dyn File>,
    of: Option<Salted>,
    offset: u64,
    limit: u64,
    window_start: u64,
    window: Bytes,
    /// Bytes of candidates that were none.
    spent: usize,
}

impl Walk {
    /// `limit` must not be behind the end of the file. Without a salt nothing is whole.
    pub(super) fn new(file: Arc<dyn File>, of: Option<Salted>, offset: u64, limit: u64) -> Walk {
        Walk { file, of, offset, limit, window_start: offset, window: Bytes::new(), spent: 0 }
    }

    /// The next item; none at the limit.
    ///
    /// # Errors
    /// When the file does not answer at all.
    pub(super) async fn next(&mut self) -> io::Result<Option<Item>> {
        let from = self.offset;
        let Some(of) = self.of else {
            self.offset = self.limit;
            return Ok((from < self.limit).then_some(Item::Bad { from, to: self.limit }));
        };
        while self.offset < self.limit {
            let offset = self.offset;
            if let Some((bytes, opened)) = self.at(offset, of, from < offset).await? {
                if from < offset {
                    return Ok(Some(Item::Bad { from, to: offset }));
                }
                self.offset += bytes.len() as u64;
                if opened.kind == KIND_GROUP
                    && let Some(head) = GroupHead::read(&bytes)
                {
                    return Ok(Some(Item::Group { offset, head }));
                }
                return Ok(Some(Item::Record { offset, bytes, opened }));
            }
            self.offset += 1;
        }
        Ok((from < self.limit).then_some(Item::Bad { from, to: self.limit }))
    }

    /// The whole record at an offset; `searching` when the one before it was none.
    async fn at(&mut self, offset: u64, of: Salted, searching: bool) -> io::Result<Option<(Bytes, Opened)>> {
        let left = usize::try_from(self.limit - offset).unwrap_or(usize::MAX);
        if left < PREFIX_LEN {
            return Ok(None);
        }
        let Some(len) = plausible_len(self.bytes(offset, PREFIX_LEN).await?, left) else { return Ok(None) };
        if searching && len > SHORT && self.spent > SPENT_MAX {
            return Ok(None);
        }
        let opened = open_record(self.bytes(offset, len).await?, seed_of(of, offset));
        if opened.is_none() {
            self.spent += len;
        }
        let from = usize::try_from(offset - self.window_start).expect("within the window");
        Ok(opened.map(|opened| (self.window.slice(from..from + len), opened)))
    }

    /// The bytes at `offset`, through a window, so that small records do not cost a read each.
    async fn bytes(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let from = usize::try_from(offset - self.window_start).unwrap_or(usize::MAX);
        if from.saturating_add(len) > self.window.len() {
            let left = usize::try_from(self.limit - offset).unwrap_or(usize::MAX);
            self.window = self.read(offset, left.min(len.max(WINDOW))).await?;
            self.window_start = offset;
        }
        let from = usize::try_from(offset - self.window_start).expect("within the window");
        Ok(&self.window[from..from + len])
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let error = match self.file.read_at(offset, len).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        // One bad sector must not take the window with it. Zeros are no record.
        let mut bytes = vec![0; len];
        let mut any = false;
        for (at, piece) in (0..len).step_by(PIECE).zip(bytes.chunks_mut(PIECE)) {
            if let Ok(read) = self.file.read_at(offset + at as u64, piece.len()).await {
                piece.copy_from_slice(&read);
                any = true;
            }
        }
        if any { Ok(bytes.into()) } else { Err(error) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::FutureExt;

    use super::super::format::{KIND_ENTRY, append_raw};
    use super::*;
    use crate::io::BoxFuture;

    /// Bytes that count how many of them are read.
    struct Counted {
        bytes: Bytes,
        read: AtomicU64,
    }

    impl File for Counted {
        fn size(&self) -> BoxFuture<'static, io::Result<u64>> {
            unreachable!("a walk knows how far it goes")
        }
        fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
            self.read.fetch_add(len as u64, Ordering::Relaxed);
            let from = usize::try_from(offset).unwrap();
            let bytes = self.bytes.slice(from..from + len);
            Box::pin(async move { Ok(bytes) })
        }
        fn write_at(&self, _: u64, _: Bytes) -> BoxFuture<'static, io::Result<()>> {
            unreachable!("a walk writes nothing")
        }
        fn set_len(&self, _: u64) -> BoxFuture<'static, io::Result<()>> {
            unreachable!("a walk cuts nothing")
        }
        fn sync_data(&self) -> BoxFuture<'static, io::Result<()>> {
            unreachable!("a walk syncs nothing")
        }
    }

    #[test]
    fn plausible_beginnings_that_a_client_wrote_cost_a_bounded_time() {
        // A beginning every 16 bytes, each of a record that reaches to the end: 100 GB of them.
        let (each, count) = (PREFIX_LEN, 120_000);
        let mut bytes = Vec::new();
        for n in 0..count {
            let len = u32::try_from((count - n) * each).unwrap();
            bytes.extend_from_slice(&(len - 4).to_le_bytes());
            bytes.extend_from_slice(&[0, 0, 0, 0, 1, 0, 1, 0]);
            bytes.extend_from_slice(&0_u32.to_le_bytes());
        }
        let of = Salted { id: 1, salt: 2 };
        let damage = bytes.len() as u64;
        let whole = append_raw(&mut bytes, seed_of(of, damage), KIND_ENTRY, b"body").unwrap();
        let limit = bytes.len() as u64;
        let file = Arc::new(Counted { bytes: bytes.into(), read: AtomicU64::default() });
        let mut walk = Walk::new(file.clone(), Some(of), 0, limit);
        let mut next = || walk.next().now_or_never().unwrap().unwrap();
        assert!(matches!(next(), Some(Item::Bad { from: 0, to }) if to == damage));
        assert!(matches!(next(), Some(Item::Record { bytes, .. }) if bytes.len() == whole));
        assert!(next().is_none());
        let (read, most) = (file.read.load(Ordering::Relaxed), 4 * SPENT_MAX as u64);
        assert!(read < most, "{read} bytes read, at most {most}");
    }
}
