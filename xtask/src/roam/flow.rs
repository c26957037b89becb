//! The transfer during a move: a program on each device (`cyphonic_lab::flow`), and what is heard of it here.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv6Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cyphonic_lab::flow::{BLOCK, WHOLE, port};

use crate::overlay::Device;

/// A transfer on which nothing arrives for so long is lost, whatever TCP may still hope for.
pub(super) const STALLED: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// The transfer under way.
pub(super) struct Flow {
    ends: [End; 2],
    returned: Arc<AtomicU64>,
    patience: Duration,
    /// The last thing that the connecting end says.
    listener: JoinHandle<String>,
}

/// A program that ends when its standard input does, or with this value.
struct End(Child);

impl Drop for End {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Flow {
    /// Connects from one device to an address of another, and begins. It is lost when nothing arrives for as long as
    /// `patience`.
    pub(super) fn start(from: &Device, to: &Device, address: Ipv6Addr, patience: Duration) -> Result<Self> {
        let wait = patience.as_millis().to_string();
        let mut serve = end(to.tool()?.args(["flow", "serve", &address.to_string(), &wait]))?;
        let said = serve.0.stdout.take().context("no output of a transfer")?;
        let port = port(&mut BufReader::new(said)).context("cannot listen for a transfer")?;
        let target = SocketAddr::from((address, port)).to_string();
        let mut connect = end(from.tool()?.args(["flow", "connect", &target, &wait]))?;
        let said = connect.0.stdout.take().context("no output of a transfer")?;
        let returned = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&returned);
        let listener = thread::spawn(move || {
            let mut last = String::new();
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                if let Ok(count) = line.parse() {
                    counted.store(count, Ordering::Relaxed);
                }
                last = line;
            }
            last
        });
        let flow = Self { ends: [serve, connect], returned, patience, listener };
        flow.await_first();
        Ok(flow)
    }

    /// So that what is measured begins under traffic. One that never begins is lost, which its end tells.
    fn await_first(&self) {
        let started = Instant::now();
        while self.returned.load(Ordering::Relaxed) == 0
            && !self.listener.is_finished()
            && started.elapsed() < self.patience
        {
            thread::sleep(POLL);
        }
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
            if self.listener.is_finished() {
                return false;
            }
            thread::sleep(POLL);
        }
        false
    }

    /// Ends it; why it was lost, unless every byte came back as it was sent.
    pub(super) fn finish(self) -> Result<(), String> {
        let [serve, mut connect] = self.ends;
        drop(connect.0.stdin.take());
        let last = self.listener.join().unwrap_or_default();
        let mut why = String::new();
        if let Some(mut errors) = connect.0.stderr.take() {
            let _ = errors.read_to_string(&mut why);
        }
        drop(serve);
        if last == WHOLE { Ok(()) } else { Err(why.trim().to_owned()) }
    }
}

fn end(command: &mut Command) -> Result<End> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    Ok(End(child.context("cannot start an end of a transfer")?))
}
