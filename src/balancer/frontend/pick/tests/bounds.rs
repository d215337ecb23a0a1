//! What one client may ask for and bring, and what it is told where that is too much.

use super::*;

#[tokio::test]
async fn the_first_message_is_a_hello_and_a_good_one() {
    let balancer = balancer().await;
    let held = |service: &str| v1::HeldList { service: service.into(), ..Default::default() };
    let hello =
        |id: &str, locality: &str| Hello { client_id: id.into(), locality: locality.into(), ..Hello::default() };
    let cases = [
        (Ask::Subscribe(Subscribe { service: "greeter".into() }), "HELLO_MISSING"),
        (Ask::Hello(hello("", "")), "CLIENT_ID_INVALID"),
        (Ask::Hello(hello("a b", "")), "CLIENT_ID_INVALID"),
        (Ask::Hello(hello("a", "a/b/c/d")), "LOCALITY_INVALID"),
        (Ask::Hello(Hello { held: vec![held(""); 2], ..hello("a", "") }), "SERVICE_INVALID"),
        (Ask::Hello(Hello { held: vec![held("a"); 257], ..hello("a", "") }), "HELD_LISTS_MAX"),
        (Ask::Hello(Hello { held: vec![bringing("a", 10_001)], ..hello("a", "") }), "HELD_ENDPOINTS_MAX"),
    ];
    for (first, reason) in cases {
        let mut client = Client::open(connect(balancer.address).await).await;
        client.ask(first);
        assert_eq!(refused(&mut client).await, (Code::InvalidArgument, reason.to_owned()));
    }
    let mut twice = Client::greeted(&balancer, "a").await;
    twice.ask(Ask::Hello(hello("a", "")));
    assert_eq!(refused(&mut twice).await, (Code::InvalidArgument, "HELLO_TWICE".to_owned()));
}

/// A list with so many endpoints that a client says it holds.
fn bringing(service: &str, endpoints: usize) -> v1::HeldList {
    let endpoints = (0..endpoints).map(|number| format!("h{number}:1")).collect();
    v1::HeldList { service: service.into(), endpoints, ..Default::default() }
}

#[tokio::test]
async fn what_clients_bring_on_one_connection_has_an_end_and_is_forgotten_if_nobody_asks_for_it() {
    let balancer = balancer().await;
    let channel = connect(balancer.address).await;
    let greet = async |held: Vec<v1::HeldList>| {
        let client = Client::open(channel.clone()).await;
        client.ask(Ask::Hello(Hello { client_id: "a".into(), held, ..Hello::default() }));
        client
    };
    let mut full = Vec::new();
    let lists: Vec<_> = (0..5).map(|number| bringing(&format!("s{number}"), 10_000)).collect();
    for number in 1..=HELD_ENDPOINTS_PER_CONNECTION_MAX / 50_000 {
        full.push(greet(lists.clone()).await);
        eventually("it is greeted", || balancer.clients.count() == number).await;
    }
    let mut further = greet(vec![bringing("s", 1)]).await;
    assert_eq!(refused(&mut further).await, (Code::ResourceExhausted, "HELD_ENDPOINTS_MAX".to_owned()));
    // Who brings nothing is served, and what is not asked for makes room.
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let mut empty = greet(Vec::new()).await;
    empty.subscribe("greeter");
    empty.offered(&["10.0.0.1:1"]).await;
    tokio::time::pause();
    tokio::time::advance(HELD_WAIT_MAX).await;
    tokio::time::resume();
    let served = async {
        loop {
            let mut further = greet(vec![bringing("greeter", 1)]).await;
            further.subscribe("greeter");
            match further.answer().await {
                Ok(_) => return,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, served).await.expect("there is room again");
}

#[tokio::test]
async fn a_stream_has_one_turn_for_the_first_list_of_a_service_however_often_it_gives_it_up() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    client.offered(&["10.0.0.1:1"]).await;
    let now = tokio::time::Instant::now();
    balancer.pick.0.admission.enter(1 << 30, now).unwrap();
    assert!(balancer.pick.0.admission.enter(1, now).is_err(), "there is no turn for anybody else");
    client.ask(Ask::Unsubscribe(Unsubscribe { service: "greeter".into() }));
    client.subscribe("greeter");
    client.offered(&["10.0.0.1:1"]).await;
}

#[tokio::test]
async fn a_service_that_a_client_made_up_is_no_label() {
    let page = crate::telemetry::install();
    let balancer = balancer().await;
    list(&balancer.driver, "known-one", &["h0:1"]).await;
    let mut client = Client::open(connect(balancer.address).await).await;
    let held = vec![bringing("made-up", 1), bringing("known-one", 1)];
    client.ask(Ask::Hello(Hello { client_id: "a".into(), held, ..Hello::default() }));
    for name in ["made-up", "known-one"] {
        client.subscribe(name);
        let endpoints = vec![v1::EndpointOutcomes { address: "h0:1".into(), ok: 1, ..Default::default() }];
        client.ask(Ask::Outcomes(Outcomes { service: name.into(), endpoints }));
    }
    eventually("the known one is counted", || {
        page.render().contains("lookaside_client_calls_total{service=\"known-one\",outcome=\"ok\"} 1")
    })
    .await;
    assert!(!page.render().contains("made-up"));
    client.list().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_its_stream_alone() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let channel = connect(balancer.address).await;
    let mut good = Client::open(channel.clone()).await;
    good.ask(Ask::Hello(Hello { client_id: "good".into(), ..Hello::default() }));
    let mut bad = Client::open(channel).await;
    bad.ask(Ask::Hello(Hello { client_id: "x".repeat(2 << 20), ..Hello::default() }));
    assert_eq!(refused(&mut bad).await, (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
    good.subscribe("greeter");
    good.offered(&["10.0.0.1:1"]).await;
}

#[tokio::test]
async fn what_is_wrong_about_one_service_leaves_the_stream_and_the_others_alone() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    let outcomes = |service: &str, address: &str, ok| {
        let endpoint = v1::EndpointOutcomes { address: address.into(), ok, ..Default::default() };
        Ask::Outcomes(Outcomes { service: service.into(), endpoints: vec![endpoint] })
    };
    client.subscribe("greeter");
    client.offered(&["10.0.0.1:1"]).await;
    let cases = [
        (Ask::Subscribe(Subscribe { service: "a b".into() }), Code::InvalidArgument, "SERVICE_INVALID"),
        (Ask::Unsubscribe(Unsubscribe { service: String::new() }), Code::InvalidArgument, "SERVICE_INVALID"),
        (
            Ask::Reserve(Reserve { service: "greeter".into(), count: 1 }),
            Code::Unimplemented,
            "RESERVATIONS_UNSUPPORTED",
        ),
        (outcomes("other", "10.0.0.1:1", 1), Code::InvalidArgument, "OUTCOMES_INVALID"),
        (outcomes("greeter", "nowhere", 1), Code::InvalidArgument, "OUTCOMES_INVALID"),
        (outcomes("greeter", "10.0.0.1:1", u64::MAX), Code::InvalidArgument, "OUTCOMES_INVALID"),
    ];
    for (wrong, code, reason) in cases {
        client.ask(wrong);
        let error = client.error().await;
        assert_eq!((error.code, error.reason.as_str()), (code as i32, reason));
    }
    // Good outcomes, and those of an endpoint that was never listed, are no reason to speak.
    client.ask(outcomes("greeter", "10.0.0.1:1", 5));
    client.ask(outcomes("greeter", "10.9.9.9:1", 5));
    client.ask(Ask::Ack(Ack::default()));
    client.subscribe("b c");
    assert_eq!(client.error().await.reason, "SERVICE_INVALID");
}

#[tokio::test]
async fn there_is_an_end_to_what_one_stream_may_subscribe() {
    let balancer = balancer().await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    for number in 0..=1_000 {
        client.subscribe(&format!("s{number}"));
    }
    let error = client.error().await;
    assert_eq!((error.reason.as_str(), error.service.as_str()), ("SUBSCRIPTIONS_MAX", "s1000"));
    client.ask(Ask::Unsubscribe(Unsubscribe { service: "s0".into() }));
    client.subscribe("s1000");
    list(&balancer.driver, "s1000", &["10.0.0.1:1"]).await;
    client.offered(&["10.0.0.1:1"]).await;
}

#[tokio::test]
async fn there_is_an_end_to_what_one_connection_may_subscribe() {
    let balancer = balancer().await;
    let channel = connect(balancer.address).await;
    let subscriptions = || balancer.clients.views().len();
    let mut full = Vec::new();
    while full.len() * SUBSCRIPTIONS_PER_STREAM_MAX < SUBSCRIPTIONS_PER_CONNECTION_MAX {
        let client = Client::open(channel.clone()).await;
        client.ask(Ask::Hello(Hello { client_id: "web-1".into(), ..Hello::default() }));
        (0..SUBSCRIPTIONS_PER_STREAM_MAX).for_each(|number| client.subscribe(&format!("s{number}")));
        full.push(client);
        let wanted = full.len() * SUBSCRIPTIONS_PER_STREAM_MAX;
        eventually("all are subscribed", || subscriptions() == wanted).await;
    }
    let mut further = Client::open(channel).await;
    further.ask(Ask::Hello(Hello { client_id: "web-1".into(), ..Hello::default() }));
    further.subscribe("s0");
    assert_eq!(further.error().await.reason, "SUBSCRIPTIONS_MAX");
    // What a stream had is free when it has gone.
    full.pop();
    eventually("a stream has gone", || subscriptions() < SUBSCRIPTIONS_PER_CONNECTION_MAX).await;
    further.subscribe("s1");
    eventually("there is room", || balancer.clients.views().iter().any(|view| view.stream == 10)).await;
}

#[tokio::test]
async fn a_message_may_be_as_large_as_the_list_gives_rise_to_and_no_larger() {
    let balancer = balancer().await;
    let addresses: Vec<_> = (1..=100).map(|host| format!("10.0.0.{host}:1")).collect();
    list(&balancer.driver, "greeter", &addresses.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    client.list().await;
    let told = |bytes: usize| {
        let endpoint = v1::EndpointOutcomes { address: addresses[0].clone(), ok: 1, ..Default::default() };
        let detail = "x".repeat(bytes);
        Ask::Outcomes(Outcomes {
            service: "greeter".into(),
            endpoints: vec![v1::EndpointOutcomes { detail, ..endpoint }],
        })
    };
    client.ask(told(PICK_REQUEST_BYTES_MAX + 90 * OUTCOME_BYTES_MAX));
    let calls = || balancer.clients.views().iter().any(|view| view.calls_per_second > 0.0);
    client.ask(told(0));
    eventually("they are taken", calls).await;
    client.ask(told(PICK_REQUEST_BYTES_MAX + 101 * OUTCOME_BYTES_MAX));
    let status = loop {
        if let Err(status) = client.answer().await {
            break status;
        }
    };
    assert_eq!(status.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
}
