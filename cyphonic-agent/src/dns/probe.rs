//! Questions by which servers of the host show that they ask us in turn. Pure.
//!
//! Each server is asked for a name that nobody has and nobody else is asked for. If a question for it comes
//! to us, it came from that server, by whatever way.
//!
//! The name has two random labels and nothing else:
//!
//! - Not below the overlay's zone: a server may well ask us for that zone alone, as operations.md has it, and
//!   the network's servers need not know the zone's name.
//! - Not below `invalid`, `test` or `resolver.arpa`: many servers answer these themselves (RFC 6761, 9462).
//! - Not a single label, which dnsmasq's `domain-needed` stops.
//!
//! CoreDNS (`loop`) and dnsmasq (`dns-loop-detect`) do the same.

use std::net::SocketAddr;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};

/// Which web pages cannot have a browser ask for.
const KIND: RecordType = RecordType::TXT;

/// One round of questions, one for each server.
#[derive(Debug, Default)]
pub(super) struct Probes(Vec<Probe>);

#[derive(Debug)]
struct Probe {
    server: SocketAddr,
    name: Name,
    came_back: bool,
}

impl Probes {
    /// The names are made of `random`, one after the other.
    pub(super) fn of(servers: &[SocketAddr], mut random: impl FnMut() -> u64) -> Self {
        let probe = |server: &SocketAddr| {
            let (first, second) = (random(), random() as u32);
            // Letters and digits: a name for certain.
            let name = Name::from_ascii(format!("{first:016x}.{second:08x}.")).unwrap_or_default();
            Probe { server: *server, name, came_back: false }
        };
        Self(servers.iter().map(probe).collect())
    }

    pub(super) fn query_for(&self, server: SocketAddr) -> Option<Message> {
        let probe = self.0.iter().find(|probe| probe.server == server)?;
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(probe.name.clone(), KIND));
        Some(query)
    }

    /// Whether this question, which somebody has asked us, is one of these.
    pub(super) fn take(&mut self, question: &Query) -> bool {
        let probe = self.0.iter_mut().find(|probe| {
            // Not the root, which is everybody's.
            question.query_type() == KIND && *question.name() == probe.name && !probe.name.is_root()
        });
        probe.map(|probe| probe.came_back = true).is_some()
    }

    pub(super) fn came_back(&self, server: SocketAddr) -> bool {
        self.0.iter().any(|probe| probe.server == server && probe.came_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_server_that_was_asked_for_a_name_can_have_sent_it_back() {
        let servers: [SocketAddr; 2] = ["192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap()];
        let mut number = 0;
        let mut probes = Probes::of(&servers, || {
            number += 1;
            number
        });
        let question = |probes: &Probes, server: usize| {
            let query = probes.query_for(servers[server]).unwrap();
            assert!(query.metadata.recursion_desired);
            query.queries[0].clone()
        };
        let (first, second) = (question(&probes, 0), question(&probes, 1));
        assert_eq!(first.name().num_labels(), 2);
        assert_ne!(first.name(), second.name());
        let mut by_a_browser = second.clone();
        by_a_browser.set_query_type(RecordType::A);
        let other = Query::query(Name::from_ascii("example.com.").unwrap(), KIND);
        assert!(!probes.take(&by_a_browser) && !probes.take(&other));
        // Servers may change letters' case (0x20).
        let upper = Name::from_ascii(second.name().to_ascii().to_uppercase()).unwrap();
        assert!(probes.take(&Query::query(upper, KIND)));
        assert_eq!(servers.map(|server| probes.came_back(server)), [false, true]);
    }
}
