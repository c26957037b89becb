//! The clock by which a device judges certificates: [`TrustedTime`] with the host's clocks.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cyphonic_dataplane::sync;
use cyphonic_proto::message::Message;
use cyphonic_proto::time::{Reading, TimeError, TrustedTime, UnixSeconds, Validity, Witness};
use cyphonic_proto::{Role, identity};
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::sync::{Notify, watch};

use crate::connection::Connection;

/// A clock that is off by no more is right, for people.
const NEARLY_RIGHT_S: u128 = 60;

/// Whether a clock that is ahead by so many seconds, or behind, is right, for people.
pub fn is_nearly_right(ahead_s: i128) -> bool {
    ahead_s.unsigned_abs() <= NEARLY_RIGHT_S
}

/// One clock, shared by everything in a process that judges certificates.
#[derive(Clone)]
pub struct Clock(Arc<Shared>);

struct Shared {
    time: Mutex<TrustedTime>,
    told: watch::Sender<bool>,
    doubted: Notify,
    read: Box<dyn Fn() -> Reading + Send + Sync>,
}

impl Clock {
    /// The host's clocks; it is `floor` or later.
    pub fn new(floor: UnixSeconds) -> Self {
        Self::reading(floor, host_clocks)
    }

    /// The same with other clocks.
    pub fn reading(floor: UnixSeconds, clocks: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        let time = Mutex::new(TrustedTime::new(floor));
        let (told, doubted) = (watch::Sender::new(false), Notify::new());
        Self(Arc::new(Shared { time, told, doubted, read: Box::new(clocks) }))
    }

    /// The best that is known.
    pub fn now(&self) -> UnixSeconds {
        self.time().now((self.0.read)())
    }

    /// By how much the system's clock is ahead, once a service has told the time; negative: behind.
    pub fn system_ahead(&self) -> Option<i64> {
        let reading = (self.0.read)();
        let time = self.time();
        let (system, now) = (i64::try_from(reading.system).ok()?, i64::try_from(time.now(reading)).ok()?);
        time.is_told().then(|| system.saturating_sub(now))
    }

    /// Waits until a service has told the time.
    pub async fn told(&self) {
        let mut told = self.0.told.subscribe();
        if told.wait_for(|told| *told).await.is_err() {
            // Not before this clock goes, which is borrowed here.
            std::future::pending().await
        }
    }

    /// Waits until something has spoken against the time that is known: whose word it is by is to be asked again. It may have
    /// been told while that machine's clock was wrong, and a machine that was paused did not notice.
    pub async fn doubted(&self) {
        self.0.doubted.notified().await;
    }

    /// A chain is not valid now that seems to be in use.
    pub(crate) fn doubt(&self) {
        if self.time().is_told() {
            self.0.doubted.notify_one();
        }
    }

    /// It is `floor` or later: so says the certificate in use.
    pub fn set_floor(&self, floor: UnixSeconds) {
        self.time().set_floor(floor);
    }

    /// At which time to judge the chain of a service that will tell the time.
    pub(crate) fn judge_at(&self, chain: Validity) -> UnixSeconds {
        self.time().judge_at(chain, (self.0.read)())
    }

    /// Takes the word for the time in a service's answer. To be asked before the answer is used in any other
    /// way: the service may have been heard only for the sake of the time.
    ///
    /// # Errors
    /// When the service's certificates do not allow to believe the answer.
    pub fn hear(&self, from: &Connection, answer: &Message) -> Result<(), TimeError> {
        let time = match answer {
            Message::EnrolResponse(answer) => answer.time,
            Message::LoginResponse(answer) => answer.time,
            Message::RenewResponse(answer) => answer.time,
            Message::RegistrationResponse(answer) => answer.time,
            // It gives nothing, and says why.
            Message::Refusal(_) => return Ok(()),
            _ => 0,
        };
        // Only these two are let in by a certificate that is not valid by the clock (`tls.rs`).
        let by = match from.identity().map(|identity| identity.role) {
            Some(Role::As) => Witness::As,
            Some(Role::Nms) => Witness::Nms,
            Some(Role::Trs | Role::Device) | None => return Ok(()),
        };
        self.hear_word(by, time, from.validity())
    }

    fn hear_word(&self, by: Witness, time: UnixSeconds, chain: Validity) -> Result<(), TimeError> {
        let reading = (self.0.read)();
        let first = self.time().hear(by, time, chain, reading)?;
        // Of what was not taken, since a better witness has spoken.
        let off = i128::from(time) - i128::from(self.now());
        if time != 0 && !is_nearly_right(off) {
            tracing::debug!(by = ?by, off_s = off, "a service has another time");
            self.doubt();
        }
        if first {
            let ahead = i128::from(reading.system) - i128::from(time);
            if is_nearly_right(ahead) {
                tracing::info!(by = ?by, system_ahead_s = ahead, "the time is known");
            } else {
                tracing::warn!(by = ?by, system_ahead_s = ahead, "the time is known, and this machine's clock is wrong");
            }
            self.0.told.send_replace(true);
        }
        Ok(())
    }

    fn time(&self) -> MutexGuard<'_, TrustedTime> {
        sync::lock(&self.0.time)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.time()).finish()
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.now()))
    }
}

/// As rustls counts.
pub(crate) fn unix_time(seconds: UnixSeconds) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// While a connection's chain, as it was presented, is valid; always for a connection without one.
pub(crate) fn validity_of(connection: &quinn::Connection) -> Validity {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
    let Some(chain) = chain else { return Validity::ALWAYS };
    // What was accepted can be read; if not, it was never valid.
    identity::validity_of_chain(chain.iter().map(AsRef::as_ref))
        .unwrap_or(Validity { not_before: UnixSeconds::MAX, not_after: 0 })
}

fn host_clocks() -> Reading {
    let boot = clock_gettime(ClockId::Boottime);
    let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Neither is negative.
    let since_boot =
        Duration::new(boot.tv_sec.unsigned_abs(), u32::try_from(boot.tv_nsec).unwrap_or_default());
    Reading { since_boot, system: system.as_secs() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_be_off_by_a_minute() {
        assert!([0, 60, -60].into_iter().all(is_nearly_right));
        assert!(![61, -61, i128::MIN].into_iter().any(is_nearly_right));
    }

    const NOW: UnixSeconds = 1_800_000_000;
    const DAY: UnixSeconds = 86_400;
    const SERVICE: Validity = Validity { not_before: NOW - 100 * DAY, not_after: NOW + 100 * DAY };

    async fn is_doubted(clock: &Clock) -> bool {
        tokio::time::timeout(Duration::ZERO, clock.doubted()).await.is_ok()
    }

    /// As by a cloud that started before it had the time itself.
    #[tokio::test]
    async fn who_has_another_time_than_the_one_that_is_believed_has_it_asked_for_again() {
        let clock =
            Clock::reading(NOW - 200 * DAY, || Reading { since_boot: Duration::from_secs(7), system: NOW });
        clock.doubt();
        assert!(!is_doubted(&clock).await, "nobody has told any");
        clock.hear_word(Witness::As, NOW - 9 * DAY, SERVICE).unwrap();
        assert!(!is_doubted(&clock).await);
        clock.hear_word(Witness::Nms, NOW, SERVICE).unwrap();
        assert_eq!(
            (clock.now(), is_doubted(&clock).await),
            (NOW - 9 * DAY, true),
            "it is not taken, and noted"
        );
        clock.hear_word(Witness::As, NOW, SERVICE).unwrap();
        clock.hear_word(Witness::Nms, NOW + 30, SERVICE).unwrap();
        clock.hear_word(Witness::Nms, 0, SERVICE).unwrap();
        assert_eq!((clock.now(), is_doubted(&clock).await), (NOW, false));
    }
}
