//! A device that the cloud does not let in, with a real cloud; and one that finds none.

use std::fs::{self, File};
use std::sync::Arc;

use cyphonic_agent::control::StatusReport;
use cyphonic_cloud::server::Cloud;
use tracing_subscriber::filter::LevelFilter;

use crate::overlay::{Overlay, now, registered, status_when};

fn is_shut_out(report: &StatusReport, words: &str) -> bool {
    let told = report.health_check("not-admitted").is_some_and(|check| check.message.contains(words));
    told && report.health_check("nms-unreachable").is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_revoked_while_it_is_connected_is_told_what_it_is() {
    let overlay = Overlay::found();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let device = overlay.enrol("a", 10, dir.path());
    let (engine, _endpoint) = device.run(overlay.address);
    let report = status_when(&engine, registered).await;
    assert!(report.health_check("not-admitted").is_none());
    overlay.register().revoke_device(&device.parsed().fqdn, now()).unwrap();
    status_when(&engine, |report| is_shut_out(report, "revoked")).await;
    // A cloud that is away afterwards is what is wrong then.
    cloud.shutdown().await;
    status_when(&engine, |report| {
        report.health_check("nms-unreachable").is_some() && report.health_check("not-admitted").is_none()
    })
    .await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_identity_are_told_of_each_other() {
    let overlay = Overlay::found();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let device = overlay.enrol("a", 10, dir.path());
    let (first, _one) = device.run(overlay.address);
    status_when(&first, registered).await;
    let (second, _other) = device.run(overlay.address);
    status_when(&first, |report| is_shut_out(report, "replaced by a newer connection")).await;
    second.stop().await;
    // Alone, it is let in again, and nothing is left of that.
    let alone = status_when(&first, registered).await;
    assert!(alone.health_check("not-admitted").is_none(), "{:?}", alone.health);
    first.stop().await;
    cloud.shutdown().await;
}

/// In one thread, so that what the engine logs can be read.
#[tokio::test]
async fn a_cloud_that_is_away_is_told_the_log_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let layer = tracing_subscriber::fmt().with_max_level(LevelFilter::DEBUG).with_ansi(false);
    let _logged =
        tracing::subscriber::set_default(layer.with_writer(Arc::new(File::create(&log).unwrap())).finish());
    // Alone, it would not be asked of what other tests' threads log first.
    let _another = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let lines = |level: &str| {
        let text = fs::read_to_string(&log).unwrap();
        let of = |line: &&str| {
            line.contains(level) && line.contains("cannot connect") && line.contains("by_tcp=false")
        };
        text.lines().filter(of).count()
    };
    let overlay = Overlay::found();
    let device = overlay.enrol("a", 10, &dir.path().join("state"));
    let (engine, _endpoint) = device.run(overlay.address);
    // Only the AS is known, and nobody is where it should be.
    let report = status_when(&engine, |_| lines("DEBUG") >= 1).await;
    let error = report.services[0].last_error.as_deref().unwrap();
    assert!(error.starts_with(&format!("no answer from {}", overlay.address)), "{error}");
    assert_eq!(lines(" INFO"), 1);
    engine.stop().await;
}
