//! Turns in proportion to weights, well mixed: the stride scheduler that gRPC's implementations of A58 use in place of a heap of
//! deadlines. Each turn looks at the next endpoint in the circle, and passes over it as often as its weight falls short of the
//! largest. Equal weights make strict turns, and a change of weights does not begin the circle anew.

/// The largest weight becomes this.
const SCALE: u64 = 1 << 16;
/// Half a scale: neighbours are not passed over all in the same round.
const OFFSET: u64 = SCALE / 2 + 1;

/// Where the turns are.
#[derive(Debug, Default)]
pub(super) struct Stride {
    weights: Vec<u64>,
    turn: u64,
}

impl Stride {
    /// Begins at a turn of its own.
    pub(super) fn starting_at(turn: u64) -> Self {
        Self { weights: Vec::new(), turn: turn % (1 << 32) }
    }

    /// The weights from now on; one that is not known, 0 or below, gets the mean of the others, and without two that are known
    /// all get the same (A58).
    pub(super) fn weigh(&mut self, weights: impl Iterator<Item = f64>) {
        let weights: Vec<f64> = weights.map(|weight| if weight.is_finite() { weight } else { 0.0 }).collect();
        let known: Vec<f64> = weights.iter().copied().filter(|weight| *weight > 0.0).collect();
        if known.len() < 2 {
            self.weights = vec![SCALE; weights.len()];
            return;
        }
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        let max = known.iter().copied().fold(0.0, f64::max);
        let scaled = |weight: f64| ((if weight > 0.0 { weight } else { mean } / max * SCALE as f64) as u64).max(1);
        self.weights = weights.into_iter().map(scaled).collect();
    }

    /// Whose turn it is, of those in the order of their weights; `without` are passed over if there are others.
    pub(super) fn next(&mut self, without: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.weights.len() as u64;
        let all = (0..self.weights.len()).all(&without);
        // Who has the largest weight is never passed over, but for `without`; then some other comes within a scale of rounds.
        for _ in 0..count * SCALE {
            let (at, round) = ((self.turn % count) as usize, self.turn / count);
            self.turn += 1;
            let weight = self.weights[at];
            let place = (weight * round + OFFSET * at as u64) % SCALE;
            if place >= SCALE - weight && (all || !without(at)) {
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[f64], count: usize) -> Vec<usize> {
        let mut stride = Stride::starting_at(0);
        stride.weigh(weights.iter().copied());
        (0..count).map(|_| stride.next(|_| false).unwrap()).collect()
    }

    #[test]
    fn equal_weights_take_strict_turns_and_others_their_share() {
        assert_eq!(turns(&[2.0, 2.0, 2.0], 6), [0, 1, 2, 0, 1, 2]);
        let turns = turns(&[4.0, 2.0, 1.0, 1.0], 8_000);
        let got = |at| turns.iter().filter(|turn| **turn == at).count();
        for (at, wanted) in [4_000, 2_000, 1_000, 1_000].into_iter().enumerate() {
            assert!(got(at).abs_diff(wanted) <= 2, "{at} got {}", got(at));
        }
        // Well mixed: in any 16 turns the first has its eight, give or take one.
        assert!(turns.windows(16).all(|window| (7..=9).contains(&window.iter().filter(|turn| **turn == 0).count())));
    }

    #[test]
    fn who_is_unknown_gets_the_mean_and_one_that_is_known_counts_for_nothing() {
        let mut stride = Stride::default();
        stride.weigh([3.0, 0.0, 1.0].into_iter());
        assert_eq!(stride.weights, [SCALE, SCALE * 2 / 3, SCALE / 3]);
        stride.weigh([3.0, 0.0, f64::NAN].into_iter());
        assert_eq!(stride.weights, [SCALE; 3]);
        assert_eq!(stride.next(|at| at != 1), Some(1));
        assert!(stride.next(|_| true).is_some(), "all were tried, so any will do");
        stride.weigh([].into_iter());
        assert_eq!(stride.next(|_| false), None);
    }
}
