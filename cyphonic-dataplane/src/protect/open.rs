//! The receiving half: opens packets, drops replays, follows the peer's key updates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::{DropReason, quic};

use super::aead::HeaderKey;
use super::generation::{Generation, header_key};
use super::phase::KeyPhase;
use super::{HEADER_LEN, Secret, Suite, TAG_LEN};
use crate::replay::{ReplayWindow, WINDOW};

/// How long the previous generation's keys are kept for packets that were overtaken (RFC 9001 §6.5: three
/// times the probe time-out, which is a second before the round trip is known, RFC 9002 §6.2.2).
const KEEP_PREVIOUS: Duration = Duration::from_secs(3);
/// The shortest packet: one byte of frames.
const MIN_PACKET: usize = HEADER_LEN + 1 + TAG_LEN;

/// A packet that was opened: authentic, and not seen before.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Its full packet number.
    pub packet_number: u64,
    /// Whether no packet with a higher number was opened before. Only such a packet may move the path (RFC
    /// 9000 §9.3).
    pub newest: bool,
    /// Its frames.
    pub payload: &'a [u8],
}

/// Why a packet was not opened. Nothing has changed but counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than header, one byte of frames and tag, or not a short header.
    #[error("not a tunnel data packet: too short or not a short header")]
    Malformed,
    /// The tag does not verify, or the keys it was sealed with are gone.
    #[error("the packet does not authenticate")]
    Forged,
    /// Authentic, but its number was seen before or lies behind the window (RFC 6479).
    #[error("the packet is a replay, or older than the replay window")]
    Replayed,
    /// Authentic, but its protected header bits are not those of a tunnel data packet: the peer errs.
    #[error("the peer sealed a header that no tunnel data packet has")]
    PeerMisbehaved,
    /// As many forgeries as RFC 9001 §6.6 allows have arrived: the tunnel must not be used any more.
    #[error("too many forged packets arrived for these keys: set the tunnel up anew")]
    KeysExhausted,
}

impl OpenError {
    /// The counter that this drop belongs to.
    pub fn drop_reason(self) -> DropReason {
        match self {
            Self::Malformed => DropReason::NotQuic,
            Self::Forged => DropReason::Forged,
            Self::Replayed => DropReason::Replayed,
            Self::PeerMisbehaved => DropReason::MalformedFrame,
            Self::KeysExhausted => DropReason::KeysExhausted,
        }
    }
}

/// Opens one direction's packets.
///
/// It holds the keys of three generations: the current, the next (made ahead, so that an update takes no
/// longer than any packet, RFC 9001 §6.3), and for a while the previous. The phase bit and the packet number
/// say which to try; only one is ever tried.
pub struct Opener {
    suite: Suite,
    header: HeaderKey,
    current: Generation,
    next: Generation,
    previous: Option<Previous>,
    generation: u64,
    /// The lowest packet number opened with `current`: below it, the other phase means `previous`.
    current_from: Option<u64>,
    window: ReplayWindow,
    forged: u64,
    pub(super) phase: Arc<KeyPhase>,
}

struct Previous {
    keys: Generation,
    until: Instant,
}

/// Which generation's keys a packet asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Previous,
    Current,
    Next,
}

impl Opener {
    pub(super) fn new(suite: Suite, secret: &Secret, phase: Arc<KeyPhase>) -> Self {
        let current = Generation::new(suite, secret);
        Self {
            suite,
            header: header_key(suite, secret),
            next: current.next(),
            current,
            previous: None,
            generation: 0,
            current_from: None,
            window: ReplayWindow::default(),
            forged: 0,
            phase,
        }
    }

    /// Opens a packet in place. Its connection ID must be the receiver's real one, as a relay restores it.
    ///
    /// # Errors
    /// The buffer's content is of no use any more. No state has changed, but for the count of forgeries.
    #[inline]
    pub fn open<'a>(&mut self, packet: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        if packet.len() < MIN_PACKET || packet[0] & (quic::FORM_BIT | quic::FIXED_BIT) != quic::FIXED_BIT {
            return Err(OpenError::Malformed);
        }
        if self.forged >= self.suite.integrity_limit() {
            return Err(OpenError::KeysExhausted);
        }
        let header = self.unprotect_header(packet)?;
        let packet_number = self.window.expand(number_of(&header));
        let which = self.which(header[0], packet_number);
        let Some(keys) = self.keys(which) else { return Err(self.count_forged()) };
        let nonce = keys.nonce(packet_number);
        let Ok(payload) = keys.key.open(nonce, &header, &mut packet[HEADER_LEN..]) else {
            return Err(self.count_forged());
        };

        // Authentic from here on.
        if header[0] & !quic::KEY_PHASE_BIT != quic::FIXED_BIT | quic::PN_LEN_BITS {
            return Err(OpenError::PeerMisbehaved);
        }
        let newest = self.window.is_newest(packet_number);
        if !self.window.accept(packet_number) {
            return Err(OpenError::Replayed);
        }
        self.note(which, packet_number);
        Ok(Opened { packet_number, newest, payload })
    }

    /// Takes the data of a PATH_RESPONSE that an opened packet carried. True if it answers the sealer's
    /// challenge, which is then settled; false if it is the answer to someone else's.
    pub fn acknowledge(&mut self, response: [u8; 8]) -> bool {
        self.phase.acknowledge(response)
    }

    /// Forgets the previous generation's keys when their time is over. To be called about once a second.
    pub fn expire_keys(&mut self, now: Instant) {
        self.previous.take_if(|previous| previous.until <= now);
    }

    /// Key updates of this direction so far.
    pub fn key_updates(&self) -> u64 {
        self.generation
    }

    /// Packets that did not authenticate so far.
    pub fn forged(&self) -> u64 {
        self.forged
    }

    /// Removes header protection and returns the header, with the packet number in clear.
    #[inline]
    fn unprotect_header(&self, packet: &[u8]) -> Result<[u8; HEADER_LEN], OpenError> {
        let mut header: [u8; HEADER_LEN] = *packet.first_chunk().ok_or(OpenError::Malformed)?;
        let sample = packet[quic::SAMPLE_OFFSET..].first_chunk().ok_or(OpenError::Malformed)?;
        let mask = self.header.mask(sample);
        header[0] ^= mask[0] & quic::PROTECTED_BITS;
        for (byte, mask) in header[quic::SHORT_HEADER_LEN..].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
        }
        Ok(header)
    }

    /// RFC 9001 §6.3: a packet of the other phase is older than all of the current one, or starts the next.
    #[inline]
    fn which(&self, first: u8, packet_number: u64) -> Which {
        let same_phase = (first & quic::KEY_PHASE_BIT != 0) == (self.generation & 1 == 1);
        if same_phase {
            return Which::Current;
        }
        match self.current_from {
            Some(from) if packet_number < from => Which::Previous,
            Some(_) | None => Which::Next,
        }
    }

    #[inline]
    fn keys(&self, which: Which) -> Option<&Generation> {
        match which {
            Which::Previous => self.previous.as_ref().map(|previous| &previous.keys),
            Which::Current => Some(&self.current),
            Which::Next => Some(&self.next),
        }
    }

    #[cold]
    fn count_forged(&mut self) -> OpenError {
        self.forged += 1;
        OpenError::Forged
    }

    #[inline]
    fn note(&mut self, which: Which, packet_number: u64) {
        match which {
            Which::Previous => {}
            Which::Current => {
                let from = self.current_from.get_or_insert(packet_number);
                *from = packet_number.min(*from);
                // What the previous keys could open lies behind the window now.
                if self.previous.is_some() && packet_number - *from > WINDOW {
                    self.previous = None;
                }
            }
            Which::Next => self.promote(packet_number),
        }
    }

    #[cold]
    fn promote(&mut self, packet_number: u64) {
        let after = self.next.next();
        let current = std::mem::replace(&mut self.next, after);
        let keys = std::mem::replace(&mut self.current, current);
        self.previous = Some(Previous { keys, until: Instant::now() + KEEP_PREVIOUS });
        self.current_from = Some(packet_number);
        self.generation += 1;
        self.phase.set_receiving(self.generation);
    }
}

/// The low 32 bits of a packet number, which are what an unprotected header carries.
#[inline]
fn number_of(header: &[u8; HEADER_LEN]) -> u32 {
    let [.., a, b, c, d] = *header;
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
impl Opener {
    /// As if that many forgeries had arrived.
    pub(super) fn set_forged(&mut self, forged: u64) {
        self.forged = forged;
    }

    /// Everything that a packet could change, for tests that nothing did.
    pub(super) fn state(&self) -> (u64, Option<u64>, ReplayWindow, bool) {
        (self.generation, self.current_from, self.window.clone(), self.previous.is_some())
    }
}
