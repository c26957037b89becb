//! What a standby was told of its overlay, kept beside its copy of the register: with both it can stand in before it has
//! heard anything.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use cyphonic_proto::standby::Facts;

/// The file.
#[derive(Debug, Clone)]
pub(in crate::server) struct KeptFacts(PathBuf);

impl KeptFacts {
    /// Beside this register.
    pub(in crate::server) fn beside(register: &Path) -> Self {
        Self(register.with_added_extension("facts"))
    }

    /// What is there; nothing before the first whole copy, or where it is damaged.
    pub(in crate::server) fn read(&self) -> Option<Facts> {
        let bytes = fs::read(&self.0).ok()?;
        match Facts::from_bytes(&bytes) {
            Ok(facts) => Some(facts),
            Err(error) => {
                tracing::warn!(%error, file = %self.0.display(), "a file is not used");
                None
            }
        }
    }

    /// Replaces it, whole or not at all.
    pub(in crate::server) fn write(&self, facts: &Facts) -> io::Result<()> {
        let fresh = self.0.with_added_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&facts.to_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &self.0)?;
        let folder = self.0.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::standby::Standby;

    use super::*;

    #[test]
    fn facts_are_kept_whole_and_damage_is_no_fact() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptFacts::beside(&dir.path().join("register.db"));
        assert_eq!(kept.read(), None);
        let standbys =
            vec![Standby { name: "nms2.svc.lab".into(), addresses: vec!["192.0.2.1:443".parse().unwrap()] }];
        for facts in [Facts { standbys, ..Facts::default() }, Facts::default()] {
            kept.write(&facts).unwrap();
            assert_eq!(kept.read(), Some(facts));
        }
        fs::write(&kept.0, [0xff; 7]).unwrap();
        assert_eq!(kept.read(), None);
    }
}
