//! When the services' certificates end, what is to be said of that, and the task that says it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::register::UnixSeconds;

const DAY: UnixSeconds = 24 * 3600;

/// From this long before its end on, a certificate's end is announced.
const NOTICE: UnixSeconds = 60 * DAY;

/// From when to when a service's certificate is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The service's name in its zone: `as`, `nms`, or a relay's.
    pub service: String,
    /// Its file.
    pub certificate: PathBuf,
    /// Valid from then on.
    pub not_before: UnixSeconds,
    /// Valid until then.
    pub not_after: UnixSeconds,
    /// Whether who made it lies beside it, with its key: then the service renews it.
    pub renews_itself: bool,
}

/// What a certificate is worth at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not valid yet.
    Early,
    /// Valid for long.
    Sound,
    /// Valid, but it is time to renew it.
    EndsSoon {
        /// Whole days.
        days_left: u64,
    },
    /// Not valid any more.
    Ended,
}

impl Term {
    /// Whole days until its end.
    pub fn days_left(&self, now: UnixSeconds) -> u64 {
        self.not_after.saturating_sub(now) / DAY
    }

    /// Whether it is to be renewed now.
    pub(super) fn is_due(&self, now: UnixSeconds) -> bool {
        matches!(self.standing(now), Standing::EndsSoon { .. } | Standing::Ended)
    }

    /// Why nobody would accept the certificate, if so.
    pub fn objection(&self, now: UnixSeconds) -> Option<&'static str> {
        match self.standing(now) {
            Standing::Early => Some("it is not valid yet: is this machine's clock right?"),
            Standing::Ended => {
                Some("it has expired: renew it (cyphonic-cloud renew) where the services' key is")
            }
            Standing::Sound | Standing::EndsSoon { .. } => None,
        }
    }

    /// What the certificate is worth now.
    pub fn standing(&self, now: UnixSeconds) -> Standing {
        let left = self.not_after.saturating_sub(now);
        if left == 0 {
            Standing::Ended
        } else if now < self.not_before {
            Standing::Early
        } else if left < NOTICE {
            Standing::EndsSoon { days_left: self.days_left(now) }
        } else {
            Standing::Sound
        }
    }
}

impl Standing {
    /// Its name, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Early => "early",
            Self::Sound => "sound",
            Self::EndsSoon { .. } => "ends_soon",
            Self::Ended => "ended",
        }
    }
}

/// Of which certificates there is something to say now, and what.
fn notices(terms: &[Term], now: UnixSeconds) -> impl Iterator<Item = (&Term, Standing)> {
    let judged = terms.iter().map(move |term| (term, term.standing(now)));
    judged.filter(|(_, standing)| *standing != Standing::Sound)
}

/// Has the certificates looked after at once, every day, and when somebody asks, and says what there is to
/// say of them then: a service may run for years. Never ends.
pub(super) async fn announce(
    mut keep: impl FnMut(UnixSeconds) -> Vec<Term>,
    asked: Arc<Notify>,
    now: impl Fn() -> UnixSeconds,
    mut say: impl FnMut(&Term, Standing),
) {
    let mut daily = tokio::time::interval(Duration::from_secs(DAY));
    loop {
        tokio::select! {
            _ = daily.tick() => {}
            () = asked.notified() => {}
        }
        let now = now();
        notices(&keep(now), now).for_each(|(term, standing)| say(term, standing));
    }
}

/// Says it in the log.
pub(super) fn log(term: &Term, standing: Standing) {
    let certificate = term.certificate.display();
    match standing {
        Standing::EndsSoon { days_left } => {
            tracing::warn!(%certificate, days_left, "a certificate ends soon: renew it (cyphonic-cloud renew)");
        }
        Standing::Ended => {
            tracing::error!(%certificate, "a certificate has ended, no device connects: renew it (cyphonic-cloud renew), and the service takes it into use (systemctl reload cyphonic-cloud)");
        }
        Standing::Early => {
            tracing::error!(%certificate, "a certificate is not valid yet: is this machine's clock right?");
        }
        Standing::Sound => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const END: UnixSeconds = 1_800_000_000;

    fn term(not_after: UnixSeconds) -> Term {
        let (service, certificate, not_before) = ("as".into(), "as.crt".into(), END - 730 * DAY);
        Term { service, certificate, not_before, not_after, renews_itself: false }
    }

    #[test]
    fn there_is_something_to_say_from_sixty_days_before_the_end() {
        let standing = |now| term(END).standing(now);
        assert_eq!(standing(END - 61 * DAY), Standing::Sound);
        assert_eq!(standing(END - 60 * DAY), Standing::Sound);
        assert_eq!(standing(END - 59 * DAY), Standing::EndsSoon { days_left: 59 });
        assert_eq!(standing(END - 1), Standing::EndsSoon { days_left: 0 });
        assert_eq!(standing(END), Standing::Ended);
        assert_eq!(standing(END + 1000 * DAY), Standing::Ended);
        assert_eq!(standing(END - 731 * DAY), Standing::Early);
        let terms = [term(END), term(END + 3 * DAY), term(END + 90 * DAY)];
        let said: Vec<_> = notices(&terms, END + DAY).collect();
        let expected = [(&terms[0], Standing::Ended), (&terms[1], Standing::EndsSoon { days_left: 2 })];
        assert_eq!(said, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_runs_on_says_it_every_day() {
        let (start, said) = (tokio::time::Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let now = move || END - 61 * DAY + start.elapsed().as_secs();
        let heard = Arc::clone(&said);
        let say = move |_: &Term, standing| heard.lock().unwrap().push(standing);
        let task = tokio::spawn(announce(|_| vec![term(END)], Arc::default(), now, say));
        let after = async |days: u64| {
            // The clock jumps to the timer that is due next: the task is never late.
            tokio::time::sleep_until(start + Duration::from_secs(days * DAY + 1)).await;
            said.lock().unwrap().clone()
        };
        assert_eq!(after(1).await, []);
        assert_eq!(after(3).await, [59, 58].map(|days_left| Standing::EndsSoon { days_left }));
        assert_eq!(after(63).await.len(), 62);
        assert_eq!(said.lock().unwrap()[59..], [Standing::Ended; 3]);
        task.abort();
    }
}
