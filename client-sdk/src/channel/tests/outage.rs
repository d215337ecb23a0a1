//! A channel whose balancers come, go, hang and send it elsewhere, or are not there when it starts.

use std::{net::SocketAddr, path::PathBuf};

use super::*;
use crate::{ListSource, resolve, testing::Balancer};

/// Longer than the longest silence that is put up with.
const LATER: Duration = Duration::from_secs(30);

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("lookaside-channel-{:016x}", rand::random::<u64>())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn balancers(count: usize, backend: &Backend) -> Vec<Balancer> {
    let mut all = Vec::new();
    for _ in 0..count {
        let balancer = Balancer::start().await.unwrap();
        balancer.set("echo", [&backend.address]);
        all.push(balancer);
    }
    all
}

fn ask(balancers: &[Balancer]) -> Builder {
    Channel::builder("echo").balancers(balancers.iter().map(Balancer::address))
}

fn in_use(channel: &Channel) -> String {
    channel.snapshot().balancer.unwrap_or_default()
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LATER, wait).await.is_ok(), "never came true: {what}");
}

/// Takes connections and says nothing, as a stopped process does.
async fn black_hole() -> (tokio::net::TcpListener, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn clients_keep_to_one_balancer_each_and_spread_over_all() {
    let backend = Backend::start().await;
    let all = balancers(3, &backend).await;
    let mut channels = Vec::new();
    for _ in 0..24 {
        channels.push(ask(&all).connect().await.unwrap());
    }
    for balancer in &all {
        let seen = balancer.seen();
        assert!(seen.pick_streams >= 1 && seen.hellos.len() == seen.pick_streams, "{}", seen.pick_streams);
    }
    assert_eq!(all.iter().map(|balancer| balancer.seen().pick_streams).sum::<usize>(), 24);
}

#[tokio::test]
async fn a_balancer_that_is_gone_is_left_for_another_and_no_call_fails() {
    let backend = Backend::start().await;
    let all = balancers(2, &backend).await;
    let channel = ask(&all).connect().await.unwrap();
    let mut client = EchoClient::new(channel.clone());
    for _ in 0..4 {
        let used = in_use(&channel);
        let gone = all.iter().find(|balancer| balancer.address() == used).unwrap();
        gone.stop().await;
        let next = all.iter().find(|balancer| balancer.address() != used).unwrap();
        wait_until("at the other one", || in_use(&channel) == next.address()).await;
        client.unary(says(b"x")).await.unwrap();
        gone.restart().await.unwrap();
    }
}

#[tokio::test]
async fn a_start_does_not_wait_for_a_balancer_that_takes_connections_and_says_nothing() {
    let backend = Backend::start().await;
    let all = balancers(1, &backend).await;
    let (_hole, silent) = black_hole().await;
    let (_pit, as_silent) = black_hole().await;
    for _ in 0..8 {
        let addresses = [silent.clone(), all[0].address(), as_silent.clone()];
        let channel = Channel::builder("echo").balancers(addresses).connect().await.unwrap();
        wait_until("a list", || channel.snapshot().source == ListSource::Balancer).await;
    }
}

#[tokio::test]
async fn a_client_without_a_list_does_not_wait_for_a_balancer_that_answers_without_a_word() {
    let backend = Backend::start().await;
    let all = balancers(2, &backend).await;
    all[0].forget("echo");
    for _ in 0..4 {
        let channel = ask(&all).lazy().unwrap();
        let reply = EchoClient::new(channel.clone()).unary(says(b"x")).await.unwrap();
        assert_eq!(picked(&reply).unwrap().address.to_string(), backend.address);
        assert_eq!(in_use(&channel), all[1].address());
    }
}

#[tokio::test]
async fn a_client_without_a_list_asks_another_and_keeps_the_turn_it_was_given() {
    let backend = Backend::start().await;
    let all = balancers(2, &backend).await;
    all.iter().for_each(|balancer| balancer.forget("echo"));
    let channel = ask(&all).first_list_timeout(LATER).lazy().unwrap();
    let asked = |balancer: &Balancer| balancer.seen().hellos.len();
    wait_until("both asked", || all.iter().all(|balancer| asked(balancer) > 0)).await;
    // Another second, after which it used to be somewhere else again.
    let at = tokio::time::Instant::now() + Duration::from_millis(1_600);
    wait_until("still silent", || tokio::time::Instant::now() >= at).await;
    all[0].set("echo", [&backend.address]);
    let reply = EchoClient::new(channel.clone()).unary(says(b"x")).await.unwrap();
    assert_eq!(picked(&reply).unwrap().address.to_string(), backend.address);
    assert_eq!(in_use(&channel), all[0].address());
    assert_eq!(all.iter().map(asked).collect::<Vec<_>>(), [1, 1], "and neither was asked again");
    all[0].forget("echo");
    let (_hole, stopped) = black_hole().await;
    let builder = Channel::builder("echo").balancers([all[0].address(), stopped]);
    let channel = builder.first_list_timeout(Duration::from_secs(1)).connect().await;
    assert!(channel.is_ok(), "who answers without a word is a balancer all the same: {channel:?}");
}

#[tokio::test]
async fn a_balancer_that_falls_silent_is_left_for_another() {
    let backend = Backend::start().await;
    let all = balancers(2, &backend).await;
    let channel = ask(&all).connect().await.unwrap();
    let used = in_use(&channel);
    let silent = all.iter().find(|balancer| balancer.address() == used).unwrap();
    let began = std::time::Instant::now();
    silent.set_tick_period(None);
    wait_until("elsewhere", || in_use(&channel) != used && !in_use(&channel).is_empty()).await;
    assert!(began.elapsed() > Duration::from_secs(5), "a heartbeat or two may be late");
    EchoClient::new(channel).unary(says(b"x")).await.unwrap();
}

#[tokio::test]
async fn after_the_balancers_of_a_redirect_fail_the_configured_ones_are_asked_again() {
    let backend = Backend::start().await;
    let (first, second) = (balancers(1, &backend).await.remove(0), balancers(1, &backend).await.remove(0));
    let channel = Channel::builder("echo").balancers([first.address()]).connect().await.unwrap();
    first.redirect([second.address()], &["another service"]);
    first.tick();
    first.redirect([second.address()], &["echo"]);
    wait_until("redirected", || in_use(&channel) == second.address()).await;
    second.stop().await;
    wait_until("back", || in_use(&channel) == first.address()).await;
    // Two that send each other everybody cost a few streams and then a pause, not a storm.
    second.restart().await.unwrap();
    let storm = async {
        for _ in 0..100 {
            first.redirect([second.address()], &[]);
            second.redirect([first.address()], &[]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let before = first.seen().hellos.len() + second.seen().hellos.len();
    storm.await;
    let streams = first.seen().hellos.len() + second.seen().hellos.len() - before;
    assert!(streams <= 30, "{streams}");
    EchoClient::new(channel).unary(says(b"x")).await.unwrap();
}

#[tokio::test]
async fn balancers_behind_a_name_are_all_candidates_and_new_ones_are_found() {
    let backend = Backend::start().await;
    let all = balancers(3, &backend).await;
    let addresses: Vec<SocketAddr> = all.iter().map(|balancer| balancer.address().parse().unwrap()).collect();
    let name = "balancers.outage.test:7400";
    resolve::say(name, Some(Ok(addresses[..2].to_vec())));
    let channel = Channel::connect(&format!("lookaside://{name}/echo")).await.unwrap();
    all[2].stop().await;
    resolve::say(name, Some(Ok(Vec::new())));
    let used = in_use(&channel);
    let at = all.iter().position(|balancer| balancer.address() == used).unwrap();
    all[at].stop().await;
    wait_until("at the other one of the name", || in_use(&channel) == all[1 - at].address()).await;
    all[2].restart().await.unwrap();
    resolve::say(name, Some(Ok(addresses[2..].to_vec())));
    all[1 - at].stop().await;
    wait_until("at the new one", || in_use(&channel) == all[2].address()).await;
}

#[tokio::test]
async fn an_application_that_starts_during_an_outage_serves_from_its_cache_and_then_follows() {
    let folder = Folder::new();
    let (backend, other) = (Backend::start().await, Backend::start().await);
    let all = balancers(2, &backend).await;
    let start = || ask(&all).cache_dir(&folder.0).client_id("app").connect();
    let before = start().await.unwrap();
    wait_until("kept", || std::fs::read_dir(&folder.0).is_ok_and(|files| files.flatten().any(is_whole))).await;
    drop(before);
    for balancer in &all {
        balancer.stop().await;
    }
    let began = std::time::Instant::now();
    let channel = start().await.unwrap();
    let mut client = EchoClient::new(channel.clone());
    client.unary(says(b"x")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let snapshot = channel.snapshot();
    assert_eq!((snapshot.source, &*snapshot.cache_trouble), (ListSource::Cache, ""));
    assert!(snapshot.list_age.unwrap() < Duration::from_secs(60) && snapshot.trouble.contains("refused"));
    // The first list unites with it while its balancer still settles, as with one of another epoch.
    let settling = vec![crate::testing::endpoint(&other.address, 100)];
    for balancer in &all {
        let list = lookaside_proto::v1::List {
            service: "echo".into(),
            complete: false,
            endpoints: settling.clone(),
            ..Default::default()
        };
        balancer.set_list(list);
        balancer.restart().await.unwrap();
    }
    wait_until("united", || channel.snapshot().endpoints.len() == 2).await;
    assert_eq!(channel.snapshot().source, ListSource::Balancer);
    let said = all.iter().flat_map(|balancer| balancer.seen().hellos).filter(|hello| !hello.held.is_empty());
    assert!(said.count() >= 1, "the balancer is told what is held");
    for balancer in &all {
        balancer.set("echo", [&other.address]);
    }
    wait_until("replaced", || channel.snapshot().endpoints.len() == 1).await;
    client.unary(says(b"x")).await.unwrap();
}

fn is_whole(entry: std::fs::DirEntry) -> bool {
    entry.path().extension().is_some_and(|extension| extension == "list")
}

#[tokio::test]
async fn a_black_hole_does_not_keep_calls_from_the_cache() {
    let folder = Folder::new();
    let backend = Backend::start().await;
    let all = balancers(1, &backend).await;
    let (_hole, silent) = black_hole().await;
    let addresses = [silent, all[0].address()];
    let start = || Channel::builder("echo").balancers(&addresses).cache_dir(&folder.0);
    let before = start().connect().await.unwrap();
    wait_until("kept", || std::fs::read_dir(&folder.0).is_ok_and(|files| files.flatten().any(is_whole))).await;
    drop(before);
    all[0].stop().await;
    let channel = start().lazy().unwrap();
    let mut request = Request::new(says(b"x"));
    request.set_timeout(Duration::from_secs(1));
    EchoClient::new(channel.clone()).unary(request).await.unwrap();
    assert_eq!(channel.snapshot().source, ListSource::Cache);
}

#[tokio::test]
async fn with_a_balancer_that_answers_the_cache_is_not_called_upon() {
    let folder = Folder::new();
    let (old, new) = (Backend::start().await, Backend::start().await);
    let all = balancers(1, &old).await;
    let start = || ask(&all).cache_dir(&folder.0).connect();
    let before = start().await.unwrap();
    wait_until("kept", || std::fs::read_dir(&folder.0).is_ok_and(|files| files.flatten().any(is_whole))).await;
    drop(before);
    all[0].set("echo", [&new.address]);
    let channel = start().await.unwrap();
    for _ in 0..10 {
        EchoClient::new(channel.clone()).unary(says(b"x")).await.unwrap();
    }
    assert_eq!((old.counts.calls.load(SeqCst), new.counts.calls.load(SeqCst)), (0, 10));
    // One without a cache does not find it.
    all[0].stop().await;
    assert!(matches!(ask(&all).connect().await, Err(Error::NoBalancer { .. })));
}

#[tokio::test]
async fn a_fallback_behind_a_name_serves_where_no_balancer_does_and_follows_its_name() {
    let (old, new) = (Backend::start().await, Backend::start().await);
    let at = |backend: &Backend| backend.address.parse::<SocketAddr>().unwrap();
    let name = "fallback.outage.test:50051";
    resolve::say(name, Some(Err(())));
    let nobody = balancers(1, &old).await;
    nobody[0].stop().await;
    let builder = ask(&nobody).fallback([name]).first_list_timeout(Duration::from_millis(100));
    let channel = builder.connect().await.unwrap();
    resolve::say(name, Some(Ok(vec![at(&old)])));
    wait_until("found", || channel.snapshot().endpoints.len() == 1).await;
    let mut client = EchoClient::new(channel.clone());
    client.unary(says(b"x")).await.unwrap();
    assert_eq!(channel.snapshot().source, ListSource::Fallback);
    resolve::say(name, Some(Ok(vec![at(&new)])));
    wait_until("asked again", || channel.snapshot().endpoints[0].address == new.address).await;
    client.unary(says(b"x")).await.unwrap();
    nobody[0].restart().await.unwrap();
    wait_until("a list", || channel.snapshot().source == ListSource::Balancer).await;
}

#[tokio::test]
async fn when_nobody_on_the_last_list_can_be_reached_the_fallback_stands_behind_it() {
    let (listed, spare) = (Backend::start().await, Backend::start().await);
    let all = balancers(1, &listed).await;
    let builder = ask(&all).fallback([&spare.address]).first_list_timeout(Duration::from_millis(100));
    let channel = builder.connect().await.unwrap();
    let mut client = EchoClient::new(channel.clone());
    client.unary(says(b"x")).await.unwrap();
    all[0].stop().await;
    wait_until("noticed", || channel.snapshot().balancer.is_none()).await;
    client.unary(says(b"x")).await.unwrap();
    assert_eq!(spare.counts.connections.load(SeqCst), 0, "the list serves");
    listed.shut_down();
    wait_until("served by the fallback", || channel.snapshot().endpoints.len() == 2).await;
    let reply = client.unary(says(b"x")).await.unwrap();
    assert_eq!(picked(&reply).unwrap().address.to_string(), spare.address);
    assert_eq!(channel.snapshot().source, ListSource::LastGood);
    all[0].restart().await.unwrap();
    wait_until("the balancer's list alone", || channel.snapshot().endpoints.len() == 1).await;
}
