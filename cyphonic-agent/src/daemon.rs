//! The life of the daemon: up in order, down in the reverse order, whatever happens in between.
//!
//! 1. [`privileges`]: keep the few capabilities that are used (in `main`, before there are threads).
//! 2. Lock the state directory; undo what a crashed predecessor left in the host's resolver.
//! 3. Enrol, if the device is not and a token is there. An unreachable cloud is waited for; systemd is told
//!    to go on, and the control socket says why nothing else works.
//! 4. Start the engine: UDP port, virtual interface, ring, node. It needs no cloud to start.
//! 5. Serve DNS, then the control socket, then point the host's resolver at it and follow who else does. Tell
//!    systemd. Where DNS cannot be served (another server has the port), go on without, and try again. Where the
//!    device stands for a machine, carry on to that what peers open, instead of all that.
//! 6. Read the settings again as often as somebody asks for it. Wait for a signal, for `cyphonic down`, or for
//!    the engine to fail.
//! 7. Resolver first (programs stop asking us), then DNS and control, then the engine and its interface.

mod enrolment;
mod launch;
mod names;
pub mod privileges;
mod served;
mod waiting;
mod watchdog;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cyphonic_dataplane::memory;
use cyphonic_proto::address::Prefix;
use cyphonic_proto::identity::Identity;
use cyphonic_transport::signals::{Asked, StopSignals};
use futures_util::future::BoxFuture;
pub use launch::{LaunchError, block_on, launch, start_logging};
use names::{Names, SharedServer};
use sd_notify::NotifyState;
use served::{Purpose, Served};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use waiting::Waiting;

use crate::adapter::{Adapter, Offering};
use crate::config::{Config, instance};
use crate::control::{self, Backend, ControlError, ControlServer, Settings};
use crate::dns::{InvalidZone, Resolver, Zone};
use crate::enrol::EnrolError;
use crate::netlink::{Netlink, NetlinkError};
use crate::resolver::follow::SharedResolver;
use crate::resolver::{self, Host, ResolverError};
use crate::state::{DeviceIdentity, StateDir, StateError};

/// What the engine gets.
#[derive(Debug)]
pub struct EngineInputs {
    /// All settings.
    pub config: Config,
    /// Who this device is.
    pub identity: DeviceIdentity,
    /// Where the node's cached state and the UDP port are kept.
    pub state: StateDir,
    /// To configure the interface and to learn the host's addresses.
    pub netlink: Arc<Netlink>,
}

/// A running engine, as the daemon sees it.
pub struct RunningEngine {
    /// Answers DNS.
    pub resolver: Arc<dyn Resolver>,
    /// Answers the control socket.
    pub backend: Arc<dyn Backend>,
    /// Where the device stands for a machine: allows peers to open these services at most.
    pub offering: Offering,
    /// The overlay's DNS zone.
    pub zone: String,
    /// The overlay's prefix.
    pub prefix: Prefix,
    /// The virtual interface's number.
    pub interface: u32,
    /// Resolves, with the reason, when the engine cannot go on.
    pub failed: BoxFuture<'static, String>,
    /// Closes the tunnels, tells the services, and takes the interface down.
    pub stop: BoxFuture<'static, ()>,
}

/// Runs until told to stop.
///
/// `start_engine` starts the engine; it is given by the binary, so that the parts around it can be tested
/// without one.
///
/// # Errors
///
/// Says which part could not start, or why the engine failed. Everything that was started is stopped then,
/// and the host is as it was.
pub async fn run<F, E>(settings: Settings, start_engine: F) -> Result<(), DaemonError>
where
    F: AsyncFnOnce(EngineInputs) -> Result<RunningEngine, E>,
    E: std::fmt::Display,
{
    let mut signals = StopSignals::listen(&format!("systemctl restart {}", instance::unit()))
        .map_err(DaemonError::Signals)?;
    let settings = Arc::new(settings);
    let config = settings.started_with();
    let state = StateDir::open(&config.state_dir)?;
    let _lock = state.lock()?;
    clean_up_resolver(&state);
    let waiting = Arc::new(Waiting::default());
    let identity = tokio::select! {
        identity = enrolment::identity(&state, &settings, &waiting) => identity?,
        () = signals.received() => return Ok(()),
        () = waiting.asked_to_stop() => return Ok(()),
        () = watchdog::watch(&*waiting) => return Ok(()),
    };
    let netlink = Arc::new(Netlink::connect()?);
    let device = Identity::from_der(identity.leaf()).ok();
    let config = settings.latest();
    let stands_for = config.stands_for.clone().zip(device.as_ref().and_then(|device| device.virtual_address));
    let inputs = EngineInputs { config, identity, state: state.clone(), netlink };
    let engine = start_engine(inputs).await.map_err(|error| DaemonError::Engine(error.to_string()))?;
    let RunningEngine { resolver, backend, offering, zone, prefix, interface, failed, stop: stop_engine } =
        engine;
    let alive = backend.clone();
    let around = match stands_for {
        Some((machine, own)) => {
            let adapter = Arc::new(Adapter::start(own, machine, offering));
            let around = Surroundings::of(&settings, backend, Purpose::Machine(adapter.clone())).await;
            around.map(|around| Surroundings { adapter: Some(adapter), ..around })
        }
        None => {
            let zone = Zone::new(&zone, prefix).map(|zone| match &device {
                Some(device) if settings.started_with().dns.short_names => zone.searched_by(&device.fqdn),
                _ => zone,
            });
            Surroundings::for_programs(&settings, &state, (zone, interface), resolver, backend).await
        }
    };
    let outcome = match around {
        Ok(around) => {
            notify(&[
                NotifyState::Ready,
                NotifyState::Status(&format!("running: `{} status` tells more", instance::command())),
            ]);
            tracing::info!("ready");
            let given_back = tokio::spawn(give_back_start_up());
            let outcome = tokio::select! {
                () = obey(&mut signals, &settings, &*alive) => Ok(()),
                () = around.asked_to_stop.notified() => Ok(()),
                reason = failed => Err(DaemonError::Engine(reason)),
                () = watchdog::watch(&*alive) => Ok(()),
            };
            given_back.abort();
            notify(&[NotifyState::Stopping]);
            tracing::info!("stopping");
            around.stop().await;
            outcome
        }
        Err(error) => Err(error),
    };
    stop_engine.await;
    outcome
}

/// Reads the settings again as often as a signal says so; returns when one says stop.
async fn obey(signals: &mut StopSignals, settings: &Settings, backend: &dyn Backend) {
    while signals.next().await == Asked::ToReadAgain {
        settings.reload_and_log(backend).await;
    }
}

/// When the agent is usually registered, and what it took to start has served its purpose.
const STARTED: Duration = Duration::from_secs(5);

/// Gives memory back that only starting needed.
async fn give_back_start_up() {
    tokio::time::sleep(STARTED).await;
    match tokio::task::spawn_blocking(memory::give_back_start_up).await {
        Ok(Ok(code)) => tracing::debug!(code, "gave back what starting took"),
        Ok(Err(error)) => tracing::debug!(%error, "the memory that starting took stays"),
        Err(error) => tracing::debug!(%error, "the memory that starting took stays"),
    }
}

/// Undoes what a daemon that died did to the host's resolver. Where it cannot, the overlay works all the
/// same.
fn clean_up_resolver(state: &StateDir) {
    match resolver::restore_after_crash(state) {
        Ok(true) => tracing::info!("the host's resolver configuration was restored"),
        Ok(false) => {}
        Err(error) => tracing::error!(%error, "the host's resolver configuration could not be restored"),
    }
}

/// Undoes what a daemon that died did to the host's resolver, and removes its virtual interface where that
/// outlived it, with its address and routes, whatever it was called: `cyphonicd cleanup`, which systemd runs
/// after every stop. The state directory is to be locked. True if anything was left.
///
/// # Errors
/// Either could not be done. The other was tried all the same.
pub async fn clean_up_host(state: &StateDir, config: &Config) -> Result<bool, CleanUpError> {
    let restored = resolver::restore_after_crash(state);
    match (restored, remove_interface(state, config).await) {
        (Ok(restored), Ok(removed)) => Ok(restored || removed),
        (Err(error), Ok(_)) => Err(error.into()),
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(resolver), Err(interface)) => Err(CleanUpError::Both(resolver, interface)),
    }
}

/// One of the kernel's kind that goes with its process (TUN) is gone already.
async fn remove_interface(state: &StateDir, config: &Config) -> Result<bool, NetlinkError> {
    let netlink = Netlink::connect()?;
    let own = netlink.remove_pairs_of(state.id()).await? | remove_rules(&netlink, state).await?;
    // One of an older release, or of a state directory that was restored since.
    Ok(netlink.remove_pair(&config.interface).await? || own)
}

/// That of an agent which stood for a machine.
async fn remove_rules(netlink: &Netlink, state: &StateDir) -> Result<bool, NetlinkError> {
    // Who has no identity, or one that is damaged, has not got so far.
    match state.identity().ok().flatten().and_then(|identity| identity.address()) {
        Some(address) => netlink.remove_rules(address).await,
        None => Ok(false),
    }
}

/// What stands between the engine and the host's programs.
struct Surroundings {
    resolver: SharedResolver,
    // Aborted when dropped.
    names: JoinSet<()>,
    adapter: Option<Arc<Adapter>>,
    _control: ControlServer,
    asked_to_stop: Arc<Notify>,
}

impl Surroundings {
    /// Names for the host's programs, with what belongs to that.
    async fn for_programs(
        settings: &Arc<Settings>,
        state: &StateDir,
        (zone, interface): (Result<Zone, InvalidZone>, u32),
        engine: Arc<dyn Resolver>,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, DaemonError> {
        let (resolver, server) = (SharedResolver::default(), SharedServer::default());
        let names = Names {
            config: settings.started_with().dns.clone(),
            state: state.clone(),
            zone: zone?,
            interface,
            engine,
            server: server.clone(),
            found: Host::default(),
            host: resolver.clone(),
        };
        let dns = names.serve().await;
        let purpose = Purpose::Programs { dns: server, resolver: resolver.clone() };
        let mut around = Self::of(settings, backend, purpose).await?;
        // Last, because nothing after it can fail.
        if let Some(dns) = &dns {
            names.point_at(dns).await;
        }
        around.names.spawn(names.keep(dns));
        Ok(Self { resolver, ..around })
    }

    /// The control socket.
    async fn of(
        settings: &Arc<Settings>,
        backend: Arc<dyn Backend>,
        purpose: Purpose,
    ) -> Result<Self, DaemonError> {
        let asked_to_stop = Arc::new(Notify::new());
        let served = Arc::new(Served::new(backend, asked_to_stop.clone(), purpose));
        let socket = &settings.started_with().socket;
        let control = ControlServer::start(socket, control::group(), served, settings.clone()).await?;
        Ok(Self {
            resolver: SharedResolver::default(),
            names: JoinSet::new(),
            adapter: None,
            _control: control,
            asked_to_stop,
        })
    }

    async fn stop(mut self) {
        // First, so that nothing is done to the host's resolver after it was put back.
        self.names.shutdown().await;
        if let Some(adapter) = &self.adapter {
            adapter.close().await;
        }
        self.resolver.restore().await;
    }
}

/// Tells systemd, where it listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// What a daemon that died left on the host, and why.
#[derive(Debug, thiserror::Error)]
pub enum CleanUpError {
    /// Its edit of the host's resolver.
    #[error(
        "the host's resolver configuration could not be restored: {0}; `{again} cleanup` tries again, and so does the next start",
        again = instance::daemon()
    )]
    Resolver(#[from] ResolverError),
    /// Its virtual interface.
    #[error("the virtual interface could not be removed: {0}; `{again} cleanup` tries again", again = instance::daemon())]
    Interface(#[from] NetlinkError),
    /// Both.
    #[error(
        "neither the host's resolver configuration could be restored ({0}) nor the virtual interface removed ({1}): \
         `{again} cleanup` tries again",
        again = instance::daemon()
    )]
    Both(ResolverError, NetlinkError),
}

/// Why the daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Enrolment.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// Not enrolled, and nothing to enrol with.
    #[error("{0}")]
    NotEnrolled(String),
    /// Not enrolled yet, and systemd hands over another token at the next start only.
    #[error("there is another token in {}: it comes with the next start", store.display())]
    OtherToken {
        /// Where.
        store: PathBuf,
    },
    /// Netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The overlay's zone.
    #[error(transparent)]
    Zone(#[from] InvalidZone),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The engine.
    #[error("{0}")]
    Engine(String),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
}
