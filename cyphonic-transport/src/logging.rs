//! What a daemon logs: to standard error, which is the journal under systemd.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::str::FromStr;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// A level, or levels of modules: `info`, or `info,cyphonic_proto=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// What [`LogFilter`] is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no log filter: write `info`, or per module `info,cyphonic_proto=debug`")]
pub struct NoLogFilter(String);

impl LogFilter {
    /// Starts the log of this process, with or without the names of modules. `beneath` are levels of modules of which the filter
    /// says nothing itself.
    pub fn start(&self, names_modules: bool, beneath: &str) {
        let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(names_modules);
        // Colours are for terminals.
        let layer = if io::stderr().is_terminal() { layer } else { layer.with_ansi(false) };
        let registry = tracing_subscriber::registry().with(self.targets(beneath));
        // The journal has times of its own.
        let started = if std::env::var_os("JOURNAL_STREAM").is_some() {
            registry.with(layer.without_time()).try_init()
        } else {
            registry.with(layer).try_init()
        };
        // Only a second logger of this process can be in the way.
        drop(started);
    }

    fn targets(&self, beneath: &str) -> Targets {
        let all = if beneath.is_empty() { self.0.clone() } else { format!("{beneath},{self}") };
        all.parse().unwrap_or_default()
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".into())
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = NoLogFilter;

    /// Stricter than the library, for which a misspelt level is the name of a module, and nothing at all the level `error`.
    fn from_str(filter: &str) -> Result<Self, NoLogFilter> {
        let is_level = |text: &str| !text.is_empty() && text.parse::<LevelFilter>().is_ok();
        let is_directive = |directive: &str| match directive.split_once('=') {
            Some((module, level)) => !module.is_empty() && is_level(level),
            None => is_level(directive),
        };
        match filter.parse::<Targets>().is_ok() && filter.split(',').all(is_directive) {
            true => Ok(Self(filter.into())),
            false => Err(NoLogFilter(filter.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    fn filter(text: &str) -> LogFilter {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for wrong in
            ["", ",", "inof", "info,", "info,cyphonic_proto=", "=debug", "cyphonic_proto", "info;debug"]
        {
            assert_eq!(wrong.parse::<LogFilter>(), Err(NoLogFilter(wrong.into())));
        }
        for right in ["info", "off", "TRACE", "info,cyphonic_proto=debug", "cyphonic_proto=debug,quinn=off"] {
            assert_eq!(filter(right).to_string(), right);
        }
    }

    #[test]
    fn modules_beneath_are_logged_only_when_the_filter_says_so() {
        let logs = |text: &str| {
            filter(text).targets("hickory=error").would_enable("hickory_server::server", &Level::INFO)
        };
        assert!(!logs("info") && !logs("trace") && logs("info,hickory=info"));
        assert_eq!(filter("debug").targets("hickory=error").default_level(), Some(LevelFilter::DEBUG));
        assert_eq!(filter("warn").targets("").default_level(), Some(LevelFilter::WARN));
    }
}
