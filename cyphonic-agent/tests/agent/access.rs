//! The overlay's rules of who may open what here, from a real cloud.

use std::sync::Arc;

use cyphonic_agent::config::Config as Settings;
use cyphonic_agent::control::Backend;
use cyphonic_cloud::config::Config;
use cyphonic_cloud::server::Cloud;
use cyphonic_common::policy::{Direction, PolicyKey, PolicyTable as _};
use cyphonic_dataplane::ring::Permissions;
use cyphonic_transport::Clock;

use crate::overlay::{NoRing, Overlay, registered, status_when};

/// The overlay with these rules.
fn with_rules(mut overlay: Overlay, rules: &str) -> Overlay {
    let path = overlay.dir.path().join("cloud.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    overlay.config = Config::parse(&format!("{text}\naccess: {rules}\n"), &path).unwrap();
    overlay
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_have_no_room_beside_those_before_come_in_their_place() {
    let overlay = with_rules(Overlay::found(), "[{from: all, at: a, to: tcp/1-4}]");
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let (dir, allowed) = (tempfile::tempdir().unwrap(), |port| PolicyKey::new(Direction::In, 0, 6, port));
    let expected: Permissions =
        [PolicyKey::everything(Direction::Out)].into_iter().chain((1..=4).map(allowed)).collect();
    let device = overlay.enrol("a", 10, dir.path());
    for (room, fits) in [(6, true), (5, true), (4, false)] {
        let ring = Arc::new(NoRing::with_room(room));
        let (engine, endpoint) = device.run_over(overlay.address, Clock::new(0), Arc::clone(&ring));
        let report = status_when(&engine, |report| registered(report) && report.access.is_some()).await;
        let held = ring.permissions.lock().unwrap().clone();
        assert_eq!(*held == expected, fits, "room for {room}: {held:?}");
        assert!(!held.are_all(), "room for {room}: who has no room for rules lets nobody in");
        assert_eq!(report.health_check("access-incomplete").is_none(), fits, "{:?}", report.health);
        engine.stop().await;
        drop(endpoint);
    }
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_had_no_room_are_told_of_until_others_are_in_force() {
    let overlay = with_rules(Overlay::found(), "[{from: all, at: a, to: tcp/1-4}]");
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ring = Arc::new(NoRing::with_room(4));
    let device = overlay.enrol("a", 10, dir.path());
    let (engine, _endpoint) = device.run_over(overlay.address, Clock::new(0), Arc::clone(&ring));
    status_when(&engine, |report| report.health_check("access-incomplete").is_some()).await;
    // Of what the overlay allows, the device's own rules leave as much as there is room for.
    for (own, told) in
        [("null", true), ("[{from: all, to: tcp/2}]", false), ("[{from: all, to: tcp/2}]", false)]
    {
        let settings: Settings = serde_yaml::from_str(&format!("access: {own}")).unwrap();
        engine.take_over(settings.reloadable()).await.unwrap();
        let health = engine.status().await.health;
        assert_eq!(health.iter().any(|check| check.id == "access-incomplete"), told, "{own}: {health:?}");
        let is_open = |port| {
            let key = PolicyKey::new(Direction::In, 0, 6, port);
            ring.permissions.lock().unwrap().holds(&key)
        };
        assert_eq!([1, 2].map(is_open), [false, !told], "{own}");
    }
    engine.stop().await;
    cloud.shutdown().await;
}
