//! Keeps a pick stream to one balancer and puts the lists it brings to use. While there is no balancer the last list serves;
//! nothing that happens here can take an endpoint away but a list that says so.

mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lookaside_proto::v1::{
    Ack, HeldList, Hello, Outcomes, PickRequest, PickResponse, Subscribe, Tick, balancer_client::BalancerClient,
    pick_request, pick_response,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport;

use crate::{
    backoff::Backoff,
    error::{cut, flatten},
    list::{self, List},
    picker::Rng,
    pool::Pool,
    snapshot::ListSource,
};
use plan::Plan;

const SDK: &str = concat!("lookaside-rust/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A balancer that has accepted the connection must answer the stream within this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a word for this long a stream is dead, whatever the connection looks like.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The same where the balancer knows no such service, and so has nothing to repeat: another one may know it.
const SILENCE_UNKNOWN_MAX: Duration = Duration::from_secs(60);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const RECONNECT_FIRST: Duration = Duration::from_millis(500);
const RECONNECT_LONGEST: Duration = Duration::from_secs(5);
const REPORT_PERIOD: Duration = Duration::from_secs(1);
const REPORT_PERIOD_MIN: Duration = Duration::from_millis(100);
const REPORT_PERIOD_MAX: Duration = Duration::from_secs(60);
/// Suspicions are told at once, but not more often than this.
const ALARM_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// Requests that may wait for a slow balancer; beyond that the stream is given up.
const REQUESTS_WAITING_MAX: usize = 64;
const NOT_READ: &str = "the balancer does not read the stream";
/// A list beyond this is refused by the transport, bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) locality: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// How a session with a balancer ended.
#[derive(Debug)]
enum End {
    /// For this reason; `useful` when it brought anything.
    Lost {
        reason: String,
        useful: bool,
    },
    Redirected(Vec<String>),
}

/// Asks one balancer after the other, for as long as it is polled.
pub(crate) async fn run(pool: Arc<Pool>, identity: Identity, balancers: Vec<String>, fallback: Vec<String>) {
    let seed = pool.rng().next_u64();
    let mut plan = Plan::new(balancers, seed);
    let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_LONGEST, seed);
    loop {
        let balancer = plan.next();
        let began = Instant::now();
        let end = session(&pool, &identity, &balancer).await;
        if began.elapsed() >= RECONNECT_LONGEST {
            plan.settle();
        }
        match end {
            End::Redirected(to) => {
                tracing::debug!(service = pool.service, balancer, ?to, "redirected");
                pool.change_view(|view| view.disconnected(format!("redirected by {balancer}")));
                if plan.redirect(to) {
                    continue;
                }
            }
            End::Lost { reason, useful } => {
                plan.settle();
                if useful {
                    tracing::info!(
                        service = pool.service,
                        balancer,
                        reason,
                        "pick stream lost; the list keeps serving"
                    );
                    backoff.reset();
                } else {
                    tracing::debug!(service = pool.service, balancer, reason, "no pick stream");
                }
                pool.change_view(|view| view.disconnected(format!("{balancer}: {reason}")));
            }
        }
        expire_list(&pool, &fallback);
        sleep(backoff.next()).await;
    }
}

/// A list that its balancer gave a time to live does not outlast it.
fn expire_list(pool: &Pool, fallback: &[String]) {
    let expired = pool.with_view(|view| {
        let time_to_live_ms = view.balancers_list().map_or(0, |l| l.time_to_live_ms);
        let heard = view.heard_at.map_or(Duration::ZERO, |at| at.elapsed());
        time_to_live_ms > 0 && heard > Duration::from_millis(time_to_live_ms)
    });
    if expired && fallback.is_empty() {
        pool.forget();
    } else if expired {
        pool.apply(List::plain(fallback), ListSource::Fallback, None);
    }
}

async fn session(pool: &Arc<Pool>, identity: &Identity, balancer: &str) -> End {
    let lost = |reason: String| End::Lost { reason, useful: false };
    let endpoint = match transport::Endpoint::from_shared(format!("http://{balancer}")) {
        Ok(endpoint) => endpoint,
        Err(error) => return lost(flatten(&error)),
    };
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .keep_alive_while_idle(true);
    let channel = match timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return lost(flatten(&error)),
        Err(_) => return lost(format!("no connection within {CONNECT_TIMEOUT:?}")),
    };
    let (requests, waiting) = mpsc::channel(REQUESTS_WAITING_MAX);
    let greeting = [
        pick_request::Kind::Hello(hello(pool, identity)),
        pick_request::Kind::Subscribe(Subscribe { service: pool.service.clone() }),
    ];
    for kind in greeting {
        if requests.try_send(PickRequest { kind: Some(kind) }).is_err() {
            return lost("the stream takes no requests".to_owned());
        }
    }
    let mut client = BalancerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let stream = match timeout(ANSWER_TIMEOUT, client.pick(ReceiverStream::new(waiting))).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return lost(in_words(&status)),
        Err(_) => return lost(format!("no answer within {ANSWER_TIMEOUT:?}")),
    };
    pool.drop_old_outcomes();
    pool.change_view(|view| view.connected(balancer.to_owned()));
    Session {
        pool,
        balancer,
        requests,
        period: REPORT_PERIOD,
        rng: pool.rng(),
        useful: false,
        silence_max: SILENCE_UNKNOWN_MAX,
    }
    .run(stream)
    .await
}

fn hello(pool: &Pool, identity: &Identity) -> Hello {
    let held = pool.with_view(|view| {
        view.balancers_list().map(|list| HeldList {
            service: pool.service.clone(),
            version: list.version.map(to_wire),
            digest: list.digest,
            endpoints: list.endpoints.iter().filter(|e| e.weight > 0).map(|e| e.address.clone()).collect(),
        })
    });
    Hello {
        client_id: pool.client_id.clone(),
        locality: identity.locality.clone(),
        labels: identity.labels.clone(),
        sdk: SDK.to_owned(),
        held: held.into_iter().collect(),
    }
}

struct Session<'a> {
    pool: &'a Arc<Pool>,
    balancer: &'a str,
    requests: mpsc::Sender<PickRequest>,
    period: Duration,
    rng: Rng,
    useful: bool,
    silence_max: Duration,
}

impl Session<'_> {
    async fn run(mut self, mut stream: tonic::Streaming<PickResponse>) -> End {
        let mut heard = Instant::now();
        let mut reported = Instant::now();
        let mut report_at = reported + self.jittered_period();
        loop {
            tokio::select! {
                message = stream.message() => {
                    heard = Instant::now();
                    match message {
                        Ok(Some(PickResponse { kind: Some(kind) })) => {
                            if let Some(end) = self.take(kind) {
                                return end;
                            }
                        }
                        // A kind from a newer contract.
                        Ok(Some(PickResponse { kind: None })) => {}
                        Ok(None) => return self.lost("the balancer ended the stream".to_owned()),
                        Err(status) => return self.lost(in_words(&status)),
                    }
                }
                () = sleep_until(heard + self.silence_max) => {
                    return self.lost(format!("no word for {:?}", self.silence_max));
                }
                () = self.pool.alarmed() => {
                    report_at = report_at.min(reported + ALARM_INTERVAL_MIN).max(Instant::now());
                }
                () = sleep_until(report_at) => {
                    if let Some(end) = self.report() {
                        return end;
                    }
                    reported = Instant::now();
                    report_at = reported + self.jittered_period();
                }
            }
        }
    }

    fn lost(&self, reason: String) -> End {
        End::Lost { reason, useful: self.useful }
    }

    /// Acts on one message. `Some` when the session is over.
    fn take(&mut self, kind: pick_response::Kind) -> Option<End> {
        match kind {
            pick_response::Kind::List(list) if list.service == self.pool.service => self.take_list(list),
            pick_response::Kind::Tick(tick) if tick.service == self.pool.service => self.take_tick(&tick),
            pick_response::Kind::ServiceError(error) if error.service == self.pool.service => {
                let trouble = cut(format!("{} says {}: {}", self.balancer, error.reason, error.message));
                tracing::info!(service = error.service, trouble, "no list");
                self.useful = true;
                self.silence_max = SILENCE_UNKNOWN_MAX;
                self.pool.change_view(|view| view.trouble = trouble);
                None
            }
            pick_response::Kind::Redirect(redirect) => {
                let ours = redirect.services.is_empty() || redirect.services.contains(&self.pool.service);
                if !ours {
                    return None;
                }
                // What is untold is told there: a stream that ends here would take it along unread.
                Some(End::Redirected(redirect.balancers))
            }
            pick_response::Kind::MethodPolicy(policy) if policy.service == self.pool.service => {
                if self.pool.advice.take_policy(policy) {
                    tracing::debug!(service = self.pool.service, balancer = self.balancer, "rules of methods taken");
                }
                None
            }
            // Other services' messages, and what this picker has no use for.
            pick_response::Kind::List(_)
            | pick_response::Kind::Tick(_)
            | pick_response::Kind::ServiceError(_)
            | pick_response::Kind::MethodPolicy(_)
            | pick_response::Kind::Grant(_) => None,
        }
    }

    fn take_list(&mut self, wire: lookaside_proto::v1::List) -> Option<End> {
        self.silence_max = SILENCE_MAX;
        let version = wire.version;
        let list = match List::parse(wire) {
            Ok(list) => list,
            Err(refused) => {
                let refused = cut(refused);
                tracing::warn!(service = self.pool.service, balancer = self.balancer, refused, "list refused");
                return self.acknowledge(version, refused);
            }
        };
        self.useful = true;
        let Some(list) = self.pool.with_view(|view| list.over(view.balancers_list())) else {
            // Older than what is held: overtaken, nothing to do.
            return None;
        };
        self.pool.apply(list, ListSource::Balancer, Some(self.balancer.to_owned()));
        self.pool.change_view(|view| view.trouble.clear());
        self.acknowledge(version, String::new())
    }

    fn take_tick(&mut self, tick: &Tick) -> Option<End> {
        self.useful = true;
        self.silence_max = SILENCE_MAX;
        self.pool.advice.take_budgets(tick.retry_budget_percent, tick.hedge_budget_percent);
        if tick.report_period_ms > 0 {
            let period = Duration::from_millis(u64::from(tick.report_period_ms));
            self.period = period.clamp(REPORT_PERIOD_MIN, REPORT_PERIOD_MAX);
        }
        let version = tick.version.map(list::version)?;
        let held = self.pool.with_view(|view| {
            view.balancers_list().filter(|l| l.digest == tick.digest).map(|l| (l.version, l.complete, l.clone()))
        });
        let (held_version, held_complete, held) = held?;
        let from = self.balancer.to_owned();
        if held_complete == tick.complete {
            self.pool.change_view(|view| view.confirm(version, from));
        } else {
            self.pool.apply(held.rebased(version, tick.complete), ListSource::Balancer, Some(from));
        }
        if held_version == Some(version) {
            return None;
        }
        self.acknowledge(tick.version, String::new())
    }

    fn acknowledge(&self, version: Option<lookaside_proto::v1::Version>, refused: String) -> Option<End> {
        let ack = Ack { service: self.pool.service.clone(), version, refused };
        match self.requests.try_send(PickRequest { kind: Some(pick_request::Kind::Ack(ack)) }) {
            Ok(()) => None,
            Err(_) => Some(self.lost(NOT_READ.to_owned())),
        }
    }

    /// Tells how calls ended. `Some` when there is no room for it: then the session is over, and the next one tells.
    fn report(&self) -> Option<End> {
        let Ok(permit) = self.requests.try_reserve() else {
            return Some(self.lost(NOT_READ.to_owned()));
        };
        let endpoints = self.pool.take_outcomes();
        if endpoints.is_empty() {
            return None;
        }
        let outcomes = Outcomes { service: self.pool.service.clone(), endpoints };
        permit.send(PickRequest { kind: Some(pick_request::Kind::Outcomes(outcomes)) });
        None
    }

    /// The period, a tenth more or less, so that clients do not report in step.
    fn jittered_period(&mut self) -> Duration {
        self.period.mul_f64(0.9 + 0.2 * (self.rng.below(1_000) as f64 / 1_000.0))
    }
}

fn to_wire(version: crate::Version) -> lookaside_proto::v1::Version {
    lookaside_proto::v1::Version { epoch: version.epoch, sequence: version.sequence }
}

fn in_words(status: &tonic::Status) -> String {
    match status.message() {
        "" => format!("{:?}", status.code()),
        message => cut(format!("{:?}: {message}", status.code())),
    }
}
