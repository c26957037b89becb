//! What makes a node of the topology out of a machine: the same for a namespace of a [lab](crate::Lab) and
//! for a machine of its own, which calls [`Setup::run`].
//!
//! A machine of its own has its cables already, known by their hardware addresses, and beside them one by
//! which it is managed. That one is cut off from everything but SSH and DHCP: otherwise the overlay would
//! find it, and go around every NAT of the topology.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::command::configure;
use crate::emulator::{BUFFER, MAX_FRAMES};
use crate::machine::Machine;
use crate::nat::gate::Gate;
use crate::topology::{Host, Interface, Profile, Router, Topology, Way};
use crate::{LabError, congestion, nat};

/// What keeps frames in order where their delays differ: netem sends by a frame's own time, unless the link
/// has a rate. This one is so high that it costs none.
const UNLIMITED: &str = "100gbit";

/// A node on the machine of this process.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The scene.
    pub topology: &'a Topology,
    /// Its links' properties.
    pub profile: &'a Profile,
    /// Which of its nodes this machine is.
    pub node: &'a str,
    /// Hardware addresses of the machine's interfaces by the networks they are on.
    pub links: BTreeMap<String, String>,
    /// Where the machine's DNS servers are configured.
    pub resolver: Resolver,
}

/// How a machine is told which DNS servers it has. Only a host behind a translator from IPv6 has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolver {
    /// `/etc/resolv.conf`, or another file of that form.
    ResolvConf(PathBuf),
    /// A file for systemd-resolved, which reads it when it starts.
    Resolved(PathBuf),
}

/// A node that stands. What translates in userspace does so for as long as the process runs.
#[derive(Debug)]
pub struct Standing(Vec<JoinHandle<()>>);

impl Standing {
    /// Waits for ever, or until the NAT's device is gone.
    pub fn wait(self) {
        if self.0.is_empty() {
            loop {
                std::thread::park();
            }
        }
        for thread in self.0 {
            let _ = thread.join();
        }
    }
}

impl Setup<'_> {
    /// Sets the node up.
    ///
    /// # Errors
    /// The scene has no such node, an interface is missing, or the kernel refused something; what was done
    /// before stays.
    pub fn run(&self) -> Result<Standing, LabError> {
        let Self { topology, node, .. } = self;
        if !topology.nodes().any(|known| known == *node) {
            let known = topology.nodes().collect::<Vec<_>>().join(", ");
            return Err(LabError::NoSuchNode { name: (*node).to_owned(), known });
        }
        let machine = Machine::Own;
        let router = topology.routers.get(*node);
        let present = interfaces()?;
        machine.sysctl(&sysctls(router.is_some()))?;
        if router.is_some() {
            forget();
        }
        isolate(&present, &self.links)?;
        machine.ip(&self.names(&present)?)?;
        machine.ip(&addresses(topology, node))?;
        self.impair()?;
        let mut threads = Vec::new();
        if let Some(router) = router {
            let gate = gate(topology, router, "/proc/thread-self/ns/net".into());
            if let Some(gate) = &gate {
                threads = gate.open(0).map_err(LabError::Emulator)?;
            }
            filter(&machine, router, gate.as_ref())?;
        }
        if let Some(host) = topology.hosts.get(*node) {
            self.resolver.write(nameserver(topology, host).as_deref())?;
        }
        Ok(Standing(threads))
    }

    /// Gives the interfaces the names that the topology has for them, and their networks' MTUs.
    fn names(&self, present: &[Present]) -> Result<String, LabError> {
        let mut batch = String::new();
        for (index, interface) in self.topology.interfaces(self.node).iter().enumerate() {
            let network = &interface.network;
            let missing = || LabError::NoInterface {
                network: network.clone(),
                address: self.links.get(network).cloned(),
            };
            let address = self.links.get(network).ok_or_else(missing)?;
            let found = present.iter().find(|own| own.address.eq_ignore_ascii_case(address));
            let (own, name) =
                (&found.ok_or_else(missing)?.ifname, self.topology.interface_name(self.node, index));
            let mtu = self.mtu(network);
            let _ = writeln!(batch, "link set dev {own} down\naddr flush dev {own}");
            if *own != name {
                let _ = writeln!(batch, "link set dev {own} name {name}");
            }
            let _ = writeln!(batch, "link set dev {name} mtu {mtu}");
        }
        Ok(batch)
    }

    fn mtu(&self, network: &str) -> u16 {
        self.topology.networks.get(network).map(|network| network.mtu).unwrap_or_default()
    }

    /// Delays and losses of this node's cables, by netem in both directions: what arrives is led through a
    /// device of its own.
    fn impair(&self) -> Result<(), LabError> {
        let tc = |words: &[&str], more: &[String]| {
            configure(Command::new("tc").args(words).args(more), "").map(drop)
        };
        for (index, interface) in self.topology.interfaces(self.node).iter().enumerate() {
            let link = self.profile.links.get(&format!("{}@{}", self.node, interface.network));
            let Some(link) = link.filter(|link| !link.is_plain()) else { continue };
            let (device, mirror) = (self.topology.interface_name(self.node, index), format!("down{index}"));
            let [up, down] = link.ways();
            let mtu = self.mtu(&interface.network);
            // Super-packets would count as one frame.
            configure(
                Command::new("ethtool").args(["-K", &device, "tso", "off", "gso", "off", "gro", "off"]),
                "",
            )?;
            tc(&["qdisc", "replace", "dev", &device, "root"], &netem(&up, mtu))?;
            // Those of an earlier run, if there was one.
            let _ = tc(&["qdisc", "del", "dev", &device, "clsact"], &[]);
            let _ = Machine::Own.ip(&format!("link del dev {mirror}\n"));
            Machine::Own.ip(&format!("link add name {mirror} type ifb\nlink set dev {mirror} up\n"))?;
            tc(&["qdisc", "replace", "dev", &mirror, "root"], &netem(&down, mtu))?;
            tc(&["qdisc", "add", "dev", &device, "clsact"], &[])?;
            let redirect =
                ["matchall", "action", "mirred", "egress", "redirect", "dev", &mirror].map(str::to_owned);
            tc(&["filter", "add", "dev", &device, "ingress"], &redirect)?;
        }
        Ok(())
    }
}

impl Resolver {
    fn write(&self, server: Option<&str>) -> Result<(), LabError> {
        let (path, text) = match self {
            Self::ResolvConf(path) => (path, server.map(resolv_conf)),
            Self::Resolved(path) => (path, server.map(|server| format!("[Resolve]\nDNS={server}\n"))),
        };
        let Some(text) = text else { return Ok(()) };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(LabError::file("create", folder))?;
        }
        fs::write(path, text).map_err(LabError::file("write", path))
    }
}

/// An interface, as `ip` tells of it.
#[derive(Debug, Deserialize)]
struct Present {
    ifname: String,
    link_type: String,
    #[serde(default)]
    address: String,
}

fn interfaces() -> Result<Vec<Present>, LabError> {
    let said = configure(Command::new("ip").args(["-j", "link", "show"]), "")?;
    serde_json::from_str(&said).map_err(|error| LabError::Output {
        program: "ip",
        problem: format!("no JSON: {error}"),
        output: said,
    })
}

/// Takes back what an earlier run of a router left, one by one: none of it may be there.
fn forget() {
    for table in ["ip nat", "inet filter", "inet divert"] {
        let _ = Machine::Own.nft(&format!("delete table {table}\n"));
    }
    nat::divert::routes_back().iter().for_each(|batch| drop(Machine::Own.ip(batch)));
}

/// Leaves SSH and DHCP to the interfaces that are none of the topology's, and takes their default routes.
fn isolate(present: &[Present], links: &BTreeMap<String, String>) -> Result<(), LabError> {
    let listed = |own: &&Present| links.values().any(|address| address.eq_ignore_ascii_case(&own.address));
    // What the overlay and the NAT made in an earlier run has no hardware address.
    let others: Vec<&str> = present
        .iter()
        .filter(|own| own.link_type == "ether" && !listed(own))
        .map(|own| own.ifname.as_str())
        .filter(|name| !name.starts_with("down") && *name != "cyph0")
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    for device in &others {
        for family in ["-4", "-6"] {
            configure(
                Command::new("ip").args([family, "route", "flush", "exact", "default", "dev", device]),
                "",
            )?;
        }
    }
    Machine::Own.nft(&management(&others))
}

/// The ruleset for the interfaces by which a machine is managed. DHCP for IPv4; IPv6 is not needed there.
fn management(devices: &[&str]) -> String {
    let devices = devices.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let (come, go) = (format!("iifname {{ {devices} }}"), format!("oifname {{ {devices} }}"));
    format!(
        "table inet management\ndelete table inet management\ntable inet management {{\n  \
         chain input {{\n    type filter hook input priority -150; policy accept;\n    \
         {come} tcp dport 22 accept\n    {come} udp sport 67 udp dport 68 accept\n    {come} drop\n  }}\n  \
         chain output {{\n    type filter hook output priority -150; policy accept;\n    \
         {go} tcp sport 22 accept\n    {go} udp sport 68 udp dport 67 accept\n    {go} drop\n  }}\n  \
         chain forward {{\n    type filter hook forward priority -150; policy accept;\n    \
         {come} drop\n    {go} drop\n  }}\n}}\n"
    )
}

/// Filters and translates on a router. Its userspace NAT, if it has one, must be open.
pub(crate) fn filter(machine: &Machine, router: &Router, gate: Option<&Gate>) -> Result<(), LabError> {
    if let Some(ruleset) = nat::rules::ruleset(router) {
        machine.nft(&ruleset)?;
    }
    if let (Some(gate), Some(nat)) = (gate, &router.nat) {
        machine.sysctl(&nat::divert::sysctls())?;
        machine.ip(&nat::divert::routes(gate))?;
        machine.nft(&nat::divert::ruleset(gate, &nat.outside))?;
    }
    machine.sysctl(&nat::rules::sysctls(router))
}

/// What a router's NAT in userspace is to do, if it has one, in the namespace with this file.
pub(crate) fn gate(topology: &Topology, router: &Router, namespace: PathBuf) -> Option<Gate> {
    let nat = router.nat.as_ref()?;
    let (outside, inside): (Vec<&Interface>, Vec<&Interface>) =
        router.interfaces.iter().partition(|interface| interface.network == nat.outside);
    let networks = inside.iter().filter_map(|interface| topology.networks.get(&interface.network));
    let inside: Vec<Ipv4Net> = networks.filter_map(|network| network.ipv4).collect();
    // Where only IPv6 comes in, headers shrink on their way out.
    let shrinks = nat.nat64.is_some() && inside.is_empty();
    let mtu = topology.networks.get(&nat.outside)?.mtu;
    Some(Gate {
        behaviour: nat.behaviour()?,
        namespace,
        device: nat::divert::DEVICE.to_owned(),
        mtu: if shrinks { mtu.saturating_add(nat::translate::GROWTH) } else { mtu },
        external: outside.first()?.ipv4?,
        inside,
        prefix64: nat.nat64,
    })
}

/// How many frames netem holds: those on their way, and where there is a rate, [`BUFFER`] of its time. netem
/// counts frames, not bytes: these are full ones, and of smaller ones less time is held.
fn limit(way: &Way, mtu: u16) -> u128 {
    let most = MAX_FRAMES as u128;
    let Some(rate) = way.rate else { return most };
    let frame = 8 * u128::from(mtu.max(1));
    let microbits = u128::from(rate.bits_per_second()) * (way.delay + BUFFER).as_micros();
    microbits.div_ceil(1_000_000 * frame).clamp(1, most)
}

/// Arguments of `tc qdisc` for one direction of a cable with this MTU.
pub(crate) fn netem(way: &Way, mtu: u16) -> Vec<String> {
    let mut words = vec!["netem".to_owned(), "limit".to_owned(), limit(way, mtu).to_string()];
    words.extend(["delay".to_owned(), format!("{}us", way.delay.as_micros())]);
    if !way.jitter.is_zero() {
        words.push(format!("{}us", way.jitter.as_micros()));
    }
    if way.reorder.fraction() > 0.0 {
        words.extend(["reorder".to_owned(), format!("{}%", way.reorder.fraction() * 100.0)]);
    }
    words.extend(["loss".to_owned(), format!("{}%", way.loss.fraction() * 100.0)]);
    let rate = way.rate.map(|rate| rate.to_string());
    if let Some(rate) = rate.or_else(|| (!way.jitter.is_zero()).then(|| UNLIMITED.to_owned())) {
        words.extend(["rate".to_owned(), rate]);
    }
    words
}

/// A host behind a router that translates from IPv6 has that router's resolver, which tells it the prefix.
pub(crate) fn nameserver(topology: &Topology, host: &Host) -> Option<String> {
    let gateway = host.gateway.as_ref().and_then(|gateway| topology.routers.get(gateway))?;
    gateway.nat.as_ref()?.nat64?;
    let shared = |own: &Interface| host.interfaces.iter().any(|interface| interface.network == own.network);
    Some(gateway.interfaces.iter().find(|own| shared(own))?.ipv6?.to_string())
}

/// The text of `/etc/resolv.conf` with this server.
pub(crate) fn resolv_conf(server: &str) -> String {
    format!("nameserver {server}\n")
}

/// Addresses at once (no duplicate address detection), none that were not asked for, ping for everyone, the
/// lab's congestion control, forwarding on routers alone, and no look at the way back of what arrives. A
/// namespace begins with the IPv4 settings of the machine's first.
pub(crate) fn sysctls(router: bool) -> Vec<String> {
    let forwarding = u8::from(router);
    let mut settings = vec![
        "net.ipv4.ping_group_range=0 2147483647".to_owned(),
        congestion::sysctl(),
        format!("net.ipv4.ip_forward={forwarding}"),
        format!("net.ipv6.conf.all.forwarding={forwarding}"),
    ];
    for scope in ["all", "default"] {
        settings.push(format!("net.ipv4.conf.{scope}.rp_filter=0"));
        for setting in ["accept_dad=0", "accept_ra=0", "router_solicitations=0"] {
            settings.push(format!("net.ipv6.conf.{scope}.{setting}"));
        }
    }
    if router {
        settings.push("net.ipv4.conf.all.send_redirects=0".to_owned());
    }
    settings
}

/// The `ip` batch that configures a node's interfaces and routes.
pub(crate) fn addresses(topology: &Topology, node: &str) -> String {
    let mut batch = String::from("link set lo up\n");
    for (index, interface) in topology.interfaces(node).iter().enumerate() {
        let device = topology.interface_name(node, index);
        let Some(network) = topology.networks.get(&interface.network) else { continue };
        if let (Some(address), Some(prefix)) = (interface.ipv4, network.ipv4) {
            let _ = writeln!(batch, "addr add {address}/{} dev {device}", prefix.prefix_len());
        }
        if let (Some(address), Some(prefix)) = (interface.ipv6, network.ipv6) {
            let _ = writeln!(batch, "addr add {address}/{} dev {device} nodad", prefix.prefix_len());
        }
        let _ = writeln!(batch, "link set dev {device} up");
    }
    let router = topology.routers.get(node);
    let gateway = router.map_or_else(
        || topology.hosts.get(node).and_then(|host| host.gateway.as_ref()),
        |router| router.gateway.as_ref(),
    );
    if let Some(gateway) = gateway {
        batch.push_str(&default_routes(topology.interfaces(node), topology.interfaces(gateway)));
    }
    for route in router.map(|router| router.routes.as_slice()).unwrap_or_default() {
        let _ = writeln!(batch, "route add {} via {}", route.to, route.via);
    }
    batch
}

/// Default routes over the first network shared with the gateway, for the families both have there.
fn default_routes(own: &[Interface], gateway: &[Interface]) -> String {
    let shared = own.iter().find_map(|interface| {
        gateway.iter().find(|other| other.network == interface.network).map(|other| (interface, other))
    });
    let Some((own, gateway)) = shared else { return String::new() };
    let mut batch = String::new();
    if let (Some(_), Some(via)) = (own.ipv4, gateway.ipv4) {
        let _ = writeln!(batch, "route add default via {via}");
    }
    if let (Some(_), Some(via)) = (own.ipv6, gateway.ipv6) {
        let _ = writeln!(batch, "route add default via {via}");
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    const SHIPPED: &str = include_str!("../../vagrant/topology.yaml");

    #[test]
    fn every_interface_gets_the_topologys_name_and_the_networks_mtu() {
        let topology = Topology::parse(SHIPPED).unwrap().scene("mtu").unwrap();
        let links = [("mid", "02:00:00:00:00:01"), ("jumbo-2", "02:00:00:00:00:02")];
        let setup = Setup {
            topology: &topology,
            profile: topology.profile("zero").unwrap(),
            node: "gate",
            links: links.map(|(network, address)| (network.to_owned(), address.to_owned())).into(),
            resolver: Resolver::ResolvConf("/nowhere".into()),
        };
        let present = |address: &str| {
            let own = |ifname: &str, address: &str| Present {
                ifname: ifname.to_owned(),
                link_type: "ether".to_owned(),
                address: address.to_owned(),
            };
            vec![own("eth0", "52:54:00:00:00:01"), own("eth1", "02:00:00:00:00:02"), own("eth2", address)]
        };
        let batch = setup.names(&present("02:00:00:00:00:01")).unwrap();
        assert!(batch.contains("link set dev eth2 name mid\nlink set dev mid mtu 9000\n"), "{batch}");
        assert!(batch.contains("eth1 name jumbo-2") && !batch.contains("eth0"), "{batch}");
        let error = setup.names(&present("02:00:00:00:00:03")).unwrap_err().to_string();
        assert!(error.contains("mid") && error.contains("02:00:00:00:00:01"), "{error}");
    }

    #[test]
    fn what_manages_a_machine_carries_ssh_and_nothing_of_the_overlay() {
        let rules = management(&["eth0", "eth9"]);
        assert_eq!(rules.matches("{ \"eth0\", \"eth9\" } drop").count(), 4);
        assert!(rules.contains("tcp dport 22 accept") && rules.contains("tcp sport 22 accept"));
    }

    #[test]
    fn nodes_forward_and_filter_as_they_should_whatever_the_machine_does() {
        congestion::allow().unwrap();
        let namespace = crate::Namespace::named(format!("t{}-inherits", std::process::id()));
        crate::netns::create(std::slice::from_ref(&namespace)).unwrap();
        let names = ["ip_forward", "conf.default.forwarding", "conf.all.rp_filter", "conf.default.rp_filter"];
        let set = |value: u8| names.map(|name| format!("net.ipv4.{name}={value}"));
        let found = [false, true].map(|router| {
            namespace.sysctl(&set(1 - u8::from(router))).unwrap();
            namespace.sysctl(&sysctls(router)).unwrap();
            let names = names.map(|name| format!("net.ipv4.{name}"));
            configure(namespace.command("sysctl").arg("-n").args(names), "").unwrap()
        });
        namespace.delete().unwrap();
        assert_eq!(found, ["0\n0\n0\n0\n", "1\n1\n0\n0\n"]);
    }

    #[test]
    fn netem_is_told_each_property_and_keeps_the_order() {
        let way = |text: &str| serde_yaml::from_str::<Way>(text).unwrap();
        let netem = |text: &str| netem(&way(text), 1500).join(" ");
        assert_eq!(netem("{ delay: 5ms }"), "netem limit 65536 delay 5000us loss 0%");
        assert_eq!(
            netem("{ delay: 5ms, jitter: 1ms, loss: 0.5% }"),
            "netem limit 65536 delay 5000us 1000us loss 0.5% rate 100gbit"
        );
        let slow = netem("{ delay: 1ms, reorder: 1%, rate: 30mbit }");
        assert!(slow.contains("reorder 1%") && slow.ends_with("rate 30000000bit"), "{slow}");
    }

    #[test]
    fn a_link_with_a_rate_holds_what_is_on_its_way_and_a_tenth_of_a_second() {
        let limit = |text: &str, mtu| limit(&serde_yaml::from_str::<Way>(text).unwrap(), mtu);
        // A frame of 1500 bytes takes 1 ms.
        assert_eq!(limit("{ rate: 12mbit }", 1500), 100);
        assert_eq!(limit("{ rate: 12mbit, delay: 20ms }", 1500), 120);
        assert_eq!(limit("{ rate: 12mbit }", 1499), 101);
        assert_eq!(limit("{ rate: 1bit }", 9000), 1);
        assert_eq!(limit("{ rate: 100gbit }", 1500), 65_536);
    }

    #[test]
    fn only_who_is_behind_a_translator_has_a_server() {
        let topology = Topology::parse(SHIPPED).unwrap().scene("nat-grid").unwrap();
        let server = |host: &str| nameserver(&topology, &topology.hosts[host]);
        assert_eq!(server("six4").as_deref(), Some("2001:db8:82::1"));
        assert_eq!((server("six"), server("dual")), (None, None));
    }
}
