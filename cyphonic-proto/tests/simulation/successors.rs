//! Two tunnels of one pair: which of them stays.

use std::time::Duration;

use cyphonic_proto::message::{RefusalCode, RouteDirection, TunnelRequest};
use cyphonic_proto::node::{Action, TunnelActivity};

use crate::security::{actions, calm, direct, direction, from_b, knock, node, refusal, request};
use crate::world::identity;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn of_two_tunnels_the_one_of_the_later_set_up_stays_whichever_was_complete_first() {
    for order in [[0x11, 0x22], [0x22, 0x11]] {
        let mut world = calm();
        let mut tunnels = vec![];
        // The word of the later one was faster: it does not take the place of the other.
        for number in [0x22, 0x11] {
            direct(&mut world, RouteDirection { setup_id: vec![number; 16], ..direction() });
        }
        for number in order {
            let done = knock(
                &mut world,
                &identity("b"),
                from_b(),
                TunnelRequest { setup_id: vec![number; 16], ..request() },
            );
            let Action::InstallTunnel(tunnel) = &done[0] else { panic!("{done:?}") };
            tunnels.push((number, tunnel.id));
        }
        let later = world.now + 10 * SECOND;
        for (_, id) in &tunnels {
            let activity = TunnelActivity { last_rx: Some(world.now), ..TunnelActivity::default() };
            let now = world.now;
            node(&mut world).handle_tunnel_stats(now, *id, activity);
        }
        node(&mut world).handle_timeout(later);
        let removed = actions(&mut world).into_iter().filter_map(|action| match action {
            Action::RemoveTunnel { id, .. } => Some(id),
            _ => None,
        });
        let older = tunnels.iter().find(|(number, _)| *number == 0x11).unwrap().1;
        assert_eq!(removed.collect::<Vec<_>>(), [older]);
    }
}

/// The peer may never have heard of the later one: both ends then have the other.
#[test]
fn a_tunnel_stays_where_nothing_is_heard_on_its_successor() {
    let mut world = calm();
    let mut tunnels = vec![];
    for number in [0x11, 0x22] {
        direct(&mut world, RouteDirection { setup_id: vec![number; 16], ..direction() });
        let request = TunnelRequest { setup_id: vec![number; 16], ..request() };
        let done = knock(&mut world, &identity("b"), from_b(), request);
        let Action::InstallTunnel(tunnel) = &done[0] else { panic!("{done:?}") };
        tunnels.push(tunnel.id);
        // The same moment ends the one's time and the other's.
        let activity = TunnelActivity { last_rx: Some(world.now), ..TunnelActivity::default() };
        let now = world.now;
        node(&mut world).handle_tunnel_stats(now, tunnels[0], activity);
    }
    let now = world.now;
    for (after, gone) in [(10, vec![tunnels[1]]), (20, vec![])] {
        node(&mut world).handle_timeout(now + after * SECOND);
        let removed = actions(&mut world).into_iter().filter_map(|action| match action {
            Action::RemoveTunnel { id, .. } => Some(id),
            _ => None,
        });
        assert_eq!(removed.collect::<Vec<_>>(), gone, "after {after} s");
    }
}

/// Who is heard on each of its tunnels once that has a successor cannot have all of them kept.
#[test]
fn a_peer_that_sets_up_one_tunnel_after_the_other_has_few_at_a_time() {
    let mut world = calm();
    let (mut tunnels, mut stand) = (vec![], 0);
    for number in 0x11..0x25 {
        direct(&mut world, RouteDirection { setup_id: vec![number; 16], ..direction() });
        let request = TunnelRequest { setup_id: vec![number; 16], ..request() };
        let done = knock(&mut world, &identity("b"), from_b(), request);
        let Action::InstallTunnel(tunnel) = &done[0] else { panic!("{done:?}") };
        stand += 1;
        let now = world.now;
        let heard = TunnelActivity { last_rx: Some(now), ..TunnelActivity::default() };
        tunnels.last().into_iter().for_each(|id| node(&mut world).handle_tunnel_stats(now, *id, heard));
        tunnels.push(tunnel.id);
        world.now += SECOND;
        let now = world.now;
        node(&mut world).handle_timeout(now);
        let removed = |action: &Action| matches!(action, Action::RemoveTunnel { .. });
        stand -= actions(&mut world).iter().filter(|action| removed(action)).count();
    }
    // Each has 10 s after its successor.
    assert!(stand <= 12, "{stand} of {} stand", tunnels.len());
}

#[test]
fn a_peers_later_set_up_takes_the_place_of_its_earlier_one_which_is_refused_from_then_on() {
    let mut world = calm();
    for number in [0x11, 0x22] {
        direct(&mut world, RouteDirection { setup_id: vec![number; 16], ..direction() });
    }
    let request = |number: u8| TunnelRequest { setup_id: vec![number; 16], ..request() };
    let done = knock(&mut world, &identity("b"), from_b(), request(0x11));
    assert_eq!(refusal(&done).code(), RefusalCode::NotAllowed);
    let done = knock(&mut world, &identity("b"), from_b(), request(0x22));
    assert!(matches!(done.as_slice(), [Action::InstallTunnel(_), Action::RespondPeer { .. }]), "{done:?}");
}
