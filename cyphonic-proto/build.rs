//! Compiles the schema with a pure Rust compiler, so that building needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=schema/cyphonic.proto");
    let descriptors = protox::compile(["schema/cyphonic.proto"], ["schema"])?;
    prost_build::Config::new()
        // They carry secrets: their Debug is written by hand and redacted (src/message.rs).
        .skip_debug(
            ["RouteDirection", "EnrolRequest", "BindingResponse", "BindingRestore"]
                .map(|name| format!(".cyphonic.v1.{name}")),
        )
        .btree_map(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
