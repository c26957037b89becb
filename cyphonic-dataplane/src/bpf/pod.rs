//! The values of the programs' maps, as aya copies them into and out of the kernel.
//!
//! aya takes what is [`Pod`]: any bytes are a value, and no byte of it is padding, since the kernel compares
//! and shows all of them. Which values those are is said here, each beside the sum that rules padding out:
//! the fields' sizes make up the whole's.

#![expect(unsafe_code, reason = "aya's Pod")]

use aya::Pod;
use cyphonic_common::map::{Counter, InterfaceConfig, PeerEntry};
use cyphonic_common::policy::PolicyKey;
use cyphonic_common::relay::{LegEntry, PackedLeg, RelayConfig, RelayRate, RelayState, RelayWatch, Way};
use cyphonic_common::steer::UnderlayConfig;

/// A value as aya copies it.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Value<T>(pub(crate) T);

const _: () = assert!(size_of::<InterfaceConfig>() == 3 * 16 + 2 * 4);
// SAFETY: `repr(C)`: three addresses and two `u32`.
unsafe impl Pod for Value<InterfaceConfig> {}

const _: () = assert!(size_of::<Counter>() == 2 * 8);
// SAFETY: `repr(C)`: two `u64`.
unsafe impl Pod for Value<Counter> {}

const _: () = assert!(size_of::<PeerEntry>() == 3 * 4);
// SAFETY: `repr(C)`: three `u32`.
unsafe impl Pod for Value<PeerEntry> {}

const _: () = assert!(size_of::<PolicyKey>() == 4 + 2 + 1 + 1);
// SAFETY: `repr(C)`: a `u32`, a port of two bytes, and two bytes.
unsafe impl Pod for Value<PolicyKey> {}

const _: () = assert!(size_of::<UnderlayConfig>() == 2 + 2);
// SAFETY: `repr(C)`: a port of two bytes, and two bytes that are reserved.
unsafe impl Pod for Value<UnderlayConfig> {}

const _: () = assert!(size_of::<RelayConfig>() == 8 + 2 * 4 + 2 + 6);
// SAFETY: `repr(C)`: a `u64`, two `u32`, a port of two bytes, and six bytes that are reserved.
unsafe impl Pod for Value<RelayConfig> {}

const _: () = assert!(size_of::<RelayWatch>() == 2 * 4);
// SAFETY: `repr(C)`: two `u32`. That they are aligned as a `u64` is adds nothing to their size.
unsafe impl Pod for Value<RelayWatch> {}

const _: () = assert!(size_of::<RelayRate>() == 2 * 4);
const _: () = assert!(size_of::<PackedLeg>() == 2 * 8 + 2 * 16 + 2 * 2 + size_of::<RelayRate>() + 4);
const _: () = assert!(size_of::<RelayState>() == 5 * 8);
const _: () = assert!(size_of::<Way>() == 3 * 4 + 2 * 4 + 2 + 2);
const _: () =
    assert!(size_of::<LegEntry>() == size_of::<PackedLeg>() + size_of::<RelayState>() + size_of::<Way>());
// SAFETY: `repr(C)`: a leg, its state and its way, which are `repr(C)` and consist of integers and arrays of
// bytes: a leg of two `u64`, two addresses, two ports, a rate (two `u32`) and four bytes, its state of five
// `u64`, its way of five `u32`, a `u16` and two bytes.
unsafe impl Pod for Value<LegEntry> {}
