//! The loop: an input, the node's view of it, the actions that follow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_dataplane::ring::EncapRing;
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::close;
use cyphonic_proto::node::{CachedState, Node};
use cyphonic_transport::{ClientTls, Clock, Transport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::access::Access;
use super::admission::Admission;
use super::calls::Calls;
use super::exchanges::Exchanges;
use super::input::Input;
use super::peers::PeerHandshakes;
use super::queries::Queries;
use super::renewal::{Lifetime, Renewal};
use super::report::Surroundings;
use super::services::Services;
use super::tunnels::{self, Tunnels};
use super::{EngineParts, Names};
use crate::netcheck::{Netcheck, News, OwnPort};

/// How often the node hears what its tunnels carried: a path that has died is left within a second.
const STATS_INTERVAL: Duration = Duration::from_millis(250);
/// The same while there is no tunnel.
const NO_STATS_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Engine {
    pub(super) node: Node,
    pub(super) tls: ClientTls,
    pub(super) clock: Clock,
    pub(super) transport: Arc<Transport>,
    pub(super) port: Arc<UdpPort>,
    pub(super) ring: Arc<dyn EncapRing>,
    pub(super) access: Access,
    /// Why rules that the NMS told are not in force; none once others are.
    pub(super) access_failure: Option<String>,
    pub(super) netcheck: Netcheck,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) names: Names,
    pub(super) surroundings: Surroundings,
    pub(super) save: Box<dyn Fn(&CachedState) + Send>,
    pub(super) failure: Option<oneshot::Sender<String>>,
    pub(super) admission: Admission,
    pub(super) started: Instant,
    pub(super) services: Services,
    pub(super) exchanges: Exchanges,
    pub(super) handshakes: PeerHandshakes,
    pub(super) queries: Queries,
    pub(super) tunnels: Tunnels,
    pub(super) next: u64,
}

impl Engine {
    /// The engine, and the task that renews its certificate.
    pub(crate) fn new(parts: EngineParts, inputs: mpsc::Sender<Input>, names: Names) -> (Self, Renewal) {
        let now = Instant::now();
        let admission = Admission::by(Lifetime::of(&parts.identity));
        let renewal = Renewal {
            parts: parts.renewal,
            lifetime: admission.lifetime,
            clock: parts.clock.clone(),
            as_name: parts.node.as_name.clone(),
            transport: parts.transport.clone(),
            inputs: inputs.clone(),
            refused: Arc::clone(&admission.refused),
        };
        tunnels::report_resets(&parts.transport, inputs.clone());
        let own = Arc::new(OwnPort::default());
        parts.transport.mux().deliver_stun_to(Arc::new(Calls { looks: own.clone(), inputs: inputs.clone() }));
        let engine = Self {
            node: Node::new(parts.node, rand::random(), now),
            tls: ClientTls::new(parts.credentials).with_clock(parts.clock.clone()),
            clock: parts.clock,
            transport: parts.transport,
            netcheck: Netcheck::new(
                parts.port.clone(),
                own,
                parts.port_mapping.then(|| network_news(inputs.clone())),
            ),
            port: parts.port,
            ring: parts.ring,
            access: parts.access,
            access_failure: None,
            inputs,
            names,
            surroundings: parts.surroundings,
            save: parts.save,
            failure: Some(parts.failure),
            admission,
            started: now,
            services: Services::default(),
            exchanges: Exchanges::default(),
            handshakes: PeerHandshakes::default(),
            queries: Queries::default(),
            tunnels: Tunnels::new(parts.mtus),
            next: 0,
        };
        (engine, renewal)
    }

    pub(crate) async fn run(mut self, mut receiver: mpsc::Receiver<Input>) {
        let mut stats = tokio::time::interval(STATS_INTERVAL);
        stats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.perform_all();
        loop {
            let wake = self.node.poll_timeout();
            tokio::select! {
                input = receiver.recv() => match input {
                    Some(Input::Shutdown(answer)) => return self.stop(answer).await,
                    Some(input) => self.handle(input),
                    None => return,
                },
                () = sleep_until(wake) => self.node.handle_timeout(Instant::now()),
                _ = stats.tick() => {
                    self.report_tunnels();
                    if self.tunnels.installed.is_empty() {
                        stats.reset_after(NO_STATS_INTERVAL);
                    }
                }
            }
            self.perform_all();
        }
    }

    fn handle(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::ServiceDialled { service, way, attempt, outcome } => {
                self.service_dialled(now, service, way, attempt, outcome)
            }
            Input::ServiceEnded { service, attempt, reason } => {
                self.service_ended(now, service, attempt, reason)
            }
            Input::Answered { exchange, service, outcome } => self.answered(now, exchange, &service, outcome),
            Input::Asked { service, attempt, message, responder } => {
                self.asked(now, service, attempt, message, responder);
            }
            Input::GivenUp { exchange } => self.node.handle_request_given_up(now, exchange),
            Input::PeerArrived(peer) => self.peer_arrived(now, peer),
            Input::PeerAsked { id, connection, message, responder } => {
                self.peer_asked(now, id, connection, message, responder)
            }
            Input::PeerLeft(id) => self.peer_left(now, id),
            Input::PeerOffered { setup, outcome } => self.peer_offered(now, setup, outcome),
            Input::PeerAnswered { setup, outcome } => self.peer_answered(now, setup, outcome),
            Input::Ring(event) => self.ring_event(now, event),
            Input::RelayReset(tunnel) => self.node.handle_relay_reset(now, tunnel),
            Input::Called { from, number } => self.node.handle_called(now, from, number),
            Input::Resolve { target, answer } => self.resolve(now, target, answer),
            Input::Addresses(addresses) => self.addresses_changed(now, &addresses),
            Input::Resumed(sleep) => self.resumed(now, sleep),
            Input::Cloud(addresses) => self.node.handle_as_addresses(now, addresses),
            Input::KeepOpen(names) => self.node.handle_keep_open(now, &names),
            Input::Offer { services, answer } => {
                self.offer(services);
                // Who stops does not wait.
                let _ = answer.send(());
            }
            Input::Settings { settings, answer } => drop(answer.send(self.take_over(now, settings))),
            Input::Reset { target, answer } => drop(answer.send(self.reset(now, target))),
            Input::Renewed { credentials, lifetime } => self.renewed(now, credentials, lifetime),
            Input::TimeTold => self.time_told(),
            Input::TimeDoubted => self.node.handle_time_doubted(now),
            Input::RenewalKept => self.admission.renewal_kept(),
            Input::RenewalFailed(reason) => self.admission.renewal_failure = Some(reason),
            Input::Network(News::Findings(findings)) => self.node.handle_findings(now, findings),
            Input::Network(News::Granted(granted)) => self.node.handle_port_mappings(now, &granted),
            Input::Network(News::Latencies(measured)) => self.node.handle_latencies(now, &measured),
            Input::SignOfLife(answer) => drop(answer.send(())),
            Input::Status(answer) => drop(answer.send(self.status())),
            // Taken out by `run`.
            Input::Shutdown(answer) => drop(answer),
        }
    }

    pub(super) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    async fn stop(mut self, answer: oneshot::Sender<()>) {
        self.node.handle_shutdown(Instant::now());
        self.perform_all();
        for service in self.services.standing.values() {
            service.connection.close(close::STOPPING, "the agent stops");
        }
        self.netcheck.close().await;
        self.transport.shutdown("the agent stops").await;
        // Whoever waits ends the process: what is not on the disk yet is awaited first.
        drop(self);
        let _ = answer.send(());
    }
}

/// Where the network check reports to.
pub(super) fn network_news(
    inputs: mpsc::Sender<Input>,
) -> impl Fn(News) -> BoxFuture<'static, ()> + Send + Sync + 'static {
    move |news| {
        let inputs = inputs.clone();
        async move { drop(inputs.send(Input::Network(news)).await) }.boxed()
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
