//! The NAT applied to packets: IPv4 to IPv4 (RFC 3022), and IPv6 to IPv4 where it has a prefix (RFC 6146, RFC
//! 7915).
//!
//! UDP, TCP, ICMP echo, and the ICMP errors about them. Transport checksums are adjusted, not computed anew,
//! so that a damaged packet stays one. What is not understood is dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use super::packet::{
    Header, ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, TCP, UDP, address_sum, adjusted, decode, encode, folded,
    pseudo_header_sum, set_word, sum, word,
};
use super::table::{Behaviour, Protocol, Table};

/// ICMP's fixed part; an error quotes the packet after it.
const ICMP_HEADER: usize = 8;
/// What an IPv6 header is longer than an IPv4 one.
pub(crate) const GROWTH: u16 = (IPV6_HEADER - IPV4_HEADER) as u16;
/// IPv6's least MTU (RFC 8200 §5).
const IPV6_MIN_MTU: u16 = 1_280;

/// ICMP types (RFC 792, RFC 4443).
mod icmp {
    pub(super) const ECHO_REPLY: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const ECHO: u8 = 8;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    /// Code of [`UNREACHABLE`].
    pub(super) const FRAGMENTATION_NEEDED: u8 = 4;
    pub(super) const V6_UNREACHABLE: u8 = 1;
    pub(super) const V6_TOO_BIG: u8 = 2;
    pub(super) const V6_TIME_EXCEEDED: u8 = 3;
    pub(super) const V6_ECHO: u8 = 128;
    pub(super) const V6_ECHO_REPLY: u8 = 129;
}

/// A translator between one external IPv4 address and the networks inside.
#[derive(Debug)]
pub struct Translator {
    table: Table,
    external: Ipv4Addr,
    inside: Vec<Ipv4Net>,
    prefix64: Option<Ipv6Net>,
}

impl Translator {
    /// One that translates to `external`. `inside` are the IPv4 networks behind it, and `prefix64` stands for
    /// all of IPv4 there (RFC 6052, 96 bits long).
    pub fn new(
        behaviour: Behaviour,
        external: Ipv4Addr,
        inside: Vec<Ipv4Net>,
        prefix64: Option<Ipv6Net>,
        seed: u64,
    ) -> Self {
        Self { table: Table::new(behaviour, seed), external, inside, prefix64 }
    }

    /// Translates a packet into `out`, which is emptied first. `None` if it is dropped.
    pub fn translate(&mut self, now: Duration, packet: &[u8], out: &mut Vec<u8>) -> Option<()> {
        out.clear();
        let (header, payload) = decode(packet, true)?;
        let from_outside = header.destination == IpAddr::V4(self.external)
            && matches!(header.source, IpAddr::V4(source) if !self.inside.iter().any(|net| net.contains(&source)));
        match (from_outside, is_error(&header, payload)) {
            (true, false) => self.inbound(now, &header, payload, out),
            (true, true) => self.inbound_error(now, &header, payload, out),
            (false, false) => self.outbound(now, &header, payload, out),
            (false, true) => self.outbound_error(now, &header, payload, out),
        }
    }

    fn outbound(&mut self, now: Duration, header: &Header, payload: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let (protocol, source, destination) = ports(header, payload)?;
        let (inside, remote) = (
            SocketAddr::new(header.source, source),
            SocketAddrV4::new(self.ipv4(header.destination)?, destination),
        );
        if *remote.ip() == self.external {
            if !self.table.hairpins() || protocol == Protocol::Echo {
                return None;
            }
            let port = self.table.outbound(now, protocol, inside, remote)?;
            let own = SocketAddrV4::new(self.external, port);
            let target = self.table.inbound(now, protocol, remote.port(), own)?;
            let source = SocketAddr::new(self.seen_by(target.ip(), self.external)?, port);
            return rewrite(header, payload, protocol, source, target, out);
        }
        let port = self.table.outbound(now, protocol, inside, remote)?;
        rewrite(header, payload, protocol, SocketAddr::new(self.external.into(), port), remote.into(), out)
    }

    fn inbound(&mut self, now: Duration, header: &Header, payload: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let (protocol, source, destination) = ports(header, payload)?;
        // The identifier of an echo is the same at both ends.
        let (source, external) = match protocol {
            Protocol::Echo => (0, source),
            Protocol::Udp | Protocol::Tcp => (source, destination),
        };
        let IpAddr::V4(address) = header.source else { return None };
        let inside = self.table.inbound(now, protocol, external, SocketAddrV4::new(address, source))?;
        let from = SocketAddr::new(self.seen_by(inside.ip(), address)?, source);
        rewrite(header, payload, protocol, from, inside, out)
    }

    /// Somebody outside could not forward or take a packet of ours.
    fn inbound_error(
        &mut self,
        now: Duration,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let (quoted, rest) = decode(payload.get(ICMP_HEADER..)?, false)?;
        let (protocol, source, destination) = ports(&quoted, rest)?;
        let destination = if protocol == Protocol::Echo { 0 } else { destination };
        let (IpAddr::V4(from), IpAddr::V4(to)) = (header.source, quoted.destination) else { return None };
        let remote = SocketAddrV4::new(to, destination);
        let inside = self.table.admitted(now, protocol, source, remote)?;
        let from = self.seen_by(inside.ip(), from)?;
        let to = SocketAddr::new(self.seen_by(inside.ip(), to)?, destination);
        let mut inner = Vec::with_capacity(payload.len() + IPV6_HEADER);
        rewrite(&quoted, rest, protocol, inside, to, &mut inner)?;
        error(header, payload, from, inside.ip(), &inner, out)
    }

    /// Somebody inside, or the router itself, could not take what had come in.
    fn outbound_error(
        &mut self,
        now: Duration,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let (quoted, rest) = decode(payload.get(ICMP_HEADER..)?, false)?;
        let (protocol, source, destination) = ports(&quoted, rest)?;
        if protocol == Protocol::Echo {
            return None;
        }
        let inside = SocketAddr::new(quoted.destination, destination);
        let remote = SocketAddrV4::new(self.ipv4(quoted.source)?, source);
        let port = self.table.external_port(now, protocol, inside, remote)?;
        let own = SocketAddr::new(self.external.into(), port);
        let mut inner = Vec::with_capacity(payload.len());
        rewrite(&quoted, rest, protocol, remote.into(), own, &mut inner)?;
        error(header, payload, self.external.into(), (*remote.ip()).into(), &inner, out)
    }

    /// The IPv4 address that one inside calls by `address`.
    fn ipv4(&self, address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(address) => {
                self.prefix64.filter(|prefix| prefix.contains(&address))?;
                address.octets().last_chunk::<4>().map(|last| Ipv4Addr::from(*last))
            }
        }
    }

    /// What one inside calls an IPv4 address.
    fn seen_by(&self, inside: IpAddr, address: Ipv4Addr) -> Option<IpAddr> {
        match inside {
            IpAddr::V4(_) => Some(address.into()),
            IpAddr::V6(_) => self.prefix64.map(|prefix| embed(prefix, address).into()),
        }
    }
}

/// An IPv4 address in a prefix of 96 bits (RFC 6052 §2.2).
pub(crate) fn embed(prefix: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    let prefix = u128::from(prefix.network()) & !u128::from(u32::MAX);
    Ipv6Addr::from(prefix | u128::from(u32::from(address)))
}

fn is_error(header: &Header, payload: &[u8]) -> bool {
    let first = payload.first().copied();
    match header.protocol {
        ICMP => !matches!(first, Some(icmp::ECHO | icmp::ECHO_REPLY)),
        ICMPV6 => !matches!(first, Some(icmp::V6_ECHO | icmp::V6_ECHO_REPLY)),
        _ => false,
    }
}

/// The protocol, source and destination port of what follows a header. An echo has its identifier as source.
fn ports(header: &Header, payload: &[u8]) -> Option<(Protocol, u16, u16)> {
    let protocol = match header.protocol {
        UDP => Protocol::Udp,
        TCP => Protocol::Tcp,
        ICMP | ICMPV6 if !is_error(header, payload) => return Some((Protocol::Echo, word(payload, 4)?, 0)),
        _ => return None,
    };
    Some((protocol, word(payload, 0)?, word(payload, 2)?))
}

/// Writes a packet with other endpoints, in the IP version of these.
fn rewrite(
    header: &Header,
    payload: &[u8],
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    out: &mut Vec<u8>,
) -> Option<()> {
    let v6 = source.is_ipv6();
    let number = match (protocol, v6) {
        (Protocol::Udp, _) => UDP,
        (Protocol::Tcp, _) => TCP,
        (Protocol::Echo, false) => ICMP,
        (Protocol::Echo, true) => ICMPV6,
    };
    let translated =
        Header { source: source.ip(), destination: destination.ip(), protocol: number, ..*header };
    encode(&translated, out)?;
    let start = out.len();
    out.extend_from_slice(payload);
    let body = out.get_mut(start..)?;
    if protocol == Protocol::Echo {
        let kind = body.first_mut()?;
        *kind = match (*kind, v6) {
            (icmp::ECHO | icmp::V6_ECHO, true) => icmp::V6_ECHO,
            (icmp::ECHO | icmp::V6_ECHO, false) => icmp::ECHO,
            (_, true) => icmp::V6_ECHO_REPLY,
            (_, false) => icmp::ECHO_REPLY,
        };
        // One end is inside, with an identifier; the other has none.
        set_word(body, 4, source.port().max(destination.port()))?;
        return complete_icmp(&translated, body);
    }
    let old = address_sum(header.source) + address_sum(header.destination) + sum(payload.get(..4)?);
    set_word(body, 0, source.port())?;
    set_word(body, 2, destination.port())?;
    let new = address_sum(source.ip()) + address_sum(destination.ip()) + sum(body.get(..4)?);
    let at = if protocol == Protocol::Udp { 6 } else { 16 };
    // A quoted packet may end before its checksum.
    let Some(checksum) = word(body, at) else { return Some(()) };
    let checksum = match (protocol, checksum) {
        (Protocol::Udp, 0) if !v6 => 0,
        // IPv6 wants the checksum that IPv4's sender had left out.
        (Protocol::Udp, 0) => !folded(pseudo_header_sum(&translated) + sum(body)),
        (_, checksum) => adjusted(checksum, old, new),
    };
    let absent = protocol == Protocol::Udp && checksum == 0 && word(payload, at) != Some(0);
    set_word(body, at, if absent { 0xffff } else { checksum })
}

/// Writes an error that quotes `inner`, in the IP version of its endpoints.
fn error(
    header: &Header,
    payload: &[u8],
    source: IpAddr,
    destination: IpAddr,
    inner: &[u8],
    out: &mut Vec<u8>,
) -> Option<()> {
    let (kind, code, value) = (*payload.first()?, *payload.get(1)?, word(payload, 6)?);
    let (protocol, kind, code, value) = match (header.source.is_ipv6(), destination.is_ipv6()) {
        (false, false) => (ICMP, kind, code, value),
        (true, true) => (ICMPV6, kind, code, value),
        (false, true) => error_to_v6(kind, code, value)?,
        (true, false) => error_to_v4(kind, code, value)?,
    };
    let length = u16::try_from(ICMP_HEADER + inner.len()).ok()?;
    let translated = Header { source, destination, protocol, length, dont_fragment: false, ..*header };
    encode(&translated, out)?;
    let start = out.len();
    out.extend_from_slice(&[kind, code, 0, 0, 0, 0]);
    out.extend_from_slice(&value.to_be_bytes());
    out.extend_from_slice(inner);
    complete_icmp(&translated, out.get_mut(start..)?)
}

/// RFC 7915 §4.2. The MTU grows by what the header does.
fn error_to_v6(kind: u8, code: u8, value: u16) -> Option<(u8, u8, u8, u16)> {
    let (kind, code, value) = match (kind, code) {
        (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED) => {
            (icmp::V6_TOO_BIG, 0, value.saturating_add(GROWTH).max(IPV6_MIN_MTU))
        }
        (icmp::UNREACHABLE, 3) => (icmp::V6_UNREACHABLE, 4, 0),
        (icmp::UNREACHABLE, 9 | 10 | 13) => (icmp::V6_UNREACHABLE, 1, 0),
        (icmp::UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => (icmp::V6_UNREACHABLE, 0, 0),
        (icmp::TIME_EXCEEDED, code) => (icmp::V6_TIME_EXCEEDED, code, 0),
        _ => return None,
    };
    Some((ICMPV6, kind, code, value))
}

/// RFC 7915 §5.2.
fn error_to_v4(kind: u8, code: u8, value: u16) -> Option<(u8, u8, u8, u16)> {
    let (kind, code, value) = match (kind, code) {
        (icmp::V6_TOO_BIG, _) => {
            (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, value.saturating_sub(GROWTH))
        }
        (icmp::V6_UNREACHABLE, 4) => (icmp::UNREACHABLE, 3, 0),
        (icmp::V6_UNREACHABLE, 1) => (icmp::UNREACHABLE, 10, 0),
        (icmp::V6_UNREACHABLE, _) => (icmp::UNREACHABLE, 1, 0),
        (icmp::V6_TIME_EXCEEDED, code) => (icmp::TIME_EXCEEDED, code, 0),
        _ => return None,
    };
    Some((ICMP, kind, code, value))
}

/// Computes the checksum of an ICMP message, which covers a pseudo-header in IPv6 alone.
fn complete_icmp(header: &Header, body: &mut [u8]) -> Option<()> {
    set_word(body, 2, 0)?;
    let pseudo = if header.protocol == ICMPV6 { pseudo_header_sum(header) } else { 0 };
    let checksum = !folded(pseudo + sum(body));
    set_word(body, 2, checksum)
}

#[cfg(test)]
mod tests;
