//! Who is connected, and what is believed of its network.

use super::*;

#[test]
fn two_machines_with_one_identity_are_told_of_each_time_that_one_is_back() {
    let mut bench = bench();
    let mut told = |channel, run| {
        bench.connect(channel, "c.lab", at("203.0.113.9:7000"));
        let request = RegistrationRequest { protocol_version: version::CURRENT, run, ..Default::default() };
        bench.request(channel, 900, Message::RegistrationRequest(request));
        let doubled = |action: &Action| matches!(action, Action::Doubled { channel: c } if c.0 == channel);
        bench.actions().iter().any(doubled)
    };
    assert!(!told(10, 1) && !told(11, 2));
    assert!(told(12, 1) && told(13, 2));
    assert!(!told(14, 3), "one of them was restarted");
}

#[test]
fn what_others_saw_of_a_node_before_its_nat_became_another_one_is_not_held_against_it() {
    let mut bench = bench();
    let (old, new) = (at("198.51.100.3:6000"), at("198.51.100.99:6000"));
    bench.connect(2, "c.lab", at("198.51.100.2:6000"));
    bench.register(2, &[at("10.0.0.9:7000")], &[(at("192.0.2.9:443"), at("198.51.100.2:6000"))]);
    bench.connect(0, "a.lab", old);
    bench.actions();
    bench.register(0, &[at("10.0.0.2:7000")], &[(at("192.0.2.9:443"), old)]);
    let relay_failed = || {
        let failed = vec![RouteKind::Relay.into()];
        let fqdn = "c.lab".into();
        Message::DirectionRequest(DirectionRequest { fqdn, failed, ..Default::default() })
    };
    let can_punch = |bench: &mut Bench| {
        bench.request(0, 700, relay_failed());
        let answer = bench.answers().remove(&700).unwrap();
        matches!(answer, Message::RouteDirection(order) if order.kind() == RouteKind::HolePunch)
    };
    assert!(can_punch(&mut bench));
    bench.nms.handle_moved(bench.now, Channel(0), new);
    bench.register(0, &[at("10.0.0.2:7000")], &[(at("192.0.2.9:443"), old)]);
    assert!(!can_punch(&mut bench), "told after the move, it may be so");
    bench.nms.handle_moved(bench.now, Channel(0), old);
    bench.register(0, &[at("10.0.0.2:7000")], &[(at("192.0.2.9:443"), old)]);
    bench.nms.handle_moved(bench.now, Channel(0), new);
    let network = bench.nms.nodes[&Channel(0)].network(prefix());
    assert_eq!(network.observations, [(at("192.0.2.1:443"), new)]);
    // Back where it was, all that it told holds again.
    bench.nms.handle_moved(bench.now, Channel(0), old);
    assert!(can_punch(&mut bench));
}

#[test]
fn a_newer_connection_of_a_device_replaces_the_older_and_its_late_end_changes_nothing() {
    let mut bench = bench();
    bench.ask(1, ask("a.lab"));
    bench.connect(7, "a.lab", at("198.51.100.1:6000"));
    let actions = bench.actions();
    assert!(
        actions.iter().any(|action| matches!(action, Action::Close { channel: Channel(0), .. })),
        "{actions:?}"
    );
    let withdrawal = |action: &Action| {
        matches!(action, Action::Request { channel: Channel(1), message: Message::RouteWithdrawal(_), .. })
    };
    assert!(actions.iter().any(withdrawal), "B's set-up with it is: {actions:?}");
    bench.nms.handle_disconnected(bench.now, Channel(0));
    assert_eq!(bench.nms.sizes(), (2, 0));
    assert_eq!(bench.refused(0, ask("b.lab")).code(), RefusalCode::NotAllowed);
}

#[test]
fn who_a_node_is_comes_from_its_certificate() {
    let mut bench = bench();
    let wrong = [
        Identity { role: Role::Trs, ..identity("c.lab") },
        Identity { network_id: NetworkId([8; 16]), ..identity("c.lab") },
        Identity { virtual_address: None, ..identity("c.lab") },
        identity("c.example"),
        identity("never-enrolled.lab"),
    ];
    for identity in wrong {
        let seen = (at("203.0.113.9:1"), at("192.0.2.1:443"));
        bench.nms.handle_connected(bench.now, Channel(9), identity, seen.0, seen.1);
        assert!(matches!(bench.actions().as_slice(), [Action::Close { channel: Channel(9), .. }]));
        assert_eq!(bench.nms.sizes().0, 2);
    }
}

#[test]
fn a_full_nms_says_nothing_about_who_comes() {
    let mut bench = Bench::new(NmsTiming { nodes: 2, ..NmsTiming::default() });
    bench.connect(2, "c.lab", at("203.0.113.3:7000"));
    let full = bench.actions();
    assert!(matches!(&full[..], [Action::Close { code: close::UNAVAILABLE, .. }]), "{full:?}");
    bench.connect(3, "d.lab", at("203.0.113.4:7000"));
    let unknown = bench.actions();
    assert!(matches!(&unknown[..], [Action::Close { code: close::NOT_ALLOWED, .. }]), "{unknown:?}");
    bench.connect(4, "a.lab", at("198.51.100.1:5000"));
    let again = bench.actions();
    assert!(matches!(&again[..], [Action::Close { channel: Channel(0), .. }]), "its older one: {again:?}");
}

#[test]
fn a_registration_tells_the_node_all_it_needs_and_an_old_version_is_refused() {
    let mut bench = bench();
    let Message::RegistrationResponse(response) = bench.register(0, &[], &[]) else { panic!() };
    assert_eq!(response.virtual_address, identity("a.lab").virtual_address.unwrap().octets());
    assert_eq!((response.zone.as_str(), response.prefix_length, response.relays.len()), ("lab", 48, 1));
    assert_eq!(endpoint::from_wire(&response.observed.unwrap()), Some(at("198.51.100.1:5000")));
    let old = RegistrationRequest::default();
    assert_eq!(bench.refused(0, Message::RegistrationRequest(old)).code(), RefusalCode::Version);
    let odd = Message::RouteConfirmation(RouteConfirmation::default());
    assert_eq!(bench.refused(0, odd).code(), RefusalCode::Malformed);
}

#[test]
fn a_node_cannot_have_packets_sent_to_the_loopback_of_others() {
    let mut bench = bench();
    bench.register(
        1,
        &[at("203.0.113.2:7000"), at("127.0.0.1:22"), at("[fe80::1]:22"), at("[::ffff:127.0.0.1]:22")],
        &[],
    );
    let (initiator, _) = bench.ask(0, ask("b.lab"));
    assert_eq!(initiator.peer_endpoints, [endpoint::to_wire(at("203.0.113.2:7000"))]);
}
