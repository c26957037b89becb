//! What a host is told from others by, for a name of its own within its overlay.

use std::path::Path;

use cyphonic_proto::identity::sha256;

use crate::config::{EnrolAs, HostFact};
use crate::state::read_bounded;

/// All these files hold one short line.
const MAX_FILE_BYTES: u64 = 4096;

/// A machine's ID may not leave it as it is (machine-id(5)): a hash of it with this does.
const OF_MACHINE: &[u8] = b"cyphonic name of a machine v1";

/// So much of the hash makes two of a million machines alike once in 500 fleets.
const MACHINE_ID_BYTES: usize = 6;

/// The name that this host asks for, or why it has none.
pub(super) fn name(wanted: &EnrolAs) -> Result<String, String> {
    name_at(Path::new("/"), wanted)
}

fn name_at(root: &Path, wanted: &EnrolAs) -> Result<String, String> {
    wanted.fill(|fact| match fact {
        HostFact::Hostname => hostname(root),
        HostFact::MachineId => machine_id(root),
        HostFact::Serial => serial(root),
    })
}

/// The first line of a file, if there is one.
fn line(root: &Path, path: &str) -> Option<String> {
    let bytes = read_bounded(&root.join(path), MAX_FILE_BYTES).ok().flatten()?;
    let text = String::from_utf8(bytes).ok()?;
    // The device tree ends its texts as C does.
    let line = text.lines().next().unwrap_or_default().trim_matches(['\0', ' ', '\t']).to_owned();
    Some(line).filter(|line| !line.is_empty())
}

/// The file before the kernel: a service with a host name of its own (`ProtectHostname=`) does not see that the
/// kernel's has changed since it was started.
fn hostname(root: &Path) -> Result<String, String> {
    let written =
        ["etc/hostname", "proc/sys/kernel/hostname"].into_iter().filter_map(|path| line(root, path));
    let mut labels = written.filter_map(|name| name.split('.').next().map(str::to_ascii_lowercase));
    labels
        .find(|label| !["", "localhost", "(none)"].contains(&label.as_str()))
        .ok_or_else(|| "this host has no name (/etc/hostname)".into())
}

fn machine_id(root: &Path) -> Result<String, String> {
    let id = line(root, "etc/machine-id");
    let id = id.filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    let id = id.ok_or("this host has no machine ID (/etc/machine-id)")?;
    let hash = sha256(&[OF_MACHINE, id.to_ascii_lowercase().as_bytes()].concat());
    Ok(hash.iter().take(MACHINE_ID_BYTES).map(|byte| format!("{byte:02x}")).collect())
}

/// Of a board with a device tree, as a Raspberry Pi is, or of a PC.
fn serial(root: &Path) -> Result<String, String> {
    let files = ["proc/device-tree/serial-number", "sys/class/dmi/id/product_serial"];
    let written = files.into_iter().find_map(|path| line(root, path));
    let of_names = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let serial: String = written.unwrap_or_default().chars().map(of_names).collect();
    match serial.trim_matches('-') {
        "" => Err("this host's board tells no serial number".into()),
        serial => Ok(serial.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A host with these files.
    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn name_of(files: &[(&str, &str)], wanted: &str) -> Result<String, String> {
        name_at(host(files).path(), &wanted.parse().unwrap())
    }

    #[test]
    fn a_host_is_called_as_its_file_says_and_else_as_the_kernel() {
        let kernel = ("proc/sys/kernel/hostname", "kernel\n");
        assert_eq!(
            name_of(&[("etc/hostname", "Camera-12.example.com\n"), kernel], "{hostname}").unwrap(),
            "camera-12"
        );
        for nothing in ["", "\n", "localhost\n", "localhost.localdomain\n"] {
            assert_eq!(name_of(&[("etc/hostname", nothing), kernel], "{hostname}").unwrap(), "kernel");
        }
        let none = name_of(&[("proc/sys/kernel/hostname", "(none)\n")], "{hostname}");
        assert!(none.unwrap_err().contains("/etc/hostname"));
    }

    #[test]
    fn a_machine_id_does_not_leave_its_machine() {
        let id = "0123456789abcdef0123456789abcdef";
        let name = |id: &str| name_of(&[("etc/machine-id", id)], "{machine-id}");
        let told = name(id).unwrap();
        assert!(told.len() == 12 && !id.contains(&told), "{told}");
        assert_eq!(told, "e0be024ea4ae", "it is the same in every release");
        assert_eq!(name(&format!("{}\n", id.to_uppercase())), Ok(told.clone()));
        assert_ne!(name("1123456789abcdef0123456789abcdef"), Ok(told));
        for none in ["uninitialized\n", "", "0123"] {
            assert!(name(none).is_err(), "{none}");
        }
    }

    #[test]
    fn a_serial_number_is_written_as_names_are() {
        let pi = ("proc/device-tree/serial-number", "10000000ABCDEF01\0");
        let pc = ("sys/class/dmi/id/product_serial", " VMware-56 4d/9a \n");
        assert_eq!(name_of(&[pi, pc], "camera-{serial}").unwrap(), "camera-10000000abcdef01");
        assert_eq!(name_of(&[pc], "{serial}").unwrap(), "vmware-56-4d-9a");
        for none in [&[("sys/class/dmi/id/product_serial", "--\n")][..], &[]] {
            assert!(name_of(none, "camera-{serial}").unwrap_err().contains("serial number"));
        }
    }
}
