//! Faults begin and end, and what all that hold make of an endpoint together.

use std::collections::BTreeSet;

use lookaside_core::snapshot::Fleet;
use lookaside_sdk::picker::{Class, Rng};

use super::{Engine, Event, news::Heard};
use crate::{
    chance::{Stream, stream},
    endpoint::{Condition, Presence},
    scenario::{Fault, FaultKind, Scenario},
};

/// Between two looks at whether an endpoint that leaves is done.
const LEAVING_LOOK_US: u64 = 100_000;
/// It leaves at the latest so long after it has said so, and not before clients have had the time to hear of it.
const LEAVING_US_MAX: u64 = 30_000_000;
const LEAVING_US_MIN: u64 = 1_000_000;
/// Within so long clients connect again to an endpoint or a balancer that came back.
const RECONNECT_US_MAX: u64 = 1_000_000;

/// The faults of a run.
#[derive(Debug)]
pub(super) struct Faults {
    all: Vec<Fault>,
    /// Those that hold: endpoint, number of the fault.
    on: BTreeSet<(u32, u32)>,
    marked: Vec<bool>,
    rng: Rng,
    pub(super) balancer_is_up: bool,
}

impl Faults {
    pub(super) fn new(scenario: &Scenario, seed: u64) -> Self {
        let mut marked = vec![false; scenario.endpoints_count() as usize];
        for fault in scenario.faults.iter().filter(|fault| fault.kind != FaultKind::BalancerDown) {
            scenario.numbers(&fault.endpoints).for_each(|number| marked[number as usize] = true);
        }
        Self {
            all: scenario.faults.clone(),
            on: BTreeSet::new(),
            marked,
            rng: stream(seed, Stream::Faults, 0),
            balancer_is_up: true,
        }
    }

    /// Whether a fault is about this endpoint.
    pub(super) fn marks(&self, endpoint: u32) -> bool {
        self.marked[endpoint as usize]
    }

    /// Chance for what fails by chance.
    pub(super) fn chance(&mut self) -> &mut Rng {
        &mut self.rng
    }

    fn condition(&self, endpoint: u32) -> Condition {
        let mut condition = Condition::default();
        for (_, fault) in self.on.range((endpoint, 0)..=(endpoint, u32::MAX)) {
            let fails = |condition: &mut Condition, after_us, permille, holds| {
                condition.fails_after_us = Some(after_us);
                condition.fails_permille = permille;
                condition.holds = holds;
            };
            match self.all[*fault as usize].kind {
                FaultKind::Pause | FaultKind::Pauses { .. } => condition.speed_factor = 0.0,
                FaultKind::Antagonist { speed_factor, .. } => condition.speed_factor *= speed_factor,
                FaultKind::Cold { factor } => condition.speed_factor /= factor,
                FaultKind::FastFail { after_us } => fails(&mut condition, after_us, 1_000, false),
                FaultKind::SlowFail { after_us } => fails(&mut condition, after_us, 1_000, true),
                FaultKind::Partial { permille } => fails(&mut condition, 0, permille, false),
                FaultKind::Lie => condition.lies = true,
                FaultKind::Join | FaultKind::Leave | FaultKind::Crash | FaultKind::BalancerDown => {}
            }
        }
        condition
    }
}

/// When a fault holds, microseconds from the start of the run; without an end for good.
fn times(fault: &Fault, scenario: &Scenario) -> (u64, Option<u64>) {
    let begin_us = (scenario.warm_up_ms as i64 + fault.at_ms) * 1_000;
    let end_us = (fault.for_ms > 0).then(|| begin_us + fault.for_ms as i64 * 1_000);
    (begin_us.max(0) as u64, end_us.map(|us| us.max(0) as u64))
}

impl Engine<'_> {
    /// Plans all that is to go wrong.
    pub(super) fn begin_faults(&mut self) {
        for at in 0..self.faults.all.len() {
            let fault = self.faults.all[at].clone();
            let (begin_us, end_us) = times(&fault, self.scenario);
            if fault.kind == FaultKind::BalancerDown {
                self.queue.at(begin_us, Event::Balancer { is_up: false });
                if let Some(end_us) = end_us {
                    self.queue.at(end_us, Event::Balancer { is_up: true });
                }
                continue;
            }
            for endpoint in self.scenario.numbers(&fault.endpoints) {
                let phase_us = match fault.kind {
                    FaultKind::Pauses { every_ms, .. } => self.faults.rng.below(every_ms * 1_000),
                    FaultKind::Antagonist { on_ms, off_ms, .. } => self.faults.rng.below((on_ms + off_ms) * 1_000),
                    FaultKind::Join => {
                        self.endpoints[endpoint as usize].presence = Presence::Absent;
                        self.world.endpoints[endpoint as usize].serves = false;
                        0
                    }
                    FaultKind::Pause
                    | FaultKind::Cold { .. }
                    | FaultKind::FastFail { .. }
                    | FaultKind::SlowFail { .. }
                    | FaultKind::Partial { .. }
                    | FaultKind::Lie
                    | FaultKind::Leave
                    | FaultKind::Crash
                    | FaultKind::BalancerDown => 0,
                };
                let fault = at as u32;
                self.queue.at(begin_us + phase_us, Event::Fault { fault, endpoint, on: true });
                if let Some(end_us) = end_us {
                    self.queue.at(end_us, Event::Fault { fault, endpoint, on: false });
                }
            }
        }
    }

    pub(super) fn fault(&mut self, at: u32, endpoint: u32, on: bool) {
        let now_us = self.queue.now_us();
        let fault = &self.faults.all[at as usize];
        let (_, end_us) = times(fault, self.scenario);
        let is_over = end_us.is_some_and(|end_us| now_us >= end_us);
        if on && is_over {
            return;
        }
        let again = |on_ms: u64, off_ms: u64| (if on { on_ms } else { off_ms }) * 1_000;
        let next_in_us = match fault.kind {
            FaultKind::Pauses { every_ms, pause_ms } => Some(again(pause_ms, every_ms - pause_ms)),
            FaultKind::Antagonist { on_ms, off_ms, .. } => Some(again(on_ms, off_ms)),
            FaultKind::Crash => return if on { self.crash(endpoint) } else { self.start(endpoint) },
            FaultKind::Leave => return if on { self.leave(endpoint) } else { self.start(endpoint) },
            // One that joins for a while leaves at the end.
            FaultKind::Join => return if on { self.start(endpoint) } else { self.leave(endpoint) },
            FaultKind::Pause
            | FaultKind::Cold { .. }
            | FaultKind::FastFail { .. }
            | FaultKind::SlowFail { .. }
            | FaultKind::Partial { .. }
            | FaultKind::Lie
            | FaultKind::BalancerDown => None,
        };
        if on {
            self.faults.on.insert((endpoint, at));
        } else {
            self.faults.on.remove(&(endpoint, at));
        }
        self.endpoints[endpoint as usize].change(self.faults.condition(endpoint), now_us);
        self.show_truth(endpoint);
        self.plan_served(endpoint);
        if let Some(next_in_us) = next_in_us.filter(|_| !is_over) {
            self.queue.at(now_us + next_in_us, Event::Fault { fault: at, endpoint, on: !on });
        }
    }

    /// Oracles see at once what has changed.
    fn show_truth(&mut self, at: u32) {
        let endpoint = &self.endpoints[at as usize];
        let truth = &mut self.world.endpoints[at as usize];
        truth.speed = endpoint.speed_now();
        // One that fails some of its calls serves the others.
        truth.serves = endpoint.presence == Presence::Serving && endpoint.condition.fails_permille < 1_000;
    }

    fn crash(&mut self, at: u32) {
        let now_us = self.queue.now_us();
        let endpoint = &mut self.endpoints[at as usize];
        if endpoint.presence == Presence::Absent {
            return;
        }
        let incarnation = endpoint.incarnation;
        for flight in endpoint.crash(now_us) {
            self.send_back(flight, Class::Endpoint);
        }
        self.gone(at);
        self.tell_balancer(Heard::StreamBroke { endpoint: at, incarnation });
    }

    /// It says that it leaves.
    fn leave(&mut self, at: u32) {
        let now_us = self.queue.now_us();
        let endpoint = &mut self.endpoints[at as usize];
        if endpoint.presence != Presence::Serving {
            return;
        }
        endpoint.presence = Presence::Leaving;
        let incarnation = endpoint.incarnation;
        self.show_truth(at);
        self.tell_balancer(Heard::DrainAnnounced { endpoint: at, incarnation });
        let until_us = now_us + LEAVING_US_MAX;
        self.queue.at(now_us + LEAVING_US_MIN, Event::Leaving { endpoint: at, incarnation, until_us });
    }

    /// It is gone once it has nothing to do, or time is up.
    pub(super) fn leaving(&mut self, at: u32, incarnation: u64, until_us: u64) {
        let now_us = self.queue.now_us();
        let endpoint = &mut self.endpoints[at as usize];
        if endpoint.presence != Presence::Leaving || endpoint.incarnation != incarnation {
            return;
        }
        if self.world.endpoints[at as usize].in_flight > 0 && now_us < until_us {
            self.queue.at(now_us + LEAVING_LOOK_US, Event::Leaving { endpoint: at, incarnation, until_us });
            return;
        }
        for flight in endpoint.crash(now_us) {
            self.send_back(flight, Class::Endpoint);
        }
        self.gone(at);
        self.tell_balancer(Heard::Departed { endpoint: at, incarnation });
    }

    fn gone(&mut self, endpoint: u32) {
        self.show_truth(endpoint);
        for client in 0..self.clients.len() as u32 {
            if self.clients[client as usize].knows(endpoint) {
                self.queue.send(Event::Connected { client, endpoint, is_connected: false });
            }
        }
    }

    /// It is there, as a new process.
    fn start(&mut self, at: u32) {
        let now_us = self.queue.now_us();
        let endpoint = &mut self.endpoints[at as usize];
        if endpoint.presence != Presence::Absent {
            // It comes back before it has gone: what it still has is cut off.
            let incarnation = endpoint.incarnation;
            for flight in endpoint.crash(now_us) {
                self.send_back(flight, Class::Endpoint);
            }
            self.tell_balancer(Heard::Departed { endpoint: at, incarnation });
        }
        self.endpoints[at as usize].start(now_us);
        self.show_truth(at);
        self.register(at);
        for client in 0..self.clients.len() as u32 {
            if self.clients[client as usize].knows(at) {
                let delay_us = 2 * self.scenario.network_us + self.rng.below(RECONNECT_US_MAX);
                self.queue.at(now_us + delay_us, Event::Connected { client, endpoint: at, is_connected: true });
            }
        }
    }

    pub(super) fn connected(&mut self, client: u32, endpoint: u32, is_connected: bool) {
        let is_so = (self.endpoints[endpoint as usize].presence != Presence::Absent) == is_connected;
        let now_us = self.queue.now_us();
        let client = &mut self.clients[client as usize];
        if is_so && client.connected(endpoint, is_connected) {
            client.relist(now_us);
        }
    }

    /// The balancer is gone, or comes back and knows nothing; then backends register and clients subscribe anew.
    pub(super) fn balancer_is_up(&mut self, is_up: bool) {
        let now_us = self.queue.now_us();
        self.faults.balancer_is_up = is_up;
        if !is_up {
            for client in &mut self.clients {
                client.subscribed = false;
                client.dispatcher.ticked(&Fleet::default(), now_us);
            }
            return;
        }
        self.balancer.restart(now_us);
        self.begin_turns();
        for endpoint in 0..self.endpoints.len() as u32 {
            if self.endpoints[endpoint as usize].presence == Presence::Serving {
                self.register(endpoint);
            }
        }
        for client in 0..self.clients.len() as u32 {
            let delay_us = self.rng.below(RECONNECT_US_MAX);
            self.queue.at(now_us + delay_us, Event::Subscribed { client });
        }
    }
}
