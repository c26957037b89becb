//! A leg, as it stands in the kernel's map.
//!
//! Addresses have sixteen bytes, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2), and everything is in network
//! byte order, so the program compares and copies without converting.
//!
//! The size is chosen: a leg is one cache line, and what is written per packet is the line after it, so that
//! both are fetched at once. Of a million legs neither is in the processor's caches.

use core::fmt;
use core::net::{IpAddr, SocketAddr};

use super::address::Address;
use super::map::Family;
use super::rate::RelayRate;
use crate::cid::ConnectionId;

/// One direction through the relay, in words of userspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// The sender's address: packets from elsewhere are dropped.
    pub from: SocketAddr,
    /// The relay's address that the sender sends to: packets to another one are dropped. `None`: any.
    pub local: Option<IpAddr>,
    /// The receiver's address.
    pub to: SocketAddr,
    /// The relay's address that the receiver knows. `None`: the one the packet came to if it has the
    /// receiver's family; otherwise the program leaves the packet to userspace, where the kernel
    /// chooses.
    pub source: Option<IpAddr>,
    /// The receiver's own connection ID.
    pub real_cid: ConnectionId,
    /// How much the leg may carry.
    pub rate: RelayRate,
}

impl Leg {
    /// From one end to another, by any of the relay's addresses and without limit.
    #[must_use]
    pub const fn new(from: SocketAddr, to: SocketAddr, real_cid: ConnectionId) -> Self {
        Self { from, local: None, to, source: None, real_cid, rate: RelayRate::UNLIMITED }
    }

    /// Refuses one of which no packet could ever pass.
    ///
    /// # Errors
    /// [`LegError`], which says why.
    pub fn check(&self) -> Result<(), LegError> {
        if !self.real_cid.is_data() {
            return Err(LegError::NotDataId(self.real_cid));
        }
        for (own, end) in [(self.local, self.from), (self.source, self.to)] {
            if let Some(own) = own.filter(|own| Family::of(own) != Family::of(&end.ip())) {
                return Err(LegError::Families(own, end));
            }
        }
        Ok(())
    }

    /// The same with canonical addresses: IPv4-mapped IPv6 addresses are the IPv4 addresses that they map.
    #[must_use]
    pub fn canonical(&self) -> Self {
        let end = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let own = |own: Option<IpAddr>| own.map(|ip| ip.to_canonical());
        Self {
            from: end(self.from),
            local: own(self.local),
            to: end(self.to),
            source: own(self.source),
            ..*self
        }
    }
}

/// A [`Leg`] that contradicts itself. The caller erred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegError {
    /// The relay's address towards an end is of another family than the end.
    Families(IpAddr, SocketAddr),
    /// The connection ID has no data bit.
    NotDataId(ConnectionId),
    /// The relay has used more addresses than fit into the kernel's list.
    TooManyAddresses(IpAddr),
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
            Self::TooManyAddresses(own) => {
                write!(f, "the relay's address {own} is one more than the {MAX_OWN_ADDRESSES} that XDP knows")
            }
        }
    }
}

impl core::error::Error for LegError {}

/// The longest list of the relay's own addresses: see [`OwnAddresses`].
pub const MAX_OWN_ADDRESSES: usize = 256;

/// The relay's own addresses that legs use. They are few, so a leg holds their numbers only. Number 0 is no
/// address: "any", or "the one it came to".
#[derive(Debug, Clone)]
pub struct OwnAddresses {
    octets: [[u8; 16]; MAX_OWN_ADDRESSES],
    len: usize,
}

impl Default for OwnAddresses {
    fn default() -> Self {
        Self { octets: [[0; 16]; MAX_OWN_ADDRESSES], len: 1 }
    }
}

impl OwnAddresses {
    /// The list that stands in a map: it ends where only zeros follow.
    pub fn from_octets(all: impl IntoIterator<Item = [u8; 16]>) -> Self {
        let mut this = Self::default();
        for (to, octets) in
            this.octets.iter_mut().zip(all).skip(1).take_while(|(_, octets)| *octets != [0; 16])
        {
            *to = octets;
            this.len += 1;
        }
        this
    }

    /// The address with this number.
    #[must_use]
    pub const fn octets(&self, number: u8) -> &[u8; 16] {
        &self.octets[number as usize]
    }

    /// An address's number. `None`: it has none.
    #[must_use]
    pub fn number(&self, own: Option<IpAddr>) -> Option<u8> {
        let octets = own.as_ref().map_or([0; 16], octets);
        let found = self.octets.iter().take(self.len).position(|known| *known == octets)?;
        u8::try_from(found).ok()
    }

    /// Puts an address at the end of the list, and returns its number. `None`: there is no room.
    pub fn add(&mut self, own: IpAddr) -> Option<u8> {
        let (number, free) = (u8::try_from(self.len).ok()?, self.octets.get_mut(self.len)?);
        *free = octets(&own);
        self.len += 1;
        Some(number)
    }

    fn address(&self, number: u8) -> Option<IpAddr> {
        (number != 0).then(|| address(self.octets(number)))
    }
}

/// A [`Leg`] as it stands in the kernel's map: a cache line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PackedLeg {
    /// The virtual connection ID, as it lies in frames. 0, which has no data bit: there is no leg here.
    cid: u64,
    real_cid: u64,
    from: [u8; 16],
    to: [u8; 16],
    from_port: [u8; 2],
    to_port: [u8; 2],
    rate: RelayRate,
    /// The number of one of the relay's own addresses.
    local: u8,
    /// As `local`.
    source: u8,
    flags: u8,
    reserved: u8,
}

/// [`PackedLeg::flags`]: the sender is reached by IPv6.
const FROM_V6: u8 = 1;
/// [`PackedLeg::flags`]: the receiver is reached by IPv6.
const TO_V6: u8 = 2;

impl PackedLeg {
    /// Offset of a byte that is 0 and says nothing. The program writes it, so that memory brings the line.
    pub const SPARE: usize = core::mem::offset_of!(Self, reserved);

    /// The leg of a binding under a virtual connection ID. IPv4-mapped IPv6 addresses are taken for the IPv4
    /// addresses that they are.
    ///
    /// # Errors
    /// [`LegError`] where no packet could ever pass, and where the relay's address has no number.
    pub fn new(cid: ConnectionId, binding: &Leg, own: &OwnAddresses) -> Result<Self, LegError> {
        binding.check()?;
        if !cid.is_data() {
            return Err(LegError::NotDataId(cid));
        }
        let Leg { from, local, to, source, real_cid, rate } = binding;
        let flag = |end: &SocketAddr, flag| if Family::of(&end.ip()) == Family::V6 { flag } else { 0 };
        let number = |address: Option<IpAddr>| match (own.number(address), address) {
            (Some(number), _) => Ok(number),
            (None, None) => Ok(0),
            (None, Some(address)) => Err(LegError::TooManyAddresses(address)),
        };
        Ok(Self {
            cid: u64::from_ne_bytes(*cid.as_bytes()),
            real_cid: u64::from_ne_bytes(*real_cid.as_bytes()),
            from: octets(&from.ip()),
            to: octets(&to.ip()),
            from_port: from.port().to_be_bytes(),
            to_port: to.port().to_be_bytes(),
            rate: *rate,
            local: number(*local)?,
            source: number(*source)?,
            flags: flag(from, FROM_V6) | flag(to, TO_V6),
            reserved: 0,
        })
    }

    /// The binding this is the leg of, with canonical addresses.
    #[must_use]
    pub fn unpacked(&self, own: &OwnAddresses) -> Leg {
        let end = |ip, port| SocketAddr::new(address(ip), u16::from_be_bytes(port));
        Leg {
            from: end(&self.from, self.from_port),
            local: own.address(self.local),
            to: end(&self.to, self.to_port),
            source: own.address(self.source),
            real_cid: ConnectionId::from_bytes(self.real_cid.to_ne_bytes()),
            rate: self.rate,
        }
    }

    /// The virtual connection ID, as it lies in frames. 0: there is no leg here.
    #[inline(always)]
    pub const fn cid(&self) -> u64 {
        self.cid
    }

    /// The sender's address.
    #[inline(always)]
    pub const fn from(&self) -> (&[u8; 16], [u8; 2]) {
        (&self.from, self.from_port)
    }

    /// The number of the relay's address that the sender sends to; 0 is any.
    #[inline(always)]
    pub const fn local(&self) -> u8 {
        self.local
    }

    /// The receiver's address.
    #[inline(always)]
    pub const fn to(&self) -> (&[u8; 16], [u8; 2]) {
        (&self.to, self.to_port)
    }

    /// The number of the relay's address that the receiver knows; 0 is the packet's destination.
    #[inline(always)]
    pub const fn source(&self) -> u8 {
        self.source
    }

    /// The receiver's own connection ID, as it lies in frames.
    #[inline(always)]
    pub const fn real_cid(&self) -> u64 {
        self.real_cid
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
/// The words are written without locks: all packets of a leg come from one address and so, on every network
/// card that spreads load by flow, to one CPU. If that CPU changes, a count may be lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RelayState {
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes of their UDP payload.
    pub bytes: u64,
    /// When the last one was, on `CLOCK_MONOTONIC`, exact to some 20 ms. 0: never.
    pub last_seen_ns: u64,
    /// Packets dropped because the leg was over its rate.
    pub over_rate: u64,
    /// Until when the bytes so far have paid: see [`RelayRate::spend`].
    pub paid_until_ns: u64,
}

impl RelayState {
    /// Counts a packet that is forwarded, or, if it is over the leg's rate, one that is dropped. Returns
    /// which.
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

/// The way to a leg's receiver, as the routing table told it last. Written by the program.
///
/// Two processors that find new ways for one leg at the same time may leave a mixture behind, by which at
/// most the packets of one answer's lifetime go to a link address that nobody has. All packets of a leg come
/// to one processor, see [`RelayState`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    /// See [`Hop::from_source_first`](super::Hop::from_source_first).
    pub links: [u32; 3],
    /// The outgoing interface. 0: not told yet.
    pub interface: u32,
    /// When it was told, in [ticks](super::watch::ticks).
    pub asked: u32,
    /// The longest IP packet it carries.
    pub mtu: u16,
    /// DSCP and ECN of the packet that was asked for.
    pub traffic_class: u8,
    /// 0, see [`PackedLeg::SPARE`].
    pub reserved: u8,
}

/// A leg, its state and its way: two cache lines side by side, the first written by userspace, the second by
/// the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LegEntry {
    /// Never changed while the program can find it.
    pub leg: PackedLeg,
    /// Written by the program; userspace carries it over when it replaces a leg.
    pub state: RelayState,
    /// Written by the program.
    pub way: Way,
}

impl LegEntry {
    /// A leg that has carried nothing.
    #[must_use]
    pub fn new(leg: PackedLeg) -> Self {
        Self { leg, ..Self::default() }
    }
}

fn octets(ip: &IpAddr) -> [u8; 16] {
    Address::of(ip).to_bytes()
}

fn address(octets: &[u8; 16]) -> IpAddr {
    IpAddr::from(*octets).to_canonical()
}

// No padding: the sizes are the sums of the fields' sizes.
const _: () =
    assert!(size_of::<PackedLeg>() == 2 * 8 + 2 * 16 + 2 * 2 + 8 + 4 && align_of::<PackedLeg>() == 8);
const _: () = assert!(size_of::<RelayState>() == 5 * 8 && align_of::<RelayState>() == 8);
const _: () = assert!(size_of::<Way>() == 6 * 4 && align_of::<Way>() == 4);
const _: () = assert!(size_of::<LegEntry>() == 128 && align_of::<LegEntry>() == 8);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binding(from: &str, to: &str) -> Leg {
        Leg {
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
            let binding = Leg {
                from: canonical(from), to: canonical(to), local: same(local, from), source: same(source, to),
                real_cid: ConnectionId::from_random_data(cid), rate: RelayRate::new(rate, rate),
            };
            let mut own = OwnAddresses::default();
            for address in [binding.local, binding.source].into_iter().flatten() {
                if own.number(Some(address)).is_none() { prop_assert!(own.add(address).is_some()); }
            }
            let cid = ConnectionId::from_random_data([3; 8]);
            let leg = PackedLeg::new(cid, &binding, &own).unwrap();
            prop_assert_eq!((leg.unpacked(&own), leg.cid().to_ne_bytes()), (binding, *cid.as_bytes()));
            let read = OwnAddresses::from_octets((0..=255).map(|number| *own.octets(number)));
            prop_assert_eq!(leg.unpacked(&read), binding);
        }
    }

    #[test]
    fn mapped_addresses_are_those_they_map() {
        let mapped = binding("[::ffff:192.0.2.1]:5", "[2001:db8::1]:6");
        assert_eq!(mapped.canonical(), binding("192.0.2.1:5", "[2001:db8::1]:6"));
        let (cid, own) = (ConnectionId::from_random_data([3; 8]), OwnAddresses::default());
        let leg = PackedLeg::new(cid, &mapped, &own).unwrap();
        assert_eq!(leg, PackedLeg::new(cid, &mapped.canonical(), &own).unwrap());
        assert_eq!((leg.from_family(), leg.to_family()), (Family::V4, Family::V6));
    }

    #[test]
    fn what_could_never_pass_is_refused() {
        let good = binding("192.0.2.1:5", "[2001:db8::1]:6");
        let v6: IpAddr = "2001:db8::9".parse().unwrap();
        let v4: IpAddr = "192.0.2.9".parse().unwrap();
        let local = Leg { local: Some(v6), ..good };
        assert_eq!(local.check(), Err(LegError::Families(v6, good.from)));
        let source = Leg { source: Some(v4), ..good };
        assert_eq!(source.check(), Err(LegError::Families(v4, good.to)));
        let cid = ConnectionId::from_random_signalling([1; 8]);
        assert_eq!(Leg { real_cid: cid, ..good }.check(), Err(LegError::NotDataId(cid)));
        assert_eq!(PackedLeg::new(cid, &good, &OwnAddresses::default()), Err(LegError::NotDataId(cid)));
    }

    #[test]
    fn an_address_without_a_number_is_told_and_the_list_is_bounded() {
        let v6 = |low: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, low]);
        let binding = Leg { local: Some(v6(9)), ..binding("[2001:db8::1]:5", "192.0.2.1:6") };
        let (cid, mut own) = (ConnectionId::from_random_data([3; 8]), OwnAddresses::default());
        assert_eq!(PackedLeg::new(cid, &binding, &own), Err(LegError::TooManyAddresses(v6(9))));
        let added = (1..1000).filter(|low| own.add(v6(*low)).is_some()).count();
        assert_eq!(
            (added, own.number(Some(v6(255))), own.number(None)),
            (MAX_OWN_ADDRESSES - 1, Some(255), Some(0))
        );
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
