//! What a pick costs, and the end of its call, with 10 to 10,000 endpoints; the slowest of single picks; and what threads that
//! pick at the same time cost each other. Each end tells of load, so that the next pick has a token to spend.
//! `cargo bench -p lookaside-sdk --bench pick`, or with `-- single` or `-- threads` one of the latter two.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark: what cannot be ends it")]

use std::{
    collections::VecDeque,
    fs,
    hint::black_box,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, criterion_group};
use lookaside_sdk::picker::{Class, Fleet, Key, Keyed, Offer, Peer, Picker, Policy, Rings, Rng};

const SIZES: [u64; 4] = [10, 100, 1_000, 10_000];
/// Calls in flight while picks are measured, so that choices compare something.
const IN_FLIGHT: usize = 64;

fn picker(policy: Policy, size: u64, lanes: usize) -> Picker<u64> {
    let fleet = Arc::new(Fleet::with_lanes(1, lanes));
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
            let picker = picker(policy, size, 1);
            let mut rng = Rng::from_seed(1);
            let mut now_us = 1;
            let keys: Vec<Key> = (0..1_024_u32).map(|n| Key::of(n.to_le_bytes())).collect();
            let mut call = |now_us: u64| {
                let key = keys.get(now_us as usize % 1_024).copied().filter(|_| policy == Policy::RingHash);
                picker.pick_for(key, now_us, &mut rng, &[]).unwrap().peer.clone()
            };
            let mut in_flight: VecDeque<_> = (0..IN_FLIGHT as u64).map(&mut call).collect();
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

/// What it costs to read the load out of a response: a report with three numbers beside ours.
#[cfg(feature = "transport")]
fn trailer(bench: &mut Criterion) {
    let value = b"CQAAAAAAAOA/MQAAAAAAAFlAOQAAAAAAANA/Qg4KA3JpZhEAAAAAAAAcQA";
    assert_eq!(lookaside_sdk::orca::rif(value), Some(7));
    bench.bench_function("trailer", |bench| bench.iter(|| lookaside_sdk::orca::rif(black_box(value))));
}

#[cfg(not(feature = "transport"))]
fn trailer(_: &mut Criterion) {}

/// Picks of one thread, with so many calls in flight.
struct Calls<'a> {
    picker: &'a Picker<u64>,
    rng: Rng,
    now_us: u64,
    in_flight: VecDeque<Arc<Peer>>,
}

impl<'a> Calls<'a> {
    fn new(picker: &'a Picker<u64>, seed: u64) -> Self {
        let mut calls = Self { picker, rng: Rng::from_seed(seed), now_us: 1, in_flight: VecDeque::new() };
        (0..IN_FLIGHT).for_each(|_| calls.begin());
        calls
    }

    fn begin(&mut self) {
        self.now_us += 1;
        let picked = self.picker.pick(self.now_us, &mut self.rng, &[]).unwrap();
        picked.peer.sent(self.now_us);
        self.in_flight.push_back(picked.peer.clone());
    }

    fn end(&mut self) {
        let ended = self.in_flight.pop_front().unwrap();
        let (told, sent_us) = (Some((self.now_us % 8) as u32), self.now_us.saturating_sub(IN_FLIGHT as u64));
        self.picker.answered(&ended, sent_us, self.now_us);
        self.picker.ended(&ended, Class::Ok, Some(sent_us), true, told, self.now_us);
    }
}

/// The slowest picks, each timed by itself; what reading the clock takes is taken off.
fn single_picks() {
    const PICKS: usize = 1_000_000;
    let slowest = |mut times: Vec<u128>| {
        times.sort_unstable();
        [PICKS / 2, PICKS - PICKS / 100, PICKS - PICKS / 1_000].map(|at| times[at])
    };
    let clock = slowest((0..PICKS).map(|_| Instant::now().elapsed().as_nanos()).collect())[0];
    for size in SIZES {
        let picker = picker(Policy::LeastLoad, size, 1);
        let mut calls = Calls::new(&picker, 1);
        let time = |_| {
            calls.end();
            calls.now_us += 1;
            let began = Instant::now();
            let picked = picker.pick(calls.now_us, &mut calls.rng, &[]);
            let took = began.elapsed().as_nanos();
            let picked = black_box(picked).unwrap();
            picked.peer.sent(calls.now_us);
            calls.in_flight.push_back(picked.peer.clone());
            took.saturating_sub(clock)
        };
        let [p50, p99, p999] = slowest((0..PICKS).map(time).collect());
        println!("single picks among {size}: p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns (clock {clock} ns)");
    }
}

/// Time that the calling thread has spent on a processor: what others do on this machine does not count.
fn on_cpu() -> Duration {
    let spent = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(spent.split(' ').next().unwrap().parse().unwrap())
}

/// What a pick and the end of its call cost each of so many threads: with a lane each, and all in one.
fn many_threads() {
    const CALLS: u32 = 1_000_000;
    for (threads, lanes) in [(1, 1), (2, 2), (2, 1), (16, 16), (16, 1)] {
        let picker = picker(Policy::LeastLoad, 100, lanes);
        let start = Barrier::new(threads);
        let spent: Duration = thread::scope(|scope| {
            let run = |seed| {
                let (picker, start) = (&picker, &start);
                scope.spawn(move || {
                    let mut calls = Calls::new(picker, seed);
                    start.wait();
                    let began = on_cpu();
                    for _ in 0..CALLS {
                        calls.end();
                        calls.begin();
                    }
                    on_cpu() - began
                })
            };
            let threads: Vec<_> = (0..threads as u64).map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let each = spent / (CALLS * threads as u32);
        println!("{threads} threads in {lanes} lanes: {each:?} of processor time for a pick and the end of its call");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = pick, trailer
}
fn main() {
    benches();
    let named: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let is_wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);
    if is_wanted("single") {
        single_picks();
    }
    if is_wanted("threads") {
        many_threads();
    }
    Criterion::default().configure_from_args().final_summary();
}
