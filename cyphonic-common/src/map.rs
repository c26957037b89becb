//! Layout of the eBPF maps that both halves touch.
//!
//! Userspace writes [`InterfaceConfig`] once, before the classifier is attached; the kernel only reads it. The kernel
//! writes [`Counter`]s, one array per CPU; userspace only reads and sums them. Addresses stand in network byte order,
//! as in packets, so neither side converts.

use crate::drop_reason::DropReason;

/// Names of the maps in the object file.
pub mod name {
    /// Array with one [`super::InterfaceConfig`].
    pub const CONFIG: &str = "CONFIG";
    /// Per-CPU array of [`super::Counter`], indexed by [`super::CounterIndex`].
    pub const COUNTERS: &str = "COUNTERS";
}

/// Which address a virtual interface has and which network it belongs to.
///
/// All zero (as the kernel makes it) is "not configured": the classifier then drops everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceConfig {
    own: [u8; 16],
    prefix: [u8; 16],
    mask: [u8; 16],
    configured: u32,
    reserved: u32,
}

/// An [`InterfaceConfig`] that contradicts itself. The caller erred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigError {
    /// A prefix length above 128.
    PrefixLength(u8),
    /// The node's own address is not inside the overlay's prefix.
    OwnAddressOutside,
    /// The node's own address is unspecified, loopback, link-local or multicast.
    OwnAddressUnusable,
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::PrefixLength(len) => write!(f, "prefix length {len} is above 128"),
            Self::OwnAddressOutside => {
                f.write_str("the node's virtual address is not in the overlay's prefix")
            }
            Self::OwnAddressUnusable => {
                f.write_str("the node's virtual address is unspecified, loopback, link-local or multicast")
            }
        }
    }
}

impl core::error::Error for ConfigError {}

impl InterfaceConfig {
    /// A node with address `own` in the overlay `prefix`/`prefix_len`.
    ///
    /// # Errors
    /// [`ConfigError`] where no packet could ever pass.
    pub fn new(own: [u8; 16], prefix: [u8; 16], prefix_len: u8) -> Result<Self, ConfigError> {
        if prefix_len > 128 {
            return Err(ConfigError::PrefixLength(prefix_len));
        }
        let mask = u128::MAX.checked_shl(u32::from(128 - prefix_len)).unwrap_or(0);
        let prefix = (u128::from_be_bytes(prefix) & mask).to_be_bytes();
        let config = Self { own, prefix, mask: mask.to_be_bytes(), configured: 1, reserved: 0 };
        let address = core::net::Ipv6Addr::from(own);
        if address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || address.is_unicast_link_local()
        {
            return Err(ConfigError::OwnAddressUnusable);
        }
        if !config.is_inside(&own) {
            return Err(ConfigError::OwnAddressOutside);
        }
        Ok(config)
    }

    /// What the kernel's map holds before userspace writes it.
    pub const fn unconfigured() -> Self {
        Self { own: [0; 16], prefix: [0; 16], mask: [0; 16], configured: 0, reserved: 0 }
    }

    /// Whether userspace has written it.
    #[inline(always)]
    pub const fn is_configured(&self) -> bool {
        self.configured != 0
    }

    /// Whether `address` is the node's own virtual address.
    #[inline(always)]
    pub fn is_own(&self, address: &[u8; 16]) -> bool {
        halves(address) == halves(&self.own)
    }

    /// Whether `address` belongs to the overlay.
    #[inline(always)]
    pub fn is_inside(&self, address: &[u8; 16]) -> bool {
        let (address, mask, prefix) = (halves(address), halves(&self.mask), halves(&self.prefix));
        address.0 & mask.0 == prefix.0 && address.1 & mask.1 == prefix.1
    }
}

/// An address as two machine words: comparing arrays would call `memcmp`, which the BPF target has to emulate byte by
/// byte. Going through one integer keeps the compiler from assembling the words from single bytes.
#[inline(always)]
const fn halves(bytes: &[u8; 16]) -> (u64, u64) {
    let whole = u128::from_ne_bytes(*bytes);
    (whole as u64, (whole >> 64) as u64)
}

/// Packets and bytes of one kind, on one CPU or summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Socket buffers: a super-packet counts once.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

impl Counter {
    /// Counts one packet. Wraps, as kernel counters do.
    #[inline(always)]
    pub const fn add(&mut self, bytes: u64) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes);
    }

    /// The sum of two counters.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }
}

/// What one entry of the counters' map counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterIndex {
    /// Packets from applications that go to a tunnel.
    Tunnel,
    /// The super-packets among [`CounterIndex::Tunnel`]: TCP or UDP not yet cut into segments.
    TunnelSuper,
    /// Packets from tunnels to this host.
    Ingress,
    /// The super-packets among [`CounterIndex::Ingress`].
    IngressSuper,
    /// Packets from applications that were dropped.
    Dropped(DropReason),
}

impl CounterIndex {
    const FIXED: u32 = 4;

    /// Entries in the counters' map.
    pub const COUNT: u32 = Self::FIXED + DropReason::COUNT as u32;

    /// The entry's number.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Tunnel => 0,
            Self::TunnelSuper => 1,
            Self::Ingress => 2,
            Self::IngressSuper => 3,
            Self::Dropped(reason) => Self::FIXED + reason.index(),
        }
    }
}

const _: () = assert!(size_of::<InterfaceConfig>() == 56 && align_of::<InterfaceConfig>() == 4);
const _: () = assert!(size_of::<Counter>() == 16 && align_of::<Counter>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;

    fn bytes(address: &str) -> [u8; 16] {
        address.parse::<Ipv6Addr>().unwrap().octets()
    }

    #[test]
    fn a_configuration_that_could_pass_nothing_is_refused() {
        let prefix = bytes("fd12:3456:789a::");
        let own = bytes("fd12:3456:789a:1::7");
        assert_eq!(InterfaceConfig::new(own, prefix, 129), Err(ConfigError::PrefixLength(129)));
        let outside = InterfaceConfig::new(bytes("fd12:3456:789b::1"), prefix, 48);
        assert_eq!(outside, Err(ConfigError::OwnAddressOutside));
        for unusable in ["::", "::1", "fe80::1", "ff02::1"] {
            let config = InterfaceConfig::new(bytes(unusable), bytes("::"), 0);
            assert_eq!(config, Err(ConfigError::OwnAddressUnusable), "{unusable}");
        }
        assert!(InterfaceConfig::new(own, prefix, 48).unwrap().is_configured());
        assert!(!InterfaceConfig::unconfigured().is_configured());
    }

    proptest! {
        #[test]
        fn membership_is_equality_of_the_leading_bits(own: u128, other: u128, len in 0u8..=128) {
            let own = own & (u128::MAX >> 8) | 0xfd << 120;
            let config = InterfaceConfig::new(own.to_be_bytes(), own.to_be_bytes(), len).unwrap();
            let same = len == 0 || own >> (128 - len) == other >> (128 - len);
            prop_assert_eq!(config.is_inside(&other.to_be_bytes()), same);
            prop_assert_eq!(config.is_own(&other.to_be_bytes()), own == other);
            prop_assert!(config.is_inside(&own.to_be_bytes()) && config.is_own(&own.to_be_bytes()));
        }
    }

    #[test]
    fn every_counter_has_its_own_entry() {
        let fixed = [
            CounterIndex::Tunnel,
            CounterIndex::TunnelSuper,
            CounterIndex::Ingress,
            CounterIndex::IngressSuper,
        ];
        let dropped = DropReason::ALL.iter().map(|reason| CounterIndex::Dropped(*reason));
        let indices: Vec<u32> = fixed.into_iter().chain(dropped).map(CounterIndex::index).collect();
        assert_eq!(indices, (0..CounterIndex::COUNT).collect::<Vec<_>>());
    }
}
