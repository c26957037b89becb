//! From an arriving frame to a verdict, in an order that leaves a frame untouched until nothing can go wrong
//! any more.
//!
//! 1. [`Arrival`]: is it a plain data packet to the relay's port? A glimpse at the connection ID comes before
//!    that: where the leg would be is looked at early, since it comes from far.
//! 2. Whose? The leg's sender and the relay's address must be the packet's.
//! 3. [`Departure`], and the way there: can the program do it, or must userspace?
//! 4. Only then room is made for a longer header, the leg is charged, and the headers are written.
//!
//! Whatever is not the relay's passes to the stack as it came, and so does what userspace does better: also
//! to judge whose a packet is that comes from the wrong address, or to the wrong one. The host may translate
//! addresses behind this program. The only packets that are dropped here are a leg's: over its rate, or going
//! in circles.

use super::address::Address;
use super::arrival::{Arrival, glimpse};
use super::departure::Departure;
use super::leg::{PackedLeg, RelayState};
use super::map::{Family, PassReason, RelayConfig, RelayCounterIndex};
use super::origin::Origin;
use crate::buffer::Buffer;
use crate::drop_reason::DropReason;
use crate::packet::ethernet::ETHERNET_LEN;

/// What happens to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was rewritten and leaves.
    Forward {
        /// How it came.
        from: Family,
        /// How it leaves.
        to: Family,
        /// The interface it leaves by, where it does not go back as it is by the one it came by.
        redirect: Option<u32>,
    },
    /// It goes to the kernel's stack, untouched.
    Pass(PassReason),
    /// It goes nowhere.
    Drop(DropReason),
}

impl Verdict {
    /// Where it is counted.
    #[inline(always)]
    pub const fn counter(&self) -> RelayCounterIndex {
        match *self {
            Self::Forward { from, to, redirect } => {
                RelayCounterIndex::Forwarded { from, to, redirected: redirect.is_some() }
            }
            Self::Pass(reason) => RelayCounterIndex::Passed(reason),
            Self::Drop(reason) => RelayCounterIndex::Dropped(reason),
        }
    }
}

/// An Ethernet frame that can be changed.
pub trait Frame: Buffer {
    /// Overwrites `N` bytes at `offset`. `None`, and nothing written, where the frame ends before them.
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;

    /// Moves the frame's start forward by `shift` bytes, or backward where it is negative: then the new bytes
    /// hold anything. `None`, and nothing moved, where there is no room.
    fn shift_head(&mut self, shift: i32) -> Option<()>;
}

/// The next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Its link address and the outgoing interface's, as they lie in a frame: in words, which are aligned
    /// wherever a program keeps them.
    links: [u32; 3],
    /// The outgoing interface, unless the frame goes back by the incoming one as it is.
    pub redirect: Option<u32>,
}

impl Hop {
    /// To a link address, from the outgoing interface's.
    #[must_use]
    pub const fn new(destination: [u8; 6], source: [u8; 6], redirect: Option<u32>) -> Self {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (destination, source);
        let links = [[a, b, c, d], [e, f, g, h], [i, j, k, l]];
        let [first, second, third] = links;
        let links = [u32::from_ne_bytes(first), u32::from_ne_bytes(second), u32::from_ne_bytes(third)];
        Self { links, redirect }
    }

    /// As [`new`](Self::new), from the two addresses in three words as they lie in memory, the interface's
    /// first. That is the order in which the kernel answers.
    #[inline(always)]
    #[must_use]
    pub const fn from_source_first(words: [u32; 3], redirect: Option<u32>) -> Self {
        let [first, second, third] = words;
        let (first, second, third) = (u32::from_le(first), u32::from_le(second), u32::from_le(third));
        let links = [
            (second >> 16 | third << 16).to_le(),
            (third >> 16 | first << 16).to_le(),
            (first >> 16 | second << 16).to_le(),
        ];
        Self { links, redirect }
    }

    /// The next hop's link address and the outgoing interface's.
    #[must_use]
    pub const fn links(&self) -> ([u8; 6], [u8; 6]) {
        let [first, second, third] = self.links;
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        let [i, j, k, l] = third.to_ne_bytes();
        ([a, b, c, d, e, f], [g, h, i, j, k, l])
    }

    #[inline(always)]
    pub(super) fn write<F: Frame + ?Sized>(&self, frame: &mut F, ether_type: [u8; 2]) -> Option<()> {
        let [first, second, third] = self.links;
        frame.write(0, first.to_ne_bytes())?;
        frame.write(4, second.to_ne_bytes())?;
        frame.write(8, third.to_ne_bytes())?;
        frame.write(ETHERNET_LEN - 2, ether_type)
    }
}

/// A leg in the map.
pub trait Entry {
    /// The leg.
    fn leg(&self) -> &PackedLeg;

    /// Changes its state.
    fn update<R>(&self, change: impl FnOnce(&mut RelayState) -> R) -> R;
}

/// Where legs and routes come from: the kernel, or a test.
pub trait Relay {
    /// A leg in the map.
    type Entry: Entry;
    /// Where a leg is, if it is anywhere.
    type Place;

    /// Where the leg with this virtual connection ID would be, which is as it lies in the frame. Called for
    /// whatever looks like the relay's, so that memory has time to bring what is there while the frame is
    /// read.
    fn locate(&self, cid: u64) -> Self::Place;

    /// The leg with this virtual connection ID, at its place.
    fn find(&self, place: Self::Place, cid: u64) -> Option<Self::Entry>;

    /// One of the relay's own addresses, by its number; number 0 is the unspecified one.
    fn own(&self, number: u8) -> Address;

    /// The next hop for a packet of a leg.
    ///
    /// # Errors
    /// Why there is none, or none for the program.
    fn route(&self, entry: &Self::Entry, departure: &Departure, now_ns: u64) -> Result<Hop, PassReason>;

    /// `CLOCK_MONOTONIC`, some 20 ms behind at most.
    fn now_ns(&self) -> u64;
}

/// Decides on a frame, and rewrites it if it is forwarded.
#[inline(always)]
pub fn relay<F: Frame + ?Sized, R: Relay>(frame: &mut F, config: &RelayConfig, relay: &R) -> Verdict {
    match judge(frame, config, relay) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

#[inline(always)]
fn judge<F: Frame + ?Sized, R: Relay>(
    frame: &mut F,
    config: &RelayConfig,
    relay: &R,
) -> Result<Verdict, Verdict> {
    if !config.is_configured() {
        return Err(Verdict::Pass(PassReason::NotConfigured));
    }
    let place = glimpse(frame, config).map(|cid| relay.locate(cid));
    let arrival = Arrival::read(frame, config).map_err(Verdict::Pass)?;
    let now = relay.now_ns();
    let entry = place.and_then(|place| relay.find(place, arrival.cid));
    let entry = entry.ok_or(Verdict::Pass(PassReason::UnknownConnectionId))?;
    let leg = entry.leg();
    let local = relay.own(leg.local());
    check_bound(&arrival, leg, local)?;
    check_checksum(&arrival, leg, config).map_err(Verdict::Pass)?;
    // Mostly one address, and one look-up.
    let source = if leg.source() == leg.local() { local } else { relay.own(leg.source()) };
    let departure = Departure::new(&arrival, leg, source, config.port()).map_err(Verdict::Pass)?;
    let hop = relay.route(&entry, &departure, now).map_err(Verdict::Pass)?;

    let shift = departure.head_shift(&arrival);
    if shift != 0 {
        frame.shift_head(shift).ok_or(Verdict::Pass(PassReason::NoHeadroom))?;
    }
    // From here on the frame may have been touched: it leaves or is dropped.
    let bytes = arrival.payload_len() as u64;
    if !entry.update(|state| state.admit(leg.rate(), now, bytes)) {
        return Err(Verdict::Drop(DropReason::RateLimited));
    }
    departure.write(frame, &arrival, &hop).ok_or(Verdict::Drop(DropReason::Truncated))?;
    Ok(Verdict::Forward { from: arrival.origin.family, to: departure.family, redirect: hop.redirect })
}

/// The packet must come from the leg's sender and to the relay's address that the leg is for. Both are what
/// the relay's socket was told: where they differ here, it may still be told the same of this packet.
#[inline(always)]
fn check_bound(arrival: &Arrival, leg: &PackedLeg, local: Address) -> Result<(), Verdict> {
    let (from, port) = leg.from();
    let bound = Origin {
        family: leg.from_family(),
        source: Address::from_bytes(from),
        source_port: u16::from_ne_bytes(port),
        destination: local,
    };
    if !arrival.origin.is_bound(&bound) {
        return Err(Verdict::Pass(PassReason::UnboundSource));
    }
    if arrival.hop_limit <= 1 {
        return Err(Verdict::Drop(DropReason::HopLimit));
    }
    Ok(())
}

/// The new checksum is made from the old one, so that must be there, and complete.
#[inline(always)]
fn check_checksum(arrival: &Arrival, leg: &PackedLeg, config: &RelayConfig) -> Result<(), PassReason> {
    if arrival.checksum == 0 {
        // RFC 768 lets IPv4's senders leave it out; RFC 8200 §8.1 does not let IPv6's.
        let between_v4 = matches!((arrival.origin.family, leg.to_family()), (Family::V4, Family::V4));
        if !between_v4 || config.merged() {
            return Err(PassReason::NoChecksum);
        }
        return Ok(());
    }
    if arrival.has_partial_checksum() {
        return Err(PassReason::PartialChecksum);
    }
    Ok(())
}
