//! What tells STUN (RFC 8489) from QUIC on a node's one port (RFC 9443 §3): nothing here understands more of
//! it.

/// Bytes of a STUN header (RFC 8489 §5).
pub const HEADER_LEN: usize = 20;

/// Stands in bytes 4 to 7 of every message (RFC 8489 §5).
pub const MAGIC_COOKIE: u32 = 0x2112_a442;

/// Whether a datagram looks like a STUN message: its first two bits are clear, which no QUIC packet of this
/// overlay has, and the magic cookie is in its place. A punch (all zeros) does not.
#[inline]
pub fn is_stun(datagram: &[u8]) -> bool {
    match datagram {
        [first, _, _, _, a, b, c, d, rest @ ..] => {
            first & 0xc0 == 0
                && u32::from_be_bytes([*a, *b, *c, *d]) == MAGIC_COOKIE
                && rest.len() >= HEADER_LEN - 8
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quic::{DatagramKind, PUNCH, classify_datagram};

    #[test]
    fn a_header_is_enough_and_a_punch_is_none() {
        let mut header = [0; HEADER_LEN];
        header[1] = 1;
        header[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        assert!(is_stun(&header));
        assert!(!is_stun(&header[..HEADER_LEN - 1]));
        assert!(!is_stun(PUNCH));
        header[0] = 0x40;
        assert!(!is_stun(&header));
    }

    proptest! {
        #[test]
        fn nothing_is_both_stun_and_quic(mut bytes: Vec<u8>, cookie: bool) {
            if let (true, Some(place)) = (cookie, bytes.get_mut(4..8)) {
                place.copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
            }
            prop_assert!(!is_stun(&bytes) || classify_datagram(&bytes) == DatagramKind::NotQuic);
        }
    }
}
