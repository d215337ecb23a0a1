//! `lookaside`, the one binary: the balancer itself, and the clients of its documented APIs that operators type. A file
//! per command. Nothing is decided here: what a command says was decided by the balancer, and what it measures by
//! `lookaside-load`.

mod address;
mod admin;
mod bench;
mod clients;
mod dev;
mod duration;
mod endpoints;
mod exit;
mod explain;
mod health;
mod logs;
mod output;
mod overrides;
mod pick;
mod secure;
mod serve;
mod services;
mod signals;
mod simulate;
mod status;
mod validate;
mod version;
mod view;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::exit::{Exit, Failure};
use crate::output::{Asked, Format};

/// Lookaside: a lookaside load balancer for gRPC. Clients ask it where to send, then send there themselves.
#[derive(Parser)]
#[command(name = "lookaside", version, after_long_help = exit::HELP, after_help = "Exit codes: see --help.", max_term_width = 128)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(clap::Args)]
pub(crate) struct Global {
    /// Admin listener of the balancer, http:// in plaintext, https:// over TLS (--ca); several replicas with commas: reads ask the first that answers, overrides go to all
    #[arg(
        short, long, global = true, env = "LOOKASIDE_ADDR", value_name = "ADDR[,ADDR]", help_heading = "Global options",
        default_value = "http://127.0.0.1:7401", value_delimiter = ',', value_parser = address::parse_admin
    )]
    pub(crate) addr: Vec<String>,
    /// How long one question may take [default: 5s], or how long --wait waits [default: 30s]
    #[arg(long, global = true, value_name = "DURATION", help_heading = "Global options", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// How data is written to stdout
    #[arg(
        id = "output",
        short = 'o',
        long = "output",
        value_name = "OUTPUT",
        global = true,
        value_enum,
        default_value = "table",
        help_heading = "Global options"
    )]
    pub(crate) asked: Asked,
    /// The same, for commands that write no CSV.
    #[arg(skip)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) secure: secure::Args,
    #[command(flatten)]
    pub(crate) logs: logs::Args,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Args),
    Dev(dev::Args),
    Bench(bench::Args),
    Simulate(simulate::Args),
    Status(status::Args),
    Services(services::Args),
    Endpoints(endpoints::Args),
    Clients(clients::Args),
    Pick(pick::Args),
    Explain(explain::Args),
    Watch(watch::Args),
    Drain(overrides::Drain),
    Undrain(overrides::Undrain),
    Disable(overrides::Disable),
    Enable(overrides::Enable),
    Weight(overrides::Weight),
    Health(health::Args),
    Validate(validate::Args),
    Version(version::Args),
}

/// How long the process waits at its end for threads that a disk or a name server keeps.
const THREADS_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let done = runtime.block_on(run(cli));
            runtime.shutdown_timeout(THREADS_WAIT);
            done
        }
        Err(error) => Err(Failure::new(Exit::Failed, format!("cannot start: {error}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(mut cli: Cli) -> Result<(), Failure> {
    cli.global.output = format(&cli)?;
    let level = match &cli.command {
        Command::Serve(_) => logs::Level::Info,
        // What goes wrong there goes wrong on purpose, and is said in its own words.
        Command::Dev(args) if args.is_whole() => logs::Level::Error,
        _ => logs::Level::Warn,
    };
    logs::start(&cli.global.logs, level)?;
    dispatch(cli).await
}

/// What the command is to write, where it writes no CSV.
fn format(cli: &Cli) -> Result<Format, Failure> {
    match cli.global.asked {
        Asked::Table => Ok(Format::Table),
        Asked::Json => Ok(Format::Json),
        Asked::Csv if matches!(&cli.command, Command::Simulate(args) if args.writes_csv()) => Ok(Format::Table),
        Asked::Csv => Err(Failure::new(Exit::Usage, "only `lookaside simulate run` writes CSV")),
    }
}

async fn dispatch(Cli { global, command }: Cli) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Dev(args) => dev::run(&global, args).await,
        Command::Bench(args) => bench::run(&global, args).await,
        Command::Simulate(args) => simulate::run(&global, args),
        Command::Status(args) => status::run(&global, args).await,
        Command::Services(args) => services::run(&global, args).await,
        Command::Endpoints(args) => endpoints::run(&global, args).await,
        Command::Clients(args) => clients::run(&global, args).await,
        Command::Pick(args) => pick::run(&global, args).await,
        Command::Explain(args) => explain::run(&global, args).await,
        Command::Watch(args) => watch::run(&global, args).await,
        Command::Drain(args) => overrides::run(&global, args.into()).await,
        Command::Undrain(args) => overrides::run(&global, args.into()).await,
        Command::Disable(args) => overrides::run(&global, args.into()).await,
        Command::Enable(args) => overrides::run(&global, args.into()).await,
        Command::Weight(args) => overrides::run(&global, args.try_into()?).await,
        Command::Health(args) => health::run(&global, args).await,
        Command::Validate(args) => validate::run(&global, args),
        Command::Version(args) => version::run(&global, args),
    }
}

#[cfg(test)]
mod tests;
