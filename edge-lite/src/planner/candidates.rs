//! What can be done under a policy with what a tail offers.

use headway_model::quantization::Quantization;
use headway_wire::Codec;

use super::{Plan, PlannerInput, PromptForm};
use crate::prefill::Prefill;

/// Prompt positions sent at a time that are tried.
const CHUNKS: [usize; 4] = [32, 64, 128, 256];

/// What can be done with this split layer under the policy; or why nothing can.
pub(super) fn candidates(
    input: &PlannerInput<'_>,
    split_layer: usize,
) -> Result<Vec<Plan>, String> {
    let (manifest, policy) = (input.manifest, input.policy);
    let (num_layers, split) = (manifest.identity.config.num_layers, manifest.split);
    let plan = |prefill, codec, head_quantization, prompt_chunk_positions| Plan {
        split_layer,
        prefill,
        codec,
        head_quantization,
        prompt_chunk_positions,
        draft_tokens: 0,
    };
    let is_here = split_layer == num_layers;
    if is_here && !manifest.allows_on_device_answers() {
        return Err("the tail does not allow answers without it".to_owned());
    }
    if !is_here && !(split.min..=split.max).contains(&split_layer) {
        return Err(format!("the tail takes {} to {}", split.min, split.max));
    }
    let codecs = allowed_codecs(input);
    // Without hidden states the codec is a name that is sent; the first allowed one is as good as any.
    let any_codec = codecs.first().copied();
    if split_layer == 0 {
        if !manifest.token_upload {
            return Err("the tail takes no token ids".to_owned());
        }
        let codec = any_codec.or_else(|| manifest.codecs.first()?.parse().ok());
        let plan = |chunk| {
            plan(
                PromptForm::TokenIds,
                codec.unwrap_or(Codec::F32),
                Quantization::None,
                chunk,
            )
        };
        return Ok(CHUNKS.map(plan).into());
    }
    let allowed = |quantization: &&Quantization| policy.quantizations.contains(quantization);
    let quantizations: Vec<Quantization> = manifest
        .quantizations
        .iter()
        .filter(allowed)
        .copied()
        .collect();
    if quantizations.is_empty() {
        let offered: Vec<&str> = manifest.quantizations.iter().map(|of| of.name()).collect();
        let offered = offered.join(", ");
        return Err(format!(
            "no head quantisation is allowed of those offered: {offered}"
        ));
    }
    let forms = prompt_forms(input);
    if forms.is_empty() && !is_here {
        return Err("the tail takes no prompt as token ids beside layers here".to_owned());
    }
    let mut plans = Vec::new();
    for quantization in quantizations {
        if is_here {
            let codec = any_codec.or_else(|| manifest.codecs.first()?.parse().ok());
            let codec = codec.unwrap_or(Codec::F32);
            plans.push(plan(PromptForm::Nothing, codec, quantization, CHUNKS[3]));
            continue;
        }
        for codec in &codecs {
            for form in &forms {
                plans.extend(CHUNKS.map(|chunk| plan(*form, *codec, quantization, chunk)));
            }
        }
    }
    if plans.is_empty() {
        let offered = manifest.codecs.join(", ");
        return Err(format!("no codec is allowed of those offered: {offered}"));
    }
    Ok(plans)
}

/// What the prompt of a split session may go up as; of equals, the first one is chosen, which costs the tail less.
fn prompt_forms(input: &PlannerInput<'_>) -> Vec<PromptForm> {
    let is_offered = input.manifest.allows_token_prefill();
    match input.policy.prefill {
        Prefill::HiddenStates => vec![PromptForm::HiddenStates],
        Prefill::TokenIds if is_offered => vec![PromptForm::TokenIds],
        Prefill::TokenIds => Vec::new(),
        Prefill::Auto if is_offered => vec![PromptForm::HiddenStates, PromptForm::TokenIds],
        Prefill::Auto => vec![PromptForm::HiddenStates],
    }
}

/// Allowed by the policy and offered by the tail, which offers kinds: group sizes are the device's choice.
fn allowed_codecs(input: &PlannerInput<'_>) -> Vec<Codec> {
    let offered = input.manifest.codecs.iter();
    let offered: Vec<_> = offered
        .filter_map(|name| name.parse::<Codec>().ok())
        .map(|codec| std::mem::discriminant(&codec))
        .collect();
    let allowed = input.policy.codecs.iter();
    allowed
        .filter(|codec| offered.contains(&std::mem::discriminant(*codec)))
        .copied()
        .collect()
}
