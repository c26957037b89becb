//! Enrolment of many devices by one token.

use cyphonic_agent::config::{Config, Overrides};
use cyphonic_cloud::server::Cloud;

use crate::overlay::{Overlay, up};

/// What a device of an image says that is to be called so, and whether it is in.
async fn starts_as(
    overlay: &Overlay,
    at: &std::path::Path,
    name: &str,
    by: &cyphonic_proto::token::EnrolmentToken,
) -> (bool, String) {
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
    assert!(
        !is_in && said.contains("camera-1.gate.cyphonic.internal is another device's name already"),
        "{said}"
    );
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
