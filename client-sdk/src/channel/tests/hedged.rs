//! Hedges: who gets a call that is slow elsewhere, who wins, and what becomes of the others.

use super::*;
use crate::MethodPolicy;

const DELAY: Duration = Duration::from_millis(60);
/// What an endpoint takes that is to lose against a hedge: longer than any test is patient.
const SLOW_MS: u64 = 60_000;

fn hedging() -> MethodPolicy {
    MethodPolicy::new().idempotent().hedge_after(DELAY)
}

async fn channel(backends: &[Backend], policy: MethodPolicy, budget: u32) -> (Channel, EchoClient<Channel>) {
    let addresses: Vec<&str> = backends.iter().map(|b| b.address.as_str()).collect();
    let (channel, client) = client(fixed(&addresses).method("", policy).hedge_budget_percent(budget));
    ready(&channel).await;
    (channel, client)
}

fn total(backends: &[Backend]) -> usize {
    backends.iter().map(|b| b.seen().len()).sum()
}

#[tokio::test]
async fn a_slow_call_is_answered_by_another_endpoint_and_cancelled_where_it_was() {
    let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
    backends[0].slow_down(SLOW_MS);
    let (channel, mut client) = channel(&backends, hedging(), 100).await;
    let mut hedged = 0;
    for _ in 0..12 {
        let reply = client.unary(says(b"hello")).await.unwrap();
        let picked = picked(&reply).unwrap();
        assert_ne!(picked.address.to_string(), backends[0].address);
        assert_eq!(reply.get_ref().payload, b"hello");
        hedged += usize::from(picked.attempts > 1);
    }
    assert!(hedged > 0);
    assert_eq!((backends[0].seen().len(), total(&backends)), (hedged, 12 + hedged));
    idle(&channel).await;
    eventually("cancelled at the slow one", || backends[0].counts.open.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn a_call_that_is_answered_in_time_is_sent_once() {
    let backends = [Backend::start().await, Backend::start().await];
    let (_channel, mut client) = channel(&backends, hedging().hedge_after_long(), 100).await;
    for _ in 0..50 {
        client.unary(says(b"x")).await.unwrap();
    }
    assert_eq!(total(&backends), 50);
}

impl MethodPolicy {
    /// Longer than a call takes on a machine that is busy with other things.
    fn hedge_after_long(self) -> Self {
        self.hedge_after(Duration::from_secs(5))
    }
}

#[tokio::test]
async fn hedges_are_never_more_than_their_share_of_the_calls() {
    let backends = [Backend::start().await, Backend::start().await];
    backends.iter().for_each(|b| b.slow_down(20));
    let (_channel, client) = channel(&backends, hedging().hedge_after(Duration::from_millis(2)), 2).await;
    for round in 1..=4 {
        let calls = (0..50).map(|_| {
            let mut client = client.clone();
            async move { client.unary(says(b"x")).await.map(drop) }
        });
        assert!(futures_util::future::join_all(calls).await.iter().all(Result::is_ok));
        assert!(total(&backends) <= round * 51, "{} of {}", total(&backends), round * 51);
    }
    assert!(total(&backends) > 200, "there were some");
}

#[tokio::test]
async fn a_call_is_never_hedged_to_where_it_is_already() {
    let backends = [Backend::start().await, Backend::start().await];
    backends.iter().for_each(|b| b.slow_down(400));
    let policy = hedging().hedge_after(Duration::from_millis(20)).hedges(4);
    let (_channel, mut client) = channel(&backends, policy, 100).await;
    for calls in 1..=4 {
        client.unary(says(b"x")).await.unwrap();
        assert!(backends.iter().all(|b| b.seen().len() <= calls));
    }
    let (_channel, mut client) = self::client(fixed(&[&backends[0].address]).method("", hedging()));
    let before = backends[0].seen().len();
    client.unary(says(b"x")).await.unwrap();
    assert_eq!(backends[0].seen().len(), before + 1);
}

#[tokio::test]
async fn a_hedge_that_fails_leaves_the_others_to_answer_and_one_that_is_told_to_stop_stops() {
    let backends = [Backend::start().await, Backend::start().await];
    backends.iter().for_each(|b| b.slow_down(300));
    let (_channel, mut client) = channel(&backends, hedging().hedges(4), 100).await;
    for _ in 0..3 {
        let before = total(&backends);
        let call = tokio::spawn({
            let mut client = client.clone();
            async move { client.unary(says(b"x")).await }
        });
        eventually("begun", || total(&backends) > before).await;
        // Whoever is asked next fails.
        backends.iter().for_each(|b| b.answers(tonic::Status::unavailable("not now")));
        let reply = call.await.unwrap().unwrap();
        assert_eq!(picked(&reply).unwrap().attempts, 1, "the first one answered");
        assert_eq!(total(&backends), before + 2);
        backends.iter().for_each(|b| b.counts.answers.lock().unwrap().clear());
    }
    // An end that is not among those to retry is the answer.
    let first = client.unary(asks("3")).await.unwrap_err();
    assert_eq!(first.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_hedge_that_nobody_processed_costs_nothing() {
    for codes in [&[Code::ResourceExhausted][..], &[Code::Unavailable]] {
        let (raw, backend) = (Raw::start(Manner::Refuse).await, Backend::start().await);
        backend.slow_down(300);
        let (channel, client) = client(
            fixed(&[&raw.address, &backend.address])
                .method("", hedging().retry_on(codes.iter().copied()))
                .hedge_budget_percent(100),
        );
        ready(&channel).await;
        let calls = (0..20).map(|_| {
            let mut client = client.clone();
            async move { client.unary(says(b"x")).await }
        });
        let replies = futures_util::future::join_all(calls).await;
        let failed: Vec<_> = replies.iter().filter_map(|r| r.as_ref().err()).collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert!(raw.calls.load(SeqCst) >= 10, "of those at least that did not begin there");
        // Ten hedges would have cost ten tokens, and twenty calls earn two.
        let pool = &channel.inner.pool;
        assert!((0..4).all(|_| pool.advice.retries.failed(pool.now_us())), "the budget is full");
    }
}

#[tokio::test]
async fn an_execution_that_finds_no_place_leaves_the_others_to_answer() {
    let (raw, backend) = (Raw::start(Manner::GoAwayLate).await, Backend::start().await);
    backend.slow_down(servers::LATE.as_millis() as u64 * 2);
    let builder = fixed(&[&raw.address, &backend.address]).method("", hedging()).hedge_budget_percent(100);
    let (channel, mut client) = client(builder.endpoint_calls_max(1).waiting_calls_max(0));
    let mut moved = 0;
    for _ in 0..6 {
        ready(&channel).await;
        let before = raw.calls.load(SeqCst);
        let reply = client.unary(says(b"x")).await;
        let reply = reply.unwrap_or_else(|status| panic!("{status}"));
        // It began at the one that left, and its hedge has the only place at the other.
        moved += usize::from(picked(&reply).unwrap().attempts == 2 && raw.calls.load(SeqCst) > before);
    }
    assert!(moved > 0);
}

#[tokio::test]
async fn a_retry_has_its_own_time_before_it_is_hedged() {
    let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
    let policy = hedging().attempts(3).hedge_after(Duration::from_secs(2));
    let (_channel, mut client) = channel(&backends, policy, 100).await;
    backends.iter().for_each(|b| b.slow_down(50));
    for calls in 0..3 {
        let asked = retried::pushback("100");
        backends.iter().for_each(|b| b.answers(asked.clone()));
        let call = client.unary(says(b"x"));
        let cleared = async {
            eventually("begun", || total(&backends) > 2 * calls).await;
            backends.iter().for_each(|b| b.counts.answers.lock().unwrap().clear());
        };
        let (reply, ()) = tokio::join!(call, cleared);
        assert_eq!(picked(&reply.unwrap()).unwrap().attempts, 2);
        assert_eq!(total(&backends), 2 * (calls + 1));
    }
}

#[tokio::test]
async fn what_a_hedge_was_told_of_another_attempt_holds_when_the_first_one_fails() {
    let backends = [Backend::start().await, Backend::start().await];
    backends.iter().for_each(|b| b.slow_down(300));
    let (_channel, client) = channel(&backends, hedging().attempts(5), 100).await;
    let call = tokio::spawn({
        let mut client = client.clone();
        async move { client.unary(asks("14")).await }
    });
    eventually("begun", || total(&backends) == 1).await;
    backends.iter().for_each(|b| b.answers(retried::pushback("-1")));
    let status = call.await.unwrap().unwrap_err();
    assert_eq!(why(&status).unwrap().not_retried, Some(crate::NotRetried::Pushback), "{status}");
    assert_eq!(total(&backends), 2);
}

#[tokio::test]
async fn a_request_stream_is_hedged_once_it_is_complete_and_not_before() {
    let (raw, backend) = (Raw::start(Manner::Hang).await, Backend::start().await);
    let (channel, client) =
        client(fixed(&[&raw.address, &backend.address]).method("", hedging()).hedge_budget_percent(100));
    ready(&channel).await;
    let open = backend.counts.clone();
    let mut hedged = 0;
    for _ in 0..6 {
        let before = (open.calls.load(SeqCst), raw.calls.load(SeqCst));
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        sender.send(says(b"0")).await.unwrap();
        let mut client = client.clone();
        let call =
            tokio::spawn(
                async move { client.client_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)).await },
            );
        eventually("begun", || (open.calls.load(SeqCst), raw.calls.load(SeqCst)) != before).await;
        tokio::time::sleep(DELAY * 3).await;
        assert_eq!(open.calls.load(SeqCst) - before.0 + raw.calls.load(SeqCst) - before.1, 1, "not complete yet");
        sender.send(says(b"1")).await.unwrap();
        drop(sender);
        let reply = call.await.unwrap().unwrap();
        assert_eq!(reply.get_ref().index, 2, "whole, wherever it went");
        hedged += usize::from(picked(&reply).unwrap().attempts > 1);
    }
    assert!(hedged > 0);
    idle(&channel).await;
}

#[tokio::test]
async fn the_deadline_ends_all_that_is_under_way() {
    let backends = [Backend::start().await, Backend::start().await];
    backends.iter().for_each(|b| b.slow_down(SLOW_MS));
    let (channel, mut client) = channel(&backends, hedging(), 100).await;
    let mut request = Request::new(says(b"x"));
    request.set_timeout(DELAY * 5);
    let status = client.unary(request).await.unwrap_err();
    assert_eq!((status.code(), why(&status).unwrap().attempts), (Code::DeadlineExceeded, 2), "{status}");
    idle(&channel).await;
    for backend in &backends {
        assert_eq!(backend.seen().len(), 1);
        eventually("cancelled", || backend.counts.open.load(SeqCst) == 0).await;
    }
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn those_that_lose_are_counted_as_cancelled_and_blame_nobody() {
    let balancer = crate::testing::Balancer::start().await.unwrap();
    let backends = [Backend::start().await, Backend::start().await];
    backends[0].slow_down(SLOW_MS);
    balancer.set("echo", backends.iter().map(|b| &b.address));
    let builder = Channel::builder("echo").balancers([balancer.address()]);
    let builder = builder.method("", hedging()).hedge_budget_percent(100);
    let channel = builder.connect().await.unwrap();
    ready(&channel).await;
    let mut client = EchoClient::new(channel);
    for _ in 0..6 {
        client.unary(says(b"x")).await.unwrap();
    }
    let lost = backends[0].seen().len() as u64;
    let told = |seen: &crate::testing::Seen| {
        let of = |address: &str| {
            let address = address.to_owned();
            seen.outcomes("echo").filter(move |o| o.address == address)
        };
        let (slow, quick) = (&backends[0].address, &backends[1].address);
        of(slow).map(|o| o.cancelled).sum::<u64>() == lost
            && of(slow).all(|o| o.ok + o.endpoint + o.deadline + o.overload == 0)
            && of(quick).map(|o| o.ok).sum::<u64>() == 6
    };
    assert!(lost > 0 && balancer.wait_for(told, Duration::from_secs(5)).await, "{:?}", balancer.outcomes("echo"));
}
