//! `lookaside health`: `grpc.health.v1` against the client listener, for container health checks: no other tool needed.

use serde::Serialize;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::admin::{self, Admin};
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};
use crate::{Global, address};

/// Check that the balancer serves its clients, for the health check of a container
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside health
  lookaside health --balancer 127.0.0.1:7400   (without asking the admin listener where clients connect)

Exit codes: 0 serving, 1 not serving, 3 unknown service, 4 unreachable.")]
pub(crate) struct Args {
    /// What to ask about, as grpc.health.v1 names it [default: the balancer as a whole]
    #[arg(long, default_value = "", hide_default_value = true)]
    service: String,
    /// Client listener to ask [default: what the admin listener names]
    #[arg(long, value_name = "ADDR", value_parser = address::parse)]
    balancer: Option<String>,
}

/// The answer in JSON.
#[derive(Serialize)]
struct Health {
    service: String,
    status: &'static str,
}

/// Prints the status. Fails unless it is SERVING.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let (balancer, identity, tls) = match args.balancer {
        Some(balancer) => (balancer, String::new(), global.secure.tls()?),
        None => {
            let admin = Admin::connect(global).await?;
            (admin.client_address(), admin.status.balancer.clone(), admin.client_tls(global)?)
        }
    };
    let timeout = admin::question_timeout(global);
    let (channel, trouble) = admin::connect(&balancer, timeout, tls).await?;
    let mut client = HealthClient::new(channel);
    let request = HealthCheckRequest { service: args.service.clone() };
    let answer = admin::answer(&balancer, timeout, &trouble, client.check(request)).await?;
    let status = ServingStatus::try_from(answer.status).unwrap_or(ServingStatus::Unknown);
    match global.output {
        Format::Table => output::text(status.as_str_name())?,
        Format::Json => {
            let item = Health { service: args.service, status: status.as_str_name() };
            output::json(&Envelope::new("Health", &identity, vec![item]))?;
        }
    }
    match status {
        ServingStatus::Serving => Ok(()),
        ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown => {
            let text = format!("the balancer at {balancer} says {}", status.as_str_name());
            Err(Failure::new(Exit::Failed, text).next("lookaside status"))
        }
    }
}
