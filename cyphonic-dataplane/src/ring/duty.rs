//! Which thread runs which half of a ring.
//!
//! A ring has two halves, sending and receiving, and two threads. One of them runs both halves as long as it
//! can: what it delivers is often answered at once (an echo, an acknowledgement), and it sees the answer
//! before it sleeps. Waking another thread, on another processor, costs more than all the rest that happens
//! to a packet, and where there are two processors, a third and a fourth thread only push the applications
//! off them.
//!
//! Where there are more processors, and both directions keep the thread busy without a pause, the second
//! thread takes the sending half, and gives it back when it finds little to do ([`Division`]).
//!
//! Neither half waits for anything but in its thread's one wait for all: a link that takes no more stops what
//! is sent on it, and neither what arrives nor what is asked for.
//!
//! **Invariant.** Each half is run by one thread at a time, so a flow's packets stay in order, and a half is
//! handed over whole: there is no lock while packets pass.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::awake::AwakeRequest;
use super::device::{Delivery, Source};
use super::pacing::Pacing;
use super::rx::RxWorker;
use super::tx::TxWorker;
use super::wake::Waker;
use crate::sync::lock;
use crate::thread::scheduling::Scheduling;
use crate::udp::{RecvBatch, UdpPort};

/// Reads of the sending half between two looks at what has arrived, while one thread runs both.
pub(crate) const READS_TOGETHER: u32 = 16;
/// The same with a thread of its own: between two looks at the clock.
const READS_ALONE: u32 = 64;
/// The fewest processors on which a ring takes two: one is left for the applications that its packets come
/// from.
const PROCESSORS_FOR_TWO: usize = 3;
/// Turns without a pause, each with work in both directions, after which the second thread takes its half.
const BUSY_TURNS: u32 = 64;
/// Waits in a row that brought fewer than [`FEW`] packets each, after which the half goes back.
const QUIET_WAITS: u32 = 64;
const FEW: u32 = 8;

/// When a ring uses its second thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Division {
    /// When one thread is not enough, if the machine has three processors or more.
    #[default]
    Auto,
    /// Never.
    Never,
    /// As soon as there is anything to do: for tests.
    Always,
}

/// What came of one turn of a half.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Packets, or messages of packets, that were taken.
    pub(super) done: u32,
    /// Nothing more was there.
    pub(super) dry: bool,
}

/// The sending half.
pub(super) struct Sending<S> {
    pub(super) worker: TxWorker,
    pub(super) source: S,
}

impl<S: Source> Sending<S> {
    /// What the half waits for: packets of the source, or else room in the port. The source tells of its end
    /// all the same.
    fn wanted(&self) -> (PollFd<'_>, bool) {
        let room = self.worker.awaits_room();
        let packets = if room { PollFlags::empty() } else { PollFlags::IN };
        (PollFd::new(&self.source, packets), room)
    }
}

/// The receiving half.
pub(super) struct Receiving<D> {
    pub(super) worker: RxWorker<D>,
    pub(super) batch: RecvBatch,
}

/// What both threads, and whoever wakes and stops them, have in common.
pub(super) struct Duty {
    port: Arc<UdpPort>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    division: AtomicU8,
    processors: usize,
}

impl Duty {
    pub(super) fn new(port: Arc<UdpPort>, waker: Arc<Waker>, stop: Arc<AtomicBool>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { port, waker, stop, division: AtomicU8::new(Division::Auto as u8), processors }
    }

    pub(super) fn divide(&self, division: Division) {
        self.division.store(division as u8, Relaxed);
        self.port.wake();
    }

    fn is_over(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Busy turns in a row after which the ring is divided; none where it is not.
    fn patience(&self) -> Option<u32> {
        match self.division.load(Relaxed) {
            division if division == Division::Always as u8 => Some(0),
            division if division == Division::Auto as u8 => {
                (self.processors >= PROCESSORS_FOR_TWO).then_some(BUSY_TURNS)
            }
            _ => None,
        }
    }
}

/// A half on its way from one thread to the other.
pub(super) struct Handover<H> {
    to_second: Mailbox<H>,
    to_first: Mailbox<H>,
}

impl<H> Default for Handover<H> {
    fn default() -> Self {
        Self { to_second: Mailbox::default(), to_first: Mailbox::default() }
    }
}

/// One way of it: only whom it is for takes from it.
struct Mailbox<H> {
    half: Mutex<Option<H>>,
    is_there: AtomicBool,
}

impl<H> Default for Mailbox<H> {
    fn default() -> Self {
        Self { half: Mutex::new(None), is_there: AtomicBool::new(false) }
    }
}

impl<H> Mailbox<H> {
    fn put(&self, half: H) {
        *lock(&self.half) = Some(half);
        self.is_there.store(true, Relaxed);
    }

    fn take(&self) -> Option<H> {
        if !self.is_there.load(Relaxed) {
            return None;
        }
        let half = lock(&self.half).take();
        self.is_there.store(false, Relaxed);
        half
    }
}

/// The thread that always receives, and sends while it has the half for it.
pub(super) struct First<'a, S, D> {
    duty: &'a Duty,
    handover: &'a Handover<Box<Sending<S>>>,
    second: &'a Thread,
    sending: Option<Box<Sending<S>>>,
    receiving: Receiving<D>,
    pacing: Pacing,
    scheduling: Scheduling,
    awake: Option<AwakeRequest>,
    /// Packets have come since the last rest.
    had_packets: bool,
    /// Turns without a pause, with work in both directions.
    busy: u32,
}

impl<'a, S: Source, D: Delivery> First<'a, S, D> {
    pub(super) fn new(
        duty: &'a Duty,
        handover: &'a Handover<Box<Sending<S>>>,
        second: &'a Thread,
        sending: Sending<S>,
        receiving: Receiving<D>,
        awake: Option<AwakeRequest>,
    ) -> Self {
        let sending = Some(Box::new(sending));
        let (pacing, scheduling) = (Pacing::new(Instant::now()), Scheduling::of_this_thread());
        Self {
            duty,
            handover,
            second,
            sending,
            receiving,
            pacing,
            scheduling,
            awake,
            had_packets: false,
            busy: 0,
        }
    }

    /// Runs until told to stop, until the virtual interface is gone, or until the port is broken.
    pub(super) fn run(mut self) -> io::Result<()> {
        while !self.duty.is_over() {
            let received = self.receiving.worker.turn(&mut self.receiving.batch)?;
            let sent = match &mut self.sending {
                Some(half) => half.worker.turn(&mut half.source, READS_TOGETHER)?,
                None => self.take_back(),
            };
            let done = received.done + sent.done;
            self.pacing.count(done);
            self.had_packets |= done > 0;
            if received.dry && sent.dry {
                self.rest()?;
            } else {
                self.busy += u32::from(received.done > 0 && sent.done > 0);
                self.hand_over_if_too_busy();
            }
        }
        Ok(())
    }

    fn take_back(&mut self) -> Turn {
        self.sending = self.handover.to_first.take();
        Turn { done: 0, dry: self.sending.is_none() }
    }

    fn hand_over_if_too_busy(&mut self) {
        if self.duty.patience().is_some_and(|patience| self.busy >= patience) {
            self.busy = 0;
            if let Some(half) = self.sending.take() {
                self.handover.to_second.put(half);
                self.second.unpark();
            }
        }
    }

    /// Nothing is there: sleeps until something is.
    fn rest(&mut self) -> io::Result<()> {
        self.busy = 0;
        self.scheduling.rest();
        if self.pacing.pause() {
            return Ok(());
        }
        let had_packets = std::mem::take(&mut self.had_packets);
        let awake = self.awake.as_mut().and_then(|awake| awake.rest(had_packets));
        let rest = [self.receiving.worker.timeout(), awake].into_iter().flatten().min();
        let frames = self.receiving.worker.cards_descriptor();
        let frames = frames.map(|frames| PollFd::from_borrowed_fd(frames, PollFlags::IN));
        let (mut fds, room, timeout) = match &self.sending {
            None => ([None, None, frames], false, rest),
            Some(half) => {
                let timeout = [half.worker.timeout(), S::CHECK_INTERVAL, rest].into_iter().flatten().min();
                let (source, room) = half.wanted();
                ([Some(source), Some(self.duty.waker.poll_fd()), frames], room, timeout)
            }
        };
        self.duty.port.wait_beside(&mut fds, room, timeout)?;
        let [source, called, _] = fds.map(|fd| fd.map(|fd| fd.revents()).unwrap_or(PollFlags::empty()));
        let Some(half) = &self.sending else { return Ok(()) };
        self.duty.waker.settle(called);
        if source.intersects(PollFlags::ERR | PollFlags::NVAL) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the virtual interface is gone"));
        }
        // Where packets come from, it is there.
        if source.is_empty() { half.source.check() } else { Ok(()) }
    }
}

/// The thread that sends when the first one has too much to do.
pub(super) fn run_second<S: Source>(duty: &Duty, handover: &Handover<Box<Sending<S>>>) -> io::Result<()> {
    let mut scheduling = Scheduling::of_this_thread();
    while !duty.is_over() {
        match handover.to_second.take() {
            Some(half) => {
                let half = send_while_busy(duty, half, &mut scheduling)?;
                handover.to_first.put(half);
                duty.port.wake();
            }
            // Unparked when there is something, and when it is over.
            None => std::thread::park(),
        }
    }
    Ok(())
}

fn send_while_busy<S: Source>(
    duty: &Duty,
    mut half: Box<Sending<S>>,
    scheduling: &mut Scheduling,
) -> io::Result<Box<Sending<S>>> {
    let (mut quiet, mut since) = (0, 0);
    let mut pacing = Pacing::new(Instant::now());
    while !duty.is_over() && (quiet < QUIET_WAITS || duty.patience() == Some(0)) {
        let turn = half.worker.turn(&mut half.source, READS_ALONE)?;
        since += turn.done;
        pacing.count(turn.done);
        if !turn.dry {
            continue;
        }
        quiet = if since < FEW { quiet + 1 } else { 0 };
        since = 0;
        scheduling.rest();
        if pacing.pause() {
            continue;
        }
        // Whoever stops the ring may have called while a call before was still to be heeded, which writes nothing
        // that would end the wait; the turn has heeded it.
        if duty.is_over() {
            break;
        }
        let timeout = [half.worker.timeout(), S::CHECK_INTERVAL].into_iter().flatten().min();
        let (source, room) = half.wanted();
        duty.waker.wait(source, room.then_some(&*duty.port), timeout)?;
        half.source.check()?;
    }
    Ok(half)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::sync::mpsc::{channel, sync_channel};
    use std::time::Duration;

    use cyphonic_common::InterfaceConfig;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::gso::VnetHeader;
    use crate::ring::HoldLimits;
    use crate::ring::hold::Hold;
    use crate::ring::tx::TxParts;

    /// An interface that nothing comes from.
    struct Quiet(OwnedFd);

    impl Source for Quiet {
        const CHECK_INTERVAL: Option<Duration> = Some(Duration::from_micros(10));

        fn read(&mut self) -> io::Result<Option<(VnetHeader, &[u8])>> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn check(&self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Quiet {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    fn half(port: &Arc<UdpPort>, waker: &Arc<Waker>) -> Box<Sending<Quiet>> {
        let (own, prefix) =
            (Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0));
        let worker = TxWorker::new(TxParts {
            port: Arc::clone(port),
            config: InterfaceConfig::new(own.octets(), prefix.octets(), 48).unwrap(),
            own,
            events: Arc::new(|_| {}),
            counters: Arc::default(),
            commands: channel().1,
            answers: sync_channel(1).1,
            deliver: channel().0,
            waker: Arc::clone(waker),
            hold: Hold::new(HoldLimits::default()),
        });
        Box::new(Sending { worker, source: Quiet(eventfd(0, EventfdFlags::NONBLOCK).unwrap()) })
    }

    /// An interface that nothing comes from, and whose ring is stopped while it is read, by a call that finds
    /// another to be heeded.
    struct Stopping(OwnedFd, Arc<AtomicBool>);

    impl Source for Stopping {
        const CHECK_INTERVAL: Option<Duration> = None;

        fn read(&mut self) -> io::Result<Option<(VnetHeader, &[u8])>> {
            self.1.store(true, Relaxed);
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn check(&self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Stopping {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    #[test]
    fn a_ring_that_is_stopped_during_a_turn_is_not_waited_in() {
        let port = Arc::new(UdpPort::bind(0).unwrap());
        let (waker, stop) = (Arc::new(Waker::new().unwrap()), Arc::new(AtomicBool::new(false)));
        let duty = Duty::new(Arc::clone(&port), Arc::clone(&waker), Arc::clone(&stop));
        duty.divide(Division::Always);
        let Sending { worker, source } = *half(&port, &waker);
        let half = Box::new(Sending { worker, source: Stopping(source.0, Arc::clone(&stop)) });
        let (ended, end) = channel();
        std::thread::spawn(move || {
            let ran = send_while_busy(&duty, half, &mut Scheduling::of_this_thread());
            ended.send(ran.is_ok()).unwrap();
        });
        assert_eq!(end.recv_timeout(Duration::from_secs(30)), Ok(true));
    }

    #[test]
    fn a_half_that_is_given_back_stays_given_back() {
        let port = Arc::new(UdpPort::bind(0).unwrap());
        let (waker, stop) = (Arc::new(Waker::new().unwrap()), Arc::new(AtomicBool::new(false)));
        let duty = Duty::new(Arc::clone(&port), Arc::clone(&waker), Arc::clone(&stop));
        duty.divide(Division::Never);
        let handover = Handover::default();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| run_second(&duty, &handover));
            handover.to_second.put(half(&port, &waker));
            second.thread().unpark();
            // The first thread is slow to come back for it.
            let end = Instant::now() + Duration::from_secs(20);
            while !handover.to_first.is_there.load(Relaxed) {
                assert!(Instant::now() < end, "the half is not given back");
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(50));
            let half = handover.to_first.take();
            stop.store(true, Relaxed);
            second.thread().unpark();
            assert!(half.is_some(), "the second thread has taken it again");
            assert!(second.join().unwrap().is_ok());
        });
    }
}
