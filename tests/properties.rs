//! What holds for every policy, whatever happens: sequences of random facts, checked after every turn of the table.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

#[path = "properties/liars.rs"]
mod liars;
#[path = "properties/subsets.rs"]
mod subsets;
#[path = "properties/world.rs"]
mod world;
#[path = "properties/zones.rs"]
mod zones;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lookaside_core::{
    config::{PolicyKind, ServiceConfig},
    event::{Backend, Event, LoadReport},
    explain::{Verdict, explain},
    limits::{CAPACITY_MILLI_MAX, CAPACITY_MILLI_MIN},
    model::{Address, Cohort, Locality, Timestamp},
    policy::{Assigned, ListMode, assign},
    snapshot::{Code, Mode, ServiceSnapshot, Snapshot, State, Status},
};
use proptest::prelude::*;
use world::{ENDPOINTS, Fact, World, address, fact, service};

fn cohorts() -> Vec<Cohort> {
    let zones = ["", "eu/a", "us/x"].map(|zone| Locality::parse(zone).unwrap());
    zones.into_iter().enumerate().map(|(at, locality)| Cohort { seed: at as u64 * 7, locality }).collect()
}

/// No strangers, no doubles, nothing bad without a mode that says so, the same input gives the same list.
fn check_lists(service: &ServiceSnapshot) {
    for cohort in cohorts() {
        let list = assign(service, &cohort);
        assert_eq!(list, assign(service, &cohort), "same input, same list");
        let mut seen = BTreeSet::new();
        for endpoint in &list.endpoints {
            let known = service.endpoint(&endpoint.spec.address).expect("no stranger");
            assert!(seen.insert(&endpoint.spec.address), "no double");
            match known.state {
                State::Eligible => {}
                State::Restored => {
                    assert!(
                        matches!(list.mode, ListMode::Panic | ListMode::LastGood),
                        "restored only with a mode that says so"
                    );
                }
                State::Excluded | State::Draining | State::Disabled => assert_eq!(endpoint.weight, 0, "{known:?}"),
                State::Pending => panic!("nothing unchecked that only its own word names"),
            }
        }
        let priorities: Vec<_> = list.endpoints.iter().map(|e| e.priority).collect();
        assert!(priorities.is_sorted(), "tiers in order");
        let offered = service.offered().count();
        assert_eq!(
            offered == 0,
            list.endpoints.iter().all(|e| service.endpoint(&e.spec.address).is_some_and(|e| !e.state.is_offered()))
        );
        if offered > 0 {
            assert!(priorities.contains(&0), "tiers start at 0");
        }
    }
}

/// Capacities are known of all or of none, and within their bounds. What is offered has no more than twice the share that
/// its weight alone would give it in its tier.
fn check_capacities(service: &ServiceSnapshot) {
    let capacities: Vec<_> = service.endpoints.iter().map(|e| e.capacity_milli).collect();
    let bounds = CAPACITY_MILLI_MIN..=CAPACITY_MILLI_MAX;
    assert!(
        capacities.iter().all(|milli| *milli == 0) || capacities.iter().all(|milli| bounds.contains(milli)),
        "{capacities:?}"
    );
    for offered in service.offered() {
        let tier = || service.offered().filter(|e| e.spec.priority == offered.spec.priority);
        let weights: u64 = tier().map(|e| u64::from(e.spec.weight)).sum();
        let products: u64 = tier().map(|e| u64::from(e.spec.weight) * u64::from(e.capacity_milli)).sum();
        assert!(u64::from(offered.capacity_milli) * weights <= 2 * products, "{offered:?} of {capacities:?}");
    }
}

/// The same in every list, where all have the same weight and nobody sees a part.
fn check_shares(service: &ServiceSnapshot) {
    for cohort in cohorts() {
        let list = assign(service, &cohort);
        let share = |e: &Assigned| u64::from(e.weight) * u64::from(e.capacity_milli);
        for endpoint in &list.endpoints {
            let tier = || list.endpoints.iter().filter(|e| e.priority == endpoint.priority && e.weight > 0);
            let (count, sum): (u64, u64) = (tier().count() as u64, tier().map(share).sum());
            // Weights are whole numbers: one step of rounding each.
            let rounding = count * u64::from(endpoint.capacity_milli);
            assert!(share(endpoint) * count <= 2 * (sum + rounding), "{endpoint:?} of {list:?}");
        }
    }
}

/// Every endpoint in every state is explained.
fn check_explanations(snapshot: &Snapshot, now: Timestamp) {
    let service = &snapshot.services[&service()];
    for cohort in cohorts() {
        for at in 0..=ENDPOINTS {
            let explanation = explain(service, &snapshot.sources, &cohort, &address(at), now);
            assert!(!explanation.next.is_empty() && !explanation.stages.is_empty());
            let in_list = explanation.result.starts_with("IN LIST");
            let listed =
                assign(service, &cohort).endpoints.iter().any(|e| e.spec.address == address(at) && e.weight > 0);
            let no_weight = explanation.result.contains("weight 0");
            assert!(in_list == listed || no_weight, "{explanation:?}");
            let failed = explanation.stages.iter().filter(|s| s.verdict == Verdict::Fail).count();
            assert_eq!(failed, usize::from(!in_list), "exactly one stage excludes: {explanation:?}");
        }
    }
    for endpoint in &service.endpoints {
        assert!(endpoint.state == State::Eligible || !endpoint.reasons.is_empty(), "{endpoint:?}");
    }
}

/// What was offered is offered still, or a presence rule says why not.
fn check_presence(before: &ServiceSnapshot, after: &ServiceSnapshot, fact: &Fact, now: Timestamp) {
    let source_spoke = matches!(fact, Fact::List(_) | Fact::SourceTells(_));
    let backend_spoke = matches!(fact, Fact::Announce(_));
    for old in before.offered() {
        match after.endpoint(&old.spec.address) {
            Some(new) if new.state.is_offered() => {}
            // Only a new start of a backend goes back to the beginning, and then silence is not absence.
            Some(new) if new.state == State::Pending => assert_ne!(new.spec.incarnation, old.spec.incarnation),
            Some(new) => assert!(!new.reasons.is_empty(), "{new:?}"),
            None => {
                let removed = old.reasons.iter().find(|reason| reason.code == Code::DiscoveryRemoved);
                let lease = old.lease.as_ref().map(|lease| now.since(lease.renewed_at));
                let expired = lease.is_some_and(|silence| silence >= after.config.lease);
                assert!(removed.is_some() || expired || (source_spoke && lease.is_none()), "{old:?}");
                let proved = removed.is_some_and(|reason| now.since(reason.since) >= Duration::from_secs(30));
                assert!(
                    proved || backend_spoke || after.offered().next().is_some(),
                    "the last one is gone at once: {old:?} {after:?}"
                );
            }
        }
    }
    if before.offered().next().is_some() && after.offered().next().is_none() {
        assert!(after.mode == Mode::Empty || after.settling, "{after:?}");
    }
    match after.mode {
        Mode::Empty => assert_eq!(after.offered().count(), 0),
        Mode::Normal | Mode::Panic | Mode::LastGood => {}
    }
    if after.endpoints.iter().any(|e| e.state != State::Eligible) {
        assert_ne!(after.status(), Status::Ok, "never better than the worst part");
    }
}

/// What was offered is offered, and what was out is out, as far as its mode ignored that.
fn check_restart(before: &ServiceSnapshot, after: &ServiceSnapshot) {
    assert_eq!(before.endpoints.len(), after.endpoints.len());
    for (old, new) in before.endpoints.iter().zip(&after.endpoints) {
        assert_eq!(old.spec, new.spec);
        match (old.state, new.state) {
            (State::Eligible | State::Restored, State::Eligible | State::Restored) => {}
            // What clients had confirmed before the balancer doubted its checks is judged anew, like all else.
            (State::Excluded, State::Excluded | State::Restored) => {}
            // An ejection is not kept: clients tell again within a second.
            (State::Excluded, State::Eligible) => {
                assert!(old.reasons.iter().any(|reason| reason.code == Code::OutlierEjected), "{old:?}");
            }
            (old, new) => assert_eq!(old, new),
        }
        assert!(
            new.state == State::Pending || !new.reasons.is_empty() || new.lease.is_none(),
            "not heard yet: {new:?}"
        );
    }
}

/// A client's view across restarts: what the contract has it do with complete and incomplete lists.
#[derive(Default)]
struct Held {
    digest: Option<u64>,
    offered: BTreeMap<Address, bool>,
}

impl Held {
    fn receive(&mut self, service: &ServiceSnapshot) {
        let list = assign(service, &cohorts()[0]);
        // A client that holds something else gets lists of what was kept as additions alone.
        let additions_alone = service.stale && self.digest.is_some_and(|held| held != list.digest);
        if list.complete && !additions_alone {
            self.offered.clear();
            self.digest = Some(list.digest);
        }
        self.offered.extend(list.endpoints.into_iter().map(|e| (e.spec.address, e.weight > 0)));
    }
}

/// Sums of all sizes.
fn absurd() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..1_000u64, 0..1_000_000_000u64, any::<u64>(), Just(u64::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_lists_keep_their_promises(
        facts in prop::collection::vec(fact(), 1..80),
        policy in prop::sample::select(PolicyKind::ALL.to_vec()),
    ) {
        let mut world = World::new(policy);
        for fact in &facts {
            let before = world.service().clone();
            match fact {
                Fact::Pass { ms } => world.pass(*ms, |before, world| {
                    check_lists(world.service());
                    check_presence(before, world.service(), fact, world.now);
                }),
                Fact::Restart => {
                    world.happens(fact);
                    world.turn();
                    check_restart(&before, world.service());
                }
                _ => {
                    world.happens(fact);
                    world.turn();
                    check_presence(&before, world.service(), fact, world.now);
                }
            }
            check_lists(world.service());
            check_capacities(world.service());
            check_explanations(&world.snapshot, world.now);
        }
    }

    /// Backends that are alive before, during and after, some of them unknown to the snapshot, come back one by one within
    /// a lease, their first checks a little later, some of those failing: whoever holds a list keeps all of them.
    #[test]
    fn over_a_restart_no_list_that_a_client_holds_loses_a_live_endpoint(
        with_snapshot: bool,
        kept in 0..=ENDPOINTS,
        back_ms in prop::collection::vec(0..14_900u64, usize::from(ENDPOINTS)),
        check_ms in prop::collection::vec(0..1_000u64, usize::from(ENDPOINTS)),
        first_fails in prop::collection::vec(prop::bool::weighted(0.2), usize::from(ENDPOINTS)),
    ) {
        let mut world = World::with(ServiceConfig { subset_size: 0, ..ServiceConfig::default() });
        world.happens(&Fact::Pass { ms: 16_000 });
        let mut disk = String::new();
        for at in 0..ENDPOINTS {
            if at == kept {
                disk.clone_from(&world.kept);
            }
            world.happens(&Fact::Register { at, incarnation: 1 });
            world.happens(&Fact::Check { at, how: 7 });
            world.turn();
        }
        if kept < ENDPOINTS {
            world.kept = disk;
        }
        let mut held = Held::default();
        held.receive(world.service());
        prop_assert_eq!(held.offered.len(), usize::from(ENDPOINTS));

        world.restart(with_snapshot);
        world.turn();
        held.receive(world.service());
        // Where the first check failed, another one passes an interval later, while there is time for it.
        let fails = |at: usize| first_fails[at] && back_ms[at] < 8_000;
        let checked = |at: usize| back_ms[at] + check_ms[at] + if fails(at) { 5_000 } else { 0 };
        for tick in 0..200u64 {
            let (from, to) = (tick * 100, tick * 100 + 100);
            let due = |ms: u64| (from..to).contains(&ms);
            world.now = Timestamp(to * 1_000);
            for at in 0..ENDPOINTS {
                let index = usize::from(at);
                if due(back_ms[index]) {
                    world.happens(&Fact::Register { at, incarnation: 1 });
                }
                if back_ms[index] < from && to % 1_000 == 0 {
                    world.happens(&Fact::Report { at, incarnation: 1, utilization_permille: 100, calls: 1 });
                }
                if fails(index) && due(back_ms[index] + check_ms[index]) {
                    world.happens(&Fact::Check { at, how: 2 });
                }
                if due(checked(index)) {
                    world.happens(&Fact::Check { at, how: 7 });
                }
            }
            world.turn();
            held.receive(world.service());
            let live = held.offered.values().filter(|offered| **offered).count();
            prop_assert_eq!(live, usize::from(ENDPOINTS), "after {} ms: {:?}\n{:#?}", to, held.offered, world.service());
        }
        prop_assert!(!world.service().settling && !world.service().stale);
    }

    #[test]
    fn the_same_facts_give_the_same_snapshots(facts in prop::collection::vec(fact(), 1..60)) {
        let run = || {
            let mut world = World::new(PolicyKind::LeastLoad);
            for fact in &facts {
                world.happens(fact);
                world.turn();
            }
            world.service().clone()
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn of_a_subset_one_leaver_moves_only_its_own_place(leaver in 0..ENDPOINTS, seed in 0..64u64) {
        let list = |left_out: Option<u8>| {
            let mut world = World::new(PolicyKind::RoundRobin);
            let named = (0..ENDPOINTS).filter(|at| Some(*at) != left_out && at % 4 != 3).collect();
            world.happens(&Fact::List(Some(named)));
            world.turn();
            let cohort = Cohort { seed, locality: Locality::unknown() };
            let list = assign(world.service(), &cohort);
            list.endpoints.into_iter().map(|e| e.spec.address).collect::<BTreeSet<_>>()
        };
        let (whole, rest) = (list(None), list(Some(leaver)));
        prop_assert!(whole.difference(&rest).all(|gone| *gone == address(leaver)));
        prop_assert!(rest.difference(&whole).count() <= 1);
    }

    #[test]
    fn on_a_ring_everybody_sees_everybody_and_who_leaves_or_comes_changes_nobody_elses_part(
        facts in prop::collection::vec(fact(), 0..40),
        leaver in 0..ENDPOINTS,
    ) {
        let mut world = World::new(PolicyKind::RingHash);
        for fact in &facts {
            world.happens(fact);
            world.turn();
        }
        let without = {
            let mut service = world.service().clone();
            service.endpoints.retain(|e| e.spec.address != address(leaver));
            service
        };
        let parts = |service: &ServiceSnapshot, cohort: &Cohort| {
            let list = assign(service, cohort);
            let ring = list.ring.expect("a ring");
            let parts = list.endpoints.into_iter().filter(|e| e.weight > 0);
            let parts: BTreeSet<_> =
                parts.map(|e| (e.spec.address, e.weight, e.is_keyed_by_instance, e.spec.instance)).collect();
            (ring.hash_seed, parts)
        };
        let mut all = BTreeSet::new();
        for cohort in cohorts() {
            let (seed, whole) = parts(world.service(), &cohort);
            all.insert((seed, whole.clone()));
            let (seed_without, mut rest) = parts(&without, &cohort);
            prop_assert_eq!(seed, seed_without);
            rest.extend(whole.iter().filter(|(at, ..)| *at == address(leaver)).cloned());
            prop_assert_eq!(whole, rest);
        }
        prop_assert_eq!(all.len(), 1, "one set, whoever asks");
    }

    /// Backends may report anything, and do so while others serve as they should.
    #[test]
    fn absurd_reports_stay_below_the_ceiling(
        reports in prop::collection::vec((0..4u8, absurd(), absurd(), absurd(), prop::option::of(any::<u32>())), 1..60),
        policy in prop::sample::select(PolicyKind::ALL.to_vec()),
    ) {
        let mut config = ServiceConfig { policy, slow_start: Duration::ZERO, ..ServiceConfig::default() };
        config.locality.prefer_zone = true;
        let mut world = World::with(config);
        for at in 0..ENDPOINTS {
            world.happens(&Fact::Register { at, incarnation: 1 });
            world.happens(&Fact::Check { at, how: 7 });
        }
        for (second, (at, completions, errors, in_flight_us, utilization_permille)) in (1..).zip(reports) {
            for at in 4..ENDPOINTS {
                let calls = 100 * second;
                world.happens(&Fact::Report { at, incarnation: 1, utilization_permille: 500, calls });
            }
            world.sequence += 1;
            let load = LoadReport {
                sequence: world.sequence,
                completions,
                errors,
                overloads: errors / 2,
                in_flight_us,
                in_flight: errors as u32,
                utilization_permille,
            };
            let backend = Backend { service: service(), address: address(at), incarnation: 1 };
            world.table.apply(Event::LoadReported { backend, load }, world.now).unwrap();
            world.pass(1000, |_, world| {
                check_lists(world.service());
                check_capacities(world.service());
                check_shares(world.service());
            });
        }
    }

    /// Whatever one machine tells under whatever names, and whatever the others tell of their few failures.
    #[test]
    fn no_voice_ejects_anybody_alone(
        lies in prop::collection::vec((0..ENDPOINTS, 0..40u8, 0..2_000_000u64), 1..60),
        failures in prop::collection::vec(0..2u64, 1..60),
    ) {
        let mut world = World::new(PolicyKind::LeastLoad);
        world.happens(&Fact::Pass { ms: 16_000 });
        world.happens(&Fact::List(Some((0..ENDPOINTS).collect())));
        for at in 0..ENDPOINTS {
            world.happens(&Fact::Check { at, how: 7 });
        }
        for (turn, (at, name, failed)) in lies.into_iter().enumerate() {
            world.told((&format!("liar-{name}"), 9), at, 0, failed);
            for honest in 0..5u64 {
                let failed = failures[(turn * 5 + honest as usize) % failures.len()];
                world.told((&format!("honest-{honest}"), honest), at, 19, failed);
            }
            world.happens(&Fact::Pass { ms: 100 });
            prop_assert!(world.service().endpoints.iter().all(|e| e.state == State::Eligible && e.weight == 100));
        }
    }

    #[test]
    fn no_report_draws_more_than_twice_a_fair_share(lie in 0..1000u32, calls in 0..1_000_000u32) {
        let mut world = World::new(PolicyKind::WeightedRoundRobin);
        for at in 0..ENDPOINTS {
            world.happens(&Fact::Register { at, incarnation: 1 });
            world.happens(&Fact::Check { at, how: 7 });
        }
        for second in 1..15u32 {
            for at in 0..ENDPOINTS {
                let (utilization_permille, calls) = if at == 0 { (lie, calls * second) } else { (500, 100 * second) };
                world.happens(&Fact::Report { at, incarnation: 1, utilization_permille, calls });
            }
            world.happens(&Fact::Pass { ms: 1000 });
        }
        let service = world.service();
        let list = assign(service, &Cohort { seed: 0, locality: Locality::unknown() });
        let own = list.endpoints.iter().find(|e| e.spec.address == address(0)).unwrap();
        let tier = || list.endpoints.iter().filter(|e| e.priority == own.priority);
        let (sum, count) = (tier().map(|e| e.weight).sum::<u32>(), tier().count() as u32);
        let own = own.weight;
        // Weights are whole numbers of percent: one step of rounding each.
        prop_assert!(own * count <= 2 * sum + 2 * count, "{} of {}", own, sum);
    }
}
