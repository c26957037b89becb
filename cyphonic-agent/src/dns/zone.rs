//! Which names are ours, and what kind of question a query is. Pure.

use std::net::Ipv6Addr;

use cyphonic_proto::address::Prefix;
use cyphonic_proto::name::{self, canonical, canonical_in_zone};
use hickory_proto::rr::rdata::{NS, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record};

/// An answer's life. Short, because asking again is what keeps a tunnel wanted, and cheap, because it is
/// local.
pub(super) const TTL_S: u32 = 30;

/// A denial's life: a device may be enrolled any moment.
pub(super) const NEGATIVE_TTL_S: u32 = 5;

/// The overlay's zone and the reverse zone of its prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    origin: Name,
    reverse: Name,
    prefix: Prefix,
    text: String,
    searched: Vec<String>,
}

/// What a query's name asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    /// The overlay's zone itself.
    Apex,
    /// The reverse zone itself.
    ReverseApex,
    /// A name that a device may have: lowercase, without the final dot.
    Device(String),
    /// A virtual address.
    Address(Ipv6Addr),
    /// Between the reverse zone and its addresses: exists, holds nothing (RFC 8020).
    EmptyNonTerminal,
    /// Inside a zone of ours, but no device or address can have this name.
    Impossible,
    /// Not ours.
    Outside,
}

impl Zone {
    /// The zone `name` (as `cyphonic.internal`) of the overlay with this prefix.
    ///
    /// # Errors
    ///
    /// When the name is no host name.
    pub fn new(name: &str, prefix: Prefix) -> Result<Self, InvalidZone> {
        let invalid = || InvalidZone(name.chars().take(80).collect());
        let text = canonical(name).map_err(|_| invalid())?;
        let origin = Name::from_ascii(format!("{text}.")).map_err(|_| invalid())?;
        // One label per nibble, and `ip6.arpa` (RFC 3596 section 2.5).
        let reverse = reverse_name(prefix.address()).trim_to(usize::from(Prefix::LENGTH / 4) + 2);
        Ok(Self { origin, reverse, prefix, text, searched: Vec::new() })
    }

    /// The zone's name, lowercase, without the final dot.
    pub fn name(&self) -> &str {
        &self.text
    }

    /// The reverse zone's name, without the final dot.
    pub fn reverse_name(&self) -> String {
        self.reverse.to_ascii().trim_end_matches('.').to_owned()
    }

    /// The same zone, where programs on the device of this name may write short names: those of the devices beside it,
    /// without what follows its own first label, and those of all, without the zone.
    #[must_use]
    pub fn searched_by(mut self, device: &str) -> Self {
        let site = device.split_once('.').map(|(_, site)| site.to_ascii_lowercase());
        let site = site.filter(|site| name::is_below(site, &self.text));
        self.searched = site.into_iter().chain([self.text.clone()]).collect();
        self
    }

    /// The domains that programs search for a name, in their order; none unless short names are wanted.
    pub fn searched(&self) -> &[String] {
        &self.searched
    }

    /// Every domain whose names the host's resolver should send to us, and whether it is for that only, and not searched.
    pub fn domains(&self) -> Vec<(String, bool)> {
        let routed = [self.text.clone(), self.reverse_name()];
        let routed =
            routed.into_iter().filter(|domain| !self.searched.contains(domain)).map(|domain| (domain, true));
        self.searched.iter().cloned().map(|domain| (domain, false)).chain(routed).collect()
    }

    /// Whether a name is one of ours with something behind it, as resolvers make of their search list when a name of ours
    /// has no answer (resolv.conf(5)). Whoever chose the list would answer in a device's name. A zone of a
    /// single label may well be part of names elsewhere.
    pub(super) fn is_inside(&self, name: &Name) -> bool {
        let labels = |name: &Name| name.iter().map(<[u8]>::to_ascii_lowercase).collect::<Vec<_>>();
        let (zone, name) = (labels(&self.origin), labels(name));
        zone.len() > 1 && name.len() > zone.len() && name.windows(zone.len()).any(|part| *part == zone)
    }

    pub(super) fn subject(&self, name: &Name) -> Subject {
        if self.origin.zone_of(name) {
            return self.forward_subject(name);
        }
        if self.reverse.zone_of(name) {
            return self.reverse_subject(name);
        }
        Subject::Outside
    }

    fn forward_subject(&self, name: &Name) -> Subject {
        if name.num_labels() == self.origin.num_labels() {
            return Subject::Apex;
        }
        match canonical_in_zone(&name.to_ascii(), &self.text) {
            Ok(device) => Subject::Device(device),
            Err(_) => Subject::Impossible,
        }
    }

    fn reverse_subject(&self, name: &Name) -> Subject {
        if name.num_labels() == self.reverse.num_labels() {
            return Subject::ReverseApex;
        }
        match name.parse_arpa_name() {
            Ok(ipnet::IpNet::V6(net)) if net.prefix_len() == 128 && self.prefix.contains(net.addr()) => {
                Subject::Address(net.addr())
            }
            Ok(ipnet::IpNet::V6(_)) => Subject::EmptyNonTerminal,
            _ => Subject::Impossible,
        }
    }

    /// The origin that holds a subject, for SOA records.
    pub(super) fn origin_of(&self, subject: &Subject, name: &Name) -> &Name {
        match subject {
            Subject::Apex | Subject::Device(_) => &self.origin,
            _ if self.origin.zone_of(name) => &self.origin,
            _ => &self.reverse,
        }
    }

    pub(super) fn soa(&self, origin: &Name) -> Record {
        let contact = Name::from_ascii("hostmaster").and_then(|name| name.append_domain(&self.origin));
        let soa = SOA::new(
            server_name(),
            contact.unwrap_or_else(|_| self.origin.clone()),
            1,
            // Nobody transfers this zone; these are RFC 1912's usual values.
            7200,
            3600,
            1_209_600,
            NEGATIVE_TTL_S,
        );
        Record::from_rdata(origin.clone(), NEGATIVE_TTL_S, RData::SOA(soa))
    }

    pub(super) fn ns(&self, origin: &Name) -> Record {
        Record::from_rdata(origin.clone(), TTL_S, RData::NS(NS(server_name())))
    }

    /// The PTR record's data for a device name, if it is one.
    pub(super) fn ptr(&self, owner: &Name, device: &str) -> Option<Record> {
        let target = Name::from_ascii(format!("{}.", device.trim_end_matches('.'))).ok()?;
        Some(Record::from_rdata(owner.clone(), TTL_S, RData::PTR(PTR(target))))
    }
}

/// The server speaks on loopback only, and this is the name of that address on every host.
fn server_name() -> Name {
    Name::from_ascii("localhost.").unwrap_or_else(|_| Name::root())
}

fn reverse_name(address: Ipv6Addr) -> Name {
    let mut name = Name::from(address);
    name.set_fqdn(true);
    name
}

/// Not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be a DNS zone: it is no host name")]
pub struct InvalidZone(String);

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        Zone::new("Cyphonic.internal.", "fd12:3456:789a::/48".parse().unwrap()).unwrap()
    }

    fn subject(name: &str) -> Subject {
        zone().subject(&Name::from_ascii(name).unwrap())
    }

    #[test]
    fn names_fall_into_their_kinds() {
        assert_eq!(zone().name(), "cyphonic.internal");
        assert_eq!(zone().reverse_name(), "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa");
        assert_eq!(subject("CYPHONIC.internal."), Subject::Apex);
        assert_eq!(
            subject("Press-7.Plant.cyphonic.internal."),
            Subject::Device("press-7.plant.cyphonic.internal".into())
        );
        let blank = Name::from_labels([&b"a b"[..], b"cyphonic", b"internal"]).unwrap();
        assert_eq!(zone().subject(&blank), Subject::Impossible);
        assert_eq!(subject("_sip.cyphonic.internal."), Subject::Impossible);
        assert_eq!(subject("example.com."), Subject::Outside);
        assert_eq!(subject("internal."), Subject::Outside);
        assert_eq!(subject("notcyphonic.internal."), Subject::Outside);
        assert_eq!(subject("."), Subject::Outside);
    }

    #[test]
    fn reverse_names_fall_into_their_kinds() {
        let address: Ipv6Addr = "fd12:3456:789a::1234".parse().unwrap();
        assert_eq!(subject(&reverse_name(address).to_ascii()), Subject::Address(address));
        assert_eq!(subject("a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."), Subject::ReverseApex);
        assert_eq!(subject("0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."), Subject::EmptyNonTerminal);
        assert_eq!(subject("xx.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."), Subject::Impossible);
        let too_long = format!("0.{}", reverse_name(address).to_ascii());
        assert_eq!(subject(&too_long), Subject::Impossible);
        assert_eq!(subject("b.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."), Subject::Outside);
        assert_eq!(subject("1.0.0.127.in-addr.arpa."), Subject::Outside);
    }

    #[test]
    fn impossible_zones_are_refused() {
        let prefix: Prefix = "fd12:3456:789a::/48".parse().unwrap();
        for name in ["", ".", "a b", "-a.b", &"x".repeat(64)] {
            assert!(Zone::new(name, prefix).is_err(), "{name}");
        }
    }

    #[test]
    fn short_names_are_searched_in_the_devices_site_and_then_in_the_zone() {
        let reverse = ("a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa".to_owned(), true);
        let domain = |name: &str, routing| (name.to_owned(), routing);
        assert_eq!(zone().domains(), [domain("cyphonic.internal", true), reverse.clone()]);
        let site = zone().searched_by("Press-7.hall.Plant.cyphonic.internal");
        assert_eq!(site.searched(), ["hall.plant.cyphonic.internal", "cyphonic.internal"]);
        let searched = [domain("hall.plant.cyphonic.internal", false), domain("cyphonic.internal", false)];
        assert_eq!(site.domains(), [&searched[..], std::slice::from_ref(&reverse)].concat());
        for device in ["press-7.cyphonic.internal", "", "x.elsewhere"] {
            assert_eq!(zone().searched_by(device).searched(), ["cyphonic.internal"], "{device}");
        }
    }
}
