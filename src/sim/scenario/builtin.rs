//! The scenarios that come with the program, each in a file of its own.

use super::{Error, Scenario};

macro_rules! files {
    ($($name:literal)*) => {
        [$(($name, include_str!(concat!("../scenarios/", $name, ".yaml")))),*]
    };
}

/// Name and text of each: what clients are like, what endpoints are like, what calls are like, what goes wrong, and sizes.
pub const BUILTIN: [(&str, &str); 44] = files! {
    "headline" "sparse_1000" "sparse_5000" "ten_clients" "one_client" "zipf" "subsets" "zones"
    "even" "twofold" "tenfold" "queues" "single_core" "many_cores"
    "load_50" "load_80" "load_95" "bursty" "ramp" "retry_storm"
    "fixed_size" "normal_size" "lognormal" "long_and_short" "network_near" "network_far"
    "antagonists" "pauses" "fast_fail_1" "fast_fail_2" "fast_fail_20" "slow_fail" "partial_fail" "liar" "crash"
    "newcomer" "scale_out" "rolling_restart"
    "stale_reports" "balancer_restart" "balancer_gone"
    "small_fleet" "large_fleet" "huge_fleet"
};

/// The scenario of this name.
pub fn builtin(name: &str) -> Result<Scenario, Error> {
    let known = || BUILTIN.map(|(name, _)| name).join(", ");
    let unknown = || Error::Unknown { name: name.to_owned(), known: known() };
    let (_, yaml) = BUILTIN.iter().find(|(known, _)| *known == name).ok_or_else(unknown)?;
    Scenario::parse(yaml)
}
