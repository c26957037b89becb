//! Sealed packets that leave together: for one tunnel, of one size (the last may be shorter), with one ECN
//! field.

use cyphonic_common::limits::{MAX_UDP4_PAYLOAD, TUNNEL_OVERHEAD};

/// The most packets of one segmented send, the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9.
const MAX_PACKETS: u64 = 64;

/// A batch, reused for ever.
#[derive(Debug)]
pub(crate) struct Batch {
    buffer: Box<[u8]>,
    len: usize,
    sealed: Sealed,
    /// A shorter packet is in: it must stay the last.
    closed: bool,
}

/// What a batch holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed {
    pub(crate) tunnel: usize,
    pub(crate) ecn: u8,
    /// It goes to a relay.
    pub(crate) relayed: bool,
    pub(crate) stride: usize,
    pub(crate) packets: u64,
    pub(crate) inner_bytes: u64,
    /// Packets that are not the last piece of an inner packet.
    pub(crate) pieces: u64,
}

impl Sealed {
    /// Of an empty batch.
    pub(crate) const NONE: Self =
        Self { tunnel: 0, ecn: 0, relayed: false, stride: 0, packets: 0, inner_bytes: 0, pieces: 0 };

    /// The inner packets that left when the last packets were lost.
    pub(crate) fn inner_packets_without(&self, lost: u64) -> u64 {
        self.packets.saturating_sub(self.pieces).saturating_sub(lost)
    }

    /// The inner bytes that left when the last packets were lost, each taken to be of full size.
    pub(crate) fn inner_bytes_without(&self, lost: u64) -> u64 {
        let each = self.stride.saturating_sub(TUNNEL_OVERHEAD) as u64;
        self.inner_bytes.saturating_sub(lost.saturating_mul(each))
    }
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; MAX_UDP4_PAYLOAD].into_boxed_slice(),
            len: 0,
            sealed: Sealed::NONE,
            closed: false,
        }
    }

    /// Whether a packet may join. An empty batch takes any.
    pub(crate) fn takes(&self, tunnel: usize, ecn: u8, len: usize) -> bool {
        let sealed = &self.sealed;
        sealed.packets == 0
            || (!self.closed
                && sealed.tunnel == tunnel
                && sealed.ecn == ecn
                && len <= sealed.stride
                && self.len + len <= MAX_UDP4_PAYLOAD
                && sealed.packets < MAX_PACKETS)
    }

    /// The place where the next packet is to be written; `None` if it is too large for any datagram.
    pub(crate) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.buffer.get_mut(self.len..self.len + len)
    }

    /// Counts in the packet that was written there.
    pub(crate) fn commit(&mut self, tunnel: usize, ecn: u8, len: usize, inner: usize) {
        if self.sealed.packets == 0 {
            self.sealed = Sealed { tunnel, ecn, stride: len, ..Sealed::NONE };
        }
        self.closed = len < self.sealed.stride;
        self.sealed.packets += 1;
        self.sealed.inner_bytes += inner as u64;
        self.len += len;
    }

    /// The packet that was counted in last is a piece of an inner packet, with more to follow.
    pub(crate) fn more_follows(&mut self) {
        self.sealed.pieces += 1;
    }

    /// What is in it, if anything.
    pub(crate) fn take(&self) -> Option<Sealed> {
        (self.sealed.packets > 0).then_some(self.sealed)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.closed = false;
        self.sealed = Sealed::NONE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(batch: &mut Batch, tunnel: usize, ecn: u8, len: usize) -> bool {
        let takes = batch.takes(tunnel, ecn, len);
        if takes {
            assert_eq!(batch.room(len).unwrap().len(), len);
            batch.commit(tunnel, ecn, len, len - 30);
        }
        takes
    }

    #[test]
    fn only_the_last_packet_may_be_shorter() {
        let mut batch = Batch::new();
        assert!(add(&mut batch, 1, 0, 1000));
        assert!(!add(&mut batch, 1, 0, 1001), "none may be longer");
        assert!(add(&mut batch, 1, 0, 1000));
        assert!(add(&mut batch, 1, 0, 400));
        assert!(!add(&mut batch, 1, 0, 400), "nothing may follow the shorter one");
        let sealed = batch.take().unwrap();
        assert_eq!((sealed.stride, sealed.packets, batch.bytes().len()), (1000, 3, 2400));
        batch.clear();
        assert!(batch.take().is_none() && add(&mut batch, 2, 3, 5000));
    }

    #[test]
    fn tunnels_and_ecn_fields_do_not_mix() {
        let mut batch = Batch::new();
        assert!(add(&mut batch, 1, 2, 100));
        assert!(!add(&mut batch, 2, 2, 100));
        assert!(!add(&mut batch, 1, 3, 100));
    }

    #[test]
    fn packets_and_bytes_are_bounded() {
        let mut batch = Batch::new();
        assert_eq!((0..100).filter(|_| add(&mut batch, 1, 0, 100)).count(), 64);
        batch.clear();
        assert_eq!((0..100).filter(|_| add(&mut batch, 1, 0, 1450)).count(), 45);
        batch.clear();
        assert!(batch.room(MAX_UDP4_PAYLOAD + 1).is_none());
    }
}
