//! What an operator does by commands: devices and tokens.

use std::path::Path;
use std::process::Command;

use cyphonic_cloud::config::Config;
use cyphonic_cloud::register::IssuedCertificate;
use cyphonic_cloud::server::{Relayed, read_kept, unix_now};
use cyphonic_proto::Role;
use cyphonic_proto::identity::KeyHash;
use cyphonic_proto::message::Message;
use cyphonic_proto::token::EnrolmentToken;
use cyphonic_transport::{Clock, enrol as enrolment};

use super::program::{Running, SOON, fails, presence, program, succeeds, try_enrol, until_online_is};
use crate::client::{Client, login_request};
use crate::common::{Device, Overlay, enrolled, free_port};

#[test]
fn a_token_that_nobody_has_is_made_void_and_others_of_its_name_are_told_of() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    succeeds(&["token", "create", "--config", config, "--name", "press-7"]);
    let full = std::fs::File::create("/dev/full").unwrap();
    let mut create = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"));
    create.args(["token", "create", "--config", config, "--name", "press-8"]).stdout(full);
    let unwritten = create.output().unwrap();
    let said = String::from_utf8(unwritten.stderr).unwrap();
    assert!(!unwritten.status.success() && said.contains("it was made void"), "{said}");
    assert!(succeeds(&["token", "list", "--config", config]).contains("press-8.cyphonic.internal  revoked"));
    let again = program(&["token", "create", "--config", config, "--name", "press-7"]);
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(said.contains("1 other tokens for this name are open"), "{said}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_many_devices_is_told_of_until_it_is_revoked() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let create = |arguments: &[&str]| {
        let all = [&["token", "create", "--config", config, "--name"], arguments].concat();
        program(&all)
    };
    let told = |output: std::process::Output| String::from_utf8(output.stderr).unwrap();
    for (wrong, why) in [
        (&["camera-*.gate"][..], "--uses"),
        (&["camera-1", "--uses", "2"], "`*`"),
        (&["camera-*", "--uses", "2", "--replace"], "--replace"),
        (&["*.camera-*", "--uses", "2"], "one `*`"),
        (&["camera-*", "--uses", "0"], "--uses"),
    ] {
        let refused = create(wrong);
        assert!(!refused.status.success());
        let said = told(refused);
        assert!(said.contains(why), "{wrong:?}: {said}");
    }
    let made = create(&["Camera-*.gate", "--uses", "3"]);
    let token = EnrolmentToken::parse(str::from_utf8(&made.stdout).unwrap()).unwrap();
    let said = told(made);
    assert!(said.starts_with("token 1 for camera-*.gate.cyphonic.internal, for 3 devices, until "), "{said}");
    create(&["press-7"]);

    let _running = Running::start(&overlay.config_path, overlay.address).await;
    for name in ["camera-1", "camera-2"] {
        let request = Device::new().enrol_request_as(name, &token);
        let connection =
            enrolment::connect(&[overlay.address], *token.root_sha256(), &Clock::new(0)).await.unwrap();
        enrolled(connection.open_exchange(&request).await.unwrap());
    }
    let listed = succeeds(&["token", "list", "--config", config]);
    assert!(listed.contains("camera-*.gate.cyphonic.internal  open   2/3"), "{listed}");
    let of = |arguments: &[&str]| {
        let all = [&["device", "list", "--config", config, "--json"], arguments].concat();
        let listed: serde_json::Value = serde_json::from_str(&succeeds(&all)).unwrap();
        listed["devices"].as_array().unwrap().iter().map(|device| device["token"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((of(&["--token", "1"]), of(&["--token", "2"])), (vec![1.into(), 1.into()], vec![]));
    // Who has the device may enrol others by what it carries.
    let said = succeeds(&["device", "revoke", "--config", config, "camera-1.gate"]);
    assert!(said.contains("enrolled by token 1") && said.contains("`token revoke 1`"), "{said}");
    succeeds(&["token", "revoke", "--config", config, "camera-*.gate"]);
    // As after the image has leaked.
    let said = succeeds(&["device", "revoke", "--config", config, "--token", "1"]);
    assert!(said.contains("Revoked camera-2.gate") && !said.contains("camera-1"), "{said}");
    assert!(!said.contains("token revoke"), "{said}");
    fails(&["device", "revoke", "--config", config, "--token", "1"]);
    let listed: serde_json::Value =
        serde_json::from_str(&succeeds(&["token", "list", "--config", config, "--json"])).unwrap();
    let token = &listed["tokens"][0];
    assert_eq!((&token["state"], &token["used"], &token["uses"]), (&"revoked".into(), &2.into(), &3.into()));
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
