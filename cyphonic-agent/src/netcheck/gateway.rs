//! Asks the host's gateway to let the node's port in: PCP (RFC 6887), or NAT-PMP (RFC 6886) where that is all it speaks.
//!
//! One task, for as long as the engine runs. It asks when the node looks at its network, renews at half of what was granted,
//! and takes the mapping back when the agent stops. Nothing waits for it, and no gateway is as good as one that refuses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crab_nat::{
    InternetProtocol, MappingFailure, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig,
};
use cyphonic_dataplane::udp::UdpPort;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// What is asked for. Short, so that a gateway forgets soon what a crashed agent could not take back.
const LIFETIME: Duration = Duration::from_secs(20 * 60);

/// The least that is waited for a renewal, whatever a gateway grants.
const LEAST_RENEWAL: Duration = Duration::from_secs(15);

/// Between attempts to renew that fail.
const RETRY: Duration = Duration::from_secs(60);

/// How long the agent's stop waits for the gateway.
const FAREWELL: Duration = Duration::from_millis(500);

/// Requests at 0, 250 and 750 ms: gateways are one hop away.
const PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 2, max_retry_timeout: None };

/// The kernel's table of IPv4 routes.
const ROUTES: &str = "/proc/net/route";

/// What the task is told.
pub(super) enum Order {
    /// The network may be another one.
    Look,
    /// Take the mapping back and end.
    Stop,
}

/// What stands at the gateway.
struct Granted {
    gateway: Ipv4Addr,
    client: Ipv4Addr,
    mapping: PortMapping,
}

/// Runs until it is told to stop. `report` gets the outer endpoints whenever they change.
pub(super) async fn keep_mapped<R, F>(port: Arc<UdpPort>, mut orders: mpsc::Receiver<Order>, report: R)
where
    R: Fn(Vec<SocketAddr>) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut granted: Option<Granted> = None;
    loop {
        let renewal = granted.as_ref().map(|granted| renew_in(&granted.mapping));
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Look) => granted = look(&port, granted).await,
                Some(Order::Stop) | None => return take_back(granted).await,
            },
            () = wait(renewal) => granted = renew(granted).await,
        }
        let outer = match &granted {
            Some(granted) => outer_endpoint(granted).await,
            None => None,
        };
        report(outer.into_iter().collect()).await;
    }
}

async fn wait(renewal: Option<Duration>) {
    match renewal {
        Some(renewal) => sleep(renewal).await,
        None => std::future::pending().await,
    }
}

fn renew_in(mapping: &PortMapping) -> Duration {
    let left = mapping.expiration().saturating_duration_since(std::time::Instant::now());
    (left / 2).max(LEAST_RENEWAL)
}

/// Asks the gateway there is now. A mapping that stands there is renewed, which also finds out whether it still does: another
/// request for the same port would be refused (RFC 6887 §11.3).
async fn look(port: &UdpPort, granted: Option<Granted>) -> Option<Granted> {
    let (gateway, client) = here(port)?;
    match granted {
        Some(granted) if (granted.gateway, granted.client) == (gateway, client) => renew(Some(granted)).await,
        _ => ask(gateway, client, port.local_port()).await,
    }
}

/// The gateway, and this host's address towards it, where a mapping makes sense: only from private addresses.
fn here(port: &UdpPort) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let gateway = gateway_of(&std::fs::read_to_string(ROUTES).ok()?)?;
    let source = port.source_for(SocketAddr::new(gateway.into(), crab_nat::GATEWAY_PORT)).ok()?;
    match source {
        IpAddr::V4(client) if is_translated(client) => Some((gateway, client)),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Private addresses (RFC 1918) and those of carriers' NATs (RFC 6598).
const fn is_translated(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private() || (a == 100 && b & 0xc0 == 64)
}

async fn ask(gateway: Ipv4Addr, client: Ipv4Addr, port: u16) -> Option<Granted> {
    let port = NonZeroU16::new(port)?;
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(PATIENCE),
    };
    let asked = PortMapping::new(gateway.into(), client.into(), InternetProtocol::Udp, port, options).await;
    match asked {
        Ok(mapping) => Some(Granted { gateway, client, mapping }),
        Err(error) => {
            tell_refused(&error);
            None
        }
    }
}

fn tell_refused(error: &MappingFailure) {
    tracing::debug!(%error, "the gateway maps no port (PCP, NAT-PMP)");
}

async fn renew(granted: Option<Granted>) -> Option<Granted> {
    let mut granted = granted?;
    match granted.mapping.renew().await {
        Ok(()) => Some(granted),
        Err(error) => {
            tell_refused(&error);
            // The mapping may stand yet: it is asked for anew after a pause, not in a hurry.
            sleep(RETRY.min(renew_in(&granted.mapping))).await;
            ask(granted.gateway, granted.client, granted.mapping.internal_port().get()).await
        }
    }
}

/// NAT-PMP tells the outer address apart. One that is private itself leads no further than to the next NAT.
async fn outer_endpoint(granted: &Granted) -> Option<SocketAddr> {
    let mapping = &granted.mapping;
    let ip = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => external_ip.to_canonical(),
        PortMappingType::NatPmp => {
            crab_nat::natpmp::external_address(granted.gateway.into(), Some(PATIENCE)).await.ok()?.into()
        }
    };
    let useful = match ip {
        IpAddr::V4(ip) => !is_translated(ip) && !ip.is_unspecified(),
        IpAddr::V6(_) => false,
    };
    useful.then(|| SocketAddr::new(ip, mapping.external_port().get()))
}

async fn take_back(granted: Option<Granted>) {
    let Some(granted) = granted else { return };
    match timeout(FAREWELL, granted.mapping.try_drop()).await {
        Ok(Ok(())) => {}
        Ok(Err((error, _))) => tracing::debug!(%error, "the port mapping stays until it ends"),
        Err(_) => tracing::debug!("the gateway did not answer: the port mapping stays until it ends"),
    }
}

/// The gateway of the default route with the least metric. The kernel writes addresses in hexadecimal, in its own byte order.
fn gateway_of(routes: &str) -> Option<Ipv4Addr> {
    /// "The destination is a gateway", and "the route is usable" (route(8)).
    const USABLE: u32 = 0x2 | 0x1;
    let route = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let [destination, gateway, flags] = [fields.next()?, fields.next()?, fields.next()?];
        let metric: u32 = fields.nth(2)?.parse().ok()?;
        let mask = fields.next()?;
        let hex = |text| u32::from_str_radix(text, 16).ok();
        let default = hex(destination)? == 0 && hex(mask)? == 0 && hex(flags)? & USABLE == USABLE;
        default.then_some((metric, Ipv4Addr::from(hex(gateway)?.to_ne_bytes())))
    };
    routes.lines().filter_map(route).min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;

    #[test]
    fn the_default_route_with_the_least_metric_names_the_gateway() {
        let gateway = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let routes = format!(
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
             wlan0\t00000000\t{}\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
             eth0\t00000000\t{}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n",
            gateway([192, 168, 9, 1]),
            gateway([192, 168, 1, 1])
        );
        assert_eq!(gateway_of(&routes), Some(Ipv4Addr::new(192, 168, 1, 1)));
        assert_eq!(gateway_of(""), None);
        assert_eq!(gateway_of("a b\nc\t00000000\tzz\t3\t0\t0\t0\t0\n"), None);
    }

    /// A gateway that speaks PCP (RFC 6887 §7, §11.1), and maps every port to itself. Tells the lifetimes it is asked for.
    async fn serve_pcp(socket: UdpSocket, asked: mpsc::Sender<u32>) {
        const OUTER: [u8; 4] = [203, 0, 113, 9];
        let mut request = [0; 100];
        loop {
            let (len, from) = socket.recv_from(&mut request).await.unwrap();
            assert_eq!((len, request[0], request[1]), (60, 2, 1), "a MAP request of version 2");
            let mut response = request[..60].to_vec();
            response[1] = 0x81;
            response[2..4].fill(0);
            response[8..24].fill(0);
            let (internal, external) = (response[40..42].to_vec(), 42..44);
            response[external].copy_from_slice(&internal);
            response[44..60].copy_from_slice(&Ipv4Addr::from(OUTER).to_ipv6_mapped().octets());
            socket.send_to(&response, from).await.unwrap();
            asked.send(u32::from_be_bytes(*request[4..8].first_chunk().unwrap())).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_gateway_is_asked_renewed_and_told_at_the_end() {
        let (gateway, client) = (Ipv4Addr::new(127, 0, 77, 1), Ipv4Addr::LOCALHOST);
        let socket = UdpSocket::bind((gateway, crab_nat::GATEWAY_PORT)).await.unwrap();
        let (sender, mut asked) = mpsc::channel(16);
        let server = tokio::spawn(serve_pcp(socket, sender));
        let granted = ask(gateway, client, 41_641).await;
        let outer = outer_endpoint(granted.as_ref().unwrap()).await;
        assert_eq!(outer, Some("203.0.113.9:41641".parse().unwrap()));
        let left = renew_in(&granted.as_ref().unwrap().mapping);
        assert!(left > LIFETIME / 3 && left <= LIFETIME / 2, "{left:?}");
        let granted = renew(granted).await;
        take_back(granted).await;
        let lifetimes = [asked.recv().await, asked.recv().await, asked.recv().await];
        assert_eq!(lifetimes, [Some(1_200), Some(1_200), Some(0)], "asked, renewed, taken back");
        server.abort();
    }

    #[tokio::test]
    async fn a_gateway_that_does_not_answer_is_none() {
        assert!(ask(Ipv4Addr::new(127, 0, 77, 2), Ipv4Addr::LOCALHOST, 41_641).await.is_none());
    }

    #[test]
    fn only_translated_addresses_are_worth_a_mapping() {
        for (ip, worth) in
            [([10, 0, 0, 1], true), ([100, 64, 0, 1], true), ([100, 128, 0, 1], false), ([8, 8, 8, 8], false)]
        {
            assert_eq!(is_translated(ip.into()), worth, "{ip:?}");
        }
    }
}
