//! How well endpoints that fail every call at once were avoided. To whoever goes by calls in flight or by latency such an endpoint
//! looks idle and quick, and draws more than its share: a sinkhole.

use serde::Serialize;

use super::clients::Policy;
use super::figures::{Spread, is_kept, percent};
use super::window::{Span, Told};

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
    /// Of the calls of a window that were due in so long a time from this moment on, microseconds since 1970.
    pub fn since(at_us: u64, told: &Told, span_ms: u64, for_ms: u64, fair: f64) -> Self {
        let spans = |ms: u64| usize::try_from(ms / span_ms.max(1)).unwrap_or(usize::MAX);
        let first = spans(at_us.saturating_sub(told.began_us) / 1_000);
        let all = told.spans.get(first..).unwrap_or_default();
        Self::of(&all[..all.len().min(spans(for_ms))], span_ms, fair)
    }

    /// Over spans of this length from the moment on; `fair` is the share of the endpoints that fail.
    fn of(spans: &[Span], span_ms: u64, fair: f64) -> Self {
        let sum = |spans: &[Span]| {
            spans.iter().fold((0, 0), |(calls, failed), span| (calls + span.calls, failed + span.failed))
        };
        let (calls, failed) = sum(spans);
        let expected = calls as f64 * fair;
        let second = usize::try_from(1_000 / span_ms.max(1)).unwrap_or(1).max(1);
        let is_settled = |spans: &[Span]| {
            let (calls, failed) = sum(spans);
            calls > 0 && failed * 1_000 < calls
        };
        let settled = spans.windows(second).position(is_settled);
        let (late_calls, late_failed) = sum(spans.get(spans.len() / 2..).unwrap_or_default());
        Self {
            calls,
            failed,
            avoided_percent: if expected > 0.0 { (1.0 - failed as f64 / expected) * 100.0 } else { 0.0 },
            settled_ms: settled.map(|at| at as u64 * span_ms),
            failed_percent_late: percent(late_failed, late_calls),
        }
    }
}

/// One policy over all its windows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// How endpoints were chosen.
    pub policy: Policy,
    /// Windows that the figures are of.
    pub windows: usize,
    /// Windows left out, the machine having been too busy.
    pub discarded: usize,
    /// Calls due from the moment on, in the windows that are left.
    pub calls: u64,
    /// Those that failed.
    pub failed: u64,
    /// See [`Avoidance::avoided_percent`]; none without a window.
    pub avoided_percent: Option<Spread>,
    /// See [`Avoidance::settled_ms`], over the windows in which that came about.
    pub settled_ms: Option<Spread>,
    /// Windows in which it did not.
    pub unsettled: usize,
    /// See [`Avoidance::failed_percent_late`].
    pub failed_percent_late: Option<Spread>,
    /// Latency of the calls that ended with OK, milliseconds from the moment they were due.
    pub p99_ms: Option<Spread>,
    /// How busy the machine was at the most.
    pub machine_percent: f64,
    /// What the median of `avoided_percent` must reach, where we promise that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avoided_percent_bar: Option<f64>,
}

impl Row {
    /// Puts the windows of one policy together.
    pub fn of(policy: Policy, windows: &[(Told, Avoidance)], machine_percent_max: f64) -> Self {
        let kept: Vec<_> = windows.iter().filter(|(told, _)| is_kept(told, machine_percent_max)).collect();
        let settled: Vec<f64> = kept.iter().filter_map(|(_, of)| of.settled_ms).map(|ms| ms as f64).collect();
        Self {
            policy,
            windows: kept.len(),
            discarded: windows.len() - kept.len(),
            calls: kept.iter().map(|(_, of)| of.calls).sum(),
            failed: kept.iter().map(|(_, of)| of.failed).sum(),
            avoided_percent: Spread::of(kept.iter().map(|(_, of)| of.avoided_percent)),
            unsettled: kept.len() - settled.len(),
            settled_ms: Spread::of(settled),
            failed_percent_late: Spread::of(kept.iter().map(|(_, of)| of.failed_percent_late)),
            p99_ms: Spread::of(kept.iter().map(|(told, _)| told.p99_us as f64 / 1e3)),
            machine_percent: kept.iter().map(|(told, _)| told.machine_percent).fold(0.0, f64::max),
            avoided_percent_bar: None,
        }
    }

    /// Whether it falls short of its bar, or has nothing to show for one.
    pub fn is_missed(&self) -> bool {
        self.avoided_percent_bar.is_some_and(|bar| self.avoided_percent.is_none_or(|avoided| avoided.median < bar))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_avoided_counts_against_a_fair_share() {
        let span = |failed| Span { calls: 100, failed };
        // Nobody avoids anything: a tenth of the endpoints fail, and so does a tenth of the calls.
        let fair = Avoidance::of(&[span(10); 600], 100, 0.1);
        assert_eq!((fair.avoided_percent, fair.settled_ms, fair.failed_percent_late), (0.0, None, 10.0));
        // A sinkhole: what fails fast looks idle and draws more.
        assert!(Avoidance::of(&[span(40); 600], 100, 0.1).avoided_percent < -290.0);
        // Two spans of failures and later one more: 21 of 6,000.
        let mut spans = vec![span(0); 600];
        (spans[0], spans[1], spans[400]) = (span(10), span(10), span(1));
        let avoided = Avoidance::of(&spans, 100, 0.1);
        assert_eq!((avoided.failed, avoided.settled_ms), (21, Some(200)));
        assert!((avoided.avoided_percent - 99.65).abs() < 1e-9, "{avoided:?}");
        assert_eq!(Avoidance::of(&[], 100, 0.1).settled_ms, None);
    }

    #[test]
    fn what_was_before_the_moment_and_long_after_it_does_not_count() {
        let spans = [(10, 9), (10, 9), (10, 0), (10, 1), (10, 9)].map(|(calls, failed)| Span { calls, failed });
        let told = Told { began_us: 5_000_000, spans: spans.to_vec(), ..Told::default() };
        let avoidance = |at_us, for_ms| {
            let of = Avoidance::since(at_us, &told, 100, for_ms, 0.1);
            (of.calls, of.failed)
        };
        assert_eq!(avoidance(5_250_000, 200), (20, 1));
        assert_eq!(avoidance(4_000_000, 100), (10, 9));
        assert_eq!(avoidance(9_000_000, 100), (0, 0));
    }

    #[test]
    fn windows_that_never_settled_are_counted_and_not_averaged() {
        let of = |settled_ms| Avoidance {
            calls: 100,
            failed: 1,
            avoided_percent: 90.0,
            settled_ms,
            failed_percent_late: 0.0,
        };
        let windows = [Some(400), None, Some(200)].map(|settled| (Told::default(), of(settled)));
        let row = Row::of(Policy::P2c, &windows, 60.0);
        assert_eq!((row.windows, row.unsettled, row.settled_ms.map(|ms| ms.median)), (3, 1, Some(300.0)));
        assert!(Row { avoided_percent_bar: Some(98.0), ..row.clone() }.is_missed());
        assert!(!Row { avoided_percent_bar: Some(90.0), ..row }.is_missed());
    }
}
