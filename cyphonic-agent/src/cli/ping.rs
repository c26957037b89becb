//! `cyphonic ping`: through the overlay, with the path it took.

use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_common::packet::icmpv6::{ECHO_REPLY, ECHO_REQUEST, ICMPV6_HEADER_LEN};
use cyphonic_common::packet::ip::IPV6_HEADER_LEN;
use rustix::net::sockopt::{Ipv6PathMtuDiscovery, set_ipv6_mtu_discover};
use socket2::{Domain, Protocol, Socket, Type};

use super::output::say;
use crate::control::report::{PeerReport, PeerState, RouteReport};
use crate::control::{ControlClient, StatusReport, text};

/// Our mark in the payload, so that another ping's replies are not taken for ours.
const TOKEN: usize = 8;

/// The headers of IPv6 and ICMPv6 are not payload.
const HEADERS: u16 = (IPV6_HEADER_LEN + ICMPV6_HEADER_LEN) as u16;
const MAX_SIZE: u16 = u16::MAX - HEADERS;

#[derive(Debug, Args)]
pub(super) struct Ping {
    /// The device: its full name, the part before the zone, or the virtual address of one that `cyphonic
    /// status` lists.
    name: String,
    /// How many times [default: 3; with --until-direct: 10].
    #[arg(long, short)]
    count: Option<u32>,
    /// Bytes of payload, which are not sent in fragments: a test of the MTU.
    #[arg(long, short, default_value_t = 56, value_parser = clap::value_parser!(u16).range(TOKEN as i64..=MAX_SIZE as i64))]
    size: u16,
    /// How many seconds to wait for each answer.
    #[arg(long, default_value_t = 5)]
    timeout: u64,
    /// Stop at the first answer over a direct path; exit with 1 if there was none.
    #[arg(long)]
    until_direct: bool,
}

impl Ping {
    pub(super) async fn run(self, mut client: ControlClient) -> Result<ExitCode> {
        let name = match self.name.parse() {
            Ok(address) => name_of(&client.status().await?, address)?,
            Err(_) => self.name.clone(),
        };
        let peer = client.resolve(&name).await?;
        let count = self.count.unwrap_or(if self.until_direct { 10 } else { 3 });
        let (mut done, mut answered) = (false, false);
        let mut why_relayed = None;
        for sequence in 0..count {
            if sequence > 0 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let (address, size, limit) =
                (peer.address, usize::from(self.size), Duration::from_secs(self.timeout.max(1)));
            let answer =
                tokio::task::spawn_blocking(move || echo(address, sequence as u16, size, limit)).await?;
            match answer {
                Ok(took) => {
                    answered = true;
                    let report = client.status().await?;
                    let found = report.peer(&peer.name);
                    let path = found.map_or_else(|| "the overlay".to_owned(), text::path);
                    let took_ms = took.as_secs_f64() * 1e3;
                    say(format_args!("pong from {} ({address}) via {path} in {took_ms:.3} ms", peer.name))?;
                    let direct =
                        matches!(found.and_then(|p| p.route.as_ref()), Some(RouteReport::Direct { .. }));
                    done = done || !self.until_direct || direct;
                    why_relayed = found.and_then(text::why_relayed).map(str::to_owned);
                    if self.until_direct && direct {
                        break;
                    }
                }
                Err(error) if is_timeout(&error) => {
                    say(format_args!("no answer from {} ({address}) in {} s", peer.name, limit.as_secs()))?
                }
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {
                    bail!(too_large(self.size, &peer.name, &client.status().await?))
                }
                Err(error) => return Err(error).context("cannot send an ICMPv6 echo request"),
            }
        }
        if !answered && let Some(why) = why_silent(&peer.name, &client.status().await?) {
            say(why)?;
        }
        if let Some(why) = why_relayed {
            say(format_args!("relayed {why}"))?;
        }
        if self.until_direct && !done {
            say(format_args!("no direct path to {}", peer.name))?;
        }
        Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The device that has a virtual address, as far as this host has talked to it.
fn name_of(report: &StatusReport, address: Ipv6Addr) -> Result<String> {
    let found = report.peers.iter().find(|peer| peer.address == Some(address));
    let found = found.with_context(|| format!("this device knows nobody at {address} yet: give a name"));
    found.map(|peer: &PeerReport| peer.name.clone())
}

/// Why a device may not answer to which there is a tunnel.
fn why_silent(name: &str, report: &StatusReport) -> Option<String> {
    let stands = report.peer(name).is_some_and(|peer| peer.state == PeerState::Active);
    stands.then(|| {
        format!("the tunnel to {name} stands: `access` in its settings, or its firewall, may not let this device ping it")
    })
}

fn too_large(size: u16, name: &str, report: &StatusReport) -> String {
    let tunnel = report.peer(name).map(|peer| u32::from(peer.inner_mtu)).filter(|mtu| *mtu > 0);
    let mtu = tunnel.unwrap_or(report.interface.mtu);
    let most = mtu.saturating_sub(HEADERS.into());
    format!("{size} bytes do not fit: the MTU to {name} is {mtu}, which leaves {most} of payload")
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// One echo; how long the answer took.
fn echo(address: Ipv6Addr, sequence: u16, size: usize, limit: Duration) -> io::Result<Duration> {
    let socket = open()?;
    let token = token();
    socket.send_to(&request(sequence, &token, size), &SocketAddr::new(address.into(), 0).into())?;
    let start = Instant::now();
    let mut buffer = vec![0; ICMPV6_HEADER_LEN + usize::from(MAX_SIZE)];
    loop {
        let left = limit
            .checked_sub(start.elapsed())
            .filter(|left| !left.is_zero())
            .ok_or(io::ErrorKind::TimedOut)?;
        socket.set_read_timeout(Some(left))?;
        let length = (&socket).read(&mut buffer)?;
        if is_reply(&buffer[..length], sequence, &token) {
            return Ok(start.elapsed());
        }
    }
}

/// A ping socket where the host grants them (`net.ipv4.ping_group_range`), else a raw one, which needs
/// CAP_NET_RAW. What is too large is an error, not several fragments.
fn open() -> io::Result<Socket> {
    let open = |kind| Socket::new(Domain::IPV6, kind, Some(Protocol::ICMPV6));
    let socket = open(Type::DGRAM).or_else(|_| open(Type::RAW))?;
    set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?;
    Ok(socket)
}

/// The kernel fills in the checksum, and on ping sockets the identifier.
fn request(sequence: u16, token: &[u8; TOKEN], size: usize) -> Vec<u8> {
    let mut packet = vec![0; ICMPV6_HEADER_LEN + size.max(TOKEN)];
    packet[0] = ECHO_REQUEST;
    packet[4..6].copy_from_slice(&(std::process::id() as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[ICMPV6_HEADER_LEN..ICMPV6_HEADER_LEN + TOKEN].copy_from_slice(token);
    packet
}

fn is_reply(packet: &[u8], sequence: u16, token: &[u8; TOKEN]) -> bool {
    packet.len() >= ICMPV6_HEADER_LEN + TOKEN
        && packet[0] == ECHO_REPLY
        && packet[6..8] == sequence.to_be_bytes()
        && packet[ICMPV6_HEADER_LEN..ICMPV6_HEADER_LEN + TOKEN] == token[..]
}

fn token() -> [u8; TOKEN] {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers() {
        let took = echo(Ipv6Addr::LOCALHOST, 7, 1200, Duration::from_secs(5)).unwrap();
        assert!(took < Duration::from_secs(5));
    }

    #[test]
    fn what_is_too_large_is_told_with_what_would_fit() {
        let peer = |inner_mtu| PeerReport { name: "pi-2.x".into(), inner_mtu, ..PeerReport::default() };
        let mut report = StatusReport { peers: vec![peer(1422)], ..StatusReport::default() };
        report.interface.mtu = 8942;
        assert!(too_large(1400, "pi-2.x", &report).contains("is 1422, which leaves 1374"));
        report.peers = vec![peer(0)];
        assert!(too_large(9000, "pi-2.x", &report).contains("is 8942, which leaves 8894"));
    }

    #[test]
    fn silence_behind_a_tunnel_that_stands_has_a_reason() {
        let report = |state| {
            let peer = PeerReport { name: "pi-2.x".into(), state, ..PeerReport::default() };
            StatusReport { peers: vec![peer], ..StatusReport::default() }
        };
        assert!(why_silent("pi-2.x", &report(PeerState::Active)).unwrap().contains("`access`"));
        assert_eq!(why_silent("pi-2.x", &report(PeerState::Offline)), None);
        assert_eq!(why_silent("pi-3.x", &report(PeerState::Active)), None);
    }

    #[test]
    fn an_address_stands_for_the_name_of_who_has_it() {
        let address = "fd00:7::5".parse().unwrap();
        let peer = PeerReport { name: "pi-2.x".into(), address: Some(address), ..PeerReport::default() };
        let report = StatusReport { peers: vec![peer], ..StatusReport::default() };
        assert_eq!(name_of(&report, address).unwrap(), "pi-2.x");
        assert!(name_of(&report, Ipv6Addr::LOCALHOST).unwrap_err().to_string().contains("give a name"));
    }

    #[test]
    fn only_our_replies_count() {
        let token = [9; TOKEN];
        let mut packet = request(3, &token, 56);
        assert!(!is_reply(&packet, 3, &token), "our own request");
        packet[0] = ECHO_REPLY;
        assert!(is_reply(&packet, 3, &token));
        assert!(
            !is_reply(&packet, 4, &token)
                && !is_reply(&packet, 3, &[8; TOKEN])
                && !is_reply(&packet[..15], 3, &token)
        );
    }
}
