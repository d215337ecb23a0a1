//! When one client calls, and how much work each call is: a Poisson process whose rate follows the load steps. Drawn from a
//! stream of its own and from nothing that a policy does, so that every policy of a seed meets the same calls.

use std::rc::Rc;

use lookaside_sdk::picker::Rng;

use crate::{
    chance::{Stream, exponential, size, stream},
    scenario::{Fault, FaultKind, Group, Scenario, Size},
};

/// Nobody calls before: endpoints register, are checked, and lists arrive.
pub(crate) const FIRST_CALL_US: u64 = 1_000_000;

/// The calls of one client.
pub(crate) struct Arrivals {
    rng: Rng,
    /// Between two calls at factor 1, microseconds.
    gap_us_mean: f64,
    size: Size,
    size_us_mean: f64,
    /// From a time on, microseconds, the load is this times as high.
    steps: Rc<[(f64, f64)]>,
    next_us: f64,
}

impl Arrivals {
    /// Those of all clients.
    pub(crate) fn of(scenario: &Scenario, seed: u64) -> Vec<Self> {
        let begin = |at_ms: u64| ((scenario.warm_up_ms + at_ms) * 1_000) as f64;
        let steps: Rc<[(f64, f64)]> = scenario.load_steps.iter().map(|step| (begin(step.at_ms), step.factor)).collect();
        let share = |number: u32| f64::from(number + 1).powf(-scenario.clients.zipf);
        let shares: f64 = (0..scenario.clients.count).map(share).sum();
        let rate = calls_per_us(scenario);
        let of = |number| Self {
            rng: stream(seed, Stream::Calls, number),
            gap_us_mean: shares / share(number) / rate,
            size: scenario.size,
            size_us_mean: scenario.service_time_us_mean as f64,
            steps: Rc::clone(&steps),
            next_us: FIRST_CALL_US as f64,
        };
        (0..scenario.clients.count).map(of).collect()
    }

    /// When the next call comes and how much work it is, microseconds; `None` when never again.
    pub(crate) fn next(&mut self) -> Option<(u64, f64)> {
        let mut left = exponential(&mut self.rng) * self.gap_us_mean;
        let size_us = size(self.size, self.size_us_mean, &mut self.rng);
        let mut at = self.next_us;
        let mut following = self.steps.partition_point(|(from, _)| *from <= at);
        loop {
            let factor = following.checked_sub(1).map_or(1.0, |before| self.steps[before].1);
            let until = self.steps.get(following).map_or(f64::INFINITY, |(from, _)| *from);
            if factor > 0.0 && left <= (until - at) * factor {
                self.next_us = at + left / factor;
                return Some((self.next_us as u64, size_us));
            }
            if until == f64::INFINITY {
                return None;
            }
            left -= (until - at) * factor;
            (at, following) = (until, following + 1);
        }
    }
}

/// Whether an endpoint is there from the start: those that join come later.
pub(crate) fn is_there_at_start(scenario: &Scenario, endpoint: u32) -> bool {
    let joins = |fault: &&Fault| fault.kind == FaultKind::Join;
    !scenario.faults.iter().filter(joins).any(|fault| scenario.numbers(&fault.endpoints).contains(&endpoint))
}

/// Calls per microsecond that all clients make together, at factor 1: by what those can do that are there at the start.
fn calls_per_us(scenario: &Scenario) -> f64 {
    let of = |(group, numbers): (&Group, std::ops::Range<u32>)| {
        let present = numbers.filter(|number| is_there_at_start(scenario, *number)).count();
        present as f64 * f64::from(group.cores) * group.speed
    };
    scenario.load * scenario.groups().map(of).sum::<f64>() / scenario.service_time_us_mean as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls_between(yaml: &str, windows: &[(u64, u64)]) -> Vec<usize> {
        let base = "name: x\nendpoints: [{ count: 10, cores: 4, speed: 2 }]\nload: 0.5\nwarm_up_ms: 10000";
        let scenario = Scenario::parse(&format!("{base}\n{yaml}")).unwrap();
        let mut counts = vec![0; windows.len()];
        for mut arrivals in Arrivals::of(&scenario, 3) {
            while let Some((at, _)) = arrivals.next().filter(|(at, _)| *at < 40_000_000) {
                let windows = windows.iter().zip(&mut counts);
                windows.filter(|((from, until), _)| (*from..*until).contains(&at)).for_each(|(_, count)| *count += 1);
            }
        }
        counts
    }

    #[test]
    fn calls_come_as_the_load_says_whatever_the_shares_of_clients() {
        // 80 cores' worth at 0.05 s and half of that: 800 a second.
        for clients in ["{ count: 1 }", "{ count: 100 }", "{ count: 50, zipf: 1.2 }"] {
            let counts = calls_between(&format!("clients: {clients}"), &[(10_000_000, 40_000_000)]);
            assert!(counts[0].abs_diff(24_000) < 500, "{clients}: {counts:?}");
        }
    }

    #[test]
    fn load_steps_are_kept_to_the_microsecond() {
        let yaml = "clients: { count: 3 }\nload_steps: [{ at_ms: 0, factor: 0 }, { at_ms: 10000, factor: 2 }]";
        let all = [(1_000_000, 10_000_000), (10_000_000, 20_000_000), (20_000_000, 40_000_000)];
        let counts = calls_between(yaml, &all);
        assert!(counts[0].abs_diff(7_200) < 300 && counts[1] == 0 && counts[2].abs_diff(32_000) < 600, "{counts:?}");
        let ends = "clients: { count: 3 }\nload_steps: [{ at_ms: 5, factor: 0 }]";
        assert_eq!(calls_between(ends, &[(10_005_000, 40_000_000)]), [0]);
    }
}
