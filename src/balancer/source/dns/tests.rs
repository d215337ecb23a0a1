use std::{net::IpAddr, num::NonZeroU16};

use hickory_resolver::proto::{
    op::ResponseCode,
    rr::{RData, Record, RecordType, rdata::CNAME},
};
use lookaside_core::{
    config::ServiceConfig, limits::ENDPOINTS_PER_SERVICE_MAX, model::Locality, snapshot::ServiceSnapshot,
};
use name_server::{NameServer, Says, address_records, addresses, srv_records};

use super::*;
use crate::testing::{address, driver, eventually, service, until};

#[path = "../../../../tests/harness/name_server.rs"]
mod name_server;

const NAME: &str = "greeter.test.";
const SRV: &str = "_grpc._tcp.greeter.test.";

fn dns(server: &NameServer, records: Records) -> Dns {
    let name = if records == Records::Srv { SRV } else { NAME };
    Dns {
        name: name.trim_end_matches('.').to_owned(),
        records,
        servers: vec![server.address],
        search: false,
        refresh_min: Duration::from_millis(100),
        refresh_max: Duration::from_secs(30),
        locality: Locality::parse("eu/a").unwrap(),
        priority: 0,
        tls_name: None,
    }
}

fn v4() -> Records {
    Records::Addresses { v4: true, v6: false, port: NonZeroU16::new(50051).unwrap(), weight: 100 }
}

fn both() -> Records {
    Records::Addresses { v4: true, v6: true, port: NonZeroU16::new(50051).unwrap(), weight: 100 }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A driver that follows one name.
struct World {
    driver: Handle,
    names: Names,
    _stop: tokio_util::sync::DropGuard,
}

impl World {
    async fn following(dns: Dns) -> Self {
        let stop = CancellationToken::new();
        let driver = driver(&stop);
        let mut names = Names::new(driver.clone(), stop.clone(), TaskTracker::new());
        names.apply(&[configured(Some(dns))]).await;
        Self { driver, names, _stop: stop.drop_guard() }
    }

    /// Waits until lists of the service would name these, no more and no less.
    async fn lists(&self, wanted: &[&str]) {
        until(&self.driver, |snapshot| greeter(snapshot).is_some_and(|service| listed(service) == wanted)).await;
    }

    async fn is_stale(&self, word: &str) {
        until(&self.driver, |snapshot| source(snapshot).stale.as_ref().is_some_and(|(_, why)| why.contains(word)))
            .await;
    }

    async fn is_well(&self, word: &str) {
        until(&self.driver, |snapshot| {
            let source = source(snapshot);
            source.stale.is_none() && source.answered_at.is_some() && source.detail.contains(word)
        })
        .await;
    }

    fn endpoint(&self, text: &str) -> EndpointSpec {
        let snapshot = self.driver.snapshots();
        let snapshot = snapshot.borrow();
        greeter(&snapshot).unwrap().endpoint(&address(text)).unwrap().spec.clone()
    }
}

fn configured(dns: Option<Dns>) -> Service {
    Service { name: service("greeter"), config: ServiceConfig::default(), endpoints: None, dns }
}

fn greeter(snapshot: &Snapshot) -> Option<&ServiceSnapshot> {
    snapshot.services.get(&service("greeter")).map(Arc::as_ref)
}

fn source(snapshot: &Snapshot) -> lookaside_core::snapshot::SourceSnapshot {
    snapshot.sources.get(&Dns::source(&service("greeter")).unwrap()).cloned().unwrap_or_default()
}

/// Those that the source names.
fn listed(service: &ServiceSnapshot) -> Vec<&str> {
    service.endpoints.iter().filter(|e| !e.sources.is_empty()).map(|e| e.spec.address.as_str()).collect()
}

#[tokio::test]
async fn addresses_are_listed_followed_and_left() {
    let server = NameServer::start().await;
    server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1", "10.0.0.2"])));
    server.say(NAME, RecordType::AAAA, addresses(NAME, 5, &ips(&["2001:db8::1"])));
    let world = World::following(dns(&server, both())).await;
    world.lists(&["10.0.0.1:50051", "10.0.0.2:50051", "[2001:db8::1]:50051"]).await;
    let one = world.endpoint("10.0.0.1:50051");
    assert_eq!((&*one.tls_name, one.locality.as_str(), one.weight), ("greeter.test", "eu/a", 100));
    world.is_well(&format!("A+AAAA greeter.test. -> 3 addresses, ttl 0 s, from {}", server.address)).await;
    server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.2", "10.0.0.3"])));
    world.lists(&["10.0.0.2:50051", "10.0.0.3:50051", "[2001:db8::1]:50051"]).await;
    // A family that has none is believed at once: the name is there, and has others.
    server.say(NAME, RecordType::AAAA, Says::Code(ResponseCode::NoError));
    world.lists(&["10.0.0.2:50051", "10.0.0.3:50051"]).await;
}

#[tokio::test]
async fn a_name_is_asked_when_its_records_have_lived_and_not_before() {
    let server = NameServer::start().await;
    server.say(NAME, RecordType::A, addresses(NAME, 3_600, &ips(&["10.0.0.1"])));
    let world = World::following(Dns { refresh_min: Duration::from_millis(10), ..dns(&server, v4()) }).await;
    world.lists(&["10.0.0.1:50051"]).await;
    let asked = server.questions();
    let other = NameServer::start().await;
    other.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1"])));
    let _other = World::following(Dns { refresh_min: Duration::from_millis(10), ..dns(&other, v4()) }).await;
    eventually("it is asked as often as it may be", || other.questions().udp > 20).await;
    assert_eq!(server.questions(), asked, "its records live for an hour");
}

#[tokio::test]
async fn no_failure_takes_anything_away() {
    let server = NameServer::start().await;
    server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1", "10.0.0.2"])));
    let world = World::following(dns(&server, v4())).await;
    let all = ["10.0.0.1:50051", "10.0.0.2:50051"];
    world.lists(&all).await;
    let alias = |to: &str| {
        let of = Name::from_ascii(to).unwrap();
        Record::from_rdata(Name::from_ascii(NAME).unwrap(), 0, RData::CNAME(CNAME(of)))
    };
    for (says, word) in [
        (Says::Code(ResponseCode::ServFail), "SERVFAIL"),
        (Says::Code(ResponseCode::Refused), "REFUSED"),
        (Says::Code(ResponseCode::NotImp), "code 4"),
        (Says::Silence, "does not answer"),
        (Says::Records(address_records("other.test.", 0, &ips(&["10.0.0.9"])), Vec::new()), "another name"),
        (addresses(NAME, 0, &ips(&["0.0.0.0", "224.0.0.1", "255.255.255.255"])), "could be called"),
        (Says::Records(vec![alias(NAME)], Vec::new()), "circle"),
    ] {
        server.say(NAME, RecordType::A, says);
        world.is_stale(word).await;
        world.lists(&all).await;
        server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1", "10.0.0.2"])));
        world.is_well("2 addresses").await;
    }
}

#[tokio::test]
async fn an_absence_is_believed_only_when_it_was_said_again_and_again() {
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        let server = NameServer::start().await;
        server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1"])));
        let world = World::following(dns(&server, v4())).await;
        world.lists(&["10.0.0.1:50051"]).await;
        server.say(NAME, RecordType::A, Says::Code(code));
        world.is_stale("this is the 1.").await;
        world.lists(&["10.0.0.1:50051"]).await;
        // Told then, and for the table the proof begins: the list itself stays for another half minute.
        let why = if code == ResponseCode::NXDomain { "no such name (NXDOMAIN)" } else { "no records" };
        world.is_well(&format!("0 addresses, {why}")).await;
        until(&world.driver, |snapshot| {
            let service = greeter(snapshot).unwrap();
            listed(service).is_empty() && service.offered().count() == 1
        })
        .await;
        server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1"])));
        world.lists(&["10.0.0.1:50051"]).await;
    }
}

#[tokio::test]
async fn aliases_are_followed_within_a_reply_and_beyond_it() {
    let server = NameServer::start().await;
    let alias = |from: &str, to: &str| {
        let of = Name::from_ascii(to).unwrap();
        Record::from_rdata(Name::from_ascii(from).unwrap(), 0, RData::CNAME(CNAME(of)))
    };
    let within = [vec![alias(NAME, "b.test.")], address_records("b.test.", 0, &ips(&["10.0.0.1"]))].concat();
    server.say(NAME, RecordType::A, Says::Records(within, Vec::new()));
    let world = World::following(dns(&server, v4())).await;
    world.lists(&["10.0.0.1:50051"]).await;
    assert_eq!(&*world.endpoint("10.0.0.1:50051").tls_name, "greeter.test", "the name that was asked for");
    server.say(NAME, RecordType::A, Says::Records(vec![alias(NAME, "c.test.")], Vec::new()));
    server.say("c.test.", RecordType::A, addresses("c.test.", 0, &ips(&["10.0.0.2"])));
    world.lists(&["10.0.0.2:50051"]).await;
    // SRV records behind an alias as well.
    let moved = [vec![alias(SRV, "_x.test.")], srv_records("_x.test.", 0, &[(0, 0, 80, "c.test.")])].concat();
    server.say(SRV, RecordType::SRV, Says::Records(moved, Vec::new()));
    let world = World::following(dns(&server, Records::Srv)).await;
    world.lists(&["10.0.0.2:80"]).await;
}

#[tokio::test]
async fn srv_records_give_ports_tiers_weights_and_names() {
    let server = NameServer::start().await;
    let targets = [(20, 5, 81, "C.test."), (10, 60, 80, "a.test."), (10, 20, 80, "b.test.")];
    // The addresses of one came along, those of the others have to be asked for.
    let along = address_records("a.test.", 0, &ips(&["10.0.0.1"]));
    server.say(SRV, RecordType::SRV, Says::Records(srv_records(SRV, 0, &targets), along));
    server.say("b.test.", RecordType::A, addresses("b.test.", 0, &ips(&["10.0.0.2"])));
    server.say("c.test.", RecordType::AAAA, addresses("c.test.", 0, &ips(&["2001:db8::3"])));
    // Never asked for: a set of records that came along is whole.
    server.say("a.test.", RecordType::A, Says::Code(ResponseCode::ServFail));
    server.say("a.test.", RecordType::AAAA, Says::Code(ResponseCode::NoError));
    let world = World::following(Dns { priority: 2, ..dns(&server, Records::Srv) }).await;
    world.lists(&["10.0.0.1:80", "10.0.0.2:80", "[2001:db8::3]:81"]).await;
    let seen = |text: &str| {
        let spec = world.endpoint(text);
        (spec.tls_name.to_string(), spec.priority, spec.weight)
    };
    assert_eq!(seen("10.0.0.1:80"), ("a.test".to_owned(), 2, 120));
    assert_eq!(seen("10.0.0.2:80"), ("b.test".to_owned(), 2, 40));
    assert_eq!(seen("[2001:db8::3]:81"), ("c.test".to_owned(), 3, 100));
    world.is_well("3 addresses of 3 targets").await;
}

#[tokio::test]
async fn a_target_that_cannot_be_resolved_keeps_what_it_had() {
    let server = NameServer::start().await;
    let targets = srv_records(SRV, 0, &[(0, 1, 80, "a.test."), (0, 1, 80, "b.test.")]);
    server.say(SRV, RecordType::SRV, Says::Records(targets, Vec::new()));
    server.say("a.test.", RecordType::A, addresses("a.test.", 0, &ips(&["10.0.0.1"])));
    server.say("b.test.", RecordType::A, Says::Code(ResponseCode::ServFail));
    server.say("b.test.", RecordType::AAAA, Says::Code(ResponseCode::ServFail));
    let world = World::following(dns(&server, Records::Srv)).await;
    // A first listing waits for all of them, but not for ever.
    world.is_stale("b.test: ").await;
    world.lists(&["10.0.0.1:80"]).await;
    world.is_well("1 of 2 targets not resolved").await;
    server.say("b.test.", RecordType::A, addresses("b.test.", 0, &ips(&["10.0.0.2"])));
    world.lists(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    server.say("a.test.", RecordType::A, Says::Code(ResponseCode::ServFail));
    world.is_well("a.test: ").await;
    world.lists(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    // The record itself gone, so is the target.
    let left = srv_records(SRV, 0, &[(0, 1, 80, "b.test.")]);
    server.say(SRV, RecordType::SRV, Says::Records(left, Vec::new()));
    world.lists(&["10.0.0.2:80"]).await;
}

#[tokio::test]
async fn a_thousand_records_come_over_tcp_and_too_many_targets_are_refused_whole() {
    let server = NameServer::start().await;
    let thousand: Vec<IpAddr> =
        (0..1_000u16).map(|n| IpAddr::from([10, 1, (n / 250) as u8, (n % 250) as u8])).collect();
    server.say(NAME, RecordType::A, addresses(NAME, 0, &thousand));
    let world = World::following(dns(&server, v4())).await;
    let holds =
        |snapshot: &Arc<Snapshot>, count| greeter(snapshot).is_some_and(|service| listed(service).len() == count);
    until(&world.driver, |snapshot| holds(snapshot, 1_000)).await;
    assert!(server.questions().tcp > 0 && server.questions().udp > 0, "{:?}", server.questions());

    let names: Vec<String> = (0..1_100).map(|n| format!("t{n}.test.")).collect();
    let targets: Vec<(u16, u16, u16, &str)> = names.iter().map(|name| (0, 1, 80, name.as_str())).collect();
    let along: Vec<Record> = names[..3].iter().flat_map(|name| address_records(name, 0, &ips(&["10.0.0.1"]))).collect();
    let says = |targets, along| Says::Records(srv_records(SRV, 0, targets), along);
    server.say(SRV, RecordType::SRV, says(&targets[..2], along.clone()));
    let world = World::following(dns(&server, Records::Srv)).await;
    world.lists(&["10.0.0.1:80"]).await;
    server.say(SRV, RecordType::SRV, says(&targets, along));
    world.is_stale("1100 targets, at most 1000").await;
    world.lists(&["10.0.0.1:80"]).await;
    const { assert!(DNS_TARGETS_MAX <= ENDPOINTS_PER_SERVICE_MAX) };
}

#[tokio::test]
async fn of_several_name_servers_the_first_that_answers_counts() {
    let (broken, sound) = (NameServer::start().await, NameServer::start().await);
    broken.say(NAME, RecordType::A, Says::Code(ResponseCode::ServFail));
    sound.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1"])));
    let servers = vec![broken.address, sound.address];
    let world = World::following(Dns { servers, ..dns(&broken, v4()) }).await;
    world.lists(&["10.0.0.1:50051"]).await;
    let asked = sound.questions().udp;
    eventually("it goes on", || sound.questions().udp > asked + 5).await;
    assert_eq!(broken.questions().udp, 1, "the one that answered is asked first");
    // When the sound one breaks, the list stays, and both are asked.
    sound.say(NAME, RecordType::A, Says::Code(ResponseCode::Refused));
    world.is_stale("SERVFAIL").await;
    world.lists(&["10.0.0.1:50051"]).await;
}

#[tokio::test]
async fn until_it_answers_its_service_settles() {
    let server = NameServer::start().await;
    server.say(NAME, RecordType::A, Says::Code(ResponseCode::ServFail));
    let world = World::following(dns(&server, v4())).await;
    let settles =
        |snapshot: &Arc<Snapshot>| greeter(snapshot).is_some_and(|s| s.settling && s.note.contains("dns:greeter"));
    until(&world.driver, settles).await;
    world.is_stale("SERVFAIL").await;
    until(&world.driver, settles).await;
    server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1"])));
    until(&world.driver, |snapshot| greeter(snapshot).is_some_and(|service| !service.settling)).await;
}

#[tokio::test]
async fn who_follows_anew_takes_nothing_that_it_could_not_ask_for() {
    let server = NameServer::start().await;
    server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1"])));
    server.say(NAME, RecordType::AAAA, addresses(NAME, 0, &ips(&["2001:db8::1"])));
    let mut world = World::following(dns(&server, both())).await;
    world.lists(&["10.0.0.1:50051", "[2001:db8::1]:50051"]).await;
    server.say(NAME, RecordType::A, Says::Code(ResponseCode::ServFail));
    server.say(NAME, RecordType::AAAA, addresses(NAME, 0, &ips(&["2001:db8::2"])));
    let edited = Dns { refresh_max: Duration::from_secs(20), ..dns(&server, both()) };
    world.names.apply(&[configured(Some(edited))]).await;
    world.is_well("1 from before stay").await;
    world.lists(&["10.0.0.1:50051", "[2001:db8::2]:50051"]).await;
    server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.2"])));
    world.lists(&["10.0.0.2:50051", "[2001:db8::2]:50051"]).await;
}

#[tokio::test]
async fn another_configuration_follows_other_names() {
    let server = NameServer::start().await;
    server.say(NAME, RecordType::A, addresses(NAME, 0, &ips(&["10.0.0.1"])));
    server.say("other.test.", RecordType::A, addresses("other.test.", 0, &ips(&["10.0.0.2"])));
    let mut world = World::following(dns(&server, v4())).await;
    world.lists(&["10.0.0.1:50051"]).await;
    let other = Dns { name: "other.test".into(), ..dns(&server, v4()) };
    world.names.apply(&[configured(Some(other.clone()))]).await;
    world.lists(&["10.0.0.2:50051"]).await;
    let asked = server.questions().udp;
    eventually("it goes on", || server.questions().udp > asked + 2).await;
    world.names.apply(&[configured(Some(other))]).await;
    world.names.apply(&[configured(None)]).await;
    world.lists(&[]).await;
    until(&world.driver, |snapshot| snapshot.sources.is_empty()).await;
    assert!(world.names.followed.is_empty());
}

#[tokio::test]
async fn on_a_search_list_the_name_that_had_records_is_not_left_at_its_first_absence() {
    let server = NameServer::start().await;
    let names = ["web.a.test.", "web.test."].map(|name| Name::from_ascii(name).unwrap());
    server.say("web.a.test.", RecordType::A, addresses("web.a.test.", 0, &ips(&["10.0.0.1"])));
    server.say("web.test.", RecordType::A, addresses("web.test.", 0, &ips(&["10.0.0.2"])));
    let asker = Asker::new(&[server.address], Arc::new(Semaphore::new(1)));
    let mut search = Search::default();
    let mut ask = async || {
        let until = Instant::now() + DNS_ROUND_MAX;
        match addresses_of(&asker, &names, &mut search, [true, false], until).await.v4 {
            Some(Answer::Found { records, .. }) => records,
            _ => Vec::new(),
        }
    };
    assert_eq!(ask().await, ips(&["10.0.0.1"]));
    server.say("web.a.test.", RecordType::A, Says::Code(ResponseCode::NXDomain));
    for _ in 1..DNS_EMPTY_TRIES {
        assert_eq!(ask().await, ips(&[]));
    }
    assert_eq!(ask().await, ips(&["10.0.0.2"]), "believed");
    // Names before it on the list come first as soon as they have records.
    server.say("web.a.test.", RecordType::A, addresses("web.a.test.", 0, &ips(&["10.0.0.3"])));
    assert_eq!(ask().await, ips(&["10.0.0.3"]));
}

#[tokio::test]
async fn many_names_are_awaited_in_a_few_turns() {
    let server = NameServer::start().await;
    let stop = CancellationToken::new();
    let driver = driver(&stop);
    let mut names = Names::new(driver.clone(), stop.clone(), TaskTracker::new());
    let many: Vec<Service> =
        (0..500).map(|n| Service { name: service(&format!("s{n}")), ..configured(Some(dns(&server, v4()))) }).collect();
    names.apply(&many).await;
    let snapshots = driver.snapshots();
    until(&driver, |snapshot| snapshot.services.len() == many.len()).await;
    let turns = snapshots.borrow().version.sequence;
    assert!(turns < 100, "{turns} snapshots for {} names", many.len());
    drop(stop.drop_guard());
}
