//! cargo-deb, which makes Debian packages from what a crate's `Cargo.toml` says of them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::packages::{self, package};
use super::tool;
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
    shell::run(&mut tool::install("cargo-deb", VERSION, "build-packages"))?;
    Ok(path)
}
