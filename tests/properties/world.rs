//! A table that random facts happen to, each small enough to be shrunk.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lookaside_core::{
    config::{Configuration, ConfiguredService, PolicyKind, ServiceConfig},
    event::{Action, Backend, CheckOutcome, Client, Event, LoadReport, Outcomes, Override, Scope},
    model::{Address, ClientId, EndpointSpec, Instance, Locality, Peer, ServiceName, SourceId, Timestamp},
    snapshot::{ServiceSnapshot, Snapshot},
    table::Table,
};
use proptest::prelude::*;

pub(crate) const ENDPOINTS: u8 = 8;

/// A fact about one of a few endpoints, small enough to be shrunk by halves.
#[derive(Debug, Clone)]
pub(crate) enum Fact {
    Register {
        at: u8,
        incarnation: u8,
    },
    Report {
        at: u8,
        incarnation: u8,
        utilization_permille: u32,
        calls: u32,
    },
    Break(u8),
    Announce(u8),
    Depart(u8),
    List(Option<BTreeSet<u8>>),
    SourceTells(u8),
    Check {
        at: u8,
        how: u8,
    },
    /// A client of so many told of one call.
    ClientTells {
        at: u8,
        client: u8,
        ok: bool,
    },
    Word {
        scope: u8,
        action: u8,
        set_at: u8,
        for_s: u8,
    },
    Restart,
    Pass {
        ms: u32,
    },
}

pub(crate) fn fact() -> impl Strategy<Value = Fact> {
    let at = || 0..ENDPOINTS;
    prop_oneof![
        4 => (at(), 1..3u8).prop_map(|(at, incarnation)| Fact::Register { at, incarnation }),
        6 => (at(), 1..3u8, 0..3000u32, 0..10_000u32).prop_map(|(at, incarnation, utilization_permille, calls)| {
            Fact::Report { at, incarnation, utilization_permille, calls }
        }),
        1 => at().prop_map(Fact::Break),
        1 => at().prop_map(Fact::Announce),
        1 => at().prop_map(Fact::Depart),
        3 => prop::option::weighted(0.8, prop::collection::btree_set(at(), 0..8)).prop_map(Fact::List),
        1 => (0..3u8).prop_map(Fact::SourceTells),
        9 => (at(), 0..8u8).prop_map(|(at, how)| Fact::Check { at, how }),
        9 => (at(), 0..6u8, prop::bool::weighted(0.3))
            .prop_map(|(at, client, ok)| Fact::ClientTells { at, client, ok }),
        2 => (0..12u8, 0..6u8, 0..9u8, 0..30u8)
            .prop_map(|(scope, action, set_at, for_s)| Fact::Word { scope, action, set_at, for_s }),
        1 => Just(Fact::Restart),
        5 => prop_oneof![1..500u32, 500..5_000u32, 5_000..40_000u32].prop_map(|ms| Fact::Pass { ms }),
    ]
}

pub(crate) fn service() -> ServiceName {
    ServiceName::parse("greeter").unwrap()
}

pub(crate) fn address(at: u8) -> Address {
    Address::parse(&format!("10.0.0.{}:50051", at + 1)).unwrap()
}

pub(crate) fn spec(at: u8, incarnation: u8) -> EndpointSpec {
    EndpointSpec {
        instance: Instance::parse(&format!("pod-{at}")).unwrap(),
        incarnation: incarnation.into(),
        locality: Locality::parse(["eu/a", "eu/b", ""][usize::from(at) % 3]).unwrap(),
        priority: u32::from(at % 4 == 3),
        ..EndpointSpec::at(address(at))
    }
}

pub(crate) struct World {
    pub(crate) table: Table,
    pub(crate) now: Timestamp,
    pub(crate) sequence: u64,
    pub(crate) snapshot: Snapshot,
    pub(crate) config: ServiceConfig,
    pub(crate) starts: u64,
    /// As on disk.
    pub(crate) kept: String,
}

impl World {
    pub(crate) fn new(policy: PolicyKind) -> Self {
        let mut config = ServiceConfig { policy, subset_size: 5, ..ServiceConfig::default() };
        config.locality.prefer_zone = true;
        Self::with(config)
    }

    pub(crate) fn with(config: ServiceConfig) -> Self {
        let mut world = Self {
            table: Table::new(1, ServiceConfig::default(), Timestamp(0)),
            now: Timestamp(0),
            sequence: 0,
            snapshot: Snapshot::default(),
            config,
            starts: 1,
            kept: String::new(),
        };
        world.configure();
        world.turn();
        world
    }

    pub(crate) fn configure(&mut self) {
        let (name, config) = (service(), Arc::new(self.config.clone()));
        let services = vec![ConfiguredService { name, config, endpoints: None }];
        let configuration = Configuration { services, ..Configuration::default() };
        let source = SourceId::parse("settings").unwrap();
        self.table.apply(Event::Configured { source, configuration }, self.now).unwrap();
    }

    /// The next start, whose clock begins anew.
    pub(crate) fn restart(&mut self, with_snapshot: bool) {
        let words = self.table.overrides(self.now);
        self.starts += 1;
        self.now = Timestamp(0);
        self.table = Table::new(self.starts, ServiceConfig::default(), self.now);
        for word in words {
            self.table.apply(Event::OverrideSet { word }, self.now).unwrap();
        }
        if with_snapshot && !self.kept.is_empty() {
            self.table.restore(serde_json::from_str(&self.kept).unwrap(), self.now).unwrap();
        }
        self.configure();
    }

    pub(crate) fn turn(&mut self) {
        let published = self.table.publish(self.now);
        assert!(self.table.broken().is_empty(), "{:?}", self.table.broken());
        if let Some(snapshot) = published {
            assert!(snapshot.version > self.snapshot.version, "versions must grow");
            self.snapshot = (*snapshot).clone();
        }
        if let Some(kept) = self.table.keep(self.now) {
            self.kept = serde_json::to_string(&kept).unwrap();
        }
    }

    pub(crate) fn service(&self) -> &ServiceSnapshot {
        &self.snapshot.services[&service()]
    }

    /// Applies a fact; refusals are part of the game.
    pub(crate) fn happens(&mut self, fact: &Fact) {
        let backend = |at: u8, incarnation: u8| Backend {
            service: service(),
            address: address(at),
            incarnation: incarnation.into(),
        };
        let source = SourceId::parse("file").unwrap();
        self.sequence += 1;
        let event = match fact {
            Fact::Register { at, incarnation } => {
                Event::Registered { service: service(), endpoint: spec(*at, *incarnation) }
            }
            Fact::Report { at, incarnation, utilization_permille, calls } => Event::LoadReported {
                backend: backend(*at, *incarnation),
                load: LoadReport {
                    sequence: self.sequence,
                    completions: u64::from(*calls),
                    utilization_permille: Some(*utilization_permille),
                    ..LoadReport::default()
                },
            },
            Fact::Break(at) => Event::ReportStreamBroken { backend: backend(*at, 1) },
            Fact::Announce(at) => Event::DrainAnnounced { backend: backend(*at, 1) },
            Fact::Depart(at) => Event::Departed { backend: backend(*at, 1) },
            Fact::SourceTells(0) => Event::SourceAwaited { source, service: service() },
            Fact::SourceTells(1) => Event::SourceDropped { source, service: service() },
            Fact::SourceTells(_) => Event::SourceFailed { source, reason: "silence".into() },
            Fact::List(named) => {
                let endpoints = named.as_ref().map(|named| named.iter().map(|at| spec(*at, 0)).collect());
                let (name, config) = (service(), Arc::new(self.config.clone()));
                let services = vec![ConfiguredService { name, config, endpoints }];
                Event::Configured { source, configuration: Configuration { services, ..Configuration::default() } }
            }
            Fact::Check { at, how } => Event::Checked {
                service: service(),
                address: address(*at),
                outcome: match how {
                    0 => CheckOutcome::NotServing,
                    1 => CheckOutcome::Unreachable { detail: "Connection refused".into() },
                    2 => CheckOutcome::TimedOut { deadline: Duration::from_millis(500) },
                    3 => CheckOutcome::NotGrpc { detail: "HTTP/1.1 400".into() },
                    _ => CheckOutcome::Passed,
                },
            },
            Fact::ClientTells { at, client, ok } => {
                // One of them calls so much that it is worth a plan.
                let calls = if *client == 0 { 2_000 } else { 1 };
                let (ok, failed) = if *ok { (calls, 0) } else { (0, 3) };
                return self.told((&format!("web-{client}"), u64::from(client % 4)), *at, ok, failed);
            }
            Fact::Word { scope, action, set_at, for_s } => Event::OverrideSet {
                word: Override {
                    service: service(),
                    scope: match scope {
                        8 => Scope::Locality(Locality::parse("eu/a").unwrap()),
                        9 => Scope::Locality(Locality::parse("eu").unwrap()),
                        10.. => Scope::Service,
                        at => Scope::Address(address(*at)),
                    },
                    action: match action {
                        0 => Action::Drain,
                        1 => Action::Undrain,
                        2 => Action::Disable,
                        3 => Action::Enable,
                        percent => Action::Weight(u32::from(*percent) * 37),
                    },
                    reason: "because".into(),
                    actor: "ann".into(),
                    set_at_unix_ms: u64::from(*set_at),
                    replica: "lb-0".into(),
                    expires_at_unix_ms: 0,
                    remaining: (*for_s > 0).then(|| Duration::from_secs(u64::from(*for_s))),
                },
            },
            Fact::Restart => return self.restart(true),
            Fact::Pass { ms } => return self.pass(*ms, |_, _| {}),
        };
        let _ = self.table.apply(event, self.now);
    }

    /// A client, by name and machine, tells of its calls.
    pub(crate) fn told(&mut self, (name, peer): (&str, u64), at: u8, ok: u64, failed: u64) {
        let client = Client { id: ClientId::parse(name).unwrap(), peer: Peer(peer), locality: Locality::unknown() };
        let outcomes = Outcomes { ok, failed, ..Outcomes::default() };
        let event = Event::CallsEnded { client, service: service(), address: address(at), outcomes };
        self.table.apply(event, self.now).unwrap();
    }

    /// Time passes, turn by turn; shows the service before each turn, and the world after it.
    pub(crate) fn pass(&mut self, ms: u32, mut see: impl FnMut(&ServiceSnapshot, &Self)) {
        let end = self.now.after(Duration::from_millis(u64::from(ms)));
        while self.now < end {
            let before = self.service().clone();
            self.now = self.now.after(Duration::from_millis(500)).min(end);
            self.turn();
            see(&before, self);
        }
    }
}
