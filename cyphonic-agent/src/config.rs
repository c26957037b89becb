//! `agent.yaml`: read once, checked whole, never written by the daemon.
//!
//! Every key has a default, so that the smallest useful file names only the cloud. Unknown keys are errors that name
//! their line: a misspelt key that is silently ignored is a setting that silently does not apply. Command line flags
//! and their environment variables ([`Overrides`]) win over the file. Nothing here is reloaded while the daemon runs.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Instant,
};

use cyphonic_transport::logging::LogFilter;
use cyphonic_transport::settings;
use serde::{Deserialize, Serialize};

use crate::complaints::Complaints;

mod awake;
mod mtu;
mod packets;
mod relay;

pub use awake::{InvalidWindow, KeepAwake};
pub use mtu::{InvalidMtu, Mtu};
pub use packets::{InvalidWorkers, RingChoice, UnderlayChoice, Workers};
pub use relay::{PortMapping, RelayConfig};

/// Where the daemon looks for its configuration unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/cyphonic/agent.yaml";

/// What `cyphonicd config example` prints: every key with its default and its meaning.
pub const EXAMPLE: &str = include_str!("config/example.yaml");

/// The port of AS, NMS and TRS where none is named: firewalls let QUIC's through.
pub const DEFAULT_CLOUD_PORT: u16 = 443;

/// A configuration file larger than this is not one.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Interface names the kernel accepts have at most 15 bytes (`IFNAMSIZ` counts the final zero).
const MAX_INTERFACE_BYTES: usize = 15;

/// The daemon's settings. The meaning of each is documented for its user in [`EXAMPLE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Key, certificates, cached state.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Addresses of the AS.
    #[serde(deserialize_with = "one_or_many")]
    pub cloud: Vec<CloudAddress>,
    /// A file with an enrolment token, used when the device is not enrolled.
    pub token_file: Option<PathBuf>,
    /// The virtual interface's name.
    pub interface: String,
    /// The node's UDP port.
    pub port: u16,
    /// The zone's server and the host's resolver.
    pub dns: DnsConfig,
    /// The most that a tunnel's inner MTU is raised to.
    pub mtu: Mtu,
    /// Which encapsulation ring.
    pub ring: RingChoice,
    /// Where the ring `xdp` receives outside.
    pub underlay: UnderlayChoice,
    /// How many workers carry packets.
    pub workers: Workers,
    /// Whether processors stay awake after packets.
    pub keep_awake: KeepAwake,
    /// Which relays tunnels may go through.
    pub relay: RelayConfig,
    /// Whether the gateway is asked to let the node's port in.
    pub port_mapping: PortMapping,
    /// Whether the eBPF programs tell the log what they drop.
    pub log_drops: bool,
    /// Peers whose tunnels stay.
    pub keep_open: Vec<String>,
    /// What to log.
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/cyphonic"),
            socket: PathBuf::from("/run/cyphonic/cyphonic.sock"),
            cloud: Vec::new(),
            token_file: None,
            interface: "cyph0".to_owned(),
            port: 0,
            dns: DnsConfig::default(),
            mtu: Mtu::Auto,
            ring: RingChoice::Auto,
            underlay: UnderlayChoice::Auto,
            workers: Workers::Auto,
            keep_awake: KeepAwake::Off,
            relay: RelayConfig::default(),
            port_mapping: PortMapping::Auto,
            log_drops: false,
            keep_open: Vec::new(),
            log: "info".to_owned(),
        }
    }
}

/// Settings of the DNS server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsConfig {
    /// Where the zone is served. Not 127.0.0.53 or .54: systemd-resolved listens on both.
    pub listen: SocketAddr,
    /// How the host's resolver learns of it.
    pub resolver: ResolverChoice,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 55], 53)), resolver: ResolverChoice::Auto }
    }
}

/// How the host's resolver is pointed at the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResolverChoice {
    /// systemd-resolved where it runs, otherwise `/etc/resolv.conf`.
    Auto,
    /// systemd-resolved or failure.
    SystemdResolved,
    /// Edit `/etc/resolv.conf`.
    ResolvConf,
    /// Leave the host alone.
    None,
}

/// Settings that flags and environment variables put over the file's.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Overrides {
    /// Directory of the device's key and state.
    #[arg(long, global = true, env = "CYPHONIC_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The control socket.
    #[arg(long, global = true, env = "CYPHONIC_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Address of the AS (HOST or HOST:PORT), several separated by commas.
    #[arg(long, global = true, env = "CYPHONIC_CLOUD", value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub cloud: Vec<CloudAddress>,
    /// File that holds an enrolment token.
    #[arg(long, global = true, env = "CYPHONIC_TOKEN_FILE", value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// Name of the virtual interface.
    #[arg(long, global = true, env = "CYPHONIC_INTERFACE", value_name = "NAME")]
    pub interface: Option<String>,
    /// The node's UDP port; 0 lets the kernel choose once.
    #[arg(long, global = true, env = "CYPHONIC_PORT", value_name = "PORT")]
    pub port: Option<u16>,
    /// Where the zone's DNS server listens.
    #[arg(long, global = true, env = "CYPHONIC_DNS_LISTEN", value_name = "ADDR:PORT")]
    pub dns_listen: Option<SocketAddr>,
    /// The most that a tunnel's inner MTU is raised to: `auto` or 1280 to 8942.
    #[arg(long, global = true, env = "CYPHONIC_MTU", value_name = "BYTES")]
    pub mtu: Option<Mtu>,
    /// The packet path.
    #[arg(long, global = true, env = "CYPHONIC_RING", value_enum, value_name = "RING")]
    pub ring: Option<RingChoice>,
    /// Where the ring `xdp` receives tunnels' packets outside.
    #[arg(long, global = true, env = "CYPHONIC_UNDERLAY", value_enum, value_name = "UNDERLAY")]
    pub underlay: Option<UnderlayChoice>,
    /// Workers that carry packets: `auto` or a number.
    #[arg(long, global = true, env = "CYPHONIC_WORKERS", value_name = "N")]
    pub workers: Option<Workers>,
    /// How long processors stay awake after packets: `off`, or a time as `50ms`.
    #[arg(long, global = true, env = "CYPHONIC_KEEP_AWAKE", value_name = "TIME")]
    pub keep_awake: Option<KeepAwake>,
    /// Whether the eBPF programs tell the log what they drop.
    #[arg(long, global = true, env = "CYPHONIC_LOG_DROPS", value_name = "BOOL")]
    pub log_drops: Option<bool>,
    /// What to log, as `info` or `info,cyphonic_proto=debug`.
    #[arg(long, global = true, env = "CYPHONIC_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

impl Config {
    /// Reads a file, puts `overrides` over it and checks the whole. A missing file is an error only if
    /// `must_exist`: with flags alone the daemon can run without one.
    ///
    /// # Errors
    ///
    /// Names the file, and for a mistake in it the line.
    pub fn load(path: &Path, must_exist: bool, overrides: &Overrides) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut config = match std::fs::metadata(path) {
            Ok(meta) if meta.len() > MAX_FILE_BYTES => {
                return Err(ConfigError::TooLarge { path: path.to_owned(), bytes: meta.len() });
            }
            Ok(_) => Self::parse(&std::fs::read_to_string(path).map_err(read)?)
                .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => Self::default(),
            Err(error) => return Err(read(error)),
        };
        config.apply(overrides);
        config.check()?;
        Ok(config)
    }

    /// Parses without checking values against each other. A file of comments alone is the default.
    fn parse(text: &str) -> Result<Self, serde_yaml::Error> {
        Ok(serde_yaml::from_str::<Option<Self>>(text)?.unwrap_or_default())
    }

    fn apply(&mut self, over: &Overrides) {
        fn set<T: Clone>(slot: &mut T, value: Option<&T>) {
            if let Some(value) = value {
                slot.clone_from(value);
            }
        }
        set(&mut self.state_dir, over.state_dir.as_ref());
        set(&mut self.socket, over.socket.as_ref());
        set(&mut self.interface, over.interface.as_ref());
        set(&mut self.port, over.port.as_ref());
        set(&mut self.dns.listen, over.dns_listen.as_ref());
        set(&mut self.mtu, over.mtu.as_ref());
        set(&mut self.ring, over.ring.as_ref());
        set(&mut self.underlay, over.underlay.as_ref());
        set(&mut self.workers, over.workers.as_ref());
        set(&mut self.keep_awake, over.keep_awake.as_ref());
        set(&mut self.log_drops, over.log_drops.as_ref());
        set(&mut self.log, over.log.as_ref());
        if over.token_file.is_some() {
            self.token_file.clone_from(&over.token_file);
        }
        if !over.cloud.is_empty() {
            self.cloud.clone_from(&over.cloud);
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, reason: String| Err(ConfigError::Value { key, reason });
        if !is_interface_name(&self.interface) {
            return wrong(
                "interface",
                format!(
                    "{:?} is no interface name: 1 to {MAX_INTERFACE_BYTES} letters, digits, `-`, `_` or `.`",
                    self.interface
                ),
            );
        }
        if !self.dns.listen.ip().is_loopback() {
            return wrong(
                "dns.listen",
                format!(
                    "{} is not a loopback address: the zone is served to this host only",
                    self.dns.listen
                ),
            );
        }
        if self.dns.resolver == ResolverChoice::ResolvConf && self.dns.listen.port() != 53 {
            return wrong(
                "dns.listen",
                "resolv.conf cannot name a port: with `resolver: resolv-conf` it must be 53".into(),
            );
        }
        for (key, path) in [("state_dir", &self.state_dir), ("socket", &self.socket)] {
            if !path.is_absolute() {
                return wrong(key, format!("{} must be an absolute path", path.display()));
            }
        }
        if let Some(name) = self.keep_open.iter().find(|name| !is_host_name(name)) {
            return wrong(
                "keep_open",
                format!("{name:?} is no device's name, as `press-7` or `press-7.plant`"),
            );
        }
        if let Err(error) = self.log.parse::<LogFilter>() {
            return wrong("log", error.to_string());
        }
        Ok(())
    }
}

fn is_interface_name(name: &str) -> bool {
    (1..=MAX_INTERFACE_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Host (name or address) and port of a cloud service.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CloudAddress {
    host: String,
    port: u16,
}

impl CloudAddress {
    /// The host's name, or its address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its socket address, where the host is an address and no name.
    pub fn literal(&self) -> Option<SocketAddr> {
        self.host.parse().ok().map(|ip| SocketAddr::new(ip, self.port))
    }

    /// Whether it needs no look-up.
    pub fn is_literal(&self) -> bool {
        self.literal().is_some()
    }

    /// Its socket addresses now: one for a literal address, else what the host's resolver answers.
    pub async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect())
    }
}

/// The socket addresses of all `cloud` entries, in order, without duplicates. Names that do not resolve now are left
/// out and logged, once for as long as they do not: another entry may work.
pub(crate) async fn resolve_all(
    cloud: &[CloudAddress],
    complaints: &mut Complaints<CloudAddress>,
) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for entry in cloud {
        match entry.resolve().await {
            Ok(addresses) => {
                if complaints.settle(entry) {
                    tracing::info!(cloud = %entry, "the cloud's name can be resolved again");
                }
                for address in addresses {
                    if !found.contains(&address) {
                        found.push(address);
                    }
                }
            }
            Err(error) if complaints.is_news(Instant::now(), entry.clone(), &error.to_string()) => {
                tracing::warn!(cloud = %entry, %error, "cannot resolve the cloud's name");
            }
            Err(error) => tracing::debug!(cloud = %entry, %error, "cannot resolve the cloud's name"),
        }
    }
    found
}

impl FromStr for CloudAddress {
    type Err = InvalidCloudAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCloudAddress(text.chars().take(80).collect());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err(invalid()),
                port => Ok(Self { host: address.ip().to_string(), port }),
            };
        }
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>() {
            return Ok(Self { host: ip.to_string(), port: DEFAULT_CLOUD_PORT });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|&port| port != 0).ok_or_else(invalid)?),
            None => (text, DEFAULT_CLOUD_PORT),
        };
        if is_host_name(host) { Ok(Self { host: host.to_owned(), port }) } else { Err(invalid()) }
    }
}

fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

impl fmt::Display for CloudAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for CloudAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for CloudAddress {
    type Error = InvalidCloudAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CloudAddress> for String {
    fn from(address: CloudAddress) -> Self {
        address.to_string()
    }
}

/// Not `HOST`, `HOST:PORT`, `ADDRESS:PORT` or `[IPV6]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no cloud address: write HOST, HOST:PORT, 192.0.2.1:443 or [2001:db8::1]:443")]
pub struct InvalidCloudAddress(String);

/// `cloud: host` and `cloud: [host, host]` mean what they look like.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<CloudAddress>, D::Error> {
    struct Visitor;

    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Vec<CloudAddress>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a cloud address or a list of them")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(|address| vec![address]).map_err(E::custom)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut addresses = Vec::new();
            while let Some(address) = seq.next_element()? {
                addresses.push(address);
            }
            Ok(addresses)
        }
    }

    deserializer.deserialize_any(Visitor)
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}; `cyphonicd config example` prints one", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is far larger than any configuration.
    #[error("the configuration {} has {bytes} bytes: at most {MAX_FILE_BYTES} are read", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Not YAML, an unknown key, or a value of the wrong kind. The message names the line.
    #[error("the configuration {} is wrong: {source}{}", path.display(), first_line(source))]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What and where.
        source: serde_yaml::Error,
    },
    /// A value that cannot be meant.
    #[error("the configuration's `{key}` is wrong: {reason}")]
    Value {
        /// Which key.
        key: &'static str,
        /// Why.
        reason: String,
    },
}

impl ConfigError {
    /// Whether it stays so until somebody changes the settings.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Read { source, .. } => settings::needs_a_person(source),
            Self::TooLarge { .. } | Self::Syntax { .. } | Self::Value { .. } => true,
        }
    }
}

/// Where the mistake is at the very beginning, which the library does not tell as it tells other places.
fn first_line(error: &serde_yaml::Error) -> &'static str {
    match error.location() {
        Some(place) if (place.line(), place.column()) == (1, 1) => " at line 1 column 1",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path, true, &Overrides::default())
    }

    #[test]
    fn only_names_have_to_be_looked_up() {
        let cloud = load("cloud: [192.0.2.1, '[2001:db8::1]:4433', cloud.example]").unwrap().cloud;
        let literal: Vec<_> = cloud.iter().map(|c| c.literal().map(|address| address.to_string())).collect();
        assert_eq!(literal, [Some("192.0.2.1:443".into()), Some("[2001:db8::1]:4433".into()), None]);
    }

    #[test]
    fn the_example_is_exactly_the_defaults() {
        assert_eq!(load(EXAMPLE).unwrap(), Config::default());
    }

    #[test]
    fn an_empty_file_and_one_of_comments_are_the_defaults() {
        assert_eq!(load("").unwrap(), Config::default());
        assert_eq!(load("# nothing\n").unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_key_and_line() {
        let error = load("interface: cyph0\nport: 0\ninterfase: x\n").unwrap_err().to_string();
        assert!(error.contains("interfase") && error.contains("line 3"), "{error}");
        let error = load("interfase: x\nport: 0\n").unwrap_err().to_string();
        assert!(error.contains("interfase") && error.ends_with("at line 1 column 1"), "{error}");
        let error = load("dns:\n  listen: 127.0.0.55:53\n  resolve: auto\n").unwrap_err().to_string();
        assert!(error.contains("resolve") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn wrong_values_are_errors_that_say_what_would_be_right() {
        for (text, key) in [
            ("interface: much-too-long-a-name\n", "interface"),
            ("interface: a/b\n", "interface"),
            ("dns: {listen: 192.0.2.1:53}\n", "dns.listen"),
            ("dns: {listen: 127.0.0.55:5353, resolver: resolv-conf}\n", "dns.listen"),
            ("state_dir: here\n", "state_dir"),
            ("log: info,x=loud\n", "log"),
            ("log: inof\n", "log"),
            ("log: ''\n", "log"),
            ("keep_open: ['a b']\n", "keep_open"),
        ] {
            let error = load(text).unwrap_err();
            assert!(matches!(error, ConfigError::Value { key: k, .. } if k == key), "{text}: {error}");
        }
        for text in [
            "port: 70000\n",
            "ring: fast\n",
            "cloud: ['a b']\n",
            "cloud: [x:0]\n",
            "- 1\n",
            "dns: {resolver: yes}\n",
            "a: [\n",
        ] {
            assert!(matches!(load(text), Err(ConfigError::Syntax { .. })), "{text}");
        }
    }

    #[test]
    fn a_huge_file_is_refused_before_it_is_read() {
        assert!(matches!(load(&"#".repeat(70_000)), Err(ConfigError::TooLarge { .. })));
    }

    #[test]
    fn cloud_addresses_have_every_usual_form() {
        for (text, shown) in [
            ("cloud.example", "cloud.example:443"),
            ("cloud.example:8443", "cloud.example:8443"),
            ("192.0.2.1", "192.0.2.1:443"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("2001:db8::1", "[2001:db8::1]:443"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
        ] {
            let config = load(&format!("cloud: '{text}'\n")).unwrap();
            assert_eq!(config.cloud[0].to_string(), shown);
        }
        assert_eq!(load("cloud: [a, b]\n").unwrap().cloud.len(), 2);
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        std::fs::write(&path, "port: 1\ninterface: x0\n").unwrap();
        let overrides = Overrides { port: Some(2), ..Overrides::default() };
        let config = Config::load(&path, true, &overrides).unwrap();
        assert_eq!((config.port, config.interface.as_str()), (2, "x0"));
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_named() {
        let path = Path::new("/nonexistent/agent.yaml");
        assert!(matches!(Config::load(path, true, &Overrides::default()), Err(ConfigError::Read { .. })));
        assert_eq!(Config::load(path, false, &Overrides::default()).unwrap(), Config::default());
    }
}
