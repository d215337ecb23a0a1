//! Connections: who may have one, how long, and how much of it. One loop per gRPC listener hands HTTP/2 connections to
//! a router; beyond a cap a connection is closed at once, a silent one is cut, an old one is told to go away so that
//! clients spread over replicas again. What one peer can take is bounded in every direction, so that it is this peer that
//! is turned away when it takes too much, and nobody else. Knows nothing of what is served.
//!
//! This is our own and not the router's library's server because that one sends no GOAWAY when both an age and a grace
//! are set, spins when file descriptors run out, and does not let a peer's memory be bounded.

use std::{convert::Infallible, io, pin::pin, sync::Arc};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use lookaside_tls::Io;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::TcpStream,
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, service::Routes, transport::server::TcpConnectInfo};
use tower::Service as _;

use crate::{
    config::{Limits, Live},
    limits::{
        CONNECTION_WINDOW_BYTES, GOAWAY_WAIT, HANDSHAKES_MAX, HEADER_LIST_BYTES_MAX, PEER_SUBSCRIPTIONS_PER_STREAM,
        REQUEST_WAIT_MAX, RESETS_PENDING_MAX, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW_BYTES,
    },
    telemetry,
};

mod acceptor;
mod ceiling;
mod meter;
mod peers;
mod tasks;
mod vitals;

pub(crate) use acceptor::{Accepted, Acceptor};
use ceiling::Inside;
pub(crate) use ceiling::{Ceiling, Newcomer};
use meter::{Flood, Meter, PREFACE};
pub(crate) use peers::number as peer_number;
use peers::{Counted, Peer};
use tasks::Tasks;
pub(crate) use tasks::{Ended, Task};
pub(crate) use vitals::later;
use vitals::{Answer, Vitals};

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The first bytes did not come in time.
    #[error("the peer was silent")]
    Silent,
    /// So many others of its address were in their handshakes that its own did not begin in time.
    #[error("too many handshakes at once")]
    Crowded,
    /// Something else than gRPC.
    #[error("the peer does not speak HTTP/2 with prior knowledge")]
    NotHttp2,
    /// No TLS, or not the certificate that is wanted.
    #[error(transparent)]
    Tls(#[from] lookaside_tls::Error),
    /// The network.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The protocol.
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// The connection that a request came on; in the extensions of every request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connection {
    leave: CancellationToken,
    /// What its streams take up together, counted by whoever serves them.
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    peer: Arc<Peer>,
    peer_subscriptions_max: usize,
    unfinished_bytes: Counted,
    subscriptions: Counted,
    held_endpoints: Counted,
}

impl Connection {
    fn new(leave: CancellationToken, peer: &Arc<Peer>, streams_per_peer: usize) -> Self {
        let peer_subscriptions_max = streams_per_peer.saturating_mul(PEER_SUBSCRIPTIONS_PER_STREAM);
        let counts = Counts { peer: Arc::clone(peer), peer_subscriptions_max, ..Counts::default() };
        Self { leave, counts: Arc::new(counts) }
    }

    /// Cancelled when the peer is told to go away: at its age, or at the end of the balancer. Long streams then end by
    /// themselves; those that do not are cut after the grace.
    pub(crate) fn leaving(&self) -> &CancellationToken {
        &self.leave
    }

    /// Bytes of messages that have not come to their end.
    pub(crate) fn unfinished_bytes(&self) -> usize {
        self.counts.unfinished_bytes.now()
    }

    /// One stream had so many of them, and has so many now.
    pub(crate) fn count_unfinished(&self, before: usize, now: usize) {
        self.counts.unfinished_bytes.add(now, usize::MAX);
        self.counts.unfinished_bytes.take(before);
    }

    /// Counts a subscription, if the connection has fewer than `max`, and its peer fewer than it may have.
    pub(crate) fn subscribe(&self, max: usize) -> bool {
        if !self.counts.subscriptions.add(1, max) {
            return false;
        }
        let is_counted = self.counts.peer.subscriptions.add(1, self.counts.peer_subscriptions_max);
        if !is_counted {
            self.counts.subscriptions.take(1);
        }
        is_counted
    }

    /// So many fewer.
    pub(crate) fn unsubscribe(&self, count: usize) {
        self.counts.subscriptions.take(count);
        self.counts.peer.subscriptions.take(count);
    }

    /// Counts endpoints that a client brought with it, until what is returned is dropped; `None` when there would be more
    /// than `max`.
    pub(crate) fn hold(&self, endpoints: usize, max: usize) -> Option<Holding> {
        let is_counted = self.counts.held_endpoints.add(endpoints, max);
        is_counted.then(|| Holding { counts: Arc::clone(&self.counts), endpoints })
    }

    /// Counts a backend that registers on one of its streams, until what is returned is dropped; `None` when the peer has
    /// `max` of them already.
    pub(crate) fn register(&self, max: usize) -> Option<Registered> {
        self.counts.peer.registrations.add(1, max).then(|| Registered(Arc::clone(&self.counts.peer)))
    }
}

/// Endpoints that are counted.
#[derive(Debug)]
pub(crate) struct Holding {
    counts: Arc<Counts>,
    endpoints: usize,
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.counts.held_endpoints.take(self.endpoints);
    }
}

/// A registration that is counted.
#[derive(Debug)]
pub(crate) struct Registered(Arc<Peer>);

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.registrations.take(1);
    }
}

/// What a listener serves, and how.
#[derive(Clone)]
pub(crate) struct Offer {
    /// Who answers.
    pub(crate) routes: Routes,
    /// How connections are secured; `None` is plaintext.
    pub(crate) tls: Option<lookaside_tls::Acceptor>,
    /// How much a peer may take: a connection keeps to what held when it came.
    pub(crate) live: Live,
    /// How much memory may be taken, for listeners that look to it.
    pub(crate) ceiling: Option<Arc<Ceiling>>,
    /// The path of the one method whose streams come by the thousand; of all others a connection has a few.
    pub(crate) many: Option<&'static str>,
    /// Cancelled when no more connections are wanted.
    pub(crate) stop: CancellationToken,
}

/// The right to be in the handshake: until the first request has come.
pub(crate) type Turn = [OwnedSemaphorePermit; 2];

/// Serves until the offer ends, then waits until every connection has: those that do not leave by themselves are cut after
/// the drain deadline.
pub(crate) async fn serve(mut acceptor: Acceptor, offer: Offer) {
    let connections = TaskTracker::new();
    let listening = Arc::new(Listening {
        name: acceptor.name,
        offer: offer.clone(),
        handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
    });
    loop {
        let accepted = tokio::select! {
            () = offer.stop.cancelled() => break,
            next = acceptor.next() => next,
        };
        if !listening.has_room(Newcomer::Connection) {
            listening.refuse("memory");
            continue;
        }
        let listening = Arc::clone(&listening);
        connections.spawn(async move {
            let _open = Open::new(listening.name);
            let peer = accepted.peer;
            if let Err(error) = listening.receive(accepted).await {
                tracing::debug!(listener = listening.name, %peer, %error, "a connection broke");
            }
        });
    }
    // Closed at once: who connects now must find another replica.
    drop(acceptor);
    connections.close();
    connections.wait().await;
}

/// One listener, as its connections see it.
struct Listening {
    name: &'static str,
    offer: Offer,
    handshakes: Arc<Semaphore>,
}

impl Listening {
    /// From the first byte to the last.
    async fn receive(&self, accepted: Accepted) -> Result<(), Error> {
        let Accepted { stream, peer, slot } = accepted;
        // A list is small and waited for.
        stream.set_nodelay(true)?;
        let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(peer) };
        let limits = self.offer.live.config().limits;
        let patience = limits.handshake_deadline;
        let turn = tokio::select! {
            () = self.offer.stop.cancelled() => return Ok(()),
            // Together less than ten seconds by default, in which whoever says nothing is gone.
            turn = timeout(patience / 2, self.turn(slot.peer())) => turn,
        };
        let Ok(Ok(turn)) = turn else {
            self.refuse("handshakes");
            return Err(Error::Crowded);
        };
        // One deadline for everything up to the first request.
        let deadline = Instant::now() + patience;
        let greeted = tokio::select! {
            () = self.offer.stop.cancelled() => return Ok(()),
            greeted = timeout_at(deadline, self.greet(stream)) => greeted,
        };
        let stream = match greeted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                match error {
                    Error::NotHttp2 => self.refuse("preface"),
                    Error::Tls(_) => self.refuse("tls"),
                    Error::Silent | Error::Crowded | Error::Io(_) | Error::Http(_) => {}
                }
                return Err(error);
            }
            Err(_) => {
                self.refuse("preface_deadline");
                return Err(Error::Silent);
            }
        };
        let vitals = Vitals::new(slot.peer(), limits.streams_per_peer, turn);
        // On the heap: who waits for the handshake is to cost little.
        Box::pin(self.connection(stream, info, limits, vitals, deadline)).await
    }

    /// The handshake of TLS, where there is one, and the first bytes of HTTP/2.
    async fn greet(&self, stream: TcpStream) -> Result<Io, Error> {
        let mut io = match &self.offer.tls {
            None => Io::Plain(stream),
            // On the heap: most of its size is for the moment of the handshake.
            Some(tls) => Box::pin(tls.accept(stream)).await?,
        };
        preface(&mut io).await?;
        Ok(io)
    }

    /// Those of one peer wait for each other, and only then for the rest.
    async fn turn(&self, peer: &Peer) -> Result<Turn, AcquireError> {
        let own = Arc::clone(&peer.handshakes).acquire_owned().await?;
        Ok([own, Arc::clone(&self.handshakes).acquire_owned().await?])
    }

    /// A connection whose preface has been read, to its end.
    async fn connection<I: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        io: I,
        info: TcpConnectInfo,
        limits: Limits,
        vitals: Arc<Vitals>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let io = TokioIo::new(Meter::new(io, limits.streams_per_connection));
        let this = Connection::new(self.offer.stop.child_token(), vitals.peer(), limits.streams_per_peer);
        let leave = this.leave.clone();
        let tasks = Tasks::default();
        let service = hyper::service::service_fn(|mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(info.clone());
            request.extensions_mut().insert(this.clone());
            if self.offer.many == Some(request.uri().path()) {
                let task = Task::default();
                request.extensions_mut().insert(task.clone());
                tasks.expect(task);
            }
            let answer = self.answer(request, &vitals, &this);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut served = pin!(builder(&limits, tasks.clone()).serve_connection(io, service));
        // Within 10 % either way, so that connections made together do not come back together.
        let age = limits.connection_age.mul_f64(rand::random_range(0.9..1.1));
        tokio::select! {
            ended = served.as_mut() => return self.ended(ended),
            () = leave.cancelled() => {}
            () = sleep(age) => {}
            () = vitals.empty_for(limits.connection_idle) => {}
            () = vitals.no_request_by(deadline) => self.refuse("first_request_deadline"),
        }
        leave.cancel();
        served.as_mut().graceful_shutdown();
        let grace = if vitals.asked() { limits.connection_age_grace } else { GOAWAY_WAIT };
        tokio::select! {
            ended = served.as_mut() => self.ended(ended),
            () = sleep(grace) => Ok(()),
            () = async { self.offer.stop.cancelled().await; sleep(limits.drain_deadline).await } => Ok(()),
        }
    }

    /// Answers one request, if there is room for it.
    fn answer(
        &self,
        request: http::Request<hyper::body::Incoming>,
        vitals: &Arc<Vitals>,
        connection: &Connection,
    ) -> impl Future<Output = http::Response<Answer>> + Send + use<> {
        let path = request.uri().path();
        let is_about_us = path.starts_with("/grpc.");
        let open = match is_about_us || self.has_room(Newcomer::Stream) {
            true => vitals.open(self.offer.many != Some(path), self.inside()),
            false => Err(later("MEMORY", "the balancer takes the memory that it may have")),
        };
        // Health and reflection: their streams know nothing of the end of a connection.
        let leaving = is_about_us.then(|| connection.leave.clone());
        let answer = open.map(|open| (open, timeout(REQUEST_WAIT_MAX, self.offer.routes.clone().call(request))));
        // On the heap, and gone when the answer begins: most streams live long after that.
        Box::pin(async move {
            let (open, answer) = match answer {
                Ok((open, answer)) => (open, answer.await),
                Err(status) => return status.into_http().map(|body| Answer::new(body, None)),
            };
            let response = match answer {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => Status::deadline_exceeded("the request did not come to its end").into_http(),
            };
            response.map(|body| {
                let answer = Answer::new(body, Some(open));
                match leaving {
                    Some(leaving) => answer.ending_with(leaving),
                    None => answer,
                }
            })
        })
    }

    fn ended(&self, ended: hyper::Result<()>) -> Result<(), Error> {
        let Err(error) = ended else { return Ok(()) };
        if has_flooded(&error) {
            self.refuse("flood");
        }
        Err(error.into())
    }

    fn has_room(&self, newcomer: Newcomer) -> bool {
        self.offer.ceiling.as_ref().is_none_or(|ceiling| ceiling.has_room(newcomer))
    }

    fn inside(&self) -> Option<Inside> {
        self.offer.ceiling.as_ref().map(Ceiling::enter)
    }

    fn refuse(&self, reason: &'static str) {
        count_refused(self.name, reason);
    }
}

async fn preface(io: &mut (impl AsyncRead + Unpin)) -> Result<(), Error> {
    let mut first = [0; PREFACE.len()];
    io.read_exact(&mut first).await?;
    if &first == PREFACE { Ok(()) } else { Err(Error::NotHttp2) }
}

fn has_flooded(error: &hyper::Error) -> bool {
    let mut error: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = error {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if cause.is::<Flood>() || inner.is_some_and(|inner| inner.is::<Flood>()) {
            return true;
        }
        error = cause.source();
    }
    false
}

fn builder(limits: &Limits, tasks: Tasks) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(tasks);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_per_connection)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
}

fn count_refused(listener: &'static str, reason: &'static str) {
    metrics::counter!(telemetry::CONNECTIONS_REFUSED_TOTAL, "listener" => listener, "reason" => reason).increment(1);
}

/// Counts a connection for as long as it lives, however it ends.
struct Open(metrics::Gauge);

impl Open {
    fn new(listener: &'static str) -> Self {
        let gauge = metrics::gauge!(telemetry::CONNECTIONS, "listener" => listener);
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests;
