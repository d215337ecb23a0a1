//! What takes minutes to show: `cargo long` runs all of it, `cargo long certificates` one. Each has a short version in
//! the suite that it belongs to.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

#[path = "tls/fleet.rs"]
mod fleet;

use std::time::Duration;

use lookaside_tests::{Abuse, Backends, Balancer, alone};

#[tokio::test]
#[ignore = "10 minutes: cargo long"]
async fn certificates_of_a_minute_rotate_for_ten_minutes_and_nobody_notices() {
    let _alone = alone().await;
    fleet::rotate(Duration::from_secs(60), Duration::from_secs(600), "200").await.expect_no_failure();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "5 minutes: cargo long"]
async fn abuse_of_ten_seconds_of_every_kind_costs_others_next_to_nothing() {
    let _alone = alone().await;
    for kind in Abuse::ALL {
        let balancer = Balancer::start().await;
        let _backends = Backends::offered(&balancer, 2, &[]).await;
        let verdict = kind.commit(&balancer, Duration::from_secs(10)).await;
        println!("{verdict}");
        verdict.expect_harmless();
    }
}
