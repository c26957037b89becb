//! A standby follows the overlay's own NMS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cyphonic_dataplane::sync;
use cyphonic_proto::message::{FollowRequest, Message, OverlayRequest};
use cyphonic_proto::standby::{Facts, Stance};
use cyphonic_proto::{close, version};
use cyphonic_transport::{ClientTls, Connection, Transport};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::copy::Copy;
use super::{KeptFacts, Shared};
use crate::config::Config;
use crate::pki::{NMS_NAME, service_name};
use crate::register::{Register, UnixSeconds};
use crate::seldom::Seldom;
use crate::server::clock::unix_now;
use crate::server::credentials::load_credentials;

/// How often it asks.
const ASK: Duration = Duration::from_secs(1);

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
            // Numbers that no run of the other one has: by the clock.
            let register = Arc::clone(&self.register);
            let reserved = tokio::task::spawn_blocking(move || register.reserve_setups(unix_now())).await;
            match reserved {
                Ok(Ok(first)) => self.shared.numbers.raise(first),
                Ok(Err(error)) => tracing::error!(%error, "no numbers of set-ups could be reserved"),
                Err(error) => tracing::error!(%error, "no numbers of set-ups could be reserved"),
            }
            tracing::warn!("nothing is heard of the overlay's own NMS: standing in for it");
        } else {
            tracing::info!("the overlay's own NMS is back: standing by");
        }
        sync::lock(&self.state).stands_in_since = stands_in.then(unix_now);
        self.shared.serves.send_replace(stands_in);
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
        connection.close(close::DONE, "");
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
        let mut stance = sync::lock(&self.stance);
        if stance.has_copy() {
            stance.dismissed();
            sync::lock(&self.state).has_copy = false;
            tracing::error!(
                "the overlay's own NMS does not know this standby any more: it does not stand in"
            );
            if let Err(error) = self.places.kept.remove() {
                tracing::warn!(%error, "what was kept of the overlay cannot be removed");
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
        let (mut copy, mut known, mut was_whole) = (Copy::new(), None, false);
        loop {
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
            self.shared.numbers.raise(response.next_setup);
            let facts = response.facts;
            let (register, network) = (Arc::clone(&self.register), self.places.config.network.clone());
            let taken = tokio::task::spawn_blocking(move || {
                let taken = copy.take(&response, &network, &register, unix_now());
                (copy, taken)
            });
            let progress = match taken.await {
                Ok((after, Ok(progress))) => {
                    copy = after;
                    progress
                }
                Ok((_, Err(error))) => return error.to_string(),
                Err(error) => return error.to_string(),
            };
            if progress.changed > 0 {
                self.places.nudge.notify_one();
            }
            if progress.is_whole && known != Some(facts) {
                match self.learn(connection).await {
                    Ok(()) => known = Some(facts),
                    Err(error) => return error,
                }
            }
            self.heard(progress.is_whole);
            if progress.is_whole {
                if !std::mem::replace(&mut was_whole, true) {
                    tracing::info!(revision = copy.revision(), "the copy of the register is whole");
                }
                tokio::time::sleep(ASK).await;
            }
        }
    }

    /// Asks for the overlay's facts, and keeps them.
    async fn learn(&self, connection: &Connection) -> Result<(), String> {
        let told = match connection.open_exchange(&Message::OverlayRequest(OverlayRequest {})).await {
            Ok(Message::OverlayResponse(told)) => Facts::from_wire(&told),
            Ok(other) => return Err(refused(other)),
            Err(error) => return Err(error.to_string()),
        };
        let (kept, facts) = (self.places.kept.clone(), told.clone());
        let written = tokio::task::spawn_blocking(move || kept.write(&facts)).await;
        written
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("what is known of the overlay cannot be kept: {error}"))?;
        self.shared.facts.send_if_modified(|before| std::mem::replace(before, told.clone()) != told);
        Ok(())
    }

    fn heard(&self, is_whole: bool) {
        let mut stance = sync::lock(&self.stance);
        stance.heard(Instant::now(), is_whole);
        let mut state = sync::lock(&self.state);
        (state.has_copy, state.hears, state.error) = (stance.has_copy(), true, None);
    }

    fn lost(&self, error: String) {
        if self.failures.is_due(error.clone(), unix_now()) {
            tracing::warn!(error, "the overlay's own NMS cannot be followed");
        }
        let mut state = sync::lock(&self.state);
        (state.hears, state.error) = (false, Some(error));
    }
}

fn refused(answer: Message) -> String {
    match answer {
        Message::Refusal(refusal) => format!("the NMS refused: {}", refusal.shown_reason()),
        other => format!("the NMS answered with {}", other.name()),
    }
}
