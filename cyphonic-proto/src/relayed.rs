//! Tunnelled mode: how packets between peers travel inside a node's connection to a TRS.
//!
//! Each DATAGRAM frame (RFC 9221) holds a context, as a QUIC variable-length integer, then one whole UDP
//! payload. The owner of each leg chose its context (BindingRequest), and the TRS replaces one by the other.
//! Contexts of legs always take four bytes, so a packet leaves as large as it came.

use std::ops::RangeInclusive;

use bytes::Bytes;
use cyphonic_common::varint;

/// Bytes a leg's context takes.
pub const CONTEXT_LEN: usize = 4;
/// The smallest context of a leg: the least value that takes [`CONTEXT_LEN`] bytes.
pub const MIN_CONTEXT: u64 = 0x4000;
/// The largest context of a leg.
pub const MAX_CONTEXT: u64 = 0x3fff_ffff;
/// What a leg's owner may choose from.
pub const CONTEXTS: RangeInclusive<u64> = MIN_CONTEXT..=MAX_CONTEXT;

/// Frames `packet` for `context`; `None` where the context is beyond 2^62.
pub fn encode(context: u64, packet: &[u8]) -> Option<Bytes> {
    let mut prefix = [0; varint::MAX_LEN];
    let taken = varint::encode(context, &mut prefix)?;
    let mut datagram = Vec::with_capacity(taken + packet.len());
    datagram.extend_from_slice(prefix.get(..taken)?);
    datagram.extend_from_slice(packet);
    Some(datagram.into())
}

/// The context and the packet of a DATAGRAM; `None` where it is cut short or carries no packet.
pub fn decode(datagram: &[u8]) -> Option<(u64, &[u8])> {
    let (context, taken) = varint::decode(datagram)?;
    let packet = datagram.get(taken..)?;
    if packet.is_empty() { None } else { Some((context, packet)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_packet_survives_its_framing(context in MIN_CONTEXT..=MAX_CONTEXT, packet: Vec<u8>) {
            let datagram = encode(context, &packet).unwrap();
            prop_assert_eq!(datagram.len(), CONTEXT_LEN + packet.len());
            let expected = (!packet.is_empty()).then_some((context, packet.as_slice()));
            prop_assert_eq!(decode(&datagram), expected);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
