//! The measured traffic: pure functions that the generator's program and the measuring program both use.
//!
//! Everything about a packet follows from the number of its binding, so that a million bindings need no
//! table: not in the generator, whose cost would then depend on how many there are, and not in the sink.

/// What the template holds: headers and the first bytes of the payload. No frame may be shorter.
pub(crate) const HEAD_LEN: usize = 64;

/// Where the UDP payload begins: Ethernet, IPv4 without options, UDP.
pub(crate) const PAYLOAD: usize = 14 + 20 + 8;

/// The last four bytes of every connection ID behind the relay: what the sink recognises.
pub(crate) const MARK: [u8; 4] = *b"REAL";

/// Before the packet in a TURN channel: channel number and length (RFC 8656 §12.4).
pub(crate) const CHANNEL_HEADER_LEN: usize = 4;

/// The first sender's address; binding `i` has the one `i` further.
pub(crate) const FIRST_SENDER: u32 = u32::from_be_bytes([10, 0, 0, 1]);

/// The connection ID that packets of a binding carry to the relay: as good as random, so that neighbours in
/// number are not neighbours in a hash table. The high bit is that of data.
#[inline(always)]
pub(crate) const fn virtual_cid(binding: u32) -> [u8; 8] {
    // The finaliser of SplitMix64.
    let mut word = (binding as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((word ^ (word >> 31)) | 1 << 63).to_be_bytes()
}

/// The connection ID that the relay must write instead.
#[inline(always)]
pub(crate) const fn real_cid(binding: u32) -> [u8; 8] {
    let [a, b, c, d, ..] = virtual_cid(binding);
    [a, b, c, d, MARK[0], MARK[1], MARK[2], MARK[3]]
}

/// What the generator copies into each packet before it stamps it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Template {
    /// The frame's first bytes; checksums, sender and connection ID are zero.
    pub(crate) head: [u64; HEAD_LEN / 8],
    /// Sum of the IPv4 header's 16-bit words.
    pub(crate) ip_sum: u32,
    /// Sum of the pseudo header's, the UDP header's and the payload's 16-bit words.
    pub(crate) udp_sum: u32,
}

/// The sum of the 16-bit words of a connection ID that begins at an odd place, as it does behind the flags
/// byte.
#[inline(always)]
pub(crate) const fn odd_sum(cid: &[u8; 8]) -> u32 {
    let [a, b, c, d, e, f, g, h] = *cid;
    word(0, a) + word(b, c) + word(d, e) + word(f, g) + word(h, 0)
}

/// Two bytes as a 16-bit word.
#[inline(always)]
pub(crate) const fn word(high: u8, low: u8) -> u32 {
    u16::from_be_bytes([high, low]) as u32
}

/// The sum of an IPv4 address's two 16-bit words.
#[inline(always)]
pub(crate) const fn address_sum(address: u32) -> u32 {
    (address >> 16) + (address & 0xffff)
}

/// A sum of 16-bit words as one word, in ones' complement (RFC 1071). The sum has fewer than 2¹⁵ words.
#[inline(always)]
pub(crate) const fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// The UDP checksum of a sum: zero would mean that there is none (RFC 768).
#[inline(always)]
pub(crate) const fn udp_checksum(sum: u32) -> u16 {
    match !fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}
