//! Queries for names outside the overlay, on their way to the host's own DNS servers.
//!
//! A query travels on by the protocol it came by. So a truncated answer reaches the program as such, the
//! program asks again by TCP, and so do we: nothing is fetched that nobody can receive.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use tokio::time::{Instant, timeout};

use super::Upstream;
use super::exchange::{exchange, is_unreachable};
use super::leading_back::{Instead, LeadingBack};
use super::loops::Found;
use super::probe::Probes;
use super::reach::{Leads, Reach};

/// For all servers: just under the asker's own 5 s. Each has its part of what the ones before it have left: a
/// host with one server waits for it as long as programs would, and one that refuses leaves its time to the
/// next.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// The host's own servers, and what asking them has shown.
#[derive(Debug)]
pub(super) struct Relay {
    upstream: Upstream,
    reach: Mutex<Reach>,
    /// The round that is under way.
    probes: Mutex<Probes>,
    /// Those that the host had before, where these all ask us: who has become the host's only server, and
    /// asks us, took us for them.
    before: Option<Arc<Self>>,
}

/// What came of a query.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The first answer that says something of the name; failing that the first that says why not. Nothing
    /// when no server answered.
    pub(super) answer: Option<Message>,
    /// Some server did not answer, or refused.
    pub(super) failed: bool,
}

impl Relay {
    /// Relays to these servers, after a time with others.
    pub(super) fn after(former: Option<&Self>, upstream: Upstream) -> Self {
        let before = former.and_then(|former| match former.upstream == upstream || former.is_lost() {
            true => former.before.clone(),
            false => Some(Arc::new(Self::after(None, former.upstream.clone()))),
        });
        let reach = Mutex::new(Reach::of(upstream.servers().len()));
        Self { upstream, reach, probes: Mutex::default(), before }
    }

    /// Asks one server after the other.
    pub(super) async fn ask(&self, request: &Request) -> Outcome {
        match &self.before {
            Some(before) if self.is_lost() => before.ask_these(request).await,
            Some(_) | None => self.ask_these(request).await,
        }
    }

    async fn ask_these(&self, request: &Request) -> Outcome {
        let Ok(query) = Message::from_vec(request.as_slice()) else { return Outcome::default() };
        let (begun, servers) = (Instant::now(), self.upstream.servers());
        // Many a server has no TCP: that says nothing of queries by UDP.
        let by_udp = request.protocol() == Protocol::Udp;
        let order = self.reach().order(begun);
        let (mut refusal, mut silent, mut failed) = (None, Vec::new(), false);
        for (place, sharing) in order.turns() {
            let Some(server) = servers.get(place) else { break };
            let left = PATIENCE.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            let asked = exchange(*server, request.protocol(), query.clone(), PATIENCE);
            match timeout(left / sharing, asked).await {
                Ok(Ok(answer)) => {
                    self.reach().answered(place);
                    if !is_refusal(answer.metadata.response_code) {
                        let now = Instant::now();
                        silent.into_iter().for_each(|place| self.reach().outdone(place, now));
                        return Outcome { answer: Some(answer), failed };
                    }
                    failed = true;
                    tracing::debug!(%server, code = %answer.metadata.response_code, "DNS server has no answer");
                    refusal.get_or_insert(answer);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "DNS server failed");
                    if by_udp && is_unreachable(&error) {
                        self.reach().unreachable(place, Instant::now());
                    }
                }
                Err(_) => {
                    tracing::debug!(%server, "DNS server did not answer");
                    failed = true;
                    if by_udp {
                        silent.push(place);
                    }
                }
            }
        }
        Outcome { answer: refusal, failed }
    }

    /// Asks each server for a name that leads back here where it asks us in turn.
    pub(super) async fn look_for_loops(&self) -> Found {
        let mut news = self.look_at_these().await;
        if let Some(before) = self.before.as_ref().filter(|_| self.is_lost()) {
            news |= before.look_at_these().await;
        }
        match self.leading_back() {
            Some(_) => Found::Stands,
            None if news => Found::Gone,
            None => Found::Nothing,
        }
    }

    /// True if something is news.
    async fn look_at_these(&self) -> bool {
        let servers = self.upstream.servers();
        *self.probes() = Probes::of(servers, rand::random);
        let answers = join_all(servers.iter().map(|server| async {
            let query = self.probes().query_for(*server)?;
            let asked = exchange(*server, Protocol::Udp, query, PATIENCE);
            timeout(PATIENCE, asked).await.ok()?.ok()
        }))
        .await;
        let probes = std::mem::take(&mut *self.probes());
        let mut news = false;
        for (place, (server, answer)) in servers.iter().zip(answers).enumerate() {
            let leads = match answer {
                _ if !probes.came_back(*server) => Leads::Elsewhere,
                // Nobody else was asked: that is our own refusal.
                Some(answer) if is_refusal(answer.metadata.response_code) => Leads::Back,
                // Somebody else has answered, or may when his network is back.
                Some(_) | None => Leads::BackInPart,
            };
            if self.reach().leads(place, leads) {
                news = true;
                if leads == Leads::Elsewhere {
                    tracing::info!(%server, "a DNS server of the host does not ask us any more");
                } else {
                    tracing::warn!(%server, "a DNS server of the host asks us in turn: others are asked instead, if there are any");
                }
            }
        }
        news
    }

    /// Whether this question comes back to us from a server.
    pub(super) fn comes_back(&self, question: &Query) -> bool {
        self.probes().take(question) || self.before.as_ref().is_some_and(|before| before.comes_back(question))
    }

    /// The servers that ask us in turn, if there are any.
    pub(super) fn leading_back(&self) -> Option<LeadingBack> {
        let leading = |(place, _)| self.upstream.servers().get::<usize>(place).copied();
        let servers: Vec<_> = self.reach().leading_back().filter_map(leading).collect();
        let instead = match &self.before {
            _ if !self.is_lost() => Instead::Others,
            Some(before) if !before.is_lost() => Instead::Earlier,
            Some(_) | None => Instead::Nobody,
        };
        (!servers.is_empty()).then_some(LeadingBack { servers, instead })
    }

    /// Whether there are servers, and all ask us and nobody else.
    fn is_lost(&self) -> bool {
        let leading = self.reach().leading_back().filter(|(_, asked)| !asked).count();
        leading > 0 && leading == self.upstream.servers().len()
    }

    /// Whole after every statement.
    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole after every statement.
    fn reach(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What programs take as a reason to ask the next server (glibc's `res_send`).
fn is_refusal(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused)
}
