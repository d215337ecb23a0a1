//! What is lost when something dies, hangs or lies: of backends, of the balancer, of its view of the world.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use lookaside_proto::{
    demo::{EchoRequest, echo_client::EchoClient},
    v1::{EndpointState, ListMode},
};
use lookaside_sdk::Channel;
use lookaside_tests::{
    Backends, Balancer, Client, Process, SERVICE, Signal, Summary, address_of, alone, hold_for, now_unix_ms, wait_for,
};

/// Calls that can be in flight on one of six backends at 5 ms and 600 calls/s: half a call on average, so that more than
/// these happen once in a million times; some more, since a machine that is busy with other things is slower.
const IN_FLIGHT_MAX: u64 = 8;

#[tokio::test]
async fn a_killed_backend_costs_at_most_the_calls_in_flight_on_it() {
    let _alone = alone().await;
    let balancer = Balancer::configured(&format!("services: [{{ name: {SERVICE}, slow_start: 0s }}]")).await;
    let _others = Backends::offered(&balancer, 5, &["--mean", "5ms"]).await;
    let mut costs = Vec::new();
    for _ in 0..5 {
        let mut victim = Backends::offered(&balancer, 1, &["--mean", "5ms"]).await;
        let address = victim.addresses[0].clone();
        let client = Client::start(&balancer, &["--for", "30s"]);
        balancer.wait_for_load().await;
        kill(&mut victim.process).await;
        balancer.wait_for_state(&address, EndpointState::Excluded, Duration::from_secs(1)).await;
        // Those that call an address which is gone would fail from now on.
        other_endpoints_serve(&balancer, Duration::from_secs(1)).await;
        let summary = client.stop().await;
        assert_eq!(summary.failed(), summary.failed_on(&address), "{:#}", summary.0);
        assert!(summary.failed() <= IN_FLIGHT_MAX, "{:#}", summary.0);
        costs.push(summary.failed());
    }
    println!("failed calls in five runs: {costs:?}");
    costs.sort_unstable();
    assert!(costs[2] <= 2, "calls failed in five runs: {costs:?}");
}

async fn other_endpoints_serve(balancer: &Balancer, duration: Duration) {
    hold_for("five endpoints offered", duration, async || {
        let endpoints = balancer.endpoints().await;
        endpoints.iter().filter(|endpoint| endpoint.state() == EndpointState::Eligible).count() == 5
    })
    .await;
}

#[tokio::test]
async fn a_hanging_backend_is_out_within_three_seconds_and_costs_two_calls_per_client() {
    let _alone = alone().await;
    let (balancer, _others, hanging) = with_a_hanging_backend("least_load").await;
    let address = &hanging.addresses[0];
    let list = balancer.json(&["pick", SERVICE]).await;
    let offered = list["items"].as_array().unwrap().iter().filter(|endpoint| endpoint["weight"] != 0);
    assert!(offered.clone().count() == 5 && offered.clone().all(|e| e["address"] != address.as_str()), "{list:#}");

    hanging.process.signal(Signal::SIGCONT);
    balancer.wait_for_state(address, EndpointState::Eligible, Duration::from_secs(20)).await;
    let summary = Client::start(&balancer, &["--for", "3s"]).finish().await;
    summary.expect_no_failure();
    assert!(summary.calls_on(address) > 0, "{:#}", summary.0);
}

#[tokio::test]
async fn a_hanging_backend_costs_no_more_when_clients_take_turns() {
    let _alone = alone().await;
    for policy in ["round_robin", "weighted_round_robin"] {
        with_a_hanging_backend(policy).await;
    }
}

/// Six backends under load, one of which is stopped. Panics when it costs too much or is in lists for too long.
async fn with_a_hanging_backend(policy: &str) -> (Balancer, Backends, Backends) {
    const CLIENTS: u64 = 3;
    let balancer = Balancer::configured(&format!("defaults: {{ policy: {policy} }}")).await;
    let others = Backends::offered(&balancer, 5, &["--mean", "5ms"]).await;
    let hanging = Backends::offered(&balancer, 1, &["--mean", "5ms"]).await;
    let address = &hanging.addresses[0];
    let client = Client::start(&balancer, &["--clients", &CLIENTS.to_string(), "--for", "40s"]);
    balancer.wait_for_load().await;

    hanging.process.signal(Signal::SIGSTOP);
    balancer.wait_for_state(address, EndpointState::Excluded, Duration::from_secs(3)).await;
    other_endpoints_serve(&balancer, Duration::from_secs(2)).await;
    let summary = client.stop().await;
    println!("{policy}: {} failed calls", summary.failed());
    let cost_max = IN_FLIGHT_MAX + 2 * CLIENTS;
    assert!(summary.failed() <= cost_max && summary.failed() == summary.failed_on(address), "{:#}", summary.0);
    (balancer, others, hanging)
}

#[tokio::test]
async fn a_call_that_was_executed_but_not_answered_is_not_executed_again() {
    const CALLS: usize = 24;
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let survivors = Backends::offered(&balancer, 2, &["--mean", "1ms"]).await;
    let mut victim = Backends::offered(&balancer, 1, &["--mean", "1ms"]).await;
    let all: Vec<&String> = survivors.addresses.iter().chain(&victim.addresses).collect();
    let channel = Channel::builder(SERVICE).balancers([&balancer.client]).connect().await.unwrap();
    wait_for("connections to all", Duration::from_secs(5), async || {
        let ready = |e: &lookaside_sdk::EndpointSnapshot| e.state == lookaside_sdk::EndpointState::Ready;
        (channel.snapshot().endpoints.iter().filter(|e| ready(e)).count() == 3).then_some(())
    })
    .await;

    let calls = join_all((0..CALLS).map(|number| {
        let mut client = EchoClient::new(channel.clone());
        let request =
            EchoRequest { request_id: format!("call-{number}"), answer_delay_ms: 3_000, ..EchoRequest::default() };
        async move { (request.request_id.clone(), client.unary(request).await) }
    }));
    let death = async {
        let at_victim = wait_for("execution of every call", Duration::from_secs(2), async || {
            let told = join_all(all.iter().map(|address| Backends::executions(address))).await;
            let executed: usize = told.iter().map(|told| told.executions.len()).sum();
            (executed == CALLS).then(|| told[2].executions.keys().cloned().collect::<BTreeSet<_>>())
        })
        .await;
        kill(&mut victim.process).await;
        at_victim
    };
    let (answers, at_victim) = tokio::join!(calls, death);

    assert!(!at_victim.is_empty(), "no call came to the backend that was killed");
    for (id, answer) in answers {
        match answer {
            Ok(_) => assert!(!at_victim.contains(&id), "{id} was answered by somebody who had not executed it"),
            Err(status) => {
                assert!(at_victim.contains(&id), "{id} failed elsewhere: {status:?}");
                assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
                let why = lookaside_sdk::why(&status).expect("an error that says why");
                assert_eq!(why.endpoint.as_deref(), Some(victim.addresses[0].as_str()), "{status:?}");
            }
        }
    }
    for address in &survivors.addresses {
        let executions = Backends::executions(address).await.executions;
        assert!(executions.values().all(|count| *count == 1), "{executions:?}");
        assert!(
            executions.keys().all(|id| !at_victim.contains(id)),
            "executed twice: {at_victim:?} and {executions:?}"
        );
    }
}

#[tokio::test]
async fn a_balancer_that_is_killed_and_comes_back_costs_nothing_and_forgets_no_drain() {
    let _alone = alone().await;
    let mut balancer = Balancer::to_be_restarted("defaults: { lease: 15s }").await;
    let backends = Backends::offered(&balancer, 6, &["--mean", "5ms"]).await;
    let client = Client::start(&balancer, &["--for", "60s"]);
    balancer.wait_for_load().await;
    let drained = &backends.addresses[3];
    balancer.cli(&["drain", drained, "--wait"]).await.expect(0);
    let ordered = now_unix_ms();
    // It learns of the order as an answer, a tenth of a second later at most, and repeats it from then on.
    wait_for("a report of a backend that knows", Duration::from_secs(5), async || {
        let all = balancer.endpoints().await;
        let told = all.iter().find(|endpoint| address_of(endpoint) == drained).unwrap();
        (now_unix_ms() - told.report_ms_ago > ordered + 500).then_some(())
    })
    .await;

    kill(&mut balancer.process).await;
    load_goes_on(&backends).await;
    balancer.restart().await;
    balancer.wait_for_state(drained, EndpointState::Draining, Duration::from_secs(10)).await;
    balancer.wait_for_endpoints(5, EndpointState::Eligible).await;
    wait_for_clients(&balancer, 3).await;
    balancer.wait_for_load().await;
    balancer.wait_until_settled().await;
    let summary = client.stop().await;
    summary.expect_no_failure();
    assert_eq!(summary.used(), 6, "{:#}", summary.0);
    let last_call = summary.last_call_unix_ms(drained).unwrap();
    assert!(last_call <= ordered + 250, "drained at {ordered}, called at {last_call}");
}

#[tokio::test]
async fn a_backend_that_dies_while_the_balancer_is_away_costs_the_calls_in_flight() {
    let _alone = alone().await;
    let mut balancer = Balancer::to_be_restarted("defaults: { lease: 3s }").await;
    let others = Backends::offered(&balancer, 5, &["--mean", "5ms"]).await;
    let mut victim = Backends::offered(&balancer, 1, &["--mean", "5ms"]).await;
    let client = Client::start(&balancer, &["--for", "60s"]);
    balancer.wait_for_load().await;

    kill(&mut balancer.process).await;
    kill(&mut victim.process).await;
    load_goes_on(&others).await;
    balancer.restart().await;
    wait_for_clients(&balancer, 3).await;
    balancer.wait_for_endpoints(5, EndpointState::Eligible).await;
    balancer.wait_until_settled().await;
    let summary = client.stop().await;
    println!("{} failed calls", summary.failed());
    let address = &victim.addresses[0];
    assert!(summary.failed() <= IN_FLIGHT_MAX && summary.failed() == summary.failed_on(address), "{:#}", summary.0);
}

#[tokio::test]
async fn a_balancer_that_pauses_judges_nobody_by_its_own_absence() {
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 6, &["--mean", "5ms"]).await;
    let client = Client::start(&balancer, &["--for", "60s"]);
    balancer.wait_for_load().await;

    balancer.process.signal(Signal::SIGSTOP);
    // Longer than two report periods, so that every report is late.
    load_goes_on(&backends).await;
    load_goes_on(&backends).await;
    balancer.process.signal(Signal::SIGCONT);
    hold_for("six endpoints offered", Duration::from_secs(4), async || {
        balancer.service().await.is_some_and(|s| s.eligible == 6 && s.mode() == ListMode::Normal)
    })
    .await;
    wait_for_clients(&balancer, 3).await;
    client.stop().await.expect_no_failure();
}

#[tokio::test]
async fn one_of_two_balancers_told_to_stop_costs_nothing() {
    let _alone = alone().await;
    let (mut first, second) = (Balancer::start().await, Balancer::start().await);
    let _backends = Backends::offered(&first, 6, &["--mean", "5ms", "--balancer", &second.client]).await;
    second.wait_for_endpoints(6, EndpointState::Eligible).await;
    let client = Client::start(&first, &["--for", "60s", "--balancer", &second.client]);
    first.wait_for_load().await;

    first.process.signal(Signal::SIGTERM);
    let output = first.process.ended(Duration::from_secs(15)).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    wait_for_clients(&second, 3).await;
    second.wait_for_load().await;
    let summary = client.stop().await;
    summary.expect_no_failure();
    assert_eq!(summary.used(), 6, "{:#}", summary.0);
}

async fn kill(process: &mut Process) {
    process.signal(Signal::SIGKILL);
    process.ended(Duration::from_secs(5)).await;
}

/// Waits for so much load on these as takes a few seconds.
async fn load_goes_on(backends: &Backends) {
    let before = calls_executed(backends).await;
    wait_for("load", Duration::from_secs(10), async || {
        (calls_executed(backends).await >= before + 1_500).then_some(())
    })
    .await;
}

async fn wait_for_clients(balancer: &Balancer, count: usize) {
    wait_for("every client back", Duration::from_secs(20), async || {
        let output = balancer.cli(&["clients", SERVICE, "-o", "json"]).await;
        // A balancer that has just started may know nobody.
        let clients = (output.code == Some(0)).then(|| output.json())?;
        let clients = clients["items"].as_array().unwrap();
        (clients.len() == count && clients.iter().all(|client| client["state"] == "SYNCED")).then_some(())
    })
    .await;
}

async fn calls_executed(backends: &Backends) -> usize {
    let told = join_all(backends.addresses.iter().map(|address| Backends::executions(address))).await;
    told.iter().map(|told| told.executions.len()).sum()
}

#[tokio::test]
async fn when_all_checks_fail_the_last_good_list_stays_and_says_so() {
    let _alone = alone().await;
    let balancer = Balancer::configured("defaults: { health: { interval: 1s, deadline: 250ms } }").await;
    let backends = Backends::offered(&balancer, 6, &["--mean", "5ms"]).await;
    let drained = &backends.addresses[1];
    balancer.cli(&["drain", drained, "--wait"]).await.expect(0);
    let client = Client::start(&balancer, &["--for", "60s"]);
    balancer.wait_for_load().await;

    backends.process.signal(Signal::SIGUSR1);
    let service = wait_for("LAST_GOOD", Duration::from_secs(10), async || {
        balancer.service().await.filter(|service| service.mode() == ListMode::LastGood)
    })
    .await;
    assert_eq!((service.eligible, service.status.as_str()), (0, "LAST_GOOD"), "{service:?}");
    says_its_mode(&balancer, "LAST_GOOD", drained).await;
    // Beyond the two failed checks in a row that would take an endpoint out by itself.
    hold_for("the last good list", Duration::from_secs(4), async || {
        let mode = balancer.service().await.map(|service| service.mode());
        mode == Some(ListMode::LastGood) && offered(&balancer).await == 5
    })
    .await;
    backends.process.signal(Signal::SIGUSR1);
    wait_for("NORMAL", Duration::from_secs(10), async || {
        balancer.service().await.filter(|service| service.mode() == ListMode::Normal && service.eligible == 5)
    })
    .await;
    let summary = client.stop().await;
    summary.expect_no_failure();
    assert_eq!(summary.calls_on(drained), 0, "{:#}", summary.0);
}

#[tokio::test]
async fn when_clients_fail_as_well_it_is_panic_and_the_drained_stay_out() {
    let _alone = alone().await;
    let balancer = Balancer::configured("defaults: { health: { interval: 1s, deadline: 250ms } }").await;
    let healthy = Backends::offered(&balancer, 3, &["--mean", "5ms"]).await;
    let hanging = Backends::offered(&balancer, 4, &["--mean", "5ms"]).await;
    let drained = &healthy.addresses[0];
    balancer.cli(&["drain", drained, "--wait"]).await.expect(0);
    let client = Client::start(&balancer, &["--for", "60s"]);
    balancer.wait_for_load().await;

    hanging.process.signal(Signal::SIGSTOP);
    wait_for("PANIC", Duration::from_secs(10), async || {
        let mode = balancer.service().await.map(|service| service.mode());
        (mode == Some(ListMode::Panic) && offered(&balancer).await == 6).then_some(())
    })
    .await;
    says_its_mode(&balancer, "PANIC", drained).await;
    let restored = balancer.endpoints().await;
    for address in &hanging.addresses {
        let endpoint = restored.iter().find(|endpoint| address_of(endpoint) == address).unwrap();
        assert_eq!(endpoint.state(), EndpointState::Restored, "{endpoint:?}");
    }
    hanging.process.signal(Signal::SIGCONT);
    wait_for("NORMAL", Duration::from_secs(20), async || {
        balancer.service().await.filter(|service| service.mode() == ListMode::Normal && service.eligible == 6)
    })
    .await;
    let summary: Summary = client.stop().await;
    assert_eq!(summary.calls_on(drained), 0, "{:#}", summary.0);
}

/// Endpoints that lists offer, good ones and those restored against the evidence.
async fn offered(balancer: &Balancer) -> usize {
    let is_offered = |state| matches!(state, EndpointState::Eligible | EndpointState::Restored);
    balancer.endpoints().await.iter().filter(|endpoint| is_offered(endpoint.state())).count()
}

/// Panics unless status, metrics, explain and the list itself all tell the mode, and none offers the drained endpoint.
async fn says_its_mode(balancer: &Balancer, mode: &str, drained: &str) {
    let status = balancer.json(&["status"]).await;
    assert_eq!(
        (&status["items"][0]["mode"], &status["items"][0]["status"]),
        (&mode.into(), &mode.into()),
        "{status:#}"
    );
    let screen = balancer.cli(&["status"]).await.expect(0).stdout;
    assert!(screen.contains(mode), "{screen}");
    let (service, label) = (format!("service=\"{SERVICE}\""), format!("mode=\"{mode}\""));
    assert_eq!(balancer.metric("lookaside_service_list_mode", &[&service, &label]).await, 1.0);

    let list = balancer.json(&["pick", SERVICE]).await;
    assert_eq!(list["mode"], mode, "{list:#}");
    assert!(!list["note"].as_str().unwrap().is_empty(), "{list:#}");
    for endpoint in list["items"].as_array().unwrap() {
        assert_eq!(endpoint["weight"] == 0, endpoint["address"] == drained, "{list:#}");
    }
    let explained = balancer.json(&["explain", SERVICE]).await;
    assert_eq!((&explained["mode"], &explained["note"]), (&mode.into(), &list["note"]), "{explained:#}");
    let explained = balancer.json(&["explain", SERVICE, "--endpoint", drained]).await;
    assert!(explained["result"].as_str().unwrap().starts_with("NOT IN LIST"), "{explained:#}");
}
