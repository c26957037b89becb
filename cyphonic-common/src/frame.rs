//! The frames inside a tunnel data packet.
//!
//! A tunnel uses the part of QUIC's frames that it needs (RFC 9000 §19, RFC 9221 §4): DATAGRAM carries one
//! inner packet, PING and PADDING probe the path's MTU, PATH_CHALLENGE and PATH_RESPONSE validate a path
//! before a tunnel moves to it, CONNECTION_CLOSE ends the tunnel. Of this protocol's own (RFC 9000 §19.21)
//! are CANDIDATES, which tells where the sender may be reached, and PART, which carries inner packets that
//! are too large for a narrow path ([`part`]). Any other frame is the peer's error: there are no streams
//! here.
//!
//! Encoding and decoding work on slices and never allocate. Decoded frames borrow from the packet.

use core::fmt;

use crate::limits::MAX_REASON;
use crate::varint;

mod candidates;
pub mod part;

pub use candidates::{CandidateFlags, CandidateList, Candidates, MAX_CANDIDATE_BYTES, MAX_CANDIDATES};
pub use part::Part;

const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
const PATH_CHALLENGE: u8 = 0x1a;
const PATH_RESPONSE: u8 = 0x1b;
/// The type bytes of frames that only try a path (RFC 9000 §9.1): a packet that begins with one is no sign of
/// a move.
pub const PROBING: [u8; 2] = [PATH_CHALLENGE, PATH_RESPONSE];
const CONNECTION_CLOSE: u8 = 0x1c;
const APPLICATION_CLOSE: u8 = 0x1d;
/// The type byte of a DATAGRAM frame that runs to the end of its packet (RFC 9221 §4).
pub const DATAGRAM: u8 = 0x30;
const DATAGRAM_WITH_LENGTH: u8 = 0x31;
/// Types of this protocol's own take two bytes, so that none is mistaken for one of QUIC's.
const CANDIDATES: u8 = 0x71;
const PART: u8 = 0x72;

/// One frame of a tunnel data packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A run of this many PADDING bytes (RFC 9000 §19.1).
    Padding(usize),
    /// Asks for an acknowledgement (§19.2).
    Ping,
    /// Asks for the same bytes back on the same path (§19.17).
    PathChallenge([u8; 8]),
    /// Answers a [`Frame::PathChallenge`] (§19.18).
    PathResponse([u8; 8]),
    /// Ends the tunnel (§19.19).
    Close(Close<'a>),
    /// One inner packet that runs to the end of the tunnel packet (RFC 9221 §4, type 0x30). The cheapest
    /// form.
    Datagram(&'a [u8]),
    /// One inner packet with an explicit length (type 0x31), so that another frame may follow.
    DatagramWithLength(&'a [u8]),
    /// Where the sender may be reached (type 0x71).
    Candidates(Candidates<'a>),
    /// A piece of an inner packet, to the end of the tunnel packet (type 0x72).
    Part(Part<'a>),
}

/// Why a peer ends a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close<'a> {
    /// The error code, at most [`varint::MAX`].
    pub error_code: u64,
    /// The type of the frame that caused a transport error (0x1c). `None` is an application close (0x1d).
    pub frame_type: Option<u64>,
    /// What to tell the operator: UTF-8 by convention, but unchecked. At most [`MAX_REASON`] bytes of it are
    /// kept.
    pub reason: &'a [u8],
}

/// What is wrong with the frames of an authenticated packet. The peer erred: drop the packet and count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// A frame ends beyond the packet's end.
    Truncated,
    /// A frame type that does not belong in a tunnel data packet.
    UnexpectedType(u64),
    /// A frame type that is not in its shortest encoding (RFC 9000 §12.4).
    LongType,
    /// A list of candidates that is too long, or has an endpoint that is none.
    BadCandidates,
    /// A PART that lies outside its packet, is empty, or is all of it.
    BadPart,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("a frame ends beyond the packet's end"),
            Self::UnexpectedType(kind) => {
                write!(f, "frame type {kind:#x} does not belong in a tunnel packet")
            }
            Self::LongType => f.write_str("a frame type is not in its shortest encoding"),
            Self::BadCandidates => f.write_str("a list of candidates has what is no endpoint, or too many"),
            Self::BadPart => f.write_str("a piece of a packet does not lie inside it"),
        }
    }
}

impl core::error::Error for FrameError {}

/// A frame did not fit its buffer, or one of its numbers is larger than a QUIC integer can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeError;

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the frame does not fit, or a number in it exceeds 2^62 - 1")
    }
}

impl core::error::Error for EncodeError {}

impl Frame<'_> {
    /// Bytes that [`Frame::encode`] writes, or `None` where a number exceeds [`varint::MAX`].
    pub fn encoded_len(&self) -> Option<usize> {
        Some(match self {
            Self::Padding(count) => *count,
            Self::Ping => 1,
            Self::PathChallenge(_) | Self::PathResponse(_) => 9,
            Self::Close(close) => close.encoded_len()?,
            Self::Datagram(payload) => 1usize.checked_add(payload.len())?,
            Self::DatagramWithLength(payload) => {
                (1 + varint::encoded_len(payload.len() as u64)?).checked_add(payload.len())?
            }
            Self::Candidates(candidates) => 2 + candidates.encoded_len()?,
            Self::Part(part) => part::PART_HEADER.checked_add(part.bytes.len())?,
        })
    }

    /// Writes the frame at the start of `out` and returns the bytes it took.
    ///
    /// # Errors
    /// [`EncodeError`] where it does not fit; `out` then holds no promise.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        let mut writer = Writer { out, at: 0 };
        self.write(&mut writer).ok_or(EncodeError)?;
        Ok(writer.at)
    }

    fn write(&self, writer: &mut Writer<'_>) -> Option<()> {
        match self {
            Self::Padding(count) => writer.zeros(*count),
            Self::Ping => writer.bytes(&[PING]),
            Self::PathChallenge(token) => writer.bytes(&[PATH_CHALLENGE]).and_then(|()| writer.bytes(token)),
            Self::PathResponse(token) => writer.bytes(&[PATH_RESPONSE]).and_then(|()| writer.bytes(token)),
            Self::Close(close) => close.write(writer),
            Self::Datagram(payload) => writer.bytes(&[DATAGRAM]).and_then(|()| writer.bytes(payload)),
            Self::DatagramWithLength(payload) => {
                writer.bytes(&[DATAGRAM_WITH_LENGTH])?;
                writer.varint(payload.len() as u64)?;
                writer.bytes(payload)
            }
            Self::Candidates(candidates) => {
                writer.varint(u64::from(CANDIDATES))?;
                candidates.write(writer)
            }
            Self::Part(part) => {
                // What no receiver would take is not sent.
                part.is_sound().then_some(())?;
                writer.bytes(&part.header())?;
                writer.bytes(part.bytes)
            }
        }
    }
}

impl<'a> Close<'a> {
    /// The part of the reason that travels.
    fn kept_reason(&self) -> &'a [u8] {
        self.reason.get(..MAX_REASON).unwrap_or(self.reason)
    }

    fn encoded_len(&self) -> Option<usize> {
        let frame_type = match self.frame_type {
            Some(kind) => varint::encoded_len(kind)?,
            None => 0,
        };
        let reason = self.kept_reason().len();
        Some(
            1 + varint::encoded_len(self.error_code)?
                + frame_type
                + varint::encoded_len(reason as u64)?
                + reason,
        )
    }

    fn write(&self, writer: &mut Writer<'_>) -> Option<()> {
        let kind = if self.frame_type.is_some() { CONNECTION_CLOSE } else { APPLICATION_CLOSE };
        writer.bytes(&[kind])?;
        writer.varint(self.error_code)?;
        if let Some(frame_type) = self.frame_type {
            writer.varint(frame_type)?;
        }
        let reason = self.kept_reason();
        writer.varint(reason.len() as u64)?;
        writer.bytes(reason)
    }
}

/// The frames of a packet, in order. Ends after the first error.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Reads the plaintext of a tunnel data packet.
    pub const fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    fn parse(&mut self) -> Result<Frame<'a>, FrameError> {
        let kind = self.frame_type()?;
        Ok(match kind {
            PADDING => Frame::Padding(1 + self.take_zeros()),
            PING => Frame::Ping,
            PATH_CHALLENGE => Frame::PathChallenge(self.token()?),
            PATH_RESPONSE => Frame::PathResponse(self.token()?),
            CONNECTION_CLOSE | APPLICATION_CLOSE => Frame::Close(self.close(kind == CONNECTION_CLOSE)?),
            DATAGRAM => Frame::Datagram(core::mem::take(&mut self.rest)),
            DATAGRAM_WITH_LENGTH => {
                let len = self.varint()?;
                Frame::DatagramWithLength(self.take(len)?)
            }
            CANDIDATES => Frame::Candidates(Candidates::parse(self)?),
            PART => Frame::Part(Part::parse(core::mem::take(&mut self.rest))?),
            other => return Err(FrameError::UnexpectedType(u64::from(other))),
        })
    }

    /// Every type this protocol knows fits a byte; those from 0x40 on take two on the wire.
    fn frame_type(&mut self) -> Result<u8, FrameError> {
        let before = self.rest.len();
        let kind = self.varint()?;
        if varint::encoded_len(kind) != Some(before - self.rest.len()) {
            return Err(FrameError::LongType);
        }
        u8::try_from(kind).map_err(|_| FrameError::UnexpectedType(kind))
    }

    fn close(&mut self, transport: bool) -> Result<Close<'a>, FrameError> {
        let error_code = self.varint()?;
        let frame_type = if transport { Some(self.varint()?) } else { None };
        let reason_len = self.varint()?;
        let reason = self.take(reason_len)?;
        Ok(Close { error_code, frame_type, reason: reason.get(..MAX_REASON).unwrap_or(reason) })
    }

    fn token(&mut self) -> Result<[u8; 8], FrameError> {
        let (token, rest) = self.rest.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.rest = rest;
        Ok(*token)
    }

    fn varint(&mut self) -> Result<u64, FrameError> {
        let (value, len) = varint::decode(self.rest).ok_or(FrameError::Truncated)?;
        self.rest = self.rest.get(len..).unwrap_or_default();
        Ok(value)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], FrameError> {
        let len = usize::try_from(len).map_err(|_| FrameError::Truncated)?;
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(FrameError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_zeros(&mut self) -> usize {
        let count = self.rest.iter().take_while(|&&byte| byte == PADDING).count();
        self.rest = self.rest.get(count..).unwrap_or_default();
        count
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let frame = self.parse();
        if frame.is_err() {
            self.rest = &[];
        }
        Some(frame)
    }
}

impl core::iter::FusedIterator for Frames<'_> {}

/// A bounded output position.
struct Writer<'o> {
    out: &'o mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        self.out.get_mut(self.at..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.at += bytes.len();
        Some(())
    }

    fn zeros(&mut self, count: usize) -> Option<()> {
        self.out.get_mut(self.at..)?.get_mut(..count)?.fill(PADDING);
        self.at += count;
        Some(())
    }

    fn varint(&mut self, value: u64) -> Option<()> {
        self.at += varint::encode(value, self.out.get_mut(self.at..)?)?;
        Some(())
    }
}

#[cfg(test)]
mod tests;
