//! `agent.yaml`: read once, checked whole, never written by the daemon.
//!
//! Every key has a default, so that the smallest useful file names only the cloud. Unknown keys are errors
//! that name their line: a misspelt key that is silently ignored is a setting that silently does not apply.
//! Command line flags and their environment variables ([`Overrides`]) win over the file. Of what is read
//! again while the daemon runs, it takes over what is [`Reloadable`].

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cyphonic_proto::access::{AccessRule, MAX_OWN_RULES};
use cyphonic_proto::name::canonical;
use cyphonic_proto::node::MAX_KEPT_OPEN;
use cyphonic_transport::logging::LogFilter;
use cyphonic_transport::settings::{self, written};
use serde::{Deserialize, Serialize};

mod access;
mod awake;
mod cloud;
mod enrol_as;
pub mod instance;
mod mtu;
mod packets;
mod relay;
mod reloadable;
mod stands_for;

pub use access::WrittenRule;
pub use awake::{InvalidWindow, KeepAwake};
pub(crate) use cloud::resolve_all;
pub use cloud::{CloudAddress, DEFAULT_CLOUD_PORT, InvalidCloudAddress};
pub use enrol_as::{EnrolAs, HostFact, InvalidName};
pub use instance::{Instance, InvalidInstance};
pub use mtu::{InvalidMtu, Mtu};
pub use packets::{InvalidWorkers, RingChoice, UnderlayChoice, Workers};
pub use relay::{PortMapping, RelayConfig};
pub use reloadable::Reloadable;
pub use stands_for::{Carried, InvalidOffer, MAX_OFFERED_PORTS, Offer, OfferedPort, StandsFor};

/// Where the daemon looks for its configuration unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/cyphonic/agent.yaml";

/// What `cyphonicd config example` prints: every key with its default and its meaning.
pub const EXAMPLE: &str = include_str!("config/example.yaml");

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
    #[serde(deserialize_with = "written::one_or_many")]
    pub cloud: Vec<CloudAddress>,
    /// A file with an enrolment token, used when the device is not enrolled.
    pub token_file: Option<PathBuf>,
    /// What the device asks to be called, by a token that leaves that open.
    pub enrol_as: EnrolAs,
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
    /// Who may open conversations with this device. `None`: everybody.
    pub access: Option<Vec<WrittenRule>>,
    /// The machine without an agent for which this one stands.
    pub stands_for: Option<StandsFor>,
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
            enrol_as: EnrolAs::default(),
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
            access: None,
            stands_for: None,
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
    /// Whether programs may leave out what follows a device's own label, or the zone.
    pub short_names: bool,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 55], 53)),
            resolver: ResolverChoice::Auto,
            short_names: false,
        }
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
    /// Which of several agents of this host: it has the configuration /etc/cyphonic/NAME.yaml, the state
    /// directory /var/lib/cyphonic@NAME, the socket /run/cyphonic@NAME/cyphonic.sock and the interface NAME,
    /// whatever its configuration says of these.
    #[arg(long, global = true, env = "CYPHONIC_INSTANCE", value_name = "NAME")]
    pub instance: Option<Instance>,
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
    /// What the device asks to be called when it enrols, by a token that leaves that open.
    #[arg(long, global = true, env = "CYPHONIC_ENROL_AS", value_name = "NAME")]
    pub enrol_as: Option<EnrolAs>,
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
    /// Where an agent's configuration is: where it was said to be, or at its instance's place, or at the
    /// default.
    pub fn path(said: Option<&Path>, instance: Option<&Instance>) -> PathBuf {
        let of_instance = || instance.map_or_else(|| DEFAULT_PATH.into(), Instance::config);
        said.map_or_else(of_instance, Path::to_owned)
    }

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
        if let Some(instance) = &overrides.instance
            && config.stands_for.is_none()
        {
            // The host's programs have one way to the overlay.
            let reason = format!(
                "it is missing in {}: an agent beside the host's own, as {instance}, stands for a machine",
                path.display()
            );
            return Err(ConfigError::Value { key: "stands_for", reason });
        }
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
        if let Some(instance) = &over.instance {
            self.state_dir = instance.state_dir();
            self.socket = instance.socket();
            instance.interface().clone_into(&mut self.interface);
        }
        set(&mut self.state_dir, over.state_dir.as_ref());
        set(&mut self.socket, over.socket.as_ref());
        set(&mut self.enrol_as, over.enrol_as.as_ref());
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

    /// What [`access`](Self::access) means.
    pub fn rules(&self) -> Option<Vec<AccessRule>> {
        self.access.as_ref().map(|rules| rules.iter().map(WrittenRule::meaning).collect())
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
        if self.keep_open.len() > MAX_KEPT_OPEN {
            let names = self.keep_open.len();
            return wrong(
                "keep_open",
                format!("it has {names} names: at most {MAX_KEPT_OPEN} are kept open"),
            );
        }
        for name in &self.keep_open {
            if let Err(why) = canonical(name) {
                let reason = format!("{name:?} is no device's name, as `press-7` or `press-7.plant`: {why}");
                return wrong("keep_open", reason);
            }
        }
        if let Err(unfit) =
            self.rules().map_or(Ok(()), |rules| AccessRule::check(rules.iter(), MAX_OWN_RULES))
        {
            return wrong("access", unfit.to_string());
        }
        if let Some((key, reason)) = self.stands_for.as_ref().and_then(StandsFor::fault) {
            return wrong(key, reason);
        }
        if self.stands_for.is_some() && self.dns != DnsConfig::default() {
            return wrong("dns", "an agent that stands for a machine serves no names: leave it out".into());
        }
        if let Some(name) = &self.relay.pin
            && let Err(why) = canonical(name)
        {
            return wrong("relay.pin", format!("{name:?} is no relay's name, as `trs1`: {why}"));
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
    fn a_wrong_value_is_an_error_that_names_key_and_line() {
        for value in ["mtu: 99999", "mtu: 1280.5", "workers: 0", "keep_awake: 11s", "cloud: ['a b']"] {
            let key = value.split(':').next().unwrap();
            let error = load(&format!("interface: cyph0\nport: 0\n{value}\n")).unwrap_err().to_string();
            assert!(error.contains(&format!("{key}: ")) || error.contains(&format!("{key}[0]: ")), "{error}");
            assert!(error.contains("at line 3"), "{error}");
        }
    }

    #[test]
    fn wrong_values_are_errors_that_say_what_would_be_right() {
        for (text, key) in [
            ("interface: much-too-long-a-name\n", "interface"),
            ("interface: a/b\n", "interface"),
            ("dns: {listen: 192.0.2.1:53}\n", "dns.listen"),
            ("dns: {listen: 127.0.0.55:5353, resolver: resolv-conf}\n", "dns.listen"),
            ("state_dir: here\n", "state_dir"),
            ("access: [{from: a, to: ping}, {from: [], to: ping}]\n", "access"),
            ("access: [{from: a, to: null}]\n", "access"),
            (
                "access: [{from: a, to: [tcp/1-1000, tcp/2001-3000, udp/1-1000, udp/2001-3000, udp/4001-4100]}]\n",
                "access",
            ),
            (&format!("access: [{}]\n", "{from: a, to: ping},".repeat(65)), "access"),
            ("log: info,x=loud\n", "log"),
            ("log: inof\n", "log"),
            ("log: ''\n", "log"),
            ("keep_open: ['a b']\n", "keep_open"),
            ("keep_open: [pi_2]\n", "keep_open"),
            (&format!("keep_open: [{}]\n", "a,".repeat(257)), "keep_open"),
            ("relay: {pin: 'trs 1'}\n", "relay.pin"),
            ("stands_for: {address: 0.0.0.0, services: tcp/1}\n", "stands_for.address"),
            ("stands_for: {address: 192.0.2.1, services: []}\n", "stands_for.services"),
            ("stands_for: {address: 192.0.2.1, services: tcp/1}\ndns: {short_names: true}\n", "dns"),
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
            "stands_for: {address: plc, services: tcp/1}\n",
            "stands_for: {address: 192.0.2.1, services: tcp}\n",
            "stands_for: {address: 192.0.2.1}\n",
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
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        std::fs::write(&path, "port: 1\ninterface: x0\n").unwrap();
        let overrides = Overrides { port: Some(2), ..Overrides::default() };
        let config = Config::load(&path, true, &overrides).unwrap();
        assert_eq!((config.port, config.interface.as_str()), (2, "x0"));
    }

    #[test]
    fn an_instance_has_its_places_whatever_its_file_says_and_flags_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plc.yaml");
        let text = "state_dir: /var/lib/cyphonic\ninterface: x0\nport: 1\n";
        std::fs::write(&path, text).unwrap();
        let instance: Instance = "plc".parse().unwrap();
        let overrides = Overrides { instance: Some(instance.clone()), ..Overrides::default() };
        let error = Config::load(&path, true, &overrides).unwrap_err();
        assert!(error.needs_a_person() && error.to_string().contains("stands_for"), "{error}");
        let machine = "stands_for: {address: 192.0.2.1, services: tcp/1}\n";
        std::fs::write(&path, text.to_owned() + machine).unwrap();
        let config = Config::load(&path, true, &overrides).unwrap();
        assert_eq!((config.state_dir, config.socket), (instance.state_dir(), instance.socket()));
        assert_eq!((config.interface.as_str(), config.port), ("plc", 1));
        let overrides = Overrides { state_dir: Some("/elsewhere".into()), ..overrides };
        assert_eq!(Config::load(&path, true, &overrides).unwrap().state_dir, Path::new("/elsewhere"));
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_named() {
        let path = Path::new("/nonexistent/agent.yaml");
        assert!(matches!(Config::load(path, true, &Overrides::default()), Err(ConfigError::Read { .. })));
        assert_eq!(Config::load(path, false, &Overrides::default()).unwrap(), Config::default());
    }
}
