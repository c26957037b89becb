//! Which relays tunnels may go through, and what makes them needless.

use serde::{Deserialize, Serialize};

/// Settings of relaying.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelayConfig {
    /// The only relay to use, by its short name, such as `trs1`, or by its full one. Without: the nearest.
    pub pin: Option<String>,
}

/// Whether the gateway is asked to let the node's port in (PCP, NAT-PMP, UPnP).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortMapping {
    /// From private addresses.
    #[default]
    Auto,
    /// Never.
    Off,
}

impl RelayConfig {
    /// The pinned relay's name in its certificate.
    pub fn pinned(&self, zone: &str) -> Option<String> {
        self.pin.as_ref().map(|pin| if pin.contains('.') { pin.clone() } else { format!("{pin}.svc.{zone}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_may_be_short_or_full() {
        let pinned = |pin: &str| RelayConfig { pin: Some(pin.into()) }.pinned("plant.internal");
        assert_eq!(pinned("trs1").as_deref(), Some("trs1.svc.plant.internal"));
        assert_eq!(pinned("trs1.svc.plant.internal").as_deref(), Some("trs1.svc.plant.internal"));
        assert_eq!(RelayConfig::default().pinned("plant.internal"), None);
    }
}
