//! systemd-resolved, over D-Bus (org.freedesktop.resolve1(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use zbus::message::Body;
use zbus::zvariant::{DynamicType, OwnedObjectPath, Type, as_value};
use zbus::{Connection, connection};

use super::resolv_conf;

const SERVICE: &str = "org.freedesktop.resolve1";
const OBJECT: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";
const LINK: &str = "org.freedesktop.resolve1.Link";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The bus itself.
const BUS: &str = "org.freedesktop.DBus";
const BUS_OBJECT: &str = "/org/freedesktop/DBus";

/// What the bus answers where nobody has the service's name, and nobody can be started for it.
const NOBODY: [&str; 2] =
    ["org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner"];

/// The stub that programs ask when the host relies on resolved.
pub(super) const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// The stub, and the one beside it that only hands queries on.
pub(super) const STUBS: [IpAddr; 2] = [STUB, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// The bus and resolved are local.
const PATIENCE: Duration = Duration::from_secs(5);

/// `AF_INET` and `AF_INET6` of Linux.
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

/// Where systemd-resolved is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Bus {
    /// The host's own bus.
    #[default]
    System,
    /// Another one, by its D-Bus address (`unix:path=/run/other/bus`).
    At(String),
}

impl Bus {
    async fn connect(&self) -> Result<Connection, ResolvedError> {
        let connecting = async {
            match self {
                Self::System => Connection::system().await,
                Self::At(address) => connection::Builder::address(address.as_str())?.build().await,
            }
        };
        timeout(PATIENCE, connecting)
            .await
            .map_err(|_| ResolvedError::Silent)?
            .map_err(|error| ResolvedError::Bus(error.into()))
    }
}

/// The zone is known to systemd-resolved.
#[derive(Debug, Clone)]
pub struct Resolved {
    connection: Connection,
    interface: i32,
    server: SocketAddr,
    domains: Vec<String>,
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
    /// Routes `domains` to `server`, as settings of the interface.
    ///
    /// # Errors
    ///
    /// When resolved refuses or is not there. What it had accepted before is taken back.
    pub async fn apply(
        bus: &Bus,
        interface: u32,
        server: SocketAddr,
        domains: &[String],
    ) -> Result<Self, ResolvedError> {
        Self::connect(bus, interface, server, domains).await?.told().await
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
        domains: &[String],
    ) -> Result<Self, ResolvedError> {
        let resolved = Self::connect(bus, interface, server, domains).await?;
        resolved.require_owner().await?;
        resolved.told().await
    }

    async fn connect(
        bus: &Bus,
        interface: u32,
        server: SocketAddr,
        domains: &[String],
    ) -> Result<Self, ResolvedError> {
        let interface = i32::try_from(interface).map_err(|_| ResolvedError::Interface(interface))?;
        let connection = bus.connect().await?;
        Ok(Self { connection, interface, server, domains: domains.to_owned() })
    }

    async fn told(self) -> Result<Self, ResolvedError> {
        match self.set().await {
            Ok(()) => Ok(self),
            Err(error) => {
                let _ = self.revert().await;
                Err(error)
            }
        }
    }

    async fn set(&self) -> Result<(), ResolvedError> {
        let (link, server) = (self.interface, self.server);
        // Never for other names: asked first, so that no name of the host's comes to us in between.
        self.call("SetLinkDefaultRoute", &(link, false)).await?;
        let (family, address) = match server.ip() {
            IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
            IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
        };
        if server.port() == 53 {
            self.call("SetLinkDNS", &(link, vec![(family, address)])).await?;
        } else {
            self.call("SetLinkDNSEx", &(link, vec![(family, address, server.port(), "")])).await?;
        }
        // `true`: for routing only, not a search domain (resolvectl shows it as `~zone`).
        let domains: Vec<(&str, bool)> = self.domains.iter().map(|domain| (domain.as_str(), true)).collect();
        self.call("SetLinkDomains", &(link, domains)).await?;
        // The zone is unsigned and served in the clear on this host. Older versions lack some of these.
        for (method, value) in [
            ("SetLinkDNSSEC", "no"),
            ("SetLinkDNSOverTLS", "no"),
            ("SetLinkLLMNR", "no"),
            ("SetLinkMulticastDNS", "no"),
        ] {
            if let Err(error) = self.call(method, &(link, value)).await {
                tracing::debug!(method, %error, "systemd-resolved does not know this");
            }
        }
        Ok(())
    }

    /// Tells resolved again what it does not know any more: somebody may have reverted the link (`resolvectl
    /// revert`). True if it was so.
    ///
    /// # Errors
    ///
    /// When resolved refuses or is not there. It is not started for this: who has stopped it may use
    /// something else.
    pub async fn restore(&self) -> Result<bool, ResolvedError> {
        self.require_owner().await?;
        let known = self.known_domains().await?;
        if self.domains.iter().all(|domain| known.iter().any(|(name, _)| name.eq_ignore_ascii_case(domain))) {
            return Ok(false);
        }
        self.set().await?;
        Ok(true)
    }

    /// Whether somebody has resolved's name. Nobody is started for the question.
    async fn require_owner(&self) -> Result<(), ResolvedError> {
        let owned = self.ask(BUS, BUS_OBJECT, BUS, "NameHasOwner", &(SERVICE,)).await?;
        if read::<bool>("NameHasOwner", &owned)? { Ok(()) } else { Err(ResolvedError::Absent) }
    }

    /// What resolved sends to our server.
    async fn known_domains(&self) -> Result<Vec<(String, bool)>, ResolvedError> {
        let link = self.ask(SERVICE, OBJECT, MANAGER, "GetLink", &(self.interface,)).await?;
        let link: OwnedObjectPath = read("GetLink", &link)?;
        let domains = self.ask(SERVICE, link.as_str(), PROPERTIES, "Get", &(LINK, "Domains")).await?;
        Ok(read::<as_value::Deserialize<'_, _>>("Get", &domains)?.0)
    }

    /// Makes resolved forget the zone.
    pub async fn revert(&self) -> Result<(), ResolvedError> {
        self.call("RevertLink", &(self.interface,)).await
    }

    async fn call<B>(&self, method: &'static str, body: &B) -> Result<(), ResolvedError>
    where
        B: serde::Serialize + DynamicType,
    {
        self.ask(SERVICE, OBJECT, MANAGER, method, body).await.map(drop)
    }

    async fn ask<B>(
        &self,
        service: &str,
        object: &str,
        interface: &str,
        method: &'static str,
        body: &B,
    ) -> Result<Body, ResolvedError>
    where
        B: serde::Serialize + DynamicType,
    {
        let call = self.connection.call_method(Some(service), object, Some(interface), method, body);
        let answer = timeout(PATIENCE, call).await.map_err(|_| ResolvedError::Silent)?;
        answer.map(|answer| answer.body()).map_err(|error| match error {
            zbus::Error::MethodError(name, ..) if NOBODY.contains(&name.as_str()) => ResolvedError::Absent,
            error => ResolvedError::Call { method, source: error.into() },
        })
    }
}

/// What a method answered.
fn read<'a, T>(method: &'static str, answer: &'a Body) -> Result<T, ResolvedError>
where
    T: serde::Deserialize<'a> + Type,
{
    answer.deserialize().map_err(|error| ResolvedError::Call { method, source: error.into() })
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
