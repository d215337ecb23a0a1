//! Counts values in buckets whose width grows with them, as HdrHistogram (Tene) does: 256 to each doubling, so that a
//! quantile is off by 0.2 % at most. Values below 512 are exact.

/// Buckets to a doubling, as a power of two.
const BITS: u32 = 8;
const HALF: u64 = 1 << BITS;

/// Counts of values.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    buckets: Vec<u32>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Histogram {
    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        let at = bucket(value);
        if at >= self.buckets.len() {
            self.buckets.resize(at + 1, 0);
        }
        self.buckets[at] += 1;
        self.count += 1;
        self.sum += u128::from(value);
        self.max = self.max.max(value);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets.fill(0);
        (self.count, self.sum, self.max) = (0, 0, 0);
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; 0 without any.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }

    /// The largest.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that this share of the values does not exceed, within 0.2 %; 0 without any.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return middle(at).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    let doublings = (64 - BITS - 1).saturating_sub(value.leading_zeros());
    ((u64::from(doublings) << BITS) + (value >> doublings)) as usize
}

/// The value in the middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * HALF {
        return bucket;
    }
    let doublings = (bucket >> BITS) - 1;
    let low = (HALF + (bucket & (HALF - 1))) << doublings;
    low + ((1 << doublings) - 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_fifth_of_a_percent() {
        for value in [0, 1, 255, 256, 511, 512, 513, 1_023, 1_024, 50_000, 1_234_567, u64::from(u32::MAX), 1 << 45] {
            let mut histogram = Histogram::default();
            histogram.record(value);
            histogram.record(value * 2);
            let found = histogram.quantile(0.5);
            assert!(found.abs_diff(value) * 500 <= value, "{found} for {value}");
            assert_eq!(histogram.quantile(1.0).max(histogram.max()), histogram.max());
        }
    }

    #[test]
    fn ranks_count_from_the_smallest() {
        let mut histogram = Histogram::default();
        (1..=100).for_each(|value| histogram.record(value));
        assert_eq!([0.0, 0.01, 0.5, 0.99, 1.0].map(|share| histogram.quantile(share)), [1, 1, 50, 99, 100]);
        assert_eq!((histogram.mean(), histogram.count(), histogram.max()), (50.5, 100, 100));
        histogram.clear();
        assert_eq!((histogram.quantile(0.5), histogram.count()), (0, 0));
    }
}
