//! What a virtual interface is to its host: whose packets to the overlay go by it.
//!
//! The interface of the agent that the host's programs use has its routes in the main table. Another agent of
//! the host has what it answers, and nothing else, sent by its own: its routes are in a table of its own, and a
//! rule leads there what has its address as the source. Rules are asked in order, so it does not matter what the
//! main table says of the same peer. (Routes by source would do without a rule, but of two to one destination,
//! one of them by source, Linux forgets the other.)

use std::net::{IpAddr, Ipv6Addr};

use cyphonic_proto::address::Prefix;
use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};
use rustix::io::Errno;

use super::{Netlink, NetlinkError, is};

/// Where the rule stands: behind that for the host's own addresses, before the main table and what VPNs put before
/// that (wg-quick 32,764, Tailscale 5,210).
const PRIORITY: u32 = 5_100;

/// The table of an interface is this and its number: "CY", and what nobody numbers by hand.
const TABLES: u32 = 0x4359_0000;

/// What a virtual interface is to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The device's address, which the interface has.
    pub address: Ipv6Addr,
    /// The overlay's, to which it leads.
    pub prefix: Prefix,
    /// Whose packets.
    pub senders: Senders,
}

/// Whose packets to the overlay go by an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Senders {
    /// All of the host's.
    Host,
    /// Those with the interface's address as their source.
    Own,
}

impl Placement {
    /// A route for it.
    pub(super) fn route_to(&self, (destination, length): (Ipv6Addr, u8), interface: u32) -> RouteMessage {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(destination, length)
            .output_interface(interface)
            .pref_source(self.address);
        match self.senders {
            Senders::Host => route.build(),
            Senders::Own => route.table_id(table(interface)).build(),
        }
    }

    /// Whether it is the one to the overlay.
    pub(super) fn is_route(&self, route: &RouteMessage, interface: u32) -> bool {
        let wanted = match self.senders {
            Senders::Host => u32::from(RouteHeader::RT_TABLE_MAIN),
            Senders::Own => table(interface),
        };
        let in_table = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
        let has = |attribute| route.attributes.contains(&attribute);
        in_table.unwrap_or(route.header.table.into()) == wanted
            && route.header.destination_prefix_length == Prefix::LENGTH
            && has(RouteAttribute::Destination(self.prefix.address().into()))
            && has(RouteAttribute::Oif(interface))
    }
}

impl Netlink {
    /// Has what comes from `address` sent by what the table of an interface says.
    pub(super) async fn add_rule(
        &self,
        name: &str,
        interface: u32,
        address: Ipv6Addr,
    ) -> Result<(), NetlinkError> {
        // That of an interface before this one, whose number was another.
        self.remove_rules(address).await?;
        let rule = self.handle.rule().add().v6().source_prefix(address, 128).priority(PRIORITY);
        let rule = rule.table_id(table(interface)).action(RuleAction::ToTable);
        rule.execute().await.map_err(|error| {
            // Without the kernel's option there are no rules at all.
            match [Errno::OPNOTSUPP, Errno::AFNOSUPPORT].iter().any(|errno| is(&error, *errno)) {
                true => NetlinkError::NoRules { name: name.to_owned(), error },
                false => NetlinkError::step("lead what comes from its address to", name, error),
            }
        })
    }

    /// Whether the rule is there.
    pub(super) async fn has_rule(&self, interface: u32, address: Ipv6Addr) -> Result<bool, NetlinkError> {
        let leads = RuleAttribute::Table(table(interface));
        Ok(self.rules_of(address).await?.iter().any(|rule| rule.attributes.contains(&leads)))
    }

    /// Removes the rules of an agent with this address, to whatever interface they led; false if there are none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_rules(&self, address: Ipv6Addr) -> Result<bool, NetlinkError> {
        let rules = self.rules_of(address).await?;
        let any = !rules.is_empty();
        for rule in rules {
            match self.handle.rule().del(rule).execute().await {
                Err(error) if !is(&error, Errno::NOENT) => return Err(NetlinkError::Rules(error)),
                _ => {}
            }
        }
        Ok(any)
    }

    async fn rules_of(&self, address: Ipv6Addr) -> Result<Vec<RuleMessage>, NetlinkError> {
        let from = RuleAttribute::Source(IpAddr::V6(address));
        let _turn = self.lists.lock().await;
        let rules = self.handle.rule().get(IpVersion::V6).execute().try_collect::<Vec<_>>().await;
        let rules = match rules {
            // A kernel without rules has none.
            Err(error) if is(&error, Errno::OPNOTSUPP) || is(&error, Errno::AFNOSUPPORT) => Vec::new(),
            rules => rules.map_err(NetlinkError::Rules)?,
        };
        Ok(rules.into_iter().filter(|rule| is_agents_rule(rule) && rule.attributes.contains(&from)).collect())
    }
}

/// Whether a rule is an agent's.
pub(super) fn is_agents_rule(rule: &RuleMessage) -> bool {
    let leads_to_ours = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Table(table) if table & TABLES == TABLES);
    rule.header.src_len == 128
        && rule.attributes.contains(&RuleAttribute::Priority(PRIORITY))
        && rule.attributes.iter().any(leads_to_ours)
}

const fn table(interface: u32) -> u32 {
    // Numbers of interfaces are small; two that fall together would only share what they lead to.
    TABLES | interface & 0xffff
}
