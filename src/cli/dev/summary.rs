//! What a run came to, on stdout: a table, or exactly one JSON object.

use lookaside_load::generator::Summary;

use crate::Global;
use crate::exit::Failure;
use crate::output::{self, Format};
use crate::view::percent;

/// Prints the summary.
pub(super) fn print(global: &Global, summary: &Summary) -> Result<(), Failure> {
    match global.output {
        Format::Table => output::text(&table(summary)),
        Format::Json => output::json(summary),
    }
}

/// A latency for a table.
pub(super) fn latency(us: u64) -> String {
    match us {
        0..=999 => format!("{us}us"),
        1_000..=999_999 => format!("{:.1}ms", us as f64 / 1e3),
        _ => format!("{:.2}s", us as f64 / 1e6),
    }
}

fn table(summary: &Summary) -> String {
    let total = summary.calls.max(1) as f64;
    let start = |ms: Option<u64>| ms.map_or_else(String::new, |ms| format!("{:.3}s", ms as f64 / 1e3));
    let mut rows: Vec<_> = summary
        .per_endpoint
        .iter()
        .map(|e| {
            [
                e.address.clone(),
                e.calls.to_string(),
                percent(e.calls as f64 / total),
                e.failed.to_string(),
                start(e.first_call_ms),
                start(e.last_call_ms),
            ]
        })
        .collect();
    let calls: u64 = summary.per_endpoint.iter().map(|e| e.calls).sum();
    let failed: u64 = summary.per_endpoint.iter().map(|e| e.failed).sum();
    let (nowhere, failed) = (summary.calls.saturating_sub(calls), summary.failed.saturating_sub(failed));
    if nowhere > 0 {
        let (calls, share) = (nowhere.to_string(), percent(nowhere as f64 / total));
        rows.push(["no endpoint".to_owned(), calls, share, failed.to_string(), String::new(), String::new()]);
    }
    let header = ["ENDPOINT", "CALLS", "SHARE", "FAILED", "FIRST CALL", "LAST CALL"];
    let mut text = output::table(header, rows);
    text.push_str(&format!(
        "\ncalls {}   failed {}   p50 {}   p90 {}   p99 {}   p99.9 {}   max over mean {:.2}",
        summary.calls,
        summary.failed,
        latency(summary.p50_us),
        latency(summary.p90_us),
        latency(summary.p99_us),
        latency(summary.p999_us),
        summary.max_over_mean,
    ));
    for (code, count) in &summary.failures_by_code {
        text.push_str(&format!("\nfailed with {code}: {count}"));
    }
    for failure in &summary.first_failures {
        text.push_str(&format!("\n  {}", output::clean(failure)));
    }
    if summary.not_sent > 0 {
        text.push_str(&format!("\nnot sent, too many in flight: {}", summary.not_sent));
    }
    text
}

#[cfg(test)]
mod tests {
    use lookaside_load::generator::EndpointSummary;

    use super::*;

    #[expect(clippy::field_reassign_with_default, reason = "the summary may grow: it cannot be written out whole")]
    fn summary() -> Summary {
        let mut endpoint = EndpointSummary::default();
        endpoint.address = "127.0.0.1:5001".to_owned();
        endpoint.calls = 999;
        endpoint.failed = 1;
        endpoint.first_call_ms = Some(3);
        endpoint.last_call_ms = Some(19_998);
        let mut summary = Summary::default();
        summary.calls = 1000;
        summary.failed = 2;
        summary.failures_by_code = [("DEADLINE_EXCEEDED", 1), ("INTERNAL", 1)].into();
        summary.p50_us = 950;
        summary.p90_us = 12_340;
        summary.p99_us = 41_000;
        summary.p999_us = 1_200_000;
        summary.max_over_mean = 1.034;
        summary.per_endpoint = vec![endpoint];
        summary
    }

    #[test]
    fn a_summary_is_a_table_and_what_it_adds_up_to() {
        assert_eq!(
            table(&summary()),
            "ENDPOINT        CALLS  SHARE  FAILED  FIRST CALL  LAST CALL\n\
             127.0.0.1:5001  999    99.9%  1       0.003s      19.998s\n\
             no endpoint     1      0.1%   1       -           -\n\
             calls 1000   failed 2   p50 950us   p90 12.3ms   p99 41.0ms   p99.9 1.20s   max over mean 1.03\n\
             failed with DEADLINE_EXCEEDED: 1\n\
             failed with INTERNAL: 1"
        );
    }

    #[test]
    fn the_json_of_a_run_has_its_fields_at_top_level() {
        let json = serde_json::to_value(summary()).unwrap();
        for key in [
            "calls",
            "failed",
            "failures_by_code",
            "p50_us",
            "p90_us",
            "p99_us",
            "p999_us",
            "max_over_mean",
            "per_endpoint",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["failures_by_code"]["DEADLINE_EXCEEDED"], 1);
        for key in ["address", "calls", "failed", "first_call_ms", "last_call_ms"] {
            assert!(json["per_endpoint"][0].get(key).is_some(), "{key}");
        }
    }
}
