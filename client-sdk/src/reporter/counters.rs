//! What a backend counts: calls in flight, ends by class, busy time. One short lock per start and per end of a call keeps
//! all of them true at the same instant; nothing in it allocates.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use std::time::{Duration, Instant};

use super::fullness::Fullness;
use super::rates::Rates;
use crate::outcome::Class;

/// The sums at one moment, since the start of the incarnation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) completions: u64,
    pub(crate) errors_overload: u64,
    pub(crate) errors_endpoint: u64,
    pub(crate) errors_deadline: u64,
    pub(crate) busy_us: u64,
    pub(crate) in_flight_us: u64,
    pub(crate) in_flight: u32,
}

impl Totals {
    fn errors(&self) -> u64 {
        self.errors_overload + self.errors_endpoint + self.errors_deadline
    }
}

#[derive(Debug, Default)]
struct Sums {
    totals: Totals,
    // When the time integrals were last brought up to date, since `Counters::started`.
    advanced_to_us: u64,
    rates: Rates,
}

impl Sums {
    fn advance(&mut self, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.advanced_to_us);
        if self.totals.in_flight > 0 {
            self.totals.busy_us += passed_us;
            self.totals.in_flight_us += passed_us * u64::from(self.totals.in_flight);
        }
        // Two threads may take the lock in another order than they read the clock.
        self.advanced_to_us = self.advanced_to_us.max(now_us);
        self.rates.advance(now_us, self.totals.completions, self.totals.errors());
    }
}

/// Beyond this a share is no share but a mistake; balancers refuse reports that claim more.
const SHARE_MAX: f64 = 100.0;

/// Shared by the layer, the reports and the ORCA services.
#[derive(Debug)]
pub(crate) struct Counters {
    started: Instant,
    sums: Mutex<Sums>,
    // Shares as f64 bits; zero bits are 0.0, "not measured".
    application_utilization: AtomicU64,
    // Of an application that lets us work its share out.
    fullness: Mutex<Option<Fullness>>,
    cpu_utilization: AtomicU64,
    cpu_us: AtomicU64,
}

/// What rides on a response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Momentary {
    pub(crate) in_flight: u32,
    pub(crate) calls_per_s: f64,
    pub(crate) errors_per_s: f64,
    pub(crate) application_utilization: f64,
    pub(crate) cpu_utilization: f64,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            sums: Mutex::default(),
            application_utilization: AtomicU64::new(0),
            fullness: Mutex::default(),
            cpu_utilization: AtomicU64::new(0),
            cpu_us: AtomicU64::new(0),
        }
    }

    fn now_us(&self) -> u64 {
        micros(self.started.elapsed())
    }

    // Counting goes on after a panic elsewhere: each update is whole before the lock is given back.
    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn totals(&self) -> Totals {
        let now_us = self.now_us();
        let mut sums = self.lock();
        sums.advance(now_us);
        sums.totals
    }

    /// Load now, `own_calls` in flight left out.
    pub(crate) fn momentary(&self, own_calls: u32) -> Momentary {
        let now_us = self.now_us();
        let mut sums = self.lock();
        sums.advance(now_us);
        self.momentary_of(&sums, own_calls)
    }

    fn momentary_of(&self, sums: &Sums, own_calls: u32) -> Momentary {
        Momentary {
            in_flight: sums.totals.in_flight.saturating_sub(own_calls),
            calls_per_s: sums.rates.calls_per_s(),
            errors_per_s: sums.rates.errors_per_s(),
            application_utilization: self.application_utilization(),
            cpu_utilization: self.cpu_utilization(),
        }
    }

    pub(crate) fn application_utilization(&self) -> f64 {
        f64::from_bits(self.application_utilization.load(Ordering::Relaxed))
    }

    pub(crate) fn set_application_utilization(&self, share: f64) {
        self.application_utilization.store(share.min(SHARE_MAX).to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn measure_by(&self, fullness: Fullness) {
        *self.fullness.lock().unwrap_or_else(PoisonError::into_inner) = Some(fullness);
    }

    /// Brings the application's share up to date, where that is measured: before each report, and each one that is pulled.
    pub(crate) fn measure(&self) {
        let mut fullness = self.fullness.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = fullness.as_mut().and_then(|fullness| fullness.sample(Instant::now())) {
            self.set_application_utilization(share);
        }
    }

    pub(crate) fn cpu_utilization(&self) -> f64 {
        f64::from_bits(self.cpu_utilization.load(Ordering::Relaxed))
    }

    pub(crate) fn cpu_us(&self) -> u64 {
        self.cpu_us.load(Ordering::Relaxed)
    }

    pub(crate) fn set_cpu(&self, used_us: u64, utilization: f64) {
        self.cpu_us.store(used_us, Ordering::Relaxed);
        self.cpu_utilization.store(utilization.min(SHARE_MAX).to_bits(), Ordering::Relaxed);
    }

    /// A call arrived. It counts until the returned guard is ended or dropped.
    pub(crate) fn begin(self: &Arc<Self>, limit: Option<Duration>) -> InFlight {
        let began_us = self.now_us();
        let mut sums = self.lock();
        sums.advance(began_us);
        sums.totals.in_flight += 1;
        drop(sums);
        InFlight { counters: Arc::clone(self), limit_us: limit.map(micros), began_us, ended: false }
    }

    fn end(&self, class: Class, now_us: u64) -> Momentary {
        let mut sums = self.lock();
        sums.advance(now_us);
        let totals = &mut sums.totals;
        totals.in_flight = totals.in_flight.saturating_sub(1);
        totals.completions += 1;
        match class {
            Class::Ok | Class::Caller | Class::Cancelled => {}
            Class::Overload => totals.errors_overload += 1,
            Class::Endpoint => totals.errors_endpoint += 1,
            Class::Deadline => totals.errors_deadline += 1,
        }
        self.momentary_of(&sums, 0)
    }
}

/// One call in flight. Dropped without an end it counts as cancelled, or as past its deadline when the time that the
/// caller gave is over: servers drop the work in both cases.
#[derive(Debug)]
pub(crate) struct InFlight {
    counters: Arc<Counters>,
    limit_us: Option<u64>,
    began_us: u64,
    ended: bool,
}

impl InFlight {
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The call ended; what load is left without it.
    pub(crate) fn end(mut self, class: Class) -> Momentary {
        self.ended = true;
        self.counters.end(class, self.counters.now_us())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let now_us = self.counters.now_us();
        let late = self.limit_us.is_some_and(|limit_us| now_us.saturating_sub(self.began_us) >= limit_us);
        self.counters.end(if late { Class::Deadline } else { Class::Cancelled }, now_us);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_flight_is_summed_over_calls_and_busy_time_is_not() {
        let mut sums = Sums::default();
        sums.advance(1_000);
        sums.totals.in_flight = 2;
        sums.advance(1_500);
        sums.totals.in_flight = 0;
        sums.advance(9_000);
        assert_eq!(sums.totals.busy_us, 500);
        assert_eq!(sums.totals.in_flight_us, 1_000);
    }

    #[test]
    fn a_clock_read_before_another_threads_update_changes_nothing() {
        let mut sums = Sums::default();
        sums.totals.in_flight = 1;
        sums.advance(2_000);
        sums.advance(1_000);
        sums.advance(3_000);
        assert_eq!(sums.totals.busy_us, 3_000);
    }

    #[test]
    fn a_dropped_call_is_completed_and_blames_nobody() {
        let counters = Arc::new(Counters::new());
        drop(counters.begin(None));
        let totals = counters.totals();
        assert_eq!((totals.completions, totals.errors(), totals.in_flight), (1, 0, 0));
    }

    #[test]
    fn a_call_dropped_after_its_time_is_a_deadline_error() {
        let counters = Arc::new(Counters::new());
        drop(counters.begin(Some(Duration::ZERO)));
        assert_eq!(counters.totals().errors_deadline, 1);
    }

    #[test]
    fn the_call_that_ends_is_not_in_its_own_load() {
        let counters = Arc::new(Counters::new());
        let others = [counters.begin(None), counters.begin(None)];
        let load = counters.begin(None).end(Class::Ok);
        assert_eq!(load.in_flight, 2);
        drop(others);
    }
}
