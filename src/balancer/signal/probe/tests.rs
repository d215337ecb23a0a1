use std::{
    convert::Infallible,
    future,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lookaside_core::{
    config::ServiceConfig,
    event::Event,
    model::{EndpointSpec, SourceId},
    snapshot::Code,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, service::Routes};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use super::*;
use crate::{
    signal::testing::{Server, service, start_driver, until_endpoint},
    testing::{PATIENCE, configure},
};

fn config(interval: Duration, deadline: Duration) -> ServiceConfig {
    let health = HealthConfig { interval, deadline, ..HealthConfig::default() };
    ServiceConfig { health, ..ServiceConfig::default() }
}

const OFTEN: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_millis(150);

/// A driver that knows one endpoint, and its probes.
async fn probed(address: SocketAddr, config: ServiceConfig) -> (Handle, CancellationToken) {
    let (driver, stop) = start_driver(ServiceConfig::default());
    let source = SourceId::parse("file").unwrap();
    let endpoints = vec![EndpointSpec::at(Address::parse(&address.to_string()).unwrap())];
    configure(&driver, service().as_str(), config).await;
    driver.ask(Event::EndpointsListed { source, service: service(), endpoints, detail: String::new() }).await.unwrap();
    tokio::spawn(run(driver.clone(), 256, stop.clone()));
    (driver, stop)
}

async fn until_result(driver: &Handle, address: SocketAddr, word: &str) -> String {
    let said = |e: &lookaside_core::snapshot::EndpointSnapshot| e.check.as_ref().map(|c| c.result.clone());
    let endpoint = until_endpoint(driver, address, |e| said(e).is_some_and(|said| said.contains(word))).await;
    said(&endpoint).unwrap()
}

/// A health service of which everything can be chosen.
#[derive(Clone, Default)]
struct Scripted(Arc<Script>);

#[derive(Default)]
struct Script {
    check_unimplemented: bool,
    watch_unimplemented: bool,
    not_serving: Mutex<bool>,
    checks: AtomicUsize,
    watches: AtomicUsize,
    watchers: Mutex<Vec<tokio::sync::mpsc::Sender<Result<HealthCheckResponse, Status>>>>,
}

impl Script {
    fn response(&self) -> HealthCheckResponse {
        let status = if *self.not_serving.lock().unwrap() { ServingStatus::NotServing } else { ServingStatus::Serving };
        HealthCheckResponse { status: status.into() }
    }

    fn set_not_serving(&self, not_serving: bool) {
        *self.not_serving.lock().unwrap() = not_serving;
        for watcher in self.watchers.lock().unwrap().iter() {
            let _ = watcher.try_send(Ok(self.response()));
        }
    }
}

#[tonic::async_trait]
impl Health for Scripted {
    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.checks.fetch_add(1, Ordering::SeqCst);
        if self.0.check_unimplemented {
            return Err(Status::unimplemented("no health here"));
        }
        Ok(Response::new(self.0.response()))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.0.watches.fetch_add(1, Ordering::SeqCst);
        if self.0.watch_unimplemented {
            return Err(Status::unimplemented("no watch here"));
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        sender.try_send(Ok(self.0.response())).unwrap();
        self.0.watchers.lock().unwrap().push(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn serve(script: Script) -> (Server, Arc<Script>) {
    let script = Arc::new(script);
    let server = Server::start(Routes::new(HealthServer::new(Scripted(Arc::clone(&script))))).await;
    (server, script)
}

async fn until_true(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it never came to that");
}

#[tokio::test]
async fn a_serving_endpoint_passes_at_once_and_is_asked_again() {
    let (server, script) = serve(Script::default()).await;
    let (driver, _stop) = probed(server.address, config(OFTEN, DEADLINE)).await;
    until_result(&driver, server.address, "SERVING").await;
    until_true(|| script.checks.load(Ordering::SeqCst) >= 3).await;
}

#[tokio::test]
async fn a_change_is_learned_by_watch_long_before_the_next_check() {
    let (server, script) = serve(Script::default()).await;
    let (driver, _stop) = probed(server.address, config(SELDOM, DEADLINE)).await;
    until_endpoint(&driver, server.address, |e| e.check.as_ref().is_some_and(|c| c.passed)).await;
    until_true(|| script.watches.load(Ordering::SeqCst) == 1).await;
    script.set_not_serving(true);
    until_endpoint(&driver, server.address, |e| e.check.as_ref().is_some_and(|c| !c.passed)).await;
    script.set_not_serving(false);
    until_endpoint(&driver, server.address, |e| e.check.as_ref().is_some_and(|c| c.passed)).await;
}

#[tokio::test]
async fn a_backend_without_watch_is_checked_and_not_asked_to_watch_again() {
    let (server, script) = serve(Script { watch_unimplemented: true, ..Script::default() }).await;
    let (_driver, _stop) = probed(server.address, config(OFTEN, DEADLINE)).await;
    until_true(|| script.checks.load(Ordering::SeqCst) >= 4).await;
    assert_eq!(script.watches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn without_a_health_service_connecting_is_the_check() {
    let (server, script) = serve(Script { check_unimplemented: true, ..Script::default() }).await;
    let address = server.address;
    let (driver, _stop) = probed(address, config(OFTEN, DEADLINE)).await;
    let streak = |n| {
        move |e: &lookaside_core::snapshot::EndpointSnapshot| {
            e.check.as_ref().is_some_and(|c| c.passed && c.streak >= n)
        }
    };
    until_endpoint(&driver, address, streak(3)).await;
    assert_eq!(script.checks.load(Ordering::SeqCst), 1);
    drop(server);
    until_result(&driver, address, "refused").await;
}

#[tokio::test]
async fn a_killed_backend_is_unreachable_at_once_whatever_the_interval() {
    let (server, script) = serve(Script::default()).await;
    let address = server.address;
    let (driver, _stop) = probed(address, config(SELDOM, DEADLINE)).await;
    until_true(|| script.watches.load(Ordering::SeqCst) == 1).await;
    let killed = Instant::now();
    drop(server);
    let said = until_result(&driver, address, "refused").await;
    assert!(killed.elapsed() < Duration::from_secs(2), "{said} took {:?}", killed.elapsed());
}

#[tokio::test]
async fn a_backend_that_hangs_times_out_at_the_deadline() {
    // The kernel accepts for it, as it does for a stopped process.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let began = Instant::now();
    let (driver, _stop) = probed(address, config(SELDOM, DEADLINE)).await;
    let endpoint = until_endpoint(&driver, address, |e| e.check.is_some()).await;
    assert!(began.elapsed() >= DEADLINE, "{:?}", began.elapsed());
    assert!(!endpoint.check.unwrap().passed);
}

#[tokio::test]
async fn an_answer_that_is_not_grpc_is_named_as_such() {
    let page = |_| future::ready(Ok::<_, Infallible>(http::Response::new("<p>Hello".to_owned())));
    let over_http2 = Server::start(tower::service_fn(page)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let over_http1 = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 24]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    for address in [over_http1, over_http2.address] {
        let (driver, _stop) = probed(address, config(SELDOM, Duration::from_secs(2))).await;
        let endpoint = until_endpoint(&driver, address, |e| e.check.is_some()).await;
        assert!(!endpoint.check.unwrap().passed);
        assert_eq!(endpoint.reasons.first().map(|r| r.code), Some(Code::HealthNotGrpc));
    }
}

#[tokio::test]
async fn a_wish_for_a_check_is_granted_at_once_and_a_removed_endpoint_is_left_alone() {
    let (server, script) = serve(Script::default()).await;
    let (driver, stop) = start_driver(ServiceConfig::default());
    let address = Address::parse(&server.address.to_string()).unwrap();
    let permits = Arc::new(Semaphore::new(1));
    let mut target =
        Target { health: config(SELDOM, DEADLINE).health, tls: None, tls_name: "".into(), incarnation: 1, wanted: 0 };
    let (sender, targets) = watch::channel(target.clone());
    let task = tokio::spawn(Prober::new(&driver, &permits, &Arc::default(), service(), address).run(targets));
    until_true(|| script.checks.load(Ordering::SeqCst) == 1).await;
    target.wanted = 1;
    sender.send_replace(target.clone());
    until_true(|| script.checks.load(Ordering::SeqCst) == 2).await;
    target.incarnation = 2;
    sender.send_replace(target);
    until_true(|| script.checks.load(Ordering::SeqCst) == 3).await;
    drop(sender);
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    stop.cancel();
}

#[tokio::test]
async fn an_answer_that_is_no_word_of_health_is_not_read_to_its_end() {
    let server = Server::start(tower::service_fn(|_: http::Request<hyper::body::Incoming>| async {
        // An unknown field of five thousand bytes.
        let message = [&[0x7a, 0x88, 0x27][..], &[7; 5_000]].concat();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let body = http_body_util::Full::new(bytes::Bytes::from([&[0][..], &length, &message].concat()));
        Ok::<_, Infallible>(http::Response::builder().header("content-type", "application/grpc").body(body).unwrap())
    }))
    .await;
    let (driver, _stop) = probed(server.address, config(OFTEN, PATIENCE)).await;
    let result = until_result(&driver, server.address, "answered with").await;
    assert!(result.contains("OutOfRange"), "{result}");
}

#[tokio::test]
async fn files_of_no_use_are_opened_once_a_second_by_all_who_want_them_and_used_when_they_are_mended() {
    let directory = std::env::temp_dir().join(format!("lookaside-probe-{}", std::process::id()));
    let ca = directory.join("ca.pem").display().to_string();
    let tls = EndpointTls { ca, cert: String::new(), key: String::new() };
    let opened = Opened::default();
    assert!(opened.get(&tls).await.is_none());
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("ca.pem"), CA).unwrap();
    assert!(opened.get(&tls).await.is_none(), "it was tried just now");
    tokio::time::pause();
    tokio::time::advance(crate::limits::OPEN_PERIOD_MIN).await;
    tokio::time::resume();
    assert!(opened.get(&tls).await.is_some());
    std::fs::remove_dir_all(directory).unwrap();
}

const CA: &str = "-----BEGIN CERTIFICATE-----
MIIBczCCARugAwIBAgIUKJ+BcbNOBcbg7MBEI//gc5T6TAswCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjExMzU5MzFaGA8yMTI2MTAyODEzNTkz
MVowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBd6
6Rp0tTlTQS7p7n2f8Rtj2qIVGdSS6DAHf2x7XF7G6eXRj2umntUsAtImA3OOwlkP
YejgTmgd5LrA5G1skLWjUzBRMB0GA1UdDgQWBBQN/+SCW1Ca7iostnNSqe8Fj3nP
/zAfBgNVHSMEGDAWgBQN/+SCW1Ca7iostnNSqe8Fj3nP/zAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0YAMEMCHwFSHvELjt2i/5g8MJGDvPuX5gCgQP90jkX4
F1MhiTQCIA1BXQqFVjDBseGQNk2/aYjZVAj0WBE6qlJ2+Abz4ztI
-----END CERTIFICATE-----
";
