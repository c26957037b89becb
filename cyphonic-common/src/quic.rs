//! The bits of a QUIC packet that are visible without keys (RFC 8999, RFC 9000 §17).
//!
//! Everything a node receives on its one UDP port passes [`classify_datagram`] first: QUIC connections go to
//! the QUIC implementation, tunnel data to the rings. The decision needs nine bytes and no state.

use crate::buffer::Buffer;
use crate::cid::{CID_LEN, ConnectionId};

/// Header form: set for a long header (RFC 8999 §5.1), clear for a short one (§5.2).
pub const FORM_BIT: u8 = 0x80;
/// Fixed bit (RFC 9000 §17.3.1): clear means that the packet is not QUIC version 1.
pub const FIXED_BIT: u8 = 0x40;
/// Latency spin bit (RFC 9000 §17.4). Cyphonic data packets leave it clear.
pub const SPIN_BIT: u8 = 0x20;
/// Reserved bits, zero before header protection (RFC 9000 §17.3.1).
pub const RESERVED_BITS: u8 = 0x18;
/// Key phase (RFC 9001 §6).
pub const KEY_PHASE_BIT: u8 = 0x04;
/// Length of the packet number field, less one (RFC 9000 §17.3.1).
pub const PN_LEN_BITS: u8 = 0x03;
/// The bits of a short header's first byte that header protection covers (RFC 9001 §5.4.1).
pub const PROTECTED_BITS: u8 = RESERVED_BITS | KEY_PHASE_BIT | PN_LEN_BITS;

/// A datagram that opens NATs and firewalls on its way out. Where it arrives it has done its work. Dissectors
/// take it for a packet of the connection whose path it opens, so it is as long as the shortest of those (RFC
/// 9000 §10.3); its fixed bit is clear, so no QUIC implementation takes it for one.
pub const PUNCH: &[u8] = &[0; 21];

/// Bytes of a short header before the packet number: the first byte and the connection ID.
pub const SHORT_HEADER_LEN: usize = 1 + CID_LEN;

/// Offset of the header protection sample (RFC 9001 §5.4.2): as if the packet number took four bytes.
pub const SAMPLE_OFFSET: usize = SHORT_HEADER_LEN + 4;
/// Bytes of the header protection sample.
pub const SAMPLE_LEN: usize = 16;

/// The shortest tunnel data packet that can be opened: it must reach to the end of its sample.
pub const MIN_DATA_PACKET: usize = SAMPLE_OFFSET + SAMPLE_LEN;

/// Whose packet an arriving UDP datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramKind {
    /// A packet of a QUIC connection: for the QUIC implementation.
    Signalling,
    /// A tunnel data packet, reaching the tunnel that chose this connection ID.
    Data(ConnectionId),
    /// Not a QUIC version 1 packet, or too short for a connection ID.
    NotQuic,
}

/// Tells signalling from tunnel data by the first nine bytes of a UDP payload.
///
/// A long header is always signalling: only handshakes have one, and tunnel data has no handshake of its own.
#[inline(always)]
pub fn classify_datagram(datagram: &[u8]) -> DatagramKind {
    classify_datagram_at(datagram, 0)
}

/// [`classify_datagram`] for a UDP payload that starts at `offset` of a packet.
#[inline(always)]
pub fn classify_datagram_at<B: Buffer + ?Sized>(packet: &B, offset: usize) -> DatagramKind {
    let Some([first]) = packet.read::<1>(offset) else {
        return DatagramKind::NotQuic;
    };
    if first & FORM_BIT != 0 {
        return classify_long(packet, offset);
    }
    // Without the first byte it is one word.
    let Some(cid) = packet.read::<CID_LEN>(offset + 1) else {
        return DatagramKind::NotQuic;
    };
    let cid = ConnectionId::from_bytes(cid);
    match (first & FIXED_BIT != 0, cid.is_data()) {
        (false, _) => DatagramKind::NotQuic,
        (true, false) => DatagramKind::Signalling,
        (true, true) => DatagramKind::Data(cid),
    }
}

/// A long header needs its version and a length byte for each connection ID (RFC 8999 §5.1). Its fixed bit
/// says nothing here: Version Negotiation packets may have it clear (RFC 9000 §17.2.1).
#[inline(always)]
fn classify_long<B: Buffer + ?Sized>(packet: &B, offset: usize) -> DatagramKind {
    match packet.read::<7>(offset) {
        Some(_) => DatagramKind::Signalling,
        None => DatagramKind::NotQuic,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn short(first: u8, cid: ConnectionId) -> Vec<u8> {
        let mut packet = vec![first];
        packet.extend_from_slice(cid.as_bytes());
        packet.extend_from_slice(&[0; 20]);
        packet
    }

    #[test]
    fn a_short_header_is_told_by_its_connection_id() {
        let data = ConnectionId::from_random_data([1; CID_LEN]);
        let signalling = ConnectionId::from_random_signalling([0xff; CID_LEN]);
        assert_eq!(classify_datagram(&short(FIXED_BIT, data)), DatagramKind::Data(data));
        assert_eq!(classify_datagram(&short(FIXED_BIT, signalling)), DatagramKind::Signalling);
        assert_eq!(classify_datagram(&short(0, data)), DatagramKind::NotQuic);
    }

    /// The client Initial of RFC 9001 Appendix A.2 and the short header packet of A.5.
    #[test]
    fn the_packets_of_rfc_9001_are_signalling_or_too_short() {
        let initial = [0xc0, 0, 0, 0, 1, 8, 0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08, 0, 0];
        assert_eq!(classify_datagram(&initial), DatagramKind::Signalling);
        let without_cid = [0x4c, 0xfe, 0x41, 0x89];
        assert_eq!(classify_datagram(&without_cid), DatagramKind::NotQuic);
    }

    #[test]
    fn the_length_decides_at_the_edge() {
        let packet = short(FIXED_BIT, ConnectionId::from_random_data([7; CID_LEN]));
        assert_eq!(classify_datagram(&[]), DatagramKind::NotQuic);
        assert_eq!(classify_datagram(&packet[..SHORT_HEADER_LEN - 1]), DatagramKind::NotQuic);
        assert!(matches!(classify_datagram(&packet[..SHORT_HEADER_LEN]), DatagramKind::Data(_)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_classified_by_the_invariants(bytes: Vec<u8>) {
            match classify_datagram(&bytes) {
                DatagramKind::Data(cid) => {
                    prop_assert_eq!(bytes[0] & (FORM_BIT | FIXED_BIT), FIXED_BIT);
                    prop_assert_eq!(&cid.as_bytes()[..], &bytes[1..SHORT_HEADER_LEN]);
                    prop_assert!(cid.is_data());
                }
                DatagramKind::Signalling => {
                    prop_assert!(bytes[0] & FORM_BIT != 0 || bytes[1] & 0x80 == 0);
                }
                DatagramKind::NotQuic => {
                    prop_assert!(bytes.len() < SHORT_HEADER_LEN || bytes[0] & (FORM_BIT | FIXED_BIT) == 0);
                }
            }
        }

        #[test]
        fn an_offset_is_the_same_as_a_sub_slice(bytes: Vec<u8>, offset in 0usize..64) {
            let tail = bytes.get(offset..).unwrap_or_default();
            prop_assert_eq!(classify_datagram_at(bytes.as_slice(), offset), classify_datagram(tail));
        }
    }
}
