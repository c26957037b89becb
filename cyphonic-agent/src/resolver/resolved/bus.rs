//! systemd-resolved's objects on a bus.

use std::time::Duration;

use tokio::time::timeout;
use zbus::message::Body;
use zbus::zvariant::{DynamicType, OwnedObjectPath, Type, as_value};
use zbus::{Connection, connection};

use super::ResolvedError;

const SERVICE: &str = "org.freedesktop.resolve1";
const OBJECT: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";
const LINK: &str = "org.freedesktop.resolve1.Link";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The bus itself.
const BUS: &str = "org.freedesktop.DBus";
const BUS_OBJECT: &str = "/org/freedesktop/DBus";

/// What the bus answers where nobody has the service's name, and nobody can be started for it.
const NOBODY: [&str; 2] =
    ["org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner"];

/// The bus and resolved are local.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where systemd-resolved is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Bus {
    /// The host's own bus.
    #[default]
    System,
    /// Another one, by its D-Bus address (`unix:path=/run/other/bus`).
    At(String),
}

impl Bus {
    /// A connection for a few questions: one that is kept ends with the bus, which may be restarted.
    pub(super) async fn connect(&self) -> Result<Manager, ResolvedError> {
        let connecting = async {
            match self {
                Self::System => Connection::system().await,
                Self::At(address) => connection::Builder::address(address.as_str())?.build().await,
            }
        };
        timeout(PATIENCE, connecting)
            .await
            .map_err(|_| ResolvedError::Silent)?
            .map(Manager)
            .map_err(|error| ResolvedError::Bus(error.into()))
    }
}

/// `org.freedesktop.resolve1.Manager`.
pub(super) struct Manager(Connection);

impl Manager {
    /// Whether somebody has resolved's name. Nobody is started for the question.
    pub(super) async fn require_owner(&self) -> Result<(), ResolvedError> {
        let owned = self.ask(BUS, BUS_OBJECT, BUS, "NameHasOwner", &(SERVICE,)).await?;
        if read::<bool>("NameHasOwner", &owned)? { Ok(()) } else { Err(ResolvedError::Absent) }
    }

    /// The domains of a link, and whether each is for routing only.
    pub(super) async fn domains_of(&self, link: i32) -> Result<Vec<(String, bool)>, ResolvedError> {
        let link = self.ask(SERVICE, OBJECT, MANAGER, "GetLink", &(link,)).await?;
        let link: OwnedObjectPath = read("GetLink", &link)?;
        let domains = self.ask(SERVICE, link.as_str(), PROPERTIES, "Get", &(LINK, "Domains")).await?;
        Ok(read::<as_value::Deserialize<'_, _>>("Get", &domains)?.0)
    }

    /// The domains of all links (0 is the host as a whole), and whether each is for routing only.
    pub(super) async fn domains(&self) -> Result<Vec<(i32, String, bool)>, ResolvedError> {
        let domains = self.ask(SERVICE, OBJECT, PROPERTIES, "Get", &(MANAGER, "Domains")).await?;
        Ok(read::<as_value::Deserialize<'_, _>>("Get", &domains)?.0)
    }

    pub(super) async fn call<B>(&self, method: &'static str, body: &B) -> Result<(), ResolvedError>
    where
        B: serde::Serialize + DynamicType,
    {
        self.ask(SERVICE, OBJECT, MANAGER, method, body).await.map(drop)
    }

    async fn ask<B>(
        &self,
        service: &str,
        object: &str,
        interface: &str,
        method: &'static str,
        body: &B,
    ) -> Result<Body, ResolvedError>
    where
        B: serde::Serialize + DynamicType,
    {
        let call = self.0.call_method(Some(service), object, Some(interface), method, body);
        let answer = timeout(PATIENCE, call).await.map_err(|_| ResolvedError::Silent)?;
        answer.map(|answer| answer.body()).map_err(|error| match error {
            zbus::Error::MethodError(name, ..) if NOBODY.contains(&name.as_str()) => ResolvedError::Absent,
            error => ResolvedError::Call { method, source: error.into() },
        })
    }
}

/// What a method answered.
fn read<'a, T>(method: &'static str, answer: &'a Body) -> Result<T, ResolvedError>
where
    T: serde::Deserialize<'a> + Type,
{
    answer.deserialize().map_err(|error| ResolvedError::Call { method, source: error.into() })
}
