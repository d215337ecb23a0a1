//! A fleet that speaks TLS wherever it can: balancer, backends and clients, each with a certificate that the others want.

use std::time::{Duration, Instant};

use lookaside_proto::v1::EndpointState;
use lookaside_tests::{Backends, Balancer, Ca, Client, PROCESS_MAX, Summary, wait_for, wait_until};

/// What backends are called by their certificates; nobody resolves it.
pub(crate) const NAME: &str = "greeter.example";

/// Files that the fleet shows, and for whom each is.
const FILES: [(&str, &[&str]); 3] =
    [("balancer", &["127.0.0.1"]), ("backend", &[NAME]), ("client", &["client.example"])];

/// Everything, with load on it.
pub(crate) struct Fleet {
    pub(crate) ca: Ca,
    pub(crate) balancer: Balancer,
    pub(crate) backends: Backends,
}

impl Fleet {
    /// Starts it with certificates of this life, and waits until all endpoints are offered.
    pub(crate) async fn start(backends: usize, life: Duration) -> Self {
        let ca = Ca::new();
        for (file, names) in FILES {
            ca.sign_for(file, names, life);
        }
        let balancer = Balancer::configured(&configuration(&ca)).await;
        let mut flags = ca.flags("client");
        flags.extend(serving(&ca, "backend", NAME));
        flags.extend(["--mean", "5ms"].map(str::to_owned));
        let backends = Backends::start(&balancer, backends, &texts(&flags)).await;
        for address in &backends.addresses {
            balancer.wait_for_state(address, EndpointState::Eligible, PROCESS_MAX).await;
        }
        Self { ca, balancer, backends }
    }

    /// Starts clients that call the endpoints over TLS.
    pub(crate) fn call(&self, flags: &[&str]) -> Client {
        let mut all = self.ca.flags("client");
        all.push("--endpoint-tls".to_owned());
        Client::start(&self.balancer, &[&texts(&all), flags].concat())
    }

    /// Puts new certificates in the place of all old ones.
    pub(crate) fn renew(&self, life: Duration, in_place: bool) {
        for (file, names) in FILES {
            if in_place {
                self.ca.overwrite(file, names, life);
            } else {
                self.ca.sign_for(file, names, life);
            }
        }
    }

    /// Age of the pick stream of each client, milliseconds, youngest first.
    pub(crate) async fn ages_ms(&self) -> Vec<u64> {
        let clients = self.balancer.json(&["clients"]).await;
        let age = |client: &serde_json::Value| client["ageMs"].as_u64().unwrap();
        let mut ages: Vec<_> = clients["items"].as_array().unwrap().iter().map(age).collect();
        ages.sort_unstable();
        ages
    }
}

/// A balancer whose clients have to show who they are, and which checks endpoints over TLS.
pub(crate) fn configuration(ca: &Ca) -> String {
    let (cert, key, ca_file) = (ca.path("balancer.crt"), ca.path("balancer.key"), ca.ca());
    let (own_cert, own_key) = (ca.path("client.crt"), ca.path("client.key"));
    format!(
        "tls:\n  client: {{ cert: {cert}, key: {key}, client_ca: {ca_file} }}\n\
         defaults:\n  health: {{ interval: 1s, deadline: 900ms }}\n  \
         tls: {{ ca: {ca_file}, cert: {own_cert}, key: {own_key} }}\n"
    )
}

/// Flags of a backend that shows `<file>.crt`, wants certificates of its callers, and says that it is called `name`.
pub(crate) fn serving(ca: &Ca, file: &str, name: &str) -> Vec<String> {
    let (cert, key) = (ca.path(&format!("{file}.crt")), ca.path(&format!("{file}.key")));
    let flags = ["--serve-cert", &cert, "--serve-key", &key, "--serve-client-ca", &ca.ca(), "--serve-name", name];
    flags.map(str::to_owned).to_vec()
}

pub(crate) fn texts(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

/// Certificates of this life are renewed every half of it, for so long, under load. No call fails and no stream breaks,
/// though whoever is connected was connected by certificates that have long expired.
pub(crate) async fn rotate(life: Duration, total: Duration, rate: &str) -> Summary {
    let fleet = Fleet::start(3, life).await;
    let client = fleet.call(&["--clients", "3", "--rate", rate, "--for", &format!("{}s", total.as_secs())]);
    wait_for("pick streams of all clients", PROCESS_MAX, async || (fleet.ages_ms().await.len() == 3).then_some(()))
        .await;
    let began = Instant::now();
    let mut renewed = 0;
    let mut next = began + life / 2;
    // A little before the end of the load: streams are looked at while there are some.
    while next + life / 2 < began + total {
        wait_until(next).await;
        fleet.renew(life, renewed % 3 == 2);
        renewed += 1;
        next += life / 2;
        // By now every file is another one than at the start: who connects anew is let in, by what is valid now.
        wait_for("a new connection by new certificates", life / 2, async || {
            let flags = fleet.ca.flags("client");
            let health = [&["health", "--balancer", &fleet.balancer.client], &texts(&flags)[..]].concat();
            (lookaside_tests::cli(&health).await.code == Some(0)).then_some(())
        })
        .await;
    }
    let lasted = u64::try_from(began.elapsed().as_millis()).unwrap();
    let ages = fleet.ages_ms().await;
    assert!(ages.len() == 3 && ages[0] >= lasted, "a pick stream was dropped: {ages:?} of {lasted} ms");
    let taken = fleet.balancer.metric("lookaside_certificate_reloads_total", &["result=\"taken\""]).await;
    assert!(taken >= f64::from(renewed) * 0.8, "{taken} of {renewed} certificates were taken");
    let left = fleet.balancer.metric("lookaside_certificate_expiry_seconds", &["listener=\"client\""]).await;
    assert!(left > 0.0 && left <= life.as_secs_f64(), "{left}");
    let mut process = client.process;
    let summary = Summary(process.ended(total + Duration::from_secs(60)).await.expect(0).json());
    let Fleet { mut backends, .. } = fleet;
    backends.process.signal(lookaside_tests::Signal::SIGTERM);
    let said = backends.process.ended(PROCESS_MAX).await.expect(0).stderr;
    assert!(!said.contains("not reporting"), "a report stream was dropped: {said}");
    eprintln!(
        "{renewed} renewals over {} s of certificates that live {} s: {} calls, {} failed, youngest pick stream {} ms",
        total.as_secs(),
        life.as_secs(),
        summary.calls(),
        summary.failed(),
        ages[0]
    );
    summary
}
