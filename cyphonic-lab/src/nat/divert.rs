//! How a router's datagrams reach a NAT in userspace and come back.
//!
//! Marked before routing, they take a table that leads to the NAT's device, also those for the router's own
//! external address: the mark's rule comes before the kernel's table of local addresses, which by default is
//! the first. What the NAT writes to its device is routed as if it came from there. Connection tracking sees
//! none of it. All else (the router's own datagrams, TCP and pings of a router that does not translate from
//! IPv6) is the kernel's.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::gate::Gate;

/// The device between the kernel and the NAT.
pub(crate) const DEVICE: &str = "nat0";
const MARK: u32 = 0x40;
const ROUTES: u32 = 64;
/// Packets that wait while the NAT is busy; the default of 500 is less than one TCP window.
const QUEUE: u32 = 10_000;
/// Errors, which quote the packet they are about; where it is UDP, its protocol number is 17 bytes into the
/// message.
const ERRORS: &str = "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,136,8 17";

/// The nftables ruleset that diverts.
pub(crate) fn ruleset(gate: &Gate, outside: &str) -> String {
    let Gate { external, inside, .. } = gate;
    // Who translates from IPv6 shares the ports of its address with nobody.
    let all = gate.prefix64.is_some();
    let kinds: &[&str] =
        if all { &["meta l4proto { udp, tcp, icmp }"] } else { &["meta l4proto udp", ERRORS] };
    let mut local: Vec<String> = inside.iter().map(ToString::to_string).collect();
    local.extend(["224.0.0.0/4".to_owned(), Ipv4Addr::BROADCAST.to_string()]);
    let local = local.join(", ");
    let mut rules = String::new();
    for kind in kinds {
        let _ = write!(
            rules,
            "    iifname \"{DEVICE}\" meta nfproto ipv4 {kind} notrack accept\n    \
             iifname \"{outside}\" ip daddr {external} {kind} notrack meta mark set {MARK} accept\n    \
             iifname != \"{outside}\" ip daddr != {{ {local} }} {kind} notrack meta mark set {MARK} accept\n"
        );
    }
    format!(
        "table inet divert {{\n  chain prerouting {{\n    type filter hook prerouting priority raw; policy accept;\n{rules}  }}\n  \
         chain output {{\n    type route hook output priority raw; policy accept;\n    \
         oifname \"{outside}\" {ERRORS} notrack meta mark set {MARK}\n  }}\n}}\n"
    )
}

/// The `ip` batch that leads marked packets to the device.
pub(crate) fn routes(gate: &Gate) -> String {
    let mut batch = format!(
        "link set {DEVICE} txqueuelen {QUEUE} up\nroute add default dev {DEVICE} table {ROUTES}\n\
         rule add pref 10 fwmark {MARK} lookup {ROUTES}\nrule add pref 100 lookup local\nrule del pref 0\n"
    );
    if let Some(prefix) = gate.prefix64 {
        let _ = writeln!(batch, "route add {prefix} dev {DEVICE}");
    }
    batch
}

/// The `ip` batches, each for itself, that undo [`routes`] where it was done: none goes on after what is not
/// there. Routes went with the device.
pub(crate) fn routes_back() -> [&'static str; 2] {
    // Where the kernel's own rule stands, another would be added beside it.
    ["rule del pref 100 lookup local\nrule add pref 0 lookup local\n", "rule del pref 10\n"]
}

/// Kernel parameters: what the NAT writes comes from the router's own address, and not by the way that leads
/// there.
pub(crate) fn sysctls() -> Vec<String> {
    let own = format!("net.ipv4.conf.{DEVICE}");
    let loose = ["net.ipv4.conf.all.rp_filter=0".to_owned(), "net.ipv4.conf.default.rp_filter=0".to_owned()];
    loose.into_iter().chain([format!("{own}.rp_filter=0"), format!("{own}.accept_local=1")]).collect()
}
