//! What can go wrong with the register, by who must act.

use std::path::PathBuf;

use cyphonic_proto::address::Prefix;

/// The register itself failed, or was asked for something that its rules forbid.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// No file there.
    #[error("no register at {}: restore it from a backup, correct `register` in the configuration, or, for a new overlay, run `cyphonic-cloud init`", path.display())]
    Missing {
        /// Where it was expected.
        path: PathBuf,
    },
    /// The file could not be made.
    #[error("cannot create the register {}: {source}", path.display())]
    Create {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file could not be opened as a register.
    #[error("cannot open the register {}: {source}{}", path.display(), advice(source))]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
    /// Somebody else has been reading it for too long.
    #[error("another program is reading the register")]
    InUse,
    /// It is a database of another program.
    #[error("{} is a database, but no Cyphonic register", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer release has been here.
    #[error(
        "the register {} has schema version {found}, newer than the {supported} that this release knows: run the \
         release that wrote it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        supported: i64,
    },
    /// Its devices are of another prefix than the configuration's.
    #[error(
        "the register's devices have addresses of {found}, `prefix` is {prefix}: put {found} back into the configuration, or the register \
         that belongs to it into its place"
    )]
    OtherPrefix {
        /// Of a device.
        found: Prefix,
        /// The configuration's.
        prefix: Prefix,
    },
    /// What an older release wrote could not be copied, and so was left as it is.
    #[error(
        "the register of an older release cannot be copied to {}: {reason}; it is brought up to date only after that: make room \
         there, or move away what is in the way",
        to.display()
    )]
    Copy {
        /// Where it was to be kept.
        to: PathBuf,
        /// Why not.
        reason: String,
    },
    /// It could not be copied for a backup.
    #[error("the register {} cannot be copied to {}: {reason}", path.display(), to.display())]
    BackUp {
        /// The register.
        path: PathBuf,
        /// Where the copy was to be.
        to: PathBuf,
        /// Why not.
        reason: String,
    },
    /// SQLite reported an error in operation; nothing was changed.
    #[error("the register failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row holds what this program never writes.
    #[error("the register is damaged: {0}")]
    Damaged(String),
    /// A token for a name that a device holds.
    #[error(
        "a device named {0} is enrolled already: choose another name, or pass --replace to let a new device take \
         the name (and the virtual address) over"
    )]
    NameTaken(String),
    /// A token for a name whose device was revoked.
    #[error("{0} was revoked: pass --replace to give the name (and the virtual address) out again")]
    NameRevoked(String),
    /// No such device.
    #[error("no device is named {0}: `cyphonic-cloud device list --all` shows them all")]
    NoSuchDevice(String),
    /// No such token.
    #[error("no unused token is named {0}: `cyphonic-cloud token list` shows them all")]
    NoSuchToken(String),
    /// Too many open tokens: they are promises, so they are bounded.
    #[error("there are {0} open tokens already: revoke some, or wait for them to expire")]
    TooManyTokens(u32),
}

/// What SQLite says of a disk does not name it.
fn advice(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, ReadOnly, SystemIoFailure};
    match error.sqlite_error_code() {
        Some(CannotOpen | DiskFull | ReadOnly | SystemIoFailure) => {
            "; is its disk full or read-only, or is it another user's? (df, findmnt, ls -l)"
        }
        _ => "",
    }
}

impl RegisterError {
    /// Whether it stays so until somebody puts another file or another release there.
    pub fn needs_a_person(&self) -> bool {
        matches!(self, Self::Foreign { .. } | Self::Newer { .. } | Self::OtherPrefix { .. })
    }
}

/// Why a renewal came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RenewalRefused {
    /// No such device any more, or not with this key.
    #[error("the device was revoked or replaced")]
    Gone,
    /// The key was another device's too when that was revoked.
    #[error(
        "another device, which was revoked, had this device's key: enrol with `cyphonic up --anew` and a new token"
    )]
    KeyInUse,
    /// It has a young certificate for another key.
    #[error("this device got a certificate for another key just now")]
    TooSoon,
    /// The register failed.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The certificate could not be made.
    #[error("cannot issue the certificate: {0}")]
    Issue(String),
}

/// A token that somebody presented: for the log, and not for who presented it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// Its number, as `token list` shows it.
    pub token: i64,
    /// The name that it grants, or the pattern of names.
    pub granted: String,
    /// The name that the asker would have got, where it came to that.
    pub fqdn: Option<String>,
}

impl Presented {
    /// The name that this is about.
    pub fn name(&self) -> &str {
        self.fqdn.as_deref().unwrap_or(&self.granted)
    }
}

/// Why an enrolment came to nothing. Only [`EnrolmentRefused::Register`] and [`EnrolmentRefused::Issue`] are
/// our fault.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentRefused {
    /// Nobody made this token, or it was forgotten since.
    #[error("the enrolment token is unknown: ask for a new one")]
    UnknownToken,
    /// An operator has revoked it.
    #[error("the enrolment token was revoked: ask for a new one")]
    RevokedToken(Presented),
    /// Its time is over.
    #[error("the enrolment token has expired: ask for a new one")]
    ExpiredToken(Presented),
    /// Another key has used it.
    #[error("the enrolment token was used already, with another key: ask for a new one")]
    UsedToken(Presented),
    /// As many devices as may have used it.
    #[error("the enrolment token was used as often as it may be: ask for a new one")]
    UsedUpToken(Presented),
    /// The token leaves the name open, and what the device asks to be called is none that it gives.
    #[error(
        "this device's name does not fit: {reason}; its host name is asked for, or what `enrol_as` in its agent.yaml says"
    )]
    NameUnfit {
        /// The token.
        presented: Presented,
        /// Why not.
        reason: String,
    },
    /// The device that it enrolled was revoked, and asks with the key that it had then.
    #[error(
        "this device was revoked since it used this token: stop its daemon and enrol with `cyphonic up --anew` and a new one"
    )]
    RevokedUser(Presented),
    /// Between the token's making and its use another device got the name, or it has had the one that this device
    /// chose.
    #[error("{} is taken: only a token for this name that was made with --replace gives it to another device", .0.name())]
    NameTaken(Presented),
    /// An operator has made a token for this name alone, which nobody has used yet.
    #[error("{} is kept for the device that another token is for", .0.name())]
    NameKept(Presented),
    /// The device was revoked, and asks with a key that it had then. The token is unused.
    #[error(
        "this device was revoked, and its key with it: stop its daemon and enrol with `cyphonic up --anew` and the same \
         token, which makes another key"
    )]
    RevokedKey(Presented),
    /// Another device has the key, or had it when it was revoked. The token is unused.
    #[error(
        "another device has this device's key, as on copied disks and images: the same token enrols it with a key of its own, \
         once identity/key.pem is gone from its state directory"
    )]
    KeyInUse {
        /// The token.
        presented: Presented,
        /// The other device, unless it is revoked. The asker is not told.
        holder: Option<String>,
    },
    /// The register failed; the token is unused.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The certificate could not be made; the token is unused.
    #[error("cannot issue the certificate: {0}")]
    Issue(String),
}

impl EnrolmentRefused {
    /// The token, where there is one.
    pub fn presented(&self) -> Option<&Presented> {
        match self {
            Self::RevokedToken(presented)
            | Self::ExpiredToken(presented)
            | Self::UsedToken(presented)
            | Self::UsedUpToken(presented)
            | Self::NameUnfit { presented, .. }
            | Self::RevokedUser(presented)
            | Self::NameTaken(presented)
            | Self::NameKept(presented)
            | Self::RevokedKey(presented)
            | Self::KeyInUse { presented, .. } => Some(presented),
            Self::UnknownToken | Self::Register(_) | Self::Issue(_) => None,
        }
    }
}
