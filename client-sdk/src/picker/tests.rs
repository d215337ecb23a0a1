use std::collections::BTreeMap;

use super::*;

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
fn a_stopped_endpoint_gets_two_calls_more_whatever_the_policy() {
    for policy in ALL {
        for (rate_us, service_us) in [(MS, 5 * MS), (5 * MS, 40 * MS), (20 * MS, 40 * MS), (500, 2 * MS), (200, MS)] {
            for seed in 0..10 {
                let mut world = World::new(policy, &[100; 6], seed);
                let mut rng = Rng::from_seed(seed ^ 0xABCD);
                for n in 0..4_000u64 {
                    let stopped = n >= 1_000;
                    if n == 1_000 {
                        world.due.retain(|_, (at, ..)| *at != 0);
                        world.picks[0] = 0;
                    }
                    let at = world.pick();
                    let took_us = service_us / 2 + rng.below(service_us);
                    world.send(at, (at != 0 || !stopped).then_some(took_us), Class::Ok);
                    world.advance(rate_us);
                    if n > 1_000 && world.now_us - 1_000 * rate_us > SILENCE_CANARY_US {
                        break;
                    }
                }
                let picks = world.picks[0];
                assert!(picks <= 2, "{policy:?} rate {rate_us} service {service_us} seed {seed}: {picks}");
            }
        }
    }
}

#[test]
fn calls_that_time_out_unanswered_do_not_buy_the_endpoint_new_ones() {
    let mut world = World::new(Policy::LeastLoad, &[100; 3], 1);
    for n in 0..3_000u64 {
        let at = world.pick();
        if at == 0 {
            world.send(at, Some(200 * MS), Class::Deadline);
        } else {
            world.send(at, Some(2 * MS), Class::Ok);
        }
        world.advance(MS);
        assert!(n < 100 || world.picks[0] <= 2, "{:?}", world.picks);
    }
}

#[test]
fn a_stalled_endpoint_is_suspected_once_and_forgiven_at_its_first_word() {
    let mut world = World::new(Policy::RoundRobin, &[100; 3], 1);
    world.send(0, None, Class::Ok);
    world.send(0, None, Class::Ok);
    world.advance(10 * MS);
    world.send(1, Some(MS), Class::Ok);
    world.advance(100 * MS);
    assert!(world.picker.is_stalled(&world.peers[0], world.now_us));
    for _ in 0..6 {
        assert_ne!(world.pick(), 0);
    }
    assert!(world.fleet.take_alarm() && !world.fleet.take_alarm());
    let named = |world: &World| world.picker.survey(world.now_us).map(|c| c.item).collect::<Vec<_>>();
    assert_eq!(named(&world), [0]);
    assert_eq!(named(&world), Vec::<usize>::new());
    assert!(world.peers[0].is_aside());
    world.picker.spoke(&world.peers[0], world.now_us);
    assert!(!world.picker.is_stalled(&world.peers[0], world.now_us) && !world.peers[0].is_aside());
}

#[test]
fn a_call_that_times_out_unanswered_is_suspicious_once() {
    let mut world = World::new(Policy::RoundRobin, &[100; 3], 1);
    world.send(0, None, Class::Ok);
    world.advance(10 * MS);
    world.send(1, Some(MS), Class::Ok);
    world.advance(500 * MS);
    let end = |world: &World| world.picker.ended(&world.peers[0], Class::Deadline, Some(1), false, None, world.now_us);
    assert_eq!(end(&world), Some(Suspicion::Silence));
    assert_eq!(end(&world), None);
}

#[test]
fn a_stalled_endpoint_gets_one_call_now_and_then() {
    let mut world = World::new(Policy::RoundRobin, &[100; 3], 1);
    world.send(0, None, Class::Ok);
    world.send(0, None, Class::Ok);
    for _ in 0..1_600 {
        let at = world.pick();
        world.send(at, (at != 0).then_some(MS), Class::Ok);
        world.advance(10 * MS);
    }
    // Sixteen seconds: at 5, 10 and 15.
    let picks = world.picks[0];
    assert!((2..=6).contains(&picks), "{picks}");
}

#[test]
fn silence_of_all_is_nobodys() {
    let mut world = World::new(Policy::RoundRobin, &[100; 3], 1);
    for _ in 0..30 {
        let at = world.pick();
        world.send(at, None, Class::Ok);
        world.advance(100 * MS);
    }
    assert_eq!(world.picks, [10, 10, 10]);
}

#[test]
fn a_burst_does_not_go_where_an_answer_is_late() {
    for policy in ALL {
        let mut world = World::new(policy, &[100; 4], 1);
        world.send(1, Some(2 * MS), Class::Ok);
        world.send(0, None, Class::Ok);
        world.advance(10 * MS);
        for _ in 0..40 {
            let at = world.pick();
            world.send(at, Some(2 * MS), Class::Ok);
        }
        assert_eq!(world.picks[0], 0, "{policy:?}");
        // A single late answer is forgiven in the end: perhaps that call waits for something.
        world.advance(PARDON_US);
        let again = (0..8).filter(|_| world.pick() == 0).count();
        assert!(again > 0, "{policy:?}");
    }
}

#[test]
fn a_call_given_up_in_haste_is_no_evidence() {
    let mut world = World::new(Policy::RoundRobin, &[100; 2], 1);
    for _ in 0..100 {
        let at = world.pick();
        world.send(at, Some(MS), Class::Cancelled);
        world.advance(2 * MS);
    }
    assert_eq!(world.peers[0].unanswered().0 + world.peers[1].unanswered().0, 0);
    let at = world.pick();
    world.send(at, Some(400 * MS), Class::Cancelled);
    world.advance(500 * MS);
    assert_eq!(world.peers[at].unanswered().0, 1);
}

#[test]
fn five_failures_in_a_row_put_aside_and_single_calls_find_out() {
    for policy in ALL {
        let mut world = World::new(policy, &[100; 6], 5);
        let mut canaries = Vec::new();
        for n in 0..20_000u64 {
            let at = world.pick();
            let class = if at == 0 { Class::Endpoint } else { Class::Ok };
            if at == 0 {
                canaries.push(n);
            }
            world.send(at, Some(MS / 2), class);
            world.advance(MS);
        }
        // Five to begin with, then after about 1, 3 and 7 and 15 s.
        let failed = canaries.len();
        assert!((7..=10).contains(&failed), "{policy:?}: {canaries:?}");
    }
}

#[test]
fn after_a_fault_of_all_everybody_is_back_within_two_seconds() {
    for policy in ALL {
        let mut world = World::new(policy, &[100; 6], 5);
        let (from_us, until_us) = (1_000 * MS, 21_000 * MS);
        while world.now_us < until_us + 2_000 * MS {
            let at = world.pick();
            let class = if (from_us..until_us).contains(&world.now_us) { Class::Endpoint } else { Class::Ok };
            world.send(at, Some(MS / 2), class);
            world.advance(MS);
            if world.now_us > from_us + 1_000 * MS && world.now_us < until_us {
                assert_eq!(world.peers.iter().filter(|p| p.is_aside()).count(), 3, "{policy:?}");
            }
        }
        assert!(world.peers.iter().all(|p| !p.is_aside()), "{policy:?}");
    }
}

#[test]
fn an_endpoint_that_recovers_gets_its_share_again() {
    let mut world = World::new(Policy::LeastLoad, &[100; 4], 5);
    for n in 0..10_000u64 {
        let at = world.pick();
        let class = if at == 0 && n < 500 { Class::Endpoint } else { Class::Ok };
        world.send(at, Some(MS / 2), class);
        world.advance(MS);
        if n == 5_000 {
            world.picks = vec![0; 4];
        }
    }
    assert!((world.share(0) - 0.25).abs() < 0.03, "{:?}", world.picks);
}

#[test]
fn failing_fast_attracts_no_traffic() {
    let mut world = World::new(Policy::LeastLoad, &[100; 100], 5);
    let mut failed = 0u32;
    for _ in 0..50_000 {
        let at = world.pick();
        if at < 2 {
            failed += 1;
            world.send(at, Some(100), Class::Endpoint);
        } else {
            world.send(at, Some(40 * MS), Class::Ok);
        }
        world.advance(MS / 2);
    }
    // Evenly spread it would be a thousand.
    assert!(failed <= 20, "{failed}");
}

#[test]
fn at_most_half_are_aside_and_two_always_stay() {
    for (count, wanted) in [(1, 0), (2, 0), (3, 1), (4, 2), (7, 3), (10, 5)] {
        let mut world = World::new(Policy::RoundRobin, &vec![100; count], 5);
        for _ in 0..1_000 {
            let at = world.pick();
            world.send(at, Some(10), Class::Endpoint);
            world.advance(100);
        }
        let aside = world.peers.iter().filter(|p| p.breaker.is_aside()).count();
        assert_eq!(aside, wanted, "of {count}");
    }
}

#[test]
fn callers_mistakes_and_cancellations_put_nobody_aside() {
    for class in [Class::Caller, Class::Cancelled, Class::Overload] {
        let mut world = World::new(Policy::RoundRobin, &[100; 6], 5);
        for _ in 0..200 {
            let at = world.pick();
            world.send(at, Some(10), class);
            world.advance(100);
        }
        assert!(world.peers.iter().all(|p| !p.breaker.is_aside()), "{class:?}");
    }
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

/// A picker over endpoints of these capacities, that has heard these words of load.
fn told(capacities: &[u32], words: &[(usize, u32)]) -> World {
    let mut world = World::new(Policy::LeastLoad, &vec![100; capacities.len()], 1);
    let offers = world.peers.iter().zip(capacities).enumerate().map(|(item, (peer, &capacity_milli))| Offer {
        peer: peer.clone(),
        weight: 100,
        capacity_milli,
        priority: 0,
        ready: true,
        item,
    });
    world.picker = Picker::new(Policy::LeastLoad, world.fleet.clone(), offers);
    for (at, rif) in words {
        world.picker.heard(&world.peers[*at], Said::Rif(*rif), world.now_us, world.now_us);
    }
    world
}

#[test]
fn a_word_of_load_is_good_for_one_call_and_the_least_load_per_capacity_is_used_first() {
    let mut world = told(&[1_000, 1_000, 4_000, 1_000], &[(0, 9), (1, 4), (2, 11), (3, 40), (3, 40), (3, 40)]);
    // (11 + 1) / 4 = 3 comes before 4 + 1, and that before 9 + 1; at 40 nothing is better than a guess.
    assert_eq!([world.pick(), world.pick(), world.pick()], [2, 1, 0]);
}

#[test]
fn an_endpoint_that_says_it_is_idle_gets_twice_its_share_at_most() {
    for seed in 0..5 {
        let mut world = World::new(Policy::LeastLoad, &[100; 20], seed);
        for n in 0..20_000_u64 {
            let at = world.pick();
            world.peers[at].sent(world.now_us);
            world.now_us += MS;
            let says = if at == 0 { 0 } else { 5 + (n % 3) as u32 };
            world.picker.answered(&world.peers[at], world.now_us - MS, world.now_us);
            let _ = world.picker.ended(
                &world.peers[at],
                Class::Ok,
                Some(world.now_us - MS),
                true,
                Some(says),
                world.now_us,
            );
        }
        assert!(world.share(0) <= 2.1 / 20.0, "{:?}", world.share(0));
    }
}

#[test]
fn an_endpoint_that_starts_slowly_gets_twice_its_share_at_most_by_its_own_word() {
    for weight in [1, 5, 10, 25, 50] {
        // Of each of a hundred clients the first calls to twenty endpoints, of which one starts and says that it is idle.
        let (mut gets, calls) = (0, 1_000);
        for seed in 0..100 {
            let mut weights = [100; 20];
            weights[0] = weight;
            let mut world = World::new(Policy::LeastLoad, &weights, seed);
            for n in 0..calls {
                let at = world.pick();
                world.peers[at].sent(world.now_us);
                world.now_us += MS;
                let (peer, sent_us) = (&world.peers[at], world.now_us - MS);
                let says = if at == 0 { 0 } else { 5 + (n % 3) as u32 };
                world.picker.answered(peer, sent_us, world.now_us);
                let _ = world.picker.ended(peer, Class::Ok, Some(sent_us), true, Some(says), world.now_us);
            }
            gets += world.picks[0];
        }
        let share = f64::from(weight) / f64::from(1_900 + weight);
        let got = gets as f64 / (100 * calls) as f64 / share;
        assert!(got <= 2.5, "weight {weight}: {got} times its share");
    }
}

#[test]
fn an_idle_endpoint_is_found_though_all_that_was_heard_is_of_the_loaded_one() {
    for (seed, asks) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut world = World::new(Policy::LeastLoad, &[100; 2], seed);
        world.fleet.set_asks(asks);
        for _ in 0..400 {
            let picker = &world.picker;
            let picked = match picker.pick_or_ask(None, world.now_us, &mut world.rng, &[]).expect("an endpoint") {
                Pick::Sure(chosen) => chosen,
                Pick::Ask(pair) => {
                    let asked = pair.map(|c| (&*c.peer, Said::Rif(if c.item == 0 { 20 } else { 0 })));
                    picker.settle(asked, world.now_us, &mut world.rng, &[]).expect("one of them")
                }
            };
            let at = picked.item;
            world.picks[at] += 1;
            if let Some(aside) = picker.wander(&mut world.rng) {
                let rif = if aside.item == 0 { 20 } else { 0 };
                picker.heard(&aside.peer, Said::Rif(rif), world.now_us, world.now_us);
            }
            world.peers[at].sent(world.now_us);
            world.now_us += 10 * MS;
            let (sent_us, says) = (world.now_us - 10 * MS, if at == 0 { 20 } else { 0 });
            world.picker.answered(&world.peers[at], sent_us, world.now_us);
            let _ = world.picker.ended(&world.peers[at], Class::Ok, Some(sent_us), true, Some(says), world.now_us);
        }
        assert!(world.picks[0] <= 100, "seed {seed}, asks {asks}: {:?}", world.picks);
    }
}

#[test]
fn absurd_words_of_load_never_leave_a_call_without_an_endpoint() {
    let absurd = [0, 1, 16_383, 16_384, u32::MAX];
    for capacities in [[0, 1, u32::MAX], [1_000, 1_000, 1_000], [1, 1, 1]] {
        let mut world = told(&capacities, &[]);
        let mut rng = Rng::from_seed(3);
        for _ in 0..5_000 {
            let at = world.pick();
            let rif = absurd[rng.below(5) as usize];
            // Time jumps both ways.
            world.now_us = rng.next_u64() >> rng.below(40);
            world.picker.heard(&world.peers[at], Said::Rif(rif), world.now_us, world.now_us);
            let _ =
                world.picker.ended(&world.peers[at], Class::Ok, Some(rng.next_u64()), true, Some(rif), world.now_us);
        }
    }
}

#[test]
fn two_are_asked_when_nothing_is_known_and_the_call_goes_to_the_one_with_less() {
    let world = told(&[1_000; 4], &[]);
    let mut rng = Rng::from_seed(1);
    world.fleet.set_asks(true);
    // An idle fleet is not asked.
    assert!(matches!(world.picker.pick_or_ask(None, 1, &mut rng, &[]), Some(Pick::Sure(_))));
    for peer in &world.peers {
        world.picker.heard(peer, Said::Rif(6), 1, 1);
    }
    let later_us = 2_000_000;
    let Some(Pick::Ask([a, b])) = world.picker.pick_or_ask(None, later_us, &mut rng, &[]) else { panic!("asks") };
    let chosen =
        world.picker.settle([(&a.peer, Said::Rif(4)), (&b.peer, Said::Rif(3))], later_us, &mut rng, &[]).expect("one");
    assert_eq!((chosen.item, chosen.peer.in_flight()), (b.item, 1));
    // What the other said is known from now on; what the chosen one said is used.
    assert_eq!(world.picker.pick_for(None, later_us, &mut rng, &[]).map(|c| c.item), Some(a.item));
    let Some(Pick::Ask([a, b])) = world.picker.pick_or_ask(None, later_us, &mut rng, &[]) else { panic!("asks") };
    assert!(
        world.picker.settle([(&a.peer, Said::Nothing), (&b.peer, Said::Nothing)], later_us, &mut rng, &[]).is_some()
    );
}

#[test]
fn to_have_been_asked_is_no_merit() {
    let settle = |said: [Said; 2], before: &dyn Fn(&World)| {
        let world = told(&[1_000; 4], &[]);
        for _ in 0..64 {
            world.peers[2..].iter().for_each(|peer| world.picker.heard(peer, Said::Rif(6), 1, 1));
        }
        before(&world);
        let asked = [(&*world.peers[0], said[0]), (&*world.peers[1], said[1])];
        world.picker.settle(asked, 2_000_000, &mut Rng::from_seed(1), &[]).expect("one").item
    };
    let nothing = |_: &World| {};
    // The usual is six.
    assert_eq!(settle([Said::Rif(9), Said::Unasked], &nothing), 1);
    assert_eq!(settle([Said::Unasked, Said::Rif(9)], &nothing), 0);
    assert_eq!(settle([Said::Rif(5), Said::Unasked], &nothing), 0);
    assert_eq!(settle([Said::Unasked, Said::Rif(5)], &nothing), 1);
    assert_eq!(settle([Said::Rif(9), Said::Nothing], &nothing), 0, "who was asked and is silent is busy");
    // What it told lately counts for more than what is usual, and so do calls of its own.
    let told_more = |world: &World| world.picker.heard(&world.peers[1], Said::Rif(12), 1_999_999, 2_000_000);
    assert_eq!(settle([Said::Rif(9), Said::Unasked], &told_more), 0);
    let busy = |world: &World| (0..12).for_each(|_| assert!(world.peers[1].begin_below(u32::MAX)));
    assert_eq!(settle([Said::Rif(9), Said::Unasked], &busy), 0);
}

#[test]
fn what_another_thread_heard_is_used_before_anybody_is_asked() {
    let mut world = told(&[1_000; 4], &[]);
    let fleet = Arc::new(Fleet::with_lanes(1, LANES_MAX));
    fleet.set_asks(true);
    world.picker = picker(Policy::LeastLoad, &fleet, &world.peers, &[100; 4]);
    // A mean of six, of which nothing is fresh.
    world.peers.iter().for_each(|peer| world.picker.heard(peer, Said::Rif(6), 1, 1));
    let (own, now_us) = (fleet.lane().number(), 2_000_000);
    let elsewhere = |peer: &Peer, rif| {
        // Threads take lanes in turns: the first or the second has another one.
        let is_other = || {
            let is_other = fleet.lane().number() != own;
            if is_other {
                world.picker.heard(peer, Said::Rif(rif), now_us, now_us);
            }
            is_other
        };
        while !std::thread::scope(|scope| scope.spawn(is_other).join().expect("no panic")) {}
    };
    let mut rng = Rng::from_seed(1);
    elsewhere(&world.peers[2], 1);
    let picked = world.picker.pick_or_ask(None, now_us, &mut rng, &[]).expect("one");
    assert!(matches!(&picked, Pick::Sure(chosen) if chosen.item == 2), "{picked:?}");
    // Once only, and only if it is as good as what this thread would take of its own.
    assert!(matches!(world.picker.pick_or_ask(None, now_us, &mut rng, &[]), Some(Pick::Ask(_))));
    elsewhere(&world.peers[3], 20);
    assert!(matches!(world.picker.pick_or_ask(None, now_us, &mut rng, &[]), Some(Pick::Ask(_))));
}

#[test]
fn who_wants_no_call_is_worse_than_who_says_nothing() {
    for seed in 0..20 {
        let mut world = told(&[1_000; 6], &[(0, 6), (1, 6), (2, 6), (3, 6), (4, 6), (5, 6)]);
        let mut rng = Rng::from_seed(seed);
        world.now_us = 2_000_000;
        let settle = |world: &World, said: [Said; 2], rng: &mut Rng| {
            let asked = [(&*world.peers[0], said[0]), (&*world.peers[1], said[1])];
            world.picker.settle(asked, world.now_us, rng, &[]).expect("one").item
        };
        // A call of its own makes the silent one look busier.
        assert!(world.peers[1].begin_below(u32::MAX));
        assert_eq!(settle(&world, [Said::Unwilling, Said::Nothing], &mut rng), 1);
        assert_eq!(settle(&world, [Said::Nothing, Said::Unwilling], &mut rng), 0);
        let somebody = settle(&world, [Said::Unwilling, Said::Unwilling], &mut rng);
        assert!(somebody > 1, "neither, while there are others: {somebody}");
        // What it told before counts no more, until it tells something else.
        world.now_us += MS;
        world.picker.heard(&world.peers[3], Said::Rif(0), world.now_us, world.now_us);
        world.picker.heard(&world.peers[3], Said::Unwilling, world.now_us, world.now_us);
        assert_ne!(world.pick(), 3);
        world.picker.heard(&world.peers[3], Said::Rif(0), world.now_us, world.now_us);
        assert_eq!(world.pick(), 3);
    }
}

#[test]
fn a_word_counts_from_when_it_was_said() {
    let (said_us, round_us) = (1_000, 64 << 24);
    for now_us in [said_us + 6 * MS, said_us + 60_000 * MS, said_us + round_us] {
        let world = told(&[1_000; 3], &[]);
        for _ in 0..64 {
            world.picker.heard(&world.peers[0], Said::Rif(9), now_us, now_us);
        }
        let expected = world.fleet.rif_milli_mean();
        // The head of a stream whose second message came as late as this.
        world.picker.heard(&world.peers[1], Said::Rif(0), said_us, now_us);
        assert_eq!((world.peers[1].told(now_us, u64::MAX), world.fleet.rif_milli_mean()), (None, expected));
        assert!(world.fleet.lane().tokens(now_us, u64::MAX).all(|token| token.mark == Mark::of(0)), "{now_us}");
    }
    // One that is not so late counts, but says nothing against a newer one.
    let world = told(&[1_000; 3], &[]);
    world.picker.heard(&world.peers[1], Said::Rif(5), 5 * MS, 5 * MS);
    world.picker.heard(&world.peers[1], Said::Rif(0), 2 * MS, 6 * MS);
    assert_eq!(world.peers[1].told(6 * MS, MS), Some(5));
    let ages: Vec<u64> =
        world.fleet.lane().tokens(6 * MS, u64::MAX).map(|token| (token.age_us + MS / 2) / MS).collect();
    assert_eq!((ages.len(), ages.iter().max()), (2, Some(&4)));
}

#[test]
fn a_newcomer_is_given_few_first_calls_however_many_clients_there_are() {
    let mut first_calls = 0;
    for seed in 0..1_000 {
        let world = World::new(Policy::LeastLoad, &[100; 200], seed);
        world.fleet.set_clients(1_000);
        world.peers[7].mark_fresh();
        let offers = world.peers.iter().enumerate().map(|(item, peer)| Offer {
            peer: peer.clone(),
            weight: 100,
            capacity_milli: 0,
            priority: 0,
            ready: true,
            item,
        });
        let picker = Picker::new(Policy::LeastLoad, world.fleet.clone(), offers);
        let mut rng = Rng::from_seed(seed);
        first_calls += usize::from(picker.pick(1, &mut rng, &[]).is_some_and(|c| c.item == 7));
    }
    assert!((1..20).contains(&first_calls), "{first_calls} of 1,000 clients");
}

#[test]
fn a_count_of_picks_that_comes_round_silences_nobody() {
    let peer = Peer::new(1);
    for start in [0_u32, 0x4000_0000, 0x8000_0000, 0x9000_0000, u32::MAX - 1_000] {
        let (mut picks, interval) = (start, 320);
        for _ in 0..10_000 {
            peer.picked(0, picks, interval);
            picks = picks.wrapping_add(64);
        }
        assert!((1..=interval * (WORDS_AHEAD + 1)).contains(&peer.ahead(0, picks, interval)), "{start:x}");
        // Left alone, it is soon as if nothing had been.
        let later = picks.wrapping_add(interval * (WORDS_AHEAD + 1));
        assert_eq!(peer.ahead(0, later, interval), 0, "{start:x}");
    }
}
