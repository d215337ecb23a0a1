//! Calls that are repeated: what it costs when everything fails, and what it saves when one endpoint does.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::time::{Duration, Instant};

use lookaside_tests::{Backends, Balancer, Client, Signal, alone, wait_for, wait_until};

/// Four backends of two slots at 20 ms a call: 400 calls/s.
const CAPACITY: [&str; 8] = ["--mean", "20ms", "--dist", "fixed", "--slots", "2", "--queue", "20"];
const CAPACITY_PER_S: f64 = 400.0;

#[tokio::test]
async fn a_retry_storm_adds_a_tenth_at_most_and_is_over_soon() {
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 4, &CAPACITY).await;
    let rate = (CAPACITY_PER_S * 1.1).to_string();
    // What is turned away because a queue is full is retried as well: that is what keeps a storm going.
    let retries = ["--idempotent", "--attempts", "4", "--retry-on", "unavailable,resource-exhausted"];
    let flags = [&["--rate", &rate, "--for", "40s"], &retries[..]].concat();
    let client = Client::start(&balancer, &flags);
    balancer.wait_for_load().await;

    let normal_per_s = executed_per_s(&backends, Duration::from_secs(6)).await;
    backends.process.signal(Signal::SIGUSR2);
    let (before, _) = backends.served().await;
    let storm_per_s = executed_per_s(&backends, Duration::from_secs(10)).await;
    let (after, _) = backends.served().await;
    backends.process.signal(Signal::SIGUSR2);
    let over = Instant::now();
    wait_for("as many calls served as before", Duration::from_secs(10), async || {
        let per_s = executed_per_s(&backends, Duration::from_secs(1)).await;
        (per_s >= 0.95 * normal_per_s).then_some(())
    })
    .await;
    let recovered = over.elapsed();
    let summary = client.stop().await;
    let (wire, _) = backends.served().await;
    let (offered, storm) = (summary.calls() as f64, (after - before) as f64 / (CAPACITY_PER_S * 1.1 * 10.0));
    println!(
        "served {normal_per_s:.0}/s before, {storm_per_s:.0}/s in the storm, as before {recovered:?} after it; on the \
         wire {wire} of {offered} calls: {:.3}, in the storm {storm:.3}",
        wire as f64 / offered
    );
    assert!(storm_per_s < 0.2 * normal_per_s, "all of them failed");
    assert!(wire as f64 <= 1.11 * offered, "{wire} of {offered}: {:#}", summary.0);
    assert!(wire as f64 > offered, "some were retried");
}

/// Calls that these have worked on, per second, over so long.
async fn executed_per_s(backends: &Backends, duration: Duration) -> f64 {
    let began = Instant::now();
    let (_, before) = backends.served().await;
    wait_until(began + duration).await;
    let (_, after) = backends.served().await;
    (after - before) as f64 / began.elapsed().as_secs_f64()
}

/// With `least_load` a client leaves a slow endpoint alone by itself. Taking turns it cannot: one endpoint of sixty then has a
/// sixtieth of the calls, more than the one in a hundred that p99 overlooks, and less than the hedges that are allowed. Not all
/// of them are needed: to the picker an endpoint that loses twice, and answers nothing in between, is a silent one, which it
/// passes over but for a call now and then.
#[tokio::test]
async fn hedging_halves_p99_where_one_endpoint_is_slow_and_sends_two_percent_more_at_most() {
    let _alone = alone().await;
    let balancer = Balancer::configured("defaults: { policy: round_robin }").await;
    let others = Backends::offered(&balancer, 59, &["--mean", "20ms", "--dist", "fixed"]).await;
    let slow = Backends::offered(&balancer, 1, &["--mean", "20ms", "--dist", "fixed", "--slow", "10"]).await;
    // Both at once, so that what else happens on this machine happens to both.
    let flags = ["--clients", "1", "--rate", "150", "--for", "25s"];
    let plain = Client::start(&balancer, &flags);
    let hedged = Client::start(&balancer, &[&flags[..], &["--idempotent", "--hedge-after", "60ms"]].concat());
    let (plain, hedged) = tokio::join!(plain.finish(), hedged.finish());
    plain.expect_no_failure();
    hedged.expect_no_failure();
    let wire = others.served().await.0 + slow.served().await.0;
    let extra = wire - plain.calls() - hedged.calls();
    println!(
        "p99 {} us plain, {} us hedged; {extra} hedges of {} calls",
        plain.p99_us(),
        hedged.p99_us(),
        hedged.calls()
    );
    assert!(plain.p99_us() >= 150_000, "the slow one is in it: {:#}", plain.0);
    assert!(hedged.p99_us() * 2 <= plain.p99_us(), "{:#}", hedged.0);
    assert!(extra > 0 && extra * 100 <= hedged.calls() * 2, "{extra} of {}", hedged.calls());
}

#[tokio::test]
async fn a_backend_that_turns_calls_away_costs_nothing_where_the_configuration_allows_retries() {
    let _alone = alone().await;
    let rules = "defaults: { methods: [{ path: /lookaside.demo.v1.Echo/, idempotent: true, attempts: 3 }] }";
    let balancer = Balancer::configured(rules).await;
    let others = Backends::offered(&balancer, 5, &["--mean", "2ms"]).await;
    let broken = Backends::offered(&balancer, 1, &["--mean", "2ms"]).await;
    let client = Client::start(&balancer, &["--for", "60s"]);
    balancer.wait_for_load().await;
    let served = async |calls: u64| {
        let (before, _) = others.served().await;
        wait_for("load", Duration::from_secs(30), async || (others.served().await.0 >= before + calls).then_some(()))
            .await;
    };
    // What goes well is what earns retries.
    served(2_000).await;
    broken.process.signal(Signal::SIGUSR2);
    served(2_000).await;
    let summary = client.stop().await;
    summary.expect_no_failure();
    let (wire, executed) = broken.served().await;
    assert!(wire > executed, "it turned calls away");
    assert_eq!(wire + others.served().await.0, summary.calls() + wire - executed, "each of them was sent once more");
}
