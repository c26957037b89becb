//! What a daemon logs: to standard error, which is the journal under systemd.

use std::io::{self, IsTerminal as _};
use std::os::unix::fs::MetadataExt as _;
use std::str::FromStr;
use std::{fmt, fs};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, Layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// A level, or levels of modules: `info`, or `info,cyphonic_proto=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// What [`LogFilter`] is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no log filter: write `info`, or per module `info,cyphonic_proto=debug`")]
pub struct NoLogFilter(String);

impl LogFilter {
    /// Starts the log of this process, with or without the names of modules. `beneath` are levels of modules
    /// of which the filter says nothing itself.
    pub fn start(&self, names_modules: bool, beneath: &str) {
        let registry = tracing_subscriber::registry().with(self.targets(beneath));
        let started = if is_journal() {
            registry.with(for_journal(names_modules).with_writer(io::stderr)).try_init()
        } else {
            // Colours are for terminals.
            let layer = tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal());
            registry.with(layer.with_target(names_modules).with_writer(io::stderr)).try_init()
        };
        // Only a second logger of this process can be in the way.
        drop(started);
    }

    fn targets(&self, beneath: &str) -> Targets {
        let all = if beneath.is_empty() { self.0.clone() } else { format!("{beneath},{self}") };
        all.parse().unwrap_or_default()
    }
}

/// What a line of ours on standard error begins with that tells why the process ends, so that the journal has
/// it as an error.
pub fn error_mark() -> &'static str {
    if is_journal() { "<3>" } else { "" }
}

/// Whether standard error is the journal: the variable that says which stream is goes to processes whose own
/// is another one.
fn is_journal() -> bool {
    let stream = fs::metadata("/proc/self/fd/2").map(|stderr| format!("{}:{}", stderr.dev(), stderr.ino()));
    matches!((std::env::var("JOURNAL_STREAM"), stream), (Ok(journal), Ok(stream)) if journal == stream)
}

/// For the journal, which has times of its own.
fn for_journal<S>(names_modules: bool) -> Layer<S, DefaultFields, Prioritised>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let format = Format::default().with_target(names_modules).without_time();
    tracing_subscriber::fmt::layer().with_ansi(false).event_format(Prioritised(format))
}

/// Tells the journal how grave each line is (sd-daemon(3)).
struct Prioritised(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        let priority = priority(*event.metadata().level());
        text.lines().try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}

/// The level as syslog has it.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
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

    /// Stricter than the library, for which a misspelt level is the name of a module, and nothing at all the
    /// level `error`.
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
    use std::sync::{Arc, Mutex};

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

    /// What is written meanwhile.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_tells_the_journal_how_grave_it_is() {
        let written = Written::default();
        let writer = written.clone();
        let layer = for_journal(false).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::error!("no disk\nno luck");
            tracing::warn!(left = 3, "soon");
            tracing::info!("ready");
            tracing::debug!("detail");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            ["<3>ERROR no disk", "<3>no luck", "<4> WARN soon left=3", "<6> INFO ready", "<7>DEBUG detail"]
        );
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
