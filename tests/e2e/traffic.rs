//! Where calls go while everything is well: spread evenly, soon on a new endpoint, off a drained one, and none is lost
//! when a backend is told to stop.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lookaside_proto::{
    demo::{EchoRequest, StreamRequest, echo_client::EchoClient},
    v1::EndpointState,
};
use lookaside_sdk::{Channel, EndpointState as Link, HashKey};
use lookaside_tests::{
    Backends, Balancer, Client, SERVICE, Signal, address_of, alone, cli, now_unix_ms, wait_for, wait_until,
};

/// How soon a change must have reached the calls.
const CHANGE_MS_MAX: u64 = 250;

#[tokio::test]
async fn all_of_six_equal_endpoints_get_their_share() {
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let _backends = Backends::offered(&balancer, 6, &["--mean", "5ms"]).await;
    let summary = Client::start(&balancer, &["--clients", "3", "--rate", "600", "--for", "10s"]).finish().await;
    summary.expect_no_failure();
    assert_eq!(summary.used(), 6, "{:#}", summary.0);
    println!("max over mean: {}", summary.max_over_mean());
    assert!(summary.max_over_mean() <= 1.10, "{:#}", summary.0);
}

#[tokio::test]
async fn the_demonstration_in_one_process_uses_every_endpoint() {
    let _alone = alone().await;
    let output = cli(&["dev", "--for", "6s", "-o", "json"]).await;
    let summary = lookaside_tests::Summary(output.json());
    summary.expect_no_failure();
    assert_eq!(summary.used(), 6, "{:#}", summary.0);
}

#[tokio::test]
async fn a_new_endpoint_is_called_at_once_and_comes_to_its_share_slowly() {
    const SLOW_START: Duration = Duration::from_secs(16);
    const WINDOW: Duration = Duration::from_millis(1500);
    let _alone = alone().await;
    let slow_start = SLOW_START.as_secs();
    let config = format!("defaults: {{ lease: 3s }}\nservices: [{{ name: {SERVICE}, slow_start: {slow_start}s }}]");
    let balancer = Balancer::configured(&config).await;
    let quick = ["--mean", "1ms", "--dist", "fixed", "--slots", "64"];
    let mut backends = Backends::offered(&balancer, 6, &quick).await;
    balancer.wait_until_settled().await;
    let client = Client::start(&balancer, &["--clients", "3", "--rate", "2000", "--for", "60s"]);
    balancer.wait_for_load().await;

    let seventh = Backends::offered(&balancer, 1, &quick).await;
    let began = Instant::now();
    let new = seventh.addresses[0].clone();
    backends.addresses.push(new.clone());
    for quarters in [1, 2, 4] {
        let moment = began + SLOW_START * quarters / 4;
        // At the end of slow start the share stays; before it grows, so look as long before as after.
        wait_until(if quarters == 4 { moment } else { moment - WINDOW }).await;
        let before = executed(&backends.addresses).await;
        wait_until(moment + WINDOW).await;
        let after = executed(&backends.addresses).await;
        let calls: Vec<f64> = before.iter().zip(&after).map(|(before, after)| (after - before) as f64).collect();
        let fair = calls.iter().sum::<f64>() / 7.0;
        let share = calls[6] / fair;
        let due = f64::from(quarters) / 4.0;
        println!("share at {due} of slow start: {share:.3}");
        assert!((share / due - 1.0).abs() <= 0.25, "at {due} of slow start it has {share} of its share: {calls:?}");
    }
    let summary = client.stop().await;
    summary.expect_no_failure();
    let first_call = summary.first_call_unix_ms(&new).expect("a call on the new endpoint");
    let added = decided_unix_ms(&balancer, &new, "ADDED").await;
    println!("first call {} ms after it was added", i128::from(first_call) - i128::from(added));
    assert!(first_call <= added + CHANGE_MS_MAX, "added at {added}, first called at {first_call}");
}

async fn executed(addresses: &[String]) -> Vec<i64> {
    let all = join_all(addresses.iter().map(|address| Backends::executions(address))).await;
    all.into_iter().map(|told| i64::try_from(told.executions.len()).unwrap()).collect()
}

async fn decided_unix_ms(balancer: &Balancer, address: &str, kind: &str) -> u64 {
    let decisions = balancer.json(&["watch", SERVICE, "--last", "1000"]).await;
    let decisions = decisions["items"].as_array().unwrap();
    let found = decisions.iter().find(|decision| decision["address"] == address && decision["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} of {address} in {decisions:#?}"))["atUnixMs"].as_u64().unwrap()
}

#[tokio::test]
async fn a_drained_endpoint_is_left_at_once_and_no_call_fails() {
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 6, &["--mean", "20ms"]).await;
    let client = Client::start(&balancer, &["--for", "30s"]);
    balancer.wait_for_load().await;

    let ordered = now_unix_ms();
    let drained = &backends.addresses[2];
    balancer.cli(&["drain", drained, "--wait", "--reason", "test"]).await.expect(0);
    balancer.wait_for_state(drained, EndpointState::Draining, Duration::from_secs(1)).await;
    at_rest(&balancer, std::slice::from_ref(drained)).await;
    let summary = client.stop().await;
    summary.expect_no_failure();
    let last_call = summary.last_call_unix_ms(drained).expect("calls before the drain");
    println!("last call {} ms after the order", i128::from(last_call) - i128::from(ordered));
    assert!(last_call <= ordered + CHANGE_MS_MAX, "ordered at {ordered}, last called at {last_call}");

    balancer.cli(&["undrain", drained, "--wait"]).await.expect(0);
    let summary = Client::start(&balancer, &["--for", "2s"]).finish().await;
    summary.expect_no_failure();
    assert!(summary.calls_on(drained) > 0, "{:#}", summary.0);
}

#[tokio::test]
async fn a_drained_locality_is_left_at_once_and_no_call_fails() {
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let leaving = Backends::offered(&balancer, 3, &["--mean", "20ms", "--locality", "eu/a/r1"]).await;
    let staying = Backends::offered(&balancer, 3, &["--mean", "20ms", "--locality", "eu/b"]).await;
    let client = Client::start(&balancer, &["--for", "30s"]);
    balancer.wait_for_load().await;

    let ordered = now_unix_ms();
    balancer.cli(&["drain", "--locality", "eu/a", "--wait"]).await.expect(0);
    balancer.wait_for_endpoints(3, EndpointState::Draining).await;
    at_rest(&balancer, &leaving.addresses).await;
    let summary = client.stop().await;
    summary.expect_no_failure();
    for address in &leaving.addresses {
        let last_call = summary.last_call_unix_ms(address).expect("calls before the drain");
        println!("last call {} ms after the order", i128::from(last_call) - i128::from(ordered));
        assert!(last_call <= ordered + CHANGE_MS_MAX, "ordered at {ordered}, last called at {last_call}");
    }
    for address in &staying.addresses {
        assert!(summary.last_call_unix_ms(address) > Some(ordered + CHANGE_MS_MAX), "{:#}", summary.0);
    }
}

/// Waits until these endpoints have said that they get no calls any more, while others do.
async fn at_rest(balancer: &Balancer, addresses: &[String]) {
    wait_for("drained endpoints without calls", Duration::from_secs(20), async || {
        let endpoints = balancer.endpoints().await;
        let busy = |drained: bool| {
            endpoints.iter().any(|endpoint| {
                addresses.iter().any(|address| address == address_of(endpoint)) == drained
                    && (endpoint.calls_per_second > 0.0 || endpoint.in_flight > 0)
            })
        };
        (!busy(true) && busy(false)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_backend_told_to_stop_ends_its_calls_and_streams_first() {
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let _others = Backends::offered(&balancer, 2, &["--mean", "20ms"]).await;
    let mut leaving = Backends::offered(&balancer, 1, &["--mean", "20ms"]).await;
    let client = Client::start(&balancer, &["--for", "30s"]);
    let channel = Channel::builder(SERVICE).balancers([&balancer.client]).connect().await.unwrap();
    balancer.wait_for_load().await;

    let mut client_of_streams = EchoClient::new(channel);
    let mut streams = Vec::new();
    let mut on_leaving = 0;
    while on_leaving < 3 {
        assert!(streams.len() < 100, "no stream came to the backend that is to leave");
        let wanted = StreamRequest { count: 60, size_bytes: 100, interval_ms: 50 };
        let response = client_of_streams.server_stream(wanted).await.unwrap();
        let address = &lookaside_sdk::picked(&response).unwrap().address;
        on_leaving += usize::from(**address == *leaving.addresses[0]);
        streams.push(response.into_inner());
    }
    let slow = EchoRequest { answer_delay_ms: 2_000, ..EchoRequest::default() };
    let slow_calls = join_all((0..12).map(|_| {
        let mut client = client_of_streams.clone();
        let slow = slow.clone();
        async move { client.unary(slow).await.map(drop) }
    }));
    let reading = join_all(streams.into_iter().map(|mut stream| async move {
        let mut messages = 0;
        while stream.message().await?.is_some() {
            messages += 1;
        }
        Ok::<_, tonic::Status>(messages)
    }));
    leaving.process.signal(Signal::SIGTERM);
    let (messages, calls, output) = tokio::join!(reading, slow_calls, leaving.process.ended(Duration::from_secs(40)));

    assert_eq!(output.code, Some(0), "{output:?}");
    for messages in messages {
        assert_eq!(messages.expect("a stream to its end"), 60);
    }
    calls.into_iter().for_each(|call| call.expect("an answer"));
    client.stop().await.expect_no_failure();
}

/// Calls of these users, by header and by extension; where each was served.
async fn homes(channel: &Channel, users: u32) -> Vec<String> {
    let mut client = EchoClient::new(channel.clone());
    let mut homes = Vec::new();
    for user in 0..users {
        let name = format!("user-{user}");
        let mut request = tonic::Request::new(EchoRequest::default());
        if user % 2 == 0 {
            request.metadata_mut().insert("x-user", name.parse().unwrap());
        } else {
            request.metadata_mut().insert("x-user", "of no account beside a key".parse().unwrap());
            request.extensions_mut().insert(HashKey::of(&name));
        }
        let answer = client.unary(request).await.unwrap();
        homes.push(lookaside_sdk::picked(&answer).unwrap().address.to_string());
    }
    homes
}

#[tokio::test]
async fn calls_of_one_key_stay_together_and_a_killed_endpoint_moves_its_own_keys_alone() {
    const USERS: u32 = 300;
    let _alone = alone().await;
    let config = format!(
        "services: [{{ name: {SERVICE}, policy: ring_hash, ring_hash: {{ header: x-user }}, subset_size: 2, \
         slow_start: 0s, lease: 3s, health: {{ interval: 500ms, deadline: 400ms }} }}]"
    );
    let balancer = Balancer::configured(&config).await;
    let quick = ["--mean", "1ms", "--slots", "64"];
    let stay = Backends::offered(&balancer, 4, &quick).await;
    let goes = Backends::offered(&balancer, 1, &[&quick[..], &["--instance", "goes"]].concat()).await;
    let all_ready = async |channel: &Channel, count: usize| {
        wait_for("connections to all", Duration::from_secs(20), async || {
            let endpoints = channel.snapshot().endpoints;
            let ready = endpoints.iter().filter(|e| e.state == Link::Ready).count();
            (ready == count).then_some(())
        })
        .await;
    };
    let channels =
        [1, 2].map(|n| Channel::builder(SERVICE).balancers([&balancer.client]).client_id(format!("client-{n}")));
    let [one, two] = channels.map(|channel| channel.lazy().unwrap());
    for channel in [&one, &two] {
        all_ready(channel, 5).await;
    }

    let before = homes(&one, USERS).await;
    assert_eq!(homes(&one, USERS).await, before, "the same key, the same endpoint");
    assert_eq!(homes(&two, USERS).await, before, "whichever client asks");
    let killed = goes.addresses[0].clone();
    let on = |homes: &[String], address: &str| homes.iter().filter(|home| *home == address).count();
    for address in stay.addresses.iter().chain([&killed]) {
        let share = on(&before, address) as f64 / f64::from(USERS) * 5.0;
        assert!((0.5..1.6).contains(&share), "{address} has {share} of a fair share");
    }

    drop(goes);
    for channel in [&one, &two] {
        wait_for("the loss to be seen", Duration::from_secs(20), async || {
            let endpoints = channel.snapshot().endpoints;
            let lost = endpoints.iter().all(|e| e.address != killed || e.state != Link::Ready);
            lost.then_some(())
        })
        .await;
        let after = homes(channel, USERS).await;
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || *before == killed, "{before} -> {after}, and {killed} was killed");
        }
        assert_eq!(on(&after, &killed), 0);
    }

    // It comes back at another address, under its name.
    let back = Backends::offered(&balancer, 1, &[&quick[..], &["--instance", "goes"]].concat()).await;
    for channel in [&one, &two] {
        all_ready(channel, 5).await;
        let after = homes(channel, USERS).await;
        let expected: Vec<&String> =
            before.iter().map(|home| if *home == killed { &back.addresses[0] } else { home }).collect();
        assert_eq!(after.iter().collect::<Vec<_>>(), expected, "its keys return and no others move");
    }
}
