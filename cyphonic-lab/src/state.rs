//! What is written down about a lab that is up, under `/run/cyphonic-lab/NAME/`.
//!
//! The file names everything the lab will make, and is there before any of it: whoever reads it can remove
//! the lab.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::topology::validate::{SWITCH, is_name};
use crate::{LabError, Namespace};

const ROOT: &str = "/run/cyphonic-lab";
const LONGEST_LAB_NAME: usize = 32;

/// A lab that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabState {
    /// Its name, which all its namespaces start with.
    pub name: String,
    /// The profile of its links.
    pub profile: String,
    /// Its nodes.
    pub nodes: Vec<String>,
    /// The process that made it.
    pub owner: Process,
    /// Whether it stays up when its owner ends.
    pub kept: bool,
}

/// A process, told apart from later ones with the same id by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub started: u64,
}

impl LabState {
    pub(crate) fn new(name: &str, profile: &str, nodes: Vec<String>) -> Result<Self, LabError> {
        if !is_name(name, LONGEST_LAB_NAME) {
            return Err(LabError::BadName(name.to_owned()));
        }
        let owner = Process::own();
        Ok(Self { name: name.to_owned(), profile: profile.to_owned(), nodes, owner, kept: false })
    }

    /// Claims the name; the first of several claimants gets it.
    pub(crate) fn claim(&self) -> Result<(), LabError> {
        fs::create_dir_all(ROOT).map_err(LabError::file("create", ROOT))?;
        // The folder appears under its name together with its state file, so that nobody sees one without the
        // other.
        let draft = Path::new(ROOT).join(format!(".{}.{}", self.name, self.owner.pid));
        fs::create_dir_all(&draft).map_err(LabError::file("create", &draft))?;
        self.write(&draft)?;
        let claimed = fs::rename(&draft, self.dir());
        if claimed.is_err() {
            let _ = fs::remove_dir_all(&draft);
        }
        claimed.map_err(|_| LabError::Exists(self.name.clone()))
    }

    pub(crate) fn save(&self) -> Result<(), LabError> {
        self.write(&self.dir())
    }

    fn write(&self, dir: &Path) -> Result<(), LabError> {
        let (file, draft) = (dir.join("state.json"), dir.join("state.json.new"));
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| LabError::State { path: file.clone(), source })?;
        fs::write(&draft, text).map_err(LabError::file("write", &draft))?;
        fs::rename(&draft, &file).map_err(LabError::file("replace", &file))
    }

    /// The state of the lab called `name`.
    pub(crate) fn load(name: &str) -> Result<Self, LabError> {
        let file = Path::new(ROOT).join(name).join("state.json");
        let no_such = |_| LabError::NoSuchLab { name: name.to_owned(), known: names().join(", ") };
        let text = if is_name(name, LONGEST_LAB_NAME) {
            fs::read(&file).map_err(no_such)?
        } else {
            return Err(LabError::BadName(name.to_owned()));
        };
        serde_json::from_slice(&text).map_err(|source| LabError::State { path: file, source })
    }

    /// All labs that are up, by name.
    pub(crate) fn all() -> Vec<Self> {
        names().iter().filter_map(|name| Self::load(name).ok()).collect()
    }

    /// The folder of the lab's files.
    pub fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// The namespace of a node.
    pub fn namespace(&self, node: &str) -> Namespace {
        Namespace::named(format!("{}-{node}", self.name))
    }

    /// All namespaces of the lab.
    pub(crate) fn namespaces(&self) -> Vec<Namespace> {
        let nodes = self.nodes.iter().map(String::as_str);
        nodes.chain(std::iter::once(SWITCH)).map(|node| self.namespace(node)).collect()
    }

    /// Whether nobody will remove it any more.
    pub(crate) fn is_stale(&self) -> bool {
        !self.kept && !self.owner.is_alive()
    }

    pub(crate) fn forget(&self) -> Result<(), LabError> {
        match fs::remove_dir_all(self.dir()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(LabError::file("delete", self.dir())(error))
            }
            Ok(()) | Err(_) => {
                let _ = fs::remove_dir(ROOT);
                Ok(())
            }
        }
    }
}

impl Process {
    fn own() -> Self {
        let pid = std::process::id();
        Self { pid, started: start_time(pid).unwrap_or_default() }
    }

    fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| is_name(name, LONGEST_LAB_NAME)).collect();
    names.sort();
    names
}

/// Field 22 of `/proc/PID/stat` (proc(5)), counted after the command name, which may contain anything.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for name in ["", "..", "a/b", "-a", "a-", "A", "9", &"a".repeat(33)] {
            assert!(matches!(LabState::new(name, "zero", Vec::new()), Err(LabError::BadName(_))), "{name}");
            assert!(matches!(LabState::load(name), Err(LabError::BadName(_))), "{name}");
        }
    }

    #[test]
    fn a_lab_is_stale_once_its_owner_is_gone_unless_it_is_kept() {
        let mut state = LabState::new("stale", "zero", Vec::new()).unwrap();
        assert!(!state.is_stale());
        state.owner.started += 1;
        assert!(state.is_stale());
        state.kept = true;
        assert!(!state.is_stale());
    }
}
