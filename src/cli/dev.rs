//! `lookaside dev`: a balancer, demo backends and load from SDK clients in one process on loopback, to see it work in a
//! minute; and its parts as processes of their own, to break them for real.

use std::cell::RefCell;
use std::time::Duration;

use clap::Subcommand;
use lookaside_load::generator::{self, Run, Summary};

use crate::Global;
use crate::duration;
use crate::exit::{Exit, Failure, chain};
use crate::signals::Stop;

mod backend;
mod chaos;
mod client;
mod fleet;
mod live;
mod summary;

use chaos::Chaos;
use fleet::Fleet;
use live::Live;

/// See it work: balancer, demo backends of unequal speed, and load, in one process on loopback
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  lookaside dev
  lookaside dev --endpoints 6 --clients 3 --rate 600 --for 20s --chaos kill
  lookaside dev -o json
  lookaside dev backend --help     (demo backends in a process of their own)
  lookaside dev client --help      (load in a process of its own)

A table goes to stderr while it runs; the summary goes to stdout at the end, or at Ctrl-C."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    demo: Demo,
}

impl Args {
    /// Whether the whole demonstration is asked for, and not a part of it.
    pub(crate) fn is_whole(&self) -> bool {
        self.part.is_none()
    }
}

#[derive(Subcommand)]
enum Part {
    Backend(backend::Args),
    Client(client::Args),
}

/// What the whole demonstration is made of.
#[derive(clap::Args)]
struct Demo {
    /// Demo backends
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=1000))]
    endpoints: u16,
    /// Clients, each with a pick stream and connections of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    clients: u16,
    /// Calls per second, all clients together
    #[arg(long, value_name = "R", default_value_t = 600.0)]
    rate: f64,
    /// How long calls are started
    #[arg(long = "for", value_name = "DURATION", default_value = "20s", value_parser = duration::parse)]
    for_: Duration,
    /// What happens meanwhile
    #[arg(long, value_enum, default_value = "none")]
    chaos: Chaos,
}

/// Runs the demonstration or one of its parts; exit 0 whatever becomes of the calls.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    match args.part {
        Some(Part::Backend(part)) => backend::run(global, part).await,
        Some(Part::Client(part)) => client::run(global, part).await,
        None => demo(global, args.demo).await,
    }
}

async fn demo(global: &Global, args: Demo) -> Result<(), Failure> {
    let mut stop = Stop::catch()?;
    let mut fleet = tokio::select! {
        fleet = Fleet::start(args.endpoints) => fleet?,
        () = stop.requested() => return Err(Failure::new(Exit::Failed, "told to stop before the load began")),
    };
    eprintln!(
        "balancer: clients at {}, metrics at http://{}/metrics; ask it with: lookaside -a {} endpoints",
        fleet.addresses.client, fleet.addresses.metrics, fleet.addresses.admin
    );
    let load = start_load(generator::Config {
        clients: usize::from(args.clients),
        client_id: "dev".to_owned(),
        rate_per_s: args.rate,
        duration: Some(args.for_),
        ..generator::Config::new(fleet::SERVICE, [fleet.addresses.client.to_string()])
    })
    .await?;
    let live = RefCell::new(Live::new());
    let chaos = async {
        match chaos::run(&mut fleet, args.chaos, args.for_, &live).await {
            Ok(()) => std::future::pending().await,
            Err(failure) => failure,
        }
    };
    let summary = tokio::select! {
        summary = follow(&load, &live, &mut stop) => summary,
        failure = chaos => return Err(failure),
    };
    // The clients first: a fleet that stops under them would look like trouble.
    drop(load);
    fleet.stop().await?;
    summary::print(global, &summary)
}

/// Starts load. Fails when it cannot be, or when no list came.
async fn start_load(config: generator::Config) -> Result<Run, Failure> {
    Run::start(config).await.map_err(|error| {
        let exit = match error {
            generator::Error::Range { .. } => Exit::Usage,
            generator::Error::Channel(_) => Exit::Unreachable,
        };
        Failure::new(exit, chain(&error))
    })
}

/// Shows how it goes until it is over; the first request to stop ends it early.
async fn follow(load: &Run, live: &RefCell<Live>, stop: &mut Stop) -> Summary {
    let mut tick = tokio::time::interval(live.borrow().period());
    let mut finished = std::pin::pin!(load.finished());
    loop {
        tokio::select! {
            summary = &mut finished => {
                live.borrow_mut().clear();
                return summary;
            }
            _ = tick.tick() => live.borrow_mut().draw(&load.progress()),
            () = stop.requested() => {
                live.borrow_mut().say("stopping: calls in flight end");
                load.stop();
            }
        }
    }
}
