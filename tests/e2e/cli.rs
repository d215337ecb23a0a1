//! The commands as scripts and people use them: what they print, how they end, and that what they say is what clients
//! have.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::time::Duration;

use futures_util::StreamExt as _;
use lookaside_proto::v1::{
    EndpointState, Hello, PickRequest, PickResponse, Subscribe, balancer_client::BalancerClient, pick_request::Kind,
    pick_response,
};
use lookaside_sdk::Channel;
use lookaside_tests::{
    Backends, Balancer, PROCESS_MAX, Process, SERVICE, Signal, TemporaryFile, address_of, alone, cli, hold_for,
    nowhere, wait_for,
};
use serde_json::Value;

#[tokio::test]
async fn a_balancer_without_a_configuration_serves_and_ends_well() {
    let mut balancer = Balancer::start().await;
    for address in [&balancer.client, &balancer.admin, &balancer.metrics] {
        assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{address}");
    }
    assert!(balancer.page("/readyz").await.starts_with("HTTP/1.1 200"));
    balancer.cli(&["health"]).await.expect(0);
    let status = balancer.json(&["status"]).await;
    assert_eq!((&status["kind"], &status["clientAddress"]), (&"Status".into(), &balancer.client.as_str().into()));

    balancer.process.signal(Signal::SIGTERM);
    let output = balancer.process.ended(Duration::from_secs(15)).await;
    assert_eq!((output.code, output.stdout.lines().count()), (Some(0), 1), "{output:?}");
}

#[tokio::test]
async fn exit_codes_tell_scripts_what_happened() {
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 2, &[]).await;
    let nowhere = nowhere().to_string();
    let one = backends.addresses[0].as_str();
    for (args, code) in [
        (vec!["status"], 0),
        (vec!["services"], 0),
        (vec!["endpoints", SERVICE], 0),
        (vec!["clients", SERVICE], 0),
        (vec!["pick", SERVICE], 0),
        (vec!["explain", SERVICE], 0),
        (vec!["watch", SERVICE], 0),
        (vec!["version"], 0),
        (vec!["drain", one, "--dry-run"], 0),
        (vec!["health", "--service", "nobody"], 3),
        (vec!["drain"], 2),
        (vec!["drain", "nonsense"], 2),
        (vec!["weight", one, "-1%"], 2),
        (vec!["no-such-command"], 2),
        (vec!["pick"], 2),
        (vec!["services", "nobody"], 3),
        (vec!["endpoints", "nobody"], 3),
        (vec!["explain", "nobody"], 3),
        (vec!["explain", SERVICE, "--endpoint", "127.0.0.1:1"], 3),
        (vec!["explain", SERVICE, "--client", "nobody"], 3),
        (vec!["drain", "127.0.0.1:1"], 3),
        (vec!["drain", "--service", "nobody"], 3),
        (vec!["status", "--addr", &nowhere], 4),
        (vec!["drain", one, "--dry-run", "--addr", &nowhere], 4),
        (vec!["pick", SERVICE, "--balancer", &nowhere], 4),
        (vec!["health", "--balancer", &nowhere], 4),
    ] {
        let output = balancer.cli(&args).await;
        assert_eq!(output.code, Some(code), "{output:?}");
        // Data on stdout, all else on stderr.
        assert_eq!(output.stdout.is_empty(), code != 0, "{output:?}");
        assert!(code == 0 || !output.stderr.is_empty(), "{output:?}");
    }
    // Nothing of this changed anything.
    balancer.wait_for_endpoints(2, EndpointState::Eligible).await;

    for (text, names) in [("listen: { client: nonsense }", "nonsense"), ("no_such_key: 1", "no_such_key"), ("[", ":1:")]
    {
        let bad = TemporaryFile::new(text);
        let output = cli(&["serve", "--config", bad.path()]).await.expect(78);
        assert!(output.stdout.is_empty() && output.stderr.contains(names), "{output:?}");
    }
    cli(&["serve", "--config", "/no/such/file.yaml"]).await.expect(78);
}

#[tokio::test]
async fn a_drain_that_a_client_does_not_hear_of_ends_by_time() {
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 2, &[]).await;
    // A client that takes lists and acknowledges none.
    let asked = [
        Kind::Hello(Hello { client_id: "deaf".to_owned(), ..Hello::default() }),
        Kind::Subscribe(Subscribe { service: SERVICE.to_owned() }),
    ];
    let asked = futures_util::stream::iter(asked.map(|kind| PickRequest { kind: Some(kind) }));
    let mut client = BalancerClient::connect(format!("http://{}", balancer.client)).await.unwrap();
    let mut responses = client.pick(asked.chain(futures_util::stream::pending())).await.unwrap().into_inner();
    let list = tokio::time::timeout(Duration::from_secs(5), responses.message()).await.unwrap().unwrap();
    assert!(matches!(list, Some(PickResponse { kind: Some(pick_response::Kind::List(_)) })), "{list:?}");

    let drained = &backends.addresses[0];
    let output = balancer.cli(&["drain", drained, "--wait", "--timeout", "500ms"]).await.expect(5);
    assert!(output.stderr.contains("deaf"), "{output:?}");
    balancer.wait_for_state(drained, EndpointState::Draining, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_client_holds_the_very_list_that_pick_shows() {
    let balancer = Balancer::start().await;
    let _backends = Backends::offered(&balancer, 12, &["--locality", "eu/a"]).await;
    let _more = Backends::offered(&balancer, 12, &["--locality", "eu/b"]).await;
    let mut orders = Vec::new();
    for (id, locality) in [("web-1", ""), ("web-2", "eu/a"), ("batch-3", "eu/b/r7"), ("cron-4", "us/a")] {
        let builder = Channel::builder(SERVICE).balancers([&balancer.client]).client_id(id).locality(locality);
        let channel = builder.connect().await.unwrap();
        let picked = wait_for("the list that the client holds", Duration::from_secs(10), async || {
            let picked = balancer.json(&["pick", SERVICE, "--client-id", id]).await;
            let held = channel.snapshot();
            let same = picked["digest"] == format!("{:016x}", held.digest).as_str();
            same.then_some((picked, held))
        })
        .await;
        let (picked, held) = picked;
        let shown: Vec<(&str, u64, &str)> = picked["items"].as_array().unwrap().iter().map(place).collect();
        let holds: Vec<(&str, u64, &str)> =
            held.endpoints.iter().map(|e| (e.address.as_str(), u64::from(e.weight), e.locality.as_str())).collect();
        assert_eq!(shown, holds);
        assert_eq!(shown.len(), 24);
        assert_eq!(picked["complete"], held.complete);

        let explained = balancer.json(&["explain", SERVICE, "--client", id]).await;
        let order: Vec<(&str, u64, &str)> = explained["order"].as_array().unwrap().iter().map(place).collect();
        assert_eq!(order, holds, "explain tells another order");
        orders.push(order.iter().map(|(address, ..)| (*address).to_owned()).collect::<Vec<_>>());
    }
    assert!(orders.windows(2).any(|pair| pair[0] != pair[1]), "every cohort has the same order: {orders:?}");
}

fn place(endpoint: &Value) -> (&str, u64, &str) {
    let text = |key: &str| endpoint[key].as_str().unwrap();
    assert!(endpoint["reasons"].is_array());
    (text("address"), endpoint["weight"].as_u64().unwrap(), text("locality"))
}

#[tokio::test]
async fn every_endpoint_in_every_state_is_explained() {
    let _alone = alone().await;
    let quick = "health: { interval: 500ms, deadline: 200ms }, lease: 3s, slow_start: 120s";
    let balancer = Balancer::configured(&format!("defaults: {{ {quick} }}")).await;
    let good = Backends::offered(&balancer, 10, &[]).await;
    let (refusing, hanging) = (Backends::offered(&balancer, 1, &[]).await, Backends::offered(&balancer, 1, &[]).await);
    let mut killed = Backends::offered(&balancer, 1, &[]).await;
    let leaving = Backends::offered(&balancer, 1, &[]).await;
    balancer.wait_until_settled().await;
    let new = Backends::offered(&balancer, 1, &[]).await;

    let [drained, disabled, halved] = [&good.addresses[0], &good.addresses[1], &good.addresses[2]];
    balancer.cli(&["drain", drained, "--reason", "kernel"]).await.expect(0);
    balancer.cli(&["disable", disabled]).await.expect(0);
    balancer.cli(&["weight", halved, "50%"]).await.expect(0);
    refusing.process.signal(Signal::SIGUSR1);
    hanging.process.signal(Signal::SIGSTOP);
    killed.process.signal(Signal::SIGKILL);
    killed.process.ended(Duration::from_secs(5)).await;
    leaving.process.signal(Signal::SIGTERM);

    for (address, state, reason) in [
        (&good.addresses[3], EndpointState::Eligible, None),
        (halved, EndpointState::Eligible, Some("ADMIN_WEIGHT")),
        (&new.addresses[0], EndpointState::Eligible, Some("WARMING_UP")),
        (drained, EndpointState::Draining, Some("ADMIN_DRAIN")),
        (disabled, EndpointState::Disabled, Some("ADMIN_DISABLED")),
        (&leaving.addresses[0], EndpointState::Draining, Some("SELF_DRAINING")),
        (&killed.addresses[0], EndpointState::Excluded, Some("HEALTH_UNREACHABLE")),
        (&hanging.addresses[0], EndpointState::Excluded, Some("HEALTH_TIMEOUT")),
        (&refusing.addresses[0], EndpointState::Excluded, Some("HEALTH_NOT_SERVING")),
    ] {
        balancer.wait_for_state(address, state, Duration::from_secs(10)).await;
        let explained = balancer.json(&["explain", SERVICE, "--endpoint", address]).await;
        let stages = explained["items"].as_array().unwrap();
        assert!(stages.len() >= 5, "{explained:#}");
        let reasons: Vec<&Value> = stages.iter().flat_map(|stage| stage["reasons"].as_array().unwrap()).collect();
        assert!(reason.is_none_or(|reason| reasons.contains(&&Value::from(reason))), "{reason:?} in {explained:#}");
        let in_list = explained["result"].as_str().unwrap().starts_with("IN LIST");
        assert_eq!(in_list, state == EndpointState::Eligible, "{explained:#}");
        assert!(!explained["next"].as_array().unwrap().is_empty(), "{explained:#}");
        let text = balancer.cli(&["explain", SERVICE, "--endpoint", address]).await.expect(0).stdout;
        assert!(reason.is_none_or(|reason| text.contains(reason)) && text.contains("result:"), "{text}");
    }
    // Nothing disappears silently.
    let excluded = balancer.cli(&["endpoints", SERVICE, "--excluded"]).await.expect(0).stdout;
    // But for the killed one, which on a busy machine may have gone with its lease of 15 s by now.
    for address in [&hanging.addresses[0], &refusing.addresses[0], drained, disabled] {
        assert!(excluded.contains(address.as_str()), "{address} is not in\n{excluded}");
    }
}

#[tokio::test]
async fn a_preview_says_what_would_be_and_changes_nothing() {
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 4, &[]).await;
    for (args, after, mode) in [
        (vec!["drain", backends.addresses[0].as_str()], 3, "NORMAL"),
        (vec!["disable", "--service", SERVICE], 0, "EMPTY"),
    ] {
        let preview = balancer.json(&[&args[..], &["--dry-run"]].concat()).await;
        let effect = &preview["items"][0];
        assert_eq!((&effect["eligibleBefore"], &effect["eligibleAfter"]), (&4.into(), &after.into()), "{preview:#}");
        assert_eq!(effect["modeAfter"], mode, "{preview:#}");
        assert_eq!(preview["dryRun"], true);
    }
    hold_for("four endpoints offered", Duration::from_millis(500), async || {
        let endpoints = balancer.endpoints().await;
        endpoints.iter().all(|endpoint| {
            endpoint.state() == EndpointState::Eligible && backends.addresses.iter().any(|a| a == address_of(endpoint))
        })
    })
    .await;
}

#[tokio::test]
async fn an_override_ends_when_its_time_is_over() {
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 2, &[]).await;
    let drained = &backends.addresses[0];
    balancer.cli(&["drain", drained, "--for", "1s"]).await.expect(0);
    balancer.wait_for_state(drained, EndpointState::Draining, Duration::from_secs(1)).await;
    balancer.wait_for_state(drained, EndpointState::Eligible, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn benchmarks_measure_whole_processes_and_lose_nothing() {
    let figure = |told: &serde_json::Value, of: &str, name: &str| {
        let all = told["items"].as_array().unwrap();
        let found = all.iter().find(|figure| figure["of"] == of && figure["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} of {of} in {told:#}"))["value"].as_f64().unwrap()
    };
    let sdk = ["bench", "sdk", "--endpoints", "2", "--rounds", "1", "--calls", "300", "-o", "json"];
    let told = cli(&sdk).await.json();
    assert!(figure(&told, "SDK/bare", "cpu_ratio") > 0.0 && figure(&told, "SDK", "p50_us") > 0.0, "{told:#}");
    let fanout =
        ["bench", "fanout", "--streams", "60", "--connections", "6", "--changes", "4", "--every", "200", "-o", "json"];
    let told = cli(&fanout).await.json();
    for size in ["short list", "1.8 KB list"] {
        assert_eq!(figure(&told, size, "lists_missing"), 0.0, "{told:#}");
        assert!(figure(&told, size, "lists") >= 240.0, "one for each stream and change: {told:#}");
        assert!(figure(&told, size, "propagation_p50_us") > 0.0 && figure(&told, size, "floor_cpu_us_per_push") > 0.0);
    }
}

#[tokio::test]
async fn ways_to_balance_are_measured_side_by_side_and_make_the_same_calls() {
    let windows = ["--repeats", "1", "--for", "1s", "--warm-up", "1s", "--cpu-max", "100", "-o", "json"];
    let quality = ["bench", "quality", "--loads", "0.1", "--policy", "lookaside,p2c"];
    let told = cli(&[&quality[..], &windows].concat()).await.json();
    let rows = told["items"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{told:#}");
    for row in rows {
        assert_eq!((&row["windows"], &row["failed"], &row["calls"]), (&1.into(), &0.into(), &rows[0]["calls"]));
        assert!(row["calls"].as_u64().unwrap() > 50 && row["p99Ms"]["median"].as_f64().unwrap() > 0.0, "{told:#}");
    }
    let sinkhole = ["bench", "sinkhole", "--load", "0.1", "--policy", "p2c"];
    let told = cli(&[&sinkhole[..], &windows].concat()).await.json();
    let (calls, failed) = (&told["items"][0]["calls"], &told["items"][0]["failed"]);
    assert!((1..calls.as_u64().unwrap()).contains(&failed.as_u64().unwrap()), "two of twenty fail: {told:#}");
}

#[tokio::test]
async fn a_benchmark_leaves_no_process_behind_however_it_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut bench = Process::start(&["bench", "quality", "--for", "10m", "--loads", "0.01"]);
        // Guard and balancer, backends, clients.
        let started = wait_for("all processes of a benchmark", PROCESS_MAX, async || {
            Some(descendants(bench.id())).filter(|all| all.len() == 4)
        });
        let started = started.await;
        bench.signal(signal);
        bench.ended(PROCESS_MAX).await;
        wait_for(&format!("the end of all of them after {signal}"), PROCESS_MAX, async || {
            started.iter().all(|id| parent(*id).is_none()).then_some(())
        })
        .await;
        // Nobody is left who could, after a SIGKILL.
        let folder = std::env::temp_dir().join(format!("lookaside-bench-{}-balancer", bench.id()));
        assert_eq!(std::fs::remove_dir_all(folder).is_ok(), signal == Signal::SIGKILL);
    }
}

/// Who started a process; none when there is no such process, or nothing of it but its id.
fn parent(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    fields.next().filter(|state| *state != "Z")?;
    fields.next()?.parse().ok()
}

/// Processes that this one has started, and those that they have.
fn descendants(process: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children: Vec<u32> = ids.filter(|id| parent(*id) == Some(process)).collect();
    children.iter().flat_map(|child| descendants(*child).into_iter().chain([*child])).collect()
}

#[tokio::test]
async fn a_simulation_writes_the_same_bytes_twice_and_no_other_command_writes_csv() {
    let scenario = TemporaryFile::new(
        "name: mine\nendpoints: [{ count: 10 }]\nclients: { count: 10 }\nload: 0.8\nwarm_up_ms: 2000\nmeasured_ms: 3000\n",
    );
    let run = [
        "simulate",
        "run",
        "--scenario",
        scenario.path(),
        "--policy",
        "lookaside,round_robin,bound",
        "--seeds",
        "2",
        "-o",
    ];
    let csv = [&run[..], &["csv"]].concat();
    let (first, second) = tokio::join!(cli(&csv), cli(&csv));
    assert_eq!(first.stdout, second.stdout);
    assert!(first.stdout.starts_with("scenario,policy,window,measure,mean,low,high,seeds\n"), "{}", first.stdout);
    assert!(first.stdout.contains("mine,lookaside,all,gap_closed_percent,"), "{}", first.stdout);
    let told = cli(&[&run[..], &["json"]].concat()).await.json();
    let items = told["items"].as_array().unwrap();
    assert_eq!((&told["kind"], items.len() + 1), (&"Simulation".into(), first.stdout.lines().count()), "{told:#}");
    cli(&["simulate", "scenarios", "-o", "csv"]).await.expect(2);
    cli(&["simulate", "run", "--scenario", "nobody_wrote_it"]).await.expect(3);
}
