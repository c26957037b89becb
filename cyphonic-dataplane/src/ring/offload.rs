//! The offload ring: TUN super-packets on one side, UDP segmentation and receive offload on the other, a
//! worker for each direction.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cyphonic_common::DropReason;

use super::counters::Counters;
use super::device::{Delivery, Source};
use super::workers::{Ring, RingConfig, Side};
use super::{RingError, RingKind};
use crate::gso::{Coalescer, Slot, VnetHeader};
use crate::tun::{MAX_READ, TunDevice};

/// Marks [`OffloadRing`].
#[derive(Debug)]
pub struct Offload(());

impl Side for Offload {
    const KIND: RingKind = RingKind::Offload;
}

/// The offload ring. Dropping it stops and joins its workers; the virtual interface is gone with its last
/// handle.
pub type OffloadRing = Ring<Offload>;

impl OffloadRing {
    /// Starts the workers, on a queue of the virtual interface.
    ///
    /// # Errors
    /// The addresses contradict each other, or the system refuses a thread or an eventfd. Nothing runs then.
    pub fn start(tun: TunDevice, config: RingConfig) -> Result<Self, RingError> {
        let source = TunSource { tun: tun.clone(), buffer: vec![0; MAX_READ].into_boxed_slice() };
        Self::with(config, source, TunDelivery::new(tun), Offload(()))
    }
}

/// Reads packets and super-packets.
struct TunSource {
    tun: TunDevice,
    buffer: Box<[u8]>,
}

impl Source for TunSource {
    const CHECK_INTERVAL: Option<Duration> = None;

    #[inline]
    fn read(&mut self) -> io::Result<Option<(VnetHeader, &[u8])>> {
        let len = self.tun.read(&mut self.buffer)?;
        Ok(VnetHeader::parse(self.buffer.get(..len).unwrap_or_default()))
    }

    fn check(&self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for TunSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

/// Joins the packets of a batch and writes them straight out of the receive buffers.
struct TunDelivery {
    tun: TunDevice,
    coalescer: Coalescer,
}

impl TunDelivery {
    fn new(tun: TunDevice) -> Self {
        let offloads = tun.offloads();
        Self { tun, coalescer: Coalescer::new(offloads.tcp, offloads.udp) }
    }
}

impl Delivery for TunDelivery {
    #[inline]
    fn push(&mut self, slot: Slot, packet: &[u8], _: &Counters) {
        self.coalescer.push(slot, packet);
    }

    #[inline]
    fn flush<'b>(&mut self, bytes: impl Fn(Slot) -> &'b [u8], counters: &Counters) {
        let (tun, mut writes) = (&self.tun, 0);
        self.coalescer.flush(bytes, |parts, packets| {
            writes += 1;
            match tun.write(parts) {
                Ok(_) => {
                    counters.rx_packets.fetch_add(packets, Relaxed);
                }
                Err(_) => counters.count_drop(DropReason::InterfaceFailed, packets),
            }
        });
        counters.rx_writes.fetch_add(writes, Relaxed);
    }

    fn deliver(&mut self, packet: &[u8], counters: &Counters) {
        let header = VnetHeader::PLAIN.encode();
        if self.tun.write(&[IoSlice::new(&header), IoSlice::new(packet)]).is_err() {
            counters.count_drop(DropReason::InterfaceFailed, 1);
        }
    }
}
