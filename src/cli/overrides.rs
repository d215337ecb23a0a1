//! `lookaside drain` and its siblings: an operator's word on an endpoint, a locality or a service. Never prompts; says
//! what the word does, or would do; `--wait` waits until every client has heard it.

use std::time::Duration;

use lookaside_proto::v1::{
    ListEndpointsRequest, Override, OverrideAction, SetOverrideRequest, r#override::Scope,
    set_override_response::Effect,
};

use crate::admin::{self, Admin};
use crate::exit::{Exit, Failure};
use crate::{Global, address, duration};

mod effect;
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
#[command(
    override_usage = "lookaside drain [OPTIONS] <ENDPOINT | --locality LOCALITY | --service SERVICE>",
    after_help = "Examples:
  lookaside drain 10.0.1.11:50051 --wait --reason 'kernel upgrade'
  lookaside drain --locality eu/a --for 10m
  lookaside drain --service payments --dry-run"
)]
pub(crate) struct Drain {
    #[command(flatten)]
    target: Target,
}

/// Take back a drain
#[derive(clap::Args)]
#[command(
    override_usage = "lookaside undrain [OPTIONS] <ENDPOINT | --locality LOCALITY | --service SERVICE>",
    after_help = "Example:\n  lookaside undrain 10.0.1.11:50051"
)]
pub(crate) struct Undrain {
    #[command(flatten)]
    target: Target,
}

/// Take endpoints out of every list until further notice, whatever they say of themselves
#[derive(clap::Args)]
#[command(
    override_usage = "lookaside disable [OPTIONS] <ENDPOINT | --locality LOCALITY | --service SERVICE>",
    after_help = "Example:\n  lookaside disable 10.0.1.11:50051 --reason 'bad disk'"
)]
pub(crate) struct Disable {
    #[command(flatten)]
    target: Target,
}

/// Take back a disable
#[derive(clap::Args)]
#[command(
    override_usage = "lookaside enable [OPTIONS] <ENDPOINT | --locality LOCALITY | --service SERVICE>",
    after_help = "Example:\n  lookaside enable 10.0.1.11:50051"
)]
pub(crate) struct Enable {
    #[command(flatten)]
    target: Target,
}

/// Set the weight of endpoints, in percent of their configured weight
#[derive(clap::Args)]
#[command(
    override_usage = "lookaside weight [OPTIONS] [ENDPOINT] <PERCENT>",
    after_help = "Examples:
  lookaside weight 10.0.1.11:50051 50%
  lookaside weight --locality eu/a 200% --for 1h
  lookaside weight 10.0.1.11:50051 100%   (as configured)"
)]
pub(crate) struct Weight {
    /// Endpoint, host:port (none with --locality or --service), and the percentage, 0% to 10000%
    #[arg(value_name = "[ENDPOINT] PERCENT", num_args = 1..=2, required = true)]
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
        Self { action, weight_percent: 0, endpoint: target.endpoint, options: target.options }
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
        let usage = |text: String| Failure::new(Exit::Usage, text).next("lookaside weight 10.0.1.11:50051 50%");
        let elsewhere = command.options.locality.is_some() || command.options.service.is_some();
        let (endpoint, percent) = match command.values.as_slice() {
            [percent] if elsewhere => (None, percent),
            [_] => {
                return Err(usage("an endpoint and a percentage, or --locality or --service, are required".to_owned()));
            }
            [_, _] if command.options.locality.is_some() => {
                return Err(usage("an endpoint or a --locality, not both".to_owned()));
            }
            [endpoint, percent] => {
                let address = address::parse(endpoint).map_err(|words| usage(format!("`{endpoint}`: {words}")))?;
                (Some(address), percent)
            }
            _ => {
                return Err(usage("an endpoint and a percentage are required".to_owned()));
            }
        };
        let weight_percent = parse_percent(percent).map_err(|words| usage(format!("`{percent}`: {words}")))?;
        Ok(Self { action: OverrideAction::Weight, weight_percent, endpoint, options: command.options })
    }
}

fn parse_percent(text: &str) -> Result<u32, String> {
    match text.strip_suffix('%').unwrap_or(text).parse::<u32>() {
        Ok(percent) if percent <= 10_000 => Ok(percent),
        _ => Err("a percentage from 0% to 10000% is expected".to_owned()),
    }
}

/// An order that a replica took.
struct Taken {
    admin: Admin,
    effects: Vec<Effect>,
    /// It takes something back, and nothing of the kind stood.
    idle: bool,
}

/// Gives the order to every named replica and prints its effect. Fails when any replica did not take it: the order
/// reaches that one later, through the backends' reports, if at all.
pub(crate) async fn run(global: &Global, order: Order) -> Result<(), Failure> {
    let request = request(&order)?;
    let mut taken: Vec<Taken> = Vec::new();
    let mut failures = Vec::new();
    for address in &global.addr {
        match give(address, global, &request).await {
            Ok(answer) => taken.push(answer),
            Err(failure) => failures.push(failure),
        }
    }
    if !taken.is_empty() {
        effect::print(global, &order, &taken)?;
    }
    if order.options.wait {
        wait::until_heard(&taken, global.timeout).await?;
        eprintln!("note: every connected client has heard of it");
    }
    admin::first_of(failures).map_or(Ok(()), Err)
}

async fn give(address: &str, global: &Global, request: &SetOverrideRequest) -> Result<Taken, Failure> {
    let admin = Admin::connect_to(address, global).await?;
    let mut order = tonic::Request::new(request.clone());
    if let Some(token) = global.secure.authorization(&admin.address, admin.over_tls)? {
        order.metadata_mut().insert("authorization", token);
    }
    let word = request.r#override.clone().unwrap_or_default();
    let undoes = undone_by(word.action());
    // Asked before, for afterwards nothing is left to see. The order does not wait for a question that fails.
    let standing = match undoes {
        Some(action) => standing(&admin, &word.service, action).await.ok(),
        None => None,
    };
    let effects = admin.answer(admin.client.clone().set_override(order)).await?.effects;
    let idle = standing.is_some_and(|standing| {
        let concerns = |e: &Effect, (service, address): &Place| e.service == *service && e.addresses.contains(address);
        !standing.iter().any(|place| effects.iter().any(|effect| concerns(effect, place)))
    });
    Ok(Taken { admin, effects, idle })
}

/// What an order takes back, if that is what it is for.
fn undone_by(action: OverrideAction) -> Option<OverrideAction> {
    match action {
        OverrideAction::Undrain => Some(OverrideAction::Drain),
        OverrideAction::Enable => Some(OverrideAction::Disable),
        OverrideAction::Unspecified | OverrideAction::Drain | OverrideAction::Disable | OverrideAction::Weight => None,
    }
}

/// Service and address of an endpoint.
type Place = (String, String);

/// The endpoints on which such a word stands.
async fn standing(admin: &Admin, service: &str, action: OverrideAction) -> Result<Vec<Place>, Failure> {
    let request = ListEndpointsRequest { service: service.to_owned(), excluded_only: false };
    let endpoints = admin.answer(admin.client.clone().list_endpoints(request)).await?.endpoints;
    let with_it = endpoints.into_iter().filter(|detail| detail.overrides.iter().any(|word| word.action() == action));
    Ok(with_it.map(|detail| (detail.service, detail.endpoint.unwrap_or_default().address)).collect())
}

fn request(order: &Order) -> Result<SetOverrideRequest, Failure> {
    let options = &order.options;
    let scope = match (&order.endpoint, &options.locality, &options.service) {
        (Some(endpoint), _, _) => Scope::Address(endpoint.clone()),
        (None, Some(locality), _) => Scope::Locality(locality.clone()),
        (None, None, Some(_)) => Scope::WholeService(true),
        (None, None, None) => {
            return Err(Failure::new(Exit::Usage, "an endpoint, --locality or --service is required"));
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
    Ok(SetOverrideRequest { r#override: Some(word), for_ms, dry_run: options.dry_run })
}

#[cfg(test)]
mod tests {

    use super::*;

    fn options() -> Options {
        Options { locality: None, service: None, for_: None, reason: String::new(), dry_run: false, wait: false }
    }

    fn weight(values: &[&str], options: Options) -> Result<Order, Failure> {
        Weight { values: values.iter().map(|v| (*v).to_owned()).collect(), options }.try_into()
    }

    #[test]
    fn a_weight_is_for_an_endpoint_a_locality_or_a_service() {
        let order = weight(&["http://10.0.1.11:50051", "50%"], options()).unwrap();
        assert_eq!((order.endpoint.as_deref(), order.weight_percent), (Some("10.0.1.11:50051"), 50));
        let order = weight(&["200"], Options { locality: Some("eu/a".to_owned()), ..options() }).unwrap();
        assert_eq!((order.endpoint, order.weight_percent), (None, 200));
        for (values, options) in [
            (["50%", ""], options()),
            (["10.0.1.11:50051", "10001%"], options()),
            (["10.0.1.11:50051", "-1%"], options()),
            (["nowhere", "50%"], options()),
            (["10.0.1.11:50051", "50%"], Options { locality: Some("eu/a".to_owned()), ..options() }),
        ] {
            assert_eq!(weight(&values, options).err().map(|f| f.exit), Some(Exit::Usage), "{values:?}");
        }
        assert_eq!(weight(&["50%"], options()).err().map(|f| f.exit), Some(Exit::Usage));
    }

    #[test]
    fn a_service_alone_means_all_of_it() {
        let order = |endpoint: Option<&str>, options| Order {
            action: OverrideAction::Drain,
            weight_percent: 0,
            endpoint: endpoint.map(ToOwned::to_owned),
            options,
        };
        let service = || Options { service: Some("s".to_owned()), ..options() };
        let scope = |order: Order| request(&order).ok().and_then(|r| r.r#override).and_then(|o| o.scope);
        assert_eq!(scope(order(None, service())), Some(Scope::WholeService(true)));
        assert_eq!(scope(order(Some("a:1"), service())), Some(Scope::Address("a:1".to_owned())));
        let locality = Options { locality: Some("eu".to_owned()), ..service() };
        assert_eq!(scope(order(None, locality)), Some(Scope::Locality("eu".to_owned())));
        let ten_minutes = Options { for_: Some(Duration::from_secs(600)), ..service() };
        assert_eq!(request(&order(None, ten_minutes)).map(|r| r.for_ms).ok(), Some(600_000));
    }
}
