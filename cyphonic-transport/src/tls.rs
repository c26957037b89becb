//! Who may be at the other end.
//!
//! Every certificate chains to the overlay's root, names its holder (SAN dNSName) and says network and role
//! (SAN URI, see `cyphonic_proto::identity`). A client checks chain, name, network and role while it shakes
//! hands; a server checks chain and network, and the role before it reads the first message.
//!
//! A device says by which [`Clock`] validity is judged; a service takes the system's. A device whose clock is
//! wrong has to hear an AS or NMS all the same, to learn the time: `Clock` says as of when their chains may
//! be judged.
//!
//! TLS 1.3 only, X25519MLKEM768 first, no resumption and no 0-RTT: each connection proves both keys anew.

use std::fmt;
use std::sync::{Arc, OnceLock};

use cyphonic_proto::identity::{self, Identity, NetworkId, Role};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::TLS13;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::clock::{self, Clock};
use crate::config::{Purpose, ResetKey};

/// Why keys and certificates could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key does not belong to the certificate, or is of a kind that TLS 1.3 does not know.
    #[error(
        "the private key cannot be used with its certificate: {0}; enrol again or restore both from one backup"
    )]
    Key(rustls::Error),
    /// The root certificate cannot be a trust anchor.
    #[error("the root certificate is not usable: {0}; restore it from a backup or enrol again")]
    Root(rustls::Error),
    /// The verifier could not be built.
    #[error("the certificate verifier cannot be built: {0}")]
    Verifier(String),
    /// No TLS 1.3 suite that QUIC needs.
    #[error("TLS is not usable for QUIC: {0}")]
    Quic(String),
}

/// One end's certificate chain, private key and trust anchor.
pub struct Credentials {
    /// Leaf first, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
    /// The overlay's root.
    pub root: CertificateDer<'static>,
    /// The overlay: certificates of another are refused even if they chain to the root.
    pub network: NetworkId,
}

impl Credentials {
    fn certified_key(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
        CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), provider)
            .map(Arc::new)
            .map_err(TlsError::Key)
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).map_err(TlsError::Root)?;
        Ok(Arc::new(roots))
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            root: self.root.clone(),
            network: self.network,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("network", &self.network).finish_non_exhaustive()
    }
}

/// How to dial: with which certificate, trusting whom.
#[derive(Clone)]
pub struct ClientTls {
    credentials: Credentials,
    clock: Option<Clock>,
}

impl ClientTls {
    /// Dials with these credentials.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, clock: None }
    }

    /// Judges certificates by this clock instead of the system's.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock: Some(clock), ..self }
    }

    /// A QUIC configuration that accepts only a holder of `role`; the name is checked by the dialled name.
    pub(crate) fn config(&self, role: Role, alpn: &[u8]) -> Result<quinn::ClientConfig, TlsError> {
        let purpose = if role == Role::Device { Purpose::Peer } else { Purpose::Service };
        quic_client(self.client(role, alpn)?, purpose)
    }

    /// The same without QUIC.
    pub(crate) fn client(&self, role: Role, alpn: &[u8]) -> Result<rustls::ClientConfig, TlsError> {
        let provider = provider();
        let inner = WebPkiServerVerifier::builder_with_provider(self.credentials.roots()?, provider.clone())
            .build()
            .map_err(|error| TlsError::Verifier(error.to_string()))?;
        let clock = self.clock.clone();
        let time = time_provider(clock.as_ref());
        let verifier = RoleVerifier { inner, network: self.credentials.network, role, clock };
        let key = self.credentials.certified_key(&provider)?;
        let tls = client_builder(provider, time)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
        Ok(speaking(tls, alpn))
    }
}

/// A QUIC configuration for a device that has no certificate yet: it trusts the AS whose root has this
/// SHA-256, which its enrolment token carries.
pub(crate) fn enrolment_config(
    root_sha256: [u8; 32],
    alpn: &[u8],
    clock: &Clock,
) -> Result<(quinn::ClientConfig, Refusal), TlsError> {
    let (tls, refusal) = enrolment_client(root_sha256, alpn, clock)?;
    Ok((quic_client(tls, Purpose::Service)?, refusal))
}

/// The same without QUIC.
pub(crate) fn enrolment_client(
    root_sha256: [u8; 32],
    alpn: &[u8],
    clock: &Clock,
) -> Result<(rustls::ClientConfig, Refusal), TlsError> {
    let provider = provider();
    let refusal = Refusal::default();
    let verifier = PinnedRootVerifier {
        provider: provider.clone(),
        root_sha256,
        refusal: refusal.clone(),
        clock: clock.clone(),
    };
    let tls = client_builder(provider, Arc::new(clock.clone()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok((speaking(tls, alpn), refusal))
}

/// Why the verifier refused: QUIC's error tells only that it did, in the words of a debugger.
pub(crate) type Refusal = Arc<OnceLock<&'static str>>;

/// How to accept: one certificate per application protocol, so that a process may hold several roles.
pub struct ServerTls {
    roots: Arc<RootCertStore>,
    purpose: Purpose,
    reset_key: ResetKey,
    certificates: Vec<(Vec<u8>, Arc<CertifiedKey>)>,
    anonymous: Vec<Vec<u8>>,
    clock: Option<Clock>,
}

impl ServerTls {
    /// A server of the overlay whose root the credentials hold. Protocols are added one by one.
    pub fn services(credentials: &Credentials) -> Result<Self, TlsError> {
        Ok(Self {
            roots: credentials.roots()?,
            purpose: Purpose::Service,
            reset_key: ResetKey::derive(credentials.key.secret_der()),
            certificates: Vec::new(),
            anonymous: Vec::new(),
            clock: None,
        })
    }

    /// Judges certificates by this clock instead of the system's.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock: Some(clock), ..self }
    }

    /// A node that other nodes dial.
    pub fn peer(credentials: &Credentials) -> Result<Self, TlsError> {
        let mut server = Self::services(credentials)?;
        server.purpose = Purpose::Peer;
        server.with_protocol(cyphonic_proto::alpn::PEER, credentials)
    }

    /// Serves `alpn` with this certificate, to holders of a certificate of the overlay only.
    pub fn with_protocol(mut self, alpn: &[u8], credentials: &Credentials) -> Result<Self, TlsError> {
        let key = credentials.certified_key(&provider())?;
        self.certificates.push((alpn.to_vec(), key));
        Ok(self)
    }

    /// Serves `alpn` also to clients without a certificate (enrolment). The chain ends with the root, so that
    /// a device which knows only the root's hash can check it.
    pub fn with_anonymous_protocol(self, alpn: &[u8], credentials: &Credentials) -> Result<Self, TlsError> {
        let mut credentials = credentials.clone();
        credentials.chain.push(credentials.root.clone());
        let mut server = self.with_protocol(alpn, &credentials)?;
        server.anonymous.push(alpn.to_vec());
        Ok(server)
    }

    /// Of the first credentials, so that it is the same after a restart.
    pub(crate) fn reset_key(&self) -> &ResetKey {
        &self.reset_key
    }

    /// Whether it is other nodes that dial.
    pub(crate) fn is_peer(&self) -> bool {
        self.purpose == Purpose::Peer
    }

    /// Whether a client of this protocol may come without a certificate.
    pub(crate) fn allows_anonymous(&self, alpn: &[u8]) -> bool {
        self.anonymous.iter().any(|a| a == alpn)
    }

    pub(crate) fn config(&self) -> Result<quinn::ServerConfig, TlsError> {
        let resolver = Arc::new(ByProtocol(self.certificates.clone()));
        let protocols = self.certificates.iter().map(|(alpn, _)| alpn.clone()).collect();
        let tls = self.server(resolver, protocols)?;
        let quic = QuicServerConfig::try_from(tls).map_err(|error| TlsError::Quic(error.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(quic));
        config.transport_config(self.purpose.transport_config());
        Ok(config)
    }

    /// TLS alone, with these certificates for these protocols.
    pub(crate) fn server(
        &self,
        certificates: Arc<dyn ResolvesServerCert>,
        protocols: Vec<Vec<u8>>,
    ) -> Result<rustls::ServerConfig, TlsError> {
        let provider = provider();
        // No hints: they would tell a stranger who issues this overlay's certificates.
        let builder = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone())
            .clear_root_hint_subjects();
        let builder = if self.anonymous.is_empty() { builder } else { builder.allow_unauthenticated() };
        let inner = builder.build().map_err(|error| TlsError::Verifier(error.to_string()))?;
        let mut tls =
            rustls::ServerConfig::builder_with_details(provider, time_provider(self.clock.as_ref()))
                .with_protocol_versions(&[&TLS13])
                .map_err(|error| TlsError::Quic(error.to_string()))?
                .with_client_cert_verifier(inner)
                .with_cert_resolver(certificates);
        tls.alpn_protocols = protocols;
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        tls.max_early_data_size = 0;
        Ok(tls)
    }

    /// Every certificate, with the protocol that it is for.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = (&[u8], &Arc<CertifiedKey>)> {
        self.certificates.iter().map(|(alpn, key)| (alpn.as_slice(), key))
    }
}

/// Names the protocol that a server's certificate belongs to: roles in one process share a port.
#[derive(Debug)]
struct ByProtocol(Vec<(Vec<u8>, Arc<CertifiedKey>)>);

impl ResolvesServerCert for ByProtocol {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offered: Vec<&[u8]> = hello.alpn()?.collect();
        // The order is that of `alpn_protocols`, by which rustls negotiates.
        self.0.iter().find(|(alpn, _)| offered.contains(&alpn.as_slice())).map(|(_, key)| key.clone())
    }
}

/// The identity in a connection's verified certificate chain.
pub(crate) fn identity_of(connection: &quinn::Connection) -> Option<Result<Identity, String>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let leaf = chain.first()?;
    Some(Identity::from_der(leaf).map_err(|error| error.to_string()))
}

/// Makes a key share and throws it away: what the cryptographic library does once in a process, above all
/// gathering its first randomness, takes some 20 ms of a processor. To be called on a thread of its own while
/// a program is still busy with something else, so that its first handshake does not wait for it.
pub fn warm_up() {
    for group in provider().kx_groups.iter().take(1) {
        // A library without randomness says so at the first handshake, too, where somebody can act.
        drop(group.start());
    }
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
    Arc::new(provider)
}

fn client_builder(
    provider: Arc<CryptoProvider>,
    time: Arc<dyn TimeProvider>,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>, TlsError> {
    rustls::ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| TlsError::Quic(error.to_string()))
}

fn time_provider(clock: Option<&Clock>) -> Arc<dyn TimeProvider> {
    match clock {
        Some(clock) => Arc::new(clock.clone()),
        None => Arc::new(DefaultTimeProvider),
    }
}

/// As of when to judge the chain of a service that will tell the time.
fn judged_at(
    clock: &Clock,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<UnixTime, rustls::Error> {
    let chain = std::iter::once(end_entity).chain(intermediates).map(AsRef::as_ref);
    let validity = identity::validity_of_chain(chain).map_err(|_| refuse("its chain cannot be read"))?;
    Ok(clock::unix_time(clock.judge_at(validity)))
}

fn speaking(mut tls: rustls::ClientConfig, alpn: &[u8]) -> rustls::ClientConfig {
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    tls.enable_early_data = false;
    tls
}

fn quic_client(mut tls: rustls::ClientConfig, purpose: Purpose) -> Result<quinn::ClientConfig, TlsError> {
    // Anybody on the way can read what the first packet says. Servers choose their certificate by the protocol,
    // so it need not say whom this is for.
    tls.enable_sni = false;
    let quic = QuicClientConfig::try_from(tls).map_err(|error| TlsError::Quic(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(quic));
    config.transport_config(purpose.transport_config());
    Ok(config)
}

/// Whether a chain would be valid at another time.
fn is_of_time(error: &rustls::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let rustls::Error::InvalidCertificate(error) = error else { return false };
    matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

fn refuse(reason: &'static str) -> rustls::Error {
    tracing::debug!(reason, "certificate refused");
    rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// Chain and name as webpki checks them, then network and role.
#[derive(Debug)]
struct RoleVerifier {
    inner: Arc<WebPkiServerVerifier>,
    network: NetworkId,
    role: Role,
    clock: Option<Clock>,
}

impl ServerCertVerifier for RoleVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = match (&self.clock, self.role) {
            (Some(clock), Role::As | Role::Nms) => judged_at(clock, end_entity, intermediates)?,
            (Some(_), Role::Trs | Role::Device) | (None, _) => now,
        };
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if let (Some(clock), Err(error)) = (&self.clock, &verified)
            && is_of_time(error)
        {
            clock.doubt();
        }
        let verified = verified?;
        let identity = Identity::from_der(end_entity).map_err(|_| refuse("it says no network and role"))?;
        if identity.network_id != self.network {
            return Err(refuse("it is of another network"));
        }
        if identity.role != self.role {
            return Err(refuse("its holder has another role"));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refuse("QUIC has no TLS 1.2"))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Trusts the chain whose last certificate has the pinned hash, and only an AS in it.
#[derive(Debug)]
struct PinnedRootVerifier {
    provider: Arc<CryptoProvider>,
    root_sha256: [u8; 32],
    refusal: Refusal,
    clock: Clock,
}

impl ServerCertVerifier for PinnedRootVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refuse = |reason| {
            // The first of several addresses that were tried speaks for all.
            let _ = self.refusal.set(reason);
            refuse(reason)
        };
        let root = intermediates.last().ok_or_else(|| refuse("the cloud sent no root certificate"))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, root);
        if digest.as_ref() != self.root_sha256 {
            return Err(refuse("this is not the cloud that issued the enrolment token"));
        }
        let identity = Identity::from_der(end_entity).map_err(|_| refuse("it says no network and role"))?;
        if identity.role != Role::As {
            return Err(refuse("its holder is not an AS"));
        }
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| refuse("its root is not usable"))?;
        // The device knows no name yet: the token pins the root, and the role says who speaks.
        let _ = server_name;
        let now = judged_at(&self.clock, end_entity, intermediates)?;
        let name = ServerName::try_from(identity.fqdn).map_err(|_| refuse("its name is not a host name"))?;
        inner.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refuse("QUIC has no TLS 1.2"))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
