//! Legs that outlive connections and processes.

use super::*;
use crate::message::BindingRestore;

/// Each ticket's leg has a context of its own: tickets begin with their version and a random salt.
fn restore(ticket: &[u8]) -> Message {
    let salt = ticket.get(1..4).map_or(0, |salt| u32::from_be_bytes([0, salt[0], salt[1], salt[2]]));
    let context = relayed::MIN_CONTEXT + 256 + u64::from(salt);
    Message::BindingRestore(BindingRestore { ticket: ticket.to_vec(), context })
}

impl Bench {
    /// The same TRS in a new process, and its three devices again, as channels 10 to 12.
    fn restart(&mut self) {
        self.trs = trs(self.now, 2);
        for n in 0..3 {
            self.connect(10 + u64::from(n), n);
        }
        self.actions();
    }

    fn answered(&mut self, channel: u64, message: Message) -> (BindingResponse, Vec<Action>) {
        let (answer, actions) = self.ask(channel, message);
        let Message::BindingResponse(response) = answer else { panic!("{answer:?}") };
        (response, actions)
    }

    /// A's and B's answers for a bound pair, B's renewed once the pair was bound.
    fn answers(&mut self) -> [BindingResponse; 2] {
        let (b, _) = self.answered(1, request(1, "a.lab", 11));
        assert!(!b.bound);
        let (a, _) = self.answered(0, request(1, "b.lab", 10));
        let (b, _) = self.answered(1, restore(&b.ticket));
        assert!(a.bound && b.bound);
        [a, b]
    }
}

fn id(response: &BindingResponse) -> ConnectionId {
    ConnectionId::from_bytes(response.connection_id.as_slice().try_into().unwrap())
}

/// The entries of A's and B's legs, wherever the actions come from.
fn inserted(a: ConnectionId, b: ConnectionId) -> [Action; 2] {
    [
        Action::Insert { cid: a, from: path(1), to: path(0), real_cid: cid(10) },
        Action::Insert { cid: b, from: path(0), to: path(1), real_cid: cid(11) },
    ]
}

fn sorted(mut actions: Vec<Action>, first: ConnectionId) -> Vec<Action> {
    actions.sort_by_key(|action| !matches!(action, Action::Insert { cid, .. } if *cid == first));
    actions
}

#[test]
fn each_end_gets_the_token_of_the_leg_it_sends_to_and_a_small_ticket() {
    let mut bench = Bench::new();
    let keys = TrsKeys::derive(b"private key");
    let [a, b] = bench.answers();
    assert_eq!(a.reset_token, keys.reset_token(id(&b)));
    assert_eq!(b.reset_token, keys.reset_token(id(&a)));
    for answer in [&a, &b] {
        assert!(!answer.ticket.is_empty() && answer.ticket.len() <= MAX_TICKET);
        assert!(!format!("{answer:?}").contains("ticket"), "tickets and tokens are not shown");
    }
}

#[test]
fn after_a_restart_both_ends_get_their_legs_back_with_the_same_connection_ids() {
    let mut bench = Bench::new();
    let [a, b] = bench.answers();
    bench.restart();
    let (again, actions) = bench.answered(10, restore(&a.ticket));
    assert_eq!((id(&again), &again.reset_token, again.bound), (id(&a), &a.reset_token, false));
    let called = Action::Reset { cid: id(&a), to: path(1) };
    assert_eq!(actions, [called], "the other end is called back, and nothing is forwarded yet");
    let (again, actions) = bench.answered(11, restore(&b.ticket));
    assert!(again.bound && id(&again) == id(&b));
    assert_eq!(sorted(actions, id(&a)), inserted(id(&a), id(&b)));
    assert_eq!(bench.trs.counters().restored, 2);
}

#[test]
fn a_ticket_of_an_unbound_leg_restores_but_calls_nobody() {
    let mut bench = Bench::new();
    let (b, _) = bench.answered(1, request(1, "a.lab", 11));
    bench.restart();
    assert_eq!(bench.answered(11, restore(&b.ticket)).1, []);
}

#[test]
fn tickets_are_worth_nothing_forged_expired_or_in_other_hands() {
    let mut bench = Bench::new();
    let [a, b] = bench.answers();
    bench.restart();
    assert_eq!(bench.refused(11, restore(&a.ticket)), RefusalCode::NotAllowed, "the other end's");
    assert_eq!(bench.refused(12, restore(&a.ticket)), RefusalCode::NotAllowed, "somebody else's");
    for at in [0, 1, 20, 100, 200] {
        let mut forged = a.ticket.clone();
        forged[at] ^= 1;
        assert_eq!(bench.refused(10, restore(&forged)), RefusalCode::NotAllowed);
    }
    assert_eq!(bench.refused(10, restore(&[])), RefusalCode::NotAllowed);
    // The same name under another key: the device was set up anew, and the old one lost or sold.
    let anew = Identity { spki_sha256: KeyHash([9; 32]), ..identity("a.lab", Role::Device) };
    bench.trs.handle_connected(bench.now, Channel(20), anew, path(0));
    bench.actions();
    assert_eq!(bench.refused(20, restore(&a.ticket)), RefusalCode::NotAllowed, "another key");
    bench.now += TrsLimits::default().ticket;
    assert_eq!(bench.refused(11, restore(&b.ticket)), RefusalCode::NotAllowed, "expired");
}

/// A machine without a battery-backed clock boots years behind, and network time sets it right a while later.
#[test]
fn tickets_end_by_the_clock_as_it_is_set_now() {
    let mut bench = Bench::new();
    bench.trs.handle_clock(bench.now, 86_400);
    bench.now += Duration::from_secs(60);
    bench.trs.handle_clock(bench.now, 1_800_000_000);
    let [a, b] = bench.answers();
    bench.restart();
    bench.answered(10, restore(&a.ticket));
    let (again, _) = bench.answered(11, restore(&b.ticket));
    assert!(again.bound);
    bench.restart();
    bench.trs.handle_clock(bench.now, 1_800_000_000 + TrsLimits::default().ticket.as_secs());
    assert_eq!(bench.refused(10, restore(&a.ticket)), RefusalCode::NotAllowed, "expired");
}

/// Its ticket is of before the clock was set right; the leg is not.
#[test]
fn a_leg_that_stands_is_attached_and_gets_a_new_ticket_though_its_own_has_ended() {
    let mut bench = Bench::new();
    bench.trs.handle_clock(bench.now, 1_800_000_000);
    let [a, _] = bench.answers();
    let later = 1_800_000_000 + 5 * TrsLimits::default().ticket.as_secs();
    bench.trs.handle_clock(bench.now, later);
    bench.answered(0, restore(&a.ticket));
    bench.trs.handle_lost(bench.now, Channel(0));
    bench.connect(10, 0);
    let (again, _) = bench.answered(10, restore(&a.ticket));
    bench.restart();
    bench.trs.handle_clock(bench.now, later);
    assert_eq!(bench.refused(10, restore(&a.ticket)), RefusalCode::NotAllowed, "expired");
    bench.answered(10, restore(&again.ticket));
}

#[test]
fn a_ticket_of_another_trs_is_worth_nothing() {
    let mut bench = Bench::new();
    let [a, _] = bench.answers();
    bench.restart();
    bench.trs.config.keys = TrsKeys::derive(b"another private key");
    assert_eq!(bench.refused(10, restore(&a.ticket)), RefusalCode::NotAllowed);
}

#[test]
fn one_end_alone_resurrects_nothing() {
    let mut bench = Bench::new();
    let [a, b] = bench.answers();
    bench.trs.handle_disconnected(bench.now, Channel(1));
    let removed = bench.actions();
    assert_eq!(removed.len(), 2, "B has left: {removed:?}");
    let (again, actions) = bench.answered(0, restore(&a.ticket));
    assert!(!again.bound && !actions.iter().any(|action| matches!(action, Action::Insert { .. })));
    bench.now += TrsLimits::default().orphaned;
    bench.trs.handle_timeout(bench.now);
    assert_eq!((bench.actions(), bench.trs.sizes().1), (vec![], 0), "and its own end does not stay");
    // Nor does a device that is none of the two get in between.
    bench.answered(0, restore(&a.ticket));
    let (between, actions) = bench.answered(2, request(1, "a.lab", 12));
    assert!(!between.bound && actions.is_empty());
    assert_eq!(bench.refused(2, restore(&b.ticket)), RefusalCode::NotAllowed);
}

#[test]
fn legs_of_a_lost_connection_go_on_until_their_owner_claims_them() {
    let mut bench = Bench::new();
    let [a, b] = bench.answers();
    bench.trs.handle_lost(bench.now, Channel(0));
    assert_eq!(bench.actions(), [], "packets flow on");
    bench.now += Duration::from_secs(30);
    bench.trs.handle_timeout(bench.now);
    bench.trs.handle_connected(bench.now, Channel(10), identity("a.lab", Role::Device), path(77));
    let (again, actions) = bench.answered(10, restore(&a.ticket));
    assert!(again.bound);
    let moved = [
        Action::Insert { cid: id(&a), from: path(1), to: path(77), real_cid: cid(10) },
        Action::Insert { cid: id(&b), from: path(77), to: path(1), real_cid: cid(11) },
    ];
    assert_eq!(actions, moved, "to where the owner is now");
    bench.now += Duration::from_secs(300);
    bench.trs.handle_timeout(bench.now);
    assert_eq!((bench.actions(), bench.trs.sizes().1), (vec![], 2), "it is an ordinary leg again");
}

#[test]
fn legs_that_nobody_claims_end_and_so_do_those_of_the_revoked() {
    let mut bench = Bench::new();
    let [a, b] = bench.answers();
    bench.trs.handle_lost(bench.now, Channel(0));
    bench.now += TrsLimits::default().orphaned;
    bench.trs.handle_leg_activity(bench.now, id(&b), bench.now);
    bench.trs.handle_timeout(bench.now);
    let removed = [Action::Remove { cid: id(&a) }, Action::Remove { cid: id(&b) }];
    assert_eq!(bench.actions(), removed, "the other end's packets do not keep it");
    assert_eq!(bench.trs.poll_timeout(), None);

    let [a, b] = bench.answers_of_b_and_c();
    bench.trs.handle_lost(bench.now, Channel(1));
    bench.trs.handle_revoked(bench.now, "b.lab");
    assert_eq!(bench.actions(), [Action::Remove { cid: id(&a) }, Action::Remove { cid: id(&b) }]);
    assert_eq!(bench.trs.sizes().1, 0);
}

/// The certificate of the device that had the name before is valid until its end, and this TRS may not hear
/// of revocations.
#[test]
fn who_had_a_name_before_can_neither_take_its_place_nor_end_its_legs() {
    let mut bench = Bench::new();
    let [a, b] = bench.answers();
    let mut before = identity("a.lab", Role::Device);
    (before.spki_sha256, before.not_before) = (KeyHash([9; 32]), -1);
    bench.trs.handle_connected(bench.now, Channel(20), before.clone(), path(99));
    let refused = bench.actions();
    assert!(matches!(&refused[..], [Action::Close { channel: Channel(20), .. }]), "{refused:?}");
    // While the name's owner is away.
    bench.trs.handle_lost(bench.now, Channel(0));
    bench.trs.handle_connected(bench.now, Channel(21), before.clone(), path(99));
    assert_eq!(bench.refused(21, restore(&a.ticket)), RefusalCode::NotAllowed);
    bench.trs.handle_disconnected(bench.now, Channel(21));
    assert_eq!((bench.actions(), bench.trs.sizes().1), (vec![], 2));
    bench.trs.handle_connected(bench.now, Channel(22), before, path(99));
    bench.trs.handle_connected(bench.now, Channel(23), identity("a.lab", Role::Device), path(1));
    let replaced = bench.actions();
    assert!(matches!(&replaced[..], [Action::Close { channel: Channel(22), .. }]), "{replaced:?}");
    assert!(bench.answered(23, restore(&a.ticket)).0.bound);
    assert!(bench.trs.sizes().1 == 2 && id(&b) != id(&a));
    // The name is revoked with all who had it.
    bench.trs.handle_lost(bench.now, Channel(23));
    bench.trs.handle_revoked(bench.now, "a.lab");
    assert_eq!(bench.trs.sizes().1, 0);
}

#[test]
fn what_waits_for_one_device_is_bounded() {
    let mut bench = Bench::new();
    for round in 0..5 {
        for n in 0..3 {
            let setup = round * 3 + n;
            bench.answered(1, request(setup, "a.lab", setup));
            bench.answered(0, request(setup, "b.lab", setup));
        }
        bench.trs.handle_lost(bench.now, Channel(0));
        bench.trs.handle_lost(bench.now, Channel(1));
        assert!(bench.trs.sizes().1 <= 2 * 4, "{:?}", bench.trs.sizes());
        bench.connect(0, 0);
        bench.connect(1, 1);
        bench.actions();
    }
}

#[test]
fn what_a_kernel_map_kept_is_claimed_or_removed_and_never_given_to_another() {
    let mut bench = Bench::new();
    let [a, b] = bench.answers();
    bench.restart();
    let stranger = cid(77);
    bench.trs.handle_adopted(bench.now, [id(&a), id(&b), stranger]);
    assert_eq!(bench.actions(), [], "they forward as they are");
    bench.answered(10, restore(&a.ticket));
    let (_, actions) = bench.answered(11, restore(&b.ticket));
    assert_eq!(sorted(actions, id(&a)), inserted(id(&a), id(&b)));
    bench.now += TrsLimits::default().orphaned;
    bench.trs.handle_timeout(bench.now);
    assert_eq!(bench.actions(), [Action::Remove { cid: stranger }]);
}

#[test]
fn a_kept_entry_whose_other_end_never_comes_back_is_removed() {
    let mut bench = Bench::new();
    let [a, b] = bench.answers();
    bench.restart();
    bench.trs.handle_adopted(bench.now, [id(&a), id(&b)]);
    bench.answered(10, restore(&a.ticket));
    bench.now += TrsLimits::default().orphaned;
    bench.trs.handle_timeout(bench.now);
    let mut removed = bench.actions();
    removed.sort_by_key(|action| matches!(action, Action::Remove { cid } if *cid == id(&b)));
    assert_eq!(removed, [Action::Remove { cid: id(&a) }, Action::Remove { cid: id(&b) }]);
}

impl Bench {
    /// B's and C's answers for a bound pair.
    fn answers_of_b_and_c(&mut self) -> [BindingResponse; 2] {
        let (c, _) = self.answered(2, request(2, "b.lab", 21));
        let (b, _) = self.answered(1, request(2, "c.lab", 20));
        [b, c]
    }
}

proptest! {
    /// Whatever order connections break, close and come back in, and whoever restores what: both entries of a pair are
    /// in the map or neither is, and legs are bounded.
    #[test]
    fn the_map_always_holds_whole_pairs(steps in prop::collection::vec((0..6u8, 0..3u8, 0..2usize), 1..60)) {
        let mut bench = Bench::new();
        let mut tickets: Vec<(u8, Vec<u8>)> = Vec::new();
        let [a, b] = bench.answers();
        tickets.extend([(0, a.ticket), (1, b.ticket)]);
        let pair = [a.connection_id, b.connection_id].map(|id| ConnectionId::from_bytes(id.try_into().unwrap()));
        let mut map = BTreeSet::from(pair);
        let mut channel = 100;
        let mut channels = [0, 1, 2];
        for (step, device, ticket) in steps {
            let d = usize::from(device);
            match step {
                0 => { bench.trs.handle_lost(bench.now, Channel(channels[d])); }
                1 => { bench.trs.handle_disconnected(bench.now, Channel(channels[d])); }
                2 => {
                    channel += 1;
                    channels[d] = channel;
                    bench.connect(channel, device);
                }
                3 => {
                    bench.now += Duration::from_secs(20);
                    bench.trs.handle_timeout(bench.now);
                }
                4 => bench.trs.handle_moved(bench.now, Channel(channels[d]), path(device + 30)),
                _ => {
                    let ticket = restore(&tickets[ticket].1);
                    bench.trs.handle_request(bench.now, Channel(channels[d]), ExchangeId(1), ticket);
                }
            }
            for action in bench.actions() {
                match action {
                    Action::Insert { cid, .. } => { map.insert(cid); }
                    Action::Remove { cid } => prop_assert!(map.remove(&cid), "removed twice"),
                    _ => {}
                }
            }
            prop_assert!(map.is_empty() || map.len() == 2, "half a pair: {:?}", map);
            prop_assert!(bench.trs.sizes().1 <= 2);
        }
    }
}

#[test]
fn at_a_full_relay_owners_of_legs_that_stand_get_them_back() {
    let mut bench = Bench::new();
    let [a, _] = bench.answers();
    bench.trs.config.limits.legs = 2;
    bench.trs.handle_lost(bench.now, Channel(0));
    bench.connect(20, 0);
    let (answer, _) = bench.answered(20, restore(&a.ticket));
    assert!(answer.bound && answer.connection_id == a.connection_id);
    assert_eq!(bench.refused(2, request(3, "b.lab", 30)), RefusalCode::TooMany, "there is no room for more");
}
