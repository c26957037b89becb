//! Asks the host's gateway to let the node's port in: by PCP or NAT-PMP, or by UPnP IGD where it speaks
//! neither.
//!
//! One task, for as long as the engine runs. It asks when the node looks at its network, renews at half of
//! what was granted, and takes the mapping back when the agent stops. Nothing waits for it, and no gateway is
//! as good as one that refuses.

mod pcp;
mod route;
mod upnp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use cyphonic_dataplane::udp::UdpPort;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use self::route::{here, is_translated};

/// What is asked for. Short, so that a gateway forgets soon what a crashed agent could not take back.
const LIFETIME: Duration = Duration::from_secs(20 * 60);

/// The least that is waited for a renewal, whatever a gateway grants.
const LEAST_RENEWAL: Duration = Duration::from_secs(15);

/// Between attempts to renew that fail.
const RETRY: Duration = Duration::from_secs(60);

/// How long the agent's stop waits for the gateway.
const FAREWELL: Duration = Duration::from_secs(2);

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
    port: NonZeroU16,
    mapping: Mapping,
    /// The gateway did not renew it.
    is_refused: bool,
}

/// The mapping, by the protocol that it was granted by.
enum Mapping {
    Pcp(pcp::Mapping),
    // It has a gateway's whole description.
    Upnp(Box<upnp::Mapping>),
}

/// Runs until it is told to stop. `report` gets the outer endpoints whenever they change.
pub(super) async fn keep_mapped<R, F>(port: Arc<UdpPort>, mut orders: mpsc::Receiver<Order>, report: R)
where
    R: Fn(Vec<SocketAddr>) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut granted: Option<Granted> = None;
    loop {
        let renewal = granted.as_ref().map(|granted| granted.renew_in());
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Look) if granted.is_none() => match first_look(&port, &mut orders).await {
                    Some(found) => granted = found,
                    None => return,
                },
                Some(Order::Look) => granted = look(&port, granted).await,
                Some(Order::Stop) | None => return take_back(granted).await,
            },
            () = wait(renewal) => granted = renew(granted).await,
        }
        let outer = match &granted {
            Some(granted) => granted.outer_endpoint().await,
            None => None,
        };
        report(outer.into_iter().collect()).await;
    }
}

/// Asks while nothing is granted: a gateway that does not answer takes seconds, and neither the end nor
/// another network waits for it. None at the end.
async fn first_look(port: &UdpPort, orders: &mut mpsc::Receiver<Order>) -> Option<Option<Granted>> {
    loop {
        tokio::select! {
            found = look(port, None) => return Some(found),
            order = orders.recv() => match order {
                Some(Order::Look) => {}
                Some(Order::Stop) | None => return None,
            },
        }
    }
}

async fn wait(renewal: Option<Duration>) {
    match renewal {
        Some(renewal) => sleep(renewal).await,
        None => std::future::pending().await,
    }
}

/// Asks the gateway there is now. A mapping that stands there is renewed, which also finds out whether it
/// still does: another request for the same port would be refused (RFC 6887 §11.3).
async fn look(port: &UdpPort, granted: Option<Granted>) -> Option<Granted> {
    let (gateway, client) = here(port)?;
    match granted {
        Some(granted) if (granted.gateway, granted.client) == (gateway, client) => renew(Some(granted)).await,
        _ => ask(gateway, client, NonZeroU16::new(port.local_port())?).await,
    }
}

async fn ask(gateway: Ipv4Addr, client: Ipv4Addr, port: NonZeroU16) -> Option<Granted> {
    let mapping = match pcp::Mapping::ask(gateway, client, port).await {
        Ok(mapping) => Mapping::Pcp(mapping),
        Err(error) => {
            tracing::debug!(%error, "the gateway maps no port by PCP or NAT-PMP");
            match upnp::Mapping::ask(gateway, client, port).await {
                Ok(mapping) => Mapping::Upnp(Box::new(mapping)),
                Err(error) => {
                    tracing::debug!(error, "the gateway maps no port by UPnP");
                    return None;
                }
            }
        }
    };
    Some(Granted { gateway, client, port, mapping, is_refused: false })
}

async fn renew(granted: Option<Granted>) -> Option<Granted> {
    let mut granted = granted?;
    if granted.is_refused {
        return ask(granted.gateway, granted.client, granted.port).await;
    }
    let renewed = match &mut granted.mapping {
        Mapping::Pcp(mapping) => mapping.renew().await,
        Mapping::Upnp(mapping) => mapping.renew().await,
    };
    match renewed {
        Ok(()) => Some(granted),
        Err(error) => {
            tracing::debug!(%error, "the gateway does not renew its mapping of the port");
            // The mapping may stand yet: it is asked for anew after a pause, not in a hurry.
            granted.is_refused = true;
            Some(granted)
        }
    }
}

impl Granted {
    fn renew_in(&self) -> Duration {
        let left = match &self.mapping {
            Mapping::Pcp(mapping) => mapping.left(),
            Mapping::Upnp(mapping) => mapping.left(),
        };
        let half = (left / 2).max(LEAST_RENEWAL);
        if self.is_refused { RETRY.min(half) } else { half }
    }

    /// Where the port is reached from outside. An address that is private itself leads no further than to the
    /// next NAT.
    async fn outer_endpoint(&self) -> Option<SocketAddr> {
        let outer = match &self.mapping {
            Mapping::Pcp(mapping) => mapping.outer().await,
            Mapping::Upnp(mapping) => mapping.outer().await,
        };
        outer.filter(|outer| match outer.ip() {
            IpAddr::V4(ip) => !is_translated(ip) && !ip.is_unspecified(),
            IpAddr::V6(_) => false,
        })
    }
}

async fn take_back(granted: Option<Granted>) {
    let Some(granted) = granted else { return };
    let taken = async {
        match granted.mapping {
            Mapping::Pcp(mapping) => mapping.take_back().await,
            Mapping::Upnp(mapping) => mapping.take_back().await,
        }
    };
    match timeout(FAREWELL, taken).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error, "the port mapping stays until it ends"),
        Err(_) => tracing::debug!("the gateway did not answer: the port mapping stays until it ends"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;

    const PORT: NonZeroU16 = NonZeroU16::new(41_641).unwrap();

    /// A gateway that speaks PCP (RFC 6887 §7, §11.1), and maps every port to itself. Tells the lifetimes it
    /// is asked for.
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
        let granted = ask(gateway, client, PORT).await;
        let outer = granted.as_ref().unwrap().outer_endpoint().await;
        assert_eq!(outer, Some("203.0.113.9:41641".parse().unwrap()));
        let left = granted.as_ref().unwrap().renew_in();
        assert!(left > LIFETIME / 3 && left <= LIFETIME / 2, "{left:?}");
        let granted = renew(granted).await;
        take_back(granted).await;
        let lifetimes = [asked.recv().await, asked.recv().await, asked.recv().await];
        assert_eq!(lifetimes, [Some(1_200), Some(1_200), Some(0)], "asked, renewed, taken back");
        server.abort();
    }

    /// Neither the end nor another network waits for the pause between attempts.
    #[tokio::test]
    async fn a_gateway_that_does_not_renew_is_asked_anew_after_a_pause_that_nobody_waits_for() {
        let (gateway, client) = (Ipv4Addr::new(127, 0, 77, 3), Ipv4Addr::LOCALHOST);
        let open = async || UdpSocket::bind((gateway, crab_nat::GATEWAY_PORT)).await.unwrap();
        let (sender, mut asked) = mpsc::channel(16);
        let server = tokio::spawn(serve_pcp(open().await, sender.clone()));
        let granted = ask(gateway, client, PORT).await;
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        let granted = renew(granted).await.expect("the mapping may stand yet");
        assert!(granted.is_refused && granted.renew_in() <= RETRY, "{:?}", granted.renew_in());
        let server = tokio::spawn(serve_pcp(open().await, sender));
        let granted = renew(Some(granted)).await.expect("it is there again");
        assert!(!granted.is_refused && granted.renew_in() > RETRY);
        assert_eq!([asked.recv().await, asked.recv().await], [Some(1_200); 2]);
        server.abort();
    }

    #[tokio::test]
    async fn a_gateway_that_does_not_answer_is_none() {
        assert!(ask(Ipv4Addr::new(127, 0, 77, 2), Ipv4Addr::LOCALHOST, PORT).await.is_none());
    }
}
