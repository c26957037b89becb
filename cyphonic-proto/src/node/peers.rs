//! Peers: the devices that this one has to do with.
//!
//! However many ask for a peer (`interest`), there is one attempt at it (`attempts`), which leaves out what
//! has failed (`failures`).

mod attempts;
mod failures;
mod interest;

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use attempts::Redial;
pub(super) use attempts::{Attempt, Retry};
use failures::Failures;
pub(super) use interest::WANTED;

use super::paths::ProbeBudget;
use super::{CloseCode, Node, ResolveError, Target, Timer, config};
use crate::backoff::Backoff;
use crate::id::{QueryId, SetupId, TunnelId};
use crate::message::{NAMES_A_NOTICE, RevocationNotice};
use crate::{address, name};

/// How long an address that is no device's is told of, so that a mistyped name can be looked into.
const NOBODY_SHOWN: Duration = Duration::from_secs(10 * 60);

/// A device that this one has to do with.
pub(super) struct Peer {
    pub(super) fqdn: Option<String>,
    /// Newest set-up first.
    pub(super) tunnels: Vec<TunnelId>,
    /// Questions that wait.
    queries: Vec<QueryId>,
    /// Packets are held.
    held: bool,
    /// A tunnel broke or grew old while in use.
    pub(super) wanted: bool,
    /// Tunnels that it refused after all, since it was last heard in one.
    pub(super) refusals: u32,
    pub(super) attempt: Option<Attempt>,
    backoff: Backoff,
    pub(super) failures: Failures,
    redial: Redial,
    /// The NMS knew of no such device, and nothing has told of one since.
    is_nobody: bool,
    /// How many packets it may have this node send to where it says that it is.
    pub(super) probes: ProbeBudget,
    pub(super) last_error: Option<ResolveError>,
    pub(super) since: Instant,
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            fqdn: None,
            tunnels: Vec::new(),
            queries: Vec::new(),
            held: false,
            wanted: false,
            refusals: 0,
            attempt: None,
            backoff: Backoff::default(),
            failures: Failures::default(),
            redial: Redial::No,
            is_nobody: false,
            probes: ProbeBudget::of_peer(now),
            last_error: None,
            since: now,
        }
    }

    fn is_wanted(&self) -> bool {
        !self.queries.is_empty() || self.held || self.wanted
    }

    pub(super) fn is_sought(&self) -> bool {
        self.is_wanted() || self.attempt.is_some()
    }

    /// Whether the attempt at it has come to this set-up.
    pub(super) fn carries_out(&self, setup: SetupId) -> bool {
        self.attempt == Some(Attempt::Setup(setup))
    }

    /// The attempts for those who waited are over: the next ones' are the first again.
    fn begin_anew(&mut self) {
        self.backoff.reset();
        self.redial = Redial::No;
    }
}

impl Node {
    /// Whether this is the node itself, or a peer that it has not forgotten.
    pub fn is_acquainted(&self, address: Ipv6Addr) -> bool {
        address == self.own || self.peers.contains_key(&address)
    }

    /// An address turned out to be no device's a while ago: unless it is one's now, nothing is told of it any
    /// more.
    pub(super) fn nobody_due(&mut self, now: Instant, address: Ipv6Addr) {
        let Some(peer) = self.peers.get(&address).filter(|peer| peer.is_nobody) else { return };
        let is_expected = self.setups.values().any(|setup| setup.peer == address);
        if is_expected || !self.is_idle(address, peer) {
            self.timers.set(Timer::Nobody(address), now + NOBODY_SHOWN);
            return;
        }
        self.peers.remove(&address);
        self.changed();
    }

    /// The peer's entry, made if need be.
    pub(super) fn note_peer(
        &mut self,
        now: Instant,
        address: Ipv6Addr,
        fqdn: Option<String>,
    ) -> Result<(), ResolveError> {
        if !self.peers.contains_key(&address) {
            self.make_room_for_peer()?;
        }
        let peer = self.peers.entry(address).or_insert_with(|| Peer::new(now));
        if fqdn.is_some() {
            peer.fqdn = fqdn;
        }
        Ok(())
    }

    /// The operator resets the tunnels of one peer, or all: they close, and what failed before is tried
    /// again.
    pub fn handle_reset(&mut self, now: Instant, target: Option<Target>) {
        let chosen: Vec<_> = match target {
            None => self.peers.keys().copied().collect(),
            Some(target) => self.locate(target).map(|(address, _)| vec![address]).unwrap_or_default(),
        };
        for address in chosen {
            let why = "the operator reset the tunnel";
            self.part_from(now, address, CloseCode::Reset, why, ResolveError::Cancelled { why: why.into() });
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.failures.forgive();
                peer.last_error = None;
            }
        }
        self.changed();
    }

    /// Devices that had these names are members no longer.
    pub(super) fn peers_revoked(&mut self, now: Instant, notice: &RevocationNotice) {
        for name in notice.fqdn.iter().take(NAMES_A_NOTICE) {
            let Ok((address, _)) = self.locate(Target::Name(name.clone())) else { continue };
            let why = "the peer's device was revoked";
            self.part_from(now, address, CloseCode::Revoked, why, ResolveError::NoSuchPeer);
        }
    }

    /// Ends everything that is with a peer or on the way to it.
    fn part_from(
        &mut self,
        now: Instant,
        address: Ipv6Addr,
        code: CloseCode,
        why: &str,
        error: ResolveError,
    ) {
        self.give_up(now, address, error);
        let setups = self.setups.values().filter(|setup| setup.peer == address).map(|setup| setup.id);
        for setup in setups.collect::<Vec<_>>() {
            self.drop_setup(setup, why);
        }
        self.end_tunnels(now, address, code);
    }

    /// A peer's tunnels.
    pub(super) fn tunnels_with(&self, address: Ipv6Addr) -> Vec<TunnelId> {
        let tunnels = self.tunnels.iter().filter(|(_, tunnel)| tunnel.peer == address);
        tunnels.map(|(id, _)| *id).collect()
    }

    fn end_tunnels(&mut self, now: Instant, address: Ipv6Addr, code: CloseCode) {
        for tunnel in self.tunnels_with(address) {
            self.remove_tunnel(now, tunnel, Some(code));
        }
    }

    pub(super) fn locate(&self, target: Target) -> Result<(Ipv6Addr, Option<String>), ResolveError> {
        match target {
            Target::Name(text) => {
                let fqdn =
                    name::canonical_in_zone(&text, &self.config.zone).map_err(|_| ResolveError::NotInZone)?;
                let address = address::virtual_address(self.prefix, self.config.identity.network_id, &fqdn);
                Ok((address, Some(fqdn)))
            }
            Target::Address(address) if self.prefix.contains(address) => Ok((address, None)),
            Target::Address(_) => Err(ResolveError::NotInZone),
        }
    }

    fn make_room_for_peer(&mut self) -> Result<(), ResolveError> {
        if self.peers.len() < config::MAX_PEERS {
            return Ok(());
        }
        // A tunnel is to find its peer here when it is installed, though only the other end wants it.
        let expected: BTreeSet<_> = self.setups.values().map(|setup| setup.peer).collect();
        let may_go =
            |address: &Ipv6Addr, peer: &Peer| self.is_idle(*address, peer) && !expected.contains(address);
        let idle = self.peers.iter().filter(|(address, peer)| may_go(address, peer));
        let address = idle.min_by_key(|(_, peer)| peer.since).map(|(address, _)| *address);
        let address =
            address.ok_or_else(|| ResolveError::TooMany { what: "peers are in use already".into() })?;
        self.peers.remove(&address);
        self.timers.clear(&Timer::Nobody(address));
        Ok(())
    }

    fn is_idle(&self, address: Ipv6Addr, peer: &Peer) -> bool {
        peer.tunnels.is_empty() && !peer.is_sought() && !self.keeps_open(address)
    }
}
