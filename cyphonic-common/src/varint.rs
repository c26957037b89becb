//! QUIC variable-length integers (RFC 9000 §16).
//!
//! The two most significant bits of the first byte say how many bytes the integer takes: 1, 2, 4 or 8.

/// The largest value a variable-length integer can hold.
pub const MAX: u64 = (1 << 62) - 1;

/// The most bytes an encoded integer takes.
pub const MAX_LEN: usize = 8;

/// Bytes that `value` takes in its shortest form, or `None` where it is larger than [`MAX`].
#[inline]
pub const fn encoded_len(value: u64) -> Option<usize> {
    match value {
        0..=0x3f => Some(1),
        0x40..=0x3fff => Some(2),
        0x4000..=0x3fff_ffff => Some(4),
        0x4000_0000..=MAX => Some(8),
        _ => None,
    }
}

/// Decodes the integer at the start of `bytes`: its value and the bytes it took.
///
/// Returns `None` where `bytes` ends too early. Longer encodings than needed are accepted, as §16 allows them
/// everywhere but in frame types.
#[inline]
pub fn decode(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let prefix = u64::from(first & 0x3f);
    Some(match first >> 6 {
        0 => (prefix, 1),
        1 => (prefix << 8 | be(bytes.get(1..2)?), 2),
        2 => (prefix << 24 | be(bytes.get(1..4)?), 4),
        _ => (prefix << 56 | be(bytes.get(1..8)?), 8),
    })
}

/// Encodes `value` in its shortest form at the start of `out` and returns the bytes written.
///
/// Returns `None`, with `out` untouched, where it does not fit or `value` is larger than [`MAX`].
#[inline]
pub fn encode(value: u64, out: &mut [u8]) -> Option<usize> {
    let len = encoded_len(value)?;
    let tag = match len {
        1 => 0,
        2 => 1 << 14,
        4 => 2 << 30,
        _ => 3 << 62,
    };
    let bytes = (value | tag).to_be_bytes();
    out.get_mut(..len)?.copy_from_slice(bytes.get(MAX_LEN - len..)?);
    Some(len)
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 9000 Appendix A.1, "Sample Variable-Length Integer Decoding".
    #[test]
    fn the_samples_of_rfc_9000_decode() {
        let samples: [(&[u8], u64); 5] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in samples {
            assert_eq!(decode(bytes), Some((value, bytes.len())));
        }
    }

    #[test]
    fn the_largest_value_is_the_last_that_encodes() {
        let mut out = [0; MAX_LEN];
        assert_eq!(encode(MAX, &mut out), Some(8));
        assert_eq!(decode(&out), Some((MAX, 8)));
        assert_eq!(encode(MAX + 1, &mut out), None);
    }

    proptest! {
        #[test]
        fn values_round_trip_in_their_shortest_form(shift in 2u32..64, raw: u64) {
            let value = raw >> shift;
            let mut out = [0xaa; MAX_LEN];
            let len = encode(value, &mut out).unwrap();
            prop_assert_eq!(Some(len), encoded_len(value));
            prop_assert_eq!(decode(&out[..len]), Some((value, len)));
            prop_assert_eq!(decode(&out[..len - 1]), None);
            prop_assert_eq!(encode(value, &mut out[..len - 1]), None);
        }

        #[test]
        fn any_bytes_decode_within_bounds(bytes: Vec<u8>) {
            if let Some((value, len)) = decode(&bytes) {
                prop_assert!(value <= MAX && len <= bytes.len());
            }
        }
    }
}
