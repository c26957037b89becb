//! etherparse builds the frames, and reads those that were steered.

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use proptest::prelude::*;

use super::*;
use crate::map::PeerEntry;
use crate::policy::{Direction, Flow, PolicyKey};

const PORT: u16 = 41_641;

fn data() -> Vec<u8> {
    let cid = ConnectionId::from_random_data([3; 8]);
    [&[0x45][..], cid.as_bytes(), &[9; 40]].concat()
}

fn v4(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    builder.udp(7, port).write(&mut frame, payload).unwrap();
    frame
}

fn v6(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6([1; 16], [2; 16], 64);
    builder.udp(7, port).write(&mut frame, payload).unwrap();
    frame
}

fn steer(frame: &[u8]) -> Option<ConnectionId> {
    steer_underlay(frame, &UnderlayConfig::new(PORT))
}

/// The frame with an IPv4 header that is whole again.
fn with_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    if let Ok((header, _)) = etherparse::Ipv4Header::from_slice(&frame[14..]) {
        frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    }
    frame
}

#[test]
fn data_packets_to_the_port_are_steered() {
    let cid = Some(ConnectionId::from_random_data([3; 8]));
    assert_eq!(steer(&v4(PORT, &data())), cid);
    assert_eq!(steer(&v6(PORT, &data())), cid);
    let padded = [v4(PORT, &data()), vec![0; 10]].concat();
    assert_eq!(steer(&padded), cid, "Ethernet may pad");
}

#[test]
fn everything_else_is_left_alone() {
    let signalling =
        [&[0x45][..], ConnectionId::from_random_signalling([3; 8]).as_bytes(), &[9; 40]].concat();
    let long = [&[0xc5, 0, 0, 0, 1][..], &[9; 60]].concat();
    let changed = |at: usize, to: u8| {
        let mut frame = v4(PORT, &data());
        frame[at] = to;
        with_checksum(frame)
    };
    let mut vlan = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .single_vlan(5.try_into().unwrap())
        .ipv4([1; 4], [2; 4], 64)
        .udp(7, PORT)
        .write(&mut vlan, &data())
        .unwrap();
    let mut options = v4(PORT, &data());
    options.splice(34..34, [1, 1, 1, 1]);
    options[14] = 0x46;
    let mut damaged = v4(PORT, &data());
    damaged[26] ^= 1;
    let mut hop_by_hop = v6(PORT, &data());
    hop_by_hop.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
    hop_by_hop[20] = 0;
    let with = |mut frame: Vec<u8>, at: usize, byte: u8| {
        frame[at] = byte;
        frame
    };
    let cases: [(&str, Vec<u8>); 16] = [
        ("another port", v4(PORT + 1, &data())),
        ("signalling", v4(PORT, &signalling)),
        ("a long header", v6(PORT, &long)),
        ("a punch", v4(PORT, &[0])),
        ("too short to open", v4(PORT, &data()[..MIN_DATA_PACKET - 1])),
        ("the first fragment", changed(20, 0x20)),
        ("a later fragment", changed(21, 1)),
        ("TCP", changed(23, 6)),
        ("ARP", changed(13, 6)),
        ("a VLAN", vlan),
        ("IP options", options),
        ("a source address that was damaged", damaged),
        ("an extension header", hop_by_hop),
        ("another version than its type says", with(v6(PORT, &data()), 14, 0x45)),
        ("cut", v4(PORT, &data())[..60].to_vec()),
        ("UDP shorter than IP", changed(39, 40)),
    ];
    for (what, frame) in cases {
        assert_eq!(steer(&frame), None, "{what}");
    }
    assert_eq!(steer_underlay(v4(0, &data()).as_slice(), &UnderlayConfig::default()), None);
}

#[test]
fn places_of_sockets_do_not_overlap() {
    let mut seen = std::collections::BTreeSet::new();
    for slot in 0..MAX_CARDS {
        for queue in 0..MAX_QUEUES {
            for worker in 0..MAX_WORKERS {
                assert!(seen.insert(socket_index(slot, queue, worker).unwrap()));
            }
        }
    }
    assert_eq!(seen.last(), Some(&(UNDERLAY_SOCKETS - 1)));
    for (slot, queue, worker) in [(MAX_CARDS, 0, 0), (0, MAX_QUEUES, 0), (0, 0, MAX_WORKERS)] {
        assert_eq!(socket_index(slot, queue, worker), None);
    }
}

/// One peer, of a class to which everything may be sent, and nothing else.
struct OnePeer;

impl PeerTable for OnePeer {
    fn peer(&self, address: &[u8; 16]) -> Option<PeerEntry> {
        (*address == PEER).then(|| PeerEntry::live(2, 3))
    }
}

impl PolicyTable for OnePeer {
    fn holds(&self, key: &PolicyKey) -> bool {
        *key == PolicyKey::new(Direction::Out, 3, 17, 2000)
    }
}

/// Who may be asked was.
impl FlowTable for OnePeer {
    fn note(&self, flow: &Flow) {
        assert_eq!(*flow, Flow::new(PEER, 17, (1000, 2000), Direction::Out));
    }

    fn knows(&self, _: &Flow) -> bool {
        true
    }
}

const OWN: [u8; 16] = [0xfd, 1, 2, 3, 4, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7];
const PEER: [u8; 16] = [0xfd, 1, 2, 3, 4, 5, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];

fn virtual_interface() -> InterfaceConfig {
    InterfaceConfig::new(OWN, [0xfd, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 48).unwrap()
}

fn inner(from: ([u8; 16], u16), to: ([u8; 16], u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6(from.0, to.0, 64);
    builder.udp(from.1, to.1).write(&mut frame, b"hello").unwrap();
    frame
}

#[test]
fn an_ethernet_header_before_a_packet_changes_no_verdict() {
    let config = virtual_interface();
    let (out, answer) = (inner((OWN, 1000), (PEER, 2000)), inner((PEER, 2000), (OWN, 1000)));
    assert_eq!(judge_virtual(out.as_slice(), &config, &OnePeer), Egress::Tunnel { worker: 2 });
    assert_eq!(judge_near_end(answer.as_slice(), &config, &OnePeer), Ok(()));
    let (foreign, unasked) = (inner((PEER, 1000), (PEER, 2000)), inner((PEER, 1000), (OWN, 2000)));
    let verdict = judge_virtual(foreign.as_slice(), &config, &OnePeer);
    assert_eq!(verdict, Egress::Drop(DropReason::ForeignSource));
    assert_eq!(judge_near_end(unasked.as_slice(), &config, &OnePeer), Err(DropReason::Denied));
    let longer = [&out[..], &[0]].concat();
    let verdict = judge_virtual(longer.as_slice(), &config, &OnePeer);
    assert_eq!(verdict, Egress::Drop(DropReason::LengthMismatch));
}

#[test]
fn what_is_no_ipv6_has_a_reason_on_a_virtual_interface() {
    let config = virtual_interface();
    let arp = [&[0; 12][..], &[8, 6], &[0; 28]].concat();
    for (frame, out, back) in [
        (v4(PORT, &data()), DropReason::NotIpv6, DropReason::MalformedInner),
        (arp, DropReason::LocalNoise, DropReason::MalformedInner),
        (vec![0; 13], DropReason::Truncated, DropReason::MalformedInner),
    ] {
        assert_eq!(judge_virtual(frame.as_slice(), &config, &OnePeer), Egress::Drop(out));
        assert_eq!(judge_near_end(frame.as_slice(), &config, &OnePeer), Err(back));
    }
}

proptest! {
    /// What is steered, another parser sees as UDP to the port, unfragmented, with these bytes.
    #[test]
    fn only_data_packets_are_steered(
        six: bool, mended: bool, damage in proptest::collection::vec((0usize..110, any::<u8>()), 0..4), cut in 0usize..140,
    ) {
        let mut frame = if six { v6(PORT, &data()) } else { v4(PORT, &data()) };
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) { *byte = value; }
        }
        if !six && mended {
            frame = with_checksum(frame);
        }
        frame.truncate(cut);
        if let Some(cid) = steer(&frame) {
            let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
            prop_assert!(headers.link_exts.is_empty());
            match &headers.net {
                Some(NetHeaders::Ipv4(header, _)) => {
                    prop_assert!(!header.is_fragmenting_payload());
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                }
                Some(NetHeaders::Ipv6(..)) => {}
                other => prop_assert!(false, "{other:?}"),
            }
            let Some(TransportHeader::Udp(udp)) = headers.transport else { panic!("no UDP") };
            prop_assert_eq!(udp.destination_port, PORT);
            prop_assert_eq!(&headers.payload.slice()[1..9], cid.as_bytes());
            prop_assert!(cid.is_data());
        }
    }

    #[test]
    fn any_bytes_end_without_a_panic(frame: Vec<u8>) {
        let _ = steer(&frame);
    }
}
