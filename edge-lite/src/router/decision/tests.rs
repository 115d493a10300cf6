use super::*;
use crate::router::thresholds::tests::thresholds;

fn request(prompt_tokens: usize) -> RequestFeatures {
    RequestFeatures {
        prompt_tokens,
        max_tokens: 50,
        ..RequestFeatures::default()
    }
}

fn situation(tail: TailState) -> Situation {
    Situation {
        device_positions: Some(1000),
        is_same_model: false,
        tail,
    }
}

fn route(features: &RequestFeatures, situation: Situation) -> Decision {
    first_route(
        features,
        situation,
        RouteMode::Auto,
        false,
        Some(&thresholds()),
    )
    .unwrap()
}

#[test]
fn a_request_that_must_not_leave_stays_whatever_else_holds() {
    for tail in [TailState::Missing, TailState::Here, TailState::Away] {
        for mode in [RouteMode::Auto, RouteMode::Device, RouteMode::Tail] {
            let decision = first_route(&request(10), situation(tail), mode, true, None).unwrap();
            assert_eq!(
                (decision.side, decision.reason),
                (Side::Device, RouteReason::LocalOnly)
            );
            assert!(!decision.is_watched && !decision.waits_for_tail);
            let without = Situation {
                device_positions: None,
                ..situation(tail)
            };
            let refused = first_route(&request(10), without, mode, true, None);
            assert_eq!(refused, Err(NoRoute::NoLocalModel));
            let too_long = first_route(&request(1000), situation(tail), mode, true, None);
            assert_eq!(too_long, Err(NoRoute::TooLong { most: 1000 }));
        }
    }
}

#[test]
fn the_same_model_answers_here_and_a_companion_without_thresholds_does_not() {
    let same = Situation {
        is_same_model: true,
        ..situation(TailState::Here)
    };
    let auto =
        |situation| first_route(&request(10), situation, RouteMode::Auto, false, None).unwrap();
    assert_eq!(auto(same).reason, RouteReason::SameModel);
    assert_eq!(
        auto(situation(TailState::Here)),
        Decision::to_tail(RouteReason::Uncalibrated)
    );
}

#[test]
fn a_tail_that_is_away_is_not_asked_where_the_device_can_answer() {
    let decision = route(&request(10), situation(TailState::Away));
    assert_eq!(
        (decision.side, decision.reason),
        (Side::Device, RouteReason::TailAway)
    );
    assert!(decision.waits_for_tail);
    // The device cannot: the session waits for the tail.
    assert_eq!(
        route(&request(1000), situation(TailState::Away)).side,
        Side::Tail
    );
    let without = Situation {
        device_positions: None,
        ..situation(TailState::Away)
    };
    assert_eq!(
        route(&request(10), without),
        Decision::to_tail(RouteReason::Only)
    );
}

#[test]
fn a_request_that_does_not_fit_the_local_model_goes_to_the_tail() {
    let decision = route(&request(980), situation(TailState::Here));
    assert_eq!(
        decision.reason,
        RouteReason::NoRoom {
            positions: 1030,
            most: 1000
        }
    );
    assert_eq!(decision.side, Side::Tail);
}

#[test]
fn a_request_that_looks_too_hard_goes_to_the_tail_at_once() {
    let decision = route(&request(10), situation(TailState::Here));
    assert!(
        decision.side == Side::Device && decision.is_watched,
        "{decision:?}"
    );
    let digits = RequestFeatures {
        digit_share: 0.6,
        ..request(10)
    };
    let decision = route(&digits, situation(TailState::Here));
    assert_eq!(
        decision.reason,
        RouteReason::LocalTooWeak {
            expected: 0.4,
            needed: 0.5
        }
    );
}

#[test]
fn the_first_tokens_decide_by_what_they_are_expected_to_mean() {
    let tokens = |entropy| {
        [Uncertainty {
            entropy,
            margin: 0.5,
        }; 4]
    };
    let stays = after_probe(&request(10), &tokens(1.0), &thresholds());
    assert!(
        matches!(stays, Ok(RouteReason::LocalSuffices { .. })),
        "{stays:?}"
    );
    let leaves = after_probe(&request(10), &tokens(4.0), &thresholds());
    assert!(
        matches!(leaves, Err(RouteReason::LocalUnsure { tokens: 4, .. })),
        "{leaves:?}"
    );
}

#[test]
fn the_device_alone_answers_all() {
    let decision = route(&request(10), situation(TailState::Missing));
    assert_eq!(
        (decision.side, decision.reason),
        (Side::Device, RouteReason::Only)
    );
    let asked = first_route(
        &request(10),
        situation(TailState::Here),
        RouteMode::Device,
        false,
        None,
    )
    .unwrap();
    assert_eq!(
        (asked.side, asked.reason),
        (Side::Device, RouteReason::Asked)
    );
    let asked = first_route(
        &request(10),
        situation(TailState::Here),
        RouteMode::Tail,
        false,
        None,
    )
    .unwrap();
    assert_eq!(asked, Decision::to_tail(RouteReason::Asked));
}
