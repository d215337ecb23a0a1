//! `lookaside endpoints`: endpoints in every state, the excluded ones with their reasons. Nothing disappears silently.

use lookaside_proto::v1::{EndpointDetail, ListEndpointsRequest, Override, r#override::Scope};
use serde::Serialize;

use crate::Global;
use crate::admin::Admin;
use crate::duration::age;
use crate::exit::Failure;
use crate::output::{self, Envelope, Format};
use crate::view;

/// Beyond this age a report says nothing of now: three report periods of the default length.
const REPORT_AGE_MAX_MS: u64 = 3_000;

/// List endpoints: state, reasons, last check, load, share of calls wanted
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside endpoints payments
  lookaside endpoints --excluded -o json

WANTED is the share of calls wanted, by weight, not the share that was measured.
IN FLIGHT and CALLS/S are unknown (-) when the last report is more than 3 s old.
REASONS are codes: `lookaside explain SERVICE --endpoint ADDR` and -o json have the details.")]
pub(crate) struct Args {
    /// Of this service alone
    service: Option<String>,
    /// Only those that are kept out of lists
    #[arg(long)]
    excluded: bool,
}

/// An endpoint in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    service: String,
    #[serde(flatten)]
    endpoint: view::Endpoint,
    state: &'static str,
    check: String,
    check_ms_ago: u64,
    reports: bool,
    report_ms_ago: u64,
    utilization: f64,
    in_flight: u32,
    calls_per_second: f64,
    assigned_share: f64,
    sources: Vec<String>,
    overrides: Vec<OverrideView>,
}

/// An operator's word in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OverrideView {
    service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    whole_service: Option<bool>,
    action: &'static str,
    weight_percent: u32,
    reason: String,
    actor: String,
    set_at_unix_ms: u64,
    replica: String,
    expires_at_unix_ms: u64,
}

impl OverrideView {
    fn new(wire: Override) -> Self {
        let (mut address, mut locality, mut whole_service) = (None, None, None);
        match wire.scope {
            Some(Scope::Address(a)) => address = Some(a),
            Some(Scope::Locality(l)) => locality = Some(l),
            Some(Scope::WholeService(w)) => whole_service = Some(w),
            None => {}
        }
        Self {
            address,
            locality,
            whole_service,
            service: wire.service,
            action: view::action(wire.action),
            weight_percent: wire.weight_percent,
            reason: wire.reason,
            actor: wire.actor,
            set_at_unix_ms: wire.set_at_unix_ms,
            replica: wire.replica,
            expires_at_unix_ms: wire.expires_at_unix_ms,
        }
    }
}

impl Detail {
    fn new(wire: EndpointDetail) -> Self {
        let mut endpoint = wire.endpoint.unwrap_or_default();
        // The detail's own reasons are those of its state; the list entry need not repeat them.
        endpoint.reasons = wire.reasons;
        Self {
            service: wire.service,
            endpoint: view::Endpoint::new(endpoint),
            state: view::state(wire.state),
            check: wire.check,
            check_ms_ago: wire.check_ms_ago,
            reports: wire.reports,
            report_ms_ago: wire.report_ms_ago,
            utilization: wire.utilization,
            in_flight: wire.in_flight,
            calls_per_second: wire.calls_per_second,
            assigned_share: wire.assigned_share,
            sources: wire.sources,
            overrides: wire.overrides.into_iter().map(OverrideView::new).collect(),
        }
    }
}

/// Prints the endpoints. Fails when the service is unknown.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let admin = Admin::connect(global).await?;
    if let Some(service) = &args.service {
        admin.expect_service(service)?;
    }
    let request =
        ListEndpointsRequest { service: args.service.clone().unwrap_or_default(), excluded_only: args.excluded };
    let endpoints = admin.answer(admin.client.clone().list_endpoints(request)).await?.endpoints;
    match global.output {
        Format::Table => {
            output::text(&table(&endpoints))?;
            if endpoints.is_empty() {
                eprintln!("note: {}", if args.excluded { "no endpoint is kept out" } else { "no endpoints are known" });
            }
            Ok(())
        }
        Format::Json => {
            let items = endpoints.into_iter().map(Detail::new).collect();
            output::json(&Envelope::new("EndpointList", &admin.status.balancer, items))
        }
    }
}

fn table(endpoints: &[EndpointDetail]) -> String {
    let rows = endpoints
        .iter()
        .map(|d| {
            let endpoint = d.endpoint.clone().unwrap_or_default();
            let fresh = d.reports && d.report_ms_ago <= REPORT_AGE_MAX_MS;
            let if_fresh = |cell: String| if fresh { cell } else { String::new() };
            [
                d.service.clone(),
                endpoint.address,
                endpoint.locality,
                view::state(d.state).to_owned(),
                view::codes(&d.reasons),
                if d.check.is_empty() { String::new() } else { format!("{} {}", d.check, age(d.check_ms_ago)) },
                if d.reports { age(d.report_ms_ago) } else { String::new() },
                if_fresh(d.in_flight.to_string()),
                if_fresh(view::rate(d.calls_per_second)),
                endpoint.weight.to_string(),
                view::capacity(endpoint.capacity_milli),
                view::percent(d.assigned_share),
            ]
        })
        .collect();
    let header = [
        "SERVICE",
        "ENDPOINT",
        "LOCALITY",
        "STATE",
        "REASONS",
        "CHECK",
        "REPORT AGE",
        "IN FLIGHT",
        "CALLS/S",
        "WEIGHT",
        "CAPACITY",
        "WANTED",
    ];
    output::table(header, rows)
}

#[cfg(test)]
mod tests {
    use lookaside_proto::v1::{Endpoint, EndpointState, OverrideAction, Reason, ReasonCode};

    use super::*;

    fn drained() -> EndpointDetail {
        EndpointDetail {
            service: "greeter".to_owned(),
            endpoint: Some(Endpoint {
                address: "10.0.3.31:50051".to_owned(),
                capacity_milli: 500,
                ..Endpoint::default()
            }),
            state: EndpointState::Draining.into(),
            reasons: vec![Reason {
                code: ReasonCode::AdminDrain.into(),
                detail: "by alice".to_owned(),
                since_ms_ago: 0,
            }],
            check: "SERVING".to_owned(),
            check_ms_ago: 2_000,
            reports: true,
            report_ms_ago: 700,
            in_flight: 3,
            calls_per_second: 0.5,
            overrides: vec![Override {
                service: "greeter".to_owned(),
                scope: Some(Scope::Locality("eu/c".to_owned())),
                action: OverrideAction::Drain.into(),
                ..Override::default()
            }],
            ..EndpointDetail::default()
        }
    }

    #[test]
    fn a_drained_endpoint_is_listed_with_its_reason() {
        assert_eq!(
            table(&[drained()]),
            "SERVICE  ENDPOINT         LOCALITY  STATE     REASONS      CHECK         REPORT AGE  IN FLIGHT  CALLS/S  WEIGHT  CAPACITY  WANTED\n\
             greeter  10.0.3.31:50051  -         DRAINING  ADMIN_DRAIN  SERVING 2.0s  700ms       3          0.5      0       0.50      0.0%"
        );
    }

    #[test]
    fn an_old_report_says_nothing_of_now() {
        let line = |report_ms_ago| table(&[EndpointDetail { report_ms_ago, ..drained() }]);
        assert!(line(3_000).ends_with("3.0s        3          0.5      0       0.50      0.0%"), "{}", line(3_000));
        assert!(line(3_001).ends_with("3.0s        -          -        0       0.50      0.0%"), "{}", line(3_001));
    }

    #[test]
    fn an_endpoint_keeps_its_json_keys() {
        assert_eq!(
            serde_json::to_string(&Detail::new(drained())).unwrap(),
            concat!(
                r#"{"service":"greeter","address":"10.0.3.31:50051","weight":0,"locality":"","priority":0,"#,
                r#""reasons":["ADMIN_DRAIN"],"reasonDetails":[{"code":"ADMIN_DRAIN","detail":"by alice","sinceMsAgo":0}],"#,
                r#""instance":"","incarnation":"0000000000000000","capacityMilli":500,"state":"DRAINING","check":"SERVING","#,
                r#""checkMsAgo":2000,"reports":true,"reportMsAgo":700,"utilization":0.0,"inFlight":3,"callsPerSecond":0.5,"#,
                r#""assignedShare":0.0,"sources":[],"overrides":[{"service":"greeter","locality":"eu/c","action":"DRAIN","#,
                r#""weightPercent":0,"reason":"","actor":"","setAtUnixMs":0,"replica":"","expiresAtUnixMs":0}]}"#
            )
        );
    }
}
