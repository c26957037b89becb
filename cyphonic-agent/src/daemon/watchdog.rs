//! systemd's watchdog (`WatchdogSec=`): it ends and starts again a daemon that says nothing for that long.
//!
//! A sign of life is only worth what it proves, so the engine is asked first: the runtime turns, and the
//! engine's loop, which tunnels and DNS depend on, comes to the question behind all that waits for it. It is
//! not asked for its status, which is work.

use std::time::Duration;

use sd_notify::NotifyState;

use super::notify;
use crate::control::Backend;

/// One part of the limit passes between a sign and the next question, another while its answer is waited for.
/// So a hung engine is warned of at half the limit, and asked once more before the end.
const PARTS: u32 = 4;

/// Gives signs of life for as long as the engine does, and never ends.
pub(super) async fn watch(backend: &dyn Backend) {
    match sd_notify::watchdog_enabled() {
        Some(limit) => give_signs(limit / PARTS, backend, || notify(&[NotifyState::Watchdog])).await,
        None => std::future::pending().await,
    }
}

async fn give_signs(every: Duration, backend: &dyn Backend, sign: impl Fn()) {
    loop {
        match tokio::time::timeout(every, backend.is_alive()).await {
            Ok(true) => sign(),
            Ok(false) => tracing::warn!("the engine has ended: systemd is told nothing"),
            Err(_) => {
                tracing::warn!(
                    waited_s = every.as_secs(),
                    "the engine does not answer: systemd is told nothing"
                );
            }
        }
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::config::Reloadable;
    use crate::control::{BackendError, ResetTarget, StatusReport};
    use crate::dns::ResolveError;

    #[derive(Default)]
    struct Engine {
        asked: AtomicU32,
        hangs: AtomicBool,
        has_stopped: AtomicBool,
    }

    impl Backend for Engine {
        fn status(&self) -> BoxFuture<'_, StatusReport> {
            unreachable!("a report is more than a sign of life needs")
        }

        fn is_alive(&self) -> BoxFuture<'_, bool> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(async {
                if self.hangs.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                !self.has_stopped.load(Ordering::Relaxed)
            })
        }

        fn zone(&self) -> &str {
            ""
        }

        fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
            Box::pin(std::future::pending())
        }

        fn reset(&self, _: ResetTarget) -> BoxFuture<'_, Result<usize, BackendError>> {
            Box::pin(std::future::pending())
        }

        fn take_over(&self, _: Reloadable) -> BoxFuture<'_, Result<(), BackendError>> {
            Box::pin(std::future::pending())
        }

        fn shutdown(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::pending())
        }
    }

    /// Until a counter is that much higher, however long the machine takes for it.
    async fn grows(counter: &AtomicU32, by: u32) -> u32 {
        let enough = counter.load(Ordering::Relaxed) + by;
        while counter.load(Ordering::Relaxed) < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        counter.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_hung_engine_is_asked_twice_and_warned_of_before_systemd_ends_it() {
        let limit = Duration::from_secs(60);
        let engine = Engine::default();
        let (hung, asked_before) = (&engine.hangs, AtomicU32::new(0));
        let signs = give_signs(limit / PARTS, &engine, || {
            asked_before.store(engine.asked.load(Ordering::Relaxed), Ordering::Relaxed);
            // It hangs from its first sign of life on, the latest that systemd hears of it.
            hung.store(true, Ordering::Relaxed);
        });
        // What the warning waits for is over at half the limit: the second question comes after it.
        tokio::time::timeout(limit - Duration::from_secs(1), signs).await.expect_err("it never ends");
        assert_eq!(engine.asked.load(Ordering::Relaxed), asked_before.load(Ordering::Relaxed) + 2);
    }

    #[tokio::test]
    async fn signs_of_life_stop_when_the_engine_hangs_and_come_back_with_it() {
        let (engine, signs) = (Engine::default(), AtomicU32::new(0));
        let watched = give_signs(Duration::from_millis(2), &engine, || {
            signs.fetch_add(1, Ordering::Relaxed);
        });
        let during = async {
            let alive = grows(&signs, 3).await;
            engine.hangs.store(true, Ordering::Relaxed);
            // What was asked before it hung may still be answered.
            grows(&engine.asked, 1).await;
            let hung = signs.load(Ordering::Relaxed);
            assert!(hung >= alive);
            grows(&engine.asked, 3).await;
            assert_eq!(signs.load(Ordering::Relaxed), hung);
            engine.has_stopped.store(true, Ordering::Relaxed);
            engine.hangs.store(false, Ordering::Relaxed);
            grows(&engine.asked, 3).await;
            assert_eq!(signs.load(Ordering::Relaxed), hung, "nobody is left to answer for");
            engine.has_stopped.store(false, Ordering::Relaxed);
            grows(&signs, 2).await;
        };
        tokio::select! {
            () = watched => unreachable!("it never ends"),
            () = during => {}
        }
    }
}
