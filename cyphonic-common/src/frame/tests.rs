use proptest::prelude::*;

use super::part::{MAX_PARTS, PART_HEADER, Pieces};
use super::*;

/// A frame that owns its bytes, so that proptest can make it.
#[derive(Debug, Clone)]
enum Owned {
    Padding(usize),
    Ping,
    Challenge([u8; 8]),
    Response([u8; 8]),
    Close(u64, Option<u64>, Vec<u8>),
    DatagramWithLength(Vec<u8>),
}

impl Owned {
    fn borrow(&self) -> Frame<'_> {
        match self {
            Self::Padding(count) => Frame::Padding(*count),
            Self::Ping => Frame::Ping,
            Self::Challenge(token) => Frame::PathChallenge(*token),
            Self::Response(token) => Frame::PathResponse(*token),
            Self::Close(error_code, frame_type, reason) => {
                Frame::Close(Close { error_code: *error_code, frame_type: *frame_type, reason })
            }
            Self::DatagramWithLength(payload) => Frame::DatagramWithLength(payload),
        }
    }
}

fn owned() -> impl Strategy<Value = Owned> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        (1usize..40).prop_map(Owned::Padding),
        Just(Owned::Ping),
        any::<[u8; 8]>().prop_map(Owned::Challenge),
        any::<[u8; 8]>().prop_map(Owned::Response),
        (0..=varint::MAX, proptest::option::of(0..=varint::MAX), bytes())
            .prop_map(|(code, kind, reason)| Owned::Close(code, kind, reason)),
        bytes().prop_map(Owned::DatagramWithLength),
    ]
}

fn encode(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = vec![0xaa; frame.encoded_len().unwrap()];
    assert_eq!(frame.encode(&mut out), Ok(out.len()), "encoded_len and encode agree");
    out
}

proptest! {
    #[test]
    fn frames_round_trip_in_any_sequence(frames in proptest::collection::vec(owned(), 0..12), last: Vec<u8>) {
        let mut packet: Vec<u8> = frames.iter().flat_map(|frame| encode(&frame.borrow())).collect();
        packet.extend(encode(&Frame::Datagram(&last)));
        let mut expected: Vec<Frame<'_>> = Vec::new();
        for frame in frames.iter().map(Owned::borrow).chain([Frame::Datagram(&last)]) {
            match (expected.last_mut(), frame) {
                // Neighbouring runs of padding are one run on the wire.
                (Some(Frame::Padding(run)), Frame::Padding(more)) => *run += more,
                _ => expected.push(frame),
            }
        }
        let decoded: Result<Vec<_>, _> = Frames::new(&packet).collect();
        prop_assert_eq!(decoded, Ok(expected));
    }

    #[test]
    fn any_bytes_end_without_a_panic(packet: Vec<u8>) {
        let frames: Vec<_> = Frames::new(&packet).collect();
        prop_assert!(frames.len() <= packet.len());
        let errors = frames.iter().filter(|frame| frame.is_err()).count();
        prop_assert!(errors == 0 || (errors == 1 && frames.last().unwrap().is_err()));
    }

    #[test]
    fn what_decodes_encodes_to_no_more_bytes(packet: Vec<u8>) {
        let decoded: Result<Vec<_>, _> = Frames::new(&packet).collect();
        if let Ok(frames) = decoded {
            let total: usize = frames.iter().map(|frame| encode(frame).len()).sum();
            prop_assert!(total <= packet.len());
        }
    }

    #[test]
    fn a_frame_does_not_fit_one_byte_less(frame in owned()) {
        let frame = frame.borrow();
        let mut out = vec![0; frame.encoded_len().unwrap() - 1];
        prop_assert_eq!(frame.encode(&mut out), Err(EncodeError));
    }
}

#[test]
fn an_inner_packet_costs_one_byte() {
    assert_eq!(encode(&Frame::Datagram(&[9; 100])).len(), 101);
}

#[test]
fn frames_of_streams_and_acknowledgements_do_not_belong_here() {
    for kind in [0x02u8, 0x03, 0x04, 0x06, 0x08, 0x10, 0x18, 0x1e, 0x32, 0x3f] {
        let packet = [kind, 0, 0, 0, 0];
        let mut frames = Frames::new(&packet);
        assert_eq!(frames.next(), Some(Err(FrameError::UnexpectedType(u64::from(kind)))));
        assert_eq!(frames.next(), None);
    }
    assert_eq!(Frames::new(&[0x40, 0xff]).next(), Some(Err(FrameError::UnexpectedType(0xff))));
}

#[test]
fn a_type_in_a_longer_form_is_refused() {
    assert_eq!(Frames::new(&[0x40, PING]).next(), Some(Err(FrameError::LongType)));
}

#[test]
fn truncated_frames_are_named() {
    for packet in [
        &[PATH_CHALLENGE, 1, 2, 3][..],
        &[DATAGRAM_WITH_LENGTH, 5, 1],
        &[CONNECTION_CLOSE, 0, 0],
        &[APPLICATION_CLOSE, 0, 9, b'x'],
        &[0xff],
    ] {
        assert_eq!(Frames::new(packet).next(), Some(Err(FrameError::Truncated)), "{packet:x?}");
    }
}

#[test]
fn a_long_reason_is_cut_and_the_close_still_works() {
    let reason = vec![b'r'; 1000];
    let close = Frame::Close(Close { error_code: 7, frame_type: None, reason: &reason });
    let packet = encode(&close);
    let Some(Ok(Frame::Close(read))) = Frames::new(&packet).next() else { panic!("no close") };
    assert_eq!((read.error_code, read.reason), (7, &reason[..MAX_REASON]));

    let mut long = vec![APPLICATION_CLOSE, 7, 0x43, 0xe8];
    long.extend_from_slice(&reason);
    long.push(PING);
    let frames: Result<Vec<_>, _> = Frames::new(&long).collect();
    let kept = Close { error_code: 7, frame_type: None, reason: &reason[..MAX_REASON] };
    assert_eq!(frames, Ok(vec![Frame::Close(kept), Frame::Ping]));
}

#[test]
fn numbers_beyond_a_quic_integer_are_refused() {
    let close = Frame::Close(Close { error_code: varint::MAX + 1, frame_type: None, reason: b"" });
    assert_eq!(close.encoded_len(), None);
    assert_eq!(close.encode(&mut [0; 64]), Err(EncodeError));
}

proptest! {
    #[test]
    fn the_pieces_of_a_packet_are_the_packet(total in 2usize..65_536, room in 0usize..1500, id: u16) {
        let packet: Vec<u8> = (0..total).map(|at| at as u8).collect();
        let Some(pieces) = Pieces::of(total, room) else {
            let most = room.saturating_sub(PART_HEADER);
            prop_assert!(most == 0 || total <= most || total.div_ceil(most) > MAX_PARTS);
            return Ok(());
        };
        let mut joined = Vec::new();
        let mut sizes = Vec::new();
        for (offset, len) in pieces.iter() {
            let bytes = &packet[offset..offset + len];
            let frame = Frame::Part(Part { id, offset: offset as u16, total: total as u16, bytes });
            let encoded = encode(&frame);
            prop_assert!(encoded.len() <= room);
            prop_assert_eq!(Frames::new(&encoded).collect::<Vec<_>>(), vec![Ok(frame)]);
            prop_assert_eq!(joined.len(), offset);
            joined.extend_from_slice(bytes);
            sizes.push(len);
        }
        prop_assert_eq!(joined, packet);
        prop_assert!(sizes.len() <= MAX_PARTS);
        let (last, others) = sizes.split_last().unwrap();
        prop_assert!(others.iter().all(|size| size == &others[0] && size >= last));
    }

    #[test]
    fn a_piece_outside_its_packet_is_refused(id: u16, offset: u16, total: u16, len in 0usize..3000) {
        let bytes = vec![1; len];
        let part = Part { id, offset, total, bytes: &bytes };
        let encoded = [part.header().as_slice(), &bytes].concat();
        let sound = len > 0 && len < usize::from(total) && usize::from(offset) + len <= usize::from(total);
        let expected = if sound { Ok(Frame::Part(part)) } else { Err(FrameError::BadPart) };
        prop_assert_eq!(Frames::new(&encoded).next(), Some(expected));
        prop_assert_eq!(Frame::Part(part).encode(&mut vec![0; encoded.len()]).is_ok(), sound);
    }
}

#[test]
fn a_piece_costs_eight_bytes() {
    let frame = Frame::Part(Part { id: 1, offset: 0, total: 1280, bytes: &[7; 640] });
    assert_eq!(encode(&frame).len(), 640 + PART_HEADER);
    assert_eq!(Pieces::of(1280, 1171).unwrap().iter().collect::<Vec<_>>(), [(0, 640), (640, 640)]);
    assert_eq!(Frames::new(&[0x40, PART, 0, 0, 0]).next(), Some(Err(FrameError::Truncated)));
}
