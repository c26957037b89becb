//! What tunnels bring, into the far end's socket.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cyphonic_common::DropReason;
use cyphonic_common::packet::ethernet::ETHERNET_LEN;

use super::queue::Sending;
use crate::gso::Slot;
use crate::ring::counters::Counters;
use crate::ring::device::Delivery;
use crate::xsk::{FramePool, HEADROOM, Umem, XskTx};

/// The pause while the host takes no packets.
const PAUSE: Duration = Duration::from_millis(1);
/// The same while the interface is down.
const PAUSE_WHILE_DOWN: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct XskDelivery {
    tx: XskTx,
    umem: Umem,
    pool: FramePool,
    header: [u8; ETHERNET_LEN],
    /// The largest packet that the near end takes; it would drop larger ones uncounted.
    mtu: usize,
    /// Packets since the last system call that took any.
    queued: u64,
    /// The last system call was refused. What was queued by then stays so; nothing is added.
    is_down: bool,
}

impl XskDelivery {
    pub(super) fn new(parts: Sending) -> Self {
        let Sending { tx, pool, header, mtu } = parts;
        let umem = tx.umem().clone();
        Self { tx, umem, pool, header, mtu: usize::from(mtu), queued: 0, is_down: false }
    }

    /// Copies a packet into a frame that leaves with the next flush.
    #[inline]
    fn queue(&mut self, packet: &[u8], counters: &Counters) -> Result<(), DropReason> {
        if packet.len() > self.mtu {
            return Err(DropReason::TooBig);
        }
        if self.is_down {
            return Err(DropReason::InterfaceFailed);
        }
        if self.pool.is_empty() {
            self.send(counters);
        }
        let mut frame = self.pool.take().ok_or(DropReason::QueueFull)?;
        if !frame.set_packet(HEADROOM, ETHERNET_LEN + packet.len()) {
            self.pool.put(frame);
            return Err(DropReason::TooBig);
        }
        if let Some((header, place)) = self.umem.packet_mut(&mut frame).split_first_chunk_mut() {
            *header = self.header;
            place.copy_from_slice(packet);
        }
        match self.tx.push(frame) {
            Ok(()) => {
                self.queued += 1;
                Ok(())
            }
            Err(frame) => {
                self.pool.put(frame);
                Err(DropReason::QueueFull)
            }
        }
    }

    /// Has the kernel deliver what is queued, and takes back the frames it is done with.
    fn send(&mut self, counters: &Counters) {
        self.is_down = self.tx.flush().is_err();
        if !self.is_down {
            // What the kernel has not taken yet leaves with the next call.
            counters.rx_packets.fetch_add(std::mem::take(&mut self.queued), Relaxed);
        }
        counters.rx_writes.fetch_add(1, Relaxed);
        self.tx.complete(&mut self.pool);
    }
}

impl Delivery for XskDelivery {
    #[inline]
    fn push(&mut self, _: Slot, packet: &[u8], counters: &Counters) {
        if let Err(reason) = self.queue(packet, counters) {
            counters.count_drop(reason, 1);
        }
    }

    #[inline]
    fn flush<'b>(&mut self, _: impl Fn(Slot) -> &'b [u8], counters: &Counters) {
        if self.queued > 0 || self.tx.pending() > 0 || self.is_down {
            self.send(counters);
        }
    }

    fn deliver(&mut self, packet: &[u8], counters: &Counters) {
        match self.queue(packet, counters) {
            Ok(()) => {
                // It came out of no tunnel.
                self.queued -= 1;
                self.send(counters);
            }
            Err(reason) => counters.count_drop(reason, 1),
        }
    }

    fn behind(&mut self) -> Option<Duration> {
        let pause = if self.is_down { PAUSE_WHILE_DOWN } else { PAUSE };
        (self.tx.pending() > 0 || self.is_down).then_some(pause)
    }
}
