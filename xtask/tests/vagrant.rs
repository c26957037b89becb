//! The virtual machines of `vagrant/`, without starting one: what Vagrant and the linters say of the files,
//! and whether the machines that they define are the nodes that the lab builds from the same topology.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use cyphonic_lab::Topology;
use cyphonic_lab::topology::{Firewall, Interface, Nat};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../vagrant")
}

/// Runs a program in `vagrant/` and returns what it printed.
#[track_caller]
fn run(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(program);
    command.current_dir(folder()).args(arguments).envs(environment.iter().copied());
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot run {program}: {error}; `cargo xtask test` installs what is missing")
    });
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn vagrant_accepts_the_machines_of_every_scene() {
    let home = std::env::temp_dir().join(format!("cyphonic-vagrant-{}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    let home_text = home.to_str().unwrap();
    for scene in scenes().scenes.keys() {
        let environment = [
            ("VAGRANT_HOME", home_text),
            ("VAGRANT_DOTFILE_PATH", home_text),
            ("CYPHONIC_STAGE", home_text),
            ("CYPHONIC_SCENE", scene),
            ("VAGRANT_DEFAULT_PROVIDER", "libvirt"),
        ];
        run("vagrant", &["validate"], &environment);
    }
    std::fs::remove_dir_all(&home).unwrap();
}

#[test]
fn ruby_and_shell_pass_their_checkers() {
    for file in ["Vagrantfile", "machines.rb"] {
        run("ruby", &["-wc", file], &[]);
    }
    run("rubocop", &["--cache", "false", "."], &[]);
    run("shellcheck", &["provision.sh", "run-scenarios"], &[]);
    let trial = ["../xtask/src/vagrant/scenario.sh", "../xtask/src/vagrant/trial.sh"];
    run("shellcheck", &[&["--shell=sh"], &trial[..]].concat(), &[]);
}

#[test]
fn the_machines_are_the_topologys_nodes_with_its_networks_and_nats() {
    let whole = scenes();
    let (mut addresses, mut segments) = (BTreeSet::new(), BTreeSet::new());
    for scene in whole.scenes.keys() {
        let topology = whole.scene(scene).unwrap();
        let dump = run("ruby", &["machines.rb", scene, "paper"], &[]);
        let dump: Value = serde_json::from_str(&dump).unwrap();
        let machines = dump["machines"].as_array().unwrap();
        let names: BTreeSet<&str> = machines.iter().map(|machine| text(&machine["name"])).collect();
        assert_eq!(names, topology.nodes().collect(), "{scene}");
        assert_eq!(names.len(), machines.len(), "{scene}");
        for machine in machines {
            compare(machine, &topology, scene);
            for own in machine["attachments"].as_array().unwrap() {
                let network = text(&own["network"]);
                addresses.insert((text(&own["mac"]).to_owned(), format!("{}@{network}", machine["name"])));
                segments.insert((own["segment"].as_u64().unwrap(), network.to_owned()));
            }
        }
    }
    // One address an attachment, one segment a network, in every scene the same.
    let distinct = |count: usize, keys: BTreeSet<String>| assert_eq!(count, keys.len());
    distinct(addresses.len(), addresses.iter().map(|(mac, _)| mac.clone()).collect());
    distinct(addresses.len(), addresses.iter().map(|(_, at)| at.clone()).collect());
    distinct(segments.len(), segments.iter().map(|(port, _)| port.to_string()).collect());
    distinct(segments.len(), segments.iter().map(|(_, network)| network.clone()).collect());
    for (mac, at) in &addresses {
        let first = u8::from_str_radix(mac.get(..2).unwrap(), 16).unwrap();
        assert_eq!((first & 0b11, mac.len()), (0b10, 17), "{at}: a locally administered unicast address");
    }
}

/// One machine with its node.
fn compare(machine: &Value, topology: &Topology, scene: &str) {
    let name = text(&machine["name"]);
    let at = format!("{name} of {scene}");
    let router = topology.routers.get(name);
    assert_eq!(machine["kind"], if router.is_some() { "router" } else { "host" }, "{at}");
    let nat = serde_json::from_value::<Option<Nat>>(machine["nat"].clone()).unwrap();
    assert_eq!(nat.as_ref(), router.and_then(|router| router.nat.as_ref()), "{at}");
    let firewall = serde_json::from_value::<Option<Firewall>>(machine["firewall"].clone()).unwrap();
    assert_eq!(firewall.as_ref(), router.and_then(|router| router.firewall.as_ref()), "{at}");

    let attachments = machine["attachments"].as_array().unwrap();
    let interfaces = topology.interfaces(name);
    assert_eq!(attachments.len(), interfaces.len(), "{at}");
    let mut links = Vec::new();
    for (own, interface) in attachments.iter().zip(interfaces) {
        let network = &topology.networks[&interface.network];
        let Interface { ipv4, ipv6, .. } = interface;
        let ipv4 = ipv4.zip(network.ipv4).map(|(ip, net)| format!("{ip}/{}", net.prefix_len()));
        let ipv6 = ipv6.zip(network.ipv6).map(|(ip, net)| format!("{ip}/{}", net.prefix_len()));
        assert_eq!(own["network"], *interface.network, "{at}");
        assert_eq!(own["ipv4"].as_str(), ipv4.as_deref(), "{at}");
        assert_eq!(own["ipv6"].as_str(), ipv6.as_deref(), "{at}");
        assert_eq!(own["mtu"], network.mtu, "{at}");
        links.push(format!("{}={}", interface.network, text(&own["mac"])));
    }
    let provision: Vec<&str> = machine["provision"].as_array().unwrap().iter().map(text).collect();
    let links: Vec<&str> = links.iter().map(String::as_str).collect();
    assert_eq!(provision, [&[name, scene, "paper"], &links[..]].concat(), "{at}");

    let packages: Vec<&str> = machine["packages"].as_array().unwrap().iter().map(text).collect();
    let host = topology.hosts.get(name);
    let expected: &[&str] = match host.map(|host| (host.device.is_some(), host.roles.is_empty())) {
        None | Some((_, true)) => &[],
        Some((true, _)) => &["cyphonic"],
        Some((false, _)) => &["cyphonic-cloud"],
    };
    assert_eq!(packages, expected, "{at}");
}

fn scenes() -> Topology {
    Topology::load(&folder().join("topology.yaml")).unwrap()
}

#[track_caller]
fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}
