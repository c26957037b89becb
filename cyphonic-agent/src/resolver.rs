//! Points the host's resolver at our zone, and puts everything back.
//!
//! Two ways, tried in this order unless the configuration forces one (the second also when the first is
//! refused):
//!
//! - [`resolved`]: systemd-resolved gets the zone as a *routing domain* of the virtual interface. Only names
//!   of the overlay come to us, nothing is written to disk, and resolved forgets it all when the interface
//!   goes. What it has forgotten before it is told again; and where it did not answer, it is asked again.
//! - [`resolv_conf`]: `/etc/resolv.conf` can only name servers for everything. So our server becomes the only
//!   one, and relays what is not of the overlay to the servers that stood there. It is the *only* one because
//!   glibc asks the next server after a SERVFAIL: names of the overlay would leak to strangers just when a
//!   tunnel fails.
//!
//! **Invariant:** what was there is in the journal ([`journal`]), on disk, before it is changed; it comes
//! back on stop, on `cyphonicd cleanup` and at the next start. What somebody else writes while we run is what
//! was there from then on ([`follow`]). What they write after that is theirs: it is left alone.

mod edit;
mod elsewhere;
pub mod follow;
pub mod journal;
mod nsswitch;
pub mod resolv_conf;
pub mod resolved;
mod text;

use std::net::SocketAddr;
use std::path::PathBuf;

use resolv_conf::{Look, ResolvConf, ResolvConfError};
use resolved::{Bus, Resolved, ResolvedError};

use crate::config::ResolverChoice;
use crate::dns::DnsServer;
use crate::state::{StateDir, read_bounded};

/// Where the host's resolver configuration is.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The kernel knows no longer ones than 64.
const MAX_HOSTNAME_BYTES: u64 = 256;

/// Where the host's resolver is found.
#[derive(Debug, Clone)]
pub struct Host {
    /// The file that programs read.
    pub resolv_conf: PathBuf,
    /// Where the C library reads whom to ask besides.
    pub nsswitch: PathBuf,
    /// What the kernel calls the host.
    pub hostname: PathBuf,
    /// Where other programs keep what they know of the host's servers.
    pub run: PathBuf,
    /// The bus that systemd-resolved is on.
    pub bus: Bus,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            resolv_conf: RESOLV_CONF.into(),
            nsswitch: "/etc/nsswitch.conf".into(),
            hostname: "/proc/sys/kernel/hostname".into(),
            run: "/run".into(),
            bus: Bus::System,
        }
    }
}

impl Host {
    /// The domain of the host's name, as the C library takes it (resolv.conf(5)).
    fn domain(&self) -> Option<String> {
        let name = read_bounded(&self.hostname, MAX_HOSTNAME_BYTES).ok().flatten()?;
        let (_, domain) = std::str::from_utf8(&name).ok()?.trim().split_once('.')?;
        Some(domain.to_owned()).filter(|domain| !domain.is_empty() && !domain.contains(char::is_whitespace))
    }
}

/// What was done to the host's resolver.
#[derive(Debug)]
pub enum HostResolver {
    /// systemd-resolved knows the zone.
    Resolved {
        /// Where it was told.
        link: Resolved,
        /// The host whose files have programs ask it; nothing where the configuration says so, and nobody
        /// has looked.
        asked_by: Option<Host>,
        /// Why it may know it no longer, or not be asked.
        lost: Option<Lost>,
    },
    /// `/etc/resolv.conf` names our server.
    ResolvConf {
        /// The edited file.
        file: Box<ResolvConf>,
        /// Why systemd-resolved was not used, though this host does.
        because: Option<ResolvedError>,
    },
    /// Nothing, and why.
    Untouched {
        /// For `status`.
        why: String,
        /// Whether that is as configured.
        wanted: bool,
    },
}

/// Why systemd-resolved is of no use, or not to all programs or for all names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    why: String,
    /// Some programs ask it all the same, or for some names.
    in_part: bool,
}

impl HostResolver {
    /// Points the host's resolver at `server`, whose zone hangs on the interface with this index.
    ///
    /// # Errors
    ///
    /// When the chosen way cannot be gone. The host is then as it was.
    pub async fn apply(
        choice: ResolverChoice,
        host: &Host,
        server: &DnsServer,
        interface: u32,
        state: &StateDir,
    ) -> Result<Self, ResolverError> {
        match choice {
            ResolverChoice::None => Ok(Self::Untouched { why: "`resolver: none`".into(), wanted: true }),
            ResolverChoice::SystemdResolved => {
                let link = tell_resolved(host, server, interface).await?;
                Ok(Self::Resolved { link, asked_by: None, lost: None })
            }
            ResolverChoice::ResolvConf => {
                let file = Self::edit(host, server, state)?;
                Ok(Self::ResolvConf { file, because: None })
            }
            ResolverChoice::Auto if !resolved::is_in_use(&host.resolv_conf).await => {
                let mut file = Self::edit(host, server, state)?;
                // Where it comes later, it would ask us and we would ask it.
                file.leave_to(resolved::STUB);
                Ok(Self::ResolvConf { file, because: None })
            }
            ResolverChoice::Auto => match tell_resolved(host, server, interface).await {
                Ok(link) => Ok(Self::Resolved { link, asked_by: Some(host.clone()), lost: None }),
                Err(refused) => match Self::edit(host, server, state) {
                    Ok(file) => {
                        tracing::warn!(error = %refused, "systemd-resolved does not take the zone: resolv.conf names our server");
                        Ok(Self::ResolvConf { file, because: Some(refused) })
                    }
                    Err(error) => Err(ResolverError::Neither { refused, error: Box::new(error) }),
                },
            },
        }
    }

    fn edit(host: &Host, server: &DnsServer, state: &StateDir) -> Result<Box<ResolvConf>, ResolverError> {
        let address = server.address();
        if address.port() != 53 {
            return Err(ResolverError::Port { address });
        }
        let edit = ResolvConf::prepare(host, &state.resolver_dir(), address.ip())?;
        let edit = edit.searching(server.zone().searched());
        // First, so that no query is refused between the edit and this.
        server.set_upstream(Some(edit.upstream()));
        match edit.apply() {
            Ok(file) => Ok(Box::new(file)),
            Err(error) => {
                server.set_upstream(None);
                Err(error.into())
            }
        }
    }

    /// Puts everything back. Failures are logged: there is nobody left to handle them.
    pub async fn restore(self) {
        match self {
            Self::Resolved { link, .. } => {
                if let Err(error) = link.revert().await {
                    tracing::warn!(%error, "systemd-resolved was not told; it forgets with the interface");
                }
            }
            Self::ResolvConf { file, .. } => {
                if let Err(error) = file.restore() {
                    tracing::error!(
                        %error,
                        "the host's resolver configuration could not be restored: `cyphonicd cleanup` tries again"
                    );
                }
            }
            Self::Untouched { .. } => {}
        }
    }

    /// Its name in `status`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Resolved { .. } => "systemd-resolved",
            Self::ResolvConf { .. } => "resolv-conf",
            Self::Untouched { .. } => "none",
        }
    }

    /// What `status` says about it.
    pub fn why(&self) -> String {
        match self {
            Self::Resolved { lost: None, .. } => "the overlay's zone only, over D-Bus".into(),
            Self::Resolved { lost: Some(lost), .. } => lost.why.clone(),
            Self::ResolvConf { file, because } => {
                let path = file.path().display();
                let state = match taken_away(file) {
                    Ok(None) => format!(
                        "{path} names our server only; other names are relayed to {}",
                        in_words(file.upstream().servers())
                    ),
                    Ok(Some(taken)) => taken,
                    Err(error) => format!("whether {path} still names our server is not known: {error}"),
                };
                match because {
                    Some(because) => format!("{state} ({because})"),
                    None => state,
                }
            }
            Self::Untouched { why, .. } => why.clone(),
        }
    }

    /// Why names of the overlay do not resolve on this host, though they should.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Untouched { wanted: true, .. } => None,
            Self::Resolved { lost: Some(Lost { why, in_part: false }), .. } => Some(why.clone()),
            Self::Resolved { .. } => None,
            // Not to know is no trouble yet.
            Self::ResolvConf { file, .. } => taken_away(file).unwrap_or_default(),
            Self::Untouched { why, wanted: false } => Some(why.clone()),
        }
    }

    /// Why some programs do not resolve names of the overlay, or none does some names.
    pub fn gap(&self) -> Option<String> {
        match self {
            Self::Resolved { lost: Some(Lost { why, in_part: true }), .. } => Some(why.clone()),
            Self::Resolved { .. } | Self::ResolvConf { .. } | Self::Untouched { .. } => None,
        }
    }

    /// Why the host may not be left as it was found, or other names may not resolve.
    pub fn doubt(&self) -> Option<String> {
        match self {
            Self::ResolvConf { file, .. } => file.doubt(),
            Self::Resolved { .. } | Self::Untouched { .. } => None,
        }
    }

    /// Whether the host uses systemd-resolved, which did not answer when it was told of the zone.
    fn waits_for_resolved(&self) -> bool {
        match self {
            Self::ResolvConf { file, because: Some(because) } => {
                because.may_pass() && file.stood_for(resolved::STUB)
            }
            Self::Resolved { .. } | Self::ResolvConf { .. } | Self::Untouched { .. } => false,
        }
    }

    /// Makes up for what other programs have done since, and tells the server whom to relay to.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written.
    pub fn follow(&mut self, server: &DnsServer) -> Result<Look, ResolverError> {
        let Self::ResolvConf { file, .. } = self else { return Ok(Look::Quiet) };
        let look = file.follow()?;
        if let Look::Servers(upstream) | Look::Taken(upstream) = &look {
            server.set_upstream(Some(upstream.clone()));
        }
        Ok(look)
    }
}

async fn tell_resolved(host: &Host, server: &DnsServer, interface: u32) -> Result<Resolved, ResolvedError> {
    Resolved::apply(&host.bus, interface, server.address(), &server.zone().domains()).await
}

/// The host's own servers, for people.
fn in_words(servers: &[SocketAddr]) -> String {
    if servers.is_empty() {
        return "nobody: the host's own servers are not known".into();
    }
    servers.iter().map(|server| server.ip().to_string()).collect::<Vec<_>>().join(", ")
}

/// Who has the file, if it is not ours.
fn taken_away(file: &ResolvConf) -> Result<Option<String>, ResolvConfError> {
    if file.is_intact()? {
        return Ok(None);
    }
    let path = file.path().display();
    Ok(Some(if file.is_left() {
        format!("systemd-resolved has taken {path} over since: `systemctl restart cyphonicd` uses it")
    } else {
        format!("{path} was changed by someone else; it is made ours again in a moment")
    }))
}

/// Puts back what a daemon that died left behind. True if there was something.
pub fn restore_after_crash(state: &StateDir) -> Result<bool, ResolverError> {
    Ok(journal::restore_journal(&state.resolver_dir())?)
}

/// Why the host's resolver could not be pointed at our zone.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// systemd-resolved.
    #[error(transparent)]
    Resolved(#[from] ResolvedError),
    /// `/etc/resolv.conf`.
    #[error(transparent)]
    ResolvConf(#[from] ResolvConfError),
    /// Both, one after the other.
    #[error("{refused}; and without it: {error}")]
    Neither {
        /// Why not systemd-resolved.
        refused: ResolvedError,
        /// Why not `/etc/resolv.conf` either.
        error: Box<Self>,
    },
    /// `/etc/resolv.conf` cannot name a port.
    #[error(
        "resolv.conf cannot name a port, and the DNS server listens on {address}: set `dns: listen:` to port 53; where another DNS \
         server of this host has that, set `dns: resolver: none` and have it ask {address} for the overlay's zone"
    )]
    Port {
        /// Where the server listens.
        address: SocketAddr,
    },
}
