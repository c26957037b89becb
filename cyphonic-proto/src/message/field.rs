//! Fields of messages in their checked forms.

use std::net::Ipv6Addr;

use cyphonic_common::ConnectionId;
use thiserror::Error;

use super::{Message, Refusal, RefusalCode};
use crate::id::SetupId;

/// A message lacks a field it needs, or the field has no valid value: the sender erred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the field {0} is missing or not valid")]
pub struct BadField(pub &'static str);

impl From<BadField> for Refusal {
    fn from(bad: BadField) -> Self {
        Self::new(RefusalCode::Malformed, bad)
    }
}

impl From<Refusal> for Message {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

/// A set-up's identifier.
///
/// # Errors
/// Where it has not 16 bytes.
pub fn setup_id(bytes: &[u8]) -> Result<SetupId, BadField> {
    SetupId::from_slice(bytes).ok_or(BadField("setup_id"))
}

/// A connection ID of the data path, from the field called `name`.
///
/// # Errors
/// Where it has not 8 bytes or is one of signalling.
pub fn data_connection_id(bytes: &[u8], name: &'static str) -> Result<ConnectionId, BadField> {
    let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| BadField(name))?;
    Some(ConnectionId::from_bytes(bytes)).filter(ConnectionId::is_data).ok_or(BadField(name))
}

/// A virtual address, from the field called `name`.
///
/// # Errors
/// Where it has not 16 bytes.
pub fn virtual_address(bytes: &[u8], name: &'static str) -> Result<Ipv6Addr, BadField> {
    <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from_octets).map_err(|_| BadField(name))
}
