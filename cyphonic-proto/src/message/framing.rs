//! Messages to bytes and back.

use cyphonic_common::varint;
use prost::Message as _;
use thiserror::Error;

use super::{Message, wire};

/// The largest encoded message, without its length prefix.
pub const MAX_MESSAGE_BYTES: usize = 65_536;

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The peer announced more than [`MAX_MESSAGE_BYTES`].
    #[error("the message is announced with {0} bytes, more than the {MAX_MESSAGE_BYTES} allowed")]
    TooLarge(u64),
    /// The stream ended before the message did.
    #[error("the message ends too early")]
    Truncated,
    /// Bytes follow the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// Not a protobuf encoding.
    #[error("the message is not well-formed: {0}")]
    Malformed(String),
    /// Well-formed but of a kind this version does not know.
    #[error("the message is of a kind this version does not know")]
    Unknown,
}

/// The message with its length prefix, as it goes on a stream.
pub fn encode(message: &Message) -> Vec<u8> {
    let body_len = message.encoded_len();
    let mut out = vec![0; varint::MAX_LEN];
    let prefix = u64::try_from(body_len).ok().and_then(|len| varint::encode(len, &mut out));
    out.truncate(prefix.unwrap_or(0));
    out.reserve(body_len);
    message.encode(&mut out);
    out
}

/// The message that `bytes` are: one length prefix, one message, nothing after it.
///
/// # Errors
/// Says in which way the bytes are wrong. Nothing larger than `bytes` itself is allocated for.
pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    let total = frame_length(bytes)?.ok_or(DecodeError::Truncated)?;
    if bytes.len() > total {
        return Err(DecodeError::Trailing(bytes.len() - total));
    }
    let (_, prefix) = varint::decode(bytes).ok_or(DecodeError::Truncated)?;
    let body = bytes.get(prefix..total).ok_or(DecodeError::Truncated)?;
    let message = wire::Message::decode(body).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    message.body.ok_or(DecodeError::Unknown)
}

/// How many bytes the frame that starts with `start` takes in all, its prefix included; `None` while too few
/// are there to tell.
///
/// # Errors
/// [`DecodeError::TooLarge`], before anyone allocates.
pub fn frame_length(start: &[u8]) -> Result<Option<usize>, DecodeError> {
    let Some((body, prefix)) = varint::decode(start) else { return Ok(None) };
    match usize::try_from(body) {
        Ok(len) if len <= MAX_MESSAGE_BYTES => Ok(Some(prefix + len)),
        _ => Err(DecodeError::TooLarge(body)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{DirectionRequest, Refusal, RefusalCode, RegistrationRequest};

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            (any::<String>(), any::<Vec<u8>>(), any::<Vec<i32>>(), any::<Vec<String>>()).prop_map(
                |(fqdn, virtual_address, failed, failed_relays)| {
                    let request = DirectionRequest { fqdn, virtual_address, failed, failed_relays };
                    Message::DirectionRequest(request)
                }
            ),
            any::<String>().prop_map(|why| Message::Refusal(Refusal::new(RefusalCode::TooMany, why))),
            (any::<u32>(), any::<String>()).prop_map(|(protocol_version, pinned_relay)| {
                Message::RegistrationRequest(RegistrationRequest {
                    protocol_version,
                    pinned_relay,
                    ..RegistrationRequest::default()
                })
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_message_survives_the_wire(message in message()) {
            let bytes = encode(&message);
            prop_assert_eq!(frame_length(&bytes), Ok(Some(bytes.len())));
            prop_assert_eq!(decode(&bytes), Ok(message));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_damaged_message_never_panics_nor_grows(message in message(), at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = encode(&message);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(decoded) = decode(&bytes) {
                prop_assert!(encode(&decoded).len() <= 2 * bytes.len() + 16);
            }
        }

        #[test]
        fn a_shortened_message_is_truncated(message in message(), at: prop::sample::Index) {
            let bytes = encode(&message);
            let cut = &bytes[..at.index(bytes.len())];
            prop_assert_eq!(decode(cut), Err(DecodeError::Truncated));
        }
    }

    #[test]
    fn an_oversized_message_is_refused_by_its_prefix_alone() {
        assert_eq!(frame_length(&[0x80, 0x01, 0x00, 0x01]), Err(DecodeError::TooLarge(65_537)));
        assert_eq!(frame_length(&[0x80, 0x01, 0x00, 0x00]), Ok(Some(65_540)));
        assert_eq!(frame_length(&[0x80, 0x01]), Ok(None));
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_messages_named() {
        let mut bytes = encode(&Message::Refusal(Refusal::new(RefusalCode::Internal, "x")));
        // Field 900 of the inner message, a varint: tag (900 << 3), value 1.
        bytes.extend_from_slice(&[0xa0, 0x38, 0x01]);
        bytes[0] += 3;
        assert!(matches!(decode(&bytes), Ok(Message::Refusal(_))));
        assert_eq!(decode(&[3, 0xa0, 0x38, 0x01]), Err(DecodeError::Unknown));
        assert_eq!(decode(&[0]), Err(DecodeError::Unknown));
        assert_eq!(decode(&[0, 0]), Err(DecodeError::Trailing(1)));
    }
}
