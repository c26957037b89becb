//! The Raspberry Pi 4's processor: a Cortex-A72 without the optional cryptographic instructions.
//!
//! The emulator's has them, and no switch to take them away. What software knows of them comes from one
//! register, `ID_AA64ISAR0_EL1`, which the kernel reads and passes on to programs. So the few instructions of
//! the kernel that read it are replaced by one that loads what a Pi's register holds: kernel and programs
//! then see a Pi. (That nothing executes the instructions without having asked cannot be shown this way.)

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// `mrs x0, ID_AA64ISAR0_EL1`; the low five bits choose the register.
const READ: u32 = 0xd538_0600;
/// `movz x0, #1, lsl #16`: CRC32 is all a Pi 4 has of what this register tells.
const LOAD: u32 = 0xd2a0_0020;
const REGISTER: u32 = 0x1f;
/// A kernel reads it when a processor starts and when it checks one against the others: more would be data
/// taken for code.
const PLACES: std::ops::RangeInclusive<usize> = 1..=16;

/// Copies a kernel so that it believes to run on a Pi.
pub(super) fn without_cryptography(image: &Path, patched: &Path) -> Result<()> {
    let mut code = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    // arm64's boot header has this at byte 56; what is compressed has no instructions to replace.
    if code.get(56..60) != Some(b"ARM\x64") {
        bail!("{} is no plain kernel image for 64-bit ARM", image.display());
    }
    let places = replace(&mut code);
    if !PLACES.contains(&places) {
        bail!("{} reads the processor's abilities at {places} places: look at them by hand", image.display());
    }
    fs::write(patched, code).with_context(|| format!("cannot write {}", patched.display()))
}

/// Returns at how many places.
fn replace(code: &mut [u8]) -> usize {
    let mut places = 0;
    for bytes in code.as_chunks_mut::<4>().0 {
        let instruction = u32::from_le_bytes(*bytes);
        if instruction & !REGISTER == READ {
            *bytes = (LOAD | (instruction & REGISTER)).to_le_bytes();
            places += 1;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_of_the_register_are_replaced_and_keep_their_destination() {
        // mrs x19, ID_AA64ISAR0_EL1; mrs x19, ID_AA64ISAR1_EL1; nop
        let code = [0xd538_0613_u32, 0xd538_0633, 0xd503_201f];
        let mut bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(replace(&mut bytes), 1);
        let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        // movz x19, #1, lsl #16
        assert_eq!(words, [0xd2a0_0033, 0xd538_0633, 0xd503_201f]);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let file = std::env::temp_dir().join(format!("cyphonic-image-{}", std::process::id()));
        fs::write(&file, [0_u8; 128]).unwrap();
        assert!(without_cryptography(&file, &file).unwrap_err().to_string().contains("no plain kernel"));
        fs::remove_file(&file).unwrap();
    }
}
