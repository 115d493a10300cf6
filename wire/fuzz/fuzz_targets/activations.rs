//! Any header with any data decodes to finite rows of the declared shape, or is refused.
//!
//! Input: kind, group size (u16), rows (u16), columns (u16), then the data.
#![no_main]

use bytes::Bytes;
use headway_wire::message::{self, Activations};
use headway_wire::{Codec, Limits, codec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((header, data)) = input.split_first_chunk::<7>() else {
        return;
    };
    let [
        kind,
        group_low,
        group_high,
        rows_low,
        rows_high,
        columns_low,
        columns_high,
    ] = *header;
    let group_size = u16::from_le_bytes([group_low, group_high]).into();
    let activations = Activations {
        codec: Some(message::Codec {
            kind: kind.into(),
            group_size,
        }),
        rows: u16::from_le_bytes([rows_low, rows_high]).into(),
        columns: u16::from_le_bytes([columns_low, columns_high]).into(),
        data: Bytes::copy_from_slice(data),
    };
    let expected = activations
        .codec
        .and_then(|codec| Codec::try_from(codec).ok())
        .unwrap_or(Codec::F32);
    let columns = activations.columns as usize;
    if let Ok(values) = codec::decode(&activations, expected, columns, &Limits::default()) {
        assert_eq!(values.len(), activations.rows as usize * columns);
        assert!(values.iter().all(|value| value.is_finite()));
        assert!(
            4 * values.len() <= 8 * data.len(),
            "memory is bounded by the bytes received"
        );
    }
});
