//! Streams through the SDK: they outlive the default deadline, and leave nothing behind when they are dropped.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use lookaside_proto::demo::{EchoRequest, StreamRequest, echo_client::EchoClient};
use lookaside_sdk::Channel;
use lookaside_tests::{Backends, Balancer, SERVICE, alone, wait_for};

const DEFAULT_DEADLINE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn streams_of_every_shape_outlive_the_default_deadline() {
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let _backends = Backends::offered(&balancer, 2, &["--mean", "1ms"]).await;
    let builder = Channel::builder(SERVICE).balancers([&balancer.client]).default_deadline(DEFAULT_DEADLINE);
    let mut client = EchoClient::new(builder.connect().await.unwrap());

    let began = Instant::now();
    let wanted = StreamRequest { count: 16, size_bytes: 10, interval_ms: 100 };
    let response = client.server_stream(wanted).await.unwrap().into_inner();
    assert_eq!(response.filter(|message| std::future::ready(message.is_ok())).count().await, 16);
    assert!(began.elapsed() > DEFAULT_DEADLINE * 2);

    let both = client.both_stream(slow_requests(16)).await.unwrap().into_inner();
    assert_eq!(both.filter(|message| std::future::ready(message.is_ok())).count().await, 16);
    let answer = client.client_stream(slow_requests(16)).await.unwrap().into_inner();
    assert_eq!(answer.index, 16);

    // What is no stream ends by it.
    let late = EchoRequest { answer_delay_ms: 5_000, ..EchoRequest::default() };
    let began = Instant::now();
    let status = client.unary(late).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
    assert!(began.elapsed() >= DEFAULT_DEADLINE && began.elapsed() < DEFAULT_DEADLINE * 3);
}

/// Requests with a tenth of a second between them.
fn slow_requests(count: usize) -> impl futures_util::Stream<Item = EchoRequest> + Send + 'static {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let ticks = stream::poll_fn(move |context| ticks.poll_tick(context).map(Some));
    ticks.take(count).map(|_| EchoRequest { payload: vec![7; 100], ..EchoRequest::default() })
}

#[tokio::test]
async fn ten_thousand_dropped_responses_leave_no_stream_on_either_side() {
    const DROPPED: usize = 10_000;
    const AT_ONCE: usize = 50;
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 2, &["--mean", "1ms"]).await;
    let channel = Channel::builder(SERVICE).balancers([&balancer.client]).connect().await.unwrap();
    let calls = stream::iter(0..DROPPED).map(|number| {
        let mut client = EchoClient::new(channel.clone());
        async move {
            let wanted = StreamRequest { count: 1_000_000, size_bytes: 1_000, interval_ms: 1 };
            let mut response = client.server_stream(wanted).await.unwrap().into_inner();
            // Some are dropped at the head, some on the way.
            for _ in 0..number % 3 {
                response.message().await.unwrap();
            }
        }
    });
    calls.for_each_concurrent(AT_ONCE, |call| call).await;

    wait_for("no call in flight at the client", Duration::from_secs(5), async || {
        channel.snapshot().endpoints.iter().all(|endpoint| endpoint.in_flight == 0).then_some(())
    })
    .await;
    for address in &backends.addresses {
        wait_for("no stream open at the backend", Duration::from_secs(10), async || {
            (Backends::executions(address).await.open_streams == 0).then_some(())
        })
        .await;
    }
    // And the channel is none the worse for it.
    EchoClient::new(channel).unary(EchoRequest::default()).await.unwrap();
}
