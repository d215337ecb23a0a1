//! Open-loop load through the SDK: calls start when the schedule says so, however slow the answers are, and latency counts
//! from the scheduled start. A generator that waits for answers before it asks again would hide the very delays it is to
//! measure.

mod schedule;
mod summary;
mod tally;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::try_join_all;
use lookaside_proto::demo::{EchoRequest, echo_client::EchoClient};
pub use lookaside_sdk::MethodPolicy;
use lookaside_sdk::{Channel, Tls};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

pub(crate) use schedule::Schedule;
pub use summary::{EndpointSummary, Summary};
use tally::Tally;
pub(crate) use tally::code_name;
pub use tally::{EndpointProgress, Progress};

/// A call that outlives its own deadline by this much is given up here, so that a run always ends.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);

/// How long a stop may go unseen between two calls.
const STOP_LOOK: Duration = Duration::from_millis(10);

/// What to send.
#[derive(Debug, Clone)]
pub struct Config {
    /// The service to call; its backends serve `lookaside.demo.v1.Echo`.
    pub service: String,
    /// Balancers to ask, `host:port` each.
    pub balancers: Vec<String>,
    /// How balancers are connected to; none: in plaintext.
    pub balancer_tls: Option<Tls>,
    /// How endpoints are connected to; none: in plaintext.
    pub tls: Option<Tls>,
    /// How many clients; each has a channel and an identity of its own, calls take turns among them.
    pub clients: usize,
    /// Identity of a client is this, a dash and its number; empty: a random name.
    pub client_id: String,
    /// Where the clients are: region/zone/subzone; empty when unknown.
    pub locality: String,
    /// Where clients keep their lists for the next run; none: nowhere.
    pub cache_dir: Option<PathBuf>,
    /// Calls per second, all clients together.
    pub rate_per_s: f64,
    /// How long calls are started; none: until stopped.
    pub duration: Option<Duration>,
    /// Deadline of each call, sent along and kept here.
    pub deadline: Duration,
    /// Times between calls vary as those of independent callers do, instead of being equal.
    pub poisson: bool,
    /// Calls in flight at once. A call beyond them is not sent: it counts as failed with RESOURCE_EXHAUSTED, and in
    /// `not_sent`.
    pub in_flight_max: usize,
    /// Backends wait this long between the work and the answer.
    pub answer_delay: Duration,
    /// How the calls are made; none: as the balancer says.
    pub policy: Option<MethodPolicy>,
    /// Calls that a client may have in flight on one endpoint; none: as the balancer says.
    pub endpoint_calls_max: Option<u32>,
    /// Of the random times.
    pub seed: u64,
}

impl Config {
    /// Three clients, 600 calls/s, for 20 s, with a deadline of 1 s.
    pub fn new<A: AsRef<str>>(service: impl Into<String>, balancers: impl IntoIterator<Item = A>) -> Self {
        Self {
            service: service.into(),
            balancers: balancers.into_iter().map(|balancer| balancer.as_ref().to_owned()).collect(),
            balancer_tls: None,
            tls: None,
            clients: 3,
            client_id: String::new(),
            locality: String::new(),
            cache_dir: None,
            rate_per_s: 600.0,
            duration: Some(Duration::from_secs(20)),
            deadline: Duration::from_secs(1),
            poisson: false,
            in_flight_max: 10_000,
            answer_delay: Duration::ZERO,
            policy: None,
            endpoint_calls_max: None,
            seed: rand::random(),
        }
    }
}

/// Why a run cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number outside its range.
    #[error("{what} is {value}, which is out of range: {range}")]
    Range {
        /// Which number.
        what: &'static str,
        /// What was given.
        value: f64,
        /// What is allowed.
        range: &'static str,
    },
    /// A client cannot start.
    #[error(transparent)]
    Channel(#[from] lookaside_sdk::Error),
}

/// A run under way; clones are handles of the same run. It goes on when all are dropped, until its time is over.
#[derive(Debug, Clone)]
pub struct Run {
    shared: Arc<Shared>,
    summary: watch::Receiver<Option<Summary>>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    // Of request ids.
    run_id: u64,
    channels: Vec<Channel>,
    started: Instant,
    tally: Mutex<Tally>,
    room: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Run {
    /// Connects the clients and starts to call. Fails when a number is out of range, or when a client has no list, by the
    /// SDK's own rules, after a few seconds.
    pub async fn start(config: Config) -> Result<Self, Error> {
        check(&config)?;
        let run_id = rand::random();
        let prefix = if config.client_id.is_empty() { format!("load-{run_id:016x}") } else { config.client_id.clone() };
        let channels = try_join_all((0..config.clients).map(|number| {
            let mut channel = Channel::builder(&config.service)
                .balancers(&config.balancers)
                .client_id(format!("{prefix}-{number}"))
                .locality(&config.locality);
            if let Some(folder) = &config.cache_dir {
                channel = channel.cache_dir(folder);
            }
            if let Some(policy) = &config.policy {
                channel = channel.method("", policy.clone());
            }
            if let Some(calls_max) = config.endpoint_calls_max {
                channel = channel.endpoint_calls_max(calls_max);
            }
            if let Some(tls) = &config.balancer_tls {
                channel = channel.balancer_tls(tls.clone());
            }
            if let Some(tls) = &config.tls {
                channel = channel.tls(tls.clone());
            }
            channel.connect()
        }))
        .await?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let shared = Arc::new(Shared {
            run_id,
            channels,
            started: Instant::now(),
            tally: Mutex::new(Tally::new(since_1970)),
            room: Arc::new(Semaphore::new(config.in_flight_max)),
            stop: CancellationToken::new(),
            config,
        });
        let (finished, summary) = watch::channel(None);
        let running = Arc::clone(&shared);
        tokio::spawn(async move {
            Arc::clone(&running).send_all().await;
            finished.send_replace(Some(running.summary()));
        });
        Ok(Self { shared, summary })
    }

    /// How it goes so far.
    pub fn progress(&self) -> Progress {
        // Each call in flight holds the room. Its permits do not tell: whoever waits for the end takes the free ones.
        let in_flight = Arc::strong_count(&self.shared.room) - 1;
        self.shared.tally().progress(self.shared.started.elapsed(), in_flight)
    }

    /// Starts no more calls; those in flight end.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// Waits until the run is over and every call has ended, which takes at most the deadline and a second longer than
    /// the last start, and sums it up.
    pub async fn finished(&self) -> Summary {
        let mut summary = self.summary.clone();
        match summary.wait_for(Option::is_some).await {
            Ok(summary) => summary.clone().unwrap_or_default(),
            // The runtime is going down with the run: what there is is what there will be.
            Err(_) => self.shared.summary(),
        }
    }
}

fn check(config: &Config) -> Result<(), Error> {
    let range = |what, value, range| Err(Error::Range { what, value, range });
    if !(config.rate_per_s > 0.0 && config.rate_per_s <= RATE_PER_S_MAX) {
        return range("rate", config.rate_per_s, "above 0, at most 1,000,000 calls/s");
    }
    if !(1..=CLIENTS_MAX).contains(&config.clients) {
        return range("clients", config.clients as f64, "1 to 10,000");
    }
    if !(1..=IN_FLIGHT_MAX).contains(&config.in_flight_max) {
        return range("calls in flight", config.in_flight_max as f64, "1 to 1,000,000");
    }
    if config.deadline.is_zero() || config.deadline > DEADLINE_MAX {
        return range("deadline", config.deadline.as_secs_f64(), "above 0, at most a day (in seconds)");
    }
    Ok(())
}

/// More is beyond one process: a typing error.
const RATE_PER_S_MAX: f64 = 1e6;
const CLIENTS_MAX: usize = 10_000;
const IN_FLIGHT_MAX: usize = 1_000_000;

/// A run lasts as long as its last call may; beyond a day it would seem to hang.
const DEADLINE_MAX: Duration = Duration::from_secs(86_400);

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send_all(self: Arc<Self>) {
        // Dropped with its runtime, the run ends all the same.
        let _stop = self.stop.clone().drop_guard();
        let pacing = Arc::clone(&self);
        let runtime = Handle::current();
        // An error would be a panic there; the calls that were started are summed up all the same.
        let _ = tokio::task::spawn_blocking(move || pacing.pace(&runtime)).await;
        let everyone = u32::try_from(self.config.in_flight_max).unwrap_or(u32::MAX); // at most IN_FLIGHT_MAX
        // Late is impossible short of a stopped process: every call carries its own time limit.
        let _ = timeout(self.config.deadline + 2 * DEADLINE_SLACK, self.room.acquire_many(everyone)).await;
    }

    // On a thread of its own: the runtime's timers are a millisecond coarse, which is as long as a fast call takes.
    fn pace(self: &Arc<Self>, runtime: &Handle) {
        let mut schedule = Schedule::new(self.config.rate_per_s, self.config.poisson, self.config.seed);
        let mut number = 0;
        let mut due = schedule.next_start();
        while self.config.duration.is_none_or(|duration| due < duration) && !self.stop.is_cancelled() {
            let early = due.saturating_sub(self.started.elapsed());
            if early.is_zero() {
                self.start_call(runtime, number, due);
                number += 1;
                due = schedule.next_start();
            } else {
                thread::sleep(early.min(STOP_LOOK));
            }
        }
    }

    fn start_call(self: &Arc<Self>, runtime: &Handle, number: u64, due: Duration) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            self.tally().not_sent();
            return;
        };
        let shared = Arc::clone(self);
        runtime.spawn(async move {
            shared.call(number, due).await;
            drop(room);
        });
    }

    async fn call(&self, number: u64, due: Duration) {
        let channel = self.channels[(number % self.channels.len() as u64) as usize].clone();
        let request_id = format!("{:016x}-{number}", self.run_id);
        let answer_delay_ms = u64::try_from(self.config.answer_delay.as_millis()).unwrap_or(u64::MAX);
        let mut request = Request::new(EchoRequest { payload: Vec::new(), request_id, answer_delay_ms });
        request.set_timeout(self.config.deadline);
        let started = self.started.elapsed();
        let mut client = EchoClient::new(channel);
        let answer = timeout(self.config.deadline + DEADLINE_SLACK, client.unary(request)).await;
        let (address, code) = match answer {
            Ok(Ok(response)) => (lookaside_sdk::picked(&response).map(|picked| picked.address.to_string()), Code::Ok),
            Ok(Err(status)) => {
                self.tally().because(self.started.elapsed(), &status);
                (endpoint_of(&status), status.code())
            }
            Err(_) => (None, Code::DeadlineExceeded),
        };
        let latency = self.started.elapsed().saturating_sub(due);
        self.tally().ended(address.as_deref(), code, started, self.started.elapsed(), latency);
    }

    fn summary(&self) -> Summary {
        let listed = self.channels.iter().flat_map(|channel| channel.snapshot().endpoints);
        let offered = listed.filter(|endpoint| endpoint.weight > 0).map(|endpoint| endpoint.address);
        self.tally().summary(offered)
    }
}

fn endpoint_of(status: &Status) -> Option<String> {
    lookaside_sdk::why(status).and_then(|why| why.endpoint)
}

#[cfg(test)]
mod tests;
