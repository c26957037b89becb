//! `cargo xtask setup`: from a machine with rustup and root to one that can build and test.
//!
//! Nothing is installed that is already there, and everything is named with its reason first. Packages go to
//! the system; the eBPF linker goes to `target/tools` of this repository.

mod cross;
mod linker;
mod packager;
mod packages;
mod peers;
mod tool;
mod toolchain;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
pub(crate) use linker::Linker;
pub(crate) use peers::QUINCY;
pub(crate) use toolchain::Toolchain;

use crate::target::Target;

/// What to set up.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// Only what building the eBPF objects needs, not what tests and labs need.
    #[arg(long)]
    ebpf_only: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &SetupArgs) -> Result<()> {
    if !args.ebpf_only {
        lab()?;
    }
    let (toolchain, linker) = ebpf()?;
    println!("setup: ready. eBPF: {toolchain}, {}", linker.path().display());
    Ok(())
}

/// What tests, labs and the demonstration need.
pub(crate) fn lab() -> Result<()> {
    packages::install_missing(packages::LAB)
}

/// What checking the virtual machines' files needs.
pub(crate) fn vagrant() -> Result<()> {
    packages::install_missing(packages::VAGRANT)
}

/// What measuring the relay needs.
pub(crate) fn for_relay_bench() -> Result<()> {
    lab()?;
    packages::install_missing(packages::RELAY_BENCH)
}

/// What counting a Raspberry Pi's instructions needs.
pub(crate) fn for_pi_bench() -> Result<()> {
    packages::install_missing(packages::INSTRUCTIONS)?;
    cross(Target::Arm64)
}

/// What booting other kernels needs.
pub(crate) fn emulator() -> Result<()> {
    lab()?;
    packages::install_missing(packages::EMULATOR)
}

/// What an emulated server needs: an emulator, and Debian for it.
pub(crate) fn emulated_server() -> Result<()> {
    packages::install_missing(packages::EMULATOR)?;
    packages::install_missing(packages::EMULATED_SERVER)
}

/// What booting the kernel of a Raspberry Pi needs.
pub(crate) fn emulator_arm64() -> Result<()> {
    emulator()?;
    packages::install_missing(packages::EMULATOR_ARM64)
}

/// Before a package is downloaded without being installed.
pub(crate) fn refresh_package_lists() -> Result<()> {
    packages::refresh_lists()
}

/// What building for another machine needs.
pub(crate) fn cross(target: Target) -> Result<()> {
    cross::install_missing(target)
}

/// What makes Debian packages: the program.
pub(crate) fn packager() -> Result<PathBuf> {
    packager::find_or_install()
}

/// What this project is measured beside.
pub(crate) fn peers() -> Result<()> {
    lab()?;
    peers::install_missing()
}

/// What the eBPF objects need.
pub(crate) fn ebpf() -> Result<(Toolchain, Linker)> {
    let toolchain = toolchain::find_or_install()?;
    let linker = linker::find_or_install(&toolchain)?;
    Ok((toolchain, linker))
}
