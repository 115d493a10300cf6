//! The frames whose bytes lie in this folder, for the test that compares and the example that writes.

use headway_wire::message::{ClientFrame, ServerFrame};
use headway_wire::message::{
    Close, DraftLogprobs, FreeRun, GoAway, LogitBias, Open, Opened, Refusal, RefusalCode, Sampling,
    Step, StepResult, TokenIds, TokenLogprob, step,
};
use headway_wire::{Codec, PROTOCOL_VERSION, codec};

/// File name without `.bin`, and the frame.
pub fn client_frames() -> Vec<(String, ClientFrame)> {
    let codecs = [
        "f32", "f16", "bf16", "int8", "int4", "int8:5", "int4:5", "tcq4", "tcq3",
    ];
    let mut frames: Vec<_> = codecs.iter().map(|name| activations_step(name)).collect();
    frames.extend([
        ("open".to_owned(), open().into()),
        ("open_least".to_owned(), open_least().into()),
        ("open_with_prefix".to_owned(), open_with_prefix().into()),
        (
            "open_with_token_prefill".to_owned(),
            Open {
                prefill_token_ids: true,
                ..open()
            }
            .into(),
        ),
        ("step_token_ids".to_owned(), token_ids_step().into()),
        ("step_draft".to_owned(), draft_step().into()),
        ("step_ahead".to_owned(), ahead_step().into()),
        (
            "free_run".to_owned(),
            FreeRun {
                until_position: 300,
                stop_token_ids: vec![2, 128_009],
            }
            .into(),
        ),
        ("close".to_owned(), Close {}.into()),
    ]);
    frames
}

/// File name without `.bin`, and the frame.
pub fn server_frames() -> Vec<(String, ServerFrame)> {
    let opened = Opened {
        protocol_version: PROTOCOL_VERSION,
        session_id: 0x0123_4567_89ab_cdef,
        max_positions: 4096,
        max_step_positions: 512,
        ..Opened::default()
    };
    let opened_with_prefix = Opened {
        reused_positions: 288,
        max_draft_tokens: 8,
        ..opened
    };
    let refusal = Refusal::new(RefusalCode::NoCapacity, "all 64 sessions are in use");
    let go_away = GoAway {
        deadline_ms: 30_000,
        reason: "the tail is shutting down".to_owned(),
    };
    vec![
        ("opened".to_owned(), opened.into()),
        ("opened_with_prefix".to_owned(), opened_with_prefix.into()),
        (
            "opened_with_token_prefill".to_owned(),
            Opened {
                prefill_token_ids: true,
                ..opened
            }
            .into(),
        ),
        (
            "opened_with_steps_ahead".to_owned(),
            Opened {
                max_draft_tokens: 16,
                max_ahead_steps: 12,
                ..opened
            }
            .into(),
        ),
        (
            "opened_with_free_running".to_owned(),
            Opened {
                free_running: true,
                ..opened
            }
            .into(),
        ),
        ("step_result".to_owned(), step_result().into()),
        ("step_result_of_draft".to_owned(), draft_result().into()),
        (
            "step_result_passed_over".to_owned(),
            StepResult {
                positions: 300,
                passed_over: true,
                ..StepResult::default()
            }
            .into(),
        ),
        (
            "step_result_without_token".to_owned(),
            StepResult {
                positions: 2,
                ..StepResult::default()
            }
            .into(),
        ),
        (
            "refusal".to_owned(),
            refusal.with_retry_after_ms(1500).into(),
        ),
        ("go_away".to_owned(), go_away.into()),
    ]
}

/// Columns of the activations: two groups and a rest for every group size used here.
pub const COLUMNS: usize = 72;

/// Three rows: one even, one with an outlier, one of zeros. Exact in every arithmetic.
pub fn hidden_states() -> Vec<f32> {
    let mut values: Vec<f32> = (0..COLUMNS)
        .map(|column| column as f32 / 16.0 - 2.25)
        .collect();
    values.extend((0..COLUMNS).map(|column| {
        if column == 7 {
            -512.0
        } else {
            (column % 5) as f32 - 2.0
        }
    }));
    values.extend([0.0; COLUMNS]);
    values
}

fn activations_step(name: &str) -> (String, ClientFrame) {
    let codec: Codec = name.parse().expect("a codec's name");
    let activations = codec::encode(codec, &hidden_states(), COLUMNS).expect("finite rows");
    let step = Step {
        position: 300,
        input: Some(step::Input::Activations(activations)),
        sample: true,
        history: Some(TokenIds {
            ids: vec![1, 200, 49_151],
        }),
        draft: None,
        first_guess: None,
    };
    (format!("step_{}", name.replace(':', "_")), step.into())
}

fn token_ids_step() -> Step {
    let input = Some(step::Input::TokenIds(TokenIds {
        ids: vec![0, 1, 127, 128, 49_151, u32::MAX],
    }));
    Step {
        position: 0,
        input,
        sample: false,
        history: None,
        draft: None,
        first_guess: None,
    }
}

fn draft_step() -> Step {
    Step {
        position: 300,
        input: Some(step::Input::TokenIds(TokenIds {
            ids: vec![17, 0, 49_151],
        })),
        sample: true,
        history: None,
        draft: Some(TokenIds {
            ids: vec![0, 49_151],
        }),
        first_guess: None,
    }
}

fn ahead_step() -> Step {
    Step {
        first_guess: Some(17),
        ..draft_step()
    }
}

fn open() -> Open {
    Open {
        protocol_version: PROTOCOL_VERSION,
        model_digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
        split_layer: 12,
        codec: Some(Codec::Int8 { group_size: 64 }.into()),
        sampling: Some(Sampling {
            temperature: 0.75,
            top_k: 40,
            top_p: 0.9375,
            min_p: 0.0625,
            repetition_penalty: 1.125,
            presence_penalty: -0.5,
            frequency_penalty: 0.25,
            seed: u64::MAX,
            logit_bias: vec![LogitBias {
                token_id: 17,
                bias: -100.0,
            }],
            logprobs: true,
            top_logprobs: 5,
        }),
        max_positions: 4096,
        prompt_tokens: 300,
        resume_positions: 310,
        traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
        tracestate: "vendor=value".to_owned(),
        ..Open::default()
    }
}

fn open_with_prefix() -> Open {
    Open {
        prefix_digests: (0..64).collect::<Vec<u8>>().into(),
        keep_prefix: true,
        ..open_least()
    }
}

/// Greedy, token ids, a new session, no trace.
fn open_least() -> Open {
    Open {
        protocol_version: PROTOCOL_VERSION,
        model_digest: format!("sha256:{}", "f".repeat(64)),
        max_positions: 2,
        prompt_tokens: 1,
        ..Open::default()
    }
}

fn step_result() -> StepResult {
    StepResult {
        positions: 301,
        token_id: Some(0),
        logprob: Some(-0.25),
        top_logprobs: vec![
            TokenLogprob {
                token_id: 0,
                logprob: -0.25,
            },
            TokenLogprob {
                token_id: 9,
                logprob: -2.5,
            },
        ],
        compute_us: 1234,
        saved_us: 987,
        queue_us: 56,
        ..StepResult::default()
    }
}

fn draft_result() -> StepResult {
    let accepted = |logprob| DraftLogprobs {
        logprob,
        top_logprobs: vec![TokenLogprob {
            token_id: 17,
            logprob,
        }],
    };
    StepResult {
        positions: 303,
        draft_accepted: 2,
        draft_logprobs: vec![accepted(-0.5), accepted(-1.0)],
        draft_saved_us: 789,
        ..step_result()
    }
}
