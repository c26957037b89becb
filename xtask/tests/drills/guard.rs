//! Nobody reaches a device's virtual address, or comes by the address of another device, past the tunnels: on
//! the device's own link, with the means of any program there.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use cyphonic_lab::command::{Cancel, check};

use crate::overlay::{LIMIT, Overlay};

/// The router of the home that `c` is in, and `c`'s address there, as the topology has them.
const NEIGHBOUR: &str = "home-nat";
const LAN: &str = "2001:db8:41::2";

#[test]
fn neighbours_do_not_come_past_the_tunnels() {
    let overlay = Overlay::start();
    overlay.reach("b", "c");
    let (b, c): (Ipv6Addr, Ipv6Addr) =
        (overlay.address("b").parse().unwrap(), overlay.address("c").parse().unwrap());
    // What is open to all is the neighbour's, too; only then the rest says anything.
    let (_open, service) = inside(&overlay, "c", || {
        (TcpListener::bind("[::]:2222").unwrap(), UdpSocket::bind("[::]:5000").unwrap())
    });
    service.set_read_timeout(Some(LIMIT)).unwrap();
    let lan: Ipv6Addr = LAN.parse().unwrap();
    connect(&overlay, lan, LIMIT).expect("its address on the link");
    ip(&overlay, &["-6", "route", "add", &format!("{c}/128"), "via", LAN]);
    is_kept_out(&overlay, c);

    ip(&overlay, &["-6", "addr", "add", &format!("{b}/128"), "dev", "lo"]);
    let spoofer = inside(&overlay, NEIGHBOUR, || UdpSocket::bind((b, 4000)).unwrap());
    spoofer.send_to(b"as if from b", (lan, 5000)).unwrap();
    let honest = inside(&overlay, NEIGHBOUR, || UdpSocket::bind("[::]:4001").unwrap());
    honest.send_to(b"from the router", (lan, 5000)).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = service.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"from the router", "{from}");
    let status: serde_json::Value =
        serde_json::from_str(&overlay.cyphonic("c", &["status", "--json"])).unwrap();
    assert!(status["drops"]["past_tunnels"].as_u64() >= Some(2), "{}", status["drops"]);
    assert!(!status["health"].to_string().contains("unguarded"), "{}", status["health"]);
    overlay.reach("b", "c");
}

/// Its programs may come a moment after its tunnels. (Who connects more often than the listener has places is
/// not answered either.)
fn is_kept_out(overlay: &Overlay, to: Ipv6Addr) {
    let attempts = (0..20).find_map(|_| {
        let error = connect(overlay, to, Duration::from_secs(2)).err();
        std::thread::sleep(Duration::from_millis(100));
        error
    });
    let error = attempts.unwrap_or_else(|| panic!("it is let in\n{}", overlay.logs()));
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

fn inside<R: Send>(overlay: &Overlay, node: &str, work: impl FnOnce() -> R + Send) -> R {
    overlay.lab.namespace(node).unwrap().inside(work).unwrap()
}

fn connect(overlay: &Overlay, to: Ipv6Addr, limit: Duration) -> std::io::Result<()> {
    inside(overlay, NEIGHBOUR, || TcpStream::connect_timeout(&SocketAddr::from((to, 2222)), limit).map(drop))
}

fn ip(overlay: &Overlay, arguments: &[&str]) {
    let mut command = overlay.lab.command(NEIGHBOUR, "ip").unwrap();
    check(command.args(arguments), LIMIT, &Cancel::default()).unwrap();
}
