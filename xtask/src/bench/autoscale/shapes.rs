//! Loads: when sessions come, and how many tokens each of them is given.

use fastrand::Rng;

/// Two hours of each.
pub const SECONDS: u32 = 7200;
/// Tokens of a session, at the median and at most.
const MEDIAN_TOKENS: f64 = 150.0;
const MAX_TOKENS: f64 = 4000.0;
/// Standard deviation of a length's logarithm: the longest twentieth has four times the median.
const SPREAD: f64 = 0.85;
/// Exponent of lengths that have no variance (Pareto): few sessions hold most tokens.
const HEAVY_TAIL: f64 = 1.3;

/// A session that comes.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at_s: f64,
    pub tokens: f64,
}

/// One load.
pub struct Shape {
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// The fewest pods.
    pub min: u32,
    pub arrivals: Vec<Arrival>,
}

type Rate = fn(f64) -> f64;

/// Sessions a second at a second; what it is; the fewest pods.
const SHAPES: [(&str, &str, u32, Rate); 9] = [
    ("constant", "6 sessions a second", 1, |_| 6.0),
    ("step", "2, then 10 a second, then 2 again", 1, |t| {
        if (2400.0..4800.0).contains(&t) {
            10.0
        } else {
            2.0
        }
    }),
    ("ramp", "from 0.5 to 14 a second and back", 1, |t| {
        14.0 - (t - 3600.0).abs() / 3600.0 * 13.5
    }),
    ("spike", "2 a second, and 20 for one minute", 1, |t| {
        if (3600.0..3660.0).contains(&t) {
            20.0
        } else {
            2.0
        }
    }),
    (
        "burst train",
        "1 a second, and 12 for one minute in every ten",
        1,
        |t| {
            if t % 600.0 < 60.0 { 12.0 } else { 1.0 }
        },
    ),
    (
        "diurnal",
        "a day in two hours: 0.3 a second at night, 12 in the afternoon",
        1,
        |t| {
            let day = (1.0 - (t / 7200.0 * std::f64::consts::TAU).cos()) / 2.0;
            0.3 + 11.7 * day.powf(1.5)
        },
    ),
    (
        "sawtooth",
        "rises from 1 to 10 a second in 20 minutes, and falls at once",
        1,
        |t| 1.0 + 9.0 * (t % 1200.0) / 1200.0,
    ),
    (
        "on and off",
        "5 a second for ten minutes, nobody for twenty",
        0,
        |t| {
            if t % 1800.0 < 600.0 { 5.0 } else { 0.0 }
        },
    ),
    (
        "flash crowd",
        "1.5 a second, then ten times as many within 20 s, which halve every five minutes",
        1,
        |t| {
            let since = t - 2400.0;
            if since < 0.0 {
                1.5
            } else if since < 20.0 {
                1.5 + 13.5 * since / 20.0
            } else {
                1.5 + 13.5 * (-(since - 20.0) / 300.0 * std::f64::consts::LN_2).exp()
            }
        },
    ),
];

/// All loads, the same for the same seed.
pub fn all(seed: u64) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = SHAPES
        .iter()
        .enumerate()
        .map(|(index, &(name, what, min, rate))| {
            let mut rng = Rng::with_seed(seed.wrapping_add(index as u64));
            Shape {
                name,
                what,
                min,
                arrivals: arrivals(&mut rng, rate, usual_tokens),
            }
        })
        .collect();
    let mut rng = Rng::with_seed(seed.wrapping_add(100));
    let levels: Vec<f64> = (0..=SECONDS / 120).map(|_| 1.0 + 9.0 * rng.f64()).collect();
    let noisy = |t: f64| levels[whole(t / 120.0)];
    shapes.push(Shape {
        name: "noisy, heavy-tailed",
        what: "another rate every two minutes, 1 to 10 a second; few sessions hold most tokens",
        min: 1,
        arrivals: arrivals(&mut rng, noisy, heavy_tokens),
    });
    shapes
}

/// A Poisson process with a rate that changes: candidates at the highest rate, thinned.
fn arrivals(rng: &mut Rng, rate: impl Fn(f64) -> f64, tokens: fn(&mut Rng) -> f64) -> Vec<Arrival> {
    let most = (0..SECONDS).map(|second| rate(f64::from(second)));
    let most = most.fold(0.0, f64::max);
    let (mut at_s, mut arrivals) = (0.0, Vec::new());
    loop {
        at_s += -(1.0 - rng.f64()).ln() / most;
        if at_s >= f64::from(SECONDS) {
            return arrivals;
        }
        if rng.f64() * most < rate(at_s) {
            let tokens = tokens(rng);
            arrivals.push(Arrival { at_s, tokens });
        }
    }
}

fn usual_tokens(rng: &mut Rng) -> f64 {
    // Box and Muller.
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    let normal = radius * (rng.f64() * std::f64::consts::TAU).cos();
    (MEDIAN_TOKENS * (SPREAD * normal).exp()).clamp(1.0, MAX_TOKENS)
}

fn heavy_tokens(rng: &mut Rng) -> f64 {
    (40.0 * (1.0 - rng.f64()).powf(-1.0 / HEAVY_TAIL)).min(10.0 * MAX_TOKENS)
}

/// The whole part of a number that is not negative.
pub fn whole(value: f64) -> usize {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float to integer cast saturates"
    )]
    {
        value as usize
    }
}
