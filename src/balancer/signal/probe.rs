//! Checks that the balancer makes of every endpoint: `grpc.health.v1` Check at an interval and Watch in between, on one
//! connection per endpoint that nothing else uses. It follows the snapshots and judges nothing: what a failed check means
//! is the table's to say.

use std::{collections::BTreeMap, sync::Arc};

use lookaside_core::{
    config::HealthConfig,
    model::{Address, ServiceName},
    snapshot::{ServiceSnapshot, Snapshot},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{driver::Handle, limits::PROBE_LOOK_PERIOD};

mod link;
mod prober;

use prober::Prober;

/// Checks every endpoint of every service, at most `checks_at_once` at a time, until `stop` is cancelled.
pub(crate) async fn run(driver: Handle, checks_at_once: usize, stop: CancellationToken) {
    let mut snapshots = driver.snapshots();
    let mut probes = Probes { driver, permits: Arc::new(Semaphore::new(checks_at_once)), services: BTreeMap::new() };
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
    /// Which start of the backend: another one is another process.
    incarnation: u64,
    /// Counts up when a check is wanted at once.
    wanted: u64,
}

/// A task that checks one endpoint; dropped, it ends.
struct Running {
    target: watch::Sender<Target>,
    task: AbortOnDropHandle<()>,
}

struct Probes {
    driver: Handle,
    permits: Arc<Semaphore>,
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
                    let prober = Prober::new(&self.driver, &self.permits, service.name.clone(), address.clone());
                    let task = AbortOnDropHandle::new(tokio::spawn(prober.run(targets)));
                    running.insert(address, Running { target: sender, task });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
