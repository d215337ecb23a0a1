//! Plays a scenario. Refuses to know any rule of balancing.

use crate::{dispatch::Policy, engine::Engine, measure::Run, pooled, scenario::Scenario};

/// Plays a scenario by a policy. The same arguments give the same result, bit by bit.
pub fn run(scenario: &Scenario, policy: Policy, seed: u64) -> Run {
    match policy {
        Policy::Bound => pooled::run(scenario, seed),
        Policy::Oracle | Policy::Lookaside | Policy::Random | Policy::RoundRobin | Policy::P2c => {
            Engine::new(scenario, policy, seed).run(seed)
        }
        Policy::PeakEwma | Policy::Wrr | Policy::Pid | Policy::ProbingP2c => {
            Engine::new(scenario, policy, seed).run(seed)
        }
        Policy::Prequal0 | Policy::Prequal60 | Policy::Prequal84 => Engine::new(scenario, policy, seed).run(seed),
    }
}

#[cfg(test)]
mod tests;
