//! What tunnels' paths carry: a [`search`] for each tunnel's path, driven by what the node hears of it.
//!
//! **Invariants.** A path that nothing is known of is given packets of QUIC's least size only. The inner MTU
//! is never below IPv6's 1,280 bytes, whatever the path carries: the dataplane then sends packets in pieces.

mod search;

use std::net::SocketAddr;
use std::time::Instant;

use cyphonic_common::limits::DEFAULT_INNER_MTU;
use rand::Rng;
pub use search::PathMtu;
pub(super) use search::Search;

use super::tunnels::Tunnel;
use super::{Action, Node, Timer, TunnelActivity};
use crate::ConnectionId;
use crate::id::TunnelId;

/// The inner MTU before anything is known of a path: what one of 1,500 bytes carries, but at most what both
/// ends take.
pub fn first_inner(most_inner: u16) -> u16 {
    most_inner.min(DEFAULT_INNER_MTU as u16)
}

impl Search {
    /// The search of a tunnel that is being installed.
    pub(super) fn begin(now: Instant, remote: SocketAddr, wire_cid: ConnectionId, most_inner: u16) -> Self {
        Self::new((remote, wire_cid), first_inner(most_inner), most_inner, now)
    }
}

impl Node {
    /// Sends the probes that are due for a tunnel, tells the dataplane what is new, and sets the next time.
    pub(super) fn search_mtu(&mut self, now: Instant, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id).filter(|tunnel| tunnel.retires_at.is_none()) else {
            return;
        };
        let path = (tunnel.remote, tunnel.wire_cid);
        if tunnel.search.path() != path {
            tunnel.search.moved(path, now);
            // The dataplane went back to the least size by itself when it was given the path.
            tunnel.mtu = tunnel.search.mtu();
        }
        let rng = &mut self.rng;
        let probes = tunnel.search.poll(now, || rng.random());
        let (mtu, before) = (tunnel.search.mtu(), tunnel.mtu);
        tunnel.mtu = mtu;
        let due = tunnel.search.timeout();
        for probe in probes {
            let (remote, wire_cid) = path;
            let (size, data) = (probe.size, probe.data);
            self.act(Action::ProbeMtu { id, remote, wire_cid, size, data });
        }
        if mtu != before {
            self.act(Action::SetMtu { id, mtu });
            self.changed();
        }
        match due {
            Some(at) => self.timers.set(Timer::Mtu(id), at),
            None => self.timers.clear(&Timer::Mtu(id)),
        }
    }

    /// Begins anew where the tunnel has been given another path, whoever did that.
    pub(super) fn search_new_path(&mut self, now: Instant, id: TunnelId) {
        let moved = |tunnel: &Tunnel| tunnel.search.path() != (tunnel.remote, tunnel.wire_cid);
        if self.tunnels.get(&id).is_some_and(moved) {
            self.search_mtu(now, id);
        }
    }

    /// Whether a response was to a probe.
    pub(super) fn mtu_answered(&mut self, now: Instant, id: TunnelId, data: [u8; 8]) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return false };
        let was_probe = tunnel.search.answered(data, now);
        if was_probe {
            self.search_mtu(now, id);
        }
        was_probe
    }

    /// This host's own interface does not take datagrams of a size: that of the [`Action::ProbeMtu`] with
    /// this data, or that of a tunnel's packets, which the dataplane then sends no larger than it sends
    /// on an unknown path.
    pub fn handle_too_big(&mut self, now: Instant, id: TunnelId, probe: Option<[u8; 8]>) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.search.too_big(probe, now);
            if probe.is_none() {
                // The dataplane went back to the least size by itself.
                tunnel.mtu = tunnel.search.mtu();
            }
            self.search_mtu(now, id);
        }
    }

    /// What the counters say of a tunnel's use.
    pub(super) fn mtu_used(
        &mut self,
        now: Instant,
        id: TunnelId,
        before: TunnelActivity,
        seen: TunnelActivity,
    ) {
        // The listening end sends nothing before it hears the peer.
        let heard = |tunnel: &&mut Tunnel| tunnel.last_rx.is_some();
        let Some(tunnel) = self.tunnels.get_mut(&id).filter(heard) else { return };
        let answered = seen.rx_packets > before.rx_packets || seen.last_rx > before.last_rx;
        if seen.tx_packets > before.tx_packets {
            tunnel.search.used(seen.tx_large > before.tx_large, answered, now);
        }
        self.search_mtu(now, id);
    }
}

impl Tunnel {
    /// What the path carries, for people: with the headers of this end's outer family, which is IPv6 where
    /// this host has no IPv4 address and reaches IPv4 through a translator.
    pub(super) fn outer_mtu(&self, has_ipv4: bool) -> u32 {
        use cyphonic_common::limits::{OUTER_IPV4_LEN, OUTER_IPV6_LEN};
        let by_ipv4 = has_ipv4 && self.remote.ip().to_canonical().is_ipv4();
        let headers = if by_ipv4 { OUTER_IPV4_LEN } else { OUTER_IPV6_LEN };
        u32::from(self.mtu.datagram) + headers as u32
    }
}
