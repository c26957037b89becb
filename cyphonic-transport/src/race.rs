//! Attempts at several addresses of one peer, of which the first that succeeds counts.
//!
//! A peer may be reachable over one family and not the other, or at its private address and not its public
//! one. Attempts start one after the other without waiting for the earlier to fail (RFC 8305's happy
//! eyeballs); those that have not come to an end when one succeeds are dropped.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

/// RFC 8305 §5 recommends 250 ms between attempts; a handshake between edge devices is worth a few packets
/// more.
const STAGGER: Duration = Duration::from_millis(100);

/// At most this many addresses are tried.
const MAX_ATTEMPTS: usize = 8;

/// What the first successful attempt brought, or why the last one failed. Nothing where there is no address.
pub(crate) async fn first_success<T, E, F>(
    addresses: &[SocketAddr],
    attempt: impl Fn(SocketAddr) -> F,
) -> Option<Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut attempts: FuturesUnordered<_> = addresses
        .iter()
        .take(MAX_ATTEMPTS)
        .zip(0_u32..)
        .map(|(address, turn)| {
            let attempt = attempt(*address);
            async move {
                tokio::time::sleep(STAGGER * turn).await;
                attempt.await
            }
        })
        .collect();
    let mut last = None;
    while let Some(outcome) = attempts.next().await {
        let succeeded = outcome.is_ok();
        last = Some(outcome);
        if succeeded {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn addresses(count: u16) -> Vec<SocketAddr> {
        (1..=count).map(|port| SocketAddr::from(([192, 0, 2, 1], port))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_success_counts_and_none_waits_for_a_failure() {
        let (begun, addresses) = (Instant::now(), addresses(4));
        let outcome = first_success(&addresses, |address| async move {
            match address.port() {
                1 => std::future::pending().await,
                2 => Err("refused"),
                port => Ok((port, begun.elapsed())),
            }
        });
        assert_eq!(outcome.await, Some(Ok((3, STAGGER * 2))));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_the_last_ones_and_addresses_are_few() {
        let none: Option<Result<(), u16>> =
            first_success(&[], |address| async move { Err(address.port()) }).await;
        assert_eq!(none, None);
        let tried = std::cell::Cell::new(0);
        let outcome: Option<Result<(), u16>> = first_success(&addresses(40), |address| {
            tried.set(tried.get() + 1);
            async move { Err(address.port()) }
        })
        .await;
        assert_eq!((outcome, tried.get()), (Some(Err(8)), MAX_ATTEMPTS));
    }
}
