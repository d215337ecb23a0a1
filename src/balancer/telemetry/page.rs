//! The metrics listener: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever starts and stops balancers.
//! HTTP/1, one request per connection; reads, and changes nothing.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    BUILD_INFO, RUNTIME_LAG_SECONDS,
    gauges::{Gauges, Numbers},
};
use crate::{
    accept::{Accepted, Acceptor},
    limits::METRICS_DEADLINE,
};

/// How often old samples are put away.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// How often a timer is tried, to see how late it fires.
const LAG_PERIOD: Duration = Duration::from_millis(100);

/// What the page shows.
pub(crate) struct Page {
    recorder: PrometheusHandle,
    numbers: Box<dyn Fn() -> Numbers + Send + Sync>,
    draining: CancellationToken,
    gauges: Mutex<Gauges>,
}

impl Page {
    /// `numbers` are asked for whenever the page is; `draining` makes the balancer unready.
    pub(crate) fn new(
        recorder: PrometheusHandle,
        numbers: impl Fn() -> Numbers + Send + Sync + 'static,
        draining: CancellationToken,
    ) -> Self {
        Self { recorder, numbers: Box::new(numbers), draining, gauges: Mutex::default() }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/metrics" => {
                let mut numbers = (self.numbers)();
                numbers.insert((BUILD_INFO, vec![("version", env!("CARGO_PKG_VERSION").to_owned())]), 1.0);
                self.gauges.lock().unwrap_or_else(PoisonError::into_inner).show(numbers);
                text(StatusCode::OK, self.recorder.render())
            }
            "/livez" => text(StatusCode::OK, "alive\n"),
            "/readyz" if self.draining.is_cancelled() => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            "/readyz" => text(StatusCode::OK, "ready\n"),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n"),
        }
    }
}

/// Serves the page until `stop` is cancelled.
pub(crate) async fn serve(mut acceptor: Acceptor, page: Arc<Page>, stop: CancellationToken) {
    loop {
        let Accepted { stream, slot, .. } = tokio::select! {
            () = stop.cancelled() => return,
            next = acceptor.next() => next,
        };
        let page = Arc::clone(&page);
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |request| {
                let response = page.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).keep_alive(false);
            // Who asks too slowly, or breaks off, has no answer.
            let _ = timeout(METRICS_DEADLINE, builder.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
}

/// Keeps the recorder small, and watches how late timers fire, until `stop` is cancelled.
pub(crate) async fn upkeep(recorder: PrometheusHandle, stop: CancellationToken) {
    let mut kept_at = Instant::now();
    let mut worst = Duration::ZERO;
    loop {
        let due = Instant::now() + LAG_PERIOD;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
        }
        worst = worst.max(due.elapsed());
        if kept_at.elapsed() >= UPKEEP_PERIOD {
            metrics::gauge!(RUNTIME_LAG_SECONDS).set(worst.as_secs_f64());
            recorder.run_upkeep();
            (kept_at, worst) = (Instant::now(), Duration::ZERO);
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
