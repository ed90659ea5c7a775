//! A file's bytes in pages that copies share, and the marks that tell where a fault has changed them.

use std::sync::Arc;

use super::fault::{Hit, Ledger};

/// Bytes of a page: what one copy-on-write copies, and what one eviction or failed sync is about.
pub(super) const PAGE: usize = 4096;

/// Bytes of a file. A clone copies one pointer a page; a write copies the pages that it touches.
#[derive(Clone, Default)]
pub(super) struct Content {
    /// May end before the file does; what is missing reads as zeros.
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
    len: usize,
}

impl Content {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The bytes of a range, ending where the file ends.
    pub(super) fn read(&self, from: usize, to: usize) -> Vec<u8> {
        let to = to.min(self.len);
        let mut bytes = Vec::with_capacity(to.saturating_sub(from));
        let mut at = from;
        while at < to {
            let within = at % PAGE;
            let n = (PAGE - within).min(to - at);
            match self.pages.get(at / PAGE).and_then(Option::as_ref) {
                Some(page) => bytes.extend_from_slice(&page[within..within + n]),
                None => bytes.resize(bytes.len() + n, 0),
            }
            at += n;
        }
        bytes
    }

    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = at + bytes.len();
        if self.pages.len() < end.div_ceil(PAGE) {
            self.pages.resize(end.div_ceil(PAGE), None);
        }
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let within = at % PAGE;
            let (part, behind) = rest.split_at((PAGE - within).min(rest.len()));
            let page = self.pages[at / PAGE].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + part.len()].copy_from_slice(part);
            (at, rest) = (at + part.len(), behind);
        }
        self.len = self.len.max(end);
    }

    pub(super) fn set_len(&mut self, len: usize) {
        if len < self.len {
            self.pages.truncate(len.div_ceil(PAGE));
            if !len.is_multiple_of(PAGE)
                && let Some(Some(last)) = self.pages.get_mut(len / PAGE)
            {
                Arc::make_mut(last)[len % PAGE..].fill(0);
            }
        }
        self.len = len;
    }
}

/// What a fault has done to a range.
#[derive(Clone)]
pub(super) enum What {
    /// Without the fault the range would read as it does here. Compared when it is read, so a fault that
    /// changed nothing is never counted as effective.
    Meant(Arc<Content>),
    /// A read fails.
    Unreadable,
}

#[derive(Clone)]
struct Mark {
    from: usize,
    to: usize,
    hit: Hit,
    what: What,
}

/// A file's bytes on the medium, or as the page cache shows them, each with its marks.
#[derive(Clone, Default)]
pub(super) struct Layer {
    pub(super) content: Arc<Content>,
    marks: Vec<Mark>,
    /// The length that the file would have without the fault.
    len_marks: Vec<(Hit, usize)>,
}

impl Layer {
    pub(super) fn len(&self) -> usize {
        self.content.len()
    }

    /// Writes; what a fault did to the range is over.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        let before = self.len();
        Arc::make_mut(&mut self.content).write(at, bytes);
        self.unmark(at, at + bytes.len());
        if self.len() != before {
            self.len_marks.clear();
        }
    }

    pub(super) fn set_len(&mut self, len: usize) {
        Arc::make_mut(&mut self.content).set_len(len);
        self.unmark(len, usize::MAX);
        self.len_marks.clear();
    }

    fn unmark(&mut self, from: usize, to: usize) {
        if !self.marks.iter().any(|mark| mark.from < to && from < mark.to) {
            return;
        }
        let cut = std::mem::take(&mut self.marks).into_iter().flat_map(|mark| {
            let before = Mark { to: mark.to.min(from), ..mark.clone() };
            let behind = Mark { from: mark.from.max(to), ..mark };
            [before, behind]
        });
        self.marks = cut.filter(|mark| mark.from < mark.to).collect();
    }

    pub(super) fn mark(&mut self, from: usize, to: usize, hit: Hit, what: What) {
        if from < to {
            self.marks.push(Mark { from, to, hit, what });
        }
    }

    pub(super) fn mark_len(&mut self, hit: Hit, meant: usize) {
        if meant != self.len() {
            self.len_marks.push((hit, meant));
        }
    }

    /// A read of the range takes place: counts the faults that it sees. False when it fails.
    pub(super) fn see(&mut self, from: usize, to: usize, ledger: &mut Ledger) -> bool {
        if self.marks.is_empty() {
            return true;
        }
        let mut readable = true;
        for mark in self.marks.iter().filter(|mark| mark.from < to && from < mark.to) {
            let (from, to) = (mark.from.max(from), mark.to.min(to));
            match &mark.what {
                What::Unreadable => {
                    ledger.saw(mark.hit);
                    readable = false;
                }
                What::Meant(meant) => {
                    if ledger.is_unseen(mark.hit) && meant.read(from, to) != self.content.read(from, to) {
                        ledger.saw(mark.hit);
                    }
                }
            }
        }
        self.marks.retain(|mark| matches!(mark.what, What::Unreadable) || ledger.is_unseen(mark.hit));
        readable
    }

    /// The length is asked for: counts the faults that changed it.
    pub(super) fn see_len(&mut self, ledger: &mut Ledger) {
        for (hit, _) in self.len_marks.drain(..) {
            ledger.saw(hit);
        }
    }
}
