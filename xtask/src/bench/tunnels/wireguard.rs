//! WireGuard in userspace: Debian's wireguard-go, and boringtun.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::programs::peer;
use super::site::{Side, Site};
use super::system::{Running, wait_for_device};

const PORT: &str = "51820";
/// WireGuard's own default for an underlay of 1,500 bytes.
const MTU: u16 = 1420;

/// An implementation.
pub(super) struct Implementation {
    program: &'static str,
    /// What makes it stay in the foreground.
    arguments: &'static [&'static str],
}

pub(super) const GO: Implementation = Implementation { program: "wireguard-go", arguments: &["-f"] };
pub(super) const BORINGTUN: Implementation = Implementation {
    program: "boringtun-cli",
    arguments: &["--foreground", "--disable-drop-privileges", "--verbosity", "error"],
};

/// The control sockets of both ends are in one folder of the machine, by their devices' names.
fn device(side: Side) -> &'static str {
    match side {
        Side::A => "wgbencha",
        Side::B => "wgbenchb",
    }
}

pub(super) fn start(site: &Site<'_>, which: &Implementation) -> Result<Running> {
    let (program, wg) = (peer(which.program)?, peer("wg")?);
    let mut running = Running::without_programs(Side::B.inner().parse()?);
    let keys = [key(site)?, key(site)?];
    let [public_a, public_b] = [public(&keys[0])?, public(&keys[1])?];
    for (side, own, theirs) in [(Side::A, &keys[0], &public_b), (Side::B, &keys[1], &public_a)] {
        let device = device(side);
        let mut command = site.lab.command(side.node(), &program)?;
        let mut daemon =
            site.lab.spawn(side.node(), which.program, command.args(which.arguments).arg(device))?;
        wait_for_device(site, side, device, &mut daemon)?;
        let file = site.folder(side, "wireguard")?.join("key");
        fs::write(&file, own).with_context(|| format!("cannot write {}", file.display()))?;
        let (file, endpoint) = (file.display().to_string(), format!("{}:{PORT}", side.other().outer()));
        let settings = ["set", device, "private-key", &file, "listen-port", PORT, "peer", theirs];
        let peer = ["allowed-ips", "::/0", "endpoint", &endpoint];
        // The socket appears a moment after the device.
        let set = || site.run(side.node(), &wg, &[&settings[..], &peer[..]].concat());
        let mut result = set();
        for _ in 0..20 {
            if result.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            result = set();
        }
        result?;
        site.configure(side, device, MTU)?;
        running.daemons.push(daemon);
    }
    Ok(running)
}

fn key(site: &Site<'_>) -> Result<String> {
    Ok(site.run(Side::A.node(), peer("wg")?, &["genkey"])?.trim().to_owned())
}

fn public(key: &str) -> Result<String> {
    use std::io::Write as _;
    let mut child =
        Command::new(peer("wg")?).arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        writeln!(stdin, "{key}")?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("`wg pubkey` failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
