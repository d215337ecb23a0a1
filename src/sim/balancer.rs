//! The balancer's twin: the core's own table and policies, fed with facts as the service feeds them, and the lists that come of
//! it, one per cohort. Everything that is decided here is decided by the core; what stands here is how `src/balancer` turns
//! facts into turns, asks for checks, and holds lists back. Refuses to know how endpoints truly are.

use std::{collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use lookaside_core::{
    config::{LocalityConfig, ServiceConfig},
    event::{self, Backend, CheckOutcome, Event, LoadReport, Outcomes},
    limits::{FLEET_PERIOD, ORDER_LIST_PERIOD},
    model::{Address, ClientId, Cohort, EndpointSpec, Instance, Locality, Peer, ServiceName, Timestamp},
    policy::{self, Assignment},
    snapshot::{Fleet, ServiceSnapshot},
    table::Table,
};

use crate::{dispatch::Listed, endpoint::Counters, scenario::Scenario};

/// Names on which this crate cannot be wrong.
const OURS: &str = "a name of ours is valid";

/// A list as a client gets it.
#[derive(Debug)]
pub(crate) struct List {
    /// Whether silence about an endpoint means that it is gone.
    pub(crate) complete: bool,
    pub(crate) listed: Vec<Listed>,
}

/// What came of a turn.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Cohorts whose list is another now.
    pub(crate) changed: Vec<usize>,
    /// Endpoints that are to be checked at once.
    pub(crate) checks: Vec<u32>,
    /// How the fleet fares, where clients are to be told.
    pub(crate) fleet: Option<Fleet>,
}

/// The twin.
#[derive(Debug)]
pub(crate) struct Balancer {
    config: ServiceConfig,
    service: ServiceName,
    table: Table,
    epoch: u64,
    specs: Vec<EndpointSpec>,
    numbers: BTreeMap<Address, u32>,
    clients: Vec<ClientId>,
    /// Where each client is, and its cohort.
    places: Vec<Locality>,
    cohort_of: Vec<usize>,
    cohorts: Vec<Asked>,
    /// What lists were made from last.
    seen: Option<Arc<ServiceSnapshot>>,
    /// Wishes for checks that were granted, by endpoint.
    checks_wanted: Vec<u64>,
    /// How the fleet fared when clients were told last, and when that was.
    told: (Fleet, u64),
}

#[derive(Debug)]
struct Asked {
    cohort: Cohort,
    assignment: Option<Assignment>,
    list: Option<Rc<List>>,
    listed_us: u64,
    /// A list was held back that differs in loads alone.
    held_back: bool,
    held_until_us: u64,
}

impl Balancer {
    /// One that has just started and knows nothing.
    pub(crate) fn new(scenario: &Scenario, zones: &[String], seed: u64) -> Self {
        let config = ServiceConfig {
            slow_start: Duration::from_millis(scenario.balancer.slow_start_ms),
            subset_size: scenario.balancer.subset_size,
            locality: LocalityConfig { prefer_zone: scenario.balancer.prefer_zone, ..LocalityConfig::default() },
            ..ServiceConfig::default()
        };
        let locality = |zone: &str| Locality::parse(zone).unwrap_or_else(|_| Locality::unknown());
        let endpoint_zones = scenario.groups().flat_map(|(group, numbers)| numbers.map(|_| group.zone.as_str()));
        let specs: Vec<EndpointSpec> =
            endpoint_zones.zip(0..).map(|(zone, number)| spec(number, locality(zone))).collect();
        let numbers = specs.iter().zip(0..).map(|(spec, number)| (spec.address.clone(), number)).collect();
        let clients: Vec<ClientId> =
            (0..zones.len()).map(|number| ClientId::parse(&format!("client-{number}")).expect(OURS)).collect();
        let mut twin = Self {
            table: Table::new(seed, config.clone(), Timestamp(0)),
            config,
            service: ServiceName::parse("simulated").expect(OURS),
            epoch: seed,
            checks_wanted: vec![0; specs.len()],
            specs,
            numbers,
            clients,
            places: zones.iter().map(|zone| locality(zone)).collect(),
            cohort_of: Vec::new(),
            cohorts: Vec::new(),
            seen: None,
            told: (Fleet::default(), 0),
        };
        twin.group();
        twin
    }

    /// Clients of one cohort get the same list. As in the service a place counts by its zone, where it counts at all.
    fn group(&mut self) {
        let mut known: BTreeMap<Cohort, usize> = BTreeMap::new();
        for (client, place) in self.clients.iter().zip(&self.places) {
            let matters =
                self.config.locality.prefer_zone && self.specs.iter().any(|spec| spec.locality.zone() == place.zone());
            let zone = matters.then(|| Locality::parse(place.zone()).expect(OURS));
            let cohort = Cohort::of(client, zone.unwrap_or_else(Locality::unknown));
            let cohorts = &mut self.cohorts;
            let at = *known.entry(cohort.clone()).or_insert_with(|| {
                cohorts.push(Asked {
                    cohort,
                    assignment: None,
                    list: None,
                    listed_us: 0,
                    held_back: false,
                    held_until_us: 0,
                });
                cohorts.len() - 1
            });
            self.cohort_of.push(at);
        }
    }

    /// Cohorts that there are.
    pub(crate) fn cohorts(&self) -> usize {
        self.cohorts.len()
    }

    /// The cohort of a client.
    pub(crate) fn cohort_of(&self, client: u32) -> usize {
        self.cohort_of[client as usize]
    }

    /// What a cohort was given last; `None` before the first time.
    pub(crate) fn list(&self, cohort: usize) -> Option<Rc<List>> {
        self.cohorts[cohort].list.clone()
    }

    /// It starts anew, and knows nothing of before.
    pub(crate) fn restart(&mut self, now_us: u64) {
        self.epoch = self.epoch.wrapping_add(1);
        self.table = Table::new(self.epoch, self.config.clone(), Timestamp(now_us));
        self.seen = None;
        self.checks_wanted.fill(0);
        for asked in &mut self.cohorts {
            (asked.assignment, asked.list, asked.held_back) = (None, None, false);
        }
    }

    pub(crate) fn registered(&mut self, endpoint: u32, incarnation: u64, now_us: u64) {
        let spec = EndpointSpec { incarnation, ..self.specs[endpoint as usize].clone() };
        self.hear(Event::Registered { service: self.service.clone(), endpoint: spec }, now_us);
    }

    pub(crate) fn reported(&mut self, endpoint: u32, incarnation: u64, report: Report, now_us: u64) {
        let load = LoadReport {
            sequence: report.sequence,
            completions: report.counters.completions,
            errors: report.counters.errors,
            overloads: 0,
            in_flight_us: report.counters.in_flight_us as u64,
            in_flight: report.rif,
            utilization_permille: Some((report.utilization * 1_000.0) as u32),
        };
        self.hear(Event::LoadReported { backend: self.backend(endpoint, incarnation), load }, now_us);
    }

    pub(crate) fn drain_announced(&mut self, endpoint: u32, incarnation: u64, now_us: u64) {
        self.hear(Event::DrainAnnounced { backend: self.backend(endpoint, incarnation) }, now_us);
    }

    pub(crate) fn departed(&mut self, endpoint: u32, incarnation: u64, now_us: u64) {
        self.hear(Event::Departed { backend: self.backend(endpoint, incarnation) }, now_us);
    }

    pub(crate) fn stream_broke(&mut self, endpoint: u32, incarnation: u64, now_us: u64) {
        self.hear(Event::ReportStreamBroken { backend: self.backend(endpoint, incarnation) }, now_us);
    }

    pub(crate) fn checked(&mut self, endpoint: u32, outcome: CheckOutcome, now_us: u64) {
        let address = self.address(endpoint);
        self.hear(Event::Checked { service: self.service.clone(), address, outcome }, now_us);
    }

    pub(crate) fn calls_ended(&mut self, client: u32, endpoint: u32, outcomes: Outcomes, now_us: u64) {
        let address = self.address(endpoint);
        let (id, locality) = (self.clients[client as usize].clone(), self.places[client as usize].clone());
        let client = event::Client { id, peer: Peer(u64::from(client)), locality };
        self.hear(Event::CallsEnded { client, service: self.service.clone(), address, outcomes }, now_us);
    }

    /// What the table refuses changes nothing, here as in the service: a report that overtook another, say.
    fn hear(&mut self, event: Event, now_us: u64) {
        let _ = self.table.apply(event, Timestamp(now_us));
    }

    fn address(&self, endpoint: u32) -> Address {
        self.specs[endpoint as usize].address.clone()
    }

    fn backend(&self, endpoint: u32, incarnation: u64) -> Backend {
        Backend { service: self.service.clone(), address: self.address(endpoint), incarnation }
    }

    /// How often endpoints are checked, and how long that may take.
    pub(crate) fn health(&self) -> (Duration, Duration) {
        (self.config.health.interval, self.config.health.deadline)
    }

    /// How often backends and clients report.
    pub(crate) fn report_period_us(&self) -> u64 {
        self.config.report_period.as_micros() as u64
    }

    /// Whether it checks an endpoint: those it knows.
    pub(crate) fn checks(&self, endpoint: u32) -> bool {
        let address = &self.specs[endpoint as usize].address;
        self.seen.as_ref().is_some_and(|seen| seen.endpoint(address).is_some())
    }

    /// Time passes: what has been heard becomes a snapshot, and that becomes lists.
    pub(crate) fn turn(&mut self, now_us: u64) -> Turn {
        let mut turn = Turn::default();
        let published = self.table.publish(Timestamp(now_us));
        let newest = published.and_then(|snapshot| snapshot.services.get(&self.service).cloned());
        if let Some(newest) = &newest {
            for endpoint in &newest.endpoints {
                let Some(number) = self.numbers.get(&endpoint.spec.address) else { continue };
                let granted = &mut self.checks_wanted[*number as usize];
                if endpoint.check_wanted > *granted {
                    *granted = endpoint.check_wanted;
                    turn.checks.push(*number);
                }
            }
        }
        let is_new = match (&self.seen, &newest) {
            (Some(seen), Some(newest)) => seen.version != newest.version,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if newest.is_some() {
            self.seen = newest;
        }
        let Some(service) = self.seen.clone() else { return turn };
        let (told, told_us) = &self.told;
        // At each heartbeat, and before where it is news.
        let period = if service.fleet.is_news_to(told) { FLEET_PERIOD } else { ORDER_LIST_PERIOD };
        if now_us >= told_us + period.as_micros() as u64 {
            self.told = (service.fleet, now_us);
            turn.fleet = Some(service.fleet);
        }
        for at in 0..self.cohorts.len() {
            let due = self.cohorts[at].held_back && now_us >= self.cohorts[at].held_until_us;
            if (is_new || due) && self.cohorts[at].follow(&service, &self.numbers, now_us) {
                turn.changed.push(at);
            }
        }
        turn
    }
}

/// What an endpoint says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    pub(crate) sequence: u64,
    pub(crate) counters: Counters,
    pub(crate) rif: u32,
    pub(crate) utilization: f64,
    pub(crate) calls_per_second: f64,
    pub(crate) errors_per_second: f64,
}

impl Asked {
    /// Makes the list anew. True when it is another one that is to go out now.
    fn follow(&mut self, service: &ServiceSnapshot, numbers: &BTreeMap<Address, u32>, now_us: u64) -> bool {
        let assignment = policy::assign(service, &self.cohort);
        self.held_back = false;
        if let Some(held) = &self.assignment {
            let Some(difference) = held.difference(&assignment) else { return false };
            self.held_until_us = self.listed_us + difference.can_wait().as_micros() as u64;
            if now_us < self.held_until_us {
                self.held_back = true;
                return false;
            }
        }
        let listed = assignment.endpoints.iter().filter_map(|assigned| {
            Some(Listed {
                endpoint: *numbers.get(&assigned.spec.address)?,
                incarnation: assigned.spec.incarnation,
                weight: assigned.weight,
                capacity_milli: assigned.capacity_milli,
                priority: assigned.priority,
                ready: true,
            })
        });
        self.list = Some(Rc::new(List { complete: assignment.complete, listed: listed.collect() }));
        self.assignment = Some(assignment);
        self.listed_us = now_us;
        true
    }
}

fn spec(number: u32, locality: Locality) -> EndpointSpec {
    let [_, high, middle, low] = number.to_be_bytes();
    let address = Address::parse(&format!("10.{high}.{middle}.{low}:50051")).expect(OURS);
    let instance = Instance::parse(&format!("endpoint-{number}")).expect(OURS);
    EndpointSpec { instance, locality, ..EndpointSpec::at(address) }
}
