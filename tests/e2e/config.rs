//! The configuration of a balancer that runs: a changed file takes effect without a restart and without a stream lost, a
//! bad one changes nothing and is told of everywhere, and `validate` says of each what `serve` would.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path, time::Duration};

use lookaside_proto::v1::{EndpointState, ListClientsRequest, ListMode};
use lookaside_tests::{
    Backends, Balancer, Client, PROCESS_MAX, Process, SERVICE, Signal, TemporaryDirectory, address_of, cli, hold_for,
    wait_for,
};
use serde_json::Value;

const FILE: &str = "lookaside.yaml";

/// A file that lists these for [`SERVICE`]; nobody registers.
fn listing(addresses: &[&String]) -> String {
    let endpoints: Vec<_> = addresses.iter().map(|address| format!("'{address}'")).collect();
    format!(
        "registration: {{ enabled: false }}\nservices:\n  - name: {SERVICE}\n    slow_start: 0s\n    endpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// Backends that nobody knows of but the file.
async fn unregistered(balancer: &Balancer, count: usize) -> Backends {
    Backends::start(balancer, count, &["--mean", "2ms"]).await
}

async fn wait_until_listed(balancer: &Balancer, addresses: &[&String]) {
    wait_for(&format!("{addresses:?} and nobody else"), PROCESS_MAX, async || {
        let endpoints = balancer.endpoints().await;
        let all_serve = endpoints.iter().all(|endpoint| endpoint.state() == EndpointState::Eligible);
        let known: BTreeSet<_> = endpoints.iter().map(address_of).collect();
        (all_serve && known == addresses.iter().map(|address| address.as_str()).collect()).then_some(())
    })
    .await;
}

/// Where the pick streams come from: another stream of the same client would have another port.
async fn pick_streams(balancer: &Balancer) -> BTreeSet<String> {
    let clients = balancer.admin().await.list_clients(ListClientsRequest::default()).await.unwrap().into_inner();
    clients.clients.into_iter().map(|client| format!("{} {}", client.client_id, client.peer)).collect()
}

async fn config_status(balancer: &Balancer) -> Value {
    balancer.json(&["status"]).await["config"].clone()
}

#[tokio::test]
async fn a_renamed_file_takes_effect_without_a_restart_and_without_a_stream_lost() {
    let folder = TemporaryDirectory::new();
    folder.put(FILE, "registration: { enabled: false }\n");
    let balancer = Balancer::following(&folder.at(FILE)).await;
    let backends = unregistered(&balancer, 3).await;
    let [a, b, c] = &backends.addresses[..] else { panic!("three were wanted") };
    folder.put(FILE, &listing(&[a, b]));
    wait_until_listed(&balancer, &[a, b]).await;

    let client = Client::start(&balancer, &["--for", "60s", "--rate", "300", "--clients", "2"]);
    let streams = wait_for("two pick streams", PROCESS_MAX, async || {
        Some(pick_streams(&balancer).await).filter(|streams| streams.len() == 2)
    })
    .await;
    balancer.wait_for_endpoints(2, EndpointState::Eligible).await;
    folder.put(FILE, &listing(&[b, c]));
    wait_until_listed(&balancer, &[b, c]).await;
    let left_unix_ms = lookaside_tests::now_unix_ms();
    hold_for("the streams of before", Duration::from_secs(4), async || pick_streams(&balancer).await == streams).await;
    let summary = client.stop().await;
    summary.expect_no_failure();
    assert!(summary.calls_on(a) > 0 && summary.calls_on(b) > 0 && summary.calls_on(c) > 0, "{:#}", summary.0);
    assert!(summary.last_call_unix_ms(a).unwrap() < left_unix_ms + 2_000, "{:#}", summary.0);
    assert!(balancer.metric("lookaside_config_reloads_total", &["result=\"applied\""]).await >= 2.0);
}

#[tokio::test]
async fn the_swapped_link_of_a_config_map_takes_effect() {
    let folder = TemporaryDirectory::new();
    let version = |name: &str, text: &str| {
        fs::create_dir(folder.at(name)).unwrap();
        fs::write(folder.at(name).join(FILE), text).unwrap();
        // The link is made beside the one in use and renamed over it: that is how the kubelet does it.
        symlink(name, folder.at("..data_tmp")).unwrap();
        fs::rename(folder.at("..data_tmp"), folder.at("..data")).unwrap();
    };
    version("..2026_1", "registration: { enabled: false }\n");
    symlink(Path::new("..data").join(FILE), folder.at(FILE)).unwrap();
    let balancer = Balancer::following(&folder.at(FILE)).await;
    let backends = unregistered(&balancer, 2).await;
    let [a, b] = &backends.addresses[..] else { panic!("two were wanted") };
    version("..2026_2", &listing(&[a]));
    wait_until_listed(&balancer, &[a]).await;
    version("..2026_3", &listing(&[a, b]));
    fs::remove_dir_all(folder.at("..2026_2")).unwrap();
    wait_until_listed(&balancer, &[a, b]).await;
    assert_eq!(config_status(&balancer).await["refused"], false);
}

#[tokio::test]
async fn settings_and_rules_take_effect_too() {
    let folder = TemporaryDirectory::new();
    folder.put(FILE, "registration: { enabled: false }\n");
    let balancer = Balancer::following(&folder.at(FILE)).await;
    let backends = unregistered(&balancer, 2).await;
    assert!(balancer.service().await.is_none(), "nobody may register");
    folder.put(FILE, "defaults: { policy: round_robin }\n");
    // They go on trying.
    balancer.wait_for_endpoints(2, EndpointState::Eligible).await;
    assert_eq!(balancer.service().await.unwrap().policy, "round_robin");
    folder.put(FILE, &format!("services: [{{ name: {SERVICE}, policy: weighted_round_robin }}]\n"));
    wait_for("a policy of its own", PROCESS_MAX, async || {
        balancer.service().await.filter(|service| service.policy == "weighted_round_robin")
    })
    .await;
    // Taken out of the file again, those who registered themselves stay, and the defaults hold.
    folder.put(FILE, "# the defaults\n{}\n");
    let service = wait_for("the default policy", PROCESS_MAX, async || {
        balancer.service().await.filter(|service| service.policy == "least_load")
    })
    .await;
    assert_eq!((service.eligible, service.mode()), (2, ListMode::Normal));
    drop(backends);
}

#[tokio::test]
async fn a_bad_edit_keeps_the_last_good_file_and_is_told_of_until_it_is_mended() {
    let folder = TemporaryDirectory::new();
    folder.put(FILE, "registration: { enabled: false }\n");
    let balancer = Balancer::following(&folder.at(FILE)).await;
    let backends = unregistered(&balancer, 2).await;
    let [a, b] = &backends.addresses[..] else { panic!("two were wanted") };
    let good = listing(&[a, b]);
    folder.put(FILE, &good);
    wait_until_listed(&balancer, &[a, b]).await;
    let version = balancer.service().await.unwrap().version;
    assert_eq!(balancer.metric("lookaside_config_reload_failed", &[]).await, 0.0);

    let cases = [
        (listing(&[a]).replace("slow_start", "slow_strat"), "4:5: LKS0103: unknown key `slow_strat`; did you mean"),
        (listing(&[a]).replace("enabled: false", "enabled: maybe"), "1:26: LKS0106: this is `maybe`"),
        (format!("node: {{ id: other }}\n{}", listing(&[a])), "1:13: LKS0301: node.id is now other"),
        (listing(&[a]).replace(", slow", "").replace("services:", "services: ["), "LKS0102: "),
        (String::new(), "LKS0101: the file is empty"),
    ];
    for (at, (bad, told)) in cases.iter().enumerate() {
        folder.put(FILE, bad);
        let refused = wait_for(told, PROCESS_MAX, async || {
            let config = config_status(&balancer).await;
            let is_told = config["problems"].as_array().unwrap().iter().any(|p| p.as_str().unwrap().contains(told));
            is_told.then_some(config)
        })
        .await;
        assert_eq!(refused["refused"], true, "{refused}");
        assert_eq!(balancer.metric("lookaside_config_reload_failed", &[]).await, 1.0);
        let shown = balancer.cli(&["status"]).await.expect(0).stdout;
        assert!(shown.contains("REFUSED") && shown.contains(told), "{shown}");
        let logged = balancer.process.said().iter().filter(|line| line.contains(told)).count();
        assert_eq!(logged, 1, "once per change: {:#?}", balancer.process.said());
        let refusals = balancer.metric("lookaside_config_reloads_total", &["result=\"refused\""]).await;
        assert_eq!(refusals, (at + 1) as f64);
    }
    wait_until_listed(&balancer, &[a, b]).await;
    assert_eq!(balancer.service().await.unwrap().version, version, "no list has changed");

    // Asked by a signal it is looked at again though nothing changed, and told again.
    balancer.process.signal(Signal::SIGHUP);
    wait_for("another refusal", PROCESS_MAX, async || {
        let refusals = balancer.metric("lookaside_config_reloads_total", &["result=\"refused\""]).await;
        (refusals == (cases.len() + 1) as f64).then_some(())
    })
    .await;

    folder.put(FILE, &listing(&[b]));
    wait_until_listed(&balancer, &[b]).await;
    let mended = config_status(&balancer).await;
    assert_eq!((&mended["refused"], mended["problems"].as_array().unwrap().len()), (&Value::Bool(false), 0));
    assert_eq!(balancer.metric("lookaside_config_reload_failed", &[]).await, 0.0);
    assert!(!balancer.cli(&["status"]).await.expect(0).stdout.contains("REFUSED"));
}

#[tokio::test]
async fn validate_shows_of_every_kind_of_mistake_what_the_fixtures_say() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config");
    let mut seen = 0;
    for entry in fs::read_dir(&fixtures).unwrap() {
        let path = entry.unwrap().path();
        let (name, code) = (path.to_str().unwrap(), path.file_stem().unwrap().to_str().unwrap());
        // What a running balancer cannot change is no mistake at a start.
        if path.extension().is_none_or(|extension| extension != "yaml") || code == "LKS0301" {
            continue;
        }
        let shown = cli(&["validate", "-c", name]).await.expect(78);
        let expected = fs::read_to_string(path.with_extension("txt")).unwrap();
        assert_eq!(shown.stdout.replace(name, &format!("{code}.yaml")).trim_end(), expected.trim_end(), "{name}");
        let count = expected.matches("error[").count();
        assert!(shown.stderr.contains(&format!("{count} mistake")), "{shown:?}");

        let json = cli(&["validate", "-c", name, "-o", "json"]).await.expect(78);
        let json: Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!((&json["kind"], &json["valid"]), (&"ConfigurationCheck".into(), &false.into()), "{json}");
        let items = json["items"].as_array().unwrap();
        assert!(items.len() == count && items.iter().all(|item| item["code"] == code), "{json}");

        let served = Process::start(&["serve", "--config", name]).ended(PROCESS_MAX).await.expect(78);
        assert!(served.stderr.contains(code) && served.stdout.is_empty(), "{served:?}");
        seen += 1;
    }
    assert!(seen > 10, "{seen} fixtures");
}

#[tokio::test]
async fn validate_says_what_a_valid_file_would_do() {
    let deployed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/lookaside.yaml");
    let json = cli(&["validate", "-c", deployed.to_str().unwrap(), "-o", "json"]).await.json();
    assert_eq!((&json["valid"], json["items"].as_array().unwrap().len()), (&Value::Bool(true), 0));
    assert_eq!(json["summary"]["listen"]["client"], "127.0.0.1:7400");
    let folder = TemporaryDirectory::new();
    folder.put(FILE, &listing(&[&"10.0.0.1:1".to_owned(), &"10.0.0.2:1".to_owned()]));
    let path = folder.at(FILE);
    let shown = cli(&["validate", "--config", path.to_str().unwrap()]).await.expect(0).stdout;
    assert!(shown.contains("1 with 2 listed endpoints; no self-registration"), "{shown}");
    let missing = folder.at("missing.yaml");
    let missing = cli(&["validate", "-c", missing.to_str().unwrap()]).await.expect(78);
    assert!(missing.stdout.contains("LKS0101") && missing.stdout.contains("No such file"), "{missing:?}");
    cli(&["validate"]).await.expect(2);
}

/// A folder that the system tells nothing of, as some network file systems: here, one that a link leads out of.
#[tokio::test]
async fn a_change_that_nobody_tells_of_is_seen_all_the_same() {
    let (folder, elsewhere) = (TemporaryDirectory::new(), TemporaryDirectory::new());
    elsewhere.put(FILE, "registration: { enabled: false }\n");
    symlink(elsewhere.at(FILE), folder.at(FILE)).unwrap();
    let balancer = Balancer::following(&folder.at(FILE)).await;
    elsewhere.put(FILE, "services: [{ name: later }]\n");
    wait_for("the new service", Duration::from_secs(30), async || {
        let services = balancer.json(&["services"]).await;
        services["items"].as_array().unwrap().iter().any(|item| item["name"] == "later").then_some(())
    })
    .await;
}
