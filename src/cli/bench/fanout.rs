//! `lookaside bench fanout`: how long a change takes to every client, and what that costs the balancer, in processor time per
//! list and in memory per stream; beside a bare tonic server that sends the same lists from nowhere.

use std::time::Duration;

use lookaside_load::bench::subscribers::{Change, Told};
use lookaside_load::bench::{Usage, unix_us};
use lookaside_proto::v1::admin_client::AdminClient;
use lookaside_proto::v1::balancer_client::BalancerClient;
use lookaside_proto::v1::{
    Hello, List, Override, OverrideAction, PickRequest, SetOverrideRequest, Subscribe, r#override, pick_request,
    pick_response,
};
use prost::Message as _;
use serde::Serialize;
use tokio::time::{Instant, interval, timeout};
use tonic::transport::Channel;

use super::child::Child;
use super::part::Ready;
use super::{Figure, tell};
use crate::Global;
use crate::exit::{Exit, Failure, chain};

/// For up to so many streams, and for more.
const PROPAGATION_US_P99_MAX: f64 = 50_000.0;
const SOME_STREAMS: u32 = 1_000;
const MANY_PROPAGATION_US_P99_MAX: f64 = 500_000.0;
const RSS_KIB_PER_STREAM_MAX: f64 = 8.0;
/// For 20,000 streams and more.
const RSS_KIB_MAX: f64 = 300.0 * 1024.0;
/// Streams from which on the whole memory has a bar.
const MANY_STREAMS: usize = 20_000;
/// After the last change, until the last list is everywhere.
const LAST_LISTS: Duration = Duration::from_secs(2);
const LIST_MAX: Duration = Duration::from_secs(30);

/// A change's way to every client, and what it costs the balancer: propagation, processor time per list, memory per stream
#[derive(clap::Args, Serialize)]
#[serde(rename_all = "camelCase")]
#[command(after_help = "Examples:
  lookaside bench fanout
  lookaside bench fanout --streams 20000 --check -o json

A change is an order to drain one endpoint, or to take that back, so that every client gets a new list; it counts from the
moment the order is sent to the admin listener until the list is there, for every client and change. Lists of two sizes are
sent, one short and one of some 1.8 KB, and acknowledged as clients do. server_cpu_us_per_push is the processor time of the whole
balancer meanwhile over the lists received. The floor is a bare tonic server in place of the balancer that sends the same lists
to the same streams; it computes nothing. rss_kib_per_stream is what memory grows by with all streams, at
their first list or after the last change, whichever is more, their part of the connections included; rss_kib_per_further_stream
that of a stream on a connection that is there anyway, before the changes; server_rss_kib is the whole balancer at the end.")]
pub(super) struct Args {
    /// Pick streams
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    streams: u32,
    /// Connections that they share
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// Changes of each list
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    changes: u32,
    /// Milliseconds between two changes [default: 100, and more with more than 2000 streams]
    #[arg(long, value_name = "MS")]
    every: Option<u64>,
    /// Exit 1 when a figure is above its bar
    #[arg(long)]
    check: bool,
}

/// What came of one list with one server.
struct Phase {
    told: Told,
    /// The server's: without a connection, with all of them and a stream on each, with all streams, and at the end.
    idle: Usage,
    connected: Usage,
    open: Usage,
    end: Usage,
}

impl Phase {
    fn cpu_us_per_push(&self) -> f64 {
        (self.end.cpu_us - self.open.cpu_us) as f64 / self.told.lists.max(1) as f64
    }

    fn rss_kib(from: &Usage, to: &Usage, per: u32) -> f64 {
        to.rss_kib.saturating_sub(from.rss_kib) as f64 / f64::from(per.max(1))
    }

    /// All streams, at the first list or after the last, whichever is more; their part of the connections included.
    fn rss_kib_per_stream(&self, args: &Args) -> f64 {
        Self::rss_kib(&self.idle, &self.open, args.streams).max(Self::rss_kib(&self.idle, &self.end, args.streams))
    }

    /// A stream on a connection that is there anyway.
    fn rss_kib_per_further_stream(&self, args: &Args) -> f64 {
        Self::rss_kib(&self.connected, &self.open, args.streams.saturating_sub(args.connections))
    }
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let mut figures = Vec::new();
    for (size, endpoints) in [("short list", 2), ("1.8 KB list", 41)] {
        let count = endpoints.to_string();
        let (servers, Ready { addresses }) =
            Child::start("the servers", &["bench", "part", "echo", "--count", &count]).await?;
        eprintln!("{size}: {} streams over {} connections, {} changes", args.streams, args.connections, args.changes);
        let (phase, list) = balancer(&args, &addresses).await?;
        drop(servers);
        let floor = floor(&args, &list).await?;
        tell_phase(&args, size, &phase, &floor, &mut figures);
    }
    let check = args.check;
    tell(global, "BenchFanout", args, figures, check)
}

fn tell_phase(args: &Args, size: &str, phase: &Phase, floor: &Phase, figures: &mut Vec<Figure>) {
    let mut add = |name: &str, value: f64, bar: Option<f64>| {
        let figure = Figure::new(size, name, value);
        figures.push(match bar {
            Some(bar) => figure.at_most(bar),
            None => figure,
        });
    };
    let told = &phase.told;
    let many = args.streams as usize >= MANY_STREAMS;
    add("propagation_p50_us", told.p50_us as f64, None);
    let propagation_max =
        if args.streams <= SOME_STREAMS { PROPAGATION_US_P99_MAX } else { MANY_PROPAGATION_US_P99_MAX };
    add("propagation_p99_us", told.p99_us as f64, Some(propagation_max));
    add("propagation_max_us", told.max_us as f64, None);
    add("lists_missing", told.missing as f64, Some(0.0));
    add("streams_reopened", told.reopened as f64, Some(0.0));
    add("bytes_per_list", told.bytes_per_list as f64, None);
    add("lists", told.lists as f64, None);
    add("server_cpu_us_per_push", phase.cpu_us_per_push(), None);
    add("floor_cpu_us_per_push", floor.cpu_us_per_push(), None);
    add("cpu_over_floor", phase.cpu_us_per_push() / floor.cpu_us_per_push().max(0.001), None);
    add("floor_propagation_p50_us", floor.told.p50_us as f64, None);
    add("floor_propagation_p99_us", floor.told.p99_us as f64, None);
    let shared = args.streams >= 10 * args.connections;
    add("rss_kib_per_stream", phase.rss_kib_per_stream(args), Some(RSS_KIB_PER_STREAM_MAX).filter(|_| shared));
    add("rss_kib_per_further_stream", phase.rss_kib_per_further_stream(args), None);
    add("rss_kib_per_connection", Phase::rss_kib(&phase.idle, &phase.connected, args.connections), None);
    add("floor_rss_kib_per_stream", floor.rss_kib_per_stream(args), None);
    add("server_rss_kib", phase.end.rss_kib as f64, Some(RSS_KIB_MAX).filter(|_| many));
}

/// The balancer itself, and a list that it sent.
async fn balancer(args: &Args, addresses: &[String]) -> Result<(Phase, List), Failure> {
    let listed: Vec<String> = addresses
        .iter()
        .enumerate()
        .map(|(at, address)| format!("{{ address: '{address}', locality: eu/a/r{at}, instance: backend-{at} }}"))
        .collect();
    // Room for as many as are asked for, all of them from one address.
    let config = format!(
        "services: [{{ name: bench, endpoints: [{}], slow_start: 0s, health: {{ interval: 60s }} }}]\n\
         limits: {{ connections: 100000, connections_per_peer: 100000, streams_per_peer: 1000000 }}\n",
        listed.join(", ")
    );
    let (balancer, at) = Child::balancer(&config).await?;
    let mut admin =
        AdminClient::connect(format!("http://{}", at.admin)).await.map_err(|error| unmade(&at.admin, &error))?;
    let list = list(&at.client, addresses.len()).await?;
    let target = addresses.last().cloned().unwrap_or_default();
    let idle = balancer.usage();
    let (mut subscribers, connected) = subscribe(args, &at.client, &balancer).await?;
    let open = balancer.usage();
    let mut changes = Vec::new();
    let mut due = interval(args.every());
    for number in 0..args.changes {
        due.tick().await;
        let action = if number % 2 == 0 { OverrideAction::Drain } else { OverrideAction::Undrain };
        changes.push(order(&mut admin, &target, action).await?);
    }
    let told = settle(&mut subscribers, &changes).await?;
    Ok((Phase { told, idle, connected, open, end: balancer.usage() }, list))
}

/// A bare server with the same list.
async fn floor(args: &Args, list: &List) -> Result<Phase, Failure> {
    let (mut server, ()) = Child::start("the bare server", &["bench", "part", "floor"]).await?;
    let hex = list.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let Ready { addresses } = server.ask(&hex).await?;
    let idle = server.usage();
    let address = addresses.first().map_or("", |address| address);
    let (mut subscribers, connected) = subscribe(args, address, &server).await?;
    let open = server.usage();
    let mut changes: Vec<Change> = Vec::new();
    let mut due = interval(args.every());
    for _ in 0..args.changes {
        due.tick().await;
        changes.push(server.ask(&()).await?);
    }
    let told = settle(&mut subscribers, &changes).await?;
    Ok(Phase { told, idle, connected, open, end: server.usage() })
}

impl Args {
    fn every(&self) -> Duration {
        // 20,000 lists a second and more would measure a queue.
        Duration::from_millis(self.every.unwrap_or_else(|| u64::from(self.streams / 20).max(100)))
    }
}

/// The subscribers, once each of their streams has a list; and what the server had used when each connection had one alone.
async fn subscribe(args: &Args, address: &str, server: &Child) -> Result<(Child, Usage), Failure> {
    let (connections, streams) = (args.connections.min(args.streams).to_string(), args.streams.to_string());
    let what = ["bench", "part", "subscribers", "--service", "bench", "--address", address];
    let shape = ["--connections", &connections, "--streams", &streams];
    let (mut child, ()) = Child::start("the subscribers", &[&what[..], &shape[..]].concat()).await?;
    let connected = server.usage();
    let started = Instant::now();
    let () = child.ask(&()).await?;
    eprintln!("  all streams have a list after {} ms", started.elapsed().as_millis());
    // What came so far is the first list of each.
    let _: Told = child.ask::<Vec<Change>, _>(&Vec::new()).await?;
    Ok((child, connected))
}

/// What the subscribers received of the changes, once that is all.
async fn settle(subscribers: &mut Child, changes: &[Change]) -> Result<Told, Failure> {
    tokio::time::sleep(LAST_LISTS).await;
    let told: Told = subscribers.ask(&changes).await?;
    eprintln!("  {} lists of {} bytes, p99 {} us", told.lists, told.bytes_per_list, told.p99_us);
    Ok(told)
}

async fn order(admin: &mut AdminClient<Channel>, address: &str, action: OverrideAction) -> Result<Change, Failure> {
    let scope = r#override::Scope::Address(address.to_owned());
    let order = Override {
        service: "bench".to_owned(),
        scope: Some(scope),
        action: action.into(),
        reason: "a benchmark".to_owned(),
        ..Override::default()
    };
    let at_us = unix_us();
    let request = SetOverrideRequest { r#override: Some(order), for_ms: 0, dry_run: false };
    let answer = admin.set_override(request).await.map_err(|status| Failure::from_status("the benchmark", &status))?;
    let version = answer.into_inner().effects.into_iter().find_map(|effect| effect.version);
    let sequence = version.map(|version| version.sequence);
    let sequence = sequence.ok_or_else(|| Failure::new(Exit::Failed, "an order changed nothing"))?;
    Ok(Change { sequence, at_us })
}

/// A list of the service once it offers all endpoints.
async fn list(address: &str, endpoints: usize) -> Result<List, Failure> {
    let channel = Channel::from_shared(format!("http://{address}")).map_err(|error| unmade(address, &error))?;
    let channel = channel.connect().await.map_err(|error| unmade(address, &error))?;
    let said = |kind| PickRequest { kind: Some(kind) };
    let hello = Hello { client_id: "bench".to_owned(), sdk: "lookaside-bench".to_owned(), ..Hello::default() };
    let (ask, asked) = tokio::sync::mpsc::channel(2);
    for kind in
        [pick_request::Kind::Hello(hello), pick_request::Kind::Subscribe(Subscribe { service: "bench".to_owned() })]
    {
        let _ = ask.send(said(kind)).await;
    }
    let requests = tokio_stream::wrappers::ReceiverStream::new(asked);
    let answers = BalancerClient::new(channel).pick(requests).await;
    let mut answers = answers.map_err(|status| Failure::from_status(address, &status))?.into_inner();
    let whole = async {
        while let Some(answer) = answers.message().await? {
            if let Some(pick_response::Kind::List(list)) = answer.kind
                && list.endpoints.iter().filter(|endpoint| endpoint.weight > 0).count() == endpoints
            {
                return Ok(Some(list));
            }
        }
        Ok(None)
    };
    match timeout(LIST_MAX, whole).await {
        Ok(Ok(Some(list))) => Ok(list),
        Ok(Err(status)) => Err(Failure::from_status(address, &status)),
        Ok(Ok(None)) | Err(_) => Err(Failure::new(Exit::Failed, "the balancer did not come to offer all endpoints")),
    }
}

fn unmade(address: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::unreachable(address, &chain(error))
}
