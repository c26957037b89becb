//! Messages: bytes to values and back (RFC 8489 §5).

use std::net::SocketAddr;

use cyphonic_common::stun::{HEADER_LEN, MAGIC_COOKIE, is_stun};
use thiserror::Error;

use super::attribute::{self, Attributes};

/// How long every request is made: as long as the longest answer to it (IPv6 with three addresses and
/// FINGERPRINT), and a little more.
pub const REQUEST_LEN: usize = 112;

/// Longest message that is read. Ours are below 128 bytes; a Binding message with credentials of others fits.
const MAX_LEN: usize = 548;

/// Unknown attributes that a refusal names.
const MAX_UNKNOWN: usize = 4;

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_INDICATION: u16 = 0x0011;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_FAILURE: u16 = 0x0111;

/// Flags of CHANGE-REQUEST (RFC 5780 §7.2).
const CHANGE_IP: u32 = 0x04;
const CHANGE_PORT: u32 = 0x02;

/// What pairs an answer with its request: 96 unpredictable bits.
pub type Transaction = [u8; 12];

/// A Binding message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// "From where do you see me?"
    Request(Request),
    /// "From there."
    Success(Success),
    /// "I will not say."
    Failure(Failure),
    /// Nothing is answered to it by STUN. A TRS calls a node by one where it is seen: who has its number
    /// receives there (docs/protocol.md §4.4).
    Indication(Transaction),
}

/// A Binding request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Pairs it with its answer.
    pub transaction: Transaction,
    /// The answer shall come from the server's other address (RFC 5780 §7.2).
    pub change_address: bool,
    /// The answer shall come from the server's other port (RFC 5780 §7.2).
    pub change_port: bool,
    /// The answer shall go to this port of the address that the request came from (RFC 5780 §7.5).
    pub response_port: Option<u16>,
    /// Attributes that a server would have to understand and this one does not, at most four.
    pub unknown: Vec<u16>,
}

/// A Binding success response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Success {
    /// The request's.
    pub transaction: Transaction,
    /// Where the request came from.
    pub mapped: SocketAddr,
    /// Where the answer came from, as the server sees it (RFC 5780 §7.3).
    pub origin: Option<SocketAddr>,
    /// Where the answer would come from if both address and port were changed (RFC 5780 §7.4). With the
    /// address of `origin` where a server has one address only.
    pub other: Option<SocketAddr>,
}

/// A Binding error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The request's.
    pub transaction: Transaction,
    /// The error code (RFC 8489 §14.8): 420 for attributes that the server does not understand or cannot
    /// follow.
    pub code: u16,
    /// Those attributes.
    pub unknown: Vec<u16>,
}

/// A datagram that is no Binding message that could be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// No STUN, or another length than it says.
    #[error("this is no STUN message")]
    NotStun,
    /// Another method: TURN.
    #[error("this is no Binding request, response or indication")]
    NotBinding,
    /// An attribute that is cut off, or a checksum that is not right.
    #[error("an attribute is malformed")]
    Malformed,
    /// A response with attributes that must be understood and are not, or without an address.
    #[error("this response cannot be understood")]
    NotUnderstood,
}

impl Message {
    /// The message in a datagram.
    ///
    /// # Errors
    /// For anything that cannot be used; nothing is to be answered to it.
    pub fn decode(datagram: &[u8]) -> Result<Self, DecodeError> {
        if !is_stun(datagram) || datagram.len() > MAX_LEN {
            return Err(DecodeError::NotStun);
        }
        let header = datagram.first_chunk::<HEADER_LEN>().ok_or(DecodeError::NotStun)?;
        let [t0, t1, l0, l1, _, _, _, _, transaction @ ..] = *header;
        if usize::from(u16::from_be_bytes([l0, l1])) != datagram.len() - HEADER_LEN {
            return Err(DecodeError::NotStun);
        }
        let read = Read::attributes(datagram, &transaction)?;
        match u16::from_be_bytes([t0, t1]) {
            BINDING_REQUEST => Ok(Self::Request(Request {
                transaction,
                change_address: read.change & CHANGE_IP != 0,
                change_port: read.change & CHANGE_PORT != 0,
                response_port: read.response_port,
                unknown: read.refused,
            })),
            BINDING_SUCCESS => {
                let mapped = read.mapped.filter(|_| read.refused.is_empty());
                let mapped = mapped.ok_or(DecodeError::NotUnderstood)?;
                Ok(Self::Success(Success { transaction, mapped, origin: read.origin, other: read.other }))
            }
            BINDING_FAILURE => {
                let code = read.code.ok_or(DecodeError::NotUnderstood)?;
                Ok(Self::Failure(Failure { transaction, code, unknown: read.unknown }))
            }
            BINDING_INDICATION if read.refused.is_empty() => Ok(Self::Indication(transaction)),
            _ => Err(DecodeError::NotBinding),
        }
    }

    /// The bytes of the message. Requests are [`REQUEST_LEN`] bytes long.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Request(request) => request.encode(),
            Self::Success(success) => success.encode(),
            Self::Failure(failure) => failure.encode(),
            Self::Indication(transaction) => finish(header(BINDING_INDICATION, transaction)),
        }
    }
}

impl Request {
    fn encode(&self) -> Vec<u8> {
        let mut out = header(BINDING_REQUEST, &self.transaction);
        let flag = |set: bool, flag| if set { flag } else { 0 };
        let change = flag(self.change_address, CHANGE_IP) | flag(self.change_port, CHANGE_PORT);
        if change != 0 {
            attribute::push(&mut out, attribute::CHANGE_REQUEST, &change.to_be_bytes());
        }
        if let Some(port) = self.response_port {
            let [p0, p1] = port.to_be_bytes();
            attribute::push(&mut out, attribute::RESPONSE_PORT, &[p0, p1, 0, 0]);
        }
        // PADDING would ask for an answer as long, and RFC 5780 §6.1 forbids it beside RESPONSE-PORT. The
        // name of the software may be of any length and changes nothing (RFC 8489 §14.14).
        let room = REQUEST_LEN.saturating_sub(out.len() + 4 + FINGERPRINT_LEN);
        let mut software = SOFTWARE.as_bytes().to_vec();
        software.resize(room, b' ');
        attribute::push(&mut out, attribute::SOFTWARE, &software);
        finish(out)
    }
}

impl Success {
    fn encode(&self) -> Vec<u8> {
        let mut out = header(BINDING_SUCCESS, &self.transaction);
        attribute::push_xor_address(&mut out, attribute::XOR_MAPPED_ADDRESS, self.mapped, &self.transaction);
        if let Some(origin) = self.origin {
            attribute::push_address(&mut out, attribute::RESPONSE_ORIGIN, origin);
        }
        if let Some(other) = self.other {
            attribute::push_address(&mut out, attribute::OTHER_ADDRESS, other);
        }
        finish(out)
    }
}

impl Failure {
    fn encode(&self) -> Vec<u8> {
        let mut out = header(BINDING_FAILURE, &self.transaction);
        let [class, number] = [self.code / 100, self.code % 100].map(|part| u8::try_from(part).unwrap_or(0));
        attribute::push(&mut out, attribute::ERROR_CODE, &[0, 0, class, number]);
        let unknown: Vec<u8> = self.unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect();
        if !unknown.is_empty() {
            attribute::push(&mut out, attribute::UNKNOWN_ATTRIBUTES, &unknown);
        }
        finish(out)
    }
}

/// Begins the value of SOFTWARE in requests.
const SOFTWARE: &str = "cyphonic";

/// Bytes of the FINGERPRINT attribute.
const FINGERPRINT_LEN: usize = 8;

fn header(kind: u16, transaction: &Transaction) -> Vec<u8> {
    let mut out = Vec::with_capacity(REQUEST_LEN);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&MAGIC_COOKIE.to_be_bytes());
    out.extend_from_slice(transaction);
    out
}

/// Writes the length, which covers FINGERPRINT, and then that.
fn finish(mut out: Vec<u8>) -> Vec<u8> {
    let len = u16::try_from(out.len() + FINGERPRINT_LEN - HEADER_LEN).unwrap_or(u16::MAX);
    if let Some(place) = out.get_mut(2..4) {
        place.copy_from_slice(&len.to_be_bytes());
    }
    let fingerprint = attribute::fingerprint(&out);
    attribute::push(&mut out, attribute::FINGERPRINT, &fingerprint.to_be_bytes());
    out
}

/// What the attributes of a message say.
#[derive(Default)]
struct Read {
    mapped: Option<SocketAddr>,
    origin: Option<SocketAddr>,
    other: Option<SocketAddr>,
    change: u32,
    response_port: Option<u16>,
    code: Option<u16>,
    /// Named by an error response.
    unknown: Vec<u16>,
    /// Not understood here.
    refused: Vec<u16>,
}

impl Read {
    fn attributes(message: &[u8], transaction: &Transaction) -> Result<Self, DecodeError> {
        let mut read = Self::default();
        for attribute in Attributes::of(message) {
            let attribute = attribute.map_err(|()| DecodeError::Malformed)?;
            if attribute.kind == attribute::FINGERPRINT {
                let before = message.get(..attribute.offset).unwrap_or_default();
                let right = attribute.value == attribute::fingerprint(before).to_be_bytes();
                let last = attribute.offset + FINGERPRINT_LEN == message.len();
                return if right && last { Ok(read) } else { Err(DecodeError::Malformed) };
            }
            read.take(attribute.kind, attribute.value, transaction).ok_or(DecodeError::Malformed)?;
        }
        Ok(read)
    }

    /// None where the value has not the attribute's form. Of several of one type, the first counts (RFC 8489
    /// §14).
    fn take(&mut self, kind: u16, value: &[u8], transaction: &Transaction) -> Option<()> {
        match kind {
            attribute::XOR_MAPPED_ADDRESS => {
                self.mapped = Some(attribute::read_xor_address(value, transaction)?)
            }
            // Of servers of RFC 3489, and only where there is no better one.
            attribute::MAPPED_ADDRESS => {
                let address = attribute::read_address(value)?;
                self.mapped.get_or_insert(address);
            }
            attribute::RESPONSE_ORIGIN => self.origin = Some(attribute::read_address(value)?),
            attribute::OTHER_ADDRESS => self.other = Some(attribute::read_address(value)?),
            attribute::CHANGE_REQUEST => self.change = u32::from_be_bytes(value.try_into().ok()?),
            attribute::RESPONSE_PORT => {
                // Four bytes in RFC 5780's drawing, two in its words.
                self.response_port = Some(u16::from_be_bytes(*value.first_chunk()?));
            }
            attribute::ERROR_CODE => {
                let [_, _, class, number] = *value.first_chunk::<4>()?;
                self.code = Some(u16::from(class & 7) * 100 + u16::from(number));
            }
            attribute::UNKNOWN_ATTRIBUTES => {
                let (kinds, _) = value.as_chunks::<2>();
                self.unknown = kinds.iter().take(MAX_UNKNOWN).map(|kind| u16::from_be_bytes(*kind)).collect();
            }
            refused if attribute::must_be_refused(refused) && self.refused.len() < MAX_UNKNOWN => {
                self.refused.push(refused);
            }
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
