//! The engine's backend, and what only the daemon knows.

use std::{
    net::Ipv6Addr,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::Notify;

use crate::{
    control::{
        Backend, BackendError, ResetTarget, StatusReport,
        report::{DnsReport, HealthCheck, Severity},
    },
    dns::{DnsServer, ResolveError},
    resolver::HostResolver,
};

pub(super) struct Served {
    engine: Arc<dyn Backend>,
    dns: Arc<DnsServer>,
    asked_to_stop: Arc<Notify>,
    resolver: Mutex<(String, String)>,
}

impl Served {
    pub(super) fn new(engine: Arc<dyn Backend>, dns: Arc<DnsServer>, asked_to_stop: Arc<Notify>) -> Self {
        let starting = ("none".to_owned(), "starting".to_owned());
        Self { engine, dns, asked_to_stop, resolver: Mutex::new(starting) }
    }

    pub(super) fn set_resolver(&self, resolver: &HostResolver) {
        *self.resolver.lock().unwrap_or_else(PoisonError::into_inner) =
            (resolver.kind().to_owned(), resolver.why());
    }

    fn dns_report(&self) -> DnsReport {
        let (resolver, why) = self.resolver.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stats = self.dns.stats();
        DnsReport {
            listen: Some(self.dns.address()),
            resolver,
            why,
            queries: stats.queries,
            failures: stats.failures,
            relayed: stats.relayed,
        }
    }
}

impl Backend for Served {
    fn status(&self) -> BoxFuture<'_, StatusReport> {
        async {
            let mut report = self.engine.status().await;
            report.dns = self.dns_report();
            if report.dns.resolver == "none" && report.dns.why != "`resolver: none`" {
                report.health.push(HealthCheck {
                    id: "resolver".into(),
                    severity: Severity::Error,
                    message: format!("names of the overlay do not resolve on this host: {}", report.dns.why),
                });
            }
            report
        }
        .boxed()
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        self.engine.resolve(name)
    }

    fn reset(&self, target: ResetTarget) -> BoxFuture<'_, Result<usize, BackendError>> {
        self.engine.reset(target)
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async {
            self.engine.shutdown().await;
            self.asked_to_stop.notify_one();
        }
        .boxed()
    }
}
