//! Keeps a process that has keys in its memory from being written down when it dies.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// No core dump of this process from now on, neither as a file, which the limit would prevent, nor through a
/// program such as systemd-coredump, which is given it all the same (core(5)). Nor may a process of the same
/// user that has no more rights than that look into it (ptrace(2)). To be called after privileges were
/// changed, which may undo it.
///
/// # Errors
///
/// When the kernel refuses one of the two.
pub fn forbid() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn neither_a_file_nor_a_program_gets_a_dump() {
        forbid().unwrap();
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        forbid().expect("once more does no harm");
    }
}
