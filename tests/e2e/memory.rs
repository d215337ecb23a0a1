//! What a reader that stalls costs: a process of its own, since it is the memory of this process that is measured.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::time::Duration;

use lookaside_proto::demo::{EchoRequest, StreamRequest, echo_client::EchoClient};
use lookaside_sdk::Channel;
use lookaside_tests::{Backends, Balancer, SERVICE, hold_for};

const MESSAGE_BYTES: u32 = 64 << 10;
const STREAM_BYTES: u64 = 1 << 30;
const ADDED_BYTES_MAX: u64 = 4 << 20;

#[tokio::test]
async fn a_reader_that_stalls_on_a_gigabyte_costs_the_client_next_to_nothing() {
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 1, &["--mean", "1ms"]).await;
    let channel = Channel::builder(SERVICE).balancers([&balancer.client]).connect().await.unwrap();
    let mut client = EchoClient::new(channel.clone());
    // What any stream and any call need once is there before we look.
    let mut warm = client.server_stream(messages(256)).await.unwrap().into_inner();
    while warm.message().await.unwrap().is_some() {}
    drop(warm);
    client.unary(EchoRequest::default()).await.unwrap();

    let before = resident_bytes();
    let gigabyte = messages(STREAM_BYTES / u64::from(MESSAGE_BYTES));
    let mut stalled = client.server_stream(gigabyte).await.unwrap().into_inner();
    stalled.message().await.unwrap().unwrap();
    let mut added_max = 0;
    hold_for("little memory", Duration::from_secs(3), async || {
        // Calls on the same connection go on meanwhile.
        client.unary(EchoRequest::default()).await.unwrap();
        added_max = resident_bytes().saturating_sub(before).max(added_max);
        added_max <= ADDED_BYTES_MAX
    })
    .await;
    println!("{} KiB were added", added_max >> 10);
    assert_eq!(Backends::executions(&backends.addresses[0]).await.open_streams, 1);
    // It has stalled, not died.
    for _ in 0..64 {
        assert_eq!(stalled.message().await.unwrap().unwrap().payload.len(), MESSAGE_BYTES as usize);
    }
}

fn messages(count: u64) -> StreamRequest {
    StreamRequest { count, size_bytes: MESSAGE_BYTES, interval_ms: 0 }
}

/// Memory of this process that is in RAM.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() << 10
}
