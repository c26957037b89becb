//! Tools that cargo builds for this repository alone.

use std::process::Command;

use crate::{shell, workspace};

/// `cargo install` of a program into `target/tools`, built in a folder of its own there: beside the tools, so
/// that `CARGO_TARGET_DIR` and other builds have no part in it.
pub(super) fn install(program: &str, version: &str, build: &str) -> Command {
    let mut cargo = shell::cargo();
    cargo.args(["install", program, "--version", version, "--locked", "--force", "--quiet", "--root"]);
    cargo.arg(workspace::tools()).arg("--target-dir").arg(workspace::tools().join(build));
    // They run for seconds, and are built for minutes as their authors release them.
    cargo.envs([
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ]);
    cargo
}
