//! Names on this host: our DNS server, and the host's resolver that is pointed at it.
//!
//! The overlay works by address without them. So what fails here stops nothing: `status` says so, and it is tried again, since
//! whoever has the server's port may let go of it, and a disk that is full may have room.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    config::DnsConfig,
    dns::{DnsServer, Resolver, Zone},
    resolver::{Host, HostResolver, follow::SharedResolver},
    state::StateDir,
};

/// Between two attempts, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// The server, or why there is none: one task starts it, `status` asks for it.
#[derive(Debug, Clone)]
pub(super) struct SharedServer(Arc<Mutex<Result<Arc<DnsServer>, String>>>);

impl Default for SharedServer {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Err("starting".into()))))
    }
}

impl SharedServer {
    /// How it is now.
    pub(super) fn get(&self) -> Result<Arc<DnsServer>, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This came of an attempt. True if the one before came to something else.
    pub(super) fn set(&self, outcome: Result<Arc<DnsServer>, String>) -> bool {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = present.as_ref().err() != outcome.as_ref().err();
        *present = outcome;
        is_news
    }
}

/// What it takes to have names resolved.
pub(super) struct Names {
    pub(super) config: DnsConfig,
    pub(super) state: StateDir,
    pub(super) zone: Zone,
    /// The virtual interface's number.
    pub(super) interface: u32,
    /// The engine.
    pub(super) engine: Arc<dyn Resolver>,
    pub(super) server: SharedServer,
    /// Where the host's resolver is.
    pub(super) found: Host,
    /// What was done to it.
    pub(super) host: SharedResolver,
}

impl Names {
    /// Serves DNS, if the address can be had.
    pub(super) async fn serve(&self) -> Option<Arc<DnsServer>> {
        match DnsServer::start(self.config.listen, self.zone.clone(), self.engine.clone()).await {
            Ok(server) => {
                let server = Arc::new(server);
                self.server.set(Ok(server.clone()));
                Some(server)
            }
            Err(error) => {
                let error = error.to_string();
                if self.server.set(Err(error.clone())) {
                    tracing::error!(
                        error,
                        "names of the overlay do not resolve on this host: will try again"
                    );
                }
                None
            }
        }
    }

    /// Points the host's resolver at the server.
    pub(super) async fn point_at(&self, server: &DnsServer) {
        let (choice, before) = (self.config.resolver, self.host.failure());
        let applied = HostResolver::apply(choice, &self.found, server, self.interface, &self.state)
            .await
            .unwrap_or_else(|error| {
                let why = error.to_string();
                if before.as_ref() != Some(&why) {
                    tracing::error!(
                        error = why,
                        "names of the overlay do not resolve on this host: will try again"
                    );
                }
                HostResolver::Untouched { why, wanted: false }
            });
        self.host.set(applied);
    }

    /// Serves as soon as the address can be had, and points the host's resolver at the server as soon as that can be done, where
    /// they are not; and follows what else is done to the host's resolver, for as long as it is polled.
    pub(super) async fn keep(self, served: Option<Arc<DnsServer>>) {
        let server = match served {
            Some(server) => server,
            None => {
                let server = self.serve_at_last().await;
                tracing::info!(address = %server.address(), "DNS is served now");
                self.point_at(&server).await;
                server
            }
        };
        self.point_at_last(&server).await;
        tokio::select! {
            () = self.host.clone().follow(server.clone()) => {}
            () = self.host.await_resolved(&self.found, &server, self.interface) => {
                self.host.follow(server).await;
            }
        }
    }

    async fn serve_at_last(&self) -> Arc<DnsServer> {
        let mut pauses = Pauses::default();
        loop {
            pauses.next().await;
            if let Some(server) = self.serve().await {
                return server;
            }
        }
    }

    async fn point_at_last(&self, server: &DnsServer) {
        let mut pauses = Pauses::default();
        while self.host.failure().is_some() {
            pauses.next().await;
            self.point_at(server).await;
            if self.host.failure().is_none() {
                tracing::info!("the host's resolver knows the overlay's names now");
            }
        }
    }
}

/// Between attempts, each twice as long as the one before.
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    async fn next(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = self.0.saturating_mul(2).min(LAST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::Ipv6Addr};

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::{config::ResolverChoice, dns::ResolveError, resolver::resolved::Bus};

    /// Knows no name.
    struct Nobody;

    impl Resolver for Nobody {
        fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
            Box::pin(async { Err(ResolveError::NoSuchPeer) })
        }

        fn name_of(&self, _: Ipv6Addr) -> Option<String> {
            None
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_cannot_be_pointed_at_us_is_tried_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        // A folder in the way of the file aside, whoever runs the test.
        fs::create_dir(path("resolv.conf.cyphonic")).unwrap();
        let host = SharedResolver::default();
        let names = Names {
            config: DnsConfig {
                listen: "127.0.0.77:53".parse().unwrap(),
                resolver: ResolverChoice::ResolvConf,
            },
            state: StateDir::open(&path("state")).unwrap(),
            zone: Zone::new("cyphonic.internal", "fd12:3456:789a::/48".parse().unwrap()).unwrap(),
            interface: 1,
            engine: Arc::new(Nobody),
            server: SharedServer::default(),
            found: Host {
                resolv_conf: path("resolv.conf"),
                run: path("run"),
                bus: Bus::At("unix:path=/nonexistent".into()),
            },
            host: host.clone(),
        };
        let server = names.serve().await.expect("port 53 can be had (this test needs root)");
        names.point_at(&server).await;
        let keeping = tokio::spawn(names.keep(Some(server)));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(host.standing().await.trouble.is_some(), "the folder is still in the way");
        fs::remove_dir(path("resolv.conf.cyphonic")).unwrap();
        tokio::time::sleep(LAST_PAUSE).await;
        let pointed = async {
            while host.standing().await.trouble.is_some() {
                tokio::time::sleep(FIRST_PAUSE).await;
            }
        };
        tokio::time::timeout(LAST_PAUSE, pointed).await.expect("it is tried again");
        assert!(fs::read_to_string(path("resolv.conf")).unwrap().contains("nameserver 127.0.0.77\n"));
        keeping.abort();
        host.restore().await;
        assert_eq!(fs::read_to_string(path("resolv.conf")).unwrap(), "nameserver 192.0.2.1\n");
    }
}
