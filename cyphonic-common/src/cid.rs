//! Connection IDs.
//!
//! A QUIC short header does not say how long its connection ID is (RFC 8999 §5.2), so every ID a Cyphonic
//! node chooses has [`CID_LEN`] bytes. One UDP port carries both signalling (QUIC connections) and tunnel
//! data. The most significant bit of an ID tells them apart, so that a classifier without any state can steer
//! a packet; the other 63 bits are unpredictable.
//!
//! **Invariant.** IDs are made only from random bytes the caller supplies: a counter or an address in them
//! would let an observer correlate paths (RFC 9000 §5.1).

use core::fmt;

/// Bytes in every connection ID that a Cyphonic node chooses.
pub const CID_LEN: usize = 8;

/// Set in byte 0 of an ID that belongs to a tunnel's data path.
const DATA_BIT: u8 = 0x80;

/// The connection ID by which a packet reaches one connection or one tunnel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ConnectionId([u8; CID_LEN]);

impl ConnectionId {
    /// Takes an ID as it stands on the wire.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; CID_LEN]) -> Self {
        Self(bytes)
    }

    /// Makes a tunnel data ID from eight unpredictable bytes.
    #[inline(always)]
    pub const fn from_random_data(mut random: [u8; CID_LEN]) -> Self {
        random[0] |= DATA_BIT;
        Self(random)
    }

    /// Makes a signalling ID from eight unpredictable bytes.
    #[inline(always)]
    pub const fn from_random_signalling(mut random: [u8; CID_LEN]) -> Self {
        random[0] &= !DATA_BIT;
        Self(random)
    }

    /// The ID as it stands on the wire.
    #[inline(always)]
    pub const fn as_bytes(&self) -> &[u8; CID_LEN] {
        &self.0
    }

    /// Whether packets with this ID belong to a tunnel's data path rather than to a QUIC connection.
    #[inline(always)]
    pub const fn is_data(&self) -> bool {
        self.0[0] & DATA_BIT != 0
    }
}

impl From<[u8; CID_LEN]> for ConnectionId {
    fn from(bytes: [u8; CID_LEN]) -> Self {
        Self::from_bytes(bytes)
    }
}

impl AsRef<[u8]> for ConnectionId {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionId({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_kind_is_one_bit_and_the_rest_stays_random(random: [u8; CID_LEN]) {
            let data = ConnectionId::from_random_data(random);
            let signalling = ConnectionId::from_random_signalling(random);
            prop_assert!(data.is_data() && !signalling.is_data());
            prop_assert_eq!(data.as_bytes()[0] & 0x7f, random[0] & 0x7f);
            prop_assert_eq!(signalling.as_bytes()[0] & 0x7f, random[0] & 0x7f);
            prop_assert_eq!(&data.as_bytes()[1..], &random[1..]);
            prop_assert_eq!(&signalling.as_bytes()[1..], &random[1..]);
        }
    }

    #[test]
    fn it_prints_as_hex() {
        let cid = ConnectionId::from_bytes([0x80, 0x01, 2, 3, 4, 5, 0xfe, 0xff]);
        assert_eq!(format!("{cid}"), "800102030405feff");
        assert_eq!(format!("{cid:?}"), "ConnectionId(800102030405feff)");
    }
}
