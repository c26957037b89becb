//! Notices that the host's addresses, links, routes or rules of routing changed: it roamed, or a cable was
//! pulled.
//!
//! Packets are lost from the moment of the change until somebody acts on it, so a burst is not waited for to
//! end: its first message is reported two milliseconds later, with what follows on its heels, and the rest is
//! merged over short pauses, which grow if it does not end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cyphonic_proto::address::Prefix;
use futures_util::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::NetlinkError;
use super::placement::is_agents_rule;

/// The kernel follows up an address with its routes within a millisecond. A packet that leaves earlier is in
/// vain: what answers it may be dropped as nobody's.
const SETTLE: Duration = Duration::from_millis(2);

/// Between two reports of a burst.
const MERGE: Duration = Duration::from_millis(4);

/// A change of network, of both families and with all its routes, has fewer reports than this; after it each
/// pause is twice as long as the one before.
const ORDINARY: u32 = 16;

/// The longest pause: a host whose network never stops changing is told of twice a second.
const MERGE_MOST: Duration = Duration::from_millis(500);

/// What changes within this time of a report is of the same burst.
const BURST: Duration = Duration::from_millis(750);

/// What changed, as far as it matters how to look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Change {
    /// A route, or a rule that leads to some, came or went. Links and addresses one compares with what they
    /// were (the kernel repeats itself whenever a router does); a route that was replaced by another to
    /// the same place looks as before, and may lead elsewhere.
    pub routes: bool,
}

/// A source of "something changed": what, one reads from [`super::Netlink::attachment`].
#[derive(Debug)]
pub struct NetworkWatch {
    seen: Arc<Seen>,
    pace: Pace,
    /// A change was noticed, and is reported then.
    due: Option<Instant>,
    // Aborts its tasks when dropped.
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Seen {
    changed: Notify,
    routes: AtomicBool,
}

impl NetworkWatch {
    /// Subscribes to all but the interfaces of these numbers, the overlay's own, and what leads to the overlay,
    /// as of other agents. Needs a tokio runtime.
    ///
    /// # Errors
    /// No netlink socket can be had.
    pub fn start(own: Vec<u32>, overlay: Prefix) -> Result<Self, NetlinkError> {
        Self::listen(move |message| change_in(message, &own, overlay))
    }

    /// Subscribes to what the interface of this number, the overlay's own, may have lost. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// No netlink socket can be had.
    pub fn of_losses(interface: u32) -> Result<Self, NetlinkError> {
        Self::listen(move |message| loss_in(message, interface))
    }

    fn listen(
        judge: impl Fn(&NetlinkMessage<RouteNetlinkMessage>) -> Option<Change> + Send + 'static,
    ) -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Connect)?;
        let seen = Arc::<Seen>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let noted = seen.clone();
        // Drains the channel at once and keeps two bits, so that a flood of messages costs no memory.
        tasks.spawn(async move {
            while let Some((message, _)) = messages.next().await {
                let Some(change) = judge(&message) else { continue };
                if change.routes {
                    noted.routes.store(true, Ordering::Relaxed);
                }
                noted.changed.notify_one();
            }
        });
        Ok(Self { seen, pace: Pace::default(), due: None, _tasks: tasks })
    }

    /// Returns [`SETTLE`] after the first change, and for those that follow at the pace of [`MERGE`]. Nothing
    /// is missed by whoever drops this before it returns and asks again.
    pub async fn changed(&mut self) -> Change {
        if self.due.is_none() {
            self.seen.changed.notified().await;
            self.due = Some(self.pace.report(Instant::now()));
        }
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        self.due = None;
        Change { routes: self.seen.routes.swap(false, Ordering::Relaxed) }
    }
}

/// When reports may be made.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    /// Reports in this burst.
    reports: u32,
}

impl Pace {
    /// There is something to report; when.
    fn report(&mut self, now: Instant) -> Instant {
        let settled = now + SETTLE;
        let due = match self.last {
            Some(last) if now < last + BURST => {
                let doublings = self.reports.saturating_sub(ORDINARY).min(10);
                let merge = MERGE.saturating_mul(1 << doublings).min(MERGE_MOST);
                self.reports = self.reports.saturating_add(1);
                (last + merge).max(settled)
            }
            Some(_) | None => {
                self.reports = 0;
                settled
            }
        };
        self.last = Some(due);
        due
    }
}

fn change_in(message: &NetlinkMessage<RouteNetlinkMessage>, own: &[u32], overlay: Prefix) -> Option<Change> {
    let foreign = |index: u32| !own.contains(&index);
    let routes = match &message.payload {
        NetlinkPayload::InnerMessage(message) => match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
                if foreign(link.header.index) =>
            {
                false
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address)
                if foreign(address.header.index) =>
            {
                false
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
                if leads_out(route, own, overlay) =>
            {
                true
            }
            // Which of the tables with routes is asked, and when: VPNs bring a table first, and the rule for
            // it later. An agent's leads to the overlay.
            RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule)
                if !is_agents_rule(rule) =>
            {
                true
            }
            _ => return None,
        },
        // The kernel had to drop messages: whatever they said.
        NetlinkPayload::Overrun(_) => true,
        _ => return None,
    };
    Some(Change { routes })
}

fn loss_in(message: &NetlinkMessage<RouteNetlinkMessage>, interface: u32) -> Option<Change> {
    let routes = match &message.payload {
        NetlinkPayload::InnerMessage(message) => match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
                if link.header.index == interface =>
            {
                false
            }
            RouteNetlinkMessage::DelAddress(address) if address.header.index == interface => false,
            RouteNetlinkMessage::DelRoute(route) if leads_through(route, &[interface]) => true,
            // Of whichever agent: that is quickly seen.
            RouteNetlinkMessage::DelRule(rule) if is_agents_rule(rule) => true,
            _ => return None,
        },
        NetlinkPayload::Overrun(_) => true,
        _ => return None,
    };
    Some(Change { routes })
}

/// Routes to the host's own addresses come and go with those, and every interface that comes up, as a
/// container's does, brings some that lead no further than its link.
fn leads_out(route: &RouteMessage, own: &[u32], overlay: Prefix) -> bool {
    let to_others = !matches!(
        route.header.kind,
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast
    );
    to_others && !leads_through(route, own) && !stays_on_link(route) && !leads_to(route, overlay)
}

/// Whether it leads to devices of the overlay only. No service and no peer's endpoint has such an address.
fn leads_to(route: &RouteMessage, overlay: Prefix) -> bool {
    route.header.destination_prefix_length >= Prefix::LENGTH
        && route.attributes.iter().any(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(to)) => overlay.contains(*to),
            _ => false,
        })
}

fn leads_through(route: &RouteMessage, interfaces: &[u32]) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(index) => interfaces.contains(index),
        _ => false,
    })
}

/// Whether it leads to link-local or multicast addresses only: neither a service nor a peer is sent to there.
/// Of IPv4's link-local addresses (169.254.0.0/16) a service may have one.
fn stays_on_link(route: &RouteMessage) -> bool {
    let within = route.header.destination_prefix_length;
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => to.is_multicast() && within >= 4,
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => {
            (to.is_multicast() && within >= 8) || (to.is_unicast_link_local() && within >= 10)
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const OWN: u32 = 7;

    fn overlay() -> Prefix {
        "fd12:3456:789a::/48".parse().unwrap()
    }

    fn route(destination: &str, interface: u32) -> RouteMessage {
        let (address, length) = destination.split_once('/').unwrap();
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.header.destination_prefix_length = length.parse().unwrap();
        let address: IpAddr = address.parse().unwrap();
        // The kernel names no destination in a default route.
        if !address.is_unspecified() {
            route.attributes.push(RouteAttribute::Destination(address.into()));
        }
        route.attributes.push(RouteAttribute::Oif(interface));
        route
    }

    #[test]
    fn routes_that_reach_no_service_and_no_peer_are_no_move() {
        for destination in [
            "0.0.0.0/0",
            "::/0",
            "192.168.1.0/24",
            "169.254.0.0/16",
            "2001:db8::/64",
            "fd99::/64",
            // Those of multicast and link-local addresses are among theirs, and others too.
            "192.0.0.0/2",
            "224.0.0.0/3",
            "fc00::/6",
            "fd12:3456:789a::/47",
            "fe80::/9",
        ] {
            assert!(leads_out(&route(destination, 3), &[OWN], overlay()), "{destination}");
            assert!(
                !leads_out(&route(destination, OWN), &[OWN], overlay()),
                "{destination} by the overlay's interface"
            );
        }
        for destination in [
            "fd12:3456:789a::/48",
            "fd12:3456:789a:1::7/128",
            "fe80::/64",
            "fe80::/10",
            "fe80::7/128",
            "ff00::/8",
            "ff02::1/128",
            "224.0.0.0/4",
        ] {
            assert!(!leads_out(&route(destination, 3), &[OWN], overlay()), "{destination}");
        }
        let mut own_address = route("198.51.100.7/32", 3);
        own_address.header.kind = RouteType::Local;
        assert!(!leads_out(&own_address, &[OWN], overlay()), "comes with its address");
    }

    #[test]
    fn the_first_change_is_reported_soon_and_a_burst_ever_more_rarely() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.report(start), start + SETTLE);
        let (mut now, mut waits) = (start, Vec::new());
        for _ in 0..30 {
            now += Duration::from_millis(1);
            let at = pace.report(now);
            waits.push(at - now);
            now = at;
        }
        assert!(waits[0] <= MERGE + SETTLE, "{waits:?}");
        assert!(waits.windows(2).skip(1).all(|pair| pair[0] <= pair[1]), "{waits:?}");
        assert!(waits.iter().take(16).sum::<Duration>() < Duration::from_millis(100), "{waits:?}");
        assert!(waits[29] <= MERGE_MOST && waits[29] > MERGE_MOST / 2, "{waits:?}");
        assert_eq!(pace.report(now + BURST), now + BURST + SETTLE, "a new burst");
    }
}
