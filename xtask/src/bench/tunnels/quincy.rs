//! Quincy in its TLS mode: QUIC datagrams by quinn. B serves, A is the client.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::programs::peer;
use super::site::{Side, Site};
use super::system::Running;

const PORT: u16 = 55555;
/// Its default.
const MTU: u16 = 1400;
const SERVER: &str = "10.43.0.1";

pub(super) fn start(site: &Site<'_>) -> Result<Running> {
    let (server, client, identity) =
        (peer("quincy-server")?, peer("quincy-client")?, peer("quincy-identity")?);
    let (on_a, on_b) = (site.folder(Side::A, "quincy")?, site.folder(Side::B, "quincy")?);
    certificate(site, &identity, &on_b, &Side::B.outer().to_string())?;
    certificate(site, &identity, &on_a, "bench")?;
    let path = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let fingerprint =
        site.run(Side::A.node(), &identity, &["tls", "fingerprint", "--cert", &path(&on_a, "cert.pem")])?;
    let (users, config) = (path(&on_b, "users.toml"), path(&on_b, "server.toml"));
    write(&users, &format!("[users.bench]\nauthorized_certs = [\"{}\"]\n", fingerprint.trim()))?;
    let text = format!(
        "name = \"quincy0\"\ntunnel_network = \"{SERVER}/24\"\nbind_address = \"0.0.0.0\"\nbind_port = {PORT}\n\
         users_file = \"{users}\"\n\
         [protocol]\nmode = \"tls\"\nkey_exchange = \"standard\"\ncertificate_file = \"{}\"\ncertificate_key_file = \"{}\"\n\
         [connection]\nmtu = {MTU}\n[log]\nlevel = \"info\"\n",
        path(&on_b, "cert.pem"),
        path(&on_b, "key.pem")
    );
    write(&config, &text)?;
    let mut command = site.lab.command("b", &server)?;
    let serving = site.lab.spawn("b", "quincy-server", command.args(["--config-path", &config]))?;
    let config = path(&on_a, "client.toml");
    let text = format!(
        "connection_string = \"{}:{PORT}\"\n\
         [protocol]\nmode = \"tls\"\nkey_exchange = \"standard\"\ntrusted_certificate_paths = [\"{}\"]\n\
         client_certificate_file = \"{}\"\nclient_certificate_key_file = \"{}\"\n\
         [connection]\nmtu = {MTU}\n[network]\nroutes = []\n[log]\nlevel = \"info\"\n",
        Side::B.outer(),
        path(&on_b, "cert.pem"),
        path(&on_a, "cert.pem"),
        path(&on_a, "key.pem")
    );
    write(&config, &text)?;
    // The client tries once: the server must listen by then.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let mut command = site.lab.command("a", &client)?;
    let connected = site.lab.spawn("a", "quincy-client", command.args(["--config-path", &config]))?;
    Ok(Running { target: SERVER.parse()?, daemons: vec![connected, serving], others: Vec::new() })
}

fn certificate(site: &Site<'_>, identity: &Path, folder: &Path, name: &str) -> Result<()> {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let arguments = ["tls", "gencert", "--cn", name, "--out-cert"];
    let rest = [&*cert.to_string_lossy(), "--out-key", &*key.to_string_lossy()];
    site.run("a", identity, &[&arguments[..], &rest[..]].concat())?;
    Ok(())
}

fn write(file: &str, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {file}"))
}
