//! Debian for 64-bit ARM: kernel, modules, and the few programs that the guest needs, unpacked but not installed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::TARGET;
use crate::kernels::image;
use crate::{shell, workspace};

/// Debian 12, which Raspberry Pi OS is made from.
const SUITE: &str = "bookworm";
/// The packages; what they depend on comes with them.
const PACKAGES: &str =
    "busybox-static,iproute2,ethtool,procps,iputils-ping,libgcc-s1,linux-image-cloud-arm64";

/// An unpacked system.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) tree: PathBuf,
    /// As `uname -r` says.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// Module files, dependencies first.
    pub(super) modules: Vec<PathBuf>,
}

impl Unpacked {
    /// `6.1` of `6.1.0-50-cloud-arm64`.
    pub(super) fn series(&self) -> String {
        self.release.split('.').take(2).collect::<Vec<_>>().join(".")
    }
}

/// Downloads and unpacks it, unless it is there.
pub(super) fn unpack() -> Result<Unpacked> {
    let tree = workspace::root().join("target/kernels").join(format!("{SUITE}-{}", TARGET.debian()));
    if !tree.join("boot").is_dir() {
        if tree.exists() {
            fs::remove_dir_all(&tree).with_context(|| format!("cannot clear {}", tree.display()))?;
        }
        println!("test-aarch64: unpacking Debian's {SUITE} for {} (about a minute)", TARGET.debian());
        let mut mmdebstrap = shell::as_root("mmdebstrap")?;
        mmdebstrap.args(["--quiet", "--variant=extract"]);
        mmdebstrap.arg(format!("--architectures={}", TARGET.debian())).arg(format!("--include={PACKAGES}"));
        shell::run(mmdebstrap.arg(SUITE).arg(&tree)).context("cannot unpack Debian for another machine")?;
    }
    let boot = fs::read_dir(tree.join("boot")).with_context(|| format!("{} has no /boot", tree.display()))?;
    let names = boot.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let release = names.filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()));
    let Some(release) = release.max() else {
        bail!("{} has no kernel: remove it and try again", tree.display());
    };
    // The package's own script would have made the list of modules.
    let depmod = shell::find("depmod").context("there is no depmod: install kmod")?;
    shell::run(Command::new(depmod).arg("-b").arg(&tree).arg(&release))?;
    let modules = image::modules(&tree, &release)?;
    Ok(Unpacked { image: tree.join("boot").join(format!("vmlinuz-{release}")), release, modules, tree })
}
