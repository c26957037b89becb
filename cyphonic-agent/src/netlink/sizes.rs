//! What the host knows of tunnels' inner MTUs: the interface's MTU and routes'.
//!
//! The interface's MTU is a capacity: the largest that any tunnel carries, and never below what it was at
//! first. What a peer's path carries stands on a route of its own to that peer, and the overlay's route says
//! what is sent to a peer of whom nothing is known. So TCP announces the right segment size from the first
//! packet on, UDP is fragmented where it must be, and both follow when a route changes; Packet Too Big is for
//! what was on its way by then.
//!
//! A veth pair drops without a word what arrives above its MTU. There the capacity is at least what peers
//! were told that they may send: each direction has an inner MTU of its own.
//!
//! Replacing a route also forgets what the kernel has learnt from Packet Too Big for its destinations, so a
//! path that has become wider is used at once.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use cyphonic_proto::address::Prefix;
use netlink_packet_route::route::{RouteAttribute, RouteMetric};
use rustix::io::Errno;

use super::{Interface, Netlink, NetlinkError, Placement, is};

/// The sizes of one virtual interface, as the host was told.
#[derive(Debug)]
pub struct Sizes {
    interface: String,
    index: u32,
    /// What frames of the packet path are addressed to; empty where there are none.
    link_address: Vec<u8>,
    placement: Placement,
    /// What is sent to peers of whom nothing is known.
    first: u16,
    /// The least MTU of the interface.
    least: u16,
    /// The interface's MTU.
    present: u16,
    /// Peers with a route of their own.
    routes: BTreeMap<Ipv6Addr, u16>,
}

impl Sizes {
    /// Of an interface that was [configured](Netlink::configure) with the MTU `first`.
    pub fn new(name: String, interface: &Interface, placement: Placement, first: u16) -> Self {
        Self {
            interface: name,
            index: interface.index,
            link_address: interface.link_address.clone(),
            placement,
            first,
            least: first,
            present: first,
            routes: BTreeMap::new(),
        }
    }

    /// The interface must take packets of this size from peers, whatever is sent to them: from the next
    /// [`apply`](Self::apply) on.
    #[must_use]
    pub fn receiving(mut self, most: u16) -> Self {
        self.least = self.first.max(most);
        self
    }

    /// The interface's MTU, as it was told.
    pub fn interface_mtu(&self) -> u16 {
        self.present
    }

    /// Has interface and routes say what each peer's tunnel carries: `wanted` has the peers with a tunnel.
    ///
    /// # Errors
    /// What the kernel refused. The rest is tried again by the next call.
    pub async fn apply(
        &mut self,
        netlink: &Netlink,
        wanted: &BTreeMap<Ipv6Addr, u16>,
    ) -> Result<(), NetlinkError> {
        let capacity = wanted.values().copied().fold(self.least, u16::max);
        if capacity != self.present {
            netlink.set_mtu(&self.interface, u32::from(capacity)).await?;
            self.present = capacity;
            // With the interface the kernel changes routes that had its MTU; none is as it was known.
            self.routes.values_mut().for_each(|mtu| *mtu = 0);
            netlink.route_with_mtu(self, self.overlay(), self.first).await?;
        }
        let gone: Vec<Ipv6Addr> =
            self.routes.keys().filter(|peer| !self.needs(wanted, peer)).copied().collect();
        for peer in gone {
            netlink.unroute(self, peer).await?;
            self.routes.remove(&peer);
        }
        for (peer, mtu) in wanted {
            if self.needs(wanted, peer) && self.routes.get(peer) != Some(mtu) {
                netlink.route_with_mtu(self, (*peer, 128), *mtu).await?;
                self.routes.insert(*peer, *mtu);
            }
        }
        Ok(())
    }

    /// Configures the interface again where it is not as it was: whoever sets it down, or takes IPv6 from it
    /// for a moment, takes its address and all routes. IPv6 that is still off is left off. True if it was
    /// so; then nothing of what [`apply`](Self::apply) did stands. With another link-layer address it
    /// would drop all that tunnels bring: it gets its own back. A pair's far end that is down leads
    /// nowhere: it is brought up again. When it goes down, the interface loses its carrier, by which that
    /// is noticed.
    ///
    /// # Errors
    /// What the kernel refused. The next call tries again.
    pub async fn restore(&mut self, netlink: &Netlink) -> Result<bool, NetlinkError> {
        if netlink.keep_link_address(&self.interface, &self.link_address).await? {
            tracing::warn!(
                "somebody changed the virtual interface's link-layer address: it was changed back"
            );
        }
        if netlink.keep_far_end_up(&self.interface).await? {
            tracing::warn!("somebody set the virtual interface's far end down: it was brought up again");
        }
        if netlink.is_configured(&self.interface, self.placement).await? {
            self.keep_mtu(netlink).await?;
            return Ok(false);
        }
        netlink.configure_again(&self.interface, self.placement, u32::from(self.first)).await?;
        self.present = self.first;
        self.routes.clear();
        Ok(true)
    }

    /// The interface's MTU is the agent's: with a smaller one it would drop what tunnels bring, silently.
    async fn keep_mtu(&mut self, netlink: &Netlink) -> Result<(), NetlinkError> {
        let mtu = netlink.interface(&self.interface).await?.map(|interface| interface.mtu);
        if mtu.is_some_and(|mtu| mtu != u32::from(self.present)) {
            netlink.set_mtu(&self.interface, u32::from(self.present)).await?;
            tracing::warn!("somebody changed the virtual interface's MTU: it was changed back");
            // Routes that had the interface's MTU were changed with it: `apply` puts them right.
            self.routes.values_mut().for_each(|mtu| *mtu = 0);
            netlink.route_with_mtu(self, self.overlay(), self.first).await?;
        }
        Ok(())
    }

    /// A peer for whom the overlay's route is right needs none of its own.
    fn needs(&self, wanted: &BTreeMap<Ipv6Addr, u16>, peer: &Ipv6Addr) -> bool {
        wanted.get(peer).is_some_and(|mtu| *mtu != self.first)
    }

    /// What the overlay's route is to.
    fn overlay(&self) -> (Ipv6Addr, u8) {
        (self.placement.prefix.address(), Prefix::LENGTH)
    }
}

impl Netlink {
    async fn route_with_mtu(
        &self,
        sizes: &Sizes,
        destination: (Ipv6Addr, u8),
        mtu: u16,
    ) -> Result<(), NetlinkError> {
        let mut route = sizes.placement.route_to(destination, sizes.index);
        route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(u32::from(mtu))]));
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(|error| NetlinkError::step("give a route's MTU to", &sizes.interface, error))
    }

    async fn unroute(&self, sizes: &Sizes, destination: Ipv6Addr) -> Result<(), NetlinkError> {
        let route = sizes.placement.route_to((destination, 128), sizes.index);
        match self.handle.route().del(route).execute().await {
            // Somebody else has taken it.
            Err(error) if is(&error, Errno::SRCH) => Ok(()),
            removed => {
                removed.map_err(|error| NetlinkError::step("take a route from", &sizes.interface, error))
            }
        }
    }
}
