//! Sees what changes in the register, whoever writes it: this process's AS, or an operator's command.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::register::{DeviceRecord, Register, RegisterError};

/// How soon a revocation by an operator's command is seen. The poll reads one counter in shared memory.
const POLL: Duration = Duration::from_millis(500);

/// Follows the register and tells the services.
pub(super) struct Watch {
    register: Arc<Register>,
    nudge: Arc<Notify>,
    initial: Vec<String>,
    revision: i64,
    subscribers: std::sync::Mutex<Vec<mpsc::Sender<DeviceRecord>>>,
}

impl Watch {
    /// Reads who there is; [`Self::run`] then tells what changes.
    pub(super) fn new(register: Register) -> Result<Self, RegisterError> {
        let (initial, revision) = register.members()?;
        Ok(Self {
            register: Arc::new(register),
            nudge: Arc::default(),
            initial,
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

    /// Every later change of a device. Subscribe before [`Self::run`].
    pub(super) fn subscribe(&self) -> mpsc::Receiver<DeviceRecord> {
        let (sender, receiver) = mpsc::channel(256);
        self.subscribers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(sender);
        receiver
    }

    /// Looks and tells, for ever.
    pub(super) async fn run(mut self) {
        let mut version = None;
        loop {
            let poll = tokio::time::timeout(POLL, self.nudge.notified());
            let nudged = poll.await.is_ok();
            match self.look(version, nudged).await {
                Ok((seen, changed)) => {
                    version = Some(seen);
                    self.tell(changed).await;
                }
                Err(error) => tracing::error!(%error, "cannot see what changed in the register"),
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
                tracing::info!(fqdn = device.fqdn, "a device was revoked");
            }
            for subscriber in &subscribers {
                // A service that has ended needs no news.
                let _ = subscriber.send(device.clone()).await;
            }
        }
    }
}
