//! What nsswitch.conf(5) says of hosts' names. Pure, but for [`asks_resolved`].

use std::path::Path;

use crate::state::read_bounded;

/// glibc's own has some hundred bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// Whether programs of the C library ask systemd-resolved whatever resolv.conf says (nss-resolve(8)). No
/// where the file cannot be read.
pub(super) fn asks_resolved(path: &Path) -> bool {
    let bytes = read_bounded(path, MAX_BYTES).ok().flatten().unwrap_or_default();
    names_resolved(&String::from_utf8_lossy(&bytes))
}

fn names_resolved(text: &str) -> bool {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut databases = lines.filter_map(|line| line.split_once(':'));
    databases.any(|(database, sources)| {
        database.trim() == "hosts"
            && sources.split_whitespace().any(|word| word.split('[').next() == Some("resolve"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolved_is_among_the_sources_of_hosts_or_is_not() {
        for (text, named) in [
            ("passwd: files\nhosts: files mymachines resolve [!UNAVAIL=return] dns\n", true),
            (" hosts:\tresolve[!UNAVAIL=return] dns # as systemd does\n", true),
            ("hosts: files dns\n", false),
            ("hosts: files # resolve\n#hosts: resolve\nnetworks: resolve\n", false),
            ("hosts: files resolved\n", false),
            ("", false),
        ] {
            assert_eq!(names_resolved(text), named, "{text}");
        }
    }
}
