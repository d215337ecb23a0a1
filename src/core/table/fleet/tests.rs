//! A fleet whose backends say what a test has them say, second by second.

use super::*;
use crate::{
    config::ServiceConfig,
    event::{Backend, Event, LoadReport},
    model::{Address, Cohort, EndpointSpec, Locality, ServiceName, SourceId, Timestamp},
    policy::assign,
    snapshot::ServiceSnapshot,
    table::Table,
};
use std::{sync::Arc, time::Duration};

/// What one backend does in a second.
#[derive(Clone, Copy)]
struct Second {
    calls: u64,
    overloads: u64,
    in_flight: u32,
    permille: u32,
}

/// Of a backend that does not say how full it is.
const UNSAID: u32 = 12_345;

const USUAL: Second = Second { calls: 100, overloads: 0, in_flight: 5, permille: 500 };

struct World {
    table: Table,
    now: Timestamp,
    sums: Vec<LoadReport>,
    service: Option<Arc<ServiceSnapshot>>,
    fleet: Fleet,
}

impl World {
    fn new(size: usize) -> Self {
        Self::with(PolicyKind::LeastLoad, &vec![100; size])
    }

    fn with(policy: PolicyKind, weights: &[u32]) -> Self {
        let size = weights.len();
        let mut table = Table::new(1, ServiceConfig { policy, ..ServiceConfig::default() }, Timestamp(0));
        let spec = |(at, weight)| EndpointSpec { incarnation: 1, weight, ..EndpointSpec::at(address(at)) };
        let specs: Vec<_> = weights.iter().copied().enumerate().map(spec).collect();
        let source = SourceId::parse("file").unwrap();
        let detail = String::new();
        let listed = Event::EndpointsListed { source, service: name(), endpoints: specs.clone(), detail };
        table.apply(listed, Timestamp(0)).unwrap();
        for endpoint in specs {
            table.apply(Event::Registered { service: name(), endpoint }, Timestamp(0)).unwrap();
        }
        let sums = vec![LoadReport::default(); size];
        Self { table, now: Timestamp(0), sums, service: None, fleet: Fleet::default() }
    }

    fn second(&mut self, what: impl Fn(usize) -> Second) -> Fleet {
        self.now = self.now.after(Duration::from_secs(1));
        for (at, sums) in self.sums.iter_mut().enumerate() {
            let Second { calls, overloads, in_flight, permille } = what(at);
            sums.sequence += 1;
            sums.completions += calls;
            sums.errors += overloads;
            sums.overloads += overloads;
            sums.in_flight_us += u64::from(in_flight) * 1_000_000;
            sums.in_flight = in_flight;
            sums.utilization_permille = Some(permille).filter(|permille| *permille != UNSAID);
            let backend = Backend { service: name(), address: address(at), incarnation: 1 };
            self.table.apply(Event::LoadReported { backend, load: *sums }, self.now).unwrap();
        }
        if let Some(snapshot) = self.table.publish(self.now) {
            let service = snapshot.services[&name()].clone();
            self.fleet = service.fleet;
            self.service = Some(service);
        }
        self.fleet
    }

    fn seconds(&mut self, seconds: u32, what: impl Fn(usize) -> Second) -> Fleet {
        (1..seconds).for_each(|_| _ = self.second(&what));
        self.second(&what)
    }
}

fn name() -> ServiceName {
    ServiceName::parse("greeter").unwrap()
}

fn address(at: usize) -> Address {
    Address::parse(&format!("10.0.0.{}:1", at + 100)).unwrap()
}

#[test]
fn the_numbers_are_those_of_the_fleet() {
    let mut world = World::new(20);
    assert_eq!(world.fleet, Fleet::default());
    let fleet = world.seconds(30, |at| Second { in_flight: if at < 3 { 9 } else { 5 }, ..USUAL });
    assert_eq!((fleet.hot_milli, fleet.utilization_permille, fleet.is_overload), (9_000, 500, false));
    assert!(fleet.service_time_us.abs_diff(50_000) < 500, "{fleet:?}");
    assert_eq!(fleet.probe_percent, 200, "two for a call of 50 ms");
    let quick = World::new(20).seconds(30, |_| Second { calls: 50_000, ..USUAL });
    assert_eq!(quick.probe_percent, 3, "of a call of 100 us they would be a third");
}

#[test]
fn hot_is_per_capacity_as_lists_tell_it() {
    // Twenty in flight on an endpoint of twice the weight and twice the calls for that.
    let large = [200, 200, 200, 100, 100];
    let busy = |at| if at < 3 { Second { calls: 400, in_flight: 20, ..USUAL } } else { USUAL };
    for (policy, least) in
        [(PolicyKind::LeastLoad, 5), (PolicyKind::WeightedRoundRobin, 20), (PolicyKind::RoundRobin, 20)]
    {
        let mut world = World::with(policy, &large);
        let fleet = world.seconds(60, busy);
        let service = world.service.clone().unwrap();
        let lists = assign(&service, &Cohort { seed: 0, locality: Locality::unknown() });
        let told = |at: usize| lists.endpoints.iter().find(|e| e.spec.address == address(at)).unwrap().capacity_milli;
        let mut per_capacity: Vec<u32> = (0..5).map(|at| busy(at).in_flight * 1_000_000 / told(at)).collect();
        per_capacity.sort_unstable();
        assert!(fleet.hot_milli.abs_diff(per_capacity[3]) < 300, "{policy:?}: {fleet:?}, {per_capacity:?}");
        assert!(fleet.hot_milli >= least * 1000, "{policy:?}: {fleet:?}");
    }
}

#[test]
fn one_that_lies_moves_nothing_much() {
    let lie = Second { calls: 1 << 40, overloads: 1 << 40, in_flight: u32::MAX, permille: u32::MAX };
    let fleet = World::new(20).seconds(30, |at| if at == 7 { lie } else { USUAL });
    assert_eq!((fleet.hot_milli, fleet.utilization_permille, fleet.is_overload), (5_000, 525, false));
    assert!(fleet.service_time_us.abs_diff(50_000) < 500, "{fleet:?}");
}

#[test]
fn overload_begins_for_all_and_ends_well_below() {
    let mut world = World::new(20);
    let full = |permille| move |_| Second { permille, ..USUAL };
    assert!(!world.seconds(10, full(940)).is_overload);
    assert!(world.seconds(10, full(990)).is_overload);
    let fleet = world.seconds(10, full(920));
    assert_eq!((fleet.is_overload, fleet.probe_percent), (true, 20));
    assert!(!world.seconds(10, full(800)).is_overload);
    let sheds = |endpoints| move |at| Second { overloads: if at < endpoints { 30 } else { 0 }, ..USUAL };
    assert!(!world.seconds(10, sheds(2)).is_overload, "the others have room");
    assert!(world.seconds(10, sheds(20)).is_overload);
    let nobody_calls = |_| Second { calls: 0, overloads: 0, in_flight: 0, permille: 0 };
    assert!(!world.seconds(15, nobody_calls).is_overload, "what was turned away then is not now");
}

#[test]
fn one_that_says_how_full_it_is_does_not_say_it_of_all() {
    let says = |endpoints| move |at| Second { permille: if at < endpoints { 1000 } else { UNSAID }, ..USUAL };
    assert!(!World::new(20).seconds(20, says(1)).is_overload);
    assert!(!World::new(20).seconds(20, says(9)).is_overload);
    let mut world = World::new(20);
    assert!(world.seconds(20, says(10)).is_overload);
    assert!(world.seconds(20, says(9)).is_overload, "the silence of one does not end it");
}

#[test]
fn a_burst_is_not_taken_for_longer_calls() {
    let mut world = World::new(20);
    let calm = world.seconds(30, |_| USUAL);
    let burst = world.seconds(10, |_| Second { in_flight: 40, permille: 900, ..USUAL });
    assert!(burst.service_time_us < calm.service_time_us * 12 / 10, "{burst:?}");
}

#[test]
fn noise_is_no_news() {
    let mut world = World::new(100);
    let mut told = world.seconds(10, |_| Second { calls: 10_000, ..USUAL });
    assert!(told.probe_percent < 100, "{told:?}");
    let mut news = 0;
    for second in 0..120usize {
        let noisy = |at: usize| {
            let random = crate::hash::text(second as u64, address(at).as_str());
            let in_flight = 2 + (random % 7) as u32;
            // Calls of half a millisecond, so that the budget for probes is as noisy as the service time.
            Second { calls: 10_000, in_flight, permille: 550 + (random >> 8) as u32 % 300, ..USUAL }
        };
        let fleet = world.second(noisy);
        if fleet.is_news_to(&told) {
            (news, told) = (news + 1, fleet);
        }
    }
    assert!(news < 12, "{news} in two minutes");
}

#[test]
fn news_is_what_clients_act_on_before_the_next_heartbeat() {
    let told = Fleet {
        hot_milli: 5_000,
        service_time_us: 50_000,
        utilization_permille: 500,
        is_overload: false,
        probe_percent: 100,
    };
    assert!(!Fleet { hot_milli: 50_000, service_time_us: 1, utilization_permille: 940, ..told }.is_news_to(&told));
    assert!(Fleet { is_overload: true, ..told }.is_news_to(&told));
    let probes = |probe_percent| Fleet { probe_percent, ..told }.is_news_to(&told);
    assert_eq!([79, 80, 120, 121].map(probes), [true, false, false, true]);
    assert!(told.is_news_to(&Fleet::default()), "the first numbers of all");
}
