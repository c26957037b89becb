//! From a token to an identity.
//!
//! The device makes its key and keeps it *before* it asks, so that a retry (the answer was lost, the power
//! failed) asks for the same key: the AS can tell a retry from a second device. The token carries the SHA-256
//! of the overlay's root certificate; the AS proves itself by it before the secret is sent. The answer is
//! believed only as far as it can be checked: the certificate is for our key, chains to the pinned root, and
//! says name and virtual address, of which the latter is recomputed.

mod certificate;
mod host;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

pub(crate) use certificate::{check as check_certificate, signing_request};
use cyphonic_proto::identity::{Identity, sha256};
use cyphonic_proto::message::{EnrolRequest, EnrolResponse, Message, RefusalCode};
use cyphonic_proto::time::{TimeError, UnixSeconds};
use cyphonic_proto::token::{EnrolmentToken, TokenError};
use cyphonic_proto::version;
use cyphonic_transport::{Clock, DialError, ExchangeError};
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, UnixTime};
use zeroize::Zeroizing;

use crate::config::EnrolAs;
use crate::nat64;
use crate::state::{DeviceIdentity, StateDir, StateError, read_bounded};

/// A token is one line of about a hundred bytes.
const MAX_TOKEN_FILE_BYTES: u64 = 4096;

/// The prefix that says "the token is in a file" on a command line, where others could read the token itself.
const FILE_PREFIX: &str = "file:";

/// Reads a token given as `file:PATH` or as itself.
pub fn read_token(given: &str) -> Result<EnrolmentToken, EnrolError> {
    match given.strip_prefix(FILE_PREFIX) {
        Some(path) => read_token_file(Path::new(path)),
        None if Path::new(given).is_file() => Err(EnrolError::TokenIsFile { path: given.to_owned() }),
        None => Ok(EnrolmentToken::parse(given)?),
    }
}

/// Reads a token from its file.
pub fn read_token_file(path: &Path) -> Result<EnrolmentToken, EnrolError> {
    let missing = || EnrolError::NoTokenFile { path: path.display().to_string() };
    let bytes = Zeroizing::new(read_bounded(path, MAX_TOKEN_FILE_BYTES)?.ok_or_else(missing)?);
    let text = str::from_utf8(&bytes).map_err(|_| TokenError::Encoding)?;
    Ok(EnrolmentToken::parse(text)?)
}

/// Enrols at the AS at `addresses`, by the name that the host has where the token leaves that open, and keeps the
/// identity in `state`. Where the key is another device's, as on a copied disk, the device gets one of its own.
///
/// # Errors
///
/// Nothing but keys is kept then, and a device that was enrolled is who it was. [`EnrolError::is_final`]
/// tells whether trying again can help.
pub async fn enrol(
    state: &StateDir,
    token: &EnrolmentToken,
    enrol_as: &EnrolAs,
    addresses: &[SocketAddr],
) -> Result<DeviceIdentity, EnrolError> {
    // Few tokens ask for one.
    let told = host::name(enrol_as);
    let name = told.as_deref().unwrap_or_default();
    let enrolled = match enrol_once(state, &state.key_or_generate()?, token, name, addresses).await {
        Err(EnrolError::Refused { code: RefusalCode::KeyInUse, .. }) => {
            tracing::warn!("another device has this device's key: it gets one of its own");
            let key = state.generate_next_key()?;
            enrol_once(state, &key, token, name, addresses).await
        }
        enrolled => enrolled,
    };
    match (enrolled, told) {
        (Err(EnrolError::Refused { code: RefusalCode::NotAllowed, reason, .. }), Err(missing)) => {
            Err(EnrolError::Nameless { reason, wanted: enrol_as.clone(), missing })
        }
        (enrolled, _) => enrolled,
    }
}

async fn enrol_once(
    state: &StateDir,
    key: &KeyPair,
    token: &EnrolmentToken,
    name: &str,
    addresses: &[SocketAddr],
) -> Result<DeviceIdentity, EnrolError> {
    let request = Message::EnrolRequest(EnrolRequest {
        token_secret: token.secret().to_vec(),
        csr: signing_request(key).map_err(EnrolError::Csr)?,
        protocol_version: version::CURRENT,
        name: name.to_owned(),
    });
    let addresses = nat64::outward(addresses.to_vec()).await;
    // It enrolled before, perhaps: then it is later than that.
    let present = state.identity().ok().flatten();
    let known = present.as_ref().and_then(|present| Identity::from_der(present.leaf()).ok());
    let clock = Clock::new(known.as_ref().map_or(0, |known| known.validity().not_before));
    let connection = cyphonic_transport::enrol::connect(&addresses, *token.root_sha256(), &clock).await?;
    let answer = connection.open_exchange(&request).await;
    connection.close(cyphonic_proto::close::DONE, "enrolled");
    let answer = answer?;
    clock.hear(&connection, &answer)?;
    let told = if let Message::EnrolResponse(answer) = &answer { answer.time } else { 0 };
    let identity = check_answer(answer, key, token, unix_time(&clock))?;
    match (present, known) {
        (Some(present), Some(known)) if outlives(&known, &identity, told) => Ok(present),
        _ => {
            state.save_identity(&identity)?;
            Ok(identity)
        }
    }
}

/// Whether the certificate that the device has is better than the answer. To who shows a used token again,
/// that is the first one for its key, and it may have been renewed since; by a cloud whose clock was ahead,
/// perhaps, so that what is told now decides.
fn outlives(known: &Identity, answer: &DeviceIdentity, told: UnixSeconds) -> bool {
    Identity::from_der(answer.leaf()).is_ok_and(|first| {
        known.spki_sha256 == first.spki_sha256
            && (known.network_id, &known.fqdn) == (first.network_id, &first.fqdn)
            && known.not_before > first.not_before
            && known.validity().contains(told)
    })
}

fn check_answer(
    answer: Message,
    key: &KeyPair,
    token: &EnrolmentToken,
    now: UnixTime,
) -> Result<DeviceIdentity, EnrolError> {
    let response = match answer {
        Message::EnrolResponse(response) => response,
        Message::Refusal(refusal) => {
            return Err(EnrolError::Refused {
                code: refusal.code(),
                reason: refusal.shown_reason(),
                retry: refusal.retry_after(),
            });
        }
        other => return Err(EnrolError::Answer(format!("a {} instead of an EnrolResponse", other.name()))),
    };
    check_response(response, key, token, now)
}

/// The time, as webpki counts.
pub(crate) fn unix_time(clock: &Clock) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(clock.now()))
}

fn check_response(
    response: EnrolResponse,
    key: &KeyPair,
    token: &EnrolmentToken,
    now: UnixTime,
) -> Result<DeviceIdentity, EnrolError> {
    let wrong = EnrolError::Answer;
    if sha256(&response.root_certificate) != *token.root_sha256() {
        return Err(wrong("its root certificate is not the one of the token".into()));
    }
    let root = CertificateDer::from(response.root_certificate);
    let (device, identity) = check_certificate(response.certificate_chain, root, key, now).map_err(wrong)?;
    // `Identity` has recomputed the address from the name; what the answer says besides must be the same.
    let address = identity.virtual_address.map(|address| address.octets().to_vec());
    if identity.fqdn != response.fqdn || address.as_deref() != Some(&response.virtual_address[..]) {
        return Err(wrong("its name and address are not those of the certificate".into()));
    }
    Ok(device)
}

/// What is to be said of a file in a folder that a service of systemd's does not see, as the package's unit has it.
fn unseen(path: &str) -> &'static str {
    match ["/tmp/", "/var/tmp/", "/home/", "/root/"].iter().any(|folder| path.starts_with(folder)) {
        true => "; the service sees neither /tmp, /home nor /root: use /etc/credstore/cyphonic.token",
        false => "",
    }
}

/// Why the device is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token's file is missing.
    #[error(
        "there is no token file {path}: create a token with `cyphonic-cloud token create` and put it there{}",
        unseen(path)
    )]
    NoTokenFile {
        /// Where it should be.
        path: String,
    },
    /// Neither a token nor `file:PATH`, but the path of a file.
    #[error("{path} is a file: write file:{path} to have the token read from it")]
    TokenIsFile {
        /// What was given.
        path: String,
    },
    /// The AS refused a device that told no name.
    #[error(
        "the cloud refused the enrolment: {reason} (it cannot be called {wanted} as `enrol_as` says: {missing})"
    )]
    Nameless {
        /// Why, for people.
        reason: String,
        /// What it was to be called.
        wanted: EnrolAs,
        /// What the host does not have.
        missing: String,
    },
    /// Key or certificates cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The request cannot be made.
    #[error("cannot make a certificate signing request: {0}")]
    Csr(String),
    /// The AS cannot be reached, or is another overlay's.
    #[error("cannot reach the cloud to enrol: {0}")]
    Dial(#[from] DialError),
    /// The connection failed before the answer came. The same token may be tried again.
    #[error("the cloud did not answer the enrolment: {0}")]
    Exchange(#[from] ExchangeError),
    /// The AS refused.
    #[error("the cloud refused the enrolment: {reason}")]
    Refused {
        /// Why, for programs.
        code: RefusalCode,
        /// Why, for people.
        reason: String,
        /// When asking again may help.
        retry: Option<Duration>,
    },
    /// It may not be believed, for the dates of its certificates.
    #[error("the cloud cannot be believed: {0}")]
    Time(#[from] TimeError),
    /// The answer cannot be believed.
    #[error("the cloud's answer to the enrolment is wrong: {0}")]
    Answer(String),
}

impl EnrolError {
    /// True when the cloud wants no more of this device's key.
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::Refused { code: RefusalCode::Revoked, .. })
    }

    /// True when it is about the name that the device would get.
    pub fn is_of_name(&self) -> bool {
        matches!(self, Self::Nameless { .. } | Self::Refused { code: RefusalCode::NotAllowed, .. })
    }

    /// True when trying again with the same token cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Exchange(_) | Self::Time(_) => false,
            // Full or read-only: the same token and key do as soon as it is not.
            Self::State(StateError::Io { .. }) => false,
            Self::Refused { retry, .. } => retry.is_none(),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use cyphonic_proto::identity::Role;
    use cyphonic_proto::{NetworkId, address};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, SanType};

    use super::*;

    const NAME: &str = "press-7.cyphonic.internal";

    /// An AS in memory, and the device that asks it.
    struct Overlay {
        root: CertificateDer<'static>,
        intermediate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
        device: KeyPair,
    }

    impl Overlay {
        fn new() -> Self {
            let ca = |key: KeyPair, signer: Option<&Issuer<'static, KeyPair>>| {
                let mut params = CertificateParams::default();
                params
                    .distinguished_name
                    .push(rcgen::DnType::CommonName, if signer.is_some() { "sub" } else { "root" });
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                let certificate = match signer {
                    Some(signer) => params.signed_by(&key, signer).unwrap(),
                    None => params.self_signed(&key).unwrap(),
                };
                (certificate.der().clone(), Issuer::new(params, key))
            };
            let (root, root_issuer) = ca(KeyPair::generate().unwrap(), None);
            let (intermediate, issuer) = ca(KeyPair::generate().unwrap(), Some(&root_issuer));
            Self { root, intermediate, issuer, device: KeyPair::generate().unwrap() }
        }

        fn token(&self) -> EnrolmentToken {
            EnrolmentToken::new([1; 32], sha256(&self.root))
        }

        fn address(&self) -> Ipv6Addr {
            address::virtual_address("fd12:3456:789a::/48".parse().unwrap(), NetworkId([7; 16]), NAME)
        }

        fn leaf(&self, role: Role, key: &KeyPair) -> CertificateDer<'static> {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![
                SanType::DnsName(NAME.try_into().unwrap()),
                SanType::URI(Identity::uri(NetworkId([7; 16]), role).try_into().unwrap()),
            ];
            if role == Role::Device {
                params.subject_alt_names.push(SanType::IpAddress(self.address().into()));
            }
            params.signed_by(key, &self.issuer).unwrap().der().clone()
        }

        fn response(&self) -> EnrolResponse {
            EnrolResponse {
                certificate_chain: vec![
                    self.leaf(Role::Device, &self.device).to_vec(),
                    self.intermediate.to_vec(),
                ],
                root_certificate: self.root.to_vec(),
                fqdn: NAME.into(),
                virtual_address: self.address().octets().to_vec(),
                time: 0,
            }
        }

        fn check(&self, response: EnrolResponse) -> Result<DeviceIdentity, EnrolError> {
            check_response(response, &self.device, &self.token(), UnixTime::now())
        }
    }

    #[test]
    fn a_token_where_the_service_does_not_see_it_is_told_of() {
        let said = |path: &str| read_token_file(Path::new(path)).unwrap_err().to_string();
        assert!(said("/root/nowhere.token").contains("/etc/credstore/cyphonic.token"));
        assert!(!said("/etc/nowhere.token").contains("credstore"));
    }

    #[test]
    fn a_right_answer_is_an_identity() {
        let overlay = Overlay::new();
        let identity = overlay.check(overlay.response()).unwrap();
        assert_eq!(Identity::from_der(identity.leaf()).unwrap().fqdn, NAME);
    }

    #[test]
    fn no_part_of_a_wrong_answer_is_believed() {
        let overlay = Overlay::new();
        let other = Overlay::new();
        let stranger = KeyPair::generate().unwrap();
        type Spoil<'a> = &'a dyn Fn(&mut EnrolResponse);
        let cases: [(&str, Spoil<'_>); 9] = [
            ("another root", &|r| r.root_certificate = other.root.to_vec()),
            ("no certificate", &|r| r.certificate_chain.clear()),
            ("no intermediate", &|r| drop(r.certificate_chain.pop())),
            ("another overlay's chain", &|r| {
                r.certificate_chain =
                    vec![other.leaf(Role::Device, &overlay.device).to_vec(), other.intermediate.to_vec()];
            }),
            ("another key", &|r| r.certificate_chain[0] = overlay.leaf(Role::Device, &stranger).to_vec()),
            ("another role", &|r| r.certificate_chain[0] = overlay.leaf(Role::Nms, &overlay.device).to_vec()),
            ("another name", &|r| r.fqdn = "other.cyphonic.internal".into()),
            ("another address", &|r| r.virtual_address[15] ^= 1),
            ("rubbish", &|r| r.certificate_chain[0] = vec![0x30, 0x80]),
        ];
        for (what, spoil) in cases {
            let mut response = overlay.response();
            spoil(&mut response);
            let error = overlay.check(response).expect_err(what);
            assert!(error.is_final(), "{what}: {error}");
        }
    }

    #[test]
    fn an_expired_certificate_is_refused_and_the_clock_suspected() {
        let overlay = Overlay::new();
        let far = UnixTime::since_unix_epoch(Duration::from_secs(200_000_000_000));
        let error = check_response(overlay.response(), &overlay.device, &overlay.token(), far).unwrap_err();
        assert!(error.to_string().contains("clock"), "{error}");
    }

    #[test]
    fn a_refusal_says_whether_to_try_again() {
        let overlay = Overlay::new();
        let refused = |refusal| {
            check_answer(Message::Refusal(refusal), &overlay.device, &overlay.token(), UnixTime::now())
                .unwrap_err()
        };
        use cyphonic_proto::message::Refusal;
        assert!(refused(Refusal::new(RefusalCode::BadToken, "used")).is_final());
        assert!(!refused(Refusal::retry(RefusalCode::TooMany, "busy", Duration::from_secs(1))).is_final());
    }

    #[test]
    fn the_signing_request_is_for_the_kept_key() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for _ in 0..2 {
            let key = state.key_or_generate().unwrap();
            let csr =
                rcgen::CertificateSigningRequestParams::from_der(&signing_request(&key).unwrap().into())
                    .unwrap();
            assert_eq!(rcgen::PublicKeyData::der_bytes(&csr.public_key), key.public_key_raw());
        }
    }

    #[test]
    fn tokens_are_read_from_files_and_from_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = EnrolmentToken::new([3; 32], [4; 32]);
        std::fs::write(&path, format!("{}\n", token.format().as_str())).unwrap();
        assert_eq!(read_token(&format!("file:{}", path.display())).unwrap(), token);
        assert_eq!(read_token(&token.format()).unwrap(), token);
        assert!(matches!(read_token("file:/nonexistent"), Err(EnrolError::NoTokenFile { .. })));
        let error = read_token(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains(&format!("write file:{}", path.display())), "{error}");
        assert!(matches!(read_token("rubbish"), Err(EnrolError::Token(_))));
        std::fs::write(&path, [0xff; 10]).unwrap();
        assert!(matches!(read_token_file(&path), Err(EnrolError::Token(_))));
    }

    #[tokio::test]
    async fn an_unreachable_cloud_is_worth_another_try_and_keeps_only_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let error = enrol(&state, &EnrolmentToken::new([1; 32], [2; 32]), &EnrolAs::default(), &[])
            .await
            .unwrap_err();
        assert!(!error.is_final(), "{error}");
        assert!(state.key().unwrap().is_some() && state.identity().unwrap().is_none());
    }
}
