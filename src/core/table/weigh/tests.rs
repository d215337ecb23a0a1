//! A fleet with queues, as a fluid: what comes in by weight or capacity, less what slots get done.

use super::*;
use crate::{
    config::{Configuration, ConfiguredService, ServiceConfig},
    event::{Action, Backend, CheckOutcome, Event, LoadReport, Override, Scope},
    model::{Address, Cohort, EndpointSpec, Locality, ServiceName, SourceId, Timestamp},
    policy::assign,
    snapshot::ServiceSnapshot,
    table::Table,
};

const STEPS_PER_SECOND: u32 = 200;

#[derive(Clone)]
struct Host {
    slots: f64,
    /// Calls per second and slot.
    speed: f64,
    /// Ends every call at once, with an error.
    fails: bool,
    /// What it says that it has in flight instead of the truth.
    says: Option<u32>,
    in_flight: f64,
    completions: f64,
    errors: f64,
    busy_s: f64,
    in_flight_s: f64,
}

impl Host {
    /// Eight slots for calls that take so long.
    fn of(service_time_s: f64) -> Self {
        Self {
            slots: 8.0,
            speed: 1.0 / service_time_s,
            fails: false,
            says: None,
            in_flight: 0.0,
            completions: 0.0,
            errors: 0.0,
            busy_s: 0.0,
            in_flight_s: 0.0,
        }
    }

    fn step(&mut self, calls: f64, seconds: f64) {
        self.in_flight += calls;
        let busy = self.in_flight.min(self.slots);
        let done = if self.fails { self.in_flight } else { (busy * self.speed * seconds).min(self.in_flight) };
        self.in_flight -= done;
        self.completions += done;
        self.errors += if self.fails { done } else { 0.0 };
        self.busy_s += self.in_flight.min(self.slots) / self.slots * seconds;
        self.in_flight_s += self.in_flight * seconds;
    }
}

struct Fleet {
    table: Table,
    now: Timestamp,
    hosts: Vec<Host>,
    calls_per_second: f64,
    service: ServiceSnapshot,
    sequence: u64,
    /// What clients go by: what was published a second ago.
    shares: Vec<f64>,
    busy_s: Vec<f64>,
    /// The longest queue there was, as in flight per slot.
    fullest: f64,
    lists: usize,
}

impl Fleet {
    fn new(policy: PolicyKind, hosts: Vec<Host>, load: f64) -> Self {
        let now = Timestamp(0);
        let mut table = Table::new(1, ServiceConfig::default(), now);
        let config = ServiceConfig { policy, slow_start: Duration::ZERO, ..ServiceConfig::default() }.into();
        let services = vec![ConfiguredService { name: name(), config, endpoints: None }];
        let configuration = Configuration { services, ..Configuration::default() };
        let source = SourceId::parse("settings").unwrap();
        table.apply(Event::Configured { source, configuration }, now).unwrap();
        for at in 0..hosts.len() {
            let endpoint = EndpointSpec { incarnation: 1, ..EndpointSpec::at(address(at)) };
            let passed = Event::Checked { service: name(), address: address(at), outcome: CheckOutcome::Passed };
            table.apply(Event::Registered { service: name(), endpoint }, now).unwrap();
            table.apply(passed, now).unwrap();
        }
        let service = (*table.publish(now).unwrap().services[&name()]).clone();
        let calls_per_second = load * hosts.iter().map(|host| host.slots * host.speed).sum::<f64>();
        let shares = vec![1.0 / hosts.len() as f64; hosts.len()];
        let busy_s = vec![0.0; hosts.len()];
        let (fullest, lists, sequence) = (0.0, 0, 0);
        Self { table, now, hosts, calls_per_second, service, sequence, shares, busy_s, fullest, lists }
    }

    fn second(&mut self) {
        let going_by = self.shares.clone();
        self.shares = self.published();
        let seconds = 1.0 / f64::from(STEPS_PER_SECOND);
        for _ in 0..STEPS_PER_SECOND {
            for (host, share) in self.hosts.iter_mut().zip(&going_by) {
                host.step(share * self.calls_per_second * seconds, seconds);
                self.fullest = self.fullest.max(host.in_flight / host.slots);
            }
        }
        self.now = self.now.after(Duration::from_secs(1));
        self.sequence += 1;
        for (at, host) in self.hosts.iter().enumerate() {
            let utilization = host.busy_s - self.busy_s[at];
            self.busy_s[at] = host.busy_s;
            let load = LoadReport {
                sequence: self.sequence,
                completions: host.completions as u64,
                errors: host.errors as u64,
                overloads: 0,
                in_flight_us: (host.in_flight_s * 1e6) as u64,
                in_flight: host.says.unwrap_or(host.in_flight.round() as u32),
                utilization_permille: Some((utilization * 1e3).round() as u32),
            };
            let backend = Backend { service: name(), address: address(at), incarnation: 1 };
            self.table.apply(Event::LoadReported { backend, load }, self.now).unwrap();
        }
        if let Some(snapshot) = self.table.publish(self.now) {
            let service = (*snapshot.services[&name()]).clone();
            self.lists += usize::from(weights(&service) != weights(&self.service));
            self.service = service;
        }
    }

    fn seconds(&mut self, seconds: u32) {
        (0..seconds).for_each(|_| self.second());
    }

    fn published(&self) -> Vec<f64> {
        let weights = weights(&self.service);
        let sum: u64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight as f64 / sum as f64).collect()
    }

    /// In flight on one against the mean of the others.
    fn excess(&self, at: usize) -> f64 {
        let all: f64 = self.hosts.iter().map(|host| host.in_flight).sum();
        self.hosts[at].in_flight * (self.hosts.len() - 1) as f64 / (all - self.hosts[at].in_flight)
    }
}

fn name() -> ServiceName {
    ServiceName::parse("greeter").unwrap()
}

fn address(at: usize) -> Address {
    Address::parse(&format!("10.0.0.{}:1", at + 100)).unwrap()
}

/// Weight times capacity, by address.
fn weights(service: &ServiceSnapshot) -> Vec<u64> {
    let list = assign(service, &Cohort { seed: 0, locality: Locality::unknown() });
    let places =
        list.endpoints.iter().map(|e| (&e.spec.address, u64::from(e.weight) * u64::from(e.capacity_milli.max(1))));
    places.collect::<BTreeMap<_, _>>().into_values().collect()
}

const MEASURED: [PolicyKind; 2] = [PolicyKind::WeightedRoundRobin, PolicyKind::LeastLoad];

#[test]
fn a_backlog_is_worked_off_without_a_swing() {
    for service_time_s in [0.05, 1.0, 10.0] {
        let [damped, by_capacity] = MEASURED.map(|policy| {
            let mut fleet = Fleet::new(policy, vec![Host::of(service_time_s); 10], 0.8);
            fleet.seconds(200);
            // Three more for each slot.
            fleet.hosts[0].in_flight += 24.0;
            let (mut least, mut seconds) = (f64::MAX, 0);
            for second in 1..=200 {
                fleet.second();
                least = least.min(fleet.excess(0));
                if fleet.excess(0) > 1.2 {
                    seconds = second;
                }
            }
            let swing = fleet.published().iter().fold(0.0, |most: f64, share| most.max((share * 10.0 - 1.0).abs()));
            (least, seconds, swing)
        });
        assert!(damped.0 > 0.75, "it never has much less than the others: {damped:?}");
        assert!(damped.1 <= by_capacity.1, "{damped:?}, by capacity alone {by_capacity:?}");
        assert!(damped.2 < 0.1, "and it settles: {damped:?}");
    }
}

#[test]
fn what_comes_and_goes_makes_shorter_queues_than_by_capacity_alone() {
    for service_time_s in [0.05, 1.0, 10.0] {
        let [damped, by_capacity] = MEASURED.map(|policy| {
            let mut fleet = Fleet::new(policy, vec![Host::of(service_time_s); 10], 0.7);
            fleet.seconds(100);
            fleet.fullest = 0.0;
            for second in 0..200 {
                let slow = if second / 10 % 2 == 0 { 0.5 } else { 1.0 };
                fleet.hosts[..2].iter_mut().for_each(|host| host.speed = slow / service_time_s);
                fleet.second();
            }
            fleet.fullest
        });
        assert!(damped <= by_capacity * 1.02, "calls of {service_time_s} s: {damped}, by capacity alone {by_capacity}");
    }
}

#[test]
fn hosts_of_unequal_speed_are_filled_alike() {
    let hosts = [vec![Host::of(0.05); 8], vec![Host::of(0.15); 2]].concat();
    let mut fleet = Fleet::new(PolicyKind::WeightedRoundRobin, hosts, 0.8);
    fleet.seconds(60);
    let lists = fleet.lists;
    for _ in 0..60 {
        fleet.second();
        let shares = fleet.published();
        let filled = |at: usize| shares[at] * fleet.calls_per_second / (fleet.hosts[at].speed * 8.0);
        assert!((0..10).all(|at| (0.66..0.86).contains(&filled(at))), "{:?}", (0..10).map(filled).collect::<Vec<_>>());
    }
    assert!(fleet.lists - lists <= 20, "{} lists in a minute", fleet.lists - lists);
}

#[test]
fn a_host_that_fails_its_calls_at_once_is_sent_no_more() {
    for service_time_s in [0.05, 10.0] {
        let mut fleet = Fleet::new(PolicyKind::WeightedRoundRobin, vec![Host::of(service_time_s); 10], 0.7);
        fleet.seconds(100);
        fleet.hosts[0].fails = true;
        for second in 0..100 {
            fleet.second();
            let share = fleet.published()[0];
            assert!(share < 0.115, "calls of {service_time_s} s: {share} after {second} s");
        }
    }
}

#[test]
fn an_operators_percentage_is_not_evened_out() {
    let mut fleet = Fleet::new(PolicyKind::WeightedRoundRobin, vec![Host::of(5.0); 10], 0.7);
    let word = Override {
        service: name(),
        scope: Scope::Address(address(0)),
        action: Action::Weight(50),
        reason: String::new(),
        actor: "ann".into(),
        set_at_unix_ms: 1,
        replica: "lb-0".into(),
        expires_at_unix_ms: 0,
        remaining: None,
    };
    fleet.table.apply(Event::OverrideSet { word }, fleet.now).unwrap();
    fleet.seconds(200);
    let share = fleet.published()[0];
    assert!((0.045..0.06).contains(&share), "{share} of 1/19");
}

#[test]
fn one_that_says_it_is_buried_moves_nobody_else() {
    let hosts = [vec![Host::of(0.05); 8], vec![Host::of(0.15); 2]].concat();
    let mut fleet = Fleet::new(PolicyKind::WeightedRoundRobin, hosts, 0.6);
    fleet.seconds(60);
    fleet.hosts[0].says = Some(u32::MAX);
    for second in 0..60 {
        fleet.second();
        let shares = fleet.published();
        let slow = shares[9] / shares[7];
        assert!((0.2..0.5).contains(&slow), "a slow host has {slow} of a fast one's after {second} s: {shares:?}");
    }
}

#[test]
fn a_host_that_is_stuck_among_idle_ones_gets_no_more_calls() {
    // Two in flight each, so that the queue of one is soon beyond anything that the others have.
    let mut fleet = Fleet::new(PolicyKind::WeightedRoundRobin, vec![Host::of(0.02); 20], 0.25);
    fleet.seconds(60);
    fleet.hosts[0].speed = 0.0;
    fleet.seconds(3);
    // The least that there is, a sixteenth of its share; by its capacity alone that takes ten seconds more.
    assert!(fleet.published()[0] < 0.004, "{}", fleet.published()[0]);
    fleet.seconds(10);
    assert!(fleet.hosts[0].in_flight < 400.0, "{} wait", fleet.hosts[0].in_flight);
}

#[test]
fn what_a_queue_takes_off_a_weight_does_not_outlive_a_restart() {
    let mut fleet = Fleet::new(PolicyKind::WeightedRoundRobin, vec![Host::of(1.0); 10], 0.8);
    fleet.seconds(200);
    fleet.hosts[0].in_flight += 24.0;
    fleet.seconds(5);
    let shown: Vec<u32> = fleet.service.endpoints.iter().map(|e| e.capacity_milli).collect();
    assert!(shown[0] < 930, "{shown:?}");
    let kept = fleet.table.keep(fleet.now).unwrap();
    let kept: Vec<u32> = kept.services[&name()].endpoints.iter().filter_map(|e| e.capacity_milli).collect();
    assert!(!kept.is_empty() && kept.iter().all(|milli| (950..1050).contains(milli)), "{kept:?}, shown {shown:?}");
}
