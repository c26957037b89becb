//! Port mappings by PCP (RFC 6887), or NAT-PMP (RFC 6886) where that is all the gateway speaks.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig};

use super::LIFETIME;

/// Requests at 0, 250 and 750 ms: gateways are one hop away.
const PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 2, max_retry_timeout: None };

/// What stands at the gateway.
pub(super) struct Mapping {
    gateway: Ipv4Addr,
    mapping: PortMapping,
}

impl Mapping {
    pub(super) async fn ask(gateway: Ipv4Addr, client: Ipv4Addr, port: NonZeroU16) -> Result<Self, String> {
        let options = PortMappingOptions {
            external_port: Some(port),
            lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
            timeout_config: Some(PATIENCE),
        };
        let asked =
            PortMapping::new(gateway.into(), client.into(), InternetProtocol::Udp, port, options).await;
        asked.map(|mapping| Self { gateway, mapping }).map_err(|error| error.to_string())
    }

    pub(super) fn left(&self) -> Duration {
        self.mapping.expiration().saturating_duration_since(std::time::Instant::now())
    }

    pub(super) async fn renew(&mut self) -> Result<(), String> {
        self.mapping.renew().await.map_err(|error| error.to_string())
    }

    /// NAT-PMP tells the outer address apart.
    pub(super) async fn outer(&self) -> Option<SocketAddr> {
        let mapping = &self.mapping;
        let ip: IpAddr = match mapping.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => external_ip.to_canonical(),
            PortMappingType::NatPmp => {
                let asked = crab_nat::natpmp::external_address(self.gateway.into(), Some(PATIENCE));
                asked.await.ok()?.into()
            }
        };
        Some(SocketAddr::new(ip, mapping.external_port().get()))
    }

    pub(super) async fn take_back(self) -> Result<(), String> {
        self.mapping.try_drop().await.map_err(|(error, _)| error.to_string())
    }
}
