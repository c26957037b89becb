//! What can be wrong with a topology file.

use std::path::PathBuf;

/// Why a topology was refused. Nothing has been built when it is.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file could not be read.
    #[error("cannot read the topology file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The text is not a topology; serde's message names key, line and column.
    #[error("topology: {0}")]
    Parse(#[from] serde_yaml::Error),
    /// A name leads nowhere.
    #[error("topology: {at}: there is no {kind} called `{name}`; there are: {known}")]
    Unknown {
        /// Path of the key.
        at: String,
        /// What was looked for.
        kind: &'static str,
        /// The name.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// Values that contradict each other or cannot be built.
    #[error("topology: {at}: {problem}")]
    Invalid {
        /// Path of the key.
        at: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl TopologyError {
    pub(crate) fn unknown<'a>(
        at: impl Into<String>,
        kind: &'static str,
        name: &str,
        known: impl Iterator<Item = &'a str>,
    ) -> Self {
        let known = known.collect::<Vec<_>>().join(", ");
        Self::Unknown { at: at.into(), kind, name: name.to_owned(), known }
    }

    /// The same, with the path of its key continued from `outer`.
    pub(crate) fn within(self, outer: &str) -> Self {
        match self {
            Self::Unknown { at, kind, name, known } => {
                Self::Unknown { at: format!("{outer}.{at}"), kind, name, known }
            }
            Self::Invalid { at, problem } => Self::Invalid { at: format!("{outer}.{at}"), problem },
            other @ (Self::Read { .. } | Self::Parse(_)) => other,
        }
    }

    pub(crate) fn invalid(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { at: at.into(), problem: problem.into() }
    }
}
