//! What a backend says of itself is worth twice its share at most, also where each client sees a part.

use std::{sync::Arc, time::Duration};

use lookaside_core::{
    config::{Configuration, ConfiguredService, ServiceConfig},
    event::{Backend, CheckOutcome, Client, Event, LoadReport, Outcomes},
    model::{Address, ClientId, Cohort, EndpointSpec, Locality, Peer, SourceId, Timestamp},
    policy::assign,
    table::Table,
};

use crate::world::service;

const ENDPOINTS: usize = 40;
const CLIENTS: u64 = 40;

fn address(at: usize) -> Address {
    Address::parse(&format!("10.0.0.{}:50051", at + 1)).unwrap()
}

#[test]
fn a_liar_has_twice_its_share_of_exact_subsets_at_most() {
    let mut now = Timestamp(0);
    let mut table = Table::new(1, ServiceConfig::default(), now);
    let config = ServiceConfig { subset_size: 10, slow_start: Duration::ZERO, ..ServiceConfig::default() }.into();
    let services = vec![ConfiguredService { name: service(), config: Arc::clone(&config), endpoints: None }];
    let source = SourceId::parse("file").unwrap();
    let configuration = Configuration { services, ..Configuration::default() };
    table.apply(Event::Configured { source, configuration }, now).unwrap();
    for at in 0..ENDPOINTS {
        let endpoint = EndpointSpec { incarnation: 1, ..EndpointSpec::at(address(at)) };
        table.apply(Event::Registered { service: service(), endpoint }, now).unwrap();
        let checked = Event::Checked { service: service(), address: address(at), outcome: CheckOutcome::Passed };
        table.apply(checked, now).unwrap();
    }
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|at| Client {
            id: ClientId::parse(&format!("web-{at}")).unwrap(),
            peer: Peer(at),
            locality: Locality::unknown(),
        })
        .collect();
    let mut last = None;
    for second in 1..=120 {
        now = now.after(Duration::from_secs(1));
        for at in 0..ENDPOINTS {
            let (calls, utilization) = if at == 0 { (1_000_000, 160) } else { (100, 500) };
            let load = LoadReport {
                sequence: second,
                completions: calls * second,
                utilization_permille: Some(utilization),
                ..LoadReport::default()
            };
            let backend = Backend { service: service(), address: address(at), incarnation: 1 };
            table.apply(Event::LoadReported { backend, load }, now).unwrap();
        }
        for (at, client) in clients.iter().enumerate() {
            let outcomes = Outcomes { ok: 100, ..Outcomes::default() };
            let address = address(at % ENDPOINTS);
            table
                .apply(Event::CallsEnded { client: client.clone(), service: service(), address, outcomes }, now)
                .unwrap();
        }
        last = table.publish(now).or(last);
    }
    let snapshot = last.unwrap();
    let seen = &snapshot.services[&service()];
    assert!(seen.endpoints.iter().any(|e| e.seats.cohorts != 0), "subsets are planned");
    let part = |client: &Client| {
        let list = assign(seen, &Cohort::of(&client.id, Locality::unknown()));
        let share = |e: &lookaside_core::policy::Assigned| f64::from(e.weight) * f64::from(e.capacity_milli);
        let all: f64 = list.endpoints.iter().map(share).sum();
        list.endpoints.iter().filter(|e| e.spec.address == address(0)).map(share).sum::<f64>() / all
    };
    let part = clients.iter().map(part).sum::<f64>() / CLIENTS as f64;
    let fair = 1.0 / ENDPOINTS as f64;
    // Plans are right to five percent, and chance of the rates.
    assert!(part < 2.0 * fair * 1.15, "{} of a fair share", part / fair);
}
