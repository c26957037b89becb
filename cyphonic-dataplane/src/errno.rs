//! What the kernel said, at the bottom of an error.

use std::error::Error;
use std::io;

use aya::programs::ProgramError;
use aya::programs::tc::TcError;

/// The errno at the bottom of an error, if one is there.
pub(crate) fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = match error.downcast_ref() {
            // What an error only passes on is not among its sources.
            Some(ProgramError::IOError(io) | ProgramError::TcError(TcError::IoError(io))) => Some(io),
            _ => error.downcast_ref(),
        };
        if let Some(code) = io.and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use aya::EbpfError;
    use aya::maps::MapError;
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn it_is_found_however_it_is_wrapped() {
        let io = || io::Error::from_raw_os_error(libc::EEXIST);
        let syscall = || SyscallError { call: "bpf_link_create", io_error: io() };
        let created = || MapError::CreateError { name: "PEERS".to_owned(), io_error: io() };
        let errors: [Box<dyn Error>; 7] = [
            Box::new(io()),
            Box::new(syscall()),
            Box::new(ProgramError::IOError(io())),
            Box::new(ProgramError::SyscallError(syscall())),
            Box::new(EbpfError::ProgramError(ProgramError::TcError(TcError::IoError(io())))),
            Box::new(EbpfError::MapError(MapError::SyscallError(syscall()))),
            Box::new(EbpfError::MapError(created())),
        ];
        for error in errors {
            assert_eq!(errno(&*error), Some(libc::EEXIST), "{error:?}");
        }
        assert_eq!(errno(&ProgramError::NotLoaded), None);
    }
}
