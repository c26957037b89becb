//! Inner packets that are too large to go whole, and what finds out how large they may be.
//!
//! An application that sends more than the tunnel's inner MTU is told by Packet Too Big (RFC 8201). What it
//! may send and the path does not carry whole (because the path is narrower than IPv6 allows an interface to
//! be, or because it is not known yet what it carries) goes all the same: TCP's super-packets are cut
//! smaller, everything else goes in pieces.

use cyphonic_common::frame::part::{PART_HEADER, Part, Pieces};
use cyphonic_common::limits::{MAX_DATAGRAM, TUNNEL_OVERHEAD};
use cyphonic_common::{DropReason, Frame};

use super::tunnels::Tunnel;
use super::{Problem, TxWorker};
use crate::gso::SuperPacket;
use crate::protect::{HEADER_LEN, TAG_LEN};
use crate::ring::{EventSink, Path, PathMtu, RingEvent};
use crate::udp::{self, Transmit};

/// What surrounds a PART in a datagram.
const PART_OVERHEAD: usize = HEADER_LEN + PART_HEADER + TAG_LEN;

impl TxWorker {
    /// Sends a packet, or super-packet, that is too large to go as it is. The error is why nothing of it went.
    #[cold]
    pub(super) fn send_wide(
        &mut self,
        index: usize,
        mut packet: SuperPacket<'_>,
        ecn: u8,
    ) -> Result<(), DropReason> {
        let Some(tunnel) = self.tunnels.get(index) else { return Err(DropReason::NoTunnel) };
        let (mtu, whole) = (tunnel.mtu, tunnel.whole);
        if packet.largest() > usize::from(mtu.inner) {
            self.answer(Problem::TooBig(mtu.inner), &packet);
            // TCP will send smaller ones; these need not be lost.
            packet = packet.cut_to(whole).ok_or(DropReason::TooBig)?;
        }
        if let Some(smaller) = packet.cut_to(whole) {
            self.seal(index, &smaller, ecn);
            return Ok(());
        }
        for part in 0..packet.count() {
            let sealed = if packet.part_len(part) <= whole {
                self.seal_part(index, &packet, part, ecn)
            } else {
                self.seal_in_pieces(index, &packet, part, mtu, ecn)
            };
            if let Err(reason) = sealed {
                self.count_rest(reason, &packet, part);
                break;
            }
        }
        Ok(())
    }

    fn seal_in_pieces(
        &mut self,
        index: usize,
        packet: &SuperPacket<'_>,
        part: usize,
        mtu: PathMtu,
        ecn: u8,
    ) -> Result<(), DropReason> {
        let total = packet.part_len(part);
        let room = usize::from(mtu.datagram).saturating_sub(HEADER_LEN + TAG_LEN);
        let pieces = Pieces::of(total, room).ok_or(DropReason::TooBig)?;
        // Out of the worker, which the pieces are sealed by.
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(total, 0);
        let sealed = match packet.write_part(part, &mut scratch) {
            Some(_) => self.seal_pieces(index, pieces, &scratch, ecn),
            None => Err(DropReason::TooBig),
        };
        self.scratch = scratch;
        sealed
    }

    fn seal_pieces(&mut self, index: usize, pieces: Pieces, inner: &[u8], ecn: u8) -> Result<(), DropReason> {
        let Some(tunnel) = self.tunnels.get_mut(index) else { return Err(DropReason::NoTunnel) };
        let id = tunnel.next_part;
        tunnel.next_part = id.wrapping_add(1);
        let total = u16::try_from(inner.len()).map_err(|_| DropReason::TooBig)?;
        for (offset, len) in pieces.iter() {
            let bytes = inner.get(offset..offset + len).ok_or(DropReason::TooBig)?;
            let offset = u16::try_from(offset).map_err(|_| DropReason::TooBig)?;
            let more = usize::from(offset) + len < inner.len();
            self.seal_piece(index, &Part { id, offset, total, bytes }, more, ecn)?;
        }
        Ok(())
    }

    fn seal_piece(&mut self, index: usize, piece: &Part<'_>, more: bool, ecn: u8) -> Result<(), DropReason> {
        let len = PART_OVERHEAD + piece.bytes.len();
        if !self.batch.takes(index, ecn, len) {
            self.flush();
        }
        let Some(tunnel) = self.tunnels.get_mut(index) else { return Err(DropReason::NoTunnel) };
        let out = self.batch.room(len).ok_or(DropReason::TooBig)?;
        let payload = out.get_mut(HEADER_LEN..).ok_or(DropReason::TooBig)?;
        let frame = Frame::Part(*piece).encode(payload).map_err(|_| DropReason::TooBig)?;
        match tunnel.sealer.seal(tunnel.remote_cid, tunnel.path.wire_cid, out, frame) {
            Ok(_) => {
                self.batch.commit(index, ecn, len, piece.bytes.len());
                if more {
                    self.batch.more_follows();
                }
                Ok(())
            }
            Err(error) => {
                self.seal_failed(index, error);
                Err(error.drop_reason())
            }
        }
    }

    /// Asks whether a path carries datagrams of `size` bytes. A probe that finds no room in the socket is
    /// lost, as it may be anywhere on its way.
    #[cold]
    pub(super) fn send_mtu_probe(&mut self, index: usize, path: Path, size: u16, data: [u8; 8]) {
        let size = usize::from(size).clamp(TUNNEL_OVERHEAD + 8, MAX_DATAGRAM);
        let mut packet = std::mem::take(&mut self.scratch);
        packet.clear();
        // What follows the frame is zero, and zeros are PADDING frames.
        packet.resize(size, 0);
        self.seal_and_send_probe(index, path, &mut packet, data);
        self.scratch = packet;
    }

    fn seal_and_send_probe(&mut self, index: usize, path: Path, packet: &mut [u8], data: [u8; 8]) {
        let payload = packet.len() - HEADER_LEN - TAG_LEN;
        let Some(tunnel) = self.tunnels.get_mut(index) else { return };
        let frames = packet.get_mut(HEADER_LEN..).unwrap_or_default();
        if Frame::PathChallenge(data).encode(frames).is_err() {
            return self.parts.counters.count_drop(DropReason::MalformedFrame, 1);
        }
        match tunnel.sealer.seal(tunnel.remote_cid, path.wire_cid, packet, payload) {
            Ok(_) => {
                let sent = self.parts.port.send(&Transmit::new(path.remote, packet));
                if sent.is_err_and(|error| udp::drop_reason(&error) == DropReason::TooBig) {
                    let tunnel = tunnel.shared.id;
                    (self.parts.events)(RingEvent::TooBig { tunnel, probe: Some(data) });
                }
            }
            Err(error) => {
                self.parts.counters.count_drop(error.drop_reason(), 1);
                self.seal_failed(index, error);
            }
        }
    }

    /// This host's interface does not take what the path carried before: only what every path carries is
    /// sent, until the owner knows more.
    #[cold]
    pub(super) fn interface_shrank(tunnel: &mut Tunnel, events: &EventSink) {
        if tunnel.mtu.datagram > PathMtu::BASE_DATAGRAM {
            tunnel.set_mtu(PathMtu::unknown(tunnel.mtu.inner));
            (events)(RingEvent::TooBig { tunnel: tunnel.shared.id, probe: None });
        }
    }
}
