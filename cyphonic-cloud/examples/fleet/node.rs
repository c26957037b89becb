//! A device that is connected to the NMS.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use cyphonic_proto::message::{
    DirectionRequest, Message, Refusal, RefusalCode, RegistrationRequest, RevocationConfirmation,
    RouteConfirmation, RouteDirection, endpoint,
};
use cyphonic_proto::{Role, version};
use cyphonic_transport::{ClientTls, Connection};
use tokio::task::JoinSet;

use crate::overlay::{Device, Overlay};
use crate::source::Source;

/// One that has registered, and answers the NMS.
pub(crate) struct Node {
    pub(crate) fqdn: String,
    connection: Connection,
    answers: Arc<Answers>,
}

/// What a node was told by the NMS, and has answered.
#[derive(Debug, Default)]
struct Answers {
    directed: AtomicUsize,
    withdrawn: AtomicUsize,
}

impl Node {
    /// Connects all, so many at once.
    pub(crate) async fn connect_all(
        overlay: &Arc<Overlay>,
        devices: Vec<(Device, Arc<Source>)>,
        at_once: usize,
    ) -> Result<Vec<Self>> {
        let waiting = Arc::new(Mutex::new(devices));
        let mut connecting = JoinSet::<Result<Vec<Self>>>::new();
        for _ in 0..at_once {
            let (overlay, waiting) = (Arc::clone(overlay), Arc::clone(&waiting));
            connecting.spawn(async move {
                let mut nodes = Vec::new();
                let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
                while let Some((device, source)) = next() {
                    let fqdn = device.fqdn.clone();
                    let node = Self::connect(&overlay, device, &source).await;
                    nodes.push(node.with_context(|| format!("{fqdn} is not connected"))?);
                }
                Ok(nodes)
            });
        }
        let mut nodes = Vec::new();
        while let Some(connected) = connecting.join_next().await {
            nodes.extend(connected.context("a node panicked")??);
        }
        Ok(nodes)
    }

    async fn connect(overlay: &Overlay, device: Device, source: &Source) -> Result<Self> {
        let tls = ClientTls::new(device.credentials);
        let (addresses, name) = ([overlay.address], overlay.service("nms"));
        let connection = source.transport.connect_service(&tls, &addresses, &name, Role::Nms).await?;
        let answers = Arc::<Answers>::default();
        tokio::spawn(answer(connection.clone(), Arc::clone(&answers)));
        match connection.open_exchange(&registration(source.address())).await? {
            Message::RegistrationResponse(_) => Ok(Self { fqdn: device.fqdn, connection, answers }),
            other => bail!("the NMS answers {}", shown(&other)),
        }
    }

    /// Asks for a set-up with another node, and is told which way.
    pub(crate) async fn ask_for(&self, fqdn: &str) -> Result<RouteDirection> {
        let request = DirectionRequest { fqdn: fqdn.to_owned(), ..DirectionRequest::default() };
        match self.connection.open_exchange(&Message::DirectionRequest(request)).await? {
            Message::RouteDirection(direction) if direction.peer_fqdn == fqdn => Ok(direction),
            other => bail!("{} asked for {fqdn} and got {}", self.fqdn, shown(&other)),
        }
    }

    /// How many set-ups of others it was asked to take part in, and has confirmed.
    pub(crate) fn directed(&self) -> usize {
        self.answers.directed.load(Ordering::Relaxed)
    }

    /// How many of its own were withdrawn.
    pub(crate) fn withdrawn(&self) -> usize {
        self.answers.withdrawn.load(Ordering::Relaxed)
    }

    /// Why it is not connected any more, if so.
    pub(crate) fn lost(&self) -> Option<String> {
        self.connection.quinn().close_reason().map(|reason| format!("{}: {reason}", self.fqdn))
    }
}

/// What an agent says after its start in a network without a NAT.
fn registration(address: SocketAddr) -> Message {
    Message::RegistrationRequest(RegistrationRequest {
        protocol_version: version::CURRENT,
        addresses: endpoint::list_to_wire(&[address]),
        ..RegistrationRequest::default()
    })
}

/// Answers the NMS as an agent does, for as long as the connection stands.
async fn answer(connection: Connection, answers: Arc<Answers>) {
    while let Ok((message, responder)) = connection.accept_exchange().await {
        let confirm = |setup_id| Message::RouteConfirmation(RouteConfirmation { setup_id });
        let (answer, counter) = match message {
            Message::RouteDirection(direction) => (confirm(direction.setup_id), Some(&answers.directed)),
            Message::RouteWithdrawal(withdrawal) => (confirm(withdrawal.setup_id), Some(&answers.withdrawn)),
            Message::RevocationNotice(_) => {
                (Message::RevocationConfirmation(RevocationConfirmation {}), None)
            }
            other => {
                let reason = format!("a node does not answer {}", other.name());
                (Refusal::new(RefusalCode::Malformed, reason).into(), None)
            }
        };
        // An answer that cannot be sent is missed by the NMS, which then withdraws the set-up.
        if responder.respond(&answer).await.is_ok()
            && let Some(counter) = counter
        {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn shown(message: &Message) -> String {
    match message {
        Message::Refusal(refusal) => format!("a refusal: {}", refusal.shown_reason()),
        other => other.name().to_owned(),
    }
}
