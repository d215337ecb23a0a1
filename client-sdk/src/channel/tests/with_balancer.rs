//! A channel that follows a scripted balancer.

use std::time::Instant;

use lookaside_proto::v1;

use super::*;
use crate::{
    ListSource, Mode,
    testing::{Balancer, endpoint},
};

const SOON: Duration = Duration::from_secs(5);

async fn connected(balancer: &Balancer) -> (Channel, EchoClient<Channel>) {
    let target = format!("lookaside://{}/echo", balancer.address());
    let channel = Channel::connect(&target).await.unwrap();
    (channel.clone(), EchoClient::new(channel))
}

fn list(endpoints: Vec<v1::Endpoint>) -> v1::List {
    v1::List {
        service: "echo".into(),
        complete: true,
        mode: v1::ListMode::Normal.into(),
        endpoints,
        ..Default::default()
    }
}

fn addresses(channel: &Channel) -> Vec<(String, u32)> {
    let mut all: Vec<_> = channel.snapshot().endpoints.into_iter().map(|e| (e.address, e.weight)).collect();
    all.sort();
    all
}

#[tokio::test]
async fn the_first_list_serves_and_is_acknowledged() {
    let (balancer, backend) = (Balancer::start().await.unwrap(), Backend::start().await);
    let version = balancer.set("echo", [&backend.address]);
    let (channel, mut client) = connected(&balancer).await;
    let reply = client.unary(says(b"x")).await.unwrap();
    assert_eq!(picked(&reply).unwrap().address.to_string(), backend.address);
    let snapshot = channel.snapshot();
    assert_eq!((snapshot.source, snapshot.mode, snapshot.complete), (ListSource::Balancer, Mode::Normal, true));
    assert!(balancer.wait_for(|seen| seen.acked("echo") == Some(version), SOON).await);
}

#[tokio::test]
async fn outcomes_are_reported_by_class() {
    let (balancer, backend) = (Balancer::start().await.unwrap(), Backend::start().await);
    balancer.set_report_period(Duration::from_millis(100));
    balancer.set("echo", [&backend.address]);
    let (_channel, mut client) = connected(&balancer).await;
    for id in ["", "", "5", "8", "13", "4"] {
        let _ = client.unary(asks(id)).await;
    }
    let told = |seen: &crate::testing::Seen| {
        let sum = |f: fn(&v1::EndpointOutcomes) -> u64| seen.outcomes("echo").map(f).sum::<u64>();
        [sum(|o| o.ok), sum(|o| o.caller), sum(|o| o.overload), sum(|o| o.endpoint), sum(|o| o.deadline)]
            == [2, 1, 1, 1, 1]
    };
    assert!(balancer.wait_for(told, SOON).await, "{:?}", balancer.outcomes("echo"));
}

#[tokio::test]
async fn an_endpoint_of_three_times_the_capacity_gets_three_times_the_calls() {
    let balancer = Balancer::start().await.unwrap();
    let (small, large) = (Backend::start().await, Backend::start().await);
    let of = |backend: &Backend, capacity_milli| v1::Endpoint { capacity_milli, ..endpoint(&backend.address, 100) };
    balancer.set_list(list(vec![of(&small, 500), of(&large, 1_500)]));
    let (channel, mut client) = connected(&balancer).await;
    ready(&channel).await;
    for _ in 0..400 {
        client.unary(says(b"x")).await.unwrap();
    }
    let calls = [&small, &large].map(|backend| backend.counts.calls.load(SeqCst));
    assert!((90..=110).contains(&calls[0]) && calls[0] + calls[1] == 400, "{calls:?}");
}

#[tokio::test]
async fn an_endpoint_named_with_weight_0_gets_no_further_call() {
    let balancer = Balancer::start().await.unwrap();
    let (staying, leaving) = (Backend::start().await, Backend::start().await);
    balancer.set("echo", [&staying.address, &leaving.address]);
    let (channel, mut client) = connected(&balancer).await;
    ready(&channel).await;
    let streams = (0..2).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let request = StreamRequest { count: 20, size_bytes: 1, interval_ms: 10 };
            client.server_stream(request).await.unwrap().into_inner().collect::<Vec<_>>().await
        })
    });
    let streams: Vec<_> = streams.collect();
    eventually("streams run", || leaving.counts.calls.load(SeqCst) + staying.counts.calls.load(SeqCst) == 2).await;
    let changed = tokio::spawn({
        let channel = channel.clone();
        async move { channel.changed().await }
    });
    let version = balancer.set_list(list(vec![endpoint(&staying.address, 100), endpoint(&leaving.address, 0)]));
    assert!(balancer.wait_for(|seen| seen.acked("echo") == Some(version), SOON).await);
    let before = leaving.counts.calls.load(SeqCst);
    for _ in 0..50 {
        client.unary(says(b"x")).await.unwrap();
    }
    assert_eq!(leaving.counts.calls.load(SeqCst), before);
    for replies in streams {
        let replies = replies.await.unwrap();
        assert!(replies.len() == 20 && replies.iter().all(Result::is_ok), "{replies:?}");
    }
    assert!(tokio::time::timeout(SOON, changed).await.is_ok());
}

#[tokio::test]
async fn the_list_keeps_serving_while_the_balancer_is_away_and_is_resumed() {
    let (balancer, backend) = (Balancer::start().await.unwrap(), Backend::start().await);
    balancer.set("echo", [&backend.address]);
    let (channel, mut client) = connected(&balancer).await;
    client.unary(says(b"x")).await.unwrap();
    balancer.stop().await;
    eventually("noticed", || channel.snapshot().source == ListSource::LastGood).await;
    for _ in 0..20 {
        client.unary(says(b"x")).await.unwrap();
    }
    balancer.restart().await.unwrap();
    eventually("back", || channel.snapshot().source == ListSource::Balancer).await;
    client.unary(says(b"x")).await.unwrap();
}

#[tokio::test]
async fn an_incomplete_list_is_united_with_the_one_held() {
    let balancer = Balancer::start().await.unwrap();
    let (a, b) = (Backend::start().await, Backend::start().await);
    balancer.set("echo", [&a.address, &b.address]);
    let (channel, _client) = connected(&balancer).await;
    let incomplete = v1::List { complete: false, ..list(vec![endpoint(&a.address, 50)]) };
    let version = balancer.set_list(incomplete);
    assert!(balancer.wait_for(|seen| seen.acked("echo") == Some(version), SOON).await);
    let mut wanted = vec![(a.address.clone(), 50), (b.address.clone(), 100)];
    wanted.sort();
    assert_eq!(addresses(&channel), wanted);
    balancer.set_list(list(vec![endpoint(&a.address, 50)]));
    eventually("replaced", || addresses(&channel).len() == 1).await;
}

#[tokio::test]
async fn a_malformed_list_is_refused_and_the_one_before_stays() {
    let (balancer, backend) = (Balancer::start().await.unwrap(), Backend::start().await);
    balancer.set("echo", [&backend.address]);
    let (channel, mut client) = connected(&balancer).await;
    balancer.set_list(list(vec![endpoint("no address", 100)]));
    assert!(balancer.wait_for(|seen| seen.refused("echo").is_some_and(|w| w.contains("no address")), SOON).await);
    assert_eq!(addresses(&channel).len(), 1);
    client.unary(says(b"x")).await.unwrap();
}

#[tokio::test]
async fn an_empty_list_is_obeyed_and_explained() {
    let (balancer, backend) = (Balancer::start().await.unwrap(), Backend::start().await);
    balancer.set("echo", [&backend.address]);
    let target = Channel::builder("echo").balancers([balancer.address()]).client_id("web-7f9c");
    let channel = target.connect().await.unwrap();
    let mut drained = endpoint(&backend.address, 0);
    drained.reasons = vec![v1::Reason { code: v1::ReasonCode::AdminDrain.into(), ..Default::default() }];
    let version = balancer.set_list(v1::List { mode: v1::ListMode::Empty.into(), ..list(vec![drained]) });
    assert!(balancer.wait_for(|seen| seen.acked("echo") == Some(version), SOON).await);
    let asked = Instant::now();
    let status = EchoClient::new(channel).unary(says(b"x")).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(1), "it fails at once");
    assert_eq!((status.code(), why(&status).unwrap().what), (Code::Unavailable, What::NoEndpoint));
    for words in [
        "no endpoint for \"echo\"",
        "is EMPTY (1 ADMIN_DRAIN)",
        "fallback: none configured",
        "lookaside explain echo --client web-7f9c",
    ] {
        assert!(status.message().contains(words), "{words}: {status}");
    }
}

#[tokio::test]
async fn an_unknown_service_is_explained_by_the_balancers_words() {
    let balancer = Balancer::start().await.unwrap();
    balancer.service_error("echo", Code::NotFound, "SERVICE_UNKNOWN", "nobody registered it");
    let builder = Channel::builder("echo").balancers([balancer.address()]);
    let channel = builder.first_list_timeout(Duration::from_millis(300)).connect().await.unwrap();
    eventually("told", || channel.snapshot().trouble.contains("nobody registered it")).await;
    let status = EchoClient::new(channel.clone()).unary(says(b"x")).await.unwrap_err();
    assert!(status.message().contains("SERVICE_UNKNOWN: nobody registered it"), "{status}");
    // The subscription stays: a list that comes later serves.
    let backend = Backend::start().await;
    balancer.set("echo", [&backend.address]);
    eventually("a list", || !channel.snapshot().endpoints.is_empty()).await;
    EchoClient::new(channel).unary(says(b"x")).await.unwrap();
}

#[tokio::test]
async fn without_a_balancer_connect_says_so_and_a_fallback_serves_until_the_first_list() {
    let (fallback, backend) = (Backend::start().await, Backend::start().await);
    let balancer = Balancer::start().await.unwrap();
    balancer.set("echo", [&backend.address]);
    balancer.stop().await;
    let builder = || {
        let balancers = [format!("http://{}", balancer.address())];
        Channel::builder("echo").balancers(balancers).first_list_timeout(Duration::from_millis(200))
    };
    let error = builder().connect().await.unwrap_err();
    assert!(matches!(error, Error::NoBalancer { .. }) && error.to_string().contains("refused"), "{error}");

    let for_ever = builder().first_list_timeout(Duration::MAX).connect();
    assert!(tokio::time::timeout(Duration::from_millis(50), for_ever).await.is_err(), "waits, and does not panic");

    let channel = builder().fallback([&fallback.address]).connect().await.unwrap();
    let mut client = EchoClient::new(channel.clone());
    let reply = client.unary(says(b"x")).await.unwrap();
    assert_eq!(picked(&reply).unwrap().address.to_string(), fallback.address);
    assert_eq!(channel.snapshot().source, ListSource::Fallback);
    balancer.restart().await.unwrap();
    eventually("a list", || channel.snapshot().source == ListSource::Balancer).await;
    let reply = client.unary(says(b"x")).await.unwrap();
    assert_eq!(picked(&reply).unwrap().address.to_string(), backend.address);
}

#[tokio::test]
async fn a_redirect_is_followed_and_calls_go_on() {
    let (first, second) = (Balancer::start().await.unwrap(), Balancer::start().await.unwrap());
    let (a, b) = (Backend::start().await, Backend::start().await);
    first.set("echo", [&a.address]);
    second.set("echo", [&a.address, &b.address]);
    let (channel, mut client) = connected(&first).await;
    first.redirect([second.address()], &["echo"]);
    eventually("at the second", || addresses(&channel).len() == 2).await;
    client.unary(says(b"x")).await.unwrap();
    assert_eq!(channel.snapshot().balancer, Some(second.address()));
}

#[tokio::test]
async fn a_lost_endpoint_is_suspected_at_once() {
    let (balancer, raw, backend) =
        (Balancer::start().await.unwrap(), Raw::start(Manner::Close).await, Backend::start().await);
    balancer.set_report_period(Duration::from_secs(60));
    balancer.set("echo", [&raw.address, &backend.address]);
    let (channel, mut client) = connected(&balancer).await;
    ready(&channel).await;
    let address = raw.address.clone();
    let hint = format!("try: lookaside explain echo --endpoint {address}");
    for _ in 0..10 {
        if let Err(status) = client.unary(says(b"x")).await {
            assert!(status.message().contains(&hint), "{status}");
        }
    }
    let suspected = |seen: &crate::testing::Seen| {
        seen.outcomes("echo").any(|o| o.address == address && o.suspect && o.connect_failed > 0 && !o.detail.is_empty())
    };
    assert!(balancer.wait_for(suspected, SOON).await);
}

#[tokio::test]
async fn a_newcomer_gets_its_first_call_at_once() {
    let balancer = Balancer::start().await.unwrap();
    let old = [Backend::start().await, Backend::start().await, Backend::start().await];
    let mut endpoints: Vec<v1::Endpoint> = old.iter().map(|b| endpoint(&b.address, 10_000)).collect();
    balancer.set_list(list(endpoints.clone()));
    let (channel, mut client) = connected(&balancer).await;
    ready(&channel).await;
    let newcomer = Backend::start().await;
    endpoints.push(endpoint(&newcomer.address, 1));
    balancer.set_list(list(endpoints));
    eventually("listed", || channel.snapshot().endpoints.len() == 4).await;
    ready(&channel).await;
    let reply = client.unary(says(b"x")).await.unwrap();
    assert_eq!(picked(&reply).unwrap().address.to_string(), newcomer.address);
}

#[tokio::test]
async fn a_lower_tier_serves_only_while_the_better_one_is_gone() {
    let balancer = Balancer::start().await.unwrap();
    let (best, spare) = (Backend::start().await, Backend::start().await);
    let tier = |address: &str, priority| v1::Endpoint { priority, ..endpoint(address, 100) };
    balancer.set_list(list(vec![tier(&best.address, 0), tier(&spare.address, 1)]));
    let (channel, mut client) = connected(&balancer).await;
    for _ in 0..20 {
        client.unary(says(b"x")).await.unwrap();
    }
    assert_eq!(spare.counts.connections.load(SeqCst), 0);
    best.shut_down();
    eventually("gone", || channel.snapshot().endpoints[0].state == EndpointState::Failed).await;
    let reply = client.unary(says(b"x")).await.unwrap();
    assert_eq!(picked(&reply).unwrap().address.to_string(), spare.address);
}

#[tokio::test]
async fn turns_cost_a_stopped_endpoint_two_calls_as_well() {
    let balancer = Balancer::start().await.unwrap();
    let raw = Raw::start(Manner::Hang).await;
    let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
    let mut endpoints: Vec<v1::Endpoint> = backends.iter().map(|b| endpoint(&b.address, 100)).collect();
    endpoints.push(endpoint(&raw.address, 100));
    let kind = Some(v1::policy::Kind::RoundRobin(v1::policy::RoundRobin {}));
    balancer.set_list(v1::List { policy: Some(v1::Policy { kind }), ..list(endpoints) });
    let (channel, client) = connected(&balancer).await;
    ready(&channel).await;
    let calls = (0..400).map(|n| {
        let mut client = client.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(2 * n)).await;
            let mut request = Request::new(EchoRequest { answer_delay_ms: 5, ..Default::default() });
            request.set_timeout(Duration::from_millis(300));
            client.unary(request).await
        }
    });
    let failed = futures_util::future::join_all(calls).await.iter().filter(|r| r.is_err()).count();
    assert!((1..=2).contains(&failed), "{failed}");
    let silent = |seen: &crate::testing::Seen| seen.outcomes("echo").any(|o| o.suspect && o.address == raw.address);
    assert!(balancer.wait_for(silent, SOON).await);
}

#[tokio::test]
async fn an_endpoint_put_aside_is_suspected_at_once() {
    let balancer = Balancer::start().await.unwrap();
    balancer.set_report_period(Duration::from_secs(60));
    let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
    balancer.set("echo", backends.iter().map(|b| &b.address));
    let (channel, mut client) = connected(&balancer).await;
    ready(&channel).await;
    for _ in 0..60 {
        let _ = client.unary(asks("13")).await;
    }
    let told = |seen: &crate::testing::Seen| {
        seen.outcomes("echo").any(|o| o.suspect && o.detail.contains("fail one after the other"))
    };
    assert!(balancer.wait_for(told, SOON).await);
}

#[tokio::test]
async fn a_first_failure_is_told_at_once_and_the_next_ones_five_times_a_second() {
    let (balancer, backend) = (Balancer::start().await.unwrap(), Backend::start().await);
    balancer.set_report_period(Duration::from_secs(60));
    balancer.set("echo", [&backend.address]);
    let (channel, mut client) = connected(&balancer).await;
    ready(&channel).await;
    let failed = |seen: &crate::testing::Seen| seen.outcomes("echo").map(|o| o.endpoint).sum::<u64>();
    let began = Instant::now();
    client.unary(asks("13")).await.unwrap_err();
    assert!(balancer.wait_for(|seen| failed(seen) == 1, SOON).await);
    let mut calls = 1;
    while began.elapsed() < Duration::from_millis(900) {
        client.unary(asks("13")).await.unwrap_err();
        calls += 1;
    }
    let reports = balancer.seen().outcomes.len();
    let most = began.elapsed().as_millis() / 200 + 2;
    assert!((3..=most).contains(&(reports as u128)), "{reports} reports");
    assert!(balancer.wait_for(|seen| failed(seen) == calls, SOON).await);
}

#[tokio::test]
async fn during_overload_what_is_refused_is_held_back_and_nothing_is_repeated() {
    let (balancer, backend) = (Balancer::start().await.unwrap(), Backend::start().await);
    balancer.set("echo", [&backend.address]);
    let target = Target::Balancers { balancers: vec![balancer.address()], service: None };
    let policy = crate::MethodPolicy::new().idempotent().attempts(3);
    let (channel, mut client) = client(Builder::new("echo".into()).target(target).method("", policy));
    ready(&channel).await;
    client.unary(says(b"x")).await.unwrap();
    let throttle = &channel.inner.pool.advice.throttle;
    balancer.set_overload(true);
    eventually("told", || throttle.is_on()).await;
    backend.answers(tonic::Status::unavailable("busy"));
    let status = client.unary(says(b"x")).await.unwrap_err();
    assert_eq!(why(&status).and_then(|why| why.not_retried), Some(crate::NotRetried::Overload));
    let mut held_back = 0;
    for _ in 0..200 {
        let status = client.unary(asks("8")).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        if why(&status).unwrap().what == What::Throttled {
            assert!(status.message().contains("explain echo"), "{status}");
            held_back += 1;
        }
    }
    assert!((150..200).contains(&held_back), "{held_back} of 200");
    assert_eq!(backend.seen().len(), 202 - held_back);
    balancer.set_overload(false);
    eventually("told", || !throttle.is_on()).await;
    client.unary(says(b"x")).await.unwrap();
    balancer.set_overload(true);
    eventually("told again", || throttle.is_on()).await;
    balancer.stop().await;
    eventually("nobody says so any more", || !throttle.is_on()).await;
}

#[tokio::test]
async fn a_resumed_stream_says_what_it_holds() {
    let (balancer, backend) = (Balancer::start().await.unwrap(), Backend::start().await);
    balancer.set("echo", [&backend.address]);
    let (channel, _client) = connected(&balancer).await;
    let held = channel.snapshot();
    balancer.drop_streams();
    let resumed = |seen: &crate::testing::Seen| {
        seen.hellos.iter().any(|hello| {
            hello.client_id == held.client_id
                && hello.held.iter().any(|h| h.digest == held.digest && h.endpoints == [backend.address.clone()])
        })
    };
    assert!(balancer.wait_for(resumed, SOON).await);
}
