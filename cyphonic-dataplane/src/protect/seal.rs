//! The sending half: seals packets and starts key updates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::{ConnectionId, DropReason, quic};

use super::aead::HeaderKey;
use super::generation::{Generation, header_key};
use super::phase::KeyPhase;
use super::{HEADER_LEN, Secret, Suite, TAG_LEN};

/// Packets after which a generation is replaced: a quarter of AES-128-GCM's limit (RFC 9001 §6.6), so that
/// even at a million packets per second the peer has seconds to acknowledge.
const UPDATE_AFTER: u64 = 1 << 21;
/// The largest packet number (RFC 9000 §12.3).
const MAX_PACKET_NUMBER: u64 = (1 << 62) - 1;
/// An unanswered challenge is repeated after this time, then at doubled intervals.
const FIRST_REPEAT: Duration = Duration::from_millis(250);
/// The longest interval between repeated challenges.
const LAST_REPEAT: Duration = Duration::from_secs(8);

/// Why a packet was not sealed. The buffer is untouched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The caller's buffer has no room for header, payload and tag.
    #[error("the buffer of {len} bytes has no room for {needed}: make it larger")]
    NoRoom {
        /// Bytes the packet would take.
        needed: usize,
        /// Bytes the buffer has.
        len: usize,
    },
    /// A packet needs at least one frame (RFC 9000 §12.4).
    #[error("a packet without frames is not allowed: add at least a PING or PADDING frame")]
    Empty,
    /// A limit of RFC 9001 §6.6 is reached and the peer has acknowledged no update: nothing more may be
    /// sealed.
    #[error("the sending keys are used up and the peer acknowledged no update: set the tunnel up anew")]
    KeysExhausted,
}

impl SealError {
    /// The counter that this drop belongs to.
    pub fn drop_reason(self) -> DropReason {
        match self {
            Self::NoRoom { .. } => DropReason::TooBig,
            Self::Empty => DropReason::MalformedFrame,
            Self::KeysExhausted => DropReason::KeysExhausted,
        }
    }
}

/// Seals one direction's packets.
///
/// **Key updates.** The owner calls [`poll_key_update`](Self::poll_key_update) after each batch and on a
/// timer of a second or less, and sends what it returns in a PATH_CHALLENGE frame of this tunnel. The owner
/// of the [`Opener`](super::Opener) passes each PATH_RESPONSE to [`acknowledge`](super::Opener::acknowledge).
/// That the *answer* acknowledges, rather than any packet of the peer in the new phase, is what RFC 9001 §6.1
/// asks for: when both ends update at once, or when the peer follows and its packets are lost, its packets
/// alone show nothing about ours, and a second update would leave the peer two generations behind, unable to
/// open anything ever again.
pub struct Sealer {
    suite: Suite,
    header: HeaderKey,
    keys: Generation,
    generation: u64,
    next_packet_number: u64,
    /// Packets that the current generation has sealed.
    sealed: u64,
    update_requested: bool,
    /// When the outstanding challenge is due, and the interval to its next repetition.
    challenge_due: Option<Instant>,
    repeat_after: Duration,
    phase: Arc<KeyPhase>,
}

impl Sealer {
    pub(super) fn new(suite: Suite, secret: &Secret, phase: Arc<KeyPhase>) -> Self {
        Self {
            suite,
            header: header_key(suite, secret),
            keys: Generation::new(suite, secret),
            generation: 0,
            next_packet_number: 0,
            sealed: 0,
            update_requested: false,
            challenge_due: None,
            repeat_after: FIRST_REPEAT,
            phase,
        }
    }

    /// Seals the `payload_len` bytes of frames at `buf[HEADER_LEN..]` and returns the packet's length, which
    /// is `HEADER_LEN + payload_len + TAG_LEN`.
    ///
    /// The packet is authenticated with `real_cid`, the receiver's own; `wire_cid` is what stands on the
    /// wire: the relay's virtual one, or the real one again where there is no relay.
    ///
    /// # Errors
    /// Nothing was sealed and no packet number was used.
    #[inline]
    pub fn seal(
        &mut self,
        real_cid: ConnectionId,
        wire_cid: ConnectionId,
        buf: &mut [u8],
        payload_len: usize,
    ) -> Result<usize, SealError> {
        self.follow_peer();
        let needed = payload_len.saturating_add(HEADER_LEN + TAG_LEN);
        let len = buf.len();
        let packet = buf.get_mut(..needed).ok_or(SealError::NoRoom { needed, len })?;
        if payload_len == 0 {
            return Err(SealError::Empty);
        }
        if self.sealed >= self.suite.confidentiality_limit() || self.next_packet_number > MAX_PACKET_NUMBER {
            return Err(SealError::KeysExhausted);
        }

        let number = self.next_packet_number;
        let header = self.header_bytes(real_cid, number);
        let (head, body) = packet.split_at_mut(HEADER_LEN);
        let (payload, tag) = body.split_at_mut(payload_len);
        // The provider's own limits are of gigabytes; the number is spent first, so that nothing can repeat
        // it.
        self.next_packet_number += 1;
        self.sealed += 1;
        let sealed = self.keys.key.seal(self.keys.nonce(number), &header, payload);
        tag.copy_from_slice(&sealed.map_err(|_| SealError::KeysExhausted)?);

        head.copy_from_slice(&header);
        head[1..quic::SHORT_HEADER_LEN].copy_from_slice(wire_cid.as_bytes());
        self.protect_header(packet);
        Ok(needed)
    }

    /// Asks for a key update: it starts at the next [`poll_key_update`](Self::poll_key_update) at which the
    /// previous one is acknowledged.
    pub fn request_key_update(&mut self) {
        self.update_requested = true;
    }

    /// Starts a key update if one is due, and returns the data of a PATH_CHALLENGE that must now be sent to
    /// have it acknowledged (again, if the last one was lost).
    pub fn poll_key_update(&mut self, now: Instant) -> Option<[u8; 8]> {
        self.follow_peer();
        if self.phase.is_acknowledged() {
            if !self.update_requested && self.sealed < UPDATE_AFTER {
                return None;
            }
            self.update_requested = false;
            self.advance();
        }
        if self.challenge_due.is_some_and(|due| now < due) {
            return None;
        }
        self.challenge_due = Some(now + self.repeat_after);
        self.repeat_after = (self.repeat_after * 2).min(LAST_REPEAT);
        Some(self.keys.challenge())
    }

    /// Whether a requested or due update has yet to start, or one that started has yet to be acknowledged.
    pub fn is_key_update_pending(&self) -> bool {
        self.update_requested || !self.phase.is_acknowledged()
    }

    /// Key updates of this direction so far.
    pub fn key_updates(&self) -> u64 {
        self.generation
    }

    /// The number that the next packet gets: as many packets have been sealed.
    pub fn packets(&self) -> u64 {
        self.next_packet_number
    }

    /// The peer has updated: so do we, before anything of ours answers it (RFC 9001 §6.2).
    #[inline]
    fn follow_peer(&mut self) {
        while self.generation < self.phase.receiving() {
            self.advance();
        }
    }

    #[cold]
    fn advance(&mut self) {
        self.keys = self.keys.next();
        self.generation += 1;
        self.sealed = 0;
        self.phase.expect(self.keys.challenge());
        self.challenge_due = None;
        self.repeat_after = FIRST_REPEAT;
    }

    #[inline]
    fn header_bytes(&self, real_cid: ConnectionId, number: u64) -> [u8; HEADER_LEN] {
        let phase = if self.generation & 1 == 1 { quic::KEY_PHASE_BIT } else { 0 };
        let mut header = [0; HEADER_LEN];
        header[0] = quic::FIXED_BIT | phase | quic::PN_LEN_BITS;
        header[1..quic::SHORT_HEADER_LEN].copy_from_slice(real_cid.as_bytes());
        header[quic::SHORT_HEADER_LEN..].copy_from_slice(&(number as u32).to_be_bytes());
        header
    }

    #[inline]
    fn protect_header(&self, packet: &mut [u8]) {
        // At least one byte of payload and the tag stand behind the header, so the sample is always there.
        let Some(sample) = packet[quic::SAMPLE_OFFSET..].first_chunk() else { return };
        let mask = self.header.mask(sample);
        packet[0] ^= mask[0] & quic::PROTECTED_BITS;
        for (byte, mask) in packet[quic::SHORT_HEADER_LEN..HEADER_LEN].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
        }
    }
}

#[cfg(test)]
impl Sealer {
    /// As if this generation had sealed that many packets.
    pub(super) fn set_sealed(&mut self, sealed: u64) {
        self.sealed = sealed;
    }

    /// As if that many packets had been sent before.
    pub(super) fn set_next_packet_number(&mut self, number: u64) {
        self.next_packet_number = number;
    }
}
