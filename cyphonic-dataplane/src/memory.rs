//! Gives memory back that a process needed only to start.
//!
//! Most of a program is for starting: configuration, enrolment, loading eBPF programs, system buses. The
//! kernel maps it generously when it is executed or read, and leaves it mapped until memory is short, as it
//! does with what the allocator once needed. A device with little memory has better uses for both.

#![expect(
    unsafe_code,
    reason = "pages are unmapped, and the C library is asked for something that is its own"
)]

use std::ffi::c_void;
use std::ops::Range;
use std::path::Path;
use std::{fs, io};

use rustix::mm::{Advice, madvise};

/// Unmaps code and constants of the program that are resident: what is still needed comes back from the page
/// cache when it is executed or read next. What the allocator holds and nobody uses goes back to the kernel,
/// where the C library can do that. Takes some milliseconds, and as much again in faults: to be called once,
/// when starting is over. Returns how many bytes of code and constants the program has. Libraries stay: the
/// loader may be relocating some for another thread at any moment.
///
/// # Errors
/// When the kernel does not tell the process's program or mappings, or takes no advice. Nothing is lost then.
pub fn give_back_start_up() -> io::Result<usize> {
    let mut bytes = 0;
    let program = fs::read_link("/proc/self/exe")?;
    for range in unchanged(&fs::read_to_string("/proc/self/smaps")?, &program) {
        let len = range.len();
        // SAFETY: the range is a whole mapping of this process's program, private, not writable, and without
        // a page of its own (`unchanged`), so it has no content but the file's, of which the next
        // access gets a page again. No page of its own can come to it: the loader relocated the
        // program before it ran, and makes only libraries' mappings writable and changes them later,
        // when another thread loads one (getaddrinfo(3) does). Nor can it go away in between: a program is
        // not unloaded. What a debugger writes there in between (breakpoints) is lost.
        unsafe { madvise(range.start as *mut c_void, len, Advice::LinuxDontNeed)? };
        bytes += len;
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's locks like every allocation, and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
    Ok(bytes)
}

/// The mappings of the program that have nothing but their file's content, by `/proc/PID/smaps`
/// (proc_pid_smaps(5)).
fn unchanged(smaps: &str, program: &Path) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let (mut candidate, mut own_pages) = (None, None);
    for line in smaps.lines() {
        if let Some(begun) = mapping(line, program) {
            (candidate, own_pages) = (begun, None);
        } else if let Some(kibibytes) = line.strip_prefix("Anonymous:") {
            own_pages = Some(kibibytes.trim() == "0 kB");
        } else if let Some(kibibytes) = line.strip_prefix("Swap:") {
            // Pages of its own that were swapped out are not counted above. This line comes later.
            if own_pages == Some(true) && kibibytes.trim() == "0 kB" {
                found.extend(candidate.take());
            }
        }
    }
    found
}

/// Whether a line begins a mapping; its range, if that is private, of the program's file and not writable.
fn mapping(line: &str, program: &Path) -> Option<Option<Range<usize>>> {
    // Only the path may have spaces in it, and has some before it.
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    let range = address(start)?..address(end)?;
    let (permissions, path) = (fields.next()?, fields.nth(3).unwrap_or_default().trim_start());
    let is_read_only = matches!(permissions, "r-xp" | "r--p");
    Some((Path::new(path) == program && is_read_only && !range.is_empty()).then_some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel tells of one, in the lines that count.
    fn smaps(header: &str, anonymous: u32, swap: u32) -> String {
        format!(
            "{header}\nSize: 8 kB\nRss: 8 kB\nAnonymous: {anonymous:>14} kB\nSwap: {swap:>18} kB\nVmFlags: rd ex mr\n"
        )
    }

    #[test]
    fn only_what_is_the_programs_files_is_given_back() {
        const PROGRAM: &str = "/opt/my own/cyphonicd (deleted)";
        let unchanged = |smaps: &str| unchanged(smaps, Path::new(PROGRAM));
        let mapped = |kind: &str| format!("55e1000-55e3000 {kind} fe:00 77                       {PROGRAM}");
        let (code, constants) = (mapped("r-xp 00028000"), mapped("r--p 00001000").replace("55e", "55f"));
        let both = smaps(&code, 0, 0) + &smaps(&constants, 0, 0);
        assert_eq!(unchanged(&both), [0x055e_1000..0x055e_3000, 0x055f_1000..0x055f_3000]);
        // Relocated when the program was loaded, and perhaps swapped out since.
        assert_eq!(unchanged(&(smaps(&constants, 4, 0) + &smaps(&constants, 0, 4))), []);
        for other in [
            &mapped("rw-p 00028000"),
            &mapped("rwxp 00028000"),
            &mapped("r-xs 00028000"),
            &mapped("r-xp 00028000").replace("55e3000", "55e1000"),
            // What the loader may be about to write to, of libraries that are loaded later too.
            "7f001000-7f003000 r-xp 00028000 fe:00 1835                       /usr/lib/x86_64-linux-gnu/libc.so.6",
            "7f001000-7f003000 r--p 00028000 fe:00 1835                       /usr/lib/x86_64-linux-gnu/libnss_dns.so.2",
            "7f001000-7f003000 r--p 00028000 fe:00 1835                       /opt/my",
            "7ffd1000-7ffd3000 r-xp 00000000 00:00 0                          [vdso]",
            "7ffd1000-7ffd3000 r-xp 00000000 00:00 0 ",
        ] {
            assert_eq!(unchanged(&smaps(other, 0, 0)), [], "{other}");
            // Nor is it taken for what stood before it.
            let before = code.clone() + "\n" + &smaps(other, 0, 0);
            assert_eq!(unchanged(&before), [], "{other}");
        }
        assert_eq!(unchanged("Anonymous: 0 kB\nSwap: 0 kB\nnothing\n-\n"), []);
    }

    #[test]
    fn the_process_goes_on_with_less() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap()
        };
        let mut kept: Vec<u64> = (0..10_000).collect();
        // Other tests of this process may take some at that very moment.
        let shrinks = |_| {
            let before = resident();
            assert!(give_back_start_up().unwrap() > 100_000);
            resident() < before
        };
        assert!((0..100).any(shrinks), "nothing was given back");
        // It executes and allocates as before.
        kept.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!((kept.first(), kept.len()), (Some(&9_999), 10_000));
    }
}
