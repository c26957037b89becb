//! Watches the routing table, so that the program may use its answers again.
//!
//! A thread hears of every change of routes, neighbours, addresses, interfaces and rules, and tells the
//! program: see [`cyphonic_common::relay::watch`]. What it misses (the kernel says so) counts as a change.
//! When it ends, or its process is killed, or the machine leaves it no time, the program notices within 3 s
//! and asks more often.
//!
//! It also says when the program must follow interfaces that come and go, addresses and routes: at once, but
//! not more often than once a second. That is done by a thread of its own, since a network card may take
//! seconds to get a program.
//!
//! Of what the kernel tells, what it says of neighbours is mostly nothing new (`neighbours.rs`).

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, MapData};
use cyphonic_common::relay::RelayWatch;
use cyphonic_common::relay::map::name;
use cyphonic_common::relay::watch::ticks;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::neighbours::Neighbours;
use super::{XdpError, monotonic_ns};
use crate::bpf::pod::Value;
use crate::netdevice::netlink::{Message, messages};

/// Links, neighbours, and of both families addresses, routes, rules and forwarding; next hops.
const GROUPS: [u32; 11] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_NETCONF,
    libc::RTNLGRP_NEXTHOP,
];
/// How often it says that it is there: well within the program's patience.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Between two times that the program follows interfaces.
const SETTLING_NS: u64 = 1_000_000_000;
/// After so long it follows without any news: an interface that did not take the program may take it now.
const RETRYING_NS: u64 = 60_000_000_000;
/// More than the kernel puts into one message.
const BUFFER: usize = 1 << 16;

/// The kinds of what is said of interfaces, and of their addresses.
const LINKS: RangeInclusive<u16> = libc::RTM_NEWLINK..=libc::RTM_SETLINK;
const ADDRESSES: RangeInclusive<u16> = libc::RTM_NEWADDR..=libc::RTM_GETADDR;

/// Watches as long as it lives.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<AtomicBool>,
}

impl Watcher {
    /// Starts in this thread's network namespace, for the program of a loaded object.
    ///
    /// # Errors
    /// The kernel gives no socket, or the object has no such map.
    pub fn start(ebpf: &mut Ebpf) -> Result<Self, XdpError> {
        Self::start_with(ebpf, |_| {})
    }

    /// [`start`](Self::start), and has a thread call `follow` at the start and after changes of interfaces,
    /// their addresses or routes.
    pub(super) fn start_with(
        ebpf: &mut Ebpf,
        follow: impl FnMut(Change) + Send + 'static,
    ) -> Result<Self, XdpError> {
        let map = ebpf.take_map(name::WATCH).ok_or(XdpError::Missing(name::WATCH))?;
        let map = Array::try_from(map).map_err(|error| XdpError::map(name::WATCH)(error.into()))?;
        let socket = open().map_err(|error| XdpError::Watch(error.into()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (changes, told) = sync_channel(1);
        spawn("cyphonic-links", move || told.into_iter().for_each(follow))?;
        // Its end is that of the other one too.
        spawn("cyphonic-routes", move || watch(&socket, map, &stopped, &changes))?;
        Ok(Self { stop })
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), XdpError> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).map(drop).map_err(XdpError::Watch)
}

impl Drop for Watcher {
    /// The thread ends with its next heartbeat.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn open() -> rustix::io::Result<OwnedFd> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(HEARTBEAT))?;
    let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

fn watch(
    socket: &OwnedFd,
    mut map: Array<MapData, Value<RelayWatch>>,
    stop: &AtomicBool,
    changes: &SyncSender<Change>,
) {
    // Something may have changed between the choice of interfaces and the socket.
    let (mut unfollowed, mut followed_ns) = (Change::Links, None);
    let (mut buffer, mut neighbours) = (vec![0; BUFFER], Neighbours::default());
    // Answers from before it watched may be from before a change.
    let mut changed = ticks(monotonic_ns());
    while !stop.load(Ordering::Relaxed) {
        let now_ns = monotonic_ns();
        // Before anything else: until then the program uses what may be wrong now.
        if let Err(error) = map.set(0, Value(RelayWatch { changed, seen: ticks(now_ns) }), 0) {
            tracing::warn!(%error, "the relay's program is not told of changed routes, and asks more often");
            return;
        }
        let pause_ns = if unfollowed > Change::Nothing { SETTLING_NS } else { RETRYING_NS };
        let is_due = followed_ns.is_none_or(|followed_ns| now_ns.saturating_sub(followed_ns) >= pause_ns);
        // If the other thread has not come to the last one yet, this one waits.
        if is_due && changes.try_send(unfollowed).is_ok() {
            (unfollowed, followed_ns) = (Change::Nothing, Some(now_ns));
        }
        let news = match rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((len, _)) => learn(&mut neighbours, buffer.get(..len).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => News::NONE,
            // Something was lost.
            Err(Errno::NOBUFS) => News::ANY,
            Err(error) => {
                tracing::warn!(%error, "changes of routes are not noticed any more: the relay's program asks more often");
                return;
            }
        };
        if news.changed {
            changed = ticks(monotonic_ns());
        }
        unfollowed = unfollowed.max(news.to_follow);
    }
}

/// What may have changed of that by which the program's interfaces are chosen. What is greater may have
/// changed the rest too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    Nothing,
    /// The ways to the world.
    Routes,
    /// The interfaces' addresses.
    Addresses,
    /// The interfaces, and what stands above them.
    Links,
}

/// What the kernel told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct News {
    /// Answers of the routing table may have changed.
    changed: bool,
    /// What else may have.
    to_follow: Change,
}

impl News {
    const NONE: Self = Self { changed: false, to_follow: Change::Nothing };
    const ANY: Self = Self { changed: true, to_follow: Change::Links };

    fn and(self, other: Self) -> Self {
        Self { changed: self.changed | other.changed, to_follow: self.to_follow.max(other.to_follow) }
    }
}

/// Reads what the kernel told. Returns what of it is new.
fn learn(neighbours: &mut Neighbours, received: &[u8]) -> News {
    messages(received).fold(News::NONE, |news, message| {
        news.and(message.map_or(News::ANY, |message| learn_one(neighbours, &message)))
    })
}

fn learn_one(neighbours: &mut Neighbours, message: &Message<'_>) -> News {
    let is_change = |to_follow| News { changed: true, to_follow };
    match message.kind {
        kind @ (libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH) => {
            News { changed: neighbours.learn(kind, message.content), to_follow: Change::Nothing }
        }
        kind if LINKS.contains(&kind) => is_change(Change::Links),
        kind if ADDRESSES.contains(&kind) => is_change(Change::Addresses),
        _ => is_change(Change::Routes),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use nix::sched::{CloneFlags, unshare};

    use super::super::neighbours::tests::neighbour;
    use super::super::object::Object;
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    #[test]
    fn everything_else_is_news_and_so_is_what_is_not_understood() {
        let mut neighbours = Neighbours::default();
        let known = message(libc::RTM_NEWNEIGH, &neighbour(2, [192, 0, 2, 1], [1; 6]));
        assert!(learn(&mut neighbours, &known).changed);
        assert_eq!(learn(&mut neighbours, &known), News::NONE);
        assert_eq!(learn(&mut neighbours, &[known.clone(), known.clone()].concat()), News::NONE);
        use Change::{Addresses, Links, Nothing, Routes};
        // Interfaces, addresses, routes; a neighbour that was deleted, a rule, a next hop.
        let kinds = [(16, Links), (17, Links), (20, Addresses), (21, Addresses), (24, Routes), (25, Routes)];
        for (kind, to_follow) in kinds.into_iter().chain([(29, Nothing), (32, Routes), (104, Routes)]) {
            let told = learn(&mut neighbours, &[message(kind, &[0; 12]), known.clone()].concat());
            assert_eq!(told, News { changed: true, to_follow }, "{kind}");
        }
        let all = [message(24, &[0; 12]), message(16, &[0; 12]), message(20, &[0; 12])].concat();
        assert_eq!(learn(&mut neighbours, &all), News::ANY);
        for len in 17..known.len() {
            assert_eq!(learn(&mut neighbours, &known[..len]), News::ANY, "cut at {len}");
        }
        assert!(learn(&mut neighbours, &message(libc::RTM_NEWNEIGH, &[0; 4])).changed);
    }

    /// Needs root and the eBPF objects.
    #[test]
    fn the_program_is_told_of_changes_also_while_one_is_being_followed() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut object = Object::load(16, None).unwrap();
            let (follows, followed) = channel();
            let (finish, finished) = channel::<()>();
            let watched = object.watched();
            let _watcher = object.watch(move |change| {
                follows.send(change).unwrap();
                let _ = finished.recv();
            });
            assert_eq!(followed.recv_timeout(PATIENCE).unwrap(), Change::Links, "at the start");
            let before = watched.get(&0, 0).unwrap().0;
            // The clock of answers has moved on.
            std::thread::sleep(Duration::from_millis(50));
            let lo = ["link", "set", "lo", "up"];
            assert!(Command::new("ip").args(lo).status().unwrap().success());
            let deadline = Instant::now() + PATIENCE;
            loop {
                let now = watched.get(&0, 0).unwrap().0;
                if now.changed > before.changed && now.seen > now.changed + ticks(HEARTBEAT.as_nanos() as u64)
                {
                    break;
                }
                assert!(Instant::now() < deadline, "{now:?} after {before:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(followed.try_recv().is_err(), "the first is not done");
            drop(finish);
            // Its addresses may have been told before.
            while followed.recv_timeout(PATIENCE).unwrap() != Change::Links {}
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    }
}
