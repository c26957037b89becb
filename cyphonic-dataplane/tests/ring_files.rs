//! A network card where the process may open few files: it is refused, or gives its packets. Needs root and
//! the eBPF objects, and a process of its own, whose limit it changes.

#![expect(unsafe_code, reason = "the limit is set by a system call")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod ring_lab;

use std::net::UdpSocket;

use cyphonic_common::DropReason;
use ring_lab::{A, B, Kind, Node, cid, eventually, outer, tunnel, wire};

/// What the process may open from now on: files with numbers below this.
fn limit_files(most: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes, then reads, one live `rlimit`.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let before = std::mem::replace(&mut limit.rlim_cur, most);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        before
    }
}

#[test]
fn a_card_is_refused_or_gives_its_packets_however_few_files_there_may_be() {
    let (a, b) = wire();
    let b = Node::start(Kind::Xdp, b, B);
    b.ring.install(tunnel(1, 2, A, outer(false, 1, 9), true)).unwrap();
    let stranger = a.run(|| UdpSocket::bind(outer(false, 1, 0)).unwrap());
    let (to, packet) = (outer(false, 2, b.port), [&[0x45][..], cid(2, 1).as_bytes(), &[9; 40]].concat());
    let (mut sent, mut refused) = (0, 0);
    for more in 0.. {
        // The first number that is free now, and a few more.
        let free = std::fs::File::open("/proc/self/stat").unwrap();
        let first = std::os::fd::AsRawFd::as_raw_fd(&free) as libc::rlim_t;
        drop(free);
        let (before, attached) = b.outside(|outside| (limit_files(first + more), outside.attach()));
        stranger.send_to(&packet, to).unwrap();
        sent += 1;
        eventually("by the card or by the port", || b.ring.counters().dropped(DropReason::Forged) == sent);
        limit_files(before);
        match attached {
            Err(_) => refused += 1,
            Ok(card) => {
                assert_eq!(card.queues, 1);
                break;
            }
        }
    }
    assert!(refused > 3, "the limit was reached in {refused} places");
}
