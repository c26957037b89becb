//! Every eBPF program passes the verifier of the running kernel, with every map at its largest.
//!
//! `cargo xtask test-kernels` runs this very program on other kernels, and reads its `program` lines.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::{env, fs};

use aya::programs::{Program, ProgramError, ProgramInfo};
use aya::{Ebpf, EbpfLoader};

/// As many legs as a relay is measured with: a quarter of a gigabyte. Other maps have their size in the
/// object.
const MOST_LEGS: u32 = 1_000_000;

fn objects() -> Vec<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf");
    let directory = env::var_os("CYPHONIC_EBPF_OBJECTS").map_or_else(built, PathBuf::from);
    let entries = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask build`", directory.display()));
    let mut objects: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    objects.sort();
    objects
}

fn load(object: &Path) -> Ebpf {
    let bytes = fs::read(object).unwrap();
    EbpfLoader::new()
        .map_max_entries("LEGS", MOST_LEGS)
        .map_max_entries("OVERFLOW", MOST_LEGS)
        .load(&bytes)
        .unwrap_or_else(|error| panic!("{}: {error}", object.display()))
}

/// Every kind this project has; a new kind must be added here to be tested.
fn verify(program: &mut Program) -> Result<ProgramInfo, ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load().and_then(|()| program.info()),
        Program::Xdp(program) => program.load().and_then(|()| program.info()),
        Program::SocketFilter(program) => program.load().and_then(|()| program.info()),
        Program::ReusePortSocketFilter(program) => program.load().and_then(|()| program.info()),
        Program::SkReuseport(program) => program.load().and_then(|()| program.info()),
        other => panic!("this test knows no {:?}", other.prog_type()),
    }
}

#[test]
fn every_program_passes_the_verifier_with_maps_at_their_largest() {
    let (mut seen, mut refused) = (0, Vec::new());
    for path in objects() {
        let object = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut ebpf = load(&path);
        for (name, program) in ebpf.programs_mut() {
            match verify(program) {
                // Kernels before 5.16 do not tell.
                Ok(info) => println!(
                    "program {object}/{name}: verified_instructions={} translated_bytes={}",
                    info.verified_instruction_count().unwrap_or(0),
                    info.size_translated().unwrap_or(0),
                ),
                Err(error) => {
                    println!("refused {object}/{name}");
                    refused.push(format!("{object}/{name}: {error}"));
                }
            }
            seen += 1;
        }
    }
    assert!(refused.is_empty(), "the verifier refused:\n{}", refused.join("\n"));
    assert!(seen > 0, "no object holds a program");
}
