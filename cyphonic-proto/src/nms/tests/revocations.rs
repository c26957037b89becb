//! Whom a revocation is told, and for how long.

use super::*;

#[test]
fn a_revoked_device_is_closed_forgotten_and_kept_out() {
    let mut bench = bench();
    bench.nms.handle_revoked(bench.now, "b.lab");
    assert!(matches!(bench.actions().as_slice(), [Action::Close { channel: Channel(1), .. }]));
    assert_eq!(bench.refused(0, ask("b.lab")).code(), RefusalCode::NoSuchPeer);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.notices().len(), 1);
    bench.connect(5, "b.lab", at("203.0.113.2:7000"));
    assert!(matches!(bench.actions().as_slice(), [Action::Close { channel: Channel(5), .. }]));
    bench.nms.handle_enrolled("b.lab");
    bench.connect(6, "b.lab", at("203.0.113.2:7000"));
    assert!(bench.actions().is_empty());
}

#[test]
fn all_who_are_registered_are_told_of_revocations_together() {
    let mut bench = bench();
    bench.connect(2, "c.lab", at("203.0.113.3:7000"));
    bench.nms.handle_revoked(bench.now, "b.lab");
    bench.nms.handle_replaced(bench.now, "d.lab");
    bench.actions();
    bench.pass(Duration::from_secs(1));
    let both = vec!["b.lab".to_owned(), "d.lab".to_owned()];
    assert_eq!(bench.notices(), [(0, both.clone())], "C is not registered yet, B is gone");
    assert_eq!(bench.nms.poll_timeout(), None, "once");
    let registration = RegistrationRequest { protocol_version: version::CURRENT, ..Default::default() };
    bench.request(2, 900, Message::RegistrationRequest(registration.clone()));
    assert_eq!(bench.notices(), [(2, both)], "who was not there hears of them when it comes");
    bench.request(2, 901, Message::RegistrationRequest(registration));
    assert!(bench.notices().is_empty(), "once");
}

#[test]
fn a_revocation_is_remembered_until_no_tunnel_can_be_so_old_or_the_name_is_taken_again() {
    let told_later = |later: Duration, taken: bool| {
        let mut bench = bench();
        bench.nms.handle_revoked(bench.now, "b.lab");
        bench.pass(Duration::from_secs(1));
        if taken {
            bench.nms.handle_enrolled("b.lab");
        }
        bench.now += later;
        bench.actions();
        bench.connect(2, "c.lab", at("203.0.113.3:7000"));
        let registration = RegistrationRequest { protocol_version: version::CURRENT, ..Default::default() };
        bench.request(2, 900, Message::RegistrationRequest(registration));
        bench.notices().len()
    };
    let hour = Duration::from_secs(3600);
    assert_eq!([told_later(hour, false), told_later(3 * hour, false), told_later(hour, true)], [1, 0, 0]);
}

#[test]
fn who_comes_after_a_start_is_told_of_revocations_before_it() {
    let mut bench = bench();
    let revoked = ["d.lab", "e.lab"].map(String::from).to_vec();
    let config = NmsConfig { revoked, ..config(NmsTiming::default()) };
    bench.nms = Nms::new(config, [2; 32], bench.now);
    let told = |bench: &mut Bench, channel, name| {
        bench.connect(channel, name, at("203.0.113.3:7000"));
        let registration = RegistrationRequest { protocol_version: version::CURRENT, ..Default::default() };
        bench.request(channel, 900, Message::RegistrationRequest(registration));
        bench.notices()
    };
    assert_eq!(told(&mut bench, 10, "a.lab"), [(10, vec!["d.lab".to_owned(), "e.lab".to_owned()])]);
    bench.nms.handle_enrolled("d.lab");
    assert_eq!(told(&mut bench, 11, "b.lab"), [(11, vec!["e.lab".to_owned()])]);
    bench.now += REVOCATIONS_REMEMBERED + Duration::from_secs(1);
    assert!(told(&mut bench, 12, "c.lab").is_empty());
}

#[test]
fn who_comes_later_is_not_told_of_a_name_that_a_member_has() {
    for replaced in [true, false] {
        let mut bench = bench();
        match replaced {
            true => bench.nms.handle_replaced(bench.now, "b.lab"),
            false => bench.nms.handle_revoked(bench.now, "b.lab"),
        }
        bench.nms.handle_enrolled("b.lab");
        bench.pass(Duration::from_secs(1));
        assert!(bench.notices().contains(&(0, vec!["b.lab".to_owned()])), "{replaced}");
        bench.connect(2, "c.lab", at("203.0.113.3:7000"));
        let registration = RegistrationRequest { protocol_version: version::CURRENT, ..Default::default() };
        bench.request(2, 900, Message::RegistrationRequest(registration));
        assert!(bench.notices().is_empty(), "{replaced}");
    }
}

#[test]
fn many_revocations_come_in_messages_that_fit_and_the_oldest_are_forgotten() {
    let mut bench = bench();
    let name = |number: usize| format!("{number:0>60}.{0:0>60}.{0:0>60}.{0:0>60}.lab", "x");
    for number in 0..5000 {
        bench.nms.handle_revoked(bench.now, &name(number));
    }
    bench.pass(Duration::from_secs(1));
    let told = bench.notices();
    assert!(told.iter().all(|(channel, _)| *channel < 2));
    let of_a: Vec<_> = told.iter().filter(|(channel, _)| *channel == 0).map(|(_, names)| names).collect();
    assert_eq!(of_a.iter().map(|names| names.len()).sum::<usize>(), 5000);
    for names in of_a {
        let notice = Message::RevocationNotice(crate::message::RevocationNotice { fqdn: names.clone() });
        crate::message::decode(&crate::message::encode(&notice)).unwrap();
    }
    bench.connect(2, "c.lab", at("203.0.113.3:7000"));
    let registration = RegistrationRequest { protocol_version: version::CURRENT, ..Default::default() };
    bench.request(2, 900, Message::RegistrationRequest(registration));
    let later: Vec<_> = bench.notices().into_iter().flat_map(|(_, names)| names).collect();
    assert_eq!((later.len(), later.first(), later.last()), (4096, Some(&name(904)), Some(&name(4999))));
}
