//! Does one step of a packet's way a number of times, for `cargo xtask bench pi`, which counts instructions:
//! `packet_cost STEP SUITE BYTES TIMES`. For steps that handle many packets at once, it prints how many.
//!
//! Built for 64-bit ARM, it takes the processor for a Raspberry Pi 4's: that has no cryptographic
//! instructions, the emulator that counts has them, and libraries ask before they use them.

#![expect(clippy::print_stdout, reason = "it says how many packets it handled")]
#![cfg_attr(target_arch = "aarch64", expect(unsafe_code, reason = "a function of the C library is replaced"))]

use std::error::Error;
use std::hint::black_box;

use cyphonic_common::ConnectionId;
use cyphonic_dataplane::bench::{Joiner, TcpSuperPacket};
use cyphonic_dataplane::protect::{HEADER_LEN, Secret, Suite, TAG_LEN, pair};

/// A super-packet as large as the kernel makes them, and the payload of each packet that it is cut into.
const WHOLE: usize = 65_535;
const SEGMENT: u16 = 1_360;
/// Room for the packets, each with its headers.
const ROOM: usize = 80_000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [step, suite, bytes, times] = arguments.as_slice() else {
        return Err(
            "usage: packet_cost seal|open|split|join aes_128_gcm|chacha20_poly1305 BYTES TIMES".into()
        );
    };
    let suite = match suite.as_str() {
        "aes_128_gcm" => Suite::Aes128Gcm,
        "chacha20_poly1305" => Suite::ChaCha20Poly1305,
        _ => return Err("no such suite".into()),
    };
    let (bytes, times): (usize, usize) = (bytes.parse()?, times.parse()?);
    match step.as_str() {
        "seal" => drop(sealed(suite, bytes, times)?),
        "open" => open(suite, bytes, times)?,
        "split" => split(times),
        "join" => join(times),
        _ => return Err("no such step".into()),
    }
    Ok(())
}

/// The last of so many packets, each sealed into the same buffer.
fn sealed(suite: Suite, bytes: usize, times: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let (mut sealer, _) = pair(suite, &Secret::new([1; 32]), &Secret::new([2; 32]));
    let cid = ConnectionId::from_random_data([3; 8]);
    let mut packet = vec![0x5a; HEADER_LEN + bytes + TAG_LEN];
    for _ in 0..times {
        sealer.seal(cid, cid, black_box(&mut packet), bytes)?;
    }
    Ok(packet)
}

/// All packets are sealed first, whatever `times` is, so that only opening differs.
fn open(suite: Suite, bytes: usize, times: usize) -> Result<(), Box<dyn Error>> {
    const PACKETS: usize = 256;
    let (there, back) = (Secret::new([1; 32]), Secret::new([2; 32]));
    let ((mut sealer, _), (_, mut opener)) = (pair(suite, &there, &back), pair(suite, &back, &there));
    let cid = ConnectionId::from_random_data([3; 8]);
    let mut packets = vec![vec![0x5a; HEADER_LEN + bytes + TAG_LEN]; PACKETS];
    for packet in &mut packets {
        sealer.seal(cid, cid, packet, bytes)?;
    }
    for packet in packets.iter_mut().take(times) {
        black_box(opener.open(black_box(packet))?.packet_number);
    }
    Ok(())
}

fn split(times: usize) {
    let (whole, mut out) = (TcpSuperPacket::new(WHOLE, SEGMENT), vec![0; ROOM]);
    let mut count = 0;
    for _ in 0..times {
        count = whole.cut(black_box(&mut out), |len| _ = black_box(len));
    }
    println!("{count}");
}

fn join(times: usize) {
    let (mut packets, mut lens) = (vec![0; ROOM], Vec::new());
    TcpSuperPacket::new(WHOLE, SEGMENT).cut(&mut packets, |len| lens.push(len));
    let mut joiner = Joiner::default();
    for _ in 0..times {
        black_box(joiner.join(black_box(&packets), &lens));
    }
    println!("{}", lens.len());
}

/// In place of the C library's: what a Pi 4's kernel says of its processor, `fp asimd evtstrm crc32 cpuid`,
/// and nothing of anything else, which every caller has to expect of some kernel.
#[cfg(target_arch = "aarch64")]
// SAFETY: the name is the C library's, and so are signature and meaning; the C library itself does not call
// it, but reads what it keeps.
#[unsafe(no_mangle)]
extern "C" fn getauxval(kind: libc::c_ulong) -> libc::c_ulong {
    match kind {
        libc::AT_HWCAP => 1 | 1 << 1 | 1 << 2 | 1 << 7 | 1 << 11,
        libc::AT_PAGESZ => 4_096,
        _ => 0,
    }
}
