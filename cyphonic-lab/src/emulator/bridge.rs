//! The emulator's devices and threads: a reader and a writer for each direction of each wire.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::{Queue, Tap, Work};

/// Ethernet header with one VLAN tag.
const FRAME_OVERHEAD: usize = 18;
/// By default the kernel lets timers of ordinary threads be 50 µs late, which a ping over the wire would
/// show.
const TIMER_SLACK_NS: u64 = 1_000;

/// The running threads of all wires.
pub(super) struct Joined(Vec<JoinHandle<()>>);

impl Joined {
    /// Blocks until every device is gone.
    pub(super) fn wait(self) {
        for thread in self.0 {
            let _ = thread.join();
        }
    }
}

/// Makes all devices and starts to carry packets.
pub(super) fn join(work: &Work) -> Result<Joined, String> {
    let home = File::open("/proc/thread-self/ns/net")
        .map_err(|error| format!("cannot open own namespace: {error}"))?;
    let mut threads = Vec::new();
    for (number, wire) in work.wires.iter().enumerate() {
        let [left, right] = &wire.ends;
        let left = Arc::new(make(left, wire.mtu)?);
        let right = Arc::new(make(right, wire.mtu)?);
        let seed = 2 * number as u64;
        let [there, back] = wire.impairments;
        for (from, to, impairment, seed) in [(&left, &right, there, seed), (&right, &left, back, seed + 1)] {
            let lane = Arc::new(Lane::new(Queue::new(impairment, seed)));
            let (reader, writer) = (Arc::clone(&lane), lane);
            let (from, to, longest) =
                (Arc::clone(from), Arc::clone(to), usize::from(wire.mtu) + FRAME_OVERHEAD);
            threads.push(thread::spawn(move || reader.read(&from, longest)));
            threads.push(thread::spawn(move || writer.write(&to)));
        }
    }
    for (number, gate) in work.gates.iter().enumerate() {
        threads.extend(gate.open(number as u64)?);
    }
    setns(&home, CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("cannot return to own namespace: {error}"))?;
    Ok(Joined(threads))
}

/// Makes a TAP device: it belongs to the namespace in which the calling thread is.
fn make(tap: &Tap, mtu: u16) -> Result<SyncDevice, String> {
    enter(&tap.namespace).map_err(|error| format!("cannot enter {}: {error}", tap.namespace.display()))?;
    let device = DeviceBuilder::new().name(&tap.device).layer(Layer::L2).mtu(mtu).build_sync();
    device.map_err(|error| format!("cannot make TAP {} in {}: {error}", tap.device, tap.namespace.display()))
}

fn enter(namespace: &Path) -> io::Result<()> {
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// A queue between a reading and a writing thread.
struct Lane {
    queue: Mutex<Queue>,
    arrived: Condvar,
    epoch: Instant,
}

impl Lane {
    fn new(queue: Queue) -> Self {
        Self { queue: Mutex::new(queue), arrived: Condvar::new(), epoch: Instant::now() }
    }

    /// Takes frames off the device until it is gone.
    fn read(&self, device: &SyncDevice, longest: usize) {
        let mut buffer = vec![0; longest];
        loop {
            match device.recv(&mut buffer) {
                Ok(length) => {
                    let frame = buffer.get(..length).unwrap_or(&buffer).to_vec();
                    self.lock().push(self.epoch.elapsed(), frame);
                    self.arrived.notify_one();
                }
                Err(error) if is_passing(&error) => {}
                Err(_) => return,
            }
        }
    }

    /// Puts frames on the device as they become due.
    fn write(&self, device: &SyncDevice) {
        // Not fatal: the wire is then up to 50 µs longer.
        let _ = nix::sys::prctl::set_timerslack(TIMER_SLACK_NS);
        let mut due = Vec::new();
        loop {
            self.wait(&mut due);
            for frame in due.drain(..) {
                match device.send(&frame) {
                    Ok(_) => {}
                    // An interface that is down loses what is sent to it, as an unplugged one does.
                    Err(error) if is_passing(&error) => {}
                    Err(_) => return,
                }
            }
        }
    }

    /// Waits until frames are due and takes them.
    fn wait(&self, due: &mut Vec<Vec<u8>>) {
        let mut queue = self.lock();
        loop {
            let now = self.epoch.elapsed();
            due.extend(std::iter::from_fn(|| queue.pop(now)));
            if !due.is_empty() {
                return;
            }
            let pause = queue.next_due().map_or(Duration::MAX, |next| next.saturating_sub(now));
            queue = if pause == Duration::MAX {
                self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.arrived.wait_timeout(queue, pause).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Errors that end when the interface comes up (EIO on write, EBADFD is for a device that is gone).
pub(crate) fn is_passing(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let passing = [Errno::EINTR, Errno::EAGAIN, Errno::EIO, Errno::ENETDOWN, Errno::ENOBUFS, Errno::EINVAL];
    error.raw_os_error().is_some_and(|code| passing.contains(&Errno::from_raw(code)))
}
