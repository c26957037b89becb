//! What would not start, or not for long, and how that is told.

use std::process::{Command, Output};

use cyphonic_cloud::server::unix_now;

use super::program::{fails, program, succeeds};
use crate::common::Overlay;

#[test]
fn check_judges_the_certificates_ends() {
    const DAY: u64 = 86_400;
    let config = |overlay: &Overlay| overlay.config_path.to_str().unwrap().to_owned();
    let key = |overlay: &Overlay| overlay.directory.path().join("pki/services.key");
    let (old, has, had) = (700 * DAY + 3600, true, false);
    let cases = [
        (DAY, has, None),
        (old, had, Some("it ends in 29 days: renew it")),
        (old, has, Some("the running service renews it")),
    ];
    for (age, with_key, judgement) in cases {
        let overlay = Overlay::found(unix_now() - age);
        if !with_key {
            std::fs::remove_file(key(&overlay)).unwrap();
        }
        let said = succeeds(&["check", "--config", &config(&overlay)]);
        for name in ["as.crt until 20", "nms.crt until 20", "trs1.crt until 20"] {
            let line = said.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{said}"));
            assert_eq!(judgement.is_some(), line.contains("renew"), "{line}");
            assert!(line.contains(judgement.unwrap_or_default()), "{line}");
        }
    }
    let soon = Overlay::found(unix_now() - 700 * DAY - 3600);
    let said = succeeds(&["check", "--json", "--config", &config(&soon)]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let certificate = &said["certificates"][0];
    assert_eq!((&certificate["service"], &certificate["state"]), (&"as".into(), &"ends_soon".into()));
    assert_eq!((&certificate["days_left"], &said["notes"]), (&29.into(), &serde_json::json!([])));
    assert_eq!(certificate["renews_itself"], true);
    let ended = Overlay::found(unix_now() - 731 * DAY);
    let said = succeeds(&["check", "--config", &config(&ended)]);
    assert!(said.contains("the running service renews it"), "{said}");
    // Another overlay's would not renew it.
    std::fs::copy(key(&soon), key(&ended)).unwrap();
    assert!(fails(&["check", "--config", &config(&ended)]).contains("it has expired"));
    std::fs::remove_file(key(&ended)).unwrap();
    let told = program(&["check", "--json", "--config", &config(&ended)]);
    assert!(
        !told.status.success() && String::from_utf8_lossy(&told.stdout).contains("\"ended\""),
        "{told:?}"
    );
    let error = fails(&["check", "--config", &config(&ended)]);
    for name in ["as.crt", "nms.crt", "trs1.crt"] {
        assert!(error.contains(&format!("{name}: it has expired: renew it")), "{error}");
    }
    let pki = ended.directory.path().join("pki");
    std::fs::copy(pki.join("as.key"), pki.join("nms.key")).unwrap();
    let error = fails(&["check", "--config", &config(&ended)]);
    assert!(error.contains("nms.key: it is not the key of ") && error.contains("nms.crt"), "{error}");
    assert!(!error.contains("expired") && !error.contains("enrol"), "{error}");
}

#[test]
fn certificates_that_were_renewed_before_one_that_cannot_be_are_told() {
    let (ours, theirs) = (Overlay::found(unix_now()), Overlay::found(unix_now()));
    let pki = |overlay: &Overlay, name: &str| overlay.directory.path().join("pki").join(name);
    let files = [pki(&ours, "as.crt"), pki(&theirs, "nms.crt"), pki(&ours, "nms.crt")];
    let mut command = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"));
    let ended = command.arg("renew").arg("--dir").arg(ours.directory.path()).args(&files).output().unwrap();
    let (said, errors) = (String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap());
    assert_eq!(ended.status.code(), Some(1), "{said}{errors}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("as.crt: as.svc.cyphonic.internal until 20"), "{said}");
    assert!(errors.contains(files[1].to_str().unwrap()) && errors.contains("not renewed"), "{errors}");
}

#[test]
fn a_directory_without_a_configuration_is_told() {
    let error = fails(&["renew", "--dir", "/nonexistent"]);
    assert!(error.contains("/nonexistent/cloud.yaml") && !error.contains("options"), "{error}");
}

#[test]
fn check_refuses_what_would_not_start() {
    let overlay = Overlay::found(unix_now());
    let path = overlay.config_path.to_str().unwrap();
    let sound = std::fs::read_to_string(path).unwrap();
    let both = |with: &str| {
        let checked = fails(&["check", "--config", path]);
        assert!(checked.contains(with), "{checked}");
        // Its log comes first.
        let run = program(&["run", "--config", path]);
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success() && said.ends_with(&checked), "{said}");
    };
    for file in ["register.db", "pki/devices.key", "pki/devices.crt"] {
        let (file, aside) = (overlay.directory.path().join(file), overlay.directory.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        both(file.to_str().unwrap());
        std::fs::rename(&aside, &file).unwrap();
    }
    std::fs::write(path, sound.replace("log: info", "log: inof")).unwrap();
    both("log");
    let relaying = |mode: &str| {
        sound
            .replace("  mode: auto", &format!("  mode: {mode}"))
            .replace("  interfaces: []", "  interfaces: [nosuch0]")
    };
    std::fs::write(path, relaying("generic")).unwrap();
    assert!(fails(&["check", "--config", path]).contains("no interface nosuch0"));
    // It listens on loopback, where `auto` is userspace.
    for mode in ["auto", "userspace"] {
        std::fs::write(path, relaying(mode)).unwrap();
        assert!(!succeeds(&["check", "--config", path]).contains("nosuch0"), "{mode}");
    }
}

/// What `check` says in a network namespace that `set_up` makes.
fn checked_behind(set_up: &str, config: &str) -> Output {
    let script = format!("{set_up} && exec \"$0\" check --config \"$1\"");
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-ec", &script, env!("CARGO_BIN_EXE_cyphonic-cloud"), config]);
    command.output().unwrap()
}

#[test]
fn check_finds_the_interfaces_that_the_relay_would() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("cloud");
    succeeds(&["init", "--dir", dir.to_str().unwrap(), "--public", "203.0.113.1:443"]);
    let path = dir.join("cloud.yaml");
    let (config, written) = (path.to_str().unwrap(), std::fs::read_to_string(&path).unwrap());
    let online = "ip link add e0 type veth peer name e1 && ip link set e1 up && ip link set e0 up
                  ip address add 192.0.2.2/24 dev e0 && ip route add default via 192.0.2.1";
    for mode in ["auto", "generic", "native"] {
        std::fs::write(&path, written.replace("  mode: auto", &format!("  mode: {mode}"))).unwrap();
        let checked = checked_behind(online, config);
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success() && !said.contains("note:"), "{mode}: {checked:?}");
        let alone = checked_behind("true", config);
        let said = String::from_utf8_lossy(&alone.stdout);
        assert_eq!(alone.status.success(), mode == "auto", "{mode}: {alone:?}");
        assert_eq!(said.contains("note: ") && said.contains("userspace"), mode == "auto", "{alone:?}");
    }
    std::fs::write(&path, written.replace("  interfaces: []", "  interfaces: [nosuch0]")).unwrap();
    let said = succeeds(&["check", "--config", config]);
    assert!(said.contains("note: there is no interface nosuch0") && said.contains("userspace"), "{said}");
}

#[test]
fn a_broken_configuration_is_told_by_key_and_line() {
    let overlay = Overlay::found(unix_now());
    let path = overlay.config_path.to_str().unwrap();
    let sound = std::fs::read_to_string(path).unwrap();
    let line = sound.lines().position(|line| line.starts_with("roles:")).unwrap() + 1;
    std::fs::write(path, sound.replace("roles:", "rules:")).unwrap();
    let error = fails(&["run", "--config", path]);
    assert_eq!(
        program(&["run", "--config", path]).status.code(),
        Some(78),
        "no service manager need try again"
    );
    assert!(
        error.contains("rules") && error.contains(&format!("line {line}")) && error.contains(path),
        "{error}"
    );
    std::fs::write(path, &sound).unwrap();
    std::fs::remove_file(overlay.directory.path().join("register.db")).unwrap();
    assert!(fails(&["run", "--config", path]).contains("register.db"));
    let missing = program(&["run", "--config", "/nonexistent/cloud.yaml"]);
    assert_eq!(missing.status.code(), Some(1), "what it is on may be mounted yet");
    assert!(String::from_utf8(missing.stderr).unwrap().contains("/nonexistent/cloud.yaml"));
}
