//! The programs an overlay runs: where they come from, and the right to run them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{ebpf, setup, shell};

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
        folder.map_or_else(Self::build, Self::in_folder)
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
    let mut sudo = Command::new("sudo");
    sudo.arg("--").arg(own).args(std::env::args_os().skip(1));
    if programs.built {
        sudo.arg("--programs").arg(&programs.folder);
    }
    // Returns only if it fails.
    Err(sudo.exec()).context("cannot run sudo; run this as root")
}
