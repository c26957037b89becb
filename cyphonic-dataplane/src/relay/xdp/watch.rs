//! Watches the routing table, so that the program may use its answers again.
//!
//! A thread hears of every change of routes, neighbours, addresses, interfaces and rules, and tells the program: see
//! [`cyphonic_common::relay::watch`]. What it misses (the kernel says so) counts as a change. When it ends, or its process
//! is killed, or the machine leaves it no time, the program notices within 3 s and asks more often.
//!
//! The same thread has the program follow interfaces that come and go, addresses and routes: at once, but not more often than
//! once a second.
//!
//! Of what the kernel tells, one kind says mostly nothing new: a neighbour that was confirmed once more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

use super::object::Value;
use super::{XdpError, monotonic_ns};

/// `RTNLGRP_*` of `linux/rtnetlink.h`: links, neighbours, addresses, routes, rules and forwarding of both families, next
/// hops.
const GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32];
/// How often it says that it is there: well within the program's patience.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Between two times that the program follows interfaces.
const SETTLING_NS: u64 = 1_000_000_000;
/// More than the kernel puts into one message.
const BUFFER: usize = 1 << 16;

/// `RTM_NEWLINK` to `RTM_GETROUTE` of `linux/rtnetlink.h`: interfaces, addresses, routes.
const INTERFACES: std::ops::Range<u16> = 16..27;
/// `RTM_NEWNEIGH` of `linux/rtnetlink.h`.
const NEW_NEIGHBOUR: u16 = 28;
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
        Self::start_with(ebpf, || {})
    }

    /// [`start`](Self::start), and calls `follow` after changes of interfaces, their addresses or routes.
    pub(super) fn start_with(
        ebpf: &mut Ebpf,
        follow: impl FnMut() + Send + 'static,
    ) -> Result<Self, XdpError> {
        let map = ebpf.take_map(name::WATCH).ok_or(XdpError::Missing(name::WATCH))?;
        let map = Array::try_from(map).map_err(|error| XdpError::map(name::WATCH)(error.into()))?;
        let socket = open().map_err(|error| XdpError::Watch(error.into()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watch = move || watch(&socket, map, &stopped, follow);
        std::thread::Builder::new()
            .name("cyphonic-routes".to_owned())
            .spawn(watch)
            .map_err(XdpError::Watch)?;
        Ok(Self { stop })
    }
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
    mut follow: impl FnMut(),
) {
    let (mut unfollowed, mut followed_ns) = (false, 0);
    let (mut buffer, mut neighbours) = (vec![0; BUFFER], Neighbours::default());
    // Answers from before it watched may be from before a change.
    let mut changed = ticks(monotonic_ns());
    while !stop.load(Ordering::Relaxed) {
        let seen = ticks(monotonic_ns());
        if let Err(error) = map.set(0, Value(RelayWatch { changed, seen }), 0) {
            tracing::warn!(%error, "the relay's program is not told of changed routes, and asks more often");
            return;
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
        let now_ns = monotonic_ns();
        if news.changed {
            changed = ticks(now_ns);
        }
        unfollowed |= news.interfaces;
        if unfollowed && now_ns.saturating_sub(followed_ns) >= SETTLING_NS {
            (unfollowed, followed_ns) = (false, now_ns);
            follow();
        }
    }
}

/// What the kernel told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct News {
    /// Answers of the routing table may have changed.
    changed: bool,
    /// So may have the interfaces that the program should be on.
    interfaces: bool,
}

impl News {
    const NONE: Self = Self { changed: false, interfaces: false };
    const ANY: Self = Self { changed: true, interfaces: true };

    fn and(self, other: Self) -> Self {
        Self { changed: self.changed | other.changed, interfaces: self.interfaces | other.interfaces }
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
            news = news.and(match u16::from_ne_bytes([t0, t1]) {
                NEW_NEIGHBOUR => {
                    News { changed: self.learn_neighbour(body).unwrap_or(true), interfaces: false }
                }
                kind => News { changed: true, interfaces: INTERFACES.contains(&kind) },
            });
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
            assert!(!news.interfaces);
            news.changed
        };
        assert!(learn(REACHABLE, 1, 1) && learn(REACHABLE, 2, 1), "new");
        assert!(!learn(STALE, 1, 1) && !learn(REACHABLE, 1, 1), "the same");
        assert!(learn(REACHABLE, 1, 9), "another link address");
        assert!(learn(FAILED, 1, 9) && !learn(FAILED, 1, 9) && learn(REACHABLE, 1, 9), "gone and back");
        assert!(!learn(STALE, 2, 1));
    }

    #[test]
    fn everything_else_is_news_and_so_is_what_is_not_understood() {
        let mut neighbours = Neighbours::default();
        let known = neighbour(2, [192, 0, 2, 1], [1; 6]);
        assert!(neighbours.learn(&known).changed);
        assert_eq!(neighbours.learn(&known), News::NONE);
        assert_eq!(neighbours.learn(&[known.clone(), known.clone()].concat()), News::NONE);
        // A route, an interface, an address; a neighbour that was deleted, a rule.
        for (kind, interfaces) in [(24, true), (25, true), (16, true), (20, true), (29, false), (32, false)] {
            let told = neighbours.learn(&[message(kind, &[0; 12]), known.clone()].concat());
            assert_eq!(told, News { changed: true, interfaces }, "{kind}");
        }
        for len in 17..known.len() {
            assert_eq!(neighbours.learn(&known[..len]), News::ANY, "cut at {len}");
        }
        assert!(neighbours.learn(&message(NEW_NEIGHBOUR, &[0; 4])).changed);
    }
}
