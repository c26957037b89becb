//! What a monitor learns.

use std::time::{Duration, Instant};

use cyphonic_cloud::register::Register;
use cyphonic_cloud::server::{rfc3339, unix_now};
use cyphonic_proto::Role;
use cyphonic_proto::message::{Message, RegistrationRequest};
use cyphonic_proto::version;

use super::program::{Running, SOON, metrics, presence, program, told_by_files, until_online_is};
use crate::client::{Client, login_request};
use crate::common::Overlay;

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_learns_what_there_is() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let stopped = metrics(config);
    assert!(stopped.contains("\ncyphonic_cloud_ready 0\n"), "{stopped}");
    assert!(!stopped.contains("devices_online") && !stopped.contains("path="), "{stopped}");

    let _running = Running::start(&overlay.config_path, overlay.address).await;
    let member = crate::client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_learns_of_each_device_when_it_was_here_if_it_asks() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let begun = unix_now();
    let mut running = Running::start(&overlay.config_path, overlay.address).await;
    let member = crate::client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await;
    let asked = || told_by_files(&["metrics", "--devices"], config);
    let online =
        |value| format!("\ncyphonic_cloud_device_online{{device=\"a.lab.cyphonic.internal\"}} {value}\n");
    assert!(asked().contains("\ncyphonic_cloud_device_certificate_not_after_seconds{device=\"a.lab"));
    assert!(!asked().contains("last_seen_seconds{"), "it was not here yet");

    let client = Client::open();
    let connection = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    assert!(matches!(connection.open_exchange(&login_request()).await.unwrap(), Message::Refusal(_)));
    let present = until_online_is(true, config).await;
    assert!(present["last_seen_at"].is_string() && asked().contains(&online(1)), "{present:#}");
    connection.close(cyphonic_proto::close::DONE, "done");
    let away = until_online_is(false, config).await;
    assert!(asked().contains(&online(0)) && asked().contains("last_seen_seconds{device=\"a.lab"));
    assert!(away["last_seen_at"].as_str() >= Some(rfc3339(begun).as_str()), "{away:#}");

    let connection = client.connect(&overlay, &member, Role::Nms).await.unwrap();
    assert!(matches!(connection.open_exchange(&login_request()).await.unwrap(), Message::Refusal(_)));
    until_online_is(true, config).await;
    // It was here until the end, a second later at least.
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.signal("TERM");
    assert!(running.wait().success());
    std::fs::remove_file(overlay.directory.path().join("online.json")).unwrap();
    let stopped = presence(config);
    assert!(stopped["last_seen_at"].as_str() > away["last_seen_at"].as_str(), "{stopped:#}");
    assert!(stopped["online"].is_null() && !asked().contains("device_online{"), "nobody knows");
}

/// As with two copies of an SD card.
#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_identity_are_told_of() {
    let overlay = Overlay::found(unix_now());
    let config = overlay.config_path.to_str().unwrap();
    let _running = Running::start(&overlay.config_path, overlay.address).await;
    let member = crate::client::enrol(&overlay, &overlay.token("a.lab", unix_now())).await;
    let client = Client::open();
    let mut connections = Vec::new();
    for run in [1, 2, 1] {
        let connection = client.connect(&overlay, &member, Role::Nms).await.unwrap();
        let request = RegistrationRequest { protocol_version: version::CURRENT, run, ..Default::default() };
        let answer = connection.open_exchange(&Message::RegistrationRequest(request)).await.unwrap();
        assert!(matches!(answer, Message::RegistrationResponse(_)), "{answer:?}");
        connections.push(connection);
        if run == 2 {
            assert_eq!(until_online_is(true, config).await["doubled"], false, "the agent was restarted");
            assert!(metrics(config).contains("\ncyphonic_cloud_devices_doubled 0\n"));
        }
    }
    let deadline = Instant::now() + SOON;
    while presence(config)["doubled"] != true {
        assert!(Instant::now() < deadline, "{:#}", presence(config));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(metrics(config).contains("\ncyphonic_cloud_devices_doubled 1\n"));
    let listed = told_by_files(&["device", "list"], config);
    assert!(listed.contains(", two machines"), "{listed}");
    let log = std::fs::read_to_string(overlay.config_path.with_extension("log")).unwrap();
    assert!(log.contains("two machines") && log.contains("a.lab"), "{log}");
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
