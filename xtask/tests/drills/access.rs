//! A device says who may open what with it: on real sockets, through the kernel's programs and both rings.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use cyphonic_lab::command::{Cancel, check};
use serde_json::Value;

use crate::overlay::{LIMIT, Overlay, RECOVERY, start_agent, start_service};

/// How long an attempt goes unanswered that nobody answers.
const UNANSWERED: Duration = Duration::from_millis(1_500);

const RULES: &str = "access:\n- {from: all, to: ping}\n- {from: b, to: [tcp/2222, udp/5000]}\n";

#[test]
fn a_device_says_who_may_open_what_with_it() {
    let mut overlay = Overlay::start();
    for ring in ["offload", "xdp"] {
        restart(&mut overlay, &format!("ring: {ring}\n{RULES}"));
        let c = overlay.address("c").parse().unwrap();
        for from in ["a", "b"] {
            overlay.reach(from, "c");
        }
        tcp_opens_for_who_may(&overlay, c);
        udp_opens_for_who_may(&overlay, c);
        answers_come_to_who_asked(&overlay);
        it_is_told(&overlay);
        rules_are_read_again(&overlay, c);
    }
    the_overlay_says_so_too(&mut overlay);
}

/// What the overlay's rules deny is denied, and what they allow beyond the device's own is not allowed.
fn the_overlay_says_so_too(overlay: &mut Overlay) {
    restart(overlay, &format!("ring: offload\n{RULES}"));
    let c = overlay.address("c").parse().unwrap();
    for from in ["a", "b"] {
        overlay.reach(from, "c");
    }
    let _services = services(overlay);
    may_connect(overlay, "b", c, 2222);
    let rest = "{from: all, at: [a, b], to: all}";
    tell(overlay, &format!("[{{from: [a, b], at: c, to: [tcp, ping]}}, {rest}]"), 1);
    may_connect(overlay, "b", c, 2222);
    may_not_connect(overlay, "a", c, 2222);
    assert_eq!(overlay.peer("c", "b")["may_open"], serde_json::json!(["ping", "tcp/2222"]));
    assert_eq!(overlay.peer("a", "c")["may_open"], serde_json::json!(["all"]));
    let shown = overlay.cyphonic("c", &["status"]);
    assert!(shown.contains("2 rules of this device and by one rule of the overlay"), "{shown}");
    tell(overlay, &format!("[{rest}]"), 0);
    may_not_connect(overlay, "b", c, 2222);
    // The device keeps what it was told, and has no rules of its own any more.
    tell(overlay, &format!("[{{from: a, at: c, to: all}}, {rest}]"), 1);
    restart(overlay, "ring: xdp\n");
    for from in ["a", "c"] {
        overlay.reach(from, if from == "a" { "c" } else { "b" });
    }
    may_connect(overlay, "a", c, 2223);
    may_not_connect(overlay, "b", c, 2222);
}

/// Has the cloud start again with these rules, of which `c` is told that many.
fn tell(overlay: &mut Overlay, rules: &str, told: usize) {
    let file = overlay.lab.node_dir("cloud").unwrap().join("service/cloud.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let rest: Vec<_> = text.lines().filter(|line| !line.starts_with("access:")).collect();
    fs::write(&file, format!("{}\naccess: {rules}\n", rest.join("\n"))).unwrap();
    overlay.cloud.stop().unwrap();
    overlay.cloud = start_service(&overlay.lab, &overlay.programs, "cloud");
    let started = Instant::now();
    while status(overlay)["access"]["overlay_rules"] != told {
        assert!(started.elapsed() < RECOVERY, "{}", overlay.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
    for node in ["a", "b", "c"] {
        overlay.wait_online(node);
    }
}

/// The device `c` with these settings besides.
fn restart(overlay: &mut Overlay, settings: &str) {
    let file = overlay.lab.node_dir("c").unwrap().join("agent.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let own = text.split("ring:").next().unwrap();
    fs::write(&file, format!("{own}{settings}")).unwrap();
    overlay.agents[2].stop().unwrap();
    overlay.agents[2] = start_agent(&overlay.lab, &overlay.programs, "c");
    overlay.wait_online("c");
}

fn inside<R: Send>(overlay: &Overlay, node: &str, work: impl FnOnce() -> R + Send) -> R {
    overlay.lab.namespace(node).unwrap().inside(work).unwrap()
}

fn connect(overlay: &Overlay, from: &str, to: Ipv6Addr, port: u16, limit: Duration) -> io::Result<()> {
    inside(overlay, from, || TcpStream::connect_timeout(&SocketAddr::from((to, port)), limit).map(drop))
}

fn may_connect(overlay: &Overlay, from: &str, to: Ipv6Addr, port: u16) {
    let connected = connect(overlay, from, to, port, LIMIT);
    assert!(connected.is_ok(), "{from} to {port}: {connected:?}\n{}", overlay.logs());
}

fn may_not_connect(overlay: &Overlay, from: &str, to: Ipv6Addr, port: u16) {
    let error = connect(overlay, from, to, port, UNANSWERED).expect_err("nobody answers");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{from} to {port}: {error}");
}

fn tcp_opens_for_who_may(overlay: &Overlay, c: Ipv6Addr) {
    let _services = services(overlay);
    may_connect(overlay, "b", c, 2222);
    may_not_connect(overlay, "b", c, 2223);
    may_not_connect(overlay, "a", c, 2222);
}

/// What is there to connect to.
fn services(overlay: &Overlay) -> [TcpListener; 2] {
    let c: Ipv6Addr = overlay.address("c").parse().unwrap();
    inside(overlay, "c", || [2222, 2223].map(|port| TcpListener::bind((c, port)).unwrap()))
}

/// Other rules are in force as soon as they were read, for tunnels that stand; what is wrong changes nothing.
fn rules_are_read_again(overlay: &Overlay, c: Ipv6Addr) {
    let _services = services(overlay);
    let set_up = |peer: &str| overlay.peer("c", peer)["last_setup_ms"].clone();
    let before = ["a", "b"].map(set_up);
    let file = overlay.lab.node_dir("c").unwrap().join("agent.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let (own, _) = text.split_once("access:").unwrap();
    let write = |rules: &str| fs::write(&file, format!("{own}{rules}")).unwrap();
    write("access: [{from: a, to: tcp/2222}]\n");
    let told = overlay.cyphonic("c", &["reload"]);
    assert_eq!(told.lines().count(), 1, "{told}");
    may_connect(overlay, "a", c, 2222);
    may_not_connect(overlay, "b", c, 2222);
    write("access: [{from: b, to: ssh}]\nkeep_open: [a]\n");
    let mut reload = overlay.command("c", &["reload"]);
    let refused = check(&mut reload, LIMIT, &Cancel::default()).unwrap_err().to_string();
    assert!(refused.contains("\"ssh\" is no service"), "{refused}");
    may_connect(overlay, "a", c, 2222);
    may_not_connect(overlay, "b", c, 2222);
    // As a file that is just being written.
    for gone in ["", "access: null\n"] {
        write(gone);
        let refused = check(&mut overlay.command("c", &["reload"]), LIMIT, &Cancel::default()).unwrap_err();
        assert!(refused.to_string().contains("`access` is gone"), "{refused}");
    }
    may_not_connect(overlay, "b", c, 2222);
    write("access: [{from: all, to: all}]\nport: 4500\n");
    let told = overlay.cyphonic("c", &["reload"]);
    assert!(told.contains("read at the start only: port."), "{told}");
    may_connect(overlay, "b", c, 2223);
    assert_eq!(["a", "b"].map(set_up), before, "the tunnels are those from before");
    write("");
}

fn udp(overlay: &Overlay, node: &str, port: u16) -> UdpSocket {
    let own: Ipv6Addr = overlay.address(node).parse().unwrap();
    let socket = inside(overlay, node, || UdpSocket::bind((own, port)).unwrap());
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// The next datagram, and who sent it.
fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer).expect("the datagram arrives");
    (buffer[..len].to_vec(), from)
}

fn nothing_came(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let error = socket.recv(&mut [0; 64]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

fn udp_opens_for_who_may(overlay: &Overlay, c: Ipv6Addr) {
    let (service, closed) = (udp(overlay, "c", 5000), udp(overlay, "c", 5001));
    let (a, b) = (udp(overlay, "a", 4000), udp(overlay, "b", 4000));
    a.send_to(b"nobody", (c, 5000)).unwrap();
    b.send_to(b"nobody", (c, 5001)).unwrap();
    b.send_to(b"question", (c, 5000)).unwrap();
    let (question, from) = received(&service);
    assert_eq!((question.as_slice(), from.ip()), (&b"question"[..], b.local_addr().unwrap().ip()));
    service.send_to(b"answer", from).unwrap();
    assert_eq!(received(&b).0, b"answer");
    // What another device sent has its own way, and time to come.
    denied(overlay, 2);
    nothing_came(&service);
    nothing_came(&closed);
}

/// What `c` opens passes, with its answers, and nothing else that looks like them.
fn answers_come_to_who_asked(overlay: &Overlay) {
    let a: Ipv6Addr = overlay.address("a").parse().unwrap();
    let _service = inside(overlay, "a", || TcpListener::bind((a, 2222)).unwrap());
    may_connect(overlay, "c", a, 2222);
    let (asked, other) = (udp(overlay, "a", 53), udp(overlay, "a", 54));
    let (asks, silent) = (udp(overlay, "c", 6000), udp(overlay, "c", 6001));
    asks.send_to(b"question", (a, 53)).unwrap();
    let (_, from) = received(&asked);
    other.send_to(b"from elsewhere", from).unwrap();
    asked.send_to(b"to another port", SocketAddr::new(from.ip(), 6001)).unwrap();
    asked.send_to(b"answer", from).unwrap();
    assert_eq!(received(&asks).0, b"answer");
    nothing_came(&asks);
    nothing_came(&silent);
}

fn status(overlay: &Overlay) -> Value {
    serde_json::from_str(&overlay.cyphonic("c", &["status", "--json"])).unwrap()
}

/// Until so many packets were denied.
fn denied(overlay: &Overlay, packets: u64) {
    let started = Instant::now();
    while status(overlay)["drops"]["denied"].as_u64().unwrap_or_default() < packets {
        assert!(started.elapsed() < RECOVERY, "{}", overlay.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn it_is_told(overlay: &Overlay) {
    let status = status(overlay);
    assert_eq!(status["access"]["rules"], 2, "{status}");
    let open = |name: &str| overlay.peer("c", name)["may_open"].clone();
    assert_eq!(open("a"), serde_json::json!(["ping"]));
    assert_eq!(open("b"), serde_json::json!(["ping", "tcp/2222", "udp/5000"]));
    let shown = overlay.cyphonic("c", &["status"]);
    assert!(
        shown.contains("access      peers may open what is allowed by 2 rules of this device\n"),
        "{shown}"
    );
    assert_eq!(overlay.peer("a", "c")["may_open"], Value::Null, "it has no rules");
}
