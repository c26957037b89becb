//! A leg, as it stands in the kernel's map.
//!
//! Addresses have sixteen bytes, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2), and everything is in network byte order,
//! so the program compares and copies without converting.
//!
//! The size is chosen: with the kernel's 64 bytes of link, hash and key before it, an entry takes the 192 bytes of one
//! slab object, and its value two cache lines of their own. The first line holds the addresses, the second what is
//! written per packet.

use core::fmt;
use core::net::{IpAddr, SocketAddr};

use super::map::Family;
use super::rate::RelayRate;
use crate::cid::ConnectionId;

/// What one leg is made of, in words of userspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The sender's address: packets from elsewhere are dropped.
    pub from: SocketAddr,
    /// The relay's address that the sender sends to: packets to another one are dropped. `None`: any.
    pub local: Option<IpAddr>,
    /// The receiver's address.
    pub to: SocketAddr,
    /// The relay's address that the receiver knows. `None`: the one the packet came to if it has the receiver's family;
    /// otherwise the program leaves the packet to userspace, where the kernel chooses.
    pub source: Option<IpAddr>,
    /// The receiver's own connection ID.
    pub real_cid: ConnectionId,
    /// How much the leg may carry.
    pub rate: RelayRate,
}

impl Binding {
    /// From one end to another, by any of the relay's addresses and without limit.
    #[must_use]
    pub const fn new(from: SocketAddr, to: SocketAddr, real_cid: ConnectionId) -> Self {
        Self { from, local: None, to, source: None, real_cid, rate: RelayRate::UNLIMITED }
    }
}

/// A [`Binding`] that contradicts itself. The caller erred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegError {
    /// The relay's address towards an end is of another family than the end.
    Families(IpAddr, SocketAddr),
    /// The connection ID has no data bit.
    NotDataId(ConnectionId),
}

impl fmt::Display for LegError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Families(own, end) => {
                write!(
                    f,
                    "the relay's address {own} is of another family than {end}, which it should talk to"
                )
            }
            Self::NotDataId(cid) => write!(f, "{cid} is not a data connection ID"),
        }
    }
}

impl core::error::Error for LegError {}

/// One direction through the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct RelayLeg {
    from: [u8; 16],
    /// All zero: any.
    local: [u8; 16],
    to: [u8; 16],
    /// All zero: the packet's destination.
    source: [u8; 16],
    real_cid: [u8; 8],
    from_port: [u8; 2],
    to_port: [u8; 2],
    flags: u32,
    rate: RelayRate,
}

/// [`RelayLeg::flags`]: the sender is reached by IPv6.
const FROM_V6: u32 = 1;
/// [`RelayLeg::flags`]: the receiver is reached by IPv6.
const TO_V6: u32 = 2;

impl RelayLeg {
    /// The leg of a binding. IPv4-mapped IPv6 addresses are taken for the IPv4 addresses that they are.
    ///
    /// # Errors
    /// [`LegError`] where no packet could ever pass.
    pub fn new(binding: &Binding) -> Result<Self, LegError> {
        let Binding { from, local, to, source, real_cid, rate } = binding;
        if !real_cid.is_data() {
            return Err(LegError::NotDataId(*real_cid));
        }
        for (own, end) in [(local, from), (source, to)] {
            if let Some(own) = own.filter(|own| Family::of(own) != Family::of(&end.ip())) {
                return Err(LegError::Families(own, *end));
            }
        }
        let flag = |end: &SocketAddr, flag| if Family::of(&end.ip()) == Family::V6 { flag } else { 0 };
        Ok(Self {
            from: octets(&from.ip()),
            local: local.as_ref().map_or([0; 16], octets),
            to: octets(&to.ip()),
            source: source.as_ref().map_or([0; 16], octets),
            real_cid: *real_cid.as_bytes(),
            from_port: from.port().to_be_bytes(),
            to_port: to.port().to_be_bytes(),
            flags: flag(from, FROM_V6) | flag(to, TO_V6),
            rate: *rate,
        })
    }

    /// The binding this is the leg of, with canonical addresses.
    #[must_use]
    pub fn binding(&self) -> Binding {
        let end = |ip, port| SocketAddr::new(address(ip), u16::from_be_bytes(port));
        let known = |ip: &[u8; 16]| (*ip != [0; 16]).then(|| address(ip));
        Binding {
            from: end(&self.from, self.from_port),
            local: known(&self.local),
            to: end(&self.to, self.to_port),
            source: known(&self.source),
            real_cid: ConnectionId::from_bytes(self.real_cid),
            rate: self.rate,
        }
    }

    /// The sender's address.
    #[inline(always)]
    pub const fn from(&self) -> (&[u8; 16], [u8; 2]) {
        (&self.from, self.from_port)
    }

    /// The relay's address that the sender sends to; all zero is any.
    #[inline(always)]
    pub const fn local(&self) -> &[u8; 16] {
        &self.local
    }

    /// The receiver's address.
    #[inline(always)]
    pub const fn to(&self) -> (&[u8; 16], [u8; 2]) {
        (&self.to, self.to_port)
    }

    /// The relay's address that the receiver knows; all zero is the packet's destination.
    #[inline(always)]
    pub const fn source(&self) -> &[u8; 16] {
        &self.source
    }

    /// The receiver's own connection ID.
    #[inline(always)]
    pub const fn real_cid(&self) -> &[u8; 8] {
        &self.real_cid
    }

    /// How the sender is reached.
    #[inline(always)]
    pub const fn from_family(&self) -> Family {
        if self.flags & FROM_V6 != 0 { Family::V6 } else { Family::V4 }
    }

    /// How the receiver is reached.
    #[inline(always)]
    pub const fn to_family(&self) -> Family {
        if self.flags & TO_V6 != 0 { Family::V6 } else { Family::V4 }
    }

    /// How much the leg may carry.
    #[inline(always)]
    pub const fn rate(&self) -> &RelayRate {
        &self.rate
    }
}

/// What a leg has carried. Written by the program for every packet.
///
/// The words are written without locks: all packets of a leg come from one address and so, on every network card that
/// spreads load by flow, to one CPU. If that CPU changes, a count may be lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RelayState {
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes of their UDP payload.
    pub bytes: u64,
    /// When the last one was, on `CLOCK_MONOTONIC`, exact to 10 ms. 0: never.
    pub last_seen_ns: u64,
    /// Packets dropped because the leg was over its rate.
    pub over_rate: u64,
    /// Until when the bytes so far have paid: see [`RelayRate::spend`].
    pub paid_until_ns: u64,
}

impl RelayState {
    /// Counts a packet that is forwarded, or, if it is over the leg's rate, one that is dropped. Returns which.
    #[inline(always)]
    pub const fn admit(&mut self, rate: &RelayRate, now_ns: u64, payload_bytes: u64) -> bool {
        if !rate.spend(&mut self.paid_until_ns, now_ns, payload_bytes) {
            self.over_rate = self.over_rate.wrapping_add(1);
            return false;
        }
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(payload_bytes);
        self.last_seen_ns = now_ns;
        true
    }
}

/// The map's value: a leg and its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct RelayEntry {
    /// Written by userspace only.
    pub leg: RelayLeg,
    /// Written by the program; userspace carries it over when it replaces a leg.
    pub state: RelayState,
}

impl RelayEntry {
    /// A leg that has carried nothing.
    #[must_use]
    pub fn new(leg: RelayLeg) -> Self {
        Self { leg, state: RelayState::default() }
    }
}

fn octets(ip: &IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn address(octets: &[u8; 16]) -> IpAddr {
    IpAddr::from(*octets).to_canonical()
}

// No padding: the sizes are the sums of the fields' sizes.
const _: () = assert!(size_of::<RelayLeg>() == 4 * 16 + 8 + 2 + 2 + 4 + 8 && align_of::<RelayLeg>() == 4);
const _: () = assert!(size_of::<RelayState>() == 5 * 8 && align_of::<RelayState>() == 8);
const _: () = assert!(size_of::<RelayEntry>() == 128 && align_of::<RelayEntry>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn binding(from: &str, to: &str) -> Binding {
        Binding {
            from: from.parse().unwrap(),
            local: None,
            to: to.parse().unwrap(),
            source: None,
            real_cid: ConnectionId::from_random_data([7; 8]),
            rate: RelayRate::UNLIMITED,
        }
    }

    proptest! {
        #[test]
        fn a_leg_says_what_it_was_made_of(
            from: SocketAddr, to: SocketAddr, local: Option<IpAddr>, source: Option<IpAddr>, cid: [u8; 8], rate: u64,
        ) {
            let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
            let same = |own: Option<IpAddr>, end: SocketAddr| {
                own.map(|ip| ip.to_canonical())
                    .filter(|ip| ip.is_ipv4() == canonical(end).is_ipv4() && *ip != IpAddr::from([0; 16]))
            };
            let binding = Binding {
                from: canonical(from), to: canonical(to), local: same(local, from), source: same(source, to),
                real_cid: ConnectionId::from_random_data(cid), rate: RelayRate::new(rate, rate),
            };
            prop_assert_eq!(RelayLeg::new(&binding).unwrap().binding(), binding);
        }
    }

    #[test]
    fn mapped_addresses_are_those_they_map() {
        let mapped = RelayLeg::new(&binding("[::ffff:192.0.2.1]:5", "[2001:db8::1]:6")).unwrap();
        assert_eq!(mapped, RelayLeg::new(&binding("192.0.2.1:5", "[2001:db8::1]:6")).unwrap());
        assert_eq!((mapped.from_family(), mapped.to_family()), (Family::V4, Family::V6));
    }

    #[test]
    fn what_could_never_pass_is_refused() {
        let good = binding("192.0.2.1:5", "[2001:db8::1]:6");
        let v6: IpAddr = "2001:db8::9".parse().unwrap();
        let v4: IpAddr = "192.0.2.9".parse().unwrap();
        let local = Binding { local: Some(v6), ..good };
        assert_eq!(RelayLeg::new(&local), Err(LegError::Families(v6, good.from)));
        let source = Binding { source: Some(v4), ..good };
        assert_eq!(RelayLeg::new(&source), Err(LegError::Families(v4, good.to)));
        let cid = ConnectionId::from_random_signalling([1; 8]);
        assert_eq!(RelayLeg::new(&Binding { real_cid: cid, ..good }), Err(LegError::NotDataId(cid)));
    }

    #[test]
    fn state_counts_what_passes_and_what_does_not() {
        let rate = RelayRate::new(1_000_000, 0);
        let mut state = RelayState::default();
        let passed = (0..1000).filter(|_| state.admit(&rate, 5, 1000)).count() as u64;
        assert_eq!((state.packets, state.bytes, state.last_seen_ns), (passed, passed * 1000, 5));
        assert_eq!(state.over_rate, 1000 - passed);
        assert!(passed > 0 && passed < 1000, "{passed}");
    }
}
