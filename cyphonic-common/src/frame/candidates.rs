//! CANDIDATES: where a tunnel's end may be reached, told to the other end inside the tunnel.
//!
//! ```text
//! sequence (varint) | heard (varint) | flags (1 byte) | count (1 byte)
//!   | count times: family (4 or 6), address (4 or 16 bytes), port
//! ```
//!
//! A list replaces the one with a lower sequence number, and `heard` acknowledges the other end's lists up to
//! that number. It is a whole or it is nothing: a frame with an unknown family, port 0 or more than
//! [`MAX_CANDIDATES`] endpoints is the sender's error. Unknown flags are ignored.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{FrameError, Frames, Writer};
use crate::varint;

/// Most endpoints in one list. A node with more tells its best.
pub const MAX_CANDIDATES: usize = 16;
/// Bytes of the longest list.
pub const MAX_CANDIDATE_BYTES: usize = MAX_CANDIDATES * V6_LEN;

const V4_LEN: usize = 1 + 4 + 2;
const V6_LEN: usize = 1 + 16 + 2;
const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;

/// The content of a CANDIDATES frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidates<'a> {
    /// Counts the sender's lists in this tunnel, upwards. At most [`varint::MAX`].
    pub sequence: u64,
    /// The highest number of the receiver's lists that has reached the sender; 0 before the first. At most
    /// [`varint::MAX`].
    pub heard: u64,
    /// What the sender asks for.
    pub flags: CandidateFlags,
    /// Its endpoints, best first.
    pub endpoints: CandidateList<'a>,
}

/// What comes with a list of candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CandidateFlags {
    /// The receiver is to tell its own candidates.
    pub answer: bool,
    /// The sender keeps this tunnel open while nothing uses it, and asks the receiver to do likewise.
    pub keep: bool,
    /// The sender is elsewhere than before: the way to it may have gone.
    pub moved: bool,
}

impl CandidateFlags {
    const ANSWER: u8 = 1;
    const KEEP: u8 = 2;
    const MOVED: u8 = 4;

    fn to_byte(self) -> u8 {
        u8::from(self.answer) * Self::ANSWER
            + u8::from(self.keep) * Self::KEEP
            + u8::from(self.moved) * Self::MOVED
    }

    /// Flags that a later version may add are ignored.
    const fn from_byte(byte: u8) -> Self {
        Self {
            answer: byte & Self::ANSWER != 0,
            keep: byte & Self::KEEP != 0,
            moved: byte & Self::MOVED != 0,
        }
    }
}

/// A checked list of endpoints, in the form that it has on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CandidateList<'a> {
    bytes: &'a [u8],
    count: u8,
}

impl<'a> CandidateList<'a> {
    /// Writes endpoints into `room`; those beyond [`MAX_CANDIDATES`], and those with port 0, are left out.
    pub fn new(endpoints: &[SocketAddr], room: &'a mut [u8; MAX_CANDIDATE_BYTES]) -> Self {
        let mut writer = Writer { out: room, at: 0 };
        let mut count = 0;
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.port() != 0).take(MAX_CANDIDATES) {
            if write_endpoint(&mut writer, endpoint).is_some() {
                count += 1;
            }
        }
        let len = writer.at;
        Self { bytes: room.get(..len).unwrap_or_default(), count }
    }

    /// The endpoints, in the sender's order.
    pub fn iter(self) -> impl Iterator<Item = SocketAddr> + use<'a> {
        let mut frames = Frames { rest: self.bytes };
        core::iter::from_fn(move || frames.endpoint().ok())
    }
}

impl<'a> Candidates<'a> {
    pub(super) fn encoded_len(&self) -> Option<usize> {
        Some(
            varint::encoded_len(self.sequence)?
                + varint::encoded_len(self.heard)?
                + 2
                + self.endpoints.bytes.len(),
        )
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) -> Option<()> {
        writer.varint(self.sequence)?;
        writer.varint(self.heard)?;
        writer.bytes(&[self.flags.to_byte(), self.endpoints.count])?;
        writer.bytes(self.endpoints.bytes)
    }

    pub(super) fn parse(frames: &mut Frames<'a>) -> Result<Self, FrameError> {
        let sequence = frames.varint()?;
        let heard = frames.varint()?;
        let flags = CandidateFlags::from_byte(frames.byte()?);
        let count = frames.byte()?;
        if usize::from(count) > MAX_CANDIDATES {
            return Err(FrameError::BadCandidates);
        }
        let start = frames.rest;
        for _ in 0..count {
            frames.endpoint()?;
        }
        let len = start.len() - frames.rest.len();
        let endpoints = CandidateList { bytes: start.get(..len).unwrap_or_default(), count };
        Ok(Self { sequence, heard, flags, endpoints })
    }
}

impl Frames<'_> {
    fn byte(&mut self) -> Result<u8, FrameError> {
        Ok(self.array::<1>()?[0])
    }

    fn endpoint(&mut self) -> Result<SocketAddr, FrameError> {
        let ip = match self.byte()? {
            FAMILY_V4 => IpAddr::from(Ipv4Addr::from(self.array::<4>()?)),
            FAMILY_V6 => IpAddr::from(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(FrameError::BadCandidates),
        };
        match u16::from_be_bytes(self.array()?) {
            0 => Err(FrameError::BadCandidates),
            port => Ok(SocketAddr::new(ip, port)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.rest = rest;
        Ok(*array)
    }
}

fn write_endpoint(writer: &mut Writer<'_>, endpoint: &SocketAddr) -> Option<()> {
    let len = if endpoint.is_ipv4() { V4_LEN } else { V6_LEN };
    // Whole or not at all.
    if writer.out.len() < writer.at + len {
        return None;
    }
    match endpoint.ip() {
        IpAddr::V4(ip) => {
            writer.bytes(&[FAMILY_V4])?;
            writer.bytes(&ip.octets())?;
        }
        IpAddr::V6(ip) => {
            writer.bytes(&[FAMILY_V6])?;
            writer.bytes(&ip.octets())?;
        }
    }
    writer.bytes(&endpoint.port().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::frame::Frame;

    fn encode(frame: &Frame<'_>) -> Vec<u8> {
        let mut out = vec![0xaa; frame.encoded_len().unwrap()];
        assert_eq!(frame.encode(&mut out), Ok(out.len()), "encoded_len and encode agree");
        out
    }

    fn endpoint() -> impl Strategy<Value = SocketAddr> {
        let ip = prop_oneof![
            any::<[u8; 4]>().prop_map(|ip| IpAddr::from(Ipv4Addr::from(ip))),
            any::<[u8; 16]>().prop_map(|ip| IpAddr::from(Ipv6Addr::from(ip))),
        ];
        (ip, 1u16..).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    proptest! {
        #[test]
        fn a_list_round_trips_before_other_frames(
            sequence in 0..=varint::MAX, heard in 0..=varint::MAX, answer: bool, keep: bool, moved: bool,
            endpoints in proptest::collection::vec(endpoint(), 0..20),
        ) {
            let mut room = [0; MAX_CANDIDATE_BYTES];
            let list = CandidateList::new(&endpoints, &mut room);
            let frame = Frame::Candidates(Candidates {
                sequence, heard, flags: CandidateFlags { answer, keep, moved }, endpoints: list,
            });
            let mut packet = encode(&frame);
            packet.push(1);
            let frames: Vec<_> = Frames::new(&packet).collect();
            prop_assert_eq!(&frames, &[Ok(frame), Ok(Frame::Ping)]);
            let kept: Vec<_> = endpoints.into_iter().take(MAX_CANDIDATES).collect();
            let Some(Ok(Frame::Candidates(read))) = frames.first() else { panic!("no list") };
            prop_assert_eq!(read.endpoints.iter().collect::<Vec<_>>(), kept);
        }

        #[test]
        fn any_bytes_behind_the_type_end_without_a_panic(bytes: Vec<u8>) {
            let packet = [&[0x40, 0x71], bytes.as_slice()].concat();
            for frame in Frames::new(&packet).flatten() {
                if let Frame::Candidates(read) = frame {
                    prop_assert_eq!(read.endpoints.iter().count(), usize::from(read.endpoints.count));
                }
            }
        }

        #[test]
        fn a_cut_list_is_refused(cut in 1usize..30) {
            let mut room = [0; MAX_CANDIDATE_BYTES];
            let endpoints = ["192.0.2.1:7".parse().unwrap(), "[2001:db8::1]:9".parse().unwrap()];
            let endpoints = CandidateList::new(&endpoints, &mut room);
            let frame = Frame::Candidates(Candidates { sequence: 1, heard: 0, flags: CandidateFlags::default(), endpoints });
            let packet = encode(&frame);
            let cut = packet.len().saturating_sub(cut).max(2);
            prop_assert_eq!(Frames::new(&packet[..cut]).next(), Some(Err(FrameError::Truncated)));
        }
    }

    #[test]
    fn what_cannot_be_an_endpoint_is_the_peers_error() {
        let bad = Some(Err(FrameError::BadCandidates));
        // Seventeen endpoints, an unknown family, port 0.
        assert_eq!(Frames::new(&[0x40, 0x71, 1, 0, 0, 17]).next(), bad);
        assert_eq!(Frames::new(&[0x40, 0x71, 1, 0, 0, 1, 5, 0, 0, 0, 0, 0, 0]).next(), bad);
        assert_eq!(Frames::new(&[0x40, 0x71, 1, 0, 0, 1, 4, 192, 0, 2, 1, 0, 0]).next(), bad);
    }
}
