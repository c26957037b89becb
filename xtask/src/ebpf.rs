//! The eBPF objects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::{self, Linker, Toolchain};
use crate::{shell, workspace};

const TARGET: &str = "bpfel-unknown-none";

/// The objects, one a purpose: see `cyphonic-ebpf/src/lib.rs`.
const OBJECTS: [&str; 3] = ["agent", "bench", "relay"];

/// Builds the programs and puts the objects where `cyphonic-dataplane` embeds them. Returns the directory.
pub(crate) fn build() -> Result<PathBuf> {
    let (toolchain, linker) = setup::ebpf()?;
    println!("build: eBPF programs");
    shell::run(cargo(&toolchain, &linker)?.args([
        "build",
        "--release",
        "--locked",
        "-Zbuild-std=core",
        "--target",
        TARGET,
    ]))
    .context("the eBPF programs do not build")?;
    let (built, objects) = (target_dir().join(TARGET).join("release"), workspace::ebpf_objects());
    for object in OBJECTS {
        copy_if_changed(&built.join(object), &objects.join(object))?;
    }
    Ok(objects)
}

/// Lints the programs. That needs no BPF target: the workspace's own clippy reads them as host code.
pub(crate) fn lint() -> Result<()> {
    let mut cargo = shell::cargo();
    cargo.arg("clippy").current_dir(workspace::ebpf());
    cargo.arg("--target-dir").arg(target_dir()).args(["--locked", "--", "-D", "warnings"]);
    shell::run(&mut cargo).context("the eBPF programs have lints")
}

fn cargo(toolchain: &Toolchain, linker: &Linker) -> Result<Command> {
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Paths of this machine do not belong in an object that is shipped.
        format!("--remap-path-prefix={}=.", workspace::root().display()),
    ];
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(workspace::ebpf())
        .env("CARGO_TARGET_DIR", target_dir())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("PATH", path_with(linker)?);
    Ok(cargo)
}

fn target_dir() -> PathBuf {
    workspace::root().join("target/bpf-build")
}

fn path_with(linker: &Linker) -> Result<std::ffi::OsString> {
    let own = linker.path().parent().map(Path::to_path_buf);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let parts = own.into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(parts).context("cannot put bpf-linker on the PATH")
}

/// An unchanged object keeps its time stamp, so nothing that embeds it is built again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let directory = to.parent().context("the object's path has no directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
