//! `lookaside dev client`: open-loop load through the SDK, from a process of its own.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use lookaside_load::generator::{self, MethodPolicy};
use lookaside_tls::Tls;
use tonic::Code;

use super::live::Live;
use super::{follow, start_load, summary};
use crate::exit::{Exit, Failure};
use crate::signals::Stop;
use crate::{Global, address, duration};

/// Send load to demo backends through the SDK; latency counts from the scheduled start of each call
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside dev client --service greeter --balancer 127.0.0.1:7400 --clients 3 --rate 600 --for 20s -o json
  lookaside dev client --service greeter --balancer 127.0.0.1:7400 --idempotent --attempts 3 --hedge-after 80ms

The summary goes to stdout at the end, or at Ctrl-C; exit 0 whatever becomes of the calls.
A call beyond 10000 in flight is not sent: it counts as failed with RESOURCE_EXHAUSTED.")]
pub(crate) struct Args {
    /// Service to call
    #[arg(long)]
    service: String,
    /// Client listeners of the balancers to ask
    #[arg(long, value_name = "ADDR[,ADDR]", value_delimiter = ',', required = true, value_parser = address::parse)]
    balancer: Vec<String>,
    /// Clients, each with a pick stream and connections of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    clients: u16,
    /// They call themselves this, a dash and a number [default: a random name]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    client_id: String,
    /// region/zone/subzone they say they are in
    #[arg(long, default_value = "", hide_default_value = true)]
    locality: String,
    /// Where they keep their lists, to start with when no balancer answers
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Calls per second, all clients together
    #[arg(long, value_name = "R", default_value_t = 600.0)]
    rate: f64,
    /// How long calls are started
    #[arg(long = "for", value_name = "DURATION", default_value = "20s", value_parser = duration::parse)]
    for_: Duration,
    /// Deadline of each call
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    deadline: Duration,
    /// Times between calls vary as those of independent callers do
    #[arg(long)]
    poisson: bool,
    /// Endpoints are called over TLS, as balancers are with --ca, and have to show the name that the list says
    #[arg(long)]
    endpoint_tls: bool,
    /// Backends wait this long between the work and the answer
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration::parse)]
    answer_delay: Duration,
    #[command(flatten)]
    repeats: Repeats,
    /// Calls a client may have in flight on one endpoint, 0 for any number [default: what the balancer says]
    #[arg(long, value_name = "N")]
    endpoint_calls_max: Option<u32>,
}

/// How calls are repeated; without any of it, as the balancer says.
#[derive(clap::Args)]
struct Repeats {
    /// Executing a call twice is as good as once
    #[arg(long)]
    idempotent: bool,
    /// Executions that one call may try, the first included
    #[arg(long, value_name = "N", requires = "idempotent", value_parser = clap::value_parser!(u32).range(1..=5))]
    attempts: Option<u32>,
    /// Ends that are worth another attempt [default: unavailable]
    #[arg(long, value_name = "CODE[,CODE]", value_delimiter = ',', requires = "attempts")]
    retry_on: Vec<RetryOn>,
    /// Send a call that is unanswered for so long to another endpoint beside the first
    #[arg(long, value_name = "DURATION", requires = "idempotent", value_parser = duration::parse)]
    hedge_after: Option<Duration>,
}

/// Ends that demo backends come to and that another attempt may help.
#[derive(Clone, Copy, clap::ValueEnum)]
enum RetryOn {
    /// Connections lost, and backends that say so.
    Unavailable,
    /// Queues that are full.
    ResourceExhausted,
    /// What --fail-rate of a backend makes.
    Internal,
}

impl Repeats {
    fn policy(&self) -> Option<MethodPolicy> {
        if !self.idempotent {
            return None;
        }
        let mut policy = MethodPolicy::new().idempotent().attempts(self.attempts.unwrap_or(1));
        if !self.retry_on.is_empty() {
            policy = policy.retry_on(self.retry_on.iter().map(|code| match code {
                RetryOn::Unavailable => Code::Unavailable,
                RetryOn::ResourceExhausted => Code::ResourceExhausted,
                RetryOn::Internal => Code::Internal,
            }));
        }
        if let Some(delay) = self.hedge_after {
            policy = policy.hedge_after(delay);
        }
        Some(policy)
    }
}

/// Fails where nothing says whom to trust.
fn endpoint_tls(global: &Global) -> Result<Option<Tls>, Failure> {
    match global.secure.endpoint_tls()? {
        None => Err(Failure::new(Exit::Usage, "--endpoint-tls needs the CA of the endpoints").next("--ca FILE")),
        tls => Ok(tls),
    }
}

/// Sends the load and prints the summary. Fails when no balancer gives a list.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let mut stop = Stop::catch()?;
    let load = start_load(generator::Config {
        clients: usize::from(args.clients),
        client_id: args.client_id,
        locality: args.locality,
        cache_dir: args.cache_dir,
        rate_per_s: args.rate,
        duration: Some(args.for_),
        deadline: args.deadline,
        poisson: args.poisson,
        answer_delay: args.answer_delay,
        policy: args.repeats.policy(),
        endpoint_calls_max: args.endpoint_calls_max,
        balancer_tls: global.secure.tls()?,
        tls: if args.endpoint_tls { endpoint_tls(global)? } else { None },
        ..generator::Config::new(args.service, &args.balancer)
    })
    .await?;
    let live = RefCell::new(Live::new());
    let summary = follow(&load, &live, &mut stop).await;
    summary::print(global, &summary)
}
