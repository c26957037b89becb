//! The underlay half of the ring: network cards whose XDP program gives tunnels' packets to AF_XDP sockets.
//!
//! ```text
//!   network card ── XDP program ──▶ socket of each queue ──▶ ring-1
//!                        └──▶ stack ──▶ UDP port ──────────────▲
//! ```
//!
//! A card is an addition: the UDP port goes on receiving what no card's program takes out, so cards may come,
//! go and refuse while packets pass. The order makes it so. On the way in, the sockets have frames and the
//! worker has the sockets before the program's map names the first; on the way out the program goes first,
//! and the worker empties what is left in the sockets before it closes them. (Attaching to a real card may
//! have its driver set up its queues anew, during which packets are lost, as with any XDP program.)

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fmt, io};

use cyphonic_common::packet::ethernet::ETHERNET_LEN;
use cyphonic_common::steer::MAX_QUEUES;

use crate::bpf::{BpfError, EgressClassifier, UnderlayLink};
use crate::netdevice;
use crate::ring::command::RxCommand;
use crate::ring::rx::{AnyQueue, CardQueue};
use crate::sync::lock;
use crate::udp::UdpPort;
use crate::xsk::{CopyMode, FrameSize, Umem, UmemConfig, Xsk, XskConfig, XskError, XskWatch};

/// Packets that the ring of a card's only queue holds.
const RING_SIZE: u32 = 1024;
/// Packets that the rings of a card's queues hold together: with frames of 2 KiB, 16 MiB of packet memory a
/// card.
const RING_SIZES: u32 = 4 * RING_SIZE;
/// The least a queue has: what comes between two interrupts.
const MIN_RING_SIZE: u32 = 64;
/// How long a card's last packets may take before its sockets are given up on.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two attempts to have a queue that is just being given up.
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// The ring has one worker.
const WORKER: u32 = 0;

/// A network card that gives the ring its packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name when it was attached to.
    pub name: String,
    /// The kernel's number for it, which tells it from a later one of the same name.
    pub index: u32,
    /// Its receive queues that have a socket. What comes by others goes to the UDP port.
    pub queues: u32,
    /// Whether its driver puts packets directly into packet memory. Otherwise the kernel copies them.
    pub zero_copy: bool,
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copies = if self.zero_copy { "zero-copy" } else { "copying" };
        let queues = if self.queues == 1 { "queue" } else { "queues" };
        write!(f, "{} ({copies}, {} {queues})", self.name, self.queues)
    }
}

/// Why a card gives the ring no packets. They come by the UDP port then, as before.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// There is no such interface, or it does not say what it is.
    #[error("cannot ask the interface {interface}: {source}")]
    Interface {
        /// The interface.
        interface: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Its packets do not fit a frame.
    #[error("the MTU of {interface} is {mtu}, too large for AF_XDP: lower it to 3500 or less")]
    MtuTooLarge {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: usize,
    },
    /// Nobody could wait for its packets.
    #[error(
        "cannot wait for the packets of {interface}: {source}; let the process open more files (`LimitNOFILE=`)"
    )]
    Files {
        /// The interface.
        interface: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The program could not be attached or told of the sockets.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// No socket could be opened.
    #[error(transparent)]
    Xsk(#[from] XskError),
}

/// What the kernel has dropped at the sockets of a ring.
#[derive(Debug, Default)]
pub(super) struct Watches {
    open: Mutex<Vec<(u32, XskWatch)>>,
    /// At sockets that are closed.
    before: AtomicU64,
}

/// The number of no card: the virtual interface's sockets are there as long as the ring is.
pub(super) const VIRTUAL: u32 = 0;

impl Watches {
    pub(super) fn add(&self, card: u32, watch: XskWatch) {
        lock(&self.open).push((card, watch));
    }

    fn remove(&self, card: u32) {
        let mut open = lock(&self.open);
        let gone = open.iter().filter(|(of, _)| *of == card);
        self.before.fetch_add(gone.map(|(_, watch)| dropped(watch)).sum(), Relaxed);
        open.retain(|(of, _)| *of != card);
    }

    pub(super) fn dropped(&self) -> u64 {
        let open = lock(&self.open);
        self.before.load(Relaxed) + open.iter().map(|(_, watch)| dropped(watch)).sum::<u64>()
    }
}

fn dropped(watch: &XskWatch) -> u64 {
    watch.statistics().map_or(0, |statistics| statistics.dropped())
}

/// Gives network cards to a running ring and takes them from it. When dropped, it leaves them as it found
/// them.
pub struct Underlay {
    rx: Sender<RxCommand>,
    port: Arc<UdpPort>,
    watches: Arc<Watches>,
    /// What the worker waits on. Made with the first card.
    any: Option<AnyQueue>,
    cards: Vec<(Card, UnderlayLink)>,
}

impl Underlay {
    pub(super) const fn new(rx: Sender<RxCommand>, port: Arc<UdpPort>, watches: Arc<Watches>) -> Self {
        Self { rx, port, watches, any: None, cards: Vec::new() }
    }

    /// The cards in use.
    pub fn cards(&self) -> impl Iterator<Item = &Card> {
        self.cards.iter().map(|(card, _)| card)
    }

    /// Has a card, in the calling thread's network namespace, give its tunnels' packets to the ring, by way
    /// of the ring's own programs. A card that does so already stays as it is.
    ///
    /// # Errors
    /// [`CardError`], whose text says what to do. The card is as it was, and its packets come by the UDP
    /// port.
    pub fn attach(
        &mut self,
        programs: &mut EgressClassifier,
        interface: &str,
        mode: CopyMode,
    ) -> Result<&Card, CardError> {
        let asked = |source| CardError::Interface { interface: interface.to_owned(), source };
        let index = netdevice::index(interface).map_err(asked)?;
        if let Some(at) = self.cards.iter().position(|(card, _)| card.index == index) {
            return Ok(&self.cards[at].0);
        }
        let mtu = netdevice::mtu(interface).map_err(asked)?;
        let count = netdevice::receive_queues(interface).map_err(asked)?.min(MAX_QUEUES);
        let frame_size = FrameSize::for_packets_of(mtu + ETHERNET_LEN)
            .ok_or_else(|| CardError::MtuTooLarge { interface: interface.to_owned(), mtu })?;

        // Without sockets in its map, the program leaves everything to the stack. It must be there before the
        // sockets are: drivers decide by it whether they can do without copying.
        let link = programs.attach_underlay(interface, index, self.port.local_port())?;
        let files = |source| CardError::Files { interface: interface.to_owned(), source };
        let any = self.any().map_err(files)?;
        let (queues, zero_copy) = open(interface, index, count, frame_size, mode, &any)?;
        for queue in &queues {
            any.add(&queue.rx).map_err(files)?;
        }
        let watches = queues.iter().map(|queue| queue.rx.watch()).collect::<io::Result<Vec<_>>>();
        let watches = watches.map_err(files)?;
        let card = Card { name: interface.to_owned(), index, queues: queues.len() as u32, zero_copy };
        queues.into_iter().for_each(|queue| self.tell(RxCommand::AddQueue(Box::new(queue))));
        let named = (0..)
            .zip(&watches)
            .try_for_each(|(queue, socket)| programs.set_underlay_socket(&link, queue, WORKER, socket));
        watches.into_iter().for_each(|watch| self.watches.add(index, watch));
        self.cards.push((card, link));
        if let Err(error) = named {
            self.detach(index);
            return Err(error.into());
        }
        Ok(&self.cards[self.cards.len() - 1].0)
    }

    fn any(&mut self) -> io::Result<AnyQueue> {
        let any = self.any.take().map_or_else(AnyQueue::new, Ok)?;
        Ok(self.any.insert(any).clone())
    }

    /// Takes a card from the ring. Ignored where it is not in use.
    pub fn detach(&mut self, index: u32) {
        let Some(at) = self.cards.iter().position(|(card, _)| card.index == index) else { return };
        let (_, link) = self.cards.swap_remove(at);
        drop(link);
        let (done, all_done) = channel();
        self.tell(RxCommand::RemoveCard(index, done));
        // No value ever comes: the worker drops its end when the last socket is empty.
        let _ = all_done.recv_timeout(PATIENCE);
        self.watches.remove(index);
    }

    /// A ring that has stopped has closed its sockets: there is nothing to tell it.
    fn tell(&self, command: RxCommand) {
        let _ = self.rx.send(command);
        self.port.wake();
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        while let Some(index) = self.cards.last().map(|(card, _)| card.index) {
            self.detach(index);
        }
    }
}

/// Opens a socket on each of the first queues, all on one memory, and gives the kernel their frames.
fn open(
    interface: &str,
    card: u32,
    count: u32,
    frame_size: FrameSize,
    mode: CopyMode,
    any: &AnyQueue,
) -> Result<(Vec<CardQueue>, bool), XskError> {
    let ring_size = ring_size(count);
    // For each queue a full ring of free frames, and a full ring of received ones.
    let frames = 2 * ring_size;
    let (umem, mut pool) = Umem::new(UmemConfig { frames: count * frames, frame_size, huge_pages: false })?;
    let (mut queues, mut zero_copy) = (Vec::with_capacity(count as usize), false);
    for queue in 0..count {
        let mut opened = open_queue(&umem, interface, queue, XskConfig { ring_size, mode })?;
        let mut pool = pool.split(frames as usize);
        opened.rx.refill(&mut pool, 0);
        if opened.rx.needs_wakeup() {
            opened.rx.wake().map_err(|source| XskError::Io { doing: "wake a network card", source })?;
        }
        zero_copy = opened.zero_copy;
        queues.push(CardQueue { card, rx: opened.rx, pool, any: any.clone() });
    }
    Ok((queues, zero_copy))
}

/// The kernel gives a queue up a moment after its last socket was closed, so one that was ours may seem busy.
fn open_queue(umem: &Umem, interface: &str, queue: u32, config: XskConfig) -> Result<Xsk, XskError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match Xsk::open(umem, interface, queue, config) {
            Err(XskError::Busy { .. }) if Instant::now() < end => std::thread::sleep(BUSY_PAUSE),
            result => return result,
        }
    }
}

/// Of each of so many queues.
fn ring_size(queues: u32) -> u32 {
    let share = RING_SIZES / queues.max(1);
    // Down to a power of two.
    let share = 1 << share.checked_ilog2().unwrap_or(0);
    share.clamp(MIN_RING_SIZE, RING_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_queues_share_the_memory_that_few_have() {
        let sizes = [0, 1, 2, 4, 5, 8, 63, 64].map(ring_size);
        assert_eq!(sizes, [1024, 1024, 1024, 1024, 512, 512, 64, 64]);
        assert!(sizes.iter().all(|size| size.is_power_of_two()));
    }
}
