//! An agent that carries traffic writes nothing to storage: memory cards wear out, and boards lose power
//! while they write.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::overlay::{Overlay, ZONE, start_agent};

#[test]
fn an_agent_in_steady_state_writes_nothing_to_storage() {
    let mut overlay = Overlay::start();
    // Labs live in memory, where nothing is counted.
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("storage-{}", std::process::id()));
    let state = Removed(state);
    enrol_again(&mut overlay, &state.0);
    let pid = overlay.agents[1].pid();
    let enrolled = written(pid);
    assert!(enrolled > 0, "{} is not on storage: enrolment was not counted as written", state.0.display());

    overlay.reach("b", "c");
    overlay.reach("a", "c");
    overlay.reach("b", "a");
    let before = (written(pid), contents(&state.0));
    for _ in 0..3 {
        let (direct, _) = overlay.meanwhile(|overlay| {
            overlay.cyphonic("b", &["status"]);
            overlay.reach("b", "a");
        });
        assert!(direct.sent > 0 && direct.lost() < direct.sent, "there was no traffic");
    }
    assert_eq!(written(pid), before.0, "bytes were written to storage\n{}", overlay.logs());
    assert_eq!(contents(&state.0), before.1, "files were touched");
    let open = open_for_writing(pid);
    assert!(open.iter().all(|file| file.starts_with(&state.0)), "open for writing: {open:?}");
}

/// Has the device `b` enrol anew, with its state in this directory.
fn enrol_again(overlay: &mut Overlay, state: &Path) {
    let home = overlay.lab.node_dir("b").unwrap();
    overlay.agents[1].stop().unwrap();
    let config = fs::read_to_string(home.join("agent.yaml")).unwrap();
    let old = format!("state_dir: {}\n", home.join("state").display());
    assert!(config.contains(&old), "{config}");
    let config = config.replace(&old, &format!("state_dir: {}\n", state.display()));
    fs::write(home.join("agent.yaml"), config).unwrap();
    let token = overlay.cloud_command(&["token", "create", "--name", "b", "--replace"]);
    fs::write(home.join("token"), token).unwrap();
    overlay.agents[1] = start_agent(&overlay.lab, &overlay.programs, "b");
    overlay.wait_online("b");
    assert!(overlay.cyphonic("b", &["status"]).contains(&format!("b.{ZONE}")));
}

/// Bytes that the process caused to be written to storage since it started (proc_pid_io(5)).
fn written(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    line.parse().unwrap()
}

/// Every file below: its name, inode, size and times of change, in nanoseconds.
fn contents(folder: &Path) -> Vec<(PathBuf, u64, u64, [i64; 2])> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                folders.push(path.clone());
            }
            let nanos = |seconds: i64, nanos: i64| seconds * 1_000_000_000 + nanos;
            let times = [nanos(meta.mtime(), meta.mtime_nsec()), nanos(meta.ctime(), meta.ctime_nsec())];
            found.push((path, meta.ino(), meta.size(), times));
        }
    }
    found.sort();
    found
}

/// Regular files that the process could write to, but for its output.
fn open_for_writing(pid: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        // It may have closed it in the meantime.
        let (Ok(target), Ok(meta)) = (fs::read_link(entry.path()), fs::metadata(entry.path())) else {
            continue;
        };
        if number <= 2 || !target.is_absolute() || !meta.is_file() {
            continue;
        }
        let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        // O_WRONLY or O_RDWR.
        if u32::from_str_radix(flags, 8).unwrap() & 3 != 0 {
            found.push(target);
        }
    }
    found
}

/// Goes with the test, however it ends.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
