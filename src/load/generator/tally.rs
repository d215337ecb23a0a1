//! What the calls of a run came to, so far.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hdrhistogram::Histogram;
use tonic::Code;

use super::summary::{EndpointSummary, Summary};

/// Latencies above ten minutes are counted as ten minutes.
const LATENCY_US_MAX: u64 = 600_000_000;

/// Failures that are kept in their words, and how much of them.
const FAILURES_KEPT_MAX: usize = 10;
const FAILURE_CHARS_MAX: usize = 600;

/// Endpoints told apart; calls to others beyond them count in the sums alone.
const ENDPOINTS_MAX: usize = 10_000;

/// How a run goes.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Since the start.
    pub elapsed: Duration,
    /// Calls that have ended.
    pub calls: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Calls that have not ended.
    pub in_flight: usize,
    /// Calls that ended in the last whole second.
    pub calls_per_s: u64,
    /// Median latency from the scheduled start, microseconds.
    pub p50_us: u64,
    /// 99 % are faster, microseconds.
    pub p99_us: u64,
    /// In the order of their addresses.
    pub per_endpoint: Vec<EndpointProgress>,
}

/// How it goes on one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointProgress {
    /// `host:port`
    pub address: String,
    /// Calls that have ended.
    pub calls: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Calls that ended in the last whole second.
    pub calls_per_s: u64,
}

// Counts per second of the run.
#[derive(Debug, Default)]
struct PerSecond {
    second: u64,
    current: u64,
    before: u64,
}

impl PerSecond {
    fn add(&mut self, at: Duration) {
        self.advance(at);
        self.current += 1;
    }

    fn advance(&mut self, at: Duration) {
        match at.as_secs().saturating_sub(self.second) {
            0 => return,
            1 => self.before = self.current,
            _ => self.before = 0,
        }
        self.current = 0;
        self.second = at.as_secs();
    }

    fn last_whole(&mut self, now: Duration) -> u64 {
        self.advance(now);
        self.before
    }
}

#[derive(Debug)]
struct Endpoint {
    calls: u64,
    failed: u64,
    first: Duration,
    last: Duration,
    per_second: PerSecond,
}

#[derive(Debug)]
pub(crate) struct Tally {
    began_unix: Duration,
    calls: u64,
    failed: u64,
    not_sent: u64,
    failures_by_code: BTreeMap<&'static str, u64>,
    first_failures: Vec<String>,
    latency_us: Histogram<u64>,
    per_second: PerSecond,
    endpoints: BTreeMap<String, Endpoint>,
}

impl Tally {
    /// `began_unix`: when the run began, since 1970.
    pub(crate) fn new(began_unix: Duration) -> Self {
        let latency_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("bounds are in order, digits at most 5");
        Self {
            began_unix,
            calls: 0,
            failed: 0,
            not_sent: 0,
            failures_by_code: BTreeMap::new(),
            first_failures: Vec::new(),
            latency_us,
            per_second: PerSecond::default(),
            endpoints: BTreeMap::new(),
        }
    }

    /// A call was due and there was no room for it.
    pub(crate) fn not_sent(&mut self) {
        self.not_sent += 1;
        self.failure(Code::ResourceExhausted);
        self.calls += 1;
    }

    fn failure(&mut self, code: Code) {
        self.failed += 1;
        *self.failures_by_code.entry(code_name(code)).or_default() += 1;
    }

    /// Why a call failed, for as long as there is room.
    pub(crate) fn because(&mut self, now: Duration, status: &tonic::Status) {
        if self.first_failures.len() >= FAILURES_KEPT_MAX {
            return;
        }
        let words: String = status.message().chars().take(FAILURE_CHARS_MAX).collect();
        let words = format!("{}: {words}", code_name(status.code()));
        // The same words again say nothing new.
        if !self.first_failures.iter().any(|failure| failure.ends_with(&words)) {
            self.first_failures.push(format!("after {:.3} s, {words}", now.as_secs_f64()));
        }
    }

    /// A call ended: `started` and `now` since the start of the run, the latency since it was due.
    pub(crate) fn ended(
        &mut self,
        address: Option<&str>,
        code: Code,
        started: Duration,
        now: Duration,
        latency: Duration,
    ) {
        self.calls += 1;
        self.per_second.add(now);
        let failed = code != Code::Ok;
        if failed {
            self.failure(code);
        }
        self.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
        let Some(address) = address else { return };
        if !self.endpoints.contains_key(address) {
            if self.endpoints.len() >= ENDPOINTS_MAX {
                return;
            }
            let per_second = PerSecond::default();
            let endpoint = Endpoint { calls: 0, failed: 0, first: started, last: started, per_second };
            self.endpoints.insert(address.to_owned(), endpoint);
        }
        if let Some(endpoint) = self.endpoints.get_mut(address) {
            endpoint.calls += 1;
            endpoint.failed += u64::from(failed);
            endpoint.first = endpoint.first.min(started);
            endpoint.last = endpoint.last.max(started);
            endpoint.per_second.add(now);
        }
    }

    pub(crate) fn progress(&mut self, elapsed: Duration, in_flight: usize) -> Progress {
        let per_endpoint = self.endpoints.iter_mut().map(|(address, endpoint)| EndpointProgress {
            address: address.clone(),
            calls: endpoint.calls,
            failed: endpoint.failed,
            calls_per_s: endpoint.per_second.last_whole(elapsed),
        });
        let per_endpoint = per_endpoint.collect();
        Progress {
            elapsed,
            calls: self.calls,
            failed: self.failed,
            in_flight,
            calls_per_s: self.per_second.last_whole(elapsed),
            p50_us: self.latency_us.value_at_quantile(0.5),
            p99_us: self.latency_us.value_at_quantile(0.99),
            per_endpoint,
        }
    }

    /// `offered`: endpoints that clients may call now; those without a call count as well.
    pub(crate) fn summary(&self, offered: impl IntoIterator<Item = String>) -> Summary {
        let mut addresses: BTreeSet<String> = offered.into_iter().collect();
        addresses.extend(self.endpoints.keys().cloned());
        let per_endpoint: Vec<EndpointSummary> = addresses
            .into_iter()
            .map(|address| match self.endpoints.get(&address) {
                Some(endpoint) => EndpointSummary {
                    address,
                    calls: endpoint.calls,
                    failed: endpoint.failed,
                    first_call_ms: Some(millis(endpoint.first)),
                    last_call_ms: Some(millis(endpoint.last)),
                },
                None => EndpointSummary { address, ..EndpointSummary::default() },
            })
            .collect();
        let quantile = |quantile| self.latency_us.value_at_quantile(quantile);
        Summary {
            calls: self.calls,
            failed: self.failed,
            not_sent: self.not_sent,
            failures_by_code: self.failures_by_code.clone(),
            first_failures: self.first_failures.clone(),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_over_mean: max_over_mean(&per_endpoint),
            per_endpoint,
            began_unix_ms: millis(self.began_unix),
        }
    }
}

fn max_over_mean(per_endpoint: &[EndpointSummary]) -> f64 {
    let sum: u64 = per_endpoint.iter().map(|endpoint| endpoint.calls).sum();
    let max = per_endpoint.iter().map(|endpoint| endpoint.calls).max().unwrap_or(0);
    if sum == 0 { 0.0 } else { max as f64 * per_endpoint.len() as f64 / sum as f64 }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// As the standard writes them.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn first_and_last_are_starts_whatever_the_order_of_ends() {
        let mut tally = Tally::new(Duration::ZERO);
        tally.ended(Some("a:1"), Code::Ok, ms(30), ms(40), ms(10));
        tally.ended(Some("a:1"), Code::Unavailable, ms(10), ms(50), ms(40));
        tally.ended(None, Code::DeadlineExceeded, ms(60), ms(90), ms(30));
        let summary = tally.summary([]);
        let only = &summary.per_endpoint[0];
        assert_eq!((only.first_call_ms, only.last_call_ms), (Some(10), Some(30)));
        assert_eq!((only.calls, only.failed, summary.calls, summary.failed), (2, 1, 3, 2));
        assert_eq!(summary.failures_by_code, [("DEADLINE_EXCEEDED", 1), ("UNAVAILABLE", 1)].into());
    }

    #[test]
    fn an_offered_endpoint_without_calls_counts_in_the_balance() {
        let mut tally = Tally::new(Duration::ZERO);
        for _ in 0..4 {
            tally.ended(Some("a:1"), Code::Ok, ms(0), ms(1), ms(1));
        }
        let summary = tally.summary(["b:1".to_owned()]);
        assert_eq!(summary.max_over_mean, 2.0);
        assert_eq!(summary.per_endpoint[1].first_call_ms, None);
    }

    #[test]
    fn a_call_without_room_has_failed_and_has_no_latency() {
        let mut tally = Tally::new(Duration::ZERO);
        tally.not_sent();
        tally.ended(Some("a:1"), Code::Ok, ms(0), ms(9), ms(9));
        let summary = tally.summary([]);
        assert_eq!((summary.calls, summary.failed, summary.not_sent), (2, 1, 1));
        assert!((8_900..9_100).contains(&summary.p50_us), "{}", summary.p50_us);
    }

    #[test]
    fn rates_are_those_of_the_last_whole_second() {
        let mut tally = Tally::new(Duration::ZERO);
        for at in [100, 900, 1_100] {
            tally.ended(Some("a:1"), Code::Ok, ms(at), ms(at), ms(1));
        }
        assert_eq!(tally.progress(ms(1_500), 0).calls_per_s, 2);
        assert_eq!(tally.progress(ms(2_500), 0).per_endpoint[0].calls_per_s, 1);
        assert_eq!(tally.progress(ms(4_500), 0).calls_per_s, 0);
    }
}
