//! The balancer is away, and comes back: with what it had kept, without it, or as if nothing had been. Nobody's call fails
//! for it, and no list loses anybody who is alive.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use lookaside_proto::v1::EndpointState;
use lookaside_sdk::Channel;
use lookaside_tests::{
    Backends, Balancer, Client, Follower, PROCESS_MAX, Relay, SERVICE, Signal, TemporaryDirectory, address_of,
    hold_for, wait_for, wait_until,
};
use serde_json::Value;

/// How long the balancer is away.
const OUTAGE: Duration = Duration::from_secs(30);

/// Over which time backends can reach it again; the last of them may wait for its next attempt five seconds more.
const RETURN: Duration = Duration::from_secs(8);

/// Backends that are called, beside one that is drained.
const BACKENDS: usize = 6;

/// What happens to the balancer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    KilledAndItsSnapshotLeft,
    KilledAndEverythingLost,
    StoppedAndContinued,
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_thirty_seconds_fails_no_call_and_loses_no_live_endpoint_from_any_list() {
    // Beside one another, since they wait for most of the time.
    let fates = [Fate::KilledAndItsSnapshotLeft, Fate::KilledAndEverythingLost, Fate::StoppedAndContinued];
    join_all(fates.map(outage)).await;
}

async fn outage(fate: Fate) {
    let data = TemporaryDirectory::new();
    let yaml = format!("{{ data_dir: {:?}, defaults: {{ slow_start: 0s }} }}", data.path());
    let mut world = World::new(Balancer::to_be_restarted(&yaml).await).await;
    let channel = Channel::builder(SERVICE).balancers([&world.balancer.client]).connect().await.unwrap();
    let least_held = Cell::new(usize::MAX);
    let look = hold_for("the list of the SDK", Duration::from_secs(300), async || {
        let offered = channel.snapshot().endpoints.iter().filter(|endpoint| endpoint.weight > 0).count();
        least_held.set(offered.min(least_held.get()));
        true
    });
    tokio::select! {
        () = look => panic!("{fate:?} has no end"),
        () = goes_away_and_comes_back(&mut world, fate, data.path()) => {}
    }
    assert_eq!(least_held.get(), BACKENDS, "{fate:?}");
    let summary = world.client.stop().await;
    println!("{fate:?}: {} calls, {} failed", summary.calls(), summary.failed());
    summary.expect_no_failure();
    assert_eq!(summary.used(), BACKENDS, "{:#}", summary.0);
    assert_eq!(summary.calls_on(&world.drained), 0, "{:#}", summary.0);
    assert!(summary.calls() > 200 * OUTAGE.as_secs(), "{:#}", summary.0);
}

async fn goes_away_and_comes_back(world: &mut World, fate: Fate, data_dir: &Path) {
    let before = world.follower.held();
    assert_eq!(before.offered(), world.live, "{fate:?}");
    match fate {
        Fate::StoppedAndContinued => world.balancer.process.signal(Signal::SIGSTOP),
        Fate::KilledAndItsSnapshotLeft | Fate::KilledAndEverythingLost => {
            world.balancer.process.signal(Signal::SIGKILL);
            world.balancer.process.ended(PROCESS_MAX).await;
            world.relays.iter().for_each(Relay::close);
        }
    }
    wait_until(Instant::now() + OUTAGE).await;
    match fate {
        Fate::StoppedAndContinued => world.balancer.process.signal(Signal::SIGCONT),
        Fate::KilledAndItsSnapshotLeft => world.balancer.restart().await,
        Fate::KilledAndEverythingLost => {
            fs::remove_dir_all(data_dir).unwrap();
            world.balancer.restart().await;
        }
    }
    let back_at = Instant::now();
    let newcomer = Follower::start(&world.balancer.client, "newcomer");
    match fate {
        Fate::KilledAndItsSnapshotLeft => world.serves_what_it_had_kept(&newcomer).await,
        Fate::KilledAndEverythingLost | Fate::StoppedAndContinued => {}
    }
    world.backends_return(back_at).await;
    world.all_is_well().await;
    match fate {
        Fate::KilledAndEverythingLost => was_told_what_there_was(&newcomer, back_at),
        Fate::KilledAndItsSnapshotLeft | Fate::StoppedAndContinued => {}
    }

    // The list that was held was never less, nor was that of who came meanwhile, nor that of the SDK.
    let (after, new) = (world.follower.held(), newcomer.held());
    assert_eq!((after.offered(), after.lost), (world.live.clone(), before.lost), "{fate:?}");
    assert_eq!((new.offered(), new.lost.as_slice()), (world.live.clone(), &[] as &[String]), "{fate:?}");
    let answers: Vec<_> = after.first_answers.iter().map(|(kind, complete, ..)| (*kind, *complete)).collect();
    match fate {
        // The very same list: told in a few bytes.
        Fate::KilledAndItsSnapshotLeft => assert_eq!(answers.last(), Some(&("tick", true)), "{answers:?}"),
        Fate::KilledAndEverythingLost => assert_eq!(answers.last(), Some(&("list", false)), "{answers:?}"),
        Fate::StoppedAndContinued => {}
    }
}

/// A balancer, backends that reach it through relays, one of them drained, and all kinds of clients.
struct World {
    balancer: Balancer,
    relays: Vec<Relay>,
    backends: Vec<Backends>,
    live: BTreeSet<String>,
    drained: String,
    client: Client,
    follower: Follower,
}

impl World {
    async fn new(balancer: Balancer) -> Self {
        let relays = join_all((0..=BACKENDS).map(|_| Relay::to(&balancer.client))).await;
        let start = |relay: &Relay| {
            let address = relay.address.clone();
            async move { Backends::reporting_to(&address, &["--mean", "5ms"]).await }
        };
        let backends = join_all(relays.iter().map(start)).await;
        let addresses: Vec<String> = backends.iter().map(|backend| backend.addresses[0].clone()).collect();
        balancer.wait_for_endpoints(BACKENDS + 1, EndpointState::Eligible).await;
        balancer.wait_until_settled().await;
        let (drained, live) = addresses.split_last().unwrap();
        balancer.cli(&["drain", drained, "--wait"]).await.expect(0);
        // The backend repeats the order to a balancer that has lost it.
        wait_for("a backend that knows of its drain", PROCESS_MAX, async || {
            let all = balancer.endpoints().await;
            let found = all.iter().find(|endpoint| address_of(endpoint) == drained)?;
            (!found.overrides.is_empty() && found.report_ms_ago < 500).then_some(())
        })
        .await;
        let client = Client::start(&balancer, &["--rate", "300", "--for", "150s"]);
        let follower = Follower::start(&balancer.client, "follower");
        let live: BTreeSet<String> = live.iter().cloned().collect();
        balancer.wait_for_load().await;
        wait_for("a list that is held", PROCESS_MAX, async || (follower.held().offered() == live).then_some(())).await;
        // On disk by now, or soon after.
        wait_for("a snapshot on disk", PROCESS_MAX, async || {
            (data_file(&balancer, "snapshot").await["bytes"].as_u64()? > 0).then_some(())
        })
        .await;
        wait_until(Instant::now() + Duration::from_secs(2)).await;
        let drained = drained.clone();
        Self { balancer, relays, backends, live, drained, client, follower }
    }

    /// Before any backend can reach the balancer: all that was offered is, and is said to be stale; who was out is out.
    async fn serves_what_it_had_kept(&self, newcomer: &Follower) {
        let first =
            wait_for("a first list", PROCESS_MAX, async || newcomer.held().first_answers.first().copied()).await;
        assert_eq!((first.0, first.1, first.2), ("list", true, BACKENDS + 1), "{first:?}");
        assert_eq!(newcomer.held().offered(), self.live);
        let endpoints = self.balancer.endpoints().await;
        for endpoint in &endpoints {
            let is_drained = address_of(endpoint) == self.drained;
            assert_eq!(endpoint.state() == EndpointState::Draining, is_drained, "{endpoint:?}");
            assert!(format!("{:?}", endpoint.reasons).contains("not heard of since"), "{endpoint:?}");
        }
        let status = self.balancer.json(&["status"]).await;
        assert_ne!(status["items"][0]["status"], "SETTLING", "{status:#}");
    }

    /// One after another.
    async fn backends_return(&self, since: Instant) {
        let step = RETURN / u32::try_from(self.relays.len()).unwrap();
        for (relay, number) in self.relays.iter().zip(1..) {
            wait_until(since + step * number).await;
            relay.open();
        }
    }

    /// Everybody is heard, in lists as wanted, and every client in step with the balancer.
    async fn all_is_well(&self) {
        let deadline = Duration::from_secs(60);
        wait_for("every backend back", deadline, async || {
            let endpoints = self.balancer.endpoints().await;
            let heard = endpoints.iter().filter(|endpoint| endpoint.reports && endpoint.report_ms_ago < 3_000).count();
            (heard == self.backends.len()).then_some(())
        })
        .await;
        self.balancer.wait_until_settled().await;
        self.balancer.wait_for_endpoints(BACKENDS, EndpointState::Eligible).await;
        self.balancer.wait_for_state(&self.drained, EndpointState::Draining, deadline).await;
        wait_for("every client back", deadline, async || {
            let clients = self.balancer.json(&["clients", SERVICE]).await;
            let clients = clients["items"].as_array().unwrap().clone();
            // Three that call, the SDK client that is looked at, the follower and the newcomer.
            (clients.len() == 6 && clients.iter().all(|client| client["state"] == "SYNCED")).then_some(())
        })
        .await;
        self.balancer.wait_for_load().await;
        hold_for("all endpoints offered", Duration::from_secs(6), async || {
            self.balancer.service().await.is_some_and(|service| service.eligible as usize == BACKENDS)
        })
        .await;
    }
}

/// Without a snapshot a newcomer waits two seconds, and then gets what there is until everybody has had the time to return.
fn was_told_what_there_was(newcomer: &Follower, back_at: Instant) {
    let (kind, complete, named, at) = newcomer.held().first_answers[0];
    assert!(kind == "list" && !complete && named <= BACKENDS, "{kind} {complete} {named}");
    assert!(at - back_at >= Duration::from_millis(1_500), "{:?}", at - back_at);
}

/// How a file of the data directory is, as `status` says it.
async fn data_file(balancer: &Balancer, name: &str) -> Value {
    let status = balancer.json(&["status"]).await;
    let files = status["data"].as_array().unwrap_or_else(|| panic!("{status:#}"));
    files.iter().find(|file| file["name"] == name).unwrap_or_else(|| panic!("{status:#}")).clone()
}

fn configuration(data_dir: &Path) -> String {
    format!("{{ data_dir: {data_dir:?}, defaults: {{ lease: 3s }} }}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_of_no_use_is_refused_with_a_reason_and_the_start_goes_on() {
    let data = TemporaryDirectory::new();
    let mut balancer = Balancer::configured(&configuration(data.path())).await;
    let backends = Backends::offered(&balancer, 2, &[]).await;
    balancer.wait_until_settled().await;
    balancer.process.signal(Signal::SIGTERM);
    balancer.process.ended(PROCESS_MAX).await.expect(0);
    drop(backends);
    let good = fs::read(data.path().join("snapshot.jsonl")).unwrap();
    let lines: Vec<&[u8]> = good.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), 2, "a header and a body");

    let mut damaged = good.clone();
    let middle = lines[0].len() + lines[1].len() / 2;
    damaged[middle] ^= 1;
    let newer = String::from_utf8(good.clone()).unwrap().replacen("\"format\":1", "\"format\":9", 1);
    let cases: [(&str, &str, Vec<u8>); 5] = [
        ("damaged", "its checksum does not fit", damaged),
        ("truncated", "it is truncated", good[..middle].to_vec()),
        ("truncated", "it is truncated", Vec::new()),
        ("foreign", "it is not ours", b"services: []\n".to_vec()),
        ("newer", "it has format 9", newer.into_bytes()),
    ];
    for (reason, words, bytes) in cases {
        is_refused(data.path(), reason, words, Some(&bytes)).await;
    }
    File::create(data.path().join("snapshot.jsonl")).unwrap().set_len(1 << 40).unwrap();
    is_refused(data.path(), "too_large", "bytes, at most", None).await;

    // The good one is not.
    fs::write(data.path().join("snapshot.jsonl"), &good).unwrap();
    let balancer = Balancer::configured(&configuration(data.path())).await;
    assert_eq!(data_file(&balancer, "snapshot").await["refused"], "");
    assert_eq!(balancer.endpoints().await.len(), 2);
}

/// Starts a balancer on a snapshot that it must refuse, and has it serve all the same.
async fn is_refused(data_dir: &Path, reason: &str, words: &str, bytes: Option<&[u8]>) {
    let path = data_dir.join("snapshot.jsonl");
    if let Some(bytes) = bytes {
        fs::write(&path, bytes).unwrap();
    }
    let mut balancer = Balancer::configured(&configuration(data_dir)).await;
    let refused = data_file(&balancer, "snapshot").await["refused"].as_str().unwrap().to_owned();
    assert!(refused.contains(words) && refused.contains("snapshot.jsonl.refused"), "{reason}: {refused}");
    let screen = balancer.cli(&["status"]).await.expect(0).stdout;
    assert!(screen.contains("! snapshot of the last start not used"), "{screen}");
    let labels = ["file=\"snapshot\"", &format!("reason=\"{reason}\"")];
    assert_eq!(balancer.metric("lookaside_data_refused_total", &labels).await, 1.0, "{reason}");
    if let Some(bytes) = bytes {
        assert_eq!(fs::read(data_dir.join("snapshot.jsonl.refused")).unwrap(), bytes, "{reason}: nothing is lost");
    }
    assert!(balancer.endpoints().await.is_empty(), "{reason}");
    let backends = Backends::offered(&balancer, 1, &[]).await;
    drop(backends);
    balancer.process.signal(Signal::SIGKILL);
    let output = balancer.process.ended(PROCESS_MAX).await;
    assert!(output.stderr.contains(words), "{reason}: {}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_degrades_loudly_and_stops_nothing() {
    let data = TemporaryDirectory::new();
    // Where a file is written before it takes the place of the last one, the kernel says that there is no space left.
    let full = ["overrides.json.new", "snapshot.jsonl.new"].map(|name| data.path().join(name));
    full.iter().for_each(|path| symlink("/dev/full", path).unwrap());
    let mut balancer = Balancer::to_be_restarted(&configuration(data.path())).await;
    let backends = serves_while_nothing_can_be_kept(&balancer, "No space left").await;

    full.iter().for_each(|path| fs::remove_file(path).unwrap());
    for name in ["overrides", "snapshot"] {
        wait_for("what was not kept is", PROCESS_MAX, async || {
            data_file(&balancer, name).await["saved"].as_bool()?.then_some(())
        })
        .await;
        assert_eq!(balancer.metric("lookaside_data_saved", &[&format!("file=\"{name}\"")]).await, 1.0);
    }
    balancer.process.signal(Signal::SIGKILL);
    let output = balancer.process.ended(PROCESS_MAX).await;
    let complaints = output.stderr.lines().filter(|line| line.contains("cannot be kept on disk")).count();
    assert_eq!(complaints, 2, "once for each file, however often it was tried: {}", output.stderr);
    balancer.restart().await;
    let drained = balancer.wait_for_state(&backends.addresses[0], EndpointState::Draining, PROCESS_MAX).await;
    assert!(format!("{:?}", drained.overrides).contains("for a while"), "{drained:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_can_only_be_read_degrades_loudly_and_is_read() {
    // Root may write wherever files can be made at all: here nobody can.
    let balancer = Balancer::configured(&configuration(Path::new("/sys/kernel/lookaside"))).await;
    serves_while_nothing_can_be_kept(&balancer, "/sys/kernel/lookaside").await;

    // And here, where directories stand in the way, what was kept can be read all the same.
    let data = TemporaryDirectory::new();
    let mut balancer = Balancer::to_be_restarted(&configuration(data.path())).await;
    let backends = Backends::offered(&balancer, 2, &[]).await;
    balancer.wait_until_settled().await;
    balancer.process.signal(Signal::SIGTERM);
    balancer.process.ended(PROCESS_MAX).await.expect(0);
    for name in ["overrides.json.new", "snapshot.jsonl.new"] {
        fs::create_dir(data.path().join(name)).unwrap();
    }
    let kept = fs::read(data.path().join("snapshot.jsonl")).unwrap();
    balancer.restart().await;
    let known: BTreeSet<String> = balancer.endpoints().await.iter().map(|e| address_of(e).to_owned()).collect();
    assert_eq!(known, backends.addresses.iter().cloned().collect());
    serves_while_nothing_can_be_kept(&balancer, "Is a directory").await;
    assert_eq!(fs::read(data.path().join("snapshot.jsonl")).unwrap(), kept, "the last good one stays");
}

/// A balancer takes registrations and orders though its data directory takes nothing, and says so everywhere.
async fn serves_while_nothing_can_be_kept(balancer: &Balancer, words: &str) -> Backends {
    let backends = Backends::offered(balancer, 2, &[]).await;
    let order = ["drain", &backends.addresses[0], "--reason", "for a while", "--wait"];
    balancer.cli(&order).await.expect(0);
    for name in ["overrides", "snapshot"] {
        let file = wait_for("a failed save", PROCESS_MAX, async || {
            Some(data_file(balancer, name).await).filter(|file| file["saved"] == false)
        })
        .await;
        let told = format!("{} {}", file["path"], file["detail"]);
        assert!(told.contains(words) && !file["detail"].as_str().unwrap().is_empty(), "{file:#}");
        assert_eq!(balancer.metric("lookaside_data_saved", &[&format!("file=\"{name}\"")]).await, 0.0);
        let screen = balancer.cli(&["status"]).await.expect(0).stdout;
        assert!(screen.contains(&format!("! {name} not kept on disk")), "{screen}");
    }
    let summary = Client::start(balancer, &["--for", "1s", "--rate", "40"]).finish().await;
    summary.expect_no_failure();
    assert_eq!(summary.calls_on(&backends.addresses[0]), 0, "{:#}", summary.0);
    backends
}
