//! `lookaside explain`: why an endpoint is or is not in a list, stage by stage; or why a list is in the order it is in.

use lookaside_proto::v1::{ExplainRequest, Explanation, explanation::Stage};
use serde::Serialize;

use crate::admin::Admin;
use crate::exit::Failure;
use crate::output::{self, Envelope, Format};
use crate::{Global, address, view};

/// Say why an endpoint is or is not in a list, or why a list is as it is
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside explain payments --endpoint 10.0.2.22:50051
  lookaside explain payments --client web-7f9c          (why its list is in this order)")]
pub(crate) struct Args {
    /// Service the list is of
    service: String,
    /// Why this endpoint is or is not in the list [default: explain the order of the list]
    #[arg(long, value_name = "ADDR", value_parser = address::parse)]
    endpoint: Option<String>,
    /// As this client sees it [default: a client without a locality]
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// As a client of this locality sees it, region/zone/subzone
    #[arg(long)]
    locality: Option<String>,
}

/// What an explanation says beside its stages.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    service: String,
    version: Option<view::Version>,
    mode: &'static str,
    note: String,
    address: String,
    client_id: String,
    result: String,
    next: Vec<String>,
    order: Vec<view::Endpoint>,
}

/// A stage in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StageView {
    name: String,
    verdict: &'static str,
    reasons: Vec<&'static str>,
    reason_details: Vec<view::ReasonDetail>,
    detail: String,
}

/// Prints the explanation; exit 0 whatever the result. Fails when service, endpoint or client is unknown.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let admin = Admin::connect(global).await?;
    admin.expect_service(&args.service)?;
    let request = ExplainRequest {
        service: args.service,
        address: args.endpoint.unwrap_or_default(),
        client_id: args.client.unwrap_or_default(),
        locality: args.locality.unwrap_or_default(),
    };
    let explanation = admin.answer(admin.client.clone().explain(request)).await?;
    match global.output {
        Format::Table => output::text(&ladder(&explanation)),
        Format::Json => {
            let (keys, stages) = split(explanation);
            output::json(&Envelope::with("Explanation", &admin.status.balancer, keys, stages))
        }
    }
}

fn split(explanation: Explanation) -> (Keys, Vec<StageView>) {
    let stages = explanation
        .stages
        .into_iter()
        .map(|s| StageView {
            name: s.name,
            verdict: view::verdict(s.verdict),
            reasons: view::reason_codes(&s.reasons),
            reason_details: view::reason_details(&s.reasons),
            detail: s.detail,
        })
        .collect();
    let keys = Keys {
        service: explanation.service,
        version: view::Version::new(explanation.version),
        mode: view::mode(explanation.mode),
        note: explanation.note,
        address: explanation.address,
        client_id: explanation.client_id,
        result: explanation.result,
        next: explanation.next,
        order: explanation.order.into_iter().map(view::Endpoint::new).collect(),
    };
    (keys, stages)
}

fn ladder(explanation: &Explanation) -> String {
    let mut lines = vec![headline(explanation)];
    lines.extend(explanation.stages.iter().map(rung));
    if !explanation.result.is_empty() {
        lines.push(format!("result: {}", explanation.result));
    }
    for (index, next) in explanation.next.iter().enumerate() {
        lines.push(format!("{} {next}", if index == 0 { "next:  " } else { "       " }));
    }
    let mut text = lines.iter().map(|line| output::clean(line)).collect::<Vec<_>>().join("\n");
    if explanation.address.is_empty() && !explanation.order.is_empty() {
        text.push('\n');
        text.push_str(&view::order(&explanation.order));
    }
    text
}

fn headline(explanation: &Explanation) -> String {
    let mut line = format!(
        "{} @ list {}   mode {}",
        explanation.service,
        view::version(explanation.version),
        view::mode(explanation.mode)
    );
    for (name, value) in
        [("endpoint", &explanation.address), ("client", &explanation.client_id), ("", &explanation.note)]
    {
        match (name, value.as_str()) {
            (_, "") => {}
            ("", value) => line.push_str(&format!("   {value}")),
            (name, value) => line.push_str(&format!("   {name} {value}")),
        }
    }
    line
}

fn rung(stage: &Stage) -> String {
    let mark = match view::verdict(stage.verdict) {
        "PASS" => "[ok]",
        "WARN" => "[!!]",
        "FAIL" => "[FAIL]",
        _ => "[-]",
    };
    let reasons = view::reasons(&stage.reasons);
    let words = match (reasons.as_str(), stage.detail.as_str()) {
        ("", "") if mark == "[-]" => "not evaluated".to_owned(),
        ("", detail) => detail.to_owned(),
        (reasons, "") => reasons.to_owned(),
        (reasons, detail) => format!("{reasons}: {detail}"),
    };
    format!("  {mark:<6} {:<12} {words}", stage.name).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use lookaside_proto::v1::{ListMode, Reason, ReasonCode, Version, explanation::Verdict};

    use super::*;

    fn stage(name: &str, verdict: Verdict, reasons: Vec<Reason>, detail: &str) -> Stage {
        Stage { name: name.to_owned(), verdict: verdict.into(), reasons, detail: detail.to_owned() }
    }

    fn explanation() -> Explanation {
        let drained =
            Reason { code: ReasonCode::AdminDrain.into(), detail: "by alice".to_owned(), since_ms_ago: 480_000 };
        Explanation {
            service: "payments".to_owned(),
            version: Some(Version { epoch: 0xe700_0000_0000_0000, sequence: 4181 }),
            mode: ListMode::Normal.into(),
            address: "10.0.2.22:50051".to_owned(),
            client_id: "web-7f9c".to_owned(),
            stages: vec![
                stage("discovered", Verdict::Pass, vec![], "by registration"),
                stage("override", Verdict::Fail, vec![drained], ""),
                stage("priority", Verdict::NotEvaluated, vec![], ""),
            ],
            result: "NOT IN LIST: ADMIN_DRAIN".to_owned(),
            next: vec!["lookaside undrain 10.0.2.22:50051".to_owned(), "lookaside watch payments --last 20".to_owned()],
            ..Explanation::default()
        }
    }

    #[test]
    fn an_explanation_is_a_ladder_with_the_next_step() {
        assert_eq!(
            ladder(&explanation()),
            "payments @ list e700:4181   mode NORMAL   endpoint 10.0.2.22:50051   client web-7f9c\n  \
               [ok]   discovered   by registration\n  \
               [FAIL] override     ADMIN_DRAIN 8m (by alice)\n  \
               [-]    priority     not evaluated\n\
             result: NOT IN LIST: ADMIN_DRAIN\n\
             next:   lookaside undrain 10.0.2.22:50051\n        lookaside watch payments --last 20"
        );
    }

    #[test]
    fn an_explanation_keeps_its_json_keys() {
        let (keys, stages) = split(explanation());
        let keys = serde_json::to_value(&keys).unwrap();
        assert_eq!(keys["result"], "NOT IN LIST: ADMIN_DRAIN");
        assert_eq!(keys["version"]["sequence"], 4181);
        let stages = serde_json::to_value(&stages).unwrap();
        assert_eq!(stages[1]["verdict"], "FAIL");
        assert_eq!(stages[1]["reasons"][0], "ADMIN_DRAIN");
        assert_eq!(stages[1]["reasonDetails"][0]["sinceMsAgo"], 480_000);
    }
}
