//! What a node keeps so that it can start while the AS is away, and as restricted as it was.

use std::net::SocketAddr;

use prost::Message as _;
use thiserror::Error;

use crate::access::OverlayAccess;
use crate::message::{self, AgentCache, endpoint};
use crate::standby::Standby;

/// What the node last heard of services: where they were, and the overlay's rules. Holds no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CachedState {
    /// Where the NMS is.
    pub nms_addresses: Vec<SocketAddr>,
    /// The NMS's name in its certificate.
    pub nms_name: String,
    /// The relays, nearest first.
    pub relays: Vec<Relay>,
    /// Whether the network passed no UDP.
    pub udp_blocked: bool,
    /// Who may open what with the node.
    pub access: OverlayAccess,
    /// NMSs to turn to where the NMS cannot be reached, in this order.
    pub standbys: Vec<Standby>,
}

/// A TRS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relay {
    /// Its name in its certificate.
    pub name: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
}

/// The bytes are no cached state: start without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the cached state is damaged; the agent starts without it and asks the AS")]
pub struct DamagedCache;

impl CachedState {
    /// The state as bytes for a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let relays = self.relays.iter().map(Relay::to_wire).collect();
        let nms = endpoint::list_to_wire(&self.nms_addresses);
        let (nms_name, udp_blocked) = (self.nms_name.clone(), self.udp_blocked);
        let (access, standbys) =
            (self.access.to_wire(0), self.standbys.iter().map(Standby::to_wire).collect());
        AgentCache { nms, nms_name, relays, udp_blocked, access, standbys }.encode_to_vec()
    }

    /// The state from a file's bytes.
    ///
    /// # Errors
    /// Where the bytes are not what [`CachedState::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DamagedCache> {
        if bytes.len() > message::MAX_MESSAGE_BYTES {
            return Err(DamagedCache);
        }
        let cache = AgentCache::decode(bytes).map_err(|_| DamagedCache)?;
        let nms_addresses = endpoint::services_from_wire(&cache.nms);
        let relays = Relay::list_from_wire(&cache.relays);
        if nms_addresses.is_empty() || cache.nms_name.is_empty() {
            return Err(DamagedCache);
        }
        let access = cache.access.as_ref().map(OverlayAccess::from_wire).unwrap_or_default();
        let (nms_name, udp_blocked) = (cache.nms_name, cache.udp_blocked);
        let standbys = Standby::list_from_wire(&cache.standbys);
        Ok(Self { nms_addresses, nms_name, relays, udp_blocked, access, standbys })
    }
}

impl Relay {
    /// The relay as messages carry it.
    pub fn to_wire(&self) -> message::Relay {
        message::Relay { name: self.name.clone(), endpoints: endpoint::list_to_wire(&self.addresses) }
    }

    /// The relay of a message; `None` without a valid name or any address.
    pub fn from_wire(relay: &message::Relay) -> Option<Self> {
        let (name, addresses) = endpoint::service_from_wire(&relay.name, &relay.endpoints)?;
        Some(Self { name, addresses })
    }

    pub(crate) fn list_from_wire(relays: &[message::Relay]) -> Vec<Self> {
        relays.iter().take(super::config::MAX_RELAYS).filter_map(Self::from_wire).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_state_survives_the_file() {
        let state = CachedState {
            nms_addresses: vec!["192.0.2.1:443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()],
            nms_name: "nms.lab".into(),
            relays: vec![Relay { name: "trs.lab".into(), addresses: vec!["192.0.2.2:443".parse().unwrap()] }],
            udp_blocked: true,
            access: OverlayAccess::at("a.lab", "lab", Some(&[])),
            standbys: vec![Standby {
                name: "nms2.lab".into(),
                addresses: vec!["192.0.2.9:443".parse().unwrap()],
            }],
        };
        assert_eq!(CachedState::from_bytes(&state.to_bytes()), Ok(state.clone()));
        let older = CachedState { access: OverlayAccess::Unknown, ..state };
        assert_eq!(CachedState::from_bytes(&older.to_bytes()), Ok(older));
        assert_eq!(CachedState::from_bytes(&[]), Err(DamagedCache));
    }

    proptest! {
        #[test]
        fn a_damaged_file_makes_no_panic(bytes: Vec<u8>) {
            let _ = CachedState::from_bytes(&bytes);
        }
    }
}
