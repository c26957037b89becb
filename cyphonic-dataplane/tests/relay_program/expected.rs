//! Legs and packets of the lab, and what must leave for what came, made from nothing.

use std::net::SocketAddr;

use cyphonic_common::ConnectionId;
use cyphonic_common::relay::{Family, Hop, Leg, RelayRate};

use crate::frames::{Spec, payload};
use crate::lab::PORT;

pub(crate) const REAL: ConnectionId =
    ConnectionId::from_random_data([0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 7, 8]);

pub(crate) fn cid(number: u8) -> ConnectionId {
    ConnectionId::from_random_data([0x91, 2, 3, 4, 5, 6, 7, number])
}

/// A leg from a node at the first interface (see [`lab`]) to `to`, from the relay's address `source`.
pub(crate) fn leg(from_v6: bool, to: &str, source: &str) -> Leg {
    let (from, local) = match from_v6 {
        false => ("192.0.2.10:1111", "192.0.2.1"),
        true => ("[2001:db8::10]:1111", "2001:db8::1"),
    };
    Leg {
        from: from.parse().unwrap(),
        local: Some(local.parse().unwrap()),
        to: to.parse().unwrap(),
        source: Some(source.parse().unwrap()),
        real_cid: REAL,
        rate: RelayRate::UNLIMITED,
    }
}

/// To a node at the other interface.
pub(crate) fn across(from_v6: bool, to_v6: bool) -> Leg {
    match to_v6 {
        false => leg(from_v6, "198.51.100.20:2222", "198.51.100.1"),
        true => leg(from_v6, "[2001:db8:1::20]:2222", "2001:db8:1::1"),
    }
}

/// To another node at the interface that the packet came by.
pub(crate) fn back(from_v6: bool, to_v6: bool) -> Leg {
    match to_v6 {
        false => leg(from_v6, "192.0.2.11:2222", "192.0.2.1"),
        true => leg(from_v6, "[2001:db8::11]:2222", "2001:db8::1"),
    }
}

pub(crate) fn arriving(leg: &Leg, virtual_cid: ConnectionId, rest: &[u8]) -> Spec {
    Spec {
        source: leg.from,
        destination: SocketAddr::new(leg.local.unwrap(), PORT),
        traffic_class: 0,
        hop_limit: 64,
        label: 0,
        payload: payload(virtual_cid, rest),
        checksum: true,
        macs: ([1; 6], [2; 6]),
    }
}

/// What must leave for what came, from nothing.
pub(crate) fn leaving(leg: &Leg, came: &Spec, hop: &Hop) -> Spec {
    let mut payload = came.payload.clone();
    payload[1..9].copy_from_slice(REAL.as_bytes());
    Spec {
        source: SocketAddr::new(leg.source.unwrap(), PORT),
        destination: leg.to,
        hop_limit: came.hop_limit - 1,
        label: if leg.from.is_ipv4() == leg.to.is_ipv4() { came.label } else { 0 },
        payload,
        macs: hop.links(),
        ..came.clone()
    }
}

pub(crate) fn family(v6: bool) -> Family {
    if v6 { Family::V6 } else { Family::V4 }
}
