//! One queue of the virtual interface, with its socket and packet memory.

use std::io;

use cyphonic_common::packet::ethernet::{ETHERNET_IPV6, ETHERNET_LEN};

use crate::netdevice;
use crate::xsk::{CopyMode, FramePool, FrameSize, Umem, UmemConfig, Xsk, XskConfig, XskError, XskRx, XskTx};

/// Packets that a ring between the kernel and a worker holds: 1 MiB of full-sized ones, 10 ms at 1 Gbit/s.
const RING_SIZE: u32 = 1024;
/// Frames for what applications send: a full ring of free ones, and a full ring of received ones.
const RECEIVING: u32 = 2 * RING_SIZE;
/// Frames for what is delivered to applications: a full ring.
const SENDING: u32 = RING_SIZE;

/// The two ends of the virtual interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethPair<'a> {
    /// The end that has the node's virtual address.
    pub near: &'a str,
    /// The end that the XDP program is attached to.
    pub far: &'a str,
}

/// Why a queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Packets of this size do not fit a frame.
    #[error("an MTU of {0} is too large for AF_XDP: lower it to 3500 or less, or use the offload ring")]
    MtuTooLarge(u16),
    /// An end of the pair is not there, or is no Ethernet device.
    #[error(
        "cannot ask for the link-layer address of {interface}: {source} (is it an end of a veth pair, here?)"
    )]
    Address {
        /// The interface.
        interface: String,
        /// The system's answer.
        source: io::Error,
    },
    /// AF_XDP refused.
    #[error(transparent)]
    Xsk(#[from] XskError),
}

/// A queue of the far end: 6 MiB of packet memory (12 MiB where the MTU is above 1,700), and its socket.
#[derive(Debug)]
pub struct XdpQueue {
    xsk: Xsk,
    receiving: FramePool,
    sending: FramePool,
    /// In front of every packet to an application.
    header: [u8; ETHERNET_LEN],
    mtu: u16,
}

/// What the sending worker gets: packets of applications.
pub(super) struct Receiving {
    pub(super) rx: XskRx,
    pub(super) pool: FramePool,
}

/// What the receiving worker gets.
pub(super) struct Sending {
    pub(super) tx: XskTx,
    pub(super) pool: FramePool,
    pub(super) header: [u8; ETHERNET_LEN],
    /// The largest packet that the near end takes.
    pub(super) mtu: u16,
}

impl XdpQueue {
    /// Opens `queue` of the far end, in the calling thread's network namespace, for inner packets of up to
    /// `mtu` bytes: the near end's MTU must be no less, or it drops without a word what it does not take.
    /// The program must be attached already.
    ///
    /// # Errors
    /// [`QueueError`], whose text says what to do.
    pub fn open(pair: VethPair<'_>, queue: u32, mtu: u16) -> Result<Self, QueueError> {
        let frame_size = FrameSize::for_packets_of(usize::from(mtu) + ETHERNET_LEN);
        let frame_size = frame_size.ok_or(QueueError::MtuTooLarge(mtu))?;
        let header = ethernet_header(pair)?;
        let (umem, mut receiving) =
            Umem::new(UmemConfig { frames: RECEIVING + SENDING, frame_size, huge_pages: false })?;
        let sending = receiving.split(SENDING as usize);
        // veth has no zero-copy; asking for it would fail first and then copy.
        let config = XskConfig { ring_size: RING_SIZE, mode: CopyMode::Auto };
        let mut xsk = Xsk::open(&umem, pair.far, queue, config)?;
        xsk.rx.refill(&mut receiving, 0);
        Ok(Self { xsk, receiving, sending, header, mtu })
    }

    /// What the program's map takes.
    #[must_use]
    pub const fn socket(&self) -> &XskRx {
        &self.xsk.rx
    }

    /// Whether the driver puts packets directly into packet memory.
    #[must_use]
    pub const fn is_zero_copy(&self) -> bool {
        self.xsk.zero_copy
    }

    pub(super) fn into_halves(self) -> (Receiving, Sending) {
        let Self { xsk, receiving, sending, header, mtu } = self;
        (Receiving { rx: xsk.rx, pool: receiving }, Sending { tx: xsk.tx, pool: sending, header, mtu })
    }
}

/// From the far end to the near one: the host takes only frames with its own address.
fn ethernet_header(pair: VethPair<'_>) -> Result<[u8; ETHERNET_LEN], QueueError> {
    let mut header = [0; ETHERNET_LEN];
    header[..6].copy_from_slice(&link_address(pair.near)?);
    header[6..12].copy_from_slice(&link_address(pair.far)?);
    header[12..].copy_from_slice(&ETHERNET_IPV6);
    Ok(header)
}

fn link_address(interface: &str) -> Result<[u8; 6], QueueError> {
    let failed = |source| QueueError::Address { interface: interface.to_owned(), source };
    netdevice::link_address(interface).map_err(failed)
}
