//! Reports that backends send of themselves.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::Stream;
use lookaside_proto::v1::{LoadReport, ReportResponse, reporter_server};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{config::Registration, driver::Handle, signal::Holders};

/// Who may register what.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// As configured.
    pub(crate) registration: Registration,
    /// Where the balancer itself listens: nobody may register that.
    pub(crate) own: Vec<SocketAddr>,
    /// Identity of this replica.
    pub(crate) replica: String,
}

/// How many report streams are open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams(Arc<AtomicUsize>);

impl Streams {
    /// Now.
    pub(crate) fn open(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// `lookaside.v1.Reporter`.
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
        reporter_server::ReporterServer::new(self).max_decoding_message_size(64 << 10)
    }
}

#[tonic::async_trait]
impl reporter_server::Reporter for Service {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<ReportResponse, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<LoadReport>>) -> Result<Response<Self::ReportStream>, Status> {
        let _ = (request, &self.driver, &self.rules, &self.holders, &self.draining);
        Err(Status::unavailable("soon"))
    }
}
