//! `lookaside watch`: what the balancer decided, as it decides it, after what it still remembers.

use std::time::Duration;

use lookaside_proto::v1::{Decision, Reason, ReasonCode, WatchDecisionsRequest};
use serde::Serialize;

use crate::admin::Admin;
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};
use crate::{Global, view};

/// Print decisions: states, modes, weights, additions, removals, overrides (times are UTC)
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside watch payments --last 20
  lookaside watch -f --reason HEALTH_UNREACHABLE -o json   (one JSON document per line)")]
pub(crate) struct Args {
    /// Of this service alone
    service: Option<String>,
    /// How many past decisions to start with
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: u32,
    /// Go on with new ones until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only those with this reason, such as ADMIN_DRAIN
    #[arg(long, value_name = "REASON", value_parser = reason_code)]
    reason: Option<ReasonCode>,
}

/// A decision in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DecisionView {
    at: String,
    at_unix_ms: u64,
    service: String,
    address: String,
    kind: String,
    change: String,
    reasons: Vec<&'static str>,
    reason_details: Vec<view::ReasonDetail>,
    version: Option<view::Version>,
}

impl DecisionView {
    fn new(wire: Decision) -> Self {
        Self {
            at: output::rfc3339(Duration::from_millis(wire.at_unix_ms)),
            at_unix_ms: wire.at_unix_ms,
            reasons: view::reason_codes(&wire.reasons),
            reason_details: view::reason_details(&wire.reasons),
            version: view::Version::new(wire.version),
            service: wire.service,
            address: wire.address,
            kind: wire.kind,
            change: wire.change,
        }
    }
}

/// Prints decisions. With `--follow` it ends only when the balancer does, which is a failure, or when interrupted.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let admin = Admin::connect(global).await?;
    // Whoever follows may wait for a service that is yet to come.
    if let (Some(service), false) = (&args.service, args.follow) {
        admin.expect_service(service)?;
    }
    let request = WatchDecisionsRequest {
        service: args.service.unwrap_or_default(),
        last: args.last,
        follow: args.follow,
        reason: args.reason.unwrap_or_default().into(),
    };
    let mut decisions = admin.answer(admin.client.clone().watch_decisions(request)).await?;
    let mut past = Vec::new();
    while let Some(decision) =
        decisions.message().await.map_err(|status| Failure::from_status(&admin.address, &status))?
    {
        match (global.output, args.follow) {
            (Format::Table, _) => output::text(&line(&decision))?,
            (Format::Json, true) => print_json(&admin, vec![DecisionView::new(decision)])?,
            (Format::Json, false) => past.push(DecisionView::new(decision)),
        }
    }
    match (global.output, args.follow) {
        (_, true) => {
            Err(Failure::new(Exit::Unreachable, format!("the balancer at {} ended the stream", admin.address))
                .next("lookaside status"))
        }
        (Format::Json, false) => print_json(&admin, past),
        (Format::Table, false) => Ok(()),
    }
}

fn print_json(admin: &Admin, items: Vec<DecisionView>) -> Result<(), Failure> {
    output::json(&Envelope::new("DecisionList", &admin.status.balancer, items))
}

/// One line per decision, in columns as far as the usual lengths go: rows come one by one, so no table can be laid out.
fn line(decision: &Decision) -> String {
    let address = if decision.address.is_empty() { "-" } else { &decision.address };
    let line = format!(
        "{} {} {address:<21} {:<8} {:<24} {}  {}",
        output::clock_time(Duration::from_millis(decision.at_unix_ms)),
        decision.service,
        decision.kind,
        decision.change,
        reasons(decision),
        view::version(decision.version),
    );
    output::clean(line.trim_end())
}

/// Reasons without their ages: those count from now, and the line has the time of the decision.
fn reasons(decision: &Decision) -> String {
    let ageless = |reason: &Reason| Reason { since_ms_ago: 0, ..reason.clone() };
    view::reasons(&decision.reasons.iter().map(ageless).collect::<Vec<_>>())
}

/// A reason by its name in the contract.
fn reason_code(text: &str) -> Result<ReasonCode, String> {
    match ReasonCode::from_str_name(&text.to_ascii_uppercase()) {
        Some(code) if code != ReasonCode::Unspecified => Ok(code),
        _ => {
            let all = (1..).map_while(|n| ReasonCode::try_from(n).ok()).map(|c| c.as_str_name());
            Err(format!("no such reason; one of {}", all.collect::<Vec<_>>().join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use lookaside_proto::v1::Version;

    use super::*;

    #[test]
    fn a_decision_is_a_line_and_keeps_its_json_keys() {
        let decision = Decision {
            at_unix_ms: 36_002_114,
            service: "payments".to_owned(),
            address: "10.0.2.22:50051".to_owned(),
            kind: "STATE".to_owned(),
            change: "ELIGIBLE -> EXCLUDED".to_owned(),
            reasons: vec![Reason {
                code: ReasonCode::HealthUnreachable.into(),
                detail: "Connection refused".to_owned(),
                since_ms_ago: 90_000,
            }],
            version: Some(Version { epoch: 0xe700_0000_0000_0000, sequence: 4179 }),
        };
        assert_eq!(
            line(&decision),
            "10:00:02.114 payments 10.0.2.22:50051       STATE    ELIGIBLE -> EXCLUDED     HEALTH_UNREACHABLE (Connection refused)  e700:4179"
        );
        let json = serde_json::to_value(DecisionView::new(decision)).unwrap();
        assert_eq!(json["at"], "1970-01-01T10:00:02.114Z");
        assert_eq!(json["reasons"][0], "HEALTH_UNREACHABLE");
        assert_eq!(json["kind"], "STATE");
    }

    #[test]
    fn a_reason_is_named_as_in_the_contract() {
        assert_eq!(reason_code("ADMIN_DRAIN"), Ok(ReasonCode::AdminDrain));
        assert_eq!(reason_code("admin_drain"), Ok(ReasonCode::AdminDrain));
        assert!(reason_code("BORED").is_err_and(|words| words.contains("LAST_ENDPOINT")));
    }
}
