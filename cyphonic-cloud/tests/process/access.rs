//! The overlay's rules of who may open what, from the file to the devices.

use std::path::Path;

use cyphonic_cloud::server::unix_now;
use cyphonic_proto::Role;
use cyphonic_proto::message::{AccessConfirmation, AccessRules, Message};
use cyphonic_transport::Connection;

use super::program::{Running, SOON, fails, succeeds};
use crate::client::{Client, enrol, register};
use crate::common::Overlay;

/// The configuration with these rules in place of others.
fn write(path: &Path, rules: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    let rest: Vec<_> = text.lines().filter(|line| !line.starts_with("access")).collect();
    std::fs::write(path, format!("{}\n{rules}\n", rest.join("\n"))).unwrap();
}

async fn registered(connection: &Connection) -> AccessRules {
    register(connection).await.unwrap().access.unwrap()
}

async fn noticed(connection: &Connection) -> AccessRules {
    let asked = tokio::time::timeout(SOON, connection.accept_exchange()).await.expect("nothing is told");
    let (Message::AccessNotice(notice), responder) = asked.unwrap() else { panic!("something else") };
    responder.respond(&Message::AccessConfirmation(AccessConfirmation {})).await.unwrap();
    notice.access.unwrap()
}

/// The part of the log that a reload has added, when it is there.
async fn told(path: &Path, before: usize, what: &str) {
    let told = async {
        while !std::fs::read_to_string(path.with_extension("log")).unwrap()[before..].contains(what) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, told).await.unwrap_or_else(|_| panic!("{what} is not told"));
}

#[test]
fn of_rules_for_devices_that_there_are_not_it_is_said() {
    let overlay = Overlay::found(unix_now());
    let (path, config) = (&overlay.config_path, overlay.config_path.to_str().unwrap());
    let note = "Note: no device is named";
    for rules in ["", "access: [{from: all, at: a, to: ping}]"] {
        write(path, rules);
        let said = succeeds(&["access", "--config", config, "nosuch", "a"]);
        assert_eq!(said.matches(note).count(), 2, "{said}");
    }
    write(path, "");
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, text.replace("roles: [as, nms, trs]", "roles: [as, trs]")).unwrap();
    assert!(fails(&["access", "--config", config, "nosuch", "a"]).contains("the machine of the NMS"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_cloud_tells_devices_of_other_rules_when_it_is_reloaded() {
    let overlay = Overlay::found(unix_now());
    let path = &overlay.config_path;
    write(path, "access: [{from: all, at: a, to: ping}]");
    let running = Running::start(path, overlay.address).await;
    let client = Client::open();
    let mut connections = Vec::new();
    for name in ["a", "b"] {
        let member = enrol(&overlay, &overlay.token(name, unix_now())).await;
        connections.push(client.connect(&overlay, &member, Role::Nms).await.unwrap());
    }
    let first = registered(&connections[0]).await;
    assert_eq!((first.rules.len(), &first.rules[0].to[..]), (1, &["ping".to_owned()][..]));
    assert!(registered(&connections[1]).await.rules.is_empty(), "at b nobody may open anything");
    let reload = |rules: &str, what: &'static str| {
        let before = std::fs::metadata(path.with_extension("log")).unwrap().len() as usize;
        write(path, rules);
        running.signal("HUP");
        told(path, before, what)
    };

    reload("access: [{from: all, at: a, to: ping}, {from: a, at: b, to: tcp/22}]", "other access rules")
        .await;
    let notice = noticed(&connections[1]).await;
    assert_eq!((&notice.rules[0].from[..], notice.rules.len()), (&["a".to_owned()][..], 1));
    assert_eq!(registered(&connections[0]).await.rules, first.rules);

    for (wrong, why) in [
        ("access: [{from: all, at: a, to: ssh}]", "\"ssh\" is no service"),
        (
            "access: [{from: all, at: a, to: tcp/22}]\naccess_tests: [{from: b, at: a, may_not: tcp}]",
            "b.cyphonic.internal may open tcp with a.cyphonic.internal",
        ),
        ("", "`access` is gone"),
        ("access: null", "`access` is gone"),
    ] {
        reload(wrong, why).await;
        assert_eq!(registered(&connections[1]).await.rules, notice.rules, "{wrong}");
    }
    reload("access: [{from: all, at: all, to: all}]", "other access rules").await;
    for connection in &connections {
        assert_eq!(noticed(connection).await.rules[0].to, ["all"]);
    }
}

#[test]
fn an_operator_hears_what_rules_mean() {
    let overlay = Overlay::found(unix_now());
    let path = &overlay.config_path;
    let config = path.to_str().unwrap();
    let may = |from: &str, at: &str| succeeds(&["access", "--config", config, from, at]);
    assert!(may("a", "b").contains("a.cyphonic.internal may open everything with b.cyphonic.internal"));
    write(path, "access: [{from: all, at: all, to: ping}, {from: hmi, at: press-*, to: [tcp/22, tcp/23]}]");
    assert!(may("hmi", "press-7").contains("may open with press-7.cyphonic.internal: ping, tcp/22-23\n"));
    assert!(may("press-7", "hmi").contains(": ping\n"));
    write(path, "access: [{from: hmi, at: press-*, to: tcp/22}]");
    assert!(may("press-7", "hmi").starts_with("press-7.cyphonic.internal may open nothing with hmi"));
    assert!(fails(&["access", "--config", config, "x_y", "hmi"]).contains("cannot name a device"));

    let check = || succeeds(&["check", "--config", config]);
    assert!(!check().contains("no device is"), "there is none yet");
    let device = crate::common::Device::new();
    let request = device.enrol_request(&overlay.token("press-1", unix_now()));
    overlay.service().answer(None, overlay.address, &request, unix_now());
    let said = check();
    assert!(said.contains("note: access: rule 1: no device is `from: hmi`"), "{said}");
    assert_eq!(said.matches("no device is").count(), 1, "{said}");
}
