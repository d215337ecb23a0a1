//! What endpoints say of their load, with responses and when they are asked.

use super::*;

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
