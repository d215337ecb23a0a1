use std::collections::BTreeMap;

use super::*;

mod faults;
mod told;

const ALL: [Policy; 4] = [Policy::LeastLoad, Policy::WeightedRoundRobin, Policy::RoundRobin, Policy::RingHash];
const MS: u64 = 1_000;

/// A client under a virtual clock: calls end when their endpoint says so.
struct World {
    picker: Picker<usize>,
    fleet: Arc<Fleet>,
    peers: Vec<Arc<Peer>>,
    rng: Rng,
    now_us: u64,
    /// Ends due: when, endpoint, sent, class.
    due: BTreeMap<(u64, u64), (usize, u64, Class)>,
    serial: u64,
    picks: Vec<u64>,
}

impl World {
    fn new(policy: Policy, weights: &[u32], seed: u64) -> Self {
        let fleet = Arc::new(Fleet::new(seed));
        let peers: Vec<Arc<Peer>> = (0..weights.len()).map(|n| Arc::new(Peer::new(n as u64))).collect();
        let picker = picker(policy, &fleet, &peers, weights);
        let picks = vec![0; weights.len()];
        let (rng, due) = (Rng::from_seed(seed), BTreeMap::new());
        Self { picker, fleet, peers, rng, now_us: 1, due, serial: 0, picks }
    }

    fn pick(&mut self) -> usize {
        self.pick_except(&[])
    }

    fn pick_except(&mut self, tried: &[u64]) -> usize {
        let at = self.picker.pick(self.now_us, &mut self.rng, tried).expect("an endpoint").item;
        self.picks[at] += 1;
        at
    }

    /// Sends a call that ends after so long; `None` is never.
    fn send(&mut self, at: usize, after_us: Option<u64>, class: Class) {
        self.peers[at].sent(self.now_us);
        self.serial += 1;
        if let Some(after_us) = after_us {
            self.due.insert((self.now_us + after_us, self.serial), (at, self.now_us, class));
        }
    }

    fn advance(&mut self, by_us: u64) {
        let until_us = self.now_us + by_us;
        while let Some((&(at_us, serial), _)) = self.due.first_key_value().filter(|(key, _)| key.0 <= until_us) {
            let (at, sent_us, class) = self.due.remove(&(at_us, serial)).expect("just seen");
            self.now_us = at_us;
            self.end(at, sent_us, class);
        }
        self.now_us = until_us;
    }

    fn end(&mut self, at: usize, sent_us: u64, class: Class) {
        let answered = class != Class::Deadline && class != Class::Cancelled;
        if answered {
            self.picker.answered(&self.peers[at], sent_us, self.now_us);
        }
        let _ = self.picker.ended(&self.peers[at], class, Some(sent_us), answered, None, self.now_us);
    }

    fn share(&self, at: usize) -> f64 {
        self.picks[at] as f64 / self.picks.iter().sum::<u64>() as f64
    }
}

fn picker(policy: Policy, fleet: &Arc<Fleet>, peers: &[Arc<Peer>], weights: &[u32]) -> Picker<usize> {
    let offers = peers.iter().zip(weights).enumerate();
    let offers = offers.map(|(item, (peer, &weight))| Offer {
        peer: peer.clone(),
        weight,
        capacity_milli: 0,
        priority: 0,
        ready: true,
        item,
    });
    Picker::new(policy, fleet.clone(), offers)
}

#[test]
fn shares_follow_weights_at_low_load() {
    for policy in ALL {
        for weights in [vec![100; 6], vec![100, 200, 300, 400], vec![10, 100, 100, 100], vec![1, 10_000]] {
            let mut world = World::new(policy, &weights, 7);
            for _ in 0..20_000 {
                let at = world.pick();
                world.send(at, Some(MS), Class::Ok);
                world.advance(2 * MS);
            }
            let sum: u32 = weights.iter().sum();
            for (at, weight) in weights.iter().enumerate() {
                let wanted = f64::from(*weight) / f64::from(sum);
                assert!(
                    (world.share(at) - wanted).abs() <= 0.03 * wanted + 0.0005,
                    "{policy:?} {weights:?} {:?}",
                    world.picks
                );
            }
        }
    }
}

#[test]
fn shares_follow_weights_under_load_as_well() {
    // A starting endpoint among six, eight calls in flight: its share is to be within a quarter of what its weight says.
    for policy in ALL {
        for starting in [10, 25, 50] {
            let weights = [100, 100, 100, 100, 100, 100, starting];
            let mut world = World::new(policy, &weights, 11);
            let mut rng = Rng::from_seed(5);
            for _ in 0..100_000 {
                let at = world.pick();
                world.send(at, Some(30 * MS + rng.below(20 * MS)), Class::Ok);
                world.advance(5 * MS);
            }
            let wanted = f64::from(starting) / f64::from(600 + starting);
            let share = world.share(6);
            assert!((share - wanted).abs() <= 0.25 * wanted, "{policy:?} {starting}: {share} for {wanted}");
        }
    }
}

#[test]
fn a_slow_endpoint_gets_less_by_least_load() {
    let mut world = World::new(Policy::LeastLoad, &[100; 4], 3);
    for _ in 0..50_000 {
        let at = world.pick();
        world.send(at, Some(if at == 0 { 40 * MS } else { 4 * MS }), Class::Ok);
        world.advance(MS);
    }
    assert!(world.share(0) < 0.12, "{:?}", world.picks);
}

#[test]
fn even_turns_are_strict() {
    let mut world = World::new(Policy::RoundRobin, &[100; 5], 9);
    let first: Vec<usize> = (0..5).map(|_| world.pick()).collect();
    for _ in 0..20 {
        assert_eq!((0..5).map(|_| world.pick()).collect::<Vec<_>>(), first);
    }
}

#[test]
fn clients_begin_their_turns_at_different_endpoints() {
    let mut firsts = vec![0; 10];
    for seed in 0..1_000 {
        firsts[World::new(Policy::RoundRobin, &[1; 10], seed).pick()] += 1;
    }
    assert!(firsts.iter().all(|n| (50..200).contains(n)), "{firsts:?}");
}

#[test]
fn endpoints_tried_already_are_chosen_last() {
    for policy in ALL {
        let mut world = World::new(policy, &[100; 3], 5);
        for _ in 0..100 {
            assert_eq!(world.pick_except(&[0, 2]), 1);
        }
        assert!(world.picker.pick(1, &mut Rng::from_seed(1), &[0, 1, 2]).is_some());
    }
}

#[test]
fn the_best_tier_with_a_ready_endpoint_is_used_and_weight_0_never() {
    let fleet = Arc::new(Fleet::new(1));
    let offers = |ready: [bool; 4]| {
        let tiers = [(0, 100), (0, 0), (1, 100), (2, 100)];
        let offers = tiers.into_iter().zip(ready).enumerate().map(|(item, ((priority, weight), ready))| Offer {
            peer: Arc::new(Peer::new(item as u64)),
            weight,
            capacity_milli: 0,
            priority,
            ready,
            item,
        });
        let picker = Picker::new(Policy::LeastLoad, fleet.clone(), offers);
        picker.candidates().iter().map(|c| c.item).collect::<Vec<_>>()
    };
    assert_eq!(offers([true; 4]), [0]);
    assert_eq!(offers([false, true, true, true]), [2]);
    assert_eq!(offers([false, true, false, true]), [3]);
    assert_eq!(offers([false; 4]), Vec::<usize>::new());
}

#[test]
fn an_empty_picker_picks_nothing() {
    for policy in ALL {
        let picker: Picker<()> = Picker::new(policy, Arc::new(Fleet::new(1)), []);
        assert!(picker.pick(0, &mut Rng::from_seed(0), &[]).is_none());
    }
}

#[test]
fn a_fresh_endpoint_gets_the_very_next_call_once() {
    for policy in ALL {
        let mut world = World::new(policy, &[100; 5], 2);
        let newcomer = Arc::new(Peer::new(99));
        newcomer.mark_fresh();
        world.peers.push(newcomer);
        world.picks.push(0);
        world.picker = picker(policy, &world.fleet, &world.peers, &[100, 100, 100, 100, 100, 1]);
        assert_eq!(world.pick(), 5);
        let again = (0..20).filter(|_| world.pick() == 5).count();
        assert!(again <= 2, "{policy:?}: {again}");
    }
}

#[test]
fn same_seed_same_picks() {
    for policy in ALL {
        let run = || {
            let mut world = World::new(policy, &[100, 50, 70], 42);
            (0..500).map(|_| world.pick()).collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }
}

#[test]
fn counts_in_flight_come_back_to_nothing() {
    let mut world = World::new(Policy::LeastLoad, &[100; 3], 42);
    for _ in 0..1_000 {
        let at = world.pick();
        world.send(at, Some(3 * MS), Class::Ok);
        world.advance(MS);
    }
    world.advance(100 * MS);
    assert!(world.peers.iter().all(|p| p.in_flight() == 0));
    assert!(world.fleet.spoke_after(0));
}

#[test]
fn a_full_endpoint_is_passed_over_and_when_all_are_full_there_is_none() {
    for policy in ALL {
        let mut world = World::new(policy, &[1, 1, 1], 5);
        world.picker = picker(policy, &world.fleet, &world.peers, &[1, 1, 1]).with_calls_max(4);
        for _ in 0..12 {
            world.pick();
        }
        assert_eq!(world.picks, [4, 4, 4], "{policy:?}");
        assert!(world.picker.pick(world.now_us, &mut world.rng, &[]).is_none());
        world.end(1, world.now_us, Class::Ok);
        assert_eq!(world.pick(), 1);
    }
}

#[test]
fn who_waits_for_a_full_endpoint_is_not_sent_to_one_that_does_not_answer() {
    let mut world = World::new(Policy::LeastLoad, &[1, 1], 5);
    world.picker = picker(Policy::LeastLoad, &world.fleet, &world.peers, &[1, 1]).with_calls_max(8);
    for _ in 0..2 {
        while world.pick() != 0 {}
        world.send(0, None, Class::Ok);
    }
    world.advance(STALL_US_MIN * 2);
    while world.peers[1].in_flight() < 8 {
        world.picker.spoke(&world.peers[1], world.now_us);
        world.pick();
    }
    let stalled = world.peers[0].in_flight();
    assert!(stalled < 8 && world.picker.pick(world.now_us, &mut world.rng, &[]).is_none());
}

#[test]
fn a_call_that_is_at_an_endpoint_is_sent_beside_it_and_never_there_again() {
    for policy in ALL {
        let mut world = World::new(policy, &[1, 1, 1], 5);
        for _ in 0..50 {
            let other = world.picker.pick_other(None, world.now_us, &mut world.rng, &[0, 2]).map(|c| c.item);
            assert_eq!(other, Some(1), "{policy:?}");
        }
        assert!(world.picker.pick_other(None, world.now_us, &mut world.rng, &[0, 1, 2]).is_none());
    }
}
