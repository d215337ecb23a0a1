//! A balancer for an application's own tests: in this process, on a kernel-chosen loopback port, doing exactly what the
//! test says.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use lookaside_sdk::{Channel, testing::Balancer};
//!
//! let balancer = Balancer::start().await?;
//! balancer.set("greeter", ["127.0.0.1:50051", "127.0.0.1:50052"]);
//! let channel = Channel::builder("greeter").balancers([balancer.address()]).connect().await?;
//! // ... calls through `channel` ...
//! let version = balancer.set("greeter", ["127.0.0.1:50052"]);
//! assert!(balancer.wait_for(|seen| seen.acked("greeter") == Some(version), Duration::from_secs(5)).await);
//! # Ok(())
//! # }
//! ```
//!
//! It decides nothing: no health, no weights, no order but the script's. The one thing it does by itself is to let a
//! backend go that drains: its endpoint gets weight 0, and once every stream has acknowledged that, it is told so.

mod pick;
mod report;
mod script;
mod seen;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lookaside_proto::v1::balancer_server::BalancerServer;
use lookaside_proto::v1::reporter_server::ReporterServer;
use lookaside_proto::v1::{Endpoint, EndpointOutcomes, List, MethodPolicy, Override, Redirect, ServiceError, Version};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

use script::Script;
pub use seen::Seen;

/// A stopped server gets this long to let its connections go.
const STOP_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Server {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

/// A scripted balancer. It stops when dropped.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    script: Arc<Script>,
    server: Mutex<Option<Server>>,
}

impl Balancer {
    /// Starts one on a free port of 127.0.0.1. Fails when the kernel gives none.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let balancer =
            Self { address: listener.local_addr()?, script: Arc::new(Script::new()), server: Mutex::new(None) };
        balancer.serve(listener);
        Ok(balancer)
    }

    fn serve(&self, listener: TcpListener) {
        let stop = CancellationToken::new();
        let pick = BalancerServer::new(pick::PickService { script: Arc::clone(&self.script), stop: stop.clone() });
        let report =
            ReporterServer::new(report::ReportService { script: Arc::clone(&self.script), stop: stop.clone() });
        let serving =
            tonic::transport::Server::builder().add_service(pick).add_service(report).serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                stop.clone().cancelled_owned(),
            );
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!("the scripted balancer stopped: {error}");
            }
        });
        let ticking = tokio::spawn(Arc::clone(&self.script).tick_until(stop.clone()));
        let server = Server { stop, tasks: vec![server, ticking] };
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
    }

    /// Where it listens, `host:port`; the same after a restart.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Lists these addresses for a service, complete, weight 100 each, least loaded first by choice of the clients. The
    /// version is what clients acknowledge.
    pub fn set<A: AsRef<str>>(&self, service: &str, addresses: impl IntoIterator<Item = A>) -> Version {
        let endpoints = addresses.into_iter().map(|address| endpoint(address.as_ref(), 100)).collect();
        self.set_list(List { service: service.to_owned(), complete: true, endpoints, ..List::default() })
    }

    /// Lists exactly this. What is left out is filled in: the version by the next of this balancer's epoch, the digest by
    /// a hash of the content, the mode by NORMAL (EMPTY without endpoints), the policy by `least_load`.
    pub fn set_list(&self, list: List) -> Version {
        self.script.set_list(list)
    }

    /// Says how calls of a service are made, now and to later subscribers, in place of what was said before.
    pub fn set_methods(&self, methods: MethodPolicy) {
        self.script.set_methods(methods);
    }

    /// Forgets a service: later subscribers get nothing, as from a balancer that has just started.
    pub fn forget(&self, service: &str) {
        self.script.forget(service);
    }

    /// Sends the heartbeat of every list to every stream now, besides those it sends by itself.
    pub fn tick(&self) {
        self.script.tick();
    }

    /// Time between heartbeats, which is 1 s unless set; `None` falls silent, as a balancer that hangs.
    pub fn set_tick_period(&self, period: Option<Duration>) {
        self.script.set_tick_period(period);
    }

    /// How often clients and backends are asked to report; 100 ms unless set.
    pub fn set_report_period(&self, period: Duration) {
        self.script.set_report_period(period);
    }

    /// Says of every service, now and with each heartbeat, whether it has too much to do.
    pub fn set_overload(&self, overload: bool) {
        self.script.set_overload(overload);
    }

    /// Says of a service that it cannot be answered, now and to later subscribers, until a list is set.
    pub fn service_error(&self, service: &str, code: tonic::Code, reason: &str, message: &str) {
        let (service, reason, message) = (service.to_owned(), reason.to_owned(), message.to_owned());
        self.script.set_error(ServiceError { service, code: code.into(), message, reason });
    }

    /// Sends every client elsewhere, for these services or, with none named, for all.
    pub fn redirect<A: AsRef<str>>(&self, balancers: impl IntoIterator<Item = A>, services: &[&str]) {
        self.script.redirect(Redirect {
            balancers: balancers.into_iter().map(|balancer| balancer.as_ref().to_owned()).collect(),
            services: services.iter().map(|&service| service.to_owned()).collect(),
            reason: "the script says so".to_owned(),
        });
    }

    /// Tells overrides to every backend that reports, now and later.
    pub fn tell_overrides(&self, overrides: Vec<Override>) {
        self.script.tell_overrides(overrides);
    }

    /// Refuses reports from now on, with these words; `None` takes them again.
    pub fn refuse_reports(&self, refusal: Option<(&str, &str)>) {
        self.script.refuse_reports(refusal.map(|(reason, message)| (reason.to_owned(), message.to_owned())));
    }

    /// Insists that every endpoint is still listed, so that no drain ends.
    pub fn keep_listed(&self, keep: bool) {
        self.script.keep_listed(keep);
    }

    /// Breaks every stream with UNAVAILABLE; new ones are taken.
    pub fn drop_streams(&self) {
        self.script.drop_streams();
    }

    /// Breaks every stream and closes the port. Stopped already, it does nothing.
    pub async fn stop(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(server) = server else { return };
        server.stop.cancel();
        self.script.drop_streams();
        for task in server.tasks {
            let stop = task.abort_handle();
            if tokio::time::timeout(STOP_MAX, task).await.is_err() {
                stop.abort();
            }
        }
    }

    /// Stops, if it runs, and starts again on the same port under a new epoch. Lists stay, so does what was seen. Fails
    /// when another process has taken the port.
    pub async fn restart(&self) -> io::Result<()> {
        self.stop().await;
        self.script.begin_epoch();
        let listener = TcpListener::bind(self.address).await?;
        self.serve(listener);
        Ok(())
    }

    /// The version of a service's list that was acknowledged last.
    pub fn acked(&self, service: &str) -> Option<Version> {
        self.script.seen(|seen| seen.acked(service))
    }

    /// All outcomes that clients reported of a service, in the order they came.
    pub fn outcomes(&self, service: &str) -> Vec<EndpointOutcomes> {
        self.script.seen(|seen| seen.outcomes(service).cloned().collect())
    }

    /// A copy of all that was seen so far.
    pub fn seen(&self) -> Seen {
        self.script.seen(Seen::clone)
    }

    /// Waits until what was seen satisfies the condition. False when it did not within this time.
    #[must_use]
    pub async fn wait_for(&self, condition: impl FnMut(&Seen) -> bool, deadline: Duration) -> bool {
        self.script.wait_for(condition, deadline).await
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if let Some(server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() {
            server.stop.cancel();
            self.script.drop_streams();
        }
    }
}

/// An endpoint as a list names it, with nothing but an address and a weight.
pub fn endpoint(address: &str, weight: u32) -> Endpoint {
    Endpoint { address: address.to_owned(), weight, ..Endpoint::default() }
}

#[cfg(test)]
mod tests;
