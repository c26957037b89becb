//! A kind of path, and what is asked of it.

use std::fmt;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cyphonic_common::limits::{
    MAX_INNER_MTU, MIN_INNER_MTU, OUTER_IPV4_LEN, OUTER_IPV6_LEN, TUNNEL_OVERHEAD,
};
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::{Lab, Namespace};
use serde_json::Value;

use super::{Findings, traffic};
use crate::overlay::{Device, Route};

/// The cable in the middle, and the routers at its ends.
const MIDDLE: &str = "mid";
const ROUTERS: [&str; 2] = ["core", "gate"];
/// The devices' addresses outside.
const OUTSIDE: [(&str, &str); 2] = [("198.18.64.2", "2001:db8:e1::2"), ("198.18.66.2", "2001:db8:e3::2")];
const LIMIT: Duration = Duration::from_secs(10);
/// The search takes up to 5 s where nobody says what does not fit.
const SEARCH: Duration = Duration::from_secs(20);
/// For the host's routes to say what the tunnel carries.
const SETTLING: Duration = Duration::from_secs(3);
/// Sizes closer than this are not told apart by the search (docs/protocol.md §6.2).
const GRANULE: u64 = 8;
/// For a pair to come to the route that its networks allow.
const ROUTE: Duration = Duration::from_secs(15);
/// How long each MTU stands under a transfer.
const PHASE: Duration = Duration::from_secs(5);

/// A kind of path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    ipv6: bool,
    relayed: bool,
    /// Routers do not say what does not fit.
    silent: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        let way = if self.relayed { "through the TRS" } else { "direct" };
        let icmp = if self.silent { "without ICMP" } else { "with ICMP" };
        write!(f, "{family} outside, {way}, {icmp}")
    }
}

impl Case {
    pub(super) fn all() -> Vec<Self> {
        let bits = |n: u8| Self { ipv6: n & 1 != 0, relayed: n & 2 != 0, silent: n & 4 != 0 };
        (0..8).map(bits).collect()
    }

    pub(super) fn quick() -> Vec<Self> {
        vec![
            Self { ipv6: true, relayed: false, silent: true },
            Self { ipv6: false, relayed: true, silent: false },
        ]
    }

    /// Has the routers make the path one of this kind.
    pub(super) fn prepare(&self, lab: &Lab, cancel: &Cancel) -> Result<()> {
        let mut rules = String::from("add table inet mtu\n");
        rules.push_str("add chain inet mtu forward { type filter hook forward priority -10; }\n");
        rules.push_str("add chain inet mtu output { type filter hook output priority -10; }\n");
        let other = if self.ipv6 { "ipv4" } else { "ipv6" };
        rules.push_str(&format!("add rule inet mtu forward meta nfproto {other} drop\n"));
        if self.relayed {
            let [(one_v4, one_v6), (two_v4, two_v6)] = OUTSIDE;
            for (from, to) in [(one_v4, two_v4), (two_v4, one_v4)] {
                rules.push_str(&format!("add rule inet mtu forward ip saddr {from} ip daddr {to} drop\n"));
            }
            for (from, to) in [(one_v6, two_v6), (two_v6, one_v6)] {
                rules.push_str(&format!("add rule inet mtu forward ip6 saddr {from} ip6 daddr {to} drop\n"));
            }
        }
        if self.silent {
            rules.push_str(
                "add rule inet mtu output icmp type destination-unreachable icmp code frag-needed drop\n",
            );
            rules.push_str("add rule inet mtu output icmpv6 type packet-too-big drop\n");
        }
        for router in ROUTERS {
            let mut nft = lab.command(router, "nft")?;
            check(nft.arg(&rules), LIMIT, cancel).with_context(|| format!("cannot filter on {router}"))?;
        }
        Ok(())
    }

    /// What the tunnel's packets may have of an outer packet.
    fn headers(self) -> usize {
        if self.ipv6 { OUTER_IPV6_LEN } else { OUTER_IPV4_LEN }
    }

    /// The inner MTU that an outer one allows.
    fn inner(self, outer: u16) -> u64 {
        let fits = usize::from(outer).saturating_sub(self.headers() + TUNNEL_OVERHEAD);
        fits.clamp(MIN_INNER_MTU, MAX_INNER_MTU) as u64
    }
}

/// The two devices and the path between them.
pub(super) struct Site<'a> {
    lab: &'a Lab,
    case: Case,
    devices: [&'a Device; 2],
    addresses: [Ipv6Addr; 2],
    cancel: &'a Cancel,
}

impl<'a> Site<'a> {
    pub(super) fn new(lab: &'a Lab, case: &Case, devices: &'a [Device], cancel: &'a Cancel) -> Result<Self> {
        let [one, two] = devices else { bail!("the scene `mtu` has two devices, not {}", devices.len()) };
        let address = |device: &Device| -> Result<Ipv6Addr> {
            let status = device.status(cancel)?;
            let address = status.get("virtual_address").and_then(Value::as_str).unwrap_or_default();
            Ok(address.parse()?)
        };
        let addresses = [address(one)?, address(two)?];
        Ok(Self { lab, case: *case, devices: [one, two], addresses, cancel })
    }

    /// Sets the path's MTU and asks for everything the tunnel promises on it.
    pub(super) fn check(&self, outer: u16, findings: &mut Findings) -> Result<()> {
        self.set(outer)?;
        self.set_up()?;
        let Some(found) = self.found(outer)? else {
            findings.black_holes.push(self.fault(outer, "what the path carries is not found out"));
            return Ok(());
        };
        for (from, to) in [(0, 1), (1, 0)] {
            let (here, there) = (self.devices[from].namespace()?, self.devices[to].namespace()?);
            let (address, inner) = (self.addresses[to], found[from]);
            for size in [100, MIN_INNER_MTU as u64, inner.min(1420), inner] {
                if !traffic::ping(here, address, size, self.cancel)? {
                    findings.black_holes.push(self.fault(outer, &format!("pings of {size} bytes are lost")));
                }
            }
            let stated = self.refused(here, address, inner)?;
            if stated != Some(inner) {
                let said = format!("{} bytes are answered with an MTU of {stated:?}, not {inner}", inner + 1);
                findings.wrong_packet_too_big.push(self.fault(outer, &said));
            }
            // The last one is larger than any packet: the host fragments it, for the tunnel's MTU.
            for size in [1_232, inner - 48, 9_500] {
                if !traffic::udp(here, there, address, size as usize)? {
                    findings
                        .black_holes
                        .push(self.fault(outer, &format!("UDP datagrams of {size} bytes are lost")));
                }
            }
            if let Err(error) = traffic::tcp(here, there, address)? {
                findings.black_holes.push(self.fault(outer, &format!("a TCP transfer fails: {error}")));
            }
        }
        Ok(())
    }

    /// What is stated to a packet of a byte more than fits. The host hears of a new size a moment after the
    /// tunnel.
    fn refused(&self, from: &Namespace, to: Ipv6Addr, inner: u64) -> Result<Option<u64>> {
        let start = Instant::now();
        loop {
            let stated = traffic::refused(from, to, inner + 1, self.cancel)?;
            if stated == Some(inner) || start.elapsed() > SETTLING {
                return Ok(stated);
            }
        }
    }

    /// Narrows and widens the path while both ends send; the longest that either received nothing.
    pub(super) fn change_under_transfer(&self, findings: &mut Findings) -> Result<Duration> {
        self.set(1500)?;
        self.set_up()?;
        let [one, two] = [self.devices[0].namespace()?, self.devices[1].namespace()?];
        let streams = [
            traffic::Stream::start(one, two, self.addresses[1])?,
            traffic::Stream::start(two, one, self.addresses[0])?,
        ];
        for outer in [1500, 1300, 1280, 9000] {
            self.set(outer)?;
            let start = Instant::now();
            while start.elapsed() < PHASE {
                self.cancel.check()?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let mut longest = Duration::ZERO;
        for stream in streams {
            match stream.finish() {
                Ok(pause) => longest = longest.max(pause),
                Err(error) => {
                    let said = format!("{}: a transfer under changes fails: {error:#}", self.case);
                    findings.black_holes.push(said);
                }
            }
        }
        findings.longest_stall = findings.longest_stall.max(longest);
        Ok(longest)
    }

    fn fault(&self, outer: u16, what: &str) -> String {
        format!("{}, {outer} bytes: {what}", self.case)
    }

    fn set(&self, outer: u16) -> Result<()> {
        for router in ROUTERS {
            let mut ip = self.lab.command(router, "ip")?;
            check(ip.args(["link", "set", "dev", MIDDLE, "mtu", &outer.to_string()]), LIMIT, self.cancel)
                .with_context(|| format!("cannot set the MTU of {router}'s {MIDDLE}"))?;
        }
        Ok(())
    }

    /// A fresh tunnel, that knows nothing of its path, by the route of this case.
    fn set_up(&self) -> Result<()> {
        let [one, two] = self.devices;
        for (device, peer) in [(one, two), (two, one)] {
            // It may not know the peer yet, or any more.
            drop(device.reset_tunnel(peer, self.cancel));
        }
        one.resolve(two, self.cancel)?;
        two.resolve(one, self.cancel)?;
        // A pair may begin at the relay and find the direct path a moment later.
        let start = Instant::now();
        for (device, peer) in [(one, two), (two, one)] {
            loop {
                let route = device.route_to(peer, self.cancel)?;
                match (&route, self.case.relayed) {
                    (Route::Relay { .. }, true) | (Route::Direct { .. }, false) => break,
                    _ if start.elapsed() > ROUTE => {
                        bail!("{}: the tunnel is {}", self.case, route.describe())
                    }
                    _ => std::thread::sleep(Duration::from_millis(50)),
                }
                self.cancel.check()?;
            }
        }
        Ok(())
    }

    /// The inner MTU of each end's direction, once both have found out what the path carries. `None` if they
    /// do not, or find too much.
    fn found(&self, outer: u16) -> Result<Option<[u64; 2]>> {
        let [one, two] = self.devices;
        let start = Instant::now();
        loop {
            let mut inner = Vec::new();
            for (device, peer) in [(one, two), (two, one)] {
                let status = device.peer(peer, self.cancel)?.unwrap_or(Value::Null);
                let figure = |name: &str| status.get(name).and_then(Value::as_u64).unwrap_or(0);
                let (path, stated) = (figure("path_mtu"), figure("inner_mtu"));
                let (truth, most) = (u64::from(outer), self.case.inner(outer));
                let widest = (MAX_INNER_MTU + TUNNEL_OVERHEAD + self.case.headers()) as u64;
                if path > truth {
                    return Ok(None);
                }
                let is_known = status.get("path_known").and_then(Value::as_bool).unwrap_or(false);
                if is_known
                    && path + GRANULE >= truth.min(widest)
                    && stated <= most
                    && stated + GRANULE >= most
                {
                    inner.push(stated);
                }
            }
            if let [one, two] = inner[..] {
                return Ok(Some([one, two]));
            }
            if start.elapsed() > SEARCH {
                return Ok(None);
            }
            self.cancel.check()?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
