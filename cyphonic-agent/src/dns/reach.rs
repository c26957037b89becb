//! Which of the host's own DNS servers are worth asking first. Pure.
//!
//! A server with a closed port says so at once, and one without a route costs nothing. But routers and hosts
//! say so about once a second (RFC 1812 section 4.3.2.8), and who is asked in between waits in vain. So it is
//! remembered, for a moment only: a server in front may know names that those behind it do not, and one that
//! is restarted is back soon.

use std::time::Duration;

use tokio::time::Instant;

/// For so long a server that was not there is asked only after those that are. Then one query finds out.
const PASSED_OVER: Duration = Duration::from_secs(10);

/// Silent to so many queries in a row, each of which another server answered, it is not there either. Alone,
/// silence may be that of whoever has the name.
const SILENCES: u32 = 3;

/// How the servers stand, each by its place in the host's order.
#[derive(Debug)]
pub(super) struct Reach(Vec<Server>);

#[derive(Debug, Clone, Default)]
struct Server {
    silences: u32,
    passed_over_until: Option<Instant>,
    leads: Leads,
}

/// Where a server's own questions go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Leads {
    #[default]
    Elsewhere,
    /// To us, and to others where we have no answer.
    BackInPart,
    /// To us alone.
    Back,
}

/// Whom to ask, one after the other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    places: Vec<usize>,
    /// So many in front are thought to be there.
    worthy: usize,
}

impl Order {
    /// The servers' places, each with how many share the time that is left when it is its turn. Those that
    /// are passed over take one share together: one of them may be the only one that answers.
    pub(super) fn turns(&self) -> impl Iterator<Item = (usize, u32)> {
        let behind = usize::from(self.worthy < self.places.len());
        let share = move |turn| {
            if turn < self.worthy { self.worthy - turn + behind } else { self.places.len() - turn }
        };
        self.places.iter().enumerate().map(move |(turn, place)| (*place, share(turn) as u32))
    }
}

impl Reach {
    pub(super) fn of(servers: usize) -> Self {
        Self(vec![Server::default(); servers])
    }

    /// For one query, which may be the one that finds out whether a server is back.
    pub(super) fn order(&mut self, now: Instant) -> Order {
        let (mut places, mut behind) = (Vec::new(), Vec::new());
        let wanted = self.asked();
        for (place, server) in self.0.iter_mut().enumerate().filter(|(_, server)| server.leads == wanted) {
            match &mut server.passed_over_until {
                Some(until) if now < *until => behind.push(place),
                Some(until) => {
                    *until = now + PASSED_OVER;
                    places.push(place);
                }
                None => places.push(place),
            }
        }
        let worthy = places.len();
        places.append(&mut behind);
        Order { places, worthy }
    }

    /// Those that ask us in turn are asked only where all do, and of these only those that ask others, too.
    fn asked(&self) -> Leads {
        let some_lead = |leads| self.0.iter().any(|server| server.leads == leads);
        if some_lead(Leads::Elsewhere) { Leads::Elsewhere } else { Leads::BackInPart }
    }

    /// Which lead back to us, each with whether it is asked all the same.
    pub(super) fn leading_back(&self) -> impl Iterator<Item = (usize, bool)> {
        let asked = self.asked();
        let leading = self.0.iter().enumerate().filter(|(_, server)| server.leads != Leads::Elsewhere);
        leading.map(move |(place, server)| (place, server.leads == asked))
    }

    /// True if that is news.
    pub(super) fn leads(&mut self, place: usize, leads: Leads) -> bool {
        let mut before = leads;
        self.at(place, |server| before = std::mem::replace(&mut server.leads, leads));
        before != leads
    }

    /// It is there, whatever it said.
    pub(super) fn answered(&mut self, place: usize) {
        self.at(place, |server| *server = Server { leads: server.leads, ..Server::default() });
    }

    /// The kernel says that nobody is there, or that there is no way.
    pub(super) fn unreachable(&mut self, place: usize, now: Instant) {
        self.at(place, |server| server.passed_over_until = Some(now + PASSED_OVER));
    }

    /// It said nothing, and another server answered the same query.
    pub(super) fn outdone(&mut self, place: usize, now: Instant) {
        self.at(place, |server| {
            server.silences = server.silences.saturating_add(1);
            if server.silences >= SILENCES {
                server.passed_over_until = Some(now + PASSED_OVER);
            }
        });
    }

    fn at(&mut self, place: usize, change: impl FnOnce(&mut Server)) {
        if let Some(server) = self.0.get_mut(place) {
            change(server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(reach: &mut Reach, now: Instant) -> Vec<(usize, u32)> {
        reach.order(now).turns().collect()
    }

    #[test]
    fn a_server_that_is_not_there_is_asked_last_until_one_query_finds_it_back() {
        let (mut reach, mut now) = (Reach::of(3), Instant::now());
        assert_eq!(turns(&mut reach, now), [(0, 3), (1, 2), (2, 1)]);
        reach.unreachable(0, now);
        assert_eq!(turns(&mut reach, now), [(1, 3), (2, 2), (0, 1)], "and has a share of the time");
        now += PASSED_OVER;
        assert_eq!(turns(&mut reach, now), [(0, 3), (1, 2), (2, 1)]);
        assert_eq!(turns(&mut reach, now), [(1, 3), (2, 2), (0, 1)], "one query is enough to find out");
        reach.answered(0);
        assert_eq!(turns(&mut reach, now), [(0, 3), (1, 2), (2, 1)]);
    }

    #[test]
    fn where_none_is_there_all_are_asked_as_ever() {
        let (mut reach, now) = (Reach::of(2), Instant::now());
        reach.unreachable(0, now);
        reach.unreachable(1, now);
        assert_eq!(turns(&mut reach, now), [(0, 2), (1, 1)]);
        assert_eq!(turns(&mut Reach::of(0), now), []);
    }

    #[test]
    fn silence_counts_only_in_a_row() {
        let (mut reach, now) = (Reach::of(2), Instant::now());
        for _ in 0..3 {
            reach.outdone(0, now);
            reach.outdone(0, now);
            assert_eq!(turns(&mut reach, now), [(0, 2), (1, 1)]);
            reach.answered(0);
        }
        for _ in 0..SILENCES {
            reach.outdone(0, now);
        }
        assert_eq!(turns(&mut reach, now), [(1, 2), (0, 1)]);
    }

    #[test]
    fn a_server_that_asks_us_is_asked_only_where_it_can_know_better() {
        let (mut reach, now) = (Reach::of(3), Instant::now());
        assert!(reach.leads(0, Leads::Back) && !reach.leads(0, Leads::Back));
        reach.leads(1, Leads::BackInPart);
        assert_eq!(turns(&mut reach, now), [(2, 1)]);
        assert_eq!(reach.leading_back().collect::<Vec<_>>(), [(0, false), (1, false)]);
        reach.answered(0);
        reach.leads(2, Leads::Back);
        assert_eq!(turns(&mut reach, now), [(1, 1)]);
        assert_eq!(reach.leading_back().collect::<Vec<_>>(), [(0, false), (1, true), (2, false)]);
        reach.leads(1, Leads::Back);
        assert_eq!(turns(&mut reach, now), []);
        assert!(reach.leads(2, Leads::Elsewhere));
        assert_eq!(turns(&mut reach, now), [(2, 1)]);
    }
}
