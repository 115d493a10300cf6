use proptest::prelude::*;

use super::*;
use crate::message;

const ALL: [Codec; 10] = [
    Codec::F32,
    Codec::F16,
    Codec::Bf16,
    Codec::Int8 { group_size: 32 },
    Codec::Int4 { group_size: 32 },
    Codec::Int8 { group_size: 7 },
    Codec::Int4 { group_size: 7 },
    Codec::Int4 { group_size: 1 },
    Codec::Tcq4,
    Codec::Tcq3,
];

const INT8: Codec = Codec::Int8 { group_size: 32 };
const INT4: Codec = Codec::Int4 { group_size: 32 };

fn round_trip(codec: Codec, values: &[f32], columns: usize) -> Vec<f32> {
    let activations = encode(codec, values, columns).unwrap();
    assert!(activations.data.len() <= codec.encoded_bytes_max(values.len() / columns, columns));
    decode(&activations, codec, columns, &Limits::default()).unwrap()
}

/// The outliers that the row's own bytes list, and where its groups begin.
fn listed(activations: &Activations) -> Vec<(u16, f32)> {
    let mut reader = reader::Reader::new(&activations.data);
    let columns = activations.columns as usize;
    outliers::Outliers::default()
        .read(&mut reader, 0, columns)
        .unwrap()
        .to_vec()
}

/// The scale of a row of tcq4 or tcq3.
fn trellis_scale(activations: &Activations) -> f32 {
    half::bf16::from_le_bytes([activations.data[0], activations.data[1]]).to_f32()
}

/// What the docs of `group.rs` and `codec.rs` promise, for a row that may list outliers.
fn max_error(codec: Codec, activations: &Activations, row: &[f32], column: usize) -> f32 {
    let group_size = match codec {
        Codec::F32 => return 0.0,
        Codec::F16 => return (row[column].abs() / 2048.0).max(2.0_f32.powi(-25)),
        Codec::Bf16 => return (row[column].abs() / 256.0).max(2.0_f32.powi(-134)),
        Codec::Int8 { group_size } | Codec::Int4 { group_size } => usize::from(group_size),
        // An eighth for the rounding of a value that is 2^20 scales.
        Codec::Tcq4 | Codec::Tcq3 => return 2.125 * trellis_scale(activations),
    };
    let outliers = listed(activations);
    let is_outlier = |at: usize| {
        outliers
            .iter()
            .any(|(column, _)| usize::from(*column) == at)
    };
    if is_outlier(column) {
        return 0.0;
    }
    let start = column / group_size * group_size;
    let end = (start + group_size).min(row.len());
    let group = || (start..end).filter(|at| !is_outlier(*at)).map(|at| row[at]);
    let largest = group().map(f32::abs).fold(0.0, f32::max);
    let least = group().fold(f32::INFINITY, f32::min);
    let range = group().fold(f32::NEG_INFINITY, f32::max) - least;
    let bound = match codec {
        Codec::Int8 { .. } => largest / 250.0,
        _ => (range + largest / 128.0) / 29.0,
    };
    bound.max(2.0_f32.powi(-133))
}

/// Rows as language models have them: most values near zero, now and then a massive one.
fn rows() -> impl Strategy<Value = (Vec<f32>, usize)> {
    let usual = -4.0..4.0_f32;
    let value = prop_oneof![40 => usual, 1 => -3e4..3e4_f32, 1 => Just(0.0), 1 => -1e-6..1e-6_f32];
    (1..150_usize, 1..5_usize).prop_flat_map(move |(columns, rows)| {
        (
            prop::collection::vec(value.clone(), columns * rows),
            Just(columns),
        )
    })
}

proptest! {
    #[test]
    fn every_codec_keeps_its_error_bound((values, columns) in rows(), which in 0..ALL.len()) {
        let codec = ALL[which];
        let decoded = round_trip(codec, &values, columns);
        for (row, decoded) in values.chunks(columns).zip(decoded.chunks(columns)) {
            let alone = encode(codec, row, columns).unwrap();
            for column in 0..columns {
                let error = (row[column] - decoded[column]).abs();
                let bound = max_error(codec, &alone, row, column);
                prop_assert!(error <= bound, "{} became {}: {error} > {bound}", row[column], decoded[column]);
            }
        }
    }

    #[test]
    fn any_finite_bits_keep_the_error_bound_or_are_refused(
        bits in prop::collection::vec(any::<u32>(), 1..200), which in 0..ALL.len(),
    ) {
        let row: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
        let codec = ALL[which];
        match encode(codec, &row, row.len()) {
            Ok(activations) => {
                let decoded = decode(&activations, codec, row.len(), &Limits::default()).unwrap();
                for column in 0..row.len() {
                    let error = (row[column] - decoded[column]).abs();
                    prop_assert!(error <= max_error(codec, &activations, &row, column));
                }
            }
            Err(CodecError::NotFinite { row: 0, column, .. }) => prop_assert!(!row[column].is_finite()),
            Err(CodecError::OutOfRange { row: 0, column, max, .. }) => prop_assert!(row[column].abs() > max),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn a_row_encodes_to_the_same_bytes_alone_as_among_others((values, columns) in rows()) {
        for codec in ALL {
            let together = encode(codec, &values, columns).unwrap();
            let alone: Vec<u8> = values
                .chunks(columns)
                .flat_map(|row| encode(codec, row, columns).unwrap().data.to_vec())
                .collect();
            prop_assert_eq!(&together.data[..], &alone[..], "{}", codec);
        }
    }

    #[test]
    fn no_bytes_make_decoding_panic(
        (kind, group_size, rows, columns) in (0..9_i32, 0..70_u32, 0..4_u32, 0..140_u32),
        mut data in prop::collection::vec(any::<u8>(), 0..600),
        exact in any::<bool>(),
    ) {
        let codec = Some(message::Codec { kind, group_size });
        let expected = codec.and_then(|codec| Codec::try_from(codec).ok()).unwrap_or(Codec::F32);
        if exact {
            // A size that passes the first check, so that the rows themselves are reached.
            data.resize(expected.row_bytes(columns as usize).0 * rows as usize, 0);
        }
        let activations = Activations { codec, rows, columns, data: data.into() };
        if let Ok(values) = decode(&activations, expected, columns as usize, &Limits::default()) {
            prop_assert_eq!(values.len(), rows as usize * columns as usize);
            prop_assert!(values.iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn names_read_back_as_they_print() {
    for codec in ALL {
        assert_eq!(codec.to_string().parse(), Ok(codec));
        assert_eq!(Codec::try_from(message::Codec::from(codec)), Ok(codec));
    }
    assert_eq!("int8".parse(), Ok(INT8));
    assert_eq!("int4:64".parse(), Ok(Codec::Int4 { group_size: 64 }));
    assert_eq!("tcq4".parse(), Ok(Codec::Tcq4));
    for name in [
        "",
        "F32",
        "f32:32",
        "int8:",
        "int8:x",
        "int8:65536",
        "int4:-1",
        "int2",
        "tcq",
        "tcq2",
        "tcq4:32",
    ] {
        assert!(
            matches!(name.parse::<Codec>(), Err(CodecError::UnknownName { .. })),
            "{name}"
        );
    }
    assert!(matches!(
        "int8:0".parse::<Codec>(),
        Err(CodecError::GroupSize { got: 0, .. })
    ));
}

#[test]
fn a_codec_of_a_later_version_is_unsupported() {
    for kind in [0, 8, -1] {
        let error = Codec::try_from(message::Codec {
            kind,
            group_size: 0,
        })
        .unwrap_err();
        assert_eq!(error, CodecError::UnknownKind { got: kind });
        assert_eq!(error.refusal_code(), message::RefusalCode::Unsupported);
    }
    for (kind, group_size) in [(1, 32), (4, 0), (5, 65_536), (6, 32), (7, 1)] {
        let error = Codec::try_from(message::Codec { kind, group_size }).unwrap_err();
        assert!(matches!(error, CodecError::GroupSize { got, .. } if got == group_size));
    }
}

#[test]
fn only_f32_is_lossless_and_it_keeps_every_bit() {
    assert!(
        ALL.iter()
            .all(|codec| codec.is_lossless() == (*codec == Codec::F32))
    );
    let values = [
        0.0,
        -0.0,
        f32::MIN_POSITIVE / 2.0,
        f32::MAX,
        f32::MIN,
        1.0 / 3.0,
    ];
    let decoded = round_trip(Codec::F32, &values, 3);
    assert!(
        values
            .iter()
            .zip(&decoded)
            .all(|(value, decoded)| value.to_bits() == decoded.to_bits())
    );
}

#[test]
fn outliers_are_restored_exactly() {
    let mut row: Vec<f32> = (0..256)
        .map(|column| (column % 13) as f32 / 13.0 - 0.5)
        .collect();
    // The cap for 256 columns is 4: all are taken. Two share a group with small values.
    let outliers = [(3, 1234.567), (4, -98.765), (130, 31_415.926), (255, -77.7)];
    for (column, value) in outliers {
        row[column] = value;
    }
    for codec in [INT8, INT4, Codec::Int4 { group_size: 7 }] {
        let decoded = round_trip(codec, &row, row.len());
        for (column, value) in outliers {
            assert_eq!(decoded[column], value, "{codec}");
        }
        assert!(
            (decoded[5] - row[5]).abs() < 0.05,
            "{codec}: an outlier coarsens its group"
        );
    }
}

#[test]
fn of_too_many_outliers_the_largest_then_the_lowest_columns_are_kept() {
    let mut row = vec![0.0; 128];
    for column in [5, 9, 70, 127] {
        row[column] = 100.0;
    }
    row[90] = -200.0;
    let activations = encode(INT8, &row, row.len()).unwrap();
    assert_eq!(listed(&activations), [(5, 100.0), (90, -200.0)]);
}

#[test]
fn groups_of_outliers_zeros_and_equal_values_decode() {
    let every_codec = |row: &[f32]| ALL.map(|codec| round_trip(codec, row, row.len()));
    assert!(
        every_codec(&[0.0; 40])
            .iter()
            .flatten()
            .all(|value| *value == 0.0)
    );
    for (codec, decoded) in ALL.iter().zip(every_codec(&[-1.5; 40])) {
        let bound = match codec {
            Codec::Tcq4 => 1.5 / 3.0,
            Codec::Tcq3 => 1.5 / 1.5,
            _ => 0.01,
        };
        assert!(
            decoded.iter().all(|value| (value + 1.5).abs() <= bound),
            "{codec}"
        );
    }
    let mut row = [0.0; 64];
    row[63] = 7.0;
    // The last group of one column is the outlier and nothing else.
    for codec in [
        Codec::Int8 { group_size: 63 },
        Codec::Int4 { group_size: 63 },
    ] {
        assert_eq!(round_trip(codec, &row, 64), row);
    }
}

#[test]
fn huge_and_tiny_values_stay_finite_and_near() {
    for largest in [f32::MIN_POSITIVE, 1e-30, 1e9, 1e36] {
        let row: Vec<f32> = (-20..21_i8)
            .map(|step| largest * f32::from(step) / 20.0)
            .collect();
        // Two scales of a sixth of the mean magnitude, which is half the largest.
        for (codec, part) in [(INT8, 0.08), (INT4, 0.08), (Codec::Tcq4, 0.18)] {
            for (value, decoded) in row.iter().zip(round_trip(codec, &row, row.len())) {
                assert!(
                    (value - decoded).abs() <= largest * part,
                    "{codec}: {value} became {decoded}"
                );
            }
        }
    }
}

#[test]
fn values_that_a_codec_cannot_hold_are_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = [1.0; 60];
        values[42] = bad;
        for codec in ALL {
            let error = encode(codec, &values, 20).unwrap_err();
            assert!(
                matches!(
                    error,
                    CodecError::NotFinite {
                        row: 2,
                        column: 2,
                        ..
                    }
                ),
                "{codec}: {error}"
            );
        }
    }
    for (codec, bad) in [
        (Codec::F16, 65_520.0),
        (Codec::Bf16, f32::MAX),
        (INT8, 2e36),
        (INT4, -2e36),
        (Codec::Tcq4, 2e36),
        (Codec::Tcq3, -2e36),
    ] {
        let mut values = [1.0; 60];
        values[42] = bad;
        let error = encode(codec, &values, 20).unwrap_err();
        assert!(
            matches!(
                error,
                CodecError::OutOfRange {
                    row: 2,
                    column: 2,
                    ..
                }
            ),
            "{codec}: {error}"
        );
    }
}

#[test]
fn shapes_that_are_not_rows_are_refused() {
    for (values, columns) in [(&[][..], 4), (&[1.0; 7][..], 4), (&[1.0; 4][..], 0)] {
        assert!(matches!(
            encode(Codec::F32, values, columns),
            Err(CodecError::Shape { .. })
        ));
    }
    let error = encode(INT8, &vec![1.0; 65_536], 65_536).unwrap_err();
    assert!(matches!(
        error,
        CodecError::OverLimit {
            max: 65_535,
            got: 65_536,
            ..
        }
    ));
    let error = encode(Codec::Int4 { group_size: 0 }, &[1.0], 1).unwrap_err();
    assert!(matches!(error, CodecError::GroupSize { .. }));
}

#[test]
fn every_truncation_and_every_addition_is_refused() {
    let mut values: Vec<f32> = (0..130).map(|at| (at % 11) as f32).collect();
    values[64] = 1000.0;
    for codec in ALL {
        let whole = encode(codec, &values, 65).unwrap();
        for end in 0..whole.data.len() {
            let cut = Activations {
                data: whole.data.slice(..end),
                ..whole.clone()
            };
            decode(&cut, codec, 65, &Limits::default()).unwrap_err();
        }
        let longer = Activations {
            data: [&whole.data[..], &[0]].concat().into(),
            ..whole
        };
        let error = decode(&longer, codec, 65, &Limits::default()).unwrap_err();
        assert!(
            matches!(
                error,
                CodecError::TrailingBytes { .. } | CodecError::DataBytes { .. }
            ),
            "{codec}: {error}"
        );
    }
}

#[test]
fn a_declared_shape_without_the_bytes_takes_no_memory() {
    let limits = Limits {
        max_step_positions: u32::MAX,
        max_columns: u32::MAX,
        ..Limits::default()
    };
    for codec in ALL {
        let data = vec![0; 1000].into();
        let activations = Activations {
            codec: Some(codec.into()),
            rows: u32::MAX,
            columns: 65_535,
            data,
        };
        let error = decode(&activations, codec, 65_535, &limits).unwrap_err();
        assert!(
            matches!(
                error,
                CodecError::DataBytes {
                    got_bytes: 1000,
                    ..
                }
            ),
            "{codec}: {error}"
        );
    }
}

#[test]
fn limits_and_the_session_bound_the_shape() {
    let whole = encode(Codec::F16, &[1.0; 24], 8).unwrap();
    let decode = |limits: &Limits, columns| decode(&whole, Codec::F16, columns, limits);
    let limits = Limits {
        max_step_positions: 2,
        ..Limits::default()
    };
    let error = CodecError::OverLimit {
        limit: "max_step_positions",
        max: 2,
        got: 3,
    };
    assert_eq!(decode(&limits, 8), Err(error));
    let limits = Limits {
        max_columns: 7,
        ..Limits::default()
    };
    let error = CodecError::OverLimit {
        limit: "max_columns",
        max: 7,
        got: 8,
    };
    assert_eq!(error.refusal_code(), message::RefusalCode::OverLimit);
    assert_eq!(decode(&limits, 8), Err(error));
    let error = CodecError::ColumnsMismatch {
        expected: 9,
        got: 8,
    };
    assert_eq!(decode(&Limits::default(), 9), Err(error));
    let error = CodecError::CodecMismatch {
        expected: Codec::Bf16,
        got: Codec::F16,
    };
    assert_eq!(
        super::decode(&whole, Codec::Bf16, 8, &Limits::default()),
        Err(error)
    );
}

#[test]
fn a_trellis_row_of_few_typical_values_stays_within_its_bytes() {
    // Two thirds of the row are 10,000 times the others: too many to be outliers, and at a scale for the others too
    // many bits.
    for codec in [Codec::Tcq4, Codec::Tcq3] {
        for (columns, every) in [(2, 2), (3, 2), (90, 3), (576, 7), (576, 64)] {
            let row: Vec<f32> = (0..columns)
                .map(|column| if column % every == 0 { 1e-4 } else { 1.0 })
                .map(|value: f32| value.powi(if every > 3 { -1 } else { 1 }))
                .collect();
            let activations = encode(codec, &row, columns).unwrap();
            assert!(activations.data.len() <= codec.encoded_bytes_max(1, columns));
            let decoded = decode(&activations, codec, columns, &Limits::default()).unwrap();
            let bound = 2.125 * trellis_scale(&activations);
            for (value, decoded) in row.iter().zip(decoded) {
                assert!(
                    (value - decoded).abs() <= bound,
                    "{codec}: {value} became {decoded}"
                );
            }
        }
    }
}

#[test]
fn normal_values_take_the_bytes_that_the_rates_say() {
    // The sum of 12 even numbers is close to a normal distribution.
    let mut state = 1_u32;
    let mut even = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let row: Vec<f32> = (0..4096).map(|_| (0..12).map(|_| even()).sum()).collect();
    for (codec, most_bits, most_error) in [(Codec::Tcq4, 4.25, 0.005), (Codec::Tcq3, 3.25, 0.02)] {
        let activations = encode(codec, &row, row.len()).unwrap();
        let bits = activations.data.len() as f32 * 8.0 / row.len() as f32;
        let decoded = decode(&activations, codec, row.len(), &Limits::default()).unwrap();
        let squares = row.iter().zip(decoded).map(|(a, b)| (a - b) * (a - b));
        let error = squares.sum::<f32>() / row.len() as f32;
        assert!(
            bits < most_bits && error < most_error,
            "{codec}: {bits} bits, error {error}"
        );
    }
}

/// One row of `columns` columns in `codec`, byte by byte.
fn decode_row(codec: Codec, columns: u32, data: &[u8]) -> Result<Vec<f32>, CodecError> {
    let data = data.to_vec().into();
    let activations = Activations {
        codec: Some(codec.into()),
        rows: 1,
        columns,
        data,
    };
    decode(&activations, codec, columns as usize, &Limits::default())
}

#[test]
fn the_documented_layout_decodes_as_documented() {
    // No outliers; scale 0.5 (bf16 3f00).
    assert_eq!(
        decode_row(INT8, 3, &[0, 0, 0, 0x3f, 2, 0xff, 127]),
        Ok(vec![1.0, -0.5, 63.5])
    );
    // One outlier, column 1, 100.0; scale 0.5, minimum -1.0 (bf16 bf80); codes 1, 0, 15.
    let row = [
        1, 0, 1, 0, 0, 0, 0xc8, 0x42, 0, 0x3f, 0x80, 0xbf, 0x01, 0x0f,
    ];
    assert_eq!(decode_row(INT4, 3, &row), Ok(vec![-0.5, 100.0, 6.5]));
}

#[test]
fn the_documented_trellis_decodes_as_documented() {
    // Scale 0.5 (bf16 3f00). Even symbol 1 is 00, odd symbol 0 is 00, even symbol 16 is 111101.
    // State 0: 2 (00, sign 0), to state 2: -1 (00, sign 1), to state 3: 3 (01, sign 0), to state 1: 34, which is
    // 111101, gamma 010 for 2, sign 0.
    let codes = [0b0000_0101, 0b0111_1010, 0b1000_0000];
    let row = [&[0, 0x3f], &codes[..]].concat();
    assert_eq!(
        decode_row(Codec::Tcq4, 4, &row),
        Ok(vec![1.0, -0.5, 1.5, 17.0])
    );
}

#[test]
fn malformed_trellis_rows_are_refused_by_what_is_wrong() {
    let row = |scale: [u8; 2], codes: &[u8]| {
        decode_row(Codec::Tcq4, 4, &[&scale, codes].concat()).unwrap_err()
    };
    let good = [0b0000_0101, 0b0111_1010, 0b1000_0000];
    // Negative, infinite, NaN, and finite but beyond the largest.
    for scale in [[0, 0xbf], [0x80, 0x7f], [0xc0, 0x7f], [0x7f, 0x7f]] {
        let error = row(scale, &good);
        assert!(matches!(
            error,
            CodecError::GroupHeader { part: "scale", .. }
        ));
    }
    let padded = [good[0], good[1], good[2] | 1];
    assert_eq!(row([0, 0x3f], &padded), CodecError::Padding { row: 0 });
    // The escape and 20 zeros.
    let error = row([0, 0x3f], &[0b1111_0100, 0, 0]);
    assert_eq!(error, CodecError::Code { row: 0, column: 0 });
    // 2^20 + 30 times 2^120, and 19 codes of three zeros.
    let mut large = [0; 15];
    (large[0], large[1], large[2], large[5]) = (0x80, 0x7b, 0b1111_0100, 0b0100_0000);
    let error = decode_row(Codec::Tcq4, 20, &large).unwrap_err();
    assert!(
        matches!(
            error,
            CodecError::NotFinite {
                row: 0,
                column: 0,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn malformed_rows_are_refused_by_what_is_wrong() {
    let group = [0, 0x3f, 1, 1, 1];
    let row = |list: &[u8]| decode_row(INT8, 3, &[list, &group].concat()).unwrap_err();
    let two = [2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    assert!(matches!(
        row(&two[..8]),
        CodecError::OutlierCount { max: 1, got: 2, .. }
    ));
    assert!(matches!(
        row(&[1, 0, 3, 0, 0, 0, 0, 0]),
        CodecError::OutlierColumn { got: 3, .. }
    ));
    let infinite = [1, 0, 2, 0, 0, 0, 0x80, 0x7f];
    assert!(matches!(
        row(&infinite),
        CodecError::NotFinite { column: 2, .. }
    ));

    // Negative, negative zero, infinite, NaN and finite scales that overflow.
    for scale in [
        [0, 0xbf],
        [0, 0x80],
        [0x80, 0x7f],
        [0xc0, 0x7f],
        [0x7f, 0x7f],
    ] {
        let error = decode_row(INT8, 1, &[&[0, 0], &scale[..], &[1]].concat()).unwrap_err();
        assert!(
            matches!(error, CodecError::GroupHeader { part: "scale", .. }),
            "{error}"
        );
    }
    for minimum in [[0x80, 0x7f], [0x80, 0xff], [0xc0, 0x7f], [0x7f, 0xff]] {
        let error = decode_row(INT4, 1, &[&[0, 0, 0, 0], &minimum[..], &[1]].concat()).unwrap_err();
        assert!(
            matches!(
                error,
                CodecError::GroupHeader {
                    part: "minimum",
                    ..
                }
            ),
            "{error}"
        );
    }
    let error = decode_row(INT8, 1, &[0, 0, 0, 0, 0x80]).unwrap_err();
    assert!(matches!(error, CodecError::GroupCode { .. }));
    let error = decode_row(INT4, 1, &[0, 0, 0, 0, 0, 0, 0x10]).unwrap_err();
    assert!(matches!(error, CodecError::GroupCode { .. }));
}

#[test]
fn outliers_must_rise_by_column() {
    let columns = 128_u8;
    let mut row = vec![2, 0];
    row.extend([9, 0, 0, 0, 0, 0]);
    row.extend([9, 0, 0, 0, 0, 0]);
    for _ in 0..columns / 32 {
        row.extend([0; 34]);
    }
    let error = decode_row(INT8, columns.into(), &row).unwrap_err();
    assert!(matches!(
        error,
        CodecError::OutlierColumn {
            min: 10,
            got: 9,
            columns: 128,
            row: 0
        }
    ));
}

#[test]
fn encoded_rows_are_the_rows_each_alone() {
    // The second row has outliers, which change its length.
    let mut values = vec![0.25; 3 * 72];
    values[72 + 5] = 300.0;
    for name in [
        "f32", "f16", "bf16", "int8", "int4", "int8:5", "int4:5", "tcq4", "tcq3",
    ] {
        let codec: Codec = name.parse().unwrap();
        let together = encode(codec, &values, 72).unwrap();
        let alone: Vec<_> = values
            .chunks(72)
            .map(|row| encode(codec, row, 72).unwrap().data)
            .collect();
        let rows: Vec<&[u8]> = encoded_rows(&together, codec).collect();
        assert_eq!(rows, alone, "{name}");
    }
}
