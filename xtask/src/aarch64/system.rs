//! Debian for 64-bit ARM: kernel, modules, and the few programs that the guest needs, unpacked but not
//! installed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::TARGET;
use crate::kernels::image;
use crate::{shell, workspace};

/// Debian 12, which Raspberry Pi OS is made from.
const SUITE: &str = "bookworm";
/// Besides the kernel; what they depend on comes with them.
const PACKAGES: &str = "busybox-static,iproute2,ethtool,procps,iputils-ping,libgcc-s1";

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

/// The metapackage of a series. Debian 12's own kernel has no series in its metapackage's name.
fn kernel(series: &str) -> String {
    match series {
        "6.1" => "linux-image-cloud-arm64".to_owned(),
        newer => format!("linux-image-{newer}-cloud-arm64"),
    }
}

/// Downloads and unpacks it with the newest kernel of a series, unless it is there.
pub(super) fn unpack(series: &str) -> Result<Unpacked> {
    let kernels = workspace::root().join("target/kernels");
    let tree = kernels.join(format!("{SUITE}-{}-{series}", TARGET.debian()));
    if !tree.is_dir() {
        fs::create_dir_all(&kernels).with_context(|| format!("cannot make {}", kernels.display()))?;
        // What is unpacked belongs to root, and what was cut short is not to be taken for whole.
        let partial = kernels.join(format!("{SUITE}-{}-{series}.partial", TARGET.debian()));
        shell::run(shell::as_root("rm")?.args(["-rf", "--"]).arg(&partial))?;
        println!(
            "test-aarch64: unpacking Debian's {SUITE} for {}, kernel {series} (about a minute)",
            TARGET.debian()
        );
        let mut mmdebstrap = shell::as_root("mmdebstrap")?;
        mmdebstrap.args(["--quiet", "--variant=extract"]);
        mmdebstrap.arg(format!("--architectures={}", TARGET.debian()));
        mmdebstrap.arg(format!("--include={PACKAGES},{}", kernel(series)));
        shell::run(mmdebstrap.arg(SUITE).arg(&partial))
            .context("cannot unpack Debian for another machine")?;
        fs::rename(&partial, &tree).with_context(|| format!("cannot make {}", tree.display()))?;
    }
    let boot = fs::read_dir(tree.join("boot")).with_context(|| format!("{} has no /boot", tree.display()))?;
    let names = boot.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let release = names.filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()));
    let wanted = format!("{series}.");
    let Some(release) = release.into_iter().find(|release| release.starts_with(&wanted)) else {
        bail!("{} has no kernel {series}: remove it and try again", tree.display());
    };
    // The package's own script would have made the list of modules.
    let depmod = shell::find("depmod").context("there is no depmod: install kmod")?;
    shell::run(shell::as_root(depmod)?.arg("-b").arg(&tree).arg(&release))?;
    let modules = image::modules(&tree, &release)?;
    Ok(Unpacked { image: tree.join("boot").join(format!("vmlinuz-{release}")), release, modules, tree })
}
