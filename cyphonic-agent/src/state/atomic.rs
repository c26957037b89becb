//! Files that are replaced whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::StateError;

/// Replaces `path` by a file with these bytes and this mode. After a crash at any point there is either the
/// old file or the new one. The new file has its mode from the start, so a secret is never readable by
/// others.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateError> {
    write_together(&[(path, bytes)], mode)
}

/// The same for files of one directory that belong together: none is replaced before there was room for all.
pub(super) fn write_together(files: &[(&Path, &[u8])], mode: u32) -> Result<(), StateError> {
    let written = files.iter().try_for_each(|(path, bytes)| write_aside(path, bytes, mode));
    let replaced = written.and_then(|()| {
        files.iter().try_for_each(|(path, _)| {
            fs::rename(aside(path), path).map_err(|source| StateError::io("write", path, source))
        })
    });
    if replaced.is_err() {
        files.iter().for_each(|(path, _)| drop(fs::remove_file(aside(path))));
        return replaced;
    }
    // The renames themselves have to reach the disk too.
    let path = files.first().map_or(Path::new("/"), |(path, _)| path);
    let parent = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(|source| StateError::io("write", path, source))
}

fn write_aside(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateError> {
    let failed = |source| StateError::io("write", path, source);
    let aside = aside(path);
    // Left over from a crash: never complete, and its mode is not ours to trust.
    match fs::remove_file(&aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    write_new(&aside, bytes, mode).map_err(failed)
}

/// The file's bytes; nothing if there is none. At most `limit` bytes are read.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StateError> {
    let failed = |source| StateError::io("read", path, source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(StateError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(bytes))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// In the same directory, so that the rename stays within one file system.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"old", 0o600).unwrap();
        // A directory in the way of the file aside makes the write fail, whoever runs the test.
        fs::create_dir(aside(&path)).unwrap();
        assert!(write_atomic(&path, b"new", 0o600).is_err());
        assert_eq!(read_bounded(&path, 10).unwrap().as_deref(), Some(&b"old"[..]));
    }

    #[test]
    fn of_files_that_belong_together_none_is_replaced_where_one_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["a", "b"].map(|name| dir.path().join(name));
        let write = |text: &[u8]| write_together(&[(&first, text), (&second, text)], 0o600);
        let read = || [&first, &second].map(|path| read_bounded(path, 10).unwrap().unwrap());
        write(b"old").unwrap();
        fs::create_dir(aside(&second)).unwrap();
        assert!(write(b"new").is_err());
        assert_eq!(read(), [b"old", b"old"]);
        assert!(!aside(&first).exists());
        fs::remove_dir(aside(&second)).unwrap();
        write(b"new").unwrap();
        assert_eq!(read(), [b"new", b"new"]);
    }

    #[test]
    fn a_crash_between_write_and_rename_leaves_the_old_file_and_the_next_write_works() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"old", 0o600).unwrap();
        fs::write(aside(&path), b"ne").unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap().as_deref(), Some(&b"old"[..]));
        write_atomic(&path, b"new", 0o600).unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap().as_deref(), Some(&b"new"[..]));
        assert!(!aside(&path).exists());
    }

    #[test]
    fn reading_is_bounded_and_absence_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(read_bounded(&path, 3).unwrap(), None);
        fs::write(&path, b"1234").unwrap();
        assert!(matches!(read_bounded(&path, 3), Err(StateError::TooLarge { limit: 3, .. })));
        assert_eq!(read_bounded(&path, 4).unwrap().unwrap(), b"1234");
    }
}
