//! From one certificate to the next.
//!
//! The device proves itself by the certificate it has and asks for another one for the *same* key, so that
//! nothing that knows the key has to learn a new one, and an answer that is lost costs nothing. The answer is
//! believed as at enrolment, and it must say the same as the current certificate and leave time to ask for
//! the next: whoever speaks for the AS can refuse a device, but not turn it into another one. It may end
//! earlier than the current one, where the overlay's certificates have a shorter life by now.

use std::time::Duration;

use cyphonic_proto::identity::Identity;
use cyphonic_proto::message::{Message, RefusalCode, RenewRequest};
use cyphonic_proto::time::TimeError;
use cyphonic_transport::{Clock, Connection, DialError, ExchangeError};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::UnixTime;

use crate::engine::zone;
use crate::enrol::{check_certificate, signing_request, unix_time};
use crate::state::{DeviceIdentity, StateError};

/// What a new certificate must leave of time that ends earlier than the current one. The shortest life is an
/// hour.
const LEAST_LEFT_S: i64 = 1_800;

/// Asks the AS at the other end of `connection`. Nothing is kept or taken into use here.
///
/// # Errors
///
/// The current certificate is as good as before then.
pub async fn renew(
    current: &DeviceIdentity,
    connection: &Connection,
    clock: &Clock,
) -> Result<DeviceIdentity, RenewError> {
    let key = key_of(current)?;
    let csr = signing_request(&key).map_err(RenewError::Key)?;
    let answer = connection.open_exchange(&Message::RenewRequest(RenewRequest { csr })).await?;
    clock.hear(connection, &answer)?;
    check_answer(answer, current, &key, unix_time(clock))
}

fn key_of(current: &DeviceIdentity) -> Result<KeyPair, RenewError> {
    KeyPair::from_der_and_sign_algo(current.key(), &PKCS_ECDSA_P256_SHA256)
        .map_err(|error| RenewError::Key(error.to_string()))
}

fn check_answer(
    answer: Message,
    current: &DeviceIdentity,
    key: &KeyPair,
    now: UnixTime,
) -> Result<DeviceIdentity, RenewError> {
    let response = match answer {
        Message::RenewResponse(response) => response,
        Message::Refusal(refusal) => {
            return Err(RenewError::Refused {
                code: refusal.code(),
                reason: refusal.shown_reason(),
                retry: refusal.retry_after(),
            });
        }
        other => return Err(RenewError::Answer(format!("a {} instead of a RenewResponse", other.name()))),
    };
    let wrong = RenewError::Answer;
    let (device, new) = check_certificate(response.certificate_chain, current.root().clone(), key, now)
        .map_err(RenewError::Answer)?;
    let old = Identity::from_der(current.leaf()).map_err(|error| wrong(format!("our own: {error}")))?;
    if (&new.fqdn, new.virtual_address, new.network_id) != (&old.fqdn, old.virtual_address, old.network_id) {
        return Err(wrong("its name, address or network are not those of the current certificate".into()));
    }
    if new.not_after < old.not_after && !leaves_time(&new, now) {
        return Err(wrong("it ends earlier than the current certificate, and soon".into()));
    }
    // The next start reads the zone from the chain: another one, or none, would be the end of the device.
    let zones = (zone::of_chain(device.chain()), zone::of_chain(current.chain()));
    match zones {
        (Ok(new), Ok(old)) if new == old => Ok(device),
        (Ok(_), _) => Err(wrong("its zone is not that of the current certificate".into())),
        (Err(error), _) => Err(wrong(error)),
    }
}

/// Whether a certificate is not due for renewal itself, with time to spare.
fn leaves_time(new: &Identity, now: UnixTime) -> bool {
    let life = new.not_after.saturating_sub(new.not_before);
    let left = new.not_after.saturating_sub_unsigned(now.as_secs());
    left >= LEAST_LEFT_S && left >= life / 3
}

/// Why the certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// No address to ask at.
    #[error("no address of the cloud is known: is `cloud` configured, and does its name resolve?")]
    NoCloud,
    /// The key cannot make a request.
    #[error("cannot make a certificate signing request: {0}")]
    Key(String),
    /// The AS cannot be reached.
    #[error("cannot reach the AS: {0}")]
    Dial(#[from] DialError),
    /// No answer.
    #[error("the AS did not answer: {0}")]
    Exchange(#[from] ExchangeError),
    /// The AS refused.
    #[error("the AS refused: {reason}")]
    Refused {
        /// Why, for programs.
        code: RefusalCode,
        /// Why, for people.
        reason: String,
        /// When asking again may help.
        retry: Option<Duration>,
    },
    /// It may not be believed, for the dates of its certificates.
    #[error("the AS cannot be believed: {0}")]
    Time(#[from] TimeError),
    /// The answer cannot be believed.
    #[error("the AS's answer is wrong: {0}")]
    Answer(String),
    /// The new certificate is in use, and gone with the next restart.
    #[error("the new certificate is in use, but cannot be kept: {0}")]
    Save(#[from] StateError),
}

impl RenewError {
    /// When the AS wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry, .. } => *retry,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::identity::Role;
    use cyphonic_proto::message::{Refusal, RenewResponse};
    use cyphonic_proto::{NetworkId, address};
    use rcgen::{
        BasicConstraints, CertificateParams, GeneralSubtree, IsCa, Issuer, NameConstraints, SanType,
        date_time_ymd,
    };
    use rustls_pki_types::CertificateDer;

    use super::*;

    const NAME: &str = "press-7.cyphonic.internal";
    const NETWORK: NetworkId = NetworkId([7; 16]);

    type Signer = Issuer<'static, KeyPair>;

    fn authority(
        name: &str,
        zone: Option<&str>,
        signer: Option<&Signer>,
    ) -> (CertificateDer<'static>, Signer) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.name_constraints = zone.map(|zone| NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(zone.into())],
            excluded_subtrees: Vec::new(),
        });
        let key = KeyPair::generate().unwrap();
        let certificate = match signer {
            Some(signer) => params.signed_by(&key, signer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        (certificate.der().clone(), Issuer::new(params, key))
    }

    /// A leaf that is right but for what a test changes.
    #[derive(Clone, Copy)]
    struct Leaf {
        name: &'static str,
        network: NetworkId,
        role: Role,
        /// How long it has been valid, and will be.
        age: u64,
        left: u64,
    }

    const DAY: u64 = 86_400;
    const RIGHT: Leaf = Leaf { name: NAME, network: NETWORK, role: Role::Device, age: 60, left: 365 * DAY };

    struct Overlay {
        root: CertificateDer<'static>,
        root_issuer: Signer,
        intermediate: CertificateDer<'static>,
        issuer: Signer,
        key: KeyPair,
    }

    impl Overlay {
        fn new() -> Self {
            let (root, root_issuer) = authority("root", None, None);
            let (intermediate, issuer) = authority("sub", Some("cyphonic.internal"), Some(&root_issuer));
            Self { root, root_issuer, intermediate, issuer, key: KeyPair::generate().unwrap() }
        }

        fn leaf(&self, leaf: Leaf, key: &KeyPair, issuer: &Signer) -> Vec<u8> {
            let prefix = "fd12:3456:789a::/48".parse().unwrap();
            let mut params = CertificateParams::default();
            let at = |unix| date_time_ymd(1970, 1, 1) + Duration::from_secs(unix);
            let now = UnixTime::now().as_secs();
            (params.not_before, params.not_after) = (at(now - leaf.age), at(now + leaf.left));
            params.subject_alt_names = vec![
                SanType::DnsName(leaf.name.try_into().unwrap()),
                SanType::URI(Identity::uri(leaf.network, leaf.role).try_into().unwrap()),
            ];
            if leaf.role == Role::Device {
                let address = address::virtual_address(prefix, leaf.network, leaf.name);
                params.subject_alt_names.push(SanType::IpAddress(address.into()));
            }
            params.signed_by(key, issuer).unwrap().der().to_vec()
        }

        fn chain(&self, leaf: Leaf) -> Vec<Vec<u8>> {
            vec![self.leaf(leaf, &self.key, &self.issuer), self.intermediate.to_vec()]
        }

        fn current(&self) -> DeviceIdentity {
            let chain = self.chain(Leaf { age: 243 * DAY, left: 122 * DAY, ..RIGHT });
            DeviceIdentity::new(
                &self.key,
                chain.into_iter().map(CertificateDer::from).collect(),
                self.root.clone(),
            )
            .unwrap()
        }

        fn check(&self, chain: Vec<Vec<u8>>) -> Result<DeviceIdentity, RenewError> {
            let answer = Message::RenewResponse(RenewResponse { certificate_chain: chain, time: 0 });
            check_answer(answer, &self.current(), &self.key, UnixTime::now())
        }
    }

    #[test]
    fn a_right_answer_is_the_same_device_with_more_time() {
        let overlay = Overlay::new();
        let renewed = overlay.check(overlay.chain(RIGHT)).unwrap();
        let ends = |device: &DeviceIdentity| Identity::from_der(device.leaf()).unwrap().not_after;
        assert!(ends(&renewed) > ends(&overlay.current()));
        assert_eq!(renewed.key().secret_der(), overlay.current().key().secret_der());
        assert_eq!(key_of(&renewed).unwrap().public_key_raw(), overlay.key.public_key_raw());
    }

    /// As after `device_certificate_lifetime` was shortened.
    #[test]
    fn a_shorter_life_is_taken_while_most_of_it_is_left() {
        let overlay = Overlay::new();
        let ends = |device: &DeviceIdentity| Identity::from_der(device.leaf()).unwrap().not_after;
        // Fresh; the same again, a 24th of its life later; and of the shortest life that there is.
        for (age, left) in [(60, 30 * DAY), (30 * 3_600, 28 * DAY + 18 * 3_600), (150, 3_450)] {
            let renewed = overlay.check(overlay.chain(Leaf { age, left, ..RIGHT })).unwrap();
            assert!(ends(&renewed) < ends(&overlay.current()), "{left} s are left");
        }
    }

    #[test]
    fn no_part_of_a_wrong_answer_is_believed() {
        let overlay = Overlay::new();
        let other = Overlay::new();
        let stranger = KeyPair::generate().unwrap();
        let (elsewhere, elsewhere_issuer) = authority("sub2", Some("internal"), Some(&overlay.root_issuer));
        let (unlimited, unlimited_issuer) = authority("sub3", None, Some(&overlay.root_issuer));
        let cases: [(&str, Vec<Vec<u8>>); 11] = [
            ("nothing", vec![]),
            ("no intermediate", overlay.chain(RIGHT)[..1].to_vec()),
            ("another name", overlay.chain(Leaf { name: "saw-1.cyphonic.internal", ..RIGHT })),
            ("another network", overlay.chain(Leaf { network: NetworkId([8; 16]), ..RIGHT })),
            ("another role", overlay.chain(Leaf { role: Role::Nms, ..RIGHT })),
            ("nearly ended", overlay.chain(Leaf { age: 21 * DAY, left: 9 * DAY, ..RIGHT })),
            ("of no use", overlay.chain(Leaf { left: 1_200, ..RIGHT })),
            (
                "another key",
                vec![overlay.leaf(RIGHT, &stranger, &overlay.issuer), overlay.intermediate.to_vec()],
            ),
            (
                "another root",
                vec![other.leaf(RIGHT, &overlay.key, &other.issuer), other.intermediate.to_vec()],
            ),
            ("another zone", vec![overlay.leaf(RIGHT, &overlay.key, &elsewhere_issuer), elsewhere.to_vec()]),
            ("no zone", vec![overlay.leaf(RIGHT, &overlay.key, &unlimited_issuer), unlimited.to_vec()]),
        ];
        for (what, chain) in cases {
            let error = overlay.check(chain).expect_err(what);
            assert!(matches!(error, RenewError::Answer(_)), "{what}: {error}");
        }
    }

    #[test]
    fn a_refusal_and_another_message_are_no_answer() {
        let overlay = Overlay::new();
        let check = |answer| {
            check_answer(answer, &overlay.current(), &overlay.key, UnixTime::now()).expect_err("no answer")
        };
        let busy = Refusal::retry(RefusalCode::TooMany, "busy", Duration::from_secs(9));
        let error = check(Message::Refusal(busy));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(9)), "{error}");
        let revoked = check(Message::Refusal(Refusal::new(RefusalCode::Revoked, "revoked")));
        assert!(revoked.retry_after().is_none() && revoked.to_string().contains("revoked"), "{revoked}");
        let odd = check(Message::RenewRequest(RenewRequest { csr: Vec::new() }));
        assert!(odd.to_string().contains("RenewRequest"), "{odd}");
    }
}
