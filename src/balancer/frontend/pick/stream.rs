//! One pick stream: reads whatever the client sends at once and sends the newest of what is due when the client has room.
//! It ends with the connection's age, with the balancer, or when the client does not read. A first list waits for its
//! turn when many come at once; a client that holds the list already does not.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use lookaside_core::{
    event::Client,
    model::{Cohort, ServiceName, Timestamp, printable},
};
use lookaside_proto::v1::{self, PickRequest, pick_request::Kind as Asked, pick_response::Kind as Said};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::{StreamExt as _, StreamMap, wrappers::WatchStream};
use tonic::{Code, Status};

use super::{
    Shared,
    allowance::Allowance,
    frames::Outlet,
    hello::{End, HeldList, Hello, count, hello, refuse, unreadable},
    outcomes::{self, Told},
    pending::{Due, Pending},
    requests::Requests,
};
use crate::{
    accept::{Connection, Ended, later, peer_number},
    frontend::{
        clients::{Session, Who},
        cohorts::{Answer, Framed, Published},
        encode,
        few::Few,
    },
    limits::{
        HELD_WAIT_MAX, LAST_WORDS_WAIT, NEWCOMER_WAIT, OUTCOME_BYTES_MAX, PEER_SUBSCRIPTIONS_PER_STREAM,
        PICK_REQUEST_BYTES_MAX, SUBSCRIPTIONS_PER_CONNECTION_MAX, SUBSCRIPTIONS_PER_STREAM_MAX, UNREAD_MAX,
    },
    telemetry,
};

/// Serves one stream to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
    connection: Connection,
    mut requests: Requests,
    out: Outlet,
) -> Ended {
    let end = match hello(&mut requests, &connection).await {
        Ok((hello, held)) => {
            let mut stream = Box::new(PickStream::new(shared, peer, connection, hello, held));
            stream.run(&mut requests, &out).await
        }
        Err(end) => end,
    };
    let (advice, status) = match end {
        End::Said(status) => (None, status),
        End::Moved(status) => {
            (Some(v1::Redirect { reason: status.message().to_owned(), ..v1::Redirect::default() }), status)
        }
        End::Gone => (None, Status::aborted("the stream broke")),
        End::Unread => return Ended::Cut,
    };
    let last_words = async {
        out.room().await;
        if let Some(advice) = advice {
            out.put(encode::frame(Said::Redirect(advice)));
            out.room().await;
        }
        out.end(status);
        out.room().await;
    };
    // Who does not listen to these either has had its time.
    match timeout(LAST_WORDS_WAIT, last_words).await {
        Ok(()) => Ended::Well,
        Err(_) => Ended::Cut,
    }
}

struct PickStream {
    shared: Arc<Shared>,
    connection: Connection,
    session: Session,
    client: Client,
    cohort: Cohort,
    answers: StreamMap<ServiceName, WatchStream<Arc<Answer>>>,
    services: Few<ServiceName, Subscribed>,
    /// What the client brought and has not subscribed to yet, and until when that is kept.
    held: BTreeMap<ServiceName, HeldList>,
    held_until: Instant,
    /// Turns for first lists that it had before it gave the services up: it gets no second one.
    admitted: Few<ServiceName, Instant>,
    /// Lists that wait: for the balancer to have heard more, or for their turn.
    held_back: Few<ServiceName, (Instant, Arc<Answer>)>,
    pending: Pending,
    /// Endpoints in the longest list that the client may tell of.
    endpoints_max: usize,
    allowance: Allowance,
}

/// What the client has of a service.
#[derive(Default)]
struct Subscribed {
    /// Of the list that it holds, once everything sent has arrived.
    digest: Option<u64>,
    /// Whether a list was sent on this stream, and a tick.
    listed: bool,
    ticked: bool,
    told_unknown: bool,
    /// It came with another list than ours; `None` before the first one.
    may_know_more: Option<bool>,
    /// Since when a first list may be sent.
    admitted_at: Option<Instant>,
    /// Whether it was logged that the client refuses a list.
    refused: bool,
    /// How calls are to be made, as sent last; `None` while it may have something else of an earlier stream.
    policy: Option<Bytes>,
}

impl Subscribed {
    /// Who resumes with another list than the balancer has just restored may be right about what that one does not name.
    fn form<'a>(&mut self, published: &'a Published) -> &'a Framed {
        let brought = self.digest.is_some_and(|held| held != published.whole.list.assignment.digest);
        let may_know_more = *self.may_know_more.get_or_insert(brought);
        published.additions.as_deref().filter(|_| may_know_more).unwrap_or(&published.whole)
    }

    /// How calls are to be made, if that is news. Who came without a list has no rules of ours either, and need not be
    /// told that there are none.
    fn take_policy(&mut self, published: &Published) -> Option<Bytes> {
        let is_news = match &self.policy {
            None => !published.has_no_rules || self.digest.is_some(),
            Some(sent) => *sent != published.policy_frame,
        };
        if is_news || self.policy.is_none() {
            self.policy = Some(published.policy_frame.clone());
        }
        is_news.then(|| published.policy_frame.clone())
    }
}

impl PickStream {
    fn new(
        shared: Arc<Shared>,
        peer: Option<SocketAddr>,
        connection: Connection,
        hello: Hello,
        held: BTreeMap<ServiceName, HeldList>,
    ) -> Self {
        let client = Client {
            id: hello.id.clone(),
            peer: peer.map(|peer| peer_number(peer.ip())).unwrap_or_default(),
            locality: hello.cohort.locality.clone(),
        };
        let who = Who { id: hello.id, peer, sdk: hello.sdk, locality: hello.cohort.locality.clone() };
        tracing::debug!(client = %who.id, ?peer, "a client came");
        Self {
            session: shared.clients.join(who),
            connection,
            client,
            cohort: hello.cohort,
            answers: StreamMap::new(),
            services: Few::default(),
            held_back: Few::default(),
            pending: Pending::default(),
            endpoints_max: held.values().map(|list| list.endpoints.addresses.len()).max().unwrap_or(0),
            allowance: Allowance::new(Instant::now()),
            shared,
            held_until: Instant::now() + HELD_WAIT_MAX,
            held,
            admitted: Few::default(),
        }
    }

    async fn run(&mut self, requests: &mut Requests, out: &Outlet) -> End {
        let shared = Arc::clone(&self.shared);
        let leaving = self.connection.leaving().clone();
        loop {
            let waiting = self.pending.since();
            let unread = waiting.map(|since| since + UNREAD_MAX);
            let held_back = self.held_back.iter().map(|(_, (until, _))| *until).min();
            let held = (!self.held.is_empty()).then_some(self.held_until);
            let due = unread.into_iter().chain(held_back).chain(held).min();
            tokio::select! {
                message = requests.next(PICK_REQUEST_BYTES_MAX + self.endpoints_max * OUTCOME_BYTES_MAX) => match message {
                    Ok(Some(message)) => if let Err(end) = self.hear(message) { return end },
                    Ok(None) => return End::Said(Status::ok("")),
                    Err(error) => return unreadable(&error),
                },
                Some((service, answer)) = self.answers.next(), if !self.answers.is_empty() => {
                    // What was held back is older than this.
                    self.held_back.remove(&service);
                    self.pending.answer(service, answer);
                }
                () = out.room(), if waiting.is_some() => match self.speak() {
                    Ok(Some(frame)) => {
                        self.allowance.earn();
                        out.put(frame);
                    }
                    Ok(None) => {}
                    Err(end) => return end,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if unread.is_some_and(|unread| unread <= Instant::now()) {
                        metrics::counter!(telemetry::PICK_UNREAD_TOTAL).increment(1);
                        return End::Unread;
                    }
                    self.let_go();
                }
                () = shared.draining.cancelled() => return self.leave(),
                () = leaving.cancelled() => return self.leave(),
            }
        }
    }

    /// What was held back until now is due.
    fn let_go(&mut self) {
        let now = Instant::now();
        if self.held_until <= now {
            self.held.clear();
        }
        let due: Vec<_> =
            self.held_back.iter().filter(|(_, (until, _))| *until <= now).map(|(s, _)| s.clone()).collect();
        for service in due {
            if let Some((_, answer)) = self.held_back.remove(&service) {
                self.pending.answer(service, answer);
            }
        }
    }

    fn leave(&self) -> End {
        // The end of the balancer is the end of its connections as well: this is the better advice.
        if self.shared.draining.is_cancelled() {
            return End::Moved(Status::unavailable("balancer is draining"));
        }
        End::Said(Status::unavailable("the connection has reached its age: open another"))
    }

    /// The moment `wait` after the start of the balancer.
    fn after_start(&self, wait: std::time::Duration) -> Instant {
        let up = self.shared.driver.now().since(Timestamp::default());
        Instant::now() + wait.saturating_sub(up)
    }

    fn hear(&mut self, message: PickRequest) -> Result<(), End> {
        if !self.allowance.spend(self.services.len(), Instant::now()) {
            count("MESSAGES_MAX");
            return Err(End::Said(later("MESSAGES_MAX", "messages come faster than a client has use for")));
        }
        match message.kind {
            Some(Asked::Hello(_)) => {
                let status = refuse(Code::InvalidArgument, "HELLO_TWICE", "one stream, one hello", &[]);
                return Err(End::Said(status));
            }
            Some(Asked::Subscribe(wanted)) => self.subscribe(&wanted.service),
            Some(Asked::Unsubscribe(given_up)) => self.unsubscribe(&given_up.service),
            Some(Asked::Ack(ack)) => self.acknowledge(&ack),
            Some(Asked::Outcomes(told)) => self.told(&told),
            Some(Asked::Reserve(wanted)) => {
                self.object(&wanted.service, Code::Unimplemented, "RESERVATIONS_UNSUPPORTED", "picks are not reserved");
            }
            // Of a newer version of the contract.
            None => count("KIND_UNKNOWN"),
        }
        Ok(())
    }

    fn subscribe(&mut self, name: &str) {
        let service = match ServiceName::parse(name) {
            Ok(service) => service,
            Err(error) => return self.object(name, Code::InvalidArgument, "SERVICE_INVALID", &error.to_string()),
        };
        if self.services.contains_key(&service) {
            return;
        }
        if self.services.len() >= SUBSCRIPTIONS_PER_STREAM_MAX {
            let words = format!("a stream carries at most {SUBSCRIPTIONS_PER_STREAM_MAX} services");
            return self.object(name, Code::ResourceExhausted, "SUBSCRIPTIONS_MAX", &words);
        }
        if !self.connection.subscribe(SUBSCRIPTIONS_PER_CONNECTION_MAX) {
            let words = format!(
                "a connection carries at most {SUBSCRIPTIONS_PER_CONNECTION_MAX} subscriptions, and a peer \
                 {PEER_SUBSCRIPTIONS_PER_STREAM} for each stream that it may have"
            );
            return self.object(name, Code::ResourceExhausted, "SUBSCRIPTIONS_MAX", &words);
        }
        let held = self.held.remove(&service);
        let subscribed = Subscribed {
            digest: held.as_ref().map(|held| held.digest),
            admitted_at: self.admitted.remove(&service),
            ..Subscribed::default()
        };
        self.session.subscribed(&service, held.unwrap_or_default().endpoints);
        let answers = self.shared.cohorts.subscribe(&service, &self.cohort);
        self.answers.insert(service.clone(), WatchStream::new(answers));
        self.services.insert(service, subscribed);
    }

    fn unsubscribe(&mut self, name: &str) {
        let Ok(service) = ServiceName::parse(name) else {
            return self.object(name, Code::InvalidArgument, "SERVICE_INVALID", "no such subscription");
        };
        if let Some(given_up) = self.services.remove(&service) {
            if let Some(turn) = given_up.admitted_at
                && self.admitted.len() < SUBSCRIPTIONS_PER_STREAM_MAX
            {
                self.admitted.insert(service.clone(), turn);
            }
            self.connection.unsubscribe(1);
            self.answers.remove(&service);
            self.held_back.remove(&service);
            self.pending.forget(&service);
            self.session.unsubscribed(&service);
        }
    }

    fn acknowledge(&mut self, ack: &v1::Ack) {
        let version = ack.version.map(|v| lookaside_core::model::Version { epoch: v.epoch, sequence: v.sequence });
        let service = ServiceName::parse(&ack.service).ok();
        let (Some(version), Some(service)) = (version, service) else { return count("ACK_INVALID") };
        if ack.refused.is_empty() {
            if !self.session.applied(&service, version) {
                count("ACK_UNKNOWN");
            }
            return;
        }
        let words = printable(&ack.refused);
        if !self.session.refused(&service, version, words.clone()) {
            return count("ACK_UNKNOWN");
        }
        metrics::counter!(telemetry::PICK_NACKS_TOTAL, "service" => telemetry::service_label(&service)).increment(1);
        // Once: a client must not fill the log.
        if let Some(subscribed) = self.services.get_mut(&service)
            && !std::mem::replace(&mut subscribed.refused, true)
        {
            tracing::warn!(client = %self.client.id, %service, words, "a client refused a list");
        }
    }

    fn told(&mut self, wire: &v1::Outcomes) {
        let Some(service) = ServiceName::parse(&wire.service).ok().and_then(|s| self.services.key(&s)) else {
            let words = "outcomes are taken of subscribed services";
            return self.object(&wire.service, Code::InvalidArgument, "OUTCOMES_INVALID", words);
        };
        let service = service.clone();
        let told = match outcomes::parse(wire) {
            Ok(told) => told,
            Err(error) => {
                return self.object(&wire.service, Code::InvalidArgument, "OUTCOMES_INVALID", &error.to_string());
            }
        };
        let addresses: Vec<_> = told.iter().map(|t| t.address.clone()).collect();
        let known = self.session.known(&service, &addresses);
        let taken = told.into_iter().zip(known).filter_map(|(told, known)| {
            if !known {
                count("OUTCOMES_STRANGE_ENDPOINT");
            }
            known.then_some(told)
        });
        self.take(&service, taken.collect());
    }

    fn take(&self, service: &ServiceName, told: Vec<Told>) {
        let snapshots = self.shared.driver.snapshots();
        let snapshot = Arc::clone(&snapshots.borrow());
        let (mut failed, mut sums) = (0, BTreeMap::new());
        for told in told {
            failed += told.outcomes.failed;
            for (outcome, count) in told.counts {
                *sums.entry(outcome).or_insert(0) += count;
            }
            let endpoint = snapshot.services.get(service).and_then(|s| s.endpoint(&told.address));
            // What an earlier start of the backend did says nothing of this one.
            if endpoint.is_some_and(|e| told.incarnation == 0 || told.incarnation == e.spec.incarnation) {
                self.shared.driver.outcomes(&self.client, service, &told.address, told.outcomes);
            }
        }
        // A name that nobody knows is not a label: a client could make up any number of them.
        let is_known = snapshot.services.contains_key(service);
        for (outcome, count) in sums.iter().filter(|(_, count)| is_known && **count > 0) {
            let labels = [("service", telemetry::service_label(service)), ("outcome", (*outcome).to_owned())];
            metrics::counter!(telemetry::CLIENT_CALLS_TOTAL, &labels).increment(*count);
        }
        let calls = sums.values().sum();
        self.session.told(service, calls, failed);
    }

    /// What goes out next, if there is anything to say after all.
    fn speak(&mut self) -> Result<Option<Bytes>, End> {
        match self.pending.next() {
            None => Ok(None),
            Some(Due::Error(error)) => Ok(Some(encode::frame(Said::ServiceError(error)))),
            Some(Due::Answer(service, answer)) => match &*answer {
                Answer::Silent => Ok(None),
                Answer::Unknown => Ok(self.unknown(&service)),
                Answer::List(published) => self.list(service, published, &answer),
            },
        }
    }

    fn unknown(&mut self, service: &ServiceName) -> Option<Bytes> {
        let subscribed = self.services.get_mut(service)?;
        if std::mem::replace(&mut subscribed.told_unknown, true) {
            return None;
        }
        count("SERVICE_UNKNOWN");
        Some(encode::frame(Said::ServiceError(v1::ServiceError {
            service: service.to_string(),
            code: Code::NotFound.into(),
            message: format!("nobody knows service {service}; a list follows when somebody does"),
            reason: "SERVICE_UNKNOWN".to_owned(),
        })))
    }

    fn list(
        &mut self,
        service: ServiceName,
        published: &Published,
        answer: &Arc<Answer>,
    ) -> Result<Option<Bytes>, End> {
        let settled = self.after_start(NEWCOMER_WAIT);
        let Some(subscribed) = self.services.get_mut(&service) else { return Ok(None) };
        subscribed.told_unknown = false;
        let form = subscribed.form(published);
        let assignment = &form.list.assignment;
        self.endpoints_max = self.endpoints_max.max(assignment.endpoints.len());
        let now = Instant::now();
        if !assignment.complete && subscribed.digest.is_none() && now < settled {
            self.held_back.insert(service, (settled, Arc::clone(answer)));
            return Ok(None);
        }
        // Who holds the list already costs nearly nothing: only what is sent in full has to wait for its turn.
        if !subscribed.listed && subscribed.digest != Some(assignment.digest) {
            let turn = match subscribed.admitted_at {
                Some(turn) => turn,
                None => match self.shared.admission.enter(form.list_frame.len(), now) {
                    Ok(turn) => turn,
                    Err(full) => {
                        count("ADMISSION");
                        return Err(End::Said(later("ADMISSION", &full.to_string())));
                    }
                },
            };
            subscribed.admitted_at = Some(turn);
            if now < turn {
                self.held_back.insert(service, (turn, Arc::clone(answer)));
                return Ok(None);
            }
        }
        if let Some(frame) = subscribed.take_policy(published) {
            // The list is next: rules come before the calls that they are for.
            self.pending.answer(service, Arc::clone(answer));
            return Ok(Some(frame));
        }
        if subscribed.digest == Some(assignment.digest) {
            subscribed.ticked = true;
            self.session.rebased(&service, published.version, &form.list);
            published.counters.ticks.increment(1);
            return Ok(Some(form.tick_frame.clone()));
        }
        subscribed.digest = Some(assignment.digest);
        if std::mem::replace(&mut subscribed.listed, true) {
            // The first list is as old as the state of affairs; only changes tell how long they travel.
            metrics::histogram!(telemetry::PROPAGATION_DURATION_SECONDS)
                .record(self.shared.driver.now().since(published.at));
        }
        self.session.sent(&service, published.version, &form.list);
        published.counters.lists.increment(1);
        if published.knows_fleet && !subscribed.ticked {
            // How the fleet fares is next: the first calls are to go by it.
            self.pending.answer(service, Arc::clone(answer));
        }
        Ok(Some(form.list_frame.clone()))
    }

    /// Says what is wrong about one service; the stream lives on.
    fn object(&mut self, service: &str, code: Code, reason: &'static str, words: &str) {
        count(reason);
        self.pending.error(v1::ServiceError {
            service: printable(service),
            code: code.into(),
            message: words.to_owned(),
            reason: reason.to_owned(),
        });
    }
}

impl Drop for PickStream {
    fn drop(&mut self) {
        self.connection.unsubscribe(self.services.len());
    }
}
