//! What goes to the balancer and comes from it: registrations, reports, checks, outcomes, turns, lists. Delays, jitter and loss
//! are the scenario's.

use std::{collections::BTreeMap, rc::Rc};

use lookaside_core::{
    event::{CheckOutcome, Outcomes},
    snapshot::Fleet,
};
use lookaside_sdk::picker::Pace;

use super::{Engine, Event};
use crate::{
    balancer::{List, Report},
    chance::happens,
    dispatch::Load,
    endpoint::Presence,
};

/// Between two turns of the driver, and after which there is one without anything new, as in the service. There a turn that
/// takes longer is followed by as long a pause; here it takes no time, so thousands of endpoints stand for that.
const TURN_US_MIN: u64 = 5_000;
const TURN_US_PER_ENDPOINT: u64 = 10;
const TURN_US_MAX: u64 = 100_000;
/// Between two looks at whether an endpoint that stands still answers a check after all.
const CHECK_LOOK_US: u64 = 10_000;
/// Outcomes older than this are no news to a balancer that comes back, as in the SDK.
const OUTCOMES_AGE_US_MAX: u64 = 10_000_000;

/// What the balancer hears.
#[derive(Debug)]
pub(super) enum Heard {
    Registered { endpoint: u32, incarnation: u64 },
    Reported { endpoint: u32, incarnation: u64, report: Report },
    DrainAnnounced { endpoint: u32, incarnation: u64 },
    Departed { endpoint: u32, incarnation: u64 },
    StreamBroke { endpoint: u32, incarnation: u64 },
    Checked { endpoint: u32, outcome: CheckOutcome },
    CallsEnded { client: u32, outcomes: BTreeMap<u32, Outcomes> },
}

/// What is planned around the balancer.
#[derive(Debug)]
pub(super) struct State {
    turn_plan: (u32, u64),
    turned_us: u64,
    check_plans: Vec<u32>,
    lists: u64,
    /// What endpoints said of themselves last, for those who want to hear it.
    loads: BTreeMap<u32, Load>,
    loads_told_us: u64,
}

impl State {
    pub(super) fn new(endpoints: usize) -> Self {
        Self {
            turn_plan: (0, u64::MAX),
            turned_us: 0,
            check_plans: vec![0; endpoints],
            lists: 0,
            loads: BTreeMap::new(),
            loads_told_us: 0,
        }
    }
}

impl Engine<'_> {
    /// Everything registers, and everybody begins to report.
    pub(super) fn begin_news(&mut self) {
        for endpoint in 0..self.endpoints.len() as u32 {
            if self.endpoints[endpoint as usize].presence == Presence::Serving {
                self.register(endpoint);
            }
            let interval_us = self.balancer.health().0.as_micros() as u64;
            let first_us = self.rng.below(interval_us);
            self.queue.at(first_us, Event::CheckDue { endpoint, plan: 0 });
        }
        if self.policy.tells_outcomes() {
            for client in 0..self.clients.len() as u32 {
                self.begin_pace(client);
                self.plan_outcomes(client);
            }
        }
        self.begin_turns();
    }

    pub(super) fn begin_turns(&mut self) {
        self.news.turn_plan.1 = u64::MAX;
        self.plan_turn(self.queue.now_us());
    }

    /// Registers an endpoint; from then on it reports.
    pub(super) fn register(&mut self, endpoint: u32) {
        let incarnation = self.endpoints[endpoint as usize].incarnation;
        self.tell_balancer(Heard::Registered { endpoint, incarnation });
        if self.endpoints[endpoint as usize].reports == 0 {
            self.plan_report(endpoint, incarnation);
        }
    }

    /// A tenth more or less, so that nobody reports in step.
    fn jittered(&mut self, period_us: u64) -> u64 {
        period_us * 9 / 10 + self.rng.below(period_us / 5)
    }

    fn plan_report(&mut self, endpoint: u32, incarnation: u64) {
        let after_us = self.jittered(self.balancer.report_period_us());
        self.queue.at(self.queue.now_us() + after_us, Event::ReportDue { endpoint, incarnation });
    }

    /// A message on its way to the balancer.
    pub(super) fn tell_balancer(&mut self, heard: Heard) {
        let ways = &self.scenario.balancer;
        let delay_us = ways.report_delay_us + self.rng.below(ways.jitter_us + 1);
        self.queue.at(self.queue.now_us() + delay_us, Event::Heard(Box::new(heard)));
    }

    pub(super) fn report_due(&mut self, at: u32, incarnation: u64) {
        let now_us = self.queue.now_us();
        let endpoint = &mut self.endpoints[at as usize];
        if endpoint.incarnation != incarnation || endpoint.presence == Presence::Absent {
            return;
        }
        // One that stands still says nothing until it moves again.
        if !endpoint.stands_still() {
            let (counters, [calls_per_second, errors_per_second, utilization]) = endpoint.report(now_us);
            let (sequence, rif) = (endpoint.reports, endpoint.rif());
            let report = Report { sequence, counters, rif, utilization, calls_per_second, errors_per_second };
            if !happens(&mut self.rng, self.scenario.balancer.report_loss_permille) {
                self.tell_balancer(Heard::Reported { endpoint: at, incarnation, report });
            }
        }
        self.plan_report(at, incarnation);
    }

    pub(super) fn heard(&mut self, heard: Heard) {
        let now_us = self.queue.now_us();
        if let Heard::Reported { endpoint, report, .. } = &heard {
            self.note_load(*endpoint, report);
        }
        if !self.faults.balancer_is_up {
            return;
        }
        match heard {
            Heard::Registered { endpoint, incarnation } => self.balancer.registered(endpoint, incarnation, now_us),
            Heard::Reported { endpoint, incarnation, report } => {
                self.balancer.reported(endpoint, incarnation, report, now_us);
            }
            Heard::DrainAnnounced { endpoint, incarnation } => {
                self.balancer.drain_announced(endpoint, incarnation, now_us);
            }
            Heard::Departed { endpoint, incarnation } => self.balancer.departed(endpoint, incarnation, now_us),
            Heard::StreamBroke { endpoint, incarnation } => self.balancer.stream_broke(endpoint, incarnation, now_us),
            Heard::Checked { endpoint, outcome } => self.balancer.checked(endpoint, outcome, now_us),
            Heard::CallsEnded { client, outcomes } => {
                for (endpoint, outcomes) in outcomes {
                    self.balancer.calls_ended(client, endpoint, outcomes, now_us);
                }
            }
        }
        let pause_us = TURN_US_MIN.max(self.endpoints.len() as u64 * TURN_US_PER_ENDPOINT);
        self.plan_turn((self.news.turned_us + pause_us).max(now_us));
    }

    /// Those who want to hear it are told once per report period what all endpoints said last.
    fn note_load(&mut self, endpoint: u32, report: &Report) {
        let now_us = self.queue.now_us();
        let &Report { calls_per_second, errors_per_second, utilization, .. } = report;
        self.news.loads.insert(endpoint, Load { endpoint, calls_per_second, errors_per_second, utilization });
        if now_us < self.news.loads_told_us + self.balancer.report_period_us() {
            return;
        }
        self.news.loads_told_us = now_us;
        let loads: Rc<[Load]> = self.news.loads.values().copied().collect();
        for client in 0..self.clients.len() as u32 {
            if self.clients[client as usize].dispatcher.wants_loads() {
                let at_us = now_us + self.push_delay_us();
                self.queue.at(at_us, Event::Told { client, loads: Rc::clone(&loads) });
            }
        }
    }

    fn push_delay_us(&mut self) -> u64 {
        self.scenario.balancer.push_delay_us + self.rng.below(self.scenario.balancer.jitter_us + 1)
    }

    /// A turn is due at this time at the latest.
    fn plan_turn(&mut self, at_us: u64) {
        let (plan, planned_us) = self.news.turn_plan;
        if at_us < planned_us {
            self.news.turn_plan = (plan.wrapping_add(1), at_us);
            self.queue.at(at_us, Event::Turn { plan: plan.wrapping_add(1) });
        }
    }

    pub(super) fn turn(&mut self, plan: u32) {
        let now_us = self.queue.now_us();
        if plan != self.news.turn_plan.0 || !self.faults.balancer_is_up {
            return;
        }
        self.news.turned_us = now_us;
        self.news.turn_plan.1 = u64::MAX;
        self.plan_turn(now_us + TURN_US_MAX);
        let turn = self.balancer.turn(now_us);
        for endpoint in turn.checks {
            self.check(endpoint);
        }
        if let Some(fleet) = turn.fleet {
            let at_us = now_us + self.push_delay_us();
            self.queue.at(at_us, Event::Ticked { fleet });
        }
        if turn.changed.is_empty() {
            return;
        }
        let mut changed = vec![false; self.balancer.cohorts()];
        turn.changed.iter().for_each(|cohort| changed[*cohort] = true);
        self.news.lists += 1;
        for client in 0..self.clients.len() as u32 {
            let cohort = self.balancer.cohort_of(client);
            if changed[cohort] && self.clients[client as usize].subscribed {
                self.push(client);
            }
        }
    }

    /// The list of its cohort is on its way to a client.
    fn push(&mut self, client: u32) {
        let Some(list) = self.balancer.list(self.balancer.cohort_of(client)) else { return };
        let number = self.news.lists;
        let at_us = self.queue.now_us() + self.push_delay_us();
        self.queue.at(at_us, Event::Listed { client, list, number });
    }

    pub(super) fn listed(&mut self, client: u32, list: Rc<List>, number: u64) {
        let now_us = self.queue.now_us();
        let client = &mut self.clients[client as usize];
        if client.take_list(number, list) {
            client.connect(|endpoint| self.endpoints[endpoint as usize].presence != Presence::Absent);
            client.relist(now_us);
            self.meter.listed(now_us);
        }
    }

    /// Clients on their streams hear how the fleet fares. All at once: a second is long beside what their ways differ by.
    pub(super) fn ticked(&mut self, fleet: &Fleet) {
        let now_us = self.queue.now_us();
        for client in self.clients.iter_mut().filter(|client| client.subscribed) {
            client.dispatcher.ticked(fleet, now_us);
        }
    }

    pub(super) fn subscribed(&mut self, at: u32) {
        if !self.faults.balancer_is_up {
            return;
        }
        let now_us = self.queue.now_us();
        let client = &mut self.clients[at as usize];
        client.subscribed = true;
        if now_us > client.reported_us + OUTCOMES_AGE_US_MAX {
            drop(client.take_outcomes(now_us));
        }
        self.news.lists += 1;
        self.push(at);
        if self.policy.tells_outcomes() {
            self.begin_pace(at);
            let client = &mut self.clients[at as usize];
            if client.has_news() {
                // What failed meanwhile is news to whom it tells of it now.
                client.pace.first_failure(now_us);
            }
            self.plan_outcomes(at);
        }
    }

    /// An endpoint is checked now, and then at its interval again.
    fn check(&mut self, endpoint: u32) {
        let plan = &mut self.news.check_plans[endpoint as usize];
        *plan = plan.wrapping_add(1);
        let plan = *plan;
        self.check_due(endpoint, plan);
    }

    pub(super) fn check_due(&mut self, endpoint: u32, plan: u32) {
        if self.news.check_plans[endpoint as usize] != plan {
            return;
        }
        let now_us = self.queue.now_us();
        let (interval, deadline) = self.balancer.health();
        let next_us = now_us + self.jittered(interval.as_micros() as u64);
        self.queue.at(next_us, Event::CheckDue { endpoint, plan });
        if self.faults.balancer_is_up && self.balancer.checks(endpoint) {
            let until_us = now_us + deadline.as_micros() as u64;
            let answered_us = now_us + 2 * self.scenario.network_us;
            self.queue.at(answered_us, Event::CheckAnswered { endpoint, until_us });
        }
    }

    /// Whoever fails calls may well pass checks: a check asks whether it is there.
    pub(super) fn check_answered(&mut self, at: u32, until_us: u64) {
        let now_us = self.queue.now_us();
        let endpoint = &self.endpoints[at as usize];
        let outcome = if endpoint.presence == Presence::Absent {
            CheckOutcome::Unreachable { detail: "connection refused".to_owned() }
        } else if !endpoint.stands_still() {
            CheckOutcome::Passed
        } else if now_us < until_us {
            let next_us = (now_us + CHECK_LOOK_US).min(until_us);
            self.queue.at(next_us, Event::CheckAnswered { endpoint: at, until_us });
            return;
        } else {
            CheckOutcome::TimedOut { deadline: self.balancer.health().1 }
        };
        self.heard(Heard::Checked { endpoint: at, outcome });
    }

    fn begin_pace(&mut self, at: u32) {
        let (now_us, period_us) = (self.queue.now_us(), self.jittered(self.balancer.report_period_us()));
        self.clients[at as usize].pace = Pace::new(now_us, period_us);
    }

    fn plan_outcomes(&mut self, at: u32) {
        let client = &mut self.clients[at as usize];
        client.report_plan = client.report_plan.wrapping_add(1);
        let plan = client.report_plan;
        self.queue.at(client.pace.due_us(), Event::OutcomesDue { client: at, plan });
    }

    /// The client has something to tell that cannot wait.
    pub(super) fn hurry(&mut self, at: u32, what: impl FnOnce(&mut Pace, u64)) {
        if !self.policy.tells_outcomes() {
            return;
        }
        let pace = &mut self.clients[at as usize].pace;
        let before_us = pace.due_us();
        what(pace, self.queue.now_us());
        if pace.due_us() < before_us {
            self.plan_outcomes(at);
        }
    }

    pub(super) fn outcomes_due(&mut self, at: u32, plan: u32) {
        let now_us = self.queue.now_us();
        let client = &mut self.clients[at as usize];
        if client.report_plan != plan {
            return;
        }
        if client.subscribed {
            client.reported_us = now_us;
            let outcomes = client.take_outcomes(now_us);
            if !outcomes.is_empty() {
                self.tell_balancer(Heard::CallsEnded { client: at, outcomes });
            }
            let period_us = self.jittered(self.balancer.report_period_us());
            self.clients[at as usize].pace.told(now_us, period_us);
        } else {
            // Without a stream they wait.
            self.begin_pace(at);
        }
        self.plan_outcomes(at);
    }
}
