//! Whose certificate is believed by a device that does not know the time, and by one that has been told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "shared with other tests")]
mod common;

use std::time::Duration;

use common::{Authority, Host};
use cyphonic_proto::identity::{Role, sha256};
use cyphonic_proto::message::{LoginResponse, RegistrationResponse};
use cyphonic_proto::time::Reading;
use cyphonic_proto::{Message, alpn};
use cyphonic_transport::{ClientTls, Clock, Credentials, DialError, ServerTls, enrol};
use rcgen::date_time_ymd;

const AS: &str = "as.svc.test.internal";
const NMS: &str = "nms.svc.test.internal";
const TRS: &str = "trs1.svc.test.internal";
const A: &str = "a.test.internal";
const B: &str = "b.test.internal";

/// Generous: the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

/// 2026-06-01 and what devices take it for: 1970, 1996, 2046.
const NOW: u64 = 1_780_272_000;
const WRONG: [u64; 3] = [0, 833_587_200, 2_411_424_000];
/// 2026-04-01: when the device's certificate begins.
const FLOOR: u64 = 1_775_001_600;

fn clock(system: u64) -> Clock {
    Clock::reading(FLOOR, move || Reading { since_boot: Duration::from_secs(30), system })
}

/// Valid from 2026-01-01 to 2027-01-01.
fn current(authority: &Authority, role: Role, name: &str) -> Credentials {
    authority.issue_with(role, name, |params| {
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
    })
}

/// Valid from 2025-01-01 to the first of that month of 2026.
fn ended(authority: &Authority, role: Role, name: &str, month: u8) -> Credentials {
    authority.issue_with(role, name, |params| {
        params.not_before = date_time_ymd(2025, 1, 1);
        params.not_after = date_time_ymd(2026, month, 1);
    })
}

fn service(authority: &Authority, protocol: &[u8], credentials: &Credentials) -> Host {
    let tls = ServerTls::services(credentials).unwrap().with_protocol(protocol, credentials).unwrap();
    Host::start(Some((tls, authority.network)))
}

fn login(time: u64) -> Message {
    Message::LoginResponse(LoginResponse { time, ..LoginResponse::default() })
}

fn registration(time: u64) -> Message {
    Message::RegistrationResponse(RegistrationResponse { time, ..RegistrationResponse::default() })
}

/// A device that dials by this clock.
struct Device<'a> {
    host: Host,
    authority: &'a Authority,
    tls: ClientTls,
    clock: Clock,
}

impl<'a> Device<'a> {
    fn new(authority: &'a Authority, clock: Clock) -> Self {
        let tls = ClientTls::new(authority.issue(Role::Device, A)).with_clock(clock.clone());
        Self { host: Host::start(None), authority, tls, clock }
    }

    async fn dial(
        &self,
        role: Role,
        name: &str,
        protocol: &[u8],
        credentials: &Credentials,
    ) -> Result<cyphonic_transport::Connection, DialError> {
        let service = service(self.authority, protocol, credentials);
        let dialled = self.host.transport.connect_service(&self.tls, &[service.address], name, role).await;
        // What was presented stays known.
        drop(service);
        dialled
    }

    async fn dial_as(&self, credentials: &Credentials) -> Result<cyphonic_transport::Connection, DialError> {
        self.dial(Role::As, AS, alpn::AS, credentials).await
    }
}

#[tokio::test]
async fn a_wrong_clock_is_put_right_by_the_first_service_that_is_valid() {
    let authority = Authority::new(1);
    let (login_service, nms) = (current(&authority, Role::As, AS), current(&authority, Role::Nms, NMS));
    for system in WRONG {
        let device = Device::new(&authority, clock(system));
        let connection = device.dial_as(&login_service).await.unwrap();
        device.clock.hear(&connection, &login(NOW)).unwrap();
        assert_eq!(device.clock.now(), NOW);

        let device = Device::new(&authority, clock(system));
        let connection = device.dial(Role::Nms, NMS, alpn::NMS, &nms).await.unwrap();
        device.clock.hear(&connection, &registration(NOW)).unwrap();
        assert_eq!(device.clock.now(), NOW);
    }
}

#[tokio::test]
async fn a_service_that_has_ended_is_not_believed_and_once_the_time_is_known_not_heard() {
    let authority = Authority::new(1);
    // Before the device was enrolled, and after.
    let (long, lately) = (ended(&authority, Role::As, AS, 3), ended(&authority, Role::As, AS, 5));
    for system in WRONG {
        let device = Device::new(&authority, clock(system));
        device.dial_as(&long).await.unwrap_err();
        // It cannot be told from a good one yet, but cannot tell the right time either.
        let connection = device.dial_as(&lately).await.unwrap();
        device.clock.hear(&connection, &login(NOW)).unwrap_err();
        // By a clock that is behind, it would be right to tell none.
        assert_eq!(device.clock.hear(&connection, &login(0)).is_ok(), system < NOW);
        let right = device.dial_as(&current(&authority, Role::As, AS)).await.unwrap();
        device.clock.hear(&right, &login(NOW)).unwrap();
        // One that stands from before has nothing to say any more.
        device.clock.hear(&connection, &login(NOW - 60 * 86_400)).unwrap_err();
        assert!(!connection.validity().contains(device.clock.now()));
        device.dial_as(&lately).await.unwrap_err();
        assert_eq!(device.clock.now(), NOW);
    }
}

#[tokio::test]
async fn who_tells_no_time_is_judged_by_the_clock_as_it_is() {
    let authority = Authority::new(1);
    let (good, old) = (current(&authority, Role::Trs, TRS), ended(&authority, Role::Trs, TRS, 5));
    let dial =
        async |device: &Device<'_>, credentials| device.dial(Role::Trs, TRS, alpn::TRS, credentials).await;
    for system in WRONG {
        let device = Device::new(&authority, clock(system));
        if system > NOW {
            dial(&device, &good).await.unwrap_err();
        }
        let connection = device.dial_as(&current(&authority, Role::As, AS)).await.unwrap();
        device.clock.hear(&connection, &login(NOW)).unwrap();
        dial(&device, &good).await.unwrap();
        dial(&device, &old).await.unwrap_err();
    }
}

#[tokio::test]
async fn peers_are_judged_by_the_time_that_was_told_in_both_directions() {
    let authority = Authority::new(1);
    let (good, old) = (current(&authority, Role::Device, B), ended(&authority, Role::Device, B, 5));
    for system in WRONG {
        let device = Device::new(&authority, clock(system));
        let connection = device.dial_as(&current(&authority, Role::As, AS)).await.unwrap();
        device.clock.hear(&connection, &login(NOW)).unwrap();
        for (credentials, is_welcome) in [(&good, true), (&old, false)] {
            let peer = Host::start(Some((ServerTls::peer(credentials).unwrap(), authority.network)));
            let dialled = device.host.transport.connect_peer(&device.tls, &[peer.address], B, SOON).await;
            assert_eq!(dialled.is_ok(), is_welcome);

            let own = authority.issue(Role::Device, A);
            let server = ServerTls::peer(&own).unwrap().with_clock(device.clock.clone());
            let listener = Host::start(Some((server, authority.network)));
            // Knows the time by itself.
            let dialler = ClientTls::new(credentials.clone());
            let arrive = async { listener.transport.accept_peer().await.unwrap().verified().await };
            let peer = Host::start(None);
            let dial =
                peer.transport.connect_peer(&dialler, std::slice::from_ref(&listener.address), A, SOON);
            let (arrived, _dialled) = tokio::join!(arrive, dial);
            assert_eq!(arrived.is_ok(), is_welcome);
        }
    }
}

#[tokio::test]
async fn enrolment_needs_no_right_clock_and_no_service_that_has_ended() {
    let authority = Authority::new(1);
    let pinned = sha256(&authority.root);
    let server = |credentials: &Credentials| {
        let tls = ServerTls::services(credentials)
            .and_then(|tls| tls.with_anonymous_protocol(alpn::ENROL, credentials))
            .unwrap();
        Host::start(Some((tls, authority.network)))
    };
    let (good, old) =
        (server(&current(&authority, Role::As, AS)), server(&ended(&authority, Role::As, AS, 3)));
    for system in WRONG {
        let clock = clock(system);
        enrol::connect(&[old.address], pinned, &clock).await.unwrap_err();
        let connection = enrol::connect(&[good.address], pinned, &clock).await.unwrap();
        clock.hear(&connection, &login(NOW)).unwrap();
        assert_eq!(clock.now(), NOW);
    }
}
