//! What the control plane tells the workers, and the receiving worker the sending one.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use cyphonic_common::ConnectionId;

use super::permissions::Enforced;
use super::rx::CardQueue;
use super::shared::Shared;
use super::{Control, Path, PathMtu, TunnelId};
use crate::protect::{Opener, Sealer};

/// A tunnel's sending half.
pub(super) struct TxTunnel {
    pub(super) shared: Arc<Shared>,
    pub(super) precedence: u128,
    pub(super) peer: Ipv6Addr,
    pub(super) remote_cid: ConnectionId,
    pub(super) path: Path,
    pub(super) sealer: Sealer,
    pub(super) mtu: PathMtu,
    pub(super) confirmed: bool,
}

/// A tunnel's receiving half.
pub(super) struct RxTunnel {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Ipv6Addr,
    pub(super) local_cid: ConnectionId,
    pub(super) remote_cid: ConnectionId,
    pub(super) path: Path,
    pub(super) opener: Opener,
}

/// To the sending worker. In order.
pub(super) enum TxCommand {
    Install(Box<TxTunnel>),
    Remove(TunnelId),
    SetPath(TunnelId, Path),
    SetMtu(TunnelId, PathMtu),
    Control(TunnelId, Control),
    DropHeld(Ipv6Addr, bool),
    UpdateKeys(TunnelId),
    /// `None`: everything may pass.
    SetPermissions(Option<Arc<Enforced>>),
}

/// To the receiving worker. In order.
pub(super) enum RxCommand {
    Install(Box<RxTunnel>),
    /// Of the tunnel that receives by this connection ID.
    Remove(ConnectionId),
    /// The same.
    SetPath(ConnectionId, Path),
    /// A packet of the ring's own to the node's applications.
    Deliver(Box<[u8]>),
    /// `None`: everything may pass.
    SetPermissions(Option<Arc<Enforced>>),
    /// A network card's queue gives frames from now on.
    AddQueue(Box<CardQueue>),
    /// A network card gives no more frames. The sender is dropped when the last is taken.
    RemoveCard(u32, Sender<()>),
}

/// From the receiving to the sending worker: a PATH_CHALLENGE to answer, where it came from. Bounded, because
/// peers cause them.
pub(super) struct Answer {
    pub(super) tunnel: TunnelId,
    pub(super) data: [u8; 8],
    pub(super) to: SocketAddr,
    /// Whether the challenge was padded to the size of a path probe, as its answer then must be (RFC 9000
    /// §8.2.2).
    pub(super) padded: bool,
}
