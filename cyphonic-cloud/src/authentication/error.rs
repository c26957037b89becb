//! Why the AS refused, for the asker and for our log.

use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use cyphonic_proto::identity::sha256;
use cyphonic_proto::message::{Refusal, RefusalCode};
use cyphonic_proto::version::VersionMismatch;

use crate::pki::CsrError;
use crate::register::{EnrolmentRefused, Presented, RegisterError, RenewalRefused};

/// The longest wait that a refusal can ask for.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A kind of refusal, the number of the token that was presented, and where that is for many names, one of a few groups
/// that the name belongs to which was asked for.
pub(super) type Case = (Discriminant<Refused>, RefusalCode, Option<i64>, u8);

/// So many cases whoever has a token for many names can make of one.
const GROUPS: u8 = 64;

#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{0} is not answered here")]
    NotHere(&'static str),
    #[error("the field {0} is missing or not valid")]
    Malformed(&'static str),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Version(#[from] VersionMismatch),
    #[error(transparent)]
    Token(EnrolmentRefused),
    #[error("the certificate is not that of a device of this network")]
    NotADevice,
    #[error("the certificate has ended: enrol with a new token")]
    Ended,
    #[error("no device has this name: enrol with a new token")]
    Unknown,
    #[error("the device was revoked")]
    Revoked,
    #[error("another device has taken the name over: enrol with a new token")]
    Replaced,
    #[error("this device got a certificate for another key just now")]
    TooSoon,
    #[error(
        "another device, which was revoked, had this device's key: enrol with `cyphonic up --anew` and a new token"
    )]
    KeyInUse,
    #[error("{0}")]
    Internal(String),
}

impl Refused {
    /// The token that was presented, where it is one of ours.
    pub(super) fn presented(&self) -> Option<&Presented> {
        match self {
            Self::Token(refused) => refused.presented(),
            _ => None,
        }
    }

    /// The device that has the asker's key.
    pub(super) fn holder(&self) -> Option<&str> {
        match self {
            Self::Token(EnrolmentRefused::KeyInUse { holder, .. }) => holder.as_deref(),
            _ => None,
        }
    }

    /// What it is a case of, for a log that is told of each case seldom: nothing that the asker can vary.
    pub(super) fn case(&self) -> Case {
        let presented = self.presented();
        let chosen = presented.filter(|presented| presented.name() != presented.granted);
        let group = chosen.map_or(0, |chosen| sha256(chosen.name().as_bytes())[0] % GROUPS);
        (discriminant(self), self.code(), presented.map(|presented| presented.token), group)
    }

    fn code(&self) -> RefusalCode {
        match self {
            Self::NotHere(_) | Self::NotADevice | Self::Ended | Self::Unknown | Self::Replaced => {
                RefusalCode::NotAllowed
            }
            Self::Malformed(_) | Self::Csr(_) => RefusalCode::Malformed,
            Self::Version(_) => RefusalCode::Version,
            Self::Token(
                EnrolmentRefused::NameTaken(_)
                | EnrolmentRefused::NameKept(_)
                | EnrolmentRefused::NameUnfit { .. },
            ) => RefusalCode::NotAllowed,
            Self::Token(EnrolmentRefused::RevokedKey(_) | EnrolmentRefused::RevokedUser(_)) => {
                RefusalCode::Revoked
            }
            Self::Token(EnrolmentRefused::KeyInUse { .. }) | Self::KeyInUse => RefusalCode::KeyInUse,
            Self::Token(_) => RefusalCode::BadToken,
            Self::Revoked => RefusalCode::Revoked,
            Self::TooSoon => RefusalCode::TooMany,
            Self::Internal(_) => RefusalCode::Internal,
        }
    }
}

impl From<EnrolmentRefused> for Refused {
    fn from(refused: EnrolmentRefused) -> Self {
        match refused {
            EnrolmentRefused::Register(error) => error.into(),
            EnrolmentRefused::Issue(reason) => Self::Internal(reason),
            token => Self::Token(token),
        }
    }
}

impl From<RenewalRefused> for Refused {
    fn from(refused: RenewalRefused) -> Self {
        match refused {
            // Revoked or replaced between two looks at the register.
            RenewalRefused::Gone => Self::Revoked,
            RenewalRefused::KeyInUse => Self::KeyInUse,
            RenewalRefused::TooSoon => Self::TooSoon,
            RenewalRefused::Register(error) => error.into(),
            RenewalRefused::Issue(reason) => Self::Internal(reason),
        }
    }
}

impl From<RegisterError> for Refused {
    fn from(error: RegisterError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let code = refused.code();
        match refused {
            // Paths and SQL are nobody else's business.
            Refused::Internal(_) => {
                Self::retry(code, "the service failed; its log says why", Duration::from_secs(5))
            }
            Refused::TooSoon => Self::retry(code, refused, LONGEST_RETRY),
            other => Self::new(code, other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_asker_cannot_make_many_cases_of_one() {
        let too_large = |bytes| Refused::Csr(CsrError::TooLarge(bytes)).case();
        assert_eq!(too_large(5_000), too_large(5_001));
        assert_ne!(Refused::Unknown.case(), Refused::Replaced.case());
        let presented =
            |token, granted: &str, fqdn: Option<String>| Presented { token, granted: granted.into(), fqdn };
        let used = |token| EnrolmentRefused::UsedToken(presented(token, "a.lab", None));
        assert_ne!(Refused::from(used(1)).case(), Refused::from(used(2)).case());
        let taken = |n| EnrolmentRefused::NameTaken(presented(1, "*.lab", Some(format!("a{n}.lab"))));
        let cases: HashSet<_> = (0..10_000).map(|n| Refused::from(taken(n)).case()).collect();
        assert_eq!(
            cases.len(),
            usize::from(GROUPS),
            "nor of a token for many, though each name is told of at first"
        );
    }
}
