//! The programs an overlay runs: where they come from, and the right to run them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{ebpf, setup, shell};

/// Where the caller has built them, for the program that it runs as root. Not as an option: those are the
/// user's, and other programs than were built are none that documentation is written about.
const HANDED_OVER: &str = "XTASK_PROGRAMS";

/// Where the programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) cloud: PathBuf,
    pub(crate) daemon: PathBuf,
    pub(crate) cyphonic: PathBuf,
    /// The lab's own, on machines of their own.
    pub(crate) node: PathBuf,
    folder: PathBuf,
    /// Whether this process has built them.
    built: bool,
}

impl Programs {
    /// Those in `folder`, or what is built where none is given.
    pub(crate) fn find(folder: Option<&Path>) -> Result<Self> {
        Self::given(folder, std::env::var_os(HANDED_OVER)).unwrap_or_else(Self::build)
    }

    fn given(folder: Option<&Path>, handed_over: Option<OsString>) -> Option<Result<Self>> {
        let folder = folder.map(Path::to_owned).or_else(|| handed_over.map(PathBuf::from));
        folder.map(|folder| Self::in_folder(&folder))
    }

    /// Whether this process has built them, and may build more.
    pub(crate) fn are_built_here(&self) -> bool {
        self.built
    }

    /// Those of a verb. On machines reached over SSH, what is installed there or in a folder there.
    pub(crate) fn choose(folder: Option<&Path>, ssh: bool) -> Result<Self> {
        if !ssh {
            return Self::find(folder);
        }
        let at = folder.unwrap_or(Path::new("/usr/bin"));
        Ok(Self {
            cloud: at.join("cyphonic-cloud"),
            daemon: at.join("cyphonicd"),
            cyphonic: at.join("cyphonic"),
            node: folder.unwrap_or(Path::new("/usr/local/bin")).join("cyphonic-lab-node"),
            folder: at.to_owned(),
            built: false,
        })
    }

    /// Builds them as a release would be, the eBPF objects first.
    pub(crate) fn build() -> Result<Self> {
        setup::lab()?;
        ebpf::build()?;
        println!("build: programs");
        let mut cargo = shell::cargo();
        cargo.args([
            "build",
            "--release",
            "--locked",
            "-p",
            "cyphonic-cloud",
            "-p",
            "cyphonic-agent",
            "--bins",
        ]);
        cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
        let output = cargo.output().context("cannot run cargo")?;
        if !output.status.success() {
            bail!("the programs do not build (cargo's messages are above)");
        }
        // Cargo says where it puts things, whatever target folder is configured.
        let text = String::from_utf8_lossy(&output.stdout);
        let artifacts = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let program = artifacts
            .filter_map(|artifact| Some(PathBuf::from(artifact.get("executable")?.as_str()?)))
            .next();
        let folder = program.and_then(|program| program.parent().map(Path::to_owned));
        Ok(Self { built: true, ..Self::in_folder(&folder.context("cargo built no programs")?)? })
    }

    /// The programs in a folder.
    pub(crate) fn in_folder(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?;
        let program = |name: &str| {
            let path = folder.join(name);
            if path.is_file() { Ok(path) } else { bail!("there is no {}: build it first", path.display()) }
        };
        Ok(Self {
            cloud: program("cyphonic-cloud")?,
            daemon: program("cyphonicd")?,
            cyphonic: program("cyphonic")?,
            node: folder.join("cyphonic-lab-node"),
            folder,
            built: false,
        })
    }
}

/// Network namespaces need root: where we are not, this program is run once more by sudo with the arguments
/// it was given, and with what has been built.
pub(crate) fn become_root(programs: &Programs) -> Result<()> {
    if shell::is_root() {
        return Ok(());
    }
    println!("Network namespaces need root; going on with sudo.");
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    // Returns only if it fails.
    Err(again(programs, &own, std::env::args_os().skip(1)).exec())
        .context("cannot run sudo; run this as root")
}

/// sudo lets no variables through that it does not know, so env(1) sets this one.
fn again(programs: &Programs, own: &Path, arguments: impl Iterator<Item = OsString>) -> Command {
    let mut sudo = Command::new("sudo");
    sudo.arg("--");
    if programs.built {
        let mut variable = OsString::from(format!("{HANDED_OVER}="));
        variable.push(&programs.folder);
        sudo.arg("env").arg(variable);
    }
    sudo.arg(own).args(arguments);
    sudo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_is_handed_over_and_the_arguments_stay_the_users() {
        let folder = std::env::temp_dir().join(format!("cyphonic-programs-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        for name in ["cyphonic-cloud", "cyphonicd", "cyphonic"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let given = Programs::given(Some(&folder), Some("/elsewhere".into())).unwrap().unwrap();
        let handed_over = Programs::given(None, Some(folder.clone().into())).unwrap().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(given.folder, handed_over.folder);
        assert!(Programs::given(None, None).is_none(), "they are built");

        let words = |programs: &Programs| {
            let arguments = ["bench", "memory"].map(OsString::from).into_iter();
            let sudo = again(programs, Path::new("/xtask"), arguments);
            sudo.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(words(&handed_over), ["--", "/xtask", "bench", "memory"]);
        let built = Programs { built: true, ..handed_over };
        let variable = format!("XTASK_PROGRAMS={}", built.folder.display());
        assert_eq!(words(&built), ["--", "env", &variable, "/xtask", "bench", "memory"]);
    }
}
