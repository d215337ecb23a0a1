//! The checks of one endpoint, one after another.

use std::{future, sync::Arc};

use lookaside_core::{
    event::{CheckOutcome, Event},
    model::{Address, ServiceName},
};
use lookaside_tls::{Tls, dial};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{
    Opened, Target,
    link::{self, Answer, Link, Watched},
};
use crate::{driver::Handle, limits::WATCH_PERIOD_MIN, telemetry};

pub(super) struct Prober {
    driver: Handle,
    permits: Arc<Semaphore>,
    opened: Arc<Opened>,
    service: ServiceName,
    address: Address,
    link: Option<Link>,
    /// The health service is not implemented: that connecting works is all there is to know.
    is_tcp_only: bool,
    /// No Watch has broken since the last regular check: a backend that ends each at once would keep both sides busy.
    may_watch: bool,
    last: Option<CheckOutcome>,
}

impl Prober {
    pub(super) fn new(
        driver: &Handle,
        permits: &Arc<Semaphore>,
        opened: &Arc<Opened>,
        service: ServiceName,
        address: Address,
    ) -> Self {
        Self {
            driver: driver.clone(),
            permits: Arc::clone(permits),
            opened: Arc::clone(opened),
            service,
            address,
            link: None,
            is_tcp_only: false,
            may_watch: true,
            last: None,
        }
    }

    /// Checks at once, then at the interval and whenever the target changes.
    pub(super) async fn run(mut self, mut targets: watch::Receiver<Target>) {
        let mut before = targets.borrow().clone();
        loop {
            let target = targets.borrow_and_update().clone();
            if !target.is_reached_like(&before) {
                (self.link, self.is_tcp_only, self.may_watch) = (None, false, true);
            }
            before = target.clone();
            let jitter = rand::random_range(0.9..1.1);
            let next = Instant::now() + target.health.interval.mul_f64(jitter);
            if let Some(outcome) = self.check(&target).await {
                self.tell(outcome).await;
            }
            self.watch(&target);
            if !self.idle(next, &mut targets).await {
                return;
            }
        }
    }

    /// `None` when there is nothing to be known, by a fault of ours.
    async fn check(&mut self, target: &Target) -> Option<CheckOutcome> {
        let tls = match &target.tls {
            None => None,
            Some(tls) => Some(self.opened.get(tls).await?),
        };
        let tls = tls.as_ref().map(|tls| (tls, &*target.tls_name));
        let permits = Arc::clone(&self.permits);
        // Waiting for a turn is not the endpoint's fault; the semaphore is never closed.
        let _permit = permits.acquire().await;
        let began = Instant::now();
        let deadline = target.health.deadline;
        let outcome = match timeout(deadline, self.attempt(&target.health.service, tls)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // It may be the connection that hangs, not the backend: the next check makes a new one.
                self.link = None;
                CheckOutcome::TimedOut { deadline }
            }
        };
        metrics::histogram!(telemetry::HEALTH_CHECK_DURATION_SECONDS).record(began.elapsed());
        metrics::counter!(telemetry::HEALTH_CHECKS_TOTAL, "result" => word(&outcome)).increment(1);
        Some(outcome)
    }

    async fn attempt(&mut self, health_service: &str, tls: Option<(&Tls, &str)>) -> CheckOutcome {
        if self.is_tcp_only {
            return match dial(self.address.as_str(), tls).await {
                Ok(_) => CheckOutcome::Passed,
                Err(error) => {
                    // Perhaps another program starts here next.
                    self.is_tcp_only = false;
                    link::unreachable(&error)
                }
            };
        }
        if let Some(link) = &mut self.link {
            match link.check(health_service).await {
                Answer::Outcome(outcome) => return outcome,
                Answer::Unimplemented => return self.has_no_health_service(),
                // A connection ends for good reasons too, its age for one: a new one tells.
                Answer::Broken(_) => self.link = None,
            }
        }
        let mut link = match Link::open(&self.address, tls).await {
            Ok(link) => link,
            Err(outcome) => return outcome,
        };
        match link.check(health_service).await {
            Answer::Outcome(outcome) => {
                self.link = Some(link);
                outcome
            }
            Answer::Unimplemented => self.has_no_health_service(),
            Answer::Broken(outcome) => outcome,
        }
    }

    fn has_no_health_service(&mut self) -> CheckOutcome {
        self.link = None;
        self.is_tcp_only = true;
        CheckOutcome::Passed
    }

    async fn tell(&mut self, outcome: CheckOutcome) {
        self.last = Some(outcome.clone());
        let (service, address) = (self.service.clone(), self.address.clone());
        self.driver.tell(Event::Checked { service, address, outcome }).await;
    }

    /// Watches from now on, when there is a connection and nothing speaks against it.
    fn watch(&mut self, target: &Target) {
        if let Some(link) = self.link.as_mut().filter(|_| self.may_watch) {
            link.watch(&target.health.service);
        }
    }

    /// Passes on what Watch says until the next check is due. `false` when there will be none.
    async fn idle(&mut self, next: Instant, targets: &mut watch::Receiver<Target>) -> bool {
        let mut next_watched = Instant::now();
        loop {
            let watched = async {
                sleep_until(next_watched).await;
                match &mut self.link {
                    Some(link) => link.watched().await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                () = sleep_until(next) => {
                    self.may_watch = true;
                    return true;
                }
                changed = targets.changed() => return changed.is_ok(),
                watched = watched => match watched {
                    Watched::Serving => self.tell_if_new(CheckOutcome::Passed).await,
                    Watched::NotServing => self.tell_if_new(CheckOutcome::NotServing).await,
                    Watched::Unimplemented => {} // The link remembers.
                    Watched::Broken => {
                        self.may_watch = false;
                        return true;
                    }
                }
            }
            next_watched = Instant::now() + WATCH_PERIOD_MIN;
        }
    }

    async fn tell_if_new(&mut self, outcome: CheckOutcome) {
        if self.last.as_ref() != Some(&outcome) {
            self.tell(outcome).await;
        }
    }
}

fn word(outcome: &CheckOutcome) -> &'static str {
    match outcome {
        CheckOutcome::Passed => "passed",
        CheckOutcome::NotServing => "not_serving",
        CheckOutcome::Unreachable { .. } => "unreachable",
        CheckOutcome::TimedOut { .. } => "timed_out",
        CheckOutcome::NotGrpc { .. } => "not_grpc",
    }
}
