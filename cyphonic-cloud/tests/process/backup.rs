//! Backups: what is in them is enough to go on elsewhere, and a failed one leaves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use cyphonic_cloud::register::Register;
use cyphonic_cloud::server::unix_now;
use cyphonic_proto::token::EnrolmentToken;

use super::program::{Running, fails, succeeds, try_enrol};
use crate::common::{Device, Overlay, enrolled};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// What restoring is, by operations.md.
fn restore(backup: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    let from = format!("{}/.", backup.display());
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_goes_on_from_a_backup_that_was_made_while_it_ran() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let token =
        |name| EnrolmentToken::parse(&succeeds(&["token", "create", "--config", config, "--name", name]));
    let (first, second) = (token("press-7").unwrap(), token("press-8").unwrap());
    let running = Running::start(&overlay.config_path, overlay.address).await;
    enrolled(try_enrol(overlay.address, &first, &Device::new()).await.unwrap());

    let elsewhere = tempfile::tempdir().unwrap();
    let backup = elsewhere.path().join("backup");
    let to = backup.to_str().unwrap();
    let said = succeeds(&["backup", "--config", config, to]);
    assert!(said.contains("register") && said.contains("root.key is not in it"), "{said}");
    let home = overlay.config_path.parent().unwrap();
    assert!(home.join("pki/root.key").exists() && !backup.join("pki/root.key").exists());
    assert_eq!((mode(&backup), mode(&backup.join("pki"))), (0o700, 0o700));
    for secret in ["register.db", "pki/devices.key", "pki/services.key", "pki/as.key"] {
        assert_eq!(mode(&backup.join(secret)), 0o600, "{secret}");
    }
    // What is made afterwards is not in it, and a second one into the same place does not come about.
    token("press-9").unwrap();
    let before = fs::read(backup.join("register.db")).unwrap();
    assert!(fails(&["backup", "--config", config, to]).contains("exists already and was left as it is"));
    assert_eq!(fs::read(backup.join("register.db")).unwrap(), before);

    drop(running);
    let restored = elsewhere.path().join("restored");
    restore(&backup, &restored);
    let config = restored.join("cloud.yaml");
    let listed = succeeds(&["device", "list", "--config", config.to_str().unwrap()]);
    assert!(listed.contains("press-7") && !listed.contains("press-8"), "{listed}");
    let tokens = succeeds(&["token", "list", "--config", config.to_str().unwrap()]);
    assert!(tokens.contains("press-8") && !tokens.contains("press-9"), "{tokens}");
    let _running = Running::start(&config, overlay.address).await;
    enrolled(try_enrol(overlay.address, &second, &Device::new()).await.unwrap());
}

#[test]
fn what_the_configuration_names_elsewhere_is_in_the_backup_too() {
    named_elsewhere(|_, register| register.to_owned());
    // A link comes back under its own name.
    named_elsewhere(|_, register| {
        let link = register.with_file_name("link.db");
        std::os::unix::fs::symlink(register, &link).unwrap();
        link
    });
    // By a way that leads out of the folder, and is not to lead out of the backup.
    named_elsewhere(|home, register| {
        home.join("pki/../..").join(register.strip_prefix(home.parent().unwrap()).unwrap())
    });
}

/// `name` says how the configuration names a register elsewhere.
fn named_elsewhere(name: impl Fn(&Path, &Path) -> PathBuf) {
    let overlay = Overlay::found(unix_now());
    let home = overlay.config_path.parent().unwrap();
    let elsewhere = tempfile::tempdir_in(home.parent().unwrap()).unwrap();
    let register = elsewhere.path().join("devices.db");
    fs::rename(home.join("register.db"), &register).unwrap();
    let text = fs::read_to_string(&overlay.config_path).unwrap();
    let named = name(home, &register);
    let moved = text.replace("register.db", named.to_str().unwrap());
    assert_ne!(moved, text);
    fs::write(&overlay.config_path, moved).unwrap();

    let (config, backup) = (overlay.config_path.to_str().unwrap(), elsewhere.path().join("backup"));
    let said = succeeds(&["backup", "--config", config, backup.to_str().unwrap()]);
    let place = register.with_file_name(named.file_name().unwrap());
    assert!(said.contains(&format!("{} is in", place.display())), "{said}");
    let copy = backup.join("outside").join(place.strip_prefix("/").unwrap());
    assert_eq!(mode(&copy), 0o600);
    assert!(!backup.join("register.db").exists());
    for gone in BTreeSet::from([&register, &place]) {
        fs::remove_file(gone).unwrap();
    }
    fs::copy(copy, &place).unwrap();
    succeeds(&["check", "--config", config]);
}

#[test]
fn a_backup_that_fails_leaves_no_folder() {
    let overlay = Overlay::found(unix_now());
    let home = overlay.config_path.parent().unwrap();
    let (config, elsewhere) = (overlay.config_path.to_str().unwrap(), tempfile::tempdir().unwrap());
    let backup = elsewhere.path().join("backup");
    let try_it = || fails(&["backup", "--config", config, backup.to_str().unwrap()]);
    let is_empty = || fs::read_dir(&elsewhere).unwrap().next().is_none();

    // SQLite takes a database for whole whose pages are all in the log beside it.
    let register = home.join("register.db");
    let away = home.join("away.db");
    Register::open(&register).unwrap().gather().unwrap();
    fs::rename(&register, &away).unwrap();
    for beside in ["register.db-wal", "register.db-shm"] {
        let _ = fs::remove_file(home.join(beside));
    }
    assert!(try_it().contains("no register at"));
    assert!(is_empty());
    fs::write(&register, "no database").unwrap();
    assert!(try_it().contains("cannot open the register"));
    assert!(is_empty());
    fs::remove_file(&register).unwrap();
    fs::rename(&away, &register).unwrap();

    let key = home.join("pki/as.key");
    fs::rename(&key, home.join("as.key")).unwrap();
    assert!(try_it().contains("as.key, which belongs to a backup"));
    assert!(is_empty());
    fs::rename(home.join("as.key"), &key).unwrap();

    // One that was killed is named, and not taken for a backup.
    let unfinished = elsewhere.path().join("backup.unfinished");
    fs::create_dir(&unfinished).unwrap();
    assert!(try_it().contains("backup.unfinished is being written, or an interrupted backup left it"));
    fs::remove_dir(&unfinished).unwrap();
    succeeds(&["backup", "--config", config, backup.to_str().unwrap()]);
}
