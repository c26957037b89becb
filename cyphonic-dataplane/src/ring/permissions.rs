//! The port policy where no program of the kernel's enforces it: the same function, asked by the workers.
//!
//! A worker is given permissions only while they deny something. Then each packet costs it the look-ups that
//! it costs the program, without a lock: permissions never change, others are given in their place.

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Instant;

use cyphonic_common::DropReason;
use cyphonic_common::policy::{
    self, Direction, Flow, FlowTable, MAX_FLOWS, MAX_FRAGMENTED, Peer, PolicyKey, PolicyTable,
};

use super::flows::Flows;

/// What may pass, as the program's map holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permissions(HashSet<PolicyKey>);

impl Default for Permissions {
    /// Everything, as in the kernel: until it is told otherwise, a node trusts all peers.
    fn default() -> Self {
        Self([PolicyKey::EVERYTHING].into())
    }
}

impl FromIterator<PolicyKey> for Permissions {
    fn from_iter<I: IntoIterator<Item = PolicyKey>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

impl Permissions {
    /// Adds one.
    pub fn allow(&mut self, key: PolicyKey) {
        self.0.insert(key);
    }

    /// Whether nothing is denied, so that nobody need ask.
    pub fn are_all(&self) -> bool {
        self.holds(&PolicyKey::EVERYTHING)
    }

    /// These and others.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        Self(self.0.union(&others.0).copied().collect())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing may pass but what always may.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that `others` do not have.
    pub(crate) fn beyond<'a>(&'a self, others: &'a Self) -> impl Iterator<Item = PolicyKey> + 'a {
        self.0.difference(&others.0).copied()
    }
}

impl PolicyTable for Permissions {
    fn holds(&self, key: &PolicyKey) -> bool {
        self.0.contains(key)
    }
}

/// Permissions as the workers enforce them.
#[derive(Debug)]
pub(super) struct Enforced {
    permissions: Arc<Permissions>,
    flows: Arc<Flows>,
    fragmented: Arc<Flows>,
}

impl Enforced {
    /// These permissions in place of others. Conversations stay remembered: an answer also needs the
    /// permission that its conversation was opened by.
    pub(super) fn after(before: Option<&Self>, permissions: Arc<Permissions>) -> Self {
        let kept = |table: fn(&Self) -> &Arc<Flows>, places| {
            before.map_or_else(|| Arc::new(Flows::with_places(places)), |before| Arc::clone(table(before)))
        };
        let flows = kept(|before| &before.flows, MAX_FLOWS);
        let fragmented = kept(|before| &before.fragmented, MAX_FRAGMENTED);
        Self { permissions, flows, fragmented }
    }

    fn table_of(&self, flow: &Flow) -> &Flows {
        if flow.is_fragmented() { &self.fragmented } else { &self.flows }
    }

    /// Decides on a whole inner packet.
    #[inline]
    pub(super) fn judge(
        &self,
        packet: &[u8],
        (peer, class): (Ipv6Addr, u32),
        direction: Direction,
        now: Instant,
    ) -> Result<(), DropReason> {
        let peer = Peer { address: peer.octets(), class: Some(class) };
        policy::judge(packet, &peer, direction, &Now { tables: self, now })
    }
}

/// The tables at a moment.
struct Now<'a> {
    tables: &'a Enforced,
    now: Instant,
}

impl PolicyTable for Now<'_> {
    fn holds(&self, key: &PolicyKey) -> bool {
        self.tables.permissions.holds(key)
    }
}

impl FlowTable for Now<'_> {
    fn note(&self, flow: &Flow) {
        self.tables.table_of(flow).note(flow, self.now);
    }

    fn knows(&self, flow: &Flow) -> bool {
        self.tables.table_of(flow).knows(flow, self.now)
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_common::packet::protocol::{TCP, UDP};
    use cyphonic_common::policy::EVERY_CLASS;
    use etherparse::PacketBuilder;

    use super::*;

    const PEER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    fn enforced(permissions: &Permissions) -> Enforced {
        Enforced::after(None, Arc::new(permissions.clone()))
    }

    fn judge(enforced: &Enforced, packet: &[u8], direction: Direction) -> Result<(), DropReason> {
        enforced.judge(packet, (PEER, 7), direction, Instant::now())
    }

    #[test]
    fn everything_is_allowed_until_it_is_taken_back() {
        assert!(Permissions::default().are_all());
        let mut permissions = Permissions::from_iter([]);
        assert!(!permissions.are_all() && permissions.is_empty());
        permissions.allow(PolicyKey::everything(Direction::Out));
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(40_000, 22, 0, 100).syn();
        builder.write(&mut packet, &[]).unwrap();
        assert_eq!(judge(&enforced(&permissions), &packet, Direction::Out), Ok(()));
        assert_eq!(judge(&enforced(&permissions), &packet, Direction::In), Err(DropReason::Denied));
        for (class, expected) in [(8, Err(DropReason::Denied)), (7, Ok(())), (EVERY_CLASS, Ok(()))] {
            let mut permissions = permissions.clone();
            permissions.allow(PolicyKey::new(Direction::In, class, TCP, 22));
            assert_eq!(judge(&enforced(&permissions), &packet, Direction::In), expected, "{class}");
        }
    }

    #[test]
    fn conversations_outlive_other_permissions_than_their_own() {
        let udp = |from: u16, to: u16| {
            let mut packet = Vec::new();
            PacketBuilder::ipv6([1; 16], [2; 16], 64).udp(from, to).write(&mut packet, b"x").unwrap();
            packet
        };
        let (out, service) =
            (PolicyKey::everything(Direction::Out), PolicyKey::new(Direction::In, EVERY_CLASS, UDP, 9));
        let first = enforced(&Permissions::from_iter([out]));
        assert_eq!(judge(&first, &udp(53, 4000), Direction::In), Err(DropReason::Denied));
        assert_eq!(judge(&first, &udp(4000, 53), Direction::Out), Ok(()));
        let more = Enforced::after(Some(&first), Arc::new(Permissions::from_iter([out, service])));
        assert_eq!(judge(&more, &udp(53, 4000), Direction::In), Ok(()));
        assert_eq!(judge(&more, &udp(53, 9), Direction::In), Ok(()));
        assert_eq!(judge(&more, &udp(9, 53), Direction::Out), Ok(()), "the answer");
        let less = Enforced::after(Some(&more), Arc::new(Permissions::from_iter([out])));
        assert_eq!(judge(&less, &udp(53, 4000), Direction::In), Ok(()));
        assert_eq!(judge(&less, &udp(53, 9), Direction::In), Err(DropReason::Denied));
        let none = Enforced::after(Some(&less), Arc::new(Permissions::from_iter([service])));
        assert_eq!(judge(&none, &udp(53, 4000), Direction::In), Err(DropReason::Denied));
    }
}
