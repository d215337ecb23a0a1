//! What windows come to when they are put together: the middle of several, what is left out and why, and how well a broken
//! endpoint was avoided.

use serde::Serialize;

use super::clients::Policy;
use super::fleet::Shape;
use super::window::{Slice, Told};

/// The middle one of some values; 0 of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// One figure over several windows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// Of some values; zeros of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let Some(first) = values.first().copied() else { return Self::default() };
        let (min, max) = values.iter().fold((first, first), |(min, max), value| (min.min(*value), max.max(*value)));
        Self { median: median(values), min, max }
    }
}

/// Whether a window says something about balancing: on processors busier than this, calls wait for those.
pub fn is_kept(told: &Told, machine_percent_max: f64) -> bool {
    told.machine_percent <= machine_percent_max
}

/// One policy at one load, over all its windows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Calls offered over the capacity of all slots.
    pub load: f64,
    /// How endpoints were chosen.
    pub policy: Policy,
    /// Windows that the figures are of.
    pub windows: usize,
    /// Windows left out, the machine having been too busy.
    pub discarded: usize,
    /// Calls that were due in the windows that are left.
    pub calls: u64,
    /// Those of them that did not end with OK.
    pub failed: u64,
    /// Latency of those that did, milliseconds from the moment they were due.
    pub p50_ms: Spread,
    /// 90 % are faster.
    pub p90_ms: Spread,
    /// 99 % are faster.
    pub p99_ms: Spread,
    /// 99.9 % are faster.
    pub p999_ms: Spread,
    /// What the slower endpoints served, percent of all.
    pub slow_percent: f64,
    /// How busy the machine was at the most in the windows that are left.
    pub machine_percent: f64,
    /// What the median of `p99_ms` must not exceed, where we promise that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms_bar: Option<f64>,
}

impl Row {
    /// Puts windows of one kind together.
    pub fn of(load: f64, policy: Policy, told: &[Told], shape: &Shape, machine_percent_max: f64) -> Self {
        let kept: Vec<&Told> = told.iter().filter(|told| is_kept(told, machine_percent_max)).collect();
        let ms = |of: fn(&Told) -> u64| Spread::of(kept.iter().map(|told| of(told) as f64 / 1e3));
        let sum = |of: fn(&Told) -> u64| kept.iter().map(|told| of(told)).sum();
        let served = kept.iter().flat_map(|told| &told.served);
        let (mut slow, mut all) = (0, 0);
        for (instance, calls) in served {
            all += calls;
            slow += if shape.is_slow(instance) { *calls } else { 0 };
        }
        Self {
            load,
            policy,
            windows: kept.len(),
            discarded: told.len() - kept.len(),
            calls: sum(|told| told.calls),
            failed: sum(|told| told.failed),
            p50_ms: ms(|told| told.p50_us),
            p90_ms: ms(|told| told.p90_us),
            p99_ms: ms(|told| told.p99_us),
            p999_ms: ms(|told| told.p999_us),
            slow_percent: percent(slow, all),
            machine_percent: kept.iter().map(|told| told.machine_percent).fold(0.0, f64::max),
            p99_ms_bar: None,
        }
    }

    /// Whether it is above its bar, or has nothing to show for one.
    pub fn is_missed(&self) -> bool {
        self.p99_ms_bar.is_some_and(|bar| self.windows == 0 || self.p99_ms.median > bar)
    }
}

fn percent(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 * 100.0 / all as f64 }
}

/// How endpoints that fail every call were avoided, from the moment they began to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Avoidance {
    /// Calls from then on.
    pub calls: u64,
    /// Those that failed.
    pub failed: u64,
    /// Failed calls that there were not, of those that a fair share of the calls would have been, percent; below 0 when they
    /// drew more than that.
    pub avoided_percent: f64,
    /// Until the first second in which less than a thousandth of the calls failed; none when there was none.
    pub settled_ms: Option<u64>,
    /// Of the calls in the second half.
    pub failed_percent_late: f64,
}

impl Avoidance {
    /// Over slices of this length from the moment on; `fair` is the share of the endpoints that fail.
    pub fn of(slices: &[Slice], slice_ms: u64, fair: f64) -> Self {
        let sum = |slices: &[Slice]| {
            slices.iter().fold((0, 0), |(calls, failed), slice| (calls + slice.calls, failed + slice.failed))
        };
        let (calls, failed) = sum(slices);
        let expected = calls as f64 * fair;
        let second = usize::try_from(1_000 / slice_ms.max(1)).unwrap_or(1).max(1);
        let is_settled = |slices: &[Slice]| {
            let (calls, failed) = sum(slices);
            calls > 0 && failed * 1_000 < calls
        };
        let settled = slices.windows(second).position(is_settled);
        let (late_calls, late_failed) = sum(slices.get(slices.len() / 2..).unwrap_or_default());
        Self {
            calls,
            failed,
            avoided_percent: if expected > 0.0 { (1.0 - failed as f64 / expected) * 100.0 } else { 0.0 },
            settled_ms: settled.map(|at| at as u64 * slice_ms),
            failed_percent_late: percent(late_failed, late_calls),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(p99_us: u64, machine_percent: f64) -> Told {
        let served = [("b0".to_owned(), 75), ("b1".to_owned(), 25)].into();
        Told { calls: 101, failed: 1, p99_us, machine_percent, served, ..Told::default() }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([]), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!(Spread::of([4.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn a_window_on_a_busy_machine_is_left_out_and_counted() {
        let shape = Shape { endpoints: 2, slots: 1, queue: 1, mean_us: 1, slow: 1, slow_factor: 3.0 };
        let windows = [told(200_000, 60.0), told(900_000, 60.1), told(300_000, 12.0)];
        let row = Row::of(0.7, Policy::P2c, &windows, &shape, 60.0);
        assert_eq!((row.windows, row.discarded, row.calls, row.failed), (2, 1, 202, 2));
        assert_eq!(row.p99_ms, Spread { median: 250.0, min: 200.0, max: 300.0 });
        assert_eq!((row.slow_percent, row.machine_percent), (25.0, 60.0));
    }

    #[test]
    fn a_bar_is_missed_by_what_is_above_it_and_by_what_was_not_measured() {
        let shape = Shape { endpoints: 2, slots: 1, queue: 1, mean_us: 1, slow: 0, slow_factor: 1.0 };
        let row = |percent| Row {
            p99_ms_bar: Some(240.0),
            ..Row::of(0.7, Policy::Lookaside, &[told(240_000, percent)], &shape, 60.0)
        };
        assert!(!row(10.0).is_missed());
        assert!(row(90.0).is_missed());
        assert!(Row { p99_ms_bar: Some(239.0), ..row(10.0) }.is_missed());
    }

    #[test]
    fn what_is_avoided_counts_against_a_fair_share() {
        let slice = |failed| Slice { calls: 100, failed };
        // Nobody avoids anything: a tenth of the endpoints fail, and so does a tenth of the calls.
        let fair = Avoidance::of(&[slice(10); 600], 100, 0.1);
        assert_eq!((fair.avoided_percent, fair.settled_ms, fair.failed_percent_late), (0.0, None, 10.0));
        // A sinkhole: what fails fast looks idle and draws more.
        assert!(Avoidance::of(&[slice(40); 600], 100, 0.1).avoided_percent < -290.0);
        // Two slices of failures and later one more: 21 of 6,000.
        let mut slices = vec![slice(0); 600];
        (slices[0], slices[1], slices[400]) = (slice(10), slice(10), slice(1));
        let avoided = Avoidance::of(&slices, 100, 0.1);
        assert_eq!((avoided.failed, avoided.settled_ms), (21, Some(200)));
        assert!((avoided.avoided_percent - 99.65).abs() < 1e-9, "{avoided:?}");
        assert_eq!(Avoidance::of(&[], 100, 0.1).settled_ms, None);
    }
}
