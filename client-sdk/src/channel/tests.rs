//! A channel against real servers on loopback.

#[cfg(feature = "reporter")]
mod asking;
mod crowded;
#[cfg(feature = "testing")]
mod faults;
mod hedged;
mod never_twice;
#[cfg(feature = "testing")]
mod outage;
mod retried;
mod served;
mod servers;
#[cfg(all(feature = "testing", feature = "reporter"))]
mod tls;
#[cfg(feature = "reporter")]
mod told;
#[cfg(feature = "testing")]
mod with_balancer;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use lookaside_proto::demo::{EchoRequest, StreamRequest, echo_client::EchoClient};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};

use super::*;
use crate::{EndpointState, What, picked, why};
use servers::{Backend, Manner, Raw, eventually};

fn fixed(endpoints: &[&str]) -> Builder {
    let endpoints = endpoints.iter().map(|e| (*e).to_owned()).collect();
    Builder::new("echo".into()).client_id("test").target(Target::Static { endpoints, service: None })
}

fn client(builder: Builder) -> (Channel, EchoClient<Channel>) {
    let channel = builder.lazy().unwrap();
    (channel.clone(), EchoClient::new(channel))
}

fn says(payload: &[u8]) -> EchoRequest {
    EchoRequest { payload: payload.to_vec(), ..Default::default() }
}

fn asks(request_id: &str) -> EchoRequest {
    EchoRequest { request_id: request_id.into(), ..Default::default() }
}

async fn idle(channel: &Channel) {
    eventually("no call in flight", || channel.snapshot().endpoints.iter().all(|e| e.in_flight == 0)).await;
}

/// Waits until every endpoint is connected.
async fn ready(channel: &Channel) {
    let all = || channel.snapshot().endpoints.iter().all(|e| e.state == EndpointState::Ready);
    eventually("all connected", all).await;
}

#[tokio::test]
async fn all_four_shapes_of_a_call_work() {
    let backend = Backend::start().await;
    let (channel, mut client) = client(fixed(&[&backend.address]));
    let reply = client.unary(says(b"hello")).await.unwrap();
    assert_eq!(picked(&reply).map(|p| (p.address.to_string(), p.attempts)), Some((backend.address.clone(), 1)));
    assert_eq!(reply.get_ref().payload, b"hello");

    let request = StreamRequest { count: 5, size_bytes: 100_000, interval_ms: 0 };
    let replies: Vec<_> = client.server_stream(request).await.unwrap().into_inner().collect().await;
    assert_eq!(replies.len(), 5);
    assert!(replies.into_iter().enumerate().all(|(n, r)| r.unwrap().index == n as u64));

    let requests = tokio_stream::iter((0..1_000).map(|_| says(&[1; 1_000])));
    assert_eq!(client.client_stream(requests).await.unwrap().get_ref().index, 1_000);

    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(says(b"0")).await.unwrap();
    let replies = client.both_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap();
    assert!(picked(&replies).is_some());
    let mut replies = replies.into_inner();
    for n in 1..20 {
        assert_eq!(replies.message().await.unwrap().unwrap().payload, (n - 1).to_string().as_bytes());
        sender.send(says(n.to_string().as_bytes())).await.unwrap();
    }
    drop(sender);
    assert!(replies.message().await.unwrap().is_some());
    assert!(replies.message().await.unwrap().is_none());
    idle(&channel).await;
    eventually("nothing open on the server", || backend.counts.open.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn calls_spread_over_all_endpoints() {
    let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
    let addresses: Vec<&str> = backends.iter().map(|b| b.address.as_str()).collect();
    let (channel, mut client) = client(fixed(&addresses));
    ready(&channel).await;
    for _ in 0..600 {
        client.unary(says(b"x")).await.unwrap();
    }
    for backend in &backends {
        let calls = backend.counts.calls.load(SeqCst);
        assert!((140..260).contains(&calls), "{calls}");
    }
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_costs_no_call() {
    let backend = Backend::start().await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let (channel, mut client) = client(fixed(&[&nobody, &backend.address]));
    for _ in 0..50 {
        client.unary(says(b"x")).await.unwrap();
    }
    eventually("found unreachable", || channel.snapshot().endpoints[0].state == EndpointState::Failed).await;
    assert!(channel.snapshot().endpoints[0].trouble.contains("refused"));
}

#[tokio::test]
async fn a_call_that_was_not_processed_moves_to_another_endpoint() {
    for manner in [Manner::Refuse, Manner::GoAway] {
        let (raw, backend) = (Raw::start(manner).await, Backend::start().await);
        let (channel, mut client) = client(fixed(&[&raw.address, &backend.address]));
        ready(&channel).await;
        let mut moved = 0;
        for _ in 0..40 {
            let reply = client.unary(says(b"x")).await.unwrap();
            let picked = picked(&reply).unwrap();
            assert_eq!(&*picked.address, backend.address);
            moved += u32::from(picked.attempts > 1);
        }
        assert!(moved > 0 && raw.calls.load(SeqCst) > 0, "{manner:?}");
        assert_eq!(backend.counts.calls.load(SeqCst), 40);
        idle(&channel).await;
    }
}

#[tokio::test]
async fn a_call_that_may_have_been_processed_is_not_repeated() {
    let (raw, other) = (Raw::start(Manner::Close).await, Raw::start(Manner::Close).await);
    let (channel, mut client) = client(fixed(&[&raw.address, &other.address]));
    ready(&channel).await;
    let status = client.unary(says(b"x")).await.unwrap_err();
    assert_eq!(raw.calls.load(SeqCst) + other.calls.load(SeqCst), 1);
    let why = why(&status).unwrap();
    assert_eq!((status.code(), why.what, why.attempts), (Code::Unavailable, What::ConnectionLost, 1));
    let endpoint = why.endpoint.unwrap();
    assert!(status.message().contains(&endpoint) && status.message().contains("may have been processed"), "{status}");
}

#[tokio::test]
async fn a_call_refused_everywhere_says_by_whom() {
    let raw = Raw::start(Manner::Refuse).await;
    let (channel, mut client) = client(fixed(&[&raw.address]));
    let status = client.unary(says(b"x")).await.unwrap_err();
    assert_eq!(why(&status).unwrap().what, What::NotProcessed);
    assert!(status.message().contains(&raw.address), "{status}");
    idle(&channel).await;
}

#[tokio::test]
async fn a_long_request_does_not_move() {
    let (raw, backend) = (Raw::start(Manner::Refuse).await, Backend::start().await);
    let (channel, mut client) = client(fixed(&[&raw.address, &backend.address]));
    ready(&channel).await;
    let mut stuck = 0;
    for _ in 0..20 {
        match client.unary(says(&vec![1; 200_000])).await {
            Ok(_) => {}
            Err(status) => {
                assert!(status.message().contains("65536 bytes"), "{status}");
                stuck += 1;
            }
        }
    }
    assert!(stuck > 0);
}

#[tokio::test]
async fn the_callers_deadline_holds_and_names_the_endpoint() {
    let raw = Raw::start(Manner::Hang).await;
    let (channel, mut client) = client(fixed(&[&raw.address]));
    ready(&channel).await;
    let mut request = Request::new(says(b"x"));
    request.set_timeout(Duration::from_millis(60));
    let status = client.unary(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let why = why(&status).unwrap();
    assert_eq!((why.endpoint.as_deref(), why.what), (Some(raw.address.as_str()), What::DeadlineExceeded));
    idle(&channel).await;
}

#[tokio::test]
async fn the_callers_deadline_ends_a_stream() {
    let backend = Backend::start().await;
    let (channel, mut client) = client(fixed(&[&backend.address]));
    let mut request = Request::new(StreamRequest { count: 1_000_000, size_bytes: 10, interval_ms: 5 });
    request.set_timeout(Duration::from_millis(150));
    let mut replies = client.server_stream(request).await.unwrap().into_inner();
    let status = loop {
        match replies.message().await {
            Ok(message) => assert!(message.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    idle(&channel).await;
    eventually("nothing open on the server", || backend.counts.open.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn the_default_deadline_ends_calls_and_spares_streams() {
    let backend = Backend::start().await;
    let (channel, mut client) = client(fixed(&[&backend.address]).default_deadline(Duration::from_millis(100)));
    let status = client.unary(asks("wait")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("default deadline"), "{status}");

    let request = StreamRequest { count: 10, size_bytes: 1, interval_ms: 30 };
    let replies: Vec<_> = client.server_stream(request).await.unwrap().into_inner().collect().await;
    assert!(replies.len() == 10 && replies.iter().all(Result::is_ok), "{replies:?}");

    // A second request message is as good as a first answer.
    let requests = tokio_stream::iter(0..10).then(|_| async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        says(b"x")
    });
    assert_eq!(client.client_stream(requests).await.unwrap().get_ref().index, 10);
    idle(&channel).await;
}

#[tokio::test]
async fn the_idle_limit_ends_a_stream_that_went_quiet() {
    let backend = Backend::start().await;
    let builder = fixed(&[&backend.address]).stream_idle_limit(Duration::from_millis(80));
    let (_channel, mut client) = client(builder);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(says(b"0")).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut replies = client.both_stream(requests).await.unwrap().into_inner();
    assert!(replies.message().await.unwrap().is_some());
    let status = replies.message().await.unwrap_err();
    assert_eq!(why(&status).unwrap().what, What::StreamIdle);
}

#[tokio::test]
async fn dropped_responses_leave_no_stream() {
    let backend = Backend::start().await;
    let (channel, mut client) = client(fixed(&[&backend.address]));
    for n in 0..1_000 {
        let request = StreamRequest { count: 1_000_000, size_bytes: 1_000, interval_ms: 0 };
        let mut replies = client.server_stream(request).await.unwrap().into_inner();
        if n % 2 == 0 {
            replies.message().await.unwrap();
        }
    }
    for _ in 0..100 {
        let call = client.unary(asks("wait"));
        assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
    }
    for _ in 0..100 {
        // The upload is stuck in a full window when the response is dropped.
        let requests = tokio_stream::iter((0..).map(|_| says(&[0; 60_000])));
        drop(client.both_stream(requests).await.unwrap());
    }
    idle(&channel).await;
    eventually("nothing open on the server", || backend.counts.open.load(SeqCst) == 0).await;
    client.unary(says(b"x")).await.unwrap();
    assert_eq!(backend.counts.connections.load(SeqCst), 1, "the connection outlived them");
}

#[tokio::test]
async fn a_reader_that_stalls_holds_the_sender_back_and_nobody_else() {
    let backend = Backend::start().await;
    let (_channel, mut client) = client(fixed(&[&backend.address]));
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let request = StreamRequest { count: 1_000_000, size_bytes: 10_000, interval_ms: 0 };
        stalled.push(client.server_stream(request).await.unwrap());
    }
    for _ in 0..50 {
        client.unary(says(b"x")).await.unwrap();
    }
    let sent_bytes = backend.counts.messages.load(SeqCst) * 10_000;
    assert!(sent_bytes < 4 * 4 * 1024 * 1024, "{sent_bytes}");
}

#[tokio::test]
async fn a_peer_that_takes_few_streams_gets_further_connections_and_no_more_than_four() {
    let backend = Backend::start_with(Some(2)).await;
    let (channel, client) = client(fixed(&[&backend.address]));
    ready(&channel).await;
    let calls = (0..40).map(|_| {
        let mut client = client.clone();
        async move { client.unary(EchoRequest { answer_delay_ms: 10, ..Default::default() }).await }
    });
    let replies = futures_util::future::join_all(calls).await;
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
    let connections = backend.counts.connections.load(SeqCst);
    assert!((2..=4).contains(&connections), "{connections}");
    idle(&channel).await;
}

#[tokio::test]
async fn a_goodbye_in_good_order_fails_no_call() {
    let (leaving, staying) = (Backend::start().await, Backend::start().await);
    let (channel, client) = client(fixed(&[&leaving.address, &staying.address]));
    ready(&channel).await;
    let calls = (0..200).map(|n| {
        let mut client = client.clone();
        let leaving = &leaving;
        async move {
            tokio::time::sleep(Duration::from_millis(n)).await;
            if n == 60 {
                leaving.shut_down();
            }
            client.unary(EchoRequest { answer_delay_ms: 20, ..Default::default() }).await
        }
    });
    let replies = futures_util::future::join_all(calls).await;
    let failed: Vec<_> = replies.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(leaving.counts.calls.load(SeqCst) > 0);
}

#[tokio::test]
async fn a_stopped_endpoint_costs_two_calls() {
    let raw = Raw::start(Manner::Hang).await;
    let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
    let mut addresses: Vec<&str> = backends.iter().map(|b| b.address.as_str()).collect();
    addresses.push(&raw.address);
    let (channel, client) = client(fixed(&addresses));
    ready(&channel).await;
    let workers = (0..4).map(|_| {
        let mut client = client.clone();
        async move {
            let mut failed = 0;
            for _ in 0..150 {
                let mut request = Request::new(EchoRequest { answer_delay_ms: 5, ..Default::default() });
                request.set_timeout(Duration::from_millis(500));
                failed += usize::from(client.unary(request).await.is_err());
            }
            failed
        }
    });
    let failed: usize = futures_util::future::join_all(workers).await.iter().sum();
    assert!(failed <= 2, "{failed}");
    assert_eq!(raw.calls.load(SeqCst), failed);
}

#[tokio::test]
async fn a_failing_endpoint_is_put_aside() {
    let backend = Backend::start().await;
    let others = [Backend::start().await, Backend::start().await, Backend::start().await];
    let mut addresses: Vec<&str> = others.iter().map(|b| b.address.as_str()).collect();
    addresses.push(&backend.address);
    let (channel, mut client) = client(fixed(&addresses));
    ready(&channel).await;
    // Each endpoint fails on demand; the demand follows the endpoint that the last call went to.
    let mut failures = 0;
    for _ in 0..400 {
        let reply = client.unary(asks("13")).await;
        assert_eq!(reply.unwrap_err().code(), Code::Internal);
        failures += 1;
        let aside = channel.snapshot().endpoints.iter().filter(|e| e.state == EndpointState::Aside).count();
        assert!(aside <= 2, "{aside}");
    }
    assert_eq!(failures, 400);
    eventually("some aside", || channel.snapshot().endpoints.iter().any(|e| e.state == EndpointState::Aside)).await;
    client.unary(says(b"x")).await.unwrap();
}

#[tokio::test]
async fn a_status_of_the_backend_keeps_its_words_and_names_the_endpoint() {
    let backend = Backend::start().await;
    let (_channel, mut client) = client(fixed(&[&backend.address]));
    let status = client.unary(asks("5")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "as you wish"));
    let why = why(&status).unwrap();
    assert_eq!((why.endpoint.as_deref(), why.what), (Some(backend.address.as_str()), What::Answered));
}

#[tokio::test]
async fn what_is_not_http2_is_called_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, answer).await;
            let mut rest = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut rest).await;
        }
    });
    let (_channel, mut client) = client(fixed(&[&address]).default_deadline(Duration::from_millis(300)));
    let status = client.unary(says(b"x")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("does not speak HTTP/2"), "{status}");
    assert!(status.message().contains(&address), "{status}");
}

#[tokio::test]
async fn a_channel_that_is_dropped_closes_its_connections() {
    let backend = Backend::start().await;
    let (channel, mut client) = client(fixed(&[&backend.address]));
    let request = StreamRequest { count: 3, size_bytes: 1, interval_ms: 20 };
    let replies = client.server_stream(request).await.unwrap();
    drop((channel, client));
    // What is in flight finishes all the same.
    let replies: Vec<_> = replies.into_inner().collect().await;
    assert!(replies.len() == 3 && replies.iter().all(Result::is_ok), "{replies:?}");
    eventually("nothing open on the server", || backend.counts.open.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn targets_and_addresses_are_checked_before_anything_is_connected() {
    assert!(matches!(Channel::connect("lookaside://127.0.0.1:7400").await, Err(Error::Target { .. })));
    assert!(matches!(Channel::connect("http://127.0.0.1:7400/x").await, Err(Error::Target { .. })));
    assert!(matches!(Channel::builder("x").fallback(["nonsense"]).lazy(), Err(Error::Address { .. })));
    let backend = Backend::start().await;
    let channel = Channel::connect(&format!("static://{}/echo", backend.address)).await.unwrap();
    EchoClient::new(channel).unary(says(b"x")).await.unwrap();
}
