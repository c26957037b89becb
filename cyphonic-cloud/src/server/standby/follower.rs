//! A standby follows the overlay's own NMS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cyphonic_dataplane::sync;
use cyphonic_proto::message::{FollowRequest, FollowResponse, Message, OverlayRequest};
use cyphonic_proto::standby::{Facts, Stance};
use cyphonic_proto::{close, version};
use cyphonic_transport::{ClientTls, Connection, Transport};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::copy::{Copy, Progress};
use super::{KeptFacts, Shared};
use crate::config::Config;
use crate::pki::{NMS_NAME, service_name};
use crate::register::{Register, UnixSeconds};
use crate::seldom::Seldom;
use crate::server::clock::unix_now;
use crate::server::credentials::load_credentials;

/// How often it asks.
const ASK: Duration = Duration::from_secs(1);

/// After so long it copies from the beginning again: what changes without a number, as when a certificate is renewed for
/// the same key, is told only then.
const AFRESH: Duration = Duration::from_secs(24 * 3600);

/// Set-ups that an NMS steers at most between what it told last and its end.
pub(super) const UNTOLD: u64 = 1 << 20;

/// Between two attempts to connect.
const DIAL_AGAIN: Duration = Duration::from_secs(2);

/// How often its stance is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What a standby tells commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// Since when it stands in; nothing while it stands by.
    pub stands_in_since: Option<UnixSeconds>,
    /// Whether it has a whole copy, without which it never stands in.
    pub has_copy: bool,
    /// Whether it hears of the overlay's own NMS.
    pub hears: bool,
    /// Why not, if not.
    pub error: Option<String>,
}

/// Where things are.
pub(in crate::server) struct Places {
    pub(in crate::server) config: Config,
    pub(in crate::server) transport: Arc<Transport>,
    pub(in crate::server) kept: KeptFacts,
    /// By which the register's watch is told to look.
    pub(in crate::server) nudge: Arc<Notify>,
}

/// A standby, in its own words.
pub(in crate::server) struct Follower {
    places: Places,
    main: Vec<SocketAddr>,
    register: Arc<Register>,
    shared: Shared,
    stance: Mutex<Stance>,
    state: Mutex<Following>,
    failures: Seldom<String>,
}

impl Follower {
    /// Of the NMS at these addresses. It has a copy if it has facts.
    pub(in crate::server) fn new(
        places: Places,
        main: Vec<SocketAddr>,
        register: Arc<Register>,
        shared: Shared,
        has_copy: bool,
    ) -> Self {
        let state = Following { stands_in_since: None, has_copy, hears: false, error: None };
        Self {
            places,
            main,
            register,
            shared,
            stance: Mutex::new(Stance::new(Instant::now(), has_copy)),
            state: Mutex::new(state),
            failures: Seldom::ever_more_rarely(),
        }
    }

    /// What commands are told.
    pub(in crate::server) fn following(&self) -> Following {
        sync::lock(&self.state).clone()
    }

    /// Follows and stands in, for ever.
    pub(in crate::server) async fn run(self: Arc<Self>) {
        let looking = async {
            let mut look = tokio::time::interval(LOOK);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                self.look().await;
            }
        };
        let following = async {
            loop {
                let error = self.follow().await;
                self.lost(error);
                tokio::time::sleep(DIAL_AGAIN).await;
            }
        };
        tokio::join!(looking, following);
    }

    /// Stands in where it is time to, and by where it is not.
    async fn look(&self) {
        let stands_in = {
            let mut stance = sync::lock(&self.stance);
            stance.handle_timeout(Instant::now());
            stance.stands_in()
        };
        if stands_in == *self.shared.serves.borrow() {
            return;
        }
        if stands_in {
            self.number_on().await;
            tracing::warn!("nothing is heard of the overlay's own NMS: standing in for it");
        } else {
            tracing::info!("the overlay's own NMS is back: standing by");
        }
        sync::lock(&self.state).stands_in_since = stands_in.then(unix_now);
        self.shared.serves.send_replace(stands_in);
    }

    /// Numbers that the other one cannot have given by now: of the clock, and well after those that it told last.
    async fn number_on(&self) {
        let told = self.shared.numbers.next().saturating_add(UNTOLD);
        let next = told.max(Register::setups_by_clock(unix_now()));
        self.shared.numbers.raise(next);
        self.reserve(next).await;
    }

    /// A next run begins after these.
    async fn reserve(&self, next: u64) {
        let register = Arc::clone(&self.register);
        let reserving = tokio::task::spawn_blocking(move || register.reserve_setups_of(next));
        let reserved = reserving.await.map_err(|error| error.to_string());
        if let Err(error) = reserved.and_then(|reserved| reserved.map_err(|error| error.to_string())) {
            self.complain(format!("set-ups' numbers cannot be reserved: {error}"));
        }
    }

    /// Connects and copies, until that fails.
    async fn follow(&self) -> String {
        let connection = match self.connect().await {
            Ok(connection) => connection,
            Err(error) => return error,
        };
        let error = self.copy(&connection).await;
        // Before this end closes it, which would be the reason then.
        let refused = connection.refused_us();
        connection.close(close::DONE, &error);
        match refused {
            Some(reason) => {
                self.dismissed();
                reason
            }
            None => error,
        }
    }

    /// The NMS does not want to be followed: a copy of before is of no use, to the next run either.
    fn dismissed(&self) {
        let had_copy = {
            let mut stance = sync::lock(&self.stance);
            let had_copy = stance.has_copy();
            stance.dismissed();
            had_copy
        };
        sync::lock(&self.state).has_copy = false;
        if had_copy {
            tracing::error!(
                "the overlay's own NMS does not know this standby any more: it does not stand in"
            );
            if let Err(error) = self.register.note_whole_copy(false) {
                tracing::error!(%error, "the next run of this standby may stand in all the same");
            }
        }
    }

    async fn connect(&self) -> Result<Connection, String> {
        let Places { config, transport, .. } = &self.places;
        // It may have been renewed.
        let loaded = load_credentials(config).map_err(|error| error.to_string())?;
        let credentials = loaded.management().ok_or("it has no certificate")?;
        let (tls, name) = (ClientTls::new(credentials), service_name(NMS_NAME, &config.network.zone));
        let connected = transport.connect_nms_as_standby(&tls, &self.main, &name).await;
        connected.map_err(|error| error.to_string())
    }

    async fn copy(&self, connection: &Connection) -> String {
        let (mut copy, mut begun, mut known, mut was_whole) = (Copy::new(), Instant::now(), None, false);
        let mut was_answered = false;
        loop {
            if was_answered {
                sync::lock(&self.stance).asks(Instant::now());
            }
            let request = FollowRequest {
                protocol_version: version::CURRENT,
                revision: copy.revision(),
                next_setup: self.shared.numbers.next(),
            };
            let response = match connection.open_exchange(&Message::FollowRequest(request)).await {
                Ok(Message::FollowResponse(response)) => response,
                Ok(other) => return refused(other),
                Err(error) => return error.to_string(),
            };
            // Whatever becomes of the copy.
            self.heard();
            was_answered = true;
            self.shared.numbers.raise(response.next_setup);
            self.reserve(response.next_setup).await;
            let facts = response.facts;
            let progress = match self.take(copy, response).await {
                Ok((after, progress)) => {
                    copy = after;
                    progress
                }
                Err(error) => return error,
            };
            if !progress.is_whole {
                continue;
            }
            if known != Some(facts) {
                match self.learn(connection).await {
                    Ok(()) => known = Some(facts),
                    Err(error) => return error,
                }
            }
            if !std::mem::replace(&mut was_whole, true) {
                if let Err(error) = self.whole().await {
                    return error;
                }
                tracing::info!(revision = copy.revision(), "the copy of the register is whole");
            }
            if begun.elapsed() >= AFRESH {
                (copy, begun) = (Copy::new(), Instant::now());
            }
            tokio::time::sleep(ASK).await;
        }
    }

    async fn take(&self, mut copy: Copy, response: FollowResponse) -> Result<(Copy, Progress), String> {
        let (register, network) = (Arc::clone(&self.register), self.places.config.network.clone());
        let taken = tokio::task::spawn_blocking(move || {
            let progress = copy.take(&response, &network, &register, unix_now());
            progress.map(|progress| (copy, progress)).map_err(|error| error.to_string())
        });
        let (copy, progress) = taken.await.map_err(|error| error.to_string())??;
        if progress.changed > 0 {
            self.places.nudge.notify_one();
        }
        Ok((copy, progress))
    }

    /// Asks for the overlay's facts, and keeps them.
    async fn learn(&self, connection: &Connection) -> Result<(), String> {
        let told = match connection.open_exchange(&Message::OverlayRequest(OverlayRequest {})).await {
            Ok(Message::OverlayResponse(told)) => Facts::from_wire(&told),
            Ok(other) => return Err(refused(other)),
            Err(error) => return Err(error.to_string()),
        };
        let (kept, facts) = (self.places.kept.clone(), told.clone());
        let written = tokio::task::spawn_blocking(move || match kept.read() {
            Some(known) if known == facts => Ok(()),
            _ => kept.write(&facts),
        });
        written
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("what is known of the overlay cannot be kept: {error}"))?;
        self.shared.facts.send_if_modified(|before| std::mem::replace(before, told.clone()) != told);
        Ok(())
    }

    /// The copy has everything, and so it may be used by the next run, too.
    async fn whole(&self) -> Result<(), String> {
        let register = Arc::clone(&self.register);
        let noted = tokio::task::spawn_blocking(move || register.note_whole_copy(true)).await;
        noted.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        sync::lock(&self.stance).has_all();
        sync::lock(&self.state).has_copy = true;
        Ok(())
    }

    fn heard(&self) {
        sync::lock(&self.stance).heard(Instant::now());
        let mut state = sync::lock(&self.state);
        (state.hears, state.error) = (true, None);
    }

    fn lost(&self, error: String) {
        self.complain(format!("the overlay's own NMS cannot be followed: {error}"));
        let mut state = sync::lock(&self.state);
        (state.hears, state.error) = (false, Some(error));
    }

    fn complain(&self, what: String) {
        if self.failures.is_due(what.clone(), unix_now()) {
            tracing::warn!("{what}");
        }
    }
}

fn refused(answer: Message) -> String {
    match answer {
        Message::Refusal(refusal) => format!("the NMS refused: {}", refusal.shown_reason()),
        other => format!("the NMS answered with {}", other.name()),
    }
}
