//! The layer around a backend's services: counts each call from its arrival to the last byte of its answer, and writes
//! the load on the answer. It flushes nothing early and holds nothing back.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::counters::InFlight;
use super::orca::{self, Named};
use super::shared::{Left, Shared};
use crate::deadlines::{GRPC_TIMEOUT, parse_timeout};
use crate::orca::TRAILER;
use crate::outcome::{Class, class_of_headers};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// Calls to these say how the backend is; they are not the load it has.
const OWN_SERVICES: [&str; 4] =
    ["/grpc.health.v1.Health/", "/grpc.reflection.", "/xds.service.orca.v3.OpenRcaService/", "/lookaside.v1.Backend/"];

/// A `tower` layer that counts calls and puts `endpoint-load-metrics-bin` on every answer. Made by
/// [`Reporter::layer`](super::Reporter::layer); clones count into the same sums.
#[derive(Debug, Clone)]
pub struct ReportLayer {
    pub(crate) shared: Arc<Shared>,
}

impl<S> tower::Layer<S> for ReportLayer {
    type Service = ReportService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ReportService { inner, layer: self.clone() }
    }
}

/// What [`ReportLayer`] makes of a service.
#[derive(Debug, Clone)]
pub struct ReportService<S> {
    inner: S,
    layer: ReportLayer,
}

impl<S, RequestBody, ResponseBody> tower::Service<Request<RequestBody>> for ReportService<S>
where
    S: tower::Service<Request<RequestBody>, Response = Response<ResponseBody>>,
    ResponseBody: Body<Data = Bytes>,
{
    type Response = Response<ReportBody<ResponseBody>>;
    type Error = S::Error;
    type Future = ReportFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let path = request.uri().path();
        let shared = &self.layer.shared;
        let call = if OWN_SERVICES.iter().any(|own| path.starts_with(own)) {
            Call::Own(Arc::clone(shared).left())
        } else {
            let limit = request.headers().get(GRPC_TIMEOUT).and_then(|value| parse_timeout(value.as_bytes()));
            Call::Counted(Counted { in_flight: shared.counters.begin(limit), named: Arc::clone(&shared.named) })
        };
        ReportFuture { inner: self.inner.call(request), call }
    }
}

/// What an answer is to this layer.
#[derive(Debug)]
enum Call {
    /// Part of the load.
    Counted(Counted),
    /// A question about the backend. A watch of its health would keep a server that shuts down gracefully from ever
    /// ending, so it ends with this.
    Own(Left),
    /// Over, or counted out.
    Over,
}

#[derive(Debug)]
struct Counted {
    in_flight: InFlight,
    named: Arc<Named>,
}

impl Counted {
    // Whatever a service further down left there spoke of that one, not of this backend: replaced, never added to.
    fn write(&self, headers: &mut HeaderMap) {
        let load = self.in_flight.counters().momentary(1);
        headers.insert(TRAILER, orca::header_value(&load, &self.named));
    }

    fn end(self, class: Class, headers: &mut HeaderMap) {
        let load = self.in_flight.end(class);
        headers.insert(TRAILER, orca::header_value(&load, &self.named));
    }
}

impl Call {
    fn broke_off(self) {
        match self {
            Self::Counted(call) => {
                call.in_flight.end(Class::Endpoint);
            }
            Self::Own(_) | Self::Over => {}
        }
    }
}

fn leaving() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", HeaderValue::from_static("14"));
    trailers.insert("grpc-message", HeaderValue::from_static("the backend leaves"));
    trailers
}

pin_project! {
    /// The answer to come of a [`ReportService`].
    #[derive(Debug)]
    pub struct ReportFuture<F> {
        #[pin]
        inner: F,
        call: Call,
    }
}

impl<F, ResponseBody, E> Future for ReportFuture<F>
where
    F: Future<Output = Result<Response<ResponseBody>, E>>,
    ResponseBody: Body<Data = Bytes>,
{
    type Output = Result<Response<ReportBody<ResponseBody>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.inner.poll(context));
        let call = mem::replace(this.call, Call::Over);
        let mut response = match outcome {
            Ok(response) => response,
            Err(error) => {
                call.broke_off();
                return Poll::Ready(Err(error));
            }
        };
        let call = match (call, class_of_headers(response.headers())) {
            // A head with a status is all there is: such an answer has no trailers.
            (Call::Counted(call), Some(class)) => {
                call.end(class, response.headers_mut());
                Call::Over
            }
            // An answer that is over without a status broke off.
            (Call::Counted(call), None) if response.body().is_end_stream() => {
                call.end(Class::Endpoint, response.headers_mut());
                Call::Over
            }
            (Call::Counted(call), None) => {
                call.write(response.headers_mut());
                Call::Counted(call)
            }
            (Call::Own(left), None) => Call::Own(left),
            (Call::Own(_), Some(_)) | (Call::Over, _) => Call::Over,
        };
        Poll::Ready(Ok(response.map(|inner| ReportBody { inner, call })))
    }
}

pin_project! {
    /// The body of an answer, counted until its trailers, its end or its being dropped.
    #[derive(Debug)]
    pub struct ReportBody<B> {
        #[pin]
        inner: B,
        call: Call,
    }
}

impl<B: Body<Data = Bytes>> Body for ReportBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let mut frame = match (this.inner.poll_frame(context), &mut *this.call) {
            (Poll::Ready(frame), _) => frame,
            (Poll::Pending, Call::Own(left)) => {
                ready!(left.as_mut().poll(context));
                *this.call = Call::Over;
                return Poll::Ready(Some(Ok(Frame::trailers(leaving()))));
            }
            (Poll::Pending, Call::Counted(_) | Call::Over) => return Poll::Pending,
        };
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut()
                    && let Call::Counted(call) = mem::replace(this.call, Call::Over)
                {
                    call.end(class_of_headers(trailers).unwrap_or(Class::Endpoint), trailers);
                }
            }
            Some(Err(_)) | None => mem::replace(this.call, Call::Over).broke_off(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
