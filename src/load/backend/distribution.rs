//! How long work takes.

use std::f64::consts::{LN_2, TAU};
use std::time::Duration;

use rand::{Rng, RngExt as _};

/// A distribution of service times, all with the mean it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Always the mean.
    Fixed,
    /// Exponential: the standard deviation is the mean.
    Exp,
    /// Log-normal with the standard deviation of the exponential, and a longer tail.
    Lognormal,
}

impl Distribution {
    /// One time.
    pub fn sample(self, mean: Duration, random: &mut impl Rng) -> Duration {
        // In (0, 1], so that the logarithm is finite.
        let mut unit = || 1.0 - random.random::<f64>();
        let factor = match self {
            Self::Fixed => 1.0,
            Self::Exp => -unit().ln(),
            Self::Lognormal => {
                let normal = (-2.0 * unit().ln()).sqrt() * (TAU * unit()).cos();
                // A variance of ln 2 in the exponent makes the standard deviation equal to the mean.
                (LN_2.sqrt() * normal - LN_2 / 2.0).exp()
            }
        };
        Duration::from_micros((mean.as_micros() as f64 * factor) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng as _, rngs::StdRng};

    #[test]
    fn every_distribution_has_the_mean_it_was_given() {
        let mean = Duration::from_millis(10);
        let mut random = StdRng::seed_from_u64(7);
        for distribution in [Distribution::Fixed, Distribution::Exp, Distribution::Lognormal] {
            let samples = 200_000;
            let sum: f64 = (0..samples).map(|_| distribution.sample(mean, &mut random).as_secs_f64()).sum();
            let ratio = sum / f64::from(samples) / mean.as_secs_f64();
            assert!((0.98..1.02).contains(&ratio), "{distribution:?}: {ratio}");
        }
    }
}
