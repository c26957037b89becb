//! Why the AS refused, for the asker and for our log.

use std::time::Duration;

use cyphonic_proto::message::{Refusal, RefusalCode};
use cyphonic_proto::version::VersionMismatch;

use crate::pki::CsrError;
use crate::register::{EnrolmentRefused, Presented, RegisterError, RenewalRefused};

/// The longest wait that a refusal can ask for.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

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
    #[error("no device has this name: enrol with a new token")]
    Unknown,
    #[error("the device was revoked")]
    Revoked,
    #[error("another device has taken the name over: enrol with a new token")]
    Replaced,
    #[error("this device got a certificate for another key just now")]
    TooSoon,
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

    fn code(&self) -> RefusalCode {
        match self {
            Self::NotHere(_) | Self::NotADevice | Self::Unknown | Self::Replaced => RefusalCode::NotAllowed,
            Self::Malformed(_) | Self::Csr(_) => RefusalCode::Malformed,
            Self::Version(_) => RefusalCode::Version,
            Self::Token(EnrolmentRefused::NameTaken(_)) => RefusalCode::NotAllowed,
            Self::Token(EnrolmentRefused::RevokedKey(_)) => RefusalCode::Revoked,
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
