//! What responses tell of the load at their endpoints, and what calls make of it.

use super::*;

/// Two backends, the first with so many calls of somebody else; and a client of both.
async fn one_is_loaded(calls: usize) -> ([Backend; 2], Channel, EchoClient<Channel>) {
    let backends = [Backend::reporting().await, Backend::reporting().await];
    let (_somebody, other) = client(fixed(&[&backends[0].address]));
    for _ in 0..calls {
        let mut other = other.clone();
        tokio::spawn(async move { other.unary(asks("wait")).await });
    }
    eventually("loaded", || backends[0].counts.open.load(SeqCst) == calls).await;
    let (channel, client) = client(fixed(&[&backends[0].address, &backends[1].address]));
    ready(&channel).await;
    // So long that no answer takes eight times as long by chance, and disproves what its endpoint says.
    backends.iter().for_each(|backend| backend.slow_down(10));
    (backends, channel, client)
}

#[tokio::test]
async fn calls_go_where_responses_told_of_less_load() {
    let (backends, _channel, mut client) = one_is_loaded(20).await;
    let loaded = || backends[0].counts.calls.load(SeqCst);
    // If the first word is that of the loaded one, the other is found after a while.
    for _ in 0..100 {
        client.unary(says(b"x")).await.unwrap();
    }
    let before = loaded();
    for _ in 0..100 {
        client.unary(says(b"x")).await.unwrap();
    }
    let calls = loaded() - before;
    // This client has no call in flight when it makes one: by its own calls the two would look alike.
    // What was told is old after some milliseconds, and somebody has to look again.
    assert!(calls <= 25, "{calls} of 100 to the loaded one");
}

#[tokio::test]
async fn what_a_failed_call_tells_brings_its_endpoint_no_further_one() {
    let (backends, _channel, mut client) = one_is_loaded(4).await;
    // The idle one fails every call.
    for _ in 0..100 {
        backends[1].answers(tonic::Status::internal("broken"));
    }
    let mut failed = 0;
    for _ in 0..100 {
        failed += usize::from(client.unary(says(b"x")).await.is_err());
    }
    assert!(failed <= 25, "{failed} of 100 failed");
}
