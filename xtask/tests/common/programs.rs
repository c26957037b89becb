//! The programs that tests of a whole overlay run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder of the programs, built as `cargo test` builds.
pub(crate) fn programs() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_xtask")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    // All and an example, so that features are chosen as for tests and little is built that they have not built.
    cargo.args(["build", "--quiet", "--locked", "--workspace", "--bins", "--example", "fleet"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", folder.parent().unwrap());
    assert!(cargo.status().unwrap().success(), "the programs do not build");
    folder.to_owned()
}
