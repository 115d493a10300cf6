//! The bytes on the wire do not change: each file of `golden/` is what this crate writes and reads.

#[path = "../golden/frames.rs"]
mod frames;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use headway_wire::frame::{
    decode_client_frame, decode_server_frame, encode_client_frame, encode_server_frame,
};
use headway_wire::message::{client_frame, step};
use headway_wire::{Codec, Limits, codec};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name)
        .with_extension("bin")
}

fn golden(name: &str) -> Bytes {
    fs::read(path(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .into()
}

#[test]
fn client_frames_encode_to_the_golden_bytes_and_back() {
    for (name, frame) in frames::client_frames() {
        let bytes = golden(&name);
        assert_eq!(encode_client_frame(&frame), bytes, "{name}");
        assert_eq!(
            decode_client_frame(bytes, &Limits::default()).unwrap(),
            frame,
            "{name}"
        );
    }
}

#[test]
fn server_frames_encode_to_the_golden_bytes_and_back() {
    for (name, frame) in frames::server_frames() {
        let bytes = golden(&name);
        assert_eq!(encode_server_frame(&frame), bytes, "{name}");
        assert_eq!(
            decode_server_frame(bytes, &Limits::default()).unwrap(),
            frame,
            "{name}"
        );
    }
}

#[test]
fn no_golden_file_is_without_a_frame() {
    let clients = frames::client_frames()
        .into_iter()
        .map(|(name, _)| path(&name));
    let servers = frames::server_frames()
        .into_iter()
        .map(|(name, _)| path(&name));
    let expected: BTreeSet<PathBuf> = clients.chain(servers).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let found: BTreeSet<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .collect();
    assert_eq!(found, expected);
}

/// A frame cut short is an error, or a valid frame that says something else; it never panics.
#[test]
fn no_truncation_of_a_golden_frame_passes_for_the_frame() {
    let limits = Limits::default();
    for (name, frame) in frames::client_frames() {
        let bytes = golden(&name);
        for end in 0..bytes.len() {
            if let Ok(other) = decode_client_frame(bytes.slice(..end), &limits) {
                assert_ne!(other, frame, "{name} cut to {end} bytes");
            }
        }
    }
    for (name, frame) in frames::server_frames() {
        let bytes = golden(&name);
        for end in 0..bytes.len() {
            if let Ok(other) = decode_server_frame(bytes.slice(..end), &limits) {
                assert_ne!(other, frame, "{name} cut to {end} bytes");
            }
        }
    }
}

#[test]
fn golden_activations_decode_to_what_was_encoded() {
    let hidden_states = frames::hidden_states();
    let mut seen = 0;
    for (name, frame) in frames::client_frames() {
        let Some(client_frame::Message::Step(step)) = frame.message else {
            continue;
        };
        let Some(step::Input::Activations(activations)) = step.input else {
            continue;
        };
        let codec = Codec::try_from(activations.codec.unwrap()).unwrap();
        let limits = Limits::default();
        let decoded = codec::decode(&activations, codec, frames::COLUMNS, &limits).unwrap();
        // The widest group spans 4.4375; one value is far outside and exact.
        let max_error = match codec {
            Codec::F32 | Codec::F16 | Codec::Bf16 => 0.0,
            Codec::Int8 { .. } => 0.01,
            Codec::Int4 { .. } => 0.16,
            // Two scales of a sixth and of a third of the mean magnitude, which is 1.125 and 1.2.
            Codec::Tcq4 => 0.41,
            Codec::Tcq3 => 0.82,
        };
        for (decoded, value) in decoded.iter().zip(&hidden_states) {
            assert!(
                (decoded - value).abs() <= max_error,
                "{name}: {value} became {decoded}"
            );
        }
        if !matches!(codec, Codec::Tcq4 | Codec::Tcq3) {
            assert_eq!(decoded[frames::COLUMNS + 7], -512.0, "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 9);
}
