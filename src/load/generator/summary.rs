//! What a run came to, in the words of the JSON that `dev` and `dev client` print.

use std::collections::BTreeMap;

use serde::Serialize;

/// The sum of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Calls that were due; all have ended.
    pub calls: u64,
    /// Calls that did not end with OK.
    pub failed: u64,
    /// How they ended, by the canonical name of the code.
    pub failures_by_code: BTreeMap<&'static str, u64>,
    /// The first few failures that differ in their words, with the time since the start of the run.
    pub first_failures: Vec<String>,
    /// Median latency from the scheduled start, microseconds, over every call that was sent, failed ones too.
    pub p50_us: u64,
    /// 90 % are faster, microseconds.
    pub p90_us: u64,
    /// 99 % are faster, microseconds.
    pub p99_us: u64,
    /// 99.9 % are faster, microseconds.
    pub p999_us: u64,
    /// Most calls of an endpoint over the mean, over endpoints that got calls or were on offer at the end; 0 without calls.
    pub max_over_mean: f64,
    /// In the order of their addresses.
    pub per_endpoint: Vec<EndpointSummary>,
    /// Calls that were due and had no room, see `Config::in_flight_max`; counted in `failed` as well.
    pub not_sent: u64,
    /// When the run began, milliseconds since 1970: start times count from here.
    pub began_unix_ms: u64,
}

/// What it came to on one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EndpointSummary {
    /// `host:port`
    pub address: String,
    /// Calls that ended there.
    pub calls: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Start of the first call, milliseconds since the start of the run; none without a call.
    pub first_call_ms: Option<u64>,
    /// Start of the last call, milliseconds since the start of the run; none without a call.
    pub last_call_ms: Option<u64>,
}
