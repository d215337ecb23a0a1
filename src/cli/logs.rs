//! Logs of this process, on stderr: stdout is for data.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::exit::{Exit, Failure};

/// How this process logs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to log: a level, or a filter such as `info,lookaside_balancer=debug` [default: info for serve, error for dev, else warn]
    #[arg(long, global = true, env = "LOOKASIDE_LOG", value_name = "FILTER", help_heading = "Global options")]
    log: Option<String>,
    /// How log lines look on stderr
    #[arg(long, global = true, value_enum, default_value = "pretty", help_heading = "Global options")]
    log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// What is logged when nobody says otherwise.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

/// Starts logging, once per process. Fails when the filter makes no sense.
pub(crate) fn start(args: &Args, default: Level) -> Result<(), Failure> {
    let filter = match (&args.log, default) {
        (Some(filter), _) => filter.as_str(),
        (None, Level::Info) => "info",
        (None, Level::Warn) => "warn",
        (None, Level::Error) => "error",
    };
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Failure::new(Exit::Usage, format!("--log `{filter}`: {error}")).next("--log info"))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(stderr_takes_colour());
    match args.log_format {
        LogFormat::Pretty => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn stderr_takes_colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !refused && !dumb
}
