//! Whatever a tail sends is an error or a frame that encodes and decodes to itself.
#![no_main]

use bytes::Bytes;
use headway_wire::Limits;
use headway_wire::frame::{decode_server_frame, encode_server_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    if let Ok(frame) = decode_server_frame(Bytes::copy_from_slice(data), &limits) {
        let again = decode_server_frame(encode_server_frame(&frame), &limits);
        assert_eq!(again.expect("an accepted frame is accepted again"), frame);
    }
});
