//! The Debian packages from installation to purge, and the documentation's commands, on emulated machines; and the scripts of
//! both. Needs root, and fails without.

use std::path::Path;
use std::process::Command;

/// Checks that each of the two machines makes at least: fewer would be a script that ends too early.
const LEAST: [(&str, u32); 2] = [("test-packages", 60), ("test-packages (docs)", 40)];

#[test]
fn packages_come_and_go_without_a_trace_and_the_documentation_is_right() {
    let mut verb = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let output = verb.args(["test-packages", "--debug"]).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    for (part, least) in LEAST {
        let held = said.lines().find_map(|line| {
            line.strip_prefix(part)?.strip_prefix(": ")?.strip_suffix(" checks hold")?.parse::<u32>().ok()
        });
        assert!(held.is_some_and(|held| held >= least), "{part}: {held:?}\n{said}");
    }
}

#[test]
fn scripts_are_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let scripts = [
        "cyphonic-agent/dist/scripts/postrm",
        "cyphonic-cloud/dist/scripts/postrm",
        "xtask/src/package/quick_start.sh",
        "xtask/src/package/trial.sh",
        "xtask/src/server/checks.sh",
    ];
    let output = Command::new("shellcheck").arg("--shell=sh").args(scripts).current_dir(root).output();
    let output = output.expect("`cargo xtask test` installs shellcheck");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
