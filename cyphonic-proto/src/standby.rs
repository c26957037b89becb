//! Standbys: NMSs on other machines that stand in while the overlay's own is away.
//!
//! A standby follows the NMS: it copies the devices of the register ([`Member`]) and what else an NMS must
//! know ([`Facts`]), with every change, and serves nobody. When it has heard nothing for a while it stands in
//! ([`Stance`]), and when it hears again it stands by. Nodes turn to it only where they cannot reach the
//! overlay's own NMS. So at most one of the two serves all nodes that reach it; if they are cut off from each
//! other, those nodes meet that reach the same one.

mod facts;
mod member;
mod stance;

use std::net::SocketAddr;

pub use facts::{DamagedFacts, Facts};
pub use member::{Member, NoMember};
pub use stance::{STANDS_IN_AFTER, Stance};

use crate::message::{self, endpoint};

/// Most standbys of an overlay; the rest of a list is ignored.
pub const MAX_STANDBYS: usize = 4;

/// Most members in one FollowResponse: however long their names are, they fit a message.
pub const MEMBERS_A_RESPONSE: usize = 128;

/// An NMS that stands in for the overlay's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standby {
    /// Its name in its certificate.
    pub name: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
}

impl Standby {
    /// The standby as messages carry it.
    pub fn to_wire(&self) -> message::Standby {
        message::Standby { name: self.name.clone(), endpoints: endpoint::list_to_wire(&self.addresses) }
    }

    /// Those of a message that have a valid name and any address.
    pub(crate) fn list_from_wire(standbys: &[message::Standby]) -> Vec<Self> {
        let read = |standby: &message::Standby| {
            let (name, addresses) = endpoint::service_from_wire(&standby.name, &standby.endpoints)?;
            Some(Self { name, addresses })
        };
        let mut all: Vec<Self> = Vec::new();
        for standby in standbys.iter().take(MAX_STANDBYS).filter_map(read) {
            // Whoever turns from one to the next knows them by their names.
            if all.iter().all(|known| known.name != standby.name) {
                all.push(standby);
            }
        }
        all
    }
}
