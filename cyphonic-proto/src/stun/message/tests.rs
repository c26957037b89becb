use proptest::prelude::*;

use super::*;

/// RFC 5769 §2.1: a request with credentials and FINGERPRINT.
const SAMPLE_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e\
                              0001ff80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";

/// RFC 5769 §2.2: a response over IPv4.
const SAMPLE_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643\
                         000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";

/// RFC 5769 §2.3: a response over IPv6.
const SAMPLE_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9fa\
                         a5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";

fn bytes(hex: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()
}

#[test]
fn the_vectors_of_rfc_5769_are_read() {
    let Ok(Message::Request(request)) = Message::decode(&bytes(SAMPLE_REQUEST)) else { panic!("no request") };
    assert!(request.unknown.is_empty() && request.response_port.is_none());
    let Ok(Message::Success(four)) = Message::decode(&bytes(SAMPLE_V4)) else { panic!("no response") };
    assert_eq!(four.mapped, "192.0.2.1:32853".parse().unwrap());
    let Ok(Message::Success(six)) = Message::decode(&bytes(SAMPLE_V6)) else { panic!("no response") };
    assert_eq!(six.mapped, "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap());
}

#[test]
fn a_wrong_fingerprint_or_one_that_is_not_last_is_refused() {
    let mut sample = bytes(SAMPLE_V4);
    *sample.last_mut().unwrap() ^= 1;
    assert_eq!(Message::decode(&sample), Err(DecodeError::Malformed));
    let mut longer = Message::Request(Request::default()).encode();
    attribute::push(&mut longer, attribute::SOFTWARE, b"late");
    let len = u16::try_from(longer.len() - HEADER_LEN).unwrap();
    longer[2..4].copy_from_slice(&len.to_be_bytes());
    assert_eq!(Message::decode(&longer), Err(DecodeError::Malformed));
}

#[test]
fn what_must_be_understood_and_is_not_is_told() {
    let mut out = header(BINDING_REQUEST, &[7; 12]);
    attribute::push(&mut out, 0x7abc, &[1]);
    let Ok(Message::Request(request)) = Message::decode(&finish(out)) else { panic!("no request") };
    assert_eq!(request.unknown, [0x7abc]);
    let mut out = header(BINDING_SUCCESS, &[7; 12]);
    attribute::push_xor_address(
        &mut out,
        attribute::XOR_MAPPED_ADDRESS,
        "192.0.2.1:1".parse().unwrap(),
        &[7; 12],
    );
    attribute::push(&mut out, 0x7abc, &[1]);
    assert_eq!(Message::decode(&finish(out)), Err(DecodeError::NotUnderstood));
}

#[test]
fn other_methods_and_lengths_are_not_binding() {
    let mut allocate = header(0x0003, &[1; 12]);
    attribute::push(&mut allocate, attribute::SOFTWARE, b"x");
    assert_eq!(Message::decode(&finish(allocate)), Err(DecodeError::NotBinding));
    let mut short = Message::Request(Request::default()).encode();
    short.pop();
    assert_eq!(Message::decode(&short), Err(DecodeError::NotStun));
}

fn address() -> impl Strategy<Value = SocketAddr> {
    any::<SocketAddr>().prop_map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()))
}

proptest! {
    #[test]
    fn requests_survive_the_wire_at_their_length(
        transaction: Transaction, change_address: bool, change_port: bool, response_port: Option<u16>
    ) {
        let request = Request { transaction, change_address, change_port, response_port, unknown: Vec::new() };
        let message = Message::Request(request);
        let bytes = message.encode();
        prop_assert_eq!(bytes.len(), REQUEST_LEN);
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
    }

    #[test]
    fn answers_survive_the_wire_and_are_no_longer_than_requests(
        transaction: Transaction,
        mapped in address(),
        origin in prop::option::of(address()),
        other in prop::option::of(address()),
    ) {
        let message = Message::Success(Success { transaction, mapped, origin, other });
        let bytes = message.encode();
        prop_assert!(bytes.len() <= REQUEST_LEN);
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
    }

    #[test]
    fn refusals_survive_the_wire(transaction: Transaction, code in 300u16..700, unknown in prop::collection::vec(any::<u16>(), 0..4)) {
        let indication = Message::Indication(transaction);
        prop_assert_eq!(Message::decode(&indication.encode()), Ok(indication));
        let message = Message::Failure(Failure { transaction, code, unknown });
        prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn any_bytes_are_read_without_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u16..0x120) {
        let len = bytes.len();
        if len >= HEADER_LEN {
            bytes[..2].copy_from_slice(&kind.to_be_bytes());
            bytes[2..4].copy_from_slice(&u16::try_from(len - HEADER_LEN).unwrap().to_be_bytes());
            bytes[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        }
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert!(Message::decode(&message.encode()).is_ok());
        }
    }
}
