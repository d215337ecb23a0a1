//! Deadlines that travel: a call made while another one is served has at most the time that is left of that one. Whoever waits
//! for the first answer has gone when its time is over, and work for nobody is the first thing an overloaded fleet can do
//! without.
//!
//! A server takes part by one layer; every [`Channel`](crate::Channel) looks by itself:
//!
//! ```no_run
//! # use lookaside_proto::demo::echo_server::{Echo, EchoServer};
//! # async fn example(service: impl Echo) -> Result<(), tonic::transport::Error> {
//! tonic::transport::Server::builder()
//!     .layer(lookaside_sdk::deadline::layer())
//!     .add_service(EchoServer::new(service))
//!     .serve(([127, 0, 0, 1], 50051).into())
//!     .await
//! # }
//! ```
//!
//! It holds for what the handler awaits and for what its response stream does. A task that the handler spawns is no part of
//! the call any more, unless it is spawned [`within`] what [`remaining`] says.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{task::futures::TaskLocalFuture, time::Instant};

use crate::deadlines::{GRPC_TIMEOUT, parse_timeout};

tokio::task_local! {
    static DEADLINE: Option<Instant>;
}

/// When the call that is being served must be over.
pub(crate) fn current() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok().flatten()
}

/// What is left of the time of the call that is being served; `None` outside of one, and when it has no deadline.
pub fn remaining() -> Option<Duration> {
    current().map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

/// Runs this as a part of a call that has so much time left: calls that it makes carry no more than that. It is not cut off by
/// itself.
pub fn within<F: Future>(left: Duration, work: F) -> impl Future<Output = F::Output> {
    DEADLINE.scope(Instant::now().checked_add(left), work)
}

/// A layer for servers: calls that a handler makes have at most the time that is left of the one it serves.
pub fn layer() -> DeadlineLayer {
    DeadlineLayer(())
}

/// Made by [`layer`].
#[derive(Debug, Clone)]
pub struct DeadlineLayer(());

impl<S> tower::Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService(inner)
    }
}

/// A service under a [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct DeadlineService<S>(S);

impl<S, RequestBody, ResponseBody> tower::Service<Request<RequestBody>> for DeadlineService<S>
where
    S: tower::Service<Request<RequestBody>, Response = Response<ResponseBody>>,
{
    type Response = Response<DeadlineBody<ResponseBody>>;
    type Error = S::Error;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let timeout = request.headers().get(GRPC_TIMEOUT).and_then(|value| parse_timeout(value.as_bytes()));
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        // Made within as well: a service may do its work before it is polled.
        let inner = DEADLINE.sync_scope(deadline, || self.0.call(request));
        DeadlineFuture { inner: DEADLINE.scope(deadline, inner), deadline }
    }
}

pin_project! {
    /// The answer to come of a [`DeadlineService`].
    #[derive(Debug)]
    pub struct DeadlineFuture<F> {
        #[pin]
        inner: TaskLocalFuture<Option<Instant>, F>,
        deadline: Option<Instant>,
    }
}

impl<F, ResponseBody, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<ResponseBody>, E>>,
{
    type Output = Result<Response<DeadlineBody<ResponseBody>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let deadline = *this.deadline;
        this.inner.poll(cx).map_ok(|response| response.map(|inner| DeadlineBody { inner, deadline }))
    }
}

pin_project! {
    /// The body of an answer of a [`DeadlineService`].
    #[derive(Debug)]
    pub struct DeadlineBody<B> {
        #[pin]
        inner: B,
        deadline: Option<Instant>,
    }
}

impl<B: Body> Body for DeadlineBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        DEADLINE.sync_scope(*this.deadline, || this.inner.poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
