//! Pick streams by the thousand: what they cost to hold.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::time::{Duration, Instant};

use lookaside_tests::{Backends, Balancer, Picks, SERVICE, alone, wait_for, wait_until};

#[tokio::test]
async fn twenty_thousand_streams_are_held_in_little_memory() {
    const STREAMS: usize = 20_000;
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let _backends = Backends::offered(&balancer, 8, &[]).await;
    let before = balancer.process.resident_bytes();
    let began = Instant::now();
    let picks = Picks::hold(&balancer.client, SERVICE, 20, STREAMS / 20);
    wait_for("all streams to be served", Duration::from_secs(60), async || (picks.served() == STREAMS).then_some(()))
        .await;
    let took = began.elapsed();
    wait_until(Instant::now() + Duration::from_secs(7)).await;
    let after = balancer.process.resident_bytes();
    println!(
        "{STREAMS} streams in {took:?}: {} KiB before, {} KiB after, {:.2} KiB per stream, cpu {:?}",
        before >> 10,
        after >> 10,
        (after - before) as f64 / 1024.0 / STREAMS as f64,
        balancer.process.cpu()
    );
    assert_eq!((picks.losses(), picks.refusals()), (0, 0));
}
