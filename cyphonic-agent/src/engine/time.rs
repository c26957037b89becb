//! What follows from knowing the time ([`Clock`]): who may not stay, and what `status` says of the host's
//! clock.

use std::time::Duration;

use cyphonic_proto::identity::Identity;
use cyphonic_proto::{Message, close};
use cyphonic_transport::clock::is_nearly_right;
use cyphonic_transport::{Clock, Connection};
use tokio::sync::mpsc;

use super::input::Input;
use super::run::Engine;
use crate::control::report::{HealthCheck, Severity};

/// Tells the engine once the time is known.
pub(super) fn report_told(clock: Clock, inputs: mpsc::Sender<Input>) {
    tokio::spawn(async move {
        clock.told().await;
        drop(inputs.send(Input::TimeTold).await);
    });
}

/// The time is asked for again once in so long, whatever speaks against it.
const ASKED_AGAIN: Duration = Duration::from_secs(3_600);

/// Tells the engine when something speaks against the time that is known.
pub(super) fn report_doubts(clock: Clock, inputs: mpsc::Sender<Input>) {
    tokio::spawn(async move {
        loop {
            clock.doubted().await;
            if inputs.send(Input::TimeDoubted).await.is_err() {
                return;
            }
            tokio::time::sleep(ASKED_AGAIN).await;
        }
    });
}

/// An answer that may be used: the service that gave it has a certificate that is valid, by the time as it is
/// known with the answer.
pub(super) fn believed(clock: &Clock, from: &Connection, answer: Message) -> Result<Message, String> {
    clock.hear(from, &answer).map_err(|error| error.to_string())?;
    Ok(answer)
}

impl Engine {
    pub(super) fn is_valid_now(&self, connection: &Connection) -> bool {
        connection.validity().contains(self.clock.now())
    }

    pub(super) fn is_identity_valid_now(&self, identity: &Identity) -> bool {
        identity.validity().contains(self.clock.now())
    }

    /// The time is known: services that were believed by a wrong clock are not any more.
    pub(super) fn time_told(&self) {
        for (service, open) in &self.services.standing {
            if !self.is_valid_now(&open.connection) {
                tracing::warn!(%service, "its certificate is not valid now, as it turns out");
                open.connection.close(close::NOT_ALLOWED, "the certificate is not valid now");
            }
        }
    }
}

/// What `status` says of the system's clock, when there is something to say.
pub(super) fn health(clock: &Clock) -> Option<HealthCheck> {
    let ahead = clock.system_ahead().filter(|ahead| !is_nearly_right(i128::from(*ahead)))?;
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    let message = format!(
        "this device's clock is {} {way} the cloud's, by which certificates are judged here; other programs may fail: is a time \
         service running (`timedatectl`)?",
        rough(ahead.unsigned_abs())
    );
    Some(HealthCheck { id: "clock-wrong".into(), severity: Severity::Warning, message })
}

/// For people.
fn rough(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(31_557_600, "years"), (86_400, "days"), (3_600, "hours"), (60, "minutes")];
    let (length, unit) =
        UNITS.into_iter().find(|(length, _)| seconds >= 2 * length).unwrap_or((1, "seconds"));
    format!("{} {unit}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_units_that_people_use() {
        let cases = [(61, "61 seconds"), (150, "2 minutes"), (7_300, "2 hours"), (946_728_000, "30 years")];
        for (seconds, told) in cases {
            assert_eq!(rough(seconds), told);
        }
    }
}
