//! Where to answer. Pure: what is known comes in, a side and its reason come out.

use crate::router::features::RequestFeatures;
use crate::router::reason::RouteReason;
use crate::router::thresholds::Thresholds;
use crate::router::uncertainty::{ProbeSummary, Uncertainty};

/// What the caller wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteMode {
    /// Let the router decide.
    #[default]
    Auto,
    /// On this device, and nowhere else.
    Device,
    /// On the tail; on the device only while the tail is away.
    Tail,
}

impl std::str::FromStr for RouteMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "device" => Ok(Self::Device),
            "tail" => Ok(Self::Tail),
            _ => Err("expected auto, device or tail".to_owned()),
        }
    }
}

/// One of the two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The local model.
    Device,
    /// The tail, with the head layers here or without.
    Tail,
}

/// What there is to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Situation {
    /// Positions of the local model; `None`: there is none.
    pub(crate) device_positions: Option<usize>,
    /// Whether the local model is the tail's.
    pub(crate) is_same_model: bool,
    pub(crate) tail: TailState,
}

/// What is known of the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TailState {
    /// None was named, or it takes no such request.
    Missing,
    /// It answered when it was last asked.
    Here,
    /// It did not.
    Away,
}

/// Where to begin or go on, and why.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decision {
    pub(crate) side: Side,
    pub(crate) reason: RouteReason,
    /// The local model's uncertainty decides, too.
    pub(crate) is_watched: bool,
    /// To leave the device when the tail is there again.
    pub(crate) waits_for_tail: bool,
}

/// Why a request cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// It must be answered here, and there is no local model.
    NoLocalModel,
    /// It must be answered here, and the local model has no room for its prompt.
    TooLong { most: usize },
}

/// Where a request is answered first.
pub(crate) fn first_route(
    features: &RequestFeatures,
    situation: Situation,
    mode: RouteMode,
    is_local_only: bool,
    thresholds: Option<&Thresholds>,
) -> Result<Decision, NoRoute> {
    let (to_device, to_tail) = (to(Side::Device), to(Side::Tail));
    let must_stay = is_local_only || mode == RouteMode::Device;
    let Some(most) = situation.device_positions else {
        // Also where it is away: it may come back while the session waits for it.
        return if must_stay {
            Err(NoRoute::NoLocalModel)
        } else {
            Ok(to_tail(RouteReason::Only))
        };
    };
    let holds_prompt = features.prompt_tokens < most;
    if must_stay || situation.tail == TailState::Missing {
        return match (holds_prompt, is_local_only, mode) {
            (false, ..) => Err(NoRoute::TooLong { most }),
            (true, true, _) => Ok(to_device(RouteReason::LocalOnly)),
            (true, false, RouteMode::Device) => Ok(to_device(RouteReason::Asked)),
            (true, false, _) => Ok(to_device(RouteReason::Only)),
        };
    }
    let positions = features.prompt_tokens + features.max_tokens;
    let no_room = RouteReason::NoRoom { positions, most };
    if situation.tail == TailState::Away {
        return Ok(match holds_prompt {
            // A session waits for the tail, as long as its policy says.
            false => to_tail(no_room),
            true => Decision {
                waits_for_tail: mode == RouteMode::Tail || !situation.is_same_model,
                ..to_device(RouteReason::TailAway)
            },
        });
    }
    if mode == RouteMode::Tail {
        return Ok(to_tail(RouteReason::Asked));
    }
    if positions > most {
        return Ok(to_tail(no_room));
    }
    if situation.is_same_model {
        return Ok(to_device(RouteReason::SameModel));
    }
    let Some(thresholds) = thresholds else {
        return Ok(to_tail(RouteReason::Uncalibrated));
    };
    let expected = thresholds.request.expected(&features.values());
    let needed = thresholds.accepted_loss_of_request;
    let needed = needed.map(|accepted| thresholds.needed(features, accepted));
    Ok(match needed {
        Some(needed) if expected < needed => {
            to_tail(RouteReason::LocalTooWeak { expected, needed })
        }
        needed => Decision {
            is_watched: true,
            ..to_device(RouteReason::LocalSuffices {
                expected,
                needed: needed.unwrap_or(0.0).max(0.0),
            })
        },
    })
}

fn to(side: Side) -> impl Fn(RouteReason) -> Decision {
    move |reason| Decision {
        side,
        reason,
        is_watched: false,
        waits_for_tail: false,
    }
}

impl Decision {
    /// Away from the device: to the tail, for good.
    pub(crate) fn to_tail(reason: RouteReason) -> Self {
        to(Side::Tail)(reason)
    }

    /// The tail was lost within an answer that was to be the tail's.
    pub(crate) fn back_to_device(error: String) -> Self {
        Self {
            waits_for_tail: true,
            ..to(Side::Device)(RouteReason::TailLost { error })
        }
    }
}

/// What the local model's first tokens say: the reason to stay, or the one to leave.
pub(crate) fn after_probe(
    features: &RequestFeatures,
    tokens: &[Uncertainty],
    thresholds: &Thresholds,
) -> Result<RouteReason, RouteReason> {
    let values = features.values_with(&ProbeSummary::of(tokens));
    let expected = thresholds.probe.expected(&values);
    let needed = thresholds.accepted_loss_of_probe;
    let needed = needed.map(|accepted| thresholds.needed(features, accepted));
    match needed {
        Some(needed) if expected < needed => Err(RouteReason::LocalUnsure {
            expected,
            needed,
            tokens: tokens.len(),
        }),
        needed => Ok(RouteReason::LocalSuffices {
            expected,
            needed: needed.unwrap_or(0.0).max(0.0),
        }),
    }
}

#[cfg(test)]
mod tests;
