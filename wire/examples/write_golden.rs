//! Writes `golden/*.bin` anew. Run it only for a new protocol version: old peers hold the old bytes.
//!
//! `cargo run -p headway-wire --example write_golden`

#[path = "../golden/frames.rs"]
mod frames;

use std::path::Path;
use std::{fs, io};

use headway_wire::frame::{encode_client_frame, encode_server_frame};

fn main() -> io::Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for (name, frame) in frames::client_frames() {
        fs::write(
            golden.join(name).with_extension("bin"),
            encode_client_frame(&frame),
        )?;
    }
    for (name, frame) in frames::server_frames() {
        fs::write(
            golden.join(name).with_extension("bin"),
            encode_server_frame(&frame),
        )?;
    }
    Ok(())
}
