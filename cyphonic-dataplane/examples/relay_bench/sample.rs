//! Whether the relay did its work: a fast relay that breaks packets is not fast.

use anyhow::{Result, ensure};

use crate::cable::{FIRST_RECEIVER, RELAY, RELAY_MAC, WORLD_MAC};
use crate::traffic::{MARK, PAYLOAD, fold};

/// Looks at the head of a packet that came out of the relay. What follows it is zero, as the generator made
/// it. What a socket sent over a cable of veth has no whole checksum, since no hardware needs one there.
pub(crate) fn check(head: &[u8], bindings: u32, whole_checksum: bool) -> Result<()> {
    ensure!(head.iter().any(|byte| *byte != 0), "nothing came out");
    ensure!(head[..6] == WORLD_MAC && head[6..12] == RELAY_MAC, "link addresses {:02x?}", &head[..12]);
    let ip = etherparse::Ipv4HeaderSlice::from_slice(&head[14..])?;
    ensure!(
        ip.header_checksum() == ip.to_header().calc_header_checksum(),
        "the IPv4 header checksum is wrong"
    );
    ensure!(ip.source_addr() == RELAY, "it comes from {}", ip.source_addr());
    ensure!(
        (u32::from(FIRST_RECEIVER)..u32::from(FIRST_RECEIVER) + bindings)
            .contains(&ip.destination_addr().into()),
        "it goes to {}",
        ip.destination_addr()
    );
    if whole_checksum {
        ensure!(udp_sum(head) == 0xffff, "the UDP checksum is wrong");
    }
    ensure!(ip.ttl() >= 1, "the hop limit is {}", ip.ttl());
    ensure!(head[PAYLOAD + 5..][..4] == MARK, "the connection ID is {:02x?}", &head[PAYLOAD + 1..][..8]);
    Ok(())
}

/// The sum of all words that the UDP checksum is made of, the checksum included: all ones, if it is right.
fn udp_sum(head: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
    };
    fold(words(&head[26..34]) + 17 + words(&head[38..40]) + words(&head[34..]))
}
