use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use lookaside_core::{
    config::ServiceConfig,
    event::{Action, CheckOutcome, Event, Override, Scope},
    model::Address,
    snapshot::{EndpointSnapshot, State},
};
use lookaside_proto::v1::reporter_client::ReporterClient;
use tokio::sync::watch;
use tonic::{Code, service::Routes, transport::Channel};
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    config::{Config, Limits},
    limits::REGISTRATIONS_PER_PEER_MAX,
    signal::testing::{Server, service, start_driver, until_endpoint},
    testing::PATIENCE,
};

/// A balancer's reporting side, and what a test can do to it.
struct World {
    driver: Handle,
    address: SocketAddr,
    _server: Option<Server>,
    draining: CancellationToken,
    is_held: Arc<AtomicBool>,
    held_changed: watch::Sender<u64>,
    streams: Streams,
    _stop: CancellationToken,
}

impl World {
    async fn start() -> Self {
        Self::start_with(Duration::from_secs(3600), ServiceConfig::default(), None).await
    }

    async fn start_aged(stream_age: Duration) -> Self {
        Self::start_with(stream_age, ServiceConfig::default(), None).await
    }

    /// Behind our own listener where there are limits for it.
    async fn start_with(stream_age: Duration, defaults: ServiceConfig, listener: Option<Limits>) -> Self {
        let (driver, stop) = start_driver(defaults);
        let is_held = Arc::new(AtomicBool::new(false));
        let (held_changed, changed) = watch::channel(0);
        let holds = Arc::clone(&is_held);
        let holders = Holders { holds: Arc::new(move |_, _| holds.load(Ordering::SeqCst)), changed };
        let draining = CancellationToken::new();
        let limits = Limits { connection_age: stream_age, ..Limits::default() };
        let rules = Rules { live: Live::fixed(Config { limits, ..Config::default() }), own: Vec::new() };
        let reporter = Service::new(driver.clone(), rules, holders, draining.clone());
        let streams = reporter.streams();
        let routes = Routes::new(reporter.into_server());
        let (address, server) = match listener {
            Some(limits) => (crate::testing::serve(routes, limits, &stop).await, None),
            None => {
                let server = Server::start(routes).await;
                (server.address, Some(server))
            }
        };
        Self { driver, address, _server: server, draining, is_held, held_changed, streams, _stop: stop }
    }

    async fn connect(&self) -> Backend {
        let channel = Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap();
        let (reports, requests) = mpsc::channel(1_000);
        let mut client = ReporterClient::new(channel).max_encoding_message_size(10 << 20);
        let responses = client.report(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Backend { reports, responses }
    }
}

struct Backend {
    reports: mpsc::Sender<v1::LoadReport>,
    responses: Streaming<v1::ReportResponse>,
}

impl Backend {
    async fn send(&self, report: v1::LoadReport) {
        self.reports.send(report).await.unwrap();
    }

    async fn answer(&mut self) -> Result<Option<v1::ReportResponse>, Status> {
        tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("no answer")
    }

    async fn until(&mut self, is_so: impl Fn(&v1::ReportResponse) -> bool) -> v1::ReportResponse {
        loop {
            let answer = self.answer().await.unwrap().expect("the stream ended");
            if is_so(&answer) {
                return answer;
            }
        }
    }

    /// The status that ends the stream, and its reason.
    async fn end(&mut self) -> (Code, String) {
        loop {
            match self.answer().await {
                Ok(Some(_)) => {}
                Ok(None) => return (Code::Ok, String::new()),
                Err(status) => return (status.code(), reason(&status)),
            }
        }
    }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn address() -> SocketAddr {
    "127.0.0.1:5".parse().unwrap()
}

fn registering(sequence: u64) -> v1::LoadReport {
    let registration = v1::Registration {
        service: "s".into(),
        address: address().to_string(),
        instance: "i".into(),
        incarnation: 7,
        ..Default::default()
    };
    v1::LoadReport { registration: Some(registration), sequence, ..Default::default() }
}

fn reporting(sequence: u64, in_flight: u32) -> v1::LoadReport {
    let counters = v1::Counters { in_flight, completions: sequence, ..Default::default() };
    v1::LoadReport { sequence, counters: Some(counters), ..Default::default() }
}

#[tokio::test]
async fn a_backend_registers_reports_and_is_told_how_often_to() {
    let world = World::start().await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    let answer = backend.until(|a| a.accepted).await;
    assert_eq!((answer.report_period_ms, answer.lease_ms), (1_000, 15_000));
    backend.send(reporting(2, 3)).await;
    let endpoint = until_endpoint(&world.driver, address(), |e| e.in_flight == 3).await;
    assert!(endpoint.lease.unwrap().connected);
    assert_eq!(world.streams.open(), 1);
}

#[tokio::test]
async fn a_bad_first_message_ends_the_stream_with_a_reason_and_changes_nothing() {
    let world = World::start().await;
    let with = |change: fn(&mut v1::Registration)| {
        let mut report = registering(1);
        change(report.registration.as_mut().unwrap());
        report
    };
    for (report, expected) in [
        (reporting(1, 1), (Code::InvalidArgument, "REGISTRATION_MISSING")),
        (with(|r| r.address = "10.9.9.9:5".into()), (Code::PermissionDenied, "ENDPOINT_FOREIGN_ADDRESS")),
        (with(|r| r.service.clear()), (Code::InvalidArgument, "SERVICE_INVALID")),
        (with(|r| r.tls_name = "x".repeat(100_000)), (Code::InvalidArgument, "MESSAGE_TOO_LARGE")),
    ] {
        let mut backend = world.connect().await;
        backend.send(report).await;
        let (code, reason) = backend.end().await;
        assert_eq!((code, reason.as_str()), expected);
    }
    assert!(world.driver.snapshots().borrow().services.is_empty());
}

#[tokio::test]
async fn a_later_bad_message_is_refused_and_the_stream_lives() {
    let world = World::start().await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    backend.until(|a| a.accepted).await;
    let nan = v1::Counters { cpu_utilization: f64::NAN, in_flight: 9, ..Default::default() };
    let mut elsewhere = registering(3);
    elsewhere.registration.as_mut().unwrap().address = "127.0.0.1:6".into();
    for (report, expected) in [
        (v1::LoadReport { counters: Some(nan), ..reporting(2, 9) }, "UTILIZATION_OUT_OF_RANGE"),
        (elsewhere, "REGISTRATION_CHANGED"),
        (reporting(1, 9), "REPORT_OLD"),
    ] {
        backend.send(report).await;
        let answer = backend.until(|a| !a.refused_reason.is_empty()).await;
        assert_eq!(answer.refused_reason, expected);
        assert!(answer.accepted && !answer.refused_message.is_empty());
    }
    let strange = vec![v1::Override::default()];
    backend.send(v1::LoadReport { overrides: strange, ..reporting(5, 4) }).await;
    assert_eq!(backend.until(|a| !a.refused_reason.is_empty()).await.refused_reason, "OVERRIDE_SCOPE_MISSING");
    until_endpoint(&world.driver, address(), |e| e.in_flight == 4).await;
    backend.send(registering(6)).await; // Repeating is fine.
    backend.send(reporting(7, 5)).await;
    until_endpoint(&world.driver, address(), |e| e.in_flight == 5).await;
}

#[tokio::test]
async fn bytes_that_are_no_message_end_the_stream_with_a_reason() {
    let world = World::start().await;
    let stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let garbage = http_body_util::Full::new(bytes::Bytes::from_static(&[0, 0, 0, 0, 3, 0xff, 0xff, 0xff]));
    let request = http::Request::post(format!("http://{}/lookaside.v1.Reporter/Report", world.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(garbage)
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let collected = http_body_util::BodyExt::collect(response.into_body());
    let collected = tokio::time::timeout(PATIENCE, collected).await.unwrap().unwrap();
    let status = Status::from_header_map(collected.trailers().unwrap()).unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "MESSAGE_MALFORMED"));
}

#[tokio::test]
async fn the_table_refuses_a_second_backend_with_the_same_name() {
    let world = World::start().await;
    let mut first = world.connect().await;
    first.send(registering(1)).await;
    first.until(|a| a.accepted).await;
    let mut twin = registering(1);
    twin.registration.as_mut().unwrap().address = "127.0.0.1:6".into();
    let mut second = world.connect().await;
    second.send(twin).await;
    assert_eq!(second.end().await, (Code::AlreadyExists, "INSTANCE_DUPLICATE".to_owned()));
    first.send(reporting(2, 2)).await;
    until_endpoint(&world.driver, address(), |e| e.in_flight == 2).await;
}

#[tokio::test]
async fn a_backend_that_drains_waits_until_nobody_holds_it_and_is_gone_by_its_own_word() {
    let world = World::start().await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    assert!(backend.until(|a| a.accepted).await.listed, "no leave to go before it asked");
    world.is_held.store(true, Ordering::SeqCst);
    backend.send(v1::LoadReport { draining: true, ..reporting(2, 0) }).await;
    until_endpoint(&world.driver, address(), |e| e.state == State::Draining).await;
    world.is_held.store(false, Ordering::SeqCst);
    world.held_changed.send_modify(|n| *n += 1);
    backend.until(|a| !a.listed).await;
    drop(backend);
    let left = |e: &EndpointSnapshot| e.reasons.iter().any(|r| r.detail.contains("left by its own word"));
    until_endpoint(&world.driver, address(), left).await;
}

#[tokio::test]
async fn a_stream_that_breaks_without_a_word_leaves_the_endpoint_and_wants_a_check() {
    let world = World::start().await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    backend.until(|a| a.accepted).await;
    let before = until_endpoint(&world.driver, address(), |_| true).await;
    drop(backend);
    let after = until_endpoint(&world.driver, address(), |e| e.lease.as_ref().is_some_and(|l| !l.connected)).await;
    assert!(after.check_wanted > before.check_wanted);
}

#[tokio::test]
async fn the_end_of_an_old_stream_says_nothing_about_a_backend_that_came_back() {
    let world = World::start().await;
    let mut old = world.connect().await;
    old.send(registering(1)).await;
    old.until(|a| a.accepted).await;
    let mut new = world.connect().await;
    new.send(registering(2)).await;
    new.until(|a| a.accepted).await;
    drop(old);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while world.streams.open() > 1 {
        assert!(tokio::time::Instant::now() < deadline, "the old stream never ended");
        tokio::task::yield_now().await;
    }
    new.send(reporting(3, 8)).await;
    let endpoint = until_endpoint(&world.driver, address(), |e| e.in_flight == 8).await;
    assert!(endpoint.lease.unwrap().connected);
    let decided = world.driver.decisions().0;
    assert!(decided.iter().all(|r| r.decision.kind != lookaside_core::decision::Kind::State), "{decided:?}");
}

#[tokio::test]
async fn a_backend_learns_of_its_overrides_and_a_balancer_learns_them_back() {
    let world = World::start().await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    backend.until(|a| a.accepted).await;
    let word = Override {
        service: service(),
        scope: Scope::Service,
        action: Action::Drain,
        reason: "maintenance".into(),
        actor: "me".into(),
        set_at_unix_ms: 1_000,
        replica: "b1".into(),
        expires_at_unix_ms: 0,
        remaining: None,
    };
    world.driver.order(vec![word]).await.unwrap();
    let told = backend.until(|a| !a.overrides.is_empty()).await.overrides;
    assert_eq!(told[0].reason, "maintenance");

    let forgetful = World::start().await;
    let mut backend = forgetful.connect().await;
    backend.send(v1::LoadReport { overrides: told.clone(), ..registering(1) }).await;
    let endpoint = until_endpoint(&forgetful.driver, address(), |e| e.state == State::Draining).await;
    let address = Address::parse(&address().to_string()).unwrap();
    assert_eq!(endpoint.overrides[0].scope, Scope::Address(address), "it speaks for itself alone");
    assert_eq!(backend.until(|a| !a.overrides.is_empty()).await.overrides[0].set_at_unix_ms, 1_000);
}

#[tokio::test]
async fn a_flood_of_reports_is_read_and_the_last_one_counts() {
    let world = World::start().await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    backend.until(|a| a.accepted).await;
    for sequence in 2..20_000 {
        backend.send(reporting(sequence, 1)).await;
    }
    backend.send(reporting(20_000, 77)).await;
    until_endpoint(&world.driver, address(), |e| e.in_flight == 77).await;
}

#[tokio::test]
async fn a_balancer_that_leaves_says_so_and_ends_the_streams() {
    let world = World::start().await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    backend.until(|a| a.accepted).await;
    world.draining.cancel();
    backend.until(|a| a.draining).await;
    backend.end().await;
    let endpoint = until_endpoint(&world.driver, address(), |_| true).await;
    assert!(endpoint.lease.unwrap().connected, "the backend is not to blame");
    assert_eq!(world.streams.open(), 0);
}

#[tokio::test]
async fn an_old_stream_ends_in_good_order() {
    let world = World::start_aged(Duration::from_millis(100)).await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    assert_eq!(backend.end().await, (Code::Ok, String::new()));
}

/// A world in which a backend registered at [`address`] and was silent for so long that it is gone from the table, though
/// its stream is still there.
async fn given_up() -> (World, Backend) {
    let defaults = ServiceConfig {
        lease: Duration::from_millis(300),
        report_period: Duration::from_millis(100),
        ..ServiceConfig::default()
    };
    let world = World::start_with(Duration::from_secs(3600), defaults, None).await;
    crate::testing::list(&world.driver, "s", &["127.0.0.1:9"]).await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    backend.until(|a| a.accepted).await;
    let at = Address::parse(&address().to_string()).unwrap();
    let gone = async {
        while world.driver.snapshots().borrow().services[&service()].endpoint(&at).is_some() {
            let outcome = CheckOutcome::Unreachable { detail: "it does not answer".into() };
            world.driver.ask(Event::Checked { service: service(), address: at.clone(), outcome }).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is never given up");
    (world, backend)
}

/// Goes on reporting until the answer is that.
async fn wait_reporting<T>(reports: &mpsc::Sender<v1::LoadReport>, found: impl Future<Output = T>) -> T {
    let reporting = async {
        for sequence in 2.. {
            let _ = reports.send(reporting(sequence, 3)).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        found = found => found,
        () = reporting => unreachable!("it reports without end"),
    }
}

#[tokio::test]
async fn a_backend_that_was_stopped_for_a_lease_is_back_with_its_first_reports() {
    let (world, backend) = given_up().await;
    let back = until_endpoint(&world.driver, address(), |e| e.in_flight == 3);
    let endpoint = wait_reporting(&backend.reports, back).await;
    assert!(endpoint.lease.unwrap().connected);
    assert_eq!(world.streams.open(), 1, "on the stream that it had");
}

#[tokio::test]
async fn a_backend_that_cannot_come_back_is_told_so_by_the_end_of_its_stream() {
    let (world, mut backend) = given_up().await;
    let mut successor = registering(1);
    successor.registration.as_mut().unwrap().incarnation = 8;
    let mut new = world.connect().await;
    new.send(successor).await;
    new.until(|a| a.accepted).await;
    let reports = backend.reports.clone();
    let end = wait_reporting(&reports, backend.end());
    let (code, reason) = wait_reporting(&new.reports, end).await;
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "INCARNATION_OLD"));
}

#[tokio::test]
async fn backends_of_one_address_have_an_end_and_the_next_is_told_when_to_come_back() {
    let connection = Connection::default();
    let mut registered: Vec<_> =
        (0..REGISTRATIONS_PER_PEER_MAX).map(|_| connection.register(REGISTRATIONS_PER_PEER_MAX).unwrap()).collect();
    let (driver, _stop) = start_driver(ServiceConfig::default());
    let rules = Rules { live: Live::fixed(Config::default()), own: Vec::new() };
    let holders = Holders { holds: Arc::new(|_, _| false), changed: watch::channel(0).1 };
    let reporter = Service::new(driver.clone(), rules, holders, CancellationToken::new());
    let info = tonic::transport::server::TcpConnectInfo { local_addr: None, remote_addr: Some(address()) };
    let reporter = reporter.into_server();
    let server = Server::start(tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(connection.clone());
        request.extensions_mut().insert(info.clone());
        tower::ServiceExt::oneshot(Routes::new(reporter.clone()), request)
    }))
    .await;
    let connect = async || {
        let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
        let (reports, requests) = mpsc::channel(10);
        reports.send(registering(1)).await.unwrap();
        let responses = ReporterClient::new(channel).report(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Backend { reports, responses }
    };
    assert_eq!(connect().await.end().await, (Code::ResourceExhausted, "REGISTRATIONS_MAX".to_owned()));
    registered.pop();
    connect().await.until(|a| a.accepted).await;
}

#[tokio::test]
async fn the_age_of_a_connection_ends_its_report_streams_and_no_backend_is_blamed() {
    let limits = Limits { connection_age: Duration::from_millis(300), ..Limits::default() };
    let world = World::start_with(Duration::from_secs(3600), ServiceConfig::default(), Some(limits)).await;
    let mut backend = world.connect().await;
    backend.send(registering(1)).await;
    assert_eq!(backend.end().await, (Code::Ok, String::new()));
    let endpoint = until_endpoint(&world.driver, address(), |_| true).await;
    assert!(endpoint.lease.unwrap().connected);
}
