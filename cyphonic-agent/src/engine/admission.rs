//! The certificate in use, and whether the cloud lets this device in: no network is at fault where it does
//! not, and no waiting helps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_proto::Message;
use cyphonic_proto::message::RefusalCode;
use cyphonic_proto::node::{STOOD, Service};
use cyphonic_proto::time::UnixSeconds;
use cyphonic_transport::{ClientTls, Connection, Credentials};
use tokio::sync::Notify;

use super::renewal::{Lifetime, unix};
use super::run::Engine;
use crate::complaints::Complaints;
use crate::config::instance;
use crate::control::report::{HealthCheck, Severity};

/// The certificate in use, and what the cloud makes of it.
pub(super) struct Admission {
    pub(super) lifetime: Lifetime,
    /// Of the one on disk.
    pub(super) kept: Lifetime,
    pub(super) renewal_failure: Option<String>,
    /// Whoever renews the certificate is told that a service does not take it.
    pub(super) refused: Arc<Notify>,
    /// Why the cloud does not let this device in, as far as it said so.
    pub(super) not_admitted: Option<String>,
    complaints: Complaints<()>,
}

impl Admission {
    pub(super) fn by(lifetime: Lifetime) -> Self {
        Self {
            lifetime,
            kept: lifetime,
            renewal_failure: None,
            refused: Arc::new(Notify::new()),
            not_admitted: None,
            complaints: Complaints::default(),
        }
    }
}

impl Admission {
    /// The certificate in use is on disk.
    pub(super) fn renewal_kept(&mut self) {
        (self.kept, self.renewal_failure) = (self.lifetime, None);
    }

    /// What `status` says of the certificate.
    pub(super) fn certificate_health(&self, now: UnixSeconds) -> Option<HealthCheck> {
        self.lifetime.health(self.kept, self.renewal_failure.as_deref(), unix(now))
    }

    /// The cloud does not let this device in: whoever looks for errors in the log is to find it.
    fn refuse(&mut self, reason: String) {
        if self.complaints.is_news(Instant::now(), (), &reason) {
            tracing::error!("{}", health(&reason).message);
        }
        self.not_admitted = Some(reason);
    }
}

impl Engine {
    pub(super) fn renewed(&mut self, now: Instant, credentials: Credentials, lifetime: Lifetime) {
        self.tls = ClientTls::new(credentials).with_clock(self.clock.clone());
        self.admission.lifetime = lifetime;
        self.node.handle_renewed(now);
    }

    /// When the log is told of a connection to a service that stands now. Those of a device that is not let
    /// in end at once, and so do those to a standby that stands by; they are dialled again for as long as
    /// that lasts.
    pub(super) fn told_after(&self, service: &Service) -> Duration {
        let ends_soon = self.admission.not_admitted.is_some() || self.services.short.contains(service);
        if ends_soon { STOOD } else { Duration::ZERO }
    }

    /// What a service answered: the AS says who may not be here, the NMS lets in who may.
    pub(super) fn note_answer(&mut self, service: &Service, answer: &Message) {
        match (service, answer) {
            (Service::As, Message::Refusal(refusal))
                if matches!(refusal.code(), RefusalCode::Revoked | RefusalCode::NotAllowed) =>
            {
                self.admission.refuse(refusal.shown_reason());
            }
            (Service::Nms, Message::RegistrationResponse(_)) => self.admission.not_admitted = None,
            _ => {}
        }
    }

    /// How a connection to a service ended, if it has.
    pub(super) fn note_end(&mut self, service: &Service, connection: &Connection) {
        if admits(service) && connection.refused_our_certificate() {
            self.admission.refused.notify_one();
        }
        if admits(service)
            && let Some(reason) = connection.refused_us()
        {
            self.admission.refuse(reason);
        }
    }

    /// A service cannot be reached: that is what is wrong now.
    pub(super) fn note_unreachable(&mut self, service: &Service) {
        if admits(service) {
            self.admission.not_admitted = None;
        }
    }
}

/// Whether the log is told of the end of a connection that has stood for so long.
pub(super) fn is_news(
    ends: &mut Complaints<Service>,
    now: Instant,
    service: &Service,
    stood: Duration,
    reason: &str,
) -> bool {
    if stood >= STOOD {
        ends.settle(service);
    }
    ends.is_news(now, service.clone(), reason)
}

/// Relays are told by the others who may use them.
fn admits(service: &Service) -> bool {
    matches!(service, Service::As | Service::Nms)
}

/// What `status` says of it.
pub(super) fn health(reason: &str) -> HealthCheck {
    let message = format!(
        "the cloud does not let this device in: {reason}; if it was revoked or is not known, enrol it with `{} up --anew` \
         and a token of `cyphonic-cloud token create --name NAME --replace`; if another machine runs with its identity, enrol \
         that one under a name of its own",
        instance::command()
    );
    HealthCheck { id: "not-admitted".into(), severity: Severity::Error, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_end_at_once_are_told_once_and_others_each_time() {
        let (begun, mut ends) = (Instant::now(), Complaints::default());
        let mut told = |second, stood, reason: &str| {
            let (now, stood) = (begun + Duration::from_secs(second), Duration::from_secs(stood));
            is_news(&mut ends, now, &Service::Nms, stood, reason)
        };
        assert!(told(0, 0, "revoked"));
        assert!(!(1..60).any(|n| told(20 * n, 1, "revoked")));
        assert!(told(1_300, 1, "replaced by a newer connection"));
        assert!(told(1_400, 60, "replaced by a newer connection"));
    }
}
