//! Requests under way, and to whom their answers go.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use super::{Action, Node, Service, Timer};
use crate::id::{ExchangeId, SetupId, TunnelId};
use crate::message::Message;

/// A request under way.
pub(super) struct Exchange {
    service: Service,
    purpose: Purpose,
}

/// What a request is for.
#[derive(Clone)]
pub(super) enum Purpose {
    Login,
    Register,
    Observe { server: SocketAddr },
    Direction { peer: Ipv6Addr },
    Binding { setup: SetupId },
    Restore { tunnel: TunnelId },
}

impl Node {
    pub(super) fn request(
        &mut self,
        now: Instant,
        service: Service,
        purpose: Purpose,
        message: Message,
    ) -> ExchangeId {
        let exchange = ExchangeId(self.next_exchange);
        self.next_exchange += 1;
        self.exchanges.insert(exchange, Exchange { service: service.clone(), purpose });
        self.timers.set(Timer::Exchange(exchange), now + self.config.timing.request);
        self.act(Action::Request { exchange, service, message });
        exchange
    }

    /// How many times a TRS is being asked where it sees this node.
    pub(super) fn observations_under_way(&self, trs: &Service) -> usize {
        let asks = |one: &&Exchange| one.service == *trs && matches!(one.purpose, Purpose::Observe { .. });
        self.exchanges.values().filter(asks).count()
    }

    /// Forgets a request and its answer.
    pub(super) fn cancel(&mut self, exchange: ExchangeId) {
        if self.take_exchange(exchange).is_some() {
            self.act(Action::CancelRequest { exchange });
        }
    }

    pub(super) fn exchange_due(&mut self, now: Instant, exchange: ExchangeId) {
        let Some(service) = self.exchanges.get(&exchange).map(|exchange| exchange.service.clone()) else {
            return;
        };
        let reason = format!("{service} did not answer within {:?}", self.config.timing.request);
        self.act(Action::CancelRequest { exchange });
        self.exchange_done(now, exchange, Err(reason));
        self.doubt_service(now, &service);
    }

    /// The answer to a request of ours.
    pub fn handle_response(&mut self, now: Instant, exchange: ExchangeId, message: Message) {
        self.exchange_done(now, exchange, Ok(message));
    }

    /// A request of ours will have no answer.
    pub fn handle_exchange_failed(&mut self, now: Instant, exchange: ExchangeId, reason: String) {
        self.exchange_done(now, exchange, Err(reason));
    }

    /// Hands an answer, or its lack, to whoever waits. Answers to nobody are dropped.
    pub(super) fn exchange_done(
        &mut self,
        now: Instant,
        exchange: ExchangeId,
        answer: Result<Message, String>,
    ) {
        let Some(Exchange { service, purpose }) = self.take_exchange(exchange) else { return };
        match purpose {
            Purpose::Login => self.login_answered(now, answer),
            Purpose::Register => self.registration_answered(now, answer),
            Purpose::Observe { server } => {
                if answer.is_ok() {
                    self.service_proved(&service);
                    self.followed(now, &service);
                }
                self.observation_answered(now, server, answer);
            }
            Purpose::Direction { peer } => self.direction_answered(now, peer, answer),
            Purpose::Binding { setup } => self.binding_answered(now, setup, answer),
            Purpose::Restore { tunnel } => self.restore_answered(now, tunnel, exchange, answer),
        }
    }

    pub(super) fn fail_exchanges(&mut self, now: Instant, service: &Service, reason: &str) {
        let lost: Vec<_> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.service == *service)
            .map(|(id, _)| *id)
            .collect();
        for exchange in lost {
            self.exchange_done(now, exchange, Err(reason.into()));
        }
    }

    fn take_exchange(&mut self, exchange: ExchangeId) -> Option<Exchange> {
        self.timers.clear(&Timer::Exchange(exchange));
        self.exchanges.remove(&exchange)
    }
}
