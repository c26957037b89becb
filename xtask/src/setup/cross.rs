//! Building for another machine: Rust's standard library for it, and a C compiler that links for it.
//!
//! Both come as packages, so no container and no emulator is needed to build. The C compiler also compiles
//! the C parts of libraries (cryptography, SQLite).

use std::process::Command;

use anyhow::{Context, Result};

use super::packages::{self, Package, package};
use crate::target::Target;
use crate::{shell, workspace};

const FOR_ARM64: &[Package] = &[
    package("gcc-aarch64-linux-gnu", "aarch64-linux-gnu-gcc", "compiling C and linking for 64-bit ARM"),
    package(
        "libc6-dev-arm64-cross",
        "/usr/aarch64-linux-gnu/include/sys/types.h",
        "the C library's headers for it",
    ),
];
const FOR_AMD64: &[Package] = &[
    package("gcc-x86-64-linux-gnu", "x86_64-linux-gnu-gcc", "compiling C and linking for PCs"),
    package(
        "libc6-dev-amd64-cross",
        "/usr/x86_64-linux-gnu/include/sys/types.h",
        "the C library's headers for them",
    ),
];

/// Makes a target buildable.
pub(super) fn install_missing(target: Target) -> Result<()> {
    if target.is_host() {
        return Ok(());
    }
    packages::install_missing(match target {
        Target::Arm64 => FOR_ARM64,
        Target::Amd64 => FOR_AMD64,
    })?;
    standard_library(target)
}

/// Rust's own, of the toolchain that builds the programs: `rust-toolchain.toml` names it, so rustup is asked
/// from there.
fn standard_library(target: Target) -> Result<()> {
    let rustup = |arguments: &[&str]| {
        let mut command = Command::new("rustup");
        shell::without_cargo_environment(&mut command).args(arguments).current_dir(workspace::root());
        command
    };
    let installed = shell::output(&mut rustup(&["target", "list", "--installed"])).unwrap_or_default();
    if installed.lines().any(|line| line == target.triple()) {
        return Ok(());
    }
    println!("setup: installing Rust's standard library for {target}");
    shell::run(&mut rustup(&["target", "add", target.triple()])).with_context(|| {
        format!(
            "rustup cannot install the target {target}: a Rust from elsewhere needs its own package for it"
        )
    })
}
