use std::time::Duration;

use lookaside_sdk::testing::Balancer;
use tokio::time::timeout;

use super::*;
use crate::backend::{self, Backend, Distribution};

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(20);

struct Fleet {
    balancer: Balancer,
    backends: Vec<Backend>,
}

impl Fleet {
    async fn start(count: usize, mean: Duration) -> Self {
        let balancer = Balancer::start().await.unwrap();
        let mut backends = Vec::new();
        for _ in 0..count {
            let config = backend::Config { mean, distribution: Distribution::Fixed, ..backend::Config::new("greeter") };
            backends.push(Backend::start(config).await.unwrap());
        }
        balancer.set("greeter", backends.iter().map(Backend::address));
        Self { balancer, backends }
    }

    fn config(&self) -> Config {
        Config {
            clients: 2,
            rate_per_s: 400.0,
            duration: Some(Duration::from_secs(1)),
            deadline: Duration::from_secs(5),
            ..Config::new("greeter", [self.balancer.address()])
        }
    }
}

async fn run(config: Config) -> Summary {
    let run = timeout(SOON, Run::start(config)).await.unwrap().unwrap();
    timeout(SOON, run.finished()).await.unwrap()
}

async fn reach(run: &Run, calls: u64) {
    let reached = async {
        while run.progress().calls < calls {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, reached).await.unwrap();
}

#[tokio::test]
async fn every_call_that_was_due_is_accounted_for_once() {
    let fleet = Fleet::start(3, Duration::from_millis(2)).await;
    let config = Config { client_id: "t".to_owned(), ..fleet.config() };
    let run = timeout(SOON, Run::start(config)).await.unwrap().unwrap();
    let summary = timeout(SOON, run.finished()).await.unwrap();
    assert_eq!((summary.calls, summary.failed, summary.not_sent), (400, 0, 0), "{summary:?}");
    assert_eq!(summary.per_endpoint.iter().map(|endpoint| endpoint.calls).sum::<u64>(), 400);
    assert_eq!(summary.per_endpoint.len(), 3);
    assert!(summary.max_over_mean >= 1.0 && summary.max_over_mean < 1.5, "{summary:?}");
    for endpoint in &summary.per_endpoint {
        assert!(endpoint.first_call_ms < Some(200) && endpoint.last_call_ms > Some(800), "{endpoint:?}");
    }
    assert!(summary.p50_us >= 1_000 && summary.p50_us <= summary.p99_us && summary.p99_us <= summary.p999_us);
    let executed = |number: u64| {
        let id = format!("{:016x}-{number}", run.shared.run_id);
        fleet.backends.iter().map(|backend| backend.executions(&id)).sum::<u32>()
    };
    assert!((0..400).all(|number| executed(number) == 1), "each ran once, somewhere");
    let progress = run.progress();
    assert_eq!((progress.calls, progress.in_flight, progress.per_endpoint.len()), (400, 0, 3));
    let names: Vec<String> = fleet.balancer.seen().hellos.iter().map(|hello| hello.client_id.clone()).collect();
    assert!(names.contains(&"t-0".to_owned()) && names.contains(&"t-1".to_owned()), "{names:?}");
}

#[tokio::test]
async fn calls_in_flight_are_told_while_the_last_ones_end() {
    let fleet = Fleet::start(1, Duration::from_millis(1)).await;
    let config = Config {
        rate_per_s: 100.0,
        duration: Some(Duration::from_millis(95)),
        answer_delay: Duration::from_secs(1),
        ..fleet.config()
    };
    let run = timeout(SOON, Run::start(config)).await.unwrap().unwrap();
    let mut most = 0;
    let watch = async {
        while run.progress().calls == 0 {
            most = most.max(run.progress().in_flight);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, watch).await.unwrap();
    assert_eq!(most, 10, "not all that might be");
    assert_eq!(timeout(SOON, run.finished()).await.unwrap().failed, 0);
}

#[tokio::test]
async fn slow_answers_do_not_slow_the_start_of_calls() {
    let fleet = Fleet::start(1, Duration::from_secs(60)).await;
    let config = Config { deadline: Duration::from_millis(300), rate_per_s: 50.0, ..fleet.config() };
    let summary = run(config).await;
    assert_eq!((summary.calls, summary.failed), (50, 50), "{summary:?}");
    let only = &summary.per_endpoint[0];
    assert!(only.last_call_ms > Some(900), "{only:?}");
    assert_eq!(summary.failures_by_code.get("DEADLINE_EXCEEDED"), Some(&50), "{summary:?}");
    assert!(summary.p50_us >= 290_000, "a call that failed took as long as it took: {summary:?}");
}

#[tokio::test]
async fn a_call_beyond_the_bound_is_counted_and_not_sent() {
    let fleet = Fleet::start(1, Duration::from_secs(60)).await;
    let config = Config { in_flight_max: 3, deadline: Duration::from_secs(2), rate_per_s: 100.0, ..fleet.config() };
    let summary = run(config).await;
    assert_eq!((summary.calls, summary.not_sent), (100, 97), "{summary:?}");
    assert_eq!(summary.failures_by_code.get("RESOURCE_EXHAUSTED"), Some(&97));
}

#[tokio::test]
async fn a_run_that_is_stopped_sums_up_what_it_did() {
    let fleet = Fleet::start(2, Duration::from_millis(2)).await;
    let run = timeout(SOON, Run::start(Config { duration: None, ..fleet.config() })).await.unwrap().unwrap();
    reach(&run, 20).await;
    run.stop();
    let summary = timeout(SOON, run.finished()).await.unwrap();
    assert!(summary.calls >= 20 && summary.failed == 0, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_calls_a_second_start_on_time() {
    let fleet = Fleet::start(4, Duration::from_millis(1)).await;
    let summary = run(Config { rate_per_s: 2_000.0, poisson: true, seed: 1, ..fleet.config() }).await;
    assert_eq!(summary.failed, 0, "{summary:?}");
    assert!((1_800..2_200).contains(&summary.calls), "{summary:?}");
    let last = summary.per_endpoint.iter().filter_map(|endpoint| endpoint.last_call_ms).max();
    assert!(last < Some(1_500), "{last:?}");
}

#[tokio::test]
async fn numbers_out_of_range_do_not_start() {
    let right = Config::new("greeter", ["127.0.0.1:1"]);
    for wrong in [
        Config { rate_per_s: 0.0, ..right.clone() },
        Config { rate_per_s: f64::NAN, ..right.clone() },
        Config { rate_per_s: f64::INFINITY, ..right.clone() },
        Config { clients: 0, ..right.clone() },
        Config { in_flight_max: 0, ..right.clone() },
        Config { deadline: Duration::ZERO, ..right.clone() },
        Config { deadline: Duration::MAX, ..right.clone() },
    ] {
        assert!(matches!(Run::start(wrong).await, Err(Error::Range { .. })));
    }
}

#[test]
fn the_summary_has_the_promised_fields() {
    let mut tally = Tally::new(Duration::ZERO);
    tally.ended(Some("a:1"), Code::Unavailable, Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let json = serde_json::to_value(tally.summary(["b:1".to_owned()])).unwrap();
    for field in ["calls", "failed", "p50_us", "p90_us", "p99_us", "p999_us"] {
        assert!(json[field].is_u64(), "{field}");
    }
    assert_eq!(json["failures_by_code"], serde_json::json!({"UNAVAILABLE": 1}));
    assert_eq!(json["max_over_mean"], 2.0);
    let endpoint = serde_json::json!({
        "address": "a:1", "calls": 1, "failed": 1, "first_call_ms": 0, "last_call_ms": 0
    });
    assert_eq!(json["per_endpoint"][0], endpoint);
    assert!(json["per_endpoint"][1]["first_call_ms"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_drains_under_load_costs_no_call() {
    let balancer = Balancer::start().await.unwrap();
    let mut backends = Vec::new();
    for _ in 0..3 {
        let config = backend::Config {
            balancers: vec![balancer.address()],
            mean: Duration::from_millis(5),
            ..backend::Config::new("greeter")
        };
        backends.push(Backend::start(config).await.unwrap());
    }
    balancer.set("greeter", backends.iter().map(Backend::address));
    let fleet = Fleet { balancer, backends };
    let run = timeout(SOON, Run::start(Config { duration: None, ..fleet.config() })).await.unwrap().unwrap();
    reach(&run, 100).await;
    let drained_at_ms = run.progress().elapsed.as_millis() as u64;
    timeout(SOON, fleet.backends[0].drain()).await.unwrap();
    reach(&run, run.progress().calls + 100).await;
    run.stop();
    let summary = timeout(SOON, run.finished()).await.unwrap();
    assert_eq!(summary.failed, 0, "{summary:?}");
    let drained = summary.per_endpoint.iter().find(|endpoint| endpoint.address == fleet.backends[0].address()).unwrap();
    assert!(drained.last_call_ms < Some(drained_at_ms + 250), "drained at {drained_at_ms}: {drained:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_killed_under_load_costs_the_calls_in_flight_on_it_at_most() {
    let fleet = Fleet::start(3, Duration::from_millis(5)).await;
    let run = timeout(SOON, Run::start(Config { duration: None, ..fleet.config() })).await.unwrap().unwrap();
    reach(&run, 100).await;
    let in_flight = u64::from(fleet.backends[0].in_flight());
    fleet.backends[0].kill();
    reach(&run, run.progress().calls + 200).await;
    run.stop();
    let summary = timeout(SOON, run.finished()).await.unwrap();
    // A call may arrive between the count and the kill.
    assert!(summary.failed <= in_flight + 2, "{in_flight} in flight: {summary:?}");
}
