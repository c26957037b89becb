//! The file's keys, and what they mean together.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cyphonic_proto::address::Prefix;
use cyphonic_proto::identity::NetworkId;
use cyphonic_proto::node::MAX_RELAYS;
use cyphonic_proto::standby::MAX_STANDBYS;
use cyphonic_transport::logging::NoLogFilter;
use serde::Deserialize;

use super::access::{self, WrittenRule, WrittenTest};
use super::relay::MAX_BINDINGS;
use super::{Certificates, Config, RelayConfig, ServiceAddresses, ServiceRole, StunConfig, TcpMode, value};
use crate::network::Network;
use crate::pki::{NMS_NAME, ServiceFiles};

/// A key and what is wrong with it.
type Fault = (&'static str, String);

/// Shortest certificate: agents renew at two thirds, and must not do it all the time.
const MIN_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(3600);

/// Longest certificate: long ones make revocation the only way to be rid of a device.
const MAX_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(825 * 24 * 3600);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(deserialize_with = "value::zone")]
    zone: String,
    #[serde(deserialize_with = "value::network_id")]
    network_id: NetworkId,
    #[serde(deserialize_with = "value::prefix")]
    prefix: Prefix,
    #[serde(default = "all_roles")]
    roles: Vec<ServiceRole>,
    #[serde(default = "any_address", deserialize_with = "value::listen")]
    listen: Vec<SocketAddr>,
    #[serde(default, deserialize_with = "value::tcp_mode")]
    tcp: TcpMode,
    #[serde(default, deserialize_with = "value::addresses")]
    public: Vec<SocketAddr>,
    #[serde(default, deserialize_with = "value::addresses")]
    nms: Vec<SocketAddr>,
    #[serde(default)]
    trs: Vec<Named>,
    #[serde(default)]
    standbys: Vec<Named>,
    #[serde(default = "first_nms", deserialize_with = "value::nms_label")]
    nms_name: String,
    #[serde(default)]
    follows: Option<Follows>,
    #[serde(default = "first_relay", deserialize_with = "value::label")]
    trs_name: String,
    #[serde(default)]
    relay: RelayConfig,
    #[serde(default)]
    stun: StunConfig,
    #[serde(default)]
    register: Option<PathBuf>,
    root: PathBuf,
    #[serde(default)]
    devices_authority: Option<Pair>,
    #[serde(default)]
    certificates: Pairs,
    #[serde(default = "ninety_days", deserialize_with = "value::duration")]
    device_certificate_lifetime: Duration,
    #[serde(default = "one_hour", deserialize_with = "value::token_lifetime")]
    token_lifetime: Duration,
    #[serde(default)]
    access: Option<Vec<WrittenRule>>,
    #[serde(default)]
    access_tests: Vec<WrittenTest>,
    #[serde(default = "info")]
    log: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    #[serde(deserialize_with = "value::label")]
    name: String,
    #[serde(deserialize_with = "value::addresses")]
    addresses: Vec<SocketAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Follows {
    #[serde(deserialize_with = "value::addresses")]
    addresses: Vec<SocketAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pairs {
    #[serde(rename = "as")]
    authentication: Option<Pair>,
    nms: Option<Pair>,
    trs: Option<Pair>,
}

impl Named {
    fn to_service(&self) -> ServiceAddresses {
        ServiceAddresses { name: self.name.clone(), addresses: self.addresses.clone() }
    }
}

impl File {
    /// Checks what the keys say together and makes paths absolute to `directory`.
    pub(super) fn check(self, directory: &Path) -> Result<Config, Fault> {
        let roles: BTreeSet<ServiceRole> = self.roles.iter().copied().collect();
        self.check_roles(&roles)?;
        self.check_addresses(&roles)?;
        let relays = self.relays(&roles);
        self.check_relays(relays.len())?;
        self.check_standbys(&roles)?;
        self.stun.check(&self.listen, &self.public)?;
        let lifetime = self.device_certificate_lifetime;
        if !(MIN_CERTIFICATE_LIFETIME..=MAX_CERTIFICATE_LIFETIME).contains(&lifetime) {
            return Err(("device_certificate_lifetime", "it must be between 1h and 825d".to_owned()));
        }
        let access = self.access.map(access::check).transpose().map_err(|reason| ("access", reason))?;
        access::try_rules(&self.access_tests, access.as_deref(), &self.zone)
            .map_err(|reason| ("access_tests", reason))?;
        let log = self.log.parse().map_err(|error: NoLogFilter| ("log", error.to_string()))?;
        let pair = |pair: Pair| ServiceFiles {
            certificate: directory.join(pair.certificate),
            key: directory.join(pair.key),
        };
        Ok(Config {
            nms_addresses: if self.nms.is_empty() { self.public.clone() } else { self.nms },
            relays,
            standbys: self.standbys.iter().map(Named::to_service).collect(),
            nms_name: self.nms_name,
            follows: self.follows.map(|follows| follows.addresses),
            network: Network { id: self.network_id, zone: self.zone, prefix: self.prefix },
            roles,
            listen: self.listen,
            tcp: self.tcp,
            public: self.public,
            relay_name: self.trs_name,
            relay: self.relay,
            stun: self.stun,
            register: self.register.map(|path| directory.join(path)),
            root: directory.join(self.root),
            devices_authority: self.devices_authority.map(pair),
            certificates: Certificates {
                authentication: self.certificates.authentication.map(pair),
                management: self.certificates.nms.map(pair),
                relay: self.certificates.trs.map(pair),
            },
            device_certificate_lifetime: lifetime,
            token_lifetime: self.token_lifetime,
            access,
            runtime_directory: None,
            log,
        })
    }

    fn check_roles(&self, roles: &BTreeSet<ServiceRole>) -> Result<(), Fault> {
        if roles.is_empty() {
            return Err(("roles", "at least one of as, nms and trs is needed".to_owned()));
        }
        if roles.len() != self.roles.len() {
            return Err(("roles", "a role is written twice".to_owned()));
        }
        let needs = |role: ServiceRole, key: &'static str, there: bool| {
            if roles.contains(&role) && !there {
                return Err((key, format!("the role {role} needs it")));
            }
            Ok(())
        };
        if self.access.is_some() && !roles.contains(&ServiceRole::Nms) {
            return Err(("access", "the nms tells devices of it: write it where the role nms is".to_owned()));
        }
        needs(ServiceRole::As, "register", self.register.is_some())?;
        needs(ServiceRole::Nms, "register", self.register.is_some())?;
        needs(ServiceRole::As, "devices_authority", self.devices_authority.is_some())?;
        needs(ServiceRole::As, "certificates.as", self.certificates.authentication.is_some())?;
        needs(ServiceRole::Nms, "certificates.nms", self.certificates.nms.is_some())?;
        needs(ServiceRole::Trs, "certificates.trs", self.certificates.trs.is_some())
    }

    fn check_addresses(&self, roles: &BTreeSet<ServiceRole>) -> Result<(), Fault> {
        if self.listen.is_empty() {
            return Err(("listen", "at least one address is needed, such as \"[::]:443\"".to_owned()));
        }
        let distinct: BTreeSet<_> = self.listen.iter().collect();
        if distinct.len() != self.listen.len() {
            return Err(("listen", "an address is written twice".to_owned()));
        }
        for every in self.listen.iter().filter(|address| address.ip().is_unspecified()) {
            // The unspecified IPv6 address means both versions.
            let is_in = |other: &&SocketAddr| {
                *other != every && other.port() == every.port() && (every.is_ipv6() || other.is_ipv4())
            };
            if let Some(other) = self.listen.iter().find(is_in) {
                return Err(("listen", format!("{other} is among the addresses of {every}: leave it out")));
            }
        }
        if roles.contains(&ServiceRole::Trs) && self.listen.len() > 1 {
            // A relayed packet leaves by the port that it came in by: NATs let no other in.
            let reason = "a relay forwards between all its devices through one port: give one address, such as \
                          \"[::]:443\" for IPv4 and IPv6, or run the trs role as a process of its own";
            return Err(("listen", reason.to_owned()));
        }
        if roles.contains(&ServiceRole::As) && self.nms.is_empty() && self.public.is_empty() {
            return Err(("public", "the AS must tell devices where the NMS is".to_owned()));
        }
        Ok(())
    }

    /// Of all relays, this process included, if it is one.
    fn check_relays(&self, all: usize) -> Result<(), Fault> {
        if all > MAX_RELAYS {
            return Err(("trs", format!("there are {all} relays; devices know {MAX_RELAYS} at most")));
        }
        if !(2..=MAX_BINDINGS).contains(&self.relay.bindings) {
            return Err(("relay.bindings", format!("it must be between 2 and {MAX_BINDINGS}")));
        }
        check_services(&self.trs).map_err(|reason| ("trs", reason))
    }

    /// The overlay's own NMS has standbys, each of them follows it.
    fn check_standbys(&self, roles: &BTreeSet<ServiceRole>) -> Result<(), Fault> {
        let manages = roles.contains(&ServiceRole::Nms);
        let refuse = |key, reason: &str| Err((key, reason.to_owned()));
        if let Some(follows) = &self.follows {
            return self.check_follower(follows, manages && roles.len() == 1);
        }
        if self.nms_name != NMS_NAME {
            return refuse(
                "nms_name",
                "an nms of another name stands in for the overlay's own: say in `follows` where that is",
            );
        }
        if !self.standbys.is_empty() && !manages {
            return refuse("standbys", "the nms tells devices of them: write them where the role nms is");
        }
        if self.standbys.len() > MAX_STANDBYS {
            return Err(("standbys", format!("there may be {MAX_STANDBYS} at most")));
        }
        check_services(&self.standbys).map_err(|reason| ("standbys", reason))
    }

    fn check_follower(&self, follows: &Follows, can_follow: bool) -> Result<(), Fault> {
        let refuse = |key, reason: &str| Err((key, reason.to_owned()));
        let theirs = "the nms that this one stands in for tells it: write it there";
        if !can_follow {
            return refuse(
                "follows",
                "it is for an nms without an as or a trs beside it: run a relay as a service of its own",
            );
        }
        if follows.addresses.is_empty() {
            return refuse("follows", "it has no addresses");
        }
        if self.nms_name == NMS_NAME {
            return refuse(
                "nms_name",
                "give the name that this nms has in its certificate, and in `standbys` there",
            );
        }
        for (key, is_written) in [
            ("standbys", !self.standbys.is_empty()),
            ("trs", !self.trs.is_empty()),
            ("access", self.access.is_some()),
            ("access_tests", !self.access_tests.is_empty()),
        ] {
            if is_written {
                return refuse(key, theirs);
            }
        }
        Ok(())
    }

    /// The relays listed, and this process itself where it is one and not among them.
    fn relays(&self, roles: &BTreeSet<ServiceRole>) -> Vec<ServiceAddresses> {
        let mut relays: Vec<_> = self.trs.iter().map(Named::to_service).collect();
        let is_listed = relays.iter().any(|relay| relay.name == self.trs_name);
        if roles.contains(&ServiceRole::Trs) && !is_listed && !self.public.is_empty() {
            relays.push(ServiceAddresses { name: self.trs_name.clone(), addresses: self.public.clone() });
        }
        relays
    }
}

fn all_roles() -> Vec<ServiceRole> {
    ServiceRole::ALL.to_vec()
}

fn any_address() -> Vec<SocketAddr> {
    vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, value::DEFAULT_PORT))]
}

fn check_services(services: &[Named]) -> Result<(), String> {
    let names: BTreeSet<_> = services.iter().map(|service| &service.name).collect();
    if names.len() != services.len() {
        return Err("two have the same name".to_owned());
    }
    match services.iter().find(|service| service.addresses.is_empty()) {
        Some(service) => Err(format!("{} has no addresses", service.name)),
        None => Ok(()),
    }
}

fn first_nms() -> String {
    NMS_NAME.to_owned()
}

fn first_relay() -> String {
    "trs1".to_owned()
}

fn ninety_days() -> Duration {
    Duration::from_secs(90 * 24 * 3600)
}

fn one_hour() -> Duration {
    Duration::from_secs(3600)
}

fn info() -> String {
    "info".to_owned()
}
