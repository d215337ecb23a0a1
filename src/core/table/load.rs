//! What an endpoint's reports say of its load. Estimates are floats here and integers once they order or weigh a list.

use crate::{event::LoadReport, limits::UTILIZATION_MAX, model::Timestamp};

/// Weight of the newest report against the past. Reports come every second: half of what is shown is under a second old,
/// nine tenths under four.
const SMOOTHING: f64 = 0.5;

/// Calls in flight that stand for a full endpoint where no utilisation is measured. Only the order of lists uses it.
const IN_FLIGHT_FULL: f64 = 10.0;

/// Calls in flight, on average, that are a tenth at most of what fills even an endpoint that serves one at a time.
const IN_FLIGHT_IDLE: f64 = 0.1;

/// The utilisation, going by its calls in flight, below which one that names none may be idle, permille.
const UNNAMED_IDLE_PERMILLE: f64 = 50.0;

/// How far beyond the edge of its tenth a load must go before its published tenth changes, permille.
const HYSTERESIS_PERMILLE: u32 = 30;

#[derive(Debug, Clone, Default)]
pub(super) struct Load {
    last: Option<(Timestamp, LoadReport)>,
    /// The utilisation that it named last, permille, and calls in flight meanwhile.
    named: Option<(u32, f64)>,
    calls_per_second: f64,
    errors_per_second: f64,
    turned_away: f64,
    in_flight_mean: f64,
    /// Mean of the newest period alone.
    in_flight_newest: f64,
    tenth: u32,
}

impl Load {
    /// Number of the newest report.
    pub(super) fn sequence(&self) -> Option<u64> {
        self.last.map(|(_, report)| report.sequence)
    }

    pub(super) fn reported_at(&self) -> Option<Timestamp> {
        self.last.map(|(at, _)| at)
    }

    /// The newest report, and when it came.
    pub(super) fn last(&self) -> Option<(Timestamp, LoadReport)> {
        self.last
    }

    /// Share of its calls that fail, by its own word.
    pub(super) fn failing(&self) -> f64 {
        if self.calls_per_second > 0.0 { (self.errors_per_second / self.calls_per_second).min(1.0) } else { 0.0 }
    }

    /// Share of its calls that it turns away because it is full, by its own word. A mean of shares: of one of rates nothing would
    /// be forgotten where calls stop coming.
    pub(super) fn overloaded(&self) -> f64 {
        self.turned_away
    }

    /// How long a call is in flight, by Little's law; `None` without calls.
    pub(super) fn time_in_system_us(&self) -> Option<f64> {
        let is_called = self.calls_per_second > 0.0 && self.in_flight_mean > 0.0;
        is_called.then(|| self.in_flight_mean / self.calls_per_second * 1e6)
    }

    /// Takes a report in.
    pub(super) fn reported(&mut self, report: LoadReport, now: Timestamp) {
        if self.last.is_none() {
            self.in_flight_newest = f64::from(report.in_flight);
        }
        if let Some((then, before)) = self.last {
            let seconds = now.since(then).as_secs_f64();
            if seconds > 0.0 {
                let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
                smooth(&mut self.calls_per_second, rate(report.completions, before.completions));
                smooth(&mut self.errors_per_second, rate(report.errors, before.errors));
                let calls = report.completions.saturating_sub(before.completions);
                let overloads = report.overloads.saturating_sub(before.overloads).min(calls);
                smooth(&mut self.turned_away, overloads as f64 / calls.max(1) as f64);
                self.in_flight_newest = rate(report.in_flight_us, before.in_flight_us) / 1e6;
                smooth(&mut self.in_flight_mean, self.in_flight_newest);
            }
        }
        self.last = Some((now, report));
        self.named = report.utilization_permille.map(|permille| (permille, self.in_flight_newest)).or(self.named);
        let load = self.load_permille();
        let (low, high) = (self.tenth * 100, self.tenth * 100 + 99);
        if load + HYSTERESIS_PERMILLE < low || load > high + HYSTERESIS_PERMILLE {
            self.tenth = load / 100;
        }
    }

    /// For the order of lists: tenths, with hysteresis.
    pub(super) fn published_permille(&self) -> u32 {
        self.tenth * 100
    }

    /// None once it has named one means that it is idle, since 0 is "not measured" on the wire; unless it has so many calls in
    /// flight, beside what it had when it named one, that something is wrong with what it measures by.
    pub(super) fn utilization_permille(&self) -> Option<u32> {
        let (_, report) = self.last?;
        report.utilization_permille.or_else(|| {
            let (permille, in_flight) = self.named?;
            let is_idle = self.in_flight_newest < IN_FLIGHT_IDLE
                || self.in_flight_newest * f64::from(permille) < in_flight * UNNAMED_IDLE_PERMILLE;
            is_idle.then_some(0)
        })
    }

    /// Whether it reports next to no call in flight: whatever it measures, it is not full.
    pub(super) fn is_idle(&self) -> bool {
        self.last.is_some() && self.in_flight_mean < IN_FLIGHT_IDLE
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.last.map_or(0, |(_, report)| report.in_flight)
    }

    pub(super) fn calls_per_second(&self) -> f64 {
        self.calls_per_second
    }

    fn load_permille(&self) -> u32 {
        match self.utilization_permille() {
            Some(permille) => permille.min((UTILIZATION_MAX * 1000.0) as u32),
            None => ((self.in_flight_mean / IN_FLIGHT_FULL * 1000.0) as u32).min(1000),
        }
    }
}

fn smooth(estimate: &mut f64, sample: f64) {
    *estimate += SMOOTHING * (sample - *estimate);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(load: &mut Load, second: u64, in_flight: u32, utilization_permille: Option<u32>) -> Option<u32> {
        let in_flight_us = load.last.map_or(0, |(_, before)| before.in_flight_us) + u64::from(in_flight) * 1_000_000;
        let sums = LoadReport { sequence: second, completions: second * 100, in_flight_us, ..LoadReport::default() };
        load.reported(LoadReport { in_flight, utilization_permille, ..sums }, Timestamp(second * 1_000_000));
        load.utilization_permille()
    }

    #[test]
    fn none_is_idle_only_beside_few_calls_in_flight() {
        let mut load = Load::default();
        assert_eq!(report(&mut load, 1, 8, None), None, "it has never named one");
        assert_eq!(report(&mut load, 2, 8, Some(900)), Some(900));
        assert_eq!(report(&mut load, 3, 8, None), None, "a sensor that broke");
        assert_eq!(load.published_permille(), 600, "by its calls in flight");
        assert_eq!(report(&mut load, 4, 0, None), Some(0));
        assert_eq!(report(&mut load, 5, 8, Some(5)), Some(5), "calls that wait for others");
        assert_eq!((report(&mut load, 6, 8, None), report(&mut load, 7, 7, None)), (Some(0), Some(0)));
        assert_eq!(report(&mut load, 8, 100, None), None);
    }
}
