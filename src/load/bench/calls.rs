//! Rounds of small unary calls, through the SDK or through bare channels in turn, with the processor time that they took this
//! process. Both ways share everything that is not the SDK: generated client, runtime, requests, clocks.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use lookaside_proto::demo::{EchoRequest, echo_client::EchoClient};
use lookaside_sdk::EndpointState;
use serde::{Deserialize, Serialize};
use tonic::Status;
use tonic::transport::Endpoint;

use super::{Error, Usage};

/// Bytes that every call carries there and back.
const PAYLOAD_BYTES: usize = 64;
/// How long connections may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(20);
const LATENCY_US_MAX: u64 = 60_000_000;

/// A round of calls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// How many.
    pub calls: u64,
    /// So many at once.
    pub in_flight: usize,
    /// Calls per second at which they are due, latency counting from then; 0: each as soon as one before it has ended.
    pub rate_per_s: f64,
}

/// What a round came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Calls that ended with OK.
    pub ok: u64,
    /// Calls that did not.
    pub failed: u64,
    /// Processor time of this process, per call, nanoseconds.
    pub cpu_ns_per_call: u64,
    /// Calls per second.
    pub calls_per_s: u64,
    /// Median latency.
    pub p50_us: u64,
    /// 99 % are faster.
    pub p99_us: u64,
}

/// One client process's way to its endpoints.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Through the SDK, with a list from a balancer.
    Sdk(lookaside_sdk::Channel),
    /// Through one bare channel per endpoint, in turns.
    Bare(Arc<[tonic::transport::Channel]>),
}

impl Caller {
    /// Through the SDK; returns when so many endpoints are connected.
    ///
    /// # Errors
    /// When the balancer is not understood, or not that many come about.
    pub async fn sdk(service: &str, balancer: &str, endpoints: usize) -> Result<Self, Error> {
        let channel = lookaside_sdk::Channel::builder(service).balancers([balancer]).lazy()?;
        let started = Instant::now();
        loop {
            let is_ready = |e: &&lookaside_sdk::EndpointSnapshot| e.state == EndpointState::Ready;
            let ready = channel.snapshot().endpoints.iter().filter(is_ready).count();
            if ready >= endpoints {
                return Ok(Self::Sdk(channel));
            }
            if started.elapsed() > CONNECT_MAX {
                return Err(Error::Incomplete { what: "connections", ready, wanted: endpoints, within: CONNECT_MAX });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Through bare channels.
    ///
    /// # Errors
    /// When one cannot be connected.
    pub async fn bare(addresses: &[String]) -> Result<Self, Error> {
        let mut channels = Vec::with_capacity(addresses.len());
        for address in addresses {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
            channels.push(endpoint.connect_timeout(CONNECT_MAX).connect().await?);
        }
        Ok(Self::Bare(channels.into()))
    }

    /// Makes a round of calls.
    pub async fn round(&self, round: Round) -> Told {
        match self {
            Self::Sdk(channel) => {
                let client = EchoClient::new(channel.clone());
                run(round, move || {
                    let mut client = client.clone();
                    async move { client.unary(request()).await.map(drop) }
                })
                .await
            }
            Self::Bare(channels) => {
                let clients: Arc<[EchoClient<_>]> = channels.iter().cloned().map(EchoClient::new).collect();
                let turn = Arc::new(AtomicUsize::new(0));
                run(round, move || {
                    let mut client = clients[turn.fetch_add(1, Relaxed) % clients.len()].clone();
                    async move { client.unary(request()).await.map(drop) }
                })
                .await
            }
        }
    }
}

fn request() -> EchoRequest {
    EchoRequest { payload: vec![7; PAYLOAD_BYTES], ..EchoRequest::default() }
}

async fn run<F, C>(round: Round, call: F) -> Told
where
    F: Fn() -> C + Clone + Send + 'static,
    C: Future<Output = Result<(), Status>> + Send,
{
    let due = Arc::new(AtomicU64::new(0));
    let (usage, started) = (Usage::own(), Instant::now());
    let workers: Vec<_> = (0..round.in_flight)
        .map(|_| {
            let (call, due) = (call.clone(), due.clone());
            tokio::spawn(async move {
                let (mut ok, mut latencies_us) = (0, Vec::new());
                loop {
                    let number = due.fetch_add(1, Relaxed);
                    if number >= round.calls {
                        return (ok, latencies_us);
                    }
                    let mut from = Instant::now();
                    if round.rate_per_s > 0.0 {
                        from = started + Duration::from_secs_f64(number as f64 / round.rate_per_s);
                        tokio::time::sleep_until(from.into()).await;
                    }
                    ok += u64::from(call().await.is_ok());
                    latencies_us.push(from.elapsed().as_micros() as u64);
                }
            })
        })
        .collect();
    let mut told = Told::default();
    let mut ended = Vec::with_capacity(workers.len());
    for worker in workers {
        ended.push(worker.await.unwrap_or_default());
    }
    // What follows is no part of the calls.
    let (cpu_us, elapsed) = (Usage::own().cpu_us - usage.cpu_us, started.elapsed());
    let mut latencies = Histogram::<u64>::new_with_max(LATENCY_US_MAX, 3).ok();
    for (ok, latencies_us) in ended {
        told.ok += ok;
        for us in latencies_us {
            latencies.iter_mut().for_each(|all| all.saturating_record(us));
        }
    }
    let at = |quantile| latencies.as_ref().map_or(0, |all| all.value_at_quantile(quantile));
    Told {
        failed: round.calls - told.ok,
        cpu_ns_per_call: cpu_us * 1_000 / round.calls.max(1),
        calls_per_s: (round.calls as f64 / elapsed.as_secs_f64()) as u64,
        p50_us: at(0.5),
        p99_us: at(0.99),
        ..told
    }
}
