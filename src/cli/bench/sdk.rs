//! `lookaside bench sdk`: what a call costs a client through the SDK, beside bare tonic channels with as many connections. Two
//! client processes take turns, round by round, so that what else the machine does is in both.

use std::time::Duration;

use lookaside_load::bench::calls::{Round, Told};
use serde::Serialize;

use super::child::Child;
use super::part::Ready;
use super::{Figure, median, tell};
use crate::Global;
use crate::exit::{Exit, Failure};

/// What the whole may be of what a bare channel costs.
const CPU_RATIO_MAX: f64 = 1.05;

const SERVICE: &str = "bench";

/// A call's cost through the SDK beside that of bare tonic channels, in turns: processor time of the client and latency
#[derive(clap::Args, Serialize)]
#[serde(rename_all = "camelCase")]
#[command(after_help = "Examples:
  lookaside bench sdk
  lookaside bench sdk --endpoints 10 --in-flight 64 --rounds 15 --check
  lookaside bench sdk --rate 2000 -o json

cpu_ratio is SDK over bare: processor time of the client process per call, of the system on its behalf included, median over
rounds of each pair of rounds. Bare: one tonic Channel per endpoint, in turns. SDK: one connection per endpoint as well, a list
from a balancer of its own, policy least_load. Servers answer at once, from other processes. Those of the SDK say in every answer
what they have in flight, as its backends do (not with --plain); those of bare channels never do.")]
pub(super) struct Args {
    /// Endpoints, and so connections of each side
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=200))]
    endpoints: u16,
    /// Calls at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    in_flight: u16,
    /// Calls per second; 0: each as soon as one before it has ended
    #[arg(long, value_name = "R", default_value_t = 0.0, value_parser = rate)]
    rate: f64,
    /// Pairs of rounds, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// Calls in a round
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    calls: u64,
    /// The SDK calls servers that say nothing of their load either
    #[arg(long)]
    plain: bool,
    /// Exit 1 when cpu_ratio is above 1.05
    #[arg(long)]
    check: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || (1.0..=1e6).contains(&rate) => Ok(rate),
        _ => Err("a number from 1 to 1000000, or 0, is expected".to_owned()),
    }
}

type Column = fn(&Told) -> u64;

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let count = args.endpoints.to_string();
    let servers = ["bench", "part", "echo", "--count", &count];
    let reporting = [&servers[..], if args.plain { &[] } else { &["--service", SERVICE] }].concat();
    let (_of_bare, of_bare) = Child::start::<Ready>("the servers", &servers).await?;
    let (_of_sdk, of_sdk) = Child::start::<Ready>("the SDK's servers", &reporting).await?;
    let endpoints = of_sdk.addresses.join("', '");
    let config = format!("services: [{{ name: {SERVICE}, endpoints: ['{endpoints}'], subset_size: 0 }}]");
    let (_balancer, at) = Child::balancer(&config).await?;
    let (of_bare, of_sdk) = (of_bare.addresses.join(","), of_sdk.addresses.join(","));
    let calls = ["bench", "part", "calls", "--service", SERVICE, "--endpoints"];
    let (mut bare, _) = Child::start::<Ready>("the bare client", &[&calls[..], &[&of_bare]].concat()).await?;
    let with_balancer = [&calls[..], &[&of_sdk, "--balancer", &at.client]].concat();
    let (mut sdk, _) = Child::start::<Ready>("the SDK's client", &with_balancer).await?;

    let round = Round { calls: args.calls, in_flight: args.in_flight.into(), rate_per_s: args.rate };
    let mut pairs: Vec<(Told, Told)> = Vec::new();
    for number in 0..=args.rounds {
        // Whoever is first in one round is second in the next.
        let (of_sdk, of_bare): (Told, Told) = if number % 2 == 0 {
            let first = sdk.ask(&round).await?;
            (first, bare.ask(&round).await?)
        } else {
            let first = bare.ask(&round).await?;
            (sdk.ask(&round).await?, first)
        };
        if of_sdk.failed + of_bare.failed > 0 {
            let failed = format!("{} calls through the SDK and {} bare ones failed", of_sdk.failed, of_bare.failed);
            return Err(Failure::new(Exit::Failed, failed));
        }
        let ratio = of_sdk.cpu_ns_per_call as f64 / of_bare.cpu_ns_per_call.max(1) as f64;
        eprintln!(
            "round {number}: SDK {} ns/call, bare {} ns/call, ratio {ratio:.3}{}",
            of_sdk.cpu_ns_per_call,
            of_bare.cpu_ns_per_call,
            if number == 0 { " (to warm up)" } else { "" }
        );
        if number > 0 {
            pairs.push((of_sdk, of_bare));
        }
        // Outcomes are told once a second: not in the same part of every round.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ratio = |of: Column| median(pairs.iter().map(|(sdk, bare)| of(sdk) as f64 / of(bare).max(1) as f64));
    let mut figures = vec![
        Figure::new("SDK/bare", "cpu_ratio", ratio(|t| t.cpu_ns_per_call)).at_most(CPU_RATIO_MAX),
        Figure::new("SDK/bare", "p50_ratio", ratio(|t| t.p50_us)),
        Figure::new("SDK/bare", "p99_ratio", ratio(|t| t.p99_us)),
    ];
    let columns: [(&str, Column); 4] = [
        ("client_cpu_ns_per_call", |t| t.cpu_ns_per_call),
        ("p50_us", |t| t.p50_us),
        ("p99_us", |t| t.p99_us),
        ("calls_per_s", |t| t.calls_per_s),
    ];
    for (name, of) in columns {
        figures.push(Figure::new("SDK", name, median(pairs.iter().map(|(sdk, _)| of(sdk) as f64))));
        figures.push(Figure::new("bare", name, median(pairs.iter().map(|(_, bare)| of(bare) as f64))));
    }
    let check = args.check;
    tell(global, "BenchSdk", args, figures, check)
}
