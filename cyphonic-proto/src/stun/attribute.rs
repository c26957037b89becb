//! Attributes (RFC 8489 §14, RFC 5780 §7): types, walking over them, and the forms of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cyphonic_common::stun::{HEADER_LEN, MAGIC_COOKIE};

pub(super) const MAPPED_ADDRESS: u16 = 0x0001;
pub(super) const CHANGE_REQUEST: u16 = 0x0003;
pub(super) const ERROR_CODE: u16 = 0x0009;
pub(super) const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub(super) const PADDING: u16 = 0x0026;
pub(super) const RESPONSE_PORT: u16 = 0x0027;
pub(super) const SOFTWARE: u16 = 0x8022;
pub(super) const FINGERPRINT: u16 = 0x8028;
pub(super) const RESPONSE_ORIGIN: u16 = 0x802b;
pub(super) const OTHER_ADDRESS: u16 = 0x802c;

/// Of authentication, which a Binding usage without it ignores: USERNAME, MESSAGE-INTEGRITY, REALM, NONCE,
/// MESSAGE-INTEGRITY-SHA256, PASSWORD-ALGORITHM, USERHASH; and of ICE (RFC 8445 §16.1): PRIORITY,
/// USE-CANDIDATE.
const IGNORED: [u16; 9] = [0x0006, 0x0008, 0x0014, 0x0015, 0x001c, 0x001d, 0x001e, 0x0024, 0x0025];

/// From here on types may be ignored by whoever does not know them (RFC 8489 §14).
const OPTIONAL: u16 = 0x8000;

/// What the checksum is combined with (RFC 8489 §14.7).
const FINGERPRINT_MASK: u32 = 0x5354_554e;

/// Whether a receiver must understand the attribute, and this one does not.
pub(super) fn must_be_refused(kind: u16) -> bool {
    let known = [
        MAPPED_ADDRESS,
        CHANGE_REQUEST,
        ERROR_CODE,
        UNKNOWN_ATTRIBUTES,
        XOR_MAPPED_ADDRESS,
        PADDING,
        RESPONSE_PORT,
    ];
    kind < OPTIONAL && !known.contains(&kind) && !IGNORED.contains(&kind)
}

/// One attribute: its type, its value, and how many bytes of the message come before it.
pub(super) struct Attribute<'a> {
    pub(super) kind: u16,
    pub(super) value: &'a [u8],
    pub(super) offset: usize,
}

/// Walks over attributes; an `Err` ends it.
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Attributes<'a> {
    /// Over everything behind the header of a message.
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { rest: message.get(HEADER_LEN..).unwrap_or_default(), offset: HEADER_LEN }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, ()>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let attribute = split(self.rest).map(|(kind, value, rest)| {
            let attribute = Attribute { kind, value, offset: self.offset };
            self.offset += self.rest.len() - rest.len();
            self.rest = rest;
            attribute
        });
        if attribute.is_none() {
            self.rest = &[];
        }
        Some(attribute.ok_or(()))
    }
}

/// Type, value, and what follows its padding to four bytes.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<4>()?;
    let [k0, k1, l0, l1] = *header;
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    let value = rest.get(..len)?;
    Some((u16::from_be_bytes([k0, k1]), value, rest.get(len.next_multiple_of(4)..)?))
}

/// Appends an attribute with its padding.
pub(super) fn push(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend(value.iter().take(usize::from(len)));
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends an address as it is (RFC 8489 §14.1).
pub(super) fn push_address(out: &mut Vec<u8>, kind: u16, address: SocketAddr) {
    push(out, kind, &address_value(address, 0, &[0; 16]));
}

/// Appends an address combined with cookie and transaction, so that no NAT on the way rewrites it (RFC 8489
/// §14.2).
pub(super) fn push_xor_address(out: &mut Vec<u8>, kind: u16, address: SocketAddr, transaction: &[u8; 12]) {
    push(out, kind, &address_value(address, PORT_MASK, &mask(transaction)));
}

/// The upper half of the cookie.
const PORT_MASK: u16 = (MAGIC_COOKIE >> 16) as u16;

fn mask(transaction: &[u8; 12]) -> [u8; 16] {
    let mut mask = [0; 16];
    let (cookie, rest) = mask.split_at_mut(4);
    cookie.copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    rest.copy_from_slice(transaction);
    mask
}

fn address_value(address: SocketAddr, port_mask: u16, mask: &[u8; 16]) -> Vec<u8> {
    let ip = address.ip().to_canonical();
    let family = if ip.is_ipv4() { 1 } else { 2 };
    let mut value = vec![0, family];
    value.extend_from_slice(&(address.port() ^ port_mask).to_be_bytes());
    let mut combine = |octets: &[u8]| value.extend(octets.iter().zip(mask).map(|(octet, mask)| octet ^ mask));
    match ip {
        IpAddr::V4(ip) => combine(&ip.octets()),
        IpAddr::V6(ip) => combine(&ip.octets()),
    }
    value
}

/// An address as it is.
pub(super) fn read_address(value: &[u8]) -> Option<SocketAddr> {
    read_masked(value, 0, &[0; 16])
}

/// An address combined with cookie and transaction.
pub(super) fn read_xor_address(value: &[u8], transaction: &[u8; 12]) -> Option<SocketAddr> {
    read_masked(value, PORT_MASK, &mask(transaction))
}

fn read_masked(value: &[u8], port_mask: u16, mask: &[u8; 16]) -> Option<SocketAddr> {
    let ([_, family, p0, p1], octets) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([*p0, *p1]) ^ port_mask;
    let mut ip = [0; 16];
    ip.iter_mut().zip(octets.iter().zip(mask)).for_each(|(out, (octet, mask))| *out = octet ^ mask);
    let ip = match (family, octets.len()) {
        (1, 4) => Ipv4Addr::from_bits(u32::from_be_bytes(*ip.first_chunk()?)).into(),
        (2, 16) => IpAddr::V6(Ipv6Addr::from(ip)),
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// The value of FINGERPRINT for a message whose bytes before that attribute these are.
pub(super) fn fingerprint(before: &[u8]) -> u32 {
    crc32(before) ^ FINGERPRINT_MASK
}

/// CRC-32 of ISO 3309, bit by bit: messages are short and rare.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8)
            .fold(crc ^ u32::from(*byte), |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_its_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
