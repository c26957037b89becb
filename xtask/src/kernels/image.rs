//! A kernel from Debian's archive: its image, and the modules that the tests need, in the order to insert them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{shell, workspace};

/// What the programs and their tests need that Debian builds as modules.
const MODULES: [&str; 7] = ["veth", "tun", "sch_ingress", "cls_bpf", "act_bpf", "bridge", "macvlan"];

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` says.
    pub(crate) release: String,
    /// The bootable file.
    pub(crate) image: PathBuf,
    /// Module files, dependencies first.
    pub(crate) modules: Vec<PathBuf>,
}

/// Downloads and unpacks the newest kernel of a series, unless it is there.
pub(crate) fn fetch(series: &str) -> Result<Kernel> {
    let package = package(series)?;
    let directory = workspace::root().join("target/kernels").join(&package);
    let release = package.trim_start_matches("linux-image-").to_owned();
    let image = directory.join("boot").join(format!("vmlinuz-{release}"));
    if !image.is_file() {
        download(&package, &directory)?;
    }
    if !image.is_file() {
        bail!("the package {package} holds no {}", image.display());
    }
    let modules = modules(&directory, &release)?;
    Ok(Kernel { release, image, modules })
}

/// The package that a series' metapackage stands for. Debian 12's own kernel has no series in its metapackage's name.
fn package(series: &str) -> Result<String> {
    let names = [format!("linux-image-{series}-cloud-amd64"), "linux-image-cloud-amd64".to_owned()];
    let wanted = format!("linux-image-{series}.");
    names
        .iter()
        .filter_map(|name| shell::output(Command::new("apt-cache").args(["depends", name])))
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| Some(line.trim().strip_prefix("Depends: ")?.to_owned()))
        .find(|package| package.starts_with(&wanted))
        .with_context(|| format!("no package source has a kernel {series}: it comes from Debian 12's main and security archives"))
}

fn download(package: &str, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    shell::run(Command::new("apt-get").args(["-qq", "download", package]).current_dir(directory))?;
    let downloaded = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let deb =
        downloaded.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let deb = deb.with_context(|| format!("apt-get put no package into {}", directory.display()))?;
    shell::run(Command::new("dpkg").arg("-x").arg(&deb).arg(directory))?;
    shell::run(
        Command::new("depmod").arg("-b").arg(directory).arg(package.trim_start_matches("linux-image-")),
    )?;
    fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))
}

/// The files of [`MODULES`] and those they depend on, in the order to insert them.
pub(crate) fn modules(directory: &Path, release: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for module in MODULES {
        let modprobe = shell::find("modprobe").context("there is no modprobe: install kmod")?;
        let mut command = Command::new(modprobe);
        command.arg("--show-depends").arg("-d").arg(directory).args(["-S", release, module]);
        // What is not a module of this kernel is built in, or the test that needs it fails there.
        let Some(listed) = shell::output(&mut command) else { continue };
        for line in listed.lines() {
            let Some(file) = line.strip_prefix("insmod ").map(|rest| PathBuf::from(rest.trim())) else {
                continue;
            };
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}
