//! What makes this overlay the one it is.

use cyphonic_proto::address::Prefix;
use cyphonic_proto::identity::NetworkId;

use crate::pki::{PkiError, random};

/// Name, number and addresses of an overlay. Fixed for its life: they stand in every certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Random, so that no two overlays share it.
    pub id: NetworkId,
    /// The DNS zone of all names, lowercase, without a final dot.
    pub zone: String,
    /// The /48 of all virtual addresses.
    pub prefix: Prefix,
}

impl Network {
    /// A new overlay for this zone, with a random number and a random /48 (RFC 4193 §3.2).
    ///
    /// # Errors
    /// If the operating system gives no random bytes.
    pub fn generate(zone: &str) -> Result<Self, PkiError> {
        Ok(Self { id: NetworkId(random()?), zone: zone.to_owned(), prefix: Prefix::from_random(random()?) })
    }

    /// How certificates and messages call it.
    pub(crate) fn short(&self) -> String {
        // Authorities' common names may have 64 characters; the zone may have more.
        let zone: String = self.zone.chars().take(40).collect();
        format!("Cyphonic {zone}")
    }
}
