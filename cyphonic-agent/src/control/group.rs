//! Who may use the control socket besides root: a group.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The packages' group of those who may. Not necessary.
pub(super) const GROUP: &str = "cyphonic";

const GROUPS: &str = "/etc/group";

/// The number of [`GROUP`] on this host, where it is there.
pub fn group() -> Option<u32> {
    number_of(GROUP, &fs::read_to_string(GROUPS).ok()?)
}

/// What somebody can do whom a socket of this group keeps out. Root's group is not to be joined.
pub(super) fn way_in(group: u32) -> String {
    way_into(group, &fs::read_to_string(GROUPS).unwrap_or_default())
}

/// The same for the socket at a path. Where not even its group can be seen, there is one way.
pub(super) fn way_in_at(path: &Path) -> String {
    way_in(fs::metadata(path).map_or(0, |meta| meta.gid()))
}

fn way_into(group: u32, groups: &str) -> String {
    match (group, name_of(group, groups)) {
        (0, _) => "use sudo".into(),
        (_, Some(name)) => format!("use sudo, or join the group `{name}`"),
        (number, None) => format!("use sudo, or join the group {number}"),
    }
}

fn number_of(name: &str, groups: &str) -> Option<u32> {
    entries(groups).find(|(known, _)| *known == name)?.1
}

fn name_of(number: u32, groups: &str) -> Option<&str> {
    Some(entries(groups).find(|(_, known)| *known == Some(number))?.0)
}

/// By group(5).
fn entries(groups: &str) -> impl Iterator<Item = (&str, Option<u32>)> {
    let mut lines = groups.lines().map(|line| line.split(':'));
    std::iter::from_fn(move || {
        let mut fields = lines.next()?;
        let name = fields.next().unwrap_or_default();
        Some((name, fields.nth(1).and_then(|number| number.parse().ok())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = "root:x:0:\n\nold-cyphonic:x:7:\ncyphonic-cloud:x:8:\ncyphonic:x:998:ann,bob\n";

    #[test]
    fn the_group_is_found_by_its_name() {
        assert_eq!(number_of(GROUP, HOSTS), Some(998));
        assert_eq!(number_of(GROUP, "cyphonic:x:many:\n"), None);
        assert_eq!(number_of(GROUP, "cyphonic\n"), None);
        assert_eq!(number_of(GROUP, ""), None);
    }

    #[test]
    fn who_is_kept_out_is_told_of_a_group_only_where_it_helps() {
        assert_eq!(way_into(998, HOSTS), "use sudo, or join the group `cyphonic`");
        assert_eq!(way_into(7, HOSTS), "use sudo, or join the group `old-cyphonic`");
        assert_eq!(way_into(5, HOSTS), "use sudo, or join the group 5");
        assert_eq!(way_into(0, HOSTS), "use sudo");
        assert_eq!(way_in_at(Path::new("/nonexistent/c.sock")), "use sudo");
    }
}
