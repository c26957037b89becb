//! Explicit congestion notification across the tunnel (RFC 6040).
//!
//! On the way in the outer header gets a copy of the inner field (normal mode, §4.1). On the way out the two
//! are combined (§4.2, Figure 4), so that a router that marks the outer header slows the inner flow down.

/// The ECN field's two bits (RFC 3168 §5).
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
pub(super) const CE: u8 = 0b11;

/// The ECN field of an IPv6 header; Not-ECT if there is none.
pub(super) fn of_ipv6(packet: &[u8]) -> u8 {
    packet.get(1).map_or(NOT_ECT, |byte| (byte >> 4) & CE)
}

/// The inner field after decapsulation; `None` if the packet must be dropped (§4.2: congestion marked on a
/// packet whose transport cannot hear of it).
pub(super) fn combine(inner: u8, outer: u8) -> Option<u8> {
    match (inner & CE, outer & CE) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (CE, _) => Some(CE),
        (_, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Overwrites the ECN field of an IPv6 header. No checksum covers it.
pub(super) fn set_ipv6(packet: &mut [u8], ecn: u8) {
    if let Some(byte) = packet.get_mut(1) {
        *byte = (*byte & !(CE << 4)) | (ecn & CE) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECT_0: u8 = 0b10;

    #[test]
    fn every_cell_of_rfc_6040_figure_4() {
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                assert_eq!(combine(inner, outer), expected, "inner {inner:02b}, outer {outer:02b}");
            }
        }
    }

    #[test]
    fn setting_touches_no_other_bit() {
        for before in 0..=255u8 {
            let mut packet = [0x6f, before, 0xff];
            set_ipv6(&mut packet, CE);
            assert_eq!(packet, [0x6f, before | 0x30, 0xff]);
            assert_eq!(of_ipv6(&packet), CE);
            set_ipv6(&mut packet, NOT_ECT);
            assert_eq!(packet, [0x6f, before & !0x30, 0xff]);
        }
    }
}
