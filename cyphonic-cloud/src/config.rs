//! The cloud's configuration: one commented YAML file, read once, checked whole before anything starts.
//!
//! A key that is unknown, missing or of the wrong form is an error that names the key and its line; what two
//! keys say together is checked afterwards and named by key. Relative paths are relative to the file.

mod access;
mod file;
mod relay;
mod stun;
mod template;
mod value;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use cyphonic_proto::access::OverlayRule;
use cyphonic_transport::logging::LogFilter;
use cyphonic_transport::settings;
use serde::Deserialize;

pub use self::relay::RelayConfig;
pub use self::stun::StunConfig;
pub use self::template::Template;
pub use self::value::{
    DEFAULT_PORT, parse_address, parse_label, parse_listen, parse_rate, parse_service, parse_token_lifetime,
};
use crate::network::Network;
use crate::pki::{ServiceFiles, service_name};

/// Where the configuration is looked for when nobody says.
pub const DEFAULT_PATH: &str = "/var/lib/cyphonic-cloud/cloud.yaml";

/// A service that a process can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceRole {
    /// Authentication Service.
    As,
    /// Node Management Service.
    Nms,
    /// Tunnel Relay Service.
    Trs,
}

impl ServiceRole {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::As, Self::Nms, Self::Trs];
}

impl fmt::Display for ServiceRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::As => "as",
            Self::Nms => "nms",
            Self::Trs => "trs",
        })
    }
}

/// Whether a process also listens on TCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TcpMode {
    /// Where no other program does.
    #[default]
    Auto,
    /// Always; else it does not start.
    On,
    /// Never.
    Off,
}

impl FromStr for TcpMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            other => Err(format!("{other:?} is none of auto, on and off")),
        }
    }
}

/// A relay or a standby that devices are told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAddresses {
    /// Its short name, such as `trs1`.
    pub name: String,
    /// Where devices reach it.
    pub addresses: Vec<SocketAddr>,
}

impl FromStr for ServiceAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_service(text)
    }
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The overlay.
    pub network: Network,
    /// What this process runs.
    pub roles: BTreeSet<ServiceRole>,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Whether it also listens on TCP there, for devices whose network passes no UDP.
    pub tcp: TcpMode,
    /// Where devices reach it.
    pub public: Vec<SocketAddr>,
    /// Where devices reach the NMS.
    pub nms_addresses: Vec<SocketAddr>,
    /// All relays that the NMS may use.
    pub relays: Vec<ServiceAddresses>,
    /// NMSs on other machines that stand in for this one.
    pub standbys: Vec<ServiceAddresses>,
    /// The NMS's own short name.
    pub nms_name: String,
    /// Where the NMS is that this one stands in for, if it does.
    pub follows: Option<Vec<SocketAddr>>,
    /// This process's own short name, if it is a relay.
    pub relay_name: String,
    /// How it forwards, if it is a relay.
    pub relay: RelayConfig,
    /// From where it answers STUN besides.
    pub stun: StunConfig,
    /// The register (AS and NMS).
    pub register: Option<PathBuf>,
    /// The root's certificate.
    pub root: PathBuf,
    /// The devices' authority (AS).
    pub devices_authority: Option<ServiceFiles>,
    /// The services' own certificates.
    pub certificates: Certificates,
    /// How long a device's certificate is valid.
    pub device_certificate_lifetime: Duration,
    /// How long a token can be used unless `token create --ttl` says otherwise.
    pub token_lifetime: Duration,
    /// Who may open what at which devices (NMS); `None`: nothing is restricted. Read again by a running NMS.
    pub access: Option<Vec<OverlayRule>>,
    /// Where services tell commands what they do. Not in the file: who starts the process says so.
    pub runtime_directory: Option<PathBuf>,
    /// What is logged.
    pub log: LogFilter,
}

/// Certificate and key of each role that has one here.
#[derive(Debug, Clone, Default)]
pub struct Certificates {
    /// Of the AS.
    pub authentication: Option<ServiceFiles>,
    /// Of the NMS.
    pub management: Option<ServiceFiles>,
    /// Of the TRS.
    pub relay: Option<ServiceFiles>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file, no permission, or not UTF-8.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not YAML, or a key is unknown, missing or malformed. The message has key and line.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: serde_yaml::Error,
    },
    /// Keys that do not go together.
    #[error("{}: {key}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The key to change.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    /// Whether it stays so until somebody changes the configuration.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Read { source, .. } => settings::needs_a_person(source),
            Self::Syntax { .. } | Self::Invalid { .. } => true,
        }
    }
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// If it cannot be used; the message is for the one who wrote it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks a configuration's text; `path` is where it came from.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: file::File = serde_yaml::from_str(text)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        file.check(directory).map_err(|(key, reason)| ConfigError::Invalid {
            path: path.to_owned(),
            key,
            reason,
        })
    }

    /// Whether this process runs the role.
    pub fn runs(&self, role: ServiceRole) -> bool {
        self.roles.contains(&role)
    }

    /// The certificate name of the service with this short name.
    pub fn service_fqdn(&self, name: &str) -> String {
        service_name(name, &self.network.zone)
    }
}
