//! UDP first, and the detour beside it where UDP does not answer soon.

use cyphonic_proto::quic::UDP_AHEAD;

use crate::connection::Connection;
use crate::dial::DialError;

/// The first of the two connections that stands. Where neither does, the error is UDP's, which is the way
/// that should be open.
///
/// # Errors
/// When both fail.
pub(crate) async fn race(
    udp: impl Future<Output = Result<Connection, DialError>>,
    detour: impl Future<Output = Result<Connection, DialError>>,
) -> Result<Connection, DialError> {
    let later = async {
        tokio::time::sleep(UDP_AHEAD).await;
        detour.await
    };
    tokio::pin!(udp, later);
    tokio::select! {
        connected = &mut udp => match connected {
            Ok(connection) => Ok(connection),
            // Refused at once: the rest of the lead is spent waiting, so that a service that restarts is not hammered.
            Err(error) => later.await.map_err(|_| error),
        },
        connected = &mut later => match connected {
            Ok(connection) => Ok(connection),
            Err(failure) => {
                tracing::debug!(%failure, "there is no detour either");
                udp.await
            }
        },
    }
}
