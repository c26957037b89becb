//! Whether the cloud lets this device in: no network is at fault where it does not, and no waiting helps.

use cyphonic_proto::Message;
use cyphonic_proto::message::RefusalCode;
use cyphonic_proto::node::Service;
use cyphonic_transport::Connection;

use super::run::Engine;
use crate::control::report::{HealthCheck, Severity};

impl Engine {
    /// What a service answered: the AS says who may not be here, the NMS lets in who may.
    pub(super) fn note_answer(&mut self, service: &Service, answer: &Message) {
        match (service, answer) {
            (Service::As, Message::Refusal(refusal))
                if matches!(refusal.code(), RefusalCode::Revoked | RefusalCode::NotAllowed) =>
            {
                self.not_admitted = Some(refusal.shown_reason());
            }
            (Service::Nms, Message::RegistrationResponse(_)) => self.not_admitted = None,
            _ => {}
        }
    }

    /// How a connection to a service ended, if it has.
    pub(super) fn note_end(&mut self, service: &Service, connection: &Connection) {
        if admits(service)
            && let Some(reason) = connection.refused_us()
        {
            self.not_admitted = Some(reason);
        }
    }

    /// A service cannot be reached: that is what is wrong now.
    pub(super) fn note_unreachable(&mut self, service: &Service) {
        if admits(service) {
            self.not_admitted = None;
        }
    }
}

/// Relays are told by the others who may use them.
fn admits(service: &Service) -> bool {
    matches!(service, Service::As | Service::Nms)
}

/// What `status` says of it.
pub(super) fn health(reason: &str) -> HealthCheck {
    let message = format!(
        "the cloud does not let this device in: {reason}; if it was revoked or is not known, enrol it with `cyphonic up --anew` \
         and a token of `cyphonic-cloud token create --name NAME --replace`; if another machine runs with its identity, enrol \
         that one under a name of its own"
    );
    HealthCheck { id: "not-admitted".into(), severity: Severity::Error, message }
}
