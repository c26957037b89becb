//! One of several agents of a host: each has a name, and by it places of its own.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;

use super::is_interface_name;

/// An agent's name among those of its host, which is its interface's too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance(String);

impl Instance {
    /// Where its configuration is.
    pub fn config(&self) -> PathBuf {
        format!("/etc/cyphonic/{self}.yaml").into()
    }

    /// Where its key, certificates and cached state are, unless told otherwise.
    pub fn state_dir(&self) -> PathBuf {
        format!("/var/lib/cyphonic@{self}").into()
    }

    /// Its control socket, unless told otherwise.
    pub fn socket(&self) -> PathBuf {
        format!("/run/cyphonic@{self}/cyphonic.sock").into()
    }

    /// Its virtual interface, unless told otherwise.
    pub fn interface(&self) -> &str {
        &self.0
    }
}

impl FromStr for Instance {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, InvalidInstance> {
        let invalid = |why| Err(InvalidInstance { text: text.to_owned(), why });
        if !is_interface_name(text) || text.starts_with(['-', '.']) {
            return invalid(
                "it is to be an interface's name as well: 1 to 15 letters, digits, `-`, `_` or `.`, of which the first is a letter, \
                 a digit or `_`",
            );
        }
        if text == "agent" {
            return invalid("its configuration would be that of the host's first agent");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Display for Instance {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no instance.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} names no instance: {why}")]
pub struct InvalidInstance {
    text: String,
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_places_of_its_own() {
        let instance: Instance = "press-7".parse().unwrap();
        assert_eq!(instance.config(), PathBuf::from("/etc/cyphonic/press-7.yaml"));
        assert_eq!(instance.state_dir(), PathBuf::from("/var/lib/cyphonic@press-7"));
        assert_eq!(instance.socket(), PathBuf::from("/run/cyphonic@press-7/cyphonic.sock"));
        assert_eq!(instance.interface(), "press-7");
    }

    #[test]
    fn what_could_be_no_interface_or_leads_elsewhere_is_no_name() {
        for text in ["", ".", "..", "../x", "a/b", "-h", ".hidden", "sixteen-letters-", "agent", "ä", "a b"]
        {
            assert!(text.parse::<Instance>().is_err(), "{text:?}");
        }
        assert!("fifteen-letters".parse::<Instance>().is_ok());
    }
}
