//! Names on this host: our DNS server, and the host's resolver that is pointed at it.
//!
//! The overlay works by address without them. So what fails here stops nothing: `status` says so, and the server is tried
//! again, since whoever has its port may let go of it.

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

/// Between two attempts to serve, at first and at most.
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
        let found = Host::default();
        let applied = HostResolver::apply(self.config.resolver, &found, server, self.interface, &self.state)
            .await
            .unwrap_or_else(|error| {
                tracing::error!(%error, "names of the overlay will not resolve on this host");
                HostResolver::Untouched { why: error.to_string(), wanted: false }
            });
        self.host.set(applied);
    }

    /// Serves as soon as the address can be had, where that is not done, and follows what else is done to the host's
    /// resolver, for as long as it is polled.
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
        self.host.follow(server).await;
    }

    async fn serve_at_last(&self) -> Arc<DnsServer> {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            if let Some(server) = self.serve().await {
                return server;
            }
            pause = pause.saturating_mul(2).min(LAST_PAUSE);
        }
    }
}
