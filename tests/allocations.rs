//! A pick allocates nothing, by any policy, nor does the end of a call: a memory allocator under load is where the slowest calls
//! come from.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::sync::Arc;

use lookaside_sdk::picker::{Class, Fleet, Key, Keyed, Offer, Peer, Pick, Picker, Policy, Rings, Rng, Said};

#[test]
fn a_pick_and_the_end_of_its_call_allocate_nothing() {
    let names: Vec<String> = (0..50).map(|n| format!("10.0.0.{n}:50051")).collect();
    let keyed = names.iter().zip(0..).map(|(key, id)| Keyed { id, key, priority: 0, weight: 100 });
    let rings = Rings::new(7, 1_250, keyed, &Rings::default());
    for policy in [Policy::LeastLoad, Policy::WeightedRoundRobin, Policy::RoundRobin, Policy::RingHash] {
        let offer = |n| Offer {
            peer: Arc::new(Peer::new(n)),
            weight: 100,
            capacity_milli: 0,
            priority: 0,
            ready: true,
            item: n,
        };
        let picker = Picker::new(policy, Arc::new(Fleet::new(1)), (0..50).map(offer)).with_rings(&rings);
        let mut rng = Rng::from_seed(1);
        let allocated = allocation_counter::measure(|| {
            for now_us in 1..2_000_u64 {
                let key = Key::of(now_us.to_le_bytes());
                let chosen = picker.pick_for(Some(key), now_us, &mut rng, &[3, 7]).unwrap();
                chosen.peer.sent(now_us);
                // Every fourth goes wrong, and one in a hundred never ends.
                let class = if now_us % 4 == 0 { Class::Endpoint } else { Class::Ok };
                if now_us % 100 != 0 {
                    picker.answered(&chosen.peer, now_us, now_us + 5);
                    picker.ended(&chosen.peer, class, Some(now_us), true, Some(3), now_us + 5);
                }
            }
        });
        assert_eq!(allocated.count_total, 0, "{policy:?}: {allocated:?}");
    }
}

#[test]
fn a_pick_between_two_that_are_asked_allocates_nothing() {
    let fleet = Arc::new(Fleet::with_lanes(1, 4));
    fleet.set_asks(true);
    let offer =
        |n| Offer { peer: Arc::new(Peer::new(n)), weight: 100, capacity_milli: 0, priority: 0, ready: true, item: n };
    let picker = Picker::new(Policy::LeastLoad, fleet, (0..50).map(offer));
    let mut rng = Rng::from_seed(1);
    let mut asked = 0;
    let allocated = allocation_counter::measure(|| {
        // Half a second from one call to the next: what the one before told is old.
        for now_us in (1_000_000..1_000_000_000).step_by(500_000) {
            let chosen = match picker.pick_or_ask(None, now_us, &mut rng, &[3]).unwrap() {
                Pick::Sure(chosen) => chosen,
                Pick::Ask([a, b]) => {
                    asked += 1;
                    let second = if asked % 3 > 0 { Said::Rif(9) } else { Said::Nothing };
                    let said = [(&*a.peer, Said::Rif(7)), (&*b.peer, second)];
                    picker.settle(said, now_us + 300, &mut rng, &[3]).unwrap()
                }
            };
            chosen.peer.sent(now_us);
            picker.answered(&chosen.peer, now_us, now_us + 40_000);
            picker.ended(&chosen.peer, Class::Ok, Some(now_us), true, Some(8), now_us + 40_000);
            let _ = picker.wander(&mut rng);
        }
    });
    assert!(asked > 500, "{asked}");
    assert_eq!(allocated.count_total, 0, "{allocated:?}");
}

#[cfg(feature = "transport")]
#[test]
fn reading_what_a_response_tells_of_load_allocates_nothing() {
    let value = b"OQAAAAAAAClAQg4KA3JpZhEAAAAAAAAcQA";
    let allocated = allocation_counter::measure(|| assert_eq!(lookaside_sdk::orca::rif(value), Some(7)));
    assert_eq!(allocated.count_total, 0, "{allocated:?}");
}
