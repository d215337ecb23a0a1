//! Several runs of one thing that differ by their seeds: their mean, and how sure it is.

/// A mean over seeds, with the half width of its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Estimate {
    /// The mean; 0 of nothing.
    pub mean: f64,
    /// The true mean is within so much of it in 95 of 100 cases; 0 for a single value.
    pub half: f64,
    /// Values it was made from.
    pub count: usize,
}

/// Two-sided 95 % points of Student's t, by degrees of freedom from 1 on.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

impl Estimate {
    /// Of values that have nothing to do with one another.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count.max(1) as f64;
        if count < 2 {
            return Self { mean, half: 0.0, count };
        }
        let freedom = count - 1;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / freedom as f64;
        // Beyond the table the last of it: too wide by 4 % at most.
        let t = T_95[freedom.min(T_95.len()) - 1];
        Self { mean, half: t * (variance / count as f64).sqrt(), count }
    }

    /// Both ends of the interval; none below two values, which say nothing of how sure the mean is.
    pub fn interval(&self) -> Option<[f64; 2]> {
        (self.count > 1).then(|| [self.low(), self.high()])
    }

    /// For people: the mean, and half the width of its interval if it has one.
    pub fn words(&self, digits: usize) -> String {
        let half = self.interval().map_or_else(String::new, |_| format!(" ±{:.digits$}", self.half));
        format!("{:.digits$}{half}", self.mean)
    }

    /// Lower end of the interval.
    pub fn low(&self) -> f64 {
        self.mean - self.half
    }

    /// Upper end of the interval.
    pub fn high(&self) -> f64 {
        self.mean + self.half
    }
}

/// Which part of the way from round robin to the pooled bound a policy comes, in percent; below 0 where it is worse than round
/// robin. All three of one seed, since these met the same calls. 0 where there is no way to come.
pub fn gap_closed_percent(round_robin: f64, policy: f64, bound: f64) -> f64 {
    let gap = round_robin - bound;
    if gap > 0.0 { 100.0 * (round_robin - policy) / gap } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        // Mean 5, standard deviation 2.1602, four values: 3.182 x 2.1602 / 2.
        let estimate = Estimate::of(&[3.0, 4.0, 5.0, 8.0]);
        assert_eq!((estimate.mean, estimate.count), (5.0, 4));
        assert!((estimate.half - 3.4369).abs() < 1e-3, "{estimate:?}");
        assert!((estimate.high() - 8.4369).abs() < 1e-3 && (estimate.low() - 1.5631).abs() < 1e-3);
        assert_eq!(Estimate::of(&[7.0]), Estimate { mean: 7.0, half: 0.0, count: 1 });
        assert_eq!(Estimate::of(&[]).mean, 0.0);
        assert_eq!((Estimate::of(&[7.0]).interval(), Estimate::of(&[7.0]).words(2).as_str()), (None, "7.00"));
        assert_eq!(Estimate::of(&[7.0, 7.0]).words(1), "7.0 ±0.0");
        let many: Vec<f64> = (0..100).map(f64::from).collect();
        assert!((Estimate::of(&many).half - 2.042 * 29.0115 / 10.0).abs() < 1e-3);
    }

    #[test]
    fn the_gap_is_closed_from_round_robin_to_the_bound() {
        assert_eq!(gap_closed_percent(14.0, 4.0, 4.0), 100.0);
        assert_eq!(gap_closed_percent(14.0, 9.0, 4.0), 50.0);
        assert_eq!(gap_closed_percent(14.0, 19.0, 4.0), -50.0);
        assert_eq!(gap_closed_percent(4.0, 5.0, 4.0), 0.0);
    }
}
