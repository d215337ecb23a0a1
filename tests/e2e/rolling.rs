//! Everything is replaced while calls go on: backends one at a time, balancers one at a time, the application itself while no
//! balancer is there. No method is declared idempotent here, so that no retry could hide a failed call.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use lookaside_proto::v1::EndpointState;
use lookaside_tests::{
    Backends, Balancer, Client, Process, SERVICE, Signal, address_of, alone, hold_for, wait_for, wait_until,
};

/// Beyond what a machine that is busy with other things may need for a call.
const DEADLINE: [&str; 2] = ["--deadline", "5s"];
const ENDED_MAX: Duration = Duration::from_secs(30);
/// Silence that a client bears before it leaves a balancer, and what it may then need to find another.
const LEFT_MAX: Duration = Duration::from_secs(15 + 15);

#[tokio::test]
async fn six_backends_and_then_two_balancers_restarted_one_at_a_time_cost_no_call_of_100_000() {
    const RATE: u32 = 2_000;
    const CALLS: u32 = 100_000;
    let _alone = alone().await;
    let config = "registration: { allow_foreign_addresses: true }";
    let mut balancers = [Balancer::to_be_restarted(config).await, Balancer::to_be_restarted(config).await];
    // An address that no connection of this machine is made from: a port that a backend leaves stays free for the next.
    let mut backends = Vec::new();
    for _ in 0..6 {
        backends.push(backend(&balancers, "127.0.0.4:0").await);
    }
    let addresses: Vec<String> = backends.iter().map(|backend| backend.addresses[0].clone()).collect();
    for balancer in &balancers {
        offers_all(balancer, &addresses).await;
    }
    let client = Client::start(
        &balancers[0],
        &[&["--balancer", &balancers[1].client, "--rate", &RATE.to_string(), "--for", "300s"], &DEADLINE[..]].concat(),
    );
    let began = Instant::now();
    balancers_have_clients(&balancers, 3).await;
    wait_for("load on every endpoint", ENDED_MAX, async || {
        let all = [balancers[0].endpoints().await, balancers[1].endpoints().await].concat();
        let called = |address: &String| {
            all.iter().any(|endpoint| address_of(endpoint) == address && endpoint.calls_per_second > 0.0)
        };
        addresses.iter().all(called).then_some(())
    })
    .await;

    for (address, old) in addresses.iter().zip(backends.iter_mut()) {
        terminate(&mut old.process).await;
        *old = backend(&balancers, address).await;
        for balancer in &balancers {
            offers_all(balancer, &addresses).await;
        }
    }
    println!("backends: {:?}", began.elapsed());
    for balancer in &mut balancers {
        terminate(&mut balancer.process).await;
        balancer.restart().await;
        // As whoever rolls a fleet waits for the new one to be ready: it knows all, and lists are complete again.
        offers_all(balancer, &addresses).await;
        balancer.wait_until_settled().await;
    }
    println!("balancers: {:?}", began.elapsed());
    balancers_have_clients(&balancers, 3).await;
    wait_until(began + Duration::from_secs(u64::from(CALLS / RATE) + 2)).await;

    let summary = client.stop().await;
    println!(
        "{} calls in {:?}, {} failed, p99 {} us",
        summary.calls(),
        began.elapsed(),
        summary.failed(),
        summary.0["p99_us"]
    );
    summary.expect_no_failure();
    assert!(summary.calls() >= u64::from(CALLS), "{:#}", summary.0);
    assert_eq!(summary.used(), 6, "{:#}", summary.0);
}

async fn backend(balancers: &[Balancer; 2], listen: &str) -> Backends {
    let flags = ["--balancer", &balancers[1].client, "--listen", listen, "--mean", "2ms", "--slots", "32"];
    Backends::start(&balancers[0], 1, &flags).await
}

async fn offers_all(balancer: &Balancer, addresses: &[String]) {
    for address in addresses {
        balancer.wait_for_state(address, EndpointState::Eligible, ENDED_MAX).await;
    }
}

/// Ends it in good order, as whoever rolls a fleet does.
async fn terminate(process: &mut Process) {
    process.signal(Signal::SIGTERM);
    let output = process.ended(ENDED_MAX).await;
    assert_eq!(output.code, Some(0), "{output:?}");
}

async fn kill(process: &mut Process) {
    process.signal(Signal::SIGKILL);
    process.ended(ENDED_MAX).await;
}

/// Clients of this balancer that have its newest list.
async fn clients_of(balancer: &Balancer) -> usize {
    let output = balancer.cli(&["clients", SERVICE, "-o", "json"]).await;
    // A balancer that has just started may know nobody.
    let clients = (output.code == Some(0)).then(|| output.json());
    let items = clients.iter().flat_map(|clients| clients["items"].as_array().unwrap());
    items.filter(|client| client["state"] == "SYNCED").count()
}

/// Waits until all of them together have so many clients.
async fn balancers_have_clients(balancers: &[Balancer], count: usize) {
    wait_for("every client at a balancer", LEFT_MAX, async || {
        let mut clients = 0;
        for balancer in balancers {
            clients += clients_of(balancer).await;
        }
        (clients == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_balancer_that_is_killed_or_stopped_is_left_for_the_other_and_costs_no_call() {
    let _alone = alone().await;
    for (signal, left_within) in [(Signal::SIGKILL, Duration::from_secs(10)), (Signal::SIGSTOP, LEFT_MAX)] {
        let (mut first, second) = (Balancer::start().await, Balancer::start().await);
        let backends = Backends::offered(&first, 4, &["--mean", "5ms", "--balancer", &second.client]).await;
        offers_all(&second, &backends.addresses).await;
        let flags = [&["--balancer", &second.client, "--clients", "8", "--for", "90s"], &DEADLINE[..]].concat();
        let client = Client::start(&first, &flags);
        // Eight begin at random ones: all at the second would be one run in 256, and is told from a failure below.
        wait_for("eight clients", ENDED_MAX, async || {
            (clients_of(&first).await + clients_of(&second).await == 8).then_some(())
        })
        .await;
        println!("{signal}: {} clients of 8 at the first", clients_of(&first).await);

        first.process.signal(signal);
        let struck = Instant::now();
        wait_for("all at the second", left_within, async || (clients_of(&second).await == 8).then_some(())).await;
        println!("{signal}: all at the second after {:?}", struck.elapsed());
        hold_for("calls without news", Duration::from_secs(2), async || clients_of(&second).await == 8).await;
        let summary = client.stop().await;
        summary.expect_no_failure();
        assert_eq!(summary.used(), 4, "{:#}", summary.0);
        kill(&mut first.process).await;
    }
}

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lookaside-test-{}-{name}", std::process::id()));
        // Of an earlier process of this number, if at all.
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn lists(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "list")).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn an_application_restarted_while_the_balancer_is_away_serves_from_its_cache() {
    let _alone = alone().await;
    let folder = Folder::new("application");
    let mut balancer = Balancer::to_be_restarted("").await;
    let backends = Backends::offered(&balancer, 4, &["--mean", "5ms"]).await;
    let with_cache = ["--cache-dir", folder.path(), "--for", "60s"];
    let client = Client::start(&balancer, &with_cache);
    wait_for("a list on disk", ENDED_MAX, async || (!folder.lists().is_empty()).then_some(())).await;
    balancer.wait_for_load().await;

    // Gone: every connection is refused.
    kill(&mut balancer.process).await;
    client.stop().await.expect_no_failure();
    let without = ["dev", "client", "--service", SERVICE, "--balancer", &balancer.client, "--for", "1s"];
    let output = lookaside_tests::cli(&without).await;
    assert_ne!(output.code, Some(0), "without the cache there is nothing to call: {output:?}");
    let client = Client::start(&balancer, &with_cache);
    wait_for("load", ENDED_MAX, async || {
        let told = Backends::executions(&backends.addresses[0]).await;
        (told.executions.len() >= 500).then_some(())
    })
    .await;
    balancer.restart().await;
    balancers_have_clients(std::slice::from_ref(&balancer), 3).await;
    balancer.wait_for_load().await;
    let summary = client.stop().await;
    summary.expect_no_failure();
    assert_eq!(summary.used(), 4, "{:#}", summary.0);

    // Stopped: connections are taken, and nothing answers.
    balancer.process.signal(Signal::SIGSTOP);
    let summary = Client::start(&balancer, &["--cache-dir", folder.path(), "--for", "5s"]).finish().await;
    summary.expect_no_failure();
    assert_eq!(summary.used(), 4, "{:#}", summary.0);
    balancer.process.signal(Signal::SIGCONT);

    // Damaged: said, and left aside.
    let lists = folder.lists();
    assert_eq!(lists.len(), 1, "three clients in two runs share one file: {lists:?}");
    let mut bytes = fs::read(&lists[0]).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&lists[0], bytes).unwrap();
    let mut process = Client::start(&balancer, &["--cache-dir", folder.path(), "--for", "2s"]).process;
    let output = process.ended(ENDED_MAX).await.expect(0);
    assert!(output.stderr.contains("damaged: its checksum"), "{output:?}");
    assert_eq!(output.json()["failed"], 0, "{output:?}");
}

#[tokio::test]
async fn balancers_may_be_given_by_name() {
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let port = balancer.client.rsplit(':').next().unwrap();
    let by_name = format!("localhost:{port}");
    let flags = ["dev", "backend", "--service", SERVICE, "--balancer", &by_name, "--mean", "5ms", "--count", "2"];
    let mut backends = Process::start(&flags);
    let addresses: Vec<String> =
        backends.json_lines(2).await.iter().map(|line| line["address"].as_str().unwrap().to_owned()).collect();
    offers_all(&balancer, &addresses).await;
    let flags = ["dev", "client", "--service", SERVICE, "--balancer", &by_name, "--for", "3s", "-o", "json"];
    let summary = Process::start(&flags).ended(ENDED_MAX).await.expect(0).json();
    assert!(summary["failed"] == 0 && summary["calls"].as_u64().unwrap() > 0, "{summary:#}");
    terminate(&mut backends).await;
}
