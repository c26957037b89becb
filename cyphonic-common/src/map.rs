//! Layout of the eBPF maps that both halves touch.
//!
//! Userspace writes [`InterfaceConfig`] once, before the classifier is attached; the kernel only reads it.
//! The kernel writes [`Counter`]s, one array per CPU; userspace only reads and sums them. Which peers there
//! are ([`PeerEntry`]), which worker a data connection ID belongs to, and what the policy permits
//! ([`crate::policy::PolicyKey`]) is written by userspace as it changes. Which conversations are under way
//! ([`crate::policy::Flow`]) is the kernel's alone. Addresses stand in network byte order, as in packets, so
//! neither side converts.

use crate::drop_reason::DropReason;

/// Names of the maps in the object file.
pub mod name {
    /// Array with one [`super::InterfaceConfig`].
    pub const CONFIG: &str = "CONFIG";
    /// Per-CPU array of [`super::Counter`], indexed by [`super::CounterIndex`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Hash of [`super::PeerEntry`] by virtual address.
    pub const PEERS: &str = "PEERS";
    /// Hash of [`super::ALLOWED`] by [`crate::policy::PolicyKey`].
    pub const POLICY: &str = "POLICY";
    /// Hash of worker numbers by data connection ID.
    pub const CIDS: &str = "CIDS";
    /// The UDP sockets by worker number.
    pub const SOCKETS: &str = "SOCKETS";
}

/// Peers and destinations that the kernel knows at a time: as many as a ring takes tunnels.
pub const MAX_PEERS: u32 = 65_536;
/// Data connection IDs that the kernel knows at a time: while a tunnel replaces another, a peer has two.
pub const MAX_CIDS: u32 = 2 * MAX_PEERS;
/// Entries of a policy. Memory for them is taken as they are made, beside 256 KiB from the start.
pub const MAX_POLICY: u32 = 16_384;
/// Workers, and so sockets and queues of the virtual interface.
pub const MAX_WORKERS: u32 = 16;

/// The value of a policy's entry: its presence is what counts.
pub const ALLOWED: u32 = 1;

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
    log_drops: u32,
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
    /// The node's address.
    pub const fn own(&self) -> &[u8; 16] {
        &self.own
    }

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
        let config = Self { own, prefix, mask: mask.to_be_bytes(), configured: 1, log_drops: 0 };
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
        Self { own: [0; 16], prefix: [0; 16], mask: [0; 16], configured: 0, log_drops: 0 }
    }

    /// The same, with the programs reporting what they drop (at most once a second on each CPU).
    #[must_use]
    pub const fn with_log_of_drops(self, on: bool) -> Self {
        Self { log_drops: on as u32, ..self }
    }

    /// Whether drops are reported, not only counted.
    #[inline(always)]
    pub const fn logs_drops(&self) -> bool {
        self.log_drops != 0
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

/// An address as two machine words: comparing arrays would call `memcmp`, which the BPF target has to emulate
/// byte by byte. Going through one integer keeps the compiler from assembling the words from single bytes.
#[inline(always)]
const fn halves(bytes: &[u8; 16]) -> (u64, u64) {
    let whole = u128::from_ne_bytes(*bytes);
    (whole as u64, (whole >> 64) as u64)
}

/// What the kernel knows of a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PeerEntry {
    state: u32,
    worker: u32,
    class: u32,
}

impl PeerEntry {
    const LIVE: u32 = 1;
    const DEAD: u32 = 2;

    /// A peer with a tunnel, whose packets that worker carries, of a class of the policy.
    #[must_use]
    pub const fn live(worker: u32, class: u32) -> Self {
        Self { state: Self::LIVE, worker, class }
    }

    /// An address to which no tunnel could be had a moment ago.
    #[must_use]
    pub const fn dead() -> Self {
        Self { state: Self::DEAD, worker: 0, class: crate::policy::EVERY_CLASS }
    }

    /// Whether there is a tunnel.
    #[inline(always)]
    pub const fn is_live(&self) -> bool {
        self.state == Self::LIVE
    }

    /// The worker that carries its packets.
    #[inline(always)]
    pub const fn worker(&self) -> u32 {
        self.worker
    }

    /// Its class in the policy.
    #[inline(always)]
    pub const fn class(&self) -> u32 {
        self.class
    }
}

/// The worker of a virtual address that the kernel does not know (yet): what userspace will choose for it
/// too.
#[inline(always)]
pub const fn worker_of(address: &[u8; 16], workers: u32) -> u32 {
    match spread_of(address).checked_rem(workers) {
        Some(worker) => worker,
        None => 0,
    }
}

/// What [`worker_of`] takes modulo the number of workers, as the kernel does with what a program gives it.
///
/// A virtual address ends in bits of a hash of the node's name, so its last 16 bits spread well enough. The
/// kernel keeps no more of what a program gives it.
#[inline(always)]
pub const fn spread_of(address: &[u8; 16]) -> u32 {
    let [.., high, low] = *address;
    u32::from_be_bytes([0, 0, high, low])
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
    /// Packets from applications that go to a tunnel, or wait for one.
    Tunnel,
    /// The super-packets among [`CounterIndex::Tunnel`]: TCP or UDP not yet cut into segments.
    TunnelSuper,
    /// Packets from tunnels to this host.
    Ingress,
    /// The super-packets among [`CounterIndex::Ingress`].
    IngressSuper,
    /// Those among [`CounterIndex::Tunnel`] whose destination has no tunnel yet: they wake the agent.
    TunnelUnknown,
    /// Those among [`CounterIndex::Tunnel`] to whose destination no tunnel could be had: the agent answers
    /// them.
    TunnelDead,
    /// Packets that were dropped.
    Dropped(DropReason),
}

impl CounterIndex {
    const FIXED: u32 = 6;

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
            Self::TunnelUnknown => 4,
            Self::TunnelDead => 5,
            Self::Dropped(reason) => Self::FIXED + reason.index(),
        }
    }
}

const _: () = assert!(size_of::<InterfaceConfig>() == 56 && align_of::<InterfaceConfig>() == 4);
const _: () = assert!(size_of::<Counter>() == 16 && align_of::<Counter>() == 8);
const _: () = assert!(size_of::<PeerEntry>() == 12 && align_of::<PeerEntry>() == 4);

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

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
    fn every_worker_is_chosen_by_some_addresses() {
        for workers in 0..=MAX_WORKERS {
            let chosen: std::collections::BTreeSet<u32> = (0u128..1000)
                .map(|n| {
                    worker_of(
                        &n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes(),
                        workers,
                    )
                })
                .collect();
            assert_eq!(chosen, (0..workers.max(1)).collect());
        }
    }

    #[test]
    fn every_counter_has_its_own_entry() {
        let fixed = [
            CounterIndex::Tunnel,
            CounterIndex::TunnelSuper,
            CounterIndex::Ingress,
            CounterIndex::IngressSuper,
            CounterIndex::TunnelUnknown,
            CounterIndex::TunnelDead,
        ];
        let dropped = DropReason::ALL.iter().map(|reason| CounterIndex::Dropped(*reason));
        let indices: Vec<u32> = fixed.into_iter().chain(dropped).map(CounterIndex::index).collect();
        assert_eq!(indices, (0..CounterIndex::COUNT).collect::<Vec<_>>());
    }
}
