//! The services' certificates while the services run: renewed in good time where the key that makes them lies
//! beside them, and taken into use without a restart, whoever renewed them.

use std::sync::Arc;

use cyphonic_proto::identity::NetworkId;
use cyphonic_transport::{DetourCertificates, DetourTls, Transport};

use super::StartError;
use super::credentials::{Loaded, load_credentials};
use super::expiry::Term;
use crate::config::Config;
use crate::installation::{self, InstallationError, Renewed};
use crate::register::UnixSeconds;

/// Loads the services' certificates, after those that end soon, or have ended, were renewed.
pub(super) fn load_renewed(config: &Config, now: UnixSeconds) -> Result<Loaded, StartError> {
    let loaded = load_credentials(config)?;
    if renew_due(config, &loaded.terms, now) { load_credentials(config) } else { Ok(loaded) }
}

/// Renews what is to be renewed now, as far as that is possible here, and says so in the log. Whether
/// anything was.
fn renew_due(config: &Config, terms: &[Term], now: UnixSeconds) -> bool {
    let mut any = false;
    for term in terms.iter().filter(|term| term.is_due(now) && term.renews_itself) {
        let certificate = term.certificate.display();
        match renew(config, term, now) {
            Ok(Renewed { fqdn, .. }) => {
                tracing::info!(%certificate, service = fqdn, "a certificate was renewed");
                any = true;
            }
            Err(error) => tracing::error!(%error, "a certificate could not be renewed"),
        }
    }
    any
}

fn renew(config: &Config, term: &Term, now: UnixSeconds) -> Result<Renewed, InstallationError> {
    let services = installation::authority_beside(&term.certificate)?;
    installation::renew_one(&services, &config.network, term.certificate.clone(), now)
}

/// What a port proves with who it is.
pub(super) struct PortCertificates {
    pub(super) transport: Arc<Transport>,
    pub(super) detours: Option<DetourCertificates>,
    pub(super) network: NetworkId,
}

impl PortCertificates {
    fn replace(&self, loaded: &Loaded) -> Result<(), StartError> {
        let Some(tls) = loaded.server_tls()? else { return Ok(()) };
        if let Some(detours) = &self.detours {
            detours.replace(DetourTls::new(&tls, self.network)?);
        }
        Ok(self.transport.set_server(tls)?)
    }
}

/// Looks after the certificates of all ports.
pub(super) struct Keeper {
    config: Config,
    ports: Vec<PortCertificates>,
    /// Of those in use.
    terms: Vec<Term>,
}

impl Keeper {
    pub(super) fn new(config: Config, ports: Vec<PortCertificates>, terms: Vec<Term>) -> Self {
        Self { config, ports, terms }
    }

    /// Renews what is due, takes into use what is new on disk, and returns when those in use end.
    pub(super) fn keep(&mut self, now: UnixSeconds) -> Vec<Term> {
        let taken = load_renewed(&self.config, now).and_then(|loaded| {
            loaded.check_terms(now)?;
            if loaded.terms != self.terms {
                self.ports.iter().try_for_each(|port| port.replace(&loaded))?;
                tracing::info!("new certificates are in use");
            }
            Ok(loaded.terms)
        });
        match taken {
            Ok(terms) => self.terms = terms,
            // Those in use may be sound all the same.
            Err(error) => tracing::error!(%error, "the certificates on disk are of no use"),
        }
        self.terms.clone()
    }
}
