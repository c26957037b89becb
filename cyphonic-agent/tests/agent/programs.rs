//! The programs as systemd and people start them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cyphonic_agent::{resolver::resolv_conf::ResolvConf, state::StateDir};

const HOSTS_OWN: &str = "nameserver 192.0.2.1\n";

/// `cyphonicd`, with its files in a folder of its own and nothing of this process's environment.
fn cyphonicd(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cyphonicd"));
    command.env_clear().env("CYPHONIC_STATE_DIR", dir.join("state"));
    command.env("CYPHONIC_CONFIG", dir.join("agent.yaml")).env("CYPHONIC_INTERFACE", "cyph-none");
    command
}

fn configured(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("agent.yaml"), text).unwrap();
    dir
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A resolv.conf that a daemon has edited that is dead now.
fn edited_by_the_dead(dir: &Path) -> PathBuf {
    let file = dir.join("resolv.conf");
    fs::write(&file, HOSTS_OWN).unwrap();
    let state = StateDir::open(&dir.join("state")).unwrap();
    let edit = ResolvConf::prepare(&file, &state.resolver_dir()).unwrap();
    std::mem::forget(edit.apply([127, 0, 0, 55].into()).unwrap());
    assert_ne!(fs::read_to_string(&file).unwrap(), HOSTS_OWN);
    file
}

fn assert_cleaned(output: &Output, file: &Path) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(file).unwrap(), HOSTS_OWN, "{output:?}");
}

#[test]
fn a_mistake_in_the_settings_ends_the_daemon_for_good_and_its_host_is_cleaned_up() {
    let dir = configured("interfase: x\n");
    let file = edited_by_the_dead(dir.path());
    let run = cyphonicd(dir.path()).output().unwrap();
    assert_eq!(run.status.code(), Some(78), "{run:?}");
    assert!(text(&run.stderr).contains("interfase"), "{run:?}");
    let cleanup = cyphonicd(dir.path()).arg("cleanup").output().unwrap();
    assert!(text(&cleanup.stderr).contains("interfase"), "{cleanup:?}");
    assert_cleaned(&cleanup, &file);
}

#[test]
fn a_value_of_the_environment_that_cannot_be_read_is_no_obstacle_to_cleaning_up() {
    let dir = configured("");
    let file = edited_by_the_dead(dir.path());
    let run = cyphonicd(dir.path()).env("CYPHONIC_PORT", "many").output().unwrap();
    assert_eq!(run.status.code(), Some(2), "{run:?}");
    let cleanup = cyphonicd(dir.path()).arg("cleanup").env("CYPHONIC_PORT", "many").output().unwrap();
    assert!(text(&cleanup.stderr).contains("CYPHONIC_PORT") || text(&cleanup.stderr).contains("--port"));
    assert_cleaned(&cleanup, &file);
    // What a person mistypes is told, and nothing done.
    let mistyped = cyphonicd(dir.path()).args(["cleanup", "--intreface", "x"]).output().unwrap();
    assert_eq!(mistyped.status.code(), Some(2), "{mistyped:?}");
}

#[test]
fn an_empty_environment_variable_counts_as_not_set() {
    let dir = configured("log: debug\nport: 7\ncloud: cloud.example\n");
    let mut check = cyphonicd(dir.path());
    for name in ["CYPHONIC_PORT", "CYPHONIC_CLOUD", "CYPHONIC_LOG", "CYPHONIC_RING", "CYPHONIC_TOKEN_FILE"] {
        check.env(name, "");
    }
    let check = check.args(["config", "check"]).output().unwrap();
    let shown = text(&check.stdout);
    for line in ["log: debug", "port: 7", "- cloud.example:443", "token_file: null"] {
        assert!(shown.contains(line), "{check:?}");
    }
    let set = cyphonicd(dir.path()).env("CYPHONIC_PORT", "8").args(["config", "check"]).output().unwrap();
    assert!(text(&set.stdout).contains("port: 8"), "{set:?}");
    // Also below a verb.
    let up = Command::new(env!("CARGO_BIN_EXE_cyphonic"))
        .env_clear()
        .env("CYPHONIC_CLOUD", "")
        .args(["up", "--state-dir"])
        .arg(dir.path().join("state"))
        .arg("--config")
        .arg(dir.path().join("agent.yaml"))
        .output()
        .unwrap();
    assert!(text(&up.stderr).contains("not enrolled"), "{up:?}");
}
