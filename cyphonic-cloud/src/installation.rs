//! Founding an overlay: keys, certificates, configuration, register; and credentials for services elsewhere.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cyphonic_proto::Role;
use rustls_pki_types::CertificateDer;

use crate::config::{Config, ConfigError, ServiceAddresses, ServiceRole, Template};
use crate::names;
use crate::network::Network;
use crate::pki::{self, Authority, Kind, NMS_NAME, PkiError, service_name};
use crate::register::{Register, RegisterError, UnixSeconds};

/// The services' authority is not where services run, if the operator has taken it away, or where a relay
/// runs elsewhere: then nothing renews their certificates by itself, so they are long-lived, and `run` warns
/// in the log every day of the last 60, in which [`renew`] is to be used. What limits the harm of a stolen
/// one is its role: it is only ever a server, under its own name.
const SERVICE_LIFETIME: UnixSeconds = 2 * 365 * 24 * 3600;

/// The name of the configuration in its directory.
pub const CONFIG_FILE: &str = "cloud.yaml";

/// What `init` is asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where everything goes.
    pub directory: PathBuf,
    /// The overlay's DNS zone.
    pub zone: String,
    /// Where the services listen.
    pub listen: Vec<SocketAddr>,
    /// Where devices reach them.
    pub public: Vec<SocketAddr>,
    /// Relays on other machines. Without any, this process is the relay.
    pub relays: Vec<ServiceAddresses>,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The overlay.
    pub network: Network,
    /// Its configuration.
    pub config: PathBuf,
    /// The key that should not stay here.
    pub root_key: PathBuf,
}

/// Why nothing (complete) was made.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// The zone cannot be one.
    #[error("{0}")]
    Zone(String),
    /// There is something already; it was left as it is.
    #[error("{} exists already and was left as it is: choose another directory, or move it away", .0.display())]
    Exists(PathBuf),
    /// A relay elsewhere with the name of the one that runs here.
    #[error(
        "{0} is the relay that runs here, with a key of its own: choose another name for the one elsewhere"
    )]
    OwnRelay(String),
    /// No address for devices.
    #[error("no address for devices: give --public ADDRESS:PORT at least once")]
    NoPublicAddress,
    /// A directory could not be made.
    #[error("cannot create the directory {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The services' authority is not at hand.
    #[error(
        "the services' authority is not at hand: {0}; run this where `init` ran, or bring pki/services.key back"
    )]
    NoAuthority(PkiError),
    /// The written configuration would not work: said before anything else is.
    #[error("these options do not go together: {0}")]
    Options(ConfigError),
    /// The configuration that is there.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate that was left as it was.
    #[error("{}: {source}", certificate.display())]
    NotRenewed {
        /// Its file.
        certificate: PathBuf,
        /// Why.
        source: PkiError,
    },
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The register.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// Founds an overlay in a directory. The configuration is written last: where it stands, all the rest does.
///
/// # Errors
/// If the directory holds an overlay or remains of one (they are left untouched), or something cannot be
/// written.
pub fn init(plan: &Plan, now: UnixSeconds) -> Result<Installed, InstallationError> {
    let zone = names::parse_zone(&plan.zone).map_err(InstallationError::Zone)?;
    if plan.public.is_empty() {
        return Err(InstallationError::NoPublicAddress);
    }
    let directory = &plan.directory;
    let config = directory.join(CONFIG_FILE);
    for made in [&config, &directory.join("pki"), &directory.join("register.db")] {
        if made.symlink_metadata().is_ok() {
            return Err(InstallationError::Exists(made.clone()));
        }
    }
    let network = Network::generate(&zone)?;
    let roles: &[ServiceRole] =
        if plan.relays.is_empty() { &ServiceRole::ALL } else { &[ServiceRole::As, ServiceRole::Nms] };
    let text = Template {
        network: &network,
        roles,
        listen: &plan.listen,
        public: &plan.public,
        relays: &plan.relays,
        relay_name: "trs1",
        nms_name: NMS_NAME,
        follows: None,
        keeps_register: true,
    }
    .render();
    // What is about to be written must be readable.
    Config::parse(&text, &config).map_err(InstallationError::Options)?;
    write_all(directory, &network, roles, &text, now)?;
    Ok(Installed { network, config, root_key: directory.join("pki/root.key") })
}

/// A service on a machine of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// A relay.
    Relay,
    /// An NMS that stands in for the overlay's own.
    Standby,
}

/// Makes certificate, key and configuration for a service on a machine of its own.
///
/// # Errors
/// If the relay that runs here has the name, the target directory holds some already, the services' key is
/// not there, or something cannot be written.
pub fn credentials_elsewhere(
    directory: &Path,
    what: Elsewhere,
    name: &str,
    out: &Path,
    listen: &[SocketAddr],
    now: UnixSeconds,
) -> Result<CredentialsElsewhere, InstallationError> {
    let cloud = Config::load(&directory.join(CONFIG_FILE))?;
    if what == Elsewhere::Relay && cloud.runs(ServiceRole::Trs) && cloud.relay_name == name {
        return Err(InstallationError::OwnRelay(name.to_owned()));
    }
    let config = out.join(CONFIG_FILE);
    for made in [&config, &out.join("pki"), &out.join("register.db")] {
        if made.symlink_metadata().is_ok() {
            return Err(InstallationError::Exists(made.clone()));
        }
    }
    let services = Authority::load(&directory.join("pki/services.crt"), &directory.join("pki/services.key"))
        .map_err(InstallationError::NoAuthority)?;
    let root = pki::read_certificates(&cloud.root)?;
    let (role, listed) = match what {
        Elsewhere::Relay => (ServiceRole::Trs, &cloud.relays),
        Elsewhere::Standby => (ServiceRole::Nms, &cloud.standbys),
    };
    let addresses =
        listed.iter().find(|service| service.name == name).map(|service| service.addresses.clone());
    let public = addresses.clone().unwrap_or_default();
    let follows = (what == Elsewhere::Standby).then_some(&*cloud.nms_addresses);
    let text = Template {
        network: &cloud.network,
        roles: &[role],
        listen,
        public: &public,
        relays: &[],
        relay_name: name,
        nms_name: name,
        follows,
        keeps_register: false,
    }
    .render();
    Config::parse(&text, &config).map_err(InstallationError::Options)?;
    make_directory(out)?;
    make_directory(&out.join("pki"))?;
    pki::write_certificates(&out.join("pki/root.crt"), &root)?;
    issue_service(&services, &cloud.network, out, role, name, now)?;
    if what == Elsewhere::Standby {
        Register::create(&out.join("register.db"))?;
    }
    pki::write_new(&config, text.as_bytes(), 0o644)?;
    Ok(CredentialsElsewhere {
        config,
        fqdn: service_name(name, &cloud.network.zone),
        listed: addresses.is_some(),
    })
}

/// What was made for a service elsewhere.
#[derive(Debug, Clone)]
pub struct CredentialsElsewhere {
    /// Its configuration.
    pub config: PathBuf,
    /// Its certificate's name.
    pub fqdn: String,
    /// Whether the cloud's configuration lists it: if not, no device will hear of it.
    pub listed: bool,
}

/// A service's certificate that was made anew.
#[derive(Debug, Clone)]
pub struct Renewed {
    /// Its file.
    pub certificate: PathBuf,
    /// Whose it is.
    pub fqdn: String,
    /// Until when it is valid.
    pub not_after: UnixSeconds,
}

/// Makes services' certificates anew, in place, with the keys that they have: those of `certificates`, which
/// may have been brought from relays' machines, or without any those that the configuration in `directory`
/// names. Each is renewed when the iterator comes to it, or left as it was, if it was not made by the
/// services' key or cannot be written.
///
/// # Errors
/// If the services' key or the configuration is not there.
pub fn renew(
    directory: &Path,
    certificates: &[PathBuf],
    now: UnixSeconds,
) -> Result<impl Iterator<Item = Result<Renewed, InstallationError>>, InstallationError> {
    let cloud = Config::load(&directory.join(CONFIG_FILE))?;
    let services = Authority::load(&directory.join("pki/services.crt"), &directory.join("pki/services.key"))
        .map_err(InstallationError::NoAuthority)?;
    let own = &cloud.certificates;
    let own = [&own.authentication, &own.management, &own.relay].into_iter().flatten();
    let certificates = match certificates {
        [] => own.map(|files| files.certificate.clone()).collect::<Vec<_>>(),
        named => named.to_vec(),
    };
    Ok(certificates
        .into_iter()
        .map(move |certificate| renew_one(&services, &cloud.network, certificate, now)))
}

/// Makes one service's certificate anew, in place, with the key that it has.
///
/// # Errors
/// It was not made by the services' key, or cannot be written: it is as it was.
pub(crate) fn renew_one(
    services: &Authority,
    network: &Network,
    certificate: PathBuf,
    now: UnixSeconds,
) -> Result<Renewed, InstallationError> {
    let old = pki::read_certificates(&certificate)?.swap_remove(0);
    let renewed = services.renew_service(network, &old, now, SERVICE_LIFETIME);
    let not_renewed = |source| InstallationError::NotRenewed { certificate: certificate.clone(), source };
    let (identity, chain) = renewed.map_err(not_renewed)?;
    pki::replace_certificates(&certificate, &chain)?;
    Ok(Renewed { certificate, fqdn: identity.fqdn, not_after: now + SERVICE_LIFETIME })
}

/// The services' authority, beside a service's certificate as [`init`] has put it.
///
/// # Errors
/// It is not there (any more), or damaged.
pub(crate) fn authority_beside(certificate: &Path) -> Result<Authority, InstallationError> {
    let [public, secret] = authority_files(certificate);
    Authority::load(&public, &secret).map_err(InstallationError::NoAuthority)
}

/// Whether it is there, and the one that has made the certificate.
pub(crate) fn has_authority_beside(certificate: &Path, leaf: &CertificateDer<'_>) -> bool {
    authority_beside(certificate).is_ok_and(|authority| authority.has_signed(leaf))
}

fn authority_files(certificate: &Path) -> [PathBuf; 2] {
    ["services.crt", "services.key"].map(|file| certificate.with_file_name(file))
}

fn write_all(
    directory: &Path,
    network: &Network,
    roles: &[ServiceRole],
    config: &str,
    now: UnixSeconds,
) -> Result<(), InstallationError> {
    make_directory(directory)?;
    let pki = directory.join("pki");
    make_directory(&pki)?;
    let root = Authority::create_root(network, now)?;
    let devices = root.create_below(Kind::Devices, network, now)?;
    let services = root.create_below(Kind::Services, network, now)?;
    for (name, authority) in [("root", &root), ("devices", &devices), ("services", &services)] {
        pki::write_certificates(&pki.join(format!("{name}.crt")), &[authority.certificate().clone()])?;
        pki::write_secret(&pki.join(format!("{name}.key")), &authority.key_pem())?;
    }
    for role in roles {
        let name = match role {
            ServiceRole::Trs => "trs1".to_owned(),
            ServiceRole::Nms => NMS_NAME.to_owned(),
            ServiceRole::As => role.to_string(),
        };
        issue_service(&services, network, directory, *role, &name, now)?;
    }
    Register::create(&directory.join("register.db"))?;
    pki::write_new(&directory.join(CONFIG_FILE), config.as_bytes(), 0o644)?;
    Ok(())
}

fn issue_service(
    services: &Authority,
    network: &Network,
    directory: &Path,
    role: ServiceRole,
    name: &str,
    now: UnixSeconds,
) -> Result<(), PkiError> {
    let fqdn = service_name(name, &network.zone);
    let role = match role {
        ServiceRole::As => Role::As,
        ServiceRole::Nms => Role::Nms,
        ServiceRole::Trs => Role::Trs,
    };
    let (chain, key) = services.issue_service(network, &fqdn, role, now, SERVICE_LIFETIME)?;
    let pki = directory.join("pki");
    pki::write_certificates(&pki.join(format!("{name}.crt")), &chain)?;
    pki::write_secret(&pki.join(format!("{name}.key")), &key)
}

/// Private, because keys lie in it; one that exists keeps its permissions.
fn make_directory(path: &Path) -> Result<(), InstallationError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| InstallationError::Directory { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use cyphonic_proto::Identity;

    use super::*;

    const NOW: UnixSeconds = 1_800_000_000;

    fn plan(directory: &Path) -> Plan {
        Plan {
            directory: directory.to_owned(),
            zone: "cyphonic.internal".into(),
            listen: vec!["[::]:443".parse().unwrap()],
            public: vec!["192.0.2.1:443".parse().unwrap()],
            relays: Vec::new(),
        }
    }

    #[test]
    fn init_makes_a_configuration_that_loads_and_private_keys() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("cloud");
        let installed = init(&plan(&target), NOW).unwrap();
        let config = Config::load(&installed.config).unwrap();
        assert_eq!(config.network, installed.network);
        Register::open(config.register.as_deref().unwrap()).unwrap();
        for key in ["root", "devices", "services", "as", "nms", "trs1"] {
            let mode = std::fs::metadata(target.join(format!("pki/{key}.key"))).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        assert_eq!(std::fs::metadata(target.join("pki")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn init_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        init(&plan(dir.path()), NOW).unwrap();
        let before = std::fs::read(dir.path().join("pki/root.key")).unwrap();
        assert!(matches!(init(&plan(dir.path()), NOW), Err(InstallationError::Exists(_))));
        std::fs::remove_file(dir.path().join(CONFIG_FILE)).unwrap();
        assert!(matches!(init(&plan(dir.path()), NOW), Err(InstallationError::Exists(_))));
        assert_eq!(std::fs::read(dir.path().join("pki/root.key")).unwrap(), before);
    }

    #[test]
    fn bad_options_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("cloud");
        let cases = [
            Plan { zone: "a..b".into(), ..plan(&target) },
            Plan { public: Vec::new(), ..plan(&target) },
            Plan {
                listen: vec!["192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap()],
                ..plan(&target)
            },
        ];
        for case in cases {
            assert!(init(&case, NOW).is_err(), "{case:?}");
            assert!(!target.exists());
        }
    }

    #[test]
    fn a_relay_elsewhere_gets_its_own_credentials() {
        let dir = tempfile::tempdir().unwrap();
        let cloud = dir.path().join("cloud");
        let relay: ServiceAddresses = "trs1=192.0.2.9:443".parse().unwrap();
        init(&Plan { relays: vec![relay.clone()], ..plan(&cloud) }, NOW).unwrap();
        assert!(!cloud.join("pki/trs1.key").exists());
        let out = dir.path().join("trs");
        let listen = ["[::]:443".parse().unwrap()];
        let made = credentials_elsewhere(&cloud, Elsewhere::Relay, "trs1", &out, &listen, NOW).unwrap();
        assert!(made.listed);
        let config = Config::load(&made.config).unwrap();
        assert_eq!(config.public, relay.addresses);
        assert!(config.runs(ServiceRole::Trs) && !config.runs(ServiceRole::As));
        assert!(matches!(
            credentials_elsewhere(&cloud, Elsewhere::Relay, "trs1", &out, &listen, NOW),
            Err(InstallationError::Exists(_))
        ));
        let unlisted =
            credentials_elsewhere(&cloud, Elsewhere::Relay, "trs2", &dir.path().join("t2"), &listen, NOW)
                .unwrap();
        assert!(!unlisted.listed);
    }

    #[test]
    fn a_standby_gets_its_own_credentials_and_is_client_to_the_nms() {
        let dir = tempfile::tempdir().unwrap();
        let (cloud, out) = (dir.path().join("cloud"), dir.path().join("nms2"));
        init(&plan(&cloud), NOW).unwrap();
        let listen = ["[::]:443".parse().unwrap()];
        let made = credentials_elsewhere(&cloud, Elsewhere::Standby, "nms2", &out, &listen, NOW).unwrap();
        assert!(!made.listed);
        let config = Config::load(&made.config).unwrap();
        assert_eq!(config.follows.unwrap(), plan(&cloud).public);
        Register::open(config.register.as_deref().unwrap()).unwrap();
        let purposes = |path: PathBuf| {
            let der = pki::read_certificates(&path).unwrap().swap_remove(0);
            let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            (usage.server_auth, usage.client_auth)
        };
        assert_eq!(purposes(out.join("pki/nms2.crt")), (true, true));
        assert_eq!(purposes(cloud.join("pki/nms.crt")), (true, false));
        renew(&cloud, &[out.join("pki/nms2.crt")], NOW + 9).unwrap().next().unwrap().unwrap();
        assert_eq!(purposes(out.join("pki/nms2.crt")), (true, true), "renewed as it was");
        let again = credentials_elsewhere(&cloud, Elsewhere::Standby, "nms2", &out, &listen, NOW);
        assert!(matches!(again, Err(InstallationError::Exists(_))));
    }

    #[test]
    fn the_relay_that_runs_here_gets_no_second_key() {
        let dir = tempfile::tempdir().unwrap();
        let (cloud, out) = (dir.path().join("cloud"), dir.path().join("trs"));
        init(&plan(&cloud), NOW).unwrap();
        let listen = ["[::]:443".parse().unwrap()];
        let refused = credentials_elsewhere(&cloud, Elsewhere::Relay, "trs1", &out, &listen, NOW);
        assert!(matches!(refused, Err(InstallationError::OwnRelay(_))), "{refused:?}");
        assert!(!out.exists());
        credentials_elsewhere(&cloud, Elsewhere::Relay, "trs2", &out, &listen, NOW).unwrap();
    }

    #[test]
    fn certificates_are_renewed_in_place_for_the_keys_that_they_have() {
        let dir = tempfile::tempdir().unwrap();
        let cloud = dir.path().join("cloud");
        init(&plan(&cloud), NOW).unwrap();
        let listen = ["[::]:443".parse().unwrap()];
        credentials_elsewhere(&cloud, Elsewhere::Relay, "trs2", &dir.path().join("trs"), &listen, NOW)
            .unwrap();
        let brought = dir.path().join("trs/pki/trs2.crt");
        let identity = |path: &Path| Identity::from_der(&pki::read_certificates(path).unwrap()[0]).unwrap();
        let own = ["as", "nms", "trs1"].map(|name| cloud.join(format!("pki/{name}.crt")));
        let before: Vec<_> = own.iter().chain([&brought]).map(|path| identity(path)).collect();

        // Even those that have ended: whose they are is what counts.
        let later = NOW + 2 * SERVICE_LIFETIME;
        assert_eq!(renew(&cloud, &[], later).unwrap().map(Result::unwrap).count(), 3);
        let mut renewed = renew(&cloud, std::slice::from_ref(&brought), later).unwrap();
        assert_eq!(renewed.next().unwrap().unwrap().fqdn, "trs2.svc.cyphonic.internal");
        for (path, before) in own.iter().chain([&brought]).zip(before) {
            let after = identity(path);
            assert_eq!((&after.fqdn, after.role), (&before.fqdn, before.role));
            assert_eq!(after.spki_sha256, before.spki_sha256, "the key is the same");
            assert!(after.serial != before.serial && after.not_after > i64::try_from(later).unwrap());
            assert_eq!(after.not_before, before.not_before, "a clock that was ahead locks nobody out");
            assert_eq!(pki::read_certificates(path).unwrap().len(), 2, "the authority's follows");
        }
    }

    #[test]
    fn certificates_of_others_are_not_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        init(&plan(&ours), NOW).unwrap();
        init(&plan(&theirs), NOW).unwrap();
        // Another overlay's, and an authority itself.
        for foreign in [theirs.join("pki/nms.crt"), ours.join("pki/services.crt")] {
            let before = std::fs::read(&foreign).unwrap();
            let refused = renew(&ours, std::slice::from_ref(&foreign), NOW).unwrap().next().unwrap();
            let Err(InstallationError::NotRenewed { certificate, source: PkiError::Renewal(_) }) = refused
            else {
                panic!("{refused:?}")
            };
            assert_eq!(certificate, foreign);
            assert_eq!(std::fs::read(&foreign).unwrap(), before);
        }
        std::fs::remove_file(ours.join("pki/services.key")).unwrap();
        assert!(matches!(renew(&ours, &[], NOW), Err(InstallationError::NoAuthority(_))));
    }

    #[test]
    fn without_the_services_key_no_relay_is_made() {
        let dir = tempfile::tempdir().unwrap();
        init(&plan(dir.path()), NOW).unwrap();
        std::fs::remove_file(dir.path().join("pki/services.key")).unwrap();
        let out = dir.path().join("out");
        let refused = credentials_elsewhere(
            dir.path(),
            Elsewhere::Relay,
            "trs2",
            &out,
            &["[::]:443".parse().unwrap()],
            NOW,
        );
        assert!(matches!(refused, Err(InstallationError::NoAuthority(_))));
        assert!(!out.exists());
    }
}
