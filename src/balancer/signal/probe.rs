//! Checks that the balancer makes of every endpoint: `grpc.health.v1` Check at an interval and Watch in between, on one
//! connection per endpoint that nothing else uses. It follows the snapshots and judges nothing: what a failed check means
//! is the table's to say.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use lookaside_core::{
    config::{EndpointTls, HealthConfig},
    model::{Address, ServiceName},
    snapshot::{ServiceSnapshot, Snapshot},
};
use lookaside_tls::Tls;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    driver::Handle,
    limits::{OPEN_PERIOD_MIN, OPENED_MAX, PROBE_LOOK_PERIOD},
    tls,
};

mod link;
mod prober;

use prober::Prober;

/// Files are read once for all endpoints that are connected to alike.
#[derive(Default)]
struct Opened(Mutex<BTreeMap<EndpointTls, Arc<tokio::sync::Mutex<Opening>>>>);

/// What came of opening files: `Err` says when that was last tried in vain.
type Opening = Option<Result<Tls, Instant>>;

impl Opened {
    /// `None` when the files are of no use: that is our fault, of which nothing follows for an endpoint. Said once, and
    /// tried again as long as somebody asks. Those who ask for the same wait for each other, and for nobody else.
    async fn get(&self, tls: &EndpointTls) -> Option<Tls> {
        let opening = {
            let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if opened.len() >= OPENED_MAX && !opened.contains_key(tls) {
                opened.clear();
            }
            Arc::clone(opened.entry(tls.clone()).or_default())
        };
        let mut opening = opening.lock().await;
        match &*opening {
            Some(Ok(tls)) => return Some(tls.clone()),
            Some(Err(tried_at)) if tried_at.elapsed() < OPEN_PERIOD_MIN => return None,
            Some(Err(_)) | None => {}
        }
        let tls = tls.clone();
        // A disk that hangs is not to stop anybody else; an error means that the runtime ends.
        let now = tokio::task::spawn_blocking(move || tls::of_endpoints(&tls)).await.ok()?;
        if let Err(error) = &now
            && opening.is_none()
        {
            tracing::error!(%error, "endpoints that this is for are not checked");
        }
        opening.insert(now.map_err(|_| Instant::now())).as_ref().ok().cloned()
    }
}

/// Checks every endpoint of every service, at most `checks_at_once` at a time, until `stop` is cancelled.
pub(crate) async fn run(driver: Handle, checks_at_once: usize, stop: CancellationToken) {
    let mut snapshots = driver.snapshots();
    let mut probes = Probes {
        driver,
        permits: Arc::new(Semaphore::new(checks_at_once)),
        opened: Arc::default(),
        services: BTreeMap::new(),
    };
    let mut seen = Arc::<Snapshot>::default();
    loop {
        let now = Arc::clone(&snapshots.borrow_and_update());
        probes.follow(&seen, &now);
        seen = now;
        // Snapshots come by the hundred per second; looking through ten thousand endpoints each time is a core's work.
        let next = async {
            tokio::time::sleep(PROBE_LOOK_PERIOD).await;
            snapshots.changed().await
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = next => if changed.is_err() { return },
        }
    }
}

/// What a prober is to do, as the newest snapshot has it. Any change makes it check at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    health: HealthConfig,
    /// How it is connected to; `None` is plaintext.
    tls: Option<EndpointTls>,
    /// The name it has to show then; empty means the host of its address.
    tls_name: Arc<str>,
    /// Which start of the backend: another one is another process.
    incarnation: u64,
    /// Counts up when a check is wanted at once.
    wanted: u64,
}

impl Target {
    /// Whether the same connection would be made.
    fn is_reached_like(&self, other: &Self) -> bool {
        (self.incarnation, &self.tls, &self.tls_name) == (other.incarnation, &other.tls, &other.tls_name)
    }
}

/// A task that checks one endpoint; dropped, it ends.
struct Running {
    target: watch::Sender<Target>,
    task: AbortOnDropHandle<()>,
}

struct Probes {
    driver: Handle,
    permits: Arc<Semaphore>,
    opened: Arc<Opened>,
    services: BTreeMap<ServiceName, BTreeMap<Address, Running>>,
}

impl Probes {
    fn follow(&mut self, before: &Snapshot, now: &Snapshot) {
        self.services.retain(|name, _| now.services.contains_key(name));
        for (name, service) in &now.services {
            if before.services.get(name).is_none_or(|old| !Arc::ptr_eq(old, service)) {
                self.follow_service(service);
            }
        }
    }

    fn follow_service(&mut self, service: &ServiceSnapshot) {
        let running = self.services.entry(service.name.clone()).or_default();
        running.retain(|address, _| service.endpoint(address).is_some());
        for endpoint in &service.endpoints {
            let target = Target {
                health: service.config.health.clone(),
                tls: service.config.tls.clone(),
                tls_name: Arc::clone(&endpoint.spec.tls_name),
                incarnation: endpoint.spec.incarnation,
                wanted: endpoint.check_wanted,
            };
            match running.get(&endpoint.spec.address) {
                Some(one) if !one.task.is_finished() => {
                    one.target.send_if_modified(|old| std::mem::replace(old, target.clone()) != target);
                }
                // A prober ends by itself only by a fault of its own; the endpoint must not pay for that.
                Some(_) | None => {
                    let address = endpoint.spec.address.clone();
                    let (sender, targets) = watch::channel(target);
                    let prober =
                        Prober::new(&self.driver, &self.permits, &self.opened, service.name.clone(), address.clone());
                    let task = AbortOnDropHandle::new(tokio::spawn(prober.run(targets)));
                    running.insert(address, Running { target: sender, task });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
