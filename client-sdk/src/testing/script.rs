//! The script and the streams it plays to. One lock holds all of it: a test has few streams and wants one order of events.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lookaside_proto::v1::{
    List, ListMode, LoadReport, MethodPolicy, Override, PickResponse, Policy, Redirect, Registration, ReportResponse,
    ServiceError, Tick, Version, pick_request, pick_response, policy,
};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::seen::{Seen, keep};

/// Messages a stream may leave unread; one more ends it.
pub(crate) const UNREAD_MAX: usize = 1024;

/// Budgets told to clients, as a balancer without a configuration tells them.
const RETRY_BUDGET_PERCENT: u32 = 10;
const HEDGE_BUDGET_PERCENT: u32 = 2;

/// Lease told to backends, milliseconds.
const LEASE_MS: u32 = 15_000;

pub(crate) type PickSender = mpsc::Sender<Result<PickResponse, Status>>;
pub(crate) type ReportSender = mpsc::Sender<Result<ReportResponse, Status>>;

#[derive(Debug)]
struct PickStream {
    sender: PickSender,
    stop: CancellationToken,
    held: BTreeMap<String, u64>,
    subscribed: BTreeSet<String>,
    acked: BTreeMap<String, Version>,
}

#[derive(Debug)]
struct ReportStream {
    sender: ReportSender,
    stop: CancellationToken,
    registration: Option<Registration>,
    told_listed: Option<bool>,
}

#[derive(Debug)]
struct Inner {
    epoch: u64,
    sequence: u64,
    lists: BTreeMap<String, List>,
    methods: BTreeMap<String, MethodPolicy>,
    errors: BTreeMap<String, ServiceError>,
    overrides: Vec<Override>,
    refusal: Option<(String, String)>,
    keep_listed: bool,
    tick_period: Option<Duration>,
    report_period: Duration,
    overload: bool,
    picks: BTreeMap<u64, PickStream>,
    reports: BTreeMap<u64, ReportStream>,
    next_stream: u64,
    seen: Seen,
}

/// The script; every change of it and of what was seen wakes those who wait.
#[derive(Debug)]
pub(crate) struct Script {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

impl Script {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            epoch: rand::random(),
            sequence: 0,
            lists: BTreeMap::new(),
            methods: BTreeMap::new(),
            errors: BTreeMap::new(),
            overrides: Vec::new(),
            refusal: None,
            keep_listed: false,
            tick_period: Some(Duration::from_secs(1)),
            report_period: Duration::from_millis(100),
            overload: false,
            picks: BTreeMap::new(),
            reports: BTreeMap::new(),
            next_stream: 0,
            seen: Seen::default(),
        };
        Self { inner: Mutex::new(inner), changes: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // One way in, so that no change goes unnoticed.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let answer = change(&mut inner);
        inner.settle();
        drop(inner);
        self.changes.send_modify(|changes| *changes += 1);
        answer
    }

    pub(crate) fn set_list(&self, list: List) -> Version {
        self.change(|inner| inner.set_list(list))
    }

    pub(crate) fn set_methods(&self, methods: MethodPolicy) {
        self.change(|inner| {
            inner.send_to_subscribers(&methods.service, &pick_response::Kind::MethodPolicy(methods.clone()));
            inner.methods.insert(methods.service.clone(), methods);
        });
    }

    pub(crate) fn forget(&self, service: &str) {
        self.change(|inner| inner.lists.remove(service));
    }

    pub(crate) fn tick(&self) {
        self.change(Inner::tick);
    }

    pub(crate) fn set_tick_period(&self, period: Option<Duration>) {
        self.change(|inner| inner.tick_period = period);
    }

    pub(crate) fn set_report_period(&self, period: Duration) {
        self.change(|inner| {
            inner.report_period = period;
            inner.tick();
            inner.forget_told();
        });
    }

    pub(crate) fn set_overload(&self, overload: bool) {
        self.change(|inner| {
            inner.overload = overload;
            inner.tick();
        });
    }

    pub(crate) fn set_error(&self, error: ServiceError) {
        self.change(|inner| {
            inner.lists.remove(&error.service);
            let response = pick_response::Kind::ServiceError(error.clone());
            inner.send_to_subscribers(&error.service, &response);
            inner.errors.insert(error.service.clone(), error);
        });
    }

    pub(crate) fn redirect(&self, redirect: Redirect) {
        let response = pick_response::Kind::Redirect(redirect);
        self.change(|inner| inner.picks.values().for_each(|stream| stream.send(response.clone())));
    }

    pub(crate) fn tell_overrides(&self, overrides: Vec<Override>) {
        self.change(|inner| {
            inner.overrides = overrides;
            inner.forget_told();
        });
    }

    pub(crate) fn refuse_reports(&self, refusal: Option<(String, String)>) {
        self.change(|inner| {
            inner.refusal = refusal;
            inner.forget_told();
        });
    }

    pub(crate) fn keep_listed(&self, keep: bool) {
        self.change(|inner| inner.keep_listed = keep);
    }

    pub(crate) fn drop_streams(&self) {
        self.change(|inner| {
            for stream in std::mem::take(&mut inner.picks).into_values() {
                let _ = stream.sender.try_send(Err(Status::unavailable("the script breaks this stream")));
                stream.stop.cancel();
            }
            for stream in std::mem::take(&mut inner.reports).into_values() {
                let _ = stream.sender.try_send(Err(Status::unavailable("the script breaks this stream")));
                stream.stop.cancel();
            }
        });
    }

    pub(crate) fn begin_epoch(&self) {
        self.change(|inner| {
            inner.epoch = rand::random();
            inner.sequence = 0;
            for list in inner.lists.values_mut() {
                inner.sequence += 1;
                list.version = Some(Version { epoch: inner.epoch, sequence: inner.sequence });
            }
        });
    }

    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.lock().seen)
    }

    pub(crate) async fn wait_for(&self, mut condition: impl FnMut(&Seen) -> bool, deadline: Duration) -> bool {
        let mut changes = self.changes.subscribe();
        let met = async {
            // Subscribed before the first look, so that no change falls between the two.
            while !self.seen(&mut condition) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        timeout(deadline, met).await.is_ok()
    }

    pub(crate) async fn tick_until(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.changes.subscribe();
        let mut last = Instant::now();
        loop {
            let due = self.lock().tick_period.map(|period| last + period);
            let tick = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tick => {
                    last = Instant::now();
                    self.tick();
                }
                // The period may be another one now.
                _ = changes.changed() => {}
            }
        }
    }

    pub(crate) fn open_pick(&self, sender: PickSender, stop: CancellationToken) -> u64 {
        self.change(|inner| {
            let id = inner.next_stream();
            let (held, subscribed, acked) = Default::default();
            inner.picks.insert(id, PickStream { sender, stop, held, subscribed, acked });
            id
        })
    }

    pub(crate) fn open_report(&self, sender: ReportSender, stop: CancellationToken) -> u64 {
        self.change(|inner| {
            let id = inner.next_stream();
            inner.reports.insert(id, ReportStream { sender, stop, registration: None, told_listed: None });
            id
        })
    }

    pub(crate) fn close(&self, id: u64) {
        self.change(|inner| {
            inner.picks.remove(&id);
            inner.reports.remove(&id);
        });
    }

    pub(crate) fn hear_pick(&self, id: u64, said: pick_request::Kind) {
        self.change(|inner| inner.hear_pick(id, said));
    }

    pub(crate) fn hear_report(&self, id: u64, report: LoadReport) {
        self.change(|inner| inner.hear_report(id, report));
    }
}

impl PickStream {
    fn send(&self, kind: pick_response::Kind) {
        if self.sender.try_send(Ok(PickResponse { kind: Some(kind) })).is_err() {
            self.stop.cancel();
        }
    }
}

impl Inner {
    fn next_stream(&mut self) -> u64 {
        self.next_stream += 1;
        self.next_stream
    }

    fn set_list(&mut self, mut list: List) -> Version {
        self.sequence += 1;
        let version = list.version.unwrap_or(Version { epoch: self.epoch, sequence: self.sequence });
        if list.mode() == ListMode::Unspecified {
            let mode = if list.endpoints.is_empty() { ListMode::Empty } else { ListMode::Normal };
            list.set_mode(mode);
        }
        list.policy.get_or_insert(Policy { kind: Some(policy::Kind::LeastLoad(policy::LeastLoad {})) });
        if list.digest == 0 {
            let mut hasher = DefaultHasher::new();
            List { version: None, ..list.clone() }.encode_to_vec().hash(&mut hasher);
            list.digest = hasher.finish();
        }
        list.version = Some(version);
        self.errors.remove(&list.service);
        self.send_to_subscribers(&list.service, &pick_response::Kind::List(list.clone()));
        self.lists.insert(list.service.clone(), list);
        version
    }

    fn send_to_subscribers(&self, service: &str, response: &pick_response::Kind) {
        for stream in self.picks.values().filter(|stream| stream.subscribed.contains(service)) {
            stream.send(response.clone());
        }
    }

    fn tick_of(&self, list: &List) -> pick_response::Kind {
        pick_response::Kind::Tick(Tick {
            service: list.service.clone(),
            version: list.version,
            digest: list.digest,
            complete: list.complete,
            report_period_ms: millis(self.report_period),
            retry_budget_percent: RETRY_BUDGET_PERCENT,
            hedge_budget_percent: HEDGE_BUDGET_PERCENT,
            clients: 1,
            overload: self.overload,
            ..Tick::default()
        })
    }

    fn tick(&mut self) {
        for list in self.lists.values() {
            self.send_to_subscribers(&list.service, &self.tick_of(list));
        }
    }

    fn hear_pick(&mut self, id: u64, said: pick_request::Kind) {
        match said {
            pick_request::Kind::Hello(hello) => {
                if let Some(stream) = self.picks.get_mut(&id) {
                    stream.held = hello.held.iter().map(|held| (held.service.clone(), held.digest)).collect();
                }
                keep(&mut self.seen.hellos, hello);
            }
            pick_request::Kind::Subscribe(subscribe) => {
                self.subscribe(id, &subscribe.service);
                keep(&mut self.seen.subscribed, subscribe.service);
            }
            pick_request::Kind::Unsubscribe(unsubscribe) => {
                if let Some(stream) = self.picks.get_mut(&id) {
                    stream.subscribed.remove(&unsubscribe.service);
                }
            }
            pick_request::Kind::Ack(ack) => {
                if let Some(stream) = self.picks.get_mut(&id)
                    && let Some(version) = ack.version
                {
                    // A refusal ends the waiting as well: that client keeps what it holds whatever is sent.
                    stream.acked.insert(ack.service.clone(), version);
                }
                keep(&mut self.seen.acks, ack);
            }
            pick_request::Kind::Outcomes(outcomes) => keep(&mut self.seen.outcomes, outcomes),
            // No script grants reservations.
            pick_request::Kind::Reserve(_) => {}
        }
    }

    fn subscribe(&mut self, id: u64, service: &str) {
        let list = self.lists.get(service);
        let tick = list.map(|list| self.tick_of(list));
        let list = list.cloned();
        let error = self.errors.get(service).cloned();
        let methods = self.methods.get(service).cloned();
        let Some(stream) = self.picks.get_mut(&id) else { return };
        stream.subscribed.insert(service.to_owned());
        if let Some(methods) = methods {
            stream.send(pick_response::Kind::MethodPolicy(methods));
        }
        match (error, list, tick) {
            (Some(error), _, _) => stream.send(pick_response::Kind::ServiceError(error)),
            (None, Some(list), Some(tick)) => {
                if stream.held.get(service) == Some(&list.digest) {
                    // It holds this very list; a heartbeat says what it is called now, and is not acknowledged.
                    if let Some(version) = list.version {
                        stream.acked.insert(service.to_owned(), version);
                    }
                } else {
                    stream.send(pick_response::Kind::List(list));
                }
                // Also tells how often to report.
                stream.send(tick);
            }
            (None, _, _) => {}
        }
    }

    fn hear_report(&mut self, id: u64, report: LoadReport) {
        let Some(stream) = self.reports.get_mut(&id) else { return };
        if let Some(registration) = &report.registration {
            stream.registration = Some(registration.clone());
            stream.told_listed = None;
            keep(&mut self.seen.registrations, registration.clone());
        }
        if report.draining
            && let Some(registration) = stream.registration.clone()
        {
            // A drain is always answered, even of an endpoint that no list has named.
            stream.told_listed = None;
            self.let_go(&registration);
        }
        keep(&mut self.seen.reports, report);
    }

    fn let_go(&mut self, leaving: &Registration) {
        let Some(mut list) = self.lists.get(&leaving.service).cloned() else { return };
        let mut changed = false;
        for endpoint in list.endpoints.iter_mut().filter(|endpoint| endpoint.address == leaving.address) {
            changed |= endpoint.weight > 0;
            endpoint.weight = 0;
        }
        if changed {
            (list.version, list.digest) = (None, 0);
            self.set_list(list);
        }
    }

    fn is_listed(&self, registration: &Registration) -> bool {
        let Some(list) = self.lists.get(&registration.service) else { return self.keep_listed };
        let named = list.endpoints.iter().find(|endpoint| endpoint.address == registration.address);
        let Some(named) = named else { return self.keep_listed };
        let all_know = self
            .picks
            .values()
            .filter(|stream| stream.subscribed.contains(&list.service))
            .all(|stream| stream.acked.get(&list.service) == list.version.as_ref());
        self.keep_listed || named.weight > 0 || !all_know
    }

    fn forget_told(&mut self) {
        self.reports.values_mut().for_each(|stream| stream.told_listed = None);
    }

    // After every change: whatever a backend was told of lists and is true no longer is told anew.
    fn settle(&mut self) {
        self.seen.pick_streams = self.picks.len();
        self.seen.report_streams = self.reports.len();
        let listed: Vec<(u64, bool)> = self
            .reports
            .iter()
            .filter_map(|(id, stream)| Some((*id, self.is_listed(stream.registration.as_ref()?))))
            .collect();
        for (id, listed) in listed {
            let Some(stream) = self.reports.get_mut(&id) else { continue };
            if stream.told_listed == Some(listed) {
                continue;
            }
            stream.told_listed = Some(listed);
            let (refused_reason, refused_message) = self.refusal.clone().unwrap_or_default();
            let response = ReportResponse {
                accepted: refused_reason.is_empty(),
                report_period_ms: millis(self.report_period),
                lease_ms: LEASE_MS,
                listed,
                overrides: self.overrides.clone(),
                refused_reason,
                refused_message,
                draining: false,
            };
            if stream.sender.try_send(Ok(response)).is_err() {
                stream.stop.cancel();
            }
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
