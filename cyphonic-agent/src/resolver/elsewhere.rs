//! Where else the host's own DNS servers stand, where `resolv.conf` does not tell them.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::edit::without;
use super::resolv_conf::nameservers_of;
use super::resolved::STUBS;
use super::text::nameservers;

/// systemd-resolved's servers, without its stub.
const RESOLVED: &str = "systemd/resolve/resolv.conf";

/// Each is written for resolv.conf to link to: systemd-resolved's, NetworkManager's, resolvconf's.
const PLACES: [&str; 3] = [RESOLVED, "NetworkManager/no-stub-resolv.conf", "resolvconf/resolv.conf"];

/// Other programs' folders, as seen by our server.
#[derive(Debug, Clone)]
pub(super) struct Elsewhere {
    run: PathBuf,
    own: IpAddr,
}

impl Elsewhere {
    pub(super) fn new(run: &Path, own: IpAddr) -> Self {
        Self { run: run.to_owned(), own }
    }

    /// A file that resolv.conf may link to, and what it says besides our server: it may have been made of our
    /// edit.
    pub(super) fn original(&self) -> Option<(PathBuf, String)> {
        PLACES.iter().map(|place| self.run.join(place)).find_map(|place| {
            if !nameservers_of(&place).iter().any(|server| self.is_of_use(server)) {
                return None;
            }
            let text = fs::read_to_string(&place).ok()?;
            Some((place, without(&text, self.own).map_or(text, |rest| rest.text)))
        })
    }

    /// The servers of a resolv.conf, glibc's default where it names none. systemd-resolved's stub stands for
    /// the servers that it asks itself, which may be none yet: it takes whom resolv.conf names for one of
    /// these, so we would ask each other without end. `None` where the stub is named and systemd-resolved
    /// is not there.
    pub(super) fn servers(&self, text: &str) -> Option<Vec<SocketAddr>> {
        let named = nameservers(text);
        if named.is_empty() {
            return Some(vec![([127, 0, 0, 1], 53).into()]);
        }
        let place = self.run.join(RESOLVED);
        if named.iter().any(is_stub) && !place.exists() {
            return None;
        }
        let mut servers = Vec::new();
        for server in named {
            let behind = if is_stub(&server) { nameservers_of(&place) } else { vec![server] };
            for server in behind {
                // Both stubs lead to the same.
                if self.is_of_use(&server) && !servers.contains(&server) {
                    servers.push(server);
                }
            }
        }
        Some(servers)
    }

    /// Those that a resolv.conf names, whoever listens there.
    pub(super) fn named(&self, text: &str) -> Vec<SocketAddr> {
        nameservers(text).into_iter().filter(|server| server.ip() != self.own).collect()
    }

    fn is_of_use(&self, server: &SocketAddr) -> bool {
        server.ip() != self.own && !is_stub(server)
    }
}

fn is_stub(server: &SocketAddr) -> bool {
    STUBS.contains(&server.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 55));

    fn write(run: &Path, place: &str, text: &str) {
        let path = run.join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_stub_stands_for_the_servers_behind_it() {
        let run = tempfile::tempdir().unwrap();
        let elsewhere = Elsewhere::new(run.path(), OWN);
        let servers = |text: &str| {
            let servers = elsewhere.servers(text)?;
            Some(servers.iter().map(|server| server.ip().to_string()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(servers("search lan\n").unwrap(), "127.0.0.1");
        assert_eq!(servers("nameserver 127.0.0.53\n"), None, "it is not there");
        for nobody in ["# No DNS servers known.\n", "nameserver 127.0.0.55\n"] {
            write(run.path(), RESOLVED, nobody);
            assert_eq!(servers("nameserver 127.0.0.53\n").unwrap(), "", "it asks nobody, or us");
        }
        assert_eq!(servers("nameserver 127.0.0.54\nnameserver 192.0.2.9\n").unwrap(), "192.0.2.9");
        write(run.path(), RESOLVED, "nameserver 127.0.0.55\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n");
        let both = "nameserver 127.0.0.53\nnameserver 127.0.0.54\nnameserver 192.0.2.9\n";
        assert_eq!(servers(both).unwrap(), "192.0.2.1 192.0.2.2 192.0.2.9");
    }

    #[test]
    fn only_a_file_that_names_somebody_can_be_an_original() {
        let run = tempfile::tempdir().unwrap();
        let elsewhere = Elsewhere::new(run.path(), OWN);
        assert_eq!(elsewhere.original(), None);
        let made_of_ours = "# NetworkManager\nnameserver 127.0.0.55\nnameserver 192.0.2.1\n";
        write(run.path(), PLACES[1], made_of_ours);
        write(run.path(), PLACES[2], "nameserver 192.0.2.2\n");
        for stranger in ["nameserver 127.0.0.55\n", "nameserver 127.0.0.53\n", ""] {
            write(run.path(), PLACES[0], stranger);
            let (place, text) = elsewhere.original().unwrap();
            assert_eq!(
                (place, text.as_str()),
                (run.path().join(PLACES[1]), "# NetworkManager\nnameserver 192.0.2.1\n")
            );
        }
    }
}
