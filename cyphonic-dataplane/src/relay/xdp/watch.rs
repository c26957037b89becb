//! Watches the routing table, so that the program may use its answers again.
//!
//! A thread hears of every change of routes, neighbours, addresses, interfaces and rules, and tells the program: see
//! [`cyphonic_common::relay::watch`]. What it misses (the kernel says so) counts as a change. When it ends, or its process
//! is killed, or the machine leaves it no time, the program notices within 3 s and asks more often.
//!
//! It also says when the program must follow interfaces that come and go, addresses and routes: at once, but not more often than
//! once a second. That is done by a thread of its own, since a network card may take seconds to get a program.
//!
//! Of what the kernel tells, one kind says mostly nothing new: a neighbour that was confirmed once more. What a bridge learns of
//! its ports comes as the same kind, and says nothing of routes.

use std::collections::HashMap;
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

use super::{XdpError, monotonic_ns};
use crate::bpf::pod::Value;

/// `RTNLGRP_*` of `linux/rtnetlink.h`: links, neighbours, addresses, routes, rules and forwarding of both families, next
/// hops.
const GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32];
/// How often it says that it is there: well within the program's patience.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Between two times that the program follows interfaces.
const SETTLING_NS: u64 = 1_000_000_000;
/// After so long it follows without any news: an interface that did not take the program may take it now.
const RETRYING_NS: u64 = 60_000_000_000;
/// More than the kernel puts into one message.
const BUFFER: usize = 1 << 16;

/// `RTM_NEWLINK` to `RTM_SETLINK` of `linux/rtnetlink.h`, and `RTM_NEWADDR` to `RTM_GETADDR`.
const LINKS: std::ops::RangeInclusive<u16> = 16..=19;
const ADDRESSES: std::ops::RangeInclusive<u16> = 20..=22;
/// `RTM_NEWNEIGH` and `RTM_DELNEIGH` of `linux/rtnetlink.h`.
const NEW_NEIGHBOUR: u16 = 28;
const NEIGHBOUR_GONE: u16 = 29;
/// The family of what a bridge knows of its ports: `AF_BRIDGE` of `linux/socket.h`.
const BRIDGE: u8 = 7;
/// `NDA_DST` and `NDA_LLADDR` of `linux/neighbour.h`.
const NEIGHBOUR_ADDRESS: u16 = 1;
const NEIGHBOUR_LINK_ADDRESS: u16 = 2;
/// `NUD_VALID`: all states in which the link address is used.
const NEIGHBOUR_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
/// Neighbours that are remembered. More are forgotten, which makes every message about them a change.
const MAX_NEIGHBOURS: usize = 16_384;

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

    /// [`start`](Self::start), and has a thread call `follow` at the start and after changes of interfaces, their addresses or
    /// routes.
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
            Ok((len, _)) => neighbours.learn(buffer.get(..len).unwrap_or_default()),
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

/// What may have changed of that by which the program's interfaces are chosen. What is greater may have changed the rest too.
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

/// Neighbours as they were told last: their link addresses, if they have a valid one.
#[derive(Debug, Default)]
struct Neighbours(HashMap<Vec<u8>, Option<Vec<u8>>>);

impl Neighbours {
    /// Reads what the kernel told. Returns what of it is new.
    fn learn(&mut self, mut messages: &[u8]) -> News {
        let mut news = News::NONE;
        // `struct nlmsghdr`: length, type, and twelve bytes more.
        while let Some((header, _)) = messages.split_first_chunk::<16>() {
            let [l0, l1, l2, l3, t0, t1, ..] = *header;
            let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let Some(body) = messages.get(16..len) else { return News::ANY };
            let kind = u16::from_ne_bytes([t0, t1]);
            let changed = match kind {
                NEW_NEIGHBOUR | NEIGHBOUR_GONE if body.first() == Some(&BRIDGE) => false,
                NEW_NEIGHBOUR => self.learn_neighbour(body).unwrap_or(true),
                _ => true,
            };
            let to_follow = match kind {
                NEW_NEIGHBOUR | NEIGHBOUR_GONE => Change::Nothing,
                _ if LINKS.contains(&kind) => Change::Links,
                _ if ADDRESSES.contains(&kind) => Change::Addresses,
                _ => Change::Routes,
            };
            news = news.and(News { changed, to_follow });
            messages = messages.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        news
    }

    /// A neighbour: `struct ndmsg` and attributes. `None`: it is not understood.
    fn learn_neighbour(&mut self, body: &[u8]) -> Option<bool> {
        let (header, mut rest) = body.split_first_chunk::<12>()?;
        let [family, _, _, _, i0, i1, i2, i3, s0, s1, ..] = *header;
        let (mut key, mut link) = (vec![family, i0, i1, i2, i3], None);
        while let Some((&[l0, l1, t0, t1], _)) = rest.split_first_chunk::<4>() {
            let len = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = rest.get(4..len)?;
            match u16::from_ne_bytes([t0, t1]) {
                NEIGHBOUR_ADDRESS => key.extend_from_slice(value),
                NEIGHBOUR_LINK_ADDRESS => link = Some(value.to_vec()),
                _ => {}
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        let link = link.filter(|_| u16::from_ne_bytes([s0, s1]) & NEIGHBOUR_VALID != 0);
        if self.0.len() >= MAX_NEIGHBOURS {
            self.0.clear();
        }
        Some(self.0.insert(key, link.clone()) != Some(link))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use nix::sched::{CloneFlags, unshare};

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

    fn neighbour(state: u16, address: [u8; 4], link: [u8; 6]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0, 7, 0, 0, 0];
        body.extend(state.to_ne_bytes());
        body.extend([0, 1]);
        for (kind, value) in [(NEIGHBOUR_ADDRESS, &address[..]), (NEIGHBOUR_LINK_ADDRESS, &link[..])] {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        message(NEW_NEIGHBOUR, &body)
    }

    #[test]
    fn a_neighbour_that_is_confirmed_is_no_news_and_one_that_moves_is() {
        const REACHABLE: u16 = 2;
        const STALE: u16 = 4;
        const FAILED: u16 = 0x20;
        let mut neighbours = Neighbours::default();
        let mut learn = |state, host, link| {
            let news = neighbours.learn(&neighbour(state, [192, 0, 2, host], [link; 6]));
            assert_eq!(news.to_follow, Change::Nothing);
            news.changed
        };
        assert!(learn(REACHABLE, 1, 1) && learn(REACHABLE, 2, 1), "new");
        assert!(!learn(STALE, 1, 1) && !learn(REACHABLE, 1, 1), "the same");
        assert!(learn(REACHABLE, 1, 9), "another link address");
        assert!(learn(FAILED, 1, 9) && !learn(FAILED, 1, 9) && learn(REACHABLE, 1, 9), "gone and back");
        assert!(!learn(STALE, 2, 1));
    }

    #[test]
    fn what_a_bridge_learns_of_its_ports_is_no_news() {
        let mut neighbours = Neighbours::default();
        let learnt = |kind: u16, link: u8| {
            // `NUD_REACHABLE`, and `NTF_MASTER` of `linux/neighbour.h`.
            let mut body = vec![BRIDGE, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0x04, 0];
            body.extend([10, 0, NEIGHBOUR_LINK_ADDRESS as u8, 0, 2, 0, 0, 0, 0, link]);
            message(kind, &body)
        };
        for (kind, link) in [(NEW_NEIGHBOUR, 1), (NEW_NEIGHBOUR, 2), (NEIGHBOUR_GONE, 1)] {
            assert_eq!(neighbours.learn(&learnt(kind, link)), News::NONE, "{kind} {link}");
        }
        assert!(neighbours.0.is_empty());
    }

    #[test]
    fn everything_else_is_news_and_so_is_what_is_not_understood() {
        let mut neighbours = Neighbours::default();
        let known = neighbour(2, [192, 0, 2, 1], [1; 6]);
        assert!(neighbours.learn(&known).changed);
        assert_eq!(neighbours.learn(&known), News::NONE);
        assert_eq!(neighbours.learn(&[known.clone(), known.clone()].concat()), News::NONE);
        use Change::{Addresses, Links, Nothing, Routes};
        // Interfaces, addresses, routes; a neighbour that was deleted, a rule, a next hop.
        let kinds = [(16, Links), (17, Links), (20, Addresses), (21, Addresses), (24, Routes), (25, Routes)];
        for (kind, to_follow) in kinds.into_iter().chain([(29, Nothing), (32, Routes), (104, Routes)]) {
            let told = neighbours.learn(&[message(kind, &[0; 12]), known.clone()].concat());
            assert_eq!(told, News { changed: true, to_follow }, "{kind}");
        }
        let all = [message(24, &[0; 12]), message(16, &[0; 12]), message(20, &[0; 12])].concat();
        assert_eq!(neighbours.learn(&all), News::ANY);
        for len in 17..known.len() {
            assert_eq!(neighbours.learn(&known[..len]), News::ANY, "cut at {len}");
        }
        assert!(neighbours.learn(&message(NEW_NEIGHBOUR, &[0; 4])).changed);
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
