use proptest::prelude::*;

use super::*;
use crate::codec::{self, Codec};
use crate::message::{
    Activations, DraftLogprobs, LogitBias, RefusalCode, Sampling, TokenIds, TokenLogprob, step,
};

fn open() -> Open {
    Open {
        protocol_version: crate::PROTOCOL_VERSION,
        model_digest: format!("sha256:{}", "0a".repeat(32)),
        split_layer: 3,
        codec: Some(Codec::F32.into()),
        sampling: Some(Sampling::default()),
        max_positions: 100,
        prompt_tokens: 10,
        ..Open::default()
    }
}

fn token_ids(count: u32) -> Step {
    let input = Some(step::Input::TokenIds(TokenIds {
        ids: (0..count).collect(),
    }));
    Step {
        input,
        ..Step::default()
    }
}

fn activations(rows: usize) -> Step {
    let activations = codec::encode(Codec::F16, &vec![1.0; rows * 4], 4).unwrap();
    Step {
        input: Some(step::Input::Activations(activations)),
        ..Step::default()
    }
}

fn client(frame: impl Into<ClientFrame>, limits: &Limits) -> Result<ClientFrame, FrameError> {
    decode_client_frame(encode_client_frame(&frame.into()), limits)
}

fn server(frame: impl Into<ServerFrame>) -> Result<ServerFrame, FrameError> {
    decode_server_frame(encode_server_frame(&frame.into()), &Limits::default())
}

/// The refusal's code and its text, which names the field or the limit.
fn refused(frame: impl Into<ClientFrame>, limits: &Limits) -> (RefusalCode, String) {
    let refusal = Refusal::from(&client(frame, limits).unwrap_err());
    (refusal.code(), refusal.message)
}

#[track_caller]
fn assert_refused(frame: impl Into<ClientFrame>, code: RefusalCode, names: &str) {
    let (got, message) = refused(frame, &Limits::default());
    assert_eq!(got, code, "{message}");
    assert!(message.contains(names), "{message:?} does not name {names}");
}

#[test]
fn what_is_within_the_limits_comes_back_as_it_went() {
    for frame in [
        open().into(),
        token_ids(5).into(),
        activations(3).into(),
        Close {}.into(),
    ] {
        let frame: ClientFrame = frame;
        assert_eq!(client(frame.clone(), &Limits::default()).unwrap(), frame);
    }
}

#[test]
fn decoded_activations_share_the_memory_of_the_frame() {
    let bytes = encode_client_frame(&activations(3).into());
    let frame = decode_client_frame(bytes.clone(), &Limits::default()).unwrap();
    let Some(client_frame::Message::Step(step)) = frame.message else {
        panic!("a step")
    };
    let Some(step::Input::Activations(Activations { data, .. })) = step.input else {
        panic!("activations")
    };
    assert!(bytes.as_ptr_range().contains(&data.as_ptr()));
}

#[test]
fn a_frame_of_one_byte_too_many_is_not_looked_into() {
    let limits = Limits {
        max_frame_bytes: 16,
        ..Limits::default()
    };
    let error = decode_client_frame(vec![0xff; 17].into(), &limits).unwrap_err();
    assert!(matches!(
        error,
        FrameError::TooLarge {
            max_bytes: 16,
            got_bytes: 17
        }
    ));
    assert_eq!(error.refusal_code(), RefusalCode::OverLimit);
    let error = decode_server_frame(vec![0xff; 16].into(), &limits).unwrap_err();
    assert_eq!(error.refusal_code(), RefusalCode::Malformed);
}

#[test]
fn frames_without_a_message_are_malformed() {
    assert_refused(
        ClientFrame::default(),
        RefusalCode::Malformed,
        "ClientFrame.message",
    );
    assert_refused(Step::default(), RefusalCode::Malformed, "Step.input");
    let error = server(ServerFrame::default()).unwrap_err();
    assert!(matches!(
        error,
        FrameError::Missing {
            part: "ServerFrame.message"
        }
    ));
}

#[test]
fn another_protocol_version_is_unsupported_whatever_else_is_wrong() {
    let open = Open {
        protocol_version: 2,
        ..Open::default()
    };
    assert_refused(
        open,
        RefusalCode::Unsupported,
        "Open.protocol_version must be 1, got 2",
    );
}

#[test]
fn digests_have_one_spelling() {
    let hex = "0a".repeat(32);
    for digest in [
        "",
        &hex,
        &format!("sha256:{}", &hex[1..]),
        &format!("sha256:{}", hex.to_uppercase()),
    ] {
        let open = Open {
            model_digest: digest.to_owned(),
            ..open()
        };
        assert_refused(open, RefusalCode::Malformed, "Open.model_digest");
    }
    let open = Open {
        model_digest: "x".repeat(1 << 20),
        ..open()
    };
    let (_, message) = refused(open, &Limits::default());
    assert!(message.len() < 300, "the peer's text is repeated at length");
}

#[test]
fn a_session_with_head_layers_needs_a_codec_it_knows() {
    assert_refused(
        Open {
            codec: None,
            ..open()
        },
        RefusalCode::Malformed,
        "Open.codec",
    );
    client(
        Open {
            codec: None,
            split_layer: 0,
            ..open()
        },
        &Limits::default(),
    )
    .unwrap();
    let codec = Some(crate::message::Codec {
        kind: 77,
        group_size: 0,
    });
    assert_refused(Open { codec, ..open() }, RefusalCode::Unsupported, "77");
    assert_refused(
        Open {
            split_layer: 1025,
            ..open()
        },
        RefusalCode::OverLimit,
        "max_split_layer",
    );
}

#[test]
fn positions_of_a_session_fit_together() {
    let limit = Limits::default().max_positions;
    let valid = Open {
        max_positions: limit,
        prompt_tokens: limit,
        resume_positions: limit,
        ..open()
    };
    client(valid, &Limits::default()).unwrap();
    assert_refused(
        Open {
            max_positions: limit + 1,
            ..open()
        },
        RefusalCode::OverLimit,
        "max_positions",
    );
    assert_refused(
        Open {
            max_positions: 0,
            ..open()
        },
        RefusalCode::Malformed,
        "Open.max_positions",
    );
    assert_refused(
        Open {
            prompt_tokens: 0,
            ..open()
        },
        RefusalCode::Malformed,
        "Open.prompt_tokens",
    );
    assert_refused(
        Open {
            prompt_tokens: 101,
            ..open()
        },
        RefusalCode::Malformed,
        "Open.prompt_tokens",
    );
    assert_refused(
        Open {
            resume_positions: 101,
            ..open()
        },
        RefusalCode::Malformed,
        "resume_positions",
    );
}

#[test]
fn trace_context_is_short_and_printable() {
    let traceparent = "0".repeat(56);
    assert_refused(
        Open {
            traceparent,
            ..open()
        },
        RefusalCode::OverLimit,
        "max_traceparent_bytes",
    );
    let tracestate = "0".repeat(513);
    assert_refused(
        Open {
            tracestate,
            ..open()
        },
        RefusalCode::OverLimit,
        "max_tracestate_bytes",
    );
    let traceparent = "00-\r\nforged: header".to_owned();
    assert_refused(
        Open {
            traceparent,
            ..open()
        },
        RefusalCode::Malformed,
        "Open.traceparent",
    );
}

#[test]
fn sampling_is_finite_and_in_range() {
    let with = |change: fn(&mut Sampling, f32), value| {
        let mut sampling = Sampling::default();
        change(&mut sampling, value);
        Open {
            sampling: Some(sampling),
            ..open()
        }
    };
    type Field = (&'static str, fn(&mut Sampling, f32), [f32; 2], [f32; 2]);
    let fields: [Field; 7] = [
        (
            "temperature",
            |s, v| s.temperature = v,
            [0.0, 100.0],
            [-0.1, 100.1],
        ),
        ("top_p", |s, v| s.top_p = v, [0.0, 1.0], [-0.1, 1.1]),
        ("min_p", |s, v| s.min_p = v, [0.0, 0.99], [-0.1, 1.0]),
        (
            "repetition_penalty",
            |s, v| s.repetition_penalty = v,
            [0.0, 100.0],
            [-1.0, 100.1],
        ),
        (
            "presence_penalty",
            |s, v| s.presence_penalty = v,
            [-100.0, 100.0],
            [-100.1, 100.1],
        ),
        (
            "frequency_penalty",
            |s, v| s.frequency_penalty = v,
            [-100.0, 100.0],
            [-100.1, 100.1],
        ),
        (
            "bias",
            |s, v| {
                s.logit_bias = vec![LogitBias {
                    token_id: 1,
                    bias: v,
                }]
            },
            [f32::MIN, f32::MAX],
            [f32::NAN, f32::NEG_INFINITY],
        ),
    ];
    for (name, change, valid, invalid) in fields {
        for value in valid {
            client(with(change, value), &Limits::default()).unwrap();
        }
        for value in invalid.into_iter().chain([f32::NAN, f32::INFINITY]) {
            assert_refused(with(change, value), RefusalCode::Malformed, name);
        }
    }
}

#[test]
fn lists_are_bounded_by_name() {
    let logit_bias = vec![LogitBias::default(); 1025];
    let sampling = Some(Sampling {
        logit_bias,
        ..Sampling::default()
    });
    assert_refused(
        Open { sampling, ..open() },
        RefusalCode::OverLimit,
        "max_logit_bias is 1024, got 1025",
    );
    let sampling = Some(Sampling {
        top_logprobs: 21,
        ..Sampling::default()
    });
    assert_refused(
        Open { sampling, ..open() },
        RefusalCode::OverLimit,
        "max_top_logprobs",
    );
    assert_refused(
        token_ids(2049),
        RefusalCode::OverLimit,
        "max_step_positions is 2048, got 2049",
    );
    assert_refused(
        activations(2049),
        RefusalCode::OverLimit,
        "max_step_positions is 2048, got 2049",
    );
}

#[test]
fn a_step_stays_within_the_positions() {
    let limits = Limits {
        max_positions: 10,
        ..Limits::default()
    };
    client(
        Step {
            position: 8,
            ..token_ids(2)
        },
        &limits,
    )
    .unwrap();
    let (code, message) = refused(
        Step {
            position: 9,
            ..token_ids(2)
        },
        &limits,
    );
    assert_eq!(
        (code, message.as_str()),
        (RefusalCode::OverLimit, "max_positions is 10, got 11")
    );
    assert_refused(
        Step {
            position: u32::MAX,
            ..token_ids(2)
        },
        RefusalCode::OverLimit,
        "max_positions",
    );
    assert_refused(token_ids(0), RefusalCode::Malformed, "Step.input");
}

#[test]
fn activations_of_an_impossible_size_do_not_reach_the_session() {
    let mut step = activations(3);
    if let Some(step::Input::Activations(activations)) = &mut step.input {
        activations.rows = 4;
    }
    assert_refused(step, RefusalCode::Malformed, "take 32 to 32 bytes, got 24");
    let empty = Activations {
        codec: Some(Codec::F32.into()),
        ..Activations::default()
    };
    let step = Step {
        input: Some(step::Input::Activations(empty)),
        ..Step::default()
    };
    assert_refused(step, RefusalCode::Malformed, "rows");
}

#[test]
fn history_is_one_token_id_for_each_row() {
    let history = |count: u32| {
        Some(TokenIds {
            ids: vec![1; count as usize],
        })
    };
    client(
        Step {
            history: history(3),
            ..activations(3)
        },
        &Limits::default(),
    )
    .unwrap();
    let step = Step {
        history: history(2),
        ..activations(3)
    };
    assert_refused(step, RefusalCode::Malformed, "Step.history");
    let step = Step {
        history: history(3),
        ..token_ids(3)
    };
    assert_refused(step, RefusalCode::Malformed, "Step.history");
}

#[test]
fn answers_of_the_tail_are_checked_too() {
    let opened = Opened {
        protocol_version: 1,
        session_id: 1,
        max_positions: 9,
        max_step_positions: 9,
        ..Opened::default()
    };
    server(opened).unwrap();
    let result = StepResult {
        positions: 1,
        token_id: Some(0),
        ..StepResult::default()
    };
    server(result.clone()).unwrap();
    let wrong: [ServerFrame; 10] = [
        Opened {
            protocol_version: 0,
            ..opened
        }
        .into(),
        Opened {
            max_positions: 0,
            ..opened
        }
        .into(),
        Opened {
            max_positions: u32::MAX,
            ..opened
        }
        .into(),
        Opened {
            max_step_positions: 0,
            ..opened
        }
        .into(),
        StepResult {
            positions: 0,
            ..result.clone()
        }
        .into(),
        StepResult {
            logprob: Some(f32::NAN),
            ..result.clone()
        }
        .into(),
        StepResult {
            logprob: Some(-1.0),
            token_id: None,
            ..result.clone()
        }
        .into(),
        StepResult {
            top_logprobs: vec![TokenLogprob::default(); 21],
            ..result
        }
        .into(),
        Refusal {
            message: "x".repeat(4097),
            ..Refusal::new(RefusalCode::Draining, "")
        }
        .into(),
        GoAway {
            deadline_ms: 1,
            reason: "x".repeat(4097),
        }
        .into(),
    ];
    for frame in wrong {
        assert!(server(frame.clone()).is_err(), "{frame:?}");
    }
}

#[test]
fn a_refusal_has_a_code_that_this_version_knows() {
    let unknown = Refusal {
        code: 99,
        ..Refusal::default()
    };
    assert!(matches!(
        server(unknown),
        Err(FrameError::Unsupported { got: 99, .. })
    ));
    assert!(matches!(
        server(Refusal::default()),
        Err(FrameError::Missing {
            part: "Refusal.code"
        })
    ));
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        let _ = decode_client_frame(bytes.clone(), &Limits::default());
        let _ = decode_server_frame(bytes, &Limits::default());
    }

    /// Most random bytes end at the first tag; these reach the checks.
    #[test]
    fn no_change_of_a_byte_makes_a_decoder_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for frame in [ClientFrame::from(open()), token_ids(5).into(), activations(3).into()] {
            let mut bytes = encode_client_frame(&frame).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(frame) = decode_client_frame(bytes.into(), &Limits::default()) {
                let again = client(frame.clone(), &Limits::default()).unwrap();
                prop_assert_eq!(again, frame);
            }
        }
    }
}

#[test]
fn prefix_digests_are_whole_and_within_their_limit() {
    let with = |bytes: usize| Open {
        prefix_digests: vec![7; bytes].into(),
        ..open()
    };
    assert!(client(with(64), &Limits::default()).is_ok());
    assert_refused(with(65), RefusalCode::Malformed, "Open.prefix_digests");
    let limits = Limits {
        max_prefix_digests: 1,
        ..Limits::default()
    };
    let (code, message) = refused(with(64), &limits);
    assert_eq!(code, RefusalCode::OverLimit);
    assert!(
        message.contains("max_prefix_digests is 1, got 2"),
        "{message}"
    );
}

/// A step of `rows` rows, the last ones guesses.
fn draft(rows: u32, draft: Vec<u32>) -> Step {
    Step {
        sample: true,
        draft: Some(TokenIds { ids: draft }),
        ..token_ids(rows)
    }
}

#[test]
fn a_draft_has_a_token_id_for_each_row_but_the_first() {
    assert!(client(draft(3, vec![1, 2]), &Limits::default()).is_ok());
    for wrong in [
        draft(1, vec![]),
        draft(3, vec![1]),
        draft(2, vec![1, 2]),
        // Not what the rows say.
        draft(3, vec![1, 3]),
    ] {
        assert_refused(wrong, RefusalCode::Malformed, "Step.draft");
    }
    let unsampled = Step {
        sample: false,
        ..draft(3, vec![1, 2])
    };
    assert_refused(unsampled, RefusalCode::Malformed, "Step.sample");
    let of_activations = Step {
        sample: true,
        draft: Some(TokenIds { ids: vec![5, 6] }),
        ..activations(3)
    };
    assert!(client(of_activations.clone(), &Limits::default()).is_ok());
    let other_history = Step {
        history: Some(TokenIds { ids: vec![4, 5, 7] }),
        ..of_activations
    };
    assert_refused(other_history, RefusalCode::Malformed, "Step.draft");
    let limits = Limits {
        max_draft_tokens: 1,
        ..Limits::default()
    };
    let (code, message) = refused(draft(3, vec![1, 2]), &limits);
    assert_eq!(code, RefusalCode::OverLimit);
    assert!(message.contains("max_draft_tokens"), "{message}");
}

#[test]
fn how_far_a_tail_runs_free_is_bounded() {
    let free_run = |until_position, stops| FreeRun {
        until_position,
        stop_token_ids: vec![2; stops],
    };
    let limits = Limits {
        max_positions: 100,
        ..Limits::default()
    };
    assert!(client(free_run(100, 64), &limits).is_ok());
    for (too_far, limit) in [
        (free_run(101, 0), "max_positions"),
        (free_run(9, 65), "max_stop_token_ids"),
    ] {
        let (code, message) = refused(too_far, &limits);
        assert_eq!(code, RefusalCode::OverLimit);
        assert!(message.contains(limit), "{message}");
    }
}

#[test]
fn a_step_ahead_has_guesses_for_rows_and_nothing_else() {
    let ahead = |step: Step| Step {
        first_guess: Some(0),
        ..step
    };
    assert!(client(ahead(draft(3, vec![1, 2])), &Limits::default()).is_ok());
    let one_row = Step {
        sample: true,
        ..token_ids(1)
    };
    assert!(client(ahead(one_row.clone()), &Limits::default()).is_ok());
    assert_refused(ahead(token_ids(1)), RefusalCode::Malformed, "Step.sample");
    let rows_without_guesses = Step {
        sample: true,
        ..token_ids(2)
    };
    assert_refused(
        ahead(rows_without_guesses),
        RefusalCode::Malformed,
        "Step.draft",
    );
    let other = Step {
        first_guess: Some(7),
        ..one_row
    };
    assert_refused(other, RefusalCode::Malformed, "Step.first_guess");
}

#[test]
fn a_result_of_a_step_that_was_passed_over_has_no_token() {
    let passed_over = StepResult {
        positions: 3,
        passed_over: true,
        ..StepResult::default()
    };
    assert!(server(passed_over.clone()).is_ok());
    let with_token = StepResult {
        token_id: Some(1),
        ..passed_over
    };
    assert!(server(with_token).is_err());
}

#[test]
fn a_tail_that_reuses_too_much_or_reports_too_little_is_not_believed() {
    let opened = |reused_positions| Opened {
        protocol_version: crate::PROTOCOL_VERSION,
        max_positions: 64,
        max_step_positions: 1,
        reused_positions,
        ..Opened::default()
    };
    assert!(server(opened(32)).is_ok());
    assert!(server(opened(31)).is_err());
    assert!(server(opened(64)).is_err());
    let result = StepResult {
        positions: 3,
        token_id: Some(1),
        draft_accepted: 2,
        ..StepResult::default()
    };
    assert!(server(result.clone()).is_ok());
    let reports = vec![DraftLogprobs::default()];
    let one_report = StepResult {
        draft_logprobs: reports,
        ..result.clone()
    };
    assert!(server(one_report).is_err());
    let no_token = StepResult {
        token_id: None,
        ..result
    };
    assert!(server(no_token).is_err());
}
