//! A device whose clock is years wrong, with a real cloud.

use std::time::Duration;

use cyphonic_agent::control::StatusReport;
use cyphonic_agent::control::report::Severity;
use cyphonic_cloud::server::Cloud;
use cyphonic_proto::time::Reading;
use cyphonic_transport::Clock;

use crate::overlay::{DAY, Overlay, now, registered, status_when};

const YEAR: u64 = 365 * DAY;

/// What a system's clock may say that nobody has set, or that somebody has.
fn wrong_clocks() -> [u64; 3] {
    [0, now() - 30 * YEAR, now() + 20 * YEAR]
}

/// The system's clock stands at `system`; the one that nobody sets has just begun.
fn clock(floor: i64, system: u64) -> Clock {
    Clock::reading(floor.unsigned_abs(), move || Reading { since_boot: Duration::from_secs(20), system })
}

fn complains_of(report: &StatusReport, id: &str, words: &str) -> bool {
    report.health.iter().any(|check| check.id == id && check.message.contains(words))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_a_wrong_clock_learns_the_time_and_registers() {
    let overlay = Overlay::found();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    for (name, system) in ["a", "b", "c"].into_iter().zip(wrong_clocks()) {
        let dir = tempfile::tempdir().unwrap();
        let device = overlay.enrol(name, 10, dir.path());
        let clock = clock(device.parsed().not_before, system);
        let (engine, _endpoint) = device.run_by(overlay.address, clock.clone());
        let report = status_when(&engine, registered).await;
        assert!(complains_of(&report, "clock-wrong", "years"), "{:?}", report.health);
        assert!(clock.now().abs_diff(now()) < 600, "it is {}, not {}", now(), clock.now());
        // By its own clock the certificate has ended, or has not begun.
        assert!(!report.health.iter().any(|check| check.severity == Severity::Error), "{:?}", report.health);
        engine.stop().await;
        assert_eq!(
            device.state.identity().unwrap().unwrap().leaf(),
            device.identity.leaf(),
            "it is not time to renew"
        );
    }
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_due_is_renewed_whatever_the_clock_says() {
    let overlay = Overlay::found();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    for (name, system) in ["a", "b", "c"].into_iter().zip(wrong_clocks()) {
        let dir = tempfile::tempdir().unwrap();
        let device = overlay.enrol(name, 70, dir.path());
        let old = device.parsed();
        let (engine, _endpoint) = device.run_by(overlay.address, clock(old.not_before, system));
        status_when(&engine, |report| report.certificate.not_after > old.not_after).await;
        engine.stop().await;
    }
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_told_so_whatever_its_clock_says() {
    let overlay = Overlay::found();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    for (name, system) in ["a", "b", "c"].into_iter().zip(wrong_clocks()) {
        let dir = tempfile::tempdir().unwrap();
        let device = overlay.enrol(name, 10, dir.path());
        overlay.register().revoke_device(&device.parsed().fqdn, now()).unwrap();
        let (engine, _endpoint) = device.run_by(overlay.address, clock(device.parsed().not_before, system));
        let report = status_when(&engine, |report| complains_of(report, "not-admitted", "revoked")).await;
        assert!(!registered(&report));
        engine.stop().await;
    }
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_certificate_has_ended_stays_out_whatever_its_clock_says() {
    let overlay = Overlay::found();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    // What its peer's TLS says, which no time-out does.
    let ended = |report: &StatusReport| complains_of(report, "nms-unreachable", "certificate expired");
    for (name, system) in ["a", "b", "c"].into_iter().zip(wrong_clocks()) {
        let dir = tempfile::tempdir().unwrap();
        let device = overlay.enrol(name, 100, dir.path());
        let (engine, _endpoint) = device.run_by(overlay.address, clock(device.parsed().not_before, system));
        let report = status_when(&engine, ended).await;
        assert!(!registered(&report), "{report:#?}");
        engine.stop().await;
    }
    cloud.shutdown().await;
}
