//! TLS from end to end: who shows no certificate, or another name, gets nothing and is told so; certificates come and go
//! under load and nobody notices; nothing that is exposed starts by mistake; orders from elsewhere need a token.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

#[path = "tls/fleet.rs"]
mod fleet;

use std::{fs, time::Duration};

use fleet::{Fleet, NAME, configuration, rotate, serving, texts};
use lookaside_proto::v1::EndpointState;
use lookaside_tests::{
    Backends, Balancer, Ca, Client, PROCESS_MAX, Process, SERVICE, TemporaryFile, alone, cli, own_address, wait_for,
};
use lookaside_tls::Tls;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn everybody_shows_who_they_are_and_calls_get_through() {
    let _alone = alone().await;
    let fleet = Fleet::start(2, HOUR).await;
    let summary = fleet.call(&["--rate", "300", "--for", "3s"]).finish().await;
    summary.expect_no_failure();
    assert_eq!(summary.used(), 2);
    let flags = fleet.ca.flags("client");
    // The admin listener is in plaintext, as `http://` says, and tells that the client listener is not.
    let admin = format!("http://{}", fleet.balancer.admin);
    let asked = async |args: &[&str]| cli(&[&["--addr", &admin], args, &texts(&flags)[..]].concat()).await;
    assert_eq!(asked(&["pick", SERVICE, "-o", "json"]).await.json()["items"].as_array().unwrap().len(), 2);
    asked(&["health"]).await.expect(0);
    let untrusting = fleet.balancer.cli(&["health"]).await.expect(2);
    assert!(untrusting.stderr.contains("connect over TLS") && untrusting.stderr.contains("--ca"), "{untrusting:?}");
    let status = fleet.balancer.json(&["status"]).await;
    let certificate = &status["certificates"][0];
    assert_eq!((&certificate["listener"], &certificate["names"][0]), (&"client".into(), &"127.0.0.1".into()));
    let screen = fleet.balancer.cli(&["status"]).await.expect(0).stdout;
    assert!(screen.contains("certificate client   for 127.0.0.1   expires in "), "{screen}");
}

#[tokio::test]
async fn who_shows_no_certificate_is_turned_away_and_told_why() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    ca.sign("balancer", &["127.0.0.1"]);
    ca.sign("client", &["client.example"]);
    stranger.sign("client", &["client.example"]);
    let balancer = Balancer::configured(&configuration(&ca)).await;
    let health = async |flags: &[&str]| cli(&[&["health", "--balancer", &balancer.client], flags].concat()).await;
    health(&texts(&ca.flags("client"))).await.expect(0);
    let ca_file = ca.ca();
    let nobody = health(&["--ca", &ca_file]).await.expect(4);
    assert!(nobody.stderr.contains("it wants a client certificate, and none was shown"), "{nobody:?}");
    let (cert, key) = (stranger.path("client.crt"), stranger.path("client.key"));
    let foreign = health(&["--ca", &ca_file, "--cert", &cert, "--key", &key]).await.expect(4);
    assert!(foreign.stderr.contains("it does not accept our certificate"), "{foreign:?}");
    let mistaken = health(&texts(&stranger.flags("client"))).await.expect(4);
    assert!(mistaken.stderr.contains("no CA that we were given has signed it"), "{mistaken:?}");
    let named = health(&[&texts(&ca.flags("client"))[..], &["--tls-name", "lb.example"]].concat()).await.expect(4);
    assert!(named.stderr.contains("certificate is for 127.0.0.1, not for lb.example"), "{named:?}");
    health(&[]).await.expect(4);

    // The same for an application, and for a backend that reports.
    let mut client = Client::start(&balancer, &["--ca", &ca_file, "--for", "1s"]);
    let refused = client.process.ended(PROCESS_MAX).await.expect(4);
    assert!(refused.stderr.contains("it wants a client certificate"), "{refused:?}");
    let backend = Backends::start(&balancer, 1, &["--ca", &ca_file]).await;
    wait_for("connections turned away", PROCESS_MAX, async || {
        let refused = balancer.metric("lookaside_connections_refused_total", &["reason=\"tls\""]).await;
        (refused >= 5.0).then_some(())
    })
    .await;
    assert!(balancer.endpoints().await.is_empty(), "{:?}", backend.addresses);
}

#[tokio::test]
async fn a_backend_that_shows_another_name_is_never_called_and_is_explained() {
    let _alone = alone().await;
    let ca = Ca::new();
    ca.sign("balancer", &["127.0.0.1"]);
    ca.sign("client", &["client.example"]);
    ca.sign("backend", &[NAME]);
    ca.sign("other", &["other.example"]);
    let balancer = Balancer::configured(&configuration(&ca)).await;
    // Both say they are the same; the certificate of one is for somebody else.
    let flags = |file: &str| {
        let mut flags = ca.flags("client");
        flags.extend(serving(&ca, file, NAME));
        flags.extend(["--mean", "2ms"].map(str::to_owned));
        flags
    };
    let right = Backends::offered(&balancer, 1, &texts(&flags("backend"))).await;
    let wrong = Backends::start(&balancer, 1, &texts(&flags("other"))).await;
    let address = &wrong.addresses[0];
    let because = "certificate is for other.example, not for greeter.example";
    wait_for("a check of the wrong one", PROCESS_MAX, async || {
        let endpoints = balancer.endpoints().await;
        let found = endpoints.into_iter().find(|found| lookaside_tests::address_of(found) == address)?;
        (found.check.contains(because) && found.state() != EndpointState::Eligible).then_some(())
    })
    .await;
    let mut all = ca.flags("client");
    all.push("--endpoint-tls".to_owned());
    let load = ["--rate", "300", "--for", "3s"];
    let summary = Client::start(&balancer, &[&texts(&all), &load[..]].concat()).finish().await;
    summary.expect_no_failure();
    assert_eq!((summary.calls_on(address), summary.used()), (0, 1));
    let explained = balancer.cli(&["explain", SERVICE, "--endpoint", address]).await;
    assert!(explained.stdout.contains(because), "{explained:?}");

    // It gets the certificate that it should have had: nothing else is needed.
    ca.sign("other", &[NAME]);
    balancer.wait_for_state(address, EndpointState::Eligible, PROCESS_MAX).await;
    let summary = Client::start(&balancer, &[&texts(&all), &load[..]].concat()).finish().await;
    summary.expect_no_failure();
    assert!(summary.calls_on(address) > 0 && summary.calls_on(&right.addresses[0]) > 0, "{summary:?}");
}

#[tokio::test]
async fn an_endpoint_that_no_check_looks_at_is_verified_by_the_client_all_the_same() {
    let _alone = alone().await;
    let ca = Ca::new();
    ca.sign("balancer", &["127.0.0.1"]);
    ca.sign("client", &["client.example"]);
    ca.sign("backend", &[NAME]);
    ca.sign("other", &["other.example"]);
    let start = async |file: &str| {
        let flags = [serving(&ca, file, NAME), ["--no-report", "--mean", "2ms"].map(str::to_owned).to_vec()].concat();
        let mut process = Process::start(&[&["dev", "backend", "--service", SERVICE], &texts(&flags)[..]].concat());
        let line = process.json_lines(1).await.remove(0);
        (process, line["address"].as_str().unwrap().to_owned())
    };
    let ((_right, right), (_wrong, wrong)) = (start("backend").await, start("other").await);
    // Checks in plaintext fail at both, so that the balancer ignores them: PANIC.
    let endpoint = |address: &str| format!("{{ address: '{address}', tls_name: {NAME} }}");
    let (first, second) = (endpoint(&right), endpoint(&wrong));
    let health = "{ interval: 200ms, deadline: 100ms }";
    let (cert, key) = (ca.path("balancer.crt"), ca.path("balancer.key"));
    let yaml = format!(
        "tls: {{ client: {{ cert: {cert}, key: {key} }} }}\n\
         services: [{{ name: {SERVICE}, health: {health}, endpoints: [{first}, {second}] }}]\n"
    );
    let balancer = Balancer::configured(&yaml).await;
    balancer.wait_for_endpoints(2, EndpointState::Restored).await;
    let mut flags = ca.flags("client");
    flags.push("--endpoint-tls".to_owned());
    let load = ["--rate", "300", "--for", "3s"];
    let summary = Client::start(&balancer, &[&texts(&flags), &load[..]].concat()).finish().await;
    summary.expect_no_failure();
    assert_eq!((summary.calls_on(&wrong), summary.used()), (0, 1));
    let tls = Tls::builder().ca_file(ca.ca()).identity_files(ca.path("client.crt"), ca.path("client.key"));
    let tls = tls.expect_name("other.example").build().unwrap();
    let executed = Backends::executions_over(&wrong, Some(tls)).await;
    assert_eq!(executed.executions.len(), 0, "{executed:?}");
    // The balancer was told why.
    wait_for("the word of the clients", PROCESS_MAX, async || {
        let failed = balancer.metric("lookaside_client_calls_total", &["outcome=\"connect_failed\""]).await;
        (failed >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn certificates_rotate_under_load_and_nobody_notices() {
    let _alone = alone().await;
    rotate(Duration::from_secs(6), Duration::from_secs(40), "300").await.expect_no_failure();
}

#[tokio::test]
async fn a_broken_pair_leaves_the_old_one_in_use_and_shows() {
    let ca = Ca::new();
    ca.sign("balancer", &["127.0.0.1"]);
    ca.sign("client", &["client.example"]);
    let balancer = Balancer::configured(&configuration(&ca)).await;
    let key = ca.path("balancer.key");
    fs::write(&key, "half a ke").unwrap();
    wait_for("the balancer to say so", PROCESS_MAX, async || {
        let status = balancer.json(&["status"]).await;
        let refused = status["certificates"][0]["refused"].as_str().unwrap().to_owned();
        refused.contains("balancer.key").then_some(())
    })
    .await;
    assert!(balancer.metric("lookaside_certificate_reloads_total", &["result=\"refused\""]).await >= 1.0);
    let flags = ca.flags("client");
    cli(&[&["health", "--balancer", &balancer.client], &texts(&flags)[..]].concat()).await.expect(0);
    // A new pair mends it; one that is about to expire is marked.
    ca.sign_for("balancer", &["127.0.0.1"], Duration::from_secs(1));
    wait_for("the new one", PROCESS_MAX, async || {
        let screen = balancer.cli(&["status"]).await.stdout;
        screen.contains("! certificate client   for 127.0.0.1   EXPIRED").then_some(())
    })
    .await;
    assert!(balancer.metric("lookaside_certificate_expiry_seconds", &["listener=\"client\""]).await < 0.0);
    // A certificate holds to the end of its last second.
    wait_for("a refusal", PROCESS_MAX, async || {
        let asked = cli(&[&["health", "--balancer", &balancer.client], &texts(&flags)[..]].concat()).await;
        (asked.code == Some(4) && asked.stderr.contains("it has expired")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nothing_that_others_reach_starts_in_plaintext_without_a_word() {
    let here = ["--listen-client", "127.0.0.1:0", "--listen-admin", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"];
    for listener in ["client", "admin"] {
        let flag = format!("--listen-{listener}");
        let exposed = [&["serve"], &here[..], &[&flag, "0.0.0.0:0"]].concat();
        let exposed: Vec<&str> = without(&exposed, &flag);
        let refused = cli(&exposed).await.expect(78);
        let wanted = format!("listen.allow_plaintext: [{listener}]");
        assert!(refused.stderr.contains(&wanted) && refused.stderr.contains("has no TLS"), "{refused:?}");
        let file = TemporaryFile::new(&format!("listen: {{ {listener}: '0.0.0.0:0' }}\n"));
        let refused = cli(&["serve", "-c", file.path()]).await.expect(78);
        assert!(refused.stderr.contains("LKS0206") && refused.stderr.contains(&wanted), "{refused:?}");
        let mut allowed = Process::start(&[&exposed[..], &["--allow-plaintext", listener]].concat());
        let ready = allowed.json_lines(1).await.remove(0);
        assert!(ready[listener].as_str().unwrap().starts_with("0.0.0.0:"), "{ready}");
    }
    // Numbers and names of services, for Prometheus: no secret.
    let mut metrics = Process::start(&without(
        &[&["serve"], &here[..], &["--listen-metrics", "0.0.0.0:0"]].concat(),
        "--listen-metrics",
    ));
    metrics.json_lines(1).await;
    let ca = Ca::new();
    let lost = TemporaryFile::new(&format!("tls: {{ client: {{ cert: {0}, key: {0} }} }}\n", ca.path("nothing")));
    let refused = cli(&[&["serve", "-c", lost.path()], &here[..]].concat()).await.expect(78);
    assert!(refused.stderr.contains("tls.client: ") && refused.stderr.contains("nothing"), "{refused:?}");
}

/// Leaves out the first of two flags of the same name, and its value.
fn without<'a>(args: &[&'a str], flag: &str) -> Vec<&'a str> {
    let first = args.iter().position(|arg| *arg == flag).unwrap();
    args.iter().enumerate().filter(|(at, _)| *at != first && *at != first + 1).map(|(_, arg)| *arg).collect()
}

#[tokio::test]
async fn orders_from_another_machine_need_the_token_and_the_token_needs_tls() {
    let ca = Ca::new();
    let own = own_address().to_string();
    ca.sign("balancer", &[&own]);
    let token = ca.path("token");
    fs::write(&token, "first-token-of-operators\n").unwrap();
    let yaml = format!(
        "listen: {{ admin: '{own}:0' }}\ntls: {{ admin: {{ cert: {}, key: {} }} }}\nadmin: {{ token_file: {token} }}\n\
         services:\n  - {{ name: {SERVICE}, endpoints: ['127.0.0.1:9'] }}\n",
        ca.path("balancer.crt"),
        ca.path("balancer.key"),
    );
    let file = TemporaryFile::new(&yaml);
    let args = ["serve", "-c", file.path(), "--listen-client", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"];
    let mut process = Process::start(&args);
    let admin = process.json_lines(1).await.remove(0)["admin"].as_str().unwrap().to_owned();
    let ca_file = ca.ca();
    let asked = async |args: &[&str]| cli(&[&["--addr", &admin, "--ca", &ca_file], args].concat()).await;
    let order = ["drain", "--service", SERVICE, "127.0.0.1:9", "--reason", "test"];

    asked(&["status"]).await.expect(0);
    let missing = asked(&order).await.expect(6);
    assert!(missing.stderr.contains("TOKEN_MISSING"), "{missing:?}");
    let wrong = asked(&[&order[..], &["--token", "another-token-of-nobody"]].concat()).await.expect(6);
    assert!(wrong.stderr.contains("TOKEN_WRONG"), "{wrong:?}");
    asked(&[&order[..], &["--token-file", &token]].concat()).await.expect(0);
    let plain = cli(&[&["--addr", &admin, "--token-file", &token], &order[..]].concat()).await;
    assert!(plain.code != Some(0) && !plain.stderr.contains("first-token"), "{plain:?}");

    fs::write(&token, "second-token-of-operators\n").unwrap();
    wait_for("the old token to be refused", PROCESS_MAX, async || {
        let old = asked(&[&order[..], &["--token", "first-token-of-operators"]].concat()).await;
        (old.code == Some(6)).then_some(())
    })
    .await;
    asked(&[&order[..], &["--token-file", &token]].concat()).await.expect(0);
}

#[tokio::test]
async fn a_token_is_not_sent_in_plaintext_and_without_one_nobody_orders_from_elsewhere() {
    let own = format!("{}:0", own_address());
    let args = ["serve", "--listen-client", "127.0.0.1:0", "--listen-admin", &own, "--listen-metrics", "127.0.0.1:0"];
    let mut process = Process::start(&[&args[..], &["--allow-plaintext", "admin"]].concat());
    let admin = process.json_lines(1).await.remove(0)["admin"].as_str().unwrap().to_owned();
    let order = ["--addr", &admin, "drain", "--service", SERVICE, "127.0.0.1:9", "--reason", "test"];
    let refused = cli(&order).await.expect(6);
    assert!(refused.stderr.contains("LOOPBACK_ONLY") && refused.stderr.contains("admin.token_file"), "{refused:?}");
    let unsent = cli(&[&order[..], &["--token", "a-token-of-operators"]].concat()).await.expect(2);
    assert!(unsent.stderr.contains("would be read on the way") && unsent.stderr.contains("--ca"), "{unsent:?}");
}
