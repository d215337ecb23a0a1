//! Limits of calls per endpoint: who waits, who is turned away, and that nobody is forgotten.

use super::*;

fn limited(backends: &[Backend], calls_max: u32) -> Builder {
    let addresses: Vec<&str> = backends.iter().map(|b| b.address.as_str()).collect();
    fixed(&addresses).endpoint_calls_max(calls_max)
}

#[tokio::test]
async fn no_endpoint_has_more_calls_than_it_may_and_all_that_wait_are_served() {
    let backends = [Backend::start().await, Backend::start().await];
    backends.iter().for_each(|b| b.slow_down(5));
    let (channel, client) = client(limited(&backends, 3));
    ready(&channel).await;
    let calls = (0..200).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move { client.unary(says(b"x")).await })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    for backend in &backends {
        assert_eq!(backend.counts.open_max.load(SeqCst), 3);
    }
    idle(&channel).await;
}

#[tokio::test]
async fn a_queue_that_is_full_turns_calls_away_in_words() {
    let backends = [Backend::start().await];
    backends[0].slow_down(60_000);
    let (channel, client) = client(limited(&backends, 2).waiting_calls_max(3));
    ready(&channel).await;
    let call = || {
        let mut client = client.clone();
        tokio::spawn(async move { client.unary(says(b"x")).await })
    };
    let under_way: Vec<_> = (0..2).map(|_| call()).collect();
    eventually("full", || backends[0].counts.open.load(SeqCst) == 2).await;
    let mut waiting: Vec<_> = (0..3).map(|_| call()).collect();
    let mut first = call();
    // One of the four finds no place to wait in.
    let turned_away = tokio::select! {
        status = &mut first => status,
        (status, ..) = futures_util::future::select_all(waiting.iter_mut()) => status,
    };
    let status = turned_away.unwrap().unwrap_err();
    assert_eq!((status.code(), why(&status).unwrap().what), (Code::ResourceExhausted, What::EndpointsFull));
    let words = "3 calls wait for a place already: no endpoint for \"echo\": the static target has 1 endpoints connected, \
                 each with the 2 calls it may have in flight";
    assert!(status.message().contains(words), "{status}");
    assert_eq!(backends[0].seen().len(), 2);
    under_way.iter().chain(&waiting).chain([&first]).for_each(tokio::task::JoinHandle::abort);
    idle(&channel).await;
}

#[tokio::test]
async fn who_waits_for_a_place_waits_no_longer_than_its_deadline() {
    let backends = [Backend::start().await];
    backends[0].slow_down(60_000);
    let (channel, client) = client(limited(&backends, 1).default_deadline(Duration::from_millis(400)));
    ready(&channel).await;
    let mut first = client.clone();
    let mut long = Request::new(says(b"x"));
    long.set_timeout(Duration::from_secs(60));
    let under_way = tokio::spawn(async move { first.unary(long).await });
    eventually("full", || backends[0].counts.open.load(SeqCst) == 1).await;
    for (timeout, code) in [(None, Code::ResourceExhausted), (Some(100), Code::DeadlineExceeded)] {
        let mut request = Request::new(says(b"x"));
        timeout.map(Duration::from_millis).into_iter().for_each(|timeout| request.set_timeout(timeout));
        let status = client.clone().unary(request).await.unwrap_err();
        assert_eq!((status.code(), why(&status).unwrap().what), (code, What::EndpointsFull), "{status}");
    }
    // Those that have given up leave the way free.
    let mut next = client.clone();
    let next = tokio::spawn(async move {
        let mut request = Request::new(asks("3"));
        request.set_timeout(Duration::from_secs(10));
        next.unary(request).await
    });
    backends[0].answers(tonic::Status::invalid_argument("at last"));
    under_way.abort();
    assert_eq!(next.await.unwrap().unwrap_err().message(), "at last");
}

#[tokio::test]
async fn who_waits_takes_the_place_at_an_endpoint_that_comes_along() {
    let backends = [Backend::start().await, Backend::start().await];
    backends[0].slow_down(60_000);
    let (channel, client) = client(limited(&backends[..1], 1));
    ready(&channel).await;
    let mut first = client.clone();
    let under_way = tokio::spawn(async move { first.unary(says(b"x")).await });
    eventually("full", || backends[0].counts.open.load(SeqCst) == 1).await;
    let mut second = client.clone();
    let waiting = tokio::spawn(async move { second.unary(says(b"x")).await });
    eventually("in the queue", || channel.inner.pool.room.is_awaited()).await;
    let both: Vec<String> = backends.iter().map(|b| b.address.clone()).collect();
    channel.inner.pool.apply(crate::list::List::plain(&both), crate::snapshot::ListSource::Static, None);
    let reply = waiting.await.unwrap().unwrap();
    assert_eq!(picked(&reply).unwrap().address.to_string(), backends[1].address);
    under_way.abort();
}

#[tokio::test]
async fn a_newcomer_does_not_take_the_place_that_became_free_for_another() {
    let backend = Backend::start().await;
    let (channel, client) = client(limited(std::slice::from_ref(&backend), 1));
    ready(&channel).await;
    let pool = &channel.inner.pool;
    let call = |order: &'static str| {
        let mut client = client.clone();
        let mut request = Request::new(says(b"x"));
        request.metadata_mut().insert("x-order", order.parse().unwrap());
        async move { client.unary(request).await }
    };
    let (head, ()) = http::Request::new(()).into_parts();
    let held = pool.pick(&head, &[]).unwrap();
    let first = tokio::spawn(call("first"));
    eventually("in the queue", || pool.room.is_awaited()).await;
    pool.picker().ended(&held.peer, crate::picker::Class::Ok, None, false, None, pool.now_us());
    pool.room.free();
    let mut second = std::pin::pin!(call("second"));
    assert!(futures_util::poll!(second.as_mut()).is_pending());
    second.await.unwrap();
    first.await.unwrap().unwrap();
    let order: Vec<String> =
        backend.seen().iter().map(|seen| seen.get("x-order").unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(order, ["first", "second"]);
}
