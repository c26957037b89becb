//! Requests under way between this node and services, in both directions.

use std::collections::HashMap;
use std::time::Instant;

use cyphonic_proto::node::Service;
use cyphonic_proto::{ExchangeId, Message};
use cyphonic_transport::{ExchangeError, Responder};
use tokio::task::JoinHandle;

use super::input::Input;
use super::perform::abort;
use super::run::Engine;
use super::time;

/// The answered half of exchange ids: those that a service opened. The node counts its own from zero.
const INBOUND_EXCHANGES: u64 = 1 << 63;

/// The exchanges with services that have no answer yet.
#[derive(Default)]
pub(super) struct Exchanges {
    /// What this node has asked.
    requests: HashMap<ExchangeId, JoinHandle<()>>,
    /// What services have asked, until the node knows the answer.
    asked: HashMap<ExchangeId, Responder>,
}

impl Engine {
    pub(super) fn request(&mut self, exchange: ExchangeId, service: &Service, message: Message) {
        tracing::trace!(%service, request = message.name(), "asking");
        let connection = self.services.standing.get(service).map(|s| s.connection.clone());
        // Begun here: what is asked behind a registration is answered only if it is read behind it.
        let asked = connection.map(|connection| (connection.begin_exchange(message), connection));
        let (inputs, clock, service) = (self.inputs.clone(), self.clock.clone(), service.clone());
        let task = tokio::spawn(async move {
            let outcome = match asked {
                Some((answer, connection)) => {
                    let answer = answer.await.map_err(|error| error.to_string());
                    answer.and_then(|answer| time::believed(&clock, &connection, answer))
                }
                None => Err("the connection has just ended".into()),
            };
            drop(inputs.send(Input::Answered { exchange, service, outcome }).await);
        });
        self.exchanges.requests.insert(exchange, task);
    }

    pub(super) fn cancel_request(&mut self, exchange: ExchangeId) {
        abort(self.exchanges.requests.remove(&exchange));
    }

    pub(super) fn answered(
        &mut self,
        now: Instant,
        exchange: ExchangeId,
        service: &Service,
        outcome: Result<Message, String>,
    ) {
        if self.exchanges.requests.remove(&exchange).is_none() {
            return;
        }
        match outcome {
            Ok(message) => {
                self.note_answer(service, &message);
                self.node.handle_response(now, exchange, message);
            }
            Err(reason) => self.node.handle_exchange_failed(now, exchange, reason),
        }
    }

    pub(super) fn asked(
        &mut self,
        now: Instant,
        service: Service,
        attempt: u64,
        message: Message,
        responder: Responder,
    ) {
        let open = self.services.standing.get(&service).filter(|open| open.attempt == attempt);
        // One that was let in only to tell the time has nothing to ask before.
        if open.is_none_or(|open| !self.is_valid_now(&open.connection)) {
            return;
        }
        let exchange = ExchangeId(INBOUND_EXCHANGES | self.fresh());
        self.exchanges.asked.insert(exchange, responder);
        self.node.handle_request(now, service, exchange, message);
    }

    pub(super) fn respond(&mut self, exchange: ExchangeId, message: Message) {
        if let Some(responder) = self.exchanges.asked.remove(&exchange) {
            let inputs = self.inputs.clone();
            tokio::spawn(async move {
                let Err(error) = responder.respond_acknowledged(&message).await else { return };
                tracing::debug!(%error, "an answer did not reach its asker");
                if matches!(error, ExchangeError::Stream(_)) {
                    drop(inputs.send(Input::GivenUp { exchange }).await);
                }
            });
        }
    }
}
