//! When a balancer leaves, and when one starts that knows little yet.

use super::*;

#[tokio::test]
async fn a_client_is_told_where_to_go_when_the_balancer_leaves() {
    let balancer = balancer().await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    client.subscribe("greeter");
    client.offered(&["10.0.0.1:1"]).await;
    balancer.draining.cancel();
    match client.answer().await.unwrap() {
        Said::Redirect(redirect) => assert!(redirect.balancers.is_empty() && redirect.services.is_empty()),
        other => panic!("{other:?} is no redirect"),
    }
    assert_eq!(client.answer().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_stream_ends_with_its_connection_s_age() {
    let balancer = balancer().await;
    let pick = Pick::new(Shared {
        driver: balancer.driver.clone(),
        cohorts: Arc::clone(&balancer.cohorts),
        clients: Arc::clone(&balancer.clients),
        admission: Admission::new(),
        draining: CancellationToken::new(),
    });
    let limits = Limits { connection_age: Duration::from_millis(100), ..Limits::default() };
    let address = serve(Routes::new(pick), limits, &balancer.stop).await;
    let mut client = Client::open(connect(address).await).await;
    client.ask(Ask::Hello(Hello { client_id: "web-1".into(), ..Hello::default() }));
    assert_eq!(client.answer().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn who_is_unknown_is_waited_for_after_a_start_and_then_said_to_be_unknown() {
    let lease = Duration::from_millis(600);
    let balancer = balancer_with(ServiceConfig { lease, ..ServiceConfig::default() }).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("nobody");
    let error = client.error().await;
    assert!(balancer.driver.now().since(Timestamp::default()) >= lease, "it may still have turned up");
    assert_eq!((error.code, error.reason.as_str()), (Code::NotFound as i32, "SERVICE_UNKNOWN"));
    // The subscription stays: a list follows when there is one.
    list(&balancer.driver, "nobody", &["10.0.0.1:1"]).await;
    client.offered(&["10.0.0.1:1"]).await;
}

#[tokio::test]
async fn after_a_start_newcomers_wait_for_others_to_be_heard_and_those_that_come_back_do_not() {
    let balancer = balancer().await;
    let (name, endpoint) = (service("greeter"), EndpointSpec::at(address("10.0.0.1:1")));
    balancer.driver.ask(Event::Registered { service: name.clone(), endpoint }).await.unwrap();
    let passed =
        Event::Checked { service: name.clone(), address: address("10.0.0.1:1"), outcome: CheckOutcome::Passed };
    balancer.driver.ask(passed).await.unwrap();
    until(&balancer.driver, |s| s.services.get(&name).is_some_and(|s| s.offered().count() == 1)).await;
    let up = || balancer.driver.now().since(Timestamp::default());
    let mut newcomer = Client::greeted(&balancer, "new").await;
    newcomer.subscribe("greeter");
    let mut old = Client::open(connect(balancer.address).await).await;
    let held = v1::HeldList { service: "greeter".into(), endpoints: vec!["10.0.0.2:1".into()], ..Default::default() };
    old.ask(Ask::Hello(Hello { client_id: "old".into(), held: vec![held], ..Hello::default() }));
    old.subscribe("greeter");
    let list = old.list().await;
    let told_at = up();
    assert!(!list.complete && told_at < Duration::from_secs(2), "{told_at:?}");
    // It goes on using what the incomplete list does not name.
    old.acknowledge(&list);
    let synced = || balancer.clients.views().iter().any(|v| v.who.id.as_str() == "old" && !v.standing.is_bad());
    eventually("it is acknowledged", synced).await;
    assert!(balancer.clients.holds(&name, &address("10.0.0.2:1")));
    assert!(!newcomer.offered(&["10.0.0.1:1"]).await.complete);
    assert!(up() >= Duration::from_secs(2));
}

#[tokio::test]
async fn of_what_was_restored_those_who_may_know_more_get_additions_and_all_others_the_whole() {
    let registered = |at: &str| KeptEndpoint {
        spec: EndpointSpec::at(address(at)),
        listed: None,
        listed_by: Default::default(),
        registered: true,
        health: KeptHealth::Usable,
        trusted: true,
        draining: false,
        departed: false,
        withdrawn: false,
        newcomer: false,
        warming_permille: None,
        capacity_milli: None,
    };
    let endpoints = ["10.0.0.1:1", "10.0.0.2:1"].map(registered).to_vec();
    let kept = KeptService { endpoints, ..KeptService::default() };
    let stop = CancellationToken::new();
    let lease = Duration::from_secs(5);
    let driver = crate::testing::driver_restored(
        Kept { services: [(service("greeter"), Arc::new(kept))].into() },
        ServiceConfig { lease, ..ServiceConfig::default() },
        &stop,
    );
    let balancer = balancer_of(driver, stop).await;

    let mut newcomer = Client::greeted(&balancer, "new").await;
    newcomer.subscribe("greeter");
    let whole = newcomer.list().await;
    assert!(whole.complete && whole.endpoints.len() == 2, "{whole:?}");
    assert!(balancer.driver.now().since(Timestamp::default()) < Duration::from_secs(2), "nobody waits");

    let mut clients = Vec::new();
    for digest in [whole.digest, whole.digest + 1] {
        let mut client = Client::open(connect(balancer.address).await).await;
        let endpoints = vec!["10.0.0.1:1".into(), "10.0.0.9:1".into()];
        let held = v1::HeldList { service: "greeter".into(), digest, endpoints, ..Default::default() };
        client.ask(Ask::Hello(Hello { client_id: "new".into(), held: vec![held], ..Hello::default() }));
        client.subscribe("greeter");
        client.method_policy().await;
        clients.push(client);
    }
    match clients[0].answer().await.unwrap() {
        Said::Tick(tick) => assert!(tick.complete, "the very same list: {tick:?}"),
        other => panic!("{other:?} is no tick"),
    }
    let additions = clients[1].list().await;
    assert!(!additions.complete && additions.digest != whole.digest, "{additions:?}");
    assert_eq!(additions.endpoints, whole.endpoints);
    clients[1].acknowledge(&additions);
    let holds = || balancer.clients.holds(&service("greeter"), &address("10.0.0.9:1"));
    assert!(holds());
    // A lease later everybody has had the time to turn up.
    let completed = clients[1].list().await;
    assert!(completed.complete && completed.endpoints.len() == 2, "{completed:?}");
    assert!(balancer.driver.now().since(Timestamp::default()) >= lease);
    clients[1].acknowledge(&completed);
    eventually("nobody holds the other one any more", || !holds()).await;
}

#[tokio::test]
async fn what_a_newcomer_waited_for_is_not_told_after_something_newer() {
    let balancer = balancer().await;
    let name = service("greeter");
    let endpoint = EndpointSpec::at(address("10.0.0.1:1"));
    balancer.driver.ask(Event::Registered { service: name.clone(), endpoint }).await.unwrap();
    until(&balancer.driver, |s| s.services.contains_key(&name)).await;
    let mut client = Client::greeted(&balancer, "new").await;
    client.subscribe("greeter");
    // Answers of services are told in one loop: who hears of the second one waits for the first one by now.
    list(&balancer.driver, "other", &["10.0.0.9:1"]).await;
    client.subscribe("other");
    client.offered(&["10.0.0.9:1"]).await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1", "10.0.0.2:1"]).await;
    let mut last = client.offered(&["10.0.0.1:1", "10.0.0.2:1"]).await.version.unwrap().sequence;
    eventually("newcomers wait no more", || balancer.driver.now().since(Timestamp::default()).as_millis() > 2_100)
        .await;
    list(&balancer.driver, "greeter", &["10.0.0.3:1"]).await;
    loop {
        let list = client.list().await;
        let version = list.version.unwrap().sequence;
        assert!(version > last, "{version} after {last}");
        last = version;
        if list.endpoints.iter().any(|e| e.address == "10.0.0.3:1") {
            break;
        }
    }
}
