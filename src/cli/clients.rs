//! `lookaside clients`: the pick streams, and whether each holds the list it was sent. A client that is missing is not
//! connected.

use lookaside_proto::v1::{ClientDetail, ListClientsRequest};
use serde::Serialize;

use crate::Global;
use crate::admin::Admin;
use crate::duration::age;
use crate::exit::Failure;
use crate::output::{self, Envelope, Format};
use crate::view;

/// List pick streams: who asks, which version they hold, whether they are in sync
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lookaside clients payments\n\nA client that is not listed is not connected.")]
pub(crate) struct Args {
    /// Those of this service alone
    service: Option<String>,
}

/// A client in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Client {
    client_id: String,
    peer: String,
    sdk: String,
    protocol: String,
    locality: String,
    service: String,
    sent: Option<view::Version>,
    acknowledged: Option<view::Version>,
    state: String,
    refused: String,
    calls_per_second: f64,
    failed: u64,
    age_ms: u64,
}

impl Client {
    fn new(wire: ClientDetail) -> Self {
        Self {
            client_id: wire.client_id,
            peer: wire.peer,
            sdk: wire.sdk,
            protocol: wire.protocol,
            locality: wire.locality,
            service: wire.service,
            sent: view::Version::new(wire.sent),
            acknowledged: view::Version::new(wire.acknowledged),
            state: wire.state,
            refused: wire.refused,
            calls_per_second: wire.calls_per_second,
            failed: wire.failed,
            age_ms: wire.age_ms,
        }
    }
}

/// Prints the clients. Fails when the service is unknown.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let admin = Admin::connect(global).await?;
    let clients = list(&admin, args.service.as_deref().unwrap_or_default()).await?;
    if let (true, Some(service)) = (clients.is_empty(), &args.service) {
        admin.expect_service(service)?;
    }
    match global.output {
        Format::Table => {
            output::text(&table(&clients))?;
            if clients.is_empty() {
                eprintln!("note: no client is connected");
            }
            Ok(())
        }
        Format::Json => {
            let items = clients.into_iter().map(Client::new).collect();
            output::json(&Envelope::new("ClientList", &admin.status.balancer, items))
        }
    }
}

/// The pick streams of a service, or all for an empty name.
pub(crate) async fn list(admin: &Admin, service: &str) -> Result<Vec<ClientDetail>, Failure> {
    let request = ListClientsRequest { service: service.to_owned() };
    Ok(admin.answer(admin.client.clone().list_clients(request)).await?.clients)
}

fn table(clients: &[ClientDetail]) -> String {
    let rows = clients
        .iter()
        .map(|c| {
            let refused = if c.refused.is_empty() { String::new() } else { format!(" ({})", c.refused) };
            [
                c.client_id.clone(),
                c.peer.clone(),
                c.sdk.clone(),
                c.protocol.clone(),
                c.locality.clone(),
                c.service.clone(),
                view::version(c.sent),
                view::version(c.acknowledged),
                format!("{}{refused}", c.state),
                view::rate(c.calls_per_second),
                c.failed.to_string(),
                age(c.age_ms),
            ]
        })
        .collect();
    let header = [
        "CLIENT", "PEER", "SDK", "PROTOCOL", "LOCALITY", "SERVICE", "SENT", "ACKED", "STATE", "CALLS/S", "FAILED",
        "AGE",
    ];
    output::table(header, rows)
}

#[cfg(test)]
mod tests {
    use lookaside_proto::v1::Version;

    use super::*;

    #[test]
    fn a_client_out_of_sync_is_seen_at_a_glance() {
        let client = ClientDetail {
            client_id: "web-7f9c".to_owned(),
            peer: "10.1.0.4:51022".to_owned(),
            sdk: "lookaside-rust/0.1.0".to_owned(),
            protocol: "lookaside".to_owned(),
            service: "greeter".to_owned(),
            sent: Some(Version { epoch: 0xe700_0000_0000_0000, sequence: 88 }),
            acknowledged: Some(Version { epoch: 0xe700_0000_0000_0000, sequence: 71 }),
            state: "STALE".to_owned(),
            calls_per_second: 210.4,
            failed: 3,
            age_ms: 7_200_000,
            ..ClientDetail::default()
        };
        assert_eq!(
            table(std::slice::from_ref(&client)),
            "CLIENT    PEER            SDK                   PROTOCOL   LOCALITY  SERVICE  SENT     ACKED    STATE  CALLS/S  FAILED  AGE\n\
             web-7f9c  10.1.0.4:51022  lookaside-rust/0.1.0  lookaside  -         greeter  e700:88  e700:71  STALE  210      3       2h"
        );
        let json = serde_json::to_value(Client::new(client)).unwrap();
        assert_eq!(json["clientId"], "web-7f9c");
        assert_eq!(json["acknowledged"]["sequence"], 71);
    }
}
