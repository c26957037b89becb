//! One of several agents of a host: each has a name, and by it places of its own.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;

use super::is_interface_name;

/// An agent's name among those of its host, which is its interface's too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance(String);

/// The one that this process is, or asks: for what people are told to do.
static OF_THIS_PROCESS: OnceLock<Instance> = OnceLock::new();

/// What systemd calls the agent that this process is, or asks.
pub fn unit() -> String {
    OF_THIS_PROCESS.get().map_or_else(|| "cyphonicd".to_owned(), Instance::unit)
}

/// How it is asked.
pub fn command() -> String {
    OF_THIS_PROCESS
        .get()
        .map_or_else(|| "cyphonic".to_owned(), |instance| format!("cyphonic --instance {instance}"))
}

/// How it is started by hand.
pub fn daemon() -> String {
    OF_THIS_PROCESS
        .get()
        .map_or_else(|| "cyphonicd".to_owned(), |instance| format!("cyphonicd --instance {instance}"))
}

/// Where systemd has the token from that it hands over.
pub fn stored_token() -> PathBuf {
    let of_instance = |instance: &Instance| format!("/etc/credstore/cyphonic.{instance}.token");
    OF_THIS_PROCESS.get().map_or_else(|| "/etc/credstore/cyphonic.token".to_owned(), of_instance).into()
}

impl Instance {
    /// This process is it, or asks it.
    pub fn is_of_this_process(&self) {
        // There is one in the life of a process.
        let _ = OF_THIS_PROCESS.set(self.clone());
    }

    /// What systemd calls it.
    pub fn unit(&self) -> String {
        format!("cyphonicd@{self}")
    }

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
        assert_eq!((instance.interface(), instance.unit().as_str()), ("press-7", "cyphonicd@press-7"));
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
