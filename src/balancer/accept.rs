//! Connections: who may have one, how long, and how much of it. One loop per gRPC listener hands HTTP/2 connections to
//! a router; beyond a cap a connection is closed at once, a silent one is cut, an old one is told to go away so that
//! clients spread over replicas again. Knows nothing of what is served.
//!
//! This is our own and not the router's library's server because that one sends no GOAWAY when both an age and a grace
//! are set, spins when file descriptors run out, and does not let a peer's memory be bounded.

use std::{
    convert::Infallible,
    io::{self, Cursor},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::server::TcpConnectInfo};
use tower::Service as _;

use crate::{
    config::Limits,
    limits::{
        CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES_MAX, RESETS_PENDING_MAX, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW_BYTES,
    },
    telemetry,
};

/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The first bytes did not come in time.
    #[error("the peer was silent")]
    Silent,
    /// Something else than gRPC.
    #[error("the peer does not speak HTTP/2 with prior knowledge")]
    NotHttp2,
    /// The network.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The protocol.
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// Between two attempts while file descriptors are used up: the kernel keeps connections waiting meanwhile.
const BACK_OFF: Duration = Duration::from_millis(100);

/// The connection that a request came on; in the extensions of every request.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    leave: CancellationToken,
}

impl Connection {
    /// Cancelled when the peer is told to go away: at its age, at the end of the balancer, or by [`Connection::leave`].
    /// Long streams then end by themselves; those that do not are cut after the grace.
    pub(crate) fn leaving(&self) -> &CancellationToken {
        &self.leave
    }

    /// Tells the peer to go away.
    pub(crate) fn leave(&self) {
        self.leave.cancel();
    }
}

/// A listener with a cap.
pub(crate) struct Acceptor {
    name: &'static str,
    listener: TcpListener,
    slots: Arc<Semaphore>,
    failing: bool,
}

impl Acceptor {
    /// `name` is what logs and metrics call it.
    pub(crate) fn new(name: &'static str, listener: TcpListener, connections_max: usize) -> Self {
        let slots = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
        Self { name, listener, slots, failing: false }
    }

    /// The next connection below the cap, with the slot it holds. Those above it are closed and counted here.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.failing = false;
                    match Arc::clone(&self.slots).try_acquire_owned() {
                        Ok(slot) => return (stream, peer, slot),
                        Err(_) => count_refused(self.name, "cap"),
                    }
                }
                // The peer gave up while it waited: nothing is wrong here.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !self.failing {
                        tracing::error!(listener = self.name, %error, "cannot accept connections; trying on");
                    }
                    self.failing = true;
                    sleep(BACK_OFF).await;
                }
            }
        }
    }
}

/// Serves until `stop` is cancelled, then waits until every connection has ended: those that do not leave by themselves
/// are cut after the drain deadline.
pub(crate) async fn serve(mut acceptor: Acceptor, routes: Routes, limits: Limits, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let name = acceptor.name;
    loop {
        let (stream, peer, slot) = tokio::select! {
            () = stop.cancelled() => break,
            next = acceptor.next() => next,
        };
        let (routes, stop) = (routes.clone(), stop.clone());
        connections.spawn(async move {
            let _slot = slot;
            let _open = Open::new(name);
            if let Err(error) = connection(name, stream, peer, routes, limits, stop).await {
                tracing::debug!(listener = name, %peer, %error, "a connection broke");
            }
        });
    }
    // Closed at once: who connects now must find another replica.
    drop(acceptor);
    connections.close();
    connections.wait().await;
}

async fn connection(
    name: &'static str,
    mut stream: TcpStream,
    peer: SocketAddr,
    routes: Routes,
    limits: Limits,
    stop: CancellationToken,
) -> Result<(), Error> {
    // A list is small and waited for.
    stream.set_nodelay(true)?;
    let mut first = [0; PREFACE.len()];
    let read = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        read = timeout(limits.handshake_deadline, stream.read_exact(&mut first)) => read,
    };
    match read {
        Ok(Ok(_)) if &first == PREFACE => {}
        Ok(Ok(_)) => {
            count_refused(name, "preface");
            return Err(Error::NotHttp2);
        }
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => {
            count_refused(name, "preface_deadline");
            return Err(Error::Silent);
        }
    }
    let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(peer) };
    let (read, write) = stream.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(first).chain(read), write));
    let this = Connection { leave: stop.child_token() };
    let leave = this.leave.clone();
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(info.clone());
        request.extensions_mut().insert(this.clone());
        let answer = routes.clone().call(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let mut served = pin!(builder(&limits).serve_connection(io, service));
    tokio::select! {
        ended = served.as_mut() => return Ok(ended?),
        () = leave.cancelled() => {}
        // Within 10 % either way, so that connections made together do not come back together.
        () = sleep(limits.connection_age.mul_f64(rand::random_range(0.9..1.1))) => leave.cancel(),
    }
    served.as_mut().graceful_shutdown();
    tokio::select! {
        ended = served.as_mut() => Ok(ended?),
        () = sleep(limits.connection_age_grace) => Ok(()),
        () = async { stop.cancelled().await; sleep(limits.drain_deadline).await } => Ok(()),
    }
}

fn builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
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
