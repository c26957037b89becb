//! TLS of the detour: the same certificates as QUIC's, chosen by the name that the client asks for.
//!
//! What runs inside is authenticated by itself. TLS here hides it from networks that let pass only what looks
//! like the web, and keeps strangers from using up the server's sockets.

use std::sync::Arc;

use cyphonic_proto::alpn;
use cyphonic_proto::identity::{Identity, KeyHash, NetworkId, Role};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::clock::Clock;
use crate::tls::{self, ClientTls, ServerTls, TlsError};

/// How a node dials the detour of a service.
pub(crate) fn service_tls(tls: &ClientTls, role: Role) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    tls.client(role, alpn::DETOUR).map(Arc::new)
}

/// How a device dials it that has no certificate yet.
pub(crate) fn enrolment_tls(
    root_sha256: [u8; 32],
    clock: &Clock,
) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    tls::enrolment_client(root_sha256, alpn::DETOUR, clock).map(|(tls, _)| Arc::new(tls))
}

/// How a service's port accepts detours.
#[derive(Clone)]
pub struct DetourTls {
    pub(super) config: Arc<rustls::ServerConfig>,
    network: NetworkId,
}

impl DetourTls {
    /// With the certificates of the port's QUIC, and for the same clients.
    ///
    /// # Errors
    /// As [`ServerTls`]'s.
    pub fn new(server: &ServerTls, network: NetworkId) -> Result<Self, TlsError> {
        let mut by_name = ByName::default();
        for (protocol, key) in server.certificates() {
            // The chain that ends with the root serves those who know no name yet.
            if server.allows_anonymous(protocol) || by_name.otherwise.is_none() {
                by_name.otherwise = Some(key.clone());
            }
            let identity = key.cert.first().map(|leaf| Identity::from_der(leaf));
            if let Some(Ok(identity)) = identity {
                by_name.named.push((identity.fqdn, key.clone()));
            }
        }
        let config = server.server(Arc::new(by_name), vec![alpn::DETOUR.to_vec()])?;
        Ok(Self { config: Arc::new(config), network })
    }

    /// The key of the device of the overlay that a client is which TLS accepted; none without a certificate:
    /// it may enrol. The name would not do: who had it before may have a valid certificate for it.
    pub(super) fn judge(&self, tls: &rustls::ServerConnection) -> Result<Option<KeyHash>, String> {
        if tls.alpn_protocol() != Some(alpn::DETOUR) {
            return Err("it does not speak this protocol".into());
        }
        let Some(leaf) = tls.peer_certificates().and_then(<[CertificateDer<'_>]>::first) else {
            return Ok(None);
        };
        let identity = Identity::from_der(leaf).map_err(|error| error.to_string())?;
        if identity.network_id != self.network || identity.role != Role::Device {
            return Err("its certificate is not a device's of this overlay".into());
        }
        Ok(Some(identity.spki_sha256))
    }
}

impl std::fmt::Debug for DetourTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DetourTls").field("network", &self.network).finish_non_exhaustive()
    }
}

/// The certificate whose holder the client asks for, or the one for whoever knows no name.
#[derive(Debug, Default)]
struct ByName {
    named: Vec<(String, Arc<CertifiedKey>)>,
    otherwise: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name();
        let named = self.named.iter().find(|(name, _)| Some(name.as_str()) == wanted).map(|(_, key)| key);
        named.or(self.otherwise.as_ref()).cloned()
    }
}
