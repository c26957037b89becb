//! The identity at start: from the state directory, else by the configured token.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_proto::message::RefusalCode;
use cyphonic_proto::token::EnrolmentToken;
use sd_notify::NotifyState;

use super::waiting::Waiting;
use super::{DaemonError, notify};
use crate::complaints::Complaints;
use crate::config::{CloudAddress, Config, instance, resolve_all};
use crate::control::{self, ControlServer, Settings};
use crate::enrol::{EnrolError, enrol, read_token_file};
use crate::state::{DeviceIdentity, StateDir};

/// Waits between attempts double from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(60);
/// The token's name among systemd's credentials.
const CREDENTIAL: &str = "cyphonic.token";

/// The device's identity. Waits, for as long as it takes, for a cloud that cannot be reached, and for another
/// token where the one in the file is of no use. From the first failure on, the control socket tells of it,
/// and systemd need not wait: what comes after the agent, a boot or an installation, would wait for the
/// cloud.
pub(super) async fn identity(
    state: &StateDir,
    settings: &Arc<Settings>,
    waiting: &Arc<Waiting>,
) -> Result<DeviceIdentity, DaemonError> {
    let config = settings.started_with();
    if let Some(identity) = state.identity()? {
        return Ok(identity);
    }
    let (Some(file), false) = (TokenFile::of(config), config.cloud.is_empty()) else {
        return Err(DaemonError::NotEnrolled(format!(
            "this device is not enrolled: run `{} up --token file:PATH --cloud HOST`, or set `cloud` and \
             `token_file` in the configuration",
            instance::command()
        )));
    };
    let mut attempts = Attempts::default();
    let (mut told, mut complaints, mut of_names) = (None, Complaints::default(), Complaints::default());
    let mut why = String::new();
    loop {
        let (token, error) = match read_token_file(&file.path) {
            _ if file.is_outdated() => {
                return Err(DaemonError::OtherToken { store: instance::stored_token() });
            }
            Ok(token) if attempts.are_over_for(&token) => {
                if complaints.is_news(Instant::now(), (), &why) {
                    tracing::error!("{why}");
                }
                tokio::time::sleep(jittered(LAST_WAIT)).await;
                continue;
            }
            Ok(token) => match enrol_by(state, config, &token, &mut of_names).await {
                Ok(identity) => {
                    tracing::info!("enrolled");
                    return Ok(identity);
                }
                Err(error) => (Some(token), error),
            },
            Err(error) => (None, error),
        };
        let wait = jittered(attempts.failed(token, &error));
        why = if error.is_final() {
            format!("not enrolled: {error}; {}", file.help(&error))
        } else {
            format!("not enrolled yet: {error}; tried again all the time")
        };
        match (complaints.is_news(Instant::now(), (), &why), error.is_final()) {
            (true, true) => tracing::error!("{why}"),
            (true, false) => tracing::warn!("{why}"),
            (false, _) => tracing::debug!(wait_s = wait.as_secs(), "{why}"),
        }
        waiting.set(why.clone());
        if told.is_none() {
            told = Some({
                let (group, backend) = (control::group(), waiting.clone());
                ControlServer::start(&config.socket, group, backend, settings.clone()).await?
            });
        }
        notify(&[NotifyState::Ready, NotifyState::Status(&why)]);
        tokio::time::sleep(wait).await;
    }
}

async fn enrol_by(
    state: &StateDir,
    config: &Config,
    token: &EnrolmentToken,
    of_names: &mut Complaints<CloudAddress>,
) -> Result<DeviceIdentity, EnrolError> {
    let addresses = resolve_all(&config.cloud, of_names).await;
    enrol(state, token, &config.enrol_as, &addresses).await
}

/// Where the token is.
struct TokenFile {
    path: PathBuf,
    /// Of one that systemd hands over: it does so whenever it starts the daemon, and at no other time.
    store: Option<Store>,
}

/// Where systemd has a token from.
struct Store {
    path: PathBuf,
    at_start: Option<EnrolmentToken>,
}

impl Store {
    fn new(path: PathBuf) -> Self {
        let at_start = read_token_file(&path).ok();
        Self { path, at_start }
    }

    /// Whether there is a token now that was not there when the daemon was started.
    fn has_another(&self) -> bool {
        read_token_file(&self.path).is_ok_and(|now| Some(&now) != self.at_start.as_ref())
    }
}

impl TokenFile {
    /// The configured one, else what systemd hands over (`LoadCredential=` in the unit, systemd.exec(5)).
    fn of(config: &Config) -> Option<Self> {
        let configured = config.token_file.clone().map(|path| Self { path, store: None });
        configured.or_else(|| {
            let path = PathBuf::from(env::var_os("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
            path.is_file().then(|| Self { path, store: Some(Store::new(instance::stored_token())) })
        })
    }

    /// Whether only another start brings what there is to enrol with.
    fn is_outdated(&self) -> bool {
        self.store.as_ref().is_some_and(Store::has_another)
    }

    fn help(&self, error: &EnrolError) -> String {
        let place = self.store.as_ref().map_or(&self.path, |store| &store.path).display();
        let make =
            format!("make a token with `cyphonic-cloud token create --name NAME` and put it into {place}");
        match error.is_of_name() {
            true => format!(
                "if its token is for many devices, give this one another name, in /etc/hostname or by `enrol_as` and a restart; \
                 else {make}"
            ),
            false => make,
        }
    }
}

/// What has been tried.
struct Attempts {
    /// The wait for the cloud that comes next.
    wait: Duration,
    /// Used, expired or unknown, as the cloud said: it will say so for ever.
    refused: Option<EnrolmentToken>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { wait: FIRST_WAIT, refused: None }
    }
}

impl Attempts {
    /// Whether the cloud need not be asked with this token.
    fn are_over_for(&self, token: &EnrolmentToken) -> bool {
        self.refused.as_ref() == Some(token)
    }

    /// One failed; how long to wait until the next.
    fn failed(&mut self, token: Option<EnrolmentToken>, error: &EnrolError) -> Duration {
        if !error.is_final() {
            let wait = self.wait;
            self.wait = (wait * 2).min(LAST_WAIT);
            return wait;
        }
        if matches!(error, EnrolError::Refused { code: RefusalCode::BadToken, .. }) {
            self.refused = token;
        }
        self.wait = FIRST_WAIT;
        LAST_WAIT
    }
}

/// Between half and all of it: a fleet that lost its cloud at one moment does not come back at one moment.
fn jittered(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds each RandomState anew from the system's randomness.
    let random = RandomState::new().hash_one(wait) % 1_000;
    wait / 2 + (wait / 2).mul_f64(random as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateError;

    fn refused(code: RefusalCode, retry: Option<Duration>) -> EnrolError {
        EnrolError::Refused { code, reason: "no".into(), retry }
    }

    #[test]
    fn who_is_kept_out_for_its_name_is_told_that_another_may_do() {
        let file = TokenFile { path: "/etc/cyphonic/token".into(), store: None };
        let of_name = file.help(&refused(RefusalCode::NotAllowed, None));
        let of_token = file.help(&refused(RefusalCode::BadToken, None));
        assert!(of_name.contains("enrol_as") && !of_token.contains("enrol_as"), "{of_name}");
        // A token for one device says its name itself.
        for help in [of_name, of_token] {
            assert!(help.contains("token create") && help.contains("/etc/cyphonic/token"), "{help}");
        }
    }

    #[test]
    fn a_disk_that_cannot_be_written_is_no_fault_of_the_token() {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = StateError::Io { what: "write", path: "key.pem".into(), source };
        let mut attempts = Attempts::default();
        let token = EnrolmentToken::new([1; 32], [0; 32]);
        let error = EnrolError::State(full);
        assert!(!error.is_final());
        attempts.failed(Some(token.clone()), &error);
        assert!(!attempts.are_over_for(&token));
    }

    #[test]
    fn a_refused_token_is_not_shown_again_and_another_is() {
        let [used, new] = [1, 2].map(|secret| EnrolmentToken::new([secret; 32], [0; 32]));
        let mut attempts = Attempts::default();
        assert!(!attempts.are_over_for(&used));
        assert_eq!(attempts.failed(Some(used.clone()), &refused(RefusalCode::BadToken, None)), LAST_WAIT);
        assert!(attempts.are_over_for(&used) && !attempts.are_over_for(&new));
        // The file is being written.
        let missing = EnrolError::NoTokenFile { path: "token".into() };
        assert_eq!(attempts.failed(None, &missing), LAST_WAIT);
        assert!(attempts.are_over_for(&used));
    }

    #[test]
    fn a_token_in_the_store_of_credentials_is_another_if_it_came_after_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CREDENTIAL);
        let put = |secret| {
            let token = EnrolmentToken::new([secret; 32], [0; 32]);
            std::fs::write(&path, token.format().as_str()).unwrap();
        };
        put(1);
        let store = Store::new(path.clone());
        assert!(!store.has_another());
        std::fs::write(&path, "being writ").unwrap();
        assert!(!store.has_another());
        std::fs::remove_file(&path).unwrap();
        assert!(!store.has_another(), "a start would bring nothing");
        let elsewhere = Store::new(path.clone());
        put(1);
        assert!(!store.has_another());
        put(2);
        assert!(store.has_another() && elsewhere.has_another());
    }

    #[test]
    fn a_cloud_that_is_away_is_asked_again_and_ever_more_rarely() {
        let token = EnrolmentToken::new([1; 32], [0; 32]);
        let mut attempts = Attempts::default();
        let busy = refused(RefusalCode::TooMany, Some(Duration::from_secs(1)));
        let waits: Vec<_> = (0..8).map(|_| attempts.failed(Some(token.clone()), &busy).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(!attempts.are_over_for(&token));
        // What else is final may be the cloud's fault: somebody may mend that.
        let wrong = EnrolError::Answer("its root certificate is not the one of the token".into());
        assert_eq!(attempts.failed(Some(token.clone()), &wrong), LAST_WAIT);
        assert!(!attempts.are_over_for(&token));
    }
}
