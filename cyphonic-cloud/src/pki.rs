//! The overlay's certificates: who may be what.
//!
//! ```text
//! root ─┬─ devices (the AS signs with it; online)  ── press-7.plant.ZONE   device
//!       └─ services (used by the operator)         ── as.svc.ZONE, nms.svc.ZONE, trs1.svc.ZONE
//! ```
//!
//! All keys are ECDSA P-256. Role and network stand in a SAN URI (`cyphonic_proto::identity`), and name
//! constraints (RFC 5280 §4.2.1.10) back them up: the devices' authority, whose key lies on a machine that
//! talks to strangers, may sign names of the zone except below `svc.ZONE`, and addresses of the overlay's
//! prefix only; the services' authority may sign names below `svc.ZONE` only. So even the stolen key of the
//! AS makes no NMS. After `init` the root's key is needed for nothing but new authorities, and the services'
//! key for new service certificates: both can be taken off the machine.

mod authority;
mod chain;
mod csr;
mod files;
mod profile;

use std::path::PathBuf;

pub use self::authority::{Authority, Kind};
pub use self::chain::{check_devices_authority, check_service};
pub use self::csr::{CsrError, DeviceKey};
pub use self::files::{
    ServiceFiles, hold_folder, is_key_of, read_certificates, read_key, replace_certificates, sync_folder_of,
    write_certificates, write_new, write_secret,
};
pub use self::profile::{NMS_NAME, service_name, services_zone};

/// Why keys or certificates could not be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The library refused.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A time that certificates cannot express.
    #[error("the time {0} cannot stand in a certificate: is the clock right?")]
    Time(u64),
    /// The operating system has no randomness.
    #[error("the operating system gives no random bytes: {0}")]
    Random(String),
    /// A certificate just made does not say what it should: a defect, found before it left.
    #[error("the certificate made for {0} does not read back as intended: {1}")]
    Check(String, String),
    /// Of another overlay, or of another `zone` or `prefix`.
    #[error(
        "the {0} is of another overlay than `root`, `zone` and `prefix` are: {1}; restore the files of one backup"
    )]
    Overlay(&'static str, String),
    /// A certificate that cannot be renewed.
    #[error("a certificate is not renewed: {0}")]
    Renewal(String),
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {expected}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// Fills an array from the operating system's generator.
///
/// # Errors
/// If it has none to give.
pub fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| PkiError::Random(error.to_string()))?;
    Ok(bytes)
}
