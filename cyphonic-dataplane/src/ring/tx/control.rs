//! What the sending worker does besides carrying packets: commands, challenges and their answers, key
//! updates.

use cyphonic_common::frame::{CandidateList, Candidates, Close, MAX_CANDIDATE_BYTES};
use cyphonic_common::limits::{MAX_REASON, MIN_PROBE_DATAGRAM};
use cyphonic_common::{DropReason, Frame};
use ring::rand::{SecureRandom, SystemRandom};

use super::backlog::{Load, Sent};
use super::{TxWorker, control_left};
use crate::gso::SuperPacket;
use crate::protect::{HEADER_LEN, TAG_LEN};
use crate::ring::command::{Answer, TxCommand};
use crate::ring::hold::Held;
use crate::ring::icmp::Problem;
use crate::ring::shared::Challenge;
use crate::ring::{CandidateSet, Control, Path};
use crate::udp::Transmit;

/// Room for any control packet: a padded challenge, or a close with the longest reason.
const CONTROL_LEN: usize = MIN_PROBE_DATAGRAM;
const _: () = assert!(HEADER_LEN + 32 + MAX_REASON + TAG_LEN <= CONTROL_LEN);
const _: () = assert!(HEADER_LEN + 32 + MAX_CANDIDATE_BYTES + TAG_LEN <= CONTROL_LEN);

/// Whether a packet is padded to the size of a path probe (RFC 9000 §8.2.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Least,
    Probe,
}

impl TxWorker {
    pub(super) fn take_commands(&mut self) {
        while let Ok(command) = self.parts.commands.try_recv() {
            self.flush();
            self.apply(command);
        }
        while let Ok(answer) = self.parts.answers.try_recv() {
            self.flush();
            self.answer_challenge(&answer);
        }
        // The receiving worker wakes this one when it first hears a peer.
        self.tick();
    }

    fn apply(&mut self, command: TxCommand) {
        match command {
            TxCommand::Install(tunnel) => {
                let peer = tunnel.peer;
                let index = self.tunnels.insert(*tunnel, self.now);
                self.look_after(index);
                if self.tunnels.sending(peer) == Some(index) {
                    self.release(peer);
                }
            }
            TxCommand::Remove(id) => self.tunnels.remove(id),
            TxCommand::SetPath(id, path) => {
                if let Some(tunnel) = self.tunnels.by_id_mut(id) {
                    tunnel.set_path(path);
                }
            }
            TxCommand::SetMtu(id, mtu) => {
                if let Some(tunnel) = self.tunnels.by_id_mut(id) {
                    tunnel.set_mtu(mtu);
                }
            }
            TxCommand::Control(id, control) => {
                if let Some(index) = self.tunnels.index(id) {
                    self.send_control(index, &control);
                }
            }
            TxCommand::SetPermissions(permissions) => self.permissions = permissions,
            TxCommand::DropHeld(dst, unreachable) => self.drop_held(dst, unreachable),
            TxCommand::UpdateKeys(id) => {
                if let Some(index) = self.tunnels.index(id) {
                    if let Some(tunnel) = self.tunnels.get_mut(index) {
                        tunnel.sealer.request_key_update();
                    }
                    self.tunnels.watch(index);
                    self.look_after(index);
                }
            }
        }
    }

    fn drop_held(&mut self, dst: std::net::Ipv6Addr, unreachable: bool) {
        let mut dropped = 0;
        for Held { vnet, packet } in self.parts.hold.take(dst) {
            dropped += 1;
            if let Some(packet) = SuperPacket::parse(&vnet, &packet).filter(|_| unreachable) {
                self.answer(Problem::Unreachable, &packet);
            }
        }
        self.parts.counters.count_drop(DropReason::NoTunnel, dropped);
        self.count_held();
    }

    pub(super) fn count_held(&self) {
        let held = self.parts.hold.len() as u64;
        self.parts.counters.held.store(held, std::sync::atomic::Ordering::Relaxed);
    }

    fn send_control(&mut self, index: usize, control: &Control) {
        if self.tunnels.get(index).is_some_and(|tunnel| !tunnel.confirmed && tunnel.shared.heard()) {
            // The peer was heard just now, and its owner was faster than the next tick.
            self.look_after(index);
        }
        let Some(tunnel) = self.tunnels.get(index).filter(|tunnel| tunnel.confirmed) else { return };
        let current = tunnel.path;
        match control {
            Control::Ping => self.send_frame(index, current, &Frame::Ping, Size::Least),
            Control::PathChallenge(data) => {
                tunnel.shared.expect(*data, Challenge::Owner);
                self.send_frame(index, current, &Frame::PathChallenge(*data), Size::Probe);
            }
            Control::Probe { path, data } => {
                tunnel.shared.expect(*data, Challenge::Owner);
                if let Some(tunnel) = self.tunnels.get_mut(index) {
                    tunnel.learn(*path);
                }
                self.send_frame(index, *path, &Frame::PathChallenge(*data), Size::Probe);
            }
            Control::Candidates(set) => {
                let mut room = [0; MAX_CANDIDATE_BYTES];
                let endpoints = CandidateList::new(&set.endpoints, &mut room);
                let CandidateSet { sequence, heard, flags, .. } = *set;
                let candidates = Candidates { sequence, heard, flags, endpoints };
                self.send_frame(index, current, &Frame::Candidates(candidates), Size::Least);
            }
            Control::MtuProbe { path, size, data } => {
                tunnel.shared.expect(*data, Challenge::Owner);
                self.send_mtu_probe(index, *path, *size, *data);
            }
            Control::Close { code, reason } => {
                let close = Close { error_code: *code, frame_type: None, reason: reason.as_bytes() };
                self.send_frame(index, current, &Frame::Close(close), Size::Least);
            }
        }
    }

    /// Where it came from, answer there (RFC 9000 §8.2.2).
    fn answer_challenge(&mut self, answer: &Answer) {
        let Some(index) = self.tunnels.index(answer.tunnel) else { return };
        let Some(tunnel) = self.tunnels.get(index) else { return };
        let size = if answer.padded { Size::Probe } else { Size::Least };
        let path = tunnel.path_to(answer.to);
        self.send_frame(index, path, &Frame::PathResponse(answer.data), size);
        // The challenge may have come with the peer's new keys, which this answer has followed.
        self.tunnels.watch(index);
        self.look_after(index);
    }

    /// Seals one frame into a packet of its own and sends it, ahead of inner packets that wait for room.
    fn send_frame(&mut self, index: usize, path: Path, frame: &Frame<'_>, size: Size) {
        let mut packet = [0; CONTROL_LEN];
        let Some(tunnel) = self.tunnels.get_mut(index) else { return };
        let payload = packet.get_mut(HEADER_LEN..CONTROL_LEN - TAG_LEN).unwrap_or_default();
        let Ok(mut len) = frame.encode(payload) else {
            return self.parts.counters.count_drop(DropReason::MalformedFrame, 1);
        };
        if size == Size::Probe {
            // What follows the frame is zero, and zeros are PADDING frames.
            len = payload.len();
        }
        match tunnel.sealer.seal(tunnel.remote_cid, path.wire_cid, &mut packet, len) {
            Ok(len) => {
                let transmit = Transmit::new(path.remote, packet.get(..len).unwrap_or_default());
                let (shared, on_path) = (&tunnel.shared, path == tunnel.path);
                let sent = match self.backlog.has_control() {
                    false => Sent::of(&transmit, self.parts.port.send_counted(&transmit)),
                    true => Sent::Full(0),
                };
                let loss = match sent {
                    Sent::Done(loss) => loss,
                    Sent::Full(sent) => {
                        let load = Load::Control { on_path };
                        match self.backlog.keep(shared, load, &transmit, sent, self.now) {
                            None => return,
                            loss => loss,
                        }
                    }
                };
                control_left(&self.parts.counters, shared, on_path, loss, self.now);
            }
            Err(error) => {
                self.parts.counters.count_drop(error.drop_reason(), 1);
                self.seal_failed(index, error);
            }
        }
    }

    /// Whatever time brings: expired packets, and what watched tunnels wait for.
    pub(super) fn tick(&mut self) {
        if self.tunnels.is_watching() {
            let mut at = 0;
            while let Some(index) = self.tunnels.watched(at) {
                self.look_after(index);
                at += 1;
            }
            self.tunnels.prune_watched();
        }
        if self.parts.hold.len() > 0 {
            let expired = self.parts.hold.expire(self.now);
            if expired > 0 {
                self.parts.counters.count_drop(DropReason::NoTunnel, expired);
                self.count_held();
            }
        }
    }

    fn look_after(&mut self, index: usize) {
        let Some(tunnel) = self.tunnels.get_mut(index) else { return };
        if !tunnel.confirmed && tunnel.shared.heard() {
            let peer = tunnel.peer;
            self.tunnels.confirm(index);
            self.release(peer);
        }
        let Some(tunnel) = self.tunnels.get_mut(index) else { return };
        if tunnel.greets(self.now) {
            self.greet(index);
        }
        self.update_keys(index);
    }

    fn greet(&mut self, index: usize) {
        let mut data = [0; 8];
        let Some(tunnel) = self.tunnels.get(index) else { return };
        // Without randomness there is no greeting; any other packet of ours greets as well.
        if SystemRandom::new().fill(&mut data).is_ok() {
            tunnel.shared.expect(data, Challenge::Greeting);
            let path = tunnel.path;
            self.send_frame(index, path, &Frame::PathChallenge(data), Size::Least);
        }
    }

    /// Starts an update that is due, or repeats the challenge that has it acknowledged.
    fn update_keys(&mut self, index: usize) {
        let Some(tunnel) = self.tunnels.get_mut(index).filter(|tunnel| tunnel.confirmed) else { return };
        let challenge = tunnel.sealer.poll_key_update(self.now);
        self.challenge_keys(index, challenge);
    }

    /// Sends the challenge of a key update, and sees to it that it is repeated until it is answered.
    #[cold]
    pub(super) fn challenge_keys(&mut self, index: usize, challenge: Option<[u8; 8]>) {
        let Some(tunnel) = self.tunnels.get_mut(index) else { return };
        tunnel.shared.tx.set_key_updates(tunnel.sealer.key_updates());
        let path = tunnel.path;
        if tunnel.sealer.is_key_update_pending() {
            self.tunnels.watch(index);
        }
        if let Some(data) = challenge {
            self.send_frame(index, path, &Frame::PathChallenge(data), Size::Least);
        }
    }
}
