//! Names on this host: our DNS server, and the host's resolver that is pointed at it.
//!
//! The overlay works by address without them. So what fails here stops nothing: `status` says so, and it is
//! tried again, since whoever has the server's port may let go of it, and a disk that is full may have room.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::{DnsConfig, ResolverChoice};
use crate::dns::{DnsServer, Resolver, Zone};
use crate::resolver::follow::SharedResolver;
use crate::resolver::{Host, HostResolver};
use crate::state::StateDir;

/// Between two attempts, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// The same, where each may write to the disk: a file that may never be edited stays so.
const SELDOM: Duration = Duration::from_secs(3_600);

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

    /// Serves as soon as the address can be had, and points the host's resolver at the server as soon as that
    /// can be done, where they are not; and follows what else is done to the host's resolver, for as long
    /// as it is polled.
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
        tokio::select! {
            () = self.follow(&server) => {}
            () = server.watch_for_loops() => {}
        }
    }

    async fn follow(&self, server: &Arc<DnsServer>) {
        self.point_at_last(server).await;
        tokio::select! {
            () = self.host.clone().follow(server.clone()) => {}
            () = self.host.await_resolved(&self.found, server, self.interface) => {
                self.host.clone().follow(server.clone()).await;
            }
        }
    }

    async fn serve_at_last(&self) -> Arc<DnsServer> {
        let mut pauses = Pauses::up_to(LAST_PAUSE);
        loop {
            pauses.next().await;
            if let Some(server) = self.serve().await {
                return server;
            }
        }
    }

    async fn point_at_last(&self, server: &DnsServer) {
        let mut pauses = Pauses::up_to(match self.config.resolver {
            // It is only asked.
            ResolverChoice::SystemdResolved => LAST_PAUSE,
            ResolverChoice::Auto | ResolverChoice::ResolvConf | ResolverChoice::None => SELDOM,
        });
        while let Some(before) = self.host.failure() {
            pauses.next().await;
            self.point_at(server).await;
            match self.host.failure() {
                None => tracing::info!("the host's resolver knows the overlay's names now"),
                Some(why) if why != before => pauses.shorten(),
                Some(_) => {}
            }
        }
    }
}

/// Between attempts, each twice as long as the one before.
struct Pauses {
    next: Duration,
    most: Duration,
}

impl Pauses {
    fn up_to(most: Duration) -> Self {
        Self { next: FIRST_PAUSE, most }
    }

    async fn next(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = self.next.saturating_mul(2).min(self.most);
    }

    /// Something has changed: more may, soon.
    fn shorten(&mut self) {
        self.next = self.next.min(LAST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::Ipv6Addr;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::UNIX_EPOCH;

    use futures_util::future::BoxFuture;
    use tokio::net::UnixListener;
    use tokio::time::Instant;
    use tracing::Level;

    use super::*;
    use crate::dns::ResolveError;
    use crate::resolver::resolved::Bus;

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

    fn names(dir: &Path, listen: &str, resolver: ResolverChoice, bus: Bus) -> Names {
        Names {
            config: DnsConfig { listen: listen.parse().unwrap(), resolver, ..DnsConfig::default() },
            state: StateDir::open(&dir.join("state")).unwrap(),
            zone: Zone::new("cyphonic.internal", "fd12:3456:789a::/48".parse().unwrap()).unwrap(),
            interface: 1,
            engine: Arc::new(Nobody),
            server: SharedServer::default(),
            found: Host {
                resolv_conf: dir.join("resolv.conf"),
                nsswitch: dir.join("nsswitch.conf"),
                hostname: dir.join("hostname"),
                run: dir.join("run"),
                bus,
            },
            host: SharedResolver::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_alike_is_tried_ever_more_rarely_and_what_fails_otherwise_soon() {
        let (begun, mut pauses) = (Instant::now(), Pauses::up_to(SELDOM));
        let mut attempts = 0;
        while begun.elapsed() < 24 * SELDOM {
            pauses.next().await;
            attempts += 1;
        }
        assert!(attempts < 40, "{attempts} in a day");
        pauses.shorten();
        assert_eq!(pauses.next, LAST_PAUSE);
    }

    /// The bus of a host whose resolved does not come: counts who calls.
    #[tokio::test(start_paused = true)]
    async fn a_resolved_that_was_chosen_is_asked_again_soon_since_that_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let bus = UnixListener::bind(path("bus")).unwrap();
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        tokio::spawn(async move {
            while bus.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let address = format!("unix:path={}", path("bus").display());
        let names = names(dir.path(), "127.0.0.78:53", ResolverChoice::SystemdResolved, Bus::At(address));
        let server = names.serve().await.expect("port 53 can be had (this test needs root)");
        names.point_at(&server).await;
        let keeping = tokio::spawn(names.keep(Some(server)));
        tokio::time::sleep(SELDOM).await;
        let calls = calls.load(Ordering::Relaxed);
        assert!((60..1_000).contains(&calls), "{calls} in an hour");
        keeping.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_cannot_be_pointed_at_us_is_tried_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let log = fs::File::create(path("log")).unwrap();
        let _listening = tracing::subscriber::set_default(
            tracing_subscriber::fmt()
                .with_ansi(false)
                .with_max_level(Level::INFO)
                .with_writer(Arc::new(log))
                .finish(),
        );
        // Alone, it would not be asked of what other tests' threads log first.
        let _another = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
        fs::write(path("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        // A folder in the way of the file aside, whoever runs the test.
        fs::create_dir(path("resolv.conf.cyphonic")).unwrap();
        let nobody = Bus::At("unix:path=/nonexistent".into());
        let names = names(dir.path(), "127.0.0.77:53", ResolverChoice::ResolvConf, nobody);
        let host = names.host.clone();
        let server = names.serve().await.expect("port 53 can be had (this test needs root)");
        let journal = names.state.resolver_dir();
        fs::File::open(&journal).unwrap().set_modified(UNIX_EPOCH).unwrap();
        names.point_at(&server).await;
        let keeping = tokio::spawn(names.keep(Some(server)));
        tokio::time::sleep(24 * SELDOM).await;
        assert!(host.standing().await.trouble.is_some(), "the folder is still in the way");
        assert_eq!(fs::metadata(&journal).unwrap().modified().unwrap(), UNIX_EPOCH, "nothing was written");
        let told = fs::read_to_string(path("log")).unwrap();
        assert_eq!(told.lines().filter(|line| line.contains(" cyphonic_agent::")).count(), 1, "{told}");
        fs::remove_dir(path("resolv.conf.cyphonic")).unwrap();
        let pointed = async {
            while host.standing().await.trouble.is_some() {
                tokio::time::sleep(FIRST_PAUSE).await;
            }
        };
        tokio::time::timeout(2 * SELDOM, pointed).await.expect("it is tried again");
        assert!(fs::read_to_string(path("resolv.conf")).unwrap().contains("nameserver 127.0.0.77\n"));
        keeping.abort();
        host.restore().await;
        assert_eq!(fs::read_to_string(path("resolv.conf")).unwrap(), "nameserver 192.0.2.1\n");
    }
}
