//! The port against the kernel: real sockets on loopback.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::ConnectionId;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn v4(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn v6(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, port))
}

/// A received datagram, on its own.
#[derive(Debug, PartialEq, Eq)]
struct Datagram {
    from: SocketAddr,
    local_ip: Option<IpAddr>,
    ecn: Option<u8>,
    payload: Vec<u8>,
}

/// Receives until `count` datagrams are there.
fn receive(port: &UdpPort, count: usize) -> Vec<Datagram> {
    let mut batch = RecvBatch::new(8);
    let mut datagrams = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while datagrams.len() < count {
        assert!(Instant::now() < deadline, "only {} of {count} datagrams arrived", datagrams.len());
        match port.recv_batch(&mut batch) {
            Ok(_) => {
                for message in batch.messages_mut() {
                    let Message { from, local_ip, ecn, payload, stride, .. } = message;
                    datagrams.extend(payload.chunks(stride).map(|payload| Datagram {
                        from,
                        local_ip,
                        ecn,
                        payload: payload.to_vec(),
                    }));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                port.wait(Some(Duration::from_millis(100))).expect("waited");
            }
            Err(error) => panic!("receiving: {error}"),
        }
    }
    datagrams
}

#[test]
fn one_port_reaches_both_families_with_canonical_addresses() {
    let (a, b) = (UdpPort::bind(0).expect("a"), UdpPort::bind(0).expect("b"));
    assert!(a.is_dual_stack() && !a.may_fragment());
    for (dest, from) in [(v4(b.local_port()), v4(a.local_port())), (v6(b.local_port()), v6(a.local_port()))] {
        a.send(&Transmit::new(dest, b"hello")).expect("sent");
        let expected = Datagram { from, local_ip: Some(dest.ip()), ecn: None, payload: b"hello".to_vec() };
        assert_eq!(receive(&b, 1), [expected]);
    }
}

#[test]
fn a_port_without_ipv6_works_and_says_what_it_cannot_reach() {
    let a = UdpPort::bind_to(v4(0)).expect("a");
    let b = UdpPort::bind_to(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).expect("b");
    assert!(!a.is_dual_stack() && !b.is_dual_stack());
    a.send(&Transmit::new(v4(b.local_port()), b"hello")).expect("sent");
    let received = receive(&b, 1);
    assert_eq!((received[0].from, received[0].local_ip), (a.local_addr(), Some(Ipv4Addr::LOCALHOST.into())));
    let error = b.send(&Transmit::new(v6(1), b"hello")).expect_err("no IPv6");
    assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
}

#[test]
fn segments_arrive_as_the_datagrams_they_are() {
    let (a, b) = (UdpPort::bind(0).expect("a"), UdpPort::bind(0).expect("b"));
    assert!(a.max_gso_segments() > 1, "this kernel has UDP_SEGMENT");
    // 150 segments are more than one system call takes; the last is shorter.
    let payload: Vec<u8> = (0..150 * 1200 - 7).map(|i| (i / 1200) as u8).collect();
    for dest in [v4(b.local_port()), v6(b.local_port())] {
        let transmit = Transmit { segment_size: Some(1200), ..Transmit::new(dest, &payload) };
        let (sent, result) = a.send_counted(&transmit);
        result.expect("sent");
        assert_eq!(sent, payload.len());
        let received: Vec<_> = receive(&b, 150).into_iter().map(|datagram| datagram.payload).collect();
        assert_eq!(received, payload.chunks(1200).map(<[u8]>::to_vec).collect::<Vec<_>>());
    }
}

#[test]
fn the_kernel_merges_what_came_in_one_call() {
    let (a, b) = (UdpPort::bind(0).expect("a"), UdpPort::bind(0).expect("b"));
    let payload = [7; 10 * 1000];
    a.send(&Transmit { segment_size: Some(1000), ..Transmit::new(v4(b.local_port()), &payload) })
        .expect("sent");
    assert!(b.wait(Some(PATIENCE)).expect("waited").readable);
    let mut batch = RecvBatch::new(4);
    assert_eq!(b.recv_batch(&mut batch).expect("received"), 1, "this kernel has UDP_GRO");
    let message = batch.messages_mut().next().expect("a message");
    assert_eq!((message.payload.len(), message.stride), (10_000, 1000));
}

/// Segmentation refused, as some network cards and tunnels do: here by switching checksums off.
#[test]
#[expect(unsafe_code, reason = "a socket option that no library has")]
fn refused_segmentation_falls_back_to_single_datagrams_and_loses_none() {
    let a = UdpPort::bind_to(v4(0)).expect("a");
    let b = UdpPort::bind_to(v4(0)).expect("b");
    let on: libc::c_int = 1;
    // SAFETY: the option reads one `c_int` from the pointer, which `on` outlives; the descriptor is open.
    let result = unsafe {
        use std::os::fd::AsRawFd;
        let value = (&raw const on).cast();
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(a.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, value, len)
    };
    assert_eq!(result, 0, "SO_NO_CHECK: {}", io::Error::last_os_error());

    let payload: Vec<u8> = (0..20 * 100 - 3).map(|i| (i / 100) as u8).collect();
    let transmit = Transmit { segment_size: Some(100), ..Transmit::new(b.local_addr(), &payload) };
    for _ in 0..2 {
        a.send(&transmit).expect("sent");
        let received: Vec<_> = receive(&b, 20).into_iter().map(|datagram| datagram.payload).collect();
        assert_eq!(received, payload.chunks(100).map(<[u8]>::to_vec).collect::<Vec<_>>());
    }
    assert_eq!(a.max_gso_segments(), 1);
}

/// A thread in a network namespace of its own, whose loopback carries 1400 bytes. It needs root, and goes
/// with the thread.
#[test]
fn segments_too_large_for_the_interface_do_not_end_segmentation() {
    let in_namespace = std::thread::spawn(|| {
        enter_new_network_namespace();
        let ip = std::process::Command::new("ip").args("link set lo mtu 1400 up".split(' ')).status();
        assert!(ip.expect("iproute2 is installed").success());
        let (a, b) = (UdpPort::bind(0).expect("a"), UdpPort::bind(0).expect("b"));
        for dest in [v4(b.local_port()), v6(b.local_port())] {
            let large = [7; 4 * 1390];
            let error = a.send(&Transmit { segment_size: Some(1390), ..Transmit::new(dest, &large) });
            assert_eq!(error.expect_err("too large").raw_os_error(), Some(libc::EMSGSIZE));
            assert!(a.max_gso_segments() > 1);
            let fitting = [8; 4 * 1300];
            a.send(&Transmit { segment_size: Some(1300), ..Transmit::new(dest, &fitting) }).expect("sent");
            assert!(receive(&b, 4).iter().all(|datagram| datagram.payload == [8; 1300]));
        }
    });
    in_namespace.join().expect("no failure in the namespace");
}

#[expect(unsafe_code, reason = "a system call that no library here has")]
fn enter_new_network_namespace() {
    // SAFETY: `unshare` takes no pointers; it moves the calling thread alone, which owns no sockets yet.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "needs root: {}", io::Error::last_os_error());
}

#[test]
fn ecn_bits_go_both_ways_in_both_families() {
    let (a, b) = (UdpPort::bind(0).expect("a"), UdpPort::bind(0).expect("b"));
    for dest in [v4(b.local_port()), v6(b.local_port())] {
        for ecn in [None, Some(0b01), Some(0b10), Some(0b11)] {
            a.send(&Transmit { ecn, ..Transmit::new(dest, b"marked") }).expect("sent");
            assert_eq!(receive(&b, 1)[0].ecn, ecn, "to {dest}");
        }
    }
}

#[test]
fn an_answer_can_leave_from_the_address_that_was_asked() {
    let server = UdpPort::bind(0).expect("server");
    let client = UdpSocket::bind(v4(0)).expect("client");
    client.set_read_timeout(Some(PATIENCE)).expect("time-out");
    let alias = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 7), server.local_port()));
    client.send_to(b"question", alias).expect("asked");
    let question = receive(&server, 1).remove(0);
    assert_eq!(question.local_ip, Some(alias.ip()));
    let answer = Transmit { src_ip: question.local_ip, ..Transmit::new(question.from, b"answer") };
    server.send(&answer).expect("answered");
    let mut buf = [0; 16];
    assert_eq!(client.recv_from(&mut buf).expect("an answer"), (6, alias));
    // A source of the other family cannot be meant.
    let answer = Transmit { src_ip: Some(Ipv6Addr::LOCALHOST.into()), ..answer };
    server.send(&answer).expect("answered");
    assert_eq!(client.recv_from(&mut buf).expect("an answer").1, v4(server.local_port()));
}

#[test]
fn an_empty_datagram_is_no_message() {
    let port = UdpPort::bind(0).expect("port");
    let sender = UdpSocket::bind(v4(0)).expect("sender");
    sender.send_to(b"", v4(port.local_port())).expect("sent");
    sender.send_to(b"x", v4(port.local_port())).expect("sent");
    assert_eq!(receive(&port, 1)[0].payload, b"x");
}

#[test]
fn a_waiter_is_woken_by_a_call_by_data_and_by_time() {
    let port = Arc::new(UdpPort::bind(0).expect("port"));
    assert_eq!(port.wait(Some(Duration::from_millis(1))).expect("waited"), Woken::default());
    let waiter = std::thread::spawn({
        let port = Arc::clone(&port);
        move || port.wait(Some(PATIENCE)).expect("waited")
    });
    port.wake();
    assert_eq!(waiter.join().expect("joined"), Woken { called: true, ..Woken::default() });
    assert_eq!(port.wait(Some(Duration::from_millis(1))).expect("waited"), Woken::default(), "once");
    port.send(&Transmit::new(v4(port.local_port()), b"to myself")).expect("sent");
    assert_eq!(port.wait(Some(PATIENCE)).expect("waited"), Woken { readable: true, ..Woken::default() });
    assert!(port.wait_writable(PATIENCE).expect("waited"));
}

#[test]
fn nothing_is_fragmented() {
    let port = UdpPort::bind(0).expect("port");
    // Larger than loopback's MTU of 65,536 with headers of IPv4 (20) and UDP (8), but a legal UDP length over
    // IPv6.
    let payload = vec![0; 65_500];
    let error = port.send(&Transmit::new(v6(port.local_port()), &payload)).expect_err("does not fit");
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
}

#[test]
fn the_buffers_are_as_large_as_asked_for() {
    // As root; without CAP_NET_ADMIN the system's limit holds.
    let (send, receive) = UdpPort::bind(0).expect("port").buffer_sizes().expect("sizes");
    assert!(send >= 7 << 20 && receive >= 7 << 20, "{send} {receive}");
}

#[test]
fn a_taken_port_is_said_plainly() {
    let taken = UdpPort::bind(0).expect("port");
    let error = UdpPort::bind(taken.local_port()).expect_err("taken").to_string();
    assert!(error.contains(&taken.local_port().to_string()) && error.contains("Another program"), "{error}");
    let error = UdpPort::bind_to("192.0.2.1:0".parse().expect("address")).expect_err("not ours").to_string();
    assert!(error.contains("not one of this host's"), "{error}");
}

#[test]
fn the_source_the_kernel_would_choose_is_known() {
    let port = UdpPort::bind(0).expect("port");
    assert_eq!(port.source_for(v4(9)).expect("route"), v4(0).ip());
    assert_eq!(port.source_for(v6(9)).expect("route"), v6(0).ip());
}

#[test]
fn a_group_of_sockets_shares_one_port_and_nobody_else_does() {
    let group = UdpPort::bind_group(0, 3).unwrap();
    assert_eq!(group.len(), 3);
    let port = group[0].local_port();
    assert!(group.iter().all(|socket| socket.local_port() == port && socket.is_dual_stack()));
    for other in [UdpPort::bind(port).map(|_| ()), UdpPort::bind_group(port, 2).map(|_| ())] {
        assert_eq!(other.unwrap_err().source.kind(), io::ErrorKind::AddrInUse);
    }
    // Whatever socket the kernel chooses, it gets the datagram.
    let sender = UdpSocket::bind(v4(0)).unwrap();
    for n in 0..20 {
        sender.send_to(&[n], v4(port)).unwrap();
    }
    let mut batch = RecvBatch::new(8);
    let deadline = Instant::now() + PATIENCE;
    let mut received = 0;
    while received < 20 {
        assert!(Instant::now() < deadline, "{received} of 20 arrived");
        for socket in &group {
            if socket.recv_batch(&mut batch).is_ok() {
                received += batch.messages_mut().map(|message| message.payload.len()).sum::<usize>();
            }
        }
    }
    drop(group);
    UdpPort::bind_group(port, 1).unwrap();
}

/// A worker whose mailbox is filled as fast as it is emptied still hears its own socket, and the other way.
#[test]
fn a_socket_and_what_others_hand_on_take_turns() {
    let group = UdpPort::bind_group(0, 2).unwrap();
    let sender = UdpSocket::bind(v4(0)).unwrap();
    let send_own = || assert_eq!(sender.send_to(b"own", v4(group[0].local_port())).unwrap(), 3);
    let mut batch = RecvBatch::new(1);
    // The one of the two that the kernel chooses for this sender.
    send_own();
    let index = group.iter().position(|port| port.recv_batch(&mut batch).is_ok()).unwrap();
    let port = &group[index];
    let shared = Arc::clone(port.group().unwrap());
    let cid = ConnectionId::from_random_data([1; 8]);
    shared.set_owner(cid, index);
    let mut turns = Vec::new();
    let stray = |count| (0..count).for_each(|_| assert!(shared.hand_on_stray(cid, v4(1), None, b"stray")));
    stray(2);
    for _ in 0..4 {
        // Neither runs dry.
        stray(2);
        (0..2).for_each(|_| send_own());
        for _ in 0..2 {
            port.recv_batch(&mut batch).unwrap();
            turns.extend(batch.messages_mut().map(|message| message.handed_on));
        }
    }
    assert_eq!(turns, [true, false].repeat(4));
    // Whichever is left is not held up by the one that is empty.
    let mut rest = Vec::new();
    while port.recv_batch(&mut batch).is_ok() {
        rest.extend(batch.messages_mut().map(|message| message.handed_on));
    }
    let of = |handed_on| rest.iter().filter(|one| **one == handed_on).count();
    assert_eq!((of(true), of(false)), (6, 4));
}

#[test]
fn what_cannot_leave_from_the_named_address_leaves_from_another_and_keeps_its_ecn_field() {
    let (a, b) = (UdpPort::bind(0).expect("a"), UdpPort::bind(0).expect("b"));
    let gone: [IpAddr; 2] = ["192.0.2.55".parse().expect("v4"), "2001:db8::55".parse().expect("v6")];
    let homes: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for (dest, (gone, home)) in
        [v4(b.local_port()), v6(b.local_port())].into_iter().zip(gone.into_iter().zip(homes))
    {
        for src_ip in [Some(gone), Some(home), None, Some(gone)] {
            let transmit = Transmit { src_ip, ecn: Some(2), ..Transmit::new(dest, b"moved") };
            a.send(&transmit).expect("sent all the same");
            let datagram = receive(&b, 1).remove(0);
            assert_eq!((datagram.from.ip(), datagram.ecn), (home, Some(2)), "{dest} from {src_ip:?}");
        }
    }
}

#[test]
fn what_the_kernel_refuses_takes_the_ecn_field_from_nothing_else() {
    let (a, b) = (UdpPort::bind(0).expect("a"), UdpPort::bind(0).expect("b"));
    let (home, gone) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 55));
    // More than once: also what replaced the first state is replaced.
    for src_ip in [None, Some(home), Some(gone), None] {
        let src_ip = src_ip.map(IpAddr::from);
        for nowhere in [v4(0), v6(0)] {
            let refused = Transmit { src_ip, ecn: Some(2), ..Transmit::new(nowhere, b"nobody") };
            let error = a.send(&refused).expect_err("no port has this number");
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{nowhere} from {src_ip:?}");
        }
        for src_ip in [None, Some(IpAddr::from(home))] {
            let transmit = Transmit { src_ip, ecn: Some(2), ..Transmit::new(v4(b.local_port()), b"marked") };
            a.send(&transmit).expect("sent");
            assert_eq!(receive(&b, 1)[0].ecn, Some(2), "from {src_ip:?}");
        }
    }
}

/// The addresses that a translator would have are this host's own, in a network namespace of its own.
#[test]
fn ipv4_goes_and_comes_through_a_translator_once_the_port_knows_of_one() {
    std::thread::spawn(|| {
        enter_new_network_namespace();
        let run = |arguments: &str| {
            let status =
                std::process::Command::new("ip").args(arguments.split(' ')).status().expect("iproute2");
            assert!(status.success(), "ip {arguments}");
        };
        run("link set lo up");
        run("-6 addr add 64:ff9b::c000:221/128 dev lo nodad");
        // The kernel takes packets for an address only a little after it was given.
        let probe = UdpSocket::bind("[64:ff9b::c000:221]:0").expect("the address");
        probe.set_read_timeout(Some(Duration::from_millis(2))).expect("a time-out");
        let deadline = Instant::now() + PATIENCE;
        while probe.send_to(b"?", probe.local_addr().expect("bound")).is_err()
            || probe.recv(&mut [0]).is_err()
        {
            assert!(Instant::now() < deadline, "the address is not the host's");
        }
        let group = UdpPort::bind_group(0, 2).expect("a");
        let [a, other] = &group[..] else { panic!("two sockets") };
        let b = UdpPort::bind(0).expect("b");
        let (far, payload) = (SocketAddr::from(([192, 0, 2, 33], b.local_port())), vec![7; 20_000]);
        let many = Transmit { segment_size: Some(1_000), ecn: Some(2), ..Transmit::new(far, &payload) };
        assert!(a.send(&many).is_err() && a.source_for(far).is_err(), "no route leads to IPv4");

        let prefix = cyphonic_common::Nat64Prefix::new("64:ff9b::".parse().expect("v6"), 96);
        other.set_nat64(prefix);
        assert_eq!((a.nat64(), other.nat64()), (prefix, prefix), "it is the port's, not the socket's");
        assert!(a.source_for(far).expect("a route").is_ipv6());
        for src_ip in [None, Some(Ipv6Addr::LOCALHOST.into()), Some(Ipv4Addr::LOCALHOST.into())] {
            a.send(&Transmit { src_ip, ..many }).expect("sent");
            let received = receive(&b, 20);
            let local_ip = Some("64:ff9b::c000:221".parse().expect("v6"));
            assert!(received.iter().all(|datagram| datagram.local_ip == local_ip && datagram.ecn == Some(2)));
        }
        // Back, as the translator sends.
        let answer = Transmit { src_ip: Some("64:ff9b::c000:221".parse().expect("v6")), ..many };
        b.send(&Transmit { dest: v6(a.local_port()), ..answer }).expect("sent");
        let (mut batch, mut received) = (RecvBatch::new(8), 0);
        let deadline = Instant::now() + PATIENCE;
        while received < 20 {
            assert!(Instant::now() < deadline, "only {received} datagrams arrived");
            for socket in &group {
                let _nothing_yet = socket.recv_batch(&mut batch);
                for message in batch.messages_mut() {
                    assert_eq!((message.from, message.ecn), (far, Some(2)));
                    received += message.payload.len() / 1_000;
                }
            }
        }
        // This host itself is never looked for behind a translator.
        a.send(&Transmit::new(v4(b.local_port()), b"near")).expect("sent");
        assert_eq!(receive(&b, 1)[0].from, v4(a.local_port()));

        a.set_nat64(None);
        assert!(other.send(&many).is_err(), "without it, IPv4 is as far as before");
    })
    .join()
    .expect("no panic");
}

#[test]
fn a_port_is_given_up_for_no_error_that_passes() {
    use libc::*;
    let passing = [ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ENETUNREACH, ENOMEM, ENOBUFS, EINTR];
    let lasting = [EAGAIN, EBADF, ENOTSOCK, EINVAL, EFAULT, EPERM, EACCES, ENOTCONN, ECONNABORTED];
    for (errors, expected) in [(&passing[..], true), (&lasting[..], false)] {
        for error in errors {
            let error = io::Error::from_raw_os_error(*error);
            assert_eq!(is_passing(&error), expected, "{error}");
        }
    }
}

#[test]
fn a_socket_whose_datagram_was_refused_receives_on() {
    let [a, b] = [(); 2].map(|()| UdpSocket::bind(v4(0)).expect("a socket"));
    let (from, to) = (a.local_addr().expect("bound"), b.local_addr().expect("bound"));
    a.connect(to).expect("connected");
    a.set_read_timeout(Some(PATIENCE)).expect("set");
    drop(b);
    a.send(b"nobody is there").expect("sent");
    let refused = a.recv(&mut [0; 9]).expect_err("refused");
    assert!(is_passing(&refused), "{refused}");
    let b = UdpSocket::bind(to).expect("the port is free");
    b.send_to(b"hello", from).expect("sent");
    assert_eq!(a.recv(&mut [0; 9]).expect("received"), 5);
}
