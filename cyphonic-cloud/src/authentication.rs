//! The Authentication Service's decisions: who gets a certificate, who may log in.
//!
//! [`Service::answer`] takes a request, who asks (as TLS has proved it) and the time, and gives the answer;
//! sockets and clocks are the shell's. What it promises stands in the register before the answer leaves.
//!
//! Invariants:
//! - a stranger can only enrol, a device can only log in and renew;
//! - a certificate's name and address come from the token or the asker's certificate, never from a request, but for
//!   what a token leaves open;
//! - reasons given to the asker name no device but the one that its token is for or that it named itself, and no detail of our
//!   failures; those are in the log.

mod error;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cyphonic_proto::message::{
    EnrolRequest, EnrolResponse, LoginRequest, LoginResponse, Message, Refusal, RenewRequest, RenewResponse,
    endpoint,
};
use cyphonic_proto::token::SecretHash;
use cyphonic_proto::{Identity, Role, version};
use rustls_pki_types::CertificateDer;

use self::error::{Case, Refused};
use crate::network::Network;
use crate::pki::{Authority, DeviceKey};
use crate::register::{
    Asker, DeviceRecord, Enrolled, Enrolment, IssuedCertificate, KeyChange, Presented, Register, UnixSeconds,
};
use crate::seldom::{HOURLY, Seldom};

/// Where the AS sends devices next.
#[derive(Debug, Clone)]
pub struct ManagementService {
    /// The NMS's name in its certificate.
    pub name: String,
    /// Where devices reach it.
    pub addresses: Vec<SocketAddr>,
}

/// The AS without its sockets.
#[derive(Debug)]
pub struct Service {
    network: Network,
    register: Arc<Register>,
    authority: Authority,
    root: CertificateDer<'static>,
    management: ManagementService,
    certificate_lifetime: Duration,
    /// Complaints of logins that cannot be noted.
    unnoted: Seldom<()>,
    /// Why requests failed.
    failures: Seldom<String>,
    /// Names, and why they were refused.
    refusals: Seldom<(String, Case)>,
}

impl Service {
    /// Puts the service together.
    pub fn new(
        network: Network,
        register: Arc<Register>,
        authority: Authority,
        root: CertificateDer<'static>,
        management: ManagementService,
        certificate_lifetime: Duration,
    ) -> Self {
        Self {
            network,
            register,
            authority,
            root,
            management,
            certificate_lifetime,
            unnoted: Seldom::new(60),
            failures: Seldom::ever_more_rarely(),
            refusals: Seldom::new(HOURLY),
        }
    }

    /// Answers a request. Blocks for the time of a disk write.
    ///
    /// `peer` is who TLS has proved to be there; absent for a stranger who came to enrol. `observed` is the
    /// address that the request came from.
    pub fn answer(
        &self,
        peer: Option<&Identity>,
        observed: SocketAddr,
        request: &Message,
        now: UnixSeconds,
    ) -> Message {
        let answer = match (request, peer) {
            (Message::EnrolRequest(request), None) => self.enrol(request, now),
            (Message::LoginRequest(request), Some(peer)) => self.login(peer, observed, request, now),
            (Message::RenewRequest(request), Some(peer)) => self.renew(peer, request, now),
            _ => Err(Refused::NotHere(request.name())),
        };
        answer.unwrap_or_else(|refused| {
            self.log(peer, &refused, now);
            Message::Refusal(Refusal::from(refused))
        })
    }

    /// Our own failures are errors. Who is refused under a name of this overlay is of interest to its
    /// operator; the rest is what strangers do.
    fn log(&self, peer: Option<&Identity>, refused: &Refused, now: UnixSeconds) {
        let presented = refused.presented();
        let named = peer.map(|peer| &peer.fqdn).or(presented.map(|presented| &presented.granted));
        match (refused, named) {
            (Refused::Internal(reason), _) if self.failures.is_due(reason.clone(), now) => {
                tracing::error!(reason, "a request failed");
            }
            (reason, Some(fqdn)) if self.refusals.is_due((fqdn.clone(), reason.case()), now) => {
                let fqdn = presented.map_or(fqdn.as_str(), Presented::name);
                let token = presented.map(|presented| presented.token);
                tracing::warn!(fqdn, token, %reason, "a device was refused");
                if let Some(holder) = refused.holder() {
                    tracing::warn!(
                        fqdn,
                        holder,
                        "the holder's key is on this device, too: revoke the holder, and enrol it anew unless it is this device \
                         under an earlier name"
                    );
                }
            }
            (reason, fqdn) => tracing::debug!(fqdn, %reason, "a request was refused"),
        }
    }

    /// Whether the register stands behind a certificate.
    pub fn knows(&self, peer: &Identity, now: UnixSeconds) -> bool {
        self.admit(peer, now).is_ok()
    }

    fn enrol(&self, request: &EnrolRequest, now: UnixSeconds) -> Result<Message, Refused> {
        version::negotiate(request.protocol_version)?;
        // Before the register is touched: a stranger's garbage costs no disk write.
        let key = DeviceKey::from_csr(&request.csr)?;
        let secret: &[u8; 32] =
            request.token_secret.as_slice().try_into().map_err(|_| Refused::Malformed("token_secret"))?;
        let issue = |fqdn: &str| {
            self.authority
                .issue_device(&self.network, fqdn, &key, now, self.certificate_lifetime.as_secs())
                .map_err(|error| error.to_string())
        };
        let asker = Asker { spki_sha256: key.spki_sha256(), name: &request.name, zone: &self.network.zone };
        let enrolment = self.register.enrol(&SecretHash::of(secret), asker, now, issue)?;
        let Enrolment { issued, token, outcome } = enrolment;
        match outcome {
            Enrolled::New => tracing::info!(fqdn = issued.fqdn, token, "a device was enrolled"),
            Enrolled::Replaced => {
                tracing::info!(fqdn = issued.fqdn, token, "a device was enrolled in the place of another");
            }
            Enrolled::Again => tracing::debug!(fqdn = issued.fqdn, token, "an enrolment was answered again"),
        }
        Ok(Message::EnrolResponse(EnrolResponse {
            certificate_chain: self.chain(&issued),
            root_certificate: self.root.to_vec(),
            fqdn: issued.fqdn,
            virtual_address: issued.virtual_address.octets().to_vec(),
            time: now,
        }))
    }

    fn login(
        &self,
        peer: &Identity,
        observed: SocketAddr,
        request: &LoginRequest,
        now: UnixSeconds,
    ) -> Result<Message, Refused> {
        let protocol_version = version::negotiate(request.protocol_version)?;
        let device = self.admit(peer, now)?;
        let not_after = u64::try_from(peer.not_after).unwrap_or(0);
        let noted = self
            .register
            .note_login(&device, &peer.spki_sha256, &request.software_version, now)
            .and_then(|()| self.register.note_certificate(&device, &peer.spki_sha256, not_after));
        if let Err(error) = noted {
            // Which key a device has from now on must be on disk. When it was here last is no reason to keep
            // it out.
            if device.next_spki_sha256 == Some(peer.spki_sha256) {
                return Err(error.into());
            }
            if self.unnoted.is_due((), now) {
                tracing::warn!(%error, "logins are not noted in the register");
            }
        }
        tracing::debug!(fqdn = device.fqdn, %observed, "logged in");
        Ok(Message::LoginResponse(LoginResponse {
            fqdn: device.fqdn,
            nms: endpoint::list_to_wire(&self.management.addresses),
            observed: Some(endpoint::to_wire(observed)),
            protocol_version,
            nms_name: self.management.name.clone(),
            time: now,
        }))
    }

    fn renew(&self, peer: &Identity, request: &RenewRequest, now: UnixSeconds) -> Result<Message, Refused> {
        let key = DeviceKey::from_csr(&request.csr)?;
        let device = self.admit(peer, now)?;
        let lifetime = self.certificate_lifetime.as_secs();
        let issue = || {
            self.authority
                .issue_device(&self.network, &device.fqdn, &key, now, lifetime)
                .map_err(|error| error.to_string())
        };
        let keys = KeyChange { old: peer.spki_sha256, new: *key.spki_sha256() };
        let issued = self.register.renew(&device.fqdn, keys, now, issue)?;
        tracing::debug!(fqdn = device.fqdn, "certificate renewed");
        Ok(Message::RenewResponse(RenewResponse { certificate_chain: self.chain(&issued), time: now }))
    }

    /// The device behind a certificate, if it still is one of ours. TLS has checked the chain, and the validity when
    /// the connection was made.
    fn admit(&self, peer: &Identity, now: UnixSeconds) -> Result<DeviceRecord, Refused> {
        if peer.role != Role::Device || peer.network_id != self.network.id {
            return Err(Refused::NotADevice);
        }
        if i64::try_from(now).is_ok_and(|now| peer.not_after < now) {
            return Err(Refused::Ended);
        }
        let device = self.register.device(&peer.fqdn)?.ok_or(Refused::Unknown)?;
        if device.revoked_at.is_some() {
            return Err(Refused::Revoked);
        }
        if !device.has_key(&peer.spki_sha256) || peer.virtual_address != Some(device.virtual_address) {
            return Err(Refused::Replaced);
        }
        Ok(device)
    }

    fn chain(&self, issued: &IssuedCertificate) -> Vec<Vec<u8>> {
        vec![issued.der.clone(), self.authority.certificate().to_vec()]
    }
}
