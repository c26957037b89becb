//! systemd-resolved, over D-Bus (org.freedesktop.resolve1(5)).

mod bus;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

pub use bus::Bus;
use bus::Manager;
use cyphonic_dataplane::netdevice;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::resolv_conf;

/// The stub that programs ask when the host relies on resolved.
pub(super) const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// The stub, and the one beside it that only hands queries on.
pub(super) const STUBS: [IpAddr; 2] = [STUB, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// `AF_INET` and `AF_INET6` of Linux.
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

/// The zone is known to systemd-resolved.
#[derive(Debug, Clone)]
pub struct Resolved {
    bus: Bus,
    interface: i32,
    server: SocketAddr,
    /// And whether each is for routing only.
    domains: Vec<(String, bool)>,
}

/// True if the host's programs ask systemd-resolved, *this* host's: in a network namespace the bus may be
/// another's, whose interface numbers mean other interfaces, but then nobody listens on the stub's address.
pub async fn is_in_use(resolv_conf: &Path) -> bool {
    is_named(resolv_conf)
        && matches!(timeout(Duration::from_millis(500), TcpStream::connect((STUB, 53))).await, Ok(Ok(_)))
}

/// True if programs are told to ask systemd-resolved, whether it is there or not.
pub(super) fn is_named(resolv_conf: &Path) -> bool {
    resolv_conf::nameservers_of(resolv_conf).iter().any(|server| server.ip() == STUB)
}

impl Resolved {
    /// Routes `domains` to `server`, as settings of the interface, and has those searched that are not for routing only.
    ///
    /// # Errors
    ///
    /// When resolved refuses or is not there. What it had accepted before is taken back.
    pub async fn apply(
        bus: &Bus,
        interface: u32,
        server: SocketAddr,
        domains: &[(String, bool)],
    ) -> Result<Self, ResolvedError> {
        let resolved = Self::of(bus, interface, server, domains)?;
        resolved.tell(&resolved.bus.connect().await?).await?;
        Ok(resolved)
    }

    /// The same, if resolved runs. It is not started for this: who has stopped it may use something else.
    ///
    /// # Errors
    ///
    /// As with [`Self::apply`].
    pub async fn apply_if_there(
        bus: &Bus,
        interface: u32,
        server: SocketAddr,
        domains: &[(String, bool)],
    ) -> Result<Self, ResolvedError> {
        let resolved = Self::of(bus, interface, server, domains)?;
        let manager = resolved.bus.connect().await?;
        manager.require_owner().await?;
        resolved.tell(&manager).await?;
        Ok(resolved)
    }

    fn of(
        bus: &Bus,
        interface: u32,
        server: SocketAddr,
        domains: &[(String, bool)],
    ) -> Result<Self, ResolvedError> {
        let interface = i32::try_from(interface).map_err(|_| ResolvedError::Interface(interface))?;
        Ok(Self { bus: bus.clone(), interface, server, domains: domains.to_owned() })
    }

    async fn tell(&self, manager: &Manager) -> Result<(), ResolvedError> {
        let told = self.set(manager).await;
        if told.is_err() {
            let _ = self.forget(manager).await;
        }
        told
    }

    async fn set(&self, manager: &Manager) -> Result<(), ResolvedError> {
        let (link, server) = (self.interface, self.server);
        // Never for other names: asked first, so that no name of the host's comes to us in between.
        manager.call("SetLinkDefaultRoute", &(link, false)).await?;
        let (family, address) = match server.ip() {
            IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
            IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
        };
        if server.port() == 53 {
            manager.call("SetLinkDNS", &(link, vec![(family, address)])).await?;
        } else {
            manager.call("SetLinkDNSEx", &(link, vec![(family, address, server.port(), "")])).await?;
        }
        // `true`: for routing only, not a search domain (resolvectl shows it as `~zone`).
        let domains: Vec<(&str, bool)> =
            self.domains.iter().map(|(domain, only)| (domain.as_str(), *only)).collect();
        manager.call("SetLinkDomains", &(link, domains)).await?;
        // The zone is unsigned and served in the clear on this host. Older versions lack some of these.
        for (method, value) in [
            ("SetLinkDNSSEC", "no"),
            ("SetLinkDNSOverTLS", "no"),
            ("SetLinkLLMNR", "no"),
            ("SetLinkMulticastDNS", "no"),
        ] {
            if let Err(error) = manager.call(method, &(link, value)).await {
                tracing::debug!(method, %error, "systemd-resolved does not know this");
            }
        }
        Ok(())
    }

    /// Tells resolved again what it does not know any more: somebody may have reverted the link (`resolvectl
    /// revert`); and looks for others who have names of the zone.
    ///
    /// # Errors
    ///
    /// When resolved refuses or is not there. It is not started for this: who has stopped it may use
    /// something else.
    pub async fn restore(&self) -> Result<Restored, ResolvedError> {
        let manager = self.bus.connect().await?;
        manager.require_owner().await?;
        let known = manager.domains_of(self.interface).await?;
        let knows = |(domain, only): &(String, bool)| {
            known.iter().any(|(name, is_only)| name.eq_ignore_ascii_case(domain) && is_only == only)
        };
        let again = !self.domains.iter().all(knows);
        if again {
            self.set(&manager).await?;
        }
        let others = manager.domains().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "systemd-resolved does not tell the domains of other links");
            Vec::new()
        });
        let takes = |(link, domain, _): &(i32, String, bool)| {
            *link != self.interface && self.domains.iter().any(|(ours, _)| is_within(domain, ours))
        };
        let taken =
            others.into_iter().find(takes).map(|(link, domain, _)| Taken { by: name_of(link), domain });
        Ok(Restored { again, taken })
    }

    /// Makes resolved forget the zone.
    ///
    /// # Errors
    ///
    /// When resolved refuses or is not there.
    pub async fn revert(&self) -> Result<(), ResolvedError> {
        self.forget(&self.bus.connect().await?).await
    }

    async fn forget(&self, manager: &Manager) -> Result<(), ResolvedError> {
        manager.call("RevertLink", &(self.interface,)).await
    }
}

/// What a look at systemd-resolved came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// It had forgotten the zone.
    pub again: bool,
    /// Somebody else gets questions for names of the zone.
    pub taken: Option<Taken>,
}

/// A domain in the zone, or the zone, that another link has: resolved asks the servers of whoever's domain is
/// the longest, and with equal ones everybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "systemd-resolved asks other servers than the agent for names below {domain}, a domain of {by}, as a DHCP server may give one"
)]
pub struct Taken {
    by: String,
    domain: String,
}

/// Whether a domain is another one or below it.
fn is_within(domain: &str, other: &str) -> bool {
    let domain = domain.trim_end_matches('.');
    let Some((before, end)) =
        domain.len().checked_sub(other.len()).and_then(|at| domain.split_at_checked(at))
    else {
        return false;
    };
    end.eq_ignore_ascii_case(other) && (before.is_empty() || before.ends_with('.'))
}

/// What a person calls a link.
fn name_of(link: i32) -> String {
    if link == 0 {
        return "the host as a whole (`resolved.conf`)".to_owned();
    }
    let named = u32::try_from(link).ok().and_then(|link| netdevice::name(link).ok());
    named.unwrap_or_else(|| format!("interface {link}"))
}

/// Why systemd-resolved does not know the zone.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    /// No system bus.
    #[error(
        "cannot reach the system bus for systemd-resolved: {0}; is it running? `resolver: resolv-conf` does without"
    )]
    Bus(Box<zbus::Error>),
    /// The bus is there, and the service is not.
    #[error("systemd-resolved does not run: start it, or set `resolver: resolv-conf`")]
    Absent,
    /// No answer.
    #[error("systemd-resolved does not answer: `systemctl status systemd-resolved` may say why")]
    Silent,
    /// It refused.
    #[error("systemd-resolved refused {method}: {source}")]
    Call {
        /// The D-Bus method.
        method: &'static str,
        /// Why.
        source: Box<zbus::Error>,
    },
    /// D-Bus has signed interface numbers.
    #[error("the interface number {0} is too large for systemd-resolved")]
    Interface(u32),
}

impl ResolvedError {
    /// True where nobody answered: somebody may, later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Bus(_) | Self::Absent | Self::Silent => true,
            Self::Call { .. } | Self::Interface(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_within_another_by_whole_labels() {
        for (domain, within) in [
            ("cyphonic.internal", true),
            ("b.Cyphonic.internal.", true),
            ("notcyphonic.internal", false),
            ("internal", false),
            ("ü.internal", false),
            ("", false),
        ] {
            assert_eq!(is_within(domain, "cyphonic.internal"), within, "{domain}");
        }
    }
}
