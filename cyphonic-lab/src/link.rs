//! From networks to cables.
//!
//! A network with two members is one cable between them. One with more (or with a property on both of its
//! ends) is a bridge in the lab's switch namespace with a cable to each member. A cable is a veth pair,
//! unless its link has properties: then it is a pair of TAP devices that the [emulator](crate::emulator)
//! joins.

use crate::topology::validate::SWITCH;
use crate::topology::{Link, Member, Profile, Topology, Way};

/// What has to be made so that every network of the topology exists.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) bridges: Vec<Bridge>,
    pub(crate) cables: Vec<Cable>,
}

/// A bridge in the switch namespace, named after its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bridge {
    pub(crate) network: String,
    pub(crate) mtu: u16,
    pub(crate) ports: Vec<String>,
}

/// A cable between two interfaces.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cable {
    pub(crate) ends: [End; 2],
    pub(crate) mtu: u16,
    /// What happens to frames from the first end to the second, and back.
    pub(crate) ways: [Way; 2],
}

impl Cable {
    /// Whether it does nothing that a cable does not.
    pub(crate) fn is_plain(&self) -> bool {
        self.ways.iter().all(|way| *way == Way::default())
    }
}

/// An interface on a node (or on the switch).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) node: String,
    pub(crate) device: String,
}

impl Plan {
    pub(crate) fn new(topology: &Topology, profile: &Profile) -> Self {
        let mut plan = Self::default();
        let mut ports = 0;
        for (name, network) in &topology.networks {
            let members = topology.members(name);
            let link = |member: &Member<'_>| profile.links.get(&format!("{}@{name}", member.node)).copied();
            let links: Vec<Link> = members.iter().map(|member| link(member).unwrap_or_default()).collect();
            match (members.as_slice(), links.as_slice()) {
                ([first, second], [link, other]) if link.is_plain() || other.is_plain() => {
                    // A link is its node's: the way up is the one from there.
                    let (link, ends) = if link.is_plain() {
                        (other, [End::of(second), End::of(first)])
                    } else {
                        (link, [End::of(first), End::of(second)])
                    };
                    plan.cables.push(Cable { ends, mtu: network.mtu, ways: link.ways() });
                }
                _ => {
                    let mut bridge = Bridge { network: name.clone(), mtu: network.mtu, ports: Vec::new() };
                    for (member, link) in members.iter().zip(links) {
                        // Network names have no capitals, so a port is never called like a bridge.
                        let device = format!("P{ports}");
                        ports += 1;
                        bridge.ports.push(device.clone());
                        let port = End { node: SWITCH.to_owned(), device };
                        let ends = [End::of(member), port];
                        plan.cables.push(Cable { ends, mtu: network.mtu, ways: link.ways() });
                    }
                    plan.bridges.push(bridge);
                }
            }
        }
        plan
    }
}

impl End {
    fn of(member: &Member<'_>) -> Self {
        Self { node: member.node.to_owned(), device: member.device.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPOLOGY: &str = "
version: 1
networks:
  pair: { ipv4: 10.0.0.0/24 }
  many: { ipv4: 10.0.1.0/24 }
routers:
  r:
    interfaces: [ { network: pair, ipv4: 10.0.0.1 }, { network: many, ipv4: 10.0.1.1 } ]
hosts:
  x: { interfaces: [ { network: pair, ipv4: 10.0.0.2 } ] }
  y: { interfaces: [ { network: many, ipv4: 10.0.1.2 } ] }
  z: { interfaces: [ { network: many, ipv4: 10.0.1.3 } ] }
profiles:
  zero: {}
  one: { r@pair: { delay: 1ms } }
  both: { r@pair: { delay: 1ms }, x@pair: { loss: 1% } }
";

    fn plan(profile: &str) -> Plan {
        let topology = Topology::parse(TOPOLOGY).unwrap();
        Plan::new(&topology, topology.profile(profile).unwrap())
    }

    fn ends(cable: &Cable) -> String {
        let [a, b] = &cable.ends;
        format!("{}/{}-{}/{}", a.node, a.device, b.node, b.device)
    }

    #[test]
    fn two_members_share_a_cable_and_more_share_a_bridge() {
        let plan = plan("zero");
        let cables: Vec<String> = plan.cables.iter().map(ends).collect();
        assert_eq!(cables, ["r/many-switch/P0", "y/lan0-switch/P1", "z/lan0-switch/P2", "x/lan0-r/pair"]);
        assert_eq!(plan.bridges.len(), 1);
        assert_eq!(plan.bridges[0].ports, ["P0", "P1", "P2"]);
    }

    #[test]
    fn one_link_property_stays_on_the_cable_and_two_need_a_bridge_between_them() {
        let one = plan("one");
        assert_eq!((one.bridges.len(), one.cables.iter().filter(|cable| !cable.is_plain()).count()), (1, 1));
        let both = plan("both");
        assert_eq!(
            (both.bridges.len(), both.cables.iter().filter(|cable| !cable.is_plain()).count()),
            (2, 2)
        );
    }

    #[test]
    fn the_way_up_is_from_the_links_node() {
        for node in ["r", "x"] {
            let link = format!("one: {{ {node}@pair: {{ loss: 1%, up: {{ delay: 7ms }} }} }}");
            let topology =
                Topology::parse(&TOPOLOGY.replace("one: { r@pair: { delay: 1ms } }", &link)).unwrap();
            let plan = Plan::new(&topology, topology.profile("one").unwrap());
            let cable = plan.cables.iter().find(|cable| !cable.is_plain()).unwrap();
            assert_eq!(cable.ends[0].node, node);
            let [up, down] = cable.ways;
            assert_eq!((up.delay.as_millis(), up.loss.fraction()), (7, 0.0));
            assert_eq!((down.delay.as_millis(), down.loss.fraction()), (0, 0.01));
        }
    }
}
