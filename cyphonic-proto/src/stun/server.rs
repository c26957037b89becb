//! The answer to a Binding request. No state, no allocation beyond the answer, and never more bytes out than
//! in.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::attribute::CHANGE_REQUEST;
use super::message::{DecodeError, Failure, Message, Request, Success};

/// "Unknown Attribute" (RFC 8489 §14.8): also for what this server cannot follow (RFC 5780 §6.1).
const UNKNOWN_ATTRIBUTE: u16 = 420;

/// Where a request came to, and what else the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The server's address that the request was sent to.
    pub arrived: SocketAddr,
    /// Its other address of the same family, if it has one.
    pub other_address: Option<IpAddr>,
    /// Its other port, if that is open.
    pub other_port: Option<u16>,
}

/// What to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// From the other address.
    pub change_address: bool,
    /// From the other port.
    pub change_port: bool,
    /// Where to: the address the request came from, perhaps another port of it.
    pub to: SocketAddr,
    /// The message.
    pub message: Vec<u8>,
}

/// Why a datagram is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Ignored {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] DecodeError),
    /// It is an answer.
    #[error("this is no request")]
    NotARequest,
    /// Its answer would be longer, and might be meant for somebody else.
    #[error("the request is shorter than its answer would be")]
    TooShort,
    /// Nobody can be reached there.
    #[error("the sender has no address that could be answered to")]
    NoSender,
}

/// The answer to a datagram from `from`.
///
/// # Errors
/// Where none may be sent.
pub fn reply(datagram: &[u8], from: SocketAddr, site: &Site) -> Result<Reply, Ignored> {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let Message::Request(request) = Message::decode(datagram)? else { return Err(Ignored::NotARequest) };
    let to = SocketAddr::new(from.ip(), request.response_port.unwrap_or(from.port()));
    if to.port() == 0 || to.ip().is_unspecified() || to.ip().is_multicast() {
        return Err(Ignored::NoSender);
    }
    let cannot_follow = (request.change_address && site.other_address.is_none())
        || (request.change_port && site.other_port.is_none());
    let reply = if !request.unknown.is_empty() {
        refusal(&request, to, request.unknown.clone())
    } else if cannot_follow {
        refusal(&request, to, vec![CHANGE_REQUEST])
    } else {
        success(&request, from, to, site)
    };
    if reply.message.len() > datagram.len() { Err(Ignored::TooShort) } else { Ok(reply) }
}

fn success(request: &Request, from: SocketAddr, to: SocketAddr, site: &Site) -> Reply {
    let (own, port) = (site.arrived.ip(), site.arrived.port());
    let ip = site.other_address.filter(|_| request.change_address).unwrap_or(own);
    let from_port = site.other_port.filter(|_| request.change_port).unwrap_or(port);
    let has_other = site.other_address.is_some() || site.other_port.is_some();
    let other = SocketAddr::new(site.other_address.unwrap_or(own), site.other_port.unwrap_or(port));
    let success = Success {
        transaction: request.transaction,
        mapped: from,
        origin: Some(SocketAddr::new(ip, from_port)),
        other: has_other.then_some(other),
    };
    Reply {
        change_address: request.change_address,
        change_port: request.change_port,
        to,
        message: Message::Success(success).encode(),
    }
}

fn refusal(request: &Request, to: SocketAddr, unknown: Vec<u16>) -> Reply {
    let failure = Failure { transaction: request.transaction, code: UNKNOWN_ATTRIBUTE, unknown };
    Reply { change_address: false, change_port: false, to, message: Message::Failure(failure).encode() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn site() -> Site {
        Site {
            arrived: at("192.0.2.1:443"),
            other_address: Some("192.0.2.2".parse().unwrap()),
            other_port: Some(3479),
        }
    }

    fn answer(request: Request, site: &Site) -> (Reply, Message) {
        let bytes = Message::Request(request).encode();
        let reply = reply(&bytes, at("[::ffff:198.51.100.7]:7000"), site).unwrap();
        let message = Message::decode(&reply.message).unwrap();
        (reply, message)
    }

    #[test]
    fn a_request_is_answered_to_its_sender_from_where_it_came_to() {
        let (reply, message) = answer(Request { transaction: [3; 12], ..Request::default() }, &site());
        assert_eq!(
            (reply.change_address, reply.change_port, reply.to),
            (false, false, at("198.51.100.7:7000"))
        );
        let expected = Success {
            transaction: [3; 12],
            mapped: at("198.51.100.7:7000"),
            origin: Some(at("192.0.2.1:443")),
            other: Some(at("192.0.2.2:3479")),
        };
        assert_eq!(message, Message::Success(expected));
    }

    #[test]
    fn address_and_port_are_changed_as_asked() {
        let request = Request { change_address: true, change_port: true, ..Request::default() };
        let (reply, message) = answer(request, &site());
        assert!(reply.change_address && reply.change_port);
        let Message::Success(success) = message else { panic!("{message:?}") };
        assert_eq!(success.origin, Some(at("192.0.2.2:3479")));
    }

    #[test]
    fn another_port_of_the_senders_address_may_be_answered_to() {
        let (reply, message) = answer(Request { response_port: Some(9), ..Request::default() }, &site());
        assert_eq!(reply.to, at("198.51.100.7:9"));
        let Message::Success(success) = message else { panic!("{message:?}") };
        assert_eq!(success.mapped, at("198.51.100.7:7000"));
    }

    #[test]
    fn what_cannot_be_followed_is_refused_not_ignored() {
        let poor = Site { other_address: None, ..site() };
        let (_, message) = answer(Request { change_address: true, ..Request::default() }, &poor);
        let Message::Failure(failure) = message else { panic!("{message:?}") };
        assert_eq!((failure.code, failure.unknown), (UNKNOWN_ATTRIBUTE, vec![CHANGE_REQUEST]));
    }

    #[test]
    fn answers_and_port_zero_are_not_answered() {
        let (reply, _) = answer(Request::default(), &site());
        assert_eq!(super::reply(&reply.message, at("192.0.2.9:1"), &site()), Err(Ignored::NotARequest));
        let nowhere = Message::Request(Request { response_port: Some(0), ..Request::default() }).encode();
        assert_eq!(super::reply(&nowhere, at("192.0.2.9:1"), &site()), Err(Ignored::NoSender));
    }

    #[test]
    fn a_bare_header_is_too_short_to_be_answered() {
        let mut header = Message::Request(Request::default()).encode();
        header.truncate(20);
        header[2..4].copy_from_slice(&[0, 0]);
        assert_eq!(reply(&header, at("192.0.2.9:1"), &site()), Err(Ignored::TooShort));
    }

    proptest! {
        #[test]
        fn no_answer_is_longer_than_what_it_answers(bytes in prop::collection::vec(any::<u8>(), 0..300), from: SocketAddr, six: bool) {
            let mut request = Message::Request(Request::default()).encode();
            request.extend_from_slice(&bytes);
            for datagram in [&bytes, &request] {
                let arrived = if six { at("[2001:db8::1]:443") } else { at("192.0.2.1:443") };
                if let Ok(reply) = reply(datagram, from, &Site { arrived, ..site() }) {
                    prop_assert!(reply.message.len() <= datagram.len());
                    prop_assert_eq!(reply.to.ip(), from.ip().to_canonical());
                }
            }
        }
    }
}
