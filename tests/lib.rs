//! What the end-to-end suites stand on: the release binary as real processes on loopback, each on ports that the kernel
//! chose, each ended by its own process id when its test is over, its words on stderr shown when the test failed.
//!
//! Tests wait for states with a deadline. The pauses between two looks are the only ones there are, and they are here.

#![allow(clippy::unwrap_used, reason = "for tests alone: what cannot be is a failed test")]

#[path = "harness/abuse.rs"]
mod abuse;
#[path = "harness/certificates.rs"]
mod certificates;
#[path = "harness/follower.rs"]
mod follower;
#[path = "harness/name_server.rs"]
pub mod name_server;
#[path = "harness/picks.rs"]
mod picks;
#[path = "harness/process.rs"]
mod process;
#[path = "harness/relay.rs"]
mod relay;

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lookaside_proto::{
    demo::{ExecutionsRequest, ExecutionsResponse, echo_client::EchoClient},
    v1::{
        EndpointDetail, EndpointState, ListEndpointsRequest, ListServicesRequest, ServiceSummary,
        admin_client::AdminClient,
    },
};
use lookaside_tls::{Connector, Tls};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub use abuse::{Abuse, Verdict};
pub use certificates::{Ca, own_address};
pub use follower::{Follower, Held};
pub use nix::sys::signal::Signal;
pub use picks::Picks;
pub use process::{Output, PROCESS_MAX, Process, TemporaryDirectory, TemporaryFile, binary, cli, nowhere};
pub use relay::Relay;

/// What all suites call the service they balance.
pub const SERVICE: &str = "greeter";

/// Between two looks at a condition.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// Looks again and again until there is something, and gives it; panics after the deadline.
pub async fn wait_for<T>(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain for: {what}");
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// Looks again and again for as long as this; panics as soon as the condition does not hold.
pub async fn hold_for(what: &str, duration: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while started.elapsed() < duration {
        assert!(condition().await, "did not hold after {:?}: {what}", started.elapsed());
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// Waits for a moment that the promise itself names, such as a quarter of slow start.
pub async fn wait_until(moment: Instant) {
    tokio::time::sleep_until(moment.into()).await;
}

/// What a client of the harness waits before it comes back.
async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// From 0 to 1, different for everybody.
fn chance() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}

/// The rest of the suite waits: for what measures time or load.
pub async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    ONE.lock().await
}

/// Wall clock, milliseconds since 1970.
pub fn now_unix_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// `lookaside serve`.
#[derive(Debug)]
pub struct Balancer {
    /// The process itself.
    pub process: Process,
    /// Where clients and reporters connect, `host:port`.
    pub client: String,
    /// Where operators connect.
    pub admin: String,
    /// Where the numbers are.
    pub metrics: String,
    config: Option<TemporaryFile>,
}

impl Balancer {
    /// One without a configuration.
    pub async fn start() -> Self {
        Self::launch(None, ["127.0.0.1:0"; 3]).await
    }

    /// One with this configuration.
    pub async fn configured(yaml: &str) -> Self {
        Self::launch(Some(TemporaryFile::new(yaml)), ["127.0.0.1:0"; 3]).await
    }

    /// One on a loopback address that no connection of this machine is made from, so that its ports stay free while it is
    /// away and can be had again.
    pub async fn to_be_restarted(yaml: &str) -> Self {
        Self::launch(Some(TemporaryFile::new(yaml)), ["127.0.0.2:0"; 3]).await
    }

    /// Another one at the addresses of this one, which must have ended.
    pub async fn restart(&mut self) {
        let config = self.config.take();
        *self = Self::launch(config, [&self.client, &self.admin, &self.metrics].map(|address| address.as_str())).await;
    }

    /// One that follows this file, which is the test's to change.
    pub async fn following(config: &Path) -> Self {
        Self::serve(config.to_str(), ["127.0.0.1:0"; 3]).await
    }

    async fn launch(config: Option<TemporaryFile>, listen: [&str; 3]) -> Self {
        let started = Self::serve(config.as_ref().map(TemporaryFile::path), listen).await;
        Self { config, ..started }
    }

    async fn serve(config: Option<&str>, [client, admin, metrics]: [&str; 3]) -> Self {
        let mut args = vec!["serve", "--listen-client", client, "--listen-admin", admin, "--listen-metrics", metrics];
        args.extend(config.into_iter().flat_map(|path| ["--config", path]));
        let mut process = Process::start(&args);
        let ready = process.json_lines(1).await.remove(0);
        let address = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self { process, client: address("client"), admin: address("admin"), metrics: address("metrics"), config: None }
    }

    /// Runs a command against it.
    pub async fn cli(&self, args: &[&str]) -> Output {
        cli(&[&["--addr", &self.admin], args].concat()).await
    }

    /// Runs a command against it that must succeed, and gives the JSON it prints.
    pub async fn json(&self, args: &[&str]) -> Value {
        self.cli(&[args, &["-o", "json"]].concat()).await.json()
    }

    /// Its admin service, over a connection of its own.
    pub async fn admin(&self) -> AdminClient<tonic::transport::Channel> {
        AdminClient::connect(format!("http://{}", self.admin)).await.unwrap()
    }

    /// What it knows of the endpoints of [`SERVICE`].
    pub async fn endpoints(&self) -> Vec<EndpointDetail> {
        let request = ListEndpointsRequest { service: SERVICE.to_owned(), excluded_only: false };
        let answer = self.admin().await.list_endpoints(request).await;
        answer.map(|answer| answer.into_inner().endpoints).unwrap_or_default()
    }

    /// [`SERVICE`] in sum, once there is one.
    pub async fn service(&self) -> Option<ServiceSummary> {
        let request = ListServicesRequest { service: SERVICE.to_owned() };
        self.admin().await.list_services(request).await.ok()?.into_inner().services.pop()
    }

    /// Waits until so many endpoints are in this state.
    pub async fn wait_for_endpoints(&self, count: usize, state: EndpointState) {
        wait_for(&format!("{count} endpoints {state:?}"), PROCESS_MAX, async || {
            let endpoints = self.endpoints().await;
            (endpoints.iter().filter(|endpoint| endpoint.state() == state).count() == count).then_some(())
        })
        .await;
    }

    /// Waits until this endpoint is in this state.
    pub async fn wait_for_state(&self, address: &str, state: EndpointState, deadline: Duration) -> EndpointDetail {
        wait_for(&format!("{address} {state:?}"), deadline, async || {
            let endpoints = self.endpoints().await;
            endpoints.into_iter().find(|found| address_of(found) == address && found.state() == state)
        })
        .await
    }

    /// Waits until those who registered before it started would have turned up: from then on a new endpoint is new.
    pub async fn wait_until_settled(&self) {
        wait_for("the end of settling", Duration::from_secs(30), async || {
            self.service().await.filter(|service| !service.settling)
        })
        .await;
    }

    /// Waits until every offered endpoint has told of calls: load is under way, everywhere.
    pub async fn wait_for_load(&self) {
        wait_for("load on every endpoint", PROCESS_MAX, async || {
            let endpoints = self.endpoints().await;
            let mut offered =
                endpoints.iter().filter(|endpoint| endpoint.state() == EndpointState::Eligible).peekable();
            (offered.peek().is_some() && offered.all(|endpoint| endpoint.calls_per_second > 0.0)).then_some(())
        })
        .await;
    }

    /// A page of its metrics listener, with head and body.
    pub async fn page(&self, path: &str) -> String {
        let fetch = async {
            let mut connection = tokio::net::TcpStream::connect(&self.metrics).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.metrics);
            connection.write_all(request.as_bytes()).await.unwrap();
            let mut page = String::new();
            connection.read_to_string(&mut page).await.unwrap();
            page
        };
        tokio::time::timeout(PROCESS_MAX, fetch).await.expect("an answer of the metrics listener")
    }

    /// Sum of a metric over all rows with these labels, as in `service="greeter"`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.page("/metrics").await;
        let rows = page.lines().filter_map(|line| line.strip_prefix(name));
        let rows = rows.filter(|row| row.starts_with([' ', '{']) && labels.iter().all(|label| row.contains(label)));
        rows.map(|row| row.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

/// The address of an endpoint.
pub fn address_of(detail: &EndpointDetail) -> &str {
    detail.endpoint.as_ref().map_or("", |endpoint| &endpoint.address)
}

/// `lookaside dev backend`: one process, one or more backends.
#[derive(Debug)]
pub struct Backends {
    /// The process itself.
    pub process: Process,
    /// Where they serve, `host:port` each.
    pub addresses: Vec<String>,
}

impl Backends {
    /// Starts so many backends of [`SERVICE`]; they serve when this returns, and may be registered only a little later.
    pub async fn start(balancer: &Balancer, count: usize, flags: &[&str]) -> Self {
        let number = count.to_string();
        let args = ["dev", "backend", "--service", SERVICE, "--balancer", &balancer.client, "--count", &number];
        let mut process = Process::start(&[&args, flags].concat());
        let lines = process.json_lines(count).await;
        Self { process, addresses: lines.iter().map(|line| line["address"].as_str().unwrap().to_owned()).collect() }
    }

    /// Starts one that reports to this address, a balancer's or the way to one.
    pub async fn reporting_to(address: &str, flags: &[&str]) -> Self {
        let args = ["dev", "backend", "--service", SERVICE, "--balancer", address];
        let mut process = Process::start(&[&args, flags].concat());
        let line = process.json_lines(1).await.remove(0);
        Self { process, addresses: vec![line["address"].as_str().unwrap().to_owned()] }
    }

    /// Starts one that tells no balancer of itself.
    pub async fn unreported(flags: &[&str]) -> Self {
        let args = ["dev", "backend", "--service", SERVICE, "--no-report"];
        let mut process = Process::start(&[&args, flags].concat());
        let line = process.json_lines(1).await.remove(0);
        Self { process, addresses: vec![line["address"].as_str().unwrap().to_owned()] }
    }

    /// Starts backends and waits until the balancer offers them.
    pub async fn offered(balancer: &Balancer, count: usize, flags: &[&str]) -> Self {
        let backends = Self::start(balancer, count, flags).await;
        for address in &backends.addresses {
            balancer.wait_for_state(address, EndpointState::Eligible, PROCESS_MAX).await;
        }
        backends
    }

    /// Calls that arrived at all of them, and those that were worked on, as they say themselves.
    pub async fn served(&self) -> (u64, u64) {
        let mut sum = (0, 0);
        for address in &self.addresses {
            let mut client = EchoClient::connect(format!("http://{address}")).await.unwrap();
            // Asked for one that there is not: the names of all would be megabytes.
            let request = ExecutionsRequest { request_ids: vec!["none".to_owned()] };
            let told = client.executions(request).await.unwrap().into_inner();
            sum = (sum.0 + told.calls, sum.1 + told.executed);
        }
        sum
    }

    /// What one of them has executed, as it says itself.
    pub async fn executions(address: &str) -> ExecutionsResponse {
        Self::executions_over(address, None).await
    }

    /// The same of one that serves over TLS.
    pub async fn executions_over(address: &str, tls: Option<Tls>) -> ExecutionsResponse {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect_with_connector(Connector::new(tls, address)).await.unwrap();
        let mut client = EchoClient::new(channel).max_decoding_message_size(64 << 20);
        client.executions(ExecutionsRequest::default()).await.unwrap().into_inner()
    }
}

/// `lookaside dev client`: load through the SDK.
#[derive(Debug)]
pub struct Client {
    /// The process itself.
    pub process: Process,
}

impl Client {
    /// Starts to call [`SERVICE`], as these flags say beside the defaults of three clients and 600 calls/s.
    pub fn start(balancer: &Balancer, flags: &[&str]) -> Self {
        let args = ["dev", "client", "--service", SERVICE, "--balancer", &balancer.client, "-o", "json"];
        Self { process: Process::start(&[&args, flags].concat()) }
    }

    /// Waits for the end of the run.
    pub async fn finish(mut self) -> Summary {
        Summary(self.process.ended(Duration::from_secs(90)).await.expect(0).json())
    }

    /// Ends the run early, as Ctrl-C does.
    pub async fn stop(self) -> Summary {
        self.process.signal(Signal::SIGINT);
        self.finish().await
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Summary(pub Value);

impl Summary {
    /// Calls that were due.
    pub fn calls(&self) -> u64 {
        self.0["calls"].as_u64().unwrap()
    }

    /// Calls that did not end with OK.
    pub fn failed(&self) -> u64 {
        self.0["failed"].as_u64().unwrap()
    }

    /// 99 % of the calls were faster, microseconds.
    pub fn p99_us(&self) -> u64 {
        self.0["p99_us"].as_u64().unwrap()
    }

    /// Panics unless every call ended with OK, and there were some.
    pub fn expect_no_failure(&self) {
        assert!(self.calls() > 0 && self.failed() == 0, "{:#}", self.0);
    }

    /// Most calls of an endpoint over the mean.
    pub fn max_over_mean(&self) -> f64 {
        self.0["max_over_mean"].as_f64().unwrap()
    }

    /// Calls on an endpoint.
    pub fn calls_on(&self, address: &str) -> u64 {
        self.endpoint(address).map_or(0, |endpoint| endpoint["calls"].as_u64().unwrap())
    }

    /// Failed calls on an endpoint.
    pub fn failed_on(&self, address: &str) -> u64 {
        self.endpoint(address).map_or(0, |endpoint| endpoint["failed"].as_u64().unwrap())
    }

    /// Wall clock at the start of the first call on an endpoint, milliseconds since 1970.
    pub fn first_call_unix_ms(&self, address: &str) -> Option<u64> {
        Some(self.endpoint(address)?["first_call_ms"].as_u64()? + self.0["began_unix_ms"].as_u64().unwrap())
    }

    /// Wall clock at the start of the last call on an endpoint, milliseconds since 1970.
    pub fn last_call_unix_ms(&self, address: &str) -> Option<u64> {
        Some(self.endpoint(address)?["last_call_ms"].as_u64()? + self.0["began_unix_ms"].as_u64().unwrap())
    }

    /// Endpoints that got calls.
    pub fn used(&self) -> usize {
        let endpoints = self.0["per_endpoint"].as_array().unwrap();
        endpoints.iter().filter(|endpoint| endpoint["calls"].as_u64().unwrap() > 0).count()
    }

    fn endpoint(&self, address: &str) -> Option<&Value> {
        self.0["per_endpoint"].as_array().unwrap().iter().find(|endpoint| endpoint["address"] == address)
    }
}
