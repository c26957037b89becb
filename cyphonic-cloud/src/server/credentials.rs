//! Loads the services' certificates and refuses those that clients would refuse.

use cyphonic_proto::trs::TrsKeys;
use cyphonic_proto::{Identity, Role, alpn};
use cyphonic_transport::{Credentials, ServerTls};
use rustls_pki_types::CertificateDer;

use super::StartError;
use super::expiry::Term;
use crate::config::{Config, ServiceRole};
use crate::installation;
use crate::pki::{self, ServiceFiles, service_name};
use crate::register::UnixSeconds;

/// The certificates of the roles that this process runs.
pub(super) struct Loaded {
    pub(super) root: CertificateDer<'static>,
    /// How long each is valid.
    pub(super) terms: Vec<Term>,
    authentication: Option<Credentials>,
    management: Option<Credentials>,
    relay: Option<Credentials>,
    /// Whether its NMS stands in for another one.
    is_standby: bool,
}

impl Loaded {
    /// The NMS's.
    pub(super) fn management(&self) -> Option<Credentials> {
        self.management.clone()
    }

    /// What a TRS makes tickets and reset tokens with, if this process is one: it outlives the process as its
    /// private key does.
    pub(super) fn trs_keys(&self) -> Option<TrsKeys> {
        self.relay.as_ref().map(|credentials| TrsKeys::derive(credentials.key.secret_der()))
    }

    /// Refuses what clients would refuse at this time.
    pub(super) fn check_terms(&self, now: UnixSeconds) -> Result<(), StartError> {
        for term in &self.terms {
            if let Some(objection) = term.objection(now) {
                let (path, reason) = (term.certificate.clone(), objection.to_owned());
                return Err(StartError::Certificate { path, reason });
            }
        }
        Ok(())
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
            // One that does not want to be followed has to say so.
            if !self.is_standby {
                tls = tls.with_protocol(alpn::STANDBY, credentials)?;
            }
        }
        if let Some(credentials) = &self.relay {
            tls = tls.with_protocol(alpn::TRS, credentials)?;
        }
        Ok(Some(tls))
    }
}

/// Loads, and checks whose they are; [`Loaded::check_terms`] checks whether they are valid now.
pub(super) fn load_credentials(config: &Config) -> Result<Loaded, StartError> {
    let root = pki::read_certificates(&config.root)?.swap_remove(0);
    let mut terms = Vec::new();
    let mut load = |role: ServiceRole, files: &Option<ServiceFiles>, name: &str, expected: Role| {
        let Some(files) = files.as_ref().filter(|_| config.runs(role)) else { return Ok(None) };
        let (credentials, term) = load_one(config, &root, files, name, expected)?;
        terms.push(term);
        Ok::<_, StartError>(Some(credentials))
    };
    let certificates = &config.certificates;
    let authentication = load(ServiceRole::As, &certificates.authentication, "as", Role::As)?;
    let management = load(ServiceRole::Nms, &certificates.management, &config.nms_name, Role::Nms)?;
    let relay = load(ServiceRole::Trs, &certificates.relay, &config.relay_name, Role::Trs)?;
    let is_standby = config.follows.is_some();
    Ok(Loaded { terms, authentication, management, relay, is_standby, root })
}

fn load_one(
    config: &Config,
    root: &CertificateDer<'static>,
    files: &ServiceFiles,
    name: &str,
    role: Role,
) -> Result<(Credentials, Term), StartError> {
    let chain = pki::read_certificates(&files.certificate)?;
    let key = pki::read_key(&files.key)?;
    let identity = check(&chain[0], config, &service_name(name, &config.network.zone), role)
        .map_err(|reason| StartError::Certificate { path: files.certificate.clone(), reason })?;
    if !pki::is_key_of(&key, &chain[0]) {
        let reason = format!(
            "it is not the key of {}: put the one that was made with it there, or restore both from one backup",
            files.certificate.display()
        );
        return Err(StartError::Certificate { path: files.key.clone(), reason });
    }
    let at = u64::try_from(identity.not_before).unwrap_or(0).saturating_add(1);
    pki::check_service(&chain, root, at)
        .map_err(|reason| StartError::Certificate { path: files.certificate.clone(), reason })?;
    let [not_before, not_after] =
        [identity.not_before, identity.not_after].map(|time| UnixSeconds::try_from(time).unwrap_or(0));
    let (certificate, renews_itself) =
        (files.certificate.clone(), installation::has_authority_beside(&files.certificate, &chain[0]));
    let term = Term { service: name.to_owned(), certificate, not_before, not_after, renews_itself };
    Ok((Credentials { chain, key, root: root.clone(), network: config.network.id }, term))
}

fn check(leaf: &CertificateDer<'_>, config: &Config, fqdn: &str, role: Role) -> Result<Identity, String> {
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
    Ok(identity)
}
