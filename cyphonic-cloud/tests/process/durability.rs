//! The register under a running service: kills, full disks, damage.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::Duration;

use cyphonic_cloud::config::Config;
use cyphonic_cloud::register::{Register, TokenState};
use cyphonic_cloud::server::unix_now;
use cyphonic_proto::Role;
use cyphonic_proto::message::Message;

use super::program::{Running, SOON, program, signal, succeeds, try_enrol};
use crate::client::{Client, Member, login_request};
use crate::common::{Device, Overlay, enrolled};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let overlay = Overlay::found(unix_now());
    let address = overlay.address;
    let mut running = Running::start(&overlay.config_path, address).await;

    // Devices enrol as fast as they can, until one has no answer: in the midst of it the process is killed.
    let mut members = Vec::new();
    let (device, token) = loop {
        let token = overlay.token(&format!("device-{}.lab", members.len()), unix_now());
        let device = Device::new();
        match try_enrol(address, &token, &device).await {
            Ok(answer) => members.push(Member { answer: enrolled(answer), device }),
            Err(_) => break (device, token),
        }
        if members.len() == 20 {
            let process = running.0.id();
            std::thread::spawn(move || signal(process, "KILL"));
        }
    };
    assert!(members.len() >= 20, "{} were acknowledged", members.len());
    assert_eq!(running.wait().signal(), Some(9));

    let register = overlay.register();
    for (n, member) in members.iter().enumerate() {
        let device = register.device(&format!("device-{n}.lab.cyphonic.internal")).unwrap().unwrap();
        let identity = cyphonic_proto::Identity::from_der(&member.answer.certificate_chain[0]).unwrap();
        assert_eq!(device.spki_sha256, identity.spki_sha256);
    }
    let used = register.tokens(unix_now()).unwrap().iter().filter(|t| t.state == TokenState::Used).count();
    assert_eq!(used, register.devices().unwrap().len(), "a token is used exactly if its device is there");

    // It starts again from what is on disk; the one whose answer was lost gets it now, with the same key.
    let _running = Running::start(&overlay.config_path, address).await;
    enrolled(try_enrol(address, &token, &device).await.unwrap());
    let client = Client::open();
    let last = members.pop().unwrap();
    let connection = client.connect(&overlay, &last, Role::As).await.unwrap();
    let answer = connection.open_exchange(&login_request()).await.unwrap();
    assert!(matches!(answer, Message::LoginResponse(_)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_register_that_cannot_be_written_keeps_it_not_from_starting() {
    let overlay = Overlay::found(unix_now());
    let member = {
        let _running = Running::start(&overlay.config_path, overlay.address).await;
        crate::client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await
    };
    let register = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON numbers BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    register.execute_batch(full).unwrap();
    let refused = program(&["run", "--config", overlay.config_path.to_str().unwrap()]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "it is tried again: {said}");
    assert!(said.contains("two minutes") && said.contains("disk full"), "{said}");

    register.execute_batch("UPDATE numbers SET value = 1").unwrap();
    let _running = Running::start(&overlay.config_path, overlay.address).await;
    let log = std::fs::read_to_string(overlay.config_path.with_extension("log")).unwrap();
    assert!(log.contains("ERROR") && log.contains("the register cannot be written"), "{log}");
    let client = Client::open();
    let connection = client.connect(&overlay, &member, Role::As).await.unwrap();
    let answer = connection.open_exchange(&login_request()).await.unwrap();
    assert!(matches!(answer, Message::LoginResponse(_)), "{answer:?}");
}

/// A small disk, in memory. Needs root, and fails without.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(at: std::path::PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&at).status();
        assert!(mounted.unwrap().success(), "only root mounts");
        Self(at)
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("ballast")).unwrap();
        let error = (0..).find_map(|_| std::io::Write::write_all(&mut file, &[7; 4096]).err()).unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_by_the_next_start_keeps_it_not_from_starting() {
    let overlay = Overlay::found(unix_now());
    let disk = Disk::mount(overlay.directory.path().join("small"));
    let register = disk.0.join("register.db");
    std::fs::copy(overlay.config.register.as_ref().unwrap(), &register).unwrap();
    let text = std::fs::read_to_string(&overlay.config_path).unwrap();
    let text = text.replace("register: register.db", "register: small/register.db");
    std::fs::write(&overlay.config_path, text).unwrap();
    let overlay = Overlay { config: Config::load(&overlay.config_path).unwrap(), ..overlay };

    let mut running = Running::start(&overlay.config_path, overlay.address).await;
    let member = crate::client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await;
    // As if it had started long ago.
    let other = rusqlite::Connection::open(&register).unwrap();
    other.execute_batch("UPDATE numbers SET value = 1").unwrap();
    drop(other);
    running.signal("TERM");
    assert!(running.wait().success());
    // Those of a timer, and of an operator who looks and acts meanwhile.
    let config = overlay.config_path.to_str().unwrap();
    for command in [&["metrics"][..], &["device", "list"], &["token", "create", "--name", "b"]] {
        succeeds(&[command, &["--config", config]].concat());
    }
    let alone = overlay.directory.path().join("copy.db");
    std::fs::copy(&register, &alone).unwrap();
    let copied = Register::open(&alone).unwrap();
    let inside = (copied.devices().unwrap().len(), copied.tokens(unix_now()).unwrap().len());
    assert_eq!(inside, (1, 2), "the one file has all of it");
    disk.fill();

    let _running = Running::start(&overlay.config_path, overlay.address).await;
    let log = std::fs::read_to_string(overlay.config_path.with_extension("log")).unwrap();
    assert!(log.contains("the register cannot be written"), "{log}");
    let client = Client::open();
    let connection = client.connect(&overlay, &member, Role::As).await.unwrap();
    let answer = connection.open_exchange(&login_request()).await.unwrap();
    assert!(matches!(answer, Message::LoginResponse(_)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_register_that_fails_does_not_fill_the_log() {
    let overlay = Overlay::found(unix_now());
    let _running = Running::start(&overlay.config_path, overlay.address).await;
    let member = crate::client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await;
    let register = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    register.execute_batch("DROP TABLE devices").unwrap();
    let client = Client::open();
    for _ in 0..3 {
        let connection = client.connect(&overlay, &member, Role::Nms).await.unwrap();
        tokio::time::timeout(SOON, connection.closed()).await.unwrap();
        let connection = client.connect(&overlay, &member, Role::As).await.unwrap();
        let answer = connection.open_exchange(&login_request()).await.unwrap();
        assert!(matches!(answer, Message::Refusal(_)), "{answer:?}");
    }
    // The register is looked at twice a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let log = std::fs::read_to_string(overlay.config_path.with_extension("log")).unwrap();
    for what in ["a device could not be looked up", "a request failed", "cannot see what changed"] {
        let told = log.lines().filter(|line| line.contains("ERROR") && line.contains(what)).count();
        assert_eq!(told, 1, "{what}: {log}");
    }
}

#[test]
fn a_register_that_another_release_or_program_wrote_is_not_tried_again() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let register = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    let version: i64 = register.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    let as_it_was = format!("PRAGMA user_version = {version}");
    for (wrong, right) in [
        ("PRAGMA user_version = 99", as_it_was.as_str()),
        ("PRAGMA application_id = 1", "PRAGMA application_id = 0x43797068"),
    ] {
        register.execute_batch(wrong).unwrap();
        for command in [&["run"][..], &["check"], &["device", "list"]] {
            let ended = program(&[command, &["--config", config]].concat());
            assert_eq!(ended.status.code(), Some(78), "{wrong}: {command:?}: {ended:?}");
        }
        register.execute_batch(right).unwrap();
    }
    succeeds(&["device", "list", "--config", config]);
}
