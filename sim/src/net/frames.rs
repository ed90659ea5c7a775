//! Which frames begin in the bytes of one direction of a connection: enough of the envelope to tell their kinds.
//!
//! Nothing is checked. Bytes that are no frames (a client that speaks another protocol) give kinds that nobody asked for.

/// Length, checksum, kind: the beginning of the envelope.
const HEAD: usize = 10;
/// What the length field does not count: itself.
const UNCOUNTED: usize = 4;

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD],
    /// Bytes of the head that have come.
    have: usize,
    /// Bytes of the frame behind its head that have not come.
    left: usize,
}

impl Frames {
    /// The kinds of the frames whose heads are whole with these bytes.
    pub(super) fn begun(&mut self, mut bytes: &[u8]) -> Vec<u16> {
        let mut kinds = Vec::new();
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                (self.left, bytes) = (self.left - passed, &bytes[passed..]);
                continue;
            }
            let taken = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            (self.have, bytes) = (self.have + taken, &bytes[taken..]);
            if self.have == HEAD {
                let [a, b, c, d, _, _, _, _, low, high] = self.head;
                kinds.push(u16::from_le_bytes([low, high]));
                let len = u32::from_le_bytes([a, b, c, d]) as usize;
                (self.have, self.left) = (0, (len + UNCOUNTED).saturating_sub(HEAD));
            }
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use ringdove::net::envelope::{Frame, FrameHead};

    use super::*;

    #[test]
    fn frames_are_told_apart_however_the_bytes_are_cut() {
        let frame = |kind, len| {
            let head = FrameHead { kind, ..FrameHead::default() };
            Frame { head, body: vec![7; len].into() }.encode()
        };
        let kinds = [0x0202, 0x8202, 0x0101, 0x0202];
        let bytes: Vec<u8> =
            kinds.iter().zip([0, 5, 1000, 3]).flat_map(|(kind, len)| frame(*kind, len)).collect();
        for step in 1..bytes.len() {
            let mut frames = Frames::default();
            let seen: Vec<u16> = bytes.chunks(step).flat_map(|part| frames.begun(part)).collect();
            assert_eq!(seen, kinds, "in parts of {step}");
        }
    }
}
