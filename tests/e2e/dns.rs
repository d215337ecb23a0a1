//! Endpoints that a DNS name gives: found and left within the life of its records and a second, and lost by nothing that
//! a name server fails to say. Against a name server of ours, which can fail in every way, and against dnsmasq.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hickory_server::proto::{op::ResponseCode, rr::RecordType};
use lookaside_proto::v1::{EndpointState, ListMode};
use lookaside_tests::{
    Backends, Balancer, Client, Follower, PROCESS_MAX, Process, SERVICE, Signal, TemporaryDirectory, alone, hold_for,
    name_server::{NameServer, Says, address_records, addresses, srv_records},
    now_unix_ms, wait_for,
};
use tokio::net::{TcpListener, TcpStream};

const NAME: &str = "greeter.test.";

/// Life of the records, seconds.
const LIFE: u64 = 2;

/// Beyond the life and a second: other tests and builds take their turns on the same processors.
const NOISE_MS: u64 = 500;

/// Addresses that only one test uses: 127.x.y.0 to 127.x.y.255, by process and test.
fn network() -> [u8; 3] {
    static TESTS: AtomicU8 = AtomicU8::new(0);
    [127, 10 + (std::process::id() % 200) as u8, TESTS.fetch_add(1, Ordering::Relaxed)]
}

/// Backends at addresses that share a port, as A records have it. Known to nobody but by DNS.
struct Fleet {
    port: u16,
    addresses: Vec<IpAddr>,
    processes: Vec<Backends>,
}

impl Fleet {
    async fn start(count: u8) -> Self {
        let [a, b, c] = network();
        let mut fleet = Self { port: 0, addresses: Vec::new(), processes: Vec::new() };
        for d in 1..=count {
            let ip = Ipv4Addr::new(a, b, c, d);
            // The kernel chooses the first port. No connection is made from these addresses, so the others have it too.
            let listen = SocketAddr::new(ip.into(), fleet.port).to_string();
            let backend = Backends::unreported(&["--listen", &listen, "--mean", "5ms"]).await;
            fleet.port = backend.addresses[0].parse::<SocketAddr>().unwrap().port();
            fleet.addresses.push(ip.into());
            fleet.processes.push(backend);
        }
        fleet
    }

    fn endpoint(&self, at: usize) -> String {
        SocketAddr::new(self.addresses[at], self.port).to_string()
    }

    fn endpoints(&self, at: &[usize]) -> BTreeSet<String> {
        at.iter().map(|at| self.endpoint(*at)).collect()
    }

    fn records(&self, at: &[usize]) -> Vec<IpAddr> {
        at.iter().map(|at| self.addresses[*at]).collect()
    }

    async fn calls(&self, at: usize) -> usize {
        Backends::executions(&self.endpoint(at)).await.executions.len()
    }

    async fn wait_for_calls(&self, at: &[usize]) {
        let before = join_all(at.iter().map(|at| self.calls(*at))).await;
        wait_for("calls on every endpoint", PROCESS_MAX, async || {
            let now = join_all(at.iter().map(|at| self.calls(*at))).await;
            before.iter().zip(now).all(|(before, now)| now > before + 5).then_some(())
        })
        .await;
    }
}

/// A balancer that knows [`SERVICE`] by its DNS name alone.
async fn balancer_of(dns: &str) -> Balancer {
    let yaml = format!("services: [{{ name: {SERVICE}, slow_start: 0s, dns: {{ name: {NAME}, {dns} }} }}]");
    Balancer::configured(&yaml).await
}

async fn listed(balancer: &Balancer) -> BTreeSet<String> {
    let endpoints = balancer.endpoints().await;
    let listed = endpoints.into_iter().filter(|endpoint| !endpoint.sources.is_empty());
    listed.map(|endpoint| endpoint.endpoint.unwrap().address).collect()
}

async fn wait_for_list(balancer: &Balancer, wanted: &BTreeSet<String>) {
    wait_for("the list", PROCESS_MAX, async || (listed(balancer).await == *wanted).then_some(())).await;
}

/// What status says of the source.
async fn source(balancer: &Balancer) -> serde_json::Value {
    let status = balancer.json(&["status"]).await;
    let sources = status["sources"].as_array().unwrap();
    sources.iter().find(|source| source["name"] == format!("dns:{SERVICE}")).cloned().unwrap_or_default()
}

async fn wait_for_source(balancer: &Balancer, stale: bool, word: &str) {
    wait_for(&format!("source stale={stale} `{word}`"), PROCESS_MAX, async || {
        let source = source(balancer).await;
        (source["stale"] == stale && source["detail"].as_str().unwrap_or("").contains(word)).then_some(())
    })
    .await;
}

/// Adds and removes records under load, again and again, and holds calls against the life of the records.
async fn records_come_and_go(balancer: &Balancer, fleet: &Fleet, life: u64, mut say: impl AsyncFnMut(&[usize])) {
    let (mut found, mut left) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        say(&[0, 1]).await;
        wait_for_list(balancer, &fleet.endpoints(&[0, 1])).await;
        let client = Client::start(balancer, &["--for", "60s"]);
        fleet.wait_for_calls(&[0, 1]).await;
        let added = now_unix_ms();
        say(&[0, 1, 2]).await;
        fleet.wait_for_calls(&[2]).await;
        let removed = now_unix_ms();
        say(&[1, 2]).await;
        wait_for_list(balancer, &fleet.endpoints(&[1, 2])).await;
        fleet.wait_for_calls(&[1, 2]).await;
        let summary = client.stop().await;
        summary.expect_no_failure();
        found.push(summary.first_call_unix_ms(&fleet.endpoint(2)).unwrap() - added);
        left.push(summary.last_call_unix_ms(&fleet.endpoint(0)).unwrap().saturating_sub(removed));
    }
    println!("records live {life} s; an added one called after {found:?} ms, a removed one left after {left:?} ms");
    for mut times in [found, left] {
        times.sort_unstable();
        assert!(times[1] <= life * 1_000 + 1_000, "{times:?} ms");
        assert!(times[2] <= life * 1_000 + 1_000 + NOISE_MS, "{times:?} ms");
    }
}

#[tokio::test]
async fn an_added_record_is_called_and_a_removed_one_left_within_its_life_and_a_second() {
    let _alone = alone().await;
    let fleet = Fleet::start(3).await;
    let server = NameServer::start().await;
    let say = |at: &[usize]| server.say(NAME, RecordType::A, addresses(NAME, LIFE as u32, &fleet.records(at)));
    say(&[0, 1]);
    let balancer = balancer_of(&format!("port: {}, servers: [{}]", fleet.port, server.address)).await;
    records_come_and_go(&balancer, &fleet, LIFE, async |at| say(at)).await;
}

#[tokio::test]
async fn nothing_that_a_name_server_fails_to_say_costs_a_call_or_an_endpoint() {
    let _alone = alone().await;
    let fleet = Fleet::start(3).await;
    let server = NameServer::start().await;
    let all = fleet.endpoints(&[0, 1, 2]);
    let says_all = || addresses(NAME, 1, &fleet.records(&[0, 1, 2]));
    server.say(NAME, RecordType::A, says_all());
    let balancer = balancer_of(&format!("port: {}, servers: [{}]", fleet.port, server.address)).await;
    wait_for_list(&balancer, &all).await;
    balancer.wait_for_endpoints(3, EndpointState::Eligible).await;
    let client = Client::start(&balancer, &["--for", "90s"]);
    let follower = Follower::start(&balancer.client, "follower");
    fleet.wait_for_calls(&[0, 1, 2]).await;

    for (says, word) in [
        (Says::Code(ResponseCode::ServFail), "SERVFAIL"),
        (Says::Code(ResponseCode::Refused), "REFUSED"),
        (Says::Silence, "does not answer"),
        (addresses(NAME, 1, &[IpAddr::V4(Ipv4Addr::UNSPECIFIED)]), "cannot be used"),
        (Says::Records(address_records("other.test.", 1, &fleet.records(&[0])), Vec::new()), "another name"),
    ] {
        server.say(NAME, RecordType::A, says);
        wait_for_source(&balancer, true, word).await;
        says_that_it_is_stale(&balancer, &fleet, word).await;
        server.say(NAME, RecordType::A, says_all());
        wait_for_source(&balancer, false, "3 addresses").await;
    }
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        server.say(NAME, RecordType::A, Says::Code(code));
        wait_for_source(&balancer, true, "believed after 3 times").await;
        assert_eq!(balancer.service().await.unwrap().mode(), ListMode::Normal);
        // Believed, and told: the proof begins, and lists stay as they are for its half minute.
        wait_for_source(&balancer, false, "0 addresses").await;
        hold_for("all in the list", Duration::from_secs(4), async || {
            let service = balancer.service().await.unwrap();
            service.mode() == ListMode::LastGood && follower.held().offered() == all
        })
        .await;
        server.say(NAME, RecordType::A, says_all());
        wait_for_source(&balancer, false, "3 addresses").await;
    }
    fleet.wait_for_calls(&[0, 1, 2]).await;
    assert_eq!(follower.held().lost, Vec::<String>::new());
    client.stop().await.expect_no_failure();
    for result in ["found", "servfail", "refused", "timeout", "unusable", "nxdomain", "empty"] {
        let label = format!("result=\"{result}\"");
        assert!(balancer.metric("lookaside_dns_lookups_total", &[&label]).await > 0.0, "{result}");
    }
}

/// Status, explain, endpoints and metrics say so.
async fn says_that_it_is_stale(balancer: &Balancer, fleet: &Fleet, word: &str) {
    let screen = balancer.cli(&["status"]).await.expect(0).stdout;
    let line = screen.lines().find(|line| line.contains(&format!("source dns:{SERVICE}"))).unwrap();
    assert!(line.contains("STALE") && line.contains(word), "{screen}");
    let explained = balancer.cli(&["explain", SERVICE, "--endpoint", &fleet.endpoint(0)]).await.expect(0).stdout;
    for word in ["DISCOVERY_STALE", "A+AAAA greeter.test. -> 3 addresses, ttl 1 s, from 127.0.0.1:", "as greeter.test"]
    {
        assert!(explained.contains(word), "{word}: {explained}");
    }
    assert!(explained.contains("IN LIST"), "{explained}");
    let label = format!("source=\"dns:{SERVICE}\"");
    assert_eq!(balancer.metric("lookaside_discovery_up", &[&label]).await, 0.0);
}

/// Makes one backend answer at all these addresses, on one port.
async fn everywhere(addresses: &[IpAddr], backend: &str) -> u16 {
    let mut port = 0;
    for address in addresses {
        // The kernel chooses the first port; nobody else uses these addresses, so the others have it too.
        let listener = TcpListener::bind((*address, port)).await.unwrap();
        port = listener.local_addr().unwrap().port();
        let backend = backend.to_owned();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let backend = backend.clone();
                tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(backend).await {
                        // Whoever ends it has a reason.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
    }
    port
}

#[tokio::test]
async fn a_list_of_a_thousand_comes_and_goes_without_a_failed_call() {
    let _alone = alone().await;
    let [a, b, c] = network();
    // One process stands for all of them: its own queue is not what this is about.
    let backend = Backends::unreported(&["--mean", "5ms", "--slots", "1000", "--queue", "10000"]).await;
    // A network of its own: it does not fit into the last byte.
    let ip = |n: usize| IpAddr::from([a, b.wrapping_add(100), c.wrapping_add((n / 250) as u8), (n % 250) as u8 + 1]);
    let all: Vec<IpAddr> = (0..1_000).map(ip).collect();
    let port = everywhere(&all, &backend.addresses[0]).await;
    let server = NameServer::start().await;
    let say = |count: usize| server.say(NAME, RecordType::A, addresses(NAME, 1, &all[..count]));
    say(3);
    let balancer = balancer_of(&format!("port: {port}, type: A, servers: [{}]", server.address)).await;
    balancer.wait_for_endpoints(3, EndpointState::Eligible).await;
    let client = Client::start(&balancer, &["--for", "60s"]);
    for count in [1_000, 4, 1_000, 3] {
        say(count);
        wait_for(&format!("{count} endpoints"), Duration::from_secs(30), async || {
            (listed(&balancer).await.len() == count).then_some(())
        })
        .await;
        balancer.wait_for_endpoints(count, EndpointState::Eligible).await;
    }
    assert!(server.questions().tcp >= 2, "{:?}", server.questions());
    client.stop().await.expect_no_failure();
}

#[tokio::test]
async fn srv_priorities_are_tiers_and_their_targets_the_names_to_be_verified() {
    let _alone = alone().await;
    let fleet = Fleet::start(3).await;
    let server = NameServer::start().await;
    let port = fleet.port;
    let say = |targets: &[(u16, u16, u16, &str)]| {
        let along = address_records("c.greeter.test.", 1, &fleet.records(&[2]));
        server.say(NAME, RecordType::SRV, Says::Records(srv_records(NAME, 1, targets), along));
    };
    say(&[(10, 30, port, "a.greeter.test."), (10, 10, port, "b.greeter.test."), (20, 0, port, "c.greeter.test.")]);
    server.say("a.greeter.test.", RecordType::A, addresses("a.greeter.test.", 1, &fleet.records(&[0])));
    server.say("b.greeter.test.", RecordType::A, addresses("b.greeter.test.", 1, &fleet.records(&[1])));
    let balancer = balancer_of(&format!("type: SRV, servers: [{}]", server.address)).await;
    wait_for_list(&balancer, &fleet.endpoints(&[0, 1, 2])).await;
    balancer.wait_for_endpoints(3, EndpointState::Eligible).await;
    let list = balancer.json(&["pick", SERVICE]).await;
    let seen = |at: usize| {
        let items = list["items"].as_array().unwrap();
        let item = items.iter().find(|item| item["address"] == fleet.endpoint(at)).unwrap();
        (item["priority"].as_u64().unwrap(), item["capacityMilli"].as_u64().unwrap())
    };
    // The ratio is that of the records, and the larger is at least the usual one.
    assert_eq!((seen(0), seen(1), seen(2).0), ((0, 1200), (0, 400), 1), "{list:#}");
    let explained = balancer.cli(&["explain", SERVICE, "--endpoint", &fleet.endpoint(2)]).await.expect(0).stdout;
    for word in ["SRV greeter.test. -> 3 addresses of 3 targets, ttl 1 s", "as c.greeter.test"] {
        assert!(explained.contains(word), "{word}: {explained}");
    }

    let client = Client::start(&balancer, &["--for", "60s"]);
    fleet.wait_for_calls(&[0, 1]).await;
    assert_eq!(fleet.calls(2).await, 0, "the second tier waits");
    // One target that cannot be resolved keeps its address; with the first tier gone, the second one is called.
    server.say("a.greeter.test.", RecordType::A, Says::Code(ResponseCode::ServFail));
    server.say("a.greeter.test.", RecordType::AAAA, Says::Code(ResponseCode::ServFail));
    wait_for_source(&balancer, false, "1 of 3 targets not resolved").await;
    assert_eq!(listed(&balancer).await, fleet.endpoints(&[0, 1, 2]));
    say(&[(20, 0, port, "c.greeter.test.")]);
    wait_for_list(&balancer, &fleet.endpoints(&[2])).await;
    fleet.wait_for_calls(&[2]).await;
    client.stop().await.expect_no_failure();
}

/// dnsmasq as a process of ours, whose host names are in a file that it reads again when told to.
struct Dnsmasq {
    process: Process,
    address: SocketAddr,
    directory: TemporaryDirectory,
}

impl Dnsmasq {
    async fn start(hosts: &str, further: &str) -> Self {
        let [a, b, c] = network();
        let listen = IpAddr::from([a, b, c, 53]);
        // Bound and let go; nobody else uses this address.
        let port = std::net::TcpListener::bind((listen, 0)).unwrap().local_addr().unwrap().port();
        let directory = TemporaryDirectory::new();
        directory.put("hosts", hosts);
        let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
        let user = user.trim();
        let text = format!(
            "port={port}\nlisten-address={listen}\nbind-interfaces\nno-resolv\nno-hosts\npid-file=\nuser={user}\n\
             local=/test/\nlocal-ttl={LIFE}\naddn-hosts={}\n{further}\n",
            directory.at("hosts").display()
        );
        directory.put("dnsmasq.conf", &text);
        let program =
            ["/usr/sbin/dnsmasq", "/usr/local/sbin/dnsmasq"].into_iter().find(|path| fs::exists(path).unwrap());
        let mut command = Command::new(program.unwrap_or("dnsmasq"));
        command.args([
            "--keep-in-foreground",
            "--log-facility=-",
            &format!("--conf-file={}", directory.at("dnsmasq.conf").display()),
        ]);
        let process = Process::run("dnsmasq (apt-get install dnsmasq-base)".to_owned(), command);
        Self { process, address: SocketAddr::new(listen, port), directory }
    }

    fn say(&self, hosts: &str) {
        self.directory.put("hosts", hosts);
        self.process.signal(Signal::SIGHUP);
    }
}

#[tokio::test]
async fn dnsmasq_as_a_name_server_is_followed_and_its_troubles_cost_nothing() {
    let _alone = alone().await;
    let fleet = Fleet::start(3).await;
    let hosts = |at: &[usize]| {
        let records = fleet.records(at).into_iter().map(|address| format!("{address} greeter.test\n"));
        records.collect::<String>()
    };
    let dnsmasq = Dnsmasq::start(&hosts(&[0, 1]), "").await;
    let balancer = balancer_of(&format!("port: {}, servers: ['{}']", fleet.port, dnsmasq.address)).await;
    wait_for_list(&balancer, &fleet.endpoints(&[0, 1])).await;
    records_come_and_go(&balancer, &fleet, LIFE, async |at| dnsmasq.say(&hosts(at))).await;

    let all = fleet.endpoints(&[1, 2]);
    let client = Client::start(&balancer, &["--for", "90s"]);
    let follower = Follower::start(&balancer.client, "follower");
    fleet.wait_for_calls(&[1, 2]).await;
    dnsmasq.process.signal(Signal::SIGSTOP);
    wait_for_source(&balancer, true, "does not answer").await;
    fleet.wait_for_calls(&[1, 2]).await;
    dnsmasq.process.signal(Signal::SIGCONT);
    wait_for_source(&balancer, false, "2 addresses").await;
    dnsmasq.say("");
    wait_for_source(&balancer, true, "NXDOMAIN").await;
    wait_for_source(&balancer, false, "0 addresses").await;
    fleet.wait_for_calls(&[1, 2]).await;
    let thousand: String = (0..1_000).map(|n| format!("127.254.{}.{} other.test\n", n / 250, n % 250 + 1)).collect();
    dnsmasq.say(&(thousand + &hosts(&[1, 2])));
    wait_for_source(&balancer, false, "2 addresses").await;
    let held = follower.held();
    assert_eq!((held.lost, held.endpoints.into_keys().collect()), (Vec::new(), all));
    client.stop().await.expect_no_failure();
}

#[tokio::test]
async fn dnsmasq_gives_srv_records_and_a_thousand_addresses() {
    let _alone = alone().await;
    let fleet = Fleet::start(2).await;
    let port = fleet.port;
    let thousand: String = (0..1_000).map(|n| format!("127.254.{}.{} many.test\n", n / 250, n % 250 + 1)).collect();
    let hosts = format!("{thousand}{} a.test\n{} b.test\n", fleet.addresses[0], fleet.addresses[1]);
    let srv = format!("srv-host=greeter.test,a.test,{port},1,10\nsrv-host=greeter.test,b.test,{port},2,0");
    let dnsmasq = Dnsmasq::start(&hosts, &srv).await;
    let servers = dnsmasq.address;
    let yaml = format!(
        "services:\n  - {{ name: {SERVICE}, dns: {{ name: {NAME}, type: SRV, servers: ['{servers}'] }} }}\n  - {{ name: \
         many, health: {{ interval: 1h, deadline: 5s }}, dns: {{ name: many.test, port: {port}, servers: ['{servers}'] }} }}\n"
    );
    let balancer = Balancer::configured(&yaml).await;
    wait_for_list(&balancer, &fleet.endpoints(&[0, 1])).await;
    let list = balancer.json(&["pick", SERVICE]).await;
    let tiers: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["priority"].as_u64()).collect();
    assert_eq!(tiers, [Some(0), Some(1)], "{list:#}");
    wait_for("a thousand endpoints", PROCESS_MAX, async || {
        let many = balancer.json(&["services", "many"]).await;
        (many["items"][0]["endpoints"] == 1_000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_balancer_that_starts_without_its_name_server_says_so_and_lists_stay_incomplete() {
    let _alone = alone().await;
    let fleet = Fleet::start(1).await;
    let server = NameServer::start().await;
    server.say(NAME, RecordType::A, Says::Code(ResponseCode::ServFail));
    let dns = format!("name: {NAME}, port: {}, servers: [{}]", fleet.port, server.address);
    // Past the lease, after which a service that nobody has to name is complete.
    let balancer = Balancer::configured(&format!(
        "defaults: {{ lease: 3s }}\nservices: [{{ name: {SERVICE}, dns: {{ {dns} }} }}]"
    ))
    .await;
    let began = Instant::now();
    hold_for("settling", Duration::from_secs(6), async || balancer.service().await.unwrap().settling).await;
    assert!(began.elapsed() >= Duration::from_secs(6));
    let screen = balancer.cli(&["status"]).await.expect(0).stdout;
    assert!(screen.contains("no answer yet") && screen.contains("SERVFAIL"), "{screen}");
    server.say(NAME, RecordType::A, addresses(NAME, 1, &fleet.addresses));
    wait_for_list(&balancer, &fleet.endpoints(&[0])).await;
    balancer.wait_until_settled().await;
}

#[tokio::test]
async fn a_reload_follows_another_name_and_drops_the_one_that_is_gone() {
    let _alone = alone().await;
    let fleet = Fleet::start(2).await;
    let server = NameServer::start().await;
    server.say(NAME, RecordType::A, addresses(NAME, 1, &fleet.records(&[0])));
    server.say("other.test.", RecordType::A, addresses("other.test.", 1, &fleet.records(&[1])));
    let directory = TemporaryDirectory::new();
    let write = |services: &str| directory.put("lookaside.yaml", &format!("services: [{services}]"));
    let dns = |name: &str| {
        let (port, address) = (fleet.port, server.address);
        format!("{{ name: {SERVICE}, dns: {{ name: {name}, port: {port}, servers: [{address}] }} }}")
    };
    write(&dns("greeter.test"));
    let balancer = Balancer::following(&directory.at("lookaside.yaml")).await;
    wait_for_list(&balancer, &fleet.endpoints(&[0])).await;
    write(&dns("other.test"));
    wait_for_list(&balancer, &fleet.endpoints(&[1])).await;
    write(&format!("{{ name: {SERVICE} }}"));
    wait_for("the source gone", PROCESS_MAX, async || source(&balancer).await.is_null().then_some(())).await;
    let asked = server.questions();
    hold_for("silence", Duration::from_secs(3), async || server.questions() == asked).await;
}
