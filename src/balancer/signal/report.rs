//! Reports that backends send of themselves: `lookaside.v1.Reporter`. One stream per backend; a task reads it all the
//! time and keeps only the newest, another turns that into facts at most 50 times a second. What is malformed, absurd or
//! about somebody else is refused with a reason, counted, and changes nothing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use dashmap::DashMap;
use lookaside_core::event::Backend;
use lookaside_proto::v1::{self, reporter_server};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    accept::Connection, config::Live, convert, driver::Handle, limits::REPORT_BYTES_MAX, signal::Holders, telemetry,
};

mod mailbox;
mod parse;
mod stream;

/// Who may register what.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// As configured now: rules for registration, and the life of a stream, within 10 % either way: then it ends in good
    /// order, and the backend comes back, to any replica.
    pub(crate) live: Live,
    /// Where the balancer itself listens: nobody may register that.
    pub(crate) own: Vec<SocketAddr>,
}

/// The report streams that are open, and which of them speaks for which backend.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams(Arc<Open>);

#[derive(Debug, Default)]
struct Open {
    count: AtomicUsize,
    opened: AtomicU64,
    speakers: DashMap<Backend, u64>,
}

impl Streams {
    /// How many there are now.
    pub(crate) fn open(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Entered {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        metrics::gauge!(telemetry::REPORT_STREAMS).increment(1.0);
        Entered { streams: self.clone(), id: self.0.opened.fetch_add(1, Ordering::Relaxed) }
    }
}

/// One stream, counted for as long as it is open.
struct Entered {
    streams: Streams,
    id: u64,
}

impl Entered {
    /// Speaks for the backend from now on; an older stream of it no longer does.
    fn speak_for(&self, backend: Backend) {
        self.streams.0.speakers.insert(backend, self.id);
    }

    /// Whether it still spoke for the backend. A connection that broke long ago is found out only after the backend has
    /// come back on another: its end says nothing about the backend then.
    fn fall_silent(&self, backend: &Backend) -> bool {
        self.streams.0.speakers.remove_if(backend, |_, speaker| *speaker == self.id).is_some()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.streams.0.count.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!(telemetry::REPORT_STREAMS).decrement(1.0);
    }
}

/// The service.
#[derive(Clone)]
pub(crate) struct Service {
    driver: Handle,
    rules: Arc<Rules>,
    holders: Holders,
    streams: Streams,
    draining: CancellationToken,
}

impl Service {
    /// Backends are told to report elsewhere once `draining` is cancelled.
    pub(crate) fn new(driver: Handle, rules: Rules, holders: Holders, draining: CancellationToken) -> Self {
        Self { driver, rules: Arc::new(rules), holders, streams: Streams::default(), draining }
    }

    /// Counts the streams.
    pub(crate) fn streams(&self) -> Streams {
        self.streams.clone()
    }

    /// To be mounted on the client listener.
    pub(crate) fn into_server(self) -> reporter_server::ReporterServer<Self> {
        reporter_server::ReporterServer::new(self).max_decoding_message_size(REPORT_BYTES_MAX)
    }
}

/// Where a stream comes from, as far as the connection tells.
#[derive(Debug, Clone, Copy)]
struct Peer {
    ip: IpAddr,
    /// The balancer's own end of the connection.
    local_ip: Option<IpAddr>,
}

#[tonic::async_trait]
impl reporter_server::Reporter for Service {
    type ReportStream = ReceiverStream<Result<v1::ReportResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<v1::LoadReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        use tonic::Code::{Internal, PermissionDenied, Unavailable};
        if self.draining.is_cancelled() {
            return Err(convert::refused(Unavailable, "BALANCER_DRAINING", "the balancer is draining", &[]));
        }
        if !self.rules.live.config().registration.enabled {
            let words = "backends may not register themselves here";
            return Err(convert::refused(PermissionDenied, "REGISTRATION_DISABLED", words, &[]));
        }
        let unknown = || convert::refused(Internal, "PEER_UNKNOWN", "the connection does not tell who it is from", &[]);
        let peer = Peer {
            ip: request.remote_addr().ok_or_else(unknown)?.ip().to_canonical(),
            local_ip: request.local_addr().map(|address| address.ip().to_canonical()),
        };
        let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
        let (out, responses) = mpsc::channel(1);
        let stream = stream::Stream::new(self, self.streams.enter(), peer, connection);
        tokio::spawn(stream.serve(request.into_inner(), out, self.draining.clone()));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

#[cfg(test)]
mod tests;
