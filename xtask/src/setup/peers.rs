//! The VPNs that this project is measured beside: Debian's from packages, others from crates.io into
//! `target/tools`.

use std::process::Command;

use anyhow::{Context, Result};

use super::packages;
use crate::{shell, workspace};

/// The version of Quincy that is built.
pub(crate) const QUINCY: &str = "3.1.1";

/// Crates, versions, and the programs they bring.
const CRATES: [(&str, &str, &str); 4] = [
    ("boringtun-cli", "0.7.1", "boringtun-cli"),
    ("quincy-server", QUINCY, "quincy-server"),
    ("quincy-client", QUINCY, "quincy-client"),
    ("quincy-identity", QUINCY, "quincy-identity"),
];

/// Installs what is missing. A crate that does not build is told of and left out: the others can still be
/// measured.
pub(super) fn install_missing() -> Result<()> {
    packages::install_missing(packages::PEERS)?;
    for (name, version, program) in CRATES {
        let path = workspace::tools().join("bin").join(program);
        let fits = |text: String| text.contains(version);
        let there = path.is_file()
            && (shell::output(Command::new(&path).arg("--version")).is_some_and(fits)
                || noted(name, version));
        if there {
            continue;
        }
        println!("setup: building {name} {version}, to measure beside (some minutes)");
        packages::require_c_compiler()?;
        let mut cargo = shell::cargo();
        cargo.args(["install", name, "--version", version, "--locked", "--force", "--quiet", "--root"]);
        // Beside the tools, so that `CARGO_TARGET_DIR` and other builds have no part in it.
        cargo.arg(workspace::tools()).arg("--target-dir").arg(workspace::tools().join("build-peers"));
        if let Err(error) = shell::run(&mut cargo) {
            println!("setup: {name} is not measured: {error:#}");
        }
    }
    Ok(())
}

/// Whether cargo has noted this version among those it installed there: not every program tells its own.
fn noted(name: &str, version: &str) -> bool {
    let list = std::fs::read_to_string(workspace::tools().join(".crates.toml"))
        .context("cargo has installed nothing there");
    list.is_ok_and(|list| list.contains(&format!("\"{name} {version} ")))
}
