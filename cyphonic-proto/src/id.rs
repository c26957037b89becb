//! The handles by which machines and shells name things to each other.

use std::fmt;

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);
    };
}

handle! {
    /// One request and its answer on a service's connection. For requests that a machine sends, it chooses the number;
    /// for requests that arrive, the shell does. The two spaces are separate.
    ExchangeId
}
handle! {
    /// One question of the agent's DNS server, chosen by the shell.
    QueryId
}
handle! {
    /// One connection that a peer opened to this node, chosen by the shell.
    PeerConnectionId
}
handle! {
    /// One tunnel of this node, chosen by the node's machine and never used twice.
    TunnelId
}
handle! {
    /// One device's connection to the NMS or a TRS, chosen by the shell and never used twice.
    Channel
}

/// One set-up of a tunnel, chosen by the NMS; both ends and the relay know it by this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetupId(pub [u8; 16]);

impl SetupId {
    /// The identifier as it stands in a message, if it has the right length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The identifier as it stands in a message.
    pub fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl fmt::Display for SetupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for SetupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetupId({self})")
    }
}
