use super::*;
use crate::backend::{Backend, Config, Distribution};
use crate::bench::clients::Policy;

async fn backends(count: usize) -> Vec<Backend> {
    let mut backends = Vec::new();
    for number in 0..count {
        let config = Config {
            mean: Duration::from_millis(2),
            distribution: Distribution::Fixed,
            instance: Some(format!("b{number}")),
            ..Config::new("bench")
        };
        backends.push(Backend::start(config).await.unwrap());
    }
    backends
}

fn plan(policy: Policy, backends: &[Backend]) -> Plan {
    let endpoints = backends.iter().map(|backend| backend.address().to_owned()).collect();
    Plan { policy, clients: 3, service: "bench".to_owned(), balancer: String::new(), endpoints }
}

const WINDOW: Window =
    Window { rate_per_s: 300.0, warm_up_ms: 200, for_ms: 600, deadline_ms: 5_000, seed: 7, span_ms: 100 };

#[tokio::test(flavor = "multi_thread")]
async fn every_way_without_a_balancer_spreads_the_calls() {
    let backends = backends(4).await;
    // One stall, and Peak-EWMA leaves an endpoint alone for seconds.
    let ways = [(Policy::P2c, 4), (Policy::RoundRobin, 4), (Policy::Tonic, 4), (Policy::PeakEwma, 2)];
    for (policy, used_min) in ways {
        let callers = Callers::connect(&plan(policy, &backends)).await.unwrap();
        let told = callers.run(WINDOW).await;
        assert_eq!((told.failed, told.not_sent), (0, 0), "{policy}: {told:?}");
        assert!(told.served.len() >= used_min, "{policy}: {told:?}");
        assert!((120..240).contains(&told.calls), "{policy}: {} calls", told.calls);
        assert!(told.p50_us >= 2_000 && told.p50_us <= told.p999_us, "{policy}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_by_the_slice_in_which_they_were_due_and_have_no_latency() {
    let backends = backends(1).await;
    let callers = Callers::connect(&plan(Policy::P2c, &backends)).await.unwrap();
    backends[0].set_unavailable(true);
    let told = callers.run(WINDOW).await;
    assert_eq!((told.failed, told.p99_us), (told.calls, 0));
    assert_eq!(told.failures_by_code.keys().collect::<Vec<_>>(), ["UNAVAILABLE"]);
    assert!(told.first_failure.contains("unavailable"), "{}", told.first_failure);
    let of_all: u64 = told.spans.iter().map(|span| span.failed).sum();
    assert!(told.spans.len() == 8 && of_all > told.failed, "warm-up included: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_every_policy_the_same_calls() {
    let backends = backends(2).await;
    let mut counts = Vec::new();
    for policy in [Policy::P2c, Policy::RoundRobin] {
        let callers = Callers::connect(&plan(policy, &backends)).await.unwrap();
        counts.push(callers.run(WINDOW).await.spans.iter().map(|span| span.calls).collect::<Vec<_>>());
    }
    assert_eq!(counts[0], counts[1]);
}

#[tokio::test]
async fn clients_that_reach_nobody_do_not_start() {
    let backend = backends(1).await;
    let plan = plan(Policy::P2c, &backend);
    backend[0].kill();
    backend[0].ended().await;
    assert!(matches!(Callers::connect(&plan).await, Err(Error::Transport(_))));
}
