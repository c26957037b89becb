//! A device, as a standby must know it to let it in.

use thiserror::Error;

use crate::identity::KeyHash;
use crate::{message, name};

/// A device of the register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, canonical.
    pub fqdn: String,
    /// The key that it has.
    pub key: KeyHash,
    /// The key that it asked to have next.
    pub next_key: Option<KeyHash>,
    /// When it enrolled, in seconds since 1970.
    pub enrolled_at: u64,
    /// When it was revoked.
    pub revoked_at: Option<u64>,
    /// Position among all changes to all devices.
    pub revision: u64,
    /// Until when it has a certificate for a key of its own, as far as that is known.
    pub certificate_until: Option<u64>,
}

/// What was told is no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the NMS told of a device without a valid name or key")]
pub struct NoMember;

impl Member {
    /// The device as messages carry it.
    pub fn to_wire(&self) -> message::Member {
        message::Member {
            fqdn: self.fqdn.clone(),
            key: self.key.0.to_vec(),
            next_key: self.next_key.map(|key| key.0.to_vec()).unwrap_or_default(),
            enrolled_at: self.enrolled_at,
            revoked_at: self.revoked_at.unwrap_or(0),
            revision: self.revision,
            certificate_until: self.certificate_until.unwrap_or(0),
        }
    }

    /// The device of a message.
    ///
    /// # Errors
    /// It has no name or key: a standby that left it out would not know what it does not know.
    pub fn from_wire(told: &message::Member) -> Result<Self, NoMember> {
        let key = |bytes: &[u8]| bytes.try_into().map(KeyHash).map_err(|_| NoMember);
        Ok(Self {
            fqdn: name::canonical(&told.fqdn).map_err(|_| NoMember)?,
            key: key(&told.key)?,
            next_key: if told.next_key.is_empty() { None } else { Some(key(&told.next_key)?) },
            enrolled_at: told.enrolled_at,
            revoked_at: Some(told.revoked_at).filter(|at| *at > 0),
            revision: told.revision,
            certificate_until: Some(told.certificate_until).filter(|at| *at > 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::message::MAX_MESSAGE_BYTES;
    use crate::standby::MEMBERS_A_RESPONSE;

    fn member() -> Member {
        Member {
            fqdn: "press-7.lab".into(),
            key: KeyHash([1; 32]),
            next_key: Some(KeyHash([2; 32])),
            enrolled_at: 1_800_000_000,
            revoked_at: Some(1_800_000_001),
            revision: 7,
            certificate_until: Some(1_800_000_002),
        }
    }

    #[test]
    fn a_member_survives_the_wire() {
        for member in
            [member(), Member { next_key: None, revoked_at: None, certificate_until: None, ..member() }]
        {
            assert_eq!(Member::from_wire(&member.to_wire()), Ok(member));
        }
    }

    #[test]
    fn what_has_no_name_or_no_key_is_no_member() {
        let sound = member().to_wire();
        for bad in [
            message::Member { fqdn: "a..b".into(), ..sound.clone() },
            message::Member { key: vec![1; 31], ..sound.clone() },
            message::Member { key: Vec::new(), ..sound.clone() },
            message::Member { next_key: vec![1; 33], ..sound.clone() },
        ] {
            assert_eq!(Member::from_wire(&bad), Err(NoMember), "{bad:?}");
        }
    }

    #[test]
    fn as_many_as_a_response_has_fit_it() {
        let longest = Member {
            fqdn: "a".repeat(name::MAX_NAME),
            enrolled_at: u64::MAX,
            revoked_at: Some(u64::MAX),
            revision: u64::MAX,
            certificate_until: Some(u64::MAX),
            ..member()
        };
        // A tag and a length of three bytes for each.
        let all = MEMBERS_A_RESPONSE * (longest.to_wire().encoded_len() + 3);
        assert!(all + 64 < MAX_MESSAGE_BYTES, "{all}");
    }
}
