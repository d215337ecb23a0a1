//! When a name is asked again: when its records have lived their life, within bounds, and a little earlier by chance, so
//! that many names are not asked at once. Never later: what was added is to be found within a life and a second. Pure.

use std::time::Duration;

/// A tenth of a life, at most.
const EARLIER_MAX: f64 = 0.1;

/// Where nothing said how long to wait, waits double; half of each is chance.
const BACK_OFF_CHANCE: f64 = 0.5;

/// The pace of one name.
#[derive(Debug)]
pub(super) struct Pace {
    min: Duration,
    max: Duration,
    /// Rounds in a row after which nothing said how long to wait.
    blind: u32,
}

impl Pace {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, blind: 0 }
    }

    /// Time from one round to the next. `lives` is how long the answer holds, if there is one that says so; `chance` is
    /// from 0 to 1.
    pub(super) fn next(&mut self, lives: Option<Duration>, chance: f64) -> Duration {
        let (wait, by_chance) = match lives {
            Some(lives) => {
                self.blind = 0;
                (lives.clamp(self.min, self.max), EARLIER_MAX)
            }
            None => {
                let doubled = self.min.saturating_mul(1 << self.blind.min(16));
                self.blind = self.blind.saturating_add(1);
                (doubled.min(self.max), BACK_OFF_CHANCE)
            }
        };
        wait.mul_f64(1.0 - by_chance * chance.clamp(0.0, 1.0)).max(self.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pace() -> Pace {
        Pace::new(SECOND, 30 * SECOND)
    }

    #[test]
    fn records_are_asked_for_again_when_they_have_lived_never_later() {
        for (lives, latest, earliest) in [(0, 1, 1.0), (1, 1, 1.0), (10, 10, 9.0), (30, 30, 27.0), (86_400, 30, 27.0)] {
            let lives = Some(lives * SECOND);
            assert_eq!(pace().next(lives, 0.0), latest * SECOND);
            assert_eq!(pace().next(lives, 1.0), Duration::from_secs_f64(earliest));
        }
    }

    #[test]
    fn failures_are_tried_again_less_and_less_often() {
        let mut pace = pace();
        let waits: Vec<u64> = (0..8).map(|_| pace.next(None, 0.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(pace.next(None, 1.0), 15 * SECOND);
        assert_eq!(pace.next(Some(5 * SECOND), 0.0), 5 * SECOND);
        assert_eq!(pace.next(None, 0.0), SECOND, "an answer begins anew");
    }
}
