//! Draws by the distributions of a scenario, from the SDK's own small generator: the same seed, the same calls.

use lookaside_sdk::picker::Rng;

use crate::scenario::Size;

/// The mean of a normal distribution with the standard deviation of its mean, cut at 0, over that mean: 1 + phi(1) / Phi(1).
const TRUNCATED_MEAN: f64 = 1.287_599_970_939_178_4;

/// Streams of numbers that must not depend on each other, each with a seed of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stream {
    /// When a client calls, and how much work that is.
    Calls,
    /// What it chooses.
    Picks,
    /// When endpoints report and are checked, how long that takes, what gets lost.
    Balancer,
    /// Phases of faults, calls that fail by chance.
    Faults,
}

/// The generator of a stream: of this seed, for this client.
pub(crate) fn stream(seed: u64, stream: Stream, number: u32) -> Rng {
    let mut base = Rng::from_seed(seed ^ ((stream as u64 + 1) << 56));
    Rng::from_seed(base.next_u64() ^ (u64::from(number) << 1))
}

/// At least 0 and below 1.
pub(crate) fn uniform(rng: &mut Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Exponential, of mean 1.
pub(crate) fn exponential(rng: &mut Rng) -> f64 {
    -(1.0 - uniform(rng)).ln()
}

/// Normal, of mean 0 and standard deviation 1 (Box and Muller 1958; the second of the pair is thrown away).
fn normal(rng: &mut Rng) -> f64 {
    let radius = (2.0 * exponential(rng)).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

/// Whether something happens that happens so many times of a thousand.
pub(crate) fn happens(rng: &mut Rng, permille: u32) -> bool {
    permille > 0 && rng.below(1_000) < u64::from(permille)
}

/// The work of one call around this mean, microseconds on a core of speed 1; at least one.
pub(crate) fn size(size: Size, mean_us: f64, rng: &mut Rng) -> f64 {
    let drawn = match size {
        Size::Exponential => mean_us * exponential(rng),
        Size::Fixed => mean_us,
        Size::Lognormal { cv } => {
            let variance = (1.0 + cv * cv).ln();
            mean_us * (variance.sqrt() * normal(rng) - variance / 2.0).exp()
        }
        Size::Bimodal { long_permille, factor } => {
            let long = f64::from(long_permille) / 1_000.0;
            let short_us = mean_us / (1.0 - long + long * factor);
            if happens(rng, long_permille) { short_us * factor } else { short_us }
        }
        Size::TruncatedNormal => {
            let mean_uncut = mean_us / TRUNCATED_MEAN;
            loop {
                // Five of six are above 0.
                let drawn = mean_uncut * (1.0 + normal(rng));
                if drawn > 0.0 {
                    break drawn;
                }
            }
        }
    };
    drawn.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_distribution_has_the_mean_that_it_is_given() {
        let all = [
            (Size::Exponential, 1.0),
            (Size::Fixed, 0.0),
            (Size::Lognormal { cv: 3.0 }, 3.0),
            (Size::Bimodal { long_permille: 10, factor: 100.0 }, 4.975),
            (Size::TruncatedNormal, 0.6164),
        ];
        for (kind, cv) in all {
            let mut rng = stream(1, Stream::Calls, 0);
            let drawn: Vec<f64> = (0..1_000_000).map(|_| size(kind, 50_000.0, &mut rng)).collect();
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            let variance = drawn.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / drawn.len() as f64;
            assert!((mean / 50_000.0 - 1.0).abs() < 0.015, "{kind:?}: mean {mean}");
            assert!(
                (variance.sqrt() / mean - cv).abs() < 0.06 * cv.max(0.01),
                "{kind:?}: cv {}",
                variance.sqrt() / mean
            );
        }
    }

    #[test]
    fn streams_do_not_depend_on_each_other() {
        let first = |stream_: Stream, number| stream(7, stream_, number).next_u64();
        let all = [first(Stream::Calls, 0), first(Stream::Calls, 1), first(Stream::Picks, 0), first(Stream::Faults, 0)];
        assert!((1..4).all(|n| all[..n].iter().all(|other| *other != all[n])));
        assert_eq!(first(Stream::Balancer, 3), first(Stream::Balancer, 3));
    }
}
