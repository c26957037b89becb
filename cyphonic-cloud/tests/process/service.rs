//! The service: its log, its crashes, whom it serves.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use cyphonic_cloud::config::Config;
use cyphonic_cloud::register::Register;
use cyphonic_cloud::server::unix_now;
use cyphonic_proto::Role;
use cyphonic_proto::token::EnrolmentToken;

use super::program::{Running, SOON, program, succeeds};
use crate::client::{Client, login_request};
use crate::common::{Overlay, free_port};

/// A program that crashes writes what it has in its memory into a file here.
fn with_core_dumps(program: &str, folder: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\"", program]).current_dir(folder);
    shell
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_core_dump_with_keys_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let crash = with_core_dumps("sh", dir.path()).args(["-c", "kill -s ABRT $$"]).status().unwrap();
    assert!(crash.core_dumped(), "this machine makes core dumps: {crash:?}");
    let overlay = Overlay::found(unix_now());
    let mut command = with_core_dumps(env!("CARGO_BIN_EXE_cyphonic-cloud"), dir.path());
    command.args(["run", "--config"]).arg(&overlay.config_path).env_remove("RUST_LOG");
    let mut running = Running::start_by(command, overlay.address).await;
    running.signal("ABRT");
    let crash = running.wait();
    assert_eq!((crash.signal(), crash.core_dumped()), (Some(6), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_log_filter_in_the_environment_keeps_no_service_from_starting() {
    let overlay = Overlay::found(unix_now());
    let log = overlay.directory.path().join("stderr");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"));
    command.args(["run", "--config"]).arg(&overlay.config_path).env("RUST_LOG", "loud");
    command.stderr(std::fs::File::create(&log).unwrap());
    let _running = Running::start_by(command, overlay.address).await;
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("RUST_LOG is ignored") && log.contains("\"loud\" is no log filter"), "{log}");
}

#[test]
fn the_journal_and_nobody_else_is_told_how_grave_lines_are() {
    let overlay = Overlay::found(unix_now());
    std::fs::remove_file(overlay.directory.path().join("register.db")).unwrap();
    let path = overlay.directory.path().join("stderr");
    let said = |is_journal: bool| {
        let stderr = std::fs::File::create(&path).unwrap();
        let (device, inode) = stderr.metadata().map(|stderr| (stderr.dev(), stderr.ino())).unwrap();
        let stream = if is_journal { inode } else { inode + 1 };
        let mut command = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"));
        command.args(["run", "--config"]).arg(&overlay.config_path).env_remove("RUST_LOG");
        command.env("JOURNAL_STREAM", format!("{device}:{stream}")).stderr(stderr).status().unwrap();
        std::fs::read_to_string(&path).unwrap()
    };
    let (told, other) = (said(true), said(false));
    let lines: Vec<_> = told.lines().collect();
    assert!(lines[0].starts_with("<6> INFO") && lines[0].contains("starting version=\""), "{told}");
    assert!(lines.last().unwrap().starts_with("<3>cyphonic-cloud: no register"), "{told}");
    assert!(!other.contains('<') && other.contains("starting version"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_prefix_is_refused_and_told() {
    let overlay = Overlay::found(unix_now());
    let path = &overlay.config_path;
    let config = path.to_str().unwrap();
    let member = {
        let _running = Running::start(path, overlay.address).await;
        crate::client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await
    };
    let sound = std::fs::read_to_string(path).unwrap();
    let (right, wrong) = (overlay.config.network.prefix.to_string(), "fd00:bad:bad::/48");
    std::fs::write(path, sound.replace(&right, wrong)).unwrap();
    for command in ["run", "check"] {
        let ended = program(&[command, "--config", config]);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(78), "{said}");
        assert!(said.contains(&format!("have addresses of {right}, `prefix` is {wrong}")), "{said}");
    }

    // A device whose certificate is of another prefix than its register's is told of, once.
    let register = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    register
        .execute_batch("UPDATE devices SET virtual_address = x'fd000bad0bad00000000000000000001'")
        .unwrap();
    for command in ["run", "check"] {
        let ended = program(&[command, "--config", config]);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(
            ended.status.code() == Some(78) && said.contains("devices' authority is of another"),
            "{said}"
        );
    }
    let as_elsewhere = sound.replace("roles: [as, nms, trs]", "roles: [nms, trs]").replace(&right, wrong);
    std::fs::write(path, as_elsewhere).unwrap();
    let _running = Running::start(path, overlay.address).await;
    let client = Client::open();
    for _ in 0..2 {
        let connection = client.connect(&overlay, &member, Role::Nms).await.unwrap();
        // Closed rather than answered.
        let _ = connection.open_exchange(&login_request()).await;
        tokio::time::timeout(SOON, connection.closed()).await.unwrap();
    }
    let log = std::fs::read_to_string(path.with_extension("log")).unwrap();
    let told = |line: &&str| line.contains("WARN") && line.contains("only devices of this network");
    let lines: Vec<_> = log.lines().filter(told).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("a device was refused fqdn=\"a.lab.cyphonic.internal\""), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_runs_alone_with_its_own_credentials() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, relay) = (directory.path().join("cloud"), directory.path().join("relay"));
    let (cloud_at, relay_at) = (free_port(), free_port());
    let trs = format!("trs1={relay_at}");
    let (cloud_text, relay_text) = (cloud.to_str().unwrap(), relay.to_str().unwrap());
    let at = cloud_at.to_string();
    succeeds(&["init", "--dir", cloud_text, "--listen", &at, "--public", &at, "--trs", &trs]);
    let listen = relay_at.to_string();
    let out =
        ["trs-credentials", "--dir", cloud_text, "--name", "trs1", "--out", relay_text, "--listen", &listen];
    succeeds(&out);
    let overlay = Overlay {
        config: Config::load(&cloud.join("cloud.yaml")).unwrap(),
        config_path: cloud.join("cloud.yaml"),
        address: cloud_at,
        directory,
    };
    let _cloud = Running::start(&overlay.config_path, cloud_at).await;
    let _relay = Running::start(&relay.join("cloud.yaml"), relay_at).await;
    let config = overlay.config_path.to_str().unwrap();
    let token = succeeds(&["token", "create", "--config", config, "--name", "a"]);
    let member = crate::client::enrol(&overlay, &EnrolmentToken::parse(&token).unwrap()).await;
    let client = Client::open();
    let elsewhere = Overlay { address: relay_at, ..overlay };
    let connection = client.connect(&elsewhere, &member, Role::Trs).await.unwrap();
    assert_eq!(connection.identity().unwrap().fqdn, "trs1.svc.cyphonic.internal");
    assert!(client.connect(&elsewhere, &member, Role::Nms).await.is_err(), "there is no NMS");
    assert!(Register::open(&relay.join("register.db")).is_err(), "a relay keeps no register");
}
