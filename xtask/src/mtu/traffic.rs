//! What applications send over the tunnel, and whether it arrives unchanged.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cyphonic_lab::Namespace;
use cyphonic_lab::command::{Cancel, run};

/// IPv6 and ICMPv6 echo or UDP headers.
const HEADERS: u64 = 48;
const PATIENCE: Duration = Duration::from_secs(10);
/// What one transfer carries.
const TRANSFER: usize = 1 << 20;
/// For one datagram to come back; it is sent again then.
const ECHO: Duration = Duration::from_secs(1);
const TRIES: usize = 3;
/// Answers that are waited for.
const PINGS: u32 = 3;

/// Whether pings of inner packets of `size` bytes are answered. ping sends more than it was asked to while
/// answers are missing, so one that a busy machine delays does not count as lost.
pub(super) fn ping(from: &Namespace, to: Ipv6Addr, size: u64, cancel: &Cancel) -> Result<bool> {
    let output = run(command(from, to, size, PINGS).args(["-w", "6"]), PATIENCE, cancel)?;
    let statistics = output.stdout.split(", ").find_map(|part| part.strip_suffix(" received"));
    let received: Option<u32> = statistics.and_then(|received| received.parse().ok());
    Ok(received.is_some_and(|received| received >= PINGS))
}

/// The MTU that a ping of `size` bytes is told instead of being answered.
pub(super) fn refused(from: &Namespace, to: Ipv6Addr, size: u64, cancel: &Cancel) -> Result<Option<u64>> {
    let output = run(command(from, to, size, 1).args(["-w", "2"]), PATIENCE, cancel)?;
    let said = format!("{}{}", output.stdout, output.stderr);
    let stated = said.split("mtu").nth(1).map(|rest| rest.trim_start_matches([':', '=', ' ']));
    let digits = stated.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    Ok(digits.and_then(|digits| digits.parse().ok()))
}

/// As an application that may not fragment.
fn command(from: &Namespace, to: Ipv6Addr, size: u64, count: u32) -> std::process::Command {
    let mut ping = from.command("ping");
    let payload = size.saturating_sub(HEADERS).to_string();
    ping.args(["-6", "-n", "-M", "do", "-i", "0.05", "-c", &count.to_string(), "-s", &payload]);
    ping.arg(to.to_string());
    ping
}

/// Whether a datagram of `size` bytes of payload comes back as it went.
pub(super) fn udp(from: &Namespace, to: &Namespace, address: Ipv6Addr, size: usize) -> Result<bool> {
    let echo = to.inside(|| UdpSocket::bind((address, 0)))??;
    let there = echo.local_addr()?;
    let here = from.inside(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))??;
    here.connect(there)?;
    for socket in [&echo, &here] {
        socket.set_read_timeout(Some(ECHO))?;
    }
    let payload: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
    let mut buffer = vec![0; 65_536];
    for _ in 0..TRIES {
        // An error of the one before (the kernel has just learnt the path's MTU) is told by the next call.
        if here.send(&payload).is_err() {
            continue;
        }
        let Ok((length, sender)) = echo.recv_from(&mut buffer) else { continue };
        let Some(received) = buffer.get(..length).filter(|received| *received == payload) else {
            return Ok(false);
        };
        if echo.send_to(received, sender).is_ok()
            && let Ok(length) = here.recv(&mut buffer)
        {
            return Ok(buffer.get(..length) == Some(payload.as_slice()));
        }
    }
    Ok(false)
}

/// A transfer, every byte of which is checked. The inner error is the transfer's.
pub(super) fn tcp(from: &Namespace, to: &Namespace, address: Ipv6Addr) -> Result<Result<()>> {
    let (mut sender, mut receiver) = match connect(from, to, address) {
        Ok(ends) => ends,
        Err(error) => return Ok(Err(error)),
    };
    let receiving = std::thread::spawn(move || -> Result<usize> {
        let mut all = Vec::new();
        receiver.read_to_end(&mut all)?;
        ensure!(all.iter().enumerate().all(|(at, byte)| *byte == pattern(at)), "a byte is wrong");
        Ok(all.len())
    });
    let content: Vec<u8> = (0..TRANSFER).map(pattern).collect();
    let sent = sender.write_all(&content).and_then(|()| sender.shutdown(Shutdown::Write));
    let received = receiving.join().map_err(|_| anyhow!("the receiver panicked"))?;
    Ok(sent.map_err(anyhow::Error::from).and(received).and_then(|received| {
        ensure!(received == TRANSFER, "{received} of {TRANSFER} bytes arrived");
        Ok(())
    }))
}

fn connect(from: &Namespace, to: &Namespace, address: Ipv6Addr) -> Result<(TcpStream, TcpStream)> {
    let listener = to.inside(|| TcpListener::bind((address, 0)))??;
    let there = listener.local_addr()?;
    let sender = from.inside(|| TcpStream::connect_timeout(&there, PATIENCE))??;
    let (receiver, _) = listener.accept()?;
    for stream in [&sender, &receiver] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((sender, receiver))
}

/// Shows every lost, doubled or moved byte.
fn pattern(at: usize) -> u8 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

/// A transfer that goes on until it is finished.
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    sending: JoinHandle<Result<()>>,
    receiving: JoinHandle<Result<Duration>>,
}

impl Stream {
    pub(super) fn start(from: &Namespace, to: &Namespace, address: Ipv6Addr) -> Result<Self> {
        let (mut sender, mut receiver) = connect(from, to, address).context("a transfer cannot begin")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // A period of the pattern, so that writing costs little.
        let period: Arc<[u8]> = (0..1 << 16).map(pattern).collect();
        let expected = Arc::clone(&period);
        let sending = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                sender.write_all(&period)?;
            }
            Ok(sender.shutdown(Shutdown::Write)?)
        });
        let receiving = std::thread::spawn(move || {
            let (mut buffer, mut at, mut last, mut longest) =
                (vec![0; 1 << 16], 0, Instant::now(), Duration::ZERO);
            loop {
                let read = receiver.read(&mut buffer)?;
                longest = longest.max(last.elapsed());
                last = Instant::now();
                if read == 0 {
                    return Ok(longest);
                }
                let mut received = buffer.get(..read).unwrap_or_default();
                while !received.is_empty() {
                    let rest = expected.get(at..).unwrap_or_default();
                    let len = rest.len().min(received.len());
                    ensure!(rest.get(..len) == received.get(..len), "a byte is wrong");
                    at = (at + len) % expected.len();
                    received = received.get(len..).unwrap_or_default();
                }
            }
        });
        Ok(Self { stop, sending, receiving })
    }

    /// Ends it; the longest that nothing arrived.
    pub(super) fn finish(self) -> Result<Duration> {
        self.stop.store(true, Relaxed);
        self.sending.join().map_err(|_| anyhow!("the sender panicked"))??;
        self.receiving.join().map_err(|_| anyhow!("the receiver panicked"))?
    }
}
