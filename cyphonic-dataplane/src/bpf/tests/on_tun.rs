//! A TUN device and sockets in a network namespace that only this test's thread is in.

#![expect(unsafe_code, reason = "namespaces and TUN devices are made by system calls")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cyphonic_common::{DropReason, InterfaceConfig};
use etherparse::PacketBuilder;

use super::super::{AttachKind, BpfError, EgressClassifier, Options};
use super::{FOREIGN, OWN, PEER, config, udp, udp_with};

pub(super) const INTERFACE: &str = "cyph0";
/// Long enough for any machine; a passing test never waits this long.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `test` on a thread in a network namespace of its own, which ends with the thread.
pub(super) fn in_namespace(test: impl FnOnce() + Send) {
    let run = || {
        // SAFETY: it takes no pointers, and only this short-lived thread changes its namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
        ip("link set lo up");
        test();
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// A TUN device without packet information that is up and has the node's address, and another one on
/// loopback.
fn tun() -> File {
    let file = device(INTERFACE, libc::IFF_TUN);
    configure();
    file
}

/// A TUN or TAP device without packet information.
fn device(name: &str, flags: libc::c_int) -> File {
    let file =
        File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
    // SAFETY: `ifreq` is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (flags | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq` behind the pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    file
}

/// A card, by which neighbours send.
const CARD: &str = "card0";
/// Its hardware address, and where frames to it begin.
const CARD_ADDRESS: &str = "02:00:00:00:00:07";
const TO_CARD: [u8; 12] = [2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 8];

/// The card as a TAP device whose frames begin with a `virtio_net_hdr`.
fn card() -> File {
    let file = device(CARD, libc::IFF_TAP | libc::IFF_VNET_HDR);
    ip(&format!("link set {CARD} address {CARD_ADDRESS} mtu 9000 up"));
    file
}

/// Writes a frame of which the kernel is told that headers have so many bytes: of one that is larger than a
/// page, it puts no more into linear memory.
fn arrives(card: &mut File, frame: &[u8], linear: u16) {
    let mut header = [0; 10];
    header[2..4].copy_from_slice(&linear.to_ne_bytes());
    card.write_all(&[&header[..], frame].concat()).unwrap();
}

fn frame(tags: usize, packet: &[u8]) -> Vec<u8> {
    let mut frame = TO_CARD.to_vec();
    (0..tags).for_each(|_| frame.extend([0x81, 0x00, 0, 0]));
    [&frame[..], &[0x86, 0xdd], packet].concat()
}

fn neighbours_are_kept_out(kind: AttachKind) {
    let _tun = tun();
    let mut card = card();
    let options = Options { kind: Some(kind), log_drops: false };
    let mut classifier = EgressClassifier::attach_with(INTERFACE, config(), options).unwrap();
    let own = socket(OWN);
    let large = vec![7; 6_000];
    let packets = [
        frame(0, &udp(FOREIGN, OWN, b"past the tunnel")),
        frame(1, &udp(FOREIGN, OWN, b"behind a tag")),
        frame(2, &udp(FOREIGN, OWN, b"behind two")),
        frame(5, &udp(PEER, OWN, b"behind all that are looked at")),
        frame(0, &udp(FOREIGN, OWN, &large)),
        frame(3, &udp(PEER, OWN, &large)),
    ];
    let send = |card: &mut File| packets.iter().for_each(|packet| arrives(card, packet, 14));
    // Without it the host takes them all.
    send(&mut card);
    let mut received = vec![0; 9_000];
    for packet in &packets {
        let length = own.recv(&mut received).expect("the kernel takes it");
        assert!(packet.ends_with(&received[..length]), "{length}");
    }

    // Others are there already, who would have the last word of everything.
    let others = EgressClassifier::attach_with(CARD, config(), options).unwrap();
    others.tables().set_permissions(&[].into_iter().collect()).unwrap();
    let guard = classifier.guard(CARD, index(CARD)).unwrap();
    send(&mut card);
    // More tags than these are of no use to anybody.
    [6, 7].iter().for_each(|tags| arrives(&mut card, &frame(*tags, &udp(FOREIGN, OWN, b"many")), 14));
    own.set_nonblocking(true).unwrap();
    let nothing = own.recv(&mut received).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    let counted = classifier.counters().unwrap();
    let kept_out =
        [DropReason::PastTunnels, DropReason::Truncated].map(|reason| counted.dropped(reason).packets);
    assert_eq!(kept_out, [6, 2], "{counted:?}");
    drop((guard, others));
    own.set_nonblocking(false).unwrap();
    let deadline = Instant::now() + PATIENCE;
    own.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while own.recv(&mut received).is_err() {
        assert!(Instant::now() < deadline, "it is detached");
        send(&mut card);
    }
}

/// A peer's port that nobody listens on, by an ICMPv6 error from outside about a datagram of so many bytes; behind
/// these extension headers.
fn unreachable(size: usize, extensions: &[u8]) -> Vec<u8> {
    let (from, to) = ("2001:db8:ffff::1".parse::<Ipv6Addr>().unwrap(), FOREIGN.parse::<Ipv6Addr>().unwrap());
    let mut packet = Vec::new();
    let error = PacketBuilder::ipv6(from.octets(), to.octets(), 64).icmpv6_raw(1, 4, [0; 4]);
    error.write(&mut packet, &udp_with(OWN, PEER, (5000, 4000), &vec![7; size])).unwrap();
    behind(&packet, extensions)
}

/// The packet's payload, which is ICMPv6, behind extension headers: their first byte is the type of the first one.
fn behind(packet: &[u8], extensions: &[u8]) -> Vec<u8> {
    let Some((first, headers)) = extensions.split_first() else { return packet.to_vec() };
    let mut longer = [&packet[..40], headers, &packet[40..]].concat();
    let length = u16::try_from(longer.len() - 40).unwrap();
    longer[4..6].copy_from_slice(&length.to_be_bytes());
    longer[6] = *first;
    longer
}

/// In two, of which the first has so many bytes.
fn fragments(packet: &[u8], first: usize) -> [Vec<u8>; 2] {
    let (header, payload) = packet.split_at(40);
    [(0, &payload[..first]), (first, &payload[first..])].map(|(at, part)| {
        let place = u16::try_from(at).unwrap() | u16::from(at == 0);
        let fragment = [&[44, 58, 0][..], &place.to_be_bytes(), &[0, 0, 0, 9]].concat();
        behind(&[header, part].concat(), &fragment)
    })
}

#[test]
fn nobody_outside_ends_a_conversation_of_the_overlay_by_an_error() {
    in_namespace(|| {
        let _tun = tun();
        let mut card = card();
        let options = Options { kind: None, log_drops: false };
        let mut classifier = EgressClassifier::attach_with(INTERFACE, config(), options).unwrap();
        let own = socket(OWN);
        own.connect((PEER.parse::<Ipv6Addr>().unwrap(), 4000)).unwrap();
        own.set_nonblocking(true).unwrap();
        let options = |kind: u8| [kind, 58, 0, 1, 4, 0, 0, 0, 0];
        // A destination option of 64 bytes, and a second one behind it.
        let long = [&[60, 60, 7, 30, 60][..], &[0; 60], &[58, 0, 1, 4, 0, 0, 0, 0]].concat();
        let whole = |packet: Vec<u8>, linear| vec![(packet, linear)];
        let small = || fragments(&unreachable(10, &[]), 8).map(|packet| (packet, 14)).to_vec();
        let ways = [
            ("plain", whole(unreachable(10, &[]), 14)),
            ("the IPv6 header alone is in linear memory", whole(unreachable(5_000, &[]), 54)),
            ("and the error's header", whole(unreachable(5_000, &[]), 62)),
            ("destination options", whole(unreachable(10, &options(60)), 14)),
            ("hop-by-hop options", whole(unreachable(10, &options(0)), 14)),
            ("long options", whole(unreachable(10, &long), 14)),
            ("long options, not in linear memory", whole(unreachable(5_000, &long), 54)),
            ("fragments", fragments(&unreachable(100, &[]), 80).map(|packet| (packet, 14)).to_vec()),
            ("fragments of which the first has no quotation", small()),
        ];
        let mut heard = |frames: &[(Vec<u8>, u16)]| {
            frames.iter().for_each(|(packet, linear)| arrives(&mut card, &frame(0, packet), *linear));
            own.recv(&mut [0; 9_000]).unwrap_err().kind()
        };
        for (way, frames) in &ways {
            assert_eq!(heard(frames), io::ErrorKind::ConnectionRefused, "{way}: the kernel takes it");
        }
        let _guard = classifier.guard(CARD, index(CARD)).unwrap();
        for (way, frames) in &ways {
            assert_eq!(heard(frames), io::ErrorKind::WouldBlock, "{way}");
        }
        assert_eq!(
            classifier.counters().unwrap().dropped(DropReason::PastTunnels).packets,
            ways.len() as u64
        );
    });
}

/// A process that another test starts has this one's programs attached as long as it is between `fork` and `exec`.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not so: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn index(interface: &str) -> u32 {
    crate::netdevice::index(interface).unwrap()
}

/// As after a router advertisement of a neighbour's, whose prefix is longer than the overlay's.
fn nothing_leaves_in_clear(kind: AttachKind) {
    let _tun = tun();
    let mut card = card();
    let options = Options { kind: Some(kind), log_drops: false };
    let mut classifier = EgressClassifier::attach_with(INTERFACE, config(), options).unwrap();
    ip(&format!("-6 route add {PEER}/128 dev {CARD} metric 1"));
    ip(&format!("-6 neigh add {PEER} lladdr 02:00:00:00:00:08 dev {CARD}"));
    let own = socket(OWN);
    let mut leaves = || {
        send(&own, b"for a peer");
        let mut buffer = [0; 2048];
        std::iter::from_fn(|| card.read(&mut buffer).ok().map(|len| buffer[..len].ends_with(b"for a peer")))
            .any(|is_ours| is_ours)
    };
    eventually("the longer prefix wins", &mut leaves);
    let renamed = classifier.guard(CARD, index(INTERFACE)).unwrap_err();
    assert!(matches!(renamed, BpfError::Renamed(_)), "{renamed}");
    eventually("what hangs on another interface than was meant is taken off", &mut leaves);
    let mut guard = None;
    eventually("it is attached", || {
        guard = classifier.guard(CARD, index(CARD)).ok();
        guard.is_some()
    });
    let dropped = || classifier.counters().unwrap().dropped(DropReason::PastTunnels).packets;
    let before = dropped();
    assert!(!leaves());
    assert_eq!(dropped() - before, 1);
    // Another agent of the host comes and goes, and so does a next one of the same device.
    let peer = PEER.parse::<Ipv6Addr>().unwrap().octets();
    let beside = InterfaceConfig::new(peer, peer, 48).unwrap();
    let mut other = EgressClassifier::attach_with(INTERFACE, beside, options).unwrap();
    let others = other.guard(CARD, index(CARD)).unwrap();
    drop((guard, classifier));
    assert!(!leaves(), "the other one's stays");
    let mut classifier = EgressClassifier::attach_with(INTERFACE, config(), options).unwrap();
    let guard = classifier.guard(CARD, index(CARD)).unwrap();
    drop((others, other));
    assert!(!leaves(), "the first one's stays");
    drop(guard);
    eventually("it is detached", leaves);
}

#[test]
fn nothing_for_the_overlay_leaves_in_clear_by_tcx() {
    in_namespace(|| nothing_leaves_in_clear(AttachKind::Tcx));
}

#[test]
fn nothing_for_the_overlay_leaves_in_clear_by_clsact() {
    in_namespace(|| nothing_leaves_in_clear(AttachKind::Clsact));
}

#[test]
fn neighbours_are_kept_out_by_tcx() {
    in_namespace(|| neighbours_are_kept_out(AttachKind::Tcx));
}

#[test]
fn neighbours_are_kept_out_by_clsact() {
    in_namespace(|| neighbours_are_kept_out(AttachKind::Clsact));
}

/// Brings the device up with the node's address.
pub(super) fn configure() {
    ip(&format!("link set {INTERFACE} up mtu 1420"));
    ip(&format!("-6 addr add {OWN}/48 dev {INTERFACE} nodad"));
    ip(&format!("-6 addr add {FOREIGN}/128 dev lo nodad"));
}

pub(super) fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address.parse::<Ipv6Addr>().unwrap(), 5000)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub(super) fn send(from: &UdpSocket, payload: &[u8]) {
    from.send_to(payload, (PEER.parse::<Ipv6Addr>().unwrap(), 4000)).unwrap();
}

/// The next packet for [`PEER`] that leaves through the device; `None` when the kernel has nothing more to
/// say.
fn next_for_peer(tun: &mut File, patience: Duration) -> Option<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 2048];
    loop {
        match tun.read(&mut buffer) {
            Ok(len) if len >= 40 && buffer[24..40] == PEER.parse::<Ipv6Addr>().unwrap().octets() => {
                return Some(buffer[..len].to_vec());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn traffic_is_judged_and_counted(kind: AttachKind) {
    let mut tun = tun();
    let options = Options { kind: Some(kind), log_drops: true };
    let mut classifier = EgressClassifier::attach_with(INTERFACE, config(), options).unwrap();
    assert_eq!(classifier.attach_kind(), kind);
    let (own, foreign) = (socket(OWN), socket(FOREIGN));

    send(&foreign, b"never arrives");
    send(&own, b"arrives");
    let packet = next_for_peer(&mut tun, PATIENCE).expect("the packet passes the classifier");
    assert_eq!(&packet[48..], b"arrives");
    let counted = classifier.counters().unwrap();
    assert_eq!((counted.tunnel.packets, counted.tunnel.bytes), (1, packet.len() as u64));
    assert_eq!(counted.dropped(DropReason::ForeignSource).packets, 1);
    assert_eq!(counted.dropped_total().packets, 1, "{counted:?}");

    let inbound = udp(PEER, OWN, b"from the tunnel");
    tun.write_all(&inbound).unwrap();
    let mut received = [0; 64];
    let len = own.recv(&mut received).unwrap();
    assert_eq!(&received[..len], b"from the tunnel");
    let counted = classifier.counters().unwrap();
    assert_eq!((counted.ingress.packets, counted.ingress.bytes), (1, inbound.len() as u64));
    classifier.flush_log();

    drop(classifier);
    // Another test's thread that is starting a program holds a copy of every descriptor until it runs.
    let deadline = Instant::now() + PATIENCE;
    let packet = loop {
        send(&foreign, b"now it arrives");
        if let Some(packet) = next_for_peer(&mut tun, Duration::from_millis(20)) {
            break packet;
        }
        assert!(Instant::now() < deadline, "nothing is attached any more");
    };
    assert_eq!(&packet[48..], b"now it arrives");
}

#[test]
fn traffic_is_judged_and_counted_by_tcx() {
    in_namespace(|| traffic_is_judged_and_counted(AttachKind::Tcx));
}

#[test]
fn traffic_is_judged_and_counted_by_clsact() {
    in_namespace(|| traffic_is_judged_and_counted(AttachKind::Clsact));
}

/// What passes is judged by everybody on the hook, in whatever order.
fn others_on_the_hook_judge_too(kinds: [AttachKind; 2]) {
    let mut tun = tun();
    let classifiers = kinds.map(|kind| {
        let options = Options { kind: Some(kind), log_drops: false };
        EgressClassifier::attach_with(INTERFACE, config(), options).unwrap()
    });
    let own = socket(OWN);
    send(&own, b"arrives");
    next_for_peer(&mut tun, PATIENCE).expect("both let it pass");
    tun.write_all(&udp(PEER, OWN, b"from the tunnel")).unwrap();
    own.recv(&mut [0; 64]).unwrap();
    for classifier in &classifiers {
        let counted = classifier.counters().unwrap();
        assert_eq!((counted.tunnel.packets, counted.ingress.packets), (1, 1), "{kinds:?}");
    }
}

#[test]
fn others_on_the_hook_judge_too_by_tcx() {
    in_namespace(|| others_on_the_hook_judge_too([AttachKind::Tcx; 2]));
    in_namespace(|| others_on_the_hook_judge_too([AttachKind::Tcx, AttachKind::Clsact]));
}

#[test]
fn others_on_the_hook_judge_too_by_clsact() {
    in_namespace(|| others_on_the_hook_judge_too([AttachKind::Clsact; 2]));
}

#[test]
fn the_noise_of_an_interface_coming_up_stays_inside() {
    in_namespace(|| {
        let mut tun = tun();
        let classifier = EgressClassifier::attach(INTERFACE, config()).unwrap();
        // Joining a group makes the kernel report it by MLD, at once and again.
        let socket = socket(OWN);
        let group: Ipv6Addr = "ff05::1234".parse().unwrap();
        socket.join_multicast_v6(&group, interface_index()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while classifier.counters().unwrap().dropped(DropReason::LocalNoise).packets == 0 {
            assert!(Instant::now() < deadline, "no MLD report was counted");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(classifier.counters().unwrap().dropped_total().packets, 0);
        assert_eq!(next_for_peer(&mut tun, Duration::ZERO), None);
    });
}

fn interface_index() -> u32 {
    let name = std::ffi::CString::new(INTERFACE).unwrap();
    // SAFETY: the pointer is to a NUL-terminated string that lives during the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

#[test]
fn a_missing_interface_is_named() {
    in_namespace(|| {
        let error = EgressClassifier::attach("nosuch0", config()).unwrap_err();
        assert!(matches!(error, BpfError::NoInterface { .. }), "{error:?}");
        assert!(error.to_string().contains("nosuch0"), "{error}");
    });
}

/// What the programs say.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl tracing::field::Visit for Heard {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Heard {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "cyphonic_ebpf"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// The messages of the programs that come of `flush`.
pub(super) fn heard(flush: impl FnOnce()) -> Vec<String> {
    let heard = Heard::default();
    tracing::subscriber::with_default(heard.clone(), flush);
    std::mem::take(&mut *heard.0.lock().unwrap())
}

/// Drops 2,000 packets and returns how many messages were told of them, and how many there may be.
fn messages_about_drops(log_drops: bool) -> (u64, u64) {
    let _tun = tun();
    let options = Options { kind: None, log_drops };
    let mut classifier = EgressClassifier::attach_with(INTERFACE, config(), options).unwrap();
    let foreign = socket(FOREIGN);
    let started = Instant::now();
    (0..2000).for_each(|_| send(&foreign, b"never arrives"));
    assert_eq!(classifier.counters().unwrap().dropped(DropReason::ForeignSource).packets, 2000);
    let seconds = started.elapsed().as_secs();
    let told = heard(|| classifier.flush_log());
    let expected = format!(
        "dropped for reason {}: from {FOREIGN} port 5000 to {PEER} port 4000, protocol 17 (",
        DropReason::ForeignSource
    );
    assert!(told.iter().all(|message| message.starts_with(&expected)), "{told:?}");
    let told = told.len() as u64;
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    (told, cpus * (1 + seconds))
}

#[test]
fn drops_are_told_once_a_second_on_each_cpu_and_only_if_asked_for() {
    in_namespace(|| {
        let (told, limit) = messages_about_drops(true);
        assert!((1..=limit).contains(&told), "{told} messages, at most {limit} expected");
    });
    in_namespace(|| assert_eq!(messages_about_drops(false).0, 0));
}
