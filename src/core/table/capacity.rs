//! How much each endpoint gets done against the others of its service. A client sees how long a queue is and never how fast
//! it moves; and it is the capacity that says how long a queue may be. Measured from the sums that backends report: calls
//! that ended well per second of full utilisation, against the median of the service, since one that lies must not move
//! the others. It decides nothing: what a list says of it is the policies'.
//!
//! A capacity is per configured weight, and a share is weight times capacity. Whoever gave a large host twice the weight has
//! said already what would be measured: it must not count twice. What an operator or a slow start takes off is not put back.
//!
//! The estimate is slow on purpose. It stands for hosts, not for moments: those are the client's to see.

use std::{ops::RangeInclusive, time::Duration};

use super::{endpoint::Endpoint, service::Service};
use crate::{
    config::PolicyKind,
    event::LoadReport,
    limits::{CAPACITY_MILLI_MAX, CAPACITY_MILLI_MIN},
    model::{EndpointSpec, Timestamp},
};

/// The capacity of the median endpoint, and of one of which nothing is known.
pub(super) const USUAL_MILLI: u32 = 1000;

/// Time between two looks at the estimates of a service. Reports come every second.
const PERIOD: Duration = Duration::from_secs(1);

/// Fewer calls say nothing: thirty exponential service times put their mean right by 18 %.
const COMPLETIONS_MIN: f64 = 30.0;

/// Below this a utilisation is mostly what the process does without any call, and dividing by it makes idle hosts strong.
const UTILIZATION_MIN: f64 = 0.15;

/// How long reports count: until a thousand calls put the noise at 3 %, but at least ten reports, whose utilisations may be
/// those of a moment, and for no longer than a host may be believed to stay what it was.
const MEMORY_COMPLETIONS: f64 = 1000.0;
const MEMORY_S: RangeInclusive<f64> = 10.0..=30.0;

/// A report that comes so many periods after the one before tells nothing of the time between them: its utilisation is that
/// of its end.
const GAP_PERIODS: u32 = 3;

/// Variance of a call's work against the square of its mean: that of exponential times is 1, and calls are more unequal than
/// that. Without utilisations the time in the system stands for the time of service, which queues spoil: ten times as much.
const SIZE_VARIANCE: f64 = 2.0;
const SIZE_VARIANCE_IN_FLIGHT: f64 = 20.0;

/// Without utilisations nobody is more than four times the median, up or down: how many calls an endpoint can serve at once
/// is not seen, and calls that wait for others look like slow hosts.
const RATIO_MAX_IN_FLIGHT: f64 = 4.0;

/// The most an estimate moves, per second. The effect of a step is seen after a report and a push, some two seconds: a wrong
/// estimate has by then moved a share by less than a half. A host ten times slower is found in 13 s.
const SLEW_PER_S: f64 = 1.2;

/// Without evidence an estimate holds this long (gRPC A58 has the same), and then goes back to the median.
const EXPIRY: Duration = Duration::from_secs(180);

/// An endpoint whose calls fail more than twice as often as those of the others, and at all, proves nothing: failing is quick
/// and leaves a host idle.
const FAILING_FACTOR: f64 = 2.0;
const FAILING_MIN: f64 = 0.01;

/// A change of less than this is no new list, and one below the second waits until others have gathered: with a hundred
/// endpoints noise alone would otherwise make a list every second.
const STEP_PERMILLE: u32 = 50;
const STEP_AT_ONCE_PERMILLE: u32 = 150;
const GATHER: Duration = Duration::from_secs(5);

/// What a capacity is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    /// Calls per second over utilisation.
    Utilization,
    /// Calls per second over calls in flight, which by Little's law is the inverse of the time in the system.
    InFlight,
}

impl Measure {
    const ALL: [Self; 2] = [Self::Utilization, Self::InFlight];

    /// Variance of a rate's logarithm that chance alone gives it.
    fn variance(self, completions: f64) -> f64 {
        let calls = match self {
            Self::Utilization => SIZE_VARIANCE,
            Self::InFlight => SIZE_VARIANCE_IN_FLIGHT,
        };
        calls / completions.max(1.0)
    }

    fn ratio_ln_max(self) -> f64 {
        match self {
            Self::Utilization => (f64::from(CAPACITY_MILLI_MAX) / f64::from(USUAL_MILLI)).ln(),
            Self::InFlight => RATIO_MAX_IN_FLIGHT.ln(),
        }
    }
}

/// What reports add up to, the past fading.
#[derive(Debug, Clone, Default)]
struct Sums {
    /// Calls that ended well.
    good: f64,
    /// Seconds of full utilisation, or of a call in flight.
    cost_s: f64,
    /// Seconds.
    span_s: f64,
}

impl Sums {
    fn add(&mut self, good: f64, cost_s: f64, span_s: f64) {
        let memory_s = (MEMORY_COMPLETIONS * span_s / good.max(1.0)).clamp(*MEMORY_S.start(), *MEMORY_S.end());
        let kept = (-span_s / memory_s).exp();
        self.good = self.good * kept + good;
        self.cost_s = self.cost_s * kept + cost_s;
        self.span_s = self.span_s * kept + span_s;
    }

    /// Mean utilisation, or mean number of calls in flight.
    fn level(&self) -> f64 {
        if self.span_s > 0.0 { self.cost_s / self.span_s } else { 0.0 }
    }
}

/// The last evidence: how many calls a second of full utilisation is worth per weight, as a logarithm, and from how many calls
/// that is.
#[derive(Debug, Clone, Copy)]
struct Found {
    at: Timestamp,
    rate_ln: f64,
    completions: f64,
    /// What was to be expected of it, against the median.
    presumed_ln: f64,
}

impl Found {
    /// How far it is from what was to be expected.
    fn surprise_ln(&self, median_ln: f64) -> f64 {
        self.rate_ln - median_ln - self.presumed_ln
    }
}

/// How far endpoints lie apart beyond what chance does to their measurements, from the median or from what the last start had
/// found. Where that is nothing, nothing measured of a
/// single one is believed; where it is much, all of it: the estimate of James and Stein (1961), which is nearer to the truth
/// than the measurements for the fleet as a whole.
#[derive(Debug, Clone, Copy)]
struct Spread {
    measure: Measure,
    median_ln: f64,
    /// Variance of the endpoints' own rates, as logarithms, around what was to be expected of each.
    variance: f64,
    /// The same without the one that is furthest from that, and how far that is: one that lies is not to have noise of the
    /// others believed.
    variance_of_others: f64,
    furthest_ln: f64,
}

impl Spread {
    fn of(measure: Measure, found: &[Found]) -> Option<Self> {
        // Of what is not expected anyway: after a start of the balancer the fast ones are heard first, and their median would be
        // nobody's measure.
        let median_ln = median(found.iter().map(|found| found.rate_ln - found.presumed_ln).collect())?;
        let max = measure.ratio_ln_max();
        let away = |found: &Found| found.surprise_ln(median_ln).abs().min(max);
        // What there is beyond chance, squared, and how far off the furthest is.
        let beyond = |found: &Found| away(found).powi(2) - measure.variance(found.completions);
        let furthest = found.iter().max_by(|a, b| away(a).total_cmp(&away(b)))?;
        let all: f64 = found.iter().map(beyond).sum();
        let mean = |sum: f64, count: usize| (sum / count.max(1) as f64).max(0.0);
        Some(Self {
            measure,
            median_ln,
            variance: mean(all, found.len()),
            variance_of_others: mean(all - beyond(furthest), found.len() - 1),
            furthest_ln: away(furthest),
        })
    }

    /// How far a measurement is to be believed against the median.
    fn trust(&self, found: Found) -> f64 {
        let away = found.surprise_ln(self.median_ln).abs();
        let variance = if away < self.furthest_ln { self.variance_of_others } else { self.variance };
        variance / (variance + self.measure.variance(found.completions))
    }
}

/// What is known of the capacity of one start of a backend.
#[derive(Debug, Clone)]
pub(super) struct Capacity {
    measure: Measure,
    sums: Sums,
    /// Whether a report was added since the last look.
    is_fresh: bool,
    /// What its reports say is no evidence now.
    is_frozen: bool,
    found: Option<Found>,
    /// What the last start of the balancer had found, as `ratio_ln`, and when this one began with it.
    restored: Option<(Timestamp, f64)>,
    /// Against the median, as a logarithm, and where that is going.
    ratio_ln: f64,
    target_ln: f64,
    /// As published.
    milli: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            measure: Measure::InFlight,
            sums: Sums::default(),
            is_fresh: false,
            is_frozen: false,
            found: None,
            restored: None,
            ratio_ln: 0.0,
            target_ln: 0.0,
            milli: USUAL_MILLI,
        }
    }
}

impl Capacity {
    /// As the last start of the balancer had it: it holds as long as any other estimate without new evidence.
    pub(super) fn restored(milli: u32, now: Timestamp) -> Self {
        let milli = milli.clamp(CAPACITY_MILLI_MIN, CAPACITY_MILLI_MAX);
        let ratio_ln = (f64::from(milli) / f64::from(USUAL_MILLI)).ln();
        Self { restored: Some((now, ratio_ln)), ratio_ln, target_ln: ratio_ln, milli, ..Self::default() }
    }

    /// Whether anything was ever found out about it that still counts.
    pub(super) fn is_known(&self) -> bool {
        self.found.is_some() || self.restored.is_some()
    }

    /// What it is where there is no evidence: the median, or what the last start had found, the less the older that is.
    fn presumed_ln(&self, now: Timestamp) -> f64 {
        self.restored.map_or(0.0, |(at, ratio_ln)| {
            ratio_ln * (1.0 - now.since(at).as_secs_f64() / EXPIRY.as_secs_f64()).max(0.0)
        })
    }

    /// Takes in what happened from one report to the next. Sums that fell are no sums.
    pub(super) fn reported(
        &mut self,
        before: (Timestamp, LoadReport),
        after: (Timestamp, LoadReport),
        period: Duration,
    ) {
        let ((then, before), (now, after)) = (before, after);
        if after.utilization_permille.is_some() && self.measure != Measure::Utilization {
            let Self { milli, restored, ratio_ln, .. } = *self;
            let (ratio_ln, target_ln) = (restored.map_or(0.0, |_| ratio_ln), self.presumed_ln(now));
            *self = Self { measure: Measure::Utilization, milli, restored, ratio_ln, target_ln, ..Self::default() };
        }
        let passed = now.since(then);
        let fell = after.completions < before.completions
            || after.errors < before.errors
            || after.in_flight_us < before.in_flight_us;
        if self.is_frozen || fell || passed.is_zero() || passed > period * GAP_PERIODS {
            return;
        }
        let errors = after.errors - before.errors;
        // A failed call is quick and cheap, or it was work for nothing.
        let good = (after.completions - before.completions).saturating_sub(errors);
        let span_s = passed.as_secs_f64();
        let cost_s = match self.measure {
            // Above full are calls that wait, or what the host had to spare: neither is what it has for itself.
            Measure::Utilization => match after.utilization_permille {
                Some(permille) => f64::from(permille.min(1000)) / 1e3 * span_s,
                None => return,
            },
            Measure::InFlight => (after.in_flight_us - before.in_flight_us) as f64 / 1e6,
        };
        self.sums.add(good as f64, cost_s, span_s);
        self.is_fresh = true;
    }

    /// From now on its reports are evidence, or are not.
    fn freeze(&mut self, frozen: bool) {
        self.is_frozen = frozen;
        if frozen {
            // What came in just before it was noticed is no evidence either.
            self.sums = Sums::default();
            self.is_fresh = false;
            if self.found.is_some() {
                self.target_ln = self.ratio_ln;
            }
        }
    }

    fn look(&mut self, weight: u32, now: Timestamp) {
        let is_fresh = std::mem::take(&mut self.is_fresh);
        let is_busy = match self.measure {
            Measure::Utilization => self.sums.level() >= UTILIZATION_MIN,
            Measure::InFlight => self.sums.cost_s > 0.0,
        };
        if is_fresh && is_busy && self.sums.good >= COMPLETIONS_MIN {
            let rate_ln = (self.sums.good / self.sums.cost_s / f64::from(weight.max(1))).ln();
            let presumed_ln = self.presumed_ln(now);
            self.found = Some(Found { at: now, rate_ln, completions: self.sums.good, presumed_ln });
        }
        let is_over = |at: Timestamp| now.since(at) >= EXPIRY;
        let was_known = self.is_known();
        self.found = self.found.filter(|found| !is_over(found.at));
        self.restored = self.restored.filter(|(at, _)| !is_over(*at));
        if was_known && !self.is_known() {
            self.target_ln = 0.0;
        }
    }

    /// Goes towards what was found, against the median.
    fn follow(&mut self, fleet: Option<&Spread>, seconds: f64, now: Timestamp) {
        if let (Some(found), Some(fleet)) = (self.found, fleet)
            && found.at == now
        {
            let max = self.measure.ratio_ln_max();
            let surprise_ln = fleet.trust(found) * found.surprise_ln(fleet.median_ln);
            self.target_ln = (found.presumed_ln + surprise_ln).clamp(-max, max);
        }
        let most = SLEW_PER_S.ln() * seconds;
        self.ratio_ln += (self.target_ln - self.ratio_ln).clamp(-most, most);
    }

    /// As it was published last, thousandths of the median endpoint's, per weight.
    pub(super) fn milli(&self) -> u32 {
        self.milli
    }

    /// As estimated, against the median.
    pub(super) fn ratio(&self) -> f64 {
        self.ratio_ln.exp()
    }

    /// Whether what it reports is no evidence now.
    pub(super) fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// Publishes the estimate if it moved enough. Returns whether it did.
    fn hold(&mut self, may_gather: bool) -> bool {
        let milli = (f64::from(USUAL_MILLI) * self.ratio()).round() as u32;
        let milli = milli.clamp(CAPACITY_MILLI_MIN, CAPACITY_MILLI_MAX);
        let step = if may_gather { STEP_PERMILLE } else { STEP_AT_ONCE_PERMILLE };
        let moved = u64::from(milli.abs_diff(self.milli)) * 1000 >= u64::from(self.milli) * u64::from(step);
        if moved {
            self.milli = milli;
        }
        moved
    }
}

/// Priority, and zone where that matters.
pub(super) type Tier<'a> = (u32, &'a str);

/// What is held of the capacities of a service as a whole.
#[derive(Debug, Clone, Default)]
pub(super) struct Scale {
    measured_at: Timestamp,
    gathered_at: Timestamp,
    /// When weights that are measured changed last.
    pub(super) weighed_at: Timestamp,
    /// There is evidence on some endpoint.
    pub(super) is_known: bool,
}

impl Service {
    /// Brings estimates up to date, once a second. Returns whether it was time.
    pub(super) fn measure(&mut self, now: Timestamp) -> bool {
        let passed = now.since(self.scale.measured_at);
        if passed < PERIOD {
            return false;
        }
        self.scale.measured_at = now;
        self.freeze(now);
        self.endpoints.values_mut().for_each(|endpoint| endpoint.capacity.look(endpoint.spec.weight, now));
        // After a pause of the balancer itself nothing leaps.
        let seconds = passed.min(PERIOD * 2).as_secs_f64();
        for measure in Measure::ALL {
            let capacities = || self.endpoints.values().map(|e| &e.capacity).filter(|c| c.measure == measure);
            let found: Vec<Found> = capacities().filter_map(|c| c.found).collect();
            let fleet = Spread::of(measure, &found);
            let capacities = self.endpoints.values_mut().map(|e| &mut e.capacity);
            capacities.filter(|c| c.measure == measure).for_each(|c| c.follow(fleet.as_ref(), seconds, now));
        }
        self.scale.is_known = self.endpoints.values().any(|e| e.capacity.is_known());
        let may_gather = now.since(self.scale.gathered_at) >= GATHER;
        let mut gathered = false;
        for endpoint in self.endpoints.values_mut() {
            gathered |= endpoint.capacity.hold(may_gather);
        }
        if may_gather && gathered {
            self.scale.gathered_at = now;
        }
        self.weigh(now);
        self.gauge();
        true
    }

    /// Whose reports are no evidence: those that are not heard of, that still warm up, or whose calls fail.
    fn freeze(&mut self, now: Timestamp) {
        // Once for each: it is the sum without every voice in turn.
        let failing: Vec<f64> = self.endpoints.values().map(|e| e.failing(now)).collect();
        let offered = || self.endpoints.values().zip(&failing).filter(|(e, _)| e.may_be_offered());
        let sum: f64 = offered().map(|(_, failing)| failing).sum();
        let others = offered().count().saturating_sub(1).max(1) as f64;
        for (endpoint, own) in self.endpoints.values_mut().zip(failing) {
            let elsewhere = if endpoint.may_be_offered() { (sum - own) / others } else { 0.0 };
            let fails = own > (FAILING_FACTOR * elsewhere).max(FAILING_MIN);
            // Of one that is out, or nearly, clients tell nothing.
            let fails = fails || !endpoint.outlier.is_whole();
            let warms = endpoint.newcomer || endpoint.warming_since.is_some();
            endpoint.capacity.freeze(fails || warms || endpoint.is_late() || endpoint.registration.is_none());
        }
    }

    /// Those that are called by the same clients: utilisation and queues of others say nothing of theirs.
    pub(super) fn tier<'a>(&self, spec: &'a EndpointSpec) -> Tier<'a> {
        (spec.priority, if self.config.locality.prefer_zone { spec.locality.zone() } else { "" })
    }

    /// What snapshots say of an endpoint's capacity, before the ceiling: 0 while nothing is known of any. Policies that ask
    /// for no measure have none.
    pub(super) fn capacity_milli(&self, endpoint: &Endpoint) -> u32 {
        match self.config.policy {
            PolicyKind::LeastLoad if self.scale.is_known => endpoint.capacity.milli,
            PolicyKind::LeastLoad => 0,
            PolicyKind::WeightedRoundRobin => endpoint.corrected_milli,
            PolicyKind::RoundRobin | PolicyKind::RingHash => USUAL_MILLI,
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let count = values.len();
    let (low, high) = (values.get(count.checked_sub(1)? / 2)?, values.get(count / 2)?);
    Some((low + high) / 2.0)
}

#[cfg(test)]
mod tests;
