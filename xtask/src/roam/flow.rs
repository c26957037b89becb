//! A TCP transfer whose content is checked at both ends: what one device sends the other sends back.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cyphonic_lab::Namespace;

/// Bytes that leave together, and how often: 1.6 Mbit/s in either direction, which every link carries.
const BLOCK: usize = 1_000;
const INTERVAL: Duration = Duration::from_millis(5);
/// A transfer on which nothing arrives for so long is lost, whatever TCP may still hope for.
pub(super) const STALLED: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// The transfer under way.
pub(super) struct Flow {
    stop: Arc<AtomicBool>,
    returned: Arc<AtomicU64>,
    patience: Duration,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Flow {
    /// Connects from one namespace to an address in another, and begins. It is lost when nothing arrives for as long as
    /// `patience`.
    pub(super) fn start(
        from: &Namespace,
        to: &Namespace,
        address: Ipv6Addr,
        patience: Duration,
    ) -> Result<Self> {
        let listener =
            to.inside(|| TcpListener::bind((address, 0)))?.context("cannot listen for a transfer")?;
        let target = listener.local_addr().context("a listener without an address")?;
        let (stop, returned) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let echoing = Arc::clone(&stop);
        let echo = thread::spawn(move || send_back(&listener, patience, &echoing));
        let stream = from.inside(|| connect(target))?.context("cannot begin a transfer")?;
        let (sender, sending) = (stream.try_clone()?, Arc::clone(&stop));
        let (checking, counted) = (Arc::clone(&stop), Arc::clone(&returned));
        let send = thread::spawn(move || send_pattern(sender, patience, &sending));
        let check = thread::spawn(move || check_pattern(stream, patience, &checking, &counted));
        Ok(Self { stop, returned, patience, threads: vec![echo, send, check] })
    }

    /// Waits until more of it has come back; whether it did before it counts as lost.
    pub(super) fn goes_on(&self) -> bool {
        // What is on its way came through before the question.
        let before = self.returned.load(Ordering::Relaxed) + 4 * BLOCK as u64;
        let started = Instant::now();
        while started.elapsed() < self.patience {
            if self.returned.load(Ordering::Relaxed) > before {
                return true;
            }
            if self.threads.iter().any(JoinHandle::is_finished) {
                return false;
            }
            thread::sleep(POLL);
        }
        false
    }

    /// Ends it; whether every byte came back as it was sent.
    pub(super) fn finish(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("a thread of the transfer panicked".to_owned()),
            }
        }
        Ok(self.returned.load(Ordering::Relaxed))
    }
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, STALLED)?;
    stream.set_nodelay(true)?;
    Ok(stream)
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
            Err(error) if is_pause(&error) && begun.elapsed() < 2 * STALLED => thread::sleep(POLL),
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
