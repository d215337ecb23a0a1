//! `lookaside drain` and its siblings: an operator's word on an endpoint, a locality or a service. Never prompts; says
//! what the word does, or would do; `--wait` waits until every client has heard it.

use std::time::Duration;

use lookaside_proto::v1::{
    Override, OverrideAction, SetOverrideRequest, r#override::Scope, set_override_response::Effect,
};
use serde::Serialize;

use crate::admin::Admin;
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};
use crate::{Global, address, duration, view};

mod wait;

/// What every such command understands beside its target.
#[derive(clap::Args)]
struct Options {
    /// Every endpoint of this locality: region, region/zone or region/zone/subzone
    #[arg(long)]
    locality: Option<String>,
    /// In this service alone; without an endpoint and a locality: the whole service
    #[arg(long)]
    service: Option<String>,
    /// How long it holds [default: until taken back]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    for_: Option<Duration>,
    /// Why, for whoever asks later
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Only say what it would do
    #[arg(long)]
    dry_run: bool,
    /// Wait until every connected client has a list that shows it, at most --timeout [default: 30s]
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

/// A target and the options.
#[derive(clap::Args)]
struct Target {
    /// Endpoint, host:port
    #[arg(value_parser = address::parse, conflicts_with = "locality", required_unless_present_any = ["locality", "service"])]
    endpoint: Option<String>,
    #[command(flatten)]
    options: Options,
}

/// Take endpoints out of every list; calls in flight end where they are
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside drain 10.0.1.11:50051 --wait --reason 'kernel upgrade'
  lookaside drain --locality eu/a --for 10m
  lookaside drain --service payments --dry-run")]
pub(crate) struct Drain {
    #[command(flatten)]
    target: Target,
}

/// Take back a drain or a disable
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lookaside undrain 10.0.1.11:50051")]
pub(crate) struct Undrain {
    #[command(flatten)]
    target: Target,
}

/// Take endpoints out of every list until further notice, whatever they say of themselves
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lookaside disable 10.0.1.11:50051 --reason 'bad disk'")]
pub(crate) struct Disable {
    #[command(flatten)]
    target: Target,
}

/// Take back a disable or a drain
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lookaside enable 10.0.1.11:50051")]
pub(crate) struct Enable {
    #[command(flatten)]
    target: Target,
}

/// Set the weight of endpoints, in percent of their configured weight
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside weight 10.0.1.11:50051 50%
  lookaside weight --locality eu/a 200% --for 1h
  lookaside weight 10.0.1.11:50051 100%   (as configured)")]
pub(crate) struct Weight {
    /// Endpoint, host:port (none with --locality or --service), and the percentage, 0% to 10000%
    #[arg(value_names = ["ENDPOINT", "PERCENT"], num_args = 1..=2, required = true)]
    values: Vec<String>,
    #[command(flatten)]
    options: Options,
}

/// What an operator orders, whichever command it was typed as.
pub(crate) struct Order {
    action: OverrideAction,
    weight_percent: u32,
    endpoint: Option<String>,
    options: Options,
}

impl Order {
    fn new(action: OverrideAction, target: Target) -> Self {
        Self {
            action,
            weight_percent: 0,
            endpoint: target.endpoint,
            options: target.options,
        }
    }
}

impl From<Drain> for Order {
    fn from(command: Drain) -> Self {
        Self::new(OverrideAction::Drain, command.target)
    }
}

impl From<Undrain> for Order {
    fn from(command: Undrain) -> Self {
        Self::new(OverrideAction::Undrain, command.target)
    }
}

impl From<Disable> for Order {
    fn from(command: Disable) -> Self {
        Self::new(OverrideAction::Disable, command.target)
    }
}

impl From<Enable> for Order {
    fn from(command: Enable) -> Self {
        Self::new(OverrideAction::Enable, command.target)
    }
}

impl TryFrom<Weight> for Order {
    type Error = Failure;

    fn try_from(command: Weight) -> Result<Self, Failure> {
        let usage = |text: String| {
            Failure::new(Exit::Usage, text).next("lookaside weight 10.0.1.11:50051 50%")
        };
        let elsewhere = command.options.locality.is_some() || command.options.service.is_some();
        let (endpoint, percent) = match command.values.as_slice() {
            [percent] if elsewhere => (None, percent),
            [_] => {
                return Err(usage(
                    "an endpoint and a percentage, or --locality or --service, are required"
                        .to_owned(),
                ));
            }
            [_, _] if command.options.locality.is_some() => {
                return Err(usage("an endpoint or a --locality, not both".to_owned()));
            }
            [endpoint, percent] => {
                let address = address::parse(endpoint)
                    .map_err(|words| usage(format!("`{endpoint}`: {words}")))?;
                (Some(address), percent)
            }
            _ => {
                return Err(usage(
                    "an endpoint and a percentage are required".to_owned(),
                ));
            }
        };
        let weight_percent =
            parse_percent(percent).map_err(|words| usage(format!("`{percent}`: {words}")))?;
        Ok(Self {
            action: OverrideAction::Weight,
            weight_percent,
            endpoint,
            options: command.options,
        })
    }
}

fn parse_percent(text: &str) -> Result<u32, String> {
    match text.strip_suffix('%').unwrap_or(text).parse::<u32>() {
        Ok(percent) if percent <= 10_000 => Ok(percent),
        _ => Err("a percentage from 0% to 10000% is expected".to_owned()),
    }
}

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

/// Gives the order to every named replica and prints its effect. Fails when any replica did not take it: the order
/// reaches that one later, through the backends' reports, if at all.
pub(crate) async fn run(global: &Global, order: Order) -> Result<(), Failure> {
    let request = request(&order)?;
    let mut taken: Vec<(Admin, Vec<Effect>)> = Vec::new();
    let mut failed = None;
    for address in &global.addr {
        match give(address, global, &request).await {
            Ok(answer) => taken.push(answer),
            Err(failure) => {
                if global.addr.len() > 1 {
                    eprintln!("note: {address} did not take it: {failure}");
                }
                failed.get_or_insert(failure);
            }
        }
    }
    if !taken.is_empty() {
        print(global, &order, &taken)?;
    }
    if order.options.wait {
        wait::until_heard(&taken, global.timeout).await?;
    }
    failed.map_or(Ok(()), Err)
}

async fn give(
    address: &str,
    global: &Global,
    request: &SetOverrideRequest,
) -> Result<(Admin, Vec<Effect>), Failure> {
    let admin = Admin::connect_to(address, global).await?;
    let answer = admin
        .answer(admin.client.clone().set_override(request.clone()))
        .await?;
    Ok((admin, answer.effects))
}

fn request(order: &Order) -> Result<SetOverrideRequest, Failure> {
    let options = &order.options;
    let scope = match (&order.endpoint, &options.locality, &options.service) {
        (Some(endpoint), _, _) => Scope::Address(endpoint.clone()),
        (None, Some(locality), _) => Scope::Locality(locality.clone()),
        (None, None, Some(_)) => Scope::WholeService(true),
        (None, None, None) => {
            return Err(Failure::new(
                Exit::Usage,
                "an endpoint, --locality or --service is required",
            ));
        }
    };
    let word = Override {
        service: options.service.clone().unwrap_or_default(),
        scope: Some(scope),
        action: order.action.into(),
        weight_percent: order.weight_percent,
        reason: options.reason.clone(),
        ..Override::default()
    };
    let for_ms = options.for_.map_or(0, duration::ms);
    Ok(SetOverrideRequest {
        r#override: Some(word),
        for_ms,
        dry_run: options.dry_run,
    })
}

fn print(global: &Global, order: &Order, taken: &[(Admin, Vec<Effect>)]) -> Result<(), Failure> {
    match global.output {
        Format::Table => {
            let rows = taken
                .iter()
                .flat_map(|(admin, effects)| effects.iter().map(move |e| row(admin, e)))
                .collect();
            output::text(&table(rows))?;
            if order.options.dry_run {
                eprintln!("note: a dry run: nothing was changed");
            }
            Ok(())
        }
        Format::Json => {
            let items = taken
                .iter()
                .flat_map(|(admin, effects)| {
                    effects
                        .iter()
                        .map(move |e| effect(&admin.status.balancer, e))
                })
                .collect();
            let keys = Keys {
                action: view::action(order.action.into()),
                dry_run: order.options.dry_run,
            };
            let first = taken
                .first()
                .map_or("", |(admin, _)| admin.status.balancer.as_str());
            output::json(&Envelope::with("EffectList", first, keys, items))
        }
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

fn row(admin: &Admin, effect: &Effect) -> Row {
    effect_row(&admin.status.balancer, effect)
}

fn effect_row(balancer: &str, effect: &Effect) -> Row {
    // A whole locality's addresses would make a line nobody reads.
    let addresses = match effect.addresses.as_slice() {
        [first, _, _, _, ..] => format!("{first} and {} more", effect.addresses.len() - 1),
        few => few.join(" "),
    };
    [
        balancer.to_owned(),
        effect.service.clone(),
        addresses,
        format!(
            "{} -> {} of {}",
            effect.eligible_before, effect.eligible_after, effect.endpoints
        ),
        view::mode(effect.mode_after).to_owned(),
        effect.clients.to_string(),
        effect.summary.clone(),
    ]
}

fn table(rows: Vec<Row>) -> String {
    output::table(
        [
            "BALANCER",
            "SERVICE",
            "ENDPOINTS",
            "ELIGIBLE",
            "MODE",
            "CLIENTS",
            "EFFECT",
        ],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use lookaside_proto::v1::{ListMode, Version};

    use super::*;

    fn options() -> Options {
        Options {
            locality: None,
            service: None,
            for_: None,
            reason: String::new(),
            dry_run: false,
            wait: false,
        }
    }

    fn weight(values: &[&str], options: Options) -> Result<Order, Failure> {
        Weight {
            values: values.iter().map(|v| (*v).to_owned()).collect(),
            options,
        }
        .try_into()
    }

    #[test]
    fn a_weight_is_for_an_endpoint_a_locality_or_a_service() {
        let order = weight(&["http://10.0.1.11:50051", "50%"], options()).unwrap();
        assert_eq!(
            (order.endpoint.as_deref(), order.weight_percent),
            (Some("10.0.1.11:50051"), 50)
        );
        let order = weight(
            &["200"],
            Options {
                locality: Some("eu/a".to_owned()),
                ..options()
            },
        )
        .unwrap();
        assert_eq!((order.endpoint, order.weight_percent), (None, 200));
        for (values, options) in [
            (["50%", ""], options()),
            (["10.0.1.11:50051", "10001%"], options()),
            (["10.0.1.11:50051", "-1%"], options()),
            (["nowhere", "50%"], options()),
            (
                ["10.0.1.11:50051", "50%"],
                Options {
                    locality: Some("eu/a".to_owned()),
                    ..options()
                },
            ),
        ] {
            assert_eq!(
                weight(&values, options).err().map(|f| f.exit),
                Some(Exit::Usage),
                "{values:?}"
            );
        }
        assert_eq!(
            weight(&["50%"], options()).err().map(|f| f.exit),
            Some(Exit::Usage)
        );
    }

    #[test]
    fn a_service_alone_means_all_of_it() {
        let order = |endpoint: Option<&str>, options| Order {
            action: OverrideAction::Drain,
            weight_percent: 0,
            endpoint: endpoint.map(ToOwned::to_owned),
            options,
        };
        let service = || Options {
            service: Some("s".to_owned()),
            ..options()
        };
        let scope = |order: Order| {
            request(&order)
                .ok()
                .and_then(|r| r.r#override)
                .and_then(|o| o.scope)
        };
        assert_eq!(
            scope(order(None, service())),
            Some(Scope::WholeService(true))
        );
        assert_eq!(
            scope(order(Some("a:1"), service())),
            Some(Scope::Address("a:1".to_owned()))
        );
        let locality = Options {
            locality: Some("eu".to_owned()),
            ..service()
        };
        assert_eq!(
            scope(order(None, locality)),
            Some(Scope::Locality("eu".to_owned()))
        );
        let ten_minutes = Options {
            for_: Some(Duration::from_secs(600)),
            ..service()
        };
        assert_eq!(
            request(&order(None, ten_minutes)).map(|r| r.for_ms).ok(),
            Some(600_000)
        );
    }

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
            summary: "share of the others grows from 16.7 % to 20.0 %".to_owned(),
            version: Some(Version {
                epoch: 1,
                sequence: 2,
            }),
        };
        assert_eq!(
            table(vec![effect_row("lb-0", &wire)]),
            "BALANCER  SERVICE  ENDPOINTS        ELIGIBLE     MODE    CLIENTS  EFFECT\n\
             lb-0      greeter  10.0.1.11:50051  6 -> 5 of 6  NORMAL  3        share of the others grows from 16.7 % to 20.0 %"
        );
        let json = serde_json::to_value(effect("lb-0", &wire)).unwrap();
        assert_eq!(json["eligibleAfter"], 5);
        assert_eq!(json["addresses"][0], "10.0.1.11:50051");
        assert_eq!(json["version"]["sequence"], 2);
    }
}
