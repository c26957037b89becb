//! The shell scripts of packages and of their trials.

use std::path::Path;
use std::process::Command;

#[test]
fn scripts_are_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let scripts = [
        "cyphonic-agent/dist/scripts/postinst",
        "cyphonic-agent/dist/scripts/postrm",
        "cyphonic-agent/dist/scripts/prerm",
        "cyphonic-cloud/dist/scripts/postrm",
        "xtask/src/package/quick_start.sh",
        "xtask/src/package/trial.sh",
        "xtask/src/server/checks.sh",
    ];
    let output = Command::new("shellcheck").arg("--shell=sh").args(scripts).current_dir(root).output();
    let output = output.expect("`cargo xtask test` installs shellcheck");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
