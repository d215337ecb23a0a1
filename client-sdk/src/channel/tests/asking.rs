//! Endpoints that are asked how loaded they are: when, by how many calls, and what becomes of a call that waits for the answer.

use std::task::Poll;

use super::*;

/// What a call takes: so long that asking pays on the slowest machine.
const CALL_MS: u64 = 200;

async fn calls(client: &EchoClient<Channel>, count: usize) {
    let calls = (0..count).map(|_| {
        let mut client = client.clone();
        async move { client.unary(says(b"x")).await }
    });
    for reply in futures_util::future::join_all(calls).await {
        reply.unwrap();
    }
}

/// A client of two such backends that has found out whether asking pays.
async fn of_two(probed: bool) -> ([Backend; 2], Channel, EchoClient<Channel>) {
    let backends = match probed {
        true => [Backend::probed().await, Backend::probed().await],
        false => [Backend::reporting().await, Backend::reporting().await],
    };
    backends.iter().for_each(|backend| backend.slow_down(CALL_MS));
    let (channel, client) = client(fixed(&[&backends[0].address, &backends[1].address]));
    ready(&channel).await;
    for _ in 0..50 {
        calls(&client, 4).await;
        let endpoints = channel.inner.pool.endpoints();
        let is_mute = endpoints.iter().all(|e| e.probed.is_mute(channel.inner.pool.now_us()));
        if channel.inner.pool.asks() || is_mute {
            break;
        }
    }
    (backends, channel, client)
}

fn probes(backends: &[Backend]) -> usize {
    backends.iter().map(|backend| backend.counts.probes.load(SeqCst)).sum()
}

#[tokio::test]
async fn a_client_that_has_heard_nothing_fresh_asks_and_one_of_idle_endpoints_does_not() {
    let (backends, channel, client) = of_two(true).await;
    assert!(channel.inner.pool.asks());
    let before = probes(&backends);
    for _ in 0..4 {
        calls(&client, 20).await;
    }
    let asked = probes(&backends) - before;
    // Both of two for each call at most, and one in 64 on the side.
    assert!((8..=164).contains(&asked), "{asked} probes for 80 calls");
    // Long enough for the mean of what is told to be forgotten.
    for _ in 0..50 {
        backends.iter().for_each(|backend| backend.slow_down(0));
        calls(&client, 1).await;
    }
    let before = probes(&backends);
    calls(&client, 1).await;
    assert!(probes(&backends) - before <= 1, "an idle endpoint is taken as drawn");
}

/// So much later nothing that was told counts any more.
async fn forgets() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn calls_go_where_an_answer_tells_of_less_load() {
    let (backends, channel, client_of_two) = of_two(true).await;
    for (backend, count) in backends.iter().zip([30, 3]) {
        let (_somebody, other) = client(fixed(&[&backend.address]));
        for _ in 0..count {
            let mut other = other.clone();
            tokio::spawn(async move { other.unary(asks("wait")).await });
        }
        eventually("loaded", || backend.counts.open.load(SeqCst) == count).await;
    }
    // From here on it knows that there is load, but not where.
    calls(&client_of_two, 6).await;
    let loaded = || backends[0].counts.calls.load(SeqCst);
    let before = (loaded(), probes(&backends));
    for _ in 0..8 {
        forgets().await;
        calls(&client_of_two, 1).await;
    }
    let (calls, asked) = (loaded() - before.0, probes(&backends) - before.1);
    assert!(calls <= 2 && asked >= 12, "{calls} of 8 to the loaded one, {asked} probes");
    assert!(channel.inner.pool.asks());
}

#[tokio::test]
async fn one_that_sheds_probes_does_not_keep_the_other_from_being_asked() {
    let (backends, channel, client_of_two) = of_two(true).await;
    let (_somebody, other) = client(fixed(&[&backends[0].address]));
    for _ in 0..30 {
        let mut other = other.clone();
        tokio::spawn(async move { other.unary(asks("wait")).await });
    }
    eventually("loaded", || backends[0].counts.open.load(SeqCst) == 30).await;
    calls(&client_of_two, 6).await;
    let loaded = || backends[0].counts.calls.load(SeqCst);
    let before = (loaded(), probes(&backends[..1]));
    let pool = &channel.inner.pool;
    for _ in 0..8 {
        forgets().await;
        let sheds = pool.endpoints().into_iter().find(|endpoint| *endpoint.address == *backends[1].address).unwrap();
        sheds.probed.learn(crate::probe::Answer::Busy, pool.now_us());
        calls(&client_of_two, 1).await;
    }
    let (calls, asked) = (loaded() - before.0, probes(&backends[..1]) - before.1);
    assert!(calls <= 2 && asked >= 6, "{calls} of 8 to the loaded one, {asked} probes");
}

#[tokio::test]
async fn backends_that_do_not_answer_probes_work_as_before() {
    let (backends, channel, client) = of_two(false).await;
    calls(&client, 40).await;
    assert!(!channel.inner.pool.asks());
    let served = backends.iter().map(|backend| backend.counts.calls.load(SeqCst));
    assert!(served.clone().all(|calls| calls >= 15), "{:?}", served.collect::<Vec<_>>());
}

#[tokio::test]
async fn backends_that_shed_probes_are_asked_again_soon() {
    let (backends, channel, client) = of_two(true).await;
    let pool = &channel.inner.pool;
    backends.iter().for_each(|backend| backend.counts.sheds.store(true, SeqCst));
    let before = probes(&backends);
    for _ in 0..4 {
        calls(&client, 20).await;
    }
    let shed = probes(&backends) - before;
    assert!((1..=40).contains(&shed), "{shed}: left alone while they are busy");
    assert!(pool.endpoints().iter().all(|endpoint| !endpoint.probed.is_mute(pool.now_us())));
    backends.iter().for_each(|backend| backend.counts.sheds.store(false, SeqCst));
    let before = probes(&backends);
    for _ in 0..8 {
        forgets().await;
        calls(&client, 1).await;
    }
    assert!(pool.asks() && probes(&backends) > before, "none was written off for a minute");
}

#[tokio::test]
async fn a_call_that_is_dropped_while_it_asks_leaves_nothing_behind() {
    let (backends, channel, client) = of_two(true).await;
    let pool = &channel.inner.pool;
    backends.iter().for_each(|backend| backend.counts.is_deaf.store(true, SeqCst));
    let in_flight = || pool.endpoints().iter().map(|e| e.peer.in_flight()).sum::<u32>();
    let mut waiting: Vec<_> = (0..30)
        .map(|_| {
            let mut client = client.clone();
            Box::pin(async move { client.unary(says(b"x")).await })
        })
        .collect();
    for call in &mut waiting {
        assert!(matches!(futures_util::poll!(call), Poll::Pending));
    }
    assert!(in_flight() < 30, "some wait for an answer, and count nowhere");
    drop(waiting);
    assert_eq!(in_flight(), 0);
    assert!(!pool.room.is_awaited());
    backends.iter().for_each(|backend| backend.counts.is_deaf.store(false, SeqCst));
    // Those asked before are deaf for good; a call is none the slower for it.
    calls(&client, 10).await;
    idle(&channel).await;
}

#[tokio::test]
async fn a_call_gives_up_asking_in_time_and_its_deadline_goes_on() {
    let (backends, _channel, client) = of_two(true).await;
    backends.iter().for_each(|backend| backend.counts.is_deaf.store(true, SeqCst));
    calls(&client, 20).await;
    let mut request = Request::new(asks("wait"));
    request.set_timeout(Duration::from_millis(50));
    let status = client.clone().unary(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
}
