//! Compiles `proto/headway.proto` with a compiler written in Rust, so that no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/headway.proto");
    let descriptors = protox::compile(["headway.proto"], ["proto"])?;
    prost_build::Config::new()
        // `Bytes` shares the frame's allocation: decoding does not copy the activations.
        .bytes([
            ".headway.wire.v1.Activations.data",
            ".headway.wire.v1.Open.prefix_digests",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
