//! When devices were last here, for the operator who asks since when one is gone.
//!
//! A device that goes is noted in the register, with others and some minutes later: devices that come and go all the time
//! must not wear out the disk below it. Until then a file in the run-time directory tells of it ([`Attendance`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cyphonic_dataplane::sync::lock;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::clock::unix_now;
use super::kept::{Attendance, Online};
use crate::register::{Register, UnixSeconds, Visit};
use crate::seldom::Seldom;

/// How often the register is told.
const NOTE: Duration = Duration::from_secs(600);

/// So many at once: others wait for the register meanwhile.
const AT_ONCE: usize = 1_000;

/// Notes who goes.
#[derive(Debug)]
pub(super) struct Seen {
    register: Arc<Register>,
    told: watch::Receiver<Online>,
    attendance: Mutex<Attendance>,
    failures: Seldom<()>,
}

impl Seen {
    /// For an NMS that tells who is online.
    pub(super) fn new(register: Arc<Register>, told: watch::Receiver<Online>) -> Self {
        Self { register, told, attendance: Mutex::default(), failures: Seldom::ever_more_rarely() }
    }

    /// Who is here, and who is gone and not noted yet.
    pub(super) fn attendance(&self) -> Attendance {
        lock(&self.attendance).clone()
    }

    /// Never ends.
    pub(super) async fn run(self: Arc<Self>) {
        let mut told = self.told.clone();
        let mut note = tokio::time::interval(NOTE);
        note.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = told.changed() => {
                    let here = told.borrow_and_update().clone();
                    hear(&mut lock(&self.attendance), here, unix_now());
                }
                _ = note.tick() => {
                    let seen = Arc::clone(&self);
                    // What panics there has been told of.
                    let _ = tokio::task::spawn_blocking(move || seen.note()).await;
                }
            }
        }
    }

    /// Notes all that are gone, and all that are here, who will be gone with this service.
    pub(super) fn finish(&self) {
        let now = unix_now();
        let mut attendance = lock(&self.attendance);
        // The last that was told may not have been heard.
        hear(&mut attendance, self.told.borrow().clone(), now);
        hear(&mut attendance, Online::default(), now);
        drop(attendance);
        self.note();
    }

    fn note(&self) {
        let gone = Arc::clone(&lock(&self.attendance).gone);
        let visits: Vec<_> = gone.iter().map(|(fqdn, visit)| (fqdn.clone(), *visit)).collect();
        for visits in visits.chunks(AT_ONCE) {
            if let Err(error) = self.register.note_seen(visits) {
                if self.failures.is_due((), unix_now()) {
                    tracing::warn!(%error, "it is not noted in the register when devices were last here");
                }
                return;
            }
            let mut attendance = lock(&self.attendance);
            let left = Arc::make_mut(&mut attendance.gone);
            for (fqdn, visit) in visits {
                // Not of who has come and gone again meanwhile.
                if left.get(fqdn) == Some(visit) {
                    left.remove(fqdn);
                }
            }
        }
    }
}

/// Those who were here and are not any more are gone; those who are here are not.
fn hear(attendance: &mut Attendance, here: Online, now: UnixSeconds) {
    let left = attendance.here.iter().filter(|(fqdn, _)| !here.contains_key(*fqdn));
    let left: BTreeMap<_, _> =
        left.map(|(fqdn, before)| (fqdn.clone(), Visit { since: before.since, until: now })).collect();
    if !left.is_empty() || attendance.gone.keys().any(|fqdn| here.contains_key(fqdn)) {
        let gone = Arc::make_mut(&mut attendance.gone);
        gone.retain(|fqdn, _| !here.contains_key(fqdn));
        gone.extend(left);
    }
    attendance.here = here;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::IssuedCertificate;
    use crate::server::Presence;

    const NOW: UnixSeconds = 1_800_000_000;

    fn online(names: &[&str]) -> Online {
        let presence = Presence { since: NOW, by_tcp: false, doubled_at: None };
        Arc::new(names.iter().map(|name| ((*name).to_owned(), presence.clone())).collect())
    }

    fn register_of(names: &[&str], dir: &tempfile::TempDir) -> Arc<Register> {
        let register = Register::create(&dir.path().join("register.db")).unwrap();
        let issued = names.iter().zip(1u8..).map(|(name, n)| IssuedCertificate {
            fqdn: (*name).to_owned(),
            virtual_address: [n; 16].into(),
            der: vec![0x30],
            serial: vec![n],
            spki_sha256: cyphonic_proto::identity::KeyHash([n; 32]),
            not_before: NOW,
            not_after: NOW + 1,
        });
        register.take_up(&issued.collect::<Vec<_>>(), NOW).unwrap();
        Arc::new(register)
    }

    #[test]
    fn who_was_here_and_is_not_is_gone() {
        let mut attendance = Attendance::default();
        hear(&mut attendance, online(&["a.lab", "b.lab"]), NOW);
        assert!(attendance.gone.is_empty());
        hear(&mut attendance, online(&["b.lab", "c.lab"]), NOW + 1);
        hear(&mut attendance, online(&["b.lab"]), NOW + 2);
        let visit = |until| Visit { since: NOW, until };
        let gone = BTreeMap::from([("a.lab".into(), visit(NOW + 1)), ("c.lab".into(), visit(NOW + 2))]);
        assert_eq!((&*attendance.gone, &attendance.here), (&gone, &online(&["b.lab"])));
        hear(&mut attendance, online(&["a.lab", "b.lab"]), NOW + 3);
        assert_eq!(attendance.gone.keys().collect::<Vec<_>>(), ["c.lab"], "who is back is not gone");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_gone_is_noted_once_in_a_while_and_all_are_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let register = register_of(&["a.lab", "b.lab", "c.lab", "d.lab"], &dir);
        let (here, told) = watch::channel(Online::default());
        let seen = Arc::new(Seen::new(Arc::clone(&register), told));
        let task = tokio::spawn(Arc::clone(&seen).run());
        let at = |name| register.device(name).unwrap().unwrap().last_seen_at;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for names in [&["a.lab", "b.lab"][..], &["b.lab"]] {
            here.send_replace(online(names));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!((seen.attendance().gone.len(), at("a.lab")), (1, None), "a file tells of it");
        let begun = unix_now();
        while !seen.attendance().gone.is_empty() {
            // The writes are real, the waits are not.
            tokio::time::sleep(NOTE / 10).await;
            assert!(unix_now() < begun + 60, "it is not noted");
        }
        assert!(at("a.lab").is_some() && at("b.lab").is_none());
        task.abort();
        // Told, and not heard.
        here.send_replace(online(&["c.lab"]));
        seen.finish();
        for name in ["b.lab", "c.lab"] {
            assert!(at(name).is_some_and(|at| at.abs_diff(unix_now()) < 60), "{name}");
        }
        assert_eq!(at("d.lab"), None);
    }

    #[test]
    fn a_visit_of_who_had_the_name_before_is_not_its_successors() {
        let dir = tempfile::tempdir().unwrap();
        let register = register_of(&["a.lab"], &dir);
        let note = |since| register.note_seen(&[("a.lab".into(), Visit { since, until: NOW + 9 })]).unwrap();
        let at = || register.device("a.lab").unwrap().unwrap().last_seen_at;
        note(NOW - 1);
        assert_eq!(at(), None);
        note(NOW);
        assert_eq!(at(), Some(NOW + 9));
    }

    #[test]
    fn what_cannot_be_noted_is_noted_later() {
        let dir = tempfile::tempdir().unwrap();
        let register = register_of(&["a.lab"], &dir);
        let other = rusqlite::Connection::open(dir.path().join("register.db")).unwrap();
        other
            .execute_batch(
                "CREATE TRIGGER full BEFORE UPDATE ON devices BEGIN SELECT RAISE(ABORT, 'disk full'); END",
            )
            .unwrap();
        let seen = Seen::new(Arc::clone(&register), watch::channel(online(&["a.lab"])).1);
        seen.finish();
        assert_eq!(seen.attendance().gone.len(), 1);
        other.execute_batch("DROP TRIGGER full").unwrap();
        seen.note();
        assert!(seen.attendance().gone.is_empty());
        assert!(register.device("a.lab").unwrap().unwrap().last_seen_at.is_some());
    }
}
