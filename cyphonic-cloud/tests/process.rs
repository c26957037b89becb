//! The program itself: its command line, its exit, and what survives `kill -9`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "common/client.rs"]
mod client;
mod common;

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use client::{Client, Member, login_request};
use common::{Device, Overlay, enrolled, free_port};
use cyphonic_cloud::config::Config;
use cyphonic_cloud::register::{IssuedCertificate, Register, TokenState};
use cyphonic_cloud::server::{Relayed, read_kept, unix_now};
use cyphonic_proto::Role;
use cyphonic_proto::identity::KeyHash;
use cyphonic_proto::message::Message;
use cyphonic_proto::token::EnrolmentToken;
use cyphonic_transport::{Clock, DialError, enrol as enrolment};

const SOON: Duration = Duration::from_secs(30);

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = program(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn fails(arguments: &[&str]) -> String {
    let output = program(arguments);
    assert!(matches!(output.status.code(), Some(1 | 78)), "{arguments:?} did not fail: {}", output.status);
    let errors = String::from_utf8(output.stderr).unwrap();
    // The log of `run` comes first.
    assert!(errors.lines().last().unwrap_or_default().starts_with("cyphonic-cloud: "), "{errors}");
    errors
}

/// `run`, killed at the latest when the test ends.
struct Running(Child);

impl Running {
    /// Starts and waits until the port answers.
    async fn start(config: &Path, address: SocketAddr) -> Self {
        // In a session of its own, as services are: without the terminal that the tests may have.
        let mut command = Command::new("setsid");
        command.arg(env!("CARGO_BIN_EXE_cyphonic-cloud")).args(["run", "--config", config.to_str().unwrap()]);
        command.env_remove("RUST_LOG").env("RUNTIME_DIRECTORY", config.parent().unwrap());
        command.stderr(std::fs::File::create(config.with_extension("log")).unwrap());
        Self::start_by(command, address).await
    }

    async fn start_by(mut command: Command, address: SocketAddr) -> Self {
        let mut running = Self(command.spawn().unwrap());
        let deadline = Instant::now() + SOON;
        // A pinned root that nothing matches: as soon as the service is up, its certificate is seen and
        // refused, or it says that nobody enrols there.
        loop {
            match enrolment::connect(&[address], [0; 32], &Clock::new(0)).await {
                Err(DialError::Refused(_)) => return running,
                Err(DialError::Handshake { error, .. }) if error.to_string().contains("aborted by peer") => {
                    return running;
                }
                Err(error) => assert!(Instant::now() < deadline, "not up: {error}"),
                Ok(_) => panic!("a root that nothing matches was matched"),
            }
            let ended = running.0.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}");
        }
    }

    fn signal(&self, name: &str) {
        signal(self.0.id(), name);
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(process: u32, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap().success());
}

/// What `device list` says of the first device's presence, by the file of a cloud started here.
fn presence(config: &str) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"))
        .args(["device", "list", "--json", "--config", config])
        .env("RUNTIME_DIRECTORY", Path::new(config).parent().unwrap())
        .output()
        .unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    listed["devices"][0].clone()
}

/// What `metrics` says of a cloud started here.
fn metrics(config: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"))
        .args(["metrics", "--config", config])
        .env("RUNTIME_DIRECTORY", Path::new(config).parent().unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_learns_what_there_is() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let stopped = metrics(config);
    assert!(stopped.contains("\ncyphonic_cloud_ready 0\n"), "{stopped}");
    assert!(!stopped.contains("devices_online") && !stopped.contains("path="), "{stopped}");

    let _running = Running::start(&overlay.config_path, overlay.address).await;
    let member = client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await;
    overlay.token("b.lab", unix_now());
    let client = Client::open();
    let connection = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    assert!(matches!(connection.open_exchange(&login_request()).await.unwrap(), Message::Refusal(_)));
    until_online_is(true, config).await;
    let said = metrics(config);
    for sample in [
        "build_info{version=\"",
        "ready 1",
        "certificate_not_after_seconds{service=\"trs1\"} 1",
        "devices{state=\"enrolled\"} 1",
        "devices{state=\"lapsed\"} 0",
        "devices{state=\"revoked\"} 0",
        "devices_online 1",
        "tokens_open 1",
        "relay_packets_total{path=\"userspace\"} 0",
        "relay_bytes_total{path=\"userspace\"} 0",
        "relay_drops_total{path=\"userspace\",reason=\"unbound_source\"} 0",
        "relay_bindings 0",
        "relay_bindings_limit 131072",
    ] {
        assert!(said.contains(&format!("\ncyphonic_cloud_{sample}")), "{sample}: {said}");
    }
    assert!(!said.contains("a.lab"), "{said}");
}

#[test]
fn a_monitor_is_told_that_it_is_not_told_all() {
    let overlay = Overlay::found(unix_now());
    let (config, directory) = (overlay.config_path.to_str().unwrap(), overlay.directory.path());
    let online = serde_json::json!({
        "version": 1,
        "network_id": overlay.config.network.id.to_string(),
        "written_at": unix_now(),
        "content": {},
    });
    std::fs::write(directory.join("online.json"), online.to_string()).unwrap();
    let is_told = |series: &str| metrics(config).contains(&format!("\ncyphonic_cloud_{series}"));
    assert!(is_told("ready 1") && is_told("devices{") && is_told("tokens_open"));
    std::fs::remove_file(directory.join("register.db")).unwrap();
    assert!(is_told("ready 0") && is_told("devices_online 0") && is_told("certificate_not_after_seconds{"));
    assert!(!is_told("devices{") && !is_told("tokens_open"));
    let said = String::from_utf8(program(&["metrics", "--config", config]).stderr).unwrap();
    assert!(said.contains("no register at"), "{said}");

    // What there is of an AS alone is told, and that something is not.
    let text = std::fs::read_to_string(config).unwrap();
    let roles = text.lines().find(|line| line.starts_with("roles:")).unwrap();
    std::fs::write(config, text.replace(roles, "roles: [as]")).unwrap();
    assert!(is_told("ready 0"));
    drop(Register::create(&directory.join("register.db")).unwrap());
    assert!(!is_told("ready") && is_told("devices{"));
    std::fs::remove_file(directory.join("pki/as.crt")).unwrap();
    assert!(is_told("ready 0") && is_told("devices{") && !is_told("certificate_not_after_seconds"));
    std::fs::write(config, "roles: none").unwrap();
    assert!(is_told("ready 0") && is_told("build_info{") && !is_told("devices"));
}

async fn until_online_is(online: bool, config: &str) -> serde_json::Value {
    let deadline = Instant::now() + SOON;
    loop {
        let device = presence(config);
        if device["online"] == online {
            return device;
        }
        assert!(Instant::now() < deadline, "{device:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn try_enrol(address: SocketAddr, token: &EnrolmentToken, device: &Device) -> Result<Message, String> {
    let connection = enrolment::connect(&[address], *token.root_sha256(), &Clock::new(0))
        .await
        .map_err(|error| error.to_string())?;
    connection.open_exchange(&device.enrol_request(token)).await.map_err(|error| error.to_string())
}

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
async fn a_full_disk_keeps_it_not_from_starting() {
    let overlay = Overlay::found(unix_now());
    let member = {
        let _running = Running::start(&overlay.config_path, overlay.address).await;
        client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await
    };
    let register = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON numbers BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    register.execute_batch(full).unwrap();
    let refused = program(&["run", "--config", overlay.config_path.to_str().unwrap()]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "it is tried again: {said}");
    assert!(said.contains("twenty minutes") && said.contains("disk full"), "{said}");

    register.execute_batch("UPDATE numbers SET value = 1").unwrap();
    let _running = Running::start(&overlay.config_path, overlay.address).await;
    let log = std::fs::read_to_string(overlay.config_path.with_extension("log")).unwrap();
    assert!(log.contains("ERROR") && log.contains("the register cannot be written"), "{log}");
    let client = Client::open();
    let connection = client.connect(&overlay, &member, Role::As).await.unwrap();
    let answer = connection.open_exchange(&login_request()).await.unwrap();
    assert!(matches!(answer, Message::LoginResponse(_)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_register_that_fails_does_not_fill_the_log() {
    let overlay = Overlay::found(unix_now());
    let _running = Running::start(&overlay.config_path, overlay.address).await;
    let member = client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await;
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
async fn from_init_to_revocation_by_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("cloud");
    let (dir, address) = (dir.to_str().unwrap(), free_port());
    let config = format!("{dir}/cloud.yaml");
    let at = address.to_string();
    let said = succeeds(&["init", "--dir", dir, "--zone", "plant.example", "--listen", &at, "--public", &at]);
    assert!(said.contains("root.key") && said.contains("offline"), "{said}");
    assert!(fails(&["init", "--dir", dir, "--public", &at]).contains("exists already"));
    assert!(succeeds(&["check", "--config", &config]).contains("as, nms, trs"));

    let token = succeeds(&["token", "create", "--config", &config, "--name", "press-7", "--ttl", "10m"]);
    assert_eq!(token.lines().count(), 1);
    let token = EnrolmentToken::parse(&token).unwrap();
    assert!(succeeds(&["token", "list", "--config", &config]).contains("press-7.plant.example  open"));

    let mut running = Running::start(Path::new(&config), address).await;
    let device = Device::new();
    let answer = enrolled(try_enrol(address, &token, &device).await.unwrap());
    let listed = succeeds(&["device", "list", "--config", &config, "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["devices"][0]["name"], "press-7.plant.example");
    assert_eq!(listed["devices"][0]["state"], "enrolled");
    assert!(listed["devices"][0]["online"].is_null(), "nobody says where the file is");
    assert!(succeeds(&["device", "list", "--config", &config]).contains("enrolled  ?"));
    assert!(fails(&["token", "create", "--config", &config, "--name", "press-7"]).contains("--replace"));

    // The running process hears of the revocation, which another process writes.
    let client = Client::open();
    let overlay = Overlay {
        config: Config::load(Path::new(&config)).unwrap(),
        config_path: (&config).into(),
        directory,
        address,
    };
    let credentials = device.credentials(&answer, &overlay);
    let tls = cyphonic_transport::ClientTls::new(credentials);
    let (name, as_name) = ("nms.svc.plant.example", "as.svc.plant.example");
    let connection = client.transport.connect_service(&tls, &[address], name, Role::Nms).await.unwrap();
    assert!(matches!(connection.open_exchange(&login_request()).await.unwrap(), Message::Refusal(_)));
    assert!(until_online_is(true, &config).await["online_since"].is_string());
    // What `trs-status` shows, which asks the kernel besides and so needs privileges.
    let relayed: Relayed = read_kept(Path::new(dir), None, unix_now()).unwrap();
    assert_eq!((relayed.port, relayed.packets), (address.port(), 0));
    succeeds(&["token", "create", "--config", &config, "--name", "press-7", "--replace"]);
    let mut revoke = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"));
    revoke.args(["device", "revoke", "--config", &config, "press-7"]).env("SUDO_USER", "ann");
    let said = String::from_utf8(revoke.output().unwrap().stdout).unwrap();
    assert!(said.contains("made void: 1."), "{said}");
    tokio::time::timeout(SOON, connection.closed()).await.unwrap();
    until_online_is(false, &config).await;
    assert!(!succeeds(&["device", "list", "--config", &config]).contains("press-7"));
    assert!(succeeds(&["device", "list", "--all", "--config", &config]).contains("revoked"));
    assert_eq!(presence(&config)["state"], "revoked", "programs are told of all");
    let nobody = fails(&["device", "revoke", "--config", &config, "press-9"]);
    assert!(nobody.contains("press-9.plant.example") && nobody.contains("device list --all"), "{nobody}");
    let given_out = fails(&["token", "create", "--config", &config, "--name", "press-7"]);
    assert!(given_out.contains("press-7.plant.example was revoked: pass --replace"), "{given_out}");

    // It tries all the time, and is told of once.
    for _ in 0..3 {
        let connection = client.transport.connect_service(&tls, &[address], as_name, Role::As).await.unwrap();
        let answer = connection.open_exchange(&login_request()).await.unwrap();
        assert!(matches!(answer, Message::Refusal(_)), "{answer:?}");
    }
    for _ in 0..3 {
        // It may be told before the handshake is done.
        if let Ok(connection) = client.transport.connect_service(&tls, &[address], name, Role::Nms).await {
            tokio::time::timeout(SOON, connection.closed()).await.unwrap();
        }
    }
    let new = succeeds(&["token", "create", "--config", &config, "--name", "press-7", "--replace"]);
    let new = EnrolmentToken::parse(&new).unwrap();
    assert!(matches!(try_enrol(address, &new, &device).await.unwrap(), Message::Refusal(_)), "its old key");
    enrolled(try_enrol(address, &new, &Device::new()).await.unwrap());

    // What makes other services read their settings again ends nothing.
    running.signal("HUP");
    running.signal("HUP");
    assert!(try_enrol(address, &token, &device).await.is_ok(), "it answers");
    assert!(running.0.try_wait().unwrap().is_none());

    running.signal("TERM");
    assert!(running.wait().success());

    // Who came and went stands in the log by name and token, and addresses do not.
    let log = std::fs::read_to_string(Path::new(&config).with_extension("log")).unwrap();
    let name = r#"fqdn="press-7.plant.example""#;
    let lines: Vec<_> = log.lines().filter(|line| line.contains(name)).collect();
    for (level, what, token) in [
        ("INFO", "a device was enrolled fqdn", Some(1)),
        ("INFO", r#"by="ann""#, None),
        ("WARN cyphonic_cloud::authentication", "the device was revoked", None),
        ("WARN cyphonic_cloud::server", "the device was revoked", None),
        ("WARN", "this device was revoked, and its key with it", Some(3)),
        ("INFO", "enrolled in the place of another", Some(3)),
    ] {
        let is_meant = |line: &&&str| line.contains(level) && line.contains(what);
        let found: Vec<_> = lines.iter().filter(is_meant).collect();
        assert_eq!(found.len(), 1, "{what}: {log}");
        assert!(token.is_none_or(|token| found[0].contains(&format!("token={token}"))), "{log}");
    }
    assert!(!lines.iter().any(|line| line.contains("127.0.0.1")), "{log}");
}

#[test]
fn a_device_whose_certificate_has_ended_is_listed_as_lapsed() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let mut address = overlay.config.network.prefix.address().octets();
    for (n, not_after) in [(1, unix_now() - 60), (2, unix_now() + 3600)] {
        address[15] = n;
        let issued = IssuedCertificate {
            fqdn: format!("press-{n}.cyphonic.internal"),
            virtual_address: address.into(),
            der: vec![0x30, n],
            serial: vec![n],
            spki_sha256: KeyHash([n; 32]),
            not_before: unix_now() - 3600,
            not_after,
        };
        overlay.register().take_up(&[issued], unix_now()).unwrap();
    }
    let listed = succeeds(&["device", "list", "--config", config, "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let of = |n: usize, key: &str| listed["devices"][n][key].clone();
    assert_eq!((of(0, "state"), of(1, "state")), ("lapsed".into(), "enrolled".into()));
    assert!(of(0, "certificate_not_after").as_str().unwrap().starts_with("20"), "{listed}");
    let table = succeeds(&["device", "list", "--config", config]);
    assert!(table.contains("CERTIFICATE UNTIL") && table.contains("lapsed"), "{table}");
}

/// As an older release let in: it was renamed, and kept its key.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_key_was_revoked_under_another_name_is_told_of() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let mut address = overlay.config.network.prefix.address().octets();
    let devices = [("old", 1), ("new", 2)].map(|(name, n)| {
        address[15] = n;
        IssuedCertificate {
            fqdn: format!("{name}.cyphonic.internal"),
            virtual_address: address.into(),
            der: vec![0x30, n],
            serial: vec![n],
            spki_sha256: KeyHash([7; 32]),
            not_before: unix_now(),
            not_after: unix_now() + 3600,
        }
    });
    overlay.register().take_up(&devices, unix_now()).unwrap();
    let note = "the key of new.cyphonic.internal was revoked under another name";
    assert!(!succeeds(&["check", "--config", config]).contains(note));
    succeeds(&["device", "revoke", "--config", config, "old"]);
    let checked = succeeds(&["check", "--config", config]);
    assert!(checked.contains(&format!("note: {note}")), "{checked}");
    let table = succeeds(&["device", "list", "--config", config]);
    assert!(table.contains("enrolled, key revoked"), "{table}");
    let listed = succeeds(&["device", "list", "--config", config, "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let of = |n: usize| (&listed["devices"][n]["state"], &listed["devices"][n]["key_revoked"]);
    assert_eq!((of(0), of(1)), ((&"enrolled".into(), &true.into()), (&"revoked".into(), &false.into())));
    let _running = Running::start(&overlay.config_path, overlay.address).await;
    let log = std::fs::read_to_string(overlay.config_path.with_extension("log")).unwrap();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains(note)), "{log}");
}

#[test]
fn check_judges_the_certificates_ends() {
    const DAY: u64 = 86_400;
    let config = |overlay: &Overlay| overlay.config_path.to_str().unwrap().to_owned();
    let ages = [(DAY, None), (700 * DAY + 3600, Some("it ends in 29 days: renew it"))];
    for (age, judgement) in ages {
        let overlay = Overlay::found(unix_now() - age);
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
    let ended = Overlay::found(unix_now() - 731 * DAY);
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
fn tokens_can_be_revoked_by_number_and_name() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    for name in ["a", "b"] {
        succeeds(&["token", "create", "--config", config, "--name", name]);
    }
    succeeds(&["token", "revoke", "--config", config, "1"]);
    succeeds(&["token", "revoke", "--config", config, "b"]);
    fails(&["token", "revoke", "--config", config, "b"]);
    let listed = succeeds(&["token", "list", "--config", config]);
    assert_eq!(listed.lines().filter(|line| line.contains("  revoked  ")).count(), 2, "{listed}");
    let mut create = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"));
    create.args(["token", "create", "--config", config, "--name", "c", "--ttl", "365d", "--replace"]);
    let made = create.env("SUDO_USER", "ann").output().unwrap();
    let told = String::from_utf8(made.stderr).unwrap();
    assert!(
        told.starts_with("token 3 for c.cyphonic.internal, until 20") && told.lines().count() == 1,
        "{told}"
    );
    assert_eq!(String::from_utf8(made.stdout).unwrap().lines().count(), 1);
    let listed = succeeds(&["token", "list", "--config", config, "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed["version"], listed["tokens"].as_array().unwrap().len()), (&1.into(), 3));
    assert!(listed["tokens"][0]["revoked_at"].is_string() && listed["tokens"][0]["revoked_by"].is_string());
    let token = &listed["tokens"][2];
    assert_eq!((&token["id"], &token["name"]), (&3.into(), &"c.cyphonic.internal".into()));
    assert_eq!((&token["state"], &token["replaces"]), (&"open".into(), &true.into()));
    assert_eq!((&token["created_by"], &token["revoked_by"]), (&"ann".into(), &serde_json::Value::Null));
    let slip = fails(&["token", "create", "--config", config, "--name", "cyphonic.internal"]);
    assert!(slip.contains("twice"), "{slip}");
    let forever = ["token", "create", "--config", config, "--name", "d", "--ttl", "366d"];
    let refused = program(&forever);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("365d at most"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    for arguments in [&["token", "list"][..], &["token", "list", "--json"], &["device", "list"], &["check"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"));
        let output = command.args(arguments).args(["--config", config]).stdout(writer).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{arguments:?}: {said}");
    }
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

#[test]
fn a_register_that_another_release_or_program_wrote_is_not_tried_again() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let register = rusqlite::Connection::open(overlay.config.register.as_ref().unwrap()).unwrap();
    for (wrong, right) in [
        ("PRAGMA user_version = 99", "PRAGMA user_version = 6"),
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

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_prefix_is_refused_and_told() {
    let overlay = Overlay::found(unix_now());
    let path = &overlay.config_path;
    let config = path.to_str().unwrap();
    let member = {
        let _running = Running::start(path, overlay.address).await;
        client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await
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
    let member = client::enrol(&overlay, &EnrolmentToken::parse(&token).unwrap()).await;
    let client = Client::open();
    let elsewhere = Overlay { address: relay_at, ..overlay };
    let connection = client.connect(&elsewhere, &member, Role::Trs).await.unwrap();
    assert_eq!(connection.identity().unwrap().fqdn, "trs1.svc.cyphonic.internal");
    assert!(client.connect(&elsewhere, &member, Role::Nms).await.is_err(), "there is no NMS");
    assert!(Register::open(&relay.join("register.db")).is_err(), "a relay keeps no register");
}
