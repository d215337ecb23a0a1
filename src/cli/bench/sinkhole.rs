//! `lookaside bench sinkhole`: two endpoints of twenty begin to fail every call in a millisecond while their health checks go
//! well, and so look idle and quick to whoever goes by calls in flight or by latency.

use std::time::Duration;

use lookaside_load::bench::avoidance::{Avoidance, Row};
use lookaside_load::bench::clients::Policy;
use lookaside_load::bench::fleet::Shape;
use lookaside_load::bench::window::{Told, Window};
use serde::Serialize;
use tokio::time::sleep;

use super::Extra;
use super::grid::{self, Stage, Windows, ended, of_all, share, spread, verdict, words};
use crate::Global;
use crate::duration::ms;
use crate::exit::Failure;
use crate::output::{self, Envelope, Format, table};

/// How many of them fail.
const FAILING: u32 = 2;
/// Failed calls avoided, percent; the best known is about 85.
const AVOIDED_PERCENT_MIN: f64 = 98.0;
const SPAN_MS: u64 = 100;
/// Load goes on for so long after what is looked at: the moment is a little late.
const MARGIN: Duration = Duration::from_secs(1);

/// How endpoints are avoided that fail in a millisecond and look healthy: Lookaside beside P2C
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside bench sinkhole
  lookaside bench sinkhole --repeats 1 --for 10s
  lookaside bench sinkhole --check -o json

20 endpoints with 4 slots each, 40 ms a call, exponentially distributed, and 20 clients; see `lookaside bench quality --help`
for what they are. After the warm-up two endpoints fail every call with UNAVAILABLE in a millisecond, while they pass their health
checks. Calls are never repeated. Every window has a balancer, endpoints and clients of its own, that know of nothing.

AVOIDED  failed calls that there were not, of the two endpoints' fair share of the calls due in --for from that moment on;
         below 0 % when they drew more than that
SETTLED  until the first second in which less than 0.1 % of the calls failed
LATE     of the calls in the second half of --for, how many failed
Medians over the windows, with the lowest and the highest. Exit code 1: with --check less than 98 % avoided; or no window is left
of a policy, the machine having been too busy.")]
pub(super) struct Args {
    /// Calls offered, over the capacity of all slots
    #[arg(long, value_name = "LOAD", value_parser = grid::load, default_value_t = 0.7)]
    load: f64,
    /// Ways to choose an endpoint: lookaside, p2c, round_robin, tonic, peak_ewma
    #[arg(long, value_name = "POLICY", value_delimiter = ',', value_parser = grid::policy, default_value = "lookaside,p2c")]
    policy: Vec<Policy>,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    clients: u32,
    #[command(flatten)]
    windows: Windows,
    /// Exit 1 when less is avoided than promised
    #[arg(long)]
    check: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sinkhole {
    shape: Shape,
    failing: u32,
    load: f64,
    clients: u32,
    policies: Vec<Policy>,
    #[serde(flatten)]
    windows: Windows,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let shape = Shape { endpoints: 20, slots: 4, queue: 100, mean_us: 40_000, slow: 0, slow_factor: 1.0 };
    let Args { load, policy: policies, clients, windows, check } = args;
    let sinkhole = Sinkhole { shape, failing: FAILING, load, clients, policies, windows };
    let (windows, count) = (&sinkhole.windows, sinkhole.policies.len() as u32 * u32::from(sinkhole.windows.repeats));
    let length = windows.warm_up + windows.length + MARGIN;
    eprintln!(
        "{} endpoints, {FAILING} of them begin to fail after {} s; {clients} clients, capacity {:.0} calls/s, {:.0} offered; {}",
        sinkhole.shape.endpoints,
        windows.warm_up.as_secs(),
        sinkhole.shape.capacity_per_s(),
        sinkhole.rate_per_s(),
        grid::time_of(count, length)
    );
    let mut told: Vec<Vec<(Told, Avoidance)>> = vec![Vec::new(); sinkhole.policies.len()];
    for repeat in 0..windows.repeats {
        for (policy, told) in sinkhole.policies.iter().zip(&mut told) {
            let (one, avoidance) = sinkhole.window(*policy, repeat, length).await?;
            let settled = avoidance.settled_ms.map_or("never".to_owned(), |ms| format!("after {ms} ms"));
            eprintln!(
                "{}/{} {policy:<11} avoided {:.2} %, settled {settled}; {}",
                repeat + 1,
                windows.repeats,
                avoidance.avoided_percent,
                words(&one, windows)
            );
            told.push((one, avoidance));
        }
    }
    let rows = sinkhole.policies.iter().zip(&told).map(|(policy, told)| {
        let bar = (*policy == Policy::Lookaside).then_some(AVOIDED_PERCENT_MIN);
        Row { avoided_percent_bar: bar, ..Row::of(*policy, told, windows.cpu_max.into()) }
    });
    tell(global, &sinkhole, rows.collect(), check)
}

impl Sinkhole {
    fn rate_per_s(&self) -> f64 {
        self.load * self.shape.capacity_per_s()
    }

    async fn window(&self, policy: Policy, repeat: u16, length: Duration) -> Result<(Told, Avoidance), Failure> {
        let seed = self.windows.seed_of(repeat, 0);
        let mut stage = Stage::set(&self.shape, seed).await?;
        let mut clients = stage.clients(policy, self.clients, stage.addresses.clone()).await?;
        let window = Window {
            rate_per_s: self.rate_per_s(),
            warm_up_ms: ms(self.windows.warm_up),
            for_ms: ms(self.windows.length + MARGIN),
            deadline_ms: 10_000,
            seed,
            span_ms: SPAN_MS,
        };
        let failing = async {
            sleep(self.windows.warm_up).await;
            stage.fleet.ask::<u32, u64>(&FAILING).await
        };
        let (told, at_us) = tokio::join!(clients.ask_for::<_, Told>(&window, length), failing);
        let (told, at_us) = (told?, at_us?);
        let fair = f64::from(FAILING) / f64::from(self.shape.endpoints);
        let avoidance = Avoidance::since(at_us, &told, SPAN_MS, ms(self.windows.length), fair);
        Ok((told, avoidance))
    }
}

fn tell(global: &Global, sinkhole: &Sinkhole, rows: Vec<Row>, check: bool) -> Result<(), Failure> {
    let names = |those: fn(&Row) -> bool| -> Vec<String> {
        rows.iter().filter(|row| those(row)).map(|row| row.policy.to_string()).collect()
    };
    let (empty, missed) = (names(|row| row.windows == 0), names(Row::is_missed));
    match global.output {
        Format::Table => {
            let header = ["POLICY", "WINDOWS", "FAILED", "AVOIDED %", "SETTLED ms", "LATE %", "P99 ms", "BAR"];
            output::text(&table(header, rows.iter().map(cells).collect()))?;
        }
        Format::Json => output::json(&Envelope::with("BenchSinkhole", "", Extra::of(sinkhole), rows))?,
    }
    ended(&empty, if check { &missed } else { &[] }, sinkhole.windows.cpu_max)
}

fn cells(row: &Row) -> [String; 8] {
    let measured = |cell: String| if row.windows == 0 { String::new() } else { cell };
    let settled = match row.unsettled {
        0 => spread(row.settled_ms),
        unsettled if unsettled == row.windows => "never".to_owned(),
        unsettled => format!("{}, {unsettled} x never", spread(row.settled_ms)),
    };
    [
        row.policy.to_string(),
        of_all(row.windows, row.discarded),
        measured(share(row.failed, row.calls)),
        spread(row.avoided_percent),
        measured(settled),
        spread(row.failed_percent_late),
        spread(row.p99_ms),
        row.avoided_percent_bar
            .map_or_else(String::new, |bar| format!("avoided >= {bar:.0}{}", verdict(row.windows, row.is_missed()))),
    ]
}
