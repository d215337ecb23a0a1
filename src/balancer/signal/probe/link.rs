//! The connection to one endpoint over which it is checked. Made by hand rather than by a channel that reconnects on its
//! own: a check must say what went wrong, and with which of the layers.

use std::{
    error::Error as StdError,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lookaside_core::{event::CheckOutcome, model::Address};
use lookaside_tls::{Error, Tls, dial};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status, body::Body};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::limits::{HEADER_LIST_BYTES_MAX, SMALL_REQUEST_BYTES_MAX, STREAM_WINDOW_BYTES};

/// What a check over a connection came to.
pub(super) enum Answer {
    /// The backend's answer, or one that is as good.
    Outcome(CheckOutcome),
    /// There is no health service, but somebody who speaks gRPC.
    Unimplemented,
    /// The connection is of no use any more.
    Broken(CheckOutcome),
}

/// What Watch says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    Serving,
    NotServing,
    /// It is not implemented: Check is all there is.
    Unimplemented,
    /// It ended without a word; often the backend did so too.
    Broken,
}

pub(super) struct Link {
    client: HealthClient<Caller>,
    watch: Option<Watch>,
    /// Until the backend says that Watch is not implemented.
    is_watchable: bool,
    _connection: AbortOnDropHandle<()>,
}

struct Watch {
    newest: watch::Receiver<Option<Watched>>,
    _task: AbortOnDropHandle<()>,
}

impl Link {
    /// Connects; the outcome says why that did not work.
    pub(super) async fn open(address: &Address, tls: Option<(&Tls, &str)>) -> Result<Self, CheckOutcome> {
        let stream = dial(address.as_str(), tls).await.map_err(|e| unreachable(&e))?;
        // An endpoint is not to be believed: it has a word to say, and gets room for no more.
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(STREAM_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX);
        let handshake = builder.handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|e| broken(&e))?;
        let connection = tokio::spawn(async move {
            // Why it ended shows in the call that ended with it.
            let _ = connection.await;
        });
        let origin = format!("{}://{address}", if tls.is_some() { "https" } else { "http" }).parse().map_err(|_| {
            // An address is a valid authority; this is for the compiler.
            CheckOutcome::Unreachable { detail: "the address is no authority".to_owned() }
        })?;
        Ok(Self {
            client: HealthClient::with_origin(Caller(sender), origin)
                .max_decoding_message_size(SMALL_REQUEST_BYTES_MAX),
            watch: None,
            is_watchable: true,
            _connection: AbortOnDropHandle::new(connection),
        })
    }

    /// Asks once.
    pub(super) async fn check(&mut self, service: &str) -> Answer {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = match self.client.check(request).await {
            Ok(response) => return Answer::Outcome(outcome(response.get_ref().status())),
            Err(status) => status,
        };
        if let Some(outcome) = fault(&status) {
            return Answer::Broken(outcome);
        }
        match status.code() {
            Code::Unimplemented => Answer::Unimplemented,
            // It does not know the service that it is asked for.
            Code::NotFound => Answer::Outcome(CheckOutcome::NotServing),
            Code::DeadlineExceeded | Code::Cancelled => Answer::Broken(refused(&status)),
            _ => Answer::Outcome(refused(&status)),
        }
    }

    /// Watches from now on, if it does not do so already.
    pub(super) fn watch(&mut self, service: &str) {
        if self.watch.is_some() || !self.is_watchable {
            return;
        }
        let (news, newest) = watch::channel(None);
        let task = tokio::spawn(follow(self.client.clone(), service.to_owned(), news));
        self.watch = Some(Watch { newest, _task: AbortOnDropHandle::new(task) });
    }

    /// The next thing that Watch says; nothing for ever when it is not watching.
    pub(super) async fn watched(&mut self) -> Watched {
        let Some(watch) = &mut self.watch else { return std::future::pending().await };
        let newest = match watch.newest.changed().await {
            Ok(()) => watch.newest.borrow_and_update().unwrap_or(Watched::Broken),
            Err(_) => Watched::Broken,
        };
        match newest {
            Watched::Serving | Watched::NotServing => {}
            Watched::Unimplemented => (self.watch, self.is_watchable) = (None, false),
            Watched::Broken => self.watch = None,
        }
        newest
    }
}

async fn follow(mut client: HealthClient<Caller>, service: String, news: watch::Sender<Option<Watched>>) {
    let request = HealthCheckRequest { service };
    let mut stream = match client.watch(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            news.send_replace(Some(ended(&status)));
            return;
        }
    };
    loop {
        let newest = match stream.message().await {
            Ok(Some(message)) => match outcome(message.status()) {
                CheckOutcome::Passed => Watched::Serving,
                _ => Watched::NotServing,
            },
            Ok(None) => Watched::Broken,
            Err(status) => ended(&status),
        };
        news.send_replace(Some(newest));
        if matches!(newest, Watched::Broken | Watched::Unimplemented) {
            return;
        }
    }
}

fn ended(status: &Status) -> Watched {
    match status.code() {
        Code::Unimplemented => Watched::Unimplemented,
        _ => Watched::Broken,
    }
}

fn outcome(status: ServingStatus) -> CheckOutcome {
    match status {
        ServingStatus::Serving => CheckOutcome::Passed,
        ServingStatus::NotServing | ServingStatus::ServiceUnknown | ServingStatus::Unknown => CheckOutcome::NotServing,
    }
}

/// It answered, but not whether it serves.
fn refused(status: &Status) -> CheckOutcome {
    let detail = format!("the health check was answered with {:?}: {}", status.code(), status.message());
    CheckOutcome::Unreachable { detail }
}

/// What was wrong with the connection, when that is what a status is about.
fn fault(status: &Status) -> Option<CheckOutcome> {
    let mut source = status.source();
    while let Some(error) = source {
        match error.downcast_ref::<Fault>() {
            Some(Fault::NotGrpc { detail }) => return Some(CheckOutcome::NotGrpc { detail: detail.clone() }),
            Some(Fault::Connection(error)) => return Some(broken(error)),
            None => {}
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return Some(broken(error));
        }
        source = error.source();
    }
    None
}

/// An error that this end detected means that the other end does not speak HTTP/2; any other, that it is gone.
fn broken(error: &hyper::Error) -> CheckOutcome {
    let mut last: &dyn StdError = error;
    while let Some(source) = last.source() {
        last = source;
    }
    let detail = words(last);
    if detail.contains("error detected") {
        return CheckOutcome::NotGrpc { detail: format!("it does not speak HTTP/2: {detail}") };
    }
    CheckOutcome::Unreachable { detail }
}

/// Why there is no connection.
pub(super) fn unreachable(error: &Error) -> CheckOutcome {
    match error {
        Error::Tcp(error) => CheckOutcome::Unreachable { detail: words(error) },
        Error::NotTls(_) | Error::NotHttp2 => CheckOutcome::NotGrpc { detail: error.to_string() },
        error => CheckOutcome::Unreachable { detail: error.to_string() },
    }
}

/// An error's words without the system's number, which says nothing more.
pub(super) fn words(error: &dyn StdError) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Why a call did not come to a gRPC answer.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("an answer that is not gRPC: {detail}")]
    NotGrpc { detail: String },
    #[error(transparent)]
    Connection(#[from] hyper::Error),
}

/// Calls over one connection, and looks at the head of each answer before anybody takes it for gRPC.
#[derive(Clone)]
struct Caller(SendRequest<Body>);

impl tower::Service<http::Request<Body>> for Caller {
    type Response = http::Response<Incoming>;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Fault>> + Send>>;

    /// A closed connection is ready too: the call says why it is closed, whereas an error here would lose its source.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.0.poll_ready(context).map(|_| Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let response = self.0.send_request(request);
        Box::pin(async move {
            let response = response.await?;
            let content_type = response.headers().get(http::header::CONTENT_TYPE);
            let content_type = String::from_utf8_lossy(content_type.map_or(b"", |v| v.as_bytes())).into_owned();
            if content_type.starts_with("application/grpc") {
                return Ok(response);
            }
            let status = response.status().as_u16();
            Err(Fault::NotGrpc { detail: format!("HTTP {status} with content-type `{content_type}`") })
        })
    }
}
