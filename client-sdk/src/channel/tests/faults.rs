//! Applications that let go early or break off, and balancers that say little: nothing may hang, leak or blame the wrong one.

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use lookaside_proto::v1;
use tonic::{Status, body::Body};

use super::*;
use crate::{
    list::List,
    snapshot::ListSource,
    testing::{Balancer, Seen},
};

const SOON: Duration = Duration::from_secs(5);

fn request(frames: impl futures_util::Stream<Item = Result<Bytes, Status>> + Send + 'static) -> http::Request<Body> {
    let body = Body::new(StreamBody::new(Box::pin(frames.map(|f| f.map(Frame::data)))));
    http::Request::post("/lookaside.demo.v1.Echo/ClientStream")
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(body)
        .unwrap()
}

/// An empty message as it stands in a request.
fn empty_message() -> Bytes {
    Bytes::from_static(&[0; 5])
}

#[tokio::test]
async fn a_call_outlives_the_channel_it_was_made_through() {
    let backend = Backend::start().await;
    let mut channel = fixed(&[&backend.address]).lazy().unwrap();
    let call = tower::Service::call(&mut channel, request(stream::iter([Ok(empty_message())])));
    drop(channel);
    let response = tokio::time::timeout(SOON, call).await.expect("an answer").unwrap();
    assert!(response.extensions().get::<crate::Picked>().is_some());
    drop(response);
    eventually("nothing open on the server", || backend.counts.open.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn a_request_stream_that_panics_ends_its_call() {
    let backend = Backend::start().await;
    let (channel, mut client) = client(fixed(&[&backend.address]));
    ready(&channel).await;
    let later = stream::once(async {
        tokio::task::yield_now().await;
        panic!("this one is meant to be seen")
    });
    let call = client.client_stream(stream::iter([says(b"x"), says(b"y")]).chain(later));
    let status = tokio::time::timeout(SOON, call).await.expect("an end").unwrap_err();
    assert_eq!(status.code(), Code::Cancelled, "{status}");
    idle(&channel).await;
    eventually("nothing open on the server", || backend.counts.open.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn a_request_stream_that_breaks_off_is_the_applications_own_failure() {
    let (balancer, backend) = (Balancer::start().await.unwrap(), Backend::start().await);
    balancer.set("echo", [&backend.address]);
    let mut channel = Channel::connect(&format!("lookaside://{}/echo", balancer.address())).await.unwrap();
    let frames = stream::iter([Ok(empty_message()), Err(Status::internal("mine"))]);
    let status = tower::Service::call(&mut channel, request(frames)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, "mine"));
    let told = |seen: &Seen| {
        let sum = |f: fn(&v1::EndpointOutcomes) -> u64| seen.outcomes("echo").map(f).sum::<u64>();
        [sum(|o| o.cancelled), sum(|o| o.endpoint)] == [1, 0]
    };
    assert!(balancer.wait_for(told, SOON).await, "{:?}", balancer.outcomes("echo"));
}

#[tokio::test]
async fn a_call_within_the_last_stream_of_a_goodbye_is_not_repeated() {
    let raws = [Raw::start(Manner::AdmitAndClose).await, Raw::start(Manner::AdmitAndClose).await];
    let (channel, mut client) = client(fixed(&[&raws[0].address, &raws[1].address]));
    ready(&channel).await;
    let status = client.unary(says(b"x")).await.unwrap_err();
    assert_eq!(raws.iter().map(|r| r.calls.load(SeqCst)).sum::<usize>(), 1);
    assert_eq!(why(&status).map(|w| (w.what, w.attempts)), Some((What::ConnectionLost, 1)), "{status}");
}

#[tokio::test]
async fn a_request_stream_that_moves_under_way_arrives_whole_and_once() {
    let (raw, backend) = (Raw::start(Manner::Refuse).await, Backend::start().await);
    let (channel, mut client) = client(fixed(&[&raw.address, &backend.address]));
    ready(&channel).await;
    let mut moved = 0;
    for _ in 0..40 {
        // Some of it goes to the endpoint that refuses before the refusal is heard.
        let requests = stream::unfold(0, |n| async move {
            tokio::task::yield_now().await;
            (n < 200).then(|| (says(&[n as u8; 100]), n + 1))
        });
        let replies = client.both_stream(requests).await.unwrap();
        moved += u32::from(picked(&replies).unwrap().attempts > 1);
        let payloads: Vec<_> = replies.into_inner().map(|r| r.unwrap().payload).collect().await;
        assert_eq!(payloads.len(), 200);
        assert!(payloads.iter().enumerate().all(|(n, payload)| *payload == [n as u8; 100]));
    }
    assert!(moved > 0);
    idle(&channel).await;
}

#[tokio::test]
async fn a_call_that_was_refused_and_moved_is_no_sign_that_the_service_takes_none() {
    let (raw, backend) = (Raw::start(Manner::Refuse).await, Backend::start().await);
    let (channel, mut client_of_both) = client(fixed(&[&raw.address, &backend.address]));
    ready(&channel).await;
    let throttle = &channel.inner.pool.advice.throttle;
    throttle.set_on(true);
    for _ in 0..20 {
        client_of_both.unary(says(b"x")).await.unwrap();
    }
    assert!(raw.calls.load(SeqCst) > 0);
    assert_eq!(throttle.remembered(channel.inner.pool.now_us()), (20, 20));
    // Where it cannot move, it was refused.
    let (channel, mut client_of_one) = client(fixed(&[&raw.address]));
    ready(&channel).await;
    let throttle = &channel.inner.pool.advice.throttle;
    throttle.set_on(true);
    client_of_one.unary(says(b"x")).await.unwrap_err();
    assert_eq!(throttle.remembered(channel.inner.pool.now_us()), (1, 0));
}

#[tokio::test]
async fn a_call_that_nobody_saw_was_not_refused_and_one_that_was_counts_wherever_it_ends() {
    let raw = Raw::start(Manner::GoAway).await;
    let (channel, mut client_of_one) = client(fixed(&[&raw.address]));
    ready(&channel).await;
    let pool = &channel.inner.pool;
    pool.advice.throttle.set_on(true);
    client_of_one.unary(says(b"x")).await.unwrap_err();
    assert_eq!(pool.advice.throttle.remembered(pool.now_us()), (0, 0), "it left, and was never too busy");
    let raw = Raw::start(Manner::RefuseLate).await;
    let (channel, client_of_one) = client(fixed(&[&raw.address]));
    ready(&channel).await;
    let pool = &channel.inner.pool;
    pool.advice.throttle.set_on(true);
    let mut calling = client_of_one.clone();
    let call = tokio::spawn(async move { calling.unary(says(b"x")).await });
    eventually("there", || raw.calls.load(SeqCst) == 1).await;
    pool.apply(List::plain(&[]), ListSource::Static, None);
    let status = call.await.unwrap().unwrap_err();
    assert_eq!(why(&status).unwrap().what, What::NoEndpoint, "{status}");
    assert_eq!(pool.advice.throttle.remembered(pool.now_us()), (1, 0));
}

#[tokio::test]
async fn what_is_untold_when_a_redirect_comes_is_told_there() {
    let (first, second) = (Balancer::start().await.unwrap(), Balancer::start().await.unwrap());
    let backend = Backend::start().await;
    first.set_report_period(Duration::from_secs(60));
    first.set("echo", [&backend.address]);
    second.set("echo", [&backend.address]);
    let channel = Channel::connect(&format!("lookaside://{}/echo", first.address())).await.unwrap();
    let mut client = EchoClient::new(channel.clone());
    // The period is heard with a heartbeat.
    first.tick();
    for _ in 0..7 {
        client.unary(says(b"x")).await.unwrap();
    }
    first.redirect([second.address()], &[]);
    eventually("at the second", || channel.snapshot().balancer == Some(second.address())).await;
    let told =
        |seen: &Seen| first.seen().ok_calls("echo", &backend.address) + seen.ok_calls("echo", &backend.address) == 7;
    assert!(second.wait_for(told, SOON).await, "{:?}", second.outcomes("echo"));
}

#[test]
fn a_channel_that_is_dropped_leaves_no_task_behind() {
    let servers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let clients = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (balancer, backend, hanging) = servers.block_on(async {
        let balancer = Balancer::start().await.unwrap();
        (balancer, Backend::start().await, Raw::start(Manner::Hang).await)
    });
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    balancer.set("echo", [&backend.address, &hanging.address, &nobody]);
    clients.block_on(async {
        let channel = Channel::connect(&format!("lookaside://{}/echo", balancer.address())).await.unwrap();
        let mut client = EchoClient::new(channel.clone());
        for _ in 0..20 {
            let _ = tokio::time::timeout(Duration::from_millis(5), client.unary(says(b"x"))).await;
        }
        let uploads = futures_util::future::join_all((0..5).map(|_| {
            let (mut client, endless) = (client.clone(), stream::iter((0..).map(|_| says(&[0; 60_000]))));
            async move { tokio::time::timeout(Duration::from_millis(50), client.both_stream(endless)).await }
        }));
        let responses = uploads.await;
        drop((channel, client, responses));
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        eventually("no task left", || tasks() == 0).await;
    });
    drop(clients);
    servers.shutdown_background();
}

#[tokio::test]
async fn where_nobody_can_be_reached_a_call_hears_of_it_and_not_of_its_deadline() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let (_channel, mut client) = client(fixed(&[&address]));
    let mut request = Request::new(says(b"x"));
    request.set_timeout(Duration::from_secs(60));
    let call = tokio::time::timeout(Duration::from_secs(20), client.unary(request));
    let status = call.await.expect("an end long before the deadline").unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("none connected") && status.message().contains(&address), "{status}");
}
