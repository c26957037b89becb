//! UDP first, and the detour beside it where UDP does not answer soon.

use std::time::Duration;

use crate::connection::Connection;
use crate::dial::DialError;

/// How long UDP is ahead. An answer over 500 ms of round trip comes sooner, with its first packet lost once; a person
/// waits this long once more where UDP is blocked.
pub(super) const AHEAD: Duration = Duration::from_millis(1_500);

/// The first of the two connections that stands. Where neither does, the error is UDP's, which is the way that should be
/// open.
///
/// # Errors
/// When both fail.
pub(crate) async fn race(
    udp: impl Future<Output = Result<Connection, DialError>>,
    detour: impl Future<Output = Result<Connection, DialError>>,
) -> Result<Connection, DialError> {
    let later = async {
        tokio::time::sleep(AHEAD).await;
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
