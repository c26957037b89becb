//! Loads the services' certificates and refuses those that clients would refuse.

use std::path::Path;

use cyphonic_proto::trs::TrsKeys;
use cyphonic_proto::{Identity, Role, alpn};
use cyphonic_transport::{Credentials, ServerTls};
use rustls_pki_types::CertificateDer;

use super::StartError;
use crate::config::{Config, ServiceRole};
use crate::pki::{self, ServiceFiles, service_name};
use crate::register::UnixSeconds;

/// From this long before its end on, a certificate's end is announced in the log.
const EXPIRY_WARNING: UnixSeconds = 60 * 24 * 3600;

/// The certificates of the roles that this process runs.
pub(super) struct Loaded {
    pub(super) root: CertificateDer<'static>,
    authentication: Option<Credentials>,
    management: Option<Credentials>,
    relay: Option<Credentials>,
}

impl Loaded {
    /// What a TRS makes tickets and reset tokens with, if this process is one: it outlives the process as its
    /// private key does.
    pub(super) fn trs_keys(&self) -> Option<TrsKeys> {
        self.relay.as_ref().map(|credentials| TrsKeys::derive(credentials.key.secret_der()))
    }

    /// TLS for one endpoint: every role's protocol with the role's own certificate.
    pub(super) fn server_tls(&self) -> Result<Option<ServerTls>, StartError> {
        let held = [&self.authentication, &self.management, &self.relay];
        let Some(any) = held.into_iter().flatten().next() else { return Ok(None) };
        let mut tls = ServerTls::services(any)?;
        if let Some(credentials) = &self.authentication {
            tls = tls
                .with_protocol(alpn::AS, credentials)?
                .with_anonymous_protocol(alpn::ENROL, credentials)?;
        }
        if let Some(credentials) = &self.management {
            tls = tls.with_protocol(alpn::NMS, credentials)?;
        }
        if let Some(credentials) = &self.relay {
            tls = tls.with_protocol(alpn::TRS, credentials)?;
        }
        Ok(Some(tls))
    }
}

/// Loads and checks.
pub(super) fn load_credentials(config: &Config, now: UnixSeconds) -> Result<Loaded, StartError> {
    let root = pki::read_certificates(&config.root)?.swap_remove(0);
    let load = |role: ServiceRole, files: &Option<ServiceFiles>, name: &str, expected: Role| {
        let Some(files) = files.as_ref().filter(|_| config.runs(role)) else { return Ok(None) };
        load_one(config, &root, files, &service_name(name, &config.network.zone), expected, now).map(Some)
    };
    let certificates = &config.certificates;
    let authentication = load(ServiceRole::As, &certificates.authentication, "as", Role::As)?;
    let management = load(ServiceRole::Nms, &certificates.management, "nms", Role::Nms)?;
    let relay = load(ServiceRole::Trs, &certificates.relay, &config.relay_name, Role::Trs)?;
    Ok(Loaded { authentication, management, relay, root })
}

fn load_one(
    config: &Config,
    root: &CertificateDer<'static>,
    files: &ServiceFiles,
    fqdn: &str,
    role: Role,
    now: UnixSeconds,
) -> Result<Credentials, StartError> {
    let chain = pki::read_certificates(&files.certificate)?;
    let key = pki::read_key(&files.key)?;
    check(&chain[0], config, fqdn, role, now)
        .map_err(|reason| StartError::Certificate { path: files.certificate.clone(), reason })?;
    warn_before_expiry(&chain[0], &files.certificate, now);
    Ok(Credentials { chain, key, root: root.clone(), network: config.network.id })
}

fn check(
    leaf: &CertificateDer<'_>,
    config: &Config,
    fqdn: &str,
    role: Role,
    now: UnixSeconds,
) -> Result<(), String> {
    let identity = Identity::from_der(leaf).map_err(|error| error.to_string())?;
    if identity.network_id != config.network.id {
        return Err(format!(
            "it is of network {}, not of network_id {}",
            identity.network_id, config.network.id
        ));
    }
    if identity.role != role || identity.fqdn != fqdn {
        let (has_role, has_name) = (identity.role, identity.fqdn);
        return Err(format!(
            "it makes its holder {has_name} with role {has_role}, not {fqdn} with role {role}"
        ));
    }
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if now < identity.not_before {
        return Err("it is not valid yet: is this machine's clock right?".to_owned());
    }
    if now >= identity.not_after {
        return Err("it has expired: renew it (cyphonic-cloud renew) where the services' key is".to_owned());
    }
    Ok(())
}

fn warn_before_expiry(leaf: &CertificateDer<'_>, path: &Path, now: UnixSeconds) {
    let Ok(identity) = Identity::from_der(leaf) else { return };
    let left = u64::try_from(identity.not_after).unwrap_or(0).saturating_sub(now);
    if left < EXPIRY_WARNING {
        tracing::warn!(certificate = %path.display(), days_left = left / 86_400, "a certificate ends soon: renew it (cyphonic-cloud renew)");
    }
}
