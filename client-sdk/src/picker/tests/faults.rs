//! Endpoints that fail, stall or are full of failures: who is left alone, and for how long.

use super::*;

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
