//! What a backend links: it makes itself known to every balancer, says how loaded it is, answers health checks, ORCA pulls
//! and probes, and leaves without losing a call.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use lookaside_sdk::reporter::Reporter;
//!
//! let reporter = Reporter::builder("greeter")
//!     .balancers(["127.0.0.1:7400"])
//!     .advertise("10.0.1.11:50051")
//!     .start()
//!     .await?;
//! tonic::transport::Server::builder()
//!     .layer(reporter.layer())
//!     .add_service(reporter.health_service())
//!     .add_service(reporter.orca_service())
//!     .add_service(reporter.probe_service())
//!     // .add_service(GreeterServer::new(greeter))
//!     .serve_with_shutdown("0.0.0.0:50051".parse()?, reporter.drained_on(lookaside_sdk::asked_to_leave()))
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! It refuses to stand in the way: no call waits for a balancer, nothing here can fail a call, and a backend whose
//! balancers are all away serves as before.

mod balancers;
mod builder;
mod counters;
mod cpu;
mod drain;
mod fullness;
mod layer;
mod leave;
mod link;
mod orca;
mod overrides;
mod probe;
mod rates;
mod shared;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lookaside_proto::v1::backend_server::BackendServer;
use lookaside_proto::xds::service::orca::v3::open_rca_service_server::OpenRcaServiceServer;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

pub use builder::{Builder, Error};
use fullness::Fullness;
pub use layer::{ReportBody, ReportFuture, ReportLayer, ReportService};
pub use leave::asked_to_leave;
pub use orca::OrcaService;
pub use probe::ProbeService;
use shared::Shared;

use crate::resolve::Name;

/// A backend's tie to its balancers. Clones share it; when the last one is dropped, reporting ends as if the backend had
/// died, so keep one for as long as the server runs and end with [`drain`](Self::drain) or
/// [`drained_on`](Self::drained_on).
#[derive(Debug, Clone)]
pub struct Reporter {
    shared: Arc<Shared>,
    health: HealthReporter,
    // Ends the tasks, and does so when the last clone goes.
    tasks: CancellationToken,
    _last: Arc<DropGuard>,
}

impl Reporter {
    /// Starts to describe the backend that serves `service`.
    pub fn builder(service: impl Into<String>) -> Builder {
        Builder::new(service.into())
    }

    async fn start(shared: Arc<Shared>, balancers: Vec<Name>) -> Self {
        let health = HealthReporter::new();
        health.set_service_status(&shared.registration.service, ServingStatus::Serving).await;
        let tasks = CancellationToken::new();
        let reporting = balancers::report_to_all(Arc::clone(&shared), balancers);
        let (stop, reporter) = (tasks.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            tokio::select! {
                // A drain that is under way has nobody left to wait for.
                () = stop.cancelled() => reporter.forget_links(),
                () = reporting => {}
            }
        });
        Self { shared, health, _last: Arc::new(tasks.clone().drop_guard()), tasks }
    }

    /// The layer to put around all services of the server: it counts calls and writes the load on each answer.
    pub fn layer(&self) -> ReportLayer {
        ReportLayer { shared: Arc::clone(&self.shared) }
    }

    /// `grpc.health.v1`, for the server as a whole ("") and for the service by name.
    pub fn health_service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.health.clone()))
    }

    /// ORCA's `OpenRcaService`, for balancers that pull.
    pub fn orca_service(&self) -> OpenRcaServiceServer<OrcaService> {
        let (counters, named) = (Arc::clone(&self.shared.counters), Arc::clone(&self.shared.named));
        OpenRcaServiceServer::new(OrcaService { counters, named })
    }

    /// `lookaside.v1.Backend`, for pickers that have heard nothing fresh.
    pub fn probe_service(&self) -> BackendServer<ProbeService> {
        BackendServer::new(ProbeService { shared: Arc::clone(&self.shared) })
    }

    /// How full the application is, 1.0 is full, above it is overloaded; 0 takes the word back. What is not a number or
    /// below 0 is ignored, what is above 100 counts as 100.
    pub fn set_application_utilization(&self, share: f64) {
        if share.is_finite() && share >= 0.0 {
            self.shared.counters.set_application_utilization(share);
        }
    }

    /// Has the reporter work out how full the application is: `full_for` says for how long it has been full in sum so far, the
    /// time of its taken slots over the number of slots, say. What that grew by since the report before, over the time that
    /// passed, is the mean that the next report tells; it takes the place of
    /// [`set_application_utilization`](Self::set_application_utilization). It must answer at once, and must not hold a reporter.
    pub fn measure_application_utilization(&self, full_for: impl Fn() -> Duration + Send + Sync + 'static) {
        self.shared.counters.measure_by(Fullness::new(full_for, Instant::now()));
    }

    /// The share in use of a resource the application names, 0 to 1. False, and nothing changed, when the share is not
    /// within that range, the name is longer than 64 bytes, or eight other names are in use.
    pub fn set_utilization(&self, name: &str, share: f64) -> bool {
        (0.0..=1.0).contains(&share) && self.shared.named.set(name, share)
    }

    /// What health checks are told from now on; watchers learn it at once. A backend that leaves drains instead.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.health.set_service_status("", status).await;
        self.health.set_service_status(&self.shared.registration.service, status).await;
    }

    /// Calls in flight now.
    pub fn in_flight(&self) -> u32 {
        self.shared.counters.totals().in_flight
    }

    /// The name under which this start of the backend is known: nanoseconds since 1970 when it was started.
    pub fn incarnation(&self) -> u64 {
        self.shared.registration.incarnation
    }

    /// Resolves once a balancer has accepted the registration; never, if none does.
    pub async fn registered(&self) {
        let mut links = self.shared.links.subscribe();
        // The sender lives in `self`.
        let _ = links.wait_for(|links| links.values().any(|link| link.accepted)).await;
    }

    /// Leaves: tells every balancer at once, waits until none of those connected has a client that holds a list with
    /// this endpoint, at most 30 s, and then answers health checks with NOT_SERVING. New calls are served all along. When
    /// it resolves, the server may shut down gracefully: watches of its health have ended. A balancer lost a moment ago
    /// is waited for 5 s; one that was never reached is not waited for.
    pub async fn drain(&self) {
        self.shared.drain().await;
        // Watchers hear of it before their streams end.
        self.set_serving(false).await;
        self.shared.leave();
    }

    /// Resolves `grace` after a drain has ended. Streams may last for ever, and a server that shuts down gracefully waits
    /// for them: select this against it.
    pub async fn grace_over(&self, grace: Duration) {
        Arc::clone(&self.shared).left().as_mut().await;
        tokio::time::sleep(grace).await;
    }

    /// Breaks every report stream off without a word, as death does; for drills.
    pub fn abandon(&self) {
        self.tasks.cancel();
    }

    /// Waits for `signal` and then [drains](Self::drain): the future that `serve_with_shutdown` wants.
    /// What the signal gives is of no interest.
    pub fn drained_on<T>(
        &self,
        signal: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let reporter = self.clone();
        async move {
            drop(signal.await);
            reporter.drain().await;
        }
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
