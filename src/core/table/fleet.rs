//! How the endpoints of a service fare together, in five numbers: what a client that sees a few of them, and some calls,
//! cannot find out. Medians and quantiles, or means of what is bounded for each: one that lies moves no number by more than
//! its part. Slow enough to be a second old everywhere.

use super::{capacity::USUAL_MILLI, endpoint::Endpoint, service::Service};
use crate::{config::PolicyKind, model::WEIGHT_USUAL, snapshot::Fleet};

/// Weight of the newest second against the past: half of what is told is of the last second, nine tenths of the last four.
const SMOOTHING: f64 = 0.5;

/// From this share of offered endpoints on calls in flight are many.
const HOT_PERMILLE: usize = 900;

/// Above this utilisation time in the system is time in queues as well. The service time is then believed to grow by this
/// much a second at most: a burst is over before it shows, and a service whose calls take longer is not misjudged for long.
const QUEUEING_UTILIZATION: f64 = 0.7;
const QUEUEING_GROWTH: f64 = 1.01;

/// Overload begins when the service is this full, or this share of its calls is turned away, and ends well below that: who
/// is told that it has ended sends more.
const OVERLOAD_UTILIZATION: f64 = 0.95;
const OVERLOAD_SHARE: f64 = 0.01;
const OVERLOAD_OVER_UTILIZATION: f64 = 0.90;
const OVERLOAD_OVER_SHARE: f64 = 0.005;

/// Of the endpoints, so many that turn most away are left out of that share, at least one: where a few are full there is
/// room elsewhere, and one that lies is no overload.
const OVERLOAD_LEFT_OUT_PERCENT: usize = 10;

/// What probes may cost, and what one costs: a hundredth of the time that calls take, at some 30 us for a call without work.
const PROBE_SHARE: f64 = 0.01;
const PROBE_US: f64 = 30.0;

/// Two probes for every call are the most anybody has a use for, and a fifth of a call while the service is overloaded: who
/// is full answers no sooner for being asked.
const PROBE_PERCENT_MAX: u32 = 200;
const PROBE_PERCENT_OVERLOAD: u32 = 20;

/// The estimates behind the numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gauge {
    hot: f64,
    service_time_us: f64,
    utilization: f64,
    turned_away: f64,
    is_known: bool,
    is_overload: bool,
}

impl Gauge {
    /// As snapshots have it; nothing while nobody reports.
    pub(super) fn fleet(&self) -> Fleet {
        if !self.is_known {
            return Fleet::default();
        }
        let affordable = match self.service_time_us {
            us if us > 0.0 => (us * PROBE_SHARE / PROBE_US * 100.0).round() as u32,
            _ => PROBE_PERCENT_MAX,
        };
        let most = if self.is_overload { PROBE_PERCENT_OVERLOAD } else { PROBE_PERCENT_MAX };
        Fleet {
            hot_milli: (self.hot * 1e3).round() as u32,
            service_time_us: self.service_time_us.round() as u64,
            utilization_permille: (self.utilization * 1e3).round() as u32,
            is_overload: self.is_overload,
            probe_percent: affordable.clamp(1, most),
        }
    }

    fn smooth(&self, estimate: f64, sample: Option<f64>) -> f64 {
        match sample {
            Some(sample) if self.is_known => estimate + SMOOTHING * (sample - estimate),
            Some(sample) => sample,
            None => 0.0,
        }
    }
}

impl Service {
    /// Brings the numbers up to date; to be called once a second.
    pub(super) fn gauge(&mut self) {
        let heard = |e: &&Endpoint| e.may_be_offered() && !e.is_late() && e.load.sequence().is_some();
        let endpoints: Vec<&Endpoint> = self.endpoints.values().filter(heard).collect();
        if endpoints.is_empty() {
            self.gauge = Gauge::default();
            return;
        }
        let utilizations = endpoints.iter().filter_map(|e| e.load.utilization_permille());
        // Above full are calls that wait: full is full, and nobody counts for more than one.
        let utilizations: Vec<f64> = utilizations.map(|permille| f64::from(permille.min(1000)) / 1e3).collect();
        let in_flight = endpoints.iter().map(|e| f64::from(e.load.in_flight()) / self.usual_capacities(e)).collect();
        let times = endpoints.iter().filter_map(|e| e.load.time_in_system_us()).collect();
        let mut turned_away: Vec<f64> = endpoints.iter().map(|e| e.load.overloaded()).collect();
        turned_away.sort_by(f64::total_cmp);
        let left_out = (turned_away.len() * OVERLOAD_LEFT_OUT_PERCENT / 100).max(1);
        turned_away.truncate(turned_away.len().saturating_sub(left_out).max(1));

        let (old, utilization) = (self.gauge, mean(&utilizations));
        let mut new = Gauge {
            hot: old.smooth(old.hot, quantile(in_flight, HOT_PERMILLE)),
            utilization: old.smooth(old.utilization, utilization),
            turned_away: old.smooth(old.turned_away, mean(&turned_away)),
            is_known: true,
            ..old
        };
        new.service_time_us = match quantile(times, 500) {
            Some(sample) if old.service_time_us > 0.0 && utilization > Some(QUEUEING_UTILIZATION) => {
                sample.min(old.service_time_us * QUEUEING_GROWTH)
            }
            Some(sample) if old.service_time_us > 0.0 => old.smooth(old.service_time_us, Some(sample)),
            Some(sample) => sample,
            // Nobody calls: it takes as long as it took.
            None => old.service_time_us,
        };
        // It does not begin with a few who were heard of, nor with a few who say how full they are; nor end with their silence.
        let offered = self.endpoints.values().filter(|e| e.may_be_offered()).count();
        let is_most = |count: usize| count * 2 >= offered;
        let fullness = if is_most(utilizations.len()) { new.utilization } else { 0.0 };
        new.is_overload = if old.is_overload {
            new.utilization > OVERLOAD_OVER_UTILIZATION || new.turned_away > OVERLOAD_OVER_SHARE
        } else {
            is_most(endpoints.len()) && (fullness > OVERLOAD_UTILIZATION || new.turned_away > OVERLOAD_SHARE)
        };
        self.gauge = new;
    }

    /// The endpoint's capacity as lists told it last, in usual ones: what clients hear of its load is taken per this.
    fn usual_capacities(&self, endpoint: &Endpoint) -> f64 {
        let told = match self.config.policy {
            PolicyKind::LeastLoad => self.snapshot.as_deref().and_then(|seen| seen.endpoint(&endpoint.spec.address)),
            // Clients of these are told that all are alike.
            PolicyKind::WeightedRoundRobin | PolicyKind::RoundRobin | PolicyKind::RingHash => return 1.0,
        };
        let per_weight = match told.map_or(0, |told| told.capacity_milli) {
            0 => USUAL_MILLI,
            known => known,
        };
        f64::from(endpoint.spec.weight.max(1)) / f64::from(WEIGHT_USUAL) * f64::from(per_weight)
            / f64::from(USUAL_MILLI)
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The value that so many permille of the others are below.
fn quantile(mut values: Vec<f64>, permille: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? * permille / 1000).copied()
}

#[cfg(test)]
mod tests;
