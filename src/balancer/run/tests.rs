use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lookaside_core::model::{EndpointSpec, ServiceName};
use lookaside_proto::v1::{
    Ack, GetStatusRequest, LoadReport, PickRequest, PickResponse, Registration, ReportResponse, Subscribe,
    admin_client::AdminClient, balancer_client::BalancerClient, pick_request, pick_response,
    reporter_client::ReporterClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus as Health, health_client::HealthClient,
};

use super::*;
use crate::{
    config::Listen,
    testing::{PATIENCE, address, connect, serve},
};

fn config() -> Config {
    let any = "127.0.0.1:0".parse().unwrap();
    let service = crate::config::Service {
        name: ServiceName::parse("greeter").unwrap(),
        config: Default::default(),
        endpoints: Some(vec![EndpointSpec::at(address("127.0.0.1:9"))]),
        dns: None,
    };
    Config { listen: Listen { client: any, admin: any, metrics: any }, services: vec![service], ..Config::default() }
}

async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Opens a pick stream that subscribes to nothing.
async fn pick(address: SocketAddr) -> (mpsc::UnboundedSender<PickRequest>, tonic::Streaming<PickResponse>) {
    let (ask, requests) = mpsc::unbounded_channel();
    let hello = lookaside_proto::v1::Hello { client_id: "web-1".into(), ..Default::default() };
    ask.send(PickRequest { kind: Some(pick_request::Kind::Hello(hello)) }).unwrap();
    let mut client = BalancerClient::new(connect(address).await);
    (ask, client.pick(UnboundedReceiverStream::new(requests)).await.unwrap().into_inner())
}

/// A call under way, for which a balancer waits before it stops.
async fn unfinished_request(address: SocketAddr) -> tokio_util::task::AbortOnDropHandle<()> {
    type Frames = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let mut check = |frames: Frames| {
        let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"));
        let request = request.header("content-type", "application/grpc").body(StreamBody::new(frames));
        send.send_request(request.unwrap())
    };
    let unfinished = check(Box::pin(tokio_stream::pending()));
    // Requests of a connection arrive in their order.
    let message = Ok(Frame::data(Bytes::from_static(&[0; 5])));
    assert!(check(Box::pin(tokio_stream::once(message))).await.unwrap().status().is_success());
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move { drop((unfinished.await, send)) }))
}

#[tokio::test]
async fn a_balancer_answers_on_all_its_listeners_and_leaves_in_good_order() {
    let shutdown = CancellationToken::new();
    let running = run(config(), shutdown.clone()).await.unwrap();
    let at = running.addresses;
    let status = AdminClient::new(connect(at.admin).await).get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.client_address, at.client.to_string());
    assert_eq!(status.services[0].name, "greeter");
    let mut health = HealthClient::new(connect(at.client).await);
    let mut watch =
        health.watch(HealthCheckRequest { service: "lookaside.v1.Balancer".into() }).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), Health::Serving);
    assert_eq!(get(at.metrics, "/readyz").await.0, "HTTP/1.1 200 OK");
    let (_ask, mut answers) = pick(at.client).await;
    let unfinished = unfinished_request(at.client).await;
    let began = Instant::now();
    shutdown.cancel();
    // Health goes, the stream is told to move on, readiness is gone; then it is over.
    assert_eq!(timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap().status(), Health::NotServing);
    let moved = timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
    assert!(matches!(moved.kind, Some(pick_response::Kind::Redirect(_))));
    assert_eq!(get(at.metrics, "/readyz").await.0, "HTTP/1.1 503 Service Unavailable");
    drop((watch, health, answers, unfinished));
    timeout(PATIENCE, running.finished()).await.expect("it ends").unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(TcpStream::connect(at.client).await.is_err());
}

#[tokio::test]
async fn metrics_are_in_the_format_of_prometheus_and_all_declared() {
    let running = run(config(), CancellationToken::new()).await.unwrap();
    let (status, page) = get(running.addresses.metrics, "/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(page.contains("lookaside_service_list_mode{service=\"greeter\",mode=\"NORMAL\"}"), "{page}");
    for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = name.split('{').next().unwrap();
        let declared = |d: &str| name.strip_prefix(d).is_some_and(|r| ["", "_bucket", "_sum", "_count"].contains(&r));
        assert!(telemetry::METRICS.iter().any(|(d, ..)| declared(d)), "{name} is not declared");
        assert!(!line.contains("127.0.0.1:9"), "a label is never an endpoint: {line}");
    }
    assert_eq!(get(running.addresses.metrics, "/livez").await.0, "HTTP/1.1 200 OK");
    assert_eq!(get(running.addresses.metrics, "/nothing").await.0, "HTTP/1.1 404 Not Found");
}

#[tokio::test]
async fn a_data_directory_is_for_one_balancer_at_a_time() {
    let directory = store::tests::directory("lock");
    let config = || Config { data_dir: Some(directory.clone()), ..config() };
    let shutdown = CancellationToken::new();
    let running = run(config(), shutdown.clone()).await.unwrap();
    let error = run(config(), CancellationToken::new()).await.unwrap_err();
    assert!(
        matches!(error, Error::InUse(_)) && error.to_string().contains(&directory.display().to_string()),
        "{error}"
    );
    shutdown.cancel();
    timeout(PATIENCE, running.finished()).await.expect("it ends").unwrap();
    let shutdown = CancellationToken::new();
    // A process that another test starts at this moment holds all open files, the lock among them, until it is what it is to be.
    let again = async {
        loop {
            match run(config(), shutdown.clone()).await {
                Err(Error::InUse(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                started => break started,
            }
        }
    };
    let running = timeout(PATIENCE, again).await.expect("it is free").unwrap();
    shutdown.cancel();
    timeout(PATIENCE, running.finished()).await.expect("it ends").unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_disk_that_hangs_does_not_keep_a_balancer_from_its_end() {
    let directory = store::tests::directory("hangs");
    std::fs::create_dir_all(&directory).unwrap();
    // Whoever writes to a pipe that nobody reads waits.
    let pipe = directory.join("overrides.json.new");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let shutdown = CancellationToken::new();
    let config = Config { data_dir: Some(directory.clone()), ..config() };
    let running = run(config, shutdown.clone()).await.unwrap();
    shutdown.cancel();
    let ended = timeout(STOP_WAIT_MAX + PATIENCE, running.finished()).await;
    // The runtime of the test waits for the writer.
    drop(std::fs::File::open(&pipe).unwrap());
    ended.expect("it ends").unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let mut config = config();
    config.listen.admin = taken;
    let error = run(config, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains(&taken.to_string()) && error.contains("admin"), "{error}");
    drop(holder);
}

#[tokio::test]
async fn services_that_there_is_no_room_for_are_no_start() {
    let mut config = config();
    let at = |port: usize| EndpointSpec::at(address(&format!("10.0.0.1:{}", port + 1)));
    config.services[0].endpoints = Some((0..=lookaside_core::limits::ENDPOINTS_PER_SERVICE_MAX).map(at).collect());
    let error = timeout(PATIENCE, run(config, CancellationToken::new())).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("are not taken"), "{error}");
}

async fn report(at: SocketAddr) -> (mpsc::UnboundedSender<LoadReport>, tonic::Streaming<ReportResponse>) {
    let (tell, reports) = mpsc::unbounded_channel();
    let mut client = ReporterClient::new(connect(at).await);
    (tell, client.report(UnboundedReceiverStream::new(reports)).await.unwrap().into_inner())
}

/// Reads until an answer is as wished.
async fn heard<T>(answers: &mut tonic::Streaming<T>, mut is: impl FnMut(&T) -> bool) -> T {
    let read = async {
        loop {
            let answer = answers.message().await.unwrap().expect("the stream goes on");
            if is(&answer) {
                return answer;
            }
        }
    };
    timeout(PATIENCE, read).await.expect("it comes in time")
}

fn offers(answer: &PickResponse, address: &str) -> bool {
    match &answer.kind {
        Some(pick_response::Kind::List(list)) => list.endpoints.iter().any(|e| e.address == address && e.weight > 0),
        _ => false,
    }
}

#[tokio::test]
async fn a_backend_is_offered_as_soon_as_it_registers_and_leaves_when_nobody_names_it() {
    let (shutdown, stop) = (CancellationToken::new(), CancellationToken::new());
    let running = run(config(), shutdown.clone()).await.unwrap();
    let at = running.addresses;
    let health = Routes::new(tonic_health::server::health_reporter().1);
    let backend = serve(health, Default::default(), &stop).await.to_string();
    let (ask, mut answers) = pick(at.client).await;
    let subscribe = Subscribe { service: "echo".into() };
    ask.send(PickRequest { kind: Some(pick_request::Kind::Subscribe(subscribe)) }).unwrap();
    let (tell, mut told) = report(at.client).await;
    let registration = Registration {
        service: "echo".into(),
        address: backend.clone(),
        instance: "echo-1".into(),
        incarnation: 1,
        ..Default::default()
    };
    let began = Instant::now();
    tell.send(LoadReport { registration: Some(registration), sequence: 1, ..Default::default() }).unwrap();
    heard(&mut told, |answer| answer.accepted).await;
    let list = heard(&mut answers, |answer| offers(answer, &backend)).await;
    // A newcomer waits for two seconds after the start at most; the backend itself is found in milliseconds.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let acknowledge = |answer: &PickResponse| {
        if let Some(pick_response::Kind::List(list)) = &answer.kind {
            let ack = Ack { service: list.service.clone(), version: list.version, refused: String::new() };
            ask.send(PickRequest { kind: Some(pick_request::Kind::Ack(ack)) }).unwrap();
        }
    };
    acknowledge(&list);
    tell.send(LoadReport { sequence: 2, draining: true, ..Default::default() }).unwrap();
    let without = heard(&mut answers, |answer| {
        matches!(&answer.kind, Some(pick_response::Kind::List(_))) && !offers(answer, &backend)
    })
    .await;
    acknowledge(&without);
    heard(&mut told, |answer| !answer.listed).await;
    drop((tell, told, ask, answers));
    shutdown.cancel();
    timeout(PATIENCE, running.finished()).await.expect("it ends").unwrap();
    stop.cancel();
}

/// Names that a listener's reflection tells, in one version of that protocol.
macro_rules! reflected {
    ($version:ident, $address:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(connect($address).await);
        let asked = client.server_reflection_info(tokio_stream::iter([request]));
        let mut answers = timeout(PATIENCE, asked).await.unwrap().unwrap().into_inner();
        let answer = timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
        match answer.message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|s| s.name).collect::<Vec<_>>(),
            other => panic!("{other:?} is no list of services"),
        }
    }};
}

#[tokio::test]
async fn both_grpc_listeners_tell_what_they_speak() {
    let shutdown = CancellationToken::new();
    let running = run(config(), shutdown.clone()).await.unwrap();
    let at = running.addresses;
    for told in [
        reflected!(v1, at.client),
        reflected!(v1alpha, at.client),
        reflected!(v1, at.admin),
        reflected!(v1alpha, at.admin),
    ] {
        for name in ["lookaside.v1.Balancer", "lookaside.v1.Admin", "lookaside.v1.Reporter"] {
            assert!(told.iter().any(|t| t == name), "{name} is not among {told:?}");
        }
    }
    shutdown.cancel();
    timeout(PATIENCE, running.finished()).await.expect("it ends").unwrap();
}
