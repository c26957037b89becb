//! An overlay in a temporary directory, and devices that have nothing but a token.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use cyphonic_cloud::authentication::{ManagementService, Service};
use cyphonic_cloud::config::Config;
use cyphonic_cloud::installation::{self, Plan};
use cyphonic_cloud::pki::{self, Authority, service_name};
use cyphonic_cloud::register::{NewToken, Register};
use cyphonic_proto::identity::sha256;
use cyphonic_proto::message::{EnrolRequest, EnrolResponse, Message};
use cyphonic_proto::token::{EnrolmentToken, SecretHash};
use cyphonic_proto::version;
use cyphonic_transport::Credentials;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// 2027-01-15.
pub const NOW: u64 = 1_800_000_000;

/// A founded overlay.
pub struct Overlay {
    pub directory: tempfile::TempDir,
    pub config: Config,
    pub config_path: PathBuf,
    pub address: SocketAddr,
}

impl Overlay {
    /// Founded at this time, on a loopback port that is free right now.
    pub fn found(now: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = free_port();
        let plan = Plan {
            directory: directory.path().to_owned(),
            zone: "cyphonic.internal".into(),
            listen: vec![address],
            public: vec![address],
            relays: Vec::new(),
        };
        let installed = installation::init(&plan, now).unwrap();
        let config = Config::load(&installed.config).unwrap();
        Self { directory, config, config_path: installed.config, address }
    }

    pub fn register(&self) -> Register {
        Register::open(self.config.register.as_deref().unwrap()).unwrap()
    }

    pub fn root(&self) -> CertificateDer<'static> {
        pki::read_certificates(&self.config.root).unwrap().remove(0)
    }

    pub fn authority(&self, name: &str) -> Authority {
        let pki = self.directory.path().join("pki");
        Authority::load(&pki.join(format!("{name}.crt")), &pki.join(format!("{name}.key"))).unwrap()
    }

    pub fn service(&self) -> Service {
        let management = ManagementService {
            name: service_name("nms", &self.config.network.zone),
            addresses: self.config.nms_addresses.clone(),
        };
        Service::new(
            self.config.network.clone(),
            Arc::new(self.register()),
            self.authority("devices"),
            self.root(),
            management,
            self.config.device_certificate_lifetime,
        )
    }

    pub fn token(&self, name: &str, now: u64) -> EnrolmentToken {
        self.token_for(name, now, false)
    }

    pub fn token_for(&self, name: &str, now: u64, replaces: bool) -> EnrolmentToken {
        let name = format!("{name}.cyphonic.internal");
        self.token_of(NewToken {
            secret_hash: SecretHash([0; 32]),
            name,
            expires_at: now + 3600,
            replaces,
            uses: 1,
        })
    }

    /// A token for so many devices, of names like this.
    pub fn token_for_many(&self, pattern: &str, now: u64, uses: u32) -> EnrolmentToken {
        let name = format!("{pattern}.cyphonic.internal");
        self.token_of(NewToken {
            secret_hash: SecretHash([0; 32]),
            name,
            expires_at: now + 3600,
            replaces: false,
            uses,
        })
    }

    /// One with a secret of its own, made an hour before it ends.
    fn token_of(&self, new: NewToken) -> EnrolmentToken {
        let token = EnrolmentToken::new(pki::random().unwrap(), sha256(&self.root()));
        let new = NewToken { secret_hash: token.secret_hash(), ..new };
        self.register().create_token(&new, new.expires_at - 3600).unwrap();
        token
    }
}

/// A device's key, before and after enrolment.
pub struct Device {
    pub key: KeyPair,
}

impl Device {
    pub fn new() -> Self {
        Self { key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    /// Asks for a name and a role that are not the device's to choose.
    pub fn csr(&self) -> Vec<u8> {
        let params = CertificateParams::new(vec!["nms.svc.cyphonic.internal".to_owned()]).unwrap();
        params.serialize_request(&self.key).unwrap().der().to_vec()
    }

    pub fn enrol_request(&self, token: &EnrolmentToken) -> Message {
        self.enrol_request_as("", token)
    }

    /// The same of a device that asks to be called so.
    pub fn enrol_request_as(&self, name: &str, token: &EnrolmentToken) -> Message {
        Message::EnrolRequest(EnrolRequest {
            token_secret: token.secret().to_vec(),
            csr: self.csr(),
            protocol_version: version::CURRENT,
            name: name.to_owned(),
        })
    }

    pub fn credentials(&self, answer: &EnrolResponse, overlay: &Overlay) -> Credentials {
        Credentials {
            chain: answer.certificate_chain.iter().map(|der| CertificateDer::from(der.clone())).collect(),
            key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der())),
            root: CertificateDer::from(answer.root_certificate.clone()),
            network: overlay.config.network.id,
        }
    }
}

pub fn enrolled(answer: Message) -> EnrolResponse {
    match answer {
        Message::EnrolResponse(answer) => answer,
        other => panic!("not enrolled: {other:?}"),
    }
}

pub fn free_port() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}
