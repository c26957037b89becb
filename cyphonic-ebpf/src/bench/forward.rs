//! The least a relay can do: everything it writes, with constants instead of what it looks up.
//!
//! It swaps the link addresses, sends to one address and port, writes one connection ID, decrements the hop
//! limit and keeps both checksums true. There is no leg, no check of the source, no route, no neighbour, no
//! limit and no counter.

use aya_ebpf::Global;
use aya_ebpf::programs::XdpContext;

use crate::frame::{read, write};
use crate::traffic::{PAYLOAD, fold, odd_sum, real_cid, word};

/// The receiver's IPv4 address, in network byte order.
#[unsafe(no_mangle)]
static FORWARD_TO: Global<[u8; 4]> = Global::new([0; 4]);

/// The UDP port that is forwarded, in network byte order.
#[unsafe(no_mangle)]
static FORWARD_PORT: Global<[u8; 2]> = Global::new([0; 2]);

#[inline(always)]
pub(crate) fn forward(ctx: &XdpContext) -> Option<()> {
    let ip = read::<[u8; 20]>(ctx, 14)?;
    let udp = read::<[u8; 8]>(ctx, 34)?;
    let port = FORWARD_PORT.load();
    let is_ours =
        read::<[u8; 2]>(ctx, 12)? == [8, 0] && ip[0] == 0x45 && ip[9] == 17 && [udp[2], udp[3]] == port;
    let old_cid = read::<[u8; 8]>(ctx, PAYLOAD + 1)?;
    if !is_ours || ip[8] <= 1 {
        return None;
    }
    let (new_to, new_cid) = (FORWARD_TO.load(), real_cid(0));
    let old_addresses = words(&[ip[12], ip[13], ip[14], ip[15]]) + words(&[ip[16], ip[17], ip[18], ip[19]]);
    let new_addresses = words(&[ip[16], ip[17], ip[18], ip[19]]) + words(&new_to);

    let macs = read::<[u8; 12]>(ctx, 0)?;
    write(ctx, 0, [macs[6], macs[7], macs[8], macs[9], macs[10], macs[11]])?;
    write(ctx, 6, [macs[0], macs[1], macs[2], macs[3], macs[4], macs[5]])?;
    let old_hops = word(ip[8], 0) + old_addresses;
    let ip_sum = update(word(ip[10], ip[11]), old_hops, word(ip[8] - 1, 0) + new_addresses);
    write(ctx, 22, ip[8] - 1)?;
    write(ctx, 24, ip_sum.to_be_bytes())?;
    write(ctx, 26, [ip[16], ip[17], ip[18], ip[19]])?;
    write(ctx, 30, new_to)?;
    // The ports are swapped, which no sum notices.
    write(ctx, 34, [udp[2], udp[3], udp[0], udp[1]])?;
    let old = old_addresses + odd_sum(&old_cid);
    let new = new_addresses + odd_sum(&new_cid);
    let udp_sum = update(word(udp[6], udp[7]), old, new);
    write(ctx, 40, udp_sum.to_be_bytes())?;
    write(ctx, PAYLOAD + 1, new_cid)
}

/// The checksum after words of the sum `old` became words of the sum `new` (RFC 1624, equation 3).
#[inline(always)]
fn update(checksum: u32, old: u32, new: u32) -> u16 {
    !fold((!checksum & 0xffff) + u32::from(!fold(old)) + new)
}

#[inline(always)]
fn words(address: &[u8; 4]) -> u32 {
    word(address[0], address[1]) + word(address[2], address[3])
}
