//! What happens to a packet that an application sends into the overlay.
//!
//! The virtual interface has no link layer: a packet starts with its IP header. Before it may enter a tunnel
//! it must be IPv6, come from the node's own virtual address and go to another address of the overlay.
//! Everything else is dropped here, with a reason, before it costs userspace a wake-up. The receiving node
//! checks again: this side's check protects honest users from their own mistakes, the other side's protects
//! against a dishonest sender.
//!
//! The same function runs in the tc program and, where no eBPF can be loaded, in the agent's packet loop. The
//! program knows two things more ([`judge_egress`], [`judge_ingress`]): which destinations have tunnels, and
//! what the policy permits.

use crate::buffer::Buffer;
use crate::drop_reason::DropReason;
use crate::map::{InterfaceConfig, PeerEntry};
use crate::packet::icmpv6::{ICMPV6_HEADER_LEN, INFORMATIONAL};
use crate::packet::ip::{IPV6_DESTINATION, IPV6_HEADER_LEN, IPV6_NEXT_HEADER, IPV6_SOURCE};
use crate::packet::protocol;
use crate::policy::{self, Direction, EVERY_CLASS, FlowTable, Part, Peer, PolicyTable};

/// Decides on a packet that leaves an application through the virtual interface: the virtual address of the
/// node whose tunnel it takes, in network byte order.
///
/// Depends on nothing but its arguments. Super-packets that the kernel has not yet cut into segments are
/// judged as one packet: all their segments have the same addresses.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn classify_egress<B: Buffer + ?Sized>(
    packet: &B,
    config: &InterfaceConfig,
) -> Result<[u8; 16], DropReason> {
    if !config.is_configured() {
        return Err(DropReason::NotConfigured);
    }
    check_version(packet)?;
    let header: [u8; IPV6_HEADER_LEN] = packet.read(0).ok_or(DropReason::Truncated)?;
    let (source, dst) = addresses(&header);
    if is_local_noise(&dst) {
        return Err(DropReason::LocalNoise);
    }
    check_length(&header, packet.len())?;
    if !config.is_own(&source) {
        return Err(DropReason::ForeignSource);
    }
    if !config.is_inside(&dst) {
        return Err(DropReason::OutsideOverlay);
    }
    if config.is_own(&dst) {
        return Err(DropReason::ToSelf);
    }
    Ok(dst)
}

/// What the kernel knows of the overlay's nodes.
pub trait PeerTable {
    /// The entry of a virtual address.
    fn peer(&self, address: &[u8; 16]) -> Option<PeerEntry>;
}

/// Where a packet of an application goes, by one who knows the peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// To a peer's tunnel, in this worker.
    Tunnel {
        /// The worker's number.
        worker: u32,
    },
    /// To the agent, which holds it and sets a tunnel up.
    Unknown,
    /// To the agent, which tells the application that there is no way there.
    Dead,
    /// Nowhere.
    Drop(DropReason),
}

/// Decides on a packet that leaves an application, with the tables that the kernel has.
///
/// A packet to a node without a tunnel, dead or not, wakes the agent before anyone knows the node's class, so
/// its policy cannot be asked: it passes here, and the peer's own policy judges it when the tunnel stands. The
/// answer will be one all the same.
#[inline(always)]
pub fn judge_egress<B, T>(packet: &B, config: &InterfaceConfig, tables: &T) -> Egress
where
    B: Buffer + ?Sized,
    T: PeerTable + PolicyTable + FlowTable + ?Sized,
{
    let dst = match classify_egress(packet, config) {
        Ok(dst) => dst,
        Err(reason) => return Egress::Drop(reason),
    };
    let known = tables.peer(&dst);
    let live = known.filter(PeerEntry::is_live);
    // One that is dead may be there when the packet is sent at last, of whatever class.
    let peer = Peer { address: dst, class: live.map(|peer| peer.class()) };
    match (policy::judge(packet, &peer, Direction::Out, tables), live, known) {
        (Err(reason), ..) => Egress::Drop(reason),
        (Ok(()), Some(peer), _) => Egress::Tunnel { worker: peer.worker() },
        (Ok(()), None, Some(_)) => Egress::Dead,
        (Ok(()), None, None) => Egress::Unknown,
    }
}

/// Decides on a packet that userspace took out of a tunnel, whose addresses it has checked, or made itself.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn judge_ingress<B, T>(packet: &B, config: &InterfaceConfig, tables: &T) -> Result<(), DropReason>
where
    B: Buffer + ?Sized,
    T: PeerTable + PolicyTable + FlowTable + ?Sized,
{
    let source: [u8; 16] = packet.read(IPV6_SOURCE).ok_or(DropReason::Truncated)?;
    if config.is_own(&source) {
        // The agent's own errors about packets of this host.
        return Ok(());
    }
    let class = match tables.peer(&source) {
        Some(peer) => peer.class(),
        None => EVERY_CLASS,
    };
    policy::judge(packet, &Peer { address: source, class: Some(class) }, Direction::In, tables)
}

/// Decides on an IPv6 packet, at that offset, that came in by another interface than the overlay's, where Linux
/// would take it for the virtual address all the same (the "weak host model", RFC 1122 §3.3.4.2). Neighbours know
/// both addresses. An ICMPv6 error counts by what it quotes: nobody outside has seen a packet of the overlay.
///
/// # Errors
/// [`DropReason::PastTunnels`], where it has an address of the overlay; [`DropReason::Truncated`].
#[inline(always)]
pub fn judge_elsewhere<B>(packet: &B, at: usize, config: &InterfaceConfig) -> Result<(), DropReason>
where
    B: Buffer + ?Sized,
{
    if !config.is_configured() {
        return Ok(());
    }
    let source: [u8; 16] = packet.read(at + IPV6_SOURCE).ok_or(DropReason::Truncated)?;
    let destination: [u8; 16] = packet.read(at + IPV6_DESTINATION).ok_or(DropReason::Truncated)?;
    if config.is_inside(&source) || config.is_own(&destination) {
        return Err(DropReason::PastTunnels);
    }
    let [next] = packet.read::<1>(at + IPV6_NEXT_HEADER).ok_or(DropReason::Truncated)?;
    if is_upper_layer(next) {
        return Ok(());
    }
    let upper = policy::upper_layer(packet, at).map_err(|_| DropReason::PastTunnels)?;
    if upper.protocol == protocol::ICMPV6 && tells_of_the_overlay(packet, &upper, config) {
        return Err(DropReason::PastTunnels);
    }
    Ok(())
}

/// Decides on an IPv6 packet, at that offset, that leaves by another interface than the overlay's. Whoever may send router
/// advertisements on a link may have Linux send there what is for a peer, in clear: a longer prefix wins (RFC 4861 §6.3.4).
///
/// # Errors
/// [`DropReason::PastTunnels`], where it is for an address of the overlay; [`DropReason::Truncated`].
#[inline(always)]
pub fn judge_leaving<B>(packet: &B, at: usize, config: &InterfaceConfig) -> Result<(), DropReason>
where
    B: Buffer + ?Sized,
{
    let destination: [u8; 16] = packet.read(at + IPV6_DESTINATION).ok_or(DropReason::Truncated)?;
    if config.is_configured() && config.is_inside(&destination) {
        return Err(DropReason::PastTunnels);
    }
    Ok(())
}

/// Whether a protocol needs no look at what follows: neither ICMPv6 nor an extension header that may have it behind.
#[inline(always)]
#[must_use]
pub const fn is_upper_layer(next: u8) -> bool {
    !matches!(
        next,
        protocol::ICMPV6
            | protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION_OPTIONS
    )
}

/// Whether an ICMPv6 message is an error about a packet from the overlay. No honest error comes in fragments (RFC 4443
/// §2.4), whose first one need not have the quotation; and what the packet has and cannot be read may be one.
#[inline(always)]
fn tells_of_the_overlay<B>(packet: &B, upper: &policy::Upper, config: &InterfaceConfig) -> bool
where
    B: Buffer + ?Sized,
{
    let is_whole = match upper.part {
        Part::Whole => true,
        Part::First(_) => false,
        // Without its first one it comes to nothing.
        Part::Later(_) => return false,
    };
    let quoted = upper.at + ICMPV6_HEADER_LEN + IPV6_SOURCE;
    match packet.read::<1>(upper.at) {
        Some([kind]) if kind >= INFORMATIONAL => false,
        Some(_) => match packet.read::<16>(quoted) {
            Some(source) => config.is_inside(&source),
            None => !is_whole || packet.len() >= quoted + 16,
        },
        None => !is_whole || packet.len() > upper.at,
    }
}

#[inline(always)]
fn check_version<B: Buffer + ?Sized>(packet: &B) -> Result<(), DropReason> {
    let [first] = packet.read::<1>(0).ok_or(DropReason::Truncated)?;
    match first >> 4 {
        6 => Ok(()),
        4 => Err(DropReason::NotIpv6),
        _ => Err(DropReason::BadVersion),
    }
}

/// The payload length must be the packet's. Jumbograms (payload length 0, RFC 2675) never fit a tunnel
/// packet.
#[inline(always)]
fn check_length(header: &[u8; IPV6_HEADER_LEN], len: usize) -> Result<(), DropReason> {
    let promised = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if len < promised {
        return Err(DropReason::Truncated);
    }
    if len > promised {
        return Err(DropReason::LengthMismatch);
    }
    Ok(())
}

/// Multicast (`ff00::/8`) and link-local (`fe80::/10`): the overlay has neither.
#[inline(always)]
const fn is_local_noise(dst: &[u8; 16]) -> bool {
    dst[0] == 0xff || (dst[0] == 0xfe && dst[1] & 0xc0 == 0x80)
}

/// Source and destination (RFC 8200 §3).
#[inline(always)]
fn addresses(header: &[u8; IPV6_HEADER_LEN]) -> ([u8; 16], [u8; 16]) {
    let mut source = [0; 16];
    let mut destination = [0; 16];
    source.copy_from_slice(&header[IPV6_SOURCE..IPV6_DESTINATION]);
    destination.copy_from_slice(&header[IPV6_DESTINATION..]);
    (source, destination)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    const OWN: &str = "fd12:3456:789a:1::7";
    const PEER: &str = "fd12:3456:789a:2::9";

    fn address(text: &str) -> [u8; 16] {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    fn config() -> InterfaceConfig {
        InterfaceConfig::new(address(OWN), address("fd12:3456:789a::"), 48).unwrap()
    }

    fn udp(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ipv6(address(source), address(destination), 64).udp(1000, 2000);
        let mut packet = Vec::new();
        builder.write(&mut packet, payload).unwrap();
        packet
    }

    fn verdict(packet: &[u8]) -> Result<[u8; 16], DropReason> {
        classify_egress(packet, &config())
    }

    #[test]
    fn a_packet_to_a_peer_goes_to_its_tunnel() {
        assert_eq!(verdict(&udp(OWN, PEER, b"hello")), Ok(address(PEER)));
    }

    #[test]
    fn every_other_packet_has_its_own_reason() {
        let cases = [
            (udp(PEER, PEER, b""), DropReason::ForeignSource),
            (udp(OWN, "2001:db8::1", b""), DropReason::OutsideOverlay),
            (udp(OWN, OWN, b""), DropReason::ToSelf),
            (udp("fe80::1", "ff02::16", b""), DropReason::LocalNoise),
            (udp("::", "ff02::2", b""), DropReason::LocalNoise),
            (udp(OWN, "fe80::2", b""), DropReason::LocalNoise),
            (udp(OWN, PEER, b"cut")[..46].to_vec(), DropReason::Truncated),
            (udp(OWN, PEER, b"")[..39].to_vec(), DropReason::Truncated),
            (Vec::new(), DropReason::Truncated),
            ([udp(OWN, PEER, b""), vec![0]].concat(), DropReason::LengthMismatch),
            (vec![0x45; 60], DropReason::NotIpv6),
            (vec![0x00; 60], DropReason::BadVersion),
            (vec![0xf0; 60], DropReason::BadVersion),
        ];
        for (packet, reason) in cases {
            assert_eq!(verdict(&packet), Err(reason), "{packet:02x?}");
        }
        let unconfigured = classify_egress(udp(OWN, PEER, b"").as_slice(), &InterfaceConfig::unconfigured());
        assert_eq!(unconfigured, Err(DropReason::NotConfigured));
    }

    /// One peer, of a class that may be pinged.
    struct OnePeer(Option<PeerEntry>);

    impl PeerTable for OnePeer {
        fn peer(&self, known: &[u8; 16]) -> Option<PeerEntry> {
            self.0.filter(|_| *known == address(PEER))
        }
    }

    impl PolicyTable for OnePeer {
        fn holds(&self, key: &policy::PolicyKey) -> bool {
            *key == policy::PolicyKey::new(Direction::Out, 3, 17, 2000)
        }
    }

    /// One conversation, which is remembered from the start.
    impl FlowTable for OnePeer {
        fn note(&self, flow: &policy::Flow) {
            assert!(self.knows(flow));
        }

        fn knows(&self, flow: &policy::Flow) -> bool {
            *flow == policy::Flow::new(address(PEER), 17, (1000, 2000), Direction::Out)
        }
    }

    #[test]
    fn who_is_known_decides_where_a_packet_goes() {
        let packet = udp(OWN, PEER, b"hello");
        let judge = |peer| judge_egress(packet.as_slice(), &config(), &OnePeer(peer));
        assert_eq!(judge(None), Egress::Unknown);
        assert_eq!(judge(Some(PeerEntry::dead())), Egress::Dead);
        assert_eq!(judge(Some(PeerEntry::live(2, 3))), Egress::Tunnel { worker: 2 });
        assert_eq!(judge(Some(PeerEntry::live(2, 4))), Egress::Drop(DropReason::Denied));
        let foreign = udp(PEER, PEER, b"");
        let verdict = judge_egress(foreign.as_slice(), &config(), &OnePeer(None));
        assert_eq!(verdict, Egress::Drop(DropReason::ForeignSource));
    }

    #[test]
    fn what_comes_in_is_judged_by_its_source() {
        let mut answer = Vec::new();
        let builder = PacketBuilder::ipv6(address(PEER), address(OWN), 64).udp(2000, 1000);
        builder.write(&mut answer, b"").unwrap();
        let judge = |packet: &[u8], class| {
            judge_ingress(packet, &config(), &OnePeer(Some(PeerEntry::live(0, class))))
        };
        assert_eq!(judge(&answer, 3), Ok(()));
        assert_eq!(judge(&answer, 4), Err(DropReason::Denied));
        let mut unasked = answer.clone();
        unasked[43] ^= 1;
        assert_eq!(judge(&unasked, 3), Err(DropReason::Denied), "to a port that did not ask");
        assert_eq!(judge(&udp(PEER, OWN, b""), 3), Err(DropReason::Denied), "not from the service's port");
        assert_eq!(judge(&udp(OWN, OWN, b""), 4), Ok(()), "the agent's own");
        assert_eq!(judge(&answer[..23], 3), Err(DropReason::Truncated));
    }

    #[test]
    fn what_comes_past_the_tunnels_has_no_address_of_the_overlay() {
        let judge = |source: &str, destination: &str| {
            let packet = udp(source, destination, b"x");
            let whole = judge_elsewhere(packet.as_slice(), 0, &config());
            assert_eq!(judge_elsewhere(&[&[7; 18], &packet[..]].concat()[..], 18, &config()), whole);
            whole
        };
        let lan = "fe80::7";
        for (source, destination) in [(lan, OWN), (PEER, lan), (PEER, OWN), (OWN, lan), (PEER, "2001:db8::1")]
        {
            assert_eq!(judge(source, destination), Err(DropReason::PastTunnels), "{source} {destination}");
        }
        for (source, destination) in [(lan, "fe80::8"), (lan, PEER), ("2001:db8::2", "2001:db8::1")] {
            assert_eq!(judge(source, destination), Ok(()), "{source} {destination}");
        }
        assert_eq!(judge_elsewhere(&udp(PEER, OWN, b"")[..39], 0, &config()), Err(DropReason::Truncated));
        let unconfigured = InterfaceConfig::unconfigured();
        assert_eq!(judge_elsewhere(udp(PEER, OWN, b"").as_slice(), 0, &unconfigured), Ok(()));
    }

    #[test]
    fn nothing_for_the_overlay_leaves_by_another_interface() {
        let leaves =
            |destination: &str| judge_leaving(udp("2001:db8::1", destination, b"").as_slice(), 0, &config());
        assert_eq!(leaves("2001:db8::9"), Ok(()));
        assert_eq!(leaves(PEER), Err(DropReason::PastTunnels));
        assert_eq!(judge_leaving(&udp(OWN, PEER, b"")[..39], 0, &config()), Err(DropReason::Truncated));
        let unconfigured = InterfaceConfig::unconfigured();
        assert_eq!(judge_leaving(udp(OWN, PEER, b"").as_slice(), 0, &unconfigured), Ok(()));
    }

    #[test]
    fn nobody_outside_tells_of_errors_of_packets_of_the_overlay() {
        let error = |kind: u8, quoted: &[u8]| {
            let mut packet = Vec::new();
            let builder = PacketBuilder::ipv6(address("2001:db8::2"), address("2001:db8::1"), 64);
            builder.icmpv6_raw(kind, 0, [0; 4]).write(&mut packet, quoted).unwrap();
            let plain = judge_elsewhere(packet.as_slice(), 0, &config());
            for extensions in [
                &[60, 58, 0, 1, 4, 0, 0, 0, 0][..],
                &[43, 58, 0, 9, 0, 0, 0, 0, 0],
                &[0, 58, 0, 1, 4, 0, 0, 0, 0],
            ] {
                packet[6] = extensions[0];
                let behind = [&[7; 12], &packet[..40], &extensions[1..], &packet[40..]].concat();
                assert_eq!(judge_elsewhere(behind.as_slice(), 12, &config()), plain, "{extensions:?}");
            }
            plain
        };
        let (ours, others) = (udp(OWN, PEER, b"x"), udp("2001:db8::1", "2001:db8::9", b"x"));
        for kind in [1, 2, 3, 4, 127] {
            assert_eq!(error(kind, &ours), Err(DropReason::PastTunnels), "{kind}");
            assert_eq!(error(kind, &others), Ok(()), "{kind}");
            assert_eq!(error(kind, &ours[..23]), Ok(()), "which is the stack's to refuse");
        }
        assert_eq!(error(128, &ours), Ok(()), "a ping may carry what it will");
    }

    /// The kernel joins the fragments behind this, and follows more headers than anybody needs.
    #[test]
    fn nobody_outside_hides_an_error_in_fragments_or_behind_many_headers() {
        let mut error = Vec::new();
        let builder = PacketBuilder::ipv6(address("2001:db8::2"), address("2001:db8::1"), 64);
        builder.icmpv6_raw(1, 4, [0; 4]).write(&mut error, &udp(OWN, PEER, b"x")).unwrap();
        let judge = |first: u8, headers: &[u8], payload: &[u8]| {
            let mut packet = [&error[..40], headers, payload].concat();
            packet[6] = first;
            judge_elsewhere(packet.as_slice(), 0, &config())
        };
        let part = |place: u16, payload: &[u8]| {
            let [high, low] = place.to_be_bytes();
            judge(44, &[58, 0, high, low, 0, 0, 0, 9], payload)
        };
        for len in [0, 8, 16, 40, 56] {
            assert_eq!(part(1, &error[40..40 + len]), Err(DropReason::PastTunnels), "{len}");
            assert_eq!(part(8 * 8 + 1, &error[40..40 + len]), Ok(()), "a later one, which comes to nothing");
        }
        let ping = [&[128, 0, 0, 0][..], &error[44..]].concat();
        assert_eq!(part(1, &ping), Ok(()));
        let option = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let many = [option(60), option(60), option(60), option(60), option(58)].concat();
        assert_eq!(judge(60, &many, &error[40..]), Err(DropReason::PastTunnels));
        assert_eq!(judge(6, &[], &error[40..]), Ok(()), "other protocols need no look");
    }

    proptest! {
        #[test]
        fn only_what_satisfies_every_rule_reaches_a_tunnel(mut packet: Vec<u8>, own: bool, inside: bool) {
            if packet.len() >= 40 {
                packet[0] = 0x60 | packet[0] & 0x0f;
                if own { packet[8..24].copy_from_slice(&address(OWN)); }
                if inside { packet[24..30].copy_from_slice(&address(PEER)[..6]); }
                if packet[30] & 1 == 0 {
                    let len = (packet.len() - 40) as u16;
                    packet[4..6].copy_from_slice(&len.to_be_bytes());
                }
            }
            if let Ok(dst) = verdict(&packet) {
                let (header, rest) = etherparse::Ipv6Header::from_slice(&packet).unwrap();
                prop_assert_eq!(usize::from(header.payload_length), rest.len());
                prop_assert_eq!(header.source, address(OWN));
                prop_assert_eq!(header.destination, dst);
                prop_assert!(dst[..6] == address(OWN)[..6] && dst != address(OWN));
            }
        }

        #[test]
        fn any_payload_to_any_peer_passes(payload in proptest::collection::vec(any::<u8>(), 0..1400), low: u64) {
            let mut peer = address("fd12:3456:789a:ffff::");
            peer[8..].copy_from_slice(&low.to_be_bytes());
            let packet = udp(OWN, &Ipv6Addr::from(peer).to_string(), &payload);
            prop_assert_eq!(verdict(&packet), Ok(peer));
        }
    }
}
