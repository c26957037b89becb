//! Several sockets of one port, one a worker: handing on what came to the wrong one.
//!
//! A program chooses the socket for each datagram that arrives, by its connection ID. But the kernel joins
//! datagrams of one sender before the program sees them, and what a relay sends is for many tunnels: then the
//! first datagram's worker gets all of them. It takes out those that are another worker's, and puts them into
//! that worker's mailbox. So does a worker with a datagram of a tunnel that it does not have: the program may
//! not know of that, or be missing. Mailboxes are bounded, their buffers are used again, and a lock is taken
//! only when something is handed on.
//!
//! Datagrams that are handed on may be overtaken by later ones that came to their worker's own socket.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use cyphonic_common::{ConnectionId, DatagramKind, classify_datagram};
use quinn_udp::{EcnCodepoint, RecvMeta};

use crate::hash::WordHasher;
use crate::sync::{lock, read, write};

/// Messages that wait in a mailbox: more than a socket's queue of full-sized ones usually holds.
const MAX_WAITING: usize = 512;
/// Bytes that wait in a mailbox.
const MAX_BYTES: usize = 1 << 20;
/// Buffers kept for the next messages, and the largest worth keeping.
const MAX_SPARE: usize = 64;
const MAX_SPARE_LEN: usize = 4_096;

type Owners = HashMap<ConnectionId, usize, BuildHasherDefault<WordHasher>>;

/// What the sockets of one port share.
#[derive(Debug, Default)]
pub struct PortGroup {
    owners: RwLock<Owners>,
    members: Vec<Member>,
    lost: AtomicU64,
}

/// One worker's mailbox.
#[derive(Debug)]
struct Member {
    waker: Arc<OwnedFd>,
    filled: AtomicBool,
    mailbox: Mutex<Mailbox>,
}

#[derive(Debug, Default)]
struct Mailbox {
    waiting: VecDeque<Stray>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

/// Datagrams of one size and one sender.
#[derive(Debug)]
struct Stray {
    meta: RecvMeta,
    payload: Vec<u8>,
}

impl PortGroup {
    pub(super) fn new(wakers: impl Iterator<Item = Arc<OwnedFd>>) -> Self {
        let member = |waker| Member { waker, filled: AtomicBool::new(false), mailbox: Mutex::default() };
        Self { members: wakers.map(member).collect(), ..Self::default() }
    }

    /// Datagrams with this data connection ID are that worker's from now on.
    pub fn set_owner(&self, cid: ConnectionId, worker: usize) {
        write(&self.owners).insert(cid, worker);
    }

    /// Datagrams with this data connection ID are nobody's any more.
    pub fn remove_owner(&self, cid: ConnectionId) {
        write(&self.owners).remove(&cid);
    }

    /// Hands a datagram on to the worker that has a tunnel of this data connection ID. False where none has.
    #[cold]
    pub(crate) fn hand_on_stray(
        &self,
        cid: ConnectionId,
        from: SocketAddr,
        ecn: Option<u8>,
        datagram: &[u8],
    ) -> bool {
        let owner = read(&self.owners).get(&cid).copied();
        let Some(worker) = owner else { return false };
        let (ecn, len) = (ecn.and_then(EcnCodepoint::from_bits), datagram.len());
        self.hand_on(worker, &RecvMeta { addr: from, len, stride: len, ecn, dst_ip: None }, datagram);
        true
    }

    /// Datagrams that found their worker's mailbox full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes out of a received message what is another worker's, and hands it on.
    #[inline]
    pub(super) fn sort(&self, own: usize, meta: &mut RecvMeta, buffer: &mut [u8]) {
        // What came alone was steered by its own connection ID.
        if meta.len > meta.stride && meta.stride > 0 && is_mixed(buffer.get(..meta.len), meta.stride) {
            self.sort_mixed(own, meta, buffer);
        }
    }

    #[cold]
    fn sort_mixed(&self, own: usize, meta: &mut RecvMeta, buffer: &mut [u8]) {
        let owners = read(&self.owners);
        let owner = |datagram: &[u8]| match classify_datagram(datagram) {
            DatagramKind::Data(cid) => owners.get(&cid).copied().unwrap_or(own),
            DatagramKind::Signalling | DatagramKind::NotQuic => own,
        };
        let (mut at, mut kept) = (0, 0);
        while at < meta.len {
            let rest = buffer.get(at..meta.len).unwrap_or_default();
            let Some(worker) = rest.chunks(meta.stride).next().map(owner) else { break };
            let run: usize = rest
                .chunks(meta.stride)
                .take_while(|datagram| owner(datagram) == worker)
                .map(<[u8]>::len)
                .sum();
            if worker == own {
                buffer.copy_within(at..at + run, kept);
                kept += run;
            } else {
                self.hand_on(worker, meta, rest.get(..run).unwrap_or_default());
            }
            at += run;
        }
        meta.len = kept;
    }

    fn hand_on(&self, worker: usize, meta: &RecvMeta, payload: &[u8]) {
        let taken = self.members.get(worker).is_some_and(|member| member.take_in(meta, payload));
        if !taken {
            self.lost.fetch_add(payload.len().div_ceil(meta.stride.max(1)) as u64, Ordering::Relaxed);
        }
    }

    /// Fills buffers from a worker's mailbox; the number of messages.
    #[inline]
    pub(super) fn collect<'b>(
        &self,
        own: usize,
        buffers: impl Iterator<Item = (&'b mut [u8], &'b mut RecvMeta)>,
    ) -> usize {
        match self.members.get(own) {
            Some(member) if member.filled.load(Ordering::Acquire) => member.give_out(buffers),
            _ => 0,
        }
    }
}

impl Member {
    fn take_in(&self, meta: &RecvMeta, payload: &[u8]) -> bool {
        let mut mailbox = lock(&self.mailbox);
        if mailbox.waiting.len() >= MAX_WAITING || mailbox.bytes + payload.len() > MAX_BYTES {
            return false;
        }
        let mut buffer = mailbox.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(payload);
        let meta = RecvMeta { len: payload.len(), stride: meta.stride.min(payload.len()), ..*meta };
        mailbox.bytes += payload.len();
        mailbox.waiting.push_back(Stray { meta, payload: buffer });
        if !self.filled.swap(true, Ordering::AcqRel) {
            // Only fails when the counter is at its limit, and then the waiter is woken already.
            let _ = rustix::io::write(&*self.waker, &1u64.to_ne_bytes());
        }
        true
    }

    #[cold]
    fn give_out<'b>(&self, buffers: impl Iterator<Item = (&'b mut [u8], &'b mut RecvMeta)>) -> usize {
        let mut mailbox = lock(&self.mailbox);
        let mut given = 0;
        for (buffer, meta) in buffers {
            let Some(stray) = mailbox.waiting.pop_front() else { break };
            mailbox.bytes -= stray.payload.len();
            *meta = stray.meta;
            match buffer.get_mut(..stray.payload.len()) {
                Some(place) => place.copy_from_slice(&stray.payload),
                None => meta.len = 0,
            }
            given += 1;
            if mailbox.spare.len() < MAX_SPARE && stray.payload.capacity() <= MAX_SPARE_LEN {
                mailbox.spare.push(stray.payload);
            }
        }
        self.filled.store(!mailbox.waiting.is_empty(), Ordering::Release);
        given
    }
}

/// Whether the datagrams of a message have more than one connection ID (or first byte's form) between them.
#[inline]
fn is_mixed(message: Option<&[u8]>, stride: usize) -> bool {
    let mut cids = message.unwrap_or_default().chunks(stride).map(|datagram| datagram.get(1..9));
    let first = cids.next();
    cids.any(|cid| Some(cid) != first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn group(members: usize) -> PortGroup {
        let waker = || Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        PortGroup::new((0..members).map(|_| waker()))
    }

    fn meta(len: usize, stride: usize) -> RecvMeta {
        let addr = SocketAddr::from(([192, 0, 2, 1], 9));
        RecvMeta { addr, len, stride, ecn: None, dst_ip: None }
    }

    fn datagram(cid: u8, number: u8, len: usize) -> Vec<u8> {
        let mut datagram = vec![number; len];
        datagram[0] = 0x40;
        datagram[1..9].copy_from_slice(ConnectionId::from_random_data([cid; 8]).as_bytes());
        datagram
    }

    fn collected(group: &PortGroup, member: usize) -> Vec<(usize, Vec<u8>)> {
        let (mut messages, mut buffers, mut metas) =
            (Vec::new(), vec![vec![0; 65_536]; 4], [RecvMeta::default(); 4]);
        loop {
            let places = buffers.iter_mut().map(Vec::as_mut_slice).zip(&mut metas);
            let count = group.collect(member, places);
            let filled = buffers.iter().zip(&metas).take(count);
            messages.extend(filled.map(|(buffer, meta)| (meta.stride, buffer[..meta.len].to_vec())));
            if count == 0 {
                return messages;
            }
        }
    }

    proptest! {
        #[test]
        fn every_datagram_comes_to_its_owner_in_order(
            cids in proptest::collection::vec(0u8..6, 1..40), stride in 20usize..60, last in 20usize..60, own in 0usize..3,
        ) {
            let group = group(3);
            // The connection IDs 3 to 5 are nobody's, and stay.
            (0..3).for_each(|cid| group.set_owner(ConnectionId::from_random_data([cid; 8]), usize::from(cid)));
            let mut message = Vec::new();
            let mut expected: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
            for (number, cid) in cids.iter().enumerate() {
                let len = if number + 1 == cids.len() { last.min(stride) } else { stride };
                let datagram = datagram(*cid, number as u8, len);
                message.extend_from_slice(&datagram);
                let owner = if *cid < 3 { usize::from(*cid) } else { own };
                expected.entry(owner).or_default().push(datagram);
            }
            // Its program has steered a message of one kind already.
            let mixed = cids.iter().any(|cid| *cid != cids[0]);
            let mut meta = meta(message.len(), stride);
            group.sort(own, &mut meta, &mut message);
            if !mixed {
                prop_assert_eq!(meta.len, message.len());
                return Ok(());
            }
            let kept = message[..meta.len].chunks(stride).map(<[u8]>::to_vec).collect();
            let mut found = BTreeMap::from([(own, kept)]);
            for member in (0..3).filter(|member| *member != own) {
                let strays = collected(&group, member);
                let each = strays.iter().flat_map(|(stride, payload)| payload.chunks(*stride).map(<[u8]>::to_vec));
                found.insert(member, each.collect());
            }
            found.retain(|_, datagrams: &mut Vec<_>| !datagrams.is_empty());
            prop_assert_eq!(found, expected);
            prop_assert_eq!(group.lost(), 0);
        }
    }

    #[test]
    fn a_full_mailbox_loses_and_counts() {
        let group = group(2);
        group.set_owner(ConnectionId::from_random_data([1; 8]), 1);
        let mut sent = 0;
        while group.lost() == 0 {
            let mut message = [datagram(0, 0, 1400), datagram(1, 1, 1400), datagram(1, 2, 1400)].concat();
            let mut meta = meta(message.len(), 1400);
            group.sort(0, &mut meta, &mut message);
            assert_eq!(meta.len, 1400, "what is its own stays");
            sent += 2;
        }
        assert_eq!(group.lost(), 2);
        let waiting: usize =
            collected(&group, 1).iter().map(|(stride, payload)| payload.len() / stride).sum();
        assert_eq!((waiting, waiting * 1400 <= MAX_BYTES), (sent - 2, true));
        assert!(collected(&group, 1).is_empty());
    }
}
