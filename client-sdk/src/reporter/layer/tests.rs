use std::convert::Infallible;
use std::future::{Ready, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use lookaside_proto::v1::Registration;
use lookaside_proto::xds::data::orca::v3::OrcaLoadReport;
use prost::Message as _;
use tower::{Layer as _, Service as _};

use super::*;

type Frames = Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// Answers every call with what the function makes.
#[derive(Clone)]
struct Answering(fn() -> Response<StreamBody<Frames>>);

impl tower::Service<Request<()>> for Answering {
    type Response = Response<StreamBody<Frames>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok((self.0)()))
    }
}

fn body(frames: Vec<Frame<Bytes>>) -> Response<StreamBody<Frames>> {
    Response::new(StreamBody::new(stream::iter(frames.into_iter().map(Ok)).boxed()))
}

fn trailers(status: &'static str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    // Relayed from further down, twice.
    trailers.append(TRAILER, HeaderValue::from_static("AAAA"));
    trailers.append(TRAILER, HeaderValue::from_static("BBBB"));
    Frame::trailers(trailers)
}

fn layer() -> ReportLayer {
    ReportLayer { shared: Arc::new(Shared::new(Registration::default(), false)) }
}

fn request(path: &str) -> Request<()> {
    Request::builder().uri(format!("http://a{path}")).body(()).unwrap()
}

fn load_in(headers: &HeaderMap) -> OrcaLoadReport {
    let mut all = headers.get_all(TRAILER).iter();
    let value = all.next().expect("a load report");
    assert!(all.next().is_none(), "one report, not several");
    OrcaLoadReport::decode(STANDARD_NO_PAD.decode(value).unwrap().as_slice()).unwrap()
}

fn rif(headers: &HeaderMap) -> f64 {
    load_in(headers).named_metrics["rif"]
}

#[tokio::test]
async fn head_and_trailers_carry_the_load_of_the_other_calls() {
    let layer = layer();
    let others = [layer.shared.counters.begin(None), layer.shared.counters.begin(None)];
    let mut service = layer.layer(Answering(|| body(vec![Frame::data(Bytes::from_static(b"x")), trailers("0")])));
    let response = service.call(request("/a.B/C")).await.unwrap();
    assert_eq!(rif(response.headers()), 2.0);
    assert_eq!(layer.shared.counters.totals().in_flight, 3);
    drop(others);
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().unwrap();
    assert_eq!(rif(trailers), 0.0);
    assert_eq!(layer.shared.counters.totals().in_flight, 0);
}

#[tokio::test]
async fn a_relayed_report_is_replaced_and_never_added_to() {
    let layer = layer();
    let mut service = layer.layer(Answering(|| body(vec![trailers("0")])));
    let response = service.call(request("/a.B/C")).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(rif(collected.trailers().unwrap()), 0.0);
}

#[tokio::test]
async fn ends_are_told_apart_by_the_status_in_trailers_or_head() {
    let layer = layer();
    for (answering, count) in [
        (Answering(|| body(vec![trailers("8")])), 1),
        (Answering(|| body(vec![trailers("14")])), 1),
        (Answering(|| body(vec![trailers("4")])), 1),
        // The caller's own mistake.
        (Answering(|| body(vec![trailers("3")])), 1),
        // No status at all.
        (Answering(|| body(vec![])), 1),
    ] {
        let mut service = layer.layer(answering);
        for _ in 0..count {
            let response = service.call(request("/a.B/C")).await.unwrap();
            response.into_body().collect().await.unwrap();
        }
    }
    let mut headed = layer.layer(Answering(|| {
        let mut response = body(vec![]);
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("13"));
        response
    }));
    let response = headed.call(request("/a.B/C")).await.unwrap();
    assert_eq!(rif(response.headers()), 0.0);
    let totals = layer.shared.counters.totals();
    assert_eq!(totals.completions, 6);
    assert_eq!((totals.errors_overload, totals.errors_deadline, totals.errors_endpoint), (1, 1, 3));
    assert_eq!(totals.in_flight, 0);
}

#[tokio::test]
async fn a_response_that_is_dropped_ends_its_call() {
    let layer = layer();
    let mut service = layer.layer(Answering(|| body(vec![Frame::data(Bytes::from_static(b"x")), trailers("0")])));
    let response = service.call(request("/a.B/C")).await.unwrap();
    drop(response);
    drop(service.call(request("/a.B/C")));
    let totals = layer.shared.counters.totals();
    assert_eq!((totals.completions, totals.in_flight, totals.errors_endpoint), (2, 0, 0));
}

#[tokio::test]
async fn questions_about_the_backend_are_not_its_load() {
    let layer = layer();
    let mut service = layer.layer(Answering(|| body(vec![trailers("0")])));
    for path in [
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics",
        "/lookaside.v1.Backend/Probe",
    ] {
        let response = service.call(request(path)).await.unwrap();
        assert!(!response.headers().contains_key(TRAILER), "{path}");
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(layer.shared.counters.totals().completions, 0);
}
