//! A transfer from the side of who has it run: two programs, and what is heard of them.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{BLOCK, POLL, WHOLE, port};

/// A transfer under way.
#[derive(Debug)]
pub struct Flow {
    ends: [End; 2],
    returned: Arc<AtomicU64>,
    patience: Duration,
    /// The last thing that the connecting end says.
    listener: JoinHandle<String>,
}

/// A program that ends when its standard input does, or with this value.
#[derive(Debug)]
struct End(Child);

impl Drop for End {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Flow {
    /// Connects to `address`, and begins. `connect` and `serve` run [`main`](super::main) where the ends are,
    /// once they have its arguments. It is lost when nothing arrives for as long as `patience`.
    ///
    /// # Errors
    /// A program cannot be started, or cannot listen.
    pub fn start(
        connect: &mut Command,
        serve: &mut Command,
        address: IpAddr,
        patience: Duration,
    ) -> io::Result<Self> {
        let wait = patience.as_millis().to_string();
        let mut serve = end(serve.args(["serve", &address.to_string(), &wait]))?;
        let port = port(&mut BufReader::new(output(&mut serve)?))?;
        let target = SocketAddr::from((address, port)).to_string();
        let mut connect = end(connect.args(["connect", &target, &wait]))?;
        let said = output(&mut connect)?;
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
    pub fn goes_on(&self) -> bool {
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

    /// Ends it.
    ///
    /// # Errors
    /// Why it was lost, unless every byte came back as it was sent.
    pub fn finish(self) -> Result<(), String> {
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

fn end(command: &mut Command) -> io::Result<End> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map(End)
}

fn output(end: &mut End) -> io::Result<impl Read + Send + use<>> {
    end.0.stdout.take().ok_or_else(|| io::Error::other("an end of a transfer has no output"))
}
