//! One window of an experiment: calls of many clients that are due whether those before them have ended or not, as independent
//! callers make them, latency counting from the moment a call was due. What comes in the first seconds is not in the figures.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::{sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::clients::{self, Client, Plan};
use super::usage::Machine;
use super::{Error, unix_us};
use crate::generator::{Schedule, code_name};

/// A call that outlives its own deadline by this much is given up, so that a window always ends.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);
/// How long an end may go unseen between two calls.
const STOP_LOOK: Duration = Duration::from_millis(10);
/// Calls in flight at once; one more is not sent and has failed.
const IN_FLIGHT_MAX: usize = 50_000;
const LATENCY_US_MAX: u64 = 600_000_000;
const FAILURE_CHARS_MAX: usize = 200;

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Calls per second, all clients together.
    pub rate_per_s: f64,
    /// Calls due before this are not in the figures.
    pub warm_up_ms: u64,
    /// Calls due in so long a time after that are.
    pub for_ms: u64,
    /// Of each call.
    pub deadline_ms: u64,
    /// Of the times at which calls are due, and of who makes them.
    pub seed: u64,
    /// Length of a span, when failures are to be told span by span; 0: they are not.
    pub span_ms: u64,
}

/// Calls that were due within a span of the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// All.
    pub calls: u64,
    /// Those that did not end with OK.
    pub failed: u64,
}

/// What a window came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Calls that were due; all have ended.
    pub calls: u64,
    /// Those that did not end with OK.
    pub failed: u64,
    /// How they ended.
    pub failures_by_code: BTreeMap<String, u64>,
    /// Calls that found too many in flight; they count as failed.
    pub not_sent: u64,
    /// The first failure in its words; empty without any.
    pub first_failure: String,
    /// Median latency of the calls that ended with OK, microseconds from the moment they were due.
    pub p50_us: u64,
    /// 90 % are faster.
    pub p90_us: u64,
    /// 99 % are faster.
    pub p99_us: u64,
    /// 99.9 % are faster.
    pub p999_us: u64,
    /// Calls that ended with OK, by the name of the backend.
    pub served: BTreeMap<String, u64>,
    /// How busy the processors of the machine were with all that ran on it, percent.
    pub machine_percent: f64,
    /// When the first call was due, warm-up included, on the wall clock, microseconds since 1970.
    pub began_us: u64,
    /// From that moment on, where they were asked for.
    pub spans: Vec<Span>,
}

/// Clients of one process.
#[derive(Debug)]
pub struct Callers(Arc<[Client]>);

impl Callers {
    /// Connects them all.
    ///
    /// # Errors
    /// When a connection cannot be made, or not all come about in time.
    pub async fn connect(plan: &Plan) -> Result<Self, Error> {
        Ok(Self(clients::connect(plan).await?.into()))
    }

    /// Sends what is to be sent and waits until every call has ended. Dropped before, it sends no more.
    pub async fn run(&self, window: Window) -> Told {
        let warm_up = Duration::from_millis(window.warm_up_ms);
        let (end, deadline) =
            (warm_up + Duration::from_millis(window.for_ms), Duration::from_millis(window.deadline_ms));
        let (started, began_us) = (Instant::now(), unix_us());
        let running = Arc::new(Running {
            clients: Arc::clone(&self.0),
            window,
            measured: warm_up..end,
            deadline,
            started,
            tally: Mutex::new(Tally::new()),
            calls: TaskTracker::new(),
            stop: AtomicBool::new(false),
        });
        let stop = Stop(Arc::clone(&running));
        let (pacing, runtime) = (Arc::clone(&running), Handle::current());
        let paced = tokio::task::spawn_blocking(move || pacing.pace(&runtime));
        sleep_until((started + warm_up).into()).await;
        let before = Machine::now();
        sleep_until((started + end).into()).await;
        let machine_percent = Machine::now().percent_since(&before);
        // An error would be a panic there; the calls that were started are summed up all the same.
        let _ = paced.await;
        running.calls.close();
        // Late is impossible short of a stopped process: every call carries its own time limit.
        let _ = timeout(deadline + 2 * DEADLINE_SLACK, running.calls.wait()).await;
        drop(stop);
        Told { machine_percent, began_us, ..running.tally().told() }
    }
}

#[derive(Debug)]
struct Running {
    clients: Arc<[Client]>,
    window: Window,
    measured: std::ops::Range<Duration>,
    deadline: Duration,
    started: Instant,
    tally: Mutex<Tally>,
    calls: TaskTracker,
    stop: AtomicBool,
}

struct Stop(Arc<Running>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

impl Running {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // On a thread of its own: the runtime's timers are a millisecond coarse.
    fn pace(self: &Arc<Self>, runtime: &Handle) {
        let mut schedule = Schedule::new(self.window.rate_per_s, true, self.window.seed);
        let mut random = StdRng::seed_from_u64(!self.window.seed);
        let mut due = schedule.next_start();
        while due < self.measured.end && !self.stop.load(Relaxed) {
            let early = due.saturating_sub(self.started.elapsed());
            if early.is_zero() {
                // By chance, not in turns: each client's own calls come as independent ones do.
                self.start_call(runtime, random.random_range(0..self.clients.len().max(1)), due);
                due = schedule.next_start();
            } else {
                thread::sleep(early.min(STOP_LOOK));
            }
        }
    }

    fn start_call(self: &Arc<Self>, runtime: &Handle, client: usize, due: Duration) {
        if self.calls.len() >= IN_FLIGHT_MAX {
            let full = Status::resource_exhausted("too many calls are in flight here");
            self.ended(due, Err(full), true);
            return;
        }
        let running = Arc::clone(self);
        let call = async move {
            let Some(client) = running.clients.get(client) else { return };
            let limit = running.deadline + DEADLINE_SLACK;
            let answer = timeout(limit, client.call(running.deadline)).await;
            running.ended(due, answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))), false);
        };
        self.calls.spawn_on(call, runtime);
    }

    fn ended(&self, due: Duration, answer: Result<String, Status>, not_sent: bool) {
        let latency = self.started.elapsed().saturating_sub(due);
        let mut tally = self.tally();
        if let Some(at) = (due.as_millis() as u64).checked_div(self.window.span_ms) {
            tally.span(at as usize, answer.is_err());
        }
        if self.measured.contains(&due) {
            tally.ended(answer, latency, not_sent);
        }
    }
}

#[derive(Debug)]
struct Tally {
    told: Told,
    latency_us: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        let latency_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("bounds are in order, digits at most 5");
        Self { told: Told::default(), latency_us }
    }

    fn span(&mut self, at: usize, failed: bool) {
        let spans = &mut self.told.spans;
        if spans.len() <= at {
            spans.resize(at + 1, Span::default());
        }
        spans[at].calls += 1;
        spans[at].failed += u64::from(failed);
    }

    fn ended(&mut self, answer: Result<String, Status>, latency: Duration, not_sent: bool) {
        let told = &mut self.told;
        told.calls += 1;
        told.not_sent += u64::from(not_sent);
        match answer {
            Ok(instance) => {
                *told.served.entry(instance).or_default() += 1;
                self.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
            }
            Err(status) => {
                told.failed += 1;
                let code: Code = status.code();
                *told.failures_by_code.entry(code_name(code).to_owned()).or_default() += 1;
                if told.first_failure.is_empty() {
                    told.first_failure = status.message().chars().take(FAILURE_CHARS_MAX).collect();
                }
            }
        }
    }

    fn told(&self) -> Told {
        let at = |quantile| self.latency_us.value_at_quantile(quantile);
        Told { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), p999_us: at(0.999), ..self.told.clone() }
    }
}

#[cfg(test)]
mod tests;
