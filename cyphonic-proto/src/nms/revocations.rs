//! Who was revoked: all nodes are told, so that no tunnel with such a device outlives its membership by more
//! than seconds.
//!
//! The NMS does not know who has a tunnel with whom, so it tells everybody who is connected, and for a while
//! those who connect. Who hears of it in neither way asks for a successor of its tunnel within the hour
//! ([`Timing::refresh`]), and then hears that there is no such peer.
//!
//! [`Timing::refresh`]: crate::node::Timing::refresh

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Action, Nms};
use crate::id::Channel;
use crate::message::{Message, NAMES_A_NOTICE, RevocationNotice};

/// Those revoked within this time are told of together: somebody may revoke a hundred devices, and a thousand
/// are connected.
const TOGETHER: Duration = Duration::from_millis(200);
/// How long nodes that connect are told of a revocation: for longer than a tunnel goes without a successor.
pub const REVOCATIONS_REMEMBERED: Duration = Duration::from_secs(2 * 3600);
/// The most that are remembered; the oldest are forgotten first.
const MAX_REMEMBERED: usize = 4096;

/// Revoked devices' names.
#[derive(Default)]
pub(super) struct Revocations {
    /// Nobody was told of these yet.
    fresh: Vec<String>,
    tell_at: Option<Instant>,
    /// These were told of lately, the oldest first.
    told: VecDeque<(Instant, String)>,
}

impl Revocations {
    /// Those of before the start, the oldest first. How old each is makes no difference: to be told for
    /// longer does no harm.
    pub(super) fn of_before(now: Instant, revoked: Vec<String>) -> Self {
        let mut revocations = Self::default();
        revocations.remember(now, revoked.into_iter());
        revocations
    }

    pub(super) fn note(&mut self, now: Instant, fqdn: &str) {
        self.fresh.push(fqdn.into());
        self.tell_at.get_or_insert(now + TOGETHER);
    }

    /// A device has this name now: those who connect may have a tunnel with it. One with the old device gets
    /// a successor within the hour, which is the new one's.
    pub(super) fn forgive(&mut self, fqdn: &str) {
        self.told.retain(|(_, name)| name != fqdn);
    }

    /// When there is something to tell.
    pub(super) fn due(&self) -> Option<Instant> {
        self.tell_at
    }

    /// What everybody is to be told now; [`Self::remember`] says of which.
    fn take(&mut self) -> Vec<String> {
        self.tell_at = None;
        std::mem::take(&mut self.fresh)
    }

    /// Those who come later are to be told of these too.
    fn remember(&mut self, now: Instant, gone: impl Iterator<Item = String>) {
        self.told.extend(gone.map(|name| (now, name)));
        self.forget(now);
    }

    /// What somebody is to be told who was not there.
    fn recent(&mut self, now: Instant) -> Vec<String> {
        self.forget(now);
        self.told.iter().map(|(_, name)| name.clone()).collect()
    }

    fn forget(&mut self, now: Instant) {
        let excess = self.told.len().saturating_sub(MAX_REMEMBERED);
        let old = self
            .told
            .iter()
            .take_while(|(at, _)| now.saturating_duration_since(*at) > REVOCATIONS_REMEMBERED);
        let old = old.count();
        self.told.drain(..old.max(excess));
    }
}

impl Nms {
    pub(super) fn tell_of_revocations(&mut self, now: Instant) {
        let names = self.revocations.take();
        // What a member is called is not remembered: those who come later know the new one.
        let is_member =
            |name: &&String| self.channels.contains_key(*name) || self.is_enrolled(name) == Some(true);
        let gone: Vec<String> = names.iter().filter(|name| !is_member(name)).cloned().collect();
        self.revocations.remember(now, gone.into_iter());
        let registered = self.nodes.iter().filter(|(_, node)| node.registration.is_some());
        for channel in registered.map(|(channel, _)| *channel).collect::<Vec<_>>() {
            self.tell(channel, &names);
        }
    }

    pub(super) fn tell_newcomer_of_revocations(&mut self, now: Instant, channel: Channel) {
        let names = self.revocations.recent(now);
        self.tell(channel, &names);
    }

    /// Whether the node confirms makes no difference: an older one does not know the message.
    fn tell(&mut self, channel: Channel, names: &[String]) {
        for names in names.chunks(NAMES_A_NOTICE) {
            let exchange = self.fresh_exchange();
            let message = Message::RevocationNotice(RevocationNotice { fqdn: names.to_vec() });
            self.counters.revocation_notices += 1;
            self.actions.push_back(Action::Request { channel, exchange, message });
        }
    }
}
