//! What the core costs: to apply a fact, to publish a snapshot, and to pick a list for a cohort, with 100, 1,000 and 10,000
//! endpoints of one service. `cargo bench -p lookaside-core`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark: what cannot be ends it")]

use std::{cell::RefCell, hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use lookaside_core::{
    config::{PolicyKind, ServiceConfig},
    event::{Action, Backend, CheckOutcome, Event, LoadReport, Override, Scope},
    model::{Address, ClientId, Cohort, EndpointSpec, Instance, Locality, ServiceName, Timestamp},
    policy::assign,
    snapshot::Snapshot,
    table::Table,
};

const SIZES: [u32; 3] = [100, 1_000, 10_000];

fn service() -> ServiceName {
    ServiceName::parse("greeter").unwrap()
}

fn address(number: u32) -> Address {
    Address::parse(&format!("10.{}.{}.{}:50051", number >> 16, number >> 8 & 255, number & 255)).unwrap()
}

/// A service whose backends have registered, serve and report.
struct World {
    table: Table,
    now: Timestamp,
    size: u32,
    /// Of reports, and whose turn it is.
    sequence: u64,
    turn: u32,
    words: u64,
}

impl World {
    fn new(size: u32, policy: PolicyKind) -> Self {
        let mut table = Table::new(1, ServiceConfig { policy, ..ServiceConfig::default() }, Timestamp(0));
        let now = Timestamp(0);
        for number in 0..size {
            let endpoint = EndpointSpec {
                instance: Instance::parse(&format!("pod-{number}")).unwrap(),
                incarnation: 1,
                locality: Locality::parse(["eu/a", "eu/b"][number as usize % 2]).unwrap(),
                ..EndpointSpec::at(address(number))
            };
            table.apply(Event::Registered { service: service(), endpoint }, now).unwrap();
            let passed = Event::Checked { service: service(), address: address(number), outcome: CheckOutcome::Passed };
            table.apply(passed, now).unwrap();
        }
        table.publish(now);
        let mut world = Self { table, now, size, sequence: 1, turn: 0, words: 0 };
        world.round_of_reports();
        world
    }

    fn report(&self, number: u32) -> Event {
        Event::LoadReported {
            backend: Backend { service: service(), address: address(number), incarnation: 1 },
            load: LoadReport {
                sequence: self.sequence,
                completions: self.sequence * u64::from(100 + number % 7),
                in_flight_us: self.sequence * 1_000_000,
                utilization_permille: Some((number * 37 + self.sequence as u32 * 11) % 900),
                ..LoadReport::default()
            },
        }
    }

    /// The next report, of one backend after the other, a second between two of the same one.
    fn next_report(&mut self) -> Event {
        self.turn = (self.turn + 1) % self.size;
        if self.turn == 0 {
            self.sequence += 1;
            self.now = self.now.after(Duration::from_secs(1));
        }
        self.report(self.turn)
    }

    fn apply(&mut self, event: Event) {
        self.table.apply(event, self.now).unwrap();
    }

    /// A second passes in which every backend reports once.
    fn round_of_reports(&mut self) {
        for _ in 0..self.size {
            let report = self.next_report();
            self.apply(report);
        }
    }

    /// An operator drains an endpoint, or takes that back.
    fn order(&mut self) {
        self.words += 1;
        let action = if self.words.is_multiple_of(2) { Action::Undrain } else { Action::Drain };
        let word = Override {
            service: service(),
            scope: Scope::Address(address(0)),
            action,
            reason: String::new(),
            actor: String::new(),
            set_at_unix_ms: self.words,
            replica: "lb-0".into(),
            expires_at_unix_ms: 0,
            remaining: None,
        };
        self.apply(Event::OverrideSet { word });
    }

    /// The snapshot of now; `None` where nothing changed that it shows.
    fn publish(&mut self) -> Option<Arc<Snapshot>> {
        self.table.publish(self.now)
    }
}

fn apply(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("apply");
    for size in SIZES {
        let world = RefCell::new(World::new(size, PolicyKind::LeastLoad));
        group.bench_function(BenchmarkId::new("load report", size), |bench| {
            let next = || world.borrow_mut().next_report();
            bench.iter_batched(next, |report| world.borrow_mut().apply(report), BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn publish(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("publish");
    for size in SIZES {
        for (name, happens) in [("one drain", World::order as fn(&mut World)), ("all reports", World::round_of_reports)]
        {
            let world = RefCell::new(World::new(size, PolicyKind::LeastLoad));
            group.bench_function(BenchmarkId::new(name, size), |bench| {
                let setup = || happens(&mut world.borrow_mut());
                bench.iter_batched(setup, |()| world.borrow_mut().publish(), BatchSize::PerIteration);
            });
        }
    }
    group.finish();
}

fn pick(bench: &mut Criterion) {
    let cohort = Cohort::of(&ClientId::parse("web-1").unwrap(), Locality::parse("eu/a").unwrap());
    for policy in PolicyKind::ALL {
        let mut group = bench.benchmark_group(format!("pick {}", policy.name()));
        for size in SIZES {
            let snapshot = World::new(size, policy).publish().unwrap();
            let service = &snapshot.services[&service()];
            group.bench_function(BenchmarkId::from_parameter(size), |bench| {
                bench.iter(|| black_box(assign(service, &cohort)));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = apply, publish, pick
}
criterion_main!(benches);
