//! Sockets, clock and threads for the services.
//!
//! ```text
//! UDP port ── relay worker (thread) ── data packets ──► forwarded by the relay's map
//!                 └─ everything else ─► QUIC endpoint ─► accepted connections, by ALPN:
//!                                          enrolment, AS ─► authentication::Service (blocking pool)
//!                                          NMS ─► one task that owns the `Nms` machine
//!                                          TRS ─► one task that owns the `Trs` machine ─► the relay's map
//! register ── watch (polls) ─► revocations and enrolments to NMS and TRS, whoever wrote them
//! ```
//!
//! Each machine belongs to one task and hears of the world by a bounded channel; nothing here decides
//! anything.

mod access;
mod admission;
mod authentication;
mod clock;
mod condemned;
mod credentials;
mod datagrams;
mod error;
mod expiry;
mod kept;
mod management;
mod newest;
mod port;
mod relay;
mod renewal;
mod rounds;
mod seen;
mod sessions;
mod standby;
mod stun;
mod watch;
mod whereabouts;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use cyphonic_proto::alpn;
use cyphonic_transport::Transport;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use self::authentication::{AuthenticationServer, load_authority};
pub use self::clock::{rfc3339, unix_now};
use self::credentials::{Loaded, load_credentials};
pub use self::error::StartError;
pub use self::expiry::{Standing, Term};
pub use self::kept::{Attendance, Companions, Content, Online, Presence, Relayed, read_kept};
use self::management::{ManagementServer, RulesAreGone, kept_facts};
use self::port::Port;
use self::relay::RelayServer;
use self::renewal::{Keeper, load_renewed};
use self::seen::Seen;
pub use self::standby::Following;
use self::standby::{Follower, Followers, KeptFacts, Places};
use self::watch::Watch;
use crate::config::{Config, ServiceRole};
use crate::register::Register;

/// The running services of one process.
pub struct Cloud {
    ports: Vec<Port>,
    tasks: JoinSet<()>,
    failures: mpsc::Receiver<String>,
    reloader: Reloader,
    register: Option<Arc<Register>>,
    seen: Option<Arc<Seen>>,
}

/// What running services take over without a restart.
#[derive(Clone)]
pub struct Reloader {
    certificates: Arc<Notify>,
    management: Option<ManagementServer>,
}

impl Reloader {
    /// Has the services' certificates looked after now instead of within a day: what is due is renewed where
    /// that is possible, what is new on disk is taken into use. Returns before it is done.
    pub fn look_after_certificates(&self) {
        self.certificates.notify_one();
    }

    /// Takes over of a configuration what can be taken over, the access rules, and says whether they are
    /// others. Returns before devices are told.
    ///
    /// # Errors
    /// There were rules, and are none.
    pub fn take_over(&self, config: &Config) -> Result<bool, RulesAreGone> {
        self.management.as_ref().map_or(Ok(false), |management| management.restrict(config.access.clone()))
    }
}

/// The services that an accepted connection may be for.
#[derive(Clone, Default)]
struct Services {
    authentication: Option<Arc<AuthenticationServer>>,
    management: Option<ManagementServer>,
    /// Answers those that stand in for the NMS.
    followers: Option<Followers>,
    relay: Option<RelayServer>,
}

impl Cloud {
    /// Starts the roles of a configuration. Returns once all its addresses accept connections.
    ///
    /// # Errors
    /// If anything needed is missing or refused; nothing keeps running then.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let loaded = load_renewed(config, unix_now())?;
        loaded.check_terms(unix_now())?;
        let register = open_register(config)?;
        if let Some(register) = &register {
            let notes = condemned::notes(&register.condemned()?, unix_now());
            notes.iter().for_each(|note| tracing::warn!("{note}"));
        }
        let (failure_sender, failures) = mpsc::channel(8);
        let mut ports = Vec::new();
        let mut tasks = JoinSet::new();
        let started = start_all(config, loaded, register.as_ref(), &mut ports, &mut tasks, &failure_sender);
        let reloader = match started {
            Ok(reloader) => reloader,
            Err(error) => {
                // A program on a network card would go on without anybody.
                tasks.shutdown().await;
                for port in ports {
                    port.transport().shutdown("the service does not start").await;
                    port.close().await;
                }
                return Err(error);
            }
        };
        let seen = reloader.management.as_ref().map(ManagementServer::seen);
        Ok(Self { ports, tasks, failures, reloader, register, seen })
    }

    /// By which it takes over what it can.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Waits until something that the services cannot live without has failed, and says what.
    pub async fn failed(&mut self) -> String {
        tokio::select! {
            failure = self.failures.recv() => failure.unwrap_or_else(|| "all ports are closed".to_owned()),
            ended = self.tasks.join_next() => match ended {
                Some(Err(error)) => format!("a service ended: {error}"),
                Some(Ok(())) | None => "a service ended".to_owned(),
            },
        }
    }

    /// Tells every device that the services stop, then stops them.
    pub async fn shutdown(mut self) {
        for port in &self.ports {
            port.transport().shutdown("the service stops").await;
        }
        self.tasks.shutdown().await;
        if let Some(seen) = &self.seen {
            seen.finish();
        }
        if let Some(Err(error)) = self.register.as_ref().map(|register| register.gather()) {
            tracing::warn!(%error, "the register's latest changes stay in the file beside it");
        }
        for port in self.ports {
            port.close().await;
        }
    }
}

/// What is to be said of a configuration that [`Cloud::start`] would not refuse.
#[derive(Debug)]
pub struct Checked {
    /// From when to when the services' certificates are valid. Those that have ended are refused all the
    /// same.
    pub terms: Vec<Term>,
    /// What would not be as the configuration says.
    pub notes: Vec<String>,
}

/// Looks whether [`Cloud::start`] would find what it needs: files, keys, register and interfaces. Opens no
/// port, and changes nothing.
///
/// # Errors
/// If it would not start.
pub fn check(config: &Config) -> Result<Checked, StartError> {
    let loaded = load_credentials(config)?;
    loaded.server_tls()?;
    let is_lost_copy = |path: &&PathBuf| config.follows.is_some() && !path.exists();
    let register = config.register.as_ref().filter(|path| !is_lost_copy(path));
    let inside = register.map(|path| Register::check(path, config.network.prefix));
    let inside = inside.transpose()?.unwrap_or_default();
    // After the register, which knows better what is wrong with a prefix.
    if config.runs(ServiceRole::As) {
        load_authority(config, &loaded.root)?;
    }
    let mut notes = Vec::new();
    if config.runs(ServiceRole::Trs) {
        for address in &config.listen {
            notes.extend(port::check_xdp(config, address.ip())?);
        }
        notes.dedup();
    }
    notes.extend(condemned::notes(&inside.condemned, unix_now()));
    notes.extend(access::notes(config, &inside.names));
    Ok(Checked { terms: loaded.terms, notes })
}

/// From when to when the certificates of this machine's services are valid.
///
/// # Errors
/// If one cannot be loaded.
pub fn terms(config: &Config) -> Result<Vec<Term>, StartError> {
    Ok(load_credentials(config)?.terms)
}

/// Opens the ports and starts the services; what it opened before it failed is the caller's to end.
fn start_all(
    config: &Config,
    loaded: Loaded,
    register: Option<&Arc<Register>>,
    ports: &mut Vec<Port>,
    tasks: &mut JoinSet<()>,
    failures: &mpsc::Sender<String>,
) -> Result<Reloader, StartError> {
    for address in &config.listen {
        ports.push(Port::open(*address, config, &loaded, failures.clone())?);
    }
    let certificates = ports.iter().map(|port| port.certificates(config.network.id)).collect();
    let mut keeper = Keeper::new(config.clone(), certificates, loaded.terms.clone());
    let asked = Arc::new(Notify::new());
    let keep = move |now| keeper.keep(now);
    tasks.spawn(expiry::announce(keep, Arc::clone(&asked), unix_now, expiry::log));
    let services = start_services(config, loaded, register.cloned(), ports, tasks)?;
    for port in ports.iter() {
        tasks.spawn(accept(port.transport(), services.clone()));
    }
    Ok(Reloader { certificates: asked, management: services.management })
}

fn open_register(config: &Config) -> Result<Option<Arc<Register>>, StartError> {
    let needed = config.runs(ServiceRole::As) || config.runs(ServiceRole::Nms);
    match &config.register {
        // A copy that is lost is made anew.
        Some(path) if config.follows.is_some() && !path.exists() => {
            Ok(Some(Arc::new(Register::create(path)?)))
        }
        Some(path) => Ok(Some(Arc::new(Register::open_for(path, config.network.prefix)?))),
        None if needed => Err(StartError::NoRegister),
        None => Ok(None),
    }
}

fn start_services(
    config: &Config,
    loaded: Loaded,
    register: Option<Arc<Register>>,
    ports: &[Port],
    tasks: &mut JoinSet<()>,
) -> Result<Services, StartError> {
    let mut services = Services::default();
    let mut watch = None;
    let keys = loaded.trs_keys();
    if let (Some(register), Some(path)) = (&register, &config.register) {
        // A connection of its own, so that it also sees what this process's AS writes.
        let mut started = Watch::new(Register::open(path)?)?;
        if config.runs(ServiceRole::As) {
            let server = AuthenticationServer::new(config, loaded, Arc::clone(register), started.nudge())?;
            services.authentication = Some(Arc::new(server));
        }
        if config.runs(ServiceRole::Nms) {
            let management = ManagementServer::start(config, Arc::clone(register), &mut started, tasks)?;
            if let (Some(main), Some(port)) = (&config.follows, ports.first()) {
                let places = Places {
                    config: config.clone(),
                    transport: port.transport(),
                    kept: KeptFacts::beside(path),
                    nudge: started.nudge(),
                };
                start_following(places, main, register, &management, tasks)?;
            } else {
                services.followers = Some(start_being_followed(config, register, &management, tasks));
            }
            services.management = Some(management);
        }
        watch = Some(started);
    }
    if let (Some(keys), Some(port)) = (keys, ports.first()) {
        services.relay = Some(RelayServer::start(config, register, watch.as_ref(), port, keys, tasks)?);
    }
    if let Some(watch) = watch {
        tasks.spawn(watch.run());
    }
    Ok(services)
}

/// Copies the register and stands in where that is needed.
fn start_following(
    places: Places,
    main: &[SocketAddr],
    register: &Arc<Register>,
    management: &ManagementServer,
    tasks: &mut JoinSet<()>,
) -> Result<(), StartError> {
    let (directory, network) = (places.config.runtime_directory.clone(), places.config.network.id);
    let has_copy = register.is_whole_copy()? && kept_facts(&places.config).is_some();
    let follower =
        Arc::new(Follower::new(places, main.to_vec(), Arc::clone(register), management.shared(), has_copy));
    if let Some(directory) = directory {
        let follower = Arc::clone(&follower);
        tasks.spawn(kept::keep(directory, network, move || Companions::Follows(follower.following())));
    }
    tasks.spawn(follower.run());
    Ok(())
}

/// Lets others copy the register.
fn start_being_followed(
    config: &Config,
    register: &Arc<Register>,
    management: &ManagementServer,
    tasks: &mut JoinSet<()>,
) -> Followers {
    let names = config.standbys.iter().map(|standby| config.service_fqdn(&standby.name));
    let followers = Followers::new(names, Arc::clone(register), management.shared());
    if let Some(directory) = config.runtime_directory.clone().filter(|_| !config.standbys.is_empty()) {
        let followers = followers.clone();
        tasks.spawn(kept::keep(directory, config.network.id, move || {
            Companions::Standbys(followers.following())
        }));
    }
    followers
}

/// Gives each accepted connection to its service.
async fn accept(transport: Arc<Transport>, services: Services) {
    while let Some(incoming) = transport.accept().await {
        let connection = incoming.connection;
        match (incoming.alpn.as_slice(), &services) {
            (alpn::AS | alpn::ENROL, Services { authentication: Some(server), .. }) => {
                tokio::spawn(Arc::clone(server).serve(connection));
            }
            (alpn::NMS, Services { management: Some(server), .. }) => server.connected(connection).await,
            (alpn::STANDBY, Services { followers: Some(followers), .. }) => {
                tokio::spawn(followers.clone().serve(connection));
            }
            (alpn::TRS, Services { relay: Some(server), .. }) => server.connected(connection).await,
            // The endpoint negotiates only what this process serves.
            _ => connection.close(cyphonic_proto::close::NOT_ALLOWED, "not served here"),
        }
    }
}
