//! `lookaside dev backend`: demo backends in a process of their own, to be killed, stopped and drained for real.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use lookaside_load::backend::{self, Backend, Distribution};
use lookaside_tls::Acceptor;
use serde::Serialize;
use tokio::signal::unix::SignalKind;

use crate::exit::{Exit, Failure, chain};
use crate::signals::{Stop, catch};
use crate::{Global, address, duration, output};

/// Run demo backends: real servers of lookaside.demo.v1.Echo whose capacity is made of timers, not of CPU
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside dev backend --service greeter --balancer 127.0.0.1:7400 --count 6
  lookaside dev backend --service greeter --balancer lb-0:7400,lb-1:7400 --listen 127.0.0.1:50051 --mean 5ms --dist exp

With --ca they report over TLS, and with --cert and --key show who they are; what they show to callers is --serve-cert.
Each backend writes one line to stdout when it serves: {\"address\":\"127.0.0.1:50051\",...}.
SIGTERM or SIGINT drains: new calls stop, calls and streams in flight end, then it exits.
SIGUSR1 makes their health NOT_SERVING, the next one SERVING again.
SIGUSR2 makes them fail every call with UNAVAILABLE, the next one serve again; health checks are told nothing.")]
pub(crate) struct Args {
    /// Service they serve
    #[arg(long)]
    service: String,
    /// Client listeners of the balancers to report to
    #[arg(long, value_name = "ADDR[,ADDR]", value_delimiter = ',', value_parser = address::parse,
        required_unless_present = "no_report")]
    balancer: Vec<String>,
    /// Where the first one listens; the others take the ports that follow, or any with port 0
    #[arg(long, value_name = "ADDR", value_parser = address::parse_listen, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
    /// Name of the first one, the others add a dash and a number [default: the address]
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// region/zone/subzone they register
    #[arg(long, default_value = "", hide_default_value = true)]
    locality: String,
    #[command(flatten)]
    capacity: Capacity,
    /// Certificate (PEM) that they show: they serve over TLS
    #[arg(long, value_name = "FILE", requires = "serve_key")]
    serve_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "serve_cert")]
    serve_key: Option<PathBuf>,
    /// CA (PEM) that has to have signed the certificates of their callers
    #[arg(long, value_name = "FILE", requires = "serve_cert")]
    serve_client_ca: Option<PathBuf>,
    /// Name they register as that of their certificate [default: the host of their address]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    serve_name: String,
    /// Do not register and report: known through the balancer's configuration alone
    #[arg(long)]
    no_report: bool,
}

/// The virtual capacity of a demo backend.
#[derive(clap::Args)]
struct Capacity {
    /// Mean service time
    #[arg(long, value_name = "DURATION", default_value = "40ms", value_parser = duration::parse)]
    mean: Duration,
    /// How service times are distributed
    #[arg(long, value_enum, default_value = "exp")]
    dist: Dist,
    /// Calls served at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    slots: u32,
    /// Calls that may wait for a slot; further ones end with RESOURCE_EXHAUSTED
    #[arg(long, value_name = "N", default_value_t = 100)]
    queue: u32,
    /// Times slower than --mean says
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive)]
    slow: f64,
    /// Share of calls that fail at once, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    fail_rate: f64,
}

/// Distribution of service times.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Dist {
    /// Always the mean.
    Fixed,
    /// Exponential.
    Exp,
    /// Log-normal, as deviant as the mean.
    Lognormal,
}

/// What a backend says on stdout when it serves.
#[derive(Serialize)]
struct Ready<'a> {
    address: &'a str,
    service: &'a str,
}

/// Serves until told to stop, then drains. Fails when an address cannot be bound.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let mut stop = Stop::catch()?;
    let mut toggle = catch(SignalKind::user_defined1())?;
    let mut break_down = catch(SignalKind::user_defined2())?;
    let mut backends = Vec::new();
    for index in 0..args.count {
        let backend = Backend::start(config(global, &args, index)?).await;
        let backend = backend
            .map_err(|error| Failure::new(Exit::Failed, chain(&error)).next("--listen 127.0.0.1:0, or another port"))?;
        output::json(&Ready { address: backend.address(), service: &args.service })?;
        backends.push(backend);
    }
    let (mut serving, mut unavailable) = (true, false);
    loop {
        tokio::select! {
            () = stop.requested() => break,
            _ = toggle.recv() => {
                serving = !serving;
                for backend in &backends {
                    backend.set_serving(serving).await;
                }
                eprintln!("note: health is now {}", if serving { "SERVING" } else { "NOT_SERVING" });
            }
            _ = break_down.recv() => {
                unavailable = !unavailable;
                for backend in &backends {
                    backend.set_unavailable(unavailable);
                }
                eprintln!("note: calls {}", if unavailable { "fail with UNAVAILABLE" } else { "are served again" });
            }
        }
    }
    eprintln!("note: draining {} backend(s)", backends.len());
    tokio::select! {
        _ = join_all(backends.iter().map(Backend::drain)) => Ok(()),
        () = stop.requested() => Err(Failure::new(Exit::Failed, "told to stop twice: gone before the drain was over")),
    }
}

/// What they show, if they serve over TLS.
fn acceptor(args: &Args) -> Result<Option<Acceptor>, Failure> {
    let (Some(cert), Some(key)) = (&args.serve_cert, &args.serve_key) else { return Ok(None) };
    let mut builder = Acceptor::builder(cert, key);
    if let Some(ca) = &args.serve_client_ca {
        builder = builder.client_ca_file(ca);
    }
    let acceptor = builder.build("certificate of the demo backend");
    acceptor.map(Some).map_err(|error| Failure::new(Exit::Usage, chain(&error)))
}

fn config(global: &Global, args: &Args, index: u16) -> Result<backend::Config, Failure> {
    let mut listen = args.listen;
    if listen.port() != 0 {
        let port = listen.port().checked_add(index);
        listen.set_port(port.ok_or_else(|| Failure::new(Exit::Usage, "--listen and --count go beyond port 65535"))?);
    }
    let capacity = &args.capacity;
    Ok(backend::Config {
        balancers: if args.no_report { Vec::new() } else { args.balancer.clone() },
        listen,
        instance: args.instance.as_ref().map(|name| match index {
            0 => name.clone(),
            index => format!("{name}-{index}"),
        }),
        locality: args.locality.clone(),
        balancer_tls: global.secure.tls()?,
        tls: acceptor(args)?,
        tls_name: args.serve_name.clone(),
        mean: capacity.mean,
        distribution: match capacity.dist {
            Dist::Fixed => Distribution::Fixed,
            Dist::Exp => Distribution::Exp,
            Dist::Lognormal => Distribution::Lognormal,
        },
        slots: capacity.slots,
        queue: capacity.queue,
        slow_factor: capacity.slow,
        fail_rate: capacity.fail_rate,
        ..backend::Config::new(&args.service)
    })
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
        _ => Err("a number above 0 is expected".to_owned()),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("a number from 0 to 1 is expected".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        assert_eq!(positive("2.5"), Ok(2.5));
        assert_eq!(probability("0.1"), Ok(0.1));
        for text in ["NaN", "-1", "inf", "x"] {
            assert!(positive(text).is_err() && probability(text).is_err(), "{text}");
        }
        assert!(positive("0").is_err() && probability("1.1").is_err());
    }
}
