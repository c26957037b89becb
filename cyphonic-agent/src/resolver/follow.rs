//! Keeps `/etc/resolv.conf` ours while other programs write it, too: DHCP clients, NetworkManager, VPNs.
//!
//! The usual case is one write soon after boot, when the network comes after us. A program that insists is
//! not fought: each time that the file is taken back, the next look is twice as far away.
//!
//! systemd-resolved is asked once a minute whether it still knows the zone, which anybody can take from the
//! link, and whether it is still there; and looked for is whether programs still ask it. Where it did not
//! answer at first, and so does not know the zone, it is told as often, until it does.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::resolv_conf::Look;
use super::resolved::{self, Resolved, Restored};
use super::{Host, HostResolver, Lost, nsswitch};
use crate::dns::DnsServer;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// Between two looks at a file that others insist on; and what stood for so long is not insisted on.
const SELDOM: Duration = Duration::from_secs(60);

/// Between two questions to systemd-resolved; and after one that it did not answer, as while it is being
/// restarted.
const ASK_EVERY: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What was done to the host's resolver: one task follows it, `status` asks for it, the stop puts it back.
#[derive(Debug, Clone)]
pub struct SharedResolver(Arc<Mutex<HostResolver>>);

/// What `status` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The way: [`HostResolver::kind`].
    pub kind: &'static str,
    /// [`HostResolver::why`].
    pub why: String,
    /// [`HostResolver::trouble`].
    pub trouble: Option<String>,
    /// [`HostResolver::gap`].
    pub gap: Option<String>,
    /// [`HostResolver::doubt`].
    pub doubt: Option<String>,
}

impl Standing {
    fn of(resolver: &HostResolver) -> Self {
        Self {
            kind: resolver.kind(),
            why: resolver.why(),
            trouble: resolver.trouble(),
            gap: resolver.gap(),
            doubt: resolver.doubt(),
        }
    }
}

impl Default for SharedResolver {
    fn default() -> Self {
        let starting = HostResolver::Untouched { why: "starting".into(), wanted: false };
        Self(Arc::new(Mutex::new(starting)))
    }
}

impl SharedResolver {
    /// This was done.
    pub fn set(&self, resolver: HostResolver) {
        *self.lock() = resolver;
    }

    /// Why nothing was done, though something should be.
    pub fn failure(&self) -> Option<String> {
        match &*self.lock() {
            HostResolver::Untouched { why, wanted: false } => Some(why.clone()),
            HostResolver::Untouched { wanted: true, .. }
            | HostResolver::Resolved { .. }
            | HostResolver::ResolvConf { .. } => None,
        }
    }

    /// How it is now.
    pub async fn standing(&self) -> Standing {
        let shared = self.clone();
        // Reads files.
        tokio::task::spawn_blocking(move || Standing::of(&shared.lock())).await.unwrap_or_else(|error| {
            let (why, trouble) = (error.to_string(), Some(error.to_string()));
            Standing { kind: "none", why, trouble, gap: None, doubt: None }
        })
    }

    /// Follows other programs for as long as it is polled, if there is anything to follow.
    pub async fn follow(self, server: Arc<DnsServer>) {
        let link = match &*self.lock() {
            HostResolver::Resolved { link, .. } => Some(link.clone()),
            HostResolver::ResolvConf { .. } => None,
            HostResolver::Untouched { .. } => return,
        };
        match link {
            Some(link) => self.follow_link(link).await,
            None => self.follow_file(server).await,
        }
    }

    async fn follow_link(self, link: Resolved) {
        loop {
            let pause = if self.restore_link(&link).await { ASK_EVERY } else { ASK_AGAIN };
            tokio::time::sleep(pause).await;
        }
    }

    /// Has systemd-resolved know what it was told, and takes note of where it cannot be had, or is not asked.
    /// True if names of the overlay resolve, at least for programs of the C library.
    pub async fn restore_link(&self, link: &Resolved) -> bool {
        let now = match link.restore().await {
            Ok(Restored { again, taken }) => {
                if again {
                    tracing::info!("systemd-resolved had forgotten the overlay's zone: told again");
                }
                let taken = taken.map(|taken| Lost { why: taken.to_string(), in_part: true });
                self.left_by().or(taken)
            }
            Err(error) => Some(Lost::until_restart(&error.to_string(), false)),
        };
        let resolves = now.as_ref().is_none_or(|lost| lost.in_part);
        if let HostResolver::Resolved { lost, .. } = &mut *self.lock() {
            match &now {
                Some(Lost { why, in_part: false }) if *lost != now => {
                    tracing::error!(why, "names of the overlay do not resolve on this host");
                }
                Some(Lost { why, .. }) if *lost != now => {
                    tracing::warn!(why, "names of the overlay resolve only in part on this host");
                }
                None if lost.is_some() => tracing::info!("systemd-resolved knows the overlay's zone"),
                Some(_) | None => {}
            }
            *lost = now;
        }
        resolves
    }

    /// What became of the file that had programs ask systemd-resolved, if it does no longer.
    fn left_by(&self) -> Option<Lost> {
        let HostResolver::Resolved { asked_by: Some(host), .. } = &*self.lock() else { return None };
        if resolved::is_named(&host.resolv_conf) {
            return None;
        }
        let in_part = nsswitch::asks_resolved(&host.nsswitch);
        let whom = if in_part { "programs that read it themselves" } else { "programs" };
        let why =
            format!("{} does not have {whom} ask systemd-resolved any more", host.resolv_conf.display());
        Some(Lost::until_restart(&why, in_part))
    }

    /// Tells systemd-resolved of the zone where it did not answer, once a minute until it does, and is asked
    /// instead of us. Never returns where there is no reason to.
    pub async fn await_resolved(&self, host: &Host, server: &DnsServer, interface: u32) {
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            if self.return_to_resolved(host, server, interface).await {
                return;
            }
        }
    }

    /// Tells systemd-resolved of the zone where it did not answer, and gives it back the host's programs.
    /// True if it answers now.
    pub async fn return_to_resolved(&self, host: &Host, server: &DnsServer, interface: u32) -> bool {
        if !self.lock().waits_for_resolved() {
            return false;
        }
        let (address, domains) = (server.address(), server.zone().domains());
        let link = match Resolved::apply_if_there(&host.bus, interface, address, &domains).await {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(%error, "systemd-resolved still does not take the zone");
                return false;
            }
        };
        let returned = self.hand_over(&link, host);
        if !returned {
            let _ = link.revert().await;
        }
        returned
    }

    /// True if the file is not ours any more, and has programs ask systemd-resolved. Our server goes on
    /// relaying for those that have read the file before.
    fn hand_over(&self, link: &Resolved, host: &Host) -> bool {
        let mut present = self.lock();
        let HostResolver::ResolvConf { file, .. } = &*present else { return false };
        if let Err(error) = file.restore() {
            tracing::warn!(%error, "systemd-resolved takes the zone now, but resolv.conf cannot be given back to it");
            return false;
        }
        // What somebody else has written since, there or behind the link, is left alone, and taken for the
        // original in a moment.
        if !resolved::is_named(&host.resolv_conf) {
            tracing::debug!("systemd-resolved takes the zone now, but programs are not to ask it any more");
            return false;
        }
        tracing::info!("systemd-resolved takes the overlay's zone now: programs ask it again");
        *present = HostResolver::Resolved { link: link.clone(), asked_by: Some(host.clone()), lost: None };
        true
    }

    async fn follow_file(self, server: Arc<DnsServer>) {
        let mut pace = Pace::default();
        let mut failure = String::new();
        loop {
            tokio::time::sleep(pace.pause).await;
            let (shared, server) = (self.clone(), server.clone());
            let look = tokio::task::spawn_blocking(move || shared.lock().follow(&server)).await;
            let now = Instant::now();
            match look {
                Ok(Ok(Look::Quiet)) => pace.stood(now),
                Ok(Ok(Look::Servers(upstream))) => {
                    tracing::info!("the host's own DNS servers are others now");
                    tracing::debug!(servers = ?upstream.servers(), "other names are relayed to these");
                }
                Ok(Ok(Look::Taken(upstream))) => {
                    if pace.taken(now) {
                        tracing::warn!(
                            next_look_s = pace.pause.as_secs(),
                            "another program keeps writing resolv.conf: ours again, and looked at less often"
                        );
                    } else {
                        tracing::info!(
                            "another program wrote resolv.conf: taken for the original, and ours again"
                        );
                    }
                    tracing::debug!(servers = ?upstream.servers(), "other names are relayed to these");
                    failure.clear();
                }
                Ok(Err(error)) => {
                    pace.taken(now);
                    let error = error.to_string();
                    if failure != error {
                        tracing::warn!(%error, "resolv.conf cannot be looked at, or made ours");
                        failure = error;
                    }
                }
                // The runtime is going.
                Err(_) => return,
            }
        }
    }

    /// Puts everything back, once and for all: what is still being followed then finds nothing to do.
    pub async fn restore(&self) {
        // Waits for a look that is under way.
        let stopping = HostResolver::Untouched { why: "stopping".into(), wanted: true };
        let resolver = mem::replace(&mut *self.lock(), stopping);
        resolver.restore().await;
    }

    /// Whole after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, HostResolver> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lost {
    /// The host may use something else by now.
    fn until_restart(why: &str, in_part: bool) -> Self {
        let why = format!("{why}; `systemctl restart cyphonicd` goes by what this host uses now");
        Self { why, in_part }
    }
}

/// How soon the next look is.
#[derive(Debug)]
struct Pace {
    pause: Duration,
    last: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { pause: EVERY, last: None }
    }
}

impl Pace {
    /// The file was taken back; true if somebody seems to insist.
    fn taken(&mut self, now: Instant) -> bool {
        self.stood(now);
        let insists = self.pause > EVERY;
        self.pause = self.pause.saturating_mul(2).min(SELDOM);
        self.last = Some(now);
        insists
    }

    /// Nothing was to be done.
    fn stood(&mut self, now: Instant) {
        // A taking takes a second look, which is the pause later.
        if self.last.is_some_and(|last| now >= last + SELDOM + 2 * self.pause) {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_insists_is_met_ever_more_rarely_and_a_file_that_stood_is_looked_at_as_before() {
        let start = Instant::now();
        let (mut pace, mut now) = (Pace::default(), start);
        assert!(!pace.taken(now), "the network that comes after us");
        let mut pauses = Vec::new();
        for _ in 0..8 {
            // One look finds the other's file, the next takes it.
            now += 2 * pace.pause;
            pauses.push(pace.pause.as_secs());
            assert!(pace.taken(now));
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        now += SELDOM;
        pace.stood(now);
        assert_eq!(pace.pause, SELDOM, "the next look may find the other's file again");
        now += 2 * SELDOM;
        pace.stood(now);
        assert_eq!(pace.pause, EVERY);
        assert!(!pace.taken(now));
    }
}
