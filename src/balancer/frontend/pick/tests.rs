use std::{net::SocketAddr, time::Duration};

use lookaside_core::{
    config::{CallConfig, MethodPath, MethodRule, RetryCode, ServiceConfig},
    event::{Action, Backend, CheckOutcome, Event, LoadReport, Override, Scope},
    kept::{Kept, KeptEndpoint, KeptHealth, KeptService},
    model::{ClientId, Cohort, EndpointSpec, Locality, Timestamp},
};
use lookaside_proto::v1::{
    self, Ack, Hello, Outcomes, Reserve, Subscribe, Unsubscribe, balancer_client::BalancerClient,
    pick_request::Kind as Ask, pick_response::Kind as Said,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming, service::Routes, transport::Channel};
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    config::Limits,
    limits::{
        HELD_ENDPOINTS_PER_CONNECTION_MAX, HELD_WAIT_MAX, OUTCOME_BYTES_MAX, PICK_REQUEST_BYTES_MAX, PUSHBACK,
        SUBSCRIPTIONS_PER_CONNECTION_MAX, SUBSCRIPTIONS_PER_STREAM_MAX,
    },
    testing::{PATIENCE, address, configure, connect, driver_with, eventually, list, serve, service, until},
};

mod bounds;
mod restarts;

struct Balancer {
    driver: Handle,
    clients: Arc<Clients>,
    cohorts: Arc<Cohorts>,
    pick: Pick,
    draining: CancellationToken,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn balancer() -> Balancer {
    balancer_with(ServiceConfig::default()).await
}

async fn balancer_with(defaults: ServiceConfig) -> Balancer {
    let stop = CancellationToken::new();
    balancer_of(driver_with(defaults, &stop), stop).await
}

async fn balancer_of(driver: Handle, stop: CancellationToken) -> Balancer {
    balancer_that_admits(driver, stop, Admission::new()).await
}

async fn balancer_that_admits(driver: Handle, stop: CancellationToken, admission: Admission) -> Balancer {
    let draining = CancellationToken::new();
    let (clients, cohorts) = (Arc::new(Clients::new()), Arc::new(Cohorts::new(driver.clone())));
    tokio::spawn(Arc::clone(&cohorts).follow(stop.clone()));
    let pick = Pick::new(Shared {
        driver: driver.clone(),
        cohorts: Arc::clone(&cohorts),
        clients: Arc::clone(&clients),
        admission,
        draining: draining.clone(),
    });
    // One test lets half a minute pass at once: no sign of life can come in between.
    let limits = Limits { keepalive_interval: Duration::from_secs(3_600), ..Limits::default() };
    let address = serve(Routes::new(pick.clone()), limits, &stop).await;
    Balancer { driver, clients, cohorts, pick, draining, address, stop }
}

struct Client {
    ask: mpsc::UnboundedSender<v1::PickRequest>,
    answers: Streaming<v1::PickResponse>,
}

impl Client {
    async fn open(channel: Channel) -> Self {
        let (ask, requests) = mpsc::unbounded_channel();
        let requests = UnboundedReceiverStream::new(requests);
        let answers = BalancerClient::new(channel).pick(requests).await.unwrap().into_inner();
        Self { ask, answers }
    }

    async fn greeted(balancer: &Balancer, id: &str) -> Self {
        let client = Self::open(connect(balancer.address).await).await;
        client.ask(Ask::Hello(Hello { client_id: id.into(), ..Hello::default() }));
        client
    }

    fn ask(&self, kind: Ask) {
        // The stream may have ended already; the test then finds out by reading.
        let _ = self.ask.send(v1::PickRequest { kind: Some(kind) });
    }

    fn subscribe(&self, name: &str) {
        self.ask(Ask::Subscribe(Subscribe { service: name.into() }));
    }

    async fn answer(&mut self) -> Result<Said, tonic::Status> {
        let message = timeout(PATIENCE, self.answers.message()).await.expect("there is an answer")?;
        Ok(message.expect("the stream goes on").kind.expect("an answer says something"))
    }

    /// The next list, ticks and rules for methods left out.
    async fn list(&mut self) -> v1::List {
        loop {
            match self.answer().await.unwrap() {
                Said::List(list) => return list,
                Said::Tick(_) | Said::MethodPolicy(_) => {}
                other => panic!("{other:?} is no list"),
            }
        }
    }

    /// Lists until one offers exactly these.
    async fn offered(&mut self, addresses: &[&str]) -> v1::List {
        loop {
            let list = self.list().await;
            let offered = list.endpoints.iter().filter(|e| e.weight > 0).map(|e| e.address.as_str());
            if offered.collect::<std::collections::BTreeSet<_>>() == addresses.iter().copied().collect() {
                return list;
            }
        }
    }

    async fn method_policy(&mut self) -> v1::MethodPolicy {
        loop {
            match self.answer().await.unwrap() {
                Said::MethodPolicy(policy) => return policy,
                Said::Tick(_) => {}
                other => panic!("{other:?} is no method policy"),
            }
        }
    }

    async fn error(&mut self) -> v1::ServiceError {
        match self.answer().await.unwrap() {
            Said::ServiceError(error) => error,
            other => panic!("{other:?} is no error"),
        }
    }

    fn acknowledge(&self, list: &v1::List) {
        self.ask(Ask::Ack(Ack { service: list.service.clone(), version: list.version, refused: String::new() }));
    }
}

async fn drain(balancer: &Balancer, at: &str) {
    let word = Override {
        service: service("greeter"),
        scope: Scope::Address(address(at)),
        action: Action::Drain,
        reason: String::new(),
        actor: String::new(),
        set_at_unix_ms: 1,
        replica: String::new(),
        expires_at_unix_ms: 0,
        remaining: None,
    };
    balancer.driver.ask(Event::OverrideSet { word }).await.unwrap();
}

/// The status that ends a stream, and `ErrorInfo.reason`.
async fn refused(client: &mut Client) -> (Code, String) {
    let status = client.answer().await.unwrap_err();
    let reason = status.get_error_details().error_info().expect("it has ErrorInfo").reason.clone();
    (status.code(), reason)
}

#[tokio::test]
async fn a_client_gets_a_list_and_then_every_change_of_it() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1", "10.0.0.2:1"]).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    let first = client.offered(&["10.0.0.1:1", "10.0.0.2:1"]).await;
    assert_eq!((first.service.as_str(), first.version.unwrap().epoch), ("greeter", 7));
    drain(&balancer, "10.0.0.1:1").await;
    let second = client.offered(&["10.0.0.2:1"]).await;
    assert!(second.version.unwrap().sequence > first.version.unwrap().sequence);
    let drained = second.endpoints.iter().find(|e| e.address == "10.0.0.1:1").expect("it is named, with weight 0");
    assert_eq!(drained.reasons[0].code(), v1::ReasonCode::AdminDrain);
}

#[tokio::test]
async fn a_client_that_comes_back_with_the_same_list_gets_a_tick_and_no_list() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    let had = client.offered(&["10.0.0.1:1"]).await;
    drop(client);
    let mut again = Client::open(connect(balancer.address).await).await;
    let held = |digest| v1::HeldList {
        service: "greeter".into(),
        version: had.version,
        digest,
        endpoints: vec!["10.0.0.1:1".into()],
    };
    again.ask(Ask::Hello(Hello { client_id: "web-1".into(), held: vec![held(had.digest)], ..Hello::default() }));
    again.subscribe("greeter");
    // It may have rules of an earlier stream, perhaps another balancer's.
    assert_eq!(again.method_policy().await.rules, []);
    match again.answer().await.unwrap() {
        Said::Tick(tick) => assert_eq!((tick.digest, tick.service.as_str()), (had.digest, "greeter")),
        other => panic!("{other:?} is no tick"),
    }
    let mut stranger = Client::open(connect(balancer.address).await).await;
    stranger.ask(Ask::Hello(Hello { client_id: "web-1".into(), held: vec![held(had.digest + 1)], ..Hello::default() }));
    stranger.subscribe("greeter");
    assert_eq!(stranger.list().await.digest, had.digest);
}

#[tokio::test]
async fn rules_for_methods_come_before_the_list_and_again_when_they_change() {
    let mut rule = MethodRule::of(MethodPath::parse("/s.Greeter/").unwrap());
    rule.attempts = 3;
    rule.retry_on = vec![RetryCode::Unavailable, RetryCode::Aborted];
    let calls = |rules: &[MethodRule]| CallConfig { methods: rules.to_vec(), ..CallConfig::default() };
    let config = |rules: &[MethodRule]| ServiceConfig { calls: calls(rules), ..ServiceConfig::default() };
    let balancer = balancer_with(config(&[rule])).await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    match client.answer().await.unwrap() {
        Said::MethodPolicy(policy) => {
            assert_eq!((policy.service.as_str(), policy.rules.len()), ("greeter", 1));
            let rule = &policy.rules[0];
            assert_eq!(
                (rule.path.as_str(), rule.attempts_max, &rule.retry_codes[..]),
                ("/s.Greeter/", 3, &[14, 10][..])
            );
            assert_eq!((rule.backoff_ms_base, rule.backoff_ms_max, rule.hedges_max), (25, 1_000, 1));
        }
        other => panic!("{other:?} came first"),
    }
    let first = client.offered(&["10.0.0.1:1"]).await;
    configure(&balancer.driver, "greeter", config(&[])).await;
    assert_eq!(client.method_policy().await, v1::MethodPolicy { service: "greeter".into(), ..Default::default() });
    match client.answer().await.unwrap() {
        Said::Tick(tick) => assert_eq!(tick.digest, first.digest, "the list is the same, so it is not sent again"),
        other => panic!("{other:?} is no tick"),
    }
}

#[tokio::test]
async fn budgets_for_retries_and_hedges_are_those_of_the_service() {
    let calls = CallConfig { retry_budget_percent: 33, hedge_budget_percent: 4, ..CallConfig::default() };
    let balancer = balancer_with(ServiceConfig { calls, ..ServiceConfig::default() }).await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    client.offered(&["10.0.0.1:1"]).await;
    match client.answer().await.unwrap() {
        Said::Tick(tick) => assert_eq!((tick.retry_budget_percent, tick.hedge_budget_percent), (33, 4)),
        other => panic!("{other:?} is no tick"),
    }
}

#[tokio::test]
async fn ticks_follow_as_heartbeats() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    let list = client.offered(&["10.0.0.1:1"]).await;
    match client.answer().await.unwrap() {
        Said::Tick(tick) => assert_eq!((tick.digest, tick.report_period_ms), (list.digest, 1_000)),
        other => panic!("{other:?} is no tick"),
    }
}

#[tokio::test]
async fn an_overload_is_told_before_the_heartbeat_and_to_newcomers_with_the_list() {
    // One report is enough for a while.
    let config = ServiceConfig { report_period: Duration::from_secs(60), ..ServiceConfig::default() };
    let balancer = balancer_with(config).await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let endpoint = EndpointSpec { incarnation: 1, ..EndpointSpec::at(address("10.0.0.1:1")) };
    balancer.driver.ask(Event::Registered { service: service("greeter"), endpoint }).await.unwrap();
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    client.offered(&["10.0.0.1:1"]).await;
    let backend = Backend { service: service("greeter"), address: address("10.0.0.1:1"), incarnation: 1 };
    let load = LoadReport { sequence: 1, utilization_permille: Some(1000), ..LoadReport::default() };
    balancer.driver.ask(Event::LoadReported { backend, load }).await.unwrap();
    let overload = async |client: &mut Client| loop {
        match client.answer().await.unwrap() {
            Said::Tick(tick) if tick.overload => return tick,
            Said::Tick(_) | Said::MethodPolicy(_) | Said::List(_) => {}
            other => panic!("{other:?} is neither list nor tick"),
        }
    };
    let early = crate::limits::HEARTBEAT_PERIOD - Duration::from_secs(1);
    let tick = timeout(early, overload(&mut client)).await.expect("before the heartbeat");
    assert_eq!((tick.utilization_permille, tick.probe_budget_percent), (1000, 20));
    let mut newcomer = Client::greeted(&balancer, "web-2").await;
    newcomer.subscribe("greeter");
    newcomer.offered(&["10.0.0.1:1"]).await;
    match newcomer.answer().await.unwrap() {
        Said::Tick(tick) => assert!(tick.overload),
        other => panic!("{other:?} is no tick"),
    }
}

#[tokio::test]
async fn a_list_can_be_acknowledged_by_the_name_that_a_tick_gave_it() {
    use crate::frontend::{clients::Who, cohorts::List};
    use lookaside_core::model::{ClientId, Cohort, Locality, Version};
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let (name, id) = (service("greeter"), ClientId::parse("web-1").unwrap());
    let snapshot = Arc::clone(&balancer.driver.snapshots().borrow());
    let assignment = lookaside_core::policy::assign(&snapshot.services[&name], &Cohort::of(&id, Locality::unknown()));
    let list = Arc::new(List::new(assignment));
    let who = Who { id, peer: None, sdk: String::new(), locality: Locality::unknown() };
    let session = balancer.clients.join(who);
    session.subscribed(&name, Default::default());
    let version = |sequence| Version { epoch: 7, sequence };
    session.sent(&name, version(5), &list);
    session.rebased(&name, version(6), &list);
    assert!(session.applied(&name, version(6)), "the list has that name now");
    assert_eq!(balancer.clients.views()[0].applied, Some(version(6)));
    session.rebased(&name, version(7), &list);
    assert!(session.applied(&name, version(7)), "a tick on its own is acknowledged too");
    assert!(!session.applied(&name, version(8)), "nothing was ever called that");
}

#[tokio::test]
async fn one_cohort_shares_its_bytes_and_is_forgotten_with_its_last_stream() {
    use lookaside_core::model::{Cohort, Locality};
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1", "10.0.0.2:1"]).await;
    let name = service("greeter");
    let cohort = |seed| Cohort { seed, locality: Locality::unknown() };
    let frame = |seed| match &**balancer.cohorts.subscribe(&name, &cohort(seed)).borrow() {
        crate::frontend::cohorts::Answer::List(list) => list.whole.list_frame.as_ptr(),
        other => panic!("{other:?} is no list"),
    };
    let held = balancer.cohorts.subscribe(&name, &cohort(1));
    assert_eq!(frame(1), frame(1));
    assert_ne!(frame(1), frame(2));
    drop(held);
    list(&balancer.driver, "greeter", &["10.0.0.3:1"]).await;
    eventually("cohorts without streams go", || balancer.cohorts.count() == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_nobody_and_finds_the_newest_list_when_it_does() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    // A window of 1 KiB is full after a few lists.
    let narrow = Channel::from_shared(format!("http://{}", balancer.address)).unwrap();
    let narrow = narrow.initial_stream_window_size(1 << 10).connect().await.unwrap();
    let mut slow = Client::open(narrow).await;
    slow.ask(Ask::Hello(Hello { client_id: "slow".into(), ..Hello::default() }));
    slow.subscribe("greeter");
    let mut quick = Client::greeted(&balancer, "quick").await;
    quick.subscribe("greeter");
    let names: Vec<_> = (1..=40).map(|host| format!("10.0.0.{host}:1")).collect();
    let mut expected: Vec<&str> = Vec::new();
    for name in &names {
        expected.push(name);
        list(&balancer.driver, "greeter", &expected).await;
        quick.offered(&expected).await;
    }
    // Newest wins: it does not have to read all forty.
    let mut lists = 0;
    loop {
        lists += 1;
        if slow.list().await.endpoints.len() == expected.len() {
            break;
        }
    }
    assert!(lists < 40, "{lists} lists had queued");
}

#[tokio::test]
async fn an_address_is_held_until_the_client_uses_a_list_without_it() {
    let balancer = balancer().await;
    let (name, leaver) = (service("greeter"), address("10.0.0.1:1"));
    list(&balancer.driver, "greeter", &["10.0.0.1:1", "10.0.0.2:1"]).await;
    assert!(!balancer.clients.holds(&name, &leaver));
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    let first = client.offered(&["10.0.0.1:1", "10.0.0.2:1"]).await;
    client.acknowledge(&first);
    let clients = Arc::clone(&balancer.clients);
    let in_step = || clients.views().iter().any(|v| v.standing == crate::frontend::clients::Standing::Synced);
    eventually("the first list is acknowledged", in_step).await;
    let mut changed = balancer.clients.changed();
    changed.mark_unchanged();
    drain(&balancer, "10.0.0.1:1").await;
    let second = client.offered(&["10.0.0.2:1"]).await;
    assert!(balancer.clients.holds(&name, &leaver), "it is sent, but nobody said that it is used");
    client.acknowledge(&second);
    timeout(PATIENCE, changed.wait_for(|_| !clients.holds(&name, &leaver))).await.expect("it is told").unwrap();
    // What a client brings with it counts as well.
    let mut other = Client::open(connect(balancer.address).await).await;
    let held = v1::HeldList { service: "greeter".into(), endpoints: vec!["10.0.0.1:1".into()], ..Default::default() };
    other.ask(Ask::Hello(Hello { client_id: "web-2".into(), held: vec![held], ..Hello::default() }));
    other.subscribe("greeter");
    let list = other.list().await;
    assert!(balancer.clients.holds(&name, &leaver));
    other.acknowledge(&list);
    eventually("it uses our list", || !clients.holds(&name, &leaver)).await;
    drop((client, other));
    eventually("streams are forgotten", || clients.count() == 0).await;
}

#[tokio::test]
async fn a_refused_list_is_noted_and_the_one_before_still_held() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1", "10.0.0.2:1"]).await;
    let mut client = Client::greeted(&balancer, "web-1").await;
    client.subscribe("greeter");
    let first = client.offered(&["10.0.0.1:1", "10.0.0.2:1"]).await;
    client.acknowledge(&first);
    drain(&balancer, "10.0.0.1:1").await;
    let second = client.offered(&["10.0.0.2:1"]).await;
    client.ask(Ask::Ack(Ack { service: "greeter".into(), version: second.version, refused: "too\nshort".into() }));
    let view = || balancer.clients.views().pop().unwrap();
    eventually("it is noted", || view().refused == "too short").await;
    assert_eq!(view().standing, crate::frontend::clients::Standing::Refused);
    assert!(balancer.clients.holds(&service("greeter"), &address("10.0.0.1:1")));
}

#[tokio::test]
async fn who_would_wait_too_long_for_a_first_list_is_told_when_to_come_back_and_who_has_it_is_not() {
    let admission = Admission::new();
    while admission.enter(1 << 20, tokio::time::Instant::now()).is_ok() {}
    let stop = CancellationToken::new();
    let driver = driver_with(ServiceConfig::default(), &stop);
    let balancer = balancer_that_admits(driver, stop, admission).await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let mut newcomer = Client::greeted(&balancer, "new").await;
    newcomer.subscribe("greeter");
    let refused = newcomer.answer().await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "ADMISSION");
    let back_ms: u64 = refused.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!(PUSHBACK.contains(&Duration::from_millis(back_ms)));
    let cohort = Cohort::of(&ClientId::parse("old").unwrap(), Locality::unknown());
    let digest = match &**balancer.cohorts.subscribe(&service("greeter"), &cohort).borrow() {
        crate::frontend::cohorts::Answer::List(published) => published.whole.list.assignment.digest,
        other => panic!("{other:?} is no list"),
    };
    let mut old = Client::open(connect(balancer.address).await).await;
    let held = v1::HeldList {
        service: "greeter".into(),
        digest,
        endpoints: vec!["10.0.0.1:1".into()],
        ..v1::HeldList::default()
    };
    old.ask(Ask::Hello(Hello { client_id: "old".into(), held: vec![held], ..Hello::default() }));
    old.subscribe("greeter");
    assert_eq!(old.method_policy().await.rules, []);
    assert!(matches!(old.answer().await.unwrap(), Said::Tick(_)));
    // A moment later there is room for the newcomer as well.
    let mut again = Client::greeted(&balancer, "new").await;
    again.subscribe("greeter");
    let served = async {
        while let Err(refused) = again.answer().await {
            assert_eq!(refused.code(), Code::ResourceExhausted);
            tokio::time::sleep(Duration::from_millis(5)).await;
            again = Client::greeted(&balancer, "new").await;
            again.subscribe("greeter");
        }
    };
    timeout(PATIENCE, served).await.expect("it is served");
}

#[tokio::test]
async fn a_stream_that_is_not_read_for_long_ends_and_its_connection_goes_on() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1"]).await;
    let narrow = Channel::from_shared(format!("http://{}", balancer.address)).unwrap();
    let narrow = narrow.initial_stream_window_size(1).connect().await.unwrap();
    let mut slow = Client::open(narrow.clone()).await;
    slow.ask(Ask::Hello(Hello { client_id: "slow".into(), ..Hello::default() }));
    slow.subscribe("greeter");
    let other = Client::open(narrow).await;
    other.ask(Ask::Hello(Hello { client_id: "other".into(), ..Hello::default() }));
    eventually("both are there", || balancer.clients.count() == 2).await;
    // A window of one byte takes no list: one is in the library's hands, one in its place, the next one waits.
    for host in 2..60 {
        list(&balancer.driver, "greeter", &["10.0.0.1:1", &format!("10.0.0.{host}:1")]).await;
        tokio::time::pause();
        tokio::time::advance(crate::limits::UNREAD_MAX).await;
        tokio::time::resume();
        if balancer.clients.count() == 1 {
            // What was sent before the end is lost, and the end is a reset.
            assert!(timeout(PATIENCE, async { while slow.answer().await.is_ok() {} }).await.is_ok());
            other.subscribe("nobody");
            let heard = || balancer.clients.views().iter().any(|view| view.service == service("nobody"));
            eventually("the other one is heard", heard).await;
            return;
        }
    }
    panic!("the stream is still there");
}

#[tokio::test]
async fn a_change_reaches_every_stream() {
    let balancer = balancer().await;
    list(&balancer.driver, "greeter", &["10.0.0.1:1", "10.0.0.2:1"]).await;
    let mut clients = Vec::new();
    for connection in 0..5 {
        let channel = connect(balancer.address).await;
        for stream in 0..100 {
            let mut client = Client::open(channel.clone()).await;
            let client_id = format!("web-{connection}-{stream}");
            client.ask(Ask::Hello(Hello { client_id, ..Hello::default() }));
            client.subscribe("greeter");
            client.offered(&["10.0.0.1:1", "10.0.0.2:1"]).await;
            clients.push(client);
        }
    }
    assert!(balancer.cohorts.count() <= 64, "five hundred streams share their lists");
    drain(&balancer, "10.0.0.1:1").await;
    for client in &mut clients {
        client.offered(&["10.0.0.2:1"]).await;
    }
}
