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
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    BUILD_INFO, RUNTIME_LAG_SECONDS,
    gauges::{Gauges, Numbers},
};
use crate::{
    accept::{Accepted, Acceptor},
    limits::{METRICS_DEADLINE, METRICS_HEAD_WAIT, METRICS_PERIOD_MIN},
};

/// How often old samples are put away.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// How often a timer is tried, to see how late it fires.
const LAG_PERIOD: Duration = Duration::from_millis(100);

/// What the page shows.
pub(crate) struct Page {
    renderer: Arc<Renderer>,
    draining: CancellationToken,
    /// When the last rendering began, and what came of it. Whoever asks meanwhile waits for the next one.
    rendered: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
}

struct Renderer {
    recorder: PrometheusHandle,
    numbers: Box<dyn Fn() -> Numbers + Send + Sync>,
    gauges: Mutex<Gauges>,
}

impl Renderer {
    fn render(&self) -> Bytes {
        let mut numbers = (self.numbers)();
        numbers.insert((BUILD_INFO, vec![("version", env!("CARGO_PKG_VERSION").to_owned())]), 1.0);
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner).show(numbers);
        self.recorder.render().into()
    }
}

impl Page {
    /// `numbers` are asked for when the page is rendered, ten times a second at most; `draining` makes the balancer unready.
    pub(crate) fn new(
        recorder: PrometheusHandle,
        numbers: impl Fn() -> Numbers + Send + Sync + 'static,
        draining: CancellationToken,
    ) -> Self {
        let renderer = Arc::new(Renderer { recorder, numbers: Box::new(numbers), gauges: Mutex::default() });
        Self { renderer, draining, rendered: tokio::sync::Mutex::default() }
    }

    /// The numbers as they are, never older than the question. `None` when rendering failed, by a fault of ours.
    async fn metrics(&self) -> Option<Bytes> {
        let asked = Instant::now();
        let mut rendered = self.rendered.lock().await;
        if let Some((began, page)) = &*rendered {
            if *began > asked {
                return Some(page.clone());
            }
            sleep_until(*began + METRICS_PERIOD_MIN).await;
        }
        let (began, renderer) = (Instant::now(), Arc::clone(&self.renderer));
        // With ten thousand clients it takes a while, in which lists are to go out.
        let page = tokio::task::spawn_blocking(move || renderer.render()).await.ok()?;
        *rendered = Some((began, page.clone()));
        Some(page)
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/metrics" => match self.metrics().await {
                Some(page) => text(StatusCode::OK, page),
                None => text(StatusCode::INTERNAL_SERVER_ERROR, "the numbers could not be rendered\n"),
            },
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
                let page = Arc::clone(&page);
                async move { Ok::<_, Infallible>(page.answer(&request).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).keep_alive(false).header_read_timeout(METRICS_HEAD_WAIT);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        limits::{METRICS_CONNECTIONS_MAX, METRICS_CONNECTIONS_PER_PEER_MAX},
        testing::PATIENCE,
    };

    fn page() -> (Page, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let numbers = move || {
            count.fetch_add(1, Ordering::SeqCst);
            Numbers::new()
        };
        (Page::new(super::super::install(), numbers, CancellationToken::new()), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_ask_the_page_is_rendered_ten_times_a_second_and_is_never_older_than_the_question() {
        let (page, asked) = page();
        let (page, began) = (Arc::new(page), Instant::now());
        assert!(page.metrics().await.is_some());
        let crowd: Vec<_> = (0..100)
            .map(|_| {
                let page = Arc::clone(&page);
                tokio::spawn(async move { page.metrics().await.is_some() })
            })
            .collect();
        for one in crowd {
            assert!(one.await.unwrap());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2, "all of them share the next one");
        for _ in 0..10 {
            assert!(page.metrics().await.is_some());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 12, "each asked after the last one was answered");
        assert!(began.elapsed() >= METRICS_PERIOD_MIN * 11);
    }

    #[tokio::test]
    async fn a_peer_that_only_connects_takes_a_part_of_the_listener_and_not_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = Acceptor::new("metrics", listener, METRICS_CONNECTIONS_MAX, METRICS_CONNECTIONS_PER_PEER_MAX);
        let (stop, began) = (CancellationToken::new(), Instant::now());
        tokio::spawn(serve(acceptor, Arc::new(page().0), stop.clone()));
        let mut silent = Vec::new();
        for _ in 0..=METRICS_CONNECTIONS_PER_PEER_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut above = silent.pop().unwrap();
        assert_eq!(timeout(PATIENCE, above.read(&mut [0])).await.unwrap().unwrap_or(0), 0, "it is closed at once");
        assert!(began.elapsed() < METRICS_HEAD_WAIT);
        let mut first = silent.remove(0);
        let _ = timeout(PATIENCE, first.read_to_end(&mut Vec::new())).await.expect("it is closed soon");
        assert!(began.elapsed() < METRICS_DEADLINE);
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, asking.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("alive\n"), "{answer}");
        stop.cancel();
    }
}
