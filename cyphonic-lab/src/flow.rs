//! A TCP transfer whose content is checked at both ends: what one device sends the other sends back.
//!
//! Each end is a program, so that it runs wherever a node is: [`main`] with `serve` or `connect`. Either ends
//! when its standard input does.

mod run;

use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use self::run::Flow;

/// Bytes that leave together, and how often: 1.6 Mbit/s in either direction, which every link carries.
const BLOCK: usize = 1_000;
const INTERVAL: Duration = Duration::from_millis(5);
/// For the other end to be there.
const ARRIVAL: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

const USAGE: &str =
    "usage: flow serve ADDRESS PATIENCE_MILLISECONDS | flow connect ADDRESS:PORT PATIENCE_MILLISECONDS";

/// What the serving end says first, before its port.
const LISTENING: &str = "listening ";
/// What the connecting end says last: that every byte came back as it was sent.
const WHOLE: &str = "whole";

/// Runs one end. `serve` says its port; `connect` says again and again how many bytes came back, and at last
/// whether all did. A transfer is lost when nothing arrives for as long as the patience.
///
/// # Errors
/// A message for people: the arguments are wrong, or the transfer was lost.
pub fn main(arguments: &[&str]) -> Result<(), String> {
    let [verb, address, patience] = *arguments else { return Err(USAGE.to_owned()) };
    let patience = Duration::from_millis(patience.parse().map_err(|_| USAGE)?);
    let stop = Arc::<AtomicBool>::default();
    let ending = Arc::clone(&stop);
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        ending.store(true, Ordering::Relaxed);
    });
    let outcome = match verb {
        "serve" => serve(address, patience, &stop),
        "connect" => connect(address, patience, &stop),
        _ => return Err(USAGE.to_owned()),
    };
    outcome.map_err(|error| error.to_string())
}

fn serve(address: &str, patience: Duration, stop: &AtomicBool) -> io::Result<()> {
    let address: std::net::IpAddr = address.parse().map_err(io::Error::other)?;
    let listener = TcpListener::bind((address, 0))?;
    say(&format!("{LISTENING}{}", listener.local_addr()?.port()))?;
    send_back(&listener, patience, stop)
}

fn connect(target: &str, patience: Duration, stop: &Arc<AtomicBool>) -> io::Result<()> {
    let target: SocketAddr = target.parse().map_err(io::Error::other)?;
    let stream = TcpStream::connect_timeout(&target, ARRIVAL)?;
    stream.set_nodelay(true)?;
    let returned = Arc::<AtomicU64>::default();
    let (sender, sending) = (stream.try_clone()?, Arc::clone(stop));
    let send = thread::spawn(move || send_pattern(sender, patience, &sending));
    let (counted, checking) = (Arc::clone(&returned), Arc::clone(stop));
    let check = thread::spawn(move || check_pattern(stream, patience, &checking, &counted));
    while !check.is_finished() {
        say(&returned.load(Ordering::Relaxed).to_string())?;
        thread::sleep(POLL);
    }
    let end = |thread: thread::JoinHandle<io::Result<()>>| {
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the transfer panicked")))
    };
    // What the checker found is the reason for what befell the sender.
    end(check)?;
    end(send)?;
    say(WHOLE)
}

fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

/// The port that a serving end says it has.
fn port(lines: &mut impl BufRead) -> io::Result<u16> {
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let port = line.trim().strip_prefix(LISTENING).and_then(|port| port.parse().ok());
    port.ok_or_else(|| io::Error::other(format!("the serving end says {line:?}")))
}

/// The byte at a place of the transfer: any part that is lost, repeated or moved shows.
fn pattern(at: u64) -> u8 {
    let mixed = (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[(at % 8) as usize]
}

fn send_pattern(mut stream: TcpStream, patience: Duration, stop: &AtomicBool) -> io::Result<()> {
    stream.set_write_timeout(Some(patience))?;
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        let block: Vec<u8> = (at..at + BLOCK as u64).map(pattern).collect();
        stream.write_all(&block)?;
        at += BLOCK as u64;
        thread::sleep(INTERVAL);
    }
    stream.shutdown(std::net::Shutdown::Write)
}

fn check_pattern(
    mut stream: TcpStream,
    patience: Duration,
    stop: &AtomicBool,
    counted: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = [0; 16 * BLOCK];
    stream.set_read_timeout(Some(POLL))?;
    let mut heard = Instant::now();
    let mut at = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) if stop.load(Ordering::Relaxed) => return Ok(()),
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other end closed")),
            Ok(length) => {
                let right = buffer.iter().take(length).zip(at..).all(|(byte, at)| *byte == pattern(at));
                if !right {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "other bytes than were sent"));
                }
                heard = Instant::now();
                at += length as u64;
                counted.store(at, Ordering::Relaxed);
            }
            Err(error) if is_pause(&error) && heard.elapsed() < patience => {}
            Err(error) if is_pause(&error) => {
                return Err(io::Error::new(error.kind(), "nothing comes any more"));
            }
            Err(error) => return Err(error),
        }
    }
}

fn send_back(listener: &TcpListener, patience: Duration, stop: &AtomicBool) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let begun = Instant::now();
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if is_pause(&error) && begun.elapsed() < ARRIVAL => thread::sleep(POLL),
            Err(error) => return Err(error),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(POLL))?;
    stream.set_write_timeout(Some(patience))?;
    let mut buffer = [0; 16 * BLOCK];
    let mut heard = Instant::now();
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                heard = Instant::now();
                stream.write_all(buffer.get(..length).unwrap_or_default())?;
            }
            Err(error) if is_pause(&error) && heard.elapsed() < 2 * patience => {}
            Err(_) if stop.load(Ordering::Relaxed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_in_the_wrong_place_is_noticed() {
        let block = |from: u64| (from..from + BLOCK as u64).map(pattern).collect::<Vec<u8>>();
        assert!((1..100).all(|n| block(n * BLOCK as u64) != block(0) && block(n) != block(0)));
    }
}
