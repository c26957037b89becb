//! Forms of values: addresses, durations, prefixes, numbers in hexadecimal.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use cyphonic_dataplane::relay::xdp::Mode;
use cyphonic_proto::address::Prefix;
use cyphonic_proto::identity::NetworkId;
use serde::Deserializer;
use serde::de::{DeserializeSeed, SeqAccess, Visitor};

use super::{ServiceAddresses, TcpMode};
use crate::pki::NMS_NAME;

/// The port of all services unless another is written: the one that the paper's firewalls let out.
pub const DEFAULT_PORT: u16 = 443;

/// The slowest rate limit: see `cyphonic_common::relay::rate`.
const MIN_RATE: u64 = 16_384;

/// Longest time for which a token can be used.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Longest short name of a relay: one DNS label (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;

/// An address on which devices reach a service: `IP:PORT`, or an IP with port 443.
///
/// # Errors
/// If it is none, or none that anybody could send to.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let address = parse_listen(text)?;
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{text} is no address that devices can send to"));
    }
    if address.port() == 0 {
        return Err(format!("{text} has port 0, which devices cannot send to"));
    }
    Ok(address)
}

/// An address to listen on; `[::]` is all, IPv4 and IPv6.
///
/// # Errors
/// If it is something else.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let bare = || IpAddr::from_str(text.trim_matches(['[', ']'])).map(|ip| SocketAddr::new(ip, DEFAULT_PORT));
    let address = SocketAddr::from_str(text).or_else(|_| bare()).map_err(|_| {
        format!("{text:?} is not an IP address with a port, such as 192.0.2.10:443 or [2001:db8::10]:443")
    })?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// `NAME=ADDRESS,ADDRESS`, a service on another machine, on the command line.
///
/// # Errors
/// If it has another form.
pub fn parse_service(text: &str) -> Result<ServiceAddresses, String> {
    let (name, addresses) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=ADDRESS:PORT,ADDRESS:PORT"))?;
    let addresses = addresses.split(',').map(|a| parse_address(a.trim())).collect::<Result<_, _>>()?;
    Ok(ServiceAddresses { name: parse_label(name)?, addresses })
}

/// A time span such as `90d` or `1h 30m`.
///
/// # Errors
/// If it is none, or zero.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is not a time span such as 90d, 1h or 30m: {error}"))?;
    if duration < Duration::from_secs(1) {
        return Err(format!("{text:?} is shorter than a second"));
    }
    Ok(duration)
}

/// How long a token can be used.
///
/// # Errors
/// If it is no time span, or longer than a year: a token that lies about for ever is a way in for ever.
pub fn parse_token_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = parse_duration(text)?;
    if lifetime > MAX_TOKEN_LIFETIME {
        return Err(format!("{text:?} is too long for a token: 365d at most"));
    }
    Ok(lifetime)
}

/// An IP address of one host.
fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let ip = IpAddr::from_str(text).map(|ip| ip.to_canonical());
    let ip = ip.map_err(|_| format!("{text:?} is not an IP address, such as 192.0.2.11 or 2001:db8::11"))?;
    match ip.is_unspecified() || ip.is_multicast() {
        true => Err(format!("{text} is no address of a host")),
        false => Ok(ip),
    }
}

/// How much a leg may carry, such as `100Mbit`, as bytes per second; `none` is 0.
///
/// # Errors
/// If it is something else.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let units = [("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000)];
    let parsed = units.into_iter().find_map(|(unit, bits)| {
        let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(bits).map(|bits| bits / 8)
    });
    let rate = parsed.filter(|rate| *rate >= MIN_RATE);
    rate.ok_or_else(|| {
        format!("{text:?} is neither none nor a rate of at least 132kbit, such as 100Mbit or 1Gbit")
    })
}

/// A service's short name: one DNS label, and not that of AS or NMS.
///
/// # Errors
/// If it is something else.
pub fn parse_label(text: &str) -> Result<String, String> {
    let text = text.trim().to_ascii_lowercase();
    let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let edges = !text.starts_with('-') && !text.ends_with('-');
    if text.is_empty() || text.len() > MAX_LABEL || !letters || !edges {
        return Err(format!("{text:?} is not one DNS label (letters, digits, hyphens), such as trs1"));
    }
    if text == "as" || text == NMS_NAME {
        return Err(format!("{text:?} is another service's name"));
    }
    Ok(text)
}

/// The same, or the name of an overlay's own NMS.
fn parse_nms_label(text: &str) -> Result<String, String> {
    if text == NMS_NAME { Ok(text.to_owned()) } else { parse_label(text) }
}

/// 16 bytes in hexadecimal.
pub(super) fn parse_network_id(text: &str) -> Result<NetworkId, String> {
    text.parse().map_err(|error| format!("{text:?} is {error}"))
}

/// A /48 of unique local addresses.
pub(super) fn parse_prefix(text: &str) -> Result<Prefix, String> {
    text.parse().map_err(|error| format!("{text:?} is not the prefix of an overlay: {error}"))
}

pub(super) fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    list(deserializer, parse_listen)
}

pub(super) fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    list(deserializer, parse_address)
}

pub(super) fn ips<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    list(deserializer, parse_ip)
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    one(deserializer, parse_duration)
}

pub(super) fn token_lifetime<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    one(deserializer, parse_token_lifetime)
}

pub(super) fn network_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NetworkId, D::Error> {
    one(deserializer, parse_network_id)
}

pub(super) fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Prefix, D::Error> {
    one(deserializer, parse_prefix)
}

pub(super) fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    one(deserializer, parse_label)
}

pub(super) fn nms_label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    one(deserializer, parse_nms_label)
}

pub(super) fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    one(deserializer, parse_rate)
}

pub(super) fn relay_mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
    one(deserializer, str::parse)
}

pub(super) fn tcp_mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TcpMode, D::Error> {
    one(deserializer, str::parse)
}

pub(super) fn zone<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    one(deserializer, crate::names::parse_zone)
}

/// A form of text.
type Parse<T> = fn(&str) -> Result<T, String>;

fn one<'de, D: Deserializer<'de>, T>(deserializer: D, parse: Parse<T>) -> Result<T, D::Error> {
    Parsed(parse).deserialize(deserializer)
}

fn list<'de, D: Deserializer<'de>, T>(deserializer: D, parse: Parse<T>) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(Parsed(parse))
}

/// Parses a scalar, or each of a sequence, while the YAML reader stands on it: so errors have the scalar's
/// line.
struct Parsed<T>(Parse<T>);

impl<'de, T> DeserializeSeed<'de> for Parsed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(Scalar(self.0))
    }
}

impl<'de, T> Visitor<'de> for Parsed<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list, such as [\"[::]:443\"]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(Self(self.0))? {
            values.push(value);
        }
        Ok(values)
    }
}

struct Scalar<T>(Parse<T>);

impl<T> Visitor<'_> for Scalar<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_default_port_and_are_canonical() {
        assert_eq!(parse_address("192.0.2.1").unwrap(), "192.0.2.1:443".parse().unwrap());
        assert_eq!(parse_address("[2001:db8::1]").unwrap(), "[2001:db8::1]:443".parse().unwrap());
        assert_eq!(parse_address("[::ffff:192.0.2.1]:5").unwrap(), "192.0.2.1:5".parse().unwrap());
        for bad in
            ["", "192.0.2.1:0", "0.0.0.0:443", "[::]:443", "[::ffff:0.0.0.0]:1", "ff02::1", "example.com:443"]
        {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn relays_name_themselves_and_their_addresses() {
        let relay = parse_service("TRS1=192.0.2.1:443,[2001:db8::1]:443").unwrap();
        assert_eq!((relay.name.as_str(), relay.addresses.len()), ("trs1", 2));
        for bad in ["trs1", "trs1=", "=192.0.2.1", "a.b=192.0.2.1", "nms=192.0.2.1", "-x=192.0.2.1"] {
            assert!(parse_service(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_have_a_unit() {
        assert_eq!(parse_rate("none"), Ok(0));
        assert_eq!(parse_rate("100Mbit"), Ok(12_500_000));
        assert_eq!(parse_rate("1 Gbit"), Ok(125_000_000));
        for bad in
            ["", "0", "1", "1kbit", "-1Mbit", "1Tbit", "99999999999999999999Mbit", "18446744073709551615Gbit"]
        {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_live_for_a_year_at_most() {
        assert_eq!(parse_token_lifetime("365d").unwrap(), MAX_TOKEN_LIFETIME);
        for bad in ["365d 1s", "99999999999d", "2y", "0s"] {
            assert!(parse_token_lifetime(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_are_unique_local_48s() {
        assert!(parse_prefix("fd12:3456:789a::/48").is_ok());
        for bad in ["fd12::", "fd12::/64", "2001:db8::/48", "fc00::/48", "fd12:3456:789a:1::/48", "x/48"] {
            assert!(parse_prefix(bad).is_err(), "{bad}");
        }
    }
}
