//! Pick streams by the thousand: all come back at once after a restart and are served, those who go on calling notice
//! nothing, afterwards the balancer is as calm as before; and what it costs to hold them.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::time::{Duration, Instant};

use lookaside_proto::v1::{Override, OverrideAction, SetOverrideRequest, r#override::Scope};
use lookaside_tests::{
    Backends, Balancer, Client, PROCESS_MAX, Picks, SERVICE, Signal, alone, hold_for, wait_for, wait_until,
};

/// In which everybody is served again.
const RESUME_MAX: Duration = Duration::from_secs(10);

/// In which everything is as before.
const CALM_MAX: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_streams_that_come_back_at_once_are_all_served_and_nobody_else_notices() {
    const STREAMS: usize = 5_000;
    const BACKENDS: usize = 8;
    let _alone = alone().await;
    let mut balancer = Balancer::to_be_restarted("{}").await;
    let _backends = Backends::offered(&balancer, BACKENDS, &[]).await;
    balancer.wait_until_settled().await;
    let calls = Client::start(&balancer, &["--rate", "200", "--for", "10m"]);
    let picks = Picks::hold(&balancer.client, SERVICE, 250, STREAMS / 250);
    served(&picks, STREAMS, CALM_MAX).await;
    balancer.wait_for_load().await;
    wait_until(Instant::now() + Duration::from_secs(5)).await;
    let (cpu_before, memory_before) = (cpu(&balancer).await, balancer.process.resident_bytes());

    balancer.process.signal(Signal::SIGKILL);
    balancer.process.ended(PROCESS_MAX).await;
    wait_for("all streams to be lost", PROCESS_MAX, async || (picks.served() == 0).then_some(())).await;
    balancer.restart().await;
    let began = Instant::now();
    served(&picks, STREAMS, RESUME_MAX).await;
    let resumed = began.elapsed();
    let after_resumption = balancer.process.cpu();

    let (mut cpu_after, mut memory_after) = (f64::NAN, 0);
    // Sinks back as soon as what came with the herd is over; the clock stands for what the promise names.
    while began.elapsed() < CALM_MAX {
        (cpu_after, memory_after) = (cpu(&balancer).await, balancer.process.resident_bytes());
        if is_as_before(cpu_before, cpu_after) && memory_after <= memory_before + memory_before / 5 {
            break;
        }
    }
    let calm = began.elapsed();
    println!(
        "{STREAMS} streams: served again after {resumed:?} and {after_resumption:?} of CPU, {} turned away for a while; \
         calm after {calm:?}: CPU {cpu_before:.3} -> {cpu_after:.3} cores, {} -> {} KiB",
        picks.refusals(),
        memory_before >> 10,
        memory_after >> 10
    );
    assert!(is_as_before(cpu_before, cpu_after), "{cpu_before} cores before, {cpu_after} after");
    assert!(memory_after <= memory_before + memory_before / 5, "{memory_before} bytes before, {memory_after} after");
    assert_eq!((picks.fewest(), picks.losses(), picks.served()), (BACKENDS, STREAMS, STREAMS));
    let summary = calls.stop().await;
    summary.expect_no_failure();
    assert_eq!(summary.used(), BACKENDS);
}

async fn served(picks: &Picks, streams: usize, deadline: Duration) {
    wait_for("all streams to be served", deadline, async || (picks.served() == streams).then_some(())).await;
}

/// Processors that it uses, as a mean of some seconds.
async fn cpu(balancer: &Balancer) -> f64 {
    const FOR: Duration = Duration::from_secs(5);
    let (before, began) = (balancer.process.cpu(), Instant::now());
    wait_until(began + FOR).await;
    (balancer.process.cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64()
}

/// Within a quarter; a twentieth of a processor more or less is nothing on a machine with other things to do.
fn is_as_before(before: f64, after: f64) -> bool {
    after <= before * 1.25 + 0.05
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_streams_are_held_in_little_memory() {
    const STREAMS: usize = 20_000;
    const RESIDENT_BYTES_MAX: u64 = 300 << 20;
    const BYTES_PER_STREAM_MAX: u64 = 8 << 10;
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let _backends = Backends::offered(&balancer, 8, &[]).await;
    let before = balancer.process.resident_bytes();
    let began = Instant::now();
    let picks = Picks::hold(&balancer.client, SERVICE, 20, STREAMS / 20);
    served(&picks, STREAMS, CALM_MAX).await;
    let took = began.elapsed();
    // Lists, acknowledgements and a heartbeat or two.
    wait_until(Instant::now() + Duration::from_secs(7)).await;
    let after = balancer.process.resident_bytes();
    let per_stream = (after - before) / STREAMS as u64;
    // Above 4,000 a second some are asked to come back a moment later.
    println!(
        "{STREAMS} streams in {took:?}, {} turned away for a while: {} -> {} KiB, {per_stream} bytes each",
        picks.refusals(),
        before >> 10,
        after >> 10
    );
    assert!(after <= RESIDENT_BYTES_MAX && per_stream <= BYTES_PER_STREAM_MAX, "{after} bytes, {per_stream} each");
    assert_eq!((picks.served(), picks.losses()), (STREAMS, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_the_ceiling_newcomers_are_turned_away_and_who_has_a_stream_keeps_it() {
    const CEILING_MIB: u64 = 100;
    const ESTABLISHED: usize = 1_000;
    let _alone = alone().await;
    let balancer = Balancer::configured(&format!("limits: {{ memory_mib: {CEILING_MIB} }}")).await;
    let _backends = Backends::offered(&balancer, 8, &[]).await;
    let established = Picks::hold(&balancer.client, SERVICE, 2, ESTABLISHED / 2);
    served(&established, ESTABLISHED, CALM_MAX).await;
    let herd = Picks::hold(&balancer.client, SERVICE, 24, 1_000);
    wait_for("streams of the herd to be turned away", PROCESS_MAX, async || (herd.refusals() > 0).then_some(())).await;
    hold_for("a balancer below its ceiling", Duration::from_secs(5), async || {
        balancer.process.resident_bytes() <= CEILING_MIB << 20
    })
    .await;
    let resident = balancer.process.resident_bytes();
    println!("{} of the herd are served below {CEILING_MIB} MiB, at {} KiB", herd.served(), resident >> 10);
    let newcomer = balancer.cli(&["pick", SERVICE, "--balancer", &balancer.client]).await.expect(4);
    assert!(balancer.metric("lookaside_connections_refused_total", &["reason=\"memory\""]).await > 0.0, "{newcomer:?}");
    assert_eq!((established.served(), established.losses(), established.refusals()), (ESTABLISHED, 0, 0));
    balancer.cli(&["status"]).await.expect(0);
    drop(herd);
    wait_for("room again", CALM_MAX, async || {
        let newcomer = balancer.cli(&["pick", SERVICE, "--balancer", &balancer.client]).await;
        (newcomer.code == Some(0)).then_some(())
    })
    .await;
    assert_eq!((established.served(), established.losses()), (ESTABLISHED, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_connection_is_not_taken_for_a_flood() {
    const STREAMS: usize = 1_000;
    const CHANGES: usize = 60;
    let _alone = alone().await;
    let balancer = Balancer::start().await;
    let backends = Backends::offered(&balancer, 8, &[]).await;
    let picks = Picks::hold(&balancer.client, SERVICE, 1, STREAMS);
    served(&picks, STREAMS, CALM_MAX).await;
    let mut admin = balancer.admin().await;
    for change in 0..CHANGES {
        let (lists, begin) = (picks.lists(), Instant::now());
        let action = if change % 2 == 0 { OverrideAction::Drain } else { OverrideAction::Undrain };
        let order = Override {
            service: SERVICE.to_owned(),
            scope: Some(Scope::Address(backends.addresses[0].clone())),
            action: action.into(),
            reason: "a busy day".to_owned(),
            ..Override::default()
        };
        admin
            .set_override(SetOverrideRequest { r#override: Some(order), ..SetOverrideRequest::default() })
            .await
            .unwrap();
        wait_for("the change at every client", PROCESS_MAX, async || {
            (picks.lists() >= lists + STREAMS || begin.elapsed() > Duration::from_secs(2)).then_some(())
        })
        .await;
    }
    assert!(picks.lists() > STREAMS * CHANGES / 2, "{} lists", picks.lists());
    assert_eq!((picks.served(), picks.losses(), picks.refusals()), (STREAMS, 0, 0));
}
