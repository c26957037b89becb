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
    let xtask = Path::new(env!("CARGO_BIN_EXE_xtask"));
    let folder = xtask.parent().unwrap();
    // Its own way, which leaves out what cargo has set for this test: libraries would be compiled anew for
    // that.
    let built = Command::new(xtask).arg("build").env("CARGO_TARGET_DIR", folder.parent().unwrap()).output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    folder.to_owned()
}
