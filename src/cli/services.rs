//! `lookaside services`: every service in one line, by name.

use lookaside_proto::v1::{ListServicesRequest, ServiceSummary};
use serde::Serialize;

use crate::Global;
use crate::admin::Admin;
use crate::duration::age;
use crate::exit::Failure;
use crate::output::{self, Envelope, Format};
use crate::view;

/// List services: how they are, how many endpoints are offered, to how many clients
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lookaside services\n  lookaside services payments -o json")]
pub(crate) struct Args {
    /// This service alone
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
}

/// A service in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Service {
    name: String,
    status: String,
    policy: String,
    mode: &'static str,
    note: String,
    eligible: u32,
    endpoints: u32,
    clients: u32,
    calls_per_second: f64,
    version: Option<view::Version>,
    settling: bool,
    last_change_ms_ago: u64,
}

impl Service {
    /// As the balancer summed it up.
    pub(crate) fn new(wire: ServiceSummary) -> Self {
        Self {
            mode: view::mode(wire.mode),
            version: view::Version::new(wire.version),
            name: wire.name,
            status: wire.status,
            policy: wire.policy,
            note: wire.note,
            eligible: wire.eligible,
            endpoints: wire.endpoints,
            clients: wire.clients,
            calls_per_second: wire.calls_per_second,
            settling: wire.settling,
            last_change_ms_ago: wire.last_change_ms_ago,
        }
    }
}

/// Prints the services. Fails when the one asked for is unknown.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let admin = Admin::connect(global).await?;
    if let Some(service) = &args.service {
        admin.expect_service(service)?;
    }
    let request = ListServicesRequest { service: args.service.unwrap_or_default() };
    let services = admin.answer(admin.client.clone().list_services(request)).await?.services;
    match global.output {
        Format::Table => output::text(&table(&services)),
        Format::Json => {
            let items = services.into_iter().map(Service::new).collect();
            output::json(&Envelope::new("ServiceList", &admin.status.balancer, items))
        }
    }
}

fn table(services: &[ServiceSummary]) -> String {
    let rows = services
        .iter()
        .map(|s| {
            [
                s.name.clone(),
                s.status.clone(),
                view::mode(s.mode).to_owned(),
                s.policy.clone(),
                format!("{}/{}", s.eligible, s.endpoints),
                s.clients.to_string(),
                view::rate(s.calls_per_second),
                view::version(s.version),
                age(s.last_change_ms_ago),
                s.note.clone(),
            ]
        })
        .collect();
    let header =
        ["SERVICE", "STATUS", "MODE", "POLICY", "ELIGIBLE", "CLIENTS", "CALLS/S", "VERSION", "LAST CHANGE", "NOTE"];
    output::table(header, rows)
}

#[cfg(test)]
mod tests {
    use lookaside_proto::v1::{ListMode, Version};

    use super::*;

    fn payments() -> ServiceSummary {
        ServiceSummary {
            name: "payments".to_owned(),
            status: "PANIC".to_owned(),
            policy: "least_load".to_owned(),
            mode: ListMode::Panic.into(),
            note: "2 of 8 usable".to_owned(),
            eligible: 2,
            endpoints: 8,
            clients: 88,
            calls_per_second: 3100.0,
            version: Some(Version { epoch: 0xe700_0000_0000_0000, sequence: 4181 }),
            settling: false,
            last_change_ms_ago: 9_000,
        }
    }

    #[test]
    fn a_service_is_one_line() {
        assert_eq!(
            table(&[payments()]),
            "SERVICE   STATUS  MODE   POLICY      ELIGIBLE  CLIENTS  CALLS/S  VERSION    LAST CHANGE  NOTE\n\
             payments  PANIC   PANIC  least_load  2/8       88       3100     e700:4181  9.0s         2 of 8 usable"
        );
    }

    #[test]
    fn a_service_keeps_its_json_keys() {
        assert_eq!(
            serde_json::to_string(&Service::new(payments())).unwrap(),
            concat!(
                r#"{"name":"payments","status":"PANIC","policy":"least_load","mode":"PANIC","note":"2 of 8 usable","#,
                r#""eligible":2,"endpoints":8,"clients":88,"callsPerSecond":3100.0,"#,
                r#""version":{"epoch":"e700000000000000","sequence":4181},"settling":false,"lastChangeMsAgo":9000}"#
            )
        );
    }
}
