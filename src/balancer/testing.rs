//! What tests of several rooms share: a driver with endpoints that passed their checks, and real sockets before it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use lookaside_core::{
    config::{Configuration, ConfiguredService, ServiceConfig},
    event::{CheckOutcome, Event},
    kept::Kept,
    model::{Address, EndpointSpec, ServiceName, SourceId},
    snapshot::Snapshot,
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Channel};

use crate::{
    accept::{self, Acceptor, Offer},
    config::{Config, Limits, Live},
    driver::{self, Handle},
    frontend::pick,
};

/// Longer than anything here takes on a busy machine, so that a test fails instead of hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn service(name: &str) -> ServiceName {
    ServiceName::parse(name).unwrap()
}

pub(crate) fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

/// A driver that knows nothing.
pub(crate) fn driver(stop: &CancellationToken) -> Handle {
    driver_with(ServiceConfig::default(), stop)
}

/// The same, with other defaults for services.
pub(crate) fn driver_with(defaults: ServiceConfig, stop: &CancellationToken) -> Handle {
    let start = driver::Start { epoch: 7, defaults, overrides: Vec::new(), kept: None, store: None };
    driver::start(start, stop.clone()).0
}

/// A driver that begins with what the last one had kept.
pub(crate) fn driver_restored(kept: Kept, defaults: ServiceConfig, stop: &CancellationToken) -> Handle {
    let start = driver::Start { epoch: 8, defaults, overrides: Vec::new(), kept: Some(kept), store: None };
    driver::start(start, stop.clone()).0
}

/// Lists endpoints for a service, all of which pass their first check.
pub(crate) async fn list(driver: &Handle, name: &str, addresses: &[&str]) {
    list_specs(driver, name, addresses.iter().map(|text| EndpointSpec::at(address(text))).collect()).await;
}

/// The same, of which more is known than the address.
pub(crate) async fn list_specs(driver: &Handle, name: &str, endpoints: Vec<EndpointSpec>) {
    let addresses: Vec<Address> = endpoints.iter().map(|endpoint| endpoint.address.clone()).collect();
    let source = SourceId::parse("file").unwrap();
    driver
        .ask(Event::EndpointsListed { source, service: service(name), endpoints, detail: String::new() })
        .await
        .unwrap();
    for address in &addresses {
        let (address, outcome) = (address.clone(), CheckOutcome::Passed);
        driver.ask(Event::Checked { service: service(name), address, outcome }).await.unwrap();
    }
    until(driver, |snapshot| {
        let service = snapshot.services.get(&service(name));
        service.is_some_and(|s| addresses.iter().all(|a| s.endpoint(a).is_some_and(|e| e.check.is_some())))
    })
    .await;
}

/// A configuration that says of one service how it is balanced, and of nobody who serves it.
pub(crate) async fn configure(driver: &Handle, name: &str, config: ServiceConfig) {
    let services = vec![ConfiguredService { name: service(name), config: Arc::new(config), endpoints: None }];
    let configuration = Configuration { services, ..Configuration::default() };
    let source = SourceId::parse("settings").unwrap();
    driver.ask(Event::Configured { source, configuration }).await.unwrap();
}

/// Waits for a state of affairs.
pub(crate) async fn until(driver: &Handle, is: impl FnMut(&Arc<Snapshot>) -> bool) {
    let mut snapshots = driver.snapshots();
    match timeout(PATIENCE, snapshots.wait_for(is)).await {
        Ok(found) => drop(found.expect("the driver lives")),
        Err(_) => panic!("it never came to that: {:#?}", driver.snapshots().borrow()),
    }
}

/// Waits for a condition that nobody announces.
pub(crate) async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Serves on a port of the kernel's choice.
pub(crate) async fn serve(routes: Routes, limits: Limits, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = Acceptor::new("test", listener, limits.connections, limits.connections_per_peer);
    let live = Live::fixed(Config { limits, ..Config::default() });
    let offer = Offer { routes, tls: None, live, ceiling: None, many: Some(pick::METHOD), stop: stop.clone() };
    tokio::spawn(accept::serve(acceptor, offer));
    address
}

pub(crate) async fn connect(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}
