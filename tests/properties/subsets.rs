//! What holds for subsets, whoever calls how much, and however much endpoints can take.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use lookaside_core::{
    config::{Configuration, ConfiguredService, ServiceConfig},
    event::{Client, Event, Outcomes},
    model::{Address, ClientId, Cohort, EndpointSpec, Locality, Peer, SourceId, Timestamp},
    policy::assign,
    snapshot::{ServiceSnapshot, Snapshot},
    table::Table,
};
use proptest::prelude::*;

use crate::world::service;

fn address(at: usize) -> Address {
    Address::parse(&format!("10.0.{}.{}:50051", at / 250, at % 250 + 1)).unwrap()
}

/// Clients that call at a steady pace, and endpoints by weight.
struct Fleet {
    table: Table,
    now: Timestamp,
    snapshot: Snapshot,
    weights: BTreeMap<usize, u32>,
    /// By cohort: calls per second of one of its clients.
    rates: BTreeMap<u64, u64>,
    clients: BTreeMap<u64, Client>,
}

impl Fleet {
    fn new(size: u32, weights: &[u32], rates: &BTreeMap<u64, u64>) -> Self {
        let mut fleet = Self {
            table: Table::new(1, ServiceConfig::default(), Timestamp(0)),
            now: Timestamp(0),
            snapshot: Snapshot::default(),
            weights: weights.iter().copied().enumerate().collect(),
            rates: rates.clone(),
            clients: rates.keys().map(|seed| (*seed, of_cohort(*seed))).collect(),
        };
        fleet.list(size);
        fleet
    }

    fn list(&mut self, subset_size: u32) {
        let spec = |(at, weight): (&usize, &u32)| EndpointSpec { weight: *weight, ..EndpointSpec::at(address(*at)) };
        let config = Arc::new(ServiceConfig { subset_size, ..ServiceConfig::default() });
        let endpoints = Some(self.weights.iter().map(spec).collect());
        let services = vec![ConfiguredService { name: service(), config, endpoints }];
        let configuration = Configuration { services, ..Configuration::default() };
        let source = SourceId::parse("file").unwrap();
        self.table.apply(Event::Configured { source, configuration }, self.now).unwrap();
        self.turn();
    }

    fn turn(&mut self) {
        if let Some(snapshot) = self.table.publish(self.now) {
            self.snapshot = (*snapshot).clone();
        }
    }

    /// So many seconds of calls. On whom makes no difference to who calls how much.
    fn calls(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now.after(Duration::from_secs(1));
            let at = self.weights.keys().next().copied().unwrap();
            for (seed, calls) in &self.rates {
                let client = self.clients[seed].clone();
                let outcomes = Outcomes { ok: *calls, ..Outcomes::default() };
                let event = Event::CallsEnded { client, service: service(), address: address(at), outcomes };
                self.table.apply(event, self.now).unwrap();
            }
            self.turn();
        }
    }

    fn service(&self) -> &ServiceSnapshot {
        &self.snapshot.services[&service()]
    }

    /// What a cohort may call, and how much of it.
    fn subset(&self, seed: u64) -> BTreeMap<Address, u64> {
        let list = assign(self.service(), &Cohort { seed, locality: Locality::unknown() });
        let share = |e: &lookaside_core::policy::Assigned| u64::from(e.weight) * u64::from(e.capacity_milli);
        list.endpoints.into_iter().map(|e| (e.spec.address.clone(), share(&e))).collect()
    }

    /// How much more or less than its share of the calls the worst endpoint gets, percent.
    fn imbalance_percent(&self) -> f64 {
        let mut loads: BTreeMap<Address, f64> = self.weights.keys().map(|at| (address(*at), 0.0)).collect();
        for (seed, calls) in &self.rates {
            let subset = self.subset(*seed);
            let whole: u64 = subset.values().sum();
            for (address, weight) in subset {
                *loads.get_mut(&address).unwrap() += *calls as f64 * weight as f64 / whole as f64;
            }
        }
        let calls = self.rates.values().sum::<u64>() as f64;
        let weights = f64::from(self.weights.values().sum::<u32>());
        let share = |at: &usize| f64::from(self.weights[at]) / weights * calls;
        let off = |at: &usize| (loads[&address(*at)] / share(at) - 1.0).abs() * 100.0;
        self.weights.keys().map(off).fold(0.0, f64::max)
    }

    /// How far off it may be before something is done: five percent, and what chance makes of so few calls in a minute.
    fn imbalance_percent_max(&self) -> f64 {
        let least = self.rates.values().min().copied().unwrap_or(1) as f64;
        6.0 + 300.0 / (least * 60.0).sqrt()
    }

    fn seats(&self) -> BTreeMap<u64, BTreeSet<Address>> {
        (0..64).map(|seed| (seed, self.subset(seed).into_keys().collect())).collect()
    }
}

/// A client whose name is of a cohort.
pub(crate) fn of_cohort(seed: u64) -> Client {
    let mut names = (0..).map(|n| ClientId::parse(&format!("web-{n}")).unwrap());
    let id = names.find(|id| Cohort::of(id, Locality::unknown()).seed == seed).unwrap();
    Client { id, peer: Peer(seed), locality: Locality::unknown() }
}

/// Calls per second by cohort: a few make most of them.
fn rates() -> impl Strategy<Value = BTreeMap<u64, u64>> {
    prop::collection::btree_map(0..64u64, (1..200u64, 0..4u32), 1..64).prop_map(|rates| {
        rates.into_iter().map(|(seed, (calls, zeros))| (seed, 20 + calls * 10_u64.pow(zeros) / 10)).collect()
    })
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![Just(vec![100]), Just(vec![1]), prop::collection::vec(50..800u32, 1..9)]
}

#[test]
fn who_calls_once_a_minute_moves_nobody_else() {
    let steady: BTreeMap<u64, u64> = (0..20).map(|seed| (seed, 50 + seed * 5)).collect();
    let mut rates = steady.clone();
    rates.insert(63, 1);
    let mut fleet = Fleet::new(20, &[100; 100], &rates);
    fleet.rates.remove(&63);
    fleet.calls(60);
    let lists = |fleet: &Fleet| steady.keys().map(|seed| fleet.subset(*seed)).collect::<Vec<_>>();
    let before = lists(&fleet);
    for minute in 0..5 {
        fleet.rates.insert(63, 1);
        fleet.calls(1);
        fleet.rates.remove(&63);
        for second in 0..59 {
            fleet.calls(1);
            assert_eq!(lists(&fleet), before, "in minute {minute} after {second} s");
        }
        assert!(fleet.subset(63).len() >= 15, "by hash alone");
    }
}

#[test]
fn a_plan_leaves_weights_that_are_near() {
    let rates: BTreeMap<u64, u64> = (0..40).map(|seed| (seed, 1000)).collect();
    let mut fleet = Fleet::new(20, &[100; 100], &rates);
    fleet.calls(60);
    let weights = |fleet: &Fleet| fleet.service().endpoints.iter().map(|e| e.seats.weight_milli).collect::<Vec<_>>();
    let before = weights(&fleet);
    fleet.rates.insert(0, 1300);
    fleet.calls(120);
    let after = weights(&fleet);
    let moved: Vec<f64> = before.iter().zip(&after).map(|(a, b)| f64::from(*b) / f64::from(*a) - 1.0).collect();
    let moved: Vec<f64> = moved.into_iter().filter(|by| *by != 0.0).collect();
    assert!(!moved.is_empty(), "there was a plan");
    assert!(moved.iter().all(|by| by.abs() > 0.02), "{} moved: {moved:?}", moved.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_together_send_everybody_its_share(
        count in 41..160usize,
        pattern in weights(),
        rates in rates(),
    ) {
        let weights: Vec<u32> = (0..count).map(|at| pattern[at % pattern.len()]).collect();
        let mut fleet = Fleet::new(20, &weights, &rates);
        let by_hash = fleet.seats();
        fleet.calls(20);
        prop_assert_eq!(fleet.seats(), by_hash, "nothing is known yet");
        fleet.calls(20);
        let off = fleet.imbalance_percent();
        prop_assert!(off <= 5.0, "{} % off", off);
        for seed in rates.keys() {
            prop_assert!(fleet.subset(*seed).len() >= 15);
        }
        let seats = fleet.seats();
        fleet.calls(100);
        prop_assert_eq!(fleet.seats(), seats, "the same calls, the same lists");
    }

    #[test]
    fn who_comes_or_goes_moves_next_to_nothing(
        count in 60..160usize,
        rates in rates(),
        leaver in 0..60usize,
    ) {
        let mut fleet = Fleet::new(20, &vec![100; count], &rates);
        fleet.calls(40);
        let before = fleet.seats();
        fleet.weights.remove(&leaver);
        fleet.list(20);
        let without = fleet.seats();
        fleet.calls(60);
        let settled = fleet.seats();
        fleet.weights.insert(leaver, 100);
        fleet.list(20);
        fleet.calls(60);
        let after = fleet.seats();
        let moved = |a: &BTreeMap<u64, BTreeSet<Address>>, b: &BTreeMap<u64, BTreeSet<Address>>, seed: &u64| {
            a[seed].symmetric_difference(&b[seed]).count()
        };
        for seed in rates.keys() {
            prop_assert!(moved(&before, &without, seed) <= 1, "its own place alone");
            // A rebalance may follow: a few endpoints get a seat more.
            prop_assert!(moved(&without, &settled, seed) <= 2 && moved(&settled, &after, seed) <= 3);
        }
        let (off, most) = (fleet.imbalance_percent(), fleet.imbalance_percent_max());
        prop_assert!(off <= most, "{} % off, {} % are borne", off, most);
    }

    #[test]
    fn where_many_go_out_everybody_is_offered_enough_and_only_that(
        rates in rates(),
        out in prop::collection::btree_set(0..120usize, 1..90),
    ) {
        let mut fleet = Fleet::new(20, &[100; 120], &rates);
        fleet.calls(40);
        let before = fleet.seats();
        out.iter().for_each(|at| _ = fleet.weights.remove(at));
        fleet.list(20);
        let after = fleet.seats();
        for seed in rates.keys() {
            let left = before[seed].iter().filter(|a| after[seed].contains(*a)).count();
            let stayed = before[seed].iter().filter(|a| !out.iter().any(|at| address(*at) == **a)).count();
            prop_assert_eq!(left, stayed, "who is there keeps its clients");
            prop_assert_eq!(after[seed].len(), stayed.max(15.min(before[seed].len())), "of {}", before[seed].len());
        }
        fleet.calls(40);
        let (off, most) = (fleet.imbalance_percent(), fleet.imbalance_percent_max());
        prop_assert!(off <= most, "{} % off, {} % are borne", off, most);
    }
}
