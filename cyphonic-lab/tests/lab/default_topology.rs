//! The shipped topology, built for real: who reaches whom, several at once, and what is left afterwards.

use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::lab::{down, list};
use cyphonic_lab::process::wait_until;
use cyphonic_lab::{Lab, LabError};

use crate::common::{config, ping_from, shipped, up};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn every_device_reaches_the_cloud_by_the_families_it_has() {
    let lab = up(&shipped(), "reach", "zero");
    for (from, to) in [
        ("a", "192.0.2.2"),
        ("a", "192.0.2.18"),
        ("b", "192.0.2.2"),
        ("c", "192.0.2.2"),
        ("c", "2001:db8:c::2"),
        ("c", "2001:db8:7::2"),
        ("c", "198.51.100.10"),
        ("d", "2001:db8:c::2"),
        ("e", "192.0.2.18"),
        ("cloud", "2001:db8:7::2"),
    ] {
        let report = ping_from(&lab, from, address(to), 2);
        assert_eq!(report.lost(), 0, "{from} to {to}");
    }
}

#[test]
fn nobody_reaches_what_the_internet_would_not_carry() {
    let lab = up(&shipped(), "wall", "zero");
    for (from, to, why) in [
        ("b", "192.168.10.2", "a private address is not routed"),
        ("a", "192.168.20.2", "another home's private address"),
        ("d", "2001:db8:41::2", "the home's firewall admits only replies"),
        ("b", "203.0.113.3", "nobody has that address"),
    ] {
        let report = ping_from(&lab, from, address(to), 1);
        assert_eq!(report.received, 0, "{from} to {to}: {why}");
    }
    // IPv6-only means no route at all, not a slow failure.
    let output = lab.command("d", "ip").unwrap().args(["-4", "route"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn tcp_has_cubic_on_every_node_whatever_the_machine_has() {
    let lab = up(&shipped(), "cubic", "zero");
    for node in ["a", "core", "trs"] {
        let output = lab
            .command(node, "sysctl")
            .unwrap()
            .args(["-n", "net.ipv4.tcp_congestion_control"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "cubic\n", "{node}");
    }
}

#[test]
fn labs_stand_side_by_side_and_do_not_meet() {
    let topology = shipped();
    thread::scope(|scope| {
        for name in ["left", "right"] {
            let topology = &topology;
            scope.spawn(move || {
                let lab = up(topology, name, "zero");
                assert_eq!(ping_from(&lab, "a", address("192.0.2.2"), 3).lost(), 0);
                lab.down().unwrap();
            });
        }
    });
}

#[test]
fn nothing_is_left_when_a_lab_goes_even_if_its_owner_forgot_it() {
    let config = config("leaves", "zero");
    let lab = Lab::up(&shipped(), &config).unwrap();
    let namespaces = || {
        let names =
            check(Command::new("ip").args(["netns", "list"]), Duration::from_secs(10), &Cancel::default());
        names.unwrap().lines().filter(|line| line.starts_with(&config.name)).count()
    };
    assert!(namespaces() > 10);
    let run_dir = lab.node_dir("a").unwrap();
    let mut daemon = lab.spawn("a", "sleeper", lab.command("a", "sleep").unwrap().arg("600")).unwrap();
    let error = Lab::up(&shipped(), &config).unwrap_err();
    assert!(matches!(error, LabError::Exists(_)), "{error}");
    assert!(namespaces() > 10, "a refused second lab must not harm the first");

    // As after a crash: nobody holds the lab any more, only its state file knows of it.
    std::mem::forget(lab);
    assert!(list().iter().any(|state| state.name == config.name));
    down(&config.name).unwrap();
    assert!(
        wait_until(Duration::from_secs(5), || daemon.exit_status().is_some()),
        "its processes end with it"
    );
    assert_eq!(namespaces(), 0);
    assert!(!run_dir.exists() && !list().iter().any(|state| state.name == config.name));
    let etc = fs::read_dir("/etc/netns").map(|entries| entries.flatten().count()).unwrap_or_default();
    assert!(etc == 0 || !Path::new("/etc/netns").join(format!("{}-a", config.name)).exists());
    let error = down(&config.name).unwrap_err();
    assert!(matches!(error, LabError::NoSuchLab { .. }), "{error}");
}

#[test]
fn what_is_not_a_labs_own_stays() {
    let config = config("others", "zero");
    let name = |node: &str| format!("{}-{node}", config.name);
    let ip = |action: &str| {
        let mut command = Command::new("ip");
        check(command.args(["netns", action, &name("a")]), Duration::from_secs(10), &Cancel::default())
    };
    let etc = Path::new("/etc/netns").join(name("b"));
    fs::create_dir_all(&etc).unwrap();
    ip("add").unwrap();
    let mut sleeper = Command::new("ip").args(["netns", "exec", &name("a"), "sleep", "600"]).spawn().unwrap();
    let up = Lab::up(&shipped(), &config);
    let there = (
        sleeper.try_wait().unwrap().is_none(),
        Path::new("/run/netns").join(name("a")).exists(),
        etc.exists(),
    );
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let _ = (ip("delete"), fs::remove_dir(&etc));
    let error = up.unwrap_err().to_string();
    assert_eq!(there, (true, true, true), "{error}");
    assert!(error.contains(&name("a")) && error.contains(&name("b")), "{error}");
    assert!(!list().iter().any(|state| state.name == config.name), "the name is free again");
    Lab::up(&shipped(), &config).unwrap();
}

#[test]
fn a_lab_that_cannot_be_built_leaves_nothing_and_says_why() {
    let mut config = config("broken", "paper");
    config.emulator.program = "/nonexistent/emulator".into();
    let error = Lab::up(&shipped(), &config).unwrap_err();
    assert!(matches!(error, LabError::Emulator(_)), "{error}");
    assert!(!list().iter().any(|state| state.name == config.name));
    assert!(!Path::new("/run/netns").join(format!("{}-a", config.name)).exists());

    config.profile = "fast".to_owned();
    let error = Lab::up(&shipped(), &config).unwrap_err().to_string();
    assert!(error.contains("paper, roam, zero"), "{error}");
}

#[test]
fn programs_resolve_by_the_nodes_own_configuration() {
    let lab = up(&shipped(), "resolv", "zero");
    let output = lab.command("a", "cat").unwrap().arg("/etc/resolv.conf").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("nameserver 127.0.0.53"));
}

#[test]
fn a_program_that_takes_seconds_to_end_is_not_killed_meanwhile() {
    let lab = up(&shipped(), "farewell", "zero");
    let mut command = lab.command("a", "sh").unwrap();
    let slow = "trap 'sleep 4; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let mut daemon = lab.spawn("a", "slow", command.args(["-c", slow])).unwrap();
    assert!(wait_until(Duration::from_secs(10), || daemon.log().contains("ready")));
    assert_eq!(daemon.stop().unwrap().code(), Some(7));
}

#[test]
fn a_daemon_is_waited_for_until_it_reports_and_its_log_is_shown_if_it_does_not() {
    let lab = up(&shipped(), "ready", "zero");
    let limit = Duration::from_secs(10);
    let socket = lab.node_dir("a").unwrap().join("good.notify");
    let mut daemon = thread::scope(|scope| {
        // In the daemon's place, which is only asleep: this test is about the one who waits.
        scope.spawn(|| {
            assert!(wait_until(limit, || socket.exists()));
            UnixDatagram::unbound().unwrap().send_to(b"STATUS=up\nREADY=1\n", &socket).unwrap();
        });
        let mut command = lab.command("a", "sleep").unwrap();
        lab.spawn_ready("a", "good", command.arg("600"), limit, &Cancel::default()).unwrap()
    });
    assert!(daemon.exit_status().is_none() && !socket.exists());

    let mut command = lab.command("a", "sh").unwrap();
    let failing = command.args(["-c", "echo no such key >&2; exit 4"]);
    let error = lab.spawn_ready("a", "bad", failing, limit, &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("bad on a") && error.contains("no such key"), "{error}");
}
