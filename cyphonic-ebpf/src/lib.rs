//! What Cyphonic's eBPF objects have in common.
//!
//! One object a purpose, so that a host loads no more maps than it uses:
//!
//! | Object | Loaded by | Holds |
//! |---|---|---|
//! | `agent` | the agent | programs on the virtual interface, the underlay and the UDP sockets |
//! | `relay` | a TRS | the relay's XDP program and its map of legs |
//! | `bench` | benchmarks only | a bare forwarder and a packet generator to measure against |

#![no_std]

pub mod xdp_frame;

/// Never reached: the library code has no panicking path left after optimisation, or the verifier would
/// refuse the program for this loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Declares the licence section, which the kernel reads to decide which helpers an object's programs may
/// call.
#[macro_export]
macro_rules! license {
    () => {
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}
