//! What windows come to when they are put together: the middle of several, and what is left out and why.

use serde::Serialize;

use super::clients::Policy;
use super::fleet::Shape;
use super::window::Told;

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
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// Of some values; none of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let first = values.first().copied()?;
        let (min, max) = values.iter().fold((first, first), |(min, max), value| (min.min(*value), max.max(*value)));
        Some(Self { median: median(values), min, max })
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
    /// Latency of those that did; none without a window. Milliseconds from the moment they were due.
    pub p50_ms: Option<Spread>,
    /// 90 % are faster.
    pub p90_ms: Option<Spread>,
    /// 99 % are faster.
    pub p99_ms: Option<Spread>,
    /// 99.9 % are faster.
    pub p999_ms: Option<Spread>,
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
        self.p99_ms_bar.is_some_and(|bar| self.p99_ms.is_none_or(|p99| p99.median > bar))
    }
}

pub(super) fn percent(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 * 100.0 / all as f64 }
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
        assert_eq!(Spread::of([4.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_window_on_a_busy_machine_is_left_out_and_counted() {
        let shape = Shape { endpoints: 2, slots: 1, queue: 1, mean_us: 1, slow: 1, slow_factor: 3.0 };
        let windows = [told(200_000, 60.0), told(900_000, 60.1), told(300_000, 12.0)];
        let row = Row::of(0.7, Policy::P2c, &windows, &shape, 60.0);
        assert_eq!((row.windows, row.discarded, row.calls, row.failed), (2, 1, 202, 2));
        assert_eq!(row.p99_ms, Some(Spread { median: 250.0, min: 200.0, max: 300.0 }));
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
}
