//! A kernel from Debian's archive: its image, and the modules that the tests need, in the order to insert
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{setup, shell, workspace};

/// What packages of kernels are named, before the release.
const PREFIX: &str = "linux-image-";
/// What folders are named behind, while they are filled.
const PARTIAL: &str = ".partial";

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

/// Downloads and unpacks the newest kernel of a series, unless one is there.
pub(crate) fn fetch(series: &str) -> Result<Kernel> {
    let kernels = workspace::root().join("target/kernels");
    let package = match unpacked(&kernels, series) {
        Some(package) => package,
        None => {
            // Lists may be missing, or name a version that the archive has replaced since.
            setup::refresh_package_lists()?;
            let package = package(series)?;
            download(&package, &kernels)?;
            package
        }
    };
    let directory = kernels.join(&package);
    let release = package.trim_start_matches(PREFIX).to_owned();
    let image = directory.join("boot").join(format!("vmlinuz-{release}"));
    if !image.is_file() {
        bail!("the package {package} holds no {}: remove {}", image.display(), directory.display());
    }
    let modules = modules(&directory, &release)?;
    Ok(Kernel { release, image, modules })
}

/// The package of a series that was unpacked earlier.
fn unpacked(kernels: &Path, series: &str) -> Option<String> {
    let wanted = format!("{PREFIX}{series}.");
    let names = fs::read_dir(kernels).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&wanted) && !name.ends_with(PARTIAL)).max()
}

/// The package that a series' metapackage stands for. Debian 12's own kernel has no series in its
/// metapackage's name.
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

/// What was cut short is not to be taken for whole, so it has its name last.
fn download(package: &str, kernels: &Path) -> Result<()> {
    let directory = kernels.join(format!("{package}{PARTIAL}"));
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot clear {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    shell::run(Command::new("apt-get").args(["-qq", "download", package]).current_dir(&directory))?;
    let downloaded = fs::read_dir(&directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let deb =
        downloaded.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let deb = deb.with_context(|| format!("apt-get put no package into {}", directory.display()))?;
    shell::run(Command::new("dpkg").arg("-x").arg(&deb).arg(&directory))?;
    let depmod = shell::find("depmod").context("there is no depmod: install kmod")?;
    shell::run(Command::new(depmod).arg("-b").arg(&directory).arg(package.trim_start_matches(PREFIX)))?;
    fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))?;
    let whole = kernels.join(package);
    fs::rename(&directory, &whole).with_context(|| format!("cannot make {}", whole.display()))
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
