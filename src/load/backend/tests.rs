use std::time::Duration;

use futures_util::StreamExt as _;
use lookaside_proto::demo::echo_client::EchoClient;
use lookaside_proto::demo::{EchoRequest, ExecutionsRequest, StreamRequest};
use lookaside_sdk::testing::Balancer;
use tokio::time::{Instant, timeout};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(10);

fn quick() -> Config {
    Config { mean: Duration::from_millis(2), distribution: Distribution::Fixed, ..Config::new("greeter") }
}

async fn connect(address: &str) -> EchoClient<Channel> {
    EchoClient::new(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
}

fn call(id: &str) -> EchoRequest {
    EchoRequest { payload: b"hello".to_vec(), request_id: id.to_owned(), answer_delay_ms: 0 }
}

#[tokio::test]
async fn calls_of_every_shape_are_echoed() {
    let backend = Backend::start(quick()).await.unwrap();
    let mut client = connect(backend.address()).await;
    let answer = client.unary(call("one")).await.unwrap().into_inner();
    assert_eq!((answer.payload.as_slice(), answer.instance.as_str()), (b"hello".as_slice(), backend.address()));
    let stream = client.server_stream(StreamRequest { count: 5, size_bytes: 10, interval_ms: 1 }).await.unwrap();
    let sizes: Vec<usize> = stream.into_inner().map(|message| message.unwrap().payload.len()).collect().await;
    assert_eq!(sizes, [10; 5]);
    let requests = futures_util::stream::iter([call("two"), call("three")]);
    assert_eq!(client.client_stream(requests).await.unwrap().into_inner().index, 2);
    let requests = futures_util::stream::iter([call("four"), call("five")]);
    let both = client.both_stream(requests).await.unwrap().into_inner();
    let indexes: Vec<u64> = both.map(|message| message.unwrap().index).collect().await;
    assert_eq!(indexes, [0, 1]);
    let asked = client.executions(ExecutionsRequest { request_ids: vec!["one".to_owned(), "none".to_owned()] });
    let executions = asked.await.unwrap().into_inner().executions;
    assert_eq!((executions["one"], executions["none"]), (1, 0));
    let too_large = client.server_stream(StreamRequest { count: 1, size_bytes: u32::MAX, interval_ms: 0 });
    assert_eq!(too_large.await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn beyond_slots_and_queue_calls_are_refused_as_overload() {
    let config = Config { mean: Duration::from_millis(200), slots: 1, queue: 2, ..quick() };
    let backend = Backend::start(config).await.unwrap();
    let client = connect(backend.address()).await;
    let calls = (0..8).map(|number| {
        let mut client = client.clone();
        async move { client.unary(call(&number.to_string())).await.map_or_else(|status| status.code(), |_| Code::Ok) }
    });
    let codes = futures_util::future::join_all(calls).await;
    assert_eq!(codes.iter().filter(|code| **code == Code::Ok).count(), 3);
    assert_eq!(codes.iter().filter(|code| **code == Code::ResourceExhausted).count(), 5);
    let executed = (0..8).map(|number| backend.executions(&number.to_string())).sum::<u32>();
    assert_eq!(executed, 3);
}

#[tokio::test]
async fn a_backend_that_fails_fast_fails_without_working() {
    let config = Config { fail_rate: 1.0, mean: Duration::from_secs(60), ..quick() };
    let backend = Backend::start(config).await.unwrap();
    let mut client = connect(backend.address()).await;
    let status = timeout(SOON, client.unary(call("one"))).await.unwrap().unwrap_err();
    assert_eq!((status.code(), backend.executions("one")), (Code::Internal, 0));
}

#[tokio::test]
async fn an_unavailable_backend_counts_what_it_turns_away_and_serves_again() {
    let backend = Backend::start(quick()).await.unwrap();
    let mut client = connect(backend.address()).await;
    backend.set_unavailable(true);
    for _ in 0..3 {
        assert_eq!(client.unary(call("one")).await.unwrap_err().code(), Code::Unavailable);
    }
    backend.set_unavailable(false);
    client.unary(call("one")).await.unwrap();
    let told = client.executions(ExecutionsRequest::default()).await.unwrap().into_inner();
    assert_eq!((told.calls, told.executed, backend.calls(), backend.executions("one")), (4, 1, 4, 1));
}

#[tokio::test]
async fn a_dropped_stream_is_not_open_any_more() {
    let backend = Backend::start(quick()).await.unwrap();
    let mut client = connect(backend.address()).await;
    let endless = StreamRequest { count: u64::MAX, size_bytes: 1000, interval_ms: 0 };
    let stream = client.server_stream(endless).await.unwrap();
    assert_eq!(backend.open_streams(), 1);
    drop(stream);
    let closed = async {
        while backend.open_streams() > 0 || backend.in_flight() > 0 {
            client.unary(call("")).await.unwrap();
        }
    };
    timeout(SOON, closed).await.unwrap();
}

#[tokio::test]
async fn a_drain_ends_after_the_calls_in_flight_and_before_the_grace() {
    let balancer = Balancer::start().await.unwrap();
    let config = Config { balancers: vec![balancer.address()], mean: Duration::from_millis(300), ..quick() };
    let backend = Backend::start(config).await.unwrap();
    timeout(SOON, backend.registered()).await.unwrap();
    let mut client = connect(backend.address()).await;
    let in_flight = tokio::spawn(async move { client.unary(call("one")).await });
    let arrived = async {
        while backend.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, arrived).await.unwrap();
    timeout(SOON, backend.drain()).await.unwrap();
    in_flight.await.unwrap().unwrap();
    assert!(balancer.seen().reports.iter().any(|report| report.draining));
    assert!(EchoClient::connect(format!("http://{}", backend.address())).await.is_err());
}

#[tokio::test]
async fn a_stream_that_outlives_the_grace_is_cut() {
    let backend = Backend::start(Config { grace: Duration::from_millis(100), ..quick() }).await.unwrap();
    let mut client = connect(backend.address()).await;
    let endless = StreamRequest { count: u64::MAX, size_bytes: 1, interval_ms: 10 };
    let mut stream = client.server_stream(endless).await.unwrap().into_inner();
    timeout(SOON, backend.drain()).await.unwrap();
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                ended => return ended,
            }
        }
    };
    assert!(timeout(SOON, end).await.unwrap().is_err(), "broken off, not ended");
}

#[tokio::test]
async fn a_killed_backend_breaks_off_without_a_word() {
    let balancer = Balancer::start().await.unwrap();
    let config = Config { balancers: vec![balancer.address()], mean: Duration::from_secs(60), ..quick() };
    let backend = Backend::start(config).await.unwrap();
    timeout(SOON, backend.registered()).await.unwrap();
    let mut client = connect(backend.address()).await;
    let in_flight = tokio::spawn(async move { client.unary(call("one")).await });
    let arrived = async {
        while backend.executions("one") == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, arrived).await.unwrap();
    let began = Instant::now();
    backend.kill();
    assert!(timeout(SOON, in_flight).await.unwrap().unwrap().is_err());
    assert!(balancer.wait_for(|seen| seen.report_streams == 0, SOON).await);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(balancer.seen().reports.iter().all(|report| !report.draining));
    backend.ended().await;
    assert!(EchoClient::connect(format!("http://{}", backend.address())).await.is_err());
}

#[tokio::test]
async fn numbers_out_of_range_do_not_start() {
    for wrong in [
        Config { fail_rate: f64::NAN, ..quick() },
        Config { fail_rate: 1.5, ..quick() },
        Config { slow_factor: 0.0, ..quick() },
        Config { slow_factor: f64::INFINITY, ..quick() },
        Config { slots: 0, ..quick() },
        Config { mean: Duration::MAX, ..quick() },
    ] {
        assert!(matches!(Backend::start(wrong).await, Err(Error::Range { .. })));
    }
    let anywhere = Config { listen: SocketAddr::from(([0, 0, 0, 0], 0)), ..quick() };
    assert!(matches!(Backend::start(anywhere).await, Err(Error::NotReachable { .. })));
}
