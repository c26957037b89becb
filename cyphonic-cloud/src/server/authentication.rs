//! The AS on its connections. Its work (signing, disk writes) is done in the blocking pool, a bounded number
//! at once.
//!
//! Of each device, known by its key, it has the newest few connections. Everybody else is a stranger: who has
//! no certificate, and whom the register does not stand behind. There are few of them at once, they do not
//! stay, and they wait among themselves. A device that the register stands behind no more is refused at its
//! next request, and is a stranger when it comes back.

mod queue;
mod strangers;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cyphonic_dataplane::sync::lock;
use cyphonic_proto::identity::KeyHash;
use cyphonic_proto::message::{Message, Refusal, RefusalCode};
use cyphonic_transport::connection::EXCHANGE_TIMEOUT;
use cyphonic_transport::enrol::STRANGER_STAYS;
use cyphonic_transport::quota::Key;
use cyphonic_transport::{Connection, Responder};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, Semaphore};

use self::queue::Queue;
use self::strangers::{Source, Strangers, source_of};
use super::StartError;
use super::clock::unix_now;
use super::credentials::Loaded;
use super::newest::Newest;
use crate::authentication::{ManagementService, Service};
use crate::config::Config;
use crate::pki::{self, Authority, NMS_NAME, service_name};
use crate::register::Register;

/// Requests worked on at once; the register writes one at a time anyway.
const CONCURRENT: usize = 32;

/// Requests that may wait for their turn; a flood beyond is refused with a time to come back.
const WAITING: usize = 4_096;

/// Of these, so many of one device, on all its connections: it asks one thing after the other.
const OF_DEVICE: usize = 4;

/// Strangers' requests that may wait: those of devices do not wait long for them, nor find no place.
const STRANGERS_WAITING: usize = 256;

/// The AS.
pub(super) struct AuthenticationServer {
    service: Arc<Service>,
    /// By their keys: a name may be another's tomorrow.
    devices: Mutex<Newest<KeyHash, Connection>>,
    strangers: Mutex<Strangers>,
    waiting: Arc<Queue<KeyHash>>,
    strangers_waiting: Arc<Queue<Source>>,
    working: Semaphore,
    enrolled: Arc<Notify>,
}

impl AuthenticationServer {
    pub(super) fn new(
        config: &Config,
        loaded: Loaded,
        register: Arc<Register>,
        enrolled: Arc<Notify>,
    ) -> Result<Self, StartError> {
        let authority = load_authority(config, &loaded.root)?;
        let management = ManagementService {
            name: service_name(NMS_NAME, &config.network.zone),
            addresses: config.nms_addresses.clone(),
        };
        let lifetime = config.device_certificate_lifetime;
        let service =
            Service::new(config.network.clone(), register, authority, loaded.root, management, lifetime);
        Ok(Self {
            service: Arc::new(service),
            devices: Mutex::default(),
            strangers: Mutex::default(),
            waiting: Queue::new(WAITING),
            strangers_waiting: Queue::new(STRANGERS_WAITING),
            working: Semaphore::new(CONCURRENT),
            enrolled,
        })
    }

    /// Answers one connection's requests until it ends.
    pub(super) async fn serve(self: Arc<Self>, connection: Connection) {
        match self.known(&connection).await {
            Some(key) => self.serve_device(key, connection).await,
            None => self.serve_stranger(connection).await,
        }
    }

    /// The key of the device, if the register stands behind it.
    async fn known(&self, connection: &Connection) -> Option<KeyHash> {
        let identity = connection.identity()?.clone();
        let service = Arc::clone(&self.service);
        // A look that failed is in the log of the first request, which fails as well.
        let look = tokio::task::spawn_blocking(move || {
            service.knows(&identity, unix_now()).then_some(identity.spki_sha256)
        });
        look.await.ok().flatten()
    }

    async fn serve_device(self: &Arc<Self>, key: KeyHash, connection: Connection) {
        let oldest = lock(&self.devices).insert(key, connection.clone());
        if let Some(oldest) = oldest {
            oldest.close(cyphonic_proto::close::NOT_ALLOWED, "more connections than a device needs");
        }
        self.answer_all(&connection, &self.waiting, &key, OF_DEVICE).await;
        lock(&self.devices).remove(&key, |other| other.id() == connection.id());
    }

    async fn serve_stranger(self: &Arc<Self>, connection: Connection) {
        let from = connection.handshake_address();
        if !lock(&self.strangers).enter(from) {
            connection.close(cyphonic_proto::close::UNAVAILABLE, "too many enrol at once: try again later");
            return;
        }
        let (source, share) = source_of(from);
        let answering = self.answer_all(&connection, &self.strangers_waiting, &source, share);
        if tokio::time::timeout(STRANGER_STAYS, answering).await.is_err() {
            connection.close(cyphonic_proto::close::DONE, "it takes too long");
        }
        lock(&self.strangers).leave(from);
    }

    /// Answers what comes on a connection, for an asker who may have `share` requests waiting.
    async fn answer_all<K: Key + Clone + Send + Sync + 'static>(
        self: &Arc<Self>,
        connection: &Connection,
        waiting: &Arc<Queue<K>>,
        asker: &K,
        share: usize,
    ) {
        while let Ok((request, responder)) = connection.accept_exchange().await {
            let Some(turn) = waiting.enter(asker, share) else {
                let busy = Refusal::retry(RefusalCode::TooMany, "the AS is busy", Duration::from_secs(2));
                respond(responder, &Message::Refusal(busy)).await;
                continue;
            };
            let (server, connection) = (Arc::clone(self), connection.clone());
            tokio::spawn(async move {
                let answer = server.work(connection.clone(), request).await;
                drop(turn);
                match verdict(&connection, &answer) {
                    Some(reason) => dismiss(&connection, responder, &answer, reason).await,
                    None => respond(responder, &answer).await,
                }
            });
        }
    }

    async fn work(&self, connection: Connection, request: Message) -> Message {
        // Never closed, so there is always a permit to come.
        let _permit = self.working.acquire().await;
        let service = Arc::clone(&self.service);
        let answer = tokio::task::spawn_blocking(move || {
            service.answer(connection.identity(), connection.remote_address(), &request, unix_now())
        });
        let answer = answer.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request's work panicked");
            Message::Refusal(Refusal::new(RefusalCode::Internal, "the service failed; its log says why"))
        });
        if matches!(answer, Message::EnrolResponse(_)) {
            self.enrolled.notify_one();
        }
        answer
    }
}

/// The authority that signs devices' certificates.
pub(super) fn load_authority(config: &Config, root: &CertificateDer<'_>) -> Result<Authority, StartError> {
    let files = config.devices_authority.as_ref().ok_or(StartError::NoRegister)?;
    let authority = Authority::load(&files.certificate, &files.key)?;
    // What it signed would use up tokens, and be believed by nobody.
    pki::check_devices_authority(&authority, &config.network, root)?;
    Ok(authority)
}

/// Why a device may not be here, if that is the answer to its request.
fn verdict<'a>(connection: &Connection, answer: &'a Message) -> Option<&'a str> {
    match answer {
        Message::Refusal(refusal)
            if matches!(refusal.code(), RefusalCode::Revoked | RefusalCode::NotAllowed) =>
        {
            connection.identity().map(|_| refusal.reason.as_str())
        }
        _ => None,
    }
}

/// Refuses a device for good: it does not stay, or its place would be one that it had as a member.
async fn dismiss(connection: &Connection, responder: Responder, answer: &Message, reason: &str) {
    // What is on its way when a connection is closed is lost. Who does not acknowledge does not stay for it.
    let answered = tokio::time::timeout(EXCHANGE_TIMEOUT, responder.respond_acknowledged(answer)).await;
    tracing::debug!(reason, ?answered, "a device's connection is closed");
    connection.close(cyphonic_proto::close::NOT_ALLOWED, reason);
}

async fn respond(responder: Responder, answer: &Message) {
    if let Err(error) = responder.respond(answer).await {
        tracing::debug!(%error, "an answer could not be sent");
    }
}
