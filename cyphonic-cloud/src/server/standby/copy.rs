//! A standby's copy of the register, as it is made: from the beginning at each connection, then change by change.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use cyphonic_proto::address::virtual_address;
use cyphonic_proto::message::FollowResponse;
use cyphonic_proto::standby::{Member, NoMember};

use crate::network::Network;
use crate::register::{Copied, Register, RegisterError, UnixSeconds};

/// What went wrong with a copy.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// The NMS told what cannot be.
    #[error(transparent)]
    Told(#[from] NoMember),
    /// The NMS's changes are in no order.
    #[error("the NMS told of changes in no order")]
    Order,
    /// The copy cannot be written.
    #[error("the copy of the register cannot be written: {0}")]
    Register(#[from] RegisterError),
}

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Copy {
    revision: u64,
    /// The devices so far; none once it was whole.
    seen: Option<BTreeSet<Ipv6Addr>>,
}

/// What came of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Devices that were not as they are.
    pub(super) changed: usize,
    /// Whether the copy has everything now.
    pub(super) is_whole: bool,
}

impl Copy {
    /// From the beginning.
    pub(super) fn new() -> Self {
        Self { revision: 0, seen: Some(BTreeSet::new()) }
    }

    /// The latest change that it has.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes an answer in. Blocks for the time of a disk write.
    pub(super) fn take(
        &mut self,
        response: &FollowResponse,
        network: &Network,
        register: &Register,
        now: UnixSeconds,
    ) -> Result<Progress, CopyError> {
        let mut copied = Vec::new();
        for told in &response.members {
            let member = Member::from_wire(told)?;
            if member.revision <= self.revision {
                return Err(CopyError::Order);
            }
            self.revision = member.revision;
            let virtual_address = virtual_address(network.prefix, network.id, &member.fqdn);
            copied.push(Copied { member, virtual_address });
        }
        let mut changed = register.copy_members(&copied)?;
        if let Some(seen) = &mut self.seen {
            seen.extend(copied.iter().map(|copied| copied.virtual_address));
            if !response.more {
                changed += register.keep_members(seen, now)?;
                self.seen = None;
            }
        }
        Ok(Progress { changed, is_whole: !response.more })
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::identity::{KeyHash, NetworkId};

    use super::*;

    fn member(name: &str, revision: u64) -> cyphonic_proto::message::Member {
        let key = KeyHash([1; 32]);
        let fqdn = format!("{name}.lab");
        Member {
            fqdn,
            key,
            next_key: None,
            enrolled_at: 1,
            revoked_at: None,
            revision,
            certificate_until: None,
        }
        .to_wire()
    }

    #[test]
    fn what_was_not_told_from_the_beginning_is_gone_only_when_all_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::create(&dir.path().join("register.db")).unwrap();
        let prefix = "fd12:3456:789a::/48".parse().unwrap();
        let network = Network { id: NetworkId([7; 16]), zone: "lab".into(), prefix };
        let mut copy = Copy::new();
        let take = |copy: &mut Copy, members: &[(&str, u64)], more| {
            let members = members.iter().map(|(name, revision)| member(name, *revision)).collect();
            let response = FollowResponse { members, more, ..FollowResponse::default() };
            copy.take(&response, &network, &register, 9)
        };
        let names = || register.members(0).unwrap().names;
        assert_eq!(
            take(&mut copy, &[("a", 1), ("b", 2)], true).unwrap(),
            Progress { changed: 2, is_whole: false }
        );
        assert_eq!(take(&mut copy, &[("c", 3)], false).unwrap(), Progress { changed: 1, is_whole: true });
        assert_eq!(take(&mut copy, &[], false).unwrap(), Progress { changed: 0, is_whole: true });
        assert_eq!((names().len(), copy.revision()), (3, 3));

        let mut again = Copy::new();
        assert_eq!(take(&mut again, &[("a", 1)], true).unwrap(), Progress { changed: 0, is_whole: false });
        assert_eq!(names().len(), 3, "it does not know yet");
        assert_eq!(take(&mut again, &[("c", 3)], false).unwrap(), Progress { changed: 1, is_whole: true });
        assert_eq!(names(), ["a.lab", "c.lab"]);
        assert!(matches!(take(&mut again, &[("d", 3)], false), Err(CopyError::Order)));
    }
}
