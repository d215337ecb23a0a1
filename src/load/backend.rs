//! A backend that really serves gRPC and only pretends to work: calls hold a slot for as long as a distribution says,
//! wait in a bounded queue for one, and are refused when that is full.
//!
//! Unary calls use the virtual capacity. Streams do not: they are as fast as their reader.

mod capacity;
mod connection;
mod distribution;
mod echo;
mod executions;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use lookaside_proto::demo::echo_server::EchoServer;
use lookaside_sdk::tls::Acceptor;
use lookaside_sdk::{Reporter, Tls, reporter};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

pub use distribution::Distribution;
use echo::EchoService;

/// Streams one connection may have open: far more than a demo wants, far fewer than would exhaust memory.
const STREAMS_PER_CONNECTION_MAX: u32 = 10_000;

/// Times of work beyond these are typing errors, and their product still is a time.
const MEAN_MAX: Duration = Duration::from_secs(3600);
const SLOW_FACTOR_MAX: f64 = 1e6;

/// What a backend is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// The service it serves.
    pub service: String,
    /// Balancers to report to, `host:port` each; none: it only answers health checks, ORCA pulls and probes.
    pub balancers: Vec<String>,
    /// How balancers are connected to; none: in plaintext.
    pub balancer_tls: Option<Tls>,
    /// Where it listens; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// How it is connected to; none: in plaintext.
    pub tls: Option<Acceptor>,
    /// The name its certificate shows, when that is not the host of its address.
    pub tls_name: String,
    /// Its own name; none: its address.
    pub instance: Option<String>,
    /// region/zone/subzone; empty when unknown.
    pub locality: String,
    /// Mean time that a call takes once it has a slot.
    pub mean: Duration,
    /// How that time varies.
    pub distribution: Distribution,
    /// Calls worked on at once, at least 1.
    pub slots: u32,
    /// Calls that may wait for a slot; one more is refused with RESOURCE_EXHAUSTED.
    pub queue: u32,
    /// Multiplies every service time: 3.0 is a machine three times slower.
    pub slow_factor: f64,
    /// Share of calls that fail in a millisecond with INTERNAL, 0 to 1, without using capacity: a backend that fails fast.
    pub fail_rate: f64,
    /// How long calls and streams in flight may last after a drain before their connections are cut.
    pub grace: Duration,
    /// Of the random times; backends with one seed take the same times in the same order.
    pub seed: u64,
}

impl Config {
    /// A backend of `service` on a free port of 127.0.0.1: 40 ms a call, exponential, eight at once, a hundred waiting.
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            balancers: Vec::new(),
            balancer_tls: None,
            tls: None,
            tls_name: String::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            instance: None,
            locality: String::new(),
            mean: Duration::from_millis(40),
            distribution: Distribution::Exp,
            slots: 8,
            queue: 100,
            slow_factor: 1.0,
            fail_rate: 0.0,
            grace: Duration::from_secs(30),
            seed: rand::random(),
        }
    }
}

/// Why a backend cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port is taken, or the address is not ours.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
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
    /// No client could connect to it.
    #[error("listening on {listen}, which is no address to connect to: listen on one that clients can reach")]
    NotReachable {
        /// Where it listens.
        listen: SocketAddr,
    },
    /// It cannot be described to a balancer.
    #[error(transparent)]
    Reporter(#[from] reporter::Error),
}

/// A running backend. Dropped, it dies as if killed.
#[derive(Debug)]
pub struct Backend {
    address: String,
    grace: Duration,
    reporter: Reporter,
    echo: EchoService,
    // No new calls, those in flight end.
    stop: CancellationToken,
    // Everything ends, at once.
    kill: CancellationToken,
    ended: watch::Receiver<bool>,
}

impl Backend {
    /// Starts to listen and to report. Fails when the address is not to be had or a number is out of range; a balancer
    /// that is away is no failure.
    pub async fn start(config: Config) -> Result<Self, Error> {
        check(&config)?;
        let fail = |source| Error::Listen { listen: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(fail)?;
        let local = listener.local_addr().map_err(fail)?;
        if local.ip().is_unspecified() {
            return Err(Error::NotReachable { listen: local });
        }
        let address = local.to_string();
        let instance = config.instance.clone().unwrap_or_else(|| address.clone());
        let mut reporter = Reporter::builder(&config.service);
        if let Some(tls) = &config.balancer_tls {
            reporter = reporter.tls(tls.clone());
        }
        let reporter = reporter
            .balancers(&config.balancers)
            .advertise(&address)
            .instance(&instance)
            .locality(&config.locality)
            .tls_name(&config.tls_name)
            // The process may hold a whole fleet, and its work is made of timers.
            .measure_cpu(false)
            .start()
            .await?;
        let echo = EchoService::new(&config, instance, &reporter);
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let serving = Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .layer(reporter.layer())
            .add_service(reporter.health_service())
            .add_service(reporter.orca_service())
            .add_service(reporter.probe_service())
            .add_service(EchoServer::new(echo.clone()))
            .serve_with_incoming_shutdown(
                connection::accept(listener, config.tls.clone(), kill.clone()),
                stop.clone().cancelled_owned(),
            );
        let (end, ended) = watch::channel(false);
        let killed = kill.clone();
        tokio::spawn(async move {
            tokio::select! {
                served = serving => {
                    if let Err(error) = served {
                        tracing::error!("backend {local} stopped serving: {error}");
                    }
                }
                () = killed.cancelled() => {}
            }
            end.send_replace(true);
        });
        Ok(Self { address, grace: config.grace, reporter, echo, stop, kill, ended })
    }

    /// Where it listens and clients reach it, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> u32 {
        self.reporter.in_flight()
    }

    /// Streams open now.
    pub fn open_streams(&self) -> u32 {
        self.echo.open_streams()
    }

    /// How often a request id was executed here; the oldest are forgotten beyond 200,000.
    pub fn executions(&self, request_id: &str) -> u32 {
        self.echo.executions(request_id)
    }

    /// Unary calls that arrived, refused and failed ones included.
    pub fn calls(&self) -> u64 {
        self.echo.calls()
    }

    /// Fails every call with UNAVAILABLE from now on, in a millisecond and without using capacity, or serves again. Health
    /// checks are told nothing of it.
    pub fn set_unavailable(&self, unavailable: bool) {
        self.echo.set_unavailable(unavailable);
    }

    /// What health checks are told from now on.
    pub async fn set_serving(&self, serving: bool) {
        self.reporter.set_serving(serving).await;
    }

    /// Resolves once a balancer has accepted the registration; never without one.
    pub async fn registered(&self) {
        self.reporter.registered().await;
    }

    /// Leaves as a backend does on SIGTERM: out of the lists, no more connections, calls in flight end. What is left after
    /// the grace is cut.
    pub async fn drain(&self) {
        tokio::select! {
            () = self.reporter.drain() => {}
            () = self.kill.cancelled() => {}
        }
        self.stop.cancel();
        if tokio::time::timeout(self.grace, self.ended()).await.is_err() {
            tracing::warn!("backend {} cuts what is still in flight after {} s", self.address, self.grace.as_secs());
        }
        self.kill();
    }

    /// Dies at once: the port closes, connections break, reporting breaks off without a word.
    pub fn kill(&self) {
        self.kill.cancel();
        self.reporter.abandon();
    }

    /// Resolves once it no longer serves.
    pub async fn ended(&self) {
        // An error means that the server is gone, which is what is waited for.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

fn check(config: &Config) -> Result<(), Error> {
    let range = |what, value, range| Err(Error::Range { what, value, range });
    if !(config.slow_factor > 0.0 && config.slow_factor <= SLOW_FACTOR_MAX) {
        return range("slow factor", config.slow_factor, "above 0, at most 1,000,000");
    }
    if config.mean > MEAN_MAX {
        return range("mean service time", config.mean.as_secs_f64(), "at most 3600 s");
    }
    if !(0.0..=1.0).contains(&config.fail_rate) {
        return range("fail rate", config.fail_rate, "0 to 1");
    }
    if config.slots == 0 {
        return range("slots", 0.0, "at least 1");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
