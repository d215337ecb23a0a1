use std::time::Duration;

use futures_util::StreamExt as _;
use lookaside_proto::demo::echo_client::EchoClient;
use lookaside_proto::demo::echo_server::{Echo, EchoServer};
use lookaside_proto::demo::{EchoRequest, EchoResponse, ExecutionsRequest, ExecutionsResponse, StreamRequest};
use lookaside_proto::v1::backend_client::BackendClient;
use lookaside_proto::v1::{Override, OverrideAction, ProbeRequest, r#override::Scope};
use lookaside_proto::xds::data::orca::v3::OrcaLoadReport;
use lookaside_proto::xds::service::orca::v3::OrcaLoadReportRequest;
use lookaside_proto::xds::service::orca::v3::open_rca_service_client::OpenRcaServiceClient;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Wire;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::testing::Balancer;

/// Longer than anything here takes, shorter than a patience.
const SOON: Duration = Duration::from_secs(10);

/// Unary calls wait to be released when their payload says so.
struct Slow(Arc<Notify>);

#[tonic::async_trait]
impl Echo for Slow {
    type ServerStreamStream = futures_util::stream::BoxStream<'static, Result<EchoResponse, Status>>;
    type BothStreamStream = Self::ServerStreamStream;

    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        if request.get_ref().payload == b"wait" {
            self.0.notified().await;
        }
        let mut response = Response::new(EchoResponse::default());
        response.metadata_mut().insert("x-own", "kept".parse().unwrap());
        Ok(response)
    }

    async fn server_stream(&self, _: Request<StreamRequest>) -> Result<Response<Self::ServerStreamStream>, Status> {
        Err(Status::resource_exhausted("full"))
    }

    async fn client_stream(&self, _: Request<Streaming<EchoRequest>>) -> Result<Response<EchoResponse>, Status> {
        Err(Status::unavailable("away"))
    }

    async fn both_stream(
        &self,
        _: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::BothStreamStream>, Status> {
        Ok(Response::new(futures_util::stream::pending().boxed()))
    }

    async fn executions(&self, _: Request<ExecutionsRequest>) -> Result<Response<ExecutionsResponse>, Status> {
        Ok(Response::new(ExecutionsResponse::default()))
    }
}

struct Backend {
    reporter: Reporter,
    address: String,
    release: Arc<Notify>,
    // Sent to, the backend drains; answers when its server has ended.
    leave: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

async fn backend(balancers: &[String]) -> Backend {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let reporter = Reporter::builder("greeter")
        .balancers(balancers)
        .advertise(&address)
        .instance("pod-1")
        .locality("eu/a")
        .weight(70)
        .start()
        .await
        .unwrap();
    let release = Arc::new(Notify::new());
    let (leave, asked) = oneshot::channel::<()>();
    let serving = Server::builder()
        .layer(reporter.layer())
        .add_service(reporter.health_service())
        .add_service(reporter.orca_service())
        .add_service(reporter.probe_service())
        .add_service(EchoServer::new(Slow(Arc::clone(&release))))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener),
            reporter.drained_on(async {
                asked.await.ok();
            }),
        );
    let served = tokio::spawn(async { serving.await.unwrap() });
    Backend { reporter, address, release, leave, served }
}

async fn connect(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

fn load_in(metadata: &tonic::metadata::MetadataMap) -> OrcaLoadReport {
    let mut all = metadata.get_all_bin("endpoint-load-metrics-bin").iter();
    let value = all.next().expect("a load report").to_bytes().unwrap();
    assert!(all.next().is_none());
    OrcaLoadReport::decode(value).unwrap()
}

#[tokio::test]
async fn a_backend_registers_and_reports_to_every_balancer() {
    let balancers = [Balancer::start().await.unwrap(), Balancer::start().await.unwrap()];
    let backend = backend(&[balancers[0].address(), balancers[1].address()]).await;
    timeout(SOON, backend.reporter.registered()).await.unwrap();
    let mut client = EchoClient::new(connect(&backend.address).await);
    client.unary(EchoRequest::default()).await.unwrap();
    client.server_stream(StreamRequest::default()).await.unwrap_err();
    client.client_stream(futures_util::stream::empty()).await.unwrap_err();
    backend.reporter.set_application_utilization(0.5);
    assert!(backend.reporter.set_utilization("db", 0.25));
    assert!(!backend.reporter.set_utilization("db", f64::NAN));
    for balancer in &balancers {
        let told = balancer.wait_for(
            |seen| {
                seen.reports.iter().filter_map(|report| report.counters.as_ref()).any(|counters| {
                    counters.completions == 3
                        && (counters.errors_overload, counters.errors_endpoint) == (1, 1)
                        && counters.application_utilization == 0.5
                        && counters.utilization.get("db") == Some(&0.25)
                        && counters.in_flight == 0
                        && counters.in_flight_us > 0
                })
            },
            SOON,
        );
        assert!(told.await, "{:?}", balancer.seen().reports.back());
        let seen = balancer.seen();
        let registration = &seen.registrations[0];
        assert_eq!((registration.service.as_str(), registration.instance.as_str()), ("greeter", "pod-1"));
        assert_eq!((&registration.address, registration.weight), (&backend.address, 70));
        assert_eq!(registration.incarnation, backend.reporter.incarnation());
        assert!(seen.reports.iter().zip(seen.reports.iter().skip(1)).all(|(a, b)| b.sequence == a.sequence + 1));
    }
}

#[tokio::test]
async fn a_balancer_that_comes_back_gets_the_registration_again() {
    let balancer = Balancer::start().await.unwrap();
    balancer.stop().await;
    let backend = backend(&[balancer.address()]).await;
    balancer.restart().await.unwrap();
    assert!(balancer.wait_for(|seen| seen.registrations.len() == 1, SOON).await);
    balancer.drop_streams();
    assert!(balancer.wait_for(|seen| seen.registrations.len() == 2, SOON).await);
    let sequences: Vec<u64> = balancer.seen().reports.iter().map(|report| report.sequence).collect();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    drop(backend);
}

#[tokio::test]
async fn a_name_means_all_its_balancers_and_new_ones_are_found_and_gone_ones_left() {
    // Names are asked every ten seconds.
    const LATER: Duration = Duration::from_secs(40);
    let mut balancers = Vec::new();
    for _ in 0..3 {
        balancers.push(Balancer::start().await.unwrap());
    }
    let addresses: Vec<std::net::SocketAddr> = balancers.iter().map(|b| b.address().parse().unwrap()).collect();
    let name = "balancers.reporter.test:7400";
    crate::resolve::say(name, Some(Err(())));
    let backend = backend(&[name.to_owned()]).await;
    crate::resolve::say(name, Some(Ok(addresses[..2].to_vec())));
    let reported = |seen: &crate::testing::Seen| seen.report_streams == 1;
    assert!(balancers[0].wait_for(reported, LATER).await && balancers[1].wait_for(reported, LATER).await);
    assert_eq!(balancers[2].seen().report_streams, 0);
    // One is new, one is gone from the name, and yet its stream lives as long as it does.
    crate::resolve::say(name, Some(Ok(addresses[1..].to_vec())));
    assert!(balancers[2].wait_for(reported, LATER).await);
    assert!(reported(&balancers[0].seen()) && reported(&balancers[1].seen()));
    balancers[0].keep_listed(true);
    balancers[0].stop().await;
    timeout(LATER, async {
        while backend.reporter.shared.links.borrow().len() > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the one that is gone is left");
    // Nothing that the name service fails at changes anything, and a drain waits for those that are there.
    crate::resolve::say(name, Some(Ok(Vec::new())));
    backend.leave.send(()).unwrap();
    for balancer in &balancers[1..] {
        let told = |seen: &crate::testing::Seen| seen.reports.back().is_some_and(|report| report.draining);
        assert!(balancer.wait_for(told, SOON).await);
    }
    timeout(SOON, backend.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_override_told_by_one_balancer_is_repeated_to_all() {
    let balancers = [Balancer::start().await.unwrap(), Balancer::start().await.unwrap()];
    let backend = backend(&[balancers[0].address(), balancers[1].address()]).await;
    let word = Override {
        service: "greeter".to_owned(),
        scope: Some(Scope::Address(backend.address.clone())),
        action: OverrideAction::Drain.into(),
        set_at_unix_ms: 10,
        replica: "lb-0".to_owned(),
        ..Override::default()
    };
    balancers[0].tell_overrides(vec![word.clone()]);
    for balancer in &balancers {
        let repeated =
            |seen: &crate::testing::Seen| seen.reports.iter().any(|report| report.overrides == [word.clone()]);
        assert!(balancer.wait_for(repeated, SOON).await);
    }
}

#[tokio::test]
async fn refused_reports_do_not_end_the_stream() {
    let balancer = Balancer::start().await.unwrap();
    balancer.refuse_reports(Some(("ADDRESS_NOT_YOURS", "another backend has this address")));
    let backend = backend(&[balancer.address()]).await;
    assert!(balancer.wait_for(|seen| seen.reports.len() >= 3, SOON).await);
    assert!(timeout(Duration::from_millis(10), backend.reporter.registered()).await.is_err());
    balancer.refuse_reports(None);
    timeout(SOON, backend.reporter.registered()).await.unwrap();
    assert_eq!(balancer.seen().registrations.len(), 1);
}

#[tokio::test]
async fn a_drain_waits_for_the_lists_and_calls_in_flight_end_well() {
    let balancer = Balancer::start().await.unwrap();
    let backend = backend(&[balancer.address()]).await;
    balancer.set("greeter", [&backend.address]);
    balancer.keep_listed(true);
    let channel = connect(&backend.address).await;
    let mut client = EchoClient::new(channel.clone());
    let in_flight = tokio::spawn({
        let mut client = client.clone();
        async move { client.unary(EchoRequest { payload: b"wait".to_vec(), ..EchoRequest::default() }).await }
    });
    assert!(balancer.wait_for(|seen| reported_in_flight(seen) == 1, SOON).await);
    backend.leave.send(()).unwrap();
    assert!(balancer.wait_for(|seen| seen.reports.back().is_some_and(|report| report.draining), SOON).await);
    // Listed still: new calls are served, and checks do not fail.
    client.unary(EchoRequest::default()).await.unwrap();
    assert_eq!(health(&channel, "greeter").await, Wire::Serving);
    assert!(BackendClient::new(channel.clone()).probe(ProbeRequest {}).await.unwrap().into_inner().draining);
    assert!(!backend.served.is_finished());
    balancer.keep_listed(false);
    assert!(balancer.wait_for(|seen| seen.report_streams == 0, SOON).await);
    backend.release.notify_one();
    in_flight.await.unwrap().unwrap();
    drop((client, channel));
    timeout(SOON, backend.served).await.unwrap().unwrap();
}

fn reported_in_flight(seen: &crate::testing::Seen) -> u32 {
    seen.reports.back().and_then(|report| report.counters.as_ref()).map_or(0, |counters| counters.in_flight)
}

#[tokio::test]
async fn a_drain_without_any_balancer_is_over_at_once_and_checks_fail_from_then_on() {
    let backend = backend(&["127.0.0.1:1".to_owned()]).await;
    let channel = connect(&backend.address).await;
    let began = Instant::now();
    backend.reporter.drain().await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    for service in ["", "greeter"] {
        assert_eq!(health(&channel, service).await, Wire::NotServing);
    }
}

#[tokio::test]
async fn an_abandoned_backend_breaks_off_and_has_nobody_to_wait_for() {
    let balancer = Balancer::start().await.unwrap();
    balancer.keep_listed(true);
    let backend = backend(&[balancer.address()]).await;
    timeout(SOON, backend.reporter.registered()).await.unwrap();
    let drain = tokio::spawn({
        let reporter = backend.reporter.clone();
        async move { reporter.drain().await }
    });
    assert!(balancer.wait_for(|seen| seen.reports.back().is_some_and(|report| report.draining), SOON).await);
    backend.reporter.abandon();
    timeout(SOON, drain).await.unwrap().unwrap();
    assert!(balancer.wait_for(|seen| seen.report_streams == 0, SOON).await);
}

async fn health(channel: &Channel, service: &str) -> Wire {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn a_watch_of_health_hears_the_end_and_does_not_hold_the_server() {
    let backend = backend(&[]).await;
    let channel = connect(&backend.address).await;
    let request = HealthCheckRequest { service: "greeter".to_owned() };
    let mut watch = HealthClient::new(channel).watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), Wire::Serving);
    backend.leave.send(()).unwrap();
    assert_eq!(timeout(SOON, watch.message()).await.unwrap().unwrap().unwrap().status(), Wire::NotServing);
    let end = timeout(SOON, watch.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable);
    timeout(SOON, backend.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn health_says_what_the_backend_says() {
    let backend = backend(&[]).await;
    let channel = connect(&backend.address).await;
    for (serving, wanted) in [(false, Wire::NotServing), (true, Wire::Serving)] {
        backend.reporter.set_serving(serving).await;
        for service in ["", "greeter"] {
            assert_eq!(health(&channel, service).await, wanted);
        }
    }
}

#[tokio::test]
async fn a_plain_client_sees_the_load_on_every_answer() {
    let backend = backend(&[]).await;
    let mut client = EchoClient::new(connect(&backend.address).await);
    let response = client.unary(EchoRequest::default()).await.unwrap();
    assert_eq!(load_in(response.metadata()).named_metrics["rif"], 0.0);
    assert_eq!(response.metadata().get("x-own").unwrap(), "kept");
    // An error without a body has its trailers in the head.
    let status = client.server_stream(StreamRequest::default()).await.unwrap_err();
    assert_eq!(load_in(status.metadata()).named_metrics["rif"], 0.0);
    // A stream carries it in the head.
    let stream = client.both_stream(futures_util::stream::empty()).await.unwrap();
    assert_eq!(load_in(stream.metadata()).named_metrics["rif"], 0.0);
    let response = client.unary(EchoRequest::default()).await.unwrap();
    assert_eq!(load_in(response.metadata()).named_metrics["rif"], 1.0);
    assert_eq!(backend.reporter.in_flight(), 1);
    drop(stream);
    let gone = async {
        while backend.reporter.in_flight() > 0 {
            client.unary(EchoRequest::default()).await.unwrap();
        }
    };
    timeout(SOON, gone).await.expect("a dropped stream is no longer in flight");
}

#[tokio::test]
async fn probes_and_orca_pulls_are_answered_and_not_counted() {
    let backend = backend(&[]).await;
    let channel = connect(&backend.address).await;
    let mut client = EchoClient::new(channel.clone());
    let _open = client.both_stream(futures_util::stream::empty()).await.unwrap();
    let probed = BackendClient::new(channel.clone()).probe(ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!((probed.in_flight, probed.draining, probed.overloaded), (1, false, false));
    assert_eq!(probed.incarnation, backend.reporter.incarnation());
    backend.reporter.set_application_utilization(1.5);
    assert!(BackendClient::new(channel.clone()).probe(ProbeRequest {}).await.unwrap().into_inner().overloaded);
    let mut pulled = OpenRcaServiceClient::new(channel.clone())
        .stream_core_metrics(OrcaLoadReportRequest {
            report_interval: Some("0.1s".parse().unwrap()),
            request_cost_names: Vec::new(),
        })
        .await
        .unwrap()
        .into_inner();
    for _ in 0..3 {
        let report = timeout(SOON, pulled.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(report.application_utilization, 1.5);
        assert_eq!(report.named_metrics["rif"], 1.0);
    }
    assert_eq!(backend.reporter.in_flight(), 1);
}
