//! Scenes: parts of one topology that are built by themselves.
//!
//! A scene lists its nodes, and what they need follows: a host's networks, and those on which two of its
//! nodes meet. A router has no interface on a network where nobody else of the scene is, so that one `core`
//! joins the sites of every scene and each scene builds its own sites only.

use std::collections::{BTreeMap, BTreeSet};

use super::{Interface, Topology, TopologyError};

/// The scene that is built where none is named.
pub const DEFAULT_SCENE: &str = "paper";

impl Topology {
    /// The part of this topology that a scene lists, validated by itself.
    ///
    /// # Errors
    /// There is no such scene (the message lists those that are there), or its nodes do not make a whole: one
    /// of them is not in the file, or needs a gateway or a network that the scene leaves out.
    pub fn scene(&self, name: &str) -> Result<Self, TopologyError> {
        let nodes = self.scenes.get(name).ok_or_else(|| {
            TopologyError::unknown("--scene", "scene", name, self.scenes.keys().map(String::as_str))
        })?;
        self.part(nodes).map_err(|error| error.within(&format!("scenes.{name}")))
    }

    /// The scene called [`DEFAULT_SCENE`], or everything in a file that has no scene of that name.
    ///
    /// # Errors
    /// As [`Self::scene`].
    pub fn default_scene(&self) -> Result<Self, TopologyError> {
        if self.scenes.contains_key(DEFAULT_SCENE) { self.scene(DEFAULT_SCENE) } else { Ok(self.clone()) }
    }

    fn part(&self, nodes: &[String]) -> Result<Self, TopologyError> {
        let mut listed = BTreeSet::new();
        for node in nodes.iter().map(String::as_str) {
            if !self.nodes().any(|known| known == node) {
                return Err(TopologyError::unknown("nodes", "node", node, self.nodes()));
            }
            if !listed.insert(node) {
                return Err(TopologyError::invalid("nodes", format!("`{node}` stands twice")));
            }
        }
        let networks = self.networks_of(&listed);
        let kept = |interface: &Interface| networks.contains(interface.network.as_str());
        let mut part = Self {
            version: self.version,
            networks: pick(&self.networks, |name| networks.contains(name)),
            routers: pick(&self.routers, |name| listed.contains(name)),
            hosts: pick(&self.hosts, |name| listed.contains(name)),
            profiles: self.profiles.clone(),
            scenes: BTreeMap::new(),
        };
        for router in part.routers.values_mut() {
            router.interfaces.retain(kept);
        }
        // A route through a network that is not there leads to what is not there either.
        let reachable = part.clone();
        for router in part.routers.values_mut() {
            let interfaces = router.interfaces.clone();
            router
                .routes
                .retain(|route| interfaces.iter().any(|interface| reachable.on_link(interface, route.via)));
        }
        for profile in part.profiles.values_mut() {
            profile.links.retain(|link, _| {
                link.split_once('@')
                    .is_some_and(|(node, network)| listed.contains(node) && networks.contains(network))
            });
        }
        part.validate()?;
        Ok(part)
    }

    /// The networks of listed hosts, and those on which two listed nodes are.
    fn networks_of(&self, listed: &BTreeSet<&str>) -> BTreeSet<&str> {
        let needed = |network: &str| {
            let members = self.members(network);
            let mut members = members.iter().filter(|member| listed.contains(member.node)).peekable();
            members.peek().is_some_and(|first| self.hosts.contains_key(first.node)) || members.count() > 1
        };
        self.networks.keys().map(String::as_str).filter(|network| needed(network)).collect()
    }
}

fn pick<V: Clone>(from: &BTreeMap<String, V>, keep: impl Fn(&str) -> bool) -> BTreeMap<String, V> {
    let kept = from.iter().filter(|(name, _)| keep(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "version: 1
networks:
  wan: { ipv4: 198.51.100.0/24 }
  left-lan: { ipv4: 192.168.0.0/24 }
  right-lan: { ipv4: 192.168.1.0/24 }
routers:
  core:
    interfaces: [ { network: wan, ipv4: 198.51.100.1 }, { network: left-lan, ipv4: 192.168.0.1 }, { network: right-lan, ipv4: 192.168.1.1 } ]
    routes: [ { to: 10.0.0.0/8, via: 192.168.1.2 } ]
hosts:
  server: { gateway: core, interfaces: [ { network: wan, ipv4: 198.51.100.2 } ] }
  left: { gateway: core, interfaces: [ { network: left-lan, ipv4: 192.168.0.2 } ] }
  right: { gateway: core, interfaces: [ { network: right-lan, ipv4: 192.168.1.2 } ] }
profiles:
  zero: {}
  far: { core@left-lan: { delay: 1ms }, right@right-lan: { delay: 1ms } }
scenes:
  west: [core, server, left]
  east: [core, right]
";

    #[test]
    fn a_scene_has_its_nodes_and_what_they_need_and_nothing_else() {
        let west = Topology::parse(FILE).unwrap().scene("west").unwrap();
        assert_eq!(west.nodes().collect::<Vec<_>>(), ["core", "left", "server"]);
        assert_eq!(west.networks.keys().collect::<Vec<_>>(), ["left-lan", "wan"]);
        assert_eq!(west.interfaces("core").len(), 2);
        assert!(west.routers["core"].routes.is_empty());
        assert_eq!(west.profiles["far"].links.keys().collect::<Vec<_>>(), ["core@left-lan"]);
        let east = Topology::parse(FILE).unwrap().scene("east").unwrap();
        assert_eq!(east.routers["core"].routes.len(), 1);
        assert_eq!(east.profiles["far"].links.keys().collect::<Vec<_>>(), ["right@right-lan"]);
    }

    #[test]
    fn a_scene_that_is_no_whole_is_refused_with_its_name() {
        let error =
            |from: &str, to: &str| Topology::parse(&FILE.replacen(from, to, 1)).unwrap_err().to_string();
        let twice = error("west: [core, server, left]", "west: [core, core]");
        assert!(twice.contains("scenes.west") && twice.contains("stands twice"), "{twice}");
        let unknown = error("east: [core, right]", "east: [core, wrong]");
        assert!(unknown.contains("scenes.east") && unknown.contains("`wrong`"), "{unknown}");
        let gateway = error("east: [core, right]", "east: [right]");
        assert!(gateway.contains("scenes.east.hosts.right.gateway"), "{gateway}");
    }

    #[test]
    fn without_a_name_the_papers_scene_is_meant_or_else_the_whole_file() {
        let whole = Topology::parse(FILE).unwrap();
        assert_eq!(whole.default_scene().unwrap(), whole);
        let named = Topology::parse(&FILE.replacen("west:", "paper:", 1)).unwrap();
        assert_eq!(named.default_scene().unwrap(), named.scene("paper").unwrap());
        assert!(whole.scene("south").unwrap_err().to_string().contains("east, west"));
    }
}
