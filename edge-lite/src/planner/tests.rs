//! Plans for devices, links and tails that are known.

use headway_model::tail_load::RowCosts;
use proptest::prelude::*;

use super::*;
use crate::profile::{DeviceFacts, LayerTimes, Power, ProfileKey, VERSION};
use crate::test_tail::TestTail;

/// All that a plan is made from, owned.
#[derive(Clone, Debug)]
struct World {
    manifest: Manifest,
    load: TailLoad,
    profile: Profile,
    link: Link,
    workload: Workload,
    policy: Policy,
}

impl World {
    /// A model of four layers; a device that takes 2 ms a layer and a tail that takes 1.
    fn new() -> Self {
        let tail = TestTail::new();
        let mut manifest = tail.manifest;
        manifest.on_device_answers = true;
        manifest.max_positions = 4096;
        manifest.identity.config.hidden_size = 1024;
        let quantizations = [Quantization::None, Quantization::Q4_0];
        manifest.quantizations = quantizations.into();
        let costs = RowCosts {
            prefill_row_layer_us: Some(200.0),
            decode_row_layer_us: Some(1000.0),
            decode_step_layer_us: Some(1000.0),
            sampled_row_us: Some(500.0),
            queue_us: Some(50.0),
        };
        Self {
            manifest,
            load: TailLoad {
                max_draft_tokens: 8,
                costs,
                ..TailLoad::default()
            },
            profile: Profile {
                version: VERSION,
                key: ProfileKey {
                    model_digest: "sha256:00".to_owned(),
                    place: "cpu".to_owned(),
                    threads: 1,
                },
                model_name: "tiny".to_owned(),
                measured_at_seconds: 0,
                device: DeviceFacts {
                    memory_total_bytes: 1 << 34,
                    memory_available_bytes: 1 << 33,
                    physical_cores: None,
                    logical_cores: 1,
                    cpu_features: Vec::new(),
                    accelerator: "CPU".to_owned(),
                    power: Power::Unknown,
                },
                layers: vec![
                    times(Quantization::None, 2.0),
                    times(Quantization::Q4_0, 1.0),
                ],
                tails: Vec::new(),
            },
            link: Link {
                rtt_ms: Some(20.0),
                up_bits_per_second: Some(20e6),
                ..Link::default()
            },
            workload: Workload::default(),
            policy: Policy::default(),
        }
    }

    fn plan(&self) -> Result<Planned, PlanError> {
        plan(&PlannerInput {
            manifest: &self.manifest,
            load: &self.load,
            profile: &self.profile,
            link: self.link,
            open_round_trips: 3,
            workload: self.workload,
            policy: &self.policy,
        })
    }

    fn planned(&self) -> Planned {
        self.plan().unwrap()
    }

    /// What is predicted with this split layer.
    fn of(&self, split_layer: usize) -> Prediction {
        let planned = self.planned();
        let found = planned
            .by_split_layer
            .iter()
            .find(|alternative| alternative.plan.split_layer == split_layer);
        found.unwrap().prediction
    }
}

fn times(quantization: Quantization, layer_ms: f64) -> LayerTimes {
    let template = crate::profile::tests::times();
    let mut times = LayerTimes {
        held: crate::profile::Held {
            quantization,
            ..template.held
        },
        ..template
    };
    for time in &mut times.decode {
        time.ms *= layer_ms;
    }
    for time in &mut times.prefill {
        time.ms *= layer_ms;
    }
    times.prefill_row_position_ms *= layer_ms;
    times
}

#[test]
fn a_fast_device_answers_alone_and_a_slow_one_leaves_it_to_the_tail() {
    let mut world = World::new();
    world.profile.layers = vec![times(Quantization::None, 0.1)];
    assert_eq!(world.planned().best.route, Route::Device);
    world.profile.layers = vec![times(Quantization::None, 50.0)];
    assert_eq!(world.planned().best.route, Route::Cloud);
}

#[test]
fn a_price_on_the_tails_compute_moves_layers_to_the_device() {
    let mut world = World::new();
    world.manifest.on_device_answers = false;
    let at = |cost_weight| {
        let mut world = world.clone();
        world.policy.objective = Objective::Weighted { cost_weight };
        world.planned().best
    };
    let (free, dear) = (at(0.0), at(100.0));
    assert_eq!((free.plan.split_layer, dear.plan.split_layer), (0, 3));
    assert!(dear.prediction.tail_ms < free.prediction.tail_ms);
}

#[test]
fn a_split_is_chosen_where_it_is_faster_by_more_than_predictions_err() {
    let mut world = World::new();
    world.profile.layers = vec![times(Quantization::None, 0.1)];
    world.manifest.on_device_answers = false;
    let fastest_split = |world: &World| {
        let planned = world.planned();
        let splits = planned.by_split_layer.iter();
        let splits = splits.filter(|of| of.route == Route::Split);
        let totals = splits.map(|of| of.prediction.total_ms);
        totals.fold(f64::INFINITY, f64::min)
    };
    // The faster the uplink, the faster the splits.
    let mut chosen = Vec::new();
    for megabits in 1..200 {
        world.link.up_bits_per_second = Some(f64::from(megabits) * 1e6);
        let (best, cloud) = (world.planned().best, world.of(0).total_ms);
        let gain = cloud / fastest_split(&world);
        assert_eq!(best.route == Route::Split, gain > SPLIT_CAUTION, "{gain}");
        let says_why = world.planned().explain().contains("by too little");
        assert_eq!(says_why, gain > 1.0 && gain <= SPLIT_CAUTION);
        chosen.push((best.route, gain > 1.0));
    }
    assert!(chosen.contains(&(Route::Cloud, true)) && chosen.contains(&(Route::Split, true)));
}

#[test]
fn nothing_lossy_is_chosen_that_is_not_allowed_by_name() {
    let mut world = World::new();
    world.manifest.split.min = 1;
    world.manifest.on_device_answers = false;
    for alternative in world.planned().by_split_layer {
        assert_eq!(alternative.plan.codec, Codec::F32);
        assert_eq!(alternative.plan.head_quantization, Quantization::None);
    }
    let int8 = Codec::Int8 { group_size: 32 };
    world.policy.codecs.push(int8);
    world.policy.quantizations.push(Quantization::Q4_0);
    let plan = world.planned().best.plan;
    assert_eq!(
        (plan.codec, plan.head_quantization),
        (int8, Quantization::Q4_0)
    );
    // Allowed, and not offered.
    world.policy.codecs = vec![Codec::F16];
    let error = world.plan().unwrap_err().to_string();
    assert!(
        error.contains("no codec is allowed of those offered: f32, int8"),
        "{error}"
    );
}

#[test]
fn what_is_not_possible_says_why() {
    let mut world = World::new();
    world.manifest.on_device_answers = false;
    world.manifest.token_upload = false;
    world.manifest.split.max = 2;
    let reasons: Vec<String> = world
        .planned()
        .impossible
        .iter()
        .map(ToString::to_string)
        .collect();
    let expected = [
        "split layer 0: the tail takes no token ids",
        "split layer 3: the tail takes 0 to 2",
        "split layer 4: the tail does not allow answers without it",
    ];
    assert_eq!(reasons, expected);
    world.profile.device.memory_available_bytes = 5500;
    let error = world.plan().unwrap_err().to_string();
    assert!(
        error.contains("need more memory than is available"),
        "{error}"
    );
}

#[test]
fn without_memory_for_all_layers_fewer_run_here() {
    let mut world = World::new();
    world.manifest.token_upload = false;
    world.profile.layers = vec![times(Quantization::None, 0.1)];
    assert_eq!(world.planned().best.route, Route::Device);
    let memory = |world: &World, layers| world.of(layers).memory_bytes;
    world.profile.device.memory_available_bytes = memory(&world, 3) * 10 / 9 + 1;
    let planned = world.planned();
    assert_eq!(planned.by_split_layer.len(), 3);
    assert_eq!(planned.best.plan.split_layer, 3);
}

#[test]
fn a_bound_is_kept_with_the_least_compute_of_the_tail() {
    let mut world = World::new();
    world.manifest.on_device_answers = false;
    let fastest = world.planned().best.prediction;
    let latency_ms = world.of(2).total_ms;
    world.policy.objective = Objective::Bound { latency_ms };
    let planned = world.planned();
    assert_eq!(planned.keeps_bound, Some(true));
    assert!(planned.best.prediction.total_ms <= latency_ms);
    assert_eq!(planned.best.plan.split_layer, 2);
    world.policy.objective = Objective::Bound { latency_ms: 1.0 };
    let planned = world.planned();
    assert_eq!(planned.keeps_bound, Some(false));
    assert_eq!(planned.best.prediction.total_ms, fastest.total_ms);
    assert!(planned.to_string().contains("no plan keeps the bound"));
}

#[test]
fn guesses_that_are_likely_right_are_made_and_others_are_not() {
    let mut world = World::new();
    world.manifest.on_device_answers = false;
    assert_eq!(world.planned().best.plan.draft_tokens, 0);
    let plain = world.planned().best.prediction;
    world.workload.right_share = 0.8;
    let best = world.planned().best;
    assert!((1..=8).contains(&best.plan.draft_tokens), "{best:?}");
    assert!(best.prediction.token_ms < plain.token_ms / 1.5);
    world.load.max_draft_tokens = 0;
    assert_eq!(world.planned().best.prediction, plain);
}

/// A long prompt over an uplink on which a row of hidden states takes longer than all layers of the tail on a prompt's row,
/// and less than its layers on a row of the answer.
fn slow_uplink() -> World {
    let mut world = World::new();
    world.manifest.on_device_answers = false;
    world.profile.layers = vec![times(Quantization::None, 0.01)];
    world.workload.prompt_tokens = 2000;
    world.workload.answer_tokens = 2000;
    world.link.rtt_ms = Some(1.0);
    world.link.up_bits_per_second = Some(20e6);
    world
}

#[test]
fn a_slow_uplink_and_a_long_prompt_make_it_go_up_as_token_ids() {
    let mut world = slow_uplink();
    let best = world.planned().best;
    assert_eq!(best.route, Route::Split);
    assert_eq!(best.plan.prefill, PromptForm::TokenIds);
    world.policy.prefill = Prefill::HiddenStates;
    let states = world.of(best.plan.split_layer);
    assert!(best.prediction.first_token_ms < states.first_token_ms / 1.5);
    assert!(
        best.prediction.tail_ms > states.tail_ms,
        "all layers run on the tail"
    );
    let config = best.plan.configure(ClientConfig::default());
    assert_eq!(config.prefill, Prefill::TokenIds);
    // Where rows are nothing to the uplink, the tail is spared the prompt's first layers.
    world.policy.prefill = Prefill::Auto;
    world.link.up_bits_per_second = Some(1e10);
    let plan = world.planned().best.plan;
    assert_eq!(plan.prefill, PromptForm::HiddenStates);
    let config = plan.configure(ClientConfig::default());
    assert_eq!(config.prefill, Prefill::HiddenStates);
}

#[test]
fn token_ids_are_never_chosen_beside_layers_here_where_they_are_not_allowed() {
    let changes: [fn(&mut World); 3] = [
        |world| world.manifest.split.min = 1,
        |world| world.manifest.token_upload = false,
        |world| world.policy.prefill = Prefill::HiddenStates,
    ];
    for change in changes {
        let mut world = slow_uplink();
        change(&mut world);
        let planned = world.planned();
        let splits = planned.by_split_layer.iter();
        let mut splits = splits.filter(|of| of.route == Route::Split).peekable();
        assert!(splits.peek().is_some());
        assert!(splits.all(|of| of.plan.prefill == PromptForm::HiddenStates));
    }
    let mut world = slow_uplink();
    world.policy.prefill = Prefill::TokenIds;
    let forms = |world: &World| -> Vec<PromptForm> {
        let planned = world.planned();
        let alternatives = planned.by_split_layer.iter();
        alternatives.map(|of| of.plan.prefill).collect()
    };
    assert_eq!(forms(&world), [PromptForm::TokenIds; 4]);
    world.manifest.split.min = 1;
    let error = world.plan().unwrap_err().to_string();
    assert!(
        error.contains("no prompt as token ids beside layers here"),
        "{error}"
    );
}

#[test]
fn beside_token_ids_the_heads_time_is_waited_for_with_the_second_token_only() {
    let mut world = slow_uplink();
    world.policy.prefill = Prefill::TokenIds;
    let after_first = |world: &World, layer_ms: f64| {
        let mut world = world.clone();
        world.profile.layers = vec![times(Quantization::None, layer_ms)];
        world.workload.answer_tokens = 2;
        let of = world.of(2);
        (
            of.first_token_ms,
            of.total_ms - of.first_token_ms - of.token_ms,
        )
    };
    let (fast_first, fast_left) = after_first(&world, 0.01);
    let (slow_first, slow_left) = after_first(&world, 50.0);
    assert!((fast_first - slow_first).abs() < 1e-6);
    assert!(
        fast_left.abs() < 1e-6,
        "the head is long ready: {fast_left}"
    );
    assert!(slow_left > slow_first, "{slow_left} {slow_first}");
    // Where there is no second token, nobody waits.
    world.workload.answer_tokens = 1;
    world.profile.layers = vec![times(Quantization::None, 50.0)];
    let of = world.of(2);
    assert!((of.total_ms - of.first_token_ms).abs() < 1e-6);
}

#[test]
fn what_the_tail_holds_of_the_prompt_is_not_sent_nor_computed_there() {
    let mut world = World::new();
    world.workload.prompt_tokens = 1000;
    let all = world.of(0);
    world.workload.cached_share = 0.9;
    let rest = world.of(0);
    assert!(rest.tail_ms < all.tail_ms && rest.up_bytes < all.up_bytes);
    world.workload.cached_share = 1.0;
    assert!(
        world.of(0).first_token_ms > 0.0,
        "the last position is always sent"
    );
}

type Change = fn(&mut World);

#[test]
fn numbers_that_are_none_are_refused() {
    let refused = |change: Change| {
        let mut world = World::new();
        change(&mut world);
        world.plan().unwrap_err().to_string()
    };
    let cases: [(Change, &str); 9] = [
        (
            |world| world.workload.prompt_tokens = 0,
            "prompt_tokens is 0",
        ),
        (
            |world| world.workload.prompt_tokens = 4096,
            "prompt_tokens is 4096",
        ),
        (
            |world| world.workload.answer_tokens = 0,
            "answer_tokens is 0",
        ),
        (
            |world| world.workload.cached_share = 1.5,
            "cached_share is 1.5",
        ),
        (
            |world| world.workload.right_share = f64::NAN,
            "right_share is NaN",
        ),
        (
            |world| world.policy.objective = Objective::Weighted { cost_weight: -1.0 },
            "cost_weight is -1",
        ),
        (
            |world| world.link.rtt_ms = None,
            "the round trip to the tail is not known",
        ),
        (
            |world| world.link.rtt_ms = Some(f64::INFINITY),
            "the round trip",
        ),
        (
            |world| world.load.costs.sampled_row_us = None,
            "lm_head row is not known",
        ),
    ];
    for (change, said) in cases {
        let error = refused(change);
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn without_a_measured_uplink_nothing_is_split() {
    let mut world = World::new();
    world.link.up_bits_per_second = None;
    let planned = world.planned();
    let routes: Vec<Route> = planned.by_split_layer.iter().map(|of| of.route).collect();
    assert_eq!(routes, [Route::Cloud, Route::Device]);
    assert!(
        planned
            .explain()
            .contains("split layers 1 to 3: the uplink was not measured")
    );
}

#[test]
fn an_objective_is_read_from_its_name() {
    assert_eq!("latency".parse(), Ok(Objective::LATENCY));
    assert_eq!(
        "cost=2".parse(),
        Ok(Objective::Weighted { cost_weight: 2.0 })
    );
    assert_eq!(
        "bound=300".parse(),
        Ok(Objective::Bound { latency_ms: 300.0 })
    );
    for text in [
        "",
        "fast",
        "cost",
        "cost=-1",
        "cost=nan",
        "bound=0",
        "bound=inf",
        "latency=1",
    ] {
        assert!(text.parse::<Objective>().is_err(), "{text}");
    }
}

prop_compose! {
    fn worlds()(
        rtt_ms in 0.0..300.0_f64,
        up_bits in 1e5..1e10_f64,
        layer_ms in 0.01..50.0_f64,
        tail_us in 10.0..20_000.0_f64,
        prompt_tokens in 1..3000_usize,
        answer_tokens in 1..500_usize,
        cached_share in 0.0..1.0_f64,
        right_share in 0.0..1.0_f64,
        prefill in prop_oneof![Just(Prefill::Auto), Just(Prefill::HiddenStates)],
        cost_weight in 0.0..5.0_f64,
    ) -> World {
        let mut world = World::new();
        world.link.rtt_ms = Some(rtt_ms);
        world.link.up_bits_per_second = Some(up_bits);
        world.profile.layers = vec![times(Quantization::None, layer_ms), times(Quantization::Q4_0, layer_ms / 2.0)];
        world.load.costs.decode_step_layer_us = Some(tail_us);
        world.load.costs.decode_row_layer_us = Some(tail_us);
        world.load.costs.prefill_row_layer_us = Some(tail_us / 7.0);
        world.workload = Workload { prompt_tokens, answer_tokens, cached_share, right_share };
        world.policy.prefill = prefill;
        world.policy.objective = Objective::Weighted { cost_weight };
        world
    }
}

/// What a weighted objective makes of an alternative.
fn price_of(world: &World, alternative: &Alternative) -> f64 {
    match world.policy.objective {
        Objective::Weighted { cost_weight } => price(alternative, cost_weight),
        Objective::Bound { .. } => f64::NAN,
    }
}

/// Split layers that were possible, and what they were predicted to take.
fn totals(world: &World) -> Vec<(usize, f64)> {
    let planned = world.planned();
    let alternatives = planned.by_split_layer.iter();
    alternatives
        .map(|of| (of.plan.split_layer, of.prediction.total_ms))
        .collect()
}

proptest! {
    #[test]
    fn no_possible_alternative_is_predicted_to_be_better(world in worlds()) {
        let planned = world.planned();
        let best = price_of(&world, &planned.best);
        for alternative in &planned.by_split_layer {
            prop_assert!(best <= price_of(&world, alternative));
        }
        prop_assert!(best.is_finite() && best > 0.0);
    }

    #[test]
    fn a_longer_round_trip_makes_no_answer_faster(world in worlds(), more_ms in 0.0..200.0_f64) {
        let mut far = world.clone();
        far.policy.objective = Objective::LATENCY;
        let near = totals(&far);
        far.link.rtt_ms = world.link.rtt_ms.map(|rtt| rtt + more_ms);
        for ((layer, near), (_, far)) in near.into_iter().zip(totals(&far)) {
            prop_assert!(far >= near - 1e-6, "split layer {}: {} {}", layer, near, far);
        }
    }

    #[test]
    fn a_faster_uplink_makes_no_answer_slower(world in worlds(), times_faster in 1.0..50.0_f64) {
        let mut fast = world.clone();
        fast.policy.objective = Objective::LATENCY;
        let slow = totals(&fast);
        fast.link.up_bits_per_second = world.link.up_bits_per_second.map(|bits| bits * times_faster);
        for ((layer, slow), (_, fast)) in slow.into_iter().zip(totals(&fast)) {
            prop_assert!(fast <= slow + 1e-6, "split layer {}: {} {}", layer, slow, fast);
        }
    }

    #[test]
    fn what_is_allowed_more_makes_no_plan_worse(world in worlds()) {
        let mut free = world.clone();
        free.policy.codecs.push(Codec::Int8 { group_size: 32 });
        free.policy.quantizations.push(Quantization::Q4_0);
        let (bound, free_best) = (world.planned().best, free.planned().best);
        prop_assert!(price_of(&free, &free_best) <= price_of(&world, &bound));
    }

    #[test]
    fn a_higher_price_of_the_tail_never_makes_it_work_more(world in worlds(), more in 0.0..10.0_f64) {
        let mut dear = world.clone();
        if let Objective::Weighted { cost_weight } = world.policy.objective {
            dear.policy.objective = Objective::Weighted { cost_weight: cost_weight + more };
        }
        let (cheap, dear) = (world.planned().best, dear.planned().best);
        prop_assert!(dear.prediction.tail_ms <= cheap.prediction.tail_ms + 1e-6);
    }
}
