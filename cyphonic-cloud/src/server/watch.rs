//! Sees what changes in the register, whoever writes it: this process's AS, or an operator's command.

use std::sync::Arc;
use std::time::Duration;

use cyphonic_proto::nms::REVOCATIONS_REMEMBERED;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::clock::unix_now;
use crate::register::{DeviceRecord, Members, Register, RegisterError};
use crate::seldom::Seldom;

/// How soon a revocation by an operator's command is seen. The poll reads one counter in shared memory.
const POLL: Duration = Duration::from_millis(500);

/// Follows the register and tells the services.
pub(super) struct Watch {
    register: Arc<Register>,
    nudge: Arc<Notify>,
    initial: Vec<String>,
    revoked: Vec<String>,
    revision: i64,
    subscribers: std::sync::Mutex<Vec<mpsc::Sender<DeviceRecord>>>,
}

impl Watch {
    /// Reads who there is; [`Self::run`] then tells what changes.
    pub(super) fn new(register: Register) -> Result<Self, RegisterError> {
        let lately = unix_now().saturating_sub(REVOCATIONS_REMEMBERED.as_secs());
        let Members { names, revoked, revision } = register.members(lately)?;
        Ok(Self {
            register: Arc::new(register),
            nudge: Arc::default(),
            initial: names,
            revoked,
            revision,
            subscribers: std::sync::Mutex::default(),
        })
    }

    /// Notify this to have the register looked at right away.
    pub(super) fn nudge(&self) -> Arc<Notify> {
        Arc::clone(&self.nudge)
    }

    /// The names of all devices at the start that are not revoked. They are given once.
    pub(super) fn take_names(&mut self) -> Vec<String> {
        std::mem::take(&mut self.initial)
    }

    /// The names of those that were revoked shortly before the start. They are given once.
    pub(super) fn take_revoked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.revoked)
    }

    /// Every later change of a device. Subscribe before [`Self::run`].
    pub(super) fn subscribe(&self) -> mpsc::Receiver<DeviceRecord> {
        let (sender, receiver) = mpsc::channel(256);
        self.subscribers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(sender);
        receiver
    }

    /// Looks and tells, for ever.
    pub(super) async fn run(self) {
        self.follow(|error| tracing::error!(%error, "cannot see what changed in the register")).await;
    }

    async fn follow(mut self, complain: impl Fn(&str)) {
        let (started, failures) = (Instant::now(), Seldom::ever_more_rarely());
        let mut version = None;
        loop {
            let poll = tokio::time::timeout(POLL, self.nudge.notified());
            let nudged = poll.await.is_ok();
            match self.look(version, nudged).await {
                Ok((seen, changed)) => {
                    version = Some(seen);
                    self.tell(changed).await;
                }
                Err(error) => {
                    let error = error.to_string();
                    if failures.is_due(error.clone(), started.elapsed().as_secs()) {
                        complain(&error);
                    }
                }
            }
        }
    }

    async fn look(
        &self,
        version: Option<i64>,
        nudged: bool,
    ) -> Result<(i64, Vec<DeviceRecord>), RegisterError> {
        let (register, revision) = (Arc::clone(&self.register), self.revision);
        let look = tokio::task::spawn_blocking(move || {
            let now = register.data_version()?;
            if version == Some(now) && !nudged {
                return Ok((now, Vec::new()));
            }
            Ok((now, register.changes_since(revision)?))
        });
        look.await.unwrap_or_else(|error| Err(RegisterError::Damaged(error.to_string())))
    }

    async fn tell(&mut self, changed: Vec<DeviceRecord>) {
        let subscribers = self.subscribers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        for device in changed {
            self.revision = self.revision.max(device.revision);
            if device.revoked_at.is_some() {
                let by = device.revoked_by.as_deref();
                tracing::info!(fqdn = device.fqdn, by, "a device was revoked");
            }
            for subscriber in &subscribers {
                // A service that has ended needs no news.
                let _ = subscriber.send(device.clone()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_register_that_cannot_be_read_does_not_fill_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let watch = Watch::new(Register::create(&path).unwrap()).unwrap();
        rusqlite::Connection::open(&path).unwrap().execute_batch("DROP TABLE devices").unwrap();
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&complaints);
        let task = tokio::spawn(watch.follow(move |error| heard.lock().unwrap().push(error.to_owned())));
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        task.abort();
        let complaints = complaints.lock().unwrap();
        assert!((5..=6).contains(&complaints.len()), "{complaints:?}");
        assert!(complaints[0].contains("no such table"), "{complaints:?}");
    }
}
