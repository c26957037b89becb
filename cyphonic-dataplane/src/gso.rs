//! Super-packets: cutting them on the way out, joining them on the way in.
//!
//! The kernel moves up to 64 KiB of one flow under one header and leaves segmentation and checksums to the
//! device (virtio 1.2 §5.1.6). This tunnel is the device: [`SuperPacket`] cuts what an application sent into
//! the packets that travel, each with its own sequence number, flags, length and checksum; [`Coalescer`]
//! finds consecutive packets of a flow among what arrived and hands them to the kernel as one super-packet
//! again.
//!
//! Invariants:
//! * Cutting, then joining, gives back the super-packet bit for bit (but for its checksum, left to the
//!   kernel).
//! * Only packets whose own checksum verifies are joined, so that joining never hides corruption.
//! * The packets of one flow keep their order.

mod checksum;
mod coalesce;
mod split;
mod vnet;

pub(crate) use checksum::Sum;
pub(crate) use coalesce::{Coalescer, Slot};
pub(crate) use split::SuperPacket;
#[cfg(feature = "bench")]
pub(crate) use vnet::GsoKind;
pub(crate) use vnet::{VNET_HEADER_LEN, VnetHeader};

/// The two bytes at `at`, in network byte order.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes)
}

/// The four bytes at `at`, in network byte order.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes)
}

/// Overwrites bytes at `at`; `None`, and nothing written, if they do not fit.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..at + value.len())?.copy_from_slice(value);
    Some(())
}
