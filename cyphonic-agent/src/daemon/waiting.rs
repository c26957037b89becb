//! What the control socket says while the device waits to be enrolled.

use std::net::Ipv6Addr;
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::Notify;

use crate::config::Reloadable;
use crate::control::report::{HealthCheck, Severity};
use crate::control::{Backend, BackendError, ResetTarget, StatusReport};
use crate::dns::ResolveError;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    why: Mutex<String>,
    asked_to_stop: Notify,
}

impl Waiting {
    /// Why the device is not enrolled, and what happens next.
    pub(super) fn set(&self, why: String) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Returns when `cyphonic down` asks for it.
    pub(super) async fn asked_to_stop(&self) {
        self.asked_to_stop.notified().await;
    }

    fn why(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Backend for Waiting {
    fn status(&self) -> BoxFuture<'_, StatusReport> {
        async {
            let check =
                HealthCheck { id: "not-enrolled".into(), severity: Severity::Error, message: self.why() };
            StatusReport { health: vec![check], ..StatusReport::default() }
        }
        .boxed()
    }

    /// There is no engine yet: the runtime turns.
    fn is_alive(&self) -> BoxFuture<'_, bool> {
        ready(true).boxed()
    }

    fn zone(&self) -> &str {
        ""
    }

    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        async { Err(ResolveError::NotConnected(self.why())) }.boxed()
    }

    fn reset(&self, _: ResetTarget) -> BoxFuture<'_, Result<usize, BackendError>> {
        async { Err(BackendError::Unavailable(self.why())) }.boxed()
    }

    fn take_over(&self, _: Reloadable) -> BoxFuture<'_, Result<(), BackendError>> {
        async { Err(BackendError::Unavailable(self.why())) }.boxed()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async { self.asked_to_stop.notify_one() }.boxed()
    }
}
