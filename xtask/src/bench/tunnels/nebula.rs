//! Nebula, which carries IPv4 only in the version Debian has.

use std::fs;

use anyhow::{Context, Result};

use super::programs::peer;
use super::site::{Side, Site};
use super::system::{Running, wait_for_device};

const DEVICE: &str = "nebula0";
const PORT: u16 = 4242;
/// The plain network's 1,500 bytes without IPv4's and UDP's headers and Nebula's 32.
const MTU: u16 = 1440;

fn inner(side: Side) -> &'static str {
    match side {
        Side::A => "10.42.0.1",
        Side::B => "10.42.0.2",
    }
}

pub(super) fn start(site: &Site<'_>) -> Result<Running> {
    let (program, cert) = (peer("nebula")?, peer("nebula-cert")?);
    let authority = site.folder(Side::A, "nebula-ca")?;
    let file = |name: &str| authority.join(name).display().to_string();
    let (ca, ca_key) = (file("ca.crt"), file("ca.key"));
    let node = Side::A.node();
    site.run(node, &cert, &["ca", "-name", "bench", "-out-crt", &ca, "-out-key", &ca_key])?;
    let mut running = Running::without_programs(inner(Side::B).parse()?);
    for side in Side::BOTH {
        let folder = site.folder(side, "nebula")?;
        let file = |name: &str| folder.join(name).display().to_string();
        let (crt, key, config) = (file("host.crt"), file("host.key"), file("config.yml"));
        let address = format!("{}/24", inner(side));
        let sign = ["sign", "-ca-crt", &ca, "-ca-key", &ca_key, "-name", side.node(), "-ip", &address];
        site.run(node, &cert, &[&sign[..], &["-out-crt", &crt, "-out-key", &key]].concat())?;
        let other = side.other();
        let text = format!(
            "pki: {{ ca: {ca}, cert: {crt}, key: {key} }}\n\
             static_host_map: {{ \"{}\": [\"{}:{PORT}\"] }}\n\
             lighthouse: {{ am_lighthouse: false, hosts: [] }}\n\
             listen: {{ host: 0.0.0.0, port: {PORT} }}\n\
             tun: {{ dev: {DEVICE}, mtu: {MTU} }}\n\
             cipher: aes\n\
             logging: {{ level: warning }}\n\
             firewall:\n  outbound: [ {{ port: any, proto: any, host: any }} ]\n  inbound: [ {{ port: any, proto: any, host: any }} ]\n",
            inner(other),
            other.outer()
        );
        fs::write(&config, text).with_context(|| format!("cannot write {config}"))?;
        let mut command = site.lab.command(side.node(), &program)?;
        let mut daemon = site.lab.spawn(side.node(), "nebula", command.args(["-config", &config]))?;
        wait_for_device(site, side, DEVICE, &mut daemon)?;
        running.daemons.push(daemon);
    }
    Ok(running)
}
