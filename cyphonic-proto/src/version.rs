//! Protocol versions.
//!
//! Fields are only ever added, and what is unknown is ignored, so most changes need no new version. The
//! number changes when an old end would misunderstand a new one. Both ends state theirs; the lower of the two
//! is spoken.

use thiserror::Error;

/// What this build speaks.
pub const CURRENT: u32 = 1;
/// The oldest version this build still understands.
pub const OLDEST: u32 = 1;

/// The two ends share no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "protocol version {theirs} is not understood here (oldest {OLDEST}, newest {CURRENT}): update the older end"
)]
pub struct VersionMismatch {
    /// What the other end stated.
    pub theirs: u32,
}

/// The version to speak with an end that states `theirs`.
///
/// # Errors
/// Where `theirs` is older than [`OLDEST`]. A newer end is answered with [`CURRENT`] and decides for itself.
pub fn negotiate(theirs: u32) -> Result<u32, VersionMismatch> {
    let spoken = theirs.min(CURRENT);
    if spoken < OLDEST { Err(VersionMismatch { theirs }) } else { Ok(spoken) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_version_is_spoken_and_one_too_old_is_refused() {
        assert_eq!(negotiate(CURRENT), Ok(CURRENT));
        assert_eq!(negotiate(CURRENT + 7), Ok(CURRENT));
        assert_eq!(negotiate(0), Err(VersionMismatch { theirs: 0 }));
    }
}
