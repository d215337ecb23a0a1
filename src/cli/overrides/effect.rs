//! What an order does, or would do, as the balancers that took it say.

use lookaside_proto::v1::set_override_response::Effect;
use serde::Serialize;

use super::{Order, Taken};
use crate::exit::Failure;
use crate::output::{self, Envelope, Format};
use crate::{Global, view};

/// An effect in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EffectView {
    /// Identity of the replica that said so.
    balancer: String,
    service: String,
    addresses: Vec<String>,
    eligible_before: u32,
    eligible_after: u32,
    endpoints: u32,
    mode_after: &'static str,
    clients: u32,
    summary: String,
    version: Option<view::Version>,
}

/// What is told beside the effects.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    action: &'static str,
    dry_run: bool,
}

/// Prints the effects, replica by replica.
pub(super) fn print(global: &Global, order: &Order, taken: &[Taken]) -> Result<(), Failure> {
    match global.output {
        Format::Table => {
            let rows = taken.iter().flat_map(|t| t.effects.iter().map(move |e| row(name(t, taken), e))).collect();
            output::text(&table(rows))?;
            for one in taken.iter().filter(|one| one.idle) {
                eprintln!(
                    "note: there was nothing to take back{}",
                    if taken.len() > 1 { format!(" at {}", one.admin.address) } else { String::new() }
                );
            }
            if order.options.dry_run {
                eprintln!("note: a dry run: nothing was changed");
            }
            Ok(())
        }
        Format::Json => {
            let items =
                taken.iter().flat_map(|t| t.effects.iter().map(move |e| effect(&t.admin.status.balancer, e))).collect();
            let keys = Keys { action: view::action(order.action.into()), dry_run: order.options.dry_run };
            let first = taken.first().map_or("", |t| t.admin.status.balancer.as_str());
            output::json(&Envelope::with("EffectList", first, keys, items))
        }
    }
}

/// What a replica is called here: its identity, or its address where several replicas share one.
fn name<'a>(one: &'a Taken, taken: &[Taken]) -> &'a str {
    let identity = one.admin.status.balancer.as_str();
    match taken.iter().filter(|other| other.admin.status.balancer == identity).count() {
        0 | 1 => identity,
        _ => &one.admin.address,
    }
}

fn effect(balancer: &str, wire: &Effect) -> EffectView {
    EffectView {
        balancer: balancer.to_owned(),
        service: wire.service.clone(),
        addresses: wire.addresses.clone(),
        eligible_before: wire.eligible_before,
        eligible_after: wire.eligible_after,
        endpoints: wire.endpoints,
        mode_after: view::mode(wire.mode_after),
        clients: wire.clients,
        summary: wire.summary.clone(),
        version: view::Version::new(wire.version),
    }
}

type Row = [String; 7];

fn row(balancer: &str, effect: &Effect) -> Row {
    // A whole locality's addresses would make a line nobody reads.
    let addresses = match effect.addresses.as_slice() {
        [first, _, _, _, ..] => format!("{first} and {} more", effect.addresses.len() - 1),
        few => few.join(" "),
    };
    [
        balancer.to_owned(),
        effect.service.clone(),
        addresses,
        format!("{} -> {} of {}", effect.eligible_before, effect.eligible_after, effect.endpoints),
        view::mode(effect.mode_after).to_owned(),
        effect.clients.to_string(),
        effect.summary.clone(),
    ]
}

fn table(rows: Vec<Row>) -> String {
    output::table(["BALANCER", "SERVICE", "ENDPOINTS", "ELIGIBLE", "MODE", "CLIENTS", "EFFECT"], rows)
}

#[cfg(test)]
mod tests {
    use lookaside_proto::v1::{ListMode, Version};

    use super::*;

    #[test]
    fn an_effect_is_previewed_in_a_line() {
        let wire = Effect {
            service: "greeter".to_owned(),
            addresses: vec!["10.0.1.11:50051".to_owned()],
            eligible_before: 6,
            eligible_after: 5,
            endpoints: 6,
            mode_after: ListMode::Normal.into(),
            clients: 3,
            summary: "each of the others gets 20.0 % more calls".to_owned(),
            version: Some(Version { epoch: 1, sequence: 2 }),
        };
        assert_eq!(
            table(vec![row("lb-0", &wire)]),
            "BALANCER  SERVICE  ENDPOINTS        ELIGIBLE     MODE    CLIENTS  EFFECT\n\
             lb-0      greeter  10.0.1.11:50051  6 -> 5 of 6  NORMAL  3        each of the others gets 20.0 % more calls"
        );
        let json = serde_json::to_value(effect("lb-0", &wire)).unwrap();
        assert_eq!(json["eligibleAfter"], 5);
        assert_eq!(json["addresses"][0], "10.0.1.11:50051");
        assert_eq!(json["version"]["sequence"], 2);
    }
}
