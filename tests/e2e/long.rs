//! What takes minutes to show: `cargo long` runs all of it, `cargo long certificates` one. Each has a short version in
//! the suite that it belongs to.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

#[path = "tls/fleet.rs"]
mod fleet;

use std::time::Duration;

use lookaside_tests::alone;

#[tokio::test]
#[ignore = "10 minutes: cargo long"]
async fn certificates_of_a_minute_rotate_for_ten_minutes_and_nobody_notices() {
    let _alone = alone().await;
    fleet::rotate(Duration::from_secs(60), Duration::from_secs(600), "200").await.expect_no_failure();
}
