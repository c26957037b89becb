//! Which frames go to AF_XDP sockets, and to which of them.
//!
//! Two interfaces have XDP programs in front of sockets. On the far end of the virtual interface, a frame is
//! what an application sends: [`judge_virtual`] decides as the classifier does, and everything that may leave
//! goes to the socket. On the underlay, a frame may be anybody's: [`steer_underlay`] takes out the tunnels'
//! data packets and leaves everything else to the kernel's stack, untouched.
//!
//! The stack would check more, so here is what is checked instead. IPv4's header checksum is: nothing else
//! covers the addresses and the ECN field. UDP's checksum is not, and cannot be: what another namespace or
//! virtual machine of this host sends has only the pseudo header's part of it, for a card that it never
//! passes. It would add nothing: the packet's authentication tag covers every byte of the payload, a port or
//! an IPv6 address changed on the way at most starts the validation of a path that does not exist, and a
//! changed IPv6 ECN field costs one congestion signal. The host's packet filter does not see these packets;
//! only who knows a connection ID of a tunnel that stands reaches its socket, and only who has the tunnel's
//! keys gets any further.

use crate::buffer::Buffer;
use crate::cid::ConnectionId;
use crate::classify::{Egress, PeerTable, judge_egress, judge_ingress};
use crate::drop_reason::DropReason;
use crate::map::{InterfaceConfig, MAX_WORKERS};
use crate::packet::ethernet::{ETHERNET_IPV4, ETHERNET_IPV6, ETHERNET_LEN};
use crate::packet::ip::{IPV4_FRAGMENT, IPV4_HEADER_LEN, IPV4_PLAIN, IPV6_HEADER_LEN};
use crate::packet::protocol;
use crate::packet::udp::UDP_HEADER_LEN;
use crate::policy::{FlowTable, PolicyTable};
use crate::quic::{DatagramKind, MIN_DATA_PACKET, classify_datagram_at};

/// Names in the object file.
pub mod name {
    /// The XDP program on the far end of the virtual interface.
    pub const VIRTUAL: &str = "cyphonic_veth";
    /// The XDP program on a network card.
    pub const UNDERLAY: &str = "cyphonic_underlay";
    /// Array with one [`UnderlayConfig`](super::UnderlayConfig).
    pub const CONFIG: &str = "UNDERLAY";
    /// Hash of [`socket_index`](super::socket_index)'s slots by the number of the network card that has it.
    pub const CARDS: &str = "CARDS";
    /// Sockets by queue of the virtual interface.
    pub const VIRTUAL_SOCKETS: &str = "XSKS_VIRTUAL";
    /// Sockets by [`socket_index`](super::socket_index).
    pub const UNDERLAY_SOCKETS: &str = "XSKS_UNDERLAY";
}

/// Queues of an interface that may have sockets. Frames of further queues go to the stack.
pub const MAX_QUEUES: u32 = 64;
/// Network cards that may have sockets at a time. Frames of further cards go to the stack.
pub const MAX_CARDS: u32 = 8;
/// Places for sockets on the underlay.
pub const UNDERLAY_SOCKETS: u32 = MAX_CARDS * MAX_QUEUES * MAX_WORKERS;

/// The place of a worker's socket on a queue of the card that has this slot: a socket takes only frames of
/// the card and the queue it is bound to, and the kernel drops others. `None` where there is no such place.
#[inline(always)]
pub const fn socket_index(slot: u32, queue: u32, worker: u32) -> Option<u32> {
    if slot < MAX_CARDS && queue < MAX_QUEUES && worker < MAX_WORKERS {
        Some((slot * MAX_QUEUES + queue) * MAX_WORKERS + worker)
    } else {
        None
    }
}

/// What the program on the underlay must know. All zero (as the kernel makes it) is "not configured":
/// everything passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UnderlayConfig {
    port: [u8; 2],
    reserved: [u8; 2],
}

const _: () = assert!(size_of::<UnderlayConfig>() == 4);

impl UnderlayConfig {
    /// For the node's UDP port.
    #[must_use]
    pub const fn new(port: u16) -> Self {
        Self { port: port.to_be_bytes(), reserved: [0; 2] }
    }
}

/// A packet from `offset` of another on.
struct Behind<'a, B: ?Sized> {
    buffer: &'a B,
    offset: usize,
}

impl<B: Buffer + ?Sized> Buffer for Behind<'_, B> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.buffer.len().saturating_sub(self.offset)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.buffer.read(self.offset.checked_add(offset)?)
    }
}

/// Decides on a frame that an application sent through a virtual interface with an Ethernet header.
#[inline(always)]
pub fn judge_virtual<B, T>(frame: &B, config: &InterfaceConfig, tables: &T) -> Egress
where
    B: Buffer + ?Sized,
    T: PeerTable + PolicyTable + FlowTable + ?Sized,
{
    match frame.read::<2>(ETHERNET_LEN - 2) {
        Some(ETHERNET_IPV6) => judge_egress(&Behind { buffer: frame, offset: ETHERNET_LEN }, config, tables),
        Some(ETHERNET_IPV4) => Egress::Drop(DropReason::NotIpv6),
        // Whatever else an Ethernet interface emits by itself.
        Some(_) => Egress::Drop(DropReason::LocalNoise),
        None => Egress::Drop(DropReason::Truncated),
    }
}

/// Decides on a frame that userspace sent to the near end of the virtual interface: a packet out of a tunnel,
/// or one that userspace made itself.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn judge_near_end<B, T>(frame: &B, config: &InterfaceConfig, tables: &T) -> Result<(), DropReason>
where
    B: Buffer + ?Sized,
    T: PeerTable + PolicyTable + FlowTable + ?Sized,
{
    match frame.read::<2>(ETHERNET_LEN - 2) {
        Some(ETHERNET_IPV6) => judge_ingress(&Behind { buffer: frame, offset: ETHERNET_LEN }, config, tables),
        _ => Err(DropReason::MalformedInner),
    }
}

/// The data connection ID of a frame that carries a tunnel's packet to this node's port. `None` for
/// everything else: for signalling, other ports, fragments, packets with IP options or extension headers,
/// VLAN tags, anything malformed.
///
/// Whether the connection ID is one of the node's, its tables must tell.
#[inline(always)]
pub fn steer_underlay<B: Buffer + ?Sized>(frame: &B, config: &UnderlayConfig) -> Option<ConnectionId> {
    let udp_len = match frame.read::<2>(ETHERNET_LEN - 2)? {
        ETHERNET_IPV4 => ipv4(frame)?,
        ETHERNET_IPV6 => ipv6(frame)?,
        _ => return None,
    };
    // The offsets are written out, so that they are constants for the verifier.
    match udp_len {
        Carried::V4(len) => data_packet(frame, ETHERNET_LEN + IPV4_HEADER_LEN, len, config),
        Carried::V6(len) => data_packet(frame, ETHERNET_LEN + IPV6_HEADER_LEN, len, config),
    }
}

/// Bytes that an IP header promises behind it.
enum Carried {
    V4(usize),
    V6(usize),
}

#[inline(always)]
fn ipv4<B: Buffer + ?Sized>(frame: &B) -> Option<Carried> {
    let header = frame.read::<IPV4_HEADER_LEN>(ETHERNET_LEN)?;
    let [version, _, l0, l1, _, _, f0, f1, _, protocol, ..] = header;
    let fragment = u16::from_be_bytes([f0, f1]) & IPV4_FRAGMENT != 0;
    if version != IPV4_PLAIN || fragment || protocol != protocol::UDP || !is_whole(&header) {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([l0, l1])).checked_sub(IPV4_HEADER_LEN)?;
    Some(Carried::V4(len))
}

/// Whether an IPv4 header is as its sender made it: with its checksum, its words add up to all ones (RFC 1071
/// §1).
#[inline(always)]
fn is_whole(header: &[u8; IPV4_HEADER_LEN]) -> bool {
    let (words, _) = header.as_chunks::<2>();
    // Ten words of 16 bits: the carries fit, and adding them in twice is enough. The order of bytes does not
    // matter.
    let sum = words.iter().fold(0, |sum, word| sum + u32::from(u16::from_ne_bytes(*word)));
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

#[inline(always)]
fn ipv6<B: Buffer + ?Sized>(frame: &B) -> Option<Carried> {
    let [version, _, _, _, l0, l1, next_header] = frame.read::<7>(ETHERNET_LEN)?;
    if version >> 4 != 6 || next_header != protocol::UDP {
        return None;
    }
    Some(Carried::V6(usize::from(u16::from_be_bytes([l0, l1]))))
}

#[inline(always)]
fn data_packet<B: Buffer + ?Sized>(
    frame: &B,
    offset: usize,
    carried: usize,
    config: &UnderlayConfig,
) -> Option<ConnectionId> {
    let [_, _, d0, d1, l0, l1, _, _] = frame.read::<UDP_HEADER_LEN>(offset)?;
    let udp_len = usize::from(u16::from_be_bytes([l0, l1]));
    // A frame may be padded, but UDP has the length that IP says, and one that can be opened at all.
    let sound = udp_len == carried && udp_len >= UDP_HEADER_LEN + MIN_DATA_PACKET;
    if [d0, d1] != config.port || config.port == [0; 2] || !sound || frame.len() < offset + udp_len {
        return None;
    }
    match classify_datagram_at(frame, offset + UDP_HEADER_LEN) {
        DatagramKind::Data(cid) => Some(cid),
        DatagramKind::Signalling | DatagramKind::NotQuic => None,
    }
}

#[cfg(test)]
mod tests;
