//! The scenarios that come with the program, each in a file of its own: first those that gates go by, then the rest of the study.

use super::{Error, Scenario};

/// Name and text of each.
pub const BUILTIN: &[(&str, &str)] = &[
    ("headline", include_str!("../scenarios/headline.yaml")),
    ("sparse_1000", include_str!("../scenarios/sparse_1000.yaml")),
    ("sparse_5000", include_str!("../scenarios/sparse_5000.yaml")),
    ("slow_half", include_str!("../scenarios/slow_half.yaml")),
    ("sinkhole", include_str!("../scenarios/sinkhole.yaml")),
    ("liar", include_str!("../scenarios/liar.yaml")),
    ("even", include_str!("../scenarios/even.yaml")),
    ("retry_storm", include_str!("../scenarios/retry_storm.yaml")),
    ("cold_start", include_str!("../scenarios/cold_start.yaml")),
    ("balancer_gone", include_str!("../scenarios/balancer_gone.yaml")),
    ("load_05", include_str!("../scenarios/load_05.yaml")),
    ("load_07", include_str!("../scenarios/load_07.yaml")),
    ("load_08", include_str!("../scenarios/load_08.yaml")),
    ("load_095", include_str!("../scenarios/load_095.yaml")),
    ("first_come", include_str!("../scenarios/first_come.yaml")),
    ("cores_1", include_str!("../scenarios/cores_1.yaml")),
    ("cores_16", include_str!("../scenarios/cores_16.yaml")),
    ("size_fixed", include_str!("../scenarios/size_fixed.yaml")),
    ("size_lognormal", include_str!("../scenarios/size_lognormal.yaml")),
    ("size_bimodal", include_str!("../scenarios/size_bimodal.yaml")),
    ("size_prequal", include_str!("../scenarios/size_prequal.yaml")),
    ("near", include_str!("../scenarios/near.yaml")),
    ("far", include_str!("../scenarios/far.yaml")),
    ("two_speeds", include_str!("../scenarios/two_speeds.yaml")),
    ("antagonists", include_str!("../scenarios/antagonists.yaml")),
    ("pauses", include_str!("../scenarios/pauses.yaml")),
    ("sinkhole_1", include_str!("../scenarios/sinkhole_1.yaml")),
    ("sinkhole_20", include_str!("../scenarios/sinkhole_20.yaml")),
    ("slow_fail", include_str!("../scenarios/slow_fail.yaml")),
    ("partial_fail", include_str!("../scenarios/partial_fail.yaml")),
    ("all_fail", include_str!("../scenarios/all_fail.yaml")),
    ("crash", include_str!("../scenarios/crash.yaml")),
    ("hang", include_str!("../scenarios/hang.yaml")),
    ("scale_out", include_str!("../scenarios/scale_out.yaml")),
    ("rolling_restart", include_str!("../scenarios/rolling_restart.yaml")),
    ("stale_reports", include_str!("../scenarios/stale_reports.yaml")),
    ("balancer_restart", include_str!("../scenarios/balancer_restart.yaml")),
    ("endpoints_10", include_str!("../scenarios/endpoints_10.yaml")),
    ("endpoints_1000", include_str!("../scenarios/endpoints_1000.yaml")),
    ("endpoints_10000", include_str!("../scenarios/endpoints_10000.yaml")),
    ("clients_1", include_str!("../scenarios/clients_1.yaml")),
    ("clients_10", include_str!("../scenarios/clients_10.yaml")),
    ("clients_10000", include_str!("../scenarios/clients_10000.yaml")),
    ("clients_zipf", include_str!("../scenarios/clients_zipf.yaml")),
    ("bursts", include_str!("../scenarios/bursts.yaml")),
    ("subsets", include_str!("../scenarios/subsets.yaml")),
    ("zones", include_str!("../scenarios/zones.yaml")),
    ("ramp", include_str!("../scenarios/ramp.yaml")),
    ("bench_quality_70", include_str!("../scenarios/bench_quality_70.yaml")),
    ("bench_quality_85", include_str!("../scenarios/bench_quality_85.yaml")),
    ("bench_sparse", include_str!("../scenarios/bench_sparse.yaml")),
];

/// The scenario of this name.
pub fn builtin(name: &str) -> Result<Scenario, Error> {
    let unknown = || Error::Unknown { name: name.to_owned() };
    let (_, yaml) = BUILTIN.iter().find(|(known, _)| *known == name).ok_or_else(unknown)?;
    Scenario::parse(yaml)
}
