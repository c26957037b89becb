//! The daemon's settings: those it started with, and where others are read from.

use std::fmt;

use tokio::sync::Mutex;

use super::protocol::Reloaded;
use super::{Backend, BackendError};
use crate::config::{Config, ConfigError};

/// See the module.
pub struct Settings {
    started_with: Config,
    read: Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>,
    /// One reader at a time, so that what is read last is what is in force.
    turn: Mutex<()>,
}

impl Settings {
    /// `read` reads them from where these came from, with the same flags over them.
    pub fn new(
        started_with: Config,
        read: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
    ) -> Self {
        Self { started_with, read: Box::new(read), turn: Mutex::default() }
    }

    /// Those the daemon started with.
    pub fn started_with(&self) -> &Config {
        &self.started_with
    }

    /// Those it started with, with what it takes over while it runs as that is now: the device may have waited
    /// for days until it was enrolled. What is wrong, or gone, changes nothing, as at a reload.
    pub fn latest(&self) -> Config {
        let started_with = self.started_with.clone();
        match (self.read)() {
            Ok(Config { access, keep_open, .. }) => {
                Config { access: access.or_else(|| started_with.access.clone()), keep_open, ..started_with }
            }
            Err(error) => {
                tracing::warn!(%error, "the settings of the start stay in force");
                started_with
            }
        }
    }

    /// Reads them again and has the engine take over what it can.
    ///
    /// # Errors
    /// They are wrong, or the engine does not take them: those before are in force.
    pub async fn reload(&self, backend: &dyn Backend) -> Result<Reloaded, BackendError> {
        let _turn = self.turn.lock().await;
        let read = (self.read)().map_err(|error| BackendError::Settings(error.to_string()))?;
        let rules = read.access.as_ref().map(Vec::len);
        backend.take_over(read.reloadable()).await?;
        let needs_restart = self.started_with.differences_at_start(&read);
        // Whoever asked is told, and whoever looks into the log later.
        if needs_restart.is_empty() {
            tracing::info!(access_rules = rules, "the settings were read again");
        } else {
            let keys = needs_restart.join(", ");
            tracing::warn!(
                access_rules = rules,
                keys,
                "the settings were read again, but for what is read at the start only"
            );
        }
        Ok(Reloaded { needs_restart })
    }

    /// As [`reload`](Self::reload), for whoever looks into the log for why nothing came of it.
    pub async fn reload_and_log(&self, backend: &dyn Backend) {
        if let Err(error) = self.reload(backend).await {
            tracing::error!("the settings were read again, in vain: {error}");
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("started_with", &self.started_with).finish_non_exhaustive()
    }
}
