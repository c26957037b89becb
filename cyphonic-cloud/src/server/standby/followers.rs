//! The overlay's own NMS answers those that stand in for it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};

use cyphonic_dataplane::sync;
use cyphonic_proto::message::{FollowRequest, FollowResponse, Message, Refusal, RefusalCode};
use cyphonic_proto::standby::{Facts, MEMBERS_A_RESPONSE, Member};
use cyphonic_proto::{close, version};
use cyphonic_transport::Connection;

use super::Shared;
use crate::register::{Register, RegisterError, UnixSeconds};
use crate::server::clock::unix_now;

/// Whoever may follow, and who does.
#[derive(Clone)]
pub(in crate::server) struct Followers {
    register: Arc<Register>,
    shared: Shared,
    /// By their certificates' names.
    standbys: Arc<Mutex<BTreeMap<String, Option<Visit>>>>,
}

/// A connection of one.
#[derive(Debug, Clone, Copy)]
struct Visit {
    connection: u64,
    since: UnixSeconds,
}

impl Followers {
    /// These may follow.
    pub(in crate::server) fn new(
        names: impl Iterator<Item = String>,
        register: Arc<Register>,
        shared: Shared,
    ) -> Self {
        let standbys = names.map(|name| (name, None)).collect();
        Self { register, shared, standbys: Arc::new(Mutex::new(standbys)) }
    }

    /// Since when each of them follows; nothing: it does not.
    pub(in crate::server) fn following(&self) -> BTreeMap<String, Option<UnixSeconds>> {
        let standbys = sync::lock(&self.standbys);
        standbys.iter().map(|(name, visit)| (name.clone(), visit.map(|visit| visit.since))).collect()
    }

    /// Answers one of them until it leaves.
    pub(in crate::server) async fn serve(self, connection: Connection) {
        let name = connection.identity().map(|identity| identity.fqdn.clone()).unwrap_or_default();
        let visit = Visit { connection: connection.id(), since: unix_now() };
        match sync::lock(&self.standbys).get_mut(&name) {
            Some(standby) => *standby = Some(visit),
            None => {
                tracing::warn!(name, "an NMS that is not one of `standbys` was refused");
                connection
                    .close(close::NOT_ALLOWED, "it is not one of `standbys` in the configuration of the NMS");
                return;
            }
        }
        tracing::info!(name, remote = %connection.remote_address(), "a standby follows");
        let ended = loop {
            let (message, responder) = match connection.accept_exchange().await {
                Ok(asked) => asked,
                Err(error) => break error,
            };
            let answer = self.answer(message).await;
            if let Err(error) = responder.respond(&answer).await {
                break error;
            }
        };
        if let Some(standby) = sync::lock(&self.standbys).get_mut(&name)
            && standby.is_some_and(|newest| newest.connection == visit.connection)
        {
            *standby = None;
            tracing::warn!(name, error = %ended, "a standby follows no more");
        }
    }

    async fn answer(&self, message: Message) -> Message {
        match message {
            Message::FollowRequest(request) => {
                let server = self.clone();
                let answered = tokio::task::spawn_blocking(move || server.follow(&request)).await;
                answered.unwrap_or_else(|error| Err(internal(&error))).unwrap_or_else(Message::Refusal)
            }
            Message::OverlayRequest(_) => Message::OverlayResponse(self.shared.facts.borrow().to_wire()),
            other => Refusal::new(RefusalCode::Malformed, format!("a standby does not ask {}", other.name()))
                .into(),
        }
    }

    fn follow(&self, request: &FollowRequest) -> Result<Message, Refusal> {
        let spoken = version::negotiate(request.protocol_version)
            .map_err(|mismatch| Refusal::new(RefusalCode::Version, mismatch))?;
        self.count_on(request.next_setup).map_err(|error| internal(&error))?;
        let members = self.register.members_since(request.revision, MEMBERS_A_RESPONSE);
        let members = members.map_err(|error| internal(&error))?;
        Ok(Message::FollowResponse(FollowResponse {
            protocol_version: spoken,
            more: members.len() == MEMBERS_A_RESPONSE,
            members: members.iter().map(Member::to_wire).collect(),
            next_setup: self.shared.numbers.next(),
            facts: digest(&self.shared.facts.borrow()),
        }))
    }

    /// Set-ups of this NMS come after those of the standby, also in the next run. One whose clock is years ahead is not
    /// believed: this one's numbers would come to their end.
    fn count_on(&self, next: u64) -> Result<(), RegisterError> {
        if next <= self.shared.numbers.next() {
            return Ok(());
        }
        if !Register::is_plausible(next, unix_now()) {
            tracing::warn!(
                "the clock of a standby is ahead of this machine's: tunnels that it sets up may be replaced late"
            );
            return Ok(());
        }
        self.shared.numbers.raise(next);
        self.register.reserve_setups_of(next)
    }
}

fn internal(error: &dyn std::fmt::Display) -> Refusal {
    tracing::error!(%error, "a standby could not be answered");
    Refusal::new(RefusalCode::Internal, "the NMS failed; its log says why")
}

/// Other facts have another one, most likely; not for long, and never told to anybody else.
fn digest(facts: &Facts) -> u64 {
    let mut hasher = DefaultHasher::new();
    facts.to_bytes().hash(&mut hasher);
    hasher.finish()
}
