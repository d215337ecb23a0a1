//! Peers that flood, hold or never finish: each is cut or bounded, costs the balancer little memory, and other clients
//! notice next to nothing.

use std::time::Duration;

use lookaside_tests::{Abuse, Backends, Balancer, alone};

/// In which whoever says nothing is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_abuses_a_connection_is_cut_or_bounded_and_costs_others_next_to_nothing() {
    let _alone = alone().await;
    for kind in Abuse::ALL {
        // A flood is cut at once, silence only by deadlines.
        let duration = if kind.is_silent() { SILENCE_MAX } else { Duration::from_secs(3) };
        let balancer = Balancer::start().await;
        let _backends = Backends::offered(&balancer, 2, &[]).await;
        let verdict = kind.commit(&balancer, duration).await;
        println!("{verdict}");
        verdict.expect_harmless();
    }
}
