//! OpenVPN between two ends, by TLS with pinned certificates, its packets sealed with AES-128-GCM in
//! userspace.

use anyhow::{Context, Result};

use super::programs::peer;
use super::site::{Side, Site};
use super::system::{Running, wait_for_device};

const DEVICE: &str = "ovpn0";
const PORT: &str = "1194";
/// Below the plain network's 1,500 bytes by its headers and OpenVPN's, as WireGuard's default is.
const MTU: u16 = 1420;

pub(super) fn start(site: &Site<'_>) -> Result<Running> {
    let (program, openssl) = (peer("openvpn")?, peer("openssl")?);
    let mut running = Running::without_programs(Side::B.inner().parse()?);
    let mut ends = Vec::new();
    for side in Side::BOTH {
        let folder = site.folder(side, "openvpn")?;
        let file = |name: &str| folder.join(name).display().to_string();
        let (cert, key) = (file("cert.pem"), file("key.pem"));
        let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let subject = format!("/CN={}", side.node());
        let rest = ["-keyout", &key, "-out", &cert, "-days", "2", "-subj", &subject];
        site.run(side.node(), &openssl, &[&request[..], &rest[..]].concat())?;
        let printed =
            site.run(side.node(), &openssl, &["x509", "-in", &cert, "-noout", "-fingerprint", "-sha256"])?;
        let fingerprint =
            printed.trim().split_once('=').context("openssl printed no fingerprint")?.1.to_owned();
        ends.push((side, cert, key, fingerprint));
    }
    let fingerprints: Vec<String> = ends.iter().rev().map(|end| end.3.clone()).collect();
    for ((side, cert, key, _), theirs) in ends.iter().zip(&fingerprints) {
        let (remote, inner) = (side.other().outer().to_string(), format!("{}/64", side.inner()));
        let role = if *side == Side::A { "--tls-client" } else { "--tls-server" };
        let mut command = site.lab.command(side.node(), &program)?;
        command.args(["--dev", DEVICE, "--dev-type", "tun", "--proto", "udp", "--port", PORT]);
        command.args(["--remote", &remote, role, "--dh", "none", "--cert", cert, "--key", key]);
        command.args(["--peer-fingerprint", theirs, "--data-ciphers", "AES-128-GCM", "--disable-dco"]);
        command.args(["--ifconfig-ipv6", &inner, side.other().inner(), "--verb", "1"]);
        command.args(["--tun-mtu", &MTU.to_string(), "--mssfix", "0", "--keepalive", "10", "60"]);
        let mut daemon = site.lab.spawn(side.node(), "openvpn", &mut command)?;
        wait_for_device(site, *side, DEVICE, &mut daemon)?;
        running.daemons.push(daemon);
    }
    Ok(running)
}
