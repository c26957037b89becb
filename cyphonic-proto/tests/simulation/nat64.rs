//! A device with an IPv6 address alone, whose port reaches IPv4 through its network's translator: to the node
//! it is a device that has no IPv4 address of its own, and is seen from one.

use std::net::SocketAddr;
use std::time::Duration;

use cyphonic_proto::netcheck::Findings;
use cyphonic_proto::node::Service;

use crate::cloud::addresses;
use crate::moves::Families;
use crate::net::Gate::{self, Firewall, Open, PortRestricted, Symmetric};
use crate::paths::pair;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

impl World {
    /// A device's port learns of a translator of this kind, and its network check asks two services through
    /// it.
    fn translate(&mut self, name: &'static str, kind: Gate) {
        let translator = self.new_uplinks(Some(kind), None);
        let host = self.hosts.get_mut(name).unwrap();
        let own: Vec<SocketAddr> = host.uplinks.iter().map(|uplink| uplink.own).collect();
        host.uplinks.extend(translator);
        let (life, routes) = (host.life, Families(host.uplinks.clone()));
        self.with_node(name, life, |node, now| node.handle_addresses(now, &own, &routes));
        self.run(SECOND);
        let now = self.now;
        let translator = self.hosts.get_mut(name).unwrap().uplinks.last_mut().unwrap();
        let [nms, trs] = [Service::Nms, Service::Trs("trs.lab".into())].map(|service| addresses(&service)[0]);
        let observations = [nms, trs].map(|server| (server, translator.outbound(now, server))).to_vec();
        let findings = Findings { observations, ..Findings::default() };
        self.with_node(name, life, |node, now| node.handle_findings(now, findings));
        self.run(SECOND);
    }
}

#[test]
fn a_device_without_an_ipv4_address_meets_peers_without_ipv6_as_if_it_were_behind_a_nat() {
    for (translator, peer, direct) in [
        (PortRestricted, PortRestricted, true),
        (PortRestricted, Open, true),
        (Symmetric, Open, true),
        (Symmetric, PortRestricted, false),
    ] {
        for (asks, asked) in [("a", "b"), ("b", "a")] {
            let mut world = pair([None, Some(Firewall)], [Some(peer), None]);
            world.resolves(asks, asked).unwrap();
            world.run(3 * SECOND);
            assert!(!world.is_direct(asks), "without the translator they share no IP version");
            world.translate("a", translator);
            assert!(world.talk(asks, asked, 5 * SECOND));
            world.run(5 * SECOND);
            assert_eq!(world.is_direct(asks), direct, "{translator:?} {peer:?}: {:?}", world.path(asks));
            assert!(world.talk(asked, asks, SECOND));
        }
    }
}
