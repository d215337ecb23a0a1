//! The run of a scenario, event by event: calls through the network to endpoints and back, and beside them reports, checks,
//! lists and faults. It moves messages and lets time pass; who gets a call is its dispatcher's to say, who is in a list the
//! core's.

mod calls;
mod faults;
mod news;

use std::rc::Rc;

use crate::{
    arrivals::Arrivals,
    balancer::{Balancer, List},
    chance::{Stream, stream},
    client::Client,
    dispatch::{Answer, Dispatcher, Load, Policy, dispatcher},
    endpoint::Endpoint,
    measure::{Meter, Run, SECOND_US},
    queue::Queue,
    scenario::Scenario,
    slots::Slots,
    world::{Truth, World},
};
use calls::{Call, Flight};
use faults::Faults;
use lookaside_core::snapshot::Fleet;
use lookaside_sdk::picker::Rng;
use news::Heard;

/// What happens.
#[derive(Debug)]
enum Event {
    /// A client calls.
    Called { client: u32 },
    /// The questions of a call are there.
    Asked { call: u32 },
    /// Their answers are back, or overdue.
    Answered { call: u32 },
    /// An attempt is there.
    Reached { flight: u32 },
    /// A call is served to its end, unless plans have changed.
    Served { endpoint: u32, generation: u32 },
    /// An attempt fails that was to fail.
    Failed { flight: u32 },
    /// The end of an attempt is back.
    Back { flight: u32 },
    /// An attempt has taken too long, if it is still that one.
    TimedOut { flight: u32, serial: u32 },
    /// The endpoint hears that nobody waits any more.
    Cancelled { flight: u32, serial: u32 },
    /// A probe in the background is there.
    Probed { client: u32, endpoint: u32 },
    /// Its answer is back.
    ProbeBack { client: u32, endpoint: u32, answer: Answer },
    /// A connection was lost or made.
    Connected { client: u32, endpoint: u32, is_connected: bool },
    /// An endpoint reports.
    ReportDue { endpoint: u32, incarnation: u64 },
    /// A client reports, unless plans have changed.
    OutcomesDue { client: u32, plan: u32 },
    /// An endpoint is to be checked, unless plans have changed.
    CheckDue { endpoint: u32, plan: u32 },
    /// An answer to a check is back, or not yet.
    CheckAnswered { endpoint: u32, until_us: u64 },
    /// The balancer hears something.
    Heard(Box<Heard>),
    /// The balancer takes a turn, unless plans have changed.
    Turn { plan: u32 },
    /// A client gets a list.
    Listed { client: u32, list: Rc<List>, number: u64 },
    /// A client gets what endpoints said of themselves.
    Told { client: u32, loads: Rc<[Load]> },
    /// Clients hear how the fleet fares.
    Ticked { fleet: Fleet },
    /// A client connects to the balancer again.
    Subscribed { client: u32 },
    /// A fault of an endpoint begins or ends.
    Fault { fault: u32, endpoint: u32, on: bool },
    /// An endpoint that leaves may be done.
    Leaving { endpoint: u32, incarnation: u64, until_us: u64 },
    /// The balancer is gone, or comes back.
    Balancer { is_up: bool },
    /// A second is over.
    Second,
}

/// A run.
pub(crate) struct Engine<'a> {
    scenario: &'a Scenario,
    policy: Policy,
    queue: Queue<Event>,
    endpoints: Vec<Endpoint>,
    /// As oracles see them.
    world: World,
    clients: Vec<Client>,
    arrivals: Vec<Arrivals>,
    /// Work of the call that comes next, by client.
    next_size_us: Vec<f64>,
    calls: Slots<Call>,
    flights: Slots<Flight>,
    meter: Meter,
    balancer: Balancer,
    news: news::State,
    faults: Faults,
    /// Chance for reports and checks.
    rng: Rng,
    /// A list of endpoints that is used again and again.
    wanted: Vec<u32>,
}

impl<'a> Engine<'a> {
    pub(crate) fn new(scenario: &'a Scenario, policy: Policy, seed: u64) -> Self {
        Self::of(scenario, policy, seed, &|number| dispatcher(policy, scenario, number, seed))
    }

    /// A run by other dispatchers, under the name of a policy.
    pub(crate) fn of(
        scenario: &'a Scenario,
        policy: Policy,
        seed: u64,
        dispatcher: &dyn Fn(u32) -> Box<dyn Dispatcher>,
    ) -> Self {
        let mut endpoints = Vec::new();
        for (group, numbers) in scenario.groups() {
            endpoints.extend(numbers.map(|_| Endpoint::new(group)));
        }
        let zones = zones(scenario);
        let client = |number| Client::new(number, seed, dispatcher(number));
        let truth = |endpoint: &Endpoint| Truth {
            in_flight: 0,
            cores: endpoint.cores,
            speed: endpoint.speed_now(),
            serves: true,
        };
        Self {
            scenario,
            policy,
            queue: Queue::new(scenario.network_us),
            world: World { endpoints: endpoints.iter().map(truth).collect() },
            clients: (0..scenario.clients.count).map(client).collect(),
            arrivals: Arrivals::of(scenario, seed),
            next_size_us: vec![0.0; scenario.clients.count as usize],
            calls: Slots::new(),
            flights: Slots::new(),
            meter: Meter::new(scenario),
            balancer: Balancer::new(scenario, &zones, seed),
            news: news::State::new(endpoints.len()),
            faults: Faults::new(scenario, seed),
            rng: stream(seed, Stream::Balancer, 0),
            wanted: Vec::new(),
            endpoints,
        }
    }

    /// To the end.
    pub(crate) fn run(mut self, seed: u64) -> Run {
        self.begin_faults();
        self.begin_news();
        for client in 0..self.scenario.clients.count {
            self.plan_call(client);
        }
        self.queue.at(self.scenario.measured_from_us(), Event::Second);
        while let Some(event) = self.queue.next() {
            if self.meter.is_over(self.queue.now_us()) {
                break;
            }
            self.happen(event);
        }
        self.end_open_calls();
        self.meter.finish(self.scenario, self.policy, seed, self.queue.planned_ever())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Called { client } => self.called(client),
            Event::Asked { call } => self.asked(call),
            Event::Answered { call } => self.answered(call),
            Event::Reached { flight } => self.reached(flight),
            Event::Served { endpoint, generation } => self.served(endpoint, generation),
            Event::Failed { flight } => self.failed(flight),
            Event::Back { flight } => self.back(flight),
            Event::TimedOut { flight, serial } => self.timed_out(flight, serial),
            Event::Cancelled { flight, serial } => self.cancelled(flight, serial),
            Event::Probed { client, endpoint } => self.probed(client, endpoint),
            Event::ProbeBack { client, endpoint, answer } => {
                let now_us = self.queue.now_us();
                self.clients[client as usize].dispatcher.probe_answered(endpoint, answer, now_us);
            }
            Event::Connected { client, endpoint, is_connected } => self.connected(client, endpoint, is_connected),
            Event::ReportDue { endpoint, incarnation } => self.report_due(endpoint, incarnation),
            Event::OutcomesDue { client, plan } => self.outcomes_due(client, plan),
            Event::CheckDue { endpoint, plan } => self.check_due(endpoint, plan),
            Event::CheckAnswered { endpoint, until_us } => self.check_answered(endpoint, until_us),
            Event::Heard(heard) => self.heard(*heard),
            Event::Turn { plan } => self.turn(plan),
            Event::Listed { client, list, number } => self.listed(client, list, number),
            Event::Told { client, loads } => {
                let now_us = self.queue.now_us();
                self.clients[client as usize].dispatcher.loads(&loads, now_us);
            }
            Event::Subscribed { client } => self.subscribed(client),
            Event::Fault { fault, endpoint, on } => self.fault(fault, endpoint, on),
            Event::Leaving { endpoint, incarnation, until_us } => self.leaving(endpoint, incarnation, until_us),
            Event::Ticked { fleet } => self.ticked(&fleet),
            Event::Balancer { is_up } => self.balancer_is_up(is_up),
            Event::Second => self.second(),
        }
    }

    /// A second of the measured time is over.
    fn second(&mut self) {
        let now_us = self.queue.now_us();
        self.meter.second_over(now_us);
        if self.meter.wants_readings(now_us) {
            let readings = self.endpoints.iter_mut().map(|endpoint| endpoint.reading(now_us)).collect();
            self.meter.read(readings);
        }
        if now_us < self.scenario.measured_until_us() {
            self.queue.at(now_us + SECOND_US, Event::Second);
        }
    }
}

/// Where each client runs: by percents, clients in a row.
fn zones(scenario: &Scenario) -> Vec<String> {
    let count = scenario.clients.count;
    let zone_of = |client: u32| {
        let percent = u64::from(client) * 100 / u64::from(count);
        let mut until = 0;
        let here = scenario.clients.zones.iter().find(|zone| {
            until += u64::from(zone.percent);
            percent < until
        });
        here.map(|zone| zone.zone.clone()).unwrap_or_default()
    };
    (0..count).map(zone_of).collect()
}
