//! What applications ask for: peers. A query is answered with an address once a tunnel stands, or with why
//! none does.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use cyphonic_proto::QueryId;
use cyphonic_proto::node::{ResolveError, Target};
use tokio::sync::oneshot;

use super::MOST_MET;
use super::run::Engine;

type Answer = oneshot::Sender<Result<Ipv6Addr, ResolveError>>;

/// The queries that have no answer yet, and how long others took.
#[derive(Default)]
pub(super) struct Queries {
    /// Who asks, and since when.
    open: HashMap<QueryId, (Answer, Instant)>,
    /// How long the last set-up of a tunnel to a peer took; zero where no query has waited for one.
    pub(super) setup_times: HashMap<Ipv6Addr, Duration>,
}

impl Engine {
    pub(super) fn resolve(&mut self, now: Instant, target: Target, answer: Answer) {
        let query = QueryId(self.fresh());
        self.queries.open.insert(query, (answer, now));
        self.node.handle_resolve(now, query, target);
    }

    pub(super) fn answer(&mut self, query: QueryId, result: Result<Ipv6Addr, ResolveError>) {
        let Some((answer, asked)) = self.queries.open.remove(&query) else { return };
        if let Ok(address) = result {
            if self.queries.setup_times.len() > MOST_MET {
                self.queries.setup_times.retain(|address, _| self.node.is_acquainted(*address));
            }
            self.queries.setup_times.entry(address).or_default();
            let took = asked.elapsed();
            // A query that finds its tunnel standing says nothing about setting one up.
            if took > Duration::from_millis(1) {
                self.queries.setup_times.insert(address, took);
            }
        }
        // The asker may have given up: then nobody needs the answer.
        drop(answer.send(result));
    }
}
