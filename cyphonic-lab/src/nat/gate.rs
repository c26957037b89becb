//! The thread of a NAT in userspace: from the router's TUN device through the translator and back to it.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use ipnet::{Ipv4Net, Ipv6Net};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::dns64;
use super::table::Behaviour;
use super::translate::Translator;
use crate::emulator::is_passing;

/// The largest packet that the kernel hands over: with its segmentation offloads off, no more than the
/// device's MTU.
const LONGEST: usize = 16_384;

/// A NAT to run: what it does, and where its packets come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// File of the router's namespace.
    pub namespace: PathBuf,
    /// The TUN device to make there.
    pub device: String,
    /// Its MTU: the outside network's, so that the router answers what would not fit there before it is
    /// translated.
    pub mtu: u16,
    /// What the NAT does.
    pub behaviour: Behaviour,
    /// The address that stands for those inside.
    pub external: Ipv4Addr,
    /// The IPv4 networks inside.
    pub inside: Vec<Ipv4Net>,
    /// The prefix that stands for IPv4 inside, if it translates from IPv6. Hosts are told by DNS (RFC 7050).
    pub prefix64: Option<Ipv6Net>,
}

impl Gate {
    /// Makes the device and starts to translate, until the device is gone. Called in the router's namespace.
    pub(crate) fn open(&self, seed: u64) -> Result<Vec<JoinHandle<()>>, String> {
        let home = |error: &dyn std::fmt::Display| {
            format!("cannot make TUN {} in {}: {error}", self.device, self.namespace.display())
        };
        let namespace = File::open(&self.namespace).map_err(|error| home(&error))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| home(&error))?;
        let device = DeviceBuilder::new().name(&self.device).layer(Layer::L3).mtu(self.mtu).build_sync();
        let device = device.map_err(|error| home(&error))?;
        let translator =
            Translator::new(self.behaviour, self.external, self.inside.clone(), self.prefix64, seed);
        let mut threads = vec![thread::spawn(move || pass(&device, translator))];
        if let Some(prefix) = self.prefix64 {
            threads.push(dns64::serve(prefix)?);
        }
        Ok(threads)
    }
}

fn pass(device: &SyncDevice, mut translator: Translator) {
    let epoch = Instant::now();
    let mut packet = vec![0; LONGEST];
    let mut translated = Vec::with_capacity(LONGEST);
    loop {
        let length = match device.recv(&mut packet) {
            Ok(length) => length,
            Err(error) if is_passing(&error) => continue,
            Err(_) => return,
        };
        let received = packet.get(..length).unwrap_or_default();
        if translator.translate(epoch.elapsed(), received, &mut translated).is_some()
            && device.send(&translated).is_err_and(|error: io::Error| !is_passing(&error))
        {
            return;
        }
    }
}
