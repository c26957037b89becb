//! The probe of one IP version: asks in stages, and goes on to measure lifetimes side by side.
//!
//! | Stage | Asks | Learns |
//! |---|---|---|
//! | greet | the node's own port → every server | own outer endpoints, round trips, the servers' other places |
//! | home | fresh ports → one server ("home"); own port → itself; home answers from elsewhere | hairpin, the own port's filter |
//! | filter | home's other port, and another address, answer to a fresh port that they never heard of | filtering |
//! | map | that fresh port → the same places | mapping |
//! | again | the node's own port → home's other port | its newest outer endpoint, after all the mappings made here |
//!
//! After "home", each idle port waits for its time; then home is asked to send to its outer port. What
//! arrives proves that the mapping stood. What does not proves nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::places::{Places, Server};
use super::transaction::{Answered, Question, Socket, Transactions, Transmit};
use super::verdict::{self, Passage};
use super::{FamilyFindings, Filtering, IDLE_TIMES, MAX_SERVERS, Mapping};
use crate::nat::Family;
use crate::stun::{Request, Success};
use crate::timers::Timers;

/// What a probe needs to know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The IP version.
    pub family: Family,
    /// The services' STUN servers, the preferred ones first; those of the other version are left out.
    pub servers: Vec<SocketAddr>,
    /// The node's own addresses, with its port.
    pub own: Vec<SocketAddr>,
}

/// What a question is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Greet,
    Hairpin,
    Changed,
    TestHome,
    AskerHome,
    IdleHome(u8),
    /// To the test port, from a place it has not sent to.
    Through(Place),
    /// The asker asks there itself: the place answers.
    Reach(Place),
    Map(Place),
    Again,
    /// To an idle port.
    Idle(u8),
}

/// A place relative to home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Home,
    OtherPort,
    OtherAddress,
    OtherBoth,
}

/// How many places there are.
const PLACES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greet,
    Home,
    Filter,
    Map,
    Again,
    Settled,
}

/// What became of a place.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    came: bool,
    given_up: bool,
    answers: bool,
}

impl Tried {
    const fn passage(self) -> Passage {
        match self {
            Self { came: true, .. } => Passage::Passed,
            Self { given_up: true, answers: true, .. } => Passage::Blocked,
            Self { .. } => Passage::Unknown,
        }
    }
}

/// See the module.
pub struct Probe {
    plan: Plan,
    stage: Stage,
    transactions: Transactions<Kind>,
    timers: Timers<u8>,
    answered: Vec<Server>,
    latencies: Vec<(SocketAddr, Duration)>,
    /// What servers saw of the node's own port.
    own_seen: Vec<(SocketAddr, SocketAddr)>,
    places: Option<Places>,
    /// What each place saw of the test port, in the order in which it sent to them.
    test_seen: [Option<(SocketAddr, SocketAddr)>; PLACES],
    asker_seen: Option<SocketAddr>,
    idle_seen: [Option<SocketAddr>; IDLE_TIMES.len()],
    other_port: Tried,
    other_address: Tried,
    /// Whether home's answer from a place that the own port never sends to came; none if it was not asked
    /// for.
    changed: Option<bool>,
    hairpin: Option<bool>,
    lifetime: Option<Duration>,
}

impl Probe {
    /// A probe that starts now. `seed` must be unpredictable.
    pub fn new(mut plan: Plan, seed: [u8; 32], now: Instant) -> Self {
        plan.servers.retain(|server| Family::of(server) == plan.family);
        plan.servers.truncate(MAX_SERVERS);
        let servers = plan.servers.clone();
        let mut probe = Self {
            plan,
            stage: Stage::Greet,
            transactions: Transactions::new(seed),
            timers: Timers::default(),
            answered: Vec::new(),
            latencies: Vec::new(),
            own_seen: Vec::new(),
            places: None,
            test_seen: [None; PLACES],
            asker_seen: None,
            idle_seen: [None; IDLE_TIMES.len()],
            other_port: Tried::default(),
            other_address: Tried::default(),
            changed: None,
            hairpin: None,
            lifetime: None,
        };
        for server in servers {
            probe.ask(now, Kind::Greet, Socket::Own, server);
        }
        probe.advance(now);
        probe
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transactions.poll_transmit()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.transactions.poll_timeout(), self.timers.next()].into_iter().flatten().min()
    }

    /// Repeats what is due, gives up what has waited long enough, and asks what was idle long enough.
    pub fn handle_timeout(&mut self, now: Instant) {
        for question in self.transactions.handle_timeout(now) {
            self.given_up(question.kind);
        }
        while let Some(place) = self.timers.pop_expired(now) {
            self.wake(now, place);
        }
        self.advance(now);
    }

    /// A datagram came to a socket. Whatever is not an answer to one of its questions is ignored.
    pub fn handle_datagram(&mut self, now: Instant, socket: Socket, from: SocketAddr, datagram: &[u8]) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let Some(answered) = self.transactions.handle_datagram(now, socket, from, datagram) else { return };
        let Answered { question, success, took } = answered;
        match success {
            None => self.came_back(question.kind),
            Some(success) => self.learn(now, &question, &success, took),
        }
        self.advance(now);
    }

    /// What is known so far.
    pub fn findings(&self) -> FamilyFindings {
        FamilyFindings {
            mapping: self.mapping(),
            filtering: self.filtering(),
            hairpin: self.hairpin,
            lifetime: self.lifetime,
            port_delta: self.port_delta(),
            port_mapped: Vec::new(),
        }
    }

    /// What servers saw of the node's own port: (server, observed). Nothing: UDP does not pass.
    pub fn observations(&self) -> &[(SocketAddr, SocketAddr)] {
        &self.own_seen
    }

    /// What servers saw of one fresh port, in the order in which it sent to them: what the next one is likely
    /// to see.
    pub fn fresh_observations(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.test_seen.iter().copied().flatten().collect()
    }

    /// Round trips to the servers.
    pub fn latencies(&self) -> &[(SocketAddr, Duration)] {
        &self.latencies
    }

    /// Whether all but lifetimes is known.
    pub fn is_settled(&self) -> bool {
        self.stage == Stage::Settled
    }

    /// Whether nothing more will be learnt.
    pub fn is_done(&self) -> bool {
        self.is_settled() && self.poll_timeout().is_none()
    }

    fn mapping(&self) -> Mapping {
        let Some(_) = self.own_seen.first() else { return Mapping::Unknown };
        if self.own_seen.iter().all(|(_, observed)| self.plan.own.contains(observed)) {
            return Mapping::NoNat;
        }
        verdict::worse_mapping(verdict::mapping(&self.own_seen), verdict::mapping(&self.fresh_observations()))
    }

    /// Of the destinations after home, which are asked without anything in between.
    fn port_delta(&self) -> Option<i32> {
        verdict::port_delta(&self.test_seen.iter().skip(1).copied().flatten().collect::<Vec<_>>())
    }

    fn filtering(&self) -> Filtering {
        let other_address = match self.changed {
            // The own port itself was asked about: a hole in a firewall may be for it alone.
            Some(true) => Passage::Passed,
            Some(false) if self.other_address.came => Passage::Unknown,
            Some(false) | None => self.other_address.passage(),
        };
        verdict::filtering(self.other_port.passage(), other_address)
    }

    fn learn(&mut self, now: Instant, question: &Question<Kind>, success: &Success, took: Option<Duration>) {
        let seen = (question.to, success.mapped);
        match question.kind {
            Kind::Greet => {
                self.own_seen.push(seen);
                self.answered.push(Server { at: question.to, other: success.other });
                self.latencies.extend(took.map(|took| (question.to, took)));
            }
            Kind::Again => self.own_seen.push(seen),
            // A server at the node's own outer address: another thing than the node.
            Kind::Hairpin => {}
            Kind::Changed => self.changed = Some(true),
            Kind::TestHome => self.saw(Place::Home, seen),
            Kind::Map(place) => self.saw(place, seen),
            Kind::AskerHome => self.asker_seen = Some(success.mapped),
            Kind::IdleHome(place) => self.rest(now, place, success.mapped),
            Kind::Through(place) => self.try_at(place, |tried| tried.came = true),
            Kind::Reach(place) => self.try_at(place, |tried| tried.answers = true),
            Kind::Idle(place) => {
                let stood = IDLE_TIMES.get(usize::from(place)).copied();
                self.lifetime = self.lifetime.max(stood);
            }
        }
    }

    fn came_back(&mut self, kind: Kind) {
        if kind == Kind::Hairpin {
            self.hairpin = Some(true);
        }
    }

    fn given_up(&mut self, kind: Kind) {
        match kind {
            Kind::Hairpin => self.hairpin = Some(false),
            Kind::Through(place) => self.try_at(place, |tried| tried.given_up = true),
            Kind::Greet
            | Kind::Changed
            | Kind::TestHome
            | Kind::AskerHome
            | Kind::IdleHome(_)
            | Kind::Reach(_)
            | Kind::Map(_)
            | Kind::Again
            | Kind::Idle(_) => {}
        }
    }

    fn saw(&mut self, place: Place, seen: (SocketAddr, SocketAddr)) {
        if let Some(slot) = self.test_seen.get_mut(place as usize) {
            *slot = Some(seen);
        }
    }

    fn try_at(&mut self, place: Place, note: impl FnOnce(&mut Tried)) {
        match place {
            Place::OtherPort => note(&mut self.other_port),
            Place::OtherAddress => note(&mut self.other_address),
            Place::Home | Place::OtherBoth => {}
        }
    }

    /// Goes on to the next stage once nothing of this one is under way.
    fn advance(&mut self, now: Instant) {
        while self.stage != Stage::Settled && !self.transactions.any(Kind::holds_up) {
            match self.stage {
                Stage::Greet => self.go_home(now),
                Stage::Home => self.ask_through(now),
                Stage::Filter => self.ask_mapping(now),
                Stage::Map => self.greet_again(now),
                Stage::Again | Stage::Settled => self.stage = Stage::Settled,
            }
        }
    }

    fn go_home(&mut self, now: Instant) {
        // In the order of the plan, not of arrival: the same network gives the same answers.
        let order = |server: &Server| self.plan.servers.iter().position(|at| *at == server.at);
        self.answered.sort_by_key(order);
        self.places = Places::pick(&self.answered);
        let Some(places) = self.places else {
            self.stage = Stage::Settled;
            return;
        };
        self.stage = Stage::Home;
        self.ask(now, Kind::TestHome, Socket::Test, places.home);
        self.ask(now, Kind::AskerHome, Socket::Asker, places.home);
        for place in (0u8..).take(IDLE_TIMES.len()) {
            self.ask(now, Kind::IdleHome(place), Socket::Idle(place), places.home);
        }
        let outer = self.own_seen.first().map(|(_, observed)| *observed);
        if let Some(outer) = outer.filter(|outer| !self.plan.own.contains(outer)) {
            self.ask(now, Kind::Hairpin, Socket::Own, outer);
        }
        if let Some(from) = places.changed {
            self.changed = Some(false);
            let change_port = from.port() != places.home.port();
            let request = Request { change_address: true, change_port, ..Request::default() };
            let (socket, hears) = (Socket::Own, Socket::Own);
            let question = Question { kind: Kind::Changed, socket, hears, to: places.home, from, request };
            self.transactions.ask(now, question);
        }
    }

    fn ask_through(&mut self, now: Instant) {
        self.stage = Stage::Filter;
        let Some((_, test)) = self.test_seen.first().copied().flatten() else { return };
        let asked = self.around().into_iter().filter(|(place, _)| *place != Place::OtherBoth);
        for (place, at) in asked {
            self.ask_to_send(now, Kind::Through(place), Socket::Test, test, at);
            self.ask(now, Kind::Reach(place), Socket::Asker, at);
        }
    }

    fn ask_mapping(&mut self, now: Instant) {
        self.stage = Stage::Map;
        if self.test_seen.iter().all(Option::is_none) {
            return;
        }
        for (place, at) in self.around() {
            self.ask(now, Kind::Map(place), Socket::Test, at);
        }
    }

    /// The ports that a NAT gives in sequence have gone on since the own port was seen. Home's address has
    /// been sent to already, so this opens no filter that anything here depends on.
    fn greet_again(&mut self, now: Instant) {
        self.stage = Stage::Again;
        let other_port = self.places.and_then(|places| places.other_port);
        if let Some(at) = other_port.filter(|_| self.mapping().is_dependent()) {
            self.ask(now, Kind::Again, Socket::Own, at);
        }
    }

    fn around(&self) -> Vec<(Place, SocketAddr)> {
        let Some(places) = self.places else { return Vec::new() };
        let both = places.other_address.zip(places.other_port);
        [
            (Place::OtherPort, places.other_port),
            (Place::OtherAddress, places.other_address),
            (Place::OtherBoth, both.map(|(address, port)| SocketAddr::new(address.ip(), port.port()))),
        ]
        .into_iter()
        .filter_map(|(place, at)| Some((place, at?)))
        .collect()
    }

    /// An idle port has its mapping: from now on it is silent.
    fn rest(&mut self, now: Instant, place: u8, outer: SocketAddr) {
        let idle = IDLE_TIMES.get(usize::from(place));
        if let (Some(seen), Some(idle)) = (self.idle_seen.get_mut(usize::from(place)), idle) {
            *seen = Some(outer);
            self.timers.set(place, now + *idle);
        }
    }

    fn wake(&mut self, now: Instant, place: u8) {
        let outer = self.idle_seen.get(usize::from(place)).copied().flatten();
        if let (Some(outer), Some(places)) = (outer, self.places) {
            self.ask_to_send(now, Kind::Idle(place), Socket::Idle(place), outer, places.home);
        }
    }

    /// Has `server` send to the outer endpoint of another socket than the one that asks. A server sends to
    /// the asker's own address only, so both must share it.
    fn ask_to_send(
        &mut self,
        now: Instant,
        kind: Kind,
        hears: Socket,
        outer: SocketAddr,
        server: SocketAddr,
    ) {
        if self.asker_seen.map(|asker| asker.ip()) != Some(outer.ip()) {
            return;
        }
        let request = Request { response_port: Some(outer.port()), ..Request::default() };
        let question = Question { kind, socket: Socket::Asker, hears, to: server, from: server, request };
        self.transactions.ask(now, question);
    }

    fn ask(&mut self, now: Instant, kind: Kind, socket: Socket, to: SocketAddr) {
        let request = Request::default();
        self.transactions.ask(now, Question { kind, socket, hears: socket, to, from: to, request });
    }
}

impl Kind {
    /// Whether a stage waits for it. Lifetimes take their time beside it.
    const fn holds_up(&self) -> bool {
        !matches!(self, Self::Idle(_))
    }
}

#[cfg(test)]
mod tests;
