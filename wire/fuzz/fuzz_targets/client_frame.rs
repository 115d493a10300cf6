//! Whatever a device sends is an error or a frame that encodes and decodes to itself.
#![no_main]

use bytes::Bytes;
use headway_wire::Limits;
use headway_wire::frame::{decode_client_frame, encode_client_frame};
use headway_wire::message::{Refusal, client_frame, step};
use headway_wire::{Codec, codec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    let frame = match decode_client_frame(Bytes::copy_from_slice(data), &limits) {
        Ok(frame) => frame,
        Err(error) => {
            let refusal = Refusal::from(&error);
            assert!(refusal.message.len() <= limits.max_text_bytes);
            return;
        }
    };
    let again = decode_client_frame(encode_client_frame(&frame), &limits);
    assert_eq!(again.expect("an accepted frame is accepted again"), frame);

    // What the tail does next with an accepted step.
    let Some(client_frame::Message::Step(step)) = frame.message else {
        return;
    };
    let Some(step::Input::Activations(activations)) = step.input else {
        return;
    };
    let proto = activations.codec.expect("an accepted step names its codec");
    let codec = Codec::try_from(proto).expect("a codec that was accepted");
    if let Ok(values) = codec::decode(&activations, codec, activations.columns as usize, &limits) {
        assert_eq!(
            values.len(),
            activations.rows as usize * activations.columns as usize
        );
    }
});
