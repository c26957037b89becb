//! What the agent asks of the kernel's routing tables (rtnetlink).
//!
//! The virtual interface gets the device's address as a /128 and one route, the overlay's prefix; in a table of
//! its own, with a rule that leads there, where it is not the one that the host's programs use
//! ([`placement`]). Nothing else of the host's addresses, routes or rules is ever touched.

mod candidates;
mod ipv6;
mod placement;
mod sizes;
mod veth;
mod watch;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use cyphonic_proto::address::Prefix;
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
pub use placement::{Placement, Senders};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;
pub use sizes::Sizes;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Duration, Instant, sleep};
pub use veth::far_end;
pub use watch::{Change, NetworkWatch};

/// The local route is there within a millisecond on an idle machine.
const LOCAL_ROUTE_WAIT: Duration = Duration::from_secs(2);
const LOCAL_ROUTE_POLL: Duration = Duration::from_millis(2);

/// A connection to rtnetlink. Needs a tokio runtime.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    /// One list at a time: the kernel refuses a second on the same socket (EBUSY).
    lists: Mutex<()>,
    task: AbortHandle,
}

/// A network interface as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its link-layer address; empty where it has none.
    pub link_address: Vec<u8>,
}

/// How the host is attached to networks: two that differ mean that it has moved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attachment {
    /// See [`Netlink::candidates`].
    pub addresses: Vec<IpAddr>,
    /// The interfaces that these are on.
    links: Vec<u32>,
}

/// What the host has of network cards at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkCards {
    /// Those that may carry the node's packets now.
    pub usable: Vec<NetworkCard>,
    /// Those by which others' packets come in, hardware or not, up or not: all but the overlay's, also of other agents, and
    /// loopback's.
    pub entrances: Vec<NetworkCard>,
    /// The numbers of all interfaces that exist, with a carrier and addresses or without.
    pub existing: HashSet<u32>,
}

/// A network card, or what is like one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkCard {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub index: u32,
}

impl Netlink {
    /// Opens the connection.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Connect)?;
        let task = tokio::spawn(connection).abort_handle();
        Ok(Self { handle, lists: Mutex::default(), task })
    }

    /// The interface of this name, if there is one.
    pub async fn interface(&self, name: &str) -> Result<Option<Interface>, NetlinkError> {
        Ok(self.link(name).await?.map(|link| interface(&link)))
    }

    /// Gives a new interface IPv6, its MTU, address and route, and brings it up. Doing it again changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// Says which step failed. The steps before it stay done.
    pub async fn configure(
        &self,
        name: &str,
        placement: Placement,
        mtu: u32,
    ) -> Result<Interface, NetlinkError> {
        self.require(name).await?;
        ipv6::allow(name)?;
        self.configure_again(name, placement, mtu).await
    }

    /// As [`configure`](Self::configure), but for IPv6 that somebody has taken from the interface since: that
    /// is their choice.
    async fn configure_again(
        &self,
        name: &str,
        placement: Placement,
        mtu: u32,
    ) -> Result<Interface, NetlinkError> {
        let index = self.require(name).await?.index;
        let step = |what| move |error| NetlinkError::step(what, name, error);
        let ipv6_step = |what| move |error| NetlinkError::ipv6_step(what, name, error);
        // Before it is up, so that the kernel's own first packets fit.
        let link = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        self.handle.link().change(link).execute().await.map_err(step("bring up"))?;
        let mut add = self.handle.address().add(index, IpAddr::V6(placement.address), 128).replace();
        // A name's address is unique by construction: duplicate address detection would only delay it.
        add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        add.execute().await.map_err(ipv6_step("give an address to"))?;
        // A kernel without rules has no other tables either, and would put the route among the host's.
        if placement.senders == Senders::Own {
            self.add_rule(name, index, placement.address).await?;
        }
        let route = placement.route_to((placement.prefix.address(), Prefix::LENGTH), index);
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(ipv6_step("route the overlay to"))?;
        self.await_local_route(placement.address).await?;
        self.require(name).await
    }

    /// Whether an interface is as [`configure`](Self::configure) leaves it, whatever its MTU is.
    ///
    /// # Errors
    /// The kernel does not list links, addresses or routes.
    pub async fn is_configured(&self, name: &str, placement: Placement) -> Result<bool, NetlinkError> {
        let Some(Interface { index, up: true, .. }) = self.interface(name).await? else { return Ok(false) };
        let addresses = self.addresses().await?;
        let given = AddressAttribute::Address(placement.address.into());
        let has_address = addresses
            .iter()
            .any(|address| address.header.index == index && address.attributes.contains(&given));
        let is_led_to = match placement.senders {
            Senders::Host => true,
            Senders::Own => self.has_rule(index, placement.address).await?,
        };
        let is_routed = self.routes().await?.iter().any(|route| placement.is_route(route, index));
        Ok(has_address && is_led_to && is_routed)
    }

    /// The kernel takes an address as its own a moment after it was given (it installs the local route from a
    /// work queue) and silently drops what arrives for it before.
    async fn await_local_route(&self, address: Ipv6Addr) -> Result<(), NetlinkError> {
        let started = Instant::now();
        while started.elapsed() < LOCAL_ROUTE_WAIT {
            if self.routes().await?.iter().any(|route| is_local(route, address)) {
                return Ok(());
            }
            sleep(LOCAL_ROUTE_POLL).await;
        }
        tracing::warn!(
            "the kernel has not taken the virtual address as local yet: first packets may be lost"
        );
        Ok(())
    }

    /// Changes an interface's MTU.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        let index = self.require(name).await?.index;
        let link = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle
            .link()
            .change(link)
            .execute()
            .await
            .map_err(|error| NetlinkError::step("set the MTU of", name, error))
    }

    /// Gives an interface back the link-layer address that it had; true if it had another one.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub(super) async fn keep_link_address(&self, name: &str, address: &[u8]) -> Result<bool, NetlinkError> {
        let interface = self.require(name).await?;
        if interface.link_address == address {
            return Ok(false);
        }
        let link = LinkUnspec::new_with_index(interface.index).address(address.to_vec()).build();
        let changed = self.handle.link().change(link).execute().await;
        changed.map_err(|error| NetlinkError::step("give back the link-layer address of", name, error))?;
        Ok(true)
    }

    /// Removes an interface; false if there is none of this name.
    pub async fn remove(&self, name: &str) -> Result<bool, NetlinkError> {
        let Some(link) = self.link(name).await? else { return Ok(false) };
        self.handle
            .link()
            .del(link.header.index)
            .execute()
            .await
            .map_err(|error| NetlinkError::step("remove", name, error))?;
        Ok(true)
    }

    /// This host's own addresses that a peer may try, best first: of interfaces that are up and have a
    /// carrier, other than `own`, and never loopback, link-local, the overlay's, or one that is not
    /// usable yet.
    ///
    /// # Errors
    /// The kernel does not list links or addresses.
    pub async fn candidates(&self, overlay: Prefix, own: &str) -> Result<Vec<IpAddr>, NetlinkError> {
        Ok(self.attachment(overlay, own).await?.addresses)
    }

    /// How the host is attached to networks now.
    ///
    /// # Errors
    /// The kernel does not list links or addresses.
    pub async fn attachment(&self, overlay: Prefix, own: &str) -> Result<Attachment, NetlinkError> {
        let links = self.links().await?;
        let usable = |index: u32| {
            links
                .iter()
                .any(|link| link.header.index == index && may_carry(link) && name_of(link) != Some(own))
        };
        let addresses = self.addresses().await?;
        let found: Vec<_> = addresses
            .iter()
            .filter(|address| usable(address.header.index))
            .filter_map(|address| Some((usable_address(address)?, address.header.index)))
            .collect();
        let addresses = candidates::choose(found.iter().map(|(address, _)| *address), overlay);
        let carries = |(address, _): &&(IpAddr, u32)| addresses.contains(&address.to_canonical());
        let mut links: Vec<_> = found.iter().filter(carries).map(|(_, index)| *index).collect();
        links.sort_unstable();
        links.dedup();
        Ok(Attachment { addresses, links })
    }

    /// The network cards of this host; those that have one of the [`candidates`](Self::candidates) are
    /// usable: hardware, and ends of virtual cables. Bridges, bonds, VLANs and the like have their
    /// packets from other interfaces, and are none.
    pub async fn cards(&self, overlay: Prefix, own: &str) -> Result<NetworkCards, NetlinkError> {
        let addresses = self.addresses().await?;
        let has_candidate = |index: u32| {
            let own = addresses.iter().filter(|address| address.header.index == index);
            !candidates::choose(own.filter_map(usable_address), overlay).is_empty()
        };
        let links = self.links().await?;
        let cards = links.iter().filter(|link| {
            may_carry(link) && is_card(link) && name_of(link) != Some(own) && has_candidate(link.header.index)
        });
        let card = |link: &LinkMessage| {
            Some(NetworkCard { name: name_of(link)?.to_owned(), index: link.header.index })
        };
        let usable = cards.filter_map(card).collect();
        let far = far_end(own);
        let is_own = |link: &LinkMessage| name_of(link).is_some_and(|name| name == own || name == far);
        // What comes by the interface of another agent of this host has passed its tunnels.
        let is_overlays = |link: &LinkMessage| is_own(link) || veth::is_agents(link, &links);
        let entrances = links.iter().filter(|link| !is_overlays(link) && is_entrance(link, &links));
        let entrances = entrances.filter_map(card).collect();
        Ok(NetworkCards { usable, entrances, existing: links.iter().map(|link| link.header.index).collect() })
    }

    async fn links(&self) -> Result<Vec<LinkMessage>, NetlinkError> {
        let _turn = self.lists.lock().await;
        self.handle.link().get().execute().try_collect().await.map_err(NetlinkError::List)
    }

    async fn addresses(&self) -> Result<Vec<AddressMessage>, NetlinkError> {
        let _turn = self.lists.lock().await;
        self.handle.address().get().execute().try_collect().await.map_err(NetlinkError::List)
    }

    /// Those of IPv6.
    async fn routes(&self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let all = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let _turn = self.lists.lock().await;
        self.handle.route().get(all).execute().try_collect().await.map_err(NetlinkError::List)
    }

    async fn require(&self, name: &str) -> Result<Interface, NetlinkError> {
        self.interface(name).await?.ok_or_else(|| NetlinkError::NoInterface { name: name.to_owned() })
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>, NetlinkError> {
        // Asking for one by name answers "no such device" as an error; the list is short.
        Ok(self.links().await?.into_iter().find(|link| name_of(link) == Some(name)))
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn is_local(route: &RouteMessage, address: Ipv6Addr) -> bool {
    let destination = RouteAttribute::Destination(RouteAddress::Inet6(address));
    route.header.kind == RouteType::Local && route.attributes.contains(&destination)
}

/// Whether it is up, has a carrier as far as the driver can tell (RFC 2863's operational state), and leads
/// anywhere.
fn may_carry(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up | LinkFlags::Running)
        && !link.header.flags.contains(LinkFlags::Loopback)
}

/// Hardware has no kind. What containers have in its place, has.
fn is_card(link: &LinkMessage) -> bool {
    link.attributes.iter().all(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().all(|info| match info {
            LinkInfo::Kind(kind) => matches!(kind, InfoKind::Veth | InfoKind::MacVlan | InfoKind::IpVlan),
            _ => true,
        }),
        _ => true,
    })
}

/// Whether others' packets come in there first. A bridge's come in by its ports; virtual ones of those are most
/// often the host's own containers and machines, which may speak to the host by whatever address it has.
fn is_entrance(link: &LinkMessage, all: &[LinkMessage]) -> bool {
    let controller = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => all.iter().find(|other| other.header.index == *index),
        _ => None,
    });
    match kind_of(link) {
        Some(InfoKind::Bridge) => false,
        Some(InfoKind::Veth | InfoKind::Tun) if controller.is_some_and(is_bridge) => false,
        _ => !link.header.flags.contains(LinkFlags::Loopback),
    }
}

fn is_bridge(link: &LinkMessage) -> bool {
    match kind_of(link) {
        Some(InfoKind::Bridge) => true,
        Some(InfoKind::Other(kind)) => kind == "openvswitch",
        _ => false,
    }
}

fn kind_of(link: &LinkMessage) -> Option<&InfoKind> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    })
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn interface(link: &LinkMessage) -> Interface {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let link_address = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.clone()),
        _ => None,
    });
    Interface {
        index: link.header.index,
        mtu: mtu.unwrap_or_default(),
        up: link.header.flags.contains(LinkFlags::Up),
        link_address: link_address.unwrap_or_default(),
    }
}

/// The address of a message, unless it cannot be used (yet) or is about to go.
fn usable_address(message: &AddressMessage) -> Option<IpAddr> {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    if flags.is_some_and(|flags| flags.intersects(unusable)) {
        return None;
    }
    // On a point-to-point link IFA_ADDRESS is the other end and IFA_LOCAL our own.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    debug_assert!(matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6));
    local.or(address)
}

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Connect(io::Error),
    /// Interfaces or addresses cannot be listed.
    #[error("cannot list interfaces and addresses: {0}")]
    List(rtnetlink::Error),
    /// There is no such interface.
    #[error("there is no interface {name:?}: was it removed by someone else?")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// One step failed.
    #[error("cannot {what} the interface {name:?}: {error}{}", hint(error))]
    Step {
        /// `bring up`…
        what: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        error: rtnetlink::Error,
    },
    /// Other interfaces have the names of the virtual interface.
    #[error(
        "there is an interface {near:?} or {far:?} already, which is not this agent's: give this one another name \
         (`interface`), or remove that one with `ip link delete`"
    )]
    Taken {
        /// The virtual interface's.
        near: String,
        /// Its far end's.
        far: String,
    },
    /// One step failed because the interface has no IPv6.
    #[error(
        "cannot {what} the interface {name:?}, for it has no IPv6, which the overlay needs on it: {error}; \
         `sysctl -w net.ipv6.conf.{name}.disable_ipv6=0` allows it, unless the kernel was started with `ipv6.disable=1`"
    )]
    NoIpv6 {
        /// `give an address to`…
        what: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        error: rtnetlink::Error,
    },
    /// Rules of routing cannot be listed or removed.
    #[error("cannot list or remove rules of routing (`ip -6 rule`): {0}")]
    Rules(rtnetlink::Error),
    /// The kernel has no rules of routing.
    #[error(
        "cannot lead what this agent answers to the interface {name:?}: {error}; an agent that stands for a machine needs a \
         kernel with rules of routing (CONFIG_IPV6_MULTIPLE_TABLES)"
    )]
    NoRules {
        /// The interface.
        name: String,
        /// What the kernel said.
        error: rtnetlink::Error,
    },
    /// New interfaces have no IPv6 here, and this one could not be given it.
    #[error(
        "IPv6 is off for the interface {name:?}, which needs it, and cannot be turned on: {source}; \
         `sysctl -w net.ipv6.conf.default.disable_ipv6=0` has new interfaces come with it"
    )]
    Ipv6Stays {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NetlinkError {
    fn step(what: &'static str, name: &str, error: rtnetlink::Error) -> Self {
        Self::Step { what, name: name.to_owned(), error }
    }

    /// Of a step that needs IPv6 on the interface.
    fn ipv6_step(what: &'static str, name: &str, error: rtnetlink::Error) -> Self {
        // Turned off for the interface, and for the kernel as a whole.
        if [Errno::ACCESS, Errno::OPNOTSUPP, Errno::AFNOSUPPORT].iter().any(|errno| is(&error, *errno)) {
            return Self::NoIpv6 { what, name: name.to_owned(), error };
        }
        Self::step(what, name, error)
    }
}

/// What helps against it, where that is known.
fn hint(error: &rtnetlink::Error) -> &'static str {
    if is(error, Errno::PERM) { "; this needs CAP_NET_ADMIN" } else { "" }
}

/// Whether the kernel answered this.
fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(answer) if answer.raw_code() == -errno.raw_os_error())
}
