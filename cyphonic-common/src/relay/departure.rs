//! How a frame leaves: its new headers, and the checksum that follows from the old one.

use super::address::{Address, Sum};
use super::arrival::Arrival;
use super::forward::{Frame, Hop};
use super::leg::PackedLeg;
use super::map::{Family, PassReason};
use crate::packet::ethernet::{ETHERNET_IPV4, ETHERNET_IPV6, ETHERNET_LEN};
use crate::packet::ip::{IPV4_DONT_FRAGMENT, IPV4_HEADER_LEN, IPV4_PLAIN, IPV6_HEADER_LEN};
use crate::packet::protocol;
use crate::packet::udp::UDP_HEADER_LEN;

/// Where the connection ID begins, behind the UDP header and the packet's first byte.
const CID_OFFSET: usize = UDP_HEADER_LEN + 1;
/// As QUIC demands (RFC 9000 §14).
const DONT_FRAGMENT: [u8; 2] = IPV4_DONT_FRAGMENT.to_be_bytes();

/// A packet's new addresses. Words are as they lie in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    /// IP version.
    pub family: Family,
    /// One of the relay's addresses.
    pub source: Address,
    /// The relay's port.
    pub source_port: u16,
    /// The receiver's address.
    pub destination: Address,
    /// The receiver's port.
    pub destination_port: u16,
    /// The receiver's connection ID.
    pub cid: u64,
    /// DSCP and ECN, as they came.
    pub traffic_class: u8,
    /// Bytes of the packet with its IP header.
    pub ip_len: u16,
}

impl Departure {
    /// How a packet that came in by `arrival` leaves on `leg`, from the relay's address `source` or, if that
    /// is the unspecified one, from where it came to.
    ///
    /// # Errors
    /// Why it is userspace's to forward.
    #[inline(always)]
    pub fn new(
        arrival: &Arrival,
        leg: &PackedLeg,
        mut source: Address,
        port: [u8; 2],
    ) -> Result<Self, PassReason> {
        let family = leg.to_family();
        if source.is_unspecified() {
            if family as u32 != arrival.origin.family as u32 || !arrival.origin.destination.is_unicast(family)
            {
                return Err(PassReason::NoSource);
            }
            source = arrival.origin.destination;
        }
        let header = match family {
            Family::V4 => IPV4_HEADER_LEN,
            Family::V6 => IPV6_HEADER_LEN,
        };
        let ip_len = u32::from(u16::from_be(arrival.udp_len)) + header as u32;
        if ip_len > 0xffff {
            return Err(PassReason::TooBig);
        }
        let (to, to_port) = leg.to();
        Ok(Self {
            family,
            source,
            source_port: u16::from_ne_bytes(port),
            destination: Address::from_bytes(to),
            destination_port: u16::from_ne_bytes(to_port),
            cid: leg.real_cid(),
            traffic_class: arrival.traffic_class,
            ip_len: ip_len as u16,
        })
    }

    /// By how many bytes the frame's start moves forward, as `bpf_xdp_adjust_head` counts: the headers behind
    /// Ethernet's get shorter by that, or longer where it is negative.
    #[inline(always)]
    pub const fn head_shift(&self, arrival: &Arrival) -> i32 {
        match (arrival.origin.family, self.family) {
            (Family::V4, Family::V6) => IPV4_HEADER_LEN as i32 - IPV6_HEADER_LEN as i32,
            (Family::V6, Family::V4) => IPV6_HEADER_LEN as i32 - IPV4_HEADER_LEN as i32,
            (Family::V4, Family::V4) | (Family::V6, Family::V6) => 0,
        }
    }

    /// The new UDP checksum, from the old one and what changes under it (RFC 1624 §3): addresses, ports and
    /// connection ID. Length and protocol of the pseudo header are the same in both IP versions. A
    /// missing checksum stays missing.
    #[inline(always)]
    pub const fn checksum(&self, arrival: &Arrival) -> u16 {
        if arrival.checksum == 0 {
            return 0;
        }
        // The ID starts at an odd offset, so the bytes of its sum are exchanged (RFC 1071 §2).
        let cid = Sum::of_word(0).plus_u64(self.cid).minus_u64(arrival.cid).with_bytes_exchanged();
        // The old destination port is the new source port.
        let sum = cid
            .plus_word(!arrival.checksum)
            .plus_word(self.destination_port)
            .minus_word(arrival.origin.source_port)
            .plus_address(self.source)
            .plus_address(self.destination)
            .minus_addresses(arrival.addresses);
        match !sum.fold() {
            // 0 would say that there is none (RFC 768).
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// Writes all headers and the connection ID. The frame's start has moved already. `None` where the frame
    /// is too short, which reading it has ruled out. What lies last is written first: where there is room for
    /// it, the compiler need not ask again for the rest.
    #[inline(always)]
    pub fn write<F: Frame + ?Sized>(&self, frame: &mut F, arrival: &Arrival, hop: &Hop) -> Option<()> {
        match self.family {
            Family::V4 => self.write_ipv4(frame, arrival, hop),
            Family::V6 => self.write_ipv6(frame, arrival, hop),
        }
    }

    #[inline(always)]
    fn write_ipv4<F: Frame + ?Sized>(&self, frame: &mut F, arrival: &Arrival, hop: &Hop) -> Option<()> {
        // A packet that is never fragmented needs no identification (RFC 6864 §4.1).
        let [_, _, i0, i1] = match arrival.origin.family {
            Family::V4 => arrival.label.to_be_bytes(),
            Family::V6 => [0; 4],
        };
        let [l0, l1] = self.ip_len.to_be_bytes();
        let [f0, f1] = DONT_FRAGMENT;
        let first = u64::from_ne_bytes([IPV4_PLAIN, self.traffic_class, l0, l1, i0, i1, f0, f1]);
        let hops = [arrival.hop_limit.saturating_sub(1), protocol::UDP];
        let (source, destination) = (self.source.to_v4(), self.destination.to_v4());
        let sum = Sum::of_word(u16::from_ne_bytes(hops))
            .plus_u64(first)
            .plus_u32(u32::from_ne_bytes(source))
            .plus_u32(u32::from_ne_bytes(destination));
        frame.write(ETHERNET_LEN + IPV4_HEADER_LEN + CID_OFFSET, self.cid.to_ne_bytes())?;
        hop.write(frame, ETHERNET_IPV4)?;
        frame.write(ETHERNET_LEN, first.to_ne_bytes())?;
        frame.write(ETHERNET_LEN + 8, hops)?;
        frame.write(ETHERNET_LEN + 10, (!sum.fold()).to_ne_bytes())?;
        frame.write(ETHERNET_LEN + 12, source)?;
        frame.write(ETHERNET_LEN + 16, destination)?;
        self.write_udp(frame, ETHERNET_LEN + IPV4_HEADER_LEN, arrival)
    }

    #[inline(always)]
    fn write_ipv6<F: Frame + ?Sized>(&self, frame: &mut F, arrival: &Arrival, hop: &Hop) -> Option<()> {
        // A flow label is a hint; from IPv4 there is none to take over (RFC 7915 §4.1).
        let label = match arrival.origin.family {
            Family::V4 => 0,
            Family::V6 => arrival.label,
        };
        let flow = 6 << 28 | u32::from(self.traffic_class) << 20 | label;
        let [l0, l1] = arrival.udp_len.to_ne_bytes();
        let hop_limit = arrival.hop_limit.saturating_sub(1);
        frame.write(ETHERNET_LEN + IPV6_HEADER_LEN + CID_OFFSET, self.cid.to_ne_bytes())?;
        hop.write(frame, ETHERNET_IPV6)?;
        frame.write(ETHERNET_LEN, flow.to_be_bytes())?;
        frame.write(ETHERNET_LEN + 4, [l0, l1, protocol::UDP, hop_limit])?;
        frame.write(ETHERNET_LEN + 8, self.source.to_bytes())?;
        frame.write(ETHERNET_LEN + 24, self.destination.to_bytes())?;
        self.write_udp(frame, ETHERNET_LEN + IPV6_HEADER_LEN, arrival)
    }

    /// The length stands there already.
    #[inline(always)]
    fn write_udp<F: Frame + ?Sized>(&self, frame: &mut F, at: usize, arrival: &Arrival) -> Option<()> {
        let [s0, s1] = self.source_port.to_ne_bytes();
        let [d0, d1] = self.destination_port.to_ne_bytes();
        frame.write(at, [s0, s1, d0, d1])?;
        frame.write(at + 6, self.checksum(arrival).to_ne_bytes())
    }
}
