//! Keeps the device's certificate from ending.
//!
//! Certificates end after weeks so that a stolen one does; the device therefore gets another one in time,
//! from two thirds of its certificate's life on. It looks at start and then about once an hour rather than
//! sleeping until the day: boards without a battery learn the time late, and others sleep. What fails is
//! tried again, and `status` tells.
//!
//! Invariants: a new certificate is checked before it is used, and used even where the disk is full; tunnels
//! that stand are not touched, since the key stays and each was authenticated when it was made. Connections
//! to services end with the certificate that they were made with, so others are made; those that stand carry
//! on until these do, though what a service asks on one of them meanwhile is not answered.
//!
//! A cloud whose clock is ahead makes certificates that begin in the future, which it refuses itself once its
//! clock is right. So the certificate before is kept: where the one in use is refused, another one is asked
//! for by that.

use std::sync::Arc;
use std::time::Duration;

use cyphonic_proto::close;
use cyphonic_proto::identity::{Identity, Role};
use cyphonic_proto::time::UnixSeconds;
use cyphonic_transport::{ClientTls, Clock, ServerTls, Transport};
use tokio::sync::{Notify, mpsc};

use super::input::Input;
use super::membership::credentials;
use crate::complaints::Complaints;
use crate::config::{CloudAddress, instance, resolve_all};
use crate::control::report::{HealthCheck, Severity};
use crate::renew::{RenewError, renew};
use crate::state::{DeviceIdentity, StateDir};

/// The longest time between two looks, and between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// The same for the shortest-lived certificates.
const SHORTEST_CYCLE: Duration = Duration::from_secs(60);

/// The wait after the first failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(15);

/// How long the first look waits for a service to tell the time. Where none does, there is none to renew at
/// either.
const PATIENCE: Duration = Duration::from_secs(5);

/// What renewing needs beyond what the engine has.
#[derive(Debug)]
pub struct RenewalParts {
    /// The identity in use.
    pub device: DeviceIdentity,
    /// The one before the last renewal.
    pub former: Option<DeviceIdentity>,
    /// Where it is kept.
    pub state: StateDir,
    /// Where the AS is.
    pub cloud: Vec<CloudAddress>,
}

/// A certificate's life: from when to when it is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

impl Lifetime {
    pub(crate) fn of(identity: &Identity) -> Self {
        Self { not_before: identity.not_before, not_after: identity.not_after }
    }

    fn life(self) -> i64 {
        self.not_after.saturating_sub(self.not_before).max(0)
    }

    /// Less than a third is left.
    fn is_due(self, now: i64) -> bool {
        now >= self.not_after.saturating_sub(self.life() / 3)
    }

    /// Whether to save what is not kept yet is what there is to do: a disk that never takes it is no reason
    /// to let the certificate end.
    fn is_saved_first(self, unsaved: bool, now: i64) -> bool {
        unsaved && !self.is_due(now)
    }

    /// How long to wait for the next look or attempt after this many failures. `random` in [0, 1) spreads a
    /// fleet that was enrolled, switched on, or lost its cloud at one moment over the second half of the
    /// wait.
    fn wait(self, failures: u32, random: f64) -> Duration {
        let cycle = Duration::from_secs(self.life().unsigned_abs() / 24).clamp(SHORTEST_CYCLE, LONGEST_WAIT);
        let wait = match failures {
            0 => cycle,
            n => FIRST_RETRY.saturating_mul(1 << (n - 1).min(16)).min(cycle),
        };
        wait / 2 + (wait / 2).mul_f64(random)
    }

    /// What `status` says of it, when there is something to say. `kept`: of the one on disk, by which the next start
    /// begins.
    pub(crate) fn health(self, kept: Self, failure: Option<&str>, now: i64) -> Option<HealthCheck> {
        let check =
            |severity, message| Some(HealthCheck { id: "certificate-expires".into(), severity, message });
        let why = failure.unwrap_or("the attempt is under way");
        if now >= self.not_after {
            let message = format!(
                "this device's certificate has ended, neither cloud nor peers accept it: is the clock right? If so, stop the \
                 daemon and enrol again (`{} up --anew --token`) with a token of `cyphonic-cloud token create --replace`. \
                 It was not renewed: {why}",
                instance::command()
            );
            return check(Severity::Error, message);
        }
        failure?;
        if self != kept {
            let (severity, until) = match now >= kept.not_after {
                true => (Severity::Error, "has ended".to_owned()),
                false => (Severity::Warning, format!("ends in {}", left(kept.not_after - now))),
            };
            let message = format!(
                "this device's renewed certificate is not on disk, and the one there {until}: a restart after that needs a new token. Do not \
                 restart it before its disk can be written: {why}"
            );
            return check(severity, message);
        }
        if !self.is_due(now) {
            return None;
        }
        let left = left(self.not_after - now);
        check(
            Severity::Warning,
            format!("this device's certificate ends in {left} and is not renewed: {why}"),
        )
    }
}

/// So many seconds in words.
fn left(seconds: i64) -> String {
    match seconds / 3_600 {
        hours if hours >= 48 => format!("{} days", hours / 24),
        hours => format!("{hours} hours"),
    }
}

/// A time, as certificates count.
pub(crate) fn unix(time: UnixSeconds) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// Runs until the engine ends.
pub(crate) struct Renewal {
    pub(crate) parts: RenewalParts,
    pub(crate) lifetime: Lifetime,
    pub(crate) clock: Clock,
    pub(crate) as_name: String,
    pub(crate) transport: Arc<Transport>,
    pub(crate) inputs: mpsc::Sender<Input>,
    /// Told when a service has refused the certificate in use.
    pub(crate) refused: Arc<Notify>,
}

impl Renewal {
    pub(crate) async fn run(mut self) {
        let (mut failures, mut unsaved, mut refused) = (0_u32, false, false);
        // By a clock that is years ahead, every start would be the time to renew.
        let mut told = tokio::time::timeout(PATIENCE, self.clock.told()).await.is_ok();
        loop {
            let outcome = match self.lifetime.is_saved_first(unsaved, unix(self.clock.now())) {
                true => self.save().await,
                false => self.look(refused).await,
            };
            let mut at_least = Duration::ZERO;
            match outcome {
                Ok(()) => (failures, refused, unsaved) = (0, false, false),
                Err(error) => {
                    unsaved |= matches!(error, RenewError::Save(_));
                    tracing::warn!(%error, "this device's certificate is not renewed");
                    at_least = error.retry_after().unwrap_or_default().min(LONGEST_WAIT);
                    failures = failures.saturating_add(1);
                    self.tell(Input::RenewalFailed(error.to_string())).await;
                }
            }
            let wait = self.lifetime.wait(failures, rand::random()).max(at_least);
            tokio::select! {
                () = self.inputs.closed() => return,
                () = tokio::time::sleep(wait) => {}
                // Later attempts wait for their turn.
                () = self.refused.notified(), if failures == 0 && self.parts.former.is_some() => refused = true,
                // It is later than the host's clock had it, or earlier.
                () = self.clock.told(), if !told => told = true,
            }
        }
    }

    /// Renews, if it is time, or by the former certificate, if the one in use is refused. That may be for
    /// another reason, which the AS then gives.
    async fn look(&mut self, refused: bool) -> Result<(), RenewError> {
        let by_former = match self.parts.former.clone().filter(|_| refused) {
            Some(former) => self.renew(former).await,
            None => Ok(()),
        };
        match by_former {
            Ok(()) if refused => Ok(()),
            _ if self.lifetime.is_due(unix(self.clock.now())) => self.renew(self.parts.device.clone()).await,
            by_former => by_former,
        }
    }

    /// Gets another certificate by this one.
    async fn renew(&mut self, current: DeviceIdentity) -> Result<(), RenewError> {
        // Asked anew each time: the name may mean other addresses than weeks ago.
        let addresses = resolve_all(&self.parts.cloud, &mut Complaints::default()).await;
        if addresses.is_empty() {
            return Err(RenewError::NoCloud);
        }
        let wrong = |error: &dyn std::fmt::Display| RenewError::Answer(error.to_string());
        let identity = Identity::from_der(current.leaf()).map_err(|error| wrong(&error))?;
        let tls = ClientTls::new(credentials(&current, &identity)).with_clock(self.clock.clone());
        let connection =
            self.transport.connect_service_somehow(&tls, &addresses, &self.as_name, Role::As).await?;
        let renewed = renew(&current, &connection, &self.clock).await;
        connection.close(close::DONE, "done");
        self.adopt(renewed?, current).await
    }

    /// Takes a new identity into use, and then keeps it: a full disk is no reason to let a device fall out of
    /// the overlay.
    async fn adopt(&mut self, device: DeviceIdentity, former: DeviceIdentity) -> Result<(), RenewError> {
        let wrong = |error: &dyn std::fmt::Display| RenewError::Answer(error.to_string());
        let identity = Identity::from_der(device.leaf()).map_err(|error| wrong(&error))?;
        let credentials = credentials(&device, &identity);
        let server = ServerTls::peer(&credentials).map_err(|error| wrong(&error))?;
        let server = server.with_clock(self.clock.clone());
        self.clock.set_floor(identity.validity().not_before);
        self.transport.set_server(server).map_err(|error| wrong(&error))?;
        self.lifetime = Lifetime::of(&identity);
        (self.parts.device, self.parts.former) = (device, Some(former));
        tracing::info!(not_after = self.lifetime.not_after, "this device's certificate was renewed");
        self.tell(Input::Renewed { credentials, lifetime: self.lifetime }).await;
        self.save().await
    }

    async fn save(&self) -> Result<(), RenewError> {
        match &self.parts.former {
            Some(former) => self.parts.state.save_renewed(&self.parts.device, former)?,
            None => self.parts.state.save_identity(&self.parts.device)?,
        }
        self.tell(Input::RenewalKept).await;
        Ok(())
    }

    async fn tell(&self, input: Input) {
        // An engine that has ended needs no certificate.
        drop(self.inputs.send(input).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    const QUARTER: Lifetime = Lifetime { not_before: 0, not_after: 90 * DAY };
    const HOURS: Lifetime = Lifetime { not_before: 0, not_after: 7_200 };

    #[test]
    fn a_disk_that_takes_nothing_does_not_keep_a_certificate_from_being_renewed() {
        assert!(QUARTER.is_saved_first(true, 59 * DAY) && !QUARTER.is_saved_first(false, 59 * DAY));
        assert!(!QUARTER.is_saved_first(true, 60 * DAY));
    }

    #[test]
    fn it_is_due_from_two_thirds_of_its_life_on() {
        let cases = [
            (QUARTER, -DAY, false),
            (QUARTER, 0, false),
            (QUARTER, 60 * DAY - 1, false),
            (QUARTER, 60 * DAY, true),
            (QUARTER, 90 * DAY, true),
            (QUARTER, 900 * DAY, true),
            (HOURS, 4_799, false),
            (HOURS, 4_800, true),
            // Nonsense is due at its end and overflows nothing.
            (Lifetime { not_before: 5, not_after: 3 }, 2, false),
            (Lifetime { not_before: 5, not_after: 3 }, 3, true),
            (Lifetime { not_before: i64::MIN, not_after: i64::MAX }, 0, false),
        ];
        for (lifetime, now, due) in cases {
            assert_eq!(lifetime.is_due(now), due, "{lifetime:?} at {now}");
        }
    }

    #[test]
    fn waits_double_up_to_an_hour_and_are_spread_over_their_second_half() {
        let seconds = |lifetime: Lifetime, failures, random| lifetime.wait(failures, random).as_secs_f64();
        let cases = [
            (QUARTER, 0, 3_600.0),
            (QUARTER, 1, 15.0),
            (QUARTER, 2, 30.0),
            (QUARTER, 5, 240.0),
            (QUARTER, 9, 3_600.0),
            (QUARTER, u32::MAX, 3_600.0),
            (HOURS, 0, 300.0),
            (HOURS, 9, 300.0),
            (Lifetime { not_before: 0, not_after: 0 }, 0, 60.0),
        ];
        for (lifetime, failures, most) in cases {
            assert_eq!(seconds(lifetime, failures, 0.0), most / 2.0, "{lifetime:?} after {failures}");
            let almost = seconds(lifetime, failures, 0.999);
            assert!(almost > most * 0.99 && almost < most, "{lifetime:?} after {failures}: {almost}");
        }
    }

    #[test]
    fn a_failure_has_many_attempts_before_the_certificate_ends() {
        for lifetime in [QUARTER, HOURS] {
            let mut now = lifetime.not_after - lifetime.life() / 3;
            let mut attempts = 0;
            while now < lifetime.not_after {
                attempts += 1;
                now += i64::try_from(lifetime.wait(attempts, 0.999).as_secs()).unwrap() + 1;
            }
            assert!(attempts >= 10, "{attempts} for {lifetime:?}");
        }
    }

    #[test]
    fn status_speaks_of_failures_in_the_last_third_and_of_the_end() {
        let health =
            |failure, now| QUARTER.health(QUARTER, failure, now).map(|check| (check.severity, check.message));
        assert_eq!(health(None, 89 * DAY), None);
        assert_eq!(health(Some("no route"), 59 * DAY), None);
        let (severity, message) = health(Some("no route"), 61 * DAY).unwrap();
        assert_eq!(severity, Severity::Warning);
        assert!(message.contains("29 days") && message.contains("no route"), "{message}");
        let (_, message) = health(Some("no route"), 89 * DAY).unwrap();
        assert!(message.contains("24 hours"), "{message}");
        for failure in [None, Some("no route")] {
            let (severity, message) = health(failure, 90 * DAY).unwrap();
            assert_eq!(severity, Severity::Error);
            assert!(message.contains("enrol again"), "{message}");
        }
    }

    /// A restart would be by the one before.
    #[test]
    fn status_speaks_of_a_renewed_certificate_that_is_not_on_disk() {
        let renewed = Lifetime { not_before: 60 * DAY, not_after: 150 * DAY };
        let health = |kept, failure, now| {
            let check = renewed.health(kept, failure, now * DAY);
            check.map(|check| (check.id, check.severity, check.message))
        };
        let (id, severity, message) = health(QUARTER, Some("read-only"), 61).unwrap();
        assert_eq!((id.as_str(), severity), ("certificate-expires", Severity::Warning));
        assert!(message.contains("ends in 29 days") && message.contains("read-only"), "{message}");
        let (_, severity, message) = health(QUARTER, Some("read-only"), 95).unwrap();
        assert!(severity == Severity::Error && message.contains("has ended"), "{message}");
        assert_eq!(health(QUARTER, None, 61), None, "it is being written");
        assert_eq!(health(renewed, Some("no route"), 61), None);
    }
}
