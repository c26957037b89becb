//! The networks that everything is compared in: A – router – B.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::{Lab, LabConfig, Topology};

use super::programs::BenchPrograms;
use super::variant::Variant;

/// A and B meet at a router. The cloud is beside it, so that no packet between A and B passes it.
const TOPOLOGY: &str = r#"
version: 1
networks:
  left:  { ipv4: 198.51.100.0/24 }
  right: { ipv4: 203.0.113.0/24 }
  cloud: { ipv4: 192.0.2.0/28 }
  relay: { ipv4: 192.0.2.16/28 }
routers:
  r:
    interfaces:
      - { network: left,  ipv4: 198.51.100.1 }
      - { network: right, ipv4: 203.0.113.1 }
      - { network: cloud, ipv4: 192.0.2.1 }
      - { network: relay, ipv4: 192.0.2.17 }
hosts:
  a: { roles: [device], device: a.bench, gateway: r, interfaces: [ { network: left,  ipv4: 198.51.100.2 } ] }
  b: { roles: [device], device: b.bench, gateway: r, interfaces: [ { network: right, ipv4: 203.0.113.2 } ] }
  cloud: { roles: [as, nms], gateway: r, interfaces: [ { network: cloud, ipv4: 192.0.2.2 } ] }
  trs:   { roles: [trs], gateway: r, interfaces: [ { network: relay, ipv4: 192.0.2.18 } ] }
profiles:
  zero: {}
"#;

/// Both ends of both cables that packets between A and B pass.
const CABLES: [(&str, &str); 4] = [("a", "lan0"), ("r", "left"), ("r", "right"), ("b", "lan0")];
const OFFLOADS: [&str; 4] = ["tso", "gso", "gro", "tx-udp-segmentation"];
/// For configuration commands.
const LIMIT: Duration = Duration::from_secs(10);

/// The addresses of A and B in the plain network.
pub(super) const A: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(super) const B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// Their addresses inside tunnels that let one choose.
pub(super) const INNER: [&str; 2] = ["fd0b::1", "fd0b::2"];

/// An end of the tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(super) fn node(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(super) fn outer(self) -> IpAddr {
        match self {
            Self::A => A.into(),
            Self::B => B.into(),
        }
    }

    /// Its address inside tunnels that let one choose.
    pub(super) fn inner(self) -> &'static str {
        match self {
            Self::A => INNER[0],
            Self::B => INNER[1],
        }
    }
}

/// The networks, up, and what is run in them.
pub(super) struct Site<'a> {
    pub(super) lab: Lab,
    pub(super) topology: Topology,
    pub(super) programs: &'a BenchPrograms,
    pub(super) cancel: &'a Cancel,
}

impl<'a> Site<'a> {
    pub(super) fn up(name: &str, programs: &'a BenchPrograms, cancel: &'a Cancel) -> Result<Self> {
        let topology = Topology::parse(TOPOLOGY).context("the benchmark's own topology is wrong")?;
        let lab = Lab::up(&topology, &LabConfig::new(name, "zero"))?;
        Ok(Self { lab, topology, programs, cancel })
    }

    /// Makes the cables those of a variant.
    pub(super) fn lay(&self, variant: Variant) -> Result<()> {
        // Where a cable takes no super-packets, the kernel cuts them before it.
        let state = match variant {
            Variant::Normal => "on",
            Variant::Wire => "off",
        };
        for (node, device) in CABLES {
            let mut ethtool = self.lab.command(node, "ethtool")?;
            ethtool.args(["-K", device]);
            // A veth end has receive offload (GRO) only on request, and a plain one is what is compared with.
            for offload in OFFLOADS {
                ethtool.args([offload, if offload == "gro" { "off" } else { state }]);
            }
            check(&mut ethtool, LIMIT, self.cancel)?;
        }
        Ok(())
    }

    /// Runs `ip` on a node.
    pub(super) fn ip(&self, node: &str, arguments: &[&str]) -> Result<()> {
        check(self.lab.command(node, "ip")?.args(arguments), LIMIT, self.cancel)?;
        Ok(())
    }

    /// Gives a tunnel's device its inner address and brings it up.
    pub(super) fn configure(&self, side: Side, device: &str, mtu: u16) -> Result<()> {
        self.ip(side.node(), &["link", "set", "dev", device, "mtu", &mtu.to_string(), "up"])?;
        let address = format!("{}/64", side.inner());
        self.ip(side.node(), &["address", "add", &address, "dev", device, "nodad"])
    }

    /// Runs a program to its end on a node and returns what it prints.
    pub(super) fn run(&self, node: &str, program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
        Ok(check(self.lab.command(node, program.as_ref())?.args(arguments), LIMIT, self.cancel)?)
    }

    /// An empty folder for a system's files on a node.
    pub(super) fn folder(&self, side: Side, system: &str) -> Result<PathBuf> {
        let folder = self.lab.node_dir(side.node())?.join(system);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }
}
