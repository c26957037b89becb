//! When devices were last here, for the operator who asks since when one is gone.
//!
//! A device that goes is noted in the register, with others and some minutes later: devices that come and go all the time
//! must not wear out the disk below it. Until then a file in the run-time directory tells of it ([`Gone`]).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cyphonic_dataplane::sync::lock;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::clock::unix_now;
use super::kept::{Gone, Online};
use crate::register::{Register, UnixSeconds};
use crate::seldom::Seldom;

/// How often the register is told.
const NOTE: Duration = Duration::from_secs(600);

/// Notes who goes.
#[derive(Debug)]
pub(super) struct Seen {
    register: Arc<Register>,
    told: watch::Receiver<Online>,
    gone: Mutex<Gone>,
    failures: Seldom<()>,
}

impl Seen {
    /// For an NMS that tells who is online.
    pub(super) fn new(register: Arc<Register>, told: watch::Receiver<Online>) -> Self {
        Self { register, told, gone: Mutex::default(), failures: Seldom::ever_more_rarely() }
    }

    /// Who is gone, and not noted yet.
    pub(super) fn gone(&self) -> Gone {
        lock(&self.gone).clone()
    }

    /// Never ends.
    pub(super) async fn run(self: Arc<Self>) {
        let (mut told, mut here) = (self.told.clone(), Online::default());
        let mut note = tokio::time::interval(NOTE);
        note.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = told.changed() => {
                    let now_here = told.borrow_and_update().clone();
                    hear(&mut lock(&self.gone), &here, &now_here, unix_now());
                    here = now_here;
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
        lock(&self.gone).0.extend(self.told.borrow().0.keys().map(|fqdn| (fqdn.clone(), now)));
        self.note();
    }

    fn note(&self) {
        let noted = self.gone();
        if noted.0.is_empty() {
            return;
        }
        match self.register.note_seen(&noted.0) {
            // Not who has come and gone again meanwhile.
            Ok(()) => lock(&self.gone).0.retain(|fqdn, at| noted.0.get(fqdn) != Some(at)),
            Err(error) if self.failures.is_due((), unix_now()) => {
                tracing::warn!(%error, "it is not noted in the register when devices were last here");
            }
            Err(_) => {}
        }
    }
}

/// Adds those who were here and are not.
fn hear(gone: &mut Gone, were_here: &Online, are_here: &Online, now: UnixSeconds) {
    let left = were_here.0.keys().filter(|fqdn| !are_here.0.contains_key(*fqdn));
    gone.0.extend(left.map(|fqdn| (fqdn.clone(), now)));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::register::{IssuedCertificate, UnixSeconds};
    use crate::server::Presence;

    const NOW: UnixSeconds = 1_800_000_000;

    fn online(names: &[&str]) -> Online {
        let presence = Presence { since: NOW, by_tcp: false, doubled_at: None };
        Online(names.iter().map(|name| ((*name).to_owned(), presence.clone())).collect())
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
        let mut gone = Gone::default();
        hear(&mut gone, &online(&[]), &online(&["a.lab", "b.lab"]), NOW);
        assert_eq!(gone, Gone::default());
        hear(&mut gone, &online(&["a.lab", "b.lab"]), &online(&["b.lab", "c.lab"]), NOW + 1);
        hear(&mut gone, &online(&["b.lab", "c.lab"]), &online(&["b.lab"]), NOW + 2);
        assert_eq!(gone, Gone(BTreeMap::from([("a.lab".into(), NOW + 1), ("c.lab".into(), NOW + 2)])));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_gone_is_noted_once_in_a_while_and_all_are_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let register = register_of(&["a.lab", "b.lab", "c.lab"], &dir);
        let (here, told) = watch::channel(Online::default());
        let seen = Arc::new(Seen::new(Arc::clone(&register), told));
        let task = tokio::spawn(Arc::clone(&seen).run());
        let at = |name| register.device(name).unwrap().unwrap().last_seen_at;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for names in [&["a.lab", "b.lab"][..], &["b.lab"]] {
            here.send_replace(online(names));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!((seen.gone().0.len(), at("a.lab")), (1, None), "a file tells of it");
        let begun = unix_now();
        while at("a.lab").is_none() {
            // The writes are real, the waits are not.
            tokio::time::sleep(NOTE / 10).await;
            assert!(unix_now() < begun + 60, "it is not noted");
        }
        while !seen.gone().0.is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(at("b.lab"), None);
        task.abort();
        seen.finish();
        assert!(at("b.lab").is_some_and(|at| at.abs_diff(unix_now()) < 60));
        assert_eq!(at("c.lab"), None);
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
        assert_eq!(seen.gone().0.len(), 1);
        other.execute_batch("DROP TRIGGER full").unwrap();
        seen.note();
        assert!(
            seen.gone().0.is_empty() && register.device("a.lab").unwrap().unwrap().last_seen_at.is_some()
        );
    }
}
