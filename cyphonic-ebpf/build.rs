//! Linker options of single objects.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The relay's program moves addresses between packets and map values, of which most lie at odd places: in
    // words rather than in bytes, it takes a quarter fewer instructions. The processors that Cyphonic
    // runs on can do that, and their kernels say so to the verifier
    // (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS).
    // The forwarder that the relay is measured beside is built likewise, or the comparison would flatter.
    for object in ["relay", "bench"] {
        println!("cargo::rustc-link-arg-bin={object}=--cpu-features=+allows-misaligned-mem-access");
    }
}
