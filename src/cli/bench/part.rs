//! `lookaside bench part`: what the benchmarks start. One line of JSON when it is ready, then one for each line that comes in;
//! the end of stdin is the end. Not for people.

use std::process::Stdio;

use lookaside_load::bench::calls::{Caller, Round};
use lookaside_load::bench::fleet::{self, Fleet};
use lookaside_load::bench::floor::Floor;
use lookaside_load::bench::subscribers::{Change, Config, Subscribers};
use lookaside_load::bench::window::{Callers, Window};
use lookaside_load::bench::{Error, clients, echo};
use prost::Message as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::process::Command;

use crate::exit::{Exit, Failure, chain};
use crate::output;
use crate::serve::raise_file_limit;
use crate::signals::Stop;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Servers that answer at once
    Echo {
        #[arg(long)]
        count: usize,
        /// Of this service: they say with every answer how loaded they are
        #[arg(long)]
        service: Option<String>,
    },
    /// A client process, through the SDK with a balancer, else through bare channels
    Calls {
        #[arg(long, value_delimiter = ',')]
        endpoints: Vec<String>,
        #[arg(long)]
        service: String,
        #[arg(long)]
        balancer: Option<String>,
    },
    /// Pick streams, one on each connection; the first line that comes in opens the others
    Subscribers {
        #[arg(long)]
        address: String,
        #[arg(long)]
        service: String,
        #[arg(long)]
        connections: usize,
        #[arg(long)]
        streams: usize,
    },
    /// A bare server of streams; the first line that comes in is the list, as hex
    Floor,
    /// Backends with virtual capacity; the first line that comes in says what to start, each one after it how many are to fail
    Fleet,
    /// Many clients; the first line that comes in says which, each one after it what to send
    Clients,
    /// Another program, which ends when nobody is left to say something here
    Guard {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<String>,
    },
}

/// When servers are ready.
#[derive(Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) addresses: Vec<String>,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    match args.part {
        Part::Echo { count, service } => {
            let addresses = echo::serve(count, service.as_deref()).await.map_err(failure)?;
            output::json(&Ready { addresses })?;
            while next::<()>(&mut lines).await?.is_some() {}
        }
        Part::Calls { endpoints, service, balancer } => {
            let caller = match balancer {
                Some(balancer) => Caller::sdk(&service, &balancer, endpoints.len()).await,
                None => Caller::bare(&endpoints).await,
            };
            let caller = caller.map_err(failure)?;
            output::json(&Ready { addresses: endpoints })?;
            while let Some(round) = next::<Round>(&mut lines).await? {
                output::json(&caller.round(round).await)?;
            }
        }
        Part::Subscribers { address, service, connections, streams } => {
            let config = Config { address, service, connections, streams };
            let mut subscribers = Subscribers::connect(config).await.map_err(failure)?;
            output::json(&())?;
            let Some(()) = next(&mut lines).await? else { return Ok(()) };
            subscribers.open_all().await.map_err(failure)?;
            output::json(&())?;
            while let Some(changes) = next::<Vec<Change>>(&mut lines).await? {
                output::json(&subscribers.told(&changes))?;
            }
        }
        Part::Floor => {
            output::json(&())?;
            let Some(hex) = next::<String>(&mut lines).await? else { return Ok(()) };
            let bytes = (0..hex.len() / 2).filter_map(|at| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok());
            let list = lookaside_proto::v1::List::decode(bytes.collect::<Vec<u8>>().as_slice());
            let list = list.map_err(|error| Failure::new(Exit::Usage, format!("this is no list: {error}")))?;
            let floor = Floor::serve(list).await.map_err(failure)?;
            output::json(&Ready { addresses: vec![floor.address.clone()] })?;
            while next::<()>(&mut lines).await?.is_some() {
                output::json(&floor.push())?;
            }
        }
        Part::Fleet => {
            raise_file_limit();
            output::json(&())?;
            let Some(plan) = next::<fleet::Plan>(&mut lines).await? else { return Ok(()) };
            let Some(fleet) = unless_alone(&mut lines, Fleet::start(plan)).await else { return Ok(()) };
            let fleet = fleet.map_err(failure)?;
            output::json(&Ready { addresses: fleet.addresses() })?;
            while let Some(count) = next::<u32>(&mut lines).await? {
                output::json(&fleet.fail(count))?;
            }
        }
        Part::Clients => {
            raise_file_limit();
            output::json(&())?;
            let Some(plan) = next::<clients::Plan>(&mut lines).await? else { return Ok(()) };
            let Some(callers) = unless_alone(&mut lines, Callers::connect(&plan)).await else { return Ok(()) };
            let callers = callers.map_err(failure)?;
            output::json(&())?;
            while let Some(window) = next::<Window>(&mut lines).await? {
                let Some(told) = unless_alone(&mut lines, callers.run(window)).await else { return Ok(()) };
                output::json(&told)?;
            }
        }
        Part::Guard { program } => {
            let Some((name, args)) = program.split_first() else { return Ok(()) };
            let mut stop = Stop::catch()?;
            let started = Command::new(name).args(args).stdin(Stdio::null()).kill_on_drop(true).spawn();
            let mut guarded = started.map_err(|error| Failure::new(Exit::Failed, format!("{name}: {error}")))?;
            tokio::select! {
                ended = unless_alone(&mut lines, guarded.wait()) => if ended.is_some() {
                    return Err(Failure::new(Exit::Failed, format!("{name} ended")));
                },
                () = stop.requested() => {}
            }
            // Gone already is gone as well.
            let _ = guarded.kill().await;
        }
    }
    Ok(())
}

/// The next question; `None` when nobody is there to ask any more.
async fn next<Q: DeserializeOwned>(lines: &mut Lines<BufReader<Stdin>>) -> Result<Option<Q>, Failure> {
    let Some(line) = lines.next_line().await? else { return Ok(None) };
    let question = serde_json::from_str(&line);
    question.map(Some).map_err(|error| Failure::new(Exit::Usage, format!("{error} in {line}")))
}

/// Does what takes minutes, as a window may; `None` when whoever asked has gone meanwhile. Nobody asks twice.
async fn unless_alone<T>(lines: &mut Lines<BufReader<Stdin>>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        _ = lines.next_line() => None,
    }
}

fn failure(error: Error) -> Failure {
    Failure::new(Exit::Failed, chain(&error))
}
