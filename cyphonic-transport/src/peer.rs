//! A peer that dials this node, from its first packets until it has proved who it is.
//!
//! The accepting end of a TLS 1.3 handshake may send as soon as it has the other's first message (RFC 8446
//! §4.4.4), in QUIC together with its own part of the handshake ("0.5-RTT data"). Then the dialler has that
//! one round trip after its first packet. Whoever dials may read it, so nothing secret belongs there; and
//! nothing is read from the dialler before its certificate is verified.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use cyphonic_proto::identity::NetworkId;
use cyphonic_proto::{Message, close};
use quinn::crypto::rustls::HandshakeData;
use quinn::{VarInt, ZeroRttAccepted};

use crate::connection::{Connection, ExchangeError};
use crate::handshakes::Place;
use crate::tls::{self, ServerTls};
use crate::transport::may_speak;

/// See the module. Dropped, the connection ends.
pub struct ArrivingPeer {
    connection: quinn::Connection,
    complete: ZeroRttAccepted,
    alpn: Vec<u8>,
    tls: Arc<ServerTls>,
    network: NetworkId,
    /// It counts as a handshake under way until its connection ends: each takes an offer of the listener's,
    /// also one that asks for nothing after it has proved who it is.
    under_way: Place,
}

impl fmt::Debug for ArrivingPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArrivingPeer").field("remote", &self.remote_address()).finish_non_exhaustive()
    }
}

impl ArrivingPeer {
    /// Reads the dialler's first message.
    pub(crate) async fn accept(
        incoming: quinn::Incoming,
        tls: Arc<ServerTls>,
        network: NetworkId,
        under_way: Place,
    ) -> Result<Self, String> {
        let mut connecting = incoming.accept().map_err(|error| error.to_string())?;
        let data = connecting.handshake_data().await.map_err(|error| error.to_string())?;
        let alpn = data.downcast::<HandshakeData>().ok().and_then(|data| data.protocol);
        let alpn = alpn.ok_or("no application protocol was negotiated")?;
        // Always granted to the accepting end.
        let (connection, complete) =
            connecting.into_0rtt().map_err(|_| "nothing can be sent before the handshake is complete")?;
        Ok(Self { connection, complete, alpn, tls, network, under_way })
    }

    /// Where it dials from; a relayed leg's address if a TRS relays it.
    pub fn remote_address(&self) -> SocketAddr {
        let address = self.connection.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// Sends a message at once, to whoever it is.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn notify(&self, message: &Message) -> Result<(), ExchangeError> {
        crate::connection::send_notice(&self.connection, message).await
    }

    /// Waits until the peer has proved who it is.
    ///
    /// # Errors
    /// When the handshake fails, or the peer is no device of this overlay; its connection has ended then.
    pub async fn verified(self) -> Result<Connection, String> {
        let Self { connection, complete, alpn, tls, network, under_way } = self;
        complete.await;
        if let Some(reason) = connection.close_reason() {
            return Err(reason.to_string());
        }
        match may_speak(&tls, network, &alpn, tls::identity_of(&connection)) {
            Ok(identity) => Ok(Connection::new(connection, identity).in_place(under_way)),
            Err(reason) => {
                connection.close(VarInt::from_u32(close::NOT_ALLOWED), reason.as_bytes());
                Err(reason)
            }
        }
    }

    /// Ends the connection.
    pub fn close(self, reason: &str) {
        self.connection.close(VarInt::from_u32(close::DONE), reason.as_bytes());
    }
}
