//! The identity at start: from the state directory, else by the configured token.

use std::{env, path::PathBuf, time::Duration};

use super::{DaemonError, notify};
use crate::{
    config::{Config, resolve_all},
    enrol::{enrol, read_token_file},
    state::{DeviceIdentity, StateDir},
};

/// Waits between attempts double from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(60);
/// The token's name among systemd's credentials: `/etc/credstore/cyphonic.token` on the host.
const CREDENTIAL: &str = "cyphonic.token";

/// The device's identity. Waits, for as long as it takes, for a cloud that cannot be reached.
pub(super) async fn identity(state: &StateDir, config: &Config) -> Result<DeviceIdentity, DaemonError> {
    if let Some(identity) = state.identity()? {
        return Ok(identity);
    }
    let (Some(token_file), false) = (token_file(config), config.cloud.is_empty()) else {
        return Err(DaemonError::NotEnrolled(
            "this device is not enrolled: run `cyphonic up --token file:PATH --cloud HOST`, or set `cloud` and \
             `token_file` in the configuration"
                .into(),
        ));
    };
    let token = read_token_file(&token_file)?;
    let mut wait = FIRST_WAIT;
    loop {
        let error = match enrol(state, &token, &resolve_all(&config.cloud).await).await {
            Ok(identity) => {
                tracing::info!("enrolled");
                return Ok(identity);
            }
            Err(error) if error.is_final() => return Err(error.into()),
            Err(error) => error,
        };
        tracing::warn!(%error, wait_s = wait.as_secs(), "not enrolled yet: will try again");
        notify(&[sd_notify::NotifyState::Status("waiting for the cloud to enrol")]);
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(LAST_WAIT);
    }
}

/// The configured one, else what systemd hands over (`LoadCredential=` in the unit, systemd.exec(5)).
fn token_file(config: &Config) -> Option<PathBuf> {
    config.token_file.clone().or_else(|| {
        let file = PathBuf::from(env::var_os("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
        file.is_file().then_some(file)
    })
}

/// Between half and all of it: a fleet that lost its cloud at one moment does not come back at one moment.
fn jittered(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds each RandomState anew from the system's randomness.
    let random = RandomState::new().hash_one(wait) % 1_000;
    wait / 2 + (wait / 2).mul_f64(random as f64 / 1_000.0)
}
