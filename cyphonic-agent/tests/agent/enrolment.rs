//! Enrolment of many devices by one token.

use std::path::Path;

use cyphonic_agent::config::{Config, EnrolAs, Overrides};
use cyphonic_agent::enrol::enrol;
use cyphonic_agent::state::StateDir;
use cyphonic_cloud::server::Cloud;
use cyphonic_proto::token::EnrolmentToken;

use crate::overlay::{Overlay, now, up};

/// What a device of an image says that is to be called so, and whether it is in.
async fn starts_as(overlay: &Overlay, at: &Path, name: &str, by: &EnrolmentToken) -> (bool, String) {
    let said = up(overlay, by, at, &["--enrol-as", name]).await;
    let text = [said.stdout, said.stderr].concat();
    (said.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_one_image_enrol_by_one_token() {
    let overlay = Overlay::found();
    let token = overlay.token_for_many("camera-*.gate", 2);
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [first, second, third] = homes.each_ref().map(|home| home.path());

    let (is_in, said) = starts_as(&overlay, first, "camera-1", &token).await;
    assert!(is_in && said.contains("This device is camera-1.gate.cyphonic.internal"), "{said}");
    let kept = Config::load(&first.join("agent.yaml"), true, &Overrides::default()).unwrap();
    assert_eq!(kept.enrol_as.to_string(), "camera-1");

    let (is_in, said) = starts_as(&overlay, second, "camera-1", &token).await;
    assert!(!is_in && said.contains("camera-1.gate.cyphonic.internal is taken"), "{said}");
    let (is_in, said) = starts_as(&overlay, second, "press-7", &token).await;
    assert!(!is_in && said.contains("for names like camera-*.gate.cyphonic.internal"), "{said}");
    let (is_in, said) = starts_as(&overlay, second, "camera-2", &token).await;
    assert!(is_in, "{said}");

    let (is_in, said) = starts_as(&overlay, third, "camera-3", &token).await;
    assert!(!is_in && said.contains("used as often as it may be"), "{said}");
    let names: Vec<_> = overlay.register().devices().unwrap().into_iter().map(|device| device.fqdn).collect();
    assert_eq!(names, ["camera-1.gate.cyphonic.internal", "camera-2.gate.cyphonic.internal"]);
    cloud.shutdown().await;
}

/// As of an image that was started once before it was written to the cards.
#[tokio::test(flavor = "multi_thread")]
async fn devices_with_one_key_get_keys_of_their_own() {
    let overlay = Overlay::found();
    let token = overlay.token_for_many("camera-*", 9);
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [first, second] = homes.each_ref().map(|home| home.path().join("state"));
    let key = StateDir::open(&first).unwrap().key_or_generate().unwrap().serialize_pem();
    StateDir::open(&second).unwrap();
    std::fs::copy(first.join("identity/key.pem"), second.join("identity/key.pem")).unwrap();

    for (home, name) in homes.iter().zip(["camera-1", "camera-2"]) {
        let (is_in, said) = starts_as(&overlay, home.path(), name, &token).await;
        assert!(is_in && said.contains(&format!("This device is {name}.cyphonic.internal")), "{said}");
    }
    let key_of = |state: &Path| std::fs::read_to_string(state.join("identity/key.pem")).unwrap();
    assert!(key_of(&first) == key && key_of(&second) != key);
    cloud.shutdown().await;
}

/// A board without a serial number is not kept out by that where nobody asks.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_cannot_be_called_matters_to_tokens_for_many_only() {
    let overlay = Overlay::found();
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(&home.path().join("state")).unwrap();
    // No host has so long a name.
    let wanted: EnrolAs = "{machine-id}-{serial}-{hostname}".repeat(4).parse().unwrap();
    let try_by = async |token| enrol(&state, &token, &wanted, &[overlay.address]).await;
    let refused = try_by(overlay.token_for_many("camera-*", 9)).await.unwrap_err();
    assert!(refused.is_of_name() && refused.is_final(), "{refused}");
    try_by(overlay.token("a", now(), false)).await.unwrap();
    cloud.shutdown().await;
}
