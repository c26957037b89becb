//! Renewal of a device's certificate.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use cyphonic_agent::config::EnrolAs;
use cyphonic_agent::control::StatusReport;
use cyphonic_agent::control::report::Severity;
use cyphonic_agent::enrol::enrol;
use cyphonic_agent::state::StateDir;
use cyphonic_cloud::server::Cloud;
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::identity::{Identity, sha256};
use cyphonic_proto::token::EnrolmentToken;
use cyphonic_transport::ClientTls;

use crate::overlay::{DAY, Endpoint, Overlay, SOON, now, registered, status_when, up};

fn complaint(report: &StatusReport) -> Option<(Severity, &str)> {
    let mut checks = report.health.iter();
    checks.find(|check| check.id == "certificate-expires").map(|c| (c.severity, c.message.as_str()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_kept_and_used_in_both_directions() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let a = overlay.enrol("a", 70, &dir.path().join("a"));
    let b = overlay.enrol("b", 0, &dir.path().join("b"));
    let old = a.parsed();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let (engine, endpoint) = a.run(overlay.address);

    // `status` follows, and nothing is complained of.
    let report = status_when(&engine, |r| registered(r) && r.certificate.not_after > old.not_after).await;
    assert!(report.certificate.not_after >= i64::try_from(now() + 89 * DAY).unwrap());
    assert_eq!(complaint(&report), None);

    // On disk is the same device with more time.
    let kept = async {
        loop {
            let kept = a.state.identity().unwrap().unwrap();
            if kept.leaf() != a.identity.leaf() {
                return kept;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let kept = tokio::time::timeout(SOON, kept).await.expect("it is kept");
    let new = Identity::from_der(kept.leaf()).unwrap();
    assert_eq!(new.not_after, report.certificate.not_after);
    assert_eq!(
        (&new.fqdn, new.virtual_address, new.spki_sha256),
        (&old.fqdn, old.virtual_address, old.spki_sha256)
    );
    assert_eq!(kept.chain().len(), 2);

    // Peers that dial see it…
    let peer = Endpoint::open(UdpPort::bind_to((Ipv4Addr::LOCALHOST, 0).into()).unwrap(), None);
    let dialled = peer
        .transport
        .connect_peer(&ClientTls::new(b.credentials()), &[endpoint.port.local_addr()], &old.fqdn, SOON)
        .await
        .unwrap();
    assert_eq!(dialled.identity().unwrap().not_after, new.not_after);

    // …and so does whoever is dialled.
    cloud.shutdown().await;
    let services = overlay.services();
    let incoming = tokio::time::timeout(SOON, services.transport.accept()).await.unwrap().unwrap();
    assert_eq!(incoming.connection.identity().unwrap().not_after, new.not_after);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_young_is_left_alone() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let a = overlay.enrol("a", 50, dir.path());
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let (engine, _endpoint) = a.run(overlay.address);
    // By the time it has logged in and registered, it has looked at its certificate.
    let report = status_when(&engine, registered).await;
    assert_eq!(report.certificate.not_after, a.parsed().not_after);
    assert_eq!(a.state.identity().unwrap().unwrap().leaf(), a.identity.leaf());
    engine.stop().await;
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_renewal_shows_in_status_until_it_succeeds() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let a = overlay.enrol("a", 70, dir.path());
    // Nobody listens yet.
    let (engine, _endpoint) = a.run(overlay.address);
    let report = status_when(&engine, |report| complaint(report).is_some()).await;
    let (severity, message) = complaint(&report).unwrap();
    assert_eq!(severity, Severity::Warning);
    assert!(message.contains("19 days") || message.contains("20 days"), "{message}");
    assert!(message.contains("cannot reach the AS"), "{message}");
    assert_eq!(report.certificate.not_after, a.parsed().not_after);

    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let report = status_when(&engine, |report| complaint(report).is_none()).await;
    assert!(report.certificate.not_after > a.parsed().not_after);
    engine.stop().await;
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_gets_no_new_certificate_and_says_so() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let a = overlay.enrol("a", 70, dir.path());
    overlay.register().revoke_device(&a.parsed().fqdn, now()).unwrap();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let (engine, _endpoint) = a.run(overlay.address);
    let report = status_when(&engine, |report| complaint(report).is_some()).await;
    assert!(complaint(&report).unwrap().1.contains("revoked"), "{report:#?}");
    assert_eq!(a.state.identity().unwrap().unwrap().leaf(), a.identity.leaf());
    engine.stop().await;
    cloud.shutdown().await;
}

/// As by a cloud whose clock was ahead, and is right again.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_begins_in_the_future_is_renewed_by_the_one_before() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let mut a = overlay.enrol("a", 10, dir.path());
    let former = a.identity.clone();
    overlay.renew(&mut a, 60);
    assert!(a.parsed().not_before > i64::try_from(now() + 59 * DAY).unwrap());
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let (engine, _endpoint) = a.run(overlay.address);
    let report = status_when(&engine, registered).await;
    assert!(report.certificate.not_after < a.parsed().not_after);
    assert!(report.health.iter().all(|check| check.id != "clock-wrong"), "{:?}", report.health);
    assert_eq!(complaint(&report), None);
    let kept = a.state.identity().unwrap().unwrap();
    let began = Identity::from_der(kept.leaf()).unwrap().not_before;
    assert!(began <= i64::try_from(now()).unwrap());
    assert_eq!(a.state.former().unwrap().leaf(), former.leaf());
    engine.stop().await;
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_off_for_too_long_comes_back_by_a_new_token() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let a = overlay.enrol("a", 100, &state);
    assert!(a.parsed().not_after < i64::try_from(now()).unwrap());
    let cloud = Cloud::start(&overlay.config).await.unwrap();

    let (engine, endpoint) = a.run(overlay.address);
    let report = status_when(&engine, |report| complaint(report).is_some()).await;
    let (severity, message) = complaint(&report).unwrap();
    assert!(severity == Severity::Error && message.contains("cyphonic up --anew --token"), "{message}");
    engine.stop().await;
    drop(endpoint);

    let token = overlay.token("a", now(), true);
    let done = up(&overlay, &token, dir.path(), &[]).await;
    assert!(done.status.success(), "{done:?}");
    let again = a.state.identity().unwrap().unwrap();
    let (old, new) = (a.parsed(), Identity::from_der(again.leaf()).unwrap());
    assert!(new.not_after > i64::try_from(now()).unwrap());
    assert_eq!((new.fqdn, new.virtual_address), (old.fqdn, old.virtual_address));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_clock_is_behind_its_certificate_tries_the_token() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let mut a = overlay.enrol("a", 20, &dir.path().join("state"));
    overlay.renew(&mut a, 60);
    let leaf = || a.state.identity().unwrap().unwrap().leaf().clone();
    let stays = |done: &Output| {
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains("not used") && said.contains("--anew"), "{done:?}");
    };
    let token = overlay.token("a", now(), true);
    stays(&up(&overlay, &token, dir.path(), &[]).await);
    assert_eq!(&leaf(), a.identity.leaf(), "the cloud is away");
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let unknown = EnrolmentToken::new([7; 32], sha256(&overlay.root()));
    stays(&up(&overlay, &unknown, dir.path(), &[]).await);
    assert_eq!(&leaf(), a.identity.leaf(), "the token is none");
    let done = up(&overlay, &token, dir.path(), &[]).await;
    assert!(done.status.success(), "{done:?}");
    let again = Identity::from_der(&leaf()).unwrap();
    assert!(again.not_before <= i64::try_from(now()).unwrap() && again.fqdn == a.parsed().fqdn);
    let kept = leaf();
    stays(&up(&overlay, &token, dir.path(), &[]).await);
    assert_eq!(leaf(), kept);
    cloud.shutdown().await;
}

/// As at each start of a board whose clock is behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_used_token_does_not_bring_back_the_certificate_from_before_a_renewal() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let token = overlay.token("a", now(), false);
    let mut a = overlay.enrol_by(&token, 70, dir.path());
    let first = a.identity.clone();
    overlay.renew(&mut a, 0);
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let given = enrol(&a.state, &token, &EnrolAs::default(), &[overlay.address]).await.unwrap();
    assert_eq!(given.leaf(), a.identity.leaf());
    assert_eq!(a.state.identity().unwrap().unwrap().leaf(), a.identity.leaf());
    assert_eq!(a.state.former().unwrap().leaf(), first.leaf());
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_comes_back_by_a_new_token_when_told_to_use_it() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let a = overlay.enrol("a", 5, &dir.path().join("state"));
    overlay.register().revoke_device(&a.parsed().fqdn, now()).unwrap();
    let cloud = Cloud::start(&overlay.config).await.unwrap();

    let token = overlay.token("a", now(), true);
    let done = up(&overlay, &token, dir.path(), &[]).await;
    assert!(done.status.success() && String::from_utf8_lossy(&done.stdout).contains("--anew"), "{done:?}");
    assert_eq!(
        a.state.identity().unwrap().unwrap().leaf(),
        a.identity.leaf(),
        "it was valid, as far as is known here"
    );

    let done = up(&overlay, &token, dir.path(), &["--anew"]).await;
    assert!(done.status.success(), "{done:?}");
    let again = a.state.identity().unwrap().unwrap();
    assert_ne!(again.leaf(), a.identity.leaf());
    let now_it_is = Identity::from_der(again.leaf()).unwrap();
    assert_eq!(now_it_is.fqdn, a.parsed().fqdn);
    let device = overlay.register().device(&a.parsed().fqdn).unwrap().unwrap();
    assert!(device.revoked_at.is_none(), "{device:?}");
    // With its old key, a copy of it from before would be let in as well.
    assert_ne!(now_it_is.spki_sha256, a.parsed().spki_sha256);
    assert!(device.has_key(&now_it_is.spki_sha256) && !device.has_key(&a.parsed().spki_sha256));
    assert!(dir.path().join("state/identity/key.pem.revoked").exists());
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_key_another_has_gets_one_of_its_own() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let a = overlay.enrol("a", 5, &dir.path().join("state"));
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    // Its image.
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(copy.path().join("state/identity")).unwrap();
    let key = |dir: &Path| dir.join("state/identity/key.pem");
    std::fs::copy(key(dir.path()), key(copy.path())).unwrap();
    let token = overlay.token("b", now(), false);
    let done = up(&overlay, &token, copy.path(), &[]).await;
    assert!(done.status.success(), "{done:?}");
    // Itself, under another name. The answer cannot be kept the first time: a folder is in the way.
    let token = overlay.token("c", now(), false);
    let in_the_way = dir.path().join("state/identity/root.pem.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let failed = up(&overlay, &token, dir.path(), &["--anew"]).await;
    assert!(!failed.status.success(), "{failed:?}");
    assert_eq!(a.state.identity().unwrap().unwrap().leaf(), a.identity.leaf(), "it is who it was");
    std::fs::remove_dir(&in_the_way).unwrap();
    let done = up(&overlay, &token, dir.path(), &["--anew"]).await;
    assert!(done.status.success(), "{done:?}");
    for dir in [dir.path(), copy.path()] {
        let state = StateDir::open(&dir.join("state")).unwrap();
        let identity = Identity::from_der(state.identity().unwrap().unwrap().leaf()).unwrap();
        assert_ne!(identity.fqdn, a.parsed().fqdn);
        assert_ne!(identity.spki_sha256, a.parsed().spki_sha256);
        let mut keys = std::fs::read_dir(dir.join("state/identity")).unwrap();
        let is_other = |name: &str| name.starts_with("key.pem") && name != "key.pem";
        assert!(!keys.any(|file| is_other(file.unwrap().file_name().to_str().unwrap())), "nobody else's key");
    }
    let first = overlay.register().device(&a.parsed().fqdn).unwrap().unwrap();
    assert!(first.revoked_at.is_none() && first.has_key(&a.parsed().spki_sha256));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_identity_is_damaged_comes_back_by_a_new_token() {
    let overlay = Overlay::found();
    let dir = tempfile::tempdir().unwrap();
    let a = overlay.enrol("a", 5, &dir.path().join("state"));
    let file = |name: &str| dir.path().join("state/identity").join(name);
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let damages: [(&str, &dyn Fn()); 3] = [
        ("chain", &|| std::fs::write(file("chain.pem"), "damaged").unwrap()),
        ("root", &|| std::fs::remove_file(file("root.pem")).unwrap()),
        ("key", &|| std::fs::write(file("key.pem"), "damaged").unwrap()),
    ];
    for (what, damage) in damages {
        damage();
        let token = overlay.token("a", now(), true);
        let refused = up(&overlay, &token, dir.path(), &[]).await;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("cyphonic up --anew") && said.contains("--replace"),
            "{what}: {refused:?}"
        );
        let done = up(&overlay, &token, dir.path(), &["--anew"]).await;
        assert!(done.status.success(), "{what}: {done:?}");
        let again = Identity::from_der(a.state.identity().unwrap().unwrap().leaf()).unwrap();
        assert_eq!(again.fqdn, a.parsed().fqdn);
        assert_eq!(again.spki_sha256 == a.parsed().spki_sha256, what != "key", "a sound key stays");
    }
    assert_eq!(std::fs::read_to_string(file("key.pem.damaged")).unwrap(), "damaged");
    cloud.shutdown().await;
}
