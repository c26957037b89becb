//! The overlay's own NMS answers those that stand in for it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cyphonic_dataplane::sync;
use cyphonic_proto::close;
use cyphonic_proto::message::{FollowRequest, FollowResponse, Message, Refusal, RefusalCode};
use cyphonic_proto::standby::{Facts, MEMBERS_A_RESPONSE, Member, STANDS_IN_AFTER};
use cyphonic_proto::version::{self, VersionMismatch};
use cyphonic_transport::Connection;

use super::Shared;
use super::follower::UNTOLD;
use crate::register::{Register, RegisterError, UnixSeconds};
use crate::seldom::Seldom;
use crate::server::clock::unix_now;

/// Whoever may follow, and who does.
#[derive(Clone)]
pub(in crate::server) struct Followers {
    register: Arc<Register>,
    shared: Shared,
    /// By their certificates' names.
    standbys: Arc<Mutex<BTreeMap<String, Standing>>>,
    /// Of whom, and why; without a reason: that it follows.
    complaints: Arc<Seldom<(String, String)>>,
}

/// How one of them stands.
#[derive(Debug, Default)]
struct Standing {
    visit: Option<Visit>,
    /// When it was last answered; nothing: not since this process began.
    answered: Option<Instant>,
}

impl Standing {
    /// Whether it may have stood in meanwhile.
    fn may_have_stood_in(&self, now: Instant) -> bool {
        self.answered.is_none_or(|at| now.duration_since(at) >= STANDS_IN_AFTER)
    }
}

/// A connection of one.
#[derive(Debug, Clone)]
struct Visit {
    connection: Connection,
    since: UnixSeconds,
}

impl Followers {
    /// These may follow.
    pub(in crate::server) fn new(
        names: impl Iterator<Item = String>,
        register: Arc<Register>,
        shared: Shared,
    ) -> Self {
        let standbys = names.map(|name| (name, Standing::default())).collect();
        let complaints = Arc::new(Seldom::ever_more_rarely());
        Self { register, shared, standbys: Arc::new(Mutex::new(standbys)), complaints }
    }

    /// Since when each of them follows; nothing: it does not.
    pub(in crate::server) fn following(&self) -> BTreeMap<String, Option<UnixSeconds>> {
        let standbys = sync::lock(&self.standbys);
        let since = |standing: &Standing| standing.visit.as_ref().map(|visit| visit.since);
        standbys.iter().map(|(name, standing)| (name.clone(), since(standing))).collect()
    }

    /// Answers one of them until it leaves.
    pub(in crate::server) async fn serve(self, connection: Connection) {
        let Some(identity) = connection.identity().cloned() else { return };
        let name = identity.fqdn;
        let may_have_stood_in = match self.enter(&name, &connection) {
            Ok(may_have_stood_in) => may_have_stood_in,
            Err(reason) => {
                self.complain(&name, reason);
                connection.close(close::NOT_ALLOWED, reason);
                return;
            }
        };
        if self.complaints.is_due((name.clone(), String::new()), unix_now()) {
            tracing::info!(name, remote = %connection.remote_address(), "a standby follows");
        }
        if may_have_stood_in {
            // It sends its nodes away now.
            self.shared.serves.send_replace(true);
        }
        let ended = loop {
            let (message, responder) = match connection.accept_exchange().await {
                Ok(asked) => asked,
                Err(error) => break error.to_string(),
            };
            if u64::try_from(identity.not_after).unwrap_or(0) < unix_now() {
                connection.close(close::DONE, CERTIFICATE_ENDED);
                break CERTIFICATE_ENDED.to_owned();
            }
            let answer = self.answer(&name, message).await;
            self.note_answer(&name);
            if let Err(error) = responder.respond(&answer).await {
                break error.to_string();
            }
        };
        self.leave(&name, &connection, &ended);
    }

    /// One at a time: the newest. Whether it may have stood in until now.
    fn enter(&self, name: &str, connection: &Connection) -> Result<bool, &'static str> {
        let visit = Visit { connection: connection.clone(), since: unix_now() };
        let mut standbys = sync::lock(&self.standbys);
        let standby = standbys.get_mut(name).ok_or(NOT_LISTED)?;
        if let Some(before) = standby.visit.replace(visit) {
            before.connection.close(close::DONE, "it has a newer connection");
        }
        Ok(standby.may_have_stood_in(Instant::now()))
    }

    fn note_answer(&self, name: &str) {
        if let Some(standing) = sync::lock(&self.standbys).get_mut(name) {
            standing.answered = Some(Instant::now());
        }
    }

    fn leave(&self, name: &str, connection: &Connection, reason: &str) {
        let mut standbys = sync::lock(&self.standbys);
        let Some(standby) = standbys.get_mut(name) else { return };
        if standby.visit.as_ref().is_some_and(|newest| newest.connection.id() == connection.id()) {
            standby.visit = None;
            drop(standbys);
            self.complain(name, reason);
        }
    }

    /// Once for each reason, and then ever more rarely: who follows dials again all the time.
    fn complain(&self, name: &str, reason: &str) {
        if self.complaints.is_due((name.to_owned(), reason.to_owned()), unix_now()) {
            tracing::warn!(name, reason, "a standby does not follow");
        }
    }

    async fn answer(&self, name: &str, message: Message) -> Message {
        match message {
            Message::FollowRequest(request) => {
                let server = self.clone();
                let by = name.to_owned();
                let follow = tokio::task::spawn_blocking(move || server.follow(&by, &request));
                let answered =
                    follow.await.unwrap_or_else(|error| Err(Unanswered::Failed(error.to_string())));
                answered.unwrap_or_else(|unanswered| self.refuse(name, unanswered))
            }
            Message::OverlayRequest(_) => Message::OverlayResponse(self.shared.facts.borrow().to_wire()),
            other => Refusal::new(RefusalCode::Malformed, format!("a standby does not ask {}", other.name()))
                .into(),
        }
    }

    fn follow(&self, name: &str, request: &FollowRequest) -> Result<Message, Unanswered> {
        let spoken = version::negotiate(request.protocol_version).map_err(Unanswered::Version)?;
        if let Err(error) = self.count_on(name, request.next_setup) {
            // A standby that is not answered goes on steering set-ups, and so would be refused for good. This run
            // counts on all the same; the next one goes by its clock.
            let error = error.to_string();
            if self.complaints.is_due((String::new(), error.clone()), unix_now()) {
                tracing::error!(error, "the numbers of a standby's set-ups cannot be reserved");
            }
        }
        let members = self.register.members_since(request.revision, MEMBERS_A_RESPONSE)?;
        Ok(Message::FollowResponse(FollowResponse {
            protocol_version: spoken,
            more: members.len() == MEMBERS_A_RESPONSE,
            members: members.iter().map(Member::to_wire).collect(),
            next_setup: self.shared.numbers.next(),
            facts: digest(&self.shared.facts.borrow()),
        }))
    }

    /// Set-ups of this NMS come after those of the standby, also in the next run. One whose clock is far ahead
    /// is not believed: this one's numbers would come to their end.
    fn count_on(&self, name: &str, next: u64) -> Result<(), RegisterError> {
        let own = self.shared.numbers.next();
        // A clock that was ahead when this one started is ahead of what is plausible, too.
        if next <= own || !(Register::is_plausible(next, unix_now()) || counts_on_from(own, next)) {
            if next > own && self.complaints.is_due((name.to_owned(), "numbers".to_owned()), unix_now()) {
                tracing::error!(
                    name,
                    "this standby's clock was far ahead once: tunnels that it sets up get no new keys while it does not stand in. If its clock \
                     is right now, stop it, remove its register.db and what lies beside it, and start it again"
                );
            }
            return Ok(());
        }
        self.shared.numbers.raise(next);
        self.register.reserve_setups_of(next)
    }

    fn refuse(&self, name: &str, unanswered: Unanswered) -> Message {
        let error = unanswered.to_string();
        if self.complaints.is_due((name.to_owned(), error.clone()), unix_now()) {
            tracing::error!(name, error, "a standby could not be answered");
        }
        match unanswered {
            Unanswered::Version(mismatch) => Refusal::new(RefusalCode::Version, mismatch).into(),
            Unanswered::Register(_) | Unanswered::Failed(_) => {
                Refusal::new(RefusalCode::Internal, "the NMS failed; its log says why").into()
            }
        }
    }
}

/// Whether a standby that was told this number last may have got so far.
fn counts_on_from(told: u64, next: u64) -> bool {
    next <= told.saturating_add(2 * UNTOLD)
}

const NOT_LISTED: &str = "it is not one of `standbys` in the configuration of the NMS";
const CERTIFICATE_ENDED: &str = "its certificate has ended: renew it (cyphonic-cloud renew)";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error(transparent)]
    Version(VersionMismatch),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("{0}")]
    Failed(String),
}

/// Other facts have another one, most likely; not for long, and never told to anybody else.
fn digest(facts: &Facts) -> u64 {
    let mut hasher = DefaultHasher::new();
    facts.to_bytes().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn followers(dir: &std::path::Path, next: u64) -> Followers {
        let path = dir.join("register.db");
        let register = if path.exists() { Register::open(&path) } else { Register::create(&path) };
        Followers::new(
            std::iter::empty(),
            Arc::new(register.unwrap()),
            Shared::new(Facts::default(), true, next),
        )
    }

    fn ask(followers: &Followers, next_setup: u64) -> FollowResponse {
        let request = FollowRequest { protocol_version: version::CURRENT, revision: 0, next_setup };
        match followers.follow("nms2", &request) {
            Ok(Message::FollowResponse(response)) => response,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_standby_that_was_not_answered_for_long_may_have_stood_in() {
        let now = Instant::now();
        let answered = |ago: Duration| Standing { visit: None, answered: now.checked_sub(ago) };
        assert!(Standing::default().may_have_stood_in(now), "this one has just started");
        assert!(answered(STANDS_IN_AFTER).may_have_stood_in(now));
        assert!(!answered(STANDS_IN_AFTER / 2).may_have_stood_in(now), "it dials again and again");
    }

    #[test]
    fn a_standby_that_has_steered_set_ups_is_answered_though_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let by_clock = Register::setups_by_clock(unix_now());
        let main = followers(dir.path(), by_clock);
        let full = "CREATE TRIGGER full BEFORE INSERT ON numbers BEGIN SELECT RAISE(ABORT, 'disk full'); END";
        let other = rusqlite::Connection::open(dir.path().join("register.db")).unwrap();
        other.execute_batch(full).unwrap();
        for n in 1..4 {
            ask(&main, by_clock + n);
            assert!(*main.shared.numbers.elsewhere().borrow() >= by_clock + n);
        }
    }

    /// As of a machine whose clock's battery is empty, or that has local time in it.
    #[test]
    fn set_ups_go_on_from_a_standbys_also_where_the_clock_was_ahead_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::create(&dir.path().join("register.db")).unwrap();
        let first = register.reserve_setups(unix_now() + 3_600).unwrap();
        drop(register);
        let main = followers(dir.path(), first);
        let theirs = ask(&main, 0).next_setup + UNTOLD + 500;
        ask(&main, theirs);
        assert!(*main.shared.numbers.elsewhere().borrow() >= theirs);
        let far = theirs + (1 << 60);
        ask(&main, far);
        assert!(*main.shared.numbers.elsewhere().borrow() < far);
    }

    #[test]
    fn set_ups_go_on_from_where_a_standby_has_got_unless_its_clock_is_far_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let by_clock = Register::setups_by_clock(unix_now());
        let ahead = by_clock + 60_000_000_000;
        let first = followers(dir.path(), by_clock - 1_000_000_000_000);
        let raised = first.shared.numbers.elsewhere();
        ask(&first, by_clock - 2_000_000_000_000);
        assert_eq!(*raised.borrow(), by_clock - 1_000_000_000_000, "it is behind");
        ask(&first, ahead);
        assert_eq!(*raised.borrow(), ahead);
        for far in [by_clock + 3_600_000_000_000, u64::MAX] {
            ask(&first, far);
            assert_eq!(*raised.borrow(), ahead, "{far}");
        }
        // However often it asks, the numbers of later runs do not run away.
        for n in 0..1_000 {
            ask(&first, ahead + n);
        }
        let next_run = first.register.reserve_setups(unix_now()).unwrap();
        assert!((ahead + 1_000..ahead + 200_000_000_000).contains(&next_run), "{next_run}");
    }

    #[test]
    fn the_facts_are_told_to_be_others_when_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let followers = followers(dir.path(), 1);
        let before = ask(&followers, 0).facts;
        assert_eq!(ask(&followers, 0).facts, before);
        followers.shared.facts.send_modify(|facts| facts.access = Some(Vec::new()));
        assert_ne!(ask(&followers, 0).facts, before);
    }
}
