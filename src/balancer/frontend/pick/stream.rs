//! One pick stream: a task that reads whatever the client sends at once and sends the newest of what is due when the
//! client has room. It ends with the connection's age, with the balancer, or when the client does not read.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use bytes::Bytes;
use lookaside_core::model::{Address, ClientId, Cohort, Locality, ServiceName, Timestamp, printable};
use lookaside_proto::v1::{self, PickRequest, pick_request::Kind as Asked, pick_response::Kind as Said};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::{StreamExt as _, StreamMap, wrappers::WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{
    Shared,
    outcomes::{self, Told},
    pending::{Due, Pending},
};
use crate::{
    accept::Connection,
    convert::{invalid, refused},
    frontend::{
        clients::{Session, Who},
        cohorts::{Answer, Framed, Published},
        encode,
    },
    limits::{
        HELD_LISTS_MAX, HELLO_WAIT_MAX, LAST_WORDS_WAIT, NEWCOMER_WAIT, SUBSCRIPTIONS_PER_STREAM_MAX, UNREAD_MAX,
    },
    telemetry,
};

type Out = mpsc::Sender<Result<Bytes, Status>>;

/// How a stream ends.
enum End {
    /// With words for the client.
    Said(Status),
    /// The same, and before them the advice to go elsewhere.
    Moved(Status),
    /// The client has gone, or does not listen.
    Gone,
}

/// Serves one stream to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
    connection: Option<Connection>,
    mut requests: Streaming<PickRequest>,
    out: Out,
) {
    let end = match hello(&mut requests).await {
        Ok((hello, held)) => {
            let who = Who { id: hello.id.clone(), peer, sdk: hello.sdk, locality: hello.cohort.locality.clone() };
            tracing::debug!(client = %who.id, ?peer, "a client came");
            let stream = PickStream {
                session: shared.clients.join(who),
                client: hello.id,
                cohort: hello.cohort,
                answers: StreamMap::new(),
                services: BTreeMap::new(),
                newcomers: BTreeMap::new(),
                pending: Pending::default(),
                shared: Arc::clone(&shared),
                held,
            };
            stream.run(&mut requests, &out, connection.as_ref()).await
        }
        Err(end) => end,
    };
    let last_words = async {
        match end {
            End::Said(status) => drop(out.send(Err(status)).await),
            End::Moved(status) => {
                let redirect = v1::Redirect { reason: status.message().to_owned(), ..v1::Redirect::default() };
                if out.send(Ok(encode::frame(Said::Redirect(redirect)))).await.is_ok() {
                    drop(out.send(Err(status)).await);
                }
            }
            End::Gone => {}
        }
    };
    // Who does not listen to these either has had its time.
    let _ = timeout(LAST_WORDS_WAIT, last_words).await;
}

/// What a client said of itself, checked.
struct Hello {
    id: ClientId,
    sdk: String,
    cohort: Cohort,
}

/// A list that a client brought with it.
#[derive(Default)]
struct HeldList {
    digest: u64,
    endpoints: BTreeSet<Address>,
}

async fn hello(requests: &mut Streaming<PickRequest>) -> Result<(Hello, BTreeMap<ServiceName, HeldList>), End> {
    let said = |reason, words: &str| End::Said(refuse(Code::InvalidArgument, reason, words, &[]));
    let first = match timeout(HELLO_WAIT_MAX, requests.message()).await {
        Ok(Ok(Some(first))) => first,
        Ok(Ok(None)) => return Err(said("HELLO_MISSING", "the stream ended before its hello")),
        Ok(Err(status)) => return Err(unreadable(&status)),
        Err(_) => return Err(said("HELLO_MISSING", "there was no hello within five seconds")),
    };
    let Some(Asked::Hello(hello)) = first.kind else {
        return Err(said("HELLO_MISSING", "the first message of a pick stream is a hello"));
    };
    let bad = |reason, error| {
        count(reason);
        End::Said(invalid(reason, &error))
    };
    let id = ClientId::parse(&hello.client_id).map_err(|e| bad("CLIENT_ID_INVALID", e))?;
    let locality = Locality::parse(&hello.locality).map_err(|e| bad("LOCALITY_INVALID", e))?;
    if hello.held.len() > HELD_LISTS_MAX {
        return Err(said("HELD_LISTS_MAX", &format!("at most {HELD_LISTS_MAX} lists can be held")));
    }
    let mut held = BTreeMap::new();
    for list in hello.held {
        let service = ServiceName::parse(&list.service).map_err(|e| bad("SERVICE_INVALID", e))?;
        let endpoints = list.endpoints.iter().map(|text| Address::parse(text)).collect::<Result<_, _>>();
        let endpoints = endpoints.map_err(|e| bad("ADDRESS_INVALID", e))?;
        held.insert(service, HeldList { digest: list.digest, endpoints });
    }
    let cohort = Cohort::of(&id, locality);
    Ok((Hello { id, sdk: printable(&hello.sdk), cohort }, held))
}

struct PickStream {
    shared: Arc<Shared>,
    session: Session,
    client: ClientId,
    cohort: Cohort,
    answers: StreamMap<ServiceName, WatchStream<Arc<Answer>>>,
    services: BTreeMap<ServiceName, Subscribed>,
    /// What the client brought and has not subscribed to yet.
    held: BTreeMap<ServiceName, HeldList>,
    /// Lists that wait for the balancer to have heard more.
    newcomers: BTreeMap<ServiceName, Arc<Answer>>,
    pending: Pending,
}

/// What the client has of a service.
#[derive(Default)]
struct Subscribed {
    /// Of the list that it holds, once everything sent has arrived.
    digest: Option<u64>,
    /// Whether a list was sent on this stream.
    listed: bool,
    told_unknown: bool,
    /// It came with another list than ours; `None` before the first one.
    may_know_more: Option<bool>,
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
    async fn run(mut self, requests: &mut Streaming<PickRequest>, out: &Out, connection: Option<&Connection>) -> End {
        let never = CancellationToken::new();
        let leaving = connection.map_or(&never, Connection::leaving);
        let settled = self.after_start(NEWCOMER_WAIT);
        loop {
            let waiting = self.pending.since();
            let unread = waiting.map_or_else(Instant::now, |since| since + UNREAD_MAX);
            tokio::select! {
                message = requests.message() => match message {
                    Ok(Some(message)) => if let Err(end) = self.hear(message) { return end },
                    Ok(None) => return End::Said(Status::ok("")),
                    Err(status) => return unreadable(&status),
                },
                Some((service, answer)) = self.answers.next(), if !self.answers.is_empty() => {
                    // What waited for the balancer to have heard more is older than this.
                    self.newcomers.remove(&service);
                    self.pending.answer(service, answer);
                }
                room = out.reserve(), if waiting.is_some() => match room {
                    Ok(room) => if let Some(frame) = self.speak() { room.send(Ok(frame)) },
                    Err(_) => return End::Gone,
                },
                () = sleep_until(unread), if waiting.is_some() => {
                    metrics::counter!(telemetry::PICK_UNREAD_TOTAL).increment(1);
                    // Its stream cannot even be told: what it has not read stands in front.
                    if let Some(connection) = connection {
                        connection.leave();
                    }
                    return End::Gone;
                }
                () = sleep_until(settled), if !self.newcomers.is_empty() => {
                    for (service, answer) in std::mem::take(&mut self.newcomers) {
                        self.pending.answer(service, answer);
                    }
                }
                () = out.closed() => return End::Gone,
                () = self.shared.draining.cancelled() => return self.leave(),
                () = leaving.cancelled() => return self.leave(),
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
        let held = self.held.remove(&service);
        let subscribed = Subscribed { digest: held.as_ref().map(|held| held.digest), ..Subscribed::default() };
        self.session.subscribed(&service, held.unwrap_or_default().endpoints);
        let answers = self.shared.cohorts.subscribe(&service, &self.cohort);
        self.answers.insert(service.clone(), WatchStream::new(answers));
        self.services.insert(service, subscribed);
    }

    fn unsubscribe(&mut self, name: &str) {
        let Ok(service) = ServiceName::parse(name) else {
            return self.object(name, Code::InvalidArgument, "SERVICE_INVALID", "no such subscription");
        };
        if self.services.remove(&service).is_some() {
            self.answers.remove(&service);
            self.newcomers.remove(&service);
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
        tracing::warn!(client = %self.client, %service, words, "a client refused a list");
        if self.session.refused(&service, version, words) {
            metrics::counter!(telemetry::PICK_NACKS_TOTAL, "service" => telemetry::service_label(&service))
                .increment(1);
        } else {
            count("ACK_UNKNOWN");
        }
    }

    fn told(&mut self, wire: &v1::Outcomes) {
        let Some((service, _)) = ServiceName::parse(&wire.service).ok().and_then(|s| self.services.get_key_value(&s))
        else {
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
        for (outcome, count) in sums.iter().filter(|(_, count)| **count > 0) {
            let labels = [("service", telemetry::service_label(service)), ("outcome", (*outcome).to_owned())];
            metrics::counter!(telemetry::CLIENT_CALLS_TOTAL, &labels).increment(*count);
        }
        let calls = sums.values().sum();
        self.session.told(service, calls, failed);
    }

    /// What goes out next, if there is anything to say after all.
    fn speak(&mut self) -> Option<Bytes> {
        match self.pending.next()? {
            Due::Error(error) => Some(encode::frame(Said::ServiceError(error))),
            Due::Answer(service, answer) => match &*answer {
                Answer::Silent => None,
                Answer::Unknown => self.unknown(&service),
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

    fn list(&mut self, service: ServiceName, published: &Published, answer: &Arc<Answer>) -> Option<Bytes> {
        let subscribed = self.services.get_mut(&service)?;
        subscribed.told_unknown = false;
        let form = subscribed.form(published);
        let assignment = &form.list.assignment;
        let now = self.shared.driver.now();
        if !assignment.complete && subscribed.digest.is_none() && now.since(Timestamp::default()) < NEWCOMER_WAIT {
            self.newcomers.insert(service, Arc::clone(answer));
            return None;
        }
        if let Some(frame) = subscribed.take_policy(published) {
            // The list is next: rules come before the calls that they are for.
            self.pending.answer(service, Arc::clone(answer));
            return Some(frame);
        }
        if subscribed.digest == Some(assignment.digest) {
            self.session.rebased(&service, published.version, &form.list);
            published.counters.ticks.increment(1);
            return Some(form.tick_frame.clone());
        }
        subscribed.digest = Some(assignment.digest);
        if std::mem::replace(&mut subscribed.listed, true) {
            // The first list is as old as the state of affairs; only changes tell how long they travel.
            metrics::histogram!(telemetry::PROPAGATION_DURATION_SECONDS).record(now.since(published.at));
        }
        self.session.sent(&service, published.version, &form.list);
        published.counters.lists.increment(1);
        Some(form.list_frame.clone())
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

fn refuse(code: Code, reason: &'static str, words: &str, metadata: &[(&str, &str)]) -> Status {
    count(reason);
    refused(code, reason, words, metadata)
}

fn count(reason: &'static str) {
    metrics::counter!(telemetry::PICK_REFUSED_TOTAL, "reason" => reason).increment(1);
}

/// A message that could not be read: the client's fault, unless its connection broke.
fn unreadable(status: &Status) -> End {
    match status.code() {
        // The words of the codec for what it cannot decode.
        Code::Internal => End::Said(refuse(Code::InvalidArgument, "MESSAGE_MALFORMED", status.message(), &[])),
        Code::OutOfRange => End::Said(refuse(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", status.message(), &[])),
        Code::Unimplemented => End::Said(status.clone()),
        _ => End::Gone,
    }
}
