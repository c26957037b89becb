//! A founded overlay, and devices in its register.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use cyphonic_cloud::config::Config;
use cyphonic_cloud::installation::{self, Plan};
use cyphonic_cloud::pki::{self, Authority, DeviceKey, service_name};
use cyphonic_cloud::register::{IssuedCertificate, Register, UnixSeconds};
use cyphonic_cloud::server::unix_now;
use cyphonic_transport::Credentials;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const ZONE: &str = "cyphonic.internal";
/// Where nobody is: set-ups are directed there, and not made.
const RELAY: &str = "trs1=192.0.2.99:443";
/// Devices of one transaction.
const AT_ONCE: usize = 50_000;

/// The overlay.
pub(crate) struct Overlay {
    pub(crate) directory: PathBuf,
    pub(crate) config_path: PathBuf,
    pub(crate) address: SocketAddr,
    config: Config,
    authority: Authority,
    root: CertificateDer<'static>,
}

/// A device that is in the register.
pub(crate) struct Device {
    pub(crate) fqdn: String,
    pub(crate) credentials: Credentials,
}

impl Overlay {
    pub(crate) fn found(directory: &Path, address: SocketAddr) -> Result<Self> {
        let plan = Plan {
            directory: directory.to_owned(),
            zone: ZONE.to_owned(),
            listen: vec![address],
            public: vec![address],
            relays: vec![RELAY.parse().map_err(|error: String| anyhow!(error))?],
        };
        let installed = installation::init(&plan, unix_now())?;
        let config = Config::load(&installed.config)?;
        let files = config.devices_authority.as_ref().context("the overlay has no authority for devices")?;
        let authority = Authority::load(&files.certificate, &files.key)?;
        let root = pki::read_certificates(&config.root)?.swap_remove(0);
        let (directory, config_path) = (directory.to_owned(), installed.config);
        Ok(Self { directory, config_path, address, config, authority, root })
    }

    /// What a service is called in its certificate.
    pub(crate) fn service(&self, short: &str) -> String {
        service_name(short, ZONE)
    }

    /// Devices that can connect, each with a key of its own.
    pub(crate) fn add_devices_with_keys(&self, count: usize) -> Result<Vec<Device>> {
        let now = unix_now();
        let made = in_parallel(count, |number| {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let issued = self.issue(number, &request(&key)?, now)?;
            let credentials = Credentials {
                chain: vec![CertificateDer::from(issued.der.clone()), self.authority.certificate().clone()],
                key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
                root: self.root.clone(),
                network: self.config.network.id,
            };
            Ok((Device { fqdn: issued.fqdn.clone(), credentials }, issued))
        })?;
        let (devices, issued): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        self.register()?.take_up(&issued, now)?;
        Ok(devices)
    }

    /// Devices that never come. They share a key, which nobody keeps: making a million takes longer than all
    /// else.
    pub(crate) fn add_devices(&self, count: usize) -> Result<()> {
        let (now, register) = (unix_now(), self.register()?);
        let key = request(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?;
        for first in (0..count).step_by(AT_ONCE) {
            let issued =
                in_parallel(AT_ONCE.min(count - first), |number| self.issue(first + number, &key, now))?;
            register.take_up(&issued, now)?;
        }
        Ok(())
    }

    /// How large the register is.
    pub(crate) fn register_bytes(&self) -> Result<u64> {
        let path = self.register_path()?;
        Ok(path.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len())
    }

    fn register(&self) -> Result<Register> {
        Ok(Register::open(self.register_path()?)?)
    }

    fn register_path(&self) -> Result<&Path> {
        self.config.register.as_deref().context("the overlay has no register")
    }

    fn issue(&self, number: usize, key: &DeviceKey, now: UnixSeconds) -> Result<IssuedCertificate> {
        let fqdn = format!("device-{number}.plant.{ZONE}");
        let lifetime = self.config.device_certificate_lifetime.as_secs();
        Ok(self.authority.issue_device(&self.config.network, &fqdn, key, now, lifetime)?)
    }
}

/// The public key, as a device asks to have it certified.
fn request(key: &KeyPair) -> Result<DeviceKey> {
    let request = CertificateParams::default().serialize_request(key)?;
    Ok(DeviceKey::from_csr(request.der())?)
}

/// What `make` makes of the numbers up to `count`, in their order, by all processors.
fn in_parallel<T: Send>(count: usize, make: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let (make, share) = (&make, count.div_ceil(workers).max(1));
    thread::scope(|scope| {
        let shares = (0..count).step_by(share).map(|first| {
            let numbers = first..count.min(first + share);
            scope.spawn(move || numbers.map(make).collect::<Result<Vec<T>>>())
        });
        let shares: Vec<_> = shares.collect();
        let mut all = Vec::with_capacity(count);
        for share in shares {
            all.extend(share.join().map_err(|_| anyhow!("a thread that makes certificates panicked"))??);
        }
        Ok(all)
    })
}
