//! Two ends of a tunnel and a network between them that loses, reorders, repeats and forges.

use std::time::{Duration, Instant};

use cyphonic_common::{ConnectionId, quic};
use proptest::prelude::*;

use super::*;

const REAL: [u8; 8] = [0x81, 2, 3, 4, 5, 6, 7, 8];
const VIRTUAL: [u8; 8] = [0xf1, 9, 9, 9, 9, 9, 9, 9];

fn cid() -> ConnectionId {
    ConnectionId::from_bytes(REAL)
}

/// One direction's two ends.
fn direction(suite: Suite) -> (Sealer, Opener) {
    let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
    let (sealer, _) = pair(suite, &one, &other);
    let (_, opener) = pair(suite, &other, &one);
    (sealer, opener)
}

fn seal(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    seal_as(sealer, cid(), payload)
}

fn seal_as(sealer: &mut Sealer, wire_cid: ConnectionId, payload: &[u8]) -> Vec<u8> {
    let mut buf = vec![0xaa; HEADER_LEN + payload.len() + TAG_LEN + 7];
    buf[HEADER_LEN..HEADER_LEN + payload.len()].copy_from_slice(payload);
    let len = sealer.seal(cid(), wire_cid, &mut buf, payload.len()).expect("sealed");
    assert_eq!(len, HEADER_LEN + payload.len() + TAG_LEN);
    assert!(buf[len..].iter().all(|byte| *byte == 0xaa), "nothing is written behind the packet");
    buf.truncate(len);
    buf
}

fn suites() -> impl Strategy<Value = Suite> {
    prop::sample::select(Suite::ALL.to_vec())
}

#[test]
fn a_packet_opens_once_with_the_payload_it_was_sealed_with() {
    for suite in Suite::ALL {
        let (mut sealer, mut opener) = direction(suite);
        for number in 0..100u64 {
            let payload = vec![number as u8; 1 + number as usize * 13];
            let packet = seal(&mut sealer, &payload);
            assert_eq!(packet[0] & (quic::FORM_BIT | quic::FIXED_BIT | quic::SPIN_BIT), quic::FIXED_BIT);
            assert_eq!(packet[1..9], REAL);
            let mut copy = packet.clone();
            let opened = opener.open(&mut copy).expect("opened");
            assert_eq!(opened, Opened { packet_number: number, newest: true, payload: &payload });
            assert_eq!(opener.open(&mut packet.clone()), Err(OpenError::Replayed));
        }
        assert_eq!(sealer.packets(), 100);
    }
}

#[test]
fn a_relayed_packet_opens_only_with_the_real_connection_id() {
    let (mut sealer, mut opener) = direction(Suite::preferred());
    let mut packet = seal_as(&mut sealer, ConnectionId::from_bytes(VIRTUAL), b"\x01");
    assert_eq!(packet[1..9], VIRTUAL);
    assert_eq!(opener.open(&mut packet.clone()), Err(OpenError::Forged));
    packet[1..9].copy_from_slice(&REAL);
    assert_eq!(opener.open(&mut packet).expect("opened").payload, b"\x01");
}

#[test]
fn equal_payloads_look_different_and_headers_do_not_count_upwards() {
    let (mut sealer, _) = direction(Suite::preferred());
    let packets: Vec<_> = (0..64).map(|_| seal(&mut sealer, b"\x01same")).collect();
    let numbers: std::collections::BTreeSet<_> =
        packets.iter().map(|packet| packet[9..13].to_vec()).collect();
    let bodies: std::collections::BTreeSet<_> = packets.iter().map(|packet| packet[13..].to_vec()).collect();
    assert_eq!(bodies.len(), packets.len());
    assert!(numbers.len() > 60, "protected packet numbers look random");
}

#[test]
fn the_two_directions_do_not_open_each_other() {
    let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
    let (mut sealer, mut own_opener) = pair(Suite::Aes128Gcm, &one, &other);
    let mut reflected = seal(&mut sealer, b"\x01");
    assert_eq!(own_opener.open(&mut reflected), Err(OpenError::Forged));
}

#[test]
fn what_does_not_fit_or_has_no_frame_is_refused_without_using_a_number() {
    let (mut sealer, _) = direction(Suite::preferred());
    let mut buf = [7; 100];
    assert_eq!(sealer.seal(cid(), cid(), &mut buf, 72), Err(SealError::NoRoom { needed: 101, len: 100 }));
    assert!(matches!(sealer.seal(cid(), cid(), &mut buf, usize::MAX), Err(SealError::NoRoom { .. })));
    assert_eq!(sealer.seal(cid(), cid(), &mut buf, 0), Err(SealError::Empty));
    assert_eq!((buf, sealer.packets()), ([7; 100], 0));
    assert_eq!(sealer.seal(cid(), cid(), &mut buf, 71), Ok(100));
}

#[test]
fn secrets_are_not_printed() {
    assert_eq!(format!("{:?}", Secret::new([0x5a; 32])), "Secret(redacted)");
}

#[test]
fn packet_numbers_go_on_beyond_32_bits() {
    let (mut sealer, mut opener) = direction(Suite::Aes128Gcm);
    let start = (1u64 << 32) - 3;
    sealer.set_next_packet_number(start);
    let packets: Vec<_> = (0..8).map(|_| seal(&mut sealer, b"\x01")).collect();
    // The first brings the receiver near, the others come in reverse.
    for index in [0, 7, 6, 5, 4, 3, 2, 1] {
        let opened = opener.open(&mut packets[index].clone()).map(|opened| opened.packet_number);
        assert_eq!(opened, Ok(start + index as u64));
    }
}

#[test]
fn only_a_higher_number_is_the_newest() {
    let (mut sealer, mut opener) = direction(Suite::Aes128Gcm);
    let packets: Vec<_> = (0..4).map(|_| seal(&mut sealer, b"\x01")).collect();
    let mut newest = |index: usize| opener.open(&mut packets[index].clone()).map(|opened| opened.newest);
    assert_eq!([newest(1), newest(0), newest(3), newest(2)], [Ok(true), Ok(false), Ok(true), Ok(false)]);
}

#[test]
fn a_peer_that_sets_reserved_bits_is_told_apart_from_a_forger() {
    // Sealed as production code seals, but for one bit of the header.
    let secret = Secret::new([1; 32]);
    let keys = generation::Generation::new(Suite::Aes128Gcm, &secret);
    let hp = generation::header_key(Suite::Aes128Gcm, &secret);
    let (_, mut opener) = pair(Suite::Aes128Gcm, &Secret::new([2; 32]), &secret);
    let mut packet = vec![quic::FIXED_BIT | 0x08 | quic::PN_LEN_BITS];
    packet.extend(REAL);
    packet.extend([0, 0, 0, 0]);
    let mut payload = *b"\x01";
    let tag = keys.key.seal(keys.nonce(0), &packet, &mut payload).expect("sealed");
    packet.extend(payload);
    packet.extend(tag);
    let mask = hp.mask(packet[13..].first_chunk().expect("a sample"));
    packet[0] ^= mask[0] & quic::PROTECTED_BITS;
    for i in 0..4 {
        packet[9 + i] ^= mask[1 + i];
    }
    let before = opener.state();
    assert_eq!(opener.open(&mut packet), Err(OpenError::PeerMisbehaved));
    assert_eq!((opener.state(), opener.forged()), (before, 0));
}

#[test]
fn used_up_keys_seal_and_open_nothing() {
    let (mut sealer, mut opener) = direction(Suite::Aes128Gcm);
    let packet = seal(&mut sealer, b"\x01");
    let mut buf = [0; 64];
    sealer.set_sealed(1 << 23);
    assert_eq!(sealer.seal(cid(), cid(), &mut buf, 1), Err(SealError::KeysExhausted));
    sealer.set_sealed(0);
    sealer.set_next_packet_number(1 << 62);
    assert_eq!(sealer.seal(cid(), cid(), &mut buf, 1), Err(SealError::KeysExhausted));
    opener.set_forged(1 << 52);
    assert_eq!(opener.open(&mut packet.clone()), Err(OpenError::KeysExhausted));
    opener.set_forged((1 << 52) - 1);
    assert!(opener.open(&mut packet.clone()).is_ok());
}

#[test]
fn an_update_starts_by_itself_well_before_the_limit() {
    let now = Instant::now();
    for suite in Suite::ALL {
        let (mut sealer, _) = direction(suite);
        sealer.set_sealed((1 << 21) - 1);
        assert_eq!(sealer.poll_key_update(now), None);
        seal(&mut sealer, b"\x01");
        assert!(sealer.poll_key_update(now).is_some());
        assert_eq!(sealer.key_updates(), 1);
    }
}

#[test]
fn an_unacknowledged_second_update_never_happens() {
    let mut now = Instant::now();
    let (mut a, mut b) = tunnel(Suite::Aes128Gcm);
    a.sealer.request_key_update();
    let challenge = a.sealer.poll_key_update(now).expect("the first update needs no acknowledgement");
    a.sealer.request_key_update();
    assert_eq!(a.sealer.poll_key_update(now), None, "not repeated at once");
    for _ in 0..20 {
        now += Duration::from_secs(9);
        assert_eq!(a.sealer.poll_key_update(now), Some(challenge), "repeated, the same");
        assert_eq!(a.sealer.key_updates(), 1);
    }
    // The peer updates by itself: its packets in the new phase say nothing about ours.
    b.sealer.request_key_update();
    let others = b.sealer.poll_key_update(now).expect("started");
    let mut packet = seal(&mut b.sealer, b"\x01");
    assert!(a.opener.open(&mut packet).is_ok());
    assert_eq!(a.opener.key_updates(), 1);
    // Nor do answers to other challenges.
    assert!(!a.opener.acknowledge(others) && !a.opener.acknowledge([0; 8]));
    now += Duration::from_secs(9);
    assert_eq!(a.sealer.poll_key_update(now), Some(challenge));
    assert!(a.sealer.is_key_update_pending());
    // The right answer does, once.
    assert!(a.opener.acknowledge(challenge) && !a.opener.acknowledge(challenge));
    assert_ne!(a.sealer.poll_key_update(now).expect("the requested second update"), challenge);
    assert_eq!(a.sealer.key_updates(), 2);
}

#[test]
fn packets_overtaken_by_an_update_open_until_the_old_keys_expire() {
    let (mut sealer, mut opener) = direction(Suite::Aes128Gcm);
    let early: Vec<_> = (0..3).map(|_| seal(&mut sealer, b"\x01old")).collect();
    sealer.request_key_update();
    sealer.poll_key_update(Instant::now()).expect("started");
    let mut late = seal(&mut sealer, b"\x01new");
    assert_eq!(opener.open(&mut late).expect("the next keys were ready").payload, b"\x01new");
    assert_eq!(opener.open(&mut early[0].clone()).expect("kept").payload, b"\x01old");
    opener.expire_keys(Instant::now());
    assert_eq!(opener.open(&mut early[1].clone()).expect("kept").payload, b"\x01old");
    opener.expire_keys(Instant::now() + Duration::from_secs(3));
    assert_eq!(opener.open(&mut early[2].clone()), Err(OpenError::Forged));
    assert_eq!(opener.open(&mut seal(&mut sealer, b"\x01")).expect("opened").packet_number, 4);
}

/// One end of a tunnel.
struct End {
    sealer: Sealer,
    opener: Opener,
    /// PATH_RESPONSE data to send.
    answers: Vec<[u8; 8]>,
    sent: u64,
    opened: Vec<u64>,
}

fn tunnel(suite: Suite) -> (End, End) {
    let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
    let end = |(sealer, opener)| End { sealer, opener, answers: Vec::new(), sent: 0, opened: Vec::new() };
    (end(pair(suite, &one, &other)), end(pair(suite, &other, &one)))
}

impl End {
    /// What a ring sends in one round: data, answers, the challenge of an update it starts, data again.
    fn send_round(&mut self, now: Instant, update: bool, out: &mut Vec<Vec<u8>>) {
        self.send(&[0x01], out);
        for answer in std::mem::take(&mut self.answers) {
            self.send(&[&[0x1b][..], &answer].concat(), out);
        }
        if update {
            self.sealer.request_key_update();
        }
        if let Some(challenge) = self.sealer.poll_key_update(now) {
            self.send(&[&[0x1a][..], &challenge].concat(), out);
        }
        self.send(&[0x01], out);
    }

    fn send(&mut self, frames: &[u8], out: &mut Vec<Vec<u8>>) {
        out.push(seal(&mut self.sealer, frames));
        self.sent += 1;
    }

    fn receive(&mut self, mut packet: Vec<u8>) -> Result<(), OpenError> {
        let opened = self.opener.open(&mut packet)?;
        self.opened.push(opened.packet_number);
        match opened.payload {
            [0x1a, data @ ..] => self.answers.push(data.try_into().expect("8 bytes")),
            [0x1b, data @ ..] => {
                self.opener.acknowledge(data.try_into().expect("8 bytes"));
            }
            payload => assert_eq!(payload, [0x01]),
        }
        Ok(())
    }

    /// Every packet the other end sent was opened, exactly once.
    fn has_all_of(&mut self, other: &Self) -> bool {
        self.opened.sort_unstable();
        self.opened.iter().copied().eq(0..other.sent)
    }
}

/// A small generator, so that a failing seed repeats exactly.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.roll(i as u64 + 1) as usize);
        }
    }
}

#[test]
fn ten_thousand_forced_updates_under_traffic_lose_nothing_and_repeat_no_number() {
    let (mut a, mut b) = tunnel(Suite::Aes128Gcm);
    let (mut now, mut dice) = (Instant::now(), Dice(1));
    let mut rounds = 0;
    while a.sealer.key_updates() < 10_000 {
        let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
        a.send_round(now, true, &mut to_b);
        b.send_round(now, true, &mut to_a);
        dice.shuffle(&mut to_a);
        dice.shuffle(&mut to_b);
        to_b.into_iter().for_each(|packet| b.receive(packet).expect("opened by b"));
        to_a.into_iter().for_each(|packet| a.receive(packet).expect("opened by a"));
        now += Duration::from_millis(10);
        rounds += 1;
        assert!(rounds < 40_000, "updates must make progress");
    }
    // Sealing numbers are 0, 1, 2, … and each arrived once: no nonce was used twice under one key.
    assert!(a.has_all_of(&b) && b.has_all_of(&a));
    assert!(a.opener.key_updates() >= 9_999 && b.opener.key_updates() >= 9_999);
    assert_eq!((a.opener.forged(), b.opener.forged()), (0, 0));
}

proptest! {
    /// Whatever is lost, whoever updates, however often: the ends are never more than one generation apart, so every
    /// packet that arrives opens.
    #[test]
    fn updates_from_both_ends_survive_loss(seed: u64, loss in 0u64..95, suite in suites()) {
        let (mut a, mut b) = tunnel(suite);
        let (mut now, mut dice) = (Instant::now(), Dice(seed));
        for round in 0..300 {
            let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
            // The last rounds lose nothing and update nothing: everything settles.
            let calm = round >= 290;
            a.send_round(now, !calm && dice.roll(3) == 0, &mut to_b);
            b.send_round(now, !calm && dice.roll(3) == 0, &mut to_a);
            for (end, packets) in [(&mut b, &mut to_b), (&mut a, &mut to_a)] {
                dice.shuffle(packets);
                for packet in packets.drain(..) {
                    if calm || dice.roll(100) >= loss {
                        prop_assert_eq!(end.receive(packet), Ok(()));
                    }
                }
            }
            prop_assert!(a.sealer.key_updates().abs_diff(b.opener.key_updates()) <= 1);
            prop_assert!(b.sealer.key_updates().abs_diff(a.opener.key_updates()) <= 1);
            now += Duration::from_secs(9);
        }
        prop_assert!(!a.sealer.is_key_update_pending() && !b.sealer.is_key_update_pending());
        prop_assert_eq!(a.sealer.key_updates(), b.sealer.key_updates());
    }

    #[test]
    fn each_packet_that_arrives_opens_once_in_any_order(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..60),
        schedule in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
        suite in suites(),
    ) {
        let (mut sealer, mut opener) = direction(suite);
        let packets: Vec<_> = payloads.iter().map(|payload| seal(&mut sealer, payload)).collect();
        let mut seen = vec![false; packets.len()];
        for index in schedule {
            let index = index.index(packets.len());
            let mut packet = packets[index].clone();
            match opener.open(&mut packet) {
                Ok(opened) => {
                    prop_assert!(!std::mem::replace(&mut seen[index], true));
                    prop_assert_eq!(opened.packet_number, index as u64);
                    prop_assert_eq!(opened.payload, &payloads[index][..]);
                }
                Err(error) => {
                    prop_assert_eq!(error, OpenError::Replayed);
                    prop_assert!(seen[index]);
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_changes_no_state(
        payload in prop::collection::vec(any::<u8>(), 1..100),
        bit: prop::sample::Index,
        update: bool,
        suite in suites(),
    ) {
        let (mut sealer, mut opener) = direction(suite);
        opener.open(&mut seal(&mut sealer, b"\x01")).expect("opened");
        if update {
            sealer.request_key_update();
            sealer.poll_key_update(Instant::now()).expect("started");
        }
        let packet = seal(&mut sealer, &payload);
        let mut forged = packet.clone();
        let bit = bit.index(packet.len() * 8);
        forged[bit / 8] ^= 1 << (bit % 8);

        let before = (opener.state(), opener.phase.receiving());
        let error = opener.open(&mut forged).expect_err("forged");
        prop_assert!(matches!(error, OpenError::Forged | OpenError::Malformed));
        prop_assert_eq!((opener.state(), opener.phase.receiving()), before);
        let mut original = packet;
        prop_assert_eq!(opener.open(&mut original).expect("the original still opens").payload, &payload[..]);
    }

    #[test]
    fn no_bytes_panic_or_open(mut bytes in prop::collection::vec(any::<u8>(), 0..300), suite in suites()) {
        let (_, mut opener) = direction(suite);
        if let Some(first) = bytes.first_mut() {
            *first = *first & 0x3f | quic::FIXED_BIT;
        }
        let before = opener.state();
        prop_assert!(opener.open(&mut bytes).is_err());
        prop_assert_eq!(opener.state(), before);
    }
}

/// A million random datagrams, as a stranger can send them, move nothing.
#[test]
fn a_million_forgeries_change_no_state() {
    let (mut sealer, mut opener) = direction(Suite::Aes128Gcm);
    opener.open(&mut seal(&mut sealer, b"\x01")).expect("opened");
    let before = (opener.state(), opener.phase.receiving());
    let mut dice = Dice(7);
    for _ in 0..1_000_000 {
        let mut packet = [0x55; 64];
        packet[..8].copy_from_slice(&dice.roll(u64::MAX).to_be_bytes());
        packet[13..21].copy_from_slice(&dice.roll(u64::MAX).to_be_bytes());
        packet[0] = packet[0] & 0x3f | quic::FIXED_BIT;
        assert_eq!(opener.open(&mut packet), Err(OpenError::Forged));
    }
    assert_eq!((opener.state(), opener.phase.receiving(), opener.forged()), (before.0, before.1, 1_000_000));
    assert!(opener.open(&mut seal(&mut sealer, b"\x01")).is_ok());
}
