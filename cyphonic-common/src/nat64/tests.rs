use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn prefix(text: &str) -> Option<Nat64Prefix> {
    let (address, length) = text.split_once('/').unwrap();
    Nat64Prefix::new(address.parse().unwrap(), length.parse().unwrap())
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// The table of RFC 6052 §2.4, and the one of the well-known prefix.
#[test]
fn addresses_are_those_of_the_standard() {
    let ip = Ipv4Addr::new(192, 0, 2, 33);
    for (of, expected) in [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
    ] {
        let prefix = prefix(of).unwrap();
        assert_eq!(prefix.embed(ip), Some(v6(expected)), "{of}");
        assert_eq!(prefix.extract(v6(expected)), Some(ip), "{of}");
        assert_eq!(std::format!("{prefix}"), of);
    }
}

#[test]
fn only_prefixes_of_the_standard_are_taken() {
    for wrong in [
        "64:ff9b::/95",
        "64:ff9b::/0",
        "64:ff9b::/128",
        "64:ff9b::1/96",
        "2001:db8:0:0:100::/96",
        "::ffff:0:0/96",
        "fe80::/64",
        "ff0e::/96",
    ] {
        assert_eq!(prefix(wrong), None, "{wrong}");
    }
    assert_eq!(Nat64Prefix::from_words([0, 0]), None);
    assert_eq!(Nat64Prefix::from_words([0, 7]), None);
}

/// Whoever sends from within the prefix chooses the address in it: none of them may be taken for this host or
/// its link.
#[test]
fn no_address_of_this_host_the_link_or_many_hosts_goes_either_way() {
    for of in ["64:ff9b::/96", "2001:db8::/32", "2001:db8:122:344::/64"] {
        let prefix = prefix(of).unwrap();
        let bits = |ip: Ipv4Addr| {
            // As `embed` would.
            let public = prefix.embed(Ipv4Addr::new(1, 0, 0, 0)).unwrap().to_bits() & !prefix.bits();
            let shift = public.trailing_zeros();
            Ipv6Addr::from_bits(prefix.bits() | (u128::from(ip.to_bits() >> 24) << shift))
        };
        for first in [0u8, 127, 224, 239, 240, 255] {
            let ip = Ipv4Addr::new(first, 0, 0, 0);
            assert_eq!((prefix.embed(ip), prefix.extract(bits(ip))), (None, None), "{of} {ip}");
        }
        assert_eq!(prefix.embed(Ipv4Addr::new(169, 254, 1, 1)), None);
    }
    let private = [[10, 1, 2, 3], [192, 168, 1, 2], [172, 16, 0, 1], [100, 64, 0, 1]].map(Ipv4Addr::from);
    let (well_known, own) = (prefix("64:ff9b::/96").unwrap(), prefix("2001:db8:122:344::/96").unwrap());
    for ip in private {
        assert_eq!(well_known.embed(ip), None, "RFC 6052 §3.1: {ip}");
        assert_eq!(own.extract(own.embed(ip).unwrap()), Some(ip), "a site's own translator may: {ip}");
    }
    for ip in [[100, 63, 0, 1], [100, 128, 0, 1], [8, 64, 0, 1], [172, 32, 0, 1], [192, 0, 2, 1]]
        .map(Ipv4Addr::from)
    {
        assert_eq!(well_known.extract(well_known.embed(ip).unwrap()), Some(ip), "not private: {ip}");
    }
}

#[test]
fn other_addresses_stay_as_they_are() {
    let prefix = prefix("64:ff9b::/96").unwrap();
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    for (inside, outside) in [
        ("192.0.2.1:443", "[64:ff9b::c000:201]:443"),
        ("127.0.0.1:443", "127.0.0.1:443"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
    ] {
        assert_eq!((prefix.outward(at(inside)), prefix.inward(at(outside))), (at(outside), at(inside)));
    }
    assert_eq!(prefix.inward(at("[64:ff9b::7f00:1]:9")), at("[64:ff9b::7f00:1]:9"));
}

#[test]
fn a_prefix_is_recognised_by_the_well_known_addresses_and_by_nothing_else() {
    let found = |answers: &[&str]| {
        let answers: Vec<_> = answers.iter().map(|answer| v6(answer)).collect();
        Nat64Prefix::from_well_known(answers)
    };
    assert_eq!(found(&["64:ff9b::c000:aa", "64:ff9b::c000:ab"]), prefix("64:ff9b::/96"));
    assert_eq!(found(&["64:ff9b::c000:ab"]), prefix("64:ff9b::/96"), "one of them suffices");
    assert_eq!(found(&["2001:db8::1", "2001:db8:c000:aa::"]), prefix("2001:db8::/32"));
    assert_eq!(found(&["2001:db8:122:344:c0:0:aa00:0"]), prefix("2001:db8:122:344::/64"));
    for nothing in
        [&[][..], &["2001:db8::1"], &["64:ff9b::c000:ac"], &["64:ff9b::7f00:1"], &["::ffff:c000:aa"]]
    {
        assert_eq!(found(nothing), None, "{nothing:?}");
    }
    // RFC 7050 §3: the address stands at two places, and the other one's record says which is meant.
    let ambiguous = "2001:db8:c000:aa::c000:aa";
    assert_eq!(found(&[ambiguous]), prefix("2001:db8:c000:aa::/96"), "the /32 would have something after it");
}

proptest! {
    #[test]
    fn every_address_comes_back_from_every_prefix(
        high in 1u64 << 48..0xfe80 << 48, low: u32, length in proptest::sample::select(&LENGTHS[..]), ip: u32, any: u128,
    ) {
        let bits = (u128::from(high) << 64) | u128::from(low) << 32;
        let address = Ipv6Addr::from_bits(bits & mask(length) & !RESERVED);
        let prefix = Nat64Prefix::new(address, length).unwrap();
        prop_assert_eq!(Nat64Prefix::from_words(prefix.to_words()), Some(prefix));
        prop_assert_eq!((prefix.address(), prefix.length()), (address, length));
        let ip = Ipv4Addr::from_bits(ip);
        if let Some(embedded) = prefix.embed(ip) {
            prop_assert_eq!(prefix.extract(embedded), Some(ip));
            prop_assert_eq!(embedded.to_bits() & mask(length), address.to_bits());
        }
        // An address means at most one, which means it.
        for any in [any, any & !mask(length) | address.to_bits()] {
            if let Some(ip) = prefix.extract(Ipv6Addr::from_bits(any)) {
                prop_assert_eq!(prefix.embed(ip), Some(Ipv6Addr::from_bits(any)));
            }
        }
    }

    #[test]
    fn what_ipv4only_arpa_answers_names_the_prefix(
        high in 1u64 << 48..0xfe80 << 48, low: u32, length in proptest::sample::select(&LENGTHS[..]),
    ) {
        let bits = (u128::from(high) << 64) | u128::from(low) << 32;
        let prefix = Nat64Prefix::new(Ipv6Addr::from_bits(bits & mask(length) & !RESERVED), length).unwrap();
        let answers = WELL_KNOWN_ADDRESSES.map(|ip| prefix.embed(ip).unwrap());
        prop_assert_eq!(Nat64Prefix::from_well_known(answers), Some(prefix));
    }
}
