//! Who gives a command.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// Longest name kept.
const MOST: usize = 64;

/// The user who became root to give it, or else the one whose process this is.
pub(crate) fn operator() -> String {
    let by_sudo = std::env::var("SUDO_USER").ok().and_then(|user| tidy(&user));
    by_sudo.unwrap_or_else(|| match fs::metadata("/proc/self") {
        Ok(own) => named(own.uid()).unwrap_or_else(|| format!("uid {}", own.uid())),
        Err(_) => "unknown".to_owned(),
    })
}

/// What this machine's own list of users calls the one with this number (passwd(5)).
fn named(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let is_meant = |line: &&str| line.split(':').nth(2) == Some(&uid.to_string());
    users.lines().find(is_meant)?.split(':').next().and_then(tidy)
}

/// As it may stand in a table.
fn tidy(name: &str) -> Option<String> {
    let name: String =
        name.chars().filter(|c| c.is_alphanumeric() || "-_.@\\".contains(*c)).take(MOST).collect();
    (!name.is_empty()).then_some(name)
}
