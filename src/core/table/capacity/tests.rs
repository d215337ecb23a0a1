//! A fleet as a fluid: each host gets its share of the calls by weight and capacity, and reports what came of it.

use super::*;
use crate::{
    config::{Configuration, ConfiguredService, ServiceConfig},
    event::{Backend, CheckOutcome, Client, Event, Outcomes},
    model::{Address, ClientId, EndpointSpec, Locality, Peer, ServiceName, SourceId},
    snapshot::ServiceSnapshot,
    table::Table,
};

#[derive(Clone)]
struct Host {
    /// Calls per second at full utilisation.
    speed: f64,
    /// Utilisation without a call.
    idle: f64,
    /// What it says of its utilisation instead of the truth.
    says: Option<u32>,
    names_utilization: bool,
    /// Share of calls that fail at once.
    fails: f64,
    is_silent: bool,
    incarnation: u64,
    weight: u32,
    utilization: f64,
    sums: LoadReport,
}

impl Host {
    fn of(speed: f64) -> Self {
        Self {
            speed,
            idle: 0.0,
            says: None,
            names_utilization: true,
            fails: 0.0,
            is_silent: false,
            incarnation: 1,
            weight: 100,
            utilization: 0.0,
            sums: LoadReport::default(),
        }
    }

    fn serve(&mut self, calls: f64, random: f64) {
        let failed = calls * self.fails;
        let good = (calls - failed).min(self.speed * (1.0 - self.idle));
        self.utilization = self.idle + good / self.speed;
        let noisy = self.utilization * (1.0 + random);
        self.sums.sequence += 1;
        self.sums.completions += (good + failed).round() as u64;
        self.sums.errors += failed.round() as u64;
        // Sixteen slots, and no queue.
        self.sums.in_flight_us += (16e6 * self.utilization) as u64;
        let utilization = self.says.unwrap_or((noisy * 1000.0) as u32);
        self.sums.utilization_permille = Some(utilization).filter(|permille| self.names_utilization && *permille > 0);
    }
}

struct Fleet {
    table: Table,
    now: Timestamp,
    hosts: Vec<Host>,
    noise: f64,
    seed: u64,
    service: ServiceSnapshot,
    /// How often some capacity changed.
    news: usize,
}

impl Fleet {
    fn new(hosts: Vec<Host>) -> Self {
        Self::with(hosts, PolicyKind::LeastLoad)
    }

    fn with(hosts: Vec<Host>, policy: PolicyKind) -> Self {
        let now = Timestamp(0);
        let mut table = Table::new(1, ServiceConfig::default(), now);
        configure(&mut table, policy, now);
        let service = (*table.publish(now).unwrap().services[&name()]).clone();
        let mut fleet = Self { table, now, hosts, noise: 0.0, seed: 1, service, news: 0 };
        (0..fleet.hosts.len()).for_each(|at| fleet.start(at));
        fleet.turn();
        fleet
    }

    /// The balancer starts anew with what it kept.
    fn restart(&mut self) {
        let kept = self.table.keep(self.now).unwrap();
        self.table = Table::new(2, ServiceConfig::default(), self.now);
        self.table.restore(kept, self.now).unwrap();
        configure(&mut self.table, PolicyKind::LeastLoad, self.now);
        for at in 0..self.hosts.len() {
            if !self.hosts[at].is_silent {
                self.start(at);
            }
        }
        self.turn();
    }

    fn start(&mut self, at: usize) {
        let Host { incarnation, weight, .. } = self.hosts[at];
        let endpoint = EndpointSpec { incarnation, weight, ..EndpointSpec::at(address(at)) };
        let passed = Event::Checked { service: name(), address: address(at), outcome: CheckOutcome::Passed };
        self.table.apply(Event::Registered { service: name(), endpoint }, self.now).unwrap();
        self.table.apply(passed, self.now).unwrap();
    }

    fn turn(&mut self) {
        if let Some(snapshot) = self.table.publish(self.now) {
            let service = (*snapshot.services[&name()]).clone();
            let capacities = |s: &ServiceSnapshot| s.endpoints.iter().map(|e| e.capacity_milli).collect::<Vec<_>>();
            self.news += usize::from(capacities(&service) != capacities(&self.service));
            self.service = service;
        }
    }

    /// A second of so many calls.
    fn second(&mut self, calls: f64) {
        let shares = self.shares();
        self.now = self.now.after(Duration::from_secs(1));
        for (at, share) in shares.iter().enumerate() {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = (self.seed >> 33) as f64 / f64::from(1u32 << 31) * 2.0 - 1.0;
            let host = &mut self.hosts[at];
            host.serve(calls * share, random * self.noise);
            if !host.is_silent {
                let backend =
                    Backend { service: name(), address: address(at), incarnation: self.hosts[at].incarnation };
                let load = self.hosts[at].sums;
                self.table.apply(Event::LoadReported { backend, load }, self.now).unwrap();
            }
        }
        self.turn();
    }

    fn seconds(&mut self, seconds: u32, calls: f64) {
        (0..seconds).for_each(|_| self.second(calls));
    }

    fn capacity(&self, at: usize) -> u32 {
        self.service.endpoint(&address(at)).unwrap().capacity_milli
    }

    fn shares(&self) -> Vec<f64> {
        let wants = |at| {
            let endpoint = self.service.endpoint(&address(at)).unwrap();
            let capacity = if endpoint.capacity_milli == 0 { 1000 } else { endpoint.capacity_milli };
            f64::from(endpoint.weight) * f64::from(capacity)
        };
        let wanted: Vec<f64> = (0..self.hosts.len()).map(wants).collect();
        let sum: f64 = wanted.iter().sum();
        wanted.into_iter().map(|wanted| wanted / sum).collect()
    }

    /// The fullest host against the mean.
    fn unevenness(&self) -> f64 {
        let all: Vec<f64> = self.hosts.iter().map(|host| host.utilization).collect();
        all.iter().copied().fold(0.0, f64::max) / (all.iter().sum::<f64>() / all.len() as f64)
    }
}

fn configure(table: &mut Table, policy: PolicyKind, now: Timestamp) {
    let config = ServiceConfig { policy, slow_start: Duration::ZERO, ..ServiceConfig::default() }.into();
    let services = vec![ConfiguredService { name: name(), config, endpoints: None }];
    let configuration = Configuration { services, ..Configuration::default() };
    let source = SourceId::parse("settings").unwrap();
    table.apply(Event::Configured { source, configuration }, now).unwrap();
}

fn name() -> ServiceName {
    ServiceName::parse("greeter").unwrap()
}

fn address(at: usize) -> Address {
    Address::parse(&format!("10.0.0.{}:1", at + 100)).unwrap()
}

#[test]
fn half_a_fleet_ten_times_slower_is_found_in_seconds() {
    let mut fleet = Fleet::new([vec![Host::of(1000.0); 10], vec![Host::of(100.0); 10]].concat());
    let load = 0.8 * 11_000.0;
    assert_eq!(fleet.capacity(0), 0, "nothing is known of any");
    fleet.seconds(15, load);
    assert!(fleet.unevenness() < 1.15, "{}", fleet.unevenness());
    fleet.seconds(45, load);
    assert!(fleet.unevenness() < 1.03, "{}", fleet.unevenness());
}

#[test]
fn a_host_that_becomes_slower_loses_its_share_and_gets_it_back() {
    let mut fleet = Fleet::new(vec![Host::of(200.0); 5]);
    fleet.seconds(30, 500.0);
    assert_eq!(fleet.capacity(0), 1000);
    fleet.hosts[0].speed = 100.0;
    fleet.seconds(40, 500.0);
    assert!((450..600).contains(&fleet.capacity(0)), "{}", fleet.capacity(0));
    fleet.hosts[0].speed = 200.0;
    fleet.seconds(60, 500.0);
    assert!((900..1100).contains(&fleet.capacity(0)), "{}", fleet.capacity(0));
}

#[test]
fn noise_is_no_news() {
    let mut fleet = Fleet::new(vec![Host::of(100.0); 20]);
    fleet.noise = 0.3;
    fleet.seconds(60, 1400.0);
    let news = fleet.news;
    let mut uneven: f64 = 0.0;
    for _ in 0..120 {
        fleet.second(1400.0);
        uneven = uneven.max(fleet.unevenness());
    }
    assert!(fleet.news - news <= 24, "{} lists in two minutes", fleet.news - news);
    assert!(uneven < 1.15, "{uneven}");
}

#[test]
fn who_claims_to_be_idle_gets_no_more_than_twice_its_share() {
    let mut fleet = Fleet::new(vec![Host::of(100.0); 10]);
    fleet.hosts[0].says = Some(150);
    fleet.hosts[0].speed = 10_000.0;
    for _ in 0..120 {
        fleet.second(500.0);
        assert!(fleet.shares()[0] <= 0.2 + 1e-9, "{:?}", fleet.shares());
    }
    assert!(fleet.shares()[0] > 0.19);
    let others = &fleet.shares()[1..];
    assert!(others.iter().all(|share| (share - others[0]).abs() < 0.01), "one lie moves nobody else: {others:?}");
}

#[test]
fn liars_in_company_have_the_ceiling_in_common() {
    let mut fleet = Fleet::new(vec![Host::of(100.0); 10]);
    for liar in 0..3 {
        (fleet.hosts[liar].says, fleet.hosts[liar].speed) = (Some(150), 10_000.0);
    }
    for _ in 0..60 {
        fleet.second(500.0);
        assert!(fleet.shares().iter().all(|share| *share <= 0.2 + 1e-9), "{:?}", fleet.shares());
    }
}

#[test]
fn a_failing_host_that_idles_gains_nothing() {
    let mut fleet = Fleet::new(vec![Host::of(100.0); 20]);
    fleet.seconds(30, 1200.0);
    let before = fleet.capacity(0);
    fleet.hosts[0].fails = 0.9;
    for _ in 0..120 {
        fleet.second(1200.0);
        assert!(fleet.capacity(0) <= before, "{}", fleet.capacity(0));
    }
}

#[test]
fn calls_that_clients_see_fail_are_no_evidence_of_speed() {
    let mut fleet = Fleet::new(vec![Host::of(100.0); 20]);
    fleet.seconds(30, 1200.0);
    // It answers at once with nonsense, and calls that a success.
    fleet.hosts[0].speed = 10_000.0;
    fleet.hosts[0].idle = 0.2;
    for second in 0..60 {
        let outcomes = Outcomes { ok: 5, failed: 50, ..Outcomes::default() };
        let id = ClientId::parse("web").unwrap();
        let client = Client { id, peer: Peer(0), locality: Locality::parse("").unwrap() };
        let ended = Event::CallsEnded { client, service: name(), address: address(0), outcomes };
        fleet.table.apply(ended, fleet.now).unwrap();
        fleet.second(1200.0);
        assert!(fleet.capacity(0) <= 1100, "{second}: {}", fleet.capacity(0));
    }
}

#[test]
fn one_client_that_says_everything_fails_hides_no_slow_host() {
    let mut fleet = Fleet::new(vec![Host::of(100.0); 20]);
    fleet.seconds(30, 1200.0);
    fleet.hosts[0].speed = 60.0;
    for _ in 0..60 {
        for (client, ok, failed) in [(1, 20, 0), (2, 20, 0), (9, 0, 1_000_000)] {
            let outcomes = Outcomes { ok, failed, ..Outcomes::default() };
            let id = ClientId::parse(&format!("web-{client}")).unwrap();
            let client = Client { id, peer: Peer(client), locality: Locality::parse("").unwrap() };
            let ended = Event::CallsEnded { client, service: name(), address: address(0), outcomes };
            fleet.table.apply(ended, fleet.now).unwrap();
        }
        fleet.second(1200.0);
    }
    assert!(fleet.capacity(0) < 750, "{}", fleet.capacity(0));
}

#[test]
fn one_absurd_report_has_no_noise_of_the_others_believed() {
    let completions = 100.0;
    // As chance alone has it of a hundred calls each: 14 %.
    let noisy = |at: u32| (f64::from(at) - 9.5) * 0.024;
    let mut found: Vec<Found> =
        (0..20).map(|at| Found { at: Timestamp(0), rate_ln: noisy(at), completions, presumed_ln: 0.0 }).collect();
    let trust = |found: &[Found], at: usize| Spread::of(Measure::Utilization, found).unwrap().trust(found[at]);
    assert!(trust(&found, 0) < 0.01, "{}", trust(&found, 0));
    found[19].rate_ln = 40.0;
    assert!(trust(&found, 0) < 0.01, "{}", trust(&found, 0));
    // One that is slow for once is found all the same.
    found[19].rate_ln = -1.0;
    assert!(trust(&found, 19) > 0.6, "{}", trust(&found, 19));
}

#[test]
fn without_utilisations_the_time_in_the_system_counts_and_less() {
    let mut fleet = Fleet::new([vec![Host::of(100.0); 4], vec![Host::of(5.0)]].concat());
    fleet.hosts.iter_mut().for_each(|host| host.names_utilization = false);
    fleet.seconds(120, 200.0);
    assert!((250..500).contains(&fleet.capacity(4)), "{}", fleet.capacity(4));
    assert_eq!(fleet.capacity(0), 1000);
}

#[test]
fn an_idle_service_proves_nothing() {
    let mut idle = Fleet::new([vec![Host::of(1000.0); 4], vec![Host::of(500.0)]].concat());
    idle.seconds(60, 300.0);
    assert_eq!(idle.capacity(4), 0, "6 % and 12 % full");
}

#[test]
fn slow_services_are_measured_as_well() {
    let mut fleet = Fleet::new([vec![Host::of(4.0); 4], vec![Host::of(2.0)]].concat());
    fleet.seconds(90, 10.0);
    // A hundred calls each are little evidence that one of five is different.
    assert!((500..900).contains(&fleet.capacity(4)), "{}", fleet.capacity(4));
}

#[test]
fn an_estimate_outlives_silence_for_three_minutes() {
    let mut fleet = Fleet::new([vec![Host::of(100.0); 4], vec![Host::of(50.0)]].concat());
    fleet.seconds(40, 300.0);
    let measured = fleet.capacity(4);
    assert!(measured < 600, "{measured}");
    fleet.hosts[4].is_silent = true;
    fleet.seconds(170, 300.0);
    assert_eq!(fleet.capacity(4), measured);
    fleet.seconds(20, 300.0);
    assert!(fleet.capacity(4) >= 950, "{}", fleet.capacity(4));
}

#[test]
fn a_new_start_of_a_backend_begins_at_the_median() {
    let mut fleet = Fleet::new([vec![Host::of(100.0); 4], vec![Host::of(50.0)]].concat());
    fleet.seconds(40, 300.0);
    assert!(fleet.capacity(4) < 600);
    fleet.hosts[4] = Host { incarnation: 2, ..Host::of(100.0) };
    fleet.start(4);
    fleet.turn();
    assert_eq!(fleet.capacity(4), 1000);
}

#[test]
fn absurd_sums_move_nothing_out_of_bounds() {
    let mut fleet = Fleet::new(vec![Host::of(100.0); 4]);
    fleet.seconds(10, 200.0);
    for (second, completions) in [u64::MAX, 0, 7, u64::MAX / 2, 1, u64::MAX].into_iter().cycle().take(60).enumerate() {
        fleet.hosts[0].sums.completions = completions / 4;
        fleet.hosts[0].sums.in_flight_us = if second % 3 == 0 { 0 } else { u64::MAX / 2 };
        fleet.second(200.0);
        assert!((CAPACITY_MILLI_MIN..=CAPACITY_MILLI_MAX).contains(&fleet.capacity(0)));
        assert!(fleet.shares()[0] <= 0.5 + 1e-9, "{:?}", fleet.shares());
        assert!((1..4).all(|at| (900..=1300).contains(&fleet.capacity(at))));
    }
}

#[test]
fn policies_without_a_measure_have_none() {
    for policy in [PolicyKind::RoundRobin, PolicyKind::RingHash] {
        let mut fleet = Fleet::with([vec![Host::of(100.0); 4], vec![Host::of(50.0)]].concat(), policy);
        fleet.seconds(40, 200.0);
        assert_eq!([fleet.capacity(0), fleet.capacity(4)], [1000, 1000]);
    }
}

#[test]
fn a_large_host_that_was_given_its_weight_does_not_count_twice() {
    let large = Host { weight: 400, ..Host::of(400.0) };
    let mut fleet = Fleet::new([vec![Host::of(100.0); 8], vec![large; 2]].concat());
    for _ in 0..60 {
        fleet.second(1200.0);
        assert!(fleet.unevenness() < 1.01, "{}", fleet.unevenness());
    }
    assert_eq!([fleet.capacity(0), fleet.capacity(9)], [1000, 1000]);
}

#[test]
fn one_that_was_given_little_on_purpose_gets_twice_that_at_most() {
    let mut fleet = Fleet::new([vec![Host::of(100.0); 9], vec![Host { weight: 1, ..Host::of(100.0) }]].concat());
    for _ in 0..200 {
        fleet.second(600.0);
        assert!(fleet.shares()[9] <= 2.0 / 901.0 + 1e-9, "{}", fleet.shares()[9]);
    }
}

#[test]
fn who_is_not_heard_after_a_restart_holds_up_no_estimate() {
    let mut fleet = Fleet::new([vec![Host::of(100.0); 6], vec![Host::of(50.0); 4]].concat());
    fleet.seconds(40, 400.0);
    assert!((450..600).contains(&fleet.capacity(9)), "{}", fleet.capacity(9));
    // Slow ones alone are heard again, and one of them is slower now.
    fleet.hosts[..6].iter_mut().for_each(|host| host.is_silent = true);
    fleet.hosts[9].speed = 20.0;
    fleet.restart();
    fleet.seconds(15, 400.0);
    assert!(fleet.capacity(9) < 350, "{}", fleet.capacity(9));
    assert!((450..600).contains(&fleet.capacity(6)), "they are not the measure of themselves: {}", fleet.capacity(6));
}
