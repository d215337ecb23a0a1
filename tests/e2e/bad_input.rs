//! What peers must not do: each gets a status with a reason that machines can read, or an objection that leaves its
//! stream alive; nothing changes, it is counted, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::time::Duration;

use bytes::{Buf, BufMut as _, Bytes};
use futures_util::{Stream, StreamExt as _, stream};
use lookaside_proto::{
    demo::{EchoRequest, echo_client::EchoClient},
    v1::{
        Counters, EndpointOutcomes, HeldList, Hello, LoadReport, Outcomes, Override, OverrideAction, PickRequest,
        PickResponse, Registration, ReportResponse, Reserve, SetOverrideRequest, Subscribe,
        balancer_client::BalancerClient, r#override::Scope, pick_request::Kind, pick_response,
        reporter_client::ReporterClient,
    },
};
use lookaside_sdk::Channel;
use lookaside_tests::{Backends, Balancer, SERVICE, address_of, nowhere, wait_for};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_types::StatusExt as _;

const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A balancer with two good backends and a good client, which are to notice nothing.
struct World {
    balancer: Balancer,
    backends: Backends,
    client: Channel,
    before: Vec<String>,
}

impl World {
    async fn new() -> Self {
        let balancer = Balancer::configured("defaults: { lease: 3s }").await;
        let backends = Backends::offered(&balancer, 2, &[]).await;
        // While it settles, an unknown service is not said to be unknown.
        balancer.wait_until_settled().await;
        let client = Channel::builder(SERVICE).balancers([&balancer.client]).client_id("good").connect().await.unwrap();
        let before = endpoints(&balancer).await;
        Self { balancer, backends, client, before }
    }

    async fn refusals(&self, metric: &str) -> f64 {
        self.balancer.metric(metric, &[]).await
    }

    /// Panics unless all is as before and at least so many refusals have been counted.
    async fn is_as_before(&self, metric: &str, refusals_before: f64, refused: usize) {
        let counted = self.refusals(metric).await - refusals_before;
        assert!(counted >= refused as f64, "{counted} refusals counted of {refused}");
        assert_eq!(endpoints(&self.balancer).await, self.before);
        let services = self.balancer.json(&["services"]).await;
        assert_eq!(services["items"].as_array().unwrap().len(), 1, "{services:#}");
        let held = self.client.snapshot();
        assert_eq!((held.source, held.endpoints.len()), (lookaside_sdk::ListSource::Balancer, 2), "{held:?}");
        EchoClient::new(self.client.clone()).unary(EchoRequest::default()).await.unwrap();
        let clients = self.balancer.json(&["clients", SERVICE]).await;
        let good = clients["items"].as_array().unwrap().iter().find(|client| client["clientId"] == "good").cloned();
        assert_eq!(good.expect("the good client")["state"], "SYNCED", "{clients:#}");
    }
}

/// All that is to stay as it is, of every endpoint.
async fn endpoints(balancer: &Balancer) -> Vec<String> {
    let line = |e: &lookaside_proto::v1::EndpointDetail| {
        format!("{} {:?} {:?} {:?} {:?} {}", address_of(e), e.endpoint, e.state(), e.sources, e.overrides, e.reports)
    };
    balancer.endpoints().await.iter().map(line).collect()
}

/// The reason in a status that machines can read.
fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    let info = info.unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "lookaside.dev", "{status:?}");
    info.reason
}

/// A stream that stays open after these.
fn and_nothing_more<T: Send + 'static>(messages: Vec<T>) -> impl Stream<Item = T> + Send + 'static {
    stream::iter(messages).chain(stream::pending())
}

/// Reads until the stream ends with a status.
async fn end_of<T>(answer: Result<tonic::Response<Streaming<T>>, Status>) -> Status {
    let end = async {
        let mut responses = match answer {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        loop {
            match responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(ANSWER_MAX, end).await.expect("an end of the stream")
}

fn registration(address: &str) -> Registration {
    Registration {
        service: SERVICE.to_owned(),
        address: address.to_owned(),
        instance: "bad".to_owned(),
        incarnation: 1,
        ..Registration::default()
    }
}

fn registers(registration: Registration) -> LoadReport {
    LoadReport { registration: Some(registration), sequence: 1, ..LoadReport::default() }
}

#[tokio::test]
async fn bad_registrations_are_refused_with_a_reason() {
    let world = World::new().await;
    let refusals = world.refusals("lookaside_reports_refused_total").await;
    let mut reporter = ReporterClient::connect(format!("http://{}", world.balancer.client)).await.unwrap();
    let mine = nowhere().to_string().replace("127.0.0.3", "127.0.0.1");
    let twin = world.balancer.endpoints().await.remove(0).endpoint.unwrap();
    let cases = [
        (LoadReport { sequence: 1, ..LoadReport::default() }, "REGISTRATION_MISSING"),
        (registers(Registration { service: String::new(), ..registration(&mine) }), "SERVICE_INVALID"),
        (registers(Registration { service: "x".repeat(1_000), ..registration(&mine) }), "SERVICE_INVALID"),
        (registers(Registration { service: "a\nb".into(), ..registration(&mine) }), "SERVICE_INVALID"),
        (registers(registration("nonsense")), "ADDRESS_INVALID"),
        (registers(registration("127.0.0.1:0")), "ADDRESS_INVALID"),
        (registers(registration("127.0.0.1:-7")), "ADDRESS_INVALID"),
        (registers(registration("10.9.8.7:50051")), "ENDPOINT_FOREIGN_ADDRESS"),
        (registers(registration("127.0.0.2:50051")), "ENDPOINT_FOREIGN_ADDRESS"),
        (registers(registration("backend.example:50051")), "ENDPOINT_HOST_NAME"),
        (registers(registration("169.254.169.254:80")), "ENDPOINT_ADDRESS_UNUSABLE"),
        (registers(registration("0.0.0.0:80")), "ENDPOINT_ADDRESS_UNUSABLE"),
        (registers(registration(&world.balancer.client)), "ENDPOINT_IS_BALANCER"),
        (registers(registration(&world.balancer.admin)), "ENDPOINT_IS_BALANCER"),
        (registers(Registration { locality: "a/b/c/d".into(), ..registration(&mine) }), "LOCALITY_INVALID"),
        (registers(Registration { weight: u32::MAX, ..registration(&mine) }), "WEIGHT_TOO_LARGE"),
        (registers(Registration { priority: u32::MAX, ..registration(&mine) }), "PRIORITY_TOO_LARGE"),
        (registers(Registration { sdk: "x".repeat(100_000), ..registration(&mine) }), "MESSAGE_TOO_LARGE"),
        // The name of a living backend, and an older start of one.
        (registers(Registration { instance: twin.instance.clone(), ..registration(&mine) }), "INSTANCE_DUPLICATE"),
        (registers(Registration { incarnation: 1, ..registration(&twin.address) }), "INCARNATION_OLD"),
    ];
    let count = cases.len();
    for (report, expected) in cases {
        let words = format!("{report:?}").chars().take(300).collect::<String>();
        let status = end_of(reporter.report(and_nothing_more(vec![report])).await).await;
        assert_eq!(reason(&status), expected, "{status:?} to {words}");
        assert!(
            matches!(
                status.code(),
                Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition | Code::AlreadyExists
            ),
            "{status:?} to {words}"
        );
    }
    world.is_as_before("lookaside_reports_refused_total", refusals, count).await;
}

#[tokio::test]
async fn bad_reports_are_refused_and_their_stream_lives_on() {
    let world = World::new().await;
    let refusals = world.refusals("lookaside_reports_refused_total").await;
    // Registered, and never offered: nobody listens there.
    let port = nowhere().port();
    let mine = format!("127.0.0.1:{port}");
    let mut reporter = ReporterClient::connect(format!("http://{}", world.balancer.client)).await.unwrap();
    let (outbox, requests) = mpsc::channel(4);
    let send = async |report: LoadReport| outbox.send(report).await.unwrap();
    let mut sequence = 1;
    send(registers(registration(&mine))).await;
    let mut responses = reporter.report(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let accepted = next(&mut responses, |response| response.accepted).await;
    assert!(
        accepted.refused_reason.is_empty() && accepted.report_period_ms > 0 && accepted.lease_ms > 0,
        "{accepted:?}"
    );

    let counters = |counters| LoadReport { counters: Some(counters), ..LoadReport::default() };
    let cpu = |cpu_utilization| counters(Counters { cpu_utilization, ..Counters::default() });
    let word = |service: &str, address: &str| Override {
        service: service.to_owned(),
        scope: Some(Scope::Address(address.to_owned())),
        action: OverrideAction::Drain.into(),
        reason: "bad".to_owned(),
        set_at_unix_ms: 1,
        replica: "lb".to_owned(),
        ..Override::default()
    };
    let says = |word| LoadReport { overrides: vec![word], ..LoadReport::default() };
    let moved = registration("127.0.0.1:1");
    let cases = [
        (cpu(f64::NAN), "UTILIZATION_OUT_OF_RANGE"),
        (cpu(f64::INFINITY), "UTILIZATION_OUT_OF_RANGE"),
        (cpu(-0.5), "UTILIZATION_OUT_OF_RANGE"),
        (
            counters(Counters { utilization: [("disk".to_owned(), f64::NAN)].into(), ..Counters::default() }),
            "UTILIZATION_OUT_OF_RANGE",
        ),
        (counters(Counters { completions: 1, errors_endpoint: 2, ..Counters::default() }), "COUNTERS_INCONSISTENT"),
        (
            counters(Counters { errors_endpoint: u64::MAX, errors_overload: 1, ..Counters::default() }),
            "COUNTERS_INCONSISTENT",
        ),
        (LoadReport { registration: Some(moved), ..LoadReport::default() }, "REGISTRATION_CHANGED"),
        (says(word(SERVICE, &world.backends.addresses[0])), "OVERRIDE_FOREIGN"),
        (says(word(SERVICE, "127.0.0.1:1")), "OVERRIDE_FOREIGN"),
        (says(Override { set_at_unix_ms: u64::MAX, ..word(SERVICE, &mine) }), "OVERRIDE_FROM_FUTURE"),
    ];
    let count = cases.len();
    for (report, expected) in cases {
        sequence += 1;
        let words = format!("{report:?}");
        send(LoadReport { sequence, ..report }).await;
        let refused = next(&mut responses, |response| !response.refused_reason.is_empty()).await;
        assert_eq!(refused.refused_reason, expected, "{words}");
        assert!(!refused.refused_message.is_empty());
    }
    // The stream lives on: a good report is taken.
    let taken = world.balancer.metric("lookaside_reports_total", &[]).await;
    send(LoadReport { sequence: sequence + 1, counters: Some(Counters::default()), ..LoadReport::default() }).await;
    wait_for("a good report after bad ones", ANSWER_MAX, async || {
        let mine = world.balancer.endpoints().await.into_iter().find(|endpoint| address_of(endpoint) == mine)?;
        let more = world.balancer.metric("lookaside_reports_total", &[]).await > taken;
        (more && mine.reports && mine.report_ms_ago < 1_000).then_some(())
    })
    .await;
    drop((outbox, responses));
    // Nobody was ever sent there, and it goes with its lease.
    wait_for("the endpoint to be forgotten", Duration::from_secs(20), async || {
        (endpoints(&world.balancer).await == world.before).then_some(())
    })
    .await;
    world.is_as_before("lookaside_reports_refused_total", refusals, count).await;
}

async fn next(responses: &mut Streaming<ReportResponse>, wanted: impl Fn(&ReportResponse) -> bool) -> ReportResponse {
    let next = async {
        loop {
            let response = responses.message().await.expect("a living stream").expect("a living stream");
            if wanted(&response) {
                return response;
            }
        }
    };
    tokio::time::timeout(ANSWER_MAX, next).await.expect("a response")
}

fn asks(kind: Kind) -> PickRequest {
    PickRequest { kind: Some(kind) }
}

fn hello(id: &str) -> Hello {
    Hello { client_id: id.to_owned(), ..Hello::default() }
}

fn subscribes(service: &str) -> PickRequest {
    asks(Kind::Subscribe(Subscribe { service: service.to_owned() }))
}

#[tokio::test]
async fn bad_picks_end_their_stream_with_a_reason() {
    let world = World::new().await;
    let refusals = world.refusals("lookaside_pick_refused_total").await;
    let mut picks = BalancerClient::connect(format!("http://{}", world.balancer.client)).await.unwrap();
    let held = |service: &str, address: &str| HeldList {
        service: service.to_owned(),
        endpoints: vec![address.to_owned()],
        ..HeldList::default()
    };
    let holding = |held| vec![asks(Kind::Hello(Hello { held, ..hello("bad") }))];
    let cases = [
        (vec![subscribes(SERVICE)], "HELLO_MISSING"),
        (vec![PickRequest { kind: None }], "HELLO_MISSING"),
        (vec![asks(Kind::Hello(hello("")))], "CLIENT_ID_INVALID"),
        (vec![asks(Kind::Hello(hello(&"x".repeat(1_000))))], "CLIENT_ID_INVALID"),
        (vec![asks(Kind::Hello(hello("a\u{7}b")))], "CLIENT_ID_INVALID"),
        (vec![asks(Kind::Hello(Hello { locality: "a/b/c/d".into(), ..hello("bad") }))], "LOCALITY_INVALID"),
        (holding(vec![held("", "127.0.0.1:1")]), "SERVICE_INVALID"),
        (holding(vec![held(SERVICE, "nonsense")]), "ADDRESS_INVALID"),
        (holding(vec![HeldList::default(); 1_000]), "HELD_LISTS_MAX"),
        (vec![asks(Kind::Hello(Hello { sdk: "x".repeat(2 << 20), ..hello("bad") }))], "MESSAGE_TOO_LARGE"),
        (vec![asks(Kind::Hello(hello("bad"))), asks(Kind::Hello(hello("bad")))], "HELLO_TWICE"),
    ];
    let count = cases.len();
    for (requests, expected) in cases {
        let status = end_of(picks.pick(and_nothing_more(requests)).await).await;
        assert_eq!(reason(&status), expected, "{status:?}");
        assert!(matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted), "{status:?}");
    }
    world.is_as_before("lookaside_pick_refused_total", refusals, count).await;
}

#[tokio::test]
async fn bad_wishes_on_a_pick_stream_are_objected_to_and_it_lives_on() {
    let world = World::new().await;
    let refusals = world.refusals("lookaside_pick_refused_total").await;
    let mut picks = BalancerClient::connect(format!("http://{}", world.balancer.client)).await.unwrap();
    let (outbox, requests) = mpsc::channel(4);
    outbox.send(asks(Kind::Hello(hello("odd")))).await.unwrap();
    let mut responses = picks.pick(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let outcomes = |service: &str, address: &str, ok| {
        let endpoints = vec![EndpointOutcomes { address: address.to_owned(), ok, ..EndpointOutcomes::default() }];
        asks(Kind::Outcomes(Outcomes { service: service.to_owned(), endpoints }))
    };
    let cases = [
        (subscribes("nobody"), Code::NotFound, "SERVICE_UNKNOWN"),
        (subscribes(""), Code::InvalidArgument, "SERVICE_INVALID"),
        (subscribes(&"x".repeat(1_000)), Code::InvalidArgument, "SERVICE_INVALID"),
        (outcomes("never-subscribed", "127.0.0.1:1", 1), Code::InvalidArgument, "OUTCOMES_INVALID"),
        (outcomes("nobody", "nonsense", 1), Code::InvalidArgument, "OUTCOMES_INVALID"),
        (outcomes("nobody", "127.0.0.1:1", u64::MAX), Code::InvalidArgument, "OUTCOMES_INVALID"),
        (
            asks(Kind::Reserve(Reserve { service: SERVICE.to_owned(), count: u32::MAX })),
            Code::Unimplemented,
            "RESERVATIONS_UNSUPPORTED",
        ),
    ];
    let count = cases.len();
    for (request, code, expected) in cases {
        outbox.send(request).await.unwrap();
        let pick_response::Kind::ServiceError(error) = said(&mut responses).await else {
            panic!("no objection to what is {expected}")
        };
        assert_eq!((error.reason.as_str(), error.code), (expected, i32::from(code)), "{error:?}");
        assert!(!error.message.is_empty());
    }
    // The same stream still gives lists; failures told of an endpoint that it was never sent move nobody.
    outbox.send(subscribes(SERVICE)).await.unwrap();
    let pick_response::Kind::List(list) = said(&mut responses).await else { panic!("no list") };
    assert_eq!((list.endpoints.len(), list.complete), (2, true), "{list:?}");
    let stranger = EndpointOutcomes {
        address: "127.0.0.1:1".to_owned(),
        connect_failed: 1_000,
        suspect: true,
        ..EndpointOutcomes::default()
    };
    let told = Outcomes { service: SERVICE.to_owned(), endpoints: vec![stranger] };
    outbox.send(asks(Kind::Outcomes(told))).await.unwrap();
    wait_for("a refusal counted", ANSWER_MAX, async || {
        let strange = world.balancer.metric("lookaside_pick_refused_total", &["OUTCOMES_STRANGE_ENDPOINT"]).await;
        (strange >= 1.0).then_some(())
    })
    .await;
    world.is_as_before("lookaside_pick_refused_total", refusals, count + 1).await;
}

/// The next message that is not a heartbeat.
async fn said(responses: &mut Streaming<PickResponse>) -> pick_response::Kind {
    let said = async {
        loop {
            let response = responses.message().await.expect("a living stream").expect("a living stream");
            match response.kind.expect("a message of this version") {
                pick_response::Kind::Tick(_) => {}
                kind => return kind,
            }
        }
    };
    tokio::time::timeout(ANSWER_MAX, said).await.expect("a response")
}

#[tokio::test]
async fn what_is_no_protobuf_at_all_is_refused() {
    let world = World::new().await;
    let garbage = Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    for (path, metric) in [
        ("/lookaside.v1.Balancer/Pick", "lookaside_pick_refused_total"),
        ("/lookaside.v1.Reporter/Report", "lookaside_reports_refused_total"),
    ] {
        let refusals = world.refusals(metric).await;
        let connection = tonic::transport::Endpoint::from_shared(format!("http://{}", world.balancer.client)).unwrap();
        let mut client = tonic::client::Grpc::new(connection.connect().await.unwrap());
        client.ready().await.unwrap();
        let request = tonic::Request::new(and_nothing_more(vec![garbage.clone()]));
        let answer = client.streaming(request, http::uri::PathAndQuery::from_static(path), Raw).await;
        let status = end_of(answer).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "MESSAGE_MALFORMED"), "{path}");
        world.is_as_before(metric, refusals, 1).await;
    }
}

#[tokio::test]
async fn what_is_no_http_2_at_all_is_cut() {
    let world = World::new().await;
    let refusals = world.refusals("lookaside_connections_refused_total").await;
    for words in [
        &b"GET / HTTP/1.1\r\nhost: lookaside\r\n\r\n"[..],
        &[0xff; 100],
        &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let mut connection = tokio::net::TcpStream::connect(&world.balancer.client).await.unwrap();
        connection.write_all(words).await.unwrap();
        let mut answer = Vec::new();
        // Reset or closed: both are an end.
        let ended = tokio::time::timeout(ANSWER_MAX, connection.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the connection stayed open after {words:?}");
    }
    world.is_as_before("lookaside_connections_refused_total", refusals, 3).await;
}

#[tokio::test]
async fn bad_orders_are_refused_with_a_reason() {
    let world = World::new().await;
    let mut admin = world.balancer.admin().await;
    let one = world.backends.addresses[0].clone();
    let word = Override {
        service: SERVICE.to_owned(),
        scope: Some(Scope::Address(one)),
        action: OverrideAction::Drain.into(),
        ..Override::default()
    };
    let weight = OverrideAction::Weight.into();
    for (word, code, expected) in [
        (Override { scope: None, ..word.clone() }, Code::InvalidArgument, "OVERRIDE_SCOPE_MISSING"),
        (
            Override { scope: Some(Scope::Address("nonsense".into())), ..word.clone() },
            Code::InvalidArgument,
            "OVERRIDE_SCOPE_INVALID",
        ),
        (
            Override { scope: Some(Scope::Locality(String::new())), ..word.clone() },
            Code::InvalidArgument,
            "OVERRIDE_SCOPE_MISSING",
        ),
        (Override { action: 77, ..word.clone() }, Code::InvalidArgument, "OVERRIDE_ACTION_INVALID"),
        (
            Override { action: weight, weight_percent: u32::MAX, ..word.clone() },
            Code::InvalidArgument,
            "OVERRIDE_WEIGHT_INVALID",
        ),
        (Override { service: "nobody".into(), ..word.clone() }, Code::NotFound, "SERVICE_UNKNOWN"),
    ] {
        let request = SetOverrideRequest { r#override: Some(word), ..SetOverrideRequest::default() };
        let status = admin.set_override(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{status:?}");
    }
    // A page in somebody's browser can reach loopback, and must not give orders.
    let mut request =
        tonic::Request::new(SetOverrideRequest { r#override: Some(word), ..SetOverrideRequest::default() });
    request.metadata_mut().insert("origin", "http://evil.example".parse().unwrap());
    let status = admin.set_override(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    reason(&status);
    world.is_as_before("lookaside_admin_actions_total", 0.0, 0).await;
}

/// Sends bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
