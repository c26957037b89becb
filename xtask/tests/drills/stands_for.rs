//! A machine without an agent, as a controller in a hall: peers reach it by a name and a virtual address of its
//! own, which a second agent of a device beside it has.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cyphonic_lab::command::{Cancel, check};
use serde_json::Value;

use crate::overlay::{LIMIT, Overlay, enrol, start_agent_of};

/// The router of the home that `c` is in: the machine, of which nobody but `c` knows.
const MACHINE: &str = "home-nat";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 20, 1);
/// Where `c` is, as the machine sees it.
const C: Ipv4Addr = Ipv4Addr::new(192, 168, 20, 2);

const STANDS_FOR: &str = "interface: plc\nstands_for: {address: 192.168.20.1, services: [ping, tcp/5020, 'tcp/2222:5020', udp/1610, tcp/5021, tcp/7778]}\n\
                          access: [{from: [a, b, c], to: all}]\n";

#[test]
fn a_machine_without_an_agent_is_reached_by_a_name_of_its_own() {
    let mut overlay = Overlay::start();
    // Beside c's own, tunnels with its peers stand.
    overlay.reach("b", "c");
    overlay.reach("a", "c");
    let tcp = inside(&overlay, MACHINE, || TcpListener::bind((ADDRESS, 5020)).unwrap());
    let udp = inside(&overlay, MACHINE, || UdpSocket::bind((ADDRESS, 1610)).unwrap());
    let (seen, from) = mpsc::channel();
    let _answering = [serve_tcp(tcp, seen.clone()), serve_udp(udp, seen)];

    // A service of the host, of all its addresses, at a port that the machine is to have.
    let _taken = inside(&overlay, "c", || TcpListener::bind("[::]:7778").unwrap());
    let home = overlay.lab.node_dir("c").unwrap().join("plc");
    std::fs::create_dir(&home).unwrap();
    enrol(&overlay.lab, &overlay.programs, "plc", &home, STANDS_FOR);
    let agent = start_agent_of(&overlay.lab, &overlay.programs, "c", &home);
    overlay.agents.push(agent);
    let ask = |arguments: &[&str]| {
        let mut command = overlay.lab.command("c", overlay.programs.join("cyphonic")).unwrap();
        command.arg("--socket").arg(home.join("cyphonic.sock")).args(arguments);
        check(&mut command, LIMIT, &Cancel::default())
            .unwrap_or_else(|error| panic!("{error}\n{}", overlay.logs()))
    };
    let status = || serde_json::from_str::<Value>(&ask(&["status", "--json"])).unwrap();
    ask(&["wait", "--timeout", "20"]);
    let plc: Ipv6Addr = ask(&["ip"]).trim().parse().unwrap();

    // From a peer with a direct tunnel, from one through the relay, and from the host itself.
    for node in ["b", "a", "c"] {
        overlay.reach(node, "plc");
        for port in [5020, 2222] {
            assert_eq!(echo(&overlay, node, plc, port), b"over TCP", "{node} to {port}\n{}", overlay.logs());
            assert_eq!(from.recv_timeout(LIMIT).unwrap().ip(), C, "the machine sees the device beside it");
        }
        assert_eq!(echo_udp(&overlay, node, plc), b"over UDP", "{node}\n{}", overlay.logs());
        assert_eq!(from.recv_timeout(LIMIT).unwrap().ip(), C);
    }
    assert_eq!(overlay.peer("b", "plc")["state"], "active");
    let machine = &status()["stands_for"];
    assert_eq!((machine["carried"].as_u64(), machine["flows"].as_u64()), (Some(9), Some(3)), "{machine}");

    // What is not named is not reached: neither of the host nor of the machine. To all of c that is open.
    let _open = inside(&overlay, "c", || TcpListener::bind("[::]:7777").unwrap());
    let _hidden = inside(&overlay, MACHINE, || TcpListener::bind((ADDRESS, 7777)).unwrap());
    let c: Ipv6Addr = overlay.address("c").parse().unwrap();
    connect(&overlay, "b", c, 7777, LIMIT).expect("the host's own service");
    for port in [7777, 7778] {
        let denied = connect(&overlay, "b", plc, port, Duration::from_secs(2)).unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::TimedOut, "{port}: {denied}");
    }
    assert!(status()["drops"]["denied"].as_u64() >= Some(2), "{}", status()["drops"]);
    let health = status()["health"].to_string();
    assert!(health.contains("tcp/7778") && health.contains("another program"), "{health}");

    // What the machine refuses is refused, and told.
    let refused = connect(&overlay, "b", plc, 5021, LIMIT).and_then(|mut stream| stream.read(&mut [0; 1]));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let health = status()["health"].to_string();
    assert!(health.contains("192.168.20.1") && health.contains("tcp/5021"), "{health}");

    // The two agents of the host do not keep each other's packets out.
    let host: Value = serde_json::from_str(&overlay.cyphonic("c", &["status", "--json"])).unwrap();
    assert_eq!(host["drops"]["past_tunnels"].as_u64().unwrap_or_default(), 0, "{}", host["drops"]);
    assert_eq!(status()["drops"]["past_tunnels"].as_u64().unwrap_or_default(), 0, "{}", status()["drops"]);
    overlay.reach("b", "c");
    overlay.reach("c", "b");

    // What its agent did to the host goes with it, also when it is killed, and the host's other agent stays.
    let rules =
        || check(overlay.lab.command("c", "ip").unwrap().args(["-6", "rule"]), LIMIT, &Cancel::default());
    let is_led = || rules().unwrap().contains(&plc.to_string());
    assert!(is_led(), "{}", rules().unwrap());
    // A conversation that stands does not end as if all had been said.
    let mut standing = connect(&overlay, "b", plc, 5020, LIMIT).unwrap();
    standing.write_all(b"half").unwrap();
    ask(&["down"]);
    let ended = standing.read(&mut [0; 1]);
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let stopped = Instant::now();
    while is_led() {
        assert!(stopped.elapsed() < LIMIT, "{}", rules().unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut again = start_agent_of(&overlay.lab, &overlay.programs, "c", &home);
    overlay.reach("b", "plc");
    again.kill();
    assert!(is_led(), "{}", rules().unwrap());
    let mut cleanup = overlay.lab.command("c", overlay.programs.join("cyphonicd")).unwrap();
    cleanup.arg("cleanup").arg("--config").arg(home.join("agent.yaml"));
    check(&mut cleanup, LIMIT, &Cancel::default()).unwrap();
    assert!(!is_led(), "{}", rules().unwrap());
    overlay.reach("a", "c");
}

fn inside<R: Send>(overlay: &Overlay, node: &str, work: impl FnOnce() -> R + Send) -> R {
    overlay.lab.namespace(node).unwrap().inside(work).unwrap()
}

fn connect(
    overlay: &Overlay,
    node: &str,
    to: Ipv6Addr,
    port: u16,
    limit: Duration,
) -> std::io::Result<TcpStream> {
    let stream = inside(overlay, node, || TcpStream::connect_timeout(&SocketAddr::from((to, port)), limit))?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn echo(overlay: &Overlay, node: &str, to: Ipv6Addr, port: u16) -> Vec<u8> {
    let mut stream = connect(overlay, node, to, port, LIMIT)
        .unwrap_or_else(|error| panic!("{node}: {error}\n{}", overlay.logs()));
    stream.write_all(b"over TCP").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

fn echo_udp(overlay: &Overlay, node: &str, to: Ipv6Addr) -> Vec<u8> {
    let socket = inside(overlay, node, || UdpSocket::bind("[::]:0").unwrap());
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.send_to(b"over UDP", (to, 1610)).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from, SocketAddr::from((to, 1610)));
    buffer[..length].to_vec()
}

/// Sends back what comes, and tells who has asked; ends with the test's process.
fn serve_tcp(listener: TcpListener, seen: mpsc::Sender<SocketAddr>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let mut asked = Vec::new();
            let answered = stream.read_to_end(&mut asked).and_then(|_| stream.write_all(&asked));
            if answered.is_err() || seen.send(from).is_err() {
                return;
            }
        }
    })
}

fn serve_udp(socket: UdpSocket, seen: mpsc::Sender<SocketAddr>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if socket.send_to(&buffer[..length], from).is_err() || seen.send(from).is_err() {
                return;
            }
        }
    })
}
