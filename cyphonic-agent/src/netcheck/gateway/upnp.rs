//! Port mappings by UPnP IGD, for gateways that speak nothing else.
//!
//! In this protocol whoever answers a search on the site's network is believed, and any host may change any
//! mapping. So only the gateway that the routing table names is used, asked at its own address first; what it
//! describes must be there too (`igd_next` follows nothing else, and bounds what it reads); and mappings that
//! would outlive a crashed agent for good are not made.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use igd_next::PortMappingProtocol::UDP;
use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, SearchOptions};

use super::LIFETIME;

/// Where gateways listen for searches: at their own address, and in this group (UPnP Device Architecture 1.1,
/// §1.3.2), which is all that some listen to.
const PORT: u16 = 1900;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);

/// How long an answer to a search, and to what it leads to, may take.
const SEARCH: Duration = Duration::from_secs(2);

/// What users of the gateway see.
const DESCRIPTION: &str = "cyphonic";

/// What stands at the gateway.
pub(super) struct Mapping {
    gateway: Gateway<Tokio>,
    client: SocketAddr,
    outer_port: u16,
    until: Instant,
}

impl Mapping {
    pub(super) async fn ask(gateway: Ipv4Addr, client: Ipv4Addr, port: NonZeroU16) -> Result<Self, String> {
        let gateway = find(gateway, client).await?;
        let (client, port) = (SocketAddr::new(client.into(), port.get()), port.get());
        let outer_port = map(&gateway, client, port).await?;
        Ok(Self { gateway, client, outer_port, until: until() })
    }

    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Asking once more for what stands is how it is renewed.
    pub(super) async fn renew(&mut self) -> Result<(), String> {
        self.outer_port = map(&self.gateway, self.client, self.outer_port).await?;
        self.until = until();
        Ok(())
    }

    pub(super) async fn outer(&self) -> Option<SocketAddr> {
        let ip = self.gateway.get_external_ip().await.ok()?;
        Some(SocketAddr::new(ip, self.outer_port))
    }

    pub(super) async fn take_back(self) -> Result<(), String> {
        self.gateway.remove_port(UDP, self.outer_port).await.map_err(|error| error.to_string())
    }
}

fn until() -> Instant {
    Instant::now() + LIFETIME
}

/// Asks the gateway alone, then everybody, of whom only the gateway is heard.
async fn find(gateway: Ipv4Addr, client: Ipv4Addr) -> Result<Gateway<Tokio>, String> {
    let mut error = String::new();
    for at in [gateway, GROUP] {
        let mut options = SearchOptions::default();
        options.bind_addr = SocketAddr::new(client.into(), 0);
        options.broadcast_address = SocketAddr::new(at.into(), PORT);
        (options.timeout, options.single_search_timeout) = (Some(SEARCH), Some(SEARCH));
        error = match search_gateway(options).await {
            Ok(found) if found.addr.ip() == gateway => return Ok(found),
            Ok(found) => format!("{} answers, which is not this host's gateway", found.addr),
            Err(error) => error.to_string(),
        };
    }
    Err(error)
}

/// Has the port mapped, to another if somebody else of the site has it. Returns which.
async fn map(gateway: &Gateway<Tokio>, client: SocketAddr, port: u16) -> Result<u16, String> {
    let lease = u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX);
    match gateway.add_port(UDP, port, client, lease, DESCRIPTION).await {
        Ok(()) => Ok(port),
        Err(AddPortError::PortInUse) => {
            let any = gateway.add_any_port(UDP, client, lease, DESCRIPTION).await;
            any.map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}
