//! Keeps a pick stream to one balancer and puts the lists it brings to use. While there is no balancer the last list serves;
//! nothing that happens here can take an endpoint away but a list that says so.

mod opening;
mod plan;
mod requests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lookaside_proto::v1::{Ack, PickResponse, Tick, pick_request, pick_response};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    Tls,
    backoff::RECONNECT_LONGEST,
    cache::Cache,
    error::cut,
    list::{self, List},
    picker::{PROBE_BUDGET_PERCENT, Pace, Rng},
    pool::Pool,
    snapshot::ListSource,
};
use opening::Opened;
use plan::{Plan, Refusal};
use requests::Requests;

/// Without a word for this long, three heartbeats, a stream is dead, whatever the connection looks like.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The same where the balancer said that it knows no such service, and so has nothing to repeat: another one may know it.
const SILENCE_UNKNOWN_MAX: Duration = Duration::from_secs(60);
/// The first wait after a failure, of each balancer by itself: other than an endpoint it has a whole fleet to answer.
const BALANCER_AGAIN: Duration = Duration::from_millis(500);
const REPORT_PERIOD: Duration = Duration::from_secs(1);
const REPORT_PERIOD_MIN: Duration = Duration::from_millis(100);
const REPORT_PERIOD_MAX: Duration = Duration::from_secs(60);
const ENDED: &str = "the balancer ended the stream";
const NOT_READ: &str = "the balancer does not read the stream";

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) locality: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// How balancers are connected to.
    pub(crate) tls: Option<Tls>,
}

/// How a session with a balancer ended.
#[derive(Debug)]
enum End {
    Lost(Refusal),
    Redirected(Vec<String>),
}

impl End {
    fn lost(reason: impl Into<String>) -> Self {
        Self::Lost(Refusal::of_stream(reason))
    }
}

/// Keeps a stream to one balancer after the other, for as long as it is polled.
pub(crate) async fn run(pool: Arc<Pool>, identity: Identity, balancers: Vec<String>, cache: Option<&Cache>) {
    let mut rng = pool.rng();
    let mut plan = Plan::new(&balancers, pool.rng());
    plan.resolve().await;
    loop {
        let opened = opening::open(&pool, &identity, &mut plan, || expire_list(&pool)).await;
        let began = Instant::now();
        let place = opened.place.clone();
        let balancer = place.address.to_string();
        pool.drop_old_outcomes();
        pool.change_view(|view| view.connected(balancer.clone()));
        let (end, heard) = Session::run(&pool, cache, opened).await;
        // Nobody says so any more.
        pool.advice.throttle.set_on(false);
        let now = Instant::now();
        // What came after its last word was no use.
        if heard - began >= RECONNECT_LONGEST {
            plan.proved(&place);
        }
        let mut in_a_hurry = !pool.has_list();
        match end {
            End::Redirected(to) => {
                tracing::debug!(service = pool.service, balancer, ?to, "redirected");
                pool.change_view(|view| view.disconnected(format!("redirected by {balancer}")));
                in_a_hurry &= plan.redirect(&place, &to, now).await;
            }
            End::Lost(refusal) => {
                let (reason, has_list) = (&refusal.reason, pool.has_list());
                tracing::info!(
                    service = pool.service,
                    balancer,
                    reason,
                    has_list,
                    "pick stream lost; a list keeps serving"
                );
                pool.change_view(|view| view.disconnected(format!("{balancer}: {reason}")));
                plan.failed(&place, &refusal, now);
            }
        }
        expire_list(&pool);
        plan.resolve().await;
        if !in_a_hurry {
            // Whoever holds a list can wait: a crowd that was cut off together does not come to the next one together.
            sleep(Duration::from_millis(rng.below(BALANCER_AGAIN.as_millis() as u64))).await;
        }
    }
}

/// A list that its balancer gave a time to live does not outlast it.
fn expire_list(pool: &Pool) {
    let expired = pool.with_view(|view| {
        let time_to_live_ms = view.balancers_list().map_or(0, |l| l.time_to_live_ms);
        let age = view.list_age().unwrap_or_default();
        time_to_live_ms > 0 && age > Duration::from_millis(time_to_live_ms)
    });
    if expired {
        pool.forget();
    }
}

struct Session<'a> {
    pool: &'a Arc<Pool>,
    cache: Option<&'a Cache>,
    balancer: String,
    requests: Requests,
    period: Duration,
    rng: Rng,
    /// When it last said something, or began.
    heard: Instant,
    silence_max: Duration,
    /// The last list that came, while it is incomplete and there is a cache that waits for it to be complete.
    incomplete: Option<lookaside_proto::v1::List>,
}

impl<'a> Session<'a> {
    /// How it ended, and when the balancer said something last.
    async fn run(pool: &'a Arc<Pool>, cache: Option<&'a Cache>, opened: Opened) -> (End, Instant) {
        let mut session = Self {
            pool,
            cache,
            balancer: opened.place.address.to_string(),
            requests: opened.requests,
            period: REPORT_PERIOD,
            rng: pool.rng(),
            heard: Instant::now(),
            silence_max: SILENCE_MAX,
            incomplete: None,
        };
        let end = match opened.first.and_then(|first| session.take(first)) {
            Some(end) => end,
            None => session.follow(opened.stream).await,
        };
        (end, session.heard)
    }

    async fn follow(&mut self, mut stream: tonic::Streaming<PickResponse>) -> End {
        let began = Instant::now();
        let now_us = || began.elapsed().as_micros() as u64;
        let mut pace = Pace::new(0, self.jittered_period_us());
        loop {
            tokio::select! {
                message = stream.message() => {
                    match message {
                        Ok(Some(message)) => {
                            self.heard = Instant::now();
                            if let Some(end) = self.take(message) {
                                return end;
                            }
                        }
                        Ok(None) => return End::lost(ENDED),
                        Err(status) => return End::Lost(opening::refusal(&status)),
                    }
                }
                () = sleep_until(self.heard + self.silence_max) => {
                    return End::lost(format!("no word for {:?}", self.silence_max));
                }
                () = self.pool.alarmed() => pace.suspicion(now_us()),
                () = self.pool.has_news() => pace.first_failure(now_us()),
                () = sleep_until(began + Duration::from_micros(pace.due_us())) => {
                    if self.requests.tell_outcomes().is_some_and(|since| since.elapsed() > SILENCE_MAX) {
                        return End::lost(NOT_READ);
                    }
                    pace.told(now_us(), self.jittered_period_us());
                }
            }
        }
    }

    /// Acts on one message. `Some` when the session is over.
    fn take(&mut self, message: PickResponse) -> Option<End> {
        self.silence_max = SILENCE_MAX;
        // None is a kind from a newer contract.
        match message.kind? {
            pick_response::Kind::List(list) if list.service == self.pool.service => self.take_list(list),
            pick_response::Kind::Tick(tick) if tick.service == self.pool.service => self.take_tick(&tick),
            pick_response::Kind::ServiceError(error) if error.service == self.pool.service => {
                let trouble = cut(format!("{} says {}: {}", self.balancer, error.reason, error.message));
                tracing::info!(service = error.service, trouble, "no list");
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
                self.take_policy(policy);
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
        let version = wire.version;
        let kept = self.cache.map(|_| wire.clone());
        let list = match List::parse(wire) {
            Ok(list) => list,
            Err(refused) => {
                let refused = cut(refused);
                tracing::warn!(service = self.pool.service, balancer = self.balancer, refused, "list refused");
                return self.acknowledge(version, refused);
            }
        };
        let Some(list) = self.pool.with_view(|view| list.over(view.balancers_list())) else {
            // Older than what is held: overtaken, nothing to do.
            return None;
        };
        self.pool.apply(list, ListSource::Balancer, Some(self.balancer.clone()));
        self.incomplete = kept.filter(|list| !self.keep(list));
        self.pool.change_view(|view| view.trouble.clear());
        self.acknowledge(version, String::new())
    }

    fn take_policy(&self, policy: lookaside_proto::v1::MethodPolicy) {
        let (service, balancer) = (&self.pool.service, &self.balancer);
        match self.pool.take_policy(policy.clone()) {
            Ok(is_new) => {
                if let Some(cache) = self.cache {
                    cache.keep_policy(&policy);
                }
                tracing::debug!(service, balancer, is_new, "rules for methods taken");
            }
            Err(refused) => {
                let refused = cut(refused);
                tracing::warn!(service, balancer, refused, "rules for methods refused; those before stay");
            }
        }
    }

    fn take_tick(&mut self, tick: &Tick) -> Option<End> {
        self.pool.advice.take_budgets(tick.retry_budget_percent, tick.hedge_budget_percent);
        self.pool.advice.throttle.set_on(tick.overload);
        let probes = if tick.probe_budget_percent > 0 { tick.probe_budget_percent } else { PROBE_BUDGET_PERCENT };
        self.pool.probing.budget.set_percent(probes);
        self.pool.set_clients(tick.clients);
        if tick.report_period_ms > 0 {
            let period = Duration::from_millis(u64::from(tick.report_period_ms));
            self.period = period.clamp(REPORT_PERIOD_MIN, REPORT_PERIOD_MAX);
        }
        let version = tick.version.map(list::version)?;
        let held = self.pool.with_view(|view| {
            let list = view.balancers_list().filter(|l| l.digest == tick.digest)?;
            // A list that only its name changes for needs no second look.
            let renamed = view.is_a_balancers() && list.complete == tick.complete && !list.has_spares();
            Some((list.version, (!renamed).then(|| list.rebased(version, tick.complete))))
        });
        let (held_version, changed) = held?;
        let from = self.balancer.clone();
        match changed {
            None => self.pool.change_view(|view| view.confirm(version, from)),
            Some(list) => self.pool.apply(list, ListSource::Balancer, Some(from)),
        }
        self.confirm(tick);
        if held_version == Some(version) {
            return None;
        }
        self.acknowledge(tick.version, String::new())
    }

    fn acknowledge(&self, version: Option<lookaside_proto::v1::Version>, refused: String) -> Option<End> {
        let ack = Ack { service: self.pool.service.clone(), version, refused };
        let said = self.requests.say(pick_request::Kind::Ack(ack));
        (!said).then(|| End::lost(NOT_READ))
    }

    /// Keeps a complete list for the next start. False when it is not complete.
    fn keep(&self, list: &lookaside_proto::v1::List) -> bool {
        if let Some(cache) = self.cache.filter(|_| list.complete) {
            cache.keep_list(list.clone(), &self.balancer);
        }
        list.complete
    }

    /// The balancer stands by the list it sent last.
    fn confirm(&mut self, tick: &Tick) {
        let completed = self.incomplete.take_if(|list| tick.complete && list.digest == tick.digest);
        match (completed, self.cache) {
            (Some(list), _) => {
                self.keep(&lookaside_proto::v1::List { version: tick.version, complete: true, ..list });
            }
            (None, Some(cache)) if tick.complete => cache.confirm(tick.version, tick.digest, &self.balancer),
            (None, _) => {}
        }
    }

    /// The period, a tenth more or less, so that clients do not report in step.
    fn jittered_period_us(&mut self) -> u64 {
        let jittered = self.period.mul_f64(0.9 + 0.2 * (self.rng.below(1_000) as f64 / 1_000.0));
        jittered.as_micros() as u64
    }
}
