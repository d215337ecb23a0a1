//! `lookaside validate`: reads a configuration as `serve` would, and starts nothing. What is wrong is found by
//! `lookaside-balancer`; here it is shown.

use std::net::SocketAddr;
use std::path::PathBuf;

use lookaside_balancer::{
    check_files,
    config::{Config, Error, Problem},
};
use serde::Serialize;

use crate::Global;
use crate::exit::{Exit, Failure, chain};
use crate::output::{self, Envelope, Format};

/// Check a configuration file: every mistake with its place and what would be right; nothing is started
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside validate -c deploy/lookaside.yaml
  lookaside validate -c lookaside.yaml --files
  lookaside validate -c lookaside.yaml -o json | jq '.items[] | {code, line, message}'

What the file says is checked on any machine; the certificates, keys and tokens that it names only with --files, where they
are. Mistakes that only show between valid values come once the others are mended.

Exits with 0 when the file is valid, with 78 when it is not. The codes (LKS0103) stay the same from version to version.")]
pub(crate) struct Args {
    /// Configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,

    /// Open the certificates, keys and tokens that it names as well, as a start on this machine would
    #[arg(long)]
    files: bool,
}

/// Beside the mistakes: what the file says, if there are none.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Extra {
    file: String,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
}

/// What a balancer with this file would do.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    listen: Listen,
    data_dir: Option<PathBuf>,
    registration: bool,
    services: usize,
    endpoints: usize,
    method_rules: usize,
}

#[derive(Serialize)]
struct Listen {
    client: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
}

/// One mistake.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    code: &'static str,
    message: &'a str,
    file: &'a str,
    line: u64,
    column: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggestion: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    help: &'a str,
}

/// Prints what is wrong with a file and fails, or what it would do.
pub(crate) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let file = args.config.display().to_string();
    match Config::load(&args.config) {
        Ok(config) => {
            if args.files {
                check_files(&config)
                    .map_err(|error| Failure::new(Exit::Config, format!("{file}: {}", chain(&error))))?;
            }
            valid(global, file, &config)
        }
        Err(error) => {
            invalid(global, &file, &error)?;
            let count = error.problems.len();
            let noun = if count == 1 { "mistake" } else { "mistakes" };
            Err(Failure::new(Exit::Config, format!("{file}: {count} {noun}")))
        }
    }
}

fn valid(global: &Global, file: String, config: &Config) -> Result<(), Failure> {
    let summary = summary(config);
    match global.output {
        Format::Table => output::text(&shown(&file, &summary)),
        Format::Json => {
            let extra = Extra { file, valid: true, summary: Some(summary) };
            output::json(&Envelope::with("ConfigurationCheck", &config.node.id, extra, Vec::<Item<'_>>::new()))
        }
    }
}

fn invalid(global: &Global, file: &str, error: &Error) -> Result<(), Failure> {
    match global.output {
        Format::Table => {
            let pictures = error.pictures();
            // Line by line, since the file's own words are in there.
            let lines: Vec<_> = pictures.lines().map(output::clean).collect();
            output::text(&lines.join("\n"))
        }
        Format::Json => {
            let items = error.problems.iter().map(|problem| item(file, problem)).collect();
            let extra = Extra { file: file.to_owned(), valid: false, summary: None };
            output::json(&Envelope::with("ConfigurationCheck", "", extra, items))
        }
    }
}

fn item<'a>(file: &'a str, problem: &'a Problem) -> Item<'a> {
    Item {
        code: problem.code.name(),
        message: &problem.reason,
        file,
        line: problem.at.line,
        column: problem.at.column,
        length: problem.at.length,
        suggestion: problem.suggestion.as_deref(),
        help: &problem.help,
    }
}

fn summary(config: &Config) -> Summary {
    let endpoints = config.services.iter().filter_map(|service| service.endpoints.as_ref()).map(Vec::len).sum();
    let rules = config.services.iter().map(|service| service.config.calls.methods.len()).sum::<usize>();
    Summary {
        listen: Listen { client: config.listen.client, admin: config.listen.admin, metrics: config.listen.metrics },
        data_dir: config.data_dir.clone(),
        registration: config.registration.enabled,
        services: config.services.len(),
        endpoints,
        method_rules: config.defaults.calls.methods.len() + rules,
    }
}

fn shown(file: &str, summary: &Summary) -> String {
    let Summary { listen, data_dir, registration, services, endpoints, method_rules } = summary;
    let kept = data_dir
        .as_ref()
        .map_or("nothing".to_owned(), |dir| format!("overrides and the last good state, in {}", dir.display()));
    let registration = if *registration { "backends register themselves" } else { "no self-registration" };
    [
        format!("{}: valid", output::clean(file)),
        format!("  listens      client {}, admin {}, metrics {}", listen.client, listen.admin, listen.metrics),
        format!("  services     {services} with {endpoints} listed endpoints; {registration}"),
        format!("  methods      {method_rules} rules"),
        format!("  keeps        {}", output::clean(&kept)),
    ]
    .join("\n")
}
