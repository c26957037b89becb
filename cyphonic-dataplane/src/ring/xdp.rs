//! The AF_XDP ring: the virtual interface is a veth pair, and packets go between its far end and the two
//! workers without the network stack between.
//!
//! ```text
//!   applications ── near end ═══ far end ── XDP program ──▶ socket ── worker ──▶ UDP port
//!                       ▲                                    socket ◀── worker ◀── UDP port
//!                       └──────────────── far end ◀───────────┘
//! ```
//!
//! Network cards can be added outside, whose programs give tunnels' packets to sockets of their own
//! ([`Underlay`]); the port goes on receiving the rest.
//!
//! Packets come one by one here, complete with their checksums: the near end has offloads off
//! ([`complete_checksums`](crate::netdevice::complete_checksums)). So bulk TCP has no super-packets, which
//! are what makes the [offload ring](super::OffloadRing) fast; what this ring is for is latency, and network
//! cards with native XDP.
//!
//! **Invariants.** The frames of the two directions do not mix, so each has memory whatever the other does. A
//! packet that finds no frame is dropped and counted; nothing waits for the host.

mod delivery;
mod queue;
mod source;
mod underlay;

use std::sync::Arc;

pub use queue::{QueueError, VethPair, XdpQueue};
pub use underlay::{Card, CardError, Underlay};

use self::delivery::XskDelivery;
use self::source::XskSource;
use self::underlay::{VIRTUAL, Watches};
use super::workers::{Ring, RingConfig, Side};
use super::{RingError, RingKind};

/// What [`XdpRing`] has besides its workers.
#[derive(Debug)]
pub struct Xdp {
    watches: Arc<Watches>,
}

impl Side for Xdp {
    const KIND: RingKind = RingKind::Xdp;

    fn dropped(&self) -> u64 {
        self.watches.dropped()
    }
}

/// The AF_XDP ring of one queue. Dropping it stops and joins its workers; the veth pair stays, it is its
/// maker's.
pub type XdpRing = Ring<Xdp>;

impl XdpRing {
    /// Starts the workers, on a queue of the virtual interface. Its socket must be in the program's map
    /// ([`Programs::set_virtual_socket`](crate::bpf::Programs::set_virtual_socket)), or nothing comes.
    ///
    /// # Errors
    /// The addresses contradict each other, or the system refuses a thread or an eventfd. Nothing runs then.
    pub fn start(queue: XdpQueue, config: RingConfig) -> Result<Self, RingError> {
        let watches = Arc::<Watches>::default();
        let watch = queue.socket().watch();
        watches
            .add(VIRTUAL, watch.map_err(|source| RingError::Io { doing: "watch an AF_XDP socket", source })?);
        let (receiving, sending) = queue.into_halves();
        Self::with(config, XskSource::new(receiving), XskDelivery::new(sending), Xdp { watches })
    }

    /// For adding network cards. Keep it no longer than the ring.
    pub fn underlay(&self) -> Underlay {
        let (rx, port) = self.receiving();
        Underlay::new(rx, port, Arc::clone(&self.side().watches))
    }
}
