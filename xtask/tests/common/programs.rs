//! The programs that tests of a whole overlay run.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the programs, built as `cargo test` builds.
pub(crate) fn programs() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_xtask")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--quiet",
        "-p",
        "cyphonic-cloud",
        "-p",
        "cyphonic-agent",
        "-p",
        "cyphonic-lab",
        "--bins",
        "--example",
        "fleet",
    ]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", folder.parent().unwrap());
    assert!(cargo.status().unwrap().success(), "the programs do not build");
    folder.to_owned()
}
