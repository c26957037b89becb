//! Queries for names outside the overlay, on their way to the host's own DNS servers.
//!
//! A query travels on by the protocol it came by. So a truncated answer reaches the program as such, the
//! program asks again by TCP, and so do we: nothing is fetched that nobody can receive.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use tokio::time::{Instant, timeout};

use super::Upstream;
use super::exchange::{exchange, is_unreachable};
use super::reach::Reach;

/// For all servers: just under the asker's own 5 s. Each has its part of what the ones before it have left: a
/// host with one server waits for it as long as programs would, and one that refuses leaves its time to the
/// next.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// The host's own servers, and what asking them has shown.
#[derive(Debug)]
pub(super) struct Relay {
    upstream: Upstream,
    reach: Mutex<Reach>,
}

impl Relay {
    pub(super) fn to(upstream: Upstream) -> Self {
        let reach = Mutex::new(Reach::of(upstream.servers().len()));
        Self { upstream, reach }
    }

    /// The first answer that says something of the name; failing that the first that says why not. Nothing
    /// when no server answered.
    pub(super) async fn ask(&self, request: &Request) -> Option<Message> {
        let query = Message::from_vec(request.as_slice()).ok()?;
        let (begun, servers) = (Instant::now(), self.upstream.servers());
        // Many a server has no TCP: that says nothing of queries by UDP.
        let by_udp = request.protocol() == Protocol::Udp;
        let order = self.reach().order(begun);
        let (mut refusal, mut silent) = (None, Vec::new());
        for (place, sharing) in order.turns() {
            let (left, server) = (PATIENCE.saturating_sub(begun.elapsed()), servers.get(place)?);
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
                        return Some(answer);
                    }
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
                    if by_udp {
                        silent.push(place);
                    }
                }
            }
        }
        refusal
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
