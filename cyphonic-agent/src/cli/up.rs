//! `cyphonic up`: from a token to a device that is part of the overlay.
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_dataplane::dumps;
use cyphonic_proto::identity::Identity;
use cyphonic_proto::message::RefusalCode;

use super::output::say;
use crate::complaints::Complaints;
use crate::config::{
    CloudAddress, Config, DEFAULT_PATH, EnrolAs, Instance, Overrides, instance, resolve_all,
};
use crate::control::Settings;
use crate::daemon::{self, block_on};
use crate::enrol::{EnrolError, enrol, read_token};
use crate::resolver;
use crate::state::{DeviceIdentity, StateDir, StateError, write_atomic};

#[derive(Debug, Args)]
pub(super) struct Up {
    /// The enrolment token: file:PATH, or itself (then other users of this host can read it in the process
    /// list).
    #[arg(long, env = "CYPHONIC_TOKEN", value_name = "file:PATH|TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// What the device asks to be called, by a token that leaves that open: its host name, unless told otherwise.
    #[arg(long, env = "CYPHONIC_ENROL_AS", value_name = "NAME")]
    enrol_as: Option<EnrolAs>,
    /// Where the cloud is.
    #[arg(long, env = "CYPHONIC_CLOUD", value_name = "HOST[:PORT]", value_delimiter = ',')]
    cloud: Vec<CloudAddress>,
    /// The daemon's configuration; written if it is not there [default: /etc/cyphonic/agent.yaml, or that of
    /// the instance].
    #[arg(long, env = "CYPHONIC_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the device's key and state.
    #[arg(long, env = "CYPHONIC_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Enrol although the device has a certificate: it was revoked, the cloud does not know it any more, or
    /// its files are damaged. The key stays, if it can be used and was not revoked.
    /// Give it once: whoever starts with it enrols at each start.
    #[arg(long)]
    anew: bool,
    /// Become the daemon instead of telling how to start it.
    #[arg(long)]
    foreground: bool,
}

impl Up {
    pub(super) fn run(self, socket: Option<PathBuf>, instance: Option<Instance>) -> Result<ExitCode> {
        let path = Config::path(self.config.as_deref(), instance.as_ref());
        let overrides = Overrides {
            instance: instance.clone(),
            cloud: self.cloud.clone(),
            enrol_as: self.enrol_as.clone(),
            state_dir: self.state_dir.clone(),
            socket,
            ..Overrides::default()
        };
        if instance.is_some() && (self.state_dir.is_some() || overrides.socket.is_some()) {
            bail!(
                "an instance has a state directory and a socket of its own: leave out --state-dir and --socket"
            );
        }
        let config = Config::load(&path, false, &overrides)?;
        dumps::forbid().context("cannot keep the device's key out of core dumps")?;
        let state = StateDir::open(&config.state_dir)?;
        let identity = match self.present(&state)? {
            Some(identity) if !self.anew => self.keep_or_replace(identity, &state, &config)?,
            _ => block_on(self.enrol(&state, &config))??,
        };
        keep_config(&path, &config, overrides.instance.as_ref())?;
        introduce(&identity)?;
        if self.foreground {
            let must_exist = path.exists();
            daemon::launch(Settings::new(config, move || Config::load(&path, must_exist, &overrides)))?;
        } else {
            tell_how_to_start(&path, &config, overrides.instance.as_ref());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The identity that the device has. Who says `--anew` does not need it, and may say so because it is
    /// damaged.
    fn present(&self, state: &StateDir) -> Result<Option<DeviceIdentity>, StateError> {
        match state.identity() {
            Err(error) if self.anew && error.is_damage() => Ok(None),
            present => present,
        }
    }

    /// The identity that the device has, or another one where it is too late to renew and here is a token.
    /// Where that cannot be known, the token is tried.
    ///
    /// The same command may be given at each start, so that a token is not used is no error.
    fn keep_or_replace(
        &self,
        identity: DeviceIdentity,
        state: &StateDir,
        config: &Config,
    ) -> Result<DeviceIdentity> {
        if self.token.is_none() {
            return Ok(identity);
        }
        let certificate = Certificate::of(&identity)?;
        if certificate == Certificate::Stands {
            tell(
                "The token was not used: this device is enrolled. If the cloud refuses it, because it was revoked, the cloud \
                 was restored from a backup, or its certificate has ended and its clock does not know, add --anew.",
            );
            return Ok(identity);
        }
        match block_on(self.enrol(state, config))? {
            Err(error) if certificate.may_do_after(&error, self.foreground) => {
                tell(format_args!(
                    "The token was not used: {error:#}. Going by this device's clock its certificate {certificate}; if the \
                     cloud refuses it, enrol with --anew and a new token."
                ));
                Ok(identity)
            }
            enrolled => enrolled,
        }
    }

    async fn enrol(&self, state: &StateDir, config: &Config) -> Result<DeviceIdentity> {
        // The daemon may be enrolling by its own token file right now.
        let _lock = state.lock()?;
        // What a daemon left that is gone, and was perhaps purged: the cloud's name is to be resolved.
        if let Err(error) = resolver::restore_after_crash(state) {
            tell(format_args!("The host's resolver configuration could not be restored: {error}"));
        }
        let given = match (&self.token, &config.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => format!("file:{}", file.display()),
            (None, None) if self.anew => bail!("--anew needs a token: give one with --token file:PATH"),
            (None, None) => bail!("this device is not enrolled: give a token with --token file:PATH"),
        };
        let token = read_token(&given)?;
        if config.cloud.is_empty() {
            bail!("where is the cloud? give its address with --cloud HOST");
        }
        let addresses = resolve_all(&config.cloud, &mut Complaints::default()).await;
        if addresses.is_empty() {
            bail!("none of the cloud's names can be resolved: {:?}", config.cloud);
        }
        if self.anew {
            state.set_damaged_key_aside()?;
        }
        match enrol(state, &token, &config.enrol_as, &addresses).await {
            // Copies of this device may have certificates for the key: it must not count again.
            Err(error) if self.anew && error.is_revoked() => {
                state.set_revoked_key_aside()?;
                tell("The cloud has revoked this device's key: it gets another one.");
                Ok(enrol(state, &token, &config.enrol_as, &addresses).await?)
            }
            enrolled => Ok(enrolled?),
        }
    }
}

/// Enrolment goes on whether anybody reads of it or not.
fn tell(text: impl Display) {
    drop(say(text));
}

/// What the device's own clock says of its certificate. A board without a battery may be years behind, or
/// ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certificate {
    Stands,
    Ended,
    /// The clock is wrong, so nobody knows.
    NotBegun,
}

impl Certificate {
    fn of(identity: &DeviceIdentity) -> Result<Self> {
        let identity =
            Identity::from_der(identity.leaf()).context("the device's certificate is not usable")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(match i64::try_from(now).unwrap_or(i64::MAX) {
            now if now < identity.not_before => Self::NotBegun,
            now if now >= identity.not_after => Self::Ended,
            _ => Self::Stands,
        })
    }

    /// Whether it may be of use though the token was not. One that seems to have ended is used by whoever
    /// starts the daemon with a token that the cloud does not take: the clock may be ahead, and the cloud
    /// tells the time.
    fn may_do_after(self, error: &anyhow::Error, starts: bool) -> bool {
        let is_refused = matches!(
            error.downcast_ref(),
            Some(EnrolError::Refused { code: RefusalCode::BadToken | RefusalCode::NotAllowed, .. })
        );
        match self {
            Self::NotBegun => true,
            Self::Ended => starts && is_refused,
            Self::Stands => false,
        }
    }
}

impl Display for Certificate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stands => "is valid",
            Self::Ended => "has ended",
            Self::NotBegun => "has not begun",
        })
    }
}

/// Writes a configuration where there is none; never edits one, which may have a person's comments in it.
fn keep_config(path: &Path, config: &Config, instance: Option<&Instance>) -> Result<()> {
    if path.exists() {
        // As the daemon reads it.
        let of_instance = Overrides { instance: instance.cloned(), ..Overrides::default() };
        let kept = Config::load(path, true, &of_instance)?;
        let others = [
            ("cloud", kept.cloud != config.cloud),
            ("state_dir", kept.state_dir != config.state_dir),
            ("socket", kept.socket != config.socket),
        ];
        let others: Vec<_> = others.into_iter().filter_map(|(key, other)| other.then_some(key)).collect();
        if !others.is_empty() {
            tell(format_args!(
                "Note: {} has another {} than given here, and stays as it is. The daemon uses the file: edit it, then \
                 `systemctl restart {}`.",
                path.display(),
                others.join(" and another "),
                instance::unit()
            ));
        }
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    write_atomic(path, render(config)?.as_bytes(), 0o644)?;
    tell(format_args!("Wrote {}.", path.display()));
    Ok(())
}

fn tell_how_to_start(path: &Path, config: &Config, instance: Option<&Instance>) {
    if std::os::unix::net::UnixStream::connect(&config.socket).is_ok() {
        tell(format_args!("The daemon is running: see `{} status`.", instance::command()));
    } else if let Some(instance) = instance.filter(|instance| instance.config() == path) {
        tell(format_args!("Start the daemon with `systemctl enable --now {}`.", instance.unit()));
    } else if path == Path::new(DEFAULT_PATH) {
        tell(format_args!(
            "Start the daemon with `systemctl enable --now cyphonicd`, or here with `cyphonic up --foreground`."
        ));
    } else {
        tell(format_args!("Start the daemon with `cyphonicd --config {}`.", path.display()));
    }
}

fn introduce(identity: &DeviceIdentity) -> Result<()> {
    let identity = Identity::from_der(identity.leaf()).context("the device's certificate is not usable")?;
    let address = identity.virtual_address.map_or_else(|| "-".into(), |address| address.to_string());
    tell(format_args!("This device is {} ({address}).", identity.fqdn));
    Ok(())
}

/// The settings that differ from the defaults.
fn render(config: &Config) -> Result<String> {
    let (serde_yaml::Value::Mapping(ours), serde_yaml::Value::Mapping(defaults)) =
        (serde_yaml::to_value(config)?, serde_yaml::to_value(Config::default())?)
    else {
        bail!("the configuration is no mapping");
    };
    let changed: serde_yaml::Mapping =
        ours.into_iter().filter(|(key, value)| defaults.get(key) != Some(value)).collect();
    let mut text =
        String::from("# Written by `cyphonic up`. `cyphonicd config example` explains every key.\n");
    if !changed.is_empty() {
        text.push_str(&serde_yaml::to_string(&changed)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_token_keeps_no_daemon_from_starting_whose_clock_may_be_ahead() {
        let refused = |code| EnrolError::Refused { code, reason: "no".into(), retry: None }.into();
        let used = refused(RefusalCode::BadToken);
        assert!(Certificate::Ended.may_do_after(&used, true));
        assert!(!Certificate::Ended.may_do_after(&used, false), "it was asked for nothing else");
        assert!(!Certificate::Ended.may_do_after(&refused(RefusalCode::Revoked), true));
        let away = anyhow::anyhow!("the cloud is away");
        assert!(!Certificate::Ended.may_do_after(&away, true), "the token may be good");
        assert!(Certificate::NotBegun.may_do_after(&away, false));
    }

    #[test]
    fn the_written_configuration_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        let config =
            Config { cloud: vec!["cloud.example".parse().unwrap()], port: 4242, ..Config::default() };
        fs::write(&path, render(&config).unwrap()).unwrap();
        assert_eq!(Config::load(&path, true, &Overrides::default()).unwrap(), config);
        assert!(!render(&config).unwrap().contains("interface"), "defaults are not written");
        fs::write(&path, render(&Config::default()).unwrap()).unwrap();
        assert_eq!(Config::load(&path, true, &Overrides::default()).unwrap(), Config::default());
    }
}
