//! One report stream: reads all the time, acts at most 50 times a second, and answers when there is something to say.

use std::{future, mem::discriminant, sync::Arc, time::Duration};

use lookaside_core::{
    config::ServiceConfig,
    event::{Event, Override},
    snapshot::Snapshot,
};
use lookaside_proto::v1;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Code::{DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable},
    Status, Streaming,
};
use tonic_types::StatusExt as _;

use super::{
    Entered, Peer, Rules, Service,
    mailbox::{End, Mailbox, News},
    parse::{self, Registration},
};
use crate::{
    accept::{self, Connection},
    convert,
    driver::{self, Handle, unix_ms},
    limits::{
        REGISTRATION_PERIOD_MIN, REGISTRATION_WAIT_MAX, REGISTRATIONS_PER_PEER_MAX, REPORT_LOOK_PERIOD,
        REPORT_PERIOD_MIN,
    },
    signal::Holders,
    telemetry,
};

type Out = mpsc::Sender<Result<v1::ReportResponse, Status>>;

pub(super) struct Stream {
    driver: Handle,
    rules: Arc<Rules>,
    holders: Holders,
    entered: Entered,
    peer: Peer,
    connection: Connection,
    /// Counts it among those of its peer, once it has asked to be registered.
    counted: Option<accept::Registered>,
    /// What it is registered as; `None` until the table has taken it.
    me: Option<Registration>,
    /// When the table was last asked to take it.
    registered_at: Instant,
    is_leaving: bool,
    /// Words that the table was told, so that it is not told the same each second.
    heard: Vec<Override>,
    /// The answer that the backend has.
    sent: Option<v1::ReportResponse>,
    /// A refusal that it has not been told yet.
    refused: Option<Status>,
}

/// Why acting on a stream comes to an end.
enum Over {
    /// The backend is no longer there.
    Gone,
    /// The balancer ends it: in good order (`None`) or with a status.
    Ended(Option<Status>),
}

impl Stream {
    pub(super) fn new(service: &Service, entered: Entered, peer: Peer, connection: Connection) -> Self {
        Self {
            driver: service.driver.clone(),
            rules: Arc::clone(&service.rules),
            holders: service.holders.clone(),
            entered,
            peer,
            connection,
            counted: None,
            me: None,
            registered_at: Instant::now(),
            is_leaving: false,
            heard: Vec::new(),
            sent: None,
            refused: None,
        }
    }

    /// Serves the stream to its end.
    pub(super) async fn serve(mut self, inbound: Streaming<v1::LoadReport>, out: Out, draining: CancellationToken) {
        let mailbox = Arc::new(Mailbox::default());
        let reader = Reader { rules: Arc::clone(&self.rules), peer: self.peer, me: None, sequence: 0 };
        let _reading = AbortOnDropHandle::new(tokio::spawn(reader.read(inbound, Arc::clone(&mailbox))));
        let over = self.act(&mailbox, &out, &draining).await;
        if matches!(over, Over::Gone) {
            // Its last word may have come with its end.
            let _ = self.take(mailbox.take()).await;
        }
        if let Over::Ended(Some(status)) = &over {
            // Whoever does not read its answers does not get this one.
            let _ = out.try_send(Err(status.clone()));
        }
        let Some(backend) = self.me.as_ref().map(Registration::backend) else { return };
        if !self.entered.fall_silent(&backend) {
            return;
        }
        match over {
            Over::Gone if self.is_leaving => self.driver.tell(Event::Departed { backend }).await,
            Over::Gone => self.driver.tell(Event::ReportStreamBroken { backend }).await,
            // It is told to come back, here or elsewhere; if it does not, its reports become late.
            Over::Ended(_) => {}
        }
    }

    async fn act(&mut self, mailbox: &Mailbox, out: &Out, draining: &CancellationToken) -> Over {
        let mut snapshots = self.driver.snapshots();
        let mut holders_changed = self.holders.changed.clone();
        let age = self.rules.live.config().limits.connection_age.mul_f64(rand::random_range(0.9..1.1));
        let old_at = Instant::now() + age;
        let leaving = self.connection.leaving().clone();
        let mut next_take = Instant::now();
        let mut next_look = Instant::now();
        loop {
            let answer = self.answer(&snapshots.borrow_and_update(), draining.is_cancelled());
            let is_news = answer.is_some();
            tokio::select! {
                biased;
                permit = out.reserve(), if is_news => {
                    let (Ok(permit), Some(answer)) = (permit, answer) else { return Over::Gone };
                    permit.send(Ok(answer.clone()));
                    if answer.draining {
                        return Over::Ended(Some(balancer_leaves()));
                    }
                    self.remember(answer);
                }
                () = out.closed() => return Over::Gone,
                () = later(next_take, mailbox.filled()) => {
                    if let Err(over) = self.take(mailbox.take()).await {
                        return over;
                    }
                    next_take = Instant::now() + REPORT_PERIOD_MIN;
                }
                () = sleep_until(old_at) => return Over::Ended(None),
                () = draining.cancelled(), if !draining.is_cancelled() => {
                    if self.me.is_none() {
                        return Over::Ended(Some(balancer_leaves()));
                    }
                }
                // The connection has reached its age: cut after its grace, this would look like the backend's end. At the
                // end of the balancer connections go as well, but the backend is told that first.
                () = leaving.cancelled(), if !draining.is_cancelled() => {
                    if !draining.is_cancelled() {
                        return Over::Ended(None);
                    }
                }
                () = change(&mut holders_changed), if self.is_leaving => {}
                // A backend that leaves waits for this; another learns of overrides in no hurry, since snapshots come
                // by the hundred per second.
                () = later(if self.is_leaving { Instant::now() } else { next_look }, change(&mut snapshots)) => {
                    next_look = Instant::now() + REPORT_LOOK_PERIOD;
                }
            }
        }
    }

    /// Acts on what has come in.
    async fn take(&mut self, news: News) -> Result<(), Over> {
        if let Some(End::Refused(status)) = news.end {
            count_refused(&status);
            if self.me.is_none() {
                // A backend that is never seen is a riddle to whoever runs it.
                tracing::warn!(reason = reason(&status), message = status.message(), "a registration is refused");
            }
            return Err(Over::Ended(Some(status)));
        }
        if let Some(registration) = news.registration {
            self.register(registration).await?;
        }
        if news.load.is_some() {
            self.stay_registered().await?;
        }
        if let Some(me) = &self.me {
            let backend = me.backend();
            if let Some(load) = news.load {
                self.driver.report(backend.clone(), load);
                metrics::counter!(telemetry::REPORTS_TOTAL).increment(1);
            }
            for word in news.overrides.unwrap_or_default() {
                self.hear(word).await;
            }
            if news.draining && !self.is_leaving {
                self.is_leaving = true;
                tracing::info!(service = %backend.service, address = %backend.address, "backend drains");
                self.driver.tell(Event::DrainAnnounced { backend }).await;
            }
        }
        self.refused = news.refused.or(self.refused.take());
        match news.end {
            Some(End::Gone) => Err(Over::Gone),
            Some(End::Refused(_)) | None => Ok(()),
        }
    }

    async fn register(&mut self, registration: Registration) -> Result<(), Over> {
        if self.me.as_ref() == Some(&registration) {
            return Ok(()); // Repeated: reports renew the lease.
        }
        match self.enter(&registration).await {
            Ok(()) => {
                self.entered.speak_for(registration.backend());
                self.me = Some(registration);
                Ok(())
            }
            Err(status) if self.me.is_none() => Err(Over::Ended(Some(status))),
            Err(status) => {
                self.refused = Some(status);
                Ok(())
            }
        }
    }

    /// A backend that was stopped for a lease is gone from the table, while its stream lived on: a report of it is a sign
    /// of life, and it is what it was. If the table does not take it back, the stream ends, so that the backend hears why.
    async fn stay_registered(&mut self) -> Result<(), Over> {
        let Some(me) = self.me.clone().filter(|_| !self.is_leaving) else { return Ok(()) };
        // The snapshot that shows a registration comes a moment later.
        let is_early = self.registered_at.elapsed() < REGISTRATION_PERIOD_MIN;
        if is_early || is_registered(&self.driver.snapshots().borrow(), &me) {
            return Ok(());
        }
        tracing::info!(service = %me.service, address = %me.endpoint.address, "a backend that was given up reports again");
        self.enter(&me).await.map_err(|status| Over::Ended(Some(status)))
    }

    /// Asks the table to take it; the status says why it does not.
    async fn enter(&mut self, registration: &Registration) -> Result<(), Status> {
        self.registered_at = Instant::now();
        if self.counted.is_none() {
            let counted = self.connection.register(REGISTRATIONS_PER_PEER_MAX);
            self.counted = Some(counted.ok_or_else(|| {
                let words = format!("at most {REGISTRATIONS_PER_PEER_MAX} backends of one address are registered");
                let status = accept::later("REGISTRATIONS_MAX", &words);
                count_refused(&status);
                status
            })?);
        }
        let (service, endpoint) = (registration.service.clone(), registration.endpoint.clone());
        self.driver.ask(Event::Registered { service, endpoint }).await.map_err(|error| match error {
            driver::Error::Stopped => balancer_leaves(),
            driver::Error::Refused(refusal) => {
                let status = convert::refusal(&refusal);
                count_refused(&status);
                status
            }
        })
    }

    async fn hear(&mut self, word: Override) {
        let same = |held: &Override| {
            (held.set_at_unix_ms, held.action, &held.replica) == (word.set_at_unix_ms, word.action, &word.replica)
        };
        let is_known = self.heard.iter().any(same)
            || self.me.as_ref().is_some_and(|me| words_on(&self.driver.snapshots().borrow(), me).iter().any(same));
        if !is_known {
            // One of each kind: weights differ without end.
            self.heard.retain(|held| discriminant(&held.action) != discriminant(&word.action));
            self.heard.push(word.clone());
            self.driver.tell(Event::OverrideSet { word }).await;
        }
    }

    /// What the backend is to know now; `None` when it does already, or is not registered.
    fn answer(&self, snapshot: &Snapshot, is_draining: bool) -> Option<v1::ReportResponse> {
        let me = self.me.as_ref()?;
        let service = snapshot.services.get(&me.service);
        let endpoint = service.and_then(|service| service.endpoint(&me.endpoint.address));
        let is_offered = endpoint.is_some_and(|endpoint| endpoint.state.is_offered());
        let defaults = ServiceConfig::default();
        let config = service.map_or(&defaults, |service| &service.config);
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let held = || (self.holders.holds)(&me.service, &me.endpoint.address);
        let mut answer = v1::ReportResponse {
            accepted: true,
            report_period_ms: millis(config.report_period),
            lease_ms: millis(config.lease),
            // Who does not leave is told that it may be listed: an older answer must not look like leave to go.
            listed: !self.is_leaving || is_offered || held(),
            overrides: words_on(snapshot, me).iter().map(convert::word).collect(),
            draining: is_draining,
            ..v1::ReportResponse::default()
        };
        if let Some(status) = &self.refused {
            answer.refused_reason = reason(status);
            answer.refused_message = status.message().to_owned();
        } else if self.sent.as_ref() == Some(&answer) {
            return None;
        }
        Some(answer)
    }

    fn remember(&mut self, mut answer: v1::ReportResponse) {
        answer.refused_reason.clear();
        answer.refused_message.clear();
        self.refused = None;
        self.sent = Some(answer);
    }
}

/// The task that reads. It checks each message by itself, so that a bad one spoils no other.
struct Reader {
    rules: Arc<Rules>,
    peer: Peer,
    me: Option<Registration>,
    /// Of the newest message.
    sequence: u64,
}

impl Reader {
    async fn read(mut self, mut inbound: Streaming<v1::LoadReport>, mailbox: Arc<Mailbox>) {
        let first = tokio::time::timeout(REGISTRATION_WAIT_MAX, inbound.message()).await;
        let mut message = first.unwrap_or_else(|_| {
            let words = "no registration has come";
            Err(convert::refused(DeadlineExceeded, "REGISTRATION_LATE", words, &[]))
        });
        loop {
            match message {
                Ok(Some(wire)) => match self.news(&wire) {
                    Ok(news) => mailbox.put(news),
                    Err(status) if self.me.is_none() => return mailbox.put(ended(End::Refused(status))),
                    Err(status) => {
                        count_refused(&status);
                        mailbox.put(News { refused: Some(status), ..News::default() });
                    }
                },
                Ok(None) => return mailbox.put(ended(End::Gone)),
                Err(status) => return mailbox.put(ended(unreadable(status))),
            }
            message = inbound.message().await;
        }
    }

    /// Checks a message; nothing of a bad one is taken, unless it is bad by the overrides that it repeats alone.
    fn news(&mut self, wire: &v1::LoadReport) -> Result<News, Status> {
        let registration = match &wire.registration {
            Some(registration) => Some(parse::registration(registration, &self.rules, self.peer)?),
            None => None,
        };
        let me = match (&registration, &self.me) {
            (Some(new), Some(old)) if new.backend() != old.backend() => {
                let words = "a stream is for one service, address and incarnation";
                return Err(convert::refused(InvalidArgument, "REGISTRATION_CHANGED", words, &[]));
            }
            (Some(new), _) => new,
            (None, Some(old)) => old,
            (None, None) => {
                let words = "the first message of a stream must hold a registration";
                return Err(convert::refused(InvalidArgument, "REGISTRATION_MISSING", words, &[]));
            }
        };
        if self.me.is_some() && wire.sequence <= self.sequence {
            let words = format!("report {} is not newer than report {}", wire.sequence, self.sequence);
            let sent = wire.sequence.to_string();
            return Err(convert::refused(FailedPrecondition, "REPORT_OLD", words, &[("sequence", &sent)]));
        }
        let load = match &wire.counters {
            Some(counters) => Some(parse::counters(counters, wire.sequence)?),
            None => None,
        };
        // Words come from other replicas: a backend that repeats a bad one must not lose its lease by it.
        let (overrides, refused) = match parse::overrides(&wire.overrides, me, unix_ms()) {
            Ok(overrides) => (Some(overrides), None),
            Err(status) => {
                count_refused(&status);
                (None, Some(status))
            }
        };
        self.me = Some(me.clone());
        self.sequence = wire.sequence;
        Ok(News { registration, load, overrides, draining: wire.draining, refused, end: None })
    }
}

fn ended(end: End) -> News {
    News { end: Some(end), ..News::default() }
}

/// A message that is too large or no protobuf is the backend's fault and told as such; anything else is a broken
/// connection. tonic tells malformed messages by INTERNAL without a source, since the connection is fine.
fn unreadable(status: Status) -> End {
    use std::error::Error as _;
    use tonic::Code::{Internal, OutOfRange};
    let refused = |reason| End::Refused(convert::refused(InvalidArgument, reason, status.message(), &[]));
    match status.code() {
        OutOfRange => refused("MESSAGE_TOO_LARGE"),
        Internal if status.source().is_none() => refused("MESSAGE_MALFORMED"),
        DeadlineExceeded if !status.details().is_empty() => End::Refused(status),
        _ => End::Gone,
    }
}

fn words_on<'a>(snapshot: &'a Snapshot, me: &Registration) -> &'a [Override] {
    let service = snapshot.services.get(&me.service);
    service.and_then(|service| service.endpoint(&me.endpoint.address)).map_or(&[], |endpoint| &endpoint.overrides)
}

/// Whether the table holds the registration of this start of the backend.
fn is_registered(snapshot: &Snapshot, me: &Registration) -> bool {
    let service = snapshot.services.get(&me.service);
    let endpoint = service.and_then(|service| service.endpoint(&me.endpoint.address));
    endpoint.is_some_and(|endpoint| endpoint.lease.is_some() && endpoint.spec.incarnation == me.endpoint.incarnation)
}

fn balancer_leaves() -> Status {
    convert::refused(Unavailable, "BALANCER_DRAINING", "the balancer is draining", &[])
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn count_refused(status: &Status) {
    let reason = reason(status);
    tracing::debug!(reason, message = status.message(), "a report is refused");
    metrics::counter!(telemetry::REPORTS_REFUSED_TOTAL, "reason" => reason).increment(1);
}

async fn later(at: Instant, then: impl Future<Output = ()>) {
    sleep_until(at).await;
    then.await;
}

/// Waits for a change; for ever when none can come any more.
async fn change<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        future::pending().await
    }
}
