//! What the tasks of one reporter share: who the backend is, how it is, and how far each balancer has got.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lookaside_proto::v1::{Counters as WireCounters, LoadReport, Override, Registration};
use tokio::sync::watch;

use super::counters::Counters;
use super::cpu::Cpu;
use super::orca::Named;
use super::overrides::Overrides;
use crate::{Tls, clock::now_unix_ms};

/// Where the backend is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// Every balancer is to know.
    Draining,
    /// No list names it any more: report streams end.
    Left,
}

/// What is known of one balancer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// It has answered on the stream that is open now.
    pub(crate) connected: bool,
    /// It has answered at some time.
    pub(crate) reached: bool,
    /// It holds the registration.
    pub(crate) accepted: bool,
    /// It was told of the drain and said that no client holds a list with this endpoint.
    pub(crate) unlisted: bool,
    /// It said that it leaves itself, and will be back.
    pub(crate) leaving: bool,
}

/// Resolves when the backend has left.
pub(crate) struct Left(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Left {
    pub(crate) fn as_mut(&mut self) -> Pin<&mut (dyn Future<Output = ()> + Send)> {
        self.0.as_mut()
    }
}

impl fmt::Debug for Left {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Left")
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) registration: Registration,
    pub(crate) counters: Arc<Counters>,
    pub(crate) named: Arc<Named>,
    /// How balancers are connected to.
    pub(crate) tls: Option<Tls>,
    started: Instant,
    cpu: Option<Mutex<Cpu>>,
    overrides: Mutex<Overrides>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) links: watch::Sender<BTreeMap<SocketAddr, Link>>,
}

impl Shared {
    pub(crate) fn new(registration: Registration, measure_cpu: bool) -> Self {
        Self {
            registration,
            counters: Arc::new(Counters::new()),
            named: Arc::default(),
            tls: None,
            started: Instant::now(),
            cpu: measure_cpu.then(|| Mutex::new(Cpu::new())),
            overrides: Mutex::default(),
            phase: watch::Sender::new(Phase::Serving),
            links: watch::Sender::default(),
        }
    }

    /// Since the start of the reporter: more than the messages that any stream has carried by now.
    pub(crate) fn age_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn is_draining(&self) -> bool {
        match *self.phase.borrow() {
            Phase::Serving => false,
            Phase::Draining | Phase::Left => true,
        }
    }

    /// Resolves when the backend has left.
    pub(crate) fn left(self: Arc<Self>) -> Left {
        Left(Box::pin(async move {
            // The sender lives in `self`.
            let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Left).await;
        }))
    }

    /// The end: report streams and watches of health are over.
    pub(crate) fn leave(&self) {
        self.phase.send_replace(Phase::Left);
    }

    /// What is known of the balancer at this address; nothing of one that is not reported to.
    pub(crate) fn link(&self, address: &SocketAddr) -> Link {
        self.links.borrow().get(address).copied().unwrap_or_default()
    }

    pub(crate) fn update_link(&self, address: &SocketAddr, change: impl FnOnce(&mut Link)) {
        self.links.send_if_modified(|links| {
            let link = links.entry(*address).or_default();
            let before = *link;
            change(link);
            *link != before
        });
    }

    /// It is reported to no longer: nothing that the backend does waits for it.
    pub(crate) fn forget_link(&self, address: &SocketAddr) {
        self.links.send_if_modified(|links| links.remove(address).is_some());
    }

    /// Nothing is reported to anybody any more.
    pub(crate) fn forget_links(&self) {
        self.links.send_modify(BTreeMap::clear);
    }

    /// Keeps what a balancer told; true when it is new and worth repeating to the others.
    pub(crate) fn learn(&self, told: Vec<Override>) -> bool {
        let mut overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        overrides.merge(told, &self.registration, now_unix_ms())
    }

    /// The whole state as one message; `first` ones register as well.
    pub(crate) fn report(&self, sequence: u64, first: bool) -> LoadReport {
        if let Some(cpu) = &self.cpu {
            let (used_us, share) = cpu.lock().unwrap_or_else(PoisonError::into_inner).sample(Instant::now());
            self.counters.set_cpu(used_us, share);
        }
        self.counters.measure();
        let totals = self.counters.totals();
        let mut overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        LoadReport {
            registration: first.then(|| self.registration.clone()),
            sequence,
            counters: Some(WireCounters {
                completions: totals.completions,
                errors_overload: totals.errors_overload,
                errors_endpoint: totals.errors_endpoint,
                errors_deadline: totals.errors_deadline,
                busy_us: totals.busy_us,
                in_flight_us: totals.in_flight_us,
                queue_delay_us: 0,
                cpu_us: self.counters.cpu_us(),
                in_flight: totals.in_flight,
                cpu_utilization: self.counters.cpu_utilization(),
                application_utilization: self.counters.application_utilization(),
                utilization: self.named.pairs().into_iter().collect(),
            }),
            draining: self.is_draining(),
            overrides: overrides.current(now_unix_ms()),
        }
    }
}
