//! Lets the kernel look routes up for the program.
//!
//! See [`ROUTING_INTERFACE`](cyphonic_common::relay::map::ROUTING_INTERFACE): forwarding is switched on for
//! loopback alone, and off again at the end if it was off. Whoever switches it off for the whole host
//! switches it off there too. The host keeps the default routes that routers announced to it: see
//! [`DefaultRoutes`].

use std::ffi::OsStr;
use std::path::PathBuf;
use std::{fs, io};

use super::XdpError;
use super::pins::Pins;

/// The settings that were changed. Undone by [`Routing::restore`], and by dropping unless they are kept: a
/// relay that does not start leaves the host as it found it.
#[derive(Debug, Default)]
pub(super) struct Routing {
    changed: Vec<&'static str>,
    kept: bool,
}

impl Drop for Routing {
    fn drop(&mut self) {
        if !self.kept {
            self.restore(None);
        }
    }
}

impl Routing {
    /// Switches it on for both families, and returns those for which it was off. A host without IPv6 has no
    /// setting for it.
    pub(super) fn enable(&mut self, pins: Option<&Pins>) -> Result<Vec<&'static str>, XdpError> {
        let mut switched = Vec::new();
        for family in ["ipv4", "ipv6"] {
            let path = setting(family);
            let Ok(value) = fs::read_to_string(&path) else { continue };
            let marker = pins.map(|pins| pins.changed(family));
            if value.trim() == "0" {
                let _routes = (family == "ipv6").then(DefaultRoutes::keep).transpose()?;
                fs::write(&path, "1").map_err(|source| XdpError::Routing { path, source })?;
                // Without it a killed relay's successor would not know; the setting then stays on.
                let _ = marker.map(fs::create_dir);
                self.note(family);
                switched.push(family);
            } else if marker.is_some_and(|marker| marker.is_dir()) {
                self.note(family);
            }
        }
        Ok(switched)
    }

    fn note(&mut self, family: &'static str) {
        if !self.changed.contains(&family) {
            self.changed.push(family);
        }
    }

    /// What an earlier process changed.
    pub(super) fn left(pins: &Pins) -> Self {
        Self {
            changed: ["ipv4", "ipv6"].into_iter().filter(|family| pins.changed(family).is_dir()).collect(),
            kept: true,
        }
    }

    /// From here on, what is dropped is a relay whose program goes on.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// Leaves the settings as they were found, by whichever process.
    pub(super) fn restore(&self, pins: Option<&Pins>) {
        let left = |family: &str| pins.is_some_and(|pins| pins.changed(family).is_dir());
        let families = ["ipv4", "ipv6"].into_iter();
        for family in families.filter(|family| self.changed.contains(family) || left(family)) {
            if let Err(error) = fs::write(setting(family), "0") {
                tracing::warn!(%error, family, "forwarding on loopback stays on");
            }
            let _ = pins.map(|pins| fs::remove_dir(pins.changed(family)));
        }
    }
}

/// When IPv6 forwarding goes on for one interface, the kernel takes from all of them the default routes that
/// routers announced, but for those that hear routers also while they forward (2 in `accept_ra`;
/// `rt6_purge_dflt_routers` of `net/ipv6/route.c`). So all that hear them do that, for as long as this lives.
/// Where nothing is forwarded it makes no difference, so it does no harm if the process is killed meanwhile.
struct DefaultRoutes(Vec<PathBuf>);

impl DefaultRoutes {
    fn keep() -> Result<Self, XdpError> {
        let mut kept = Self(Vec::new());
        let Ok(interfaces) = fs::read_dir("/proc/sys/net/ipv6/conf") else { return Ok(kept) };
        for interface in interfaces.flatten().filter(|entry| is_an_interface(&entry.file_name())) {
            let path = interface.path().join("accept_ra");
            if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
                match fs::write(&path, "2") {
                    Ok(()) => kept.0.push(path),
                    // Gone since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(XdpError::DefaultRoutes { path, source }),
                }
            }
        }
        Ok(kept)
    }
}

impl Drop for DefaultRoutes {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::write(path, "1")
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "the setting stays 2 instead of 1");
            }
        }
    }
}

/// Whether settings are those of an interface, and not of the one that hears no router.
fn is_an_interface(name: &OsStr) -> bool {
    ["all", "default", "lo"].iter().all(|other| name != *other)
}

fn setting(family: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/conf/lo/forwarding"))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use nix::net::if_::if_nametoindex;
    use nix::sched::{CloneFlags, unshare};
    use socket2::{Domain, Protocol, Socket, Type};

    use super::*;

    fn ip(line: &str) -> String {
        let output = Command::new("ip").args(line.split(' ')).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A router's announcement that it leads to the world (RFC 4861 §4.2), from this interface to all nodes
    /// on its link.
    fn announce_router(interface: &str) {
        const LIFETIME: [u8; 2] = 1800u16.to_be_bytes();
        let index = if_nametoindex(interface).unwrap();
        let all_nodes = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        socket.set_multicast_if_v6(index).unwrap();
        // The kernel puts the checksum in.
        let [high, low] = LIFETIME;
        let announcement = [134, 0, 0, 0, 64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
        socket.send_to(&announcement, &all_nodes.into()).unwrap();
    }

    /// Needs root.
    #[test]
    fn default_routes_that_routers_announced_stay() {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link add card0 type veth peer name router0");
            ip("link add deaf0 type veth peer name deaf1");
            let hears =
                |interface: &str| PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra"));
            for (interface, value) in [("card0", "1"), ("deaf0", "0"), ("deaf1", "2")] {
                fs::write(hears(interface), value).unwrap();
            }
            for (interface, address) in [("card0", "fe80::2"), ("router0", "fe80::1")] {
                ip(&format!("link set {interface} addrgenmode none up"));
                ip(&format!("addr add {address}/64 dev {interface} nodad"));
            }
            let routes = || ip("-6 route show default");
            let deadline = Instant::now() + Duration::from_secs(30);
            while !routes().contains("proto ra") {
                assert!(Instant::now() < deadline, "no default route: {}", routes());
                announce_router("router0");
                std::thread::sleep(Duration::from_millis(10));
            }
            let mut routing = Routing::default();
            assert_eq!(routing.enable(None).unwrap(), ["ipv4", "ipv6"]);
            let left = routes();
            assert!(left.contains("default via fe80::1 dev card0 proto ra"), "{left:?}");
            for (interface, value) in [("card0", "1\n"), ("deaf0", "0\n"), ("deaf1", "2\n")] {
                assert_eq!(fs::read_to_string(hears(interface)).unwrap(), value, "{interface}");
            }
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    }

    /// Needs root.
    #[test]
    fn what_was_changed_for_a_relay_that_does_not_start_is_changed_back() {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let read = || ["ipv4", "ipv6"].map(|family| fs::read_to_string(setting(family)).unwrap());
            let (off, on) = (["0\n"; 2], ["1\n"; 2]);
            assert_eq!(read(), off);
            let enabled = |switched: &[&str]| {
                let mut routing = Routing::default();
                assert_eq!(routing.enable(None).unwrap(), switched);
                assert_eq!(read(), on);
                routing
            };
            let both = ["ipv4", "ipv6"];
            drop(enabled(&both));
            assert_eq!(read(), off);
            let mut started = enabled(&both);
            started.keep();
            drop(started);
            assert_eq!(read(), on);
            drop(enabled(&[]));
            assert_eq!(read(), on, "somebody else's");

            let mut routing = enabled(&[]);
            fs::write(setting("ipv6"), "0").unwrap();
            assert_eq!(routing.enable(None).unwrap(), ["ipv6"]);
            assert_eq!(routing.enable(None).unwrap(), [""; 0]);
            assert_eq!(read(), on);
            drop(routing);
            assert_eq!(read(), ["1\n", "0\n"], "as somebody wanted it meanwhile");
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    }
}
