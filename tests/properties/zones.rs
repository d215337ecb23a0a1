//! Zones that help each other, as a loop: lists send calls, calls make load, loads are reported, and lists follow.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lookaside_core::{
    config::{Configuration, ConfiguredService, ServiceConfig},
    event::{Backend, CheckOutcome, Client, Event, LoadReport, Outcomes},
    model::{Address, ClientId, Cohort, EndpointSpec, Locality, Peer, SourceId, Timestamp},
    policy::assign,
    snapshot::{Help, Snapshot},
    table::Table,
};
use proptest::prelude::*;

use crate::world::service;

/// Calls per second that an endpoint can take.
const CALLS: f64 = 100.0;

fn zone(at: usize) -> Locality {
    Locality::parse(["eu/a", "eu/b", "eu/c"][at]).unwrap()
}

fn address(zone: usize, at: usize) -> Address {
    Address::parse(&format!("10.0.{zone}.{}:50051", at + 1)).unwrap()
}

struct Loop {
    table: Table,
    now: Timestamp,
    snapshot: Snapshot,
    endpoints: BTreeMap<Address, usize>,
    /// Of the clients of a zone, calls per second.
    demand: [f64; 3],
    sequence: u64,
}

impl Loop {
    fn new(sizes: [usize; 3], demand: [f64; 3]) -> Self {
        let endpoints: BTreeMap<Address, usize> =
            (0..3).flat_map(|zone| (0..sizes[zone]).map(move |at| (address(zone, at), zone))).collect();
        let (table, now) = (Table::new(1, ServiceConfig::default(), Timestamp(0)), Timestamp(0));
        let mut new = Self { table, now, snapshot: Snapshot::default(), endpoints, demand, sequence: 0 };
        let mut config = ServiceConfig::default();
        config.locality.prefer_zone = true;
        let services = vec![ConfiguredService { name: service(), config: Arc::new(config), endpoints: None }];
        let configuration = Configuration { services, ..Configuration::default() };
        new.event(Event::Configured { source: SourceId::parse("file").unwrap(), configuration });
        for (address, at) in new.endpoints.clone() {
            let endpoint = EndpointSpec { locality: zone(at), incarnation: 1, ..EndpointSpec::at(address.clone()) };
            new.event(Event::Registered { service: service(), endpoint });
            new.event(Event::Checked { service: service(), address, outcome: CheckOutcome::Passed });
        }
        new.turn();
        new
    }

    fn event(&mut self, event: Event) {
        self.table.apply(event, self.now).unwrap();
    }

    fn turn(&mut self) {
        if let Some(snapshot) = self.table.publish(self.now) {
            self.snapshot = (*snapshot).clone();
        }
    }

    fn help(&self) -> BTreeMap<Locality, Help> {
        self.snapshot.services[&service()].help.clone()
    }

    /// What the lists come to, by endpoint. Everybody sees everything, so one cohort of a zone is like the others.
    fn loads(&self) -> BTreeMap<Address, f64> {
        let mut loads: BTreeMap<Address, f64> = self.endpoints.keys().map(|address| (address.clone(), 0.0)).collect();
        for (at, demand) in self.demand.iter().enumerate() {
            let list = assign(&self.snapshot.services[&service()], &Cohort { seed: 1, locality: zone(at) });
            let best: Vec<_> = list.endpoints.into_iter().filter(|e| e.priority == 0).collect();
            let whole: f64 = best.iter().map(|e| f64::from(e.weight)).sum();
            for endpoint in best {
                *loads.get_mut(&endpoint.spec.address).unwrap() += demand * f64::from(endpoint.weight) / whole / CALLS;
            }
        }
        loads
    }

    fn utilizations(&self) -> [f64; 3] {
        let loads = self.loads();
        [0, 1, 2].map(|zone| {
            let own: Vec<f64> = self.endpoints.iter().filter(|(_, at)| **at == zone).map(|(a, _)| loads[a]).collect();
            own.iter().sum::<f64>() / own.len() as f64
        })
    }

    fn second(&mut self) {
        let loads = self.loads();
        self.now = self.now.after(Duration::from_secs(1));
        self.sequence += 1;
        for (address, load) in loads {
            let backend = Backend { service: service(), address, incarnation: 1 };
            let utilization_permille = Some((load * 1000.0) as u32);
            let load = LoadReport { sequence: self.sequence, utilization_permille, ..LoadReport::default() };
            self.event(Event::LoadReported { backend, load });
        }
        let address = address(0, 0);
        for (at, demand) in self.demand.into_iter().enumerate() {
            let id = ClientId::parse(&format!("web-{at}")).unwrap();
            let client = Client { id, peer: Peer(at as u64), locality: zone(at) };
            let outcomes = Outcomes { ok: demand as u64, ..Outcomes::default() };
            self.event(Event::CallsEnded { client, service: service(), address: address.clone(), outcomes });
        }
        self.turn();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_zone_is_fuller_than_it_has_to_be_and_nothing_swings(
        sizes in prop::array::uniform3(2..7usize),
        parts in prop::array::uniform3(1..20u32),
        percent in 20..110u32,
    ) {
        let endpoints: usize = sizes.iter().sum();
        let calls = endpoints as f64 * CALLS * f64::from(percent) / 100.0;
        let demand = parts.map(|part| calls * f64::from(part) / f64::from(parts.iter().sum::<u32>()));
        let mut fleet = Loop::new(sizes, demand);
        let mut changes = 0;
        for second in 0..120 {
            let before = fleet.help();
            fleet.second();
            changes += usize::from(second >= 60 && fleet.help() != before);
        }
        let level = (f64::from(percent) / 100.0).max(0.8);
        for (zone, utilization) in fleet.utilizations().into_iter().enumerate() {
            prop_assert!(utilization <= level + 0.05, "zone {}: {}, {:?}", zone, utilization, fleet.help());
            let alone = demand[zone] / sizes[zone] as f64 / CALLS;
            prop_assert!(alone > 0.75 || !fleet.help().contains_key(&self::zone(zone)), "needs no help");
        }
        prop_assert!(changes <= 1, "{} changes in a minute of the same", changes);
    }
}
