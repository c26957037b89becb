//! The engine's backend, and what only the daemon knows.

use std::net::Ipv6Addr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::names::SharedServer;
use crate::adapter::Adapter;
use crate::config::Reloadable;
use crate::control::report::{DnsReport, HealthCheck, Severity};
use crate::control::{Backend, BackendError, ResetTarget, StatusReport};
use crate::dns::{DnsStats, ResolveError};
use crate::resolver::follow::SharedResolver;

pub(super) struct Served {
    engine: Arc<dyn Backend>,
    asked_to_stop: Arc<Notify>,
    purpose: Purpose,
}

/// What the daemon is on this host for.
pub(super) enum Purpose {
    /// That its programs reach peers by name.
    Programs { dns: SharedServer, resolver: SharedResolver },
    /// That peers reach a machine beside it.
    Machine(Arc<Adapter>),
}

impl Served {
    pub(super) fn new(engine: Arc<dyn Backend>, asked_to_stop: Arc<Notify>, purpose: Purpose) -> Self {
        Self { engine, asked_to_stop, purpose }
    }
}

impl Backend for Served {
    fn status(&self) -> BoxFuture<'_, StatusReport> {
        async {
            let mut report = self.engine.status().await;
            match &self.purpose {
                Purpose::Programs { dns, resolver } => tell_of_names(&mut report, dns, resolver).await,
                Purpose::Machine(adapter) => tell_of_machine(&mut report, adapter),
            }
            report
        }
        .boxed()
    }

    fn is_alive(&self) -> BoxFuture<'_, bool> {
        self.engine.is_alive()
    }

    fn zone(&self) -> &str {
        self.engine.zone()
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        self.engine.resolve(name)
    }

    fn reset(&self, target: ResetTarget) -> BoxFuture<'_, Result<usize, BackendError>> {
        self.engine.reset(target)
    }

    fn take_over(&self, settings: Reloadable) -> BoxFuture<'_, Result<(), BackendError>> {
        self.engine.take_over(settings)
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async {
            self.engine.shutdown().await;
            self.asked_to_stop.notify_one();
        }
        .boxed()
    }
}

async fn tell_of_names(report: &mut StatusReport, dns: &SharedServer, resolver: &SharedResolver) {
    // In the order in which they come.
    let served = dns.get();
    let standing = resolver.standing().await;
    let stats = served.as_ref().map_or_else(|_| DnsStats::default(), |server| server.stats());
    report.dns = DnsReport {
        listen: served.as_ref().ok().map(|server| server.address()),
        resolver: standing.kind.to_owned(),
        why: if served.is_ok() { standing.why } else { "there is no server to point it at".into() },
        queries: stats.queries,
        failures: stats.failures,
        relayed: stats.relayed,
    };
    let leading_back = served.as_ref().ok().and_then(|server| server.leading_back());
    // While nothing is served the host's resolver is pointed nowhere: that is no trouble of its own.
    let trouble = match served {
        Err(why) => Some(("dns-not-served", why)),
        Ok(_) => standing.trouble.map(|trouble| ("resolver", trouble)),
    };
    if let Some((id, trouble)) = trouble {
        report.health.push(HealthCheck {
            id: id.into(),
            severity: Severity::Error,
            message: format!("names of the overlay do not resolve on this host: {trouble}"),
        });
    }
    if let Some(gap) = standing.gap {
        report.health.push(HealthCheck {
            id: "resolver".into(),
            severity: Severity::Warning,
            message: format!("names of the overlay do not resolve for all programs of this host: {gap}"),
        });
    }
    if let Some(leading_back) = leading_back {
        report.health.push(HealthCheck {
            id: "resolver".into(),
            // Names of the overlay resolve.
            severity: Severity::Warning,
            message: leading_back.to_string(),
        });
    }
    if let Some(message) = standing.doubt {
        let (id, severity) = ("resolver-original".into(), Severity::Warning);
        report.health.push(HealthCheck { id, severity, message });
    }
}

fn tell_of_machine(report: &mut StatusReport, adapter: &Adapter) {
    let why = "this agent stands for a machine, and serves no names to its host".to_owned();
    report.dns = DnsReport { resolver: "none".to_owned(), why, ..DnsReport::default() };
    report.stands_for = Some(adapter.report());
    report.health.extend(adapter.health());
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;

    use super::*;
    use crate::dns::{DnsServer, Resolver, Upstream, Zone};
    use crate::resolver::resolv_conf::ResolvConf;
    use crate::resolver::{Host, HostResolver};

    struct Engine;

    impl Resolver for Engine {
        fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
            Box::pin(std::future::pending())
        }

        fn name_of(&self, _: Ipv6Addr) -> Option<String> {
            None
        }
    }

    impl Backend for Engine {
        fn status(&self) -> BoxFuture<'_, StatusReport> {
            Box::pin(async { StatusReport::default() })
        }

        fn is_alive(&self) -> BoxFuture<'_, bool> {
            Box::pin(async { true })
        }

        fn zone(&self) -> &str {
            "cyphonic.internal"
        }

        fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
            Resolver::resolve(self, name)
        }

        fn reset(&self, _: ResetTarget) -> BoxFuture<'_, Result<usize, BackendError>> {
            Box::pin(std::future::pending())
        }

        fn take_over(&self, _: Reloadable) -> BoxFuture<'_, Result<(), BackendError>> {
            Box::pin(std::future::pending())
        }

        fn shutdown(&self) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }
    }

    #[tokio::test]
    async fn status_tells_how_the_resolver_stands_when_it_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let host = |server: &str| std::fs::write(&file, format!("nameserver {server}\n")).unwrap();
        host("192.0.2.1");
        let zone = Zone::new("cyphonic.internal", "fd12:3456:789a::/48".parse().unwrap()).unwrap();
        let dns = DnsServer::start("127.0.0.1:0".parse().unwrap(), zone, Arc::new(Engine)).await.unwrap();
        let (resolver, server) = (SharedResolver::default(), SharedServer::default());
        let purpose = Purpose::Programs { dns: server.clone(), resolver: resolver.clone() };
        let served = Served::new(Arc::new(Engine), Arc::default(), purpose);
        server.set(Err("the address is taken".into()));
        let taken = served.status().await;
        let [check] = &taken.health[..] else { panic!("{:?}", taken.health) };
        assert_eq!((check.id.as_str(), check.severity), ("dns-not-served", Severity::Error));
        assert!(check.message.contains("the address is taken") && taken.dns.listen.is_none());
        let address = dns.address();
        server.set(Ok(Arc::new(dns)));
        let starting = served.status().await;
        assert_eq!((starting.dns.resolver.as_str(), starting.health.len()), ("none", 1));
        assert_eq!((starting.dns.listen, starting.health[0].id.as_str()), (Some(address), "resolver"));
        let found = Host { resolv_conf: file.clone(), run: dir.path().join("run"), ..Host::default() };
        let own = [127, 0, 0, 55].into();
        let edit = ResolvConf::prepare(&found, dir.path(), own).unwrap().apply().unwrap();
        resolver.set(HostResolver::ResolvConf { file: Box::new(edit), because: None });
        let applied = served.status().await;
        assert_eq!((applied.dns.resolver.as_str(), applied.health.len()), ("resolv-conf", 0));
        assert!(applied.dns.why.contains("relayed to 192.0.2.1"), "{}", applied.dns.why);
        host("203.0.113.1");
        let taken = served.status().await;
        let [check] = &taken.health[..] else { panic!("{:?}", taken.health) };
        assert_eq!((check.id.as_str(), check.severity), ("resolver", Severity::Error));
        assert!(check.message.contains("changed by someone else") && taken.dns.why.contains("changed"));
        resolver.restore().await;
        let stopping = served.status().await;
        assert_eq!((stopping.dns.resolver.as_str(), stopping.health.len()), ("none", 0));
        // As after a crash whose journal somebody has removed.
        host("127.0.0.55");
        let edit = ResolvConf::prepare(&found, dir.path(), own).unwrap().apply().unwrap();
        resolver.set(HostResolver::ResolvConf { file: Box::new(edit), because: None });
        let doubtful = served.status().await;
        let [check] = &doubtful.health[..] else { panic!("{:?}", doubtful.health) };
        assert_eq!((check.id.as_str(), check.severity), ("resolver-original", Severity::Warning));
    }

    #[tokio::test]
    async fn status_tells_of_a_server_that_asks_us_in_turn() {
        let zone = Zone::new("cyphonic.internal", "fd12:3456:789a::/48".parse().unwrap()).unwrap();
        let dns = DnsServer::start("127.0.0.1:0".parse().unwrap(), zone, Arc::new(Engine)).await.unwrap();
        // Ours under another name.
        let IpAddr::V4(own) = dns.address().ip() else { panic!("it listens on IPv4") };
        let again = SocketAddr::new(own.to_ipv6_mapped().into(), dns.address().port());
        dns.set_upstream(Some(Upstream::new([again], dns.address())));
        let found = async {
            while dns.leading_back().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = dns.watch_for_loops() => {}
            () = found => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("it asks itself"),
        }
        let (resolver, server) = (SharedResolver::default(), SharedServer::default());
        resolver.set(HostResolver::Untouched { why: "`resolver: none`".into(), wanted: true });
        server.set(Ok(Arc::new(dns)));
        let purpose = Purpose::Programs { dns: server, resolver };
        let report = Served::new(Arc::new(Engine), Arc::default(), purpose).status().await;
        let [check] = &report.health[..] else { panic!("{:?}", report.health) };
        assert_eq!((check.id.as_str(), check.severity), ("resolver", Severity::Warning));
        assert!(check.message.contains("asks this agent in turn"), "{}", check.message);
    }
}
