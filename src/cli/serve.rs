//! `lookaside serve`: the balancer itself. Wires a configuration, signals and stdout to `lookaside-balancer`.

use std::net::SocketAddr;
use std::path::PathBuf;

use lookaside_balancer::Error;
use lookaside_balancer::config::{Config, Listen, Token};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure, chain};
use crate::signals::Stop;
use crate::{address, output};

/// Run a balancer; with no configuration a safe one: loopback, self-registration, nothing on disk
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside serve
  lookaside serve -c deploy/lookaside.yaml --data-dir /var/lib/lookaside
  lookaside serve --listen-client 127.0.0.1:0 --listen-admin 127.0.0.1:0 --listen-metrics 127.0.0.1:0

When it serves it writes one line to stdout: {\"client\":\"127.0.0.1:7400\",\"admin\":...,\"metrics\":...}.
A client or admin listener off loopback needs a certificate (tls in the configuration) or --allow-plaintext.
LOOKASIDE_ADMIN_TOKEN may hold the token that operators on other machines show.
SIGTERM or SIGINT drains: it says NOT_SERVING, streams are told to move on, then it exits. A second one exits at once.")]
pub(crate) struct Args {
    /// Configuration file; flags override it
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients and reporters connect; port 0 lets the kernel choose [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR", value_parser = address::parse_listen)]
    listen_client: Option<SocketAddr>,
    /// Where operators connect [default: 127.0.0.1:7401]
    #[arg(long, value_name = "ADDR", value_parser = address::parse_listen)]
    listen_admin: Option<SocketAddr>,
    /// /metrics, /livez, /readyz [default: 127.0.0.1:7402]
    #[arg(long, value_name = "ADDR", value_parser = address::parse_listen)]
    listen_metrics: Option<SocketAddr>,
    /// Listeners that may be in plaintext where others reach them: client, admin
    #[arg(long, value_name = "LISTENER[,LISTENER]", value_delimiter = ',')]
    allow_plaintext: Vec<Listener>,
    /// Where overrides and the last good state outlive a restart [default: nowhere]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// A listener that is in plaintext unless it has a certificate.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Listener {
    /// Picks and reports.
    Client,
    /// Administration.
    Admin,
}

/// The variable that may hold the token of operators.
const TOKEN_VARIABLE: &str = "LOOKASIDE_ADMIN_TOKEN";

/// What is said on stdout when it serves.
#[derive(Serialize)]
struct Ready {
    client: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
}

/// Serves until told to stop, then drains. Fails when the configuration is invalid or a listener cannot be bound.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let mut stop = Stop::catch()?;
    raise_file_limit();
    let shutdown = CancellationToken::new();
    let running = lookaside_balancer::run(configuration(args)?, shutdown.clone()).await;
    let running = running.map_err(|error| {
        let failure = Failure::new(Exit::Failed, chain(&error));
        match error {
            Error::Listen { listener, .. } => {
                failure.next(format!("lookaside serve --listen-{listener} 127.0.0.1:0, or another port"))
            }
            Error::Exposed { .. } | Error::Secrets { .. } | Error::Services { .. } => {
                Failure::new(Exit::Config, chain(&error))
            }
            // As with an address: whoever has it may be on its way out.
            Error::InUse(_) | Error::Failed(_) => failure,
        }
    })?;
    let Listen { client, admin, metrics } = running.addresses;
    output::json(&Ready { client, admin, metrics })?;
    tell_manager(NotifyState::Ready);
    let mut finished = std::pin::pin!(running.finished());
    let ended = tokio::select! {
        ended = &mut finished => ended,
        () = stop.requested() => {
            tell_manager(NotifyState::Stopping);
            shutdown.cancel();
            tokio::select! {
                ended = &mut finished => ended,
                () = stop.requested() => {
                    return Err(Failure::new(Exit::Failed, "told to stop twice: gone before the drain was over"));
                }
            }
        }
    };
    ended.map_err(|error| Failure::new(Exit::Failed, chain(&error)))
}

/// Tells the service manager that started this process, if one asked to be told (systemd's `Type=notify`).
fn tell_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        eprintln!("cannot tell the service manager: {error}; going on");
    }
}

/// Every connection is a file descriptor, and few shells give a process as many as it may have. What cannot be raised stays
/// as it is: beyond it connections are turned away, and counted.
pub(crate) fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn configuration(args: Args) -> Result<Config, Failure> {
    let mut config = match &args.config {
        None => Config::default(),
        Some(path) => Config::load_for_start(path).map_err(|error| {
            // One line per mistake, so that all are mended in one go.
            for line in error.to_string().lines() {
                eprintln!("{}", output::clean(line));
            }
            Failure::new(Exit::Config, format!("{}: invalid configuration, nothing was started", path.display()))
                .next(format!("lookaside validate -c {}", path.display()))
        })?,
    };
    config.listen.client = args.listen_client.unwrap_or(config.listen.client);
    config.listen.admin = args.listen_admin.unwrap_or(config.listen.admin);
    config.listen.metrics = args.listen_metrics.unwrap_or(config.listen.metrics);
    config.data_dir = args.data_dir.or(config.data_dir);
    let security = &mut config.security;
    security.allow_plaintext.client |= args.allow_plaintext.contains(&Listener::Client);
    security.allow_plaintext.admin |= args.allow_plaintext.contains(&Listener::Admin);
    if let Some(token) = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()) {
        if security.token.is_some() {
            let text = format!("admin.token_file and {TOKEN_VARIABLE} are both set: which of them holds?");
            return Err(Failure::new(Exit::Config, text));
        }
        security.token = Some(Token::Text(token));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_override_the_file() {
        let listen: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let args = Args {
            config: None,
            listen_client: Some(listen),
            listen_admin: None,
            listen_metrics: None,
            data_dir: Some("d".into()),
            allow_plaintext: vec![Listener::Client],
        };
        let config = configuration(args).unwrap();
        assert_eq!(config.listen.client, listen);
        assert_eq!(config.listen.admin, Config::default().listen.admin);
        assert_eq!(config.data_dir, Some("d".into()));
        assert!(config.security.allow_plaintext.client && !config.security.allow_plaintext.admin);
    }

    #[test]
    fn flags_say_what_may_be_in_plaintext_where_the_file_listens() {
        let path = std::env::temp_dir().join(format!("lookaside-serve-{}.yaml", std::process::id()));
        std::fs::write(&path, "listen: { client: 0.0.0.0:0 }\n").unwrap();
        let args = Args {
            config: Some(path.clone()),
            listen_client: None,
            listen_admin: None,
            listen_metrics: None,
            data_dir: None,
            allow_plaintext: vec![Listener::Client],
        };
        let config = configuration(args).unwrap();
        assert_eq!(config.security.exposed(&config.listen).next(), None);
        assert!(Config::load(&path).is_err(), "without the flag it is a mistake");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_not_there_is_an_invalid_configuration() {
        let args = Args {
            config: Some("/nowhere/lookaside.yaml".into()),
            listen_client: None,
            listen_admin: None,
            listen_metrics: None,
            data_dir: None,
            allow_plaintext: Vec::new(),
        };
        assert_eq!(configuration(args).err().map(|failure| failure.exit), Some(Exit::Config));
    }
}
