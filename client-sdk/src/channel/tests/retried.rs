//! Retries: what is sent again, when, with which headers, and why not.

use tonic::{Status, metadata::MetadataMap};

use super::*;
use crate::{MethodPolicy, NotRetried};

const UNARY: &str = "/lookaside.demo.v1.Echo/Unary";

fn unavailable() -> Status {
    Status::unavailable("not now")
}

/// Asks for a pause, or for none at all.
pub(super) fn pushback(text: &'static str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-retry-pushback-ms", text.parse().unwrap());
    Status::with_metadata(Code::Unavailable, "not now", metadata)
}

fn quick() -> MethodPolicy {
    MethodPolicy::new().idempotent().attempts(3).backoff(Duration::from_millis(1), Duration::from_millis(5))
}

fn with(policy: MethodPolicy, backends: &[&Backend]) -> Builder {
    fixed(&backends.iter().map(|b| b.address.as_str()).collect::<Vec<_>>()).method(UNARY, policy)
}

/// Enough calls that go well for dozens of retries.
fn generous(builder: Builder) -> Builder {
    builder.retry_budget_percent(100)
}

async fn earn(client: &mut EchoClient<Channel>) {
    for _ in 0..60 {
        client.unary(says(b"x")).await.unwrap();
    }
}

fn not_retried(status: &Status) -> Option<NotRetried> {
    why(status).unwrap().not_retried
}

fn total(backends: &[&Backend]) -> usize {
    backends.iter().map(|b| b.seen().len()).sum()
}

#[tokio::test]
async fn a_call_is_tried_at_other_endpoints_and_says_so_to_each() {
    let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
    let all: Vec<&Backend> = backends.iter().collect();
    let (channel, mut client) = client(generous(with(quick().idempotency_key(), &all)));
    ready(&channel).await;
    earn(&mut client).await;
    all.iter().for_each(|b| b.counts.seen.lock().unwrap().clear());
    for n in 0..5 {
        // Whichever is first and second answer so; the third is asked to wait for nothing.
        all.iter().for_each(|b| b.answers(unavailable()));
        let mut request = Request::new(says(b"hello"));
        request.set_timeout(Duration::from_secs(30));
        request.metadata_mut().insert("x-mine", "kept".parse().unwrap());
        let status = client.unary(request).await.unwrap_err();
        assert_eq!(why(&status).unwrap().attempts, 3);
        for backend in &all {
            assert_eq!(backend.seen().len(), n + 1, "each endpoint was tried once");
        }
    }
    // The endpoints that failed five times in a row are still tried, as there is no other.
    for backend in &all {
        for headers in backend.seen() {
            assert_eq!(headers.get("x-mine").unwrap(), "kept");
            let timeout = headers.get("grpc-timeout").unwrap().to_str().unwrap();
            assert!(timeout.ends_with('u') || timeout.ends_with('m') || timeout == "30S", "{timeout}");
        }
    }
    let mut previous: Vec<_> = all
        .iter()
        .map(|b| {
            let seen = b.seen();
            let header = seen[0].get("grpc-previous-rpc-attempts").map(|v| v.to_str().unwrap().to_owned());
            (header, seen[0].get("idempotency-key").unwrap().to_str().unwrap().to_owned())
        })
        .collect();
    previous.sort();
    assert_eq!(previous.iter().map(|p| p.0.as_deref()).collect::<Vec<_>>(), [None, Some("1"), Some("2")]);
    assert!(previous.iter().all(|p| p.1 == previous[0].1 && p.1.len() == 36), "one key: {previous:?}");
    assert_ne!(all[0].seen()[1].get("idempotency-key"), all[0].seen()[0].get("idempotency-key"), "another call");
}

#[tokio::test]
async fn a_retried_call_that_goes_well_looks_like_any_other() {
    let backends = [Backend::start().await, Backend::start().await];
    let (channel, mut client) = client(generous(with(quick(), &[&backends[0], &backends[1]])));
    ready(&channel).await;
    earn(&mut client).await;
    for _ in 0..4 {
        backends.iter().for_each(|b| b.answers(unavailable()));
        let reply = client.unary(says(b"hello")).await.unwrap();
        assert_eq!((reply.get_ref().payload.as_slice(), picked(&reply).unwrap().attempts), (&b"hello"[..], 3));
    }
    assert!(backends.iter().all(|b| b.seen().iter().all(|headers| headers.get("idempotency-key").is_none())));
    idle(&channel).await;
}

#[tokio::test]
async fn without_a_policy_or_without_the_word_idempotent_nothing_is_sent_again() {
    let backends = [Backend::start().await, Backend::start().await];
    let all = [&backends[0], &backends[1]];
    let other = fixed(&[&backends[0].address, &backends[1].address]);
    let builders = [
        other.clone(),
        other.clone().method("/lookaside.demo.v1.Echo/Other", quick()),
        with(MethodPolicy::new().retry_on([Code::Unavailable, Code::Internal]), &all).method("", quick()),
    ];
    for builder in builders {
        let (channel, mut client) = client(builder);
        ready(&channel).await;
        let before = total(&all);
        all.iter().for_each(|b| b.answers(unavailable()));
        let status = client.unary(says(b"x")).await.unwrap_err();
        assert_eq!((not_retried(&status), status.message()), (Some(NotRetried::NotIdempotent), "not now"));
        // What another attempt would not help says nothing of it.
        all.iter().for_each(|b| b.counts.answers.lock().unwrap().clear());
        let status = client.unary(asks("3")).await.unwrap_err();
        assert_eq!(not_retried(&status), None);
        assert_eq!(total(&all), before + 2);
    }
}

#[tokio::test]
async fn only_the_codes_of_the_policy_are_retried() {
    let backend = Backend::start().await;
    let policy = quick().retry_on([Code::Internal, Code::Aborted]);
    let (_channel, mut client) = client(generous(with(policy, &[&backend])));
    earn(&mut client).await;
    for (code, attempts, expected) in
        [("13", 3, NotRetried::Attempts), ("10", 3, NotRetried::Attempts), ("14", 1, NotRetried::Code)]
    {
        let before = backend.seen().len();
        let status = client.unary(asks(code)).await.unwrap_err();
        assert_eq!(not_retried(&status), Some(expected), "{status}");
        assert_eq!((why(&status).unwrap().attempts as usize, backend.seen().len() - before), (attempts, attempts));
    }
}

#[tokio::test]
async fn a_failure_tells_the_whole_story() {
    let backends = [Backend::start().await, Backend::start().await];
    let (channel, mut client) = client(with(quick(), &[&backends[0], &backends[1]]));
    ready(&channel).await;
    let status = client.unary(asks("14")).await.unwrap_err();
    assert!(status.message().starts_with("as you wish; not retried: it had all attempts"), "{status}");
    for backend in &backends {
        let told = format!("{}: answered Unavailable, as you wish", backend.address);
        assert!(status.message().contains(&told), "{status}");
    }
    // And so does one of the library's own making.
    let raw = Raw::start(Manner::Close).await;
    let (channel, mut client) = self::client(fixed(&[&raw.address]).method(UNARY, quick()));
    ready(&channel).await;
    let status = client.unary(says(b"x")).await.unwrap_err();
    let message = status.message();
    assert!(message.contains("connection lost after it was sent"), "{message}");
    assert!(message.contains("(before that, ") && message.matches(&raw.address).count() >= 2, "{message}");
}

#[tokio::test]
async fn an_endpoint_that_asks_for_a_pause_gets_it_and_one_that_asks_for_none_is_left_alone() {
    let backend = Backend::start().await;
    let (_channel, mut client) = client(with(quick(), &[&backend]));
    backend.answers(pushback("300"));
    let began = std::time::Instant::now();
    let reply = client.unary(says(b"x")).await.unwrap();
    assert_eq!(picked(&reply).unwrap().attempts, 2);
    assert!(began.elapsed() >= Duration::from_millis(300));
    for no in ["-1", "later"] {
        backend.answers(pushback(no));
        let status = client.unary(says(b"x")).await.unwrap_err();
        assert_eq!(not_retried(&status), Some(NotRetried::Pushback), "{status}");
    }
    assert_eq!(backend.seen().len(), 4);
}

#[tokio::test]
async fn no_attempt_begins_that_the_deadline_would_not_let_begin() {
    let backend = Backend::start().await;
    let (_channel, mut client) = client(with(quick(), &[&backend]).default_deadline(Duration::from_secs(20)));
    for timeout in [Some(Duration::from_secs(20)), None] {
        backend.answers(pushback("30000"));
        let mut request = Request::new(says(b"x"));
        timeout.into_iter().for_each(|timeout| request.set_timeout(timeout));
        let began = std::time::Instant::now();
        let status = client.unary(request).await.unwrap_err();
        assert_eq!((status.code(), not_retried(&status)), (Code::Unavailable, Some(NotRetried::Deadline)));
        assert!(began.elapsed() < Duration::from_secs(10), "known at once");
    }
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test]
async fn a_request_longer_than_what_is_kept_is_not_sent_again() {
    let backend = Backend::start().await;
    let (_channel, mut client) = client(with(quick(), &[&backend]));
    backend.answers(unavailable());
    let status = client.unary(says(&[7; 70_000])).await.unwrap_err();
    assert_eq!(not_retried(&status), Some(NotRetried::RequestTooLong), "{status}");
    backend.answers(unavailable());
    client.unary(says(&[7; 60_000])).await.unwrap();
    assert_eq!(backend.seen().len(), 3);
}

#[tokio::test]
async fn while_all_calls_fail_hardly_any_is_sent_again_and_once_they_go_well_retries_return() {
    let backend = Backend::start().await;
    let (_channel, mut client) = client(with(quick(), &[&backend]));
    let mut reasons = Vec::new();
    for _ in 0..100 {
        reasons.push(not_retried(&client.unary(asks("14")).await.unwrap_err()));
    }
    assert!(backend.seen().len() <= 105, "{}", backend.seen().len());
    assert_eq!(reasons.last(), Some(&Some(NotRetried::Budget)));
    for _ in 0..80 {
        client.unary(says(b"x")).await.unwrap();
    }
    backend.answers(unavailable());
    assert_eq!(picked(&client.unary(says(b"x")).await.unwrap()).unwrap().attempts, 2);
}

#[tokio::test]
async fn a_connection_lost_under_a_call_costs_nothing_where_it_may_be_repeated() {
    let (raw, backend) = (Raw::start(Manner::Close).await, Backend::start().await);
    let builder = fixed(&[&raw.address, &backend.address]).method("", quick());
    let (channel, mut client) = client(builder);
    ready(&channel).await;
    let (mut again, began) = (0, std::time::Instant::now());
    while again < 3 && began.elapsed() < Duration::from_secs(20) {
        let reply = client.unary(says(b"x")).await.unwrap();
        again += picked(&reply).unwrap().attempts - 1;
        // Streams have a head, too, before which they may be repeated.
        let stream = client.server_stream(StreamRequest { count: 2, size_bytes: 1, interval_ms: 0 }).await.unwrap();
        again += picked(&stream).unwrap().attempts - 1;
        assert_eq!(stream.into_inner().filter(|m| m.is_ok()).collect::<Vec<_>>().await.len(), 2);
        let reply = client.client_stream(tokio_stream::iter([says(b"x"), says(b"y")])).await.unwrap();
        again += picked(&reply).unwrap().attempts - 1;
        assert_eq!(reply.get_ref().index, 2);
    }
    assert!(raw.calls.load(SeqCst) >= 3 && again >= 3);
    idle(&channel).await;
}

#[tokio::test]
async fn an_idempotency_key_of_the_application_is_kept() {
    let backend = Backend::start().await;
    let (_channel, mut client) = client(with(quick().idempotency_key(), &[&backend]));
    backend.answers(unavailable());
    let mut request = Request::new(says(b"x"));
    request.metadata_mut().insert("idempotency-key", "order-7".parse().unwrap());
    client.unary(request).await.unwrap();
    assert!(backend.seen().iter().all(|headers| headers.get("idempotency-key").unwrap() == "order-7"));
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test]
async fn a_policy_that_would_repeat_what_is_not_idempotent_makes_no_channel() {
    let error = fixed(&["127.0.0.1:1"]).method(UNARY, MethodPolicy::new().attempts(2)).lazy().unwrap_err();
    assert!(error.to_string().contains(UNARY) && error.to_string().contains("idempotent"), "{error}");
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn what_the_balancer_says_of_methods_holds_from_the_moment_it_says_it() {
    use lookaside_proto::v1::{MethodPolicy, method_policy::Rule};
    let (balancer, backend) = (crate::testing::Balancer::start().await.unwrap(), Backend::start().await);
    balancer.set("echo", [&backend.address]);
    let rule = Rule { path: UNARY.into(), idempotent: true, attempts_max: 2, ..Rule::default() };
    let methods = |rules: Vec<Rule>| MethodPolicy { service: "echo".into(), rules, ..MethodPolicy::default() };
    balancer.set_methods(methods(vec![rule]));
    let channel = Channel::builder("echo").balancers([balancer.address()]).connect().await.unwrap();
    let mut client = EchoClient::new(channel);
    let status = client.unary(asks("14")).await.unwrap_err();
    assert_eq!((why(&status).unwrap().attempts, not_retried(&status)), (2, Some(NotRetried::Attempts)));
    balancer.set_methods(methods(vec![]));
    let mut attempts = 2;
    let began = std::time::Instant::now();
    while attempts == 2 && began.elapsed() < Duration::from_secs(5) {
        attempts = why(&client.unary(asks("14")).await.unwrap_err()).unwrap().attempts;
    }
    assert_eq!(attempts, 1);
}

#[tokio::test]
async fn answers_that_blame_the_caller_fill_the_budget_again() {
    let backend = Backend::start().await;
    let (channel, mut client) = client(generous(with(quick(), &[&backend])));
    ready(&channel).await;
    let pool = &channel.inner.pool;
    while pool.advice.retries.failed(pool.now_us()) {}
    assert!(!pool.advice.retries.allows(pool.now_us()));
    for _ in 0..30 {
        assert_eq!(client.unary(asks("5")).await.unwrap_err().code(), Code::NotFound);
    }
    assert!(pool.advice.retries.allows(pool.now_us()));
}
