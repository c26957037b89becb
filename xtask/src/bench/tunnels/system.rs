//! The systems that are compared, each by how it is started.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cyphonic_lab::measure::{PingRun, ping};
use cyphonic_lab::process::{Daemon, wait_until};

use super::own::Overlay;
use super::site::{B, Side, Site};
use super::{nebula, null_gso, openvpn, quincy, wireguard};

/// How long [`System::Awake`] keeps processors awake after a packet: longer than pings are apart.
const AWAKE: &str = "50ms";
/// For a tunnel to come up.
const LIMIT: Duration = Duration::from_secs(15);

/// A way of getting packets from A to B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum System {
    Underlay,
    NullGso,
    Offload,
    Xdp,
    Auto,
    Awake,
    WireguardGo,
    Boringtun,
    Nebula,
    OpenVpn,
    Quincy,
}

/// A system that carries packets. Dropping it ends its programs.
pub(super) struct Running {
    /// B, as A reaches it.
    pub(super) target: IpAddr,
    /// Its programs, on both ends.
    pub(super) daemons: Vec<Daemon>,
    /// Programs that are not ended with it.
    pub(super) others: Vec<u32>,
}

impl System {
    pub(super) const ALL: [Self; 11] = [
        Self::Underlay,
        Self::NullGso,
        Self::Offload,
        Self::Xdp,
        Self::Auto,
        Self::Awake,
        Self::WireguardGo,
        Self::Boringtun,
        Self::Nebula,
        Self::OpenVpn,
        Self::Quincy,
    ];

    /// Its name in figures.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Underlay => "underlay",
            Self::NullGso => "null_gso",
            Self::Offload => "offload",
            Self::Xdp => "xdp",
            Self::Auto => "auto",
            Self::Awake => "awake",
            Self::WireguardGo => "wireguard_go",
            Self::Boringtun => "boringtun",
            Self::Nebula => "nebula",
            Self::OpenVpn => "openvpn",
            Self::Quincy => "quincy",
        }
    }

    /// Starts it and waits until a ping is answered.
    pub(super) fn start(self, site: &Site<'_>, overlay: &mut Overlay) -> Result<Running> {
        let running = match self {
            Self::Underlay => Running::without_programs(B.into()),
            Self::NullGso => null_gso::start(site)?,
            Self::Offload | Self::Xdp | Self::Auto => overlay.start(site, self.name(), "off")?,
            Self::Awake => overlay.start(site, "auto", AWAKE)?,
            Self::WireguardGo => wireguard::start(site, &wireguard::GO)?,
            Self::Boringtun => wireguard::start(site, &wireguard::BORINGTUN)?,
            Self::Nebula => nebula::start(site)?,
            Self::OpenVpn => openvpn::start(site)?,
            Self::Quincy => quincy::start(site)?,
        };
        running.wait(site).with_context(|| format!("{} carries nothing", self.name()))?;
        Ok(running)
    }
}

impl Running {
    pub(super) fn without_programs(target: IpAddr) -> Self {
        Self { target, daemons: Vec::new(), others: Vec::new() }
    }

    /// The programs' process ids.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.daemons.iter().map(Daemon::pid).chain(self.others.iter().copied())
    }

    fn wait(&self, site: &Site<'_>) -> Result<()> {
        let once = PingRun { wait: Duration::from_millis(300), ..PingRun::new(self.target, 1) };
        let namespace = site.lab.namespace(Side::A.node())?;
        let answered = wait_until(LIMIT, || {
            site.cancel.is_cancelled()
                || ping(&namespace, &once, site.cancel).is_ok_and(|report| report.received > 0)
        });
        site.cancel.check()?;
        if answered {
            return Ok(());
        }
        let logs: Vec<String> = self
            .daemons
            .iter()
            .map(|daemon| format!("--- {}:\n{}", daemon.name(), daemon.log_tail(8)))
            .collect();
        bail!("no ping was answered within {} s\n{}", LIMIT.as_secs(), logs.join("\n"))
    }
}

/// Waits until a program has made its device.
pub(super) fn wait_for_device(site: &Site<'_>, side: Side, device: &str, daemon: &mut Daemon) -> Result<()> {
    let there = || site.ip(side.node(), &["link", "show", "dev", device]).is_ok();
    if wait_until(LIMIT, || daemon.exit_status().is_some() || there()) && daemon.exit_status().is_none() {
        return Ok(());
    }
    bail!("{} made no device {device}:\n{}", daemon.name(), daemon.log_tail(8))
}
