use lookaside_sdk::picker::Rng;

use super::*;
use crate::{
    chance::{Stream, exponential, size, stream},
    scenario::Size,
};

const MEAN_US: f64 = 50_000.0;

fn endpoint(model: Model, cores: u32, speed: f64, queue_max: u32) -> Endpoint {
    Endpoint::new(&Group { name: "e".into(), count: 1, model, cores, speed, queue_max, zone: String::new() })
}

/// Time between calls for this share of what it can do.
fn gap(endpoint: &Endpoint, load: f64, rng: &mut Rng) -> f64 {
    exponential(rng) * MEAN_US / (load * f64::from(endpoint.cores) * endpoint.speed)
}

/// Mean time from arrival to end over so many calls, in mean service times.
fn sojourn(endpoint: &mut Endpoint, load: f64, sizes: Size, calls: usize) -> f64 {
    let mut rng = stream(11, Stream::Calls, 0);
    let mut arrived_us = vec![0; calls];
    let (mut now, mut took_us, mut ended, mut plan) = (0.0, 0.0, 0, None);
    for call in 0..calls {
        now += gap(endpoint, load, &mut rng);
        let now_us = now as u64;
        while let Some((at_us, generation)) = plan.filter(|(at_us, _)| *at_us <= now_us) {
            let done = endpoint.finish(generation, at_us).unwrap();
            took_us += (at_us - arrived_us[done as usize]) as f64;
            ended += 1;
            plan = endpoint.plan(at_us);
        }
        arrived_us[call] = now_us;
        assert!(endpoint.take(call as u32, size(sizes, MEAN_US, &mut rng), now_us));
        plan = endpoint.plan(now_us);
    }
    took_us / f64::from(ended) / MEAN_US
}

/// Erlang's C: the share of calls that wait.
fn waits(cores: u32, load: f64) -> f64 {
    let offered = load * f64::from(cores);
    let terms = (1..=cores).scan(1.0, |term, n| {
        *term *= offered / f64::from(n);
        Some(*term)
    });
    let terms: Vec<f64> = std::iter::once(1.0).chain(terms).collect();
    let last = terms[cores as usize] / (1.0 - load);
    last / (terms[..cores as usize].iter().sum::<f64>() + last)
}

#[test]
fn calls_take_as_long_as_the_theory_of_queues_says() {
    for (model, cores, load) in
        [(Model::Fcfs, 1, 0.7), (Model::Fcfs, 4, 0.8), (Model::Ps, 1, 0.7), (Model::Ps, 4, 0.8), (Model::Ps, 8, 0.5)]
    {
        let expected = 1.0 + waits(cores, load) / f64::from(cores) / (1.0 - load);
        let found = sojourn(&mut endpoint(model, cores, 1.0, u32::MAX), load, Size::Exponential, 400_000);
        assert!((found / expected - 1.0).abs() < 0.03, "{model:?} {cores} {load}: {found}, not {expected}");
    }
}

#[test]
fn under_processor_sharing_only_the_mean_of_sizes_matters() {
    let all = [Size::Fixed, Size::Bimodal { long_permille: 100, factor: 10.0 }, Size::TruncatedNormal];
    for sizes in all {
        let found = sojourn(&mut endpoint(Model::Ps, 1, 1.0, 0), 0.7, sizes, 400_000);
        assert!((found * 0.3 - 1.0).abs() < 0.03, "{sizes:?}: {found}, not {}", 1.0 / 0.3);
    }
    // First come, first served: Pollaczek and Khinchine.
    let found = sojourn(&mut endpoint(Model::Fcfs, 1, 1.0, u32::MAX), 0.7, Size::Fixed, 400_000);
    assert!((found / (1.0 + 0.7 / 0.3 / 2.0) - 1.0).abs() < 0.03, "{found}");
}

#[test]
fn an_endpoint_of_twice_the_speed_takes_half_the_time() {
    let found = sojourn(&mut endpoint(Model::Ps, 4, 2.0, 0), 0.9, Size::Exponential, 100_000);
    let slower = sojourn(&mut endpoint(Model::Ps, 4, 1.0, 0), 0.9, Size::Exponential, 100_000);
    assert!((found * 2.0 / slower - 1.0).abs() < 0.001, "{found}, {slower}");
}

#[test]
fn nothing_moves_while_it_stands_still_and_then_it_goes_on() {
    let mut endpoint = endpoint(Model::Ps, 2, 1.0, 0);
    assert!(endpoint.take(7, 1_000.0, 0));
    assert_eq!(endpoint.plan(0), Some((1_000, 1)));
    endpoint.change(Condition { speed_factor: 0.0, ..Condition::default() }, 400);
    assert_eq!(endpoint.plan(400), None);
    assert_eq!(endpoint.finish(1, 1_000), None, "that plan is void");
    endpoint.change(Condition { speed_factor: 0.5, ..Condition::default() }, 5_000);
    assert_eq!(endpoint.plan(5_000), Some((6_200, 3)));
    assert_eq!(endpoint.finish(3, 6_200), Some(7));
    assert_eq!(endpoint.in_flight(), 0);
}

#[test]
fn a_full_queue_refuses_and_what_is_given_up_makes_room() {
    let mut endpoint = endpoint(Model::Fcfs, 1, 1.0, 1);
    assert!(endpoint.take(1, 1_000.0, 0) && endpoint.take(2, 1_000.0, 0) && !endpoint.take(3, 1_000.0, 0));
    assert!(endpoint.drop_call(1, 500) && !endpoint.drop_call(1, 500));
    assert!(endpoint.take(4, 1_000.0, 500));
    assert_eq!((endpoint.plan(500), endpoint.in_flight()), (Some((1_500, 1)), 2));
    assert_eq!(endpoint.crash(600), [2, 4]);
}

#[test]
fn a_report_says_how_busy_its_cores_were_and_a_liar_says_that_they_were_not() {
    let mut endpoint = endpoint(Model::Ps, 4, 1.0, 0);
    assert!(endpoint.take(1, 500_000.0, 0));
    let (at_us, generation) = endpoint.plan(0).unwrap();
    assert_eq!((at_us, endpoint.finish(generation, at_us)), (500_000, Some(1)));
    let (counters, [calls, errors, utilization]) = endpoint.report(1_000_000);
    assert_eq!((counters.completions, counters.in_flight_us, calls, errors), (1, 500_000.0, 1.0, 0.0));
    assert!((utilization - 0.125).abs() < 1e-9);
    endpoint.change(Condition { lies: true, ..Condition::default() }, 1_000_000);
    assert!(endpoint.take(2, 9e9, 1_000_000));
    let (_, [_, _, utilization]) = endpoint.report(2_000_000);
    assert_eq!((utilization, endpoint.rif(), endpoint.in_flight()), (LIE_UTILIZATION, 0, 1));
}
