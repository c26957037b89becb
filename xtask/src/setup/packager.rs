//! cargo-deb, which makes Debian packages from what a crate's `Cargo.toml` says of them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::packages::{self, package};
use crate::{shell, workspace};

const VERSION: &str = "3.8.0";

/// The program of this repository, built if needed.
pub(super) fn find_or_install() -> Result<PathBuf> {
    packages::install_missing(&[package("lintian", "lintian", "looking over the packages that are made")])?;
    let path = workspace::tools().join("bin/cargo-deb");
    let fits = |text: String| text.contains(VERSION);
    if shell::output(Command::new(&path).arg("--version")).is_some_and(fits) {
        return Ok(path);
    }
    println!("setup: building cargo-deb {VERSION}, which makes Debian packages (about 2 minutes)");
    packages::require_c_compiler()?;
    let mut cargo = shell::cargo();
    cargo.args(["install", "cargo-deb", "--version", VERSION, "--locked", "--force", "--quiet", "--root"]);
    // Beside the tools, so that `CARGO_TARGET_DIR` and other builds have no part in it.
    cargo.arg(workspace::tools()).arg("--target-dir").arg(workspace::tools().join("build-packages"));
    shell::run(&mut cargo)?;
    Ok(path)
}
