//! The AS on its connections. Its work (signing, disk writes) is done in the blocking pool, a bounded number at once.

use std::sync::Arc;
use std::time::Duration;

use cyphonic_proto::message::{Message, Refusal, RefusalCode};
use cyphonic_transport::{Connection, Responder};
use tokio::sync::{Notify, Semaphore};

use super::StartError;
use super::clock::unix_now;
use super::credentials::Loaded;
use crate::authentication::{ManagementService, Service};
use crate::config::Config;
use crate::pki::{Authority, service_name};
use crate::register::Register;

/// Requests worked on at once; the register writes one at a time anyway.
const CONCURRENT: usize = 32;

/// Requests that may wait for their turn; a flood beyond is refused with a time to come back.
const WAITING: usize = 4_096;

/// A stranger has this long to enrol, retries included.
const STRANGER_STAYS: Duration = Duration::from_secs(30);

/// The AS.
pub(super) struct AuthenticationServer {
    service: Arc<Service>,
    waiting: Arc<Semaphore>,
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
        let Some(files) = &config.devices_authority else { return Err(StartError::NoRegister) };
        let authority = Authority::load(&files.certificate, &files.key)?;
        let management = ManagementService {
            name: service_name("nms", &config.network.zone),
            addresses: config.nms_addresses.clone(),
        };
        let lifetime = config.device_certificate_lifetime;
        let service =
            Service::new(config.network.clone(), register, authority, loaded.root, management, lifetime);
        Ok(Self {
            service: Arc::new(service),
            waiting: Arc::new(Semaphore::new(WAITING)),
            working: Semaphore::new(CONCURRENT),
            enrolled,
        })
    }

    /// Answers one connection's requests until it ends.
    pub(super) async fn serve(self: Arc<Self>, connection: Connection) {
        if connection.identity().is_some() {
            return self.answer_all(&connection).await;
        }
        if tokio::time::timeout(STRANGER_STAYS, self.answer_all(&connection)).await.is_err() {
            connection.close(cyphonic_proto::close::DONE, "enrolment takes too long");
        }
    }

    async fn answer_all(self: &Arc<Self>, connection: &Connection) {
        while let Ok((request, responder)) = connection.accept_exchange().await {
            let Ok(turn) = Arc::clone(&self.waiting).try_acquire_owned() else {
                let busy = Refusal::retry(RefusalCode::TooMany, "the AS is busy", Duration::from_secs(2));
                respond(responder, &Message::Refusal(busy)).await;
                continue;
            };
            let (server, connection) = (Arc::clone(self), connection.clone());
            tokio::spawn(async move {
                let answer = server.work(connection, request).await;
                drop(turn);
                respond(responder, &answer).await;
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

async fn respond(responder: Responder, answer: &Message) {
    if let Err(error) = responder.respond(answer).await {
        tracing::debug!(%error, "an answer could not be sent");
    }
}
