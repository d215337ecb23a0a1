//! What a pick costs, and the end of its call, with 10 to 10,000 endpoints. `cargo bench -p lookaside-sdk`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark: what cannot be ends it")]

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lookaside_sdk::picker::{Class, Fleet, Key, Keyed, Offer, Peer, Picker, Policy, Rings, Rng};

const SIZES: [u64; 4] = [10, 100, 1_000, 10_000];
/// Calls in flight while picks are measured, so that choices compare something.
const IN_FLIGHT: usize = 64;

fn picker(policy: Policy, size: u64) -> Picker<u64> {
    let fleet = Arc::new(Fleet::new(1));
    let offer =
        |n| Offer { peer: Arc::new(Peer::new(n)), weight: 100, capacity_milli: 0, priority: 0, ready: true, item: n };
    let names: Vec<String> = (0..size).map(|n| format!("10.0.{}.{}:50051", n >> 8, n & 255)).collect();
    let keyed = names.iter().zip(0..).map(|(key, id)| Keyed { id, key, priority: 0, weight: 100 });
    let rings = Rings::new(7, 1_250, keyed, &Rings::default());
    Picker::new(policy, fleet, (0..size).map(offer)).with_rings(&rings)
}

fn pick(bench: &mut Criterion) {
    for policy in [Policy::LeastLoad, Policy::WeightedRoundRobin, Policy::RoundRobin, Policy::RingHash] {
        let mut group = bench.benchmark_group(format!("pick {policy:?}"));
        for size in SIZES {
            let picker = picker(policy, size);
            let mut rng = Rng::from_seed(1);
            let mut now_us = 1;
            let keys: Vec<Key> = (0..1_024_u32).map(|n| Key::of(n.to_le_bytes())).collect();
            let mut call = |now_us: u64| {
                let key = keys.get(now_us as usize % 1_024).copied().filter(|_| policy == Policy::RingHash);
                picker.pick_for(key, now_us, &mut rng, &[]).unwrap().peer.clone()
            };
            let mut in_flight: std::collections::VecDeque<_> = (0..IN_FLIGHT as u64).map(&mut call).collect();
            group.bench_function(BenchmarkId::from_parameter(size), |bench| {
                bench.iter(|| {
                    now_us += 1;
                    let peer = black_box(call(now_us));
                    in_flight.push_back(peer);
                    let ended = in_flight.pop_front().unwrap();
                    picker.ended(&ended, Class::Ok, Some(now_us), true, Some((now_us % 8) as u32), now_us)
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = pick
}
criterion_main!(benches);
