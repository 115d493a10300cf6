//! What encodes decodes: to the same shape, near the values, and row by row to the same bytes.
//!
//! Input: kind, group size (u16), columns (u8), then f32 values.
#![no_main]

use headway_wire::message;
use headway_wire::{Codec, Limits, codec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(([kind, group_low, group_high, columns], data)) = input.split_first_chunk::<4>()
    else {
        return;
    };
    let group_size = u16::from_le_bytes([*group_low, *group_high]).into();
    let Ok(codec) = Codec::try_from(message::Codec {
        kind: (*kind).into(),
        group_size,
    }) else {
        return;
    };
    let columns = usize::from(*columns).max(1);
    let (chunks, _) = data.as_chunks::<4>();
    let values: Vec<f32> = chunks
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    let values = &values[..values.len() / columns * columns];

    let Ok(activations) = codec::encode(codec, values, columns) else {
        return;
    };
    assert!(activations.data.len() <= codec.encoded_bytes_max(values.len() / columns, columns));
    let alone = values.chunks(columns).flat_map(|row| {
        codec::encode(codec, row, columns)
            .expect("a row of rows that encode")
            .data
    });
    assert!(
        alone.eq(activations.data.iter().copied()),
        "a row depends on its neighbours"
    );

    let limits = Limits {
        max_step_positions: u32::MAX,
        ..Limits::default()
    };
    let decoded =
        codec::decode(&activations, codec, columns, &limits).expect("what encodes decodes");
    assert_eq!(decoded.len(), values.len());
    let mut encoded = codec::encoded_rows(&activations, codec);
    for (row, decoded) in values.chunks(columns).zip(decoded.chunks(columns)) {
        let encoded = encoded.next().expect("as many encoded rows as rows");
        let largest = row
            .iter()
            .fold(0.0_f32, |largest, value| largest.max(value.abs()));
        // Half the codec's smallest step; for int8 and int4 bf16's smallest scale.
        let tiny = if codec == Codec::F16 {
            2.0_f32.powi(-25)
        } else {
            2.0_f32.powi(-133)
        };
        for (value, decoded) in row.iter().zip(decoded) {
            let error = (value - decoded).abs();
            // The coarsest: int4 spans twice the largest magnitude in 15 steps, and errs by half a step.
            let bound = match codec {
                Codec::F32 => 0.0,
                // Two scales, and an eighth for the rounding of a value that is 2^20 scales.
                Codec::Tcq4 | Codec::Tcq3 => {
                    let scale = u16::from_le_bytes([encoded[0], encoded[1]]);
                    2.125 * f32::from_bits(u32::from(scale) << 16)
                }
                _ => (largest / 14.0).max(tiny),
            };
            assert!(error <= bound, "{codec}: {value} became {decoded}");
        }
    }
});
