//! The port policy where no program of the kernel's enforces it: the same function, asked by the workers.
//!
//! A worker is given permissions only while they deny something. Then each packet costs it the look-ups that
//! it costs the program, without a lock: permissions never change, others are given in their place.

use std::collections::HashSet;

use cyphonic_common::DropReason;
use cyphonic_common::policy::{self, Direction, EVERY_CLASS, PolicyKey, PolicyTable};

/// What may pass, as the program's map holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permissions(HashSet<PolicyKey>);

impl Default for Permissions {
    /// Everything, as in the kernel: until there are policies to distribute, both ends of every tunnel trust
    /// each other.
    fn default() -> Self {
        Self([Direction::Out, Direction::In].map(PolicyKey::everything).into())
    }
}

impl Permissions {
    /// Adds one.
    pub fn allow(&mut self, key: PolicyKey) {
        self.0.insert(key);
    }

    /// Takes one back. One that was not given is ignored.
    pub fn deny(&mut self, key: PolicyKey) {
        self.0.remove(&key);
    }

    /// Whether nothing is denied, so that nobody need ask.
    pub fn are_all(&self) -> bool {
        [Direction::Out, Direction::In].map(PolicyKey::everything).iter().all(|key| self.holds(key))
    }

    /// Decides on a whole inner packet. All peers are of no particular class, as
    /// [`ShardedRing`](crate::shard::ShardedRing) tells the programs.
    #[inline]
    pub(super) fn judge(&self, packet: &[u8], direction: Direction) -> Result<(), DropReason> {
        policy::judge(packet, EVERY_CLASS, direction, self)
    }
}

impl PolicyTable for Permissions {
    fn holds(&self, key: &PolicyKey) -> bool {
        self.0.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = 6;

    #[test]
    fn everything_is_allowed_until_it_is_taken_back() {
        let mut permissions = Permissions::default();
        assert!(permissions.are_all());
        permissions.deny(PolicyKey::everything(Direction::In));
        assert!(!permissions.are_all());
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(40_000, 22, 0, 100).syn();
        builder.write(&mut packet, &[]).unwrap();
        assert_eq!(permissions.judge(&packet, Direction::Out), Ok(()));
        assert_eq!(permissions.judge(&packet, Direction::In), Err(DropReason::Denied));
        permissions.allow(PolicyKey::new(Direction::In, EVERY_CLASS, TCP, 22));
        assert_eq!(permissions.judge(&packet, Direction::In), Ok(()));
    }
}
