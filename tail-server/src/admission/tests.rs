use headway_model::config::{Architecture, RopeLayout, RopeScaling};
use headway_model::manifest::{Artifact, Identity, SplitRange};
use headway_model::weights::WeightDtype;
use headway_model::{ModelConfig, Quantization};
use headway_wire::message::LogitBias;
use headway_wire::{PROTOCOL_VERSION, message};

use super::*;

/// A model of 8 layers, hidden size 64, vocabulary 100; splits 2 to 6; f32 and int8; sessions of 1000.
pub(crate) fn admission(min: usize) -> Admission {
    Admission::new(manifest(min), codecs(), 8)
}

/// The same where token ids may not leave devices.
pub(crate) fn admission_without_token_upload() -> Admission {
    let manifest = Manifest {
        token_upload: false,
        ..manifest(1)
    };
    Admission::new(manifest, codecs(), 8)
}

fn codecs() -> Vec<Codec> {
    vec![Codec::F32, Codec::Int8 { group_size: 32 }]
}

fn manifest(min: usize) -> Manifest {
    let config = ModelConfig {
        architecture: Architecture::Llama,
        num_layers: 8,
        hidden_size: 64,
        intermediate_size: 128,
        num_attention_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 100,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_layout: RopeLayout::Half,
        rope_scaling: RopeScaling::None,
        max_positions: 4096,
        tied_embeddings: true,
        sliding_window: None,
        sliding_window_start_layer: 0,
    };
    let identity = Identity {
        config,
        tokenizer: Artifact {
            name: "tokenizer".to_owned(),
            bytes: 0,
            digest: String::new(),
        },
        parts: Vec::new(),
        chat_template: None,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    };
    Manifest {
        name: "test".to_owned(),
        model_digest: identity.digest(),
        identity,
        protocol_version: PROTOCOL_VERSION,
        split: SplitRange {
            min,
            max: 6,
            default: min,
        },
        dtype: WeightDtype::Native,
        codecs: codecs().iter().map(ToString::to_string).collect(),
        quantizations: vec![Quantization::None],
        max_positions: 1000,
        token_upload: true,
        on_device_answers: false,
        free_running: true,
    }
}

/// An `Open` that [`admission`] admits.
pub(crate) fn open(admission: &Admission, split_layer: u32) -> Open {
    Open {
        protocol_version: PROTOCOL_VERSION,
        model_digest: admission.manifest.model_digest.clone(),
        split_layer,
        codec: Some(Codec::F32.into()),
        max_positions: 100,
        prompt_tokens: 10,
        ..Open::default()
    }
}

fn refused(admission: &Admission, open: &Open) -> AdmissionError {
    match admission.admit(open) {
        Ok(_) => panic!("admitted"),
        Err(error) => error,
    }
}

#[test]
fn a_session_is_admitted_with_its_layers() {
    let admission = admission(2);
    let admitted = admission
        .admit(&open(&admission, 6))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(admitted.layers, LayerRange::new(6, 8));
}

fn reusable(open: &Open) -> usize {
    let admitted = admission(2).admit(open);
    admitted
        .unwrap_or_else(|error| panic!("{error}"))
        .prefix
        .len()
}

#[test]
fn a_row_is_left_to_be_sent_of_a_prefix_that_is_reused() {
    let admission = admission(2);
    let offer = |prompt_tokens, resume_positions| Open {
        max_positions: 200,
        prompt_tokens,
        resume_positions,
        prefix_digests: vec![1; 6 * 32].into(),
        ..open(&admission, 4)
    };
    assert_eq!(reusable(&offer(64, 0)), 1);
    assert_eq!(reusable(&offer(65, 0)), 2);
    assert_eq!(reusable(&offer(65, 97)), 3);
    assert_eq!(reusable(&offer(200, 0)), 6);
    // The sampler would not see the tokens of what is not sent.
    let with_penalty = Open {
        sampling: Some(Sampling {
            presence_penalty: 1.0,
            ..Sampling::default()
        }),
        ..offer(200, 0)
    };
    assert_eq!(reusable(&with_penalty), 0);
}

#[test]
fn another_digest_is_refused_with_both_digests() {
    let admission = admission(2);
    let other = format!("sha256:{}", "0".repeat(64));
    let error = refused(
        &admission,
        &Open {
            model_digest: other.clone(),
            ..open(&admission, 4)
        },
    );
    let message = error.to_string();
    assert!(
        message.contains(&other) && message.contains(&admission.manifest.model_digest),
        "{message}"
    );
}

#[test]
fn split_layers_outside_the_range_are_refused_with_the_range() {
    let admission = admission(2);
    for split_layer in [0, 1, 7, 8, 1024] {
        let error = refused(&admission, &open(&admission, split_layer));
        assert!(
            matches!(error, AdmissionError::SplitLayer { min: 2, max: 6, .. }),
            "{split_layer}: {error}"
        );
    }
}

#[test]
fn token_ids_that_may_not_leave_the_device_are_refused_with_the_way_out() {
    let admission = admission_without_token_upload();
    let error = refused(&admission, &open(&admission, 0));
    assert!(error.to_string().contains("split layers 1 to 6"), "{error}");
    assert!(admission.admit(&open(&admission, 1)).is_ok());
}

#[test]
fn penalties_are_refused_where_token_ids_may_not_leave_the_device() {
    let admission = admission_without_token_upload();
    let with = |sampling: Sampling| Open {
        sampling: Some(sampling),
        ..open(&admission, 4)
    };
    let penalties = [
        Sampling {
            repetition_penalty: 1.1,
            ..Sampling::default()
        },
        Sampling {
            presence_penalty: 0.5,
            ..Sampling::default()
        },
        Sampling {
            frequency_penalty: 0.5,
            ..Sampling::default()
        },
    ];
    for penalty in penalties {
        let error = refused(&admission, &with(penalty));
        assert!(matches!(error, AdmissionError::HistoryUpload), "{error}");
    }
    let draws = Sampling {
        temperature: 1.0,
        top_k: 5,
        ..Sampling::default()
    };
    assert!(admission.admit(&with(draws)).is_ok());
}

#[test]
fn a_codec_that_is_not_offered_is_refused_with_those_that_are() {
    let admission = admission(2);
    let codec = Some(message::Codec::from(Codec::F16));
    let error = refused(
        &admission,
        &Open {
            codec,
            ..open(&admission, 4)
        },
    );
    assert!(error.to_string().contains("f32, int8"), "{error}");
}

#[test]
fn token_ids_need_no_codec() {
    let admission = admission(0);
    let admitted = admission.admit(&Open {
        codec: None,
        ..open(&admission, 0)
    });
    assert!(admitted.is_ok_and(|admitted| admitted.codec.is_none()));
}

#[test]
fn more_positions_than_the_tail_has_are_refused() {
    let admission = admission(2);
    let error = refused(
        &admission,
        &Open {
            max_positions: 1001,
            ..open(&admission, 4)
        },
    );
    assert!(matches!(
        error,
        AdmissionError::Positions {
            max: 1000,
            got: 1001
        }
    ));
}

#[test]
fn a_logit_bias_outside_the_vocabulary_is_refused() {
    let admission = admission(2);
    let logit_bias = vec![LogitBias {
        token_id: 100,
        bias: 1.0,
    }];
    let sampling = Some(Sampling {
        logit_bias,
        ..Sampling::default()
    });
    let error = refused(
        &admission,
        &Open {
            sampling,
            ..open(&admission, 4)
        },
    );
    assert!(matches!(
        error,
        AdmissionError::LogitBias {
            vocab_size: 100,
            got: 100
        }
    ));
}

#[test]
fn absent_sampling_fields_are_off() {
    let admission = admission(2);
    let params = admission
        .sampling_params(Some(&Sampling::default()))
        .unwrap();
    assert_eq!(params, SamplingParams::default());
}

#[test]
fn the_frame_limit_fits_the_largest_step_and_not_much_more() {
    let admission = admission(2);
    let limits = admission.limits();
    let largest_step = limits.max_step_positions as usize * (64 * 4 + 5);
    assert!(limits.max_frame_bytes >= largest_step);
    assert!(limits.max_frame_bytes <= largest_step + FRAME_OVERHEAD_BYTES);
}

#[test]
fn a_wide_model_takes_shorter_steps_and_keeps_the_frame_limit() {
    let mut manifest = manifest(2);
    manifest.identity.config.hidden_size = 32_768;
    let limits = frame_limits(&manifest, &[Codec::F32]);
    assert!(limits.max_frame_bytes <= Limits::default().max_frame_bytes);
    assert!((1..512).contains(&limits.max_step_positions));
}

#[test]
fn token_ids_beside_head_layers_need_all_layers_and_leave_to_send_them() {
    let asked = |admission: &Admission| {
        let open = Open {
            prefill_token_ids: true,
            ..open(admission, 4)
        };
        let admitted = admission
            .admit(&open)
            .unwrap_or_else(|error| panic!("{error}"));
        (admitted.prefill_token_ids, admitted.layers)
    };
    assert_eq!(asked(&admission(0)), (true, LayerRange::new(0, 8)));
    assert_eq!(asked(&admission(1)), (false, LayerRange::new(4, 8)));
    assert_eq!(
        asked(&admission_without_token_upload()),
        (false, LayerRange::new(4, 8))
    );
}

#[test]
fn behind_token_ids_no_hidden_states_are_reused() {
    let admission = admission(0);
    let open = Open {
        prefill_token_ids: true,
        prompt_tokens: 40,
        resume_positions: 90,
        prefix_digests: vec![7; 2 * 32].into(),
        ..open(&admission, 4)
    };
    let reused = |open: &Open| {
        let admitted = admission.admit(open);
        admitted
            .unwrap_or_else(|error| panic!("{error}"))
            .prefix
            .len()
    };
    assert_eq!(reused(&open), 1);
    let all_hidden = Open {
        prefill_token_ids: false,
        ..open
    };
    assert_eq!(reused(&all_hidden), 2);
}
