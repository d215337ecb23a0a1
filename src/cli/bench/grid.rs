//! Windows of several policies in turn, at several loads, on the same backends: what `bench quality`, `bench sparse`,
//! `bench ramp` and, but for the turns, `bench sinkhole` have in common. The clients of each window are a process of their own, so that connections and clients of one
//! policy do not stand about in the windows of another.

use std::time::Duration;

use lookaside_load::bench::clients::{self, Policy};
use lookaside_load::bench::figures::{Row, Spread, is_kept};
use lookaside_load::bench::fleet::{self, Shape};
use lookaside_load::bench::window::{Told, Window};
use serde::Serialize;

use super::child::{Child, Listeners};
use super::part::Ready;
use super::peer::{self, Peer};
use super::{Extra, duration_of};
use crate::Global;
use crate::duration::ms;
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format, table};

/// What the balancer serves in all of this.
pub(super) const SERVICE: &str = "bench";

/// Backends come all at once and clients by the hundred, all from one address.
const CONFIG: &str = "services: [{ name: bench, subset_size: 0, slow_start: 0s }]\n\
                      limits: { connections: 100000, connections_per_peer: 100000, streams_per_peer: 1000000 }\n";

/// How long connections and the last calls of a window take, guessed.
const AROUND_WINDOW: Duration = Duration::from_secs(2);

/// How long to look, and how often.
#[derive(clap::Args, Serialize, Clone)]
#[serde(rename_all = "camelCase")]
pub(super) struct Windows {
    /// Windows of each policy, at each load where there are several
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100), default_value_t = 5)]
    pub(super) repeats: u16,
    /// Time that is measured in a window
    #[arg(long = "for", value_name = "DURATION", value_parser = window, default_value = "60s")]
    #[serde(serialize_with = "as_ms", rename = "forMs")]
    pub(super) length: Duration,
    /// Time before that, under the same load
    #[arg(long, value_name = "DURATION", value_parser = warm_up, default_value = "10s")]
    #[serde(serialize_with = "as_ms", rename = "warmUpMs")]
    pub(super) warm_up: Duration,
    /// A window in which the processors of the machine were busier than this is left out, percent of all
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100), default_value_t = 60)]
    pub(super) cpu_max: u8,
    /// Seed of the times at which calls are due; each policy gets the same ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
}

fn window(text: &str) -> Result<Duration, String> {
    duration_of(text, Duration::from_secs(1)..=Duration::from_secs(1_800))
}

fn warm_up(text: &str) -> Result<Duration, String> {
    duration_of(text, Duration::ZERO..=Duration::from_secs(600))
}

fn as_ms<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(ms(*duration))
}

/// A policy that needs nothing but clients.
pub(super) fn policy(text: &str) -> Result<Policy, String> {
    match text.parse::<Policy>() {
        Ok(policy) if policy.is_proxy() => Err("a program in between is for --peers of bench quality".to_owned()),
        Ok(policy) => Ok(policy),
        Err(_) => {
            let choices = Policy::ALL.iter().filter(|policy| !policy.is_proxy()).map(|policy| policy.name());
            Err(format!("one of {} is expected", choices.collect::<Vec<_>>().join(", ")))
        }
    }
}

/// One that stands in between.
pub(super) fn peer(text: &str) -> Result<Policy, String> {
    text.parse()
        .ok()
        .filter(|policy: &Policy| policy.is_proxy())
        .ok_or_else(|| "envoy or haproxy is expected".to_owned())
}

/// What to look at.
#[derive(Serialize, Clone)]
#[serde(rename_all = "camelCase")]
pub(super) struct Grid {
    pub(super) shape: Shape,
    pub(super) clients: u32,
    /// Over the capacity of all slots.
    pub(super) loads: Vec<f64>,
    pub(super) policies: Vec<Policy>,
    pub(super) deadline_ms: u64,
    #[serde(flatten)]
    pub(super) windows: Windows,
}

/// A balancer and what it balances.
pub(super) struct Stage {
    _balancer: Child,
    pub(super) fleet: Child,
    at: Listeners,
    pub(super) addresses: Vec<String>,
}

// All of them end at once, and would each complain of the others.
impl Stage {
    pub(super) async fn set(shape: &Shape, seed: u64) -> Result<Self, Failure> {
        let (balancer, at) = Child::guarded_balancer(CONFIG).await?;
        let (mut fleet, ()) = Child::start("the backends", &["bench", "part", "fleet", "--log", "error"]).await?;
        let plan = fleet::Plan { shape: shape.clone(), service: SERVICE.to_owned(), balancer: at.client.clone(), seed };
        let Ready { addresses } = fleet.ask(&plan).await?;
        Ok(Self { _balancer: balancer, fleet, at, addresses })
    }

    /// Clients, all of them connected.
    pub(super) async fn clients(&self, policy: Policy, clients: u32, endpoints: Vec<String>) -> Result<Child, Failure> {
        let (mut child, ()) = Child::start("the clients", &["bench", "part", "clients", "--log", "error"]).await?;
        let (service, balancer) = (SERVICE.to_owned(), self.at.client.clone());
        let plan = clients::Plan { policy, clients, service, balancer, endpoints };
        let () = child.ask(&plan).await?;
        Ok(child)
    }
}

impl Grid {
    /// Looks at all of it; a row for each policy at each load.
    pub(super) async fn run(&self) -> Result<Vec<Row>, Failure> {
        peer::check(&self.policies)?;
        let stage = Stage::set(&self.shape, self.windows.seed).await?;
        let mut peers = Vec::new();
        for policy in self.policies.iter().filter(|policy| policy.is_proxy()) {
            peers.push(Peer::start(*policy, &stage.addresses).await?);
        }
        let (capacity, length) = (self.shape.capacity_per_s(), self.windows.length + self.windows.warm_up);
        let windows = u32::from(self.windows.repeats) * (self.loads.len() * self.policies.len()) as u32;
        eprintln!(
            "{} endpoints with {} slots each, capacity {capacity:.0} calls/s; {} clients, {} calls/s offered; {}",
            self.shape.endpoints,
            self.shape.slots,
            self.clients,
            offered(capacity, &self.loads),
            time_of(windows, length)
        );
        let mut told: Vec<Vec<Told>> = vec![Vec::new(); self.loads.len() * self.policies.len()];
        for repeat in 0..self.windows.repeats {
            for (at_load, load) in self.loads.iter().enumerate() {
                for (at_policy, policy) in self.policies.iter().enumerate() {
                    let proxy = peers.iter().find(|peer| peer.policy == *policy);
                    let endpoints = proxy.map_or_else(|| stage.addresses.clone(), |peer| vec![peer.address.clone()]);
                    let window = Window {
                        rate_per_s: capacity * load,
                        warm_up_ms: ms(self.windows.warm_up),
                        for_ms: ms(self.windows.length),
                        deadline_ms: self.deadline_ms,
                        seed: self.windows.seed_of(repeat, at_load),
                        span_ms: 0,
                    };
                    let mut clients = stage.clients(*policy, self.clients, endpoints).await?;
                    let one: Told = clients.ask_for(&window, length).await?;
                    let words = words(&one, &self.windows);
                    eprintln!("{}/{} load {load:.2} {policy:<11} {words}", repeat + 1, self.windows.repeats);
                    told[at_load * self.policies.len() + at_policy].push(one);
                }
            }
        }
        let rows = told.iter().enumerate().map(|(at, told)| {
            let (load, policy) = (self.loads[at / self.policies.len()], self.policies[at % self.policies.len()]);
            Row::of(load, policy, told, &self.shape, self.windows.cpu_max.into())
        });
        Ok(rows.collect())
    }
}

impl Windows {
    /// The same for each policy.
    pub(super) fn seed_of(&self, repeat: u16, at: usize) -> u64 {
        self.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(repeat) * 1_009 + at as u64)
    }
}

/// How many windows there are, and how long they take.
pub(super) fn time_of(windows: u32, length: Duration) -> String {
    let all_s = ((length + AROUND_WINDOW) * windows).as_secs();
    let time = if all_s < 120 { format!("{all_s} s") } else { format!("{} min", all_s.div_ceil(60)) };
    format!("{windows} windows, some {time}")
}

/// Calls per second at the loads; of many the first and the last.
fn offered(capacity_per_s: f64, loads: &[f64]) -> String {
    let rate = |load: &f64| format!("{:.0}", capacity_per_s * load);
    match loads {
        [first, _, .., last] if loads.len() > 3 => format!("{} to {}", rate(first), rate(last)),
        few => few.iter().map(rate).collect::<Vec<_>>().join(" and "),
    }
}

/// What stands behind a bar. Without a window there is nothing to compare.
pub(super) fn verdict(windows: usize, is_missed: bool) -> &'static str {
    match (windows, is_missed) {
        (0, _) => "  NOT MEASURED",
        (_, true) => "  MISSED",
        (_, false) => "",
    }
}

/// One window in a line.
pub(super) fn words(told: &Told, windows: &Windows) -> String {
    let ms = |us: u64| us as f64 / 1e3;
    let mut words = format!(
        "p50 {:.1} p99 {:.1} p99.9 {:.1} ms, {} of {} failed, machine {:.0} % busy",
        ms(told.p50_us),
        ms(told.p99_us),
        ms(told.p999_us),
        told.failed,
        told.calls,
        told.machine_percent
    );
    if !told.first_failure.is_empty() {
        words += &format!(" (first: {})", output::clean(&told.first_failure));
    }
    if !is_kept(told, windows.cpu_max.into()) {
        words += &format!(": DISCARDED, above {} %", windows.cpu_max);
    }
    words
}

/// Writes what came of a grid; with `check` a bar that was missed is a failure, and nothing to show always is one.
pub(super) fn tell(
    global: &Global,
    kind: &'static str,
    grid: &Grid,
    rows: Vec<Row>,
    check: bool,
) -> Result<(), Failure> {
    let name = |row: &Row| format!("{} at {:.2}", row.policy, row.load);
    let empty: Vec<String> = rows.iter().filter(|row| row.windows == 0).map(name).collect();
    let missed: Vec<String> = rows.iter().filter(|row| row.is_missed()).map(name).collect();
    match global.output {
        Format::Table => {
            let header = ["LOAD", "POLICY", "WINDOWS", "P50 ms", "P90", "P99", "P99.9", "FAILED", "SLOW", "BAR"];
            output::text(&table(header, rows.iter().map(|row| cells(row, &grid.shape)).collect()))?;
        }
        Format::Json => output::json(&Envelope::with(kind, "", Extra::of(grid), rows))?,
    }
    ended(&empty, if check { &missed } else { &[] }, grid.windows.cpu_max)
}

/// How a command ends that left out all windows of something, or missed a bar that it was to check.
pub(super) fn ended(empty: &[String], missed: &[String], cpu_max: u8) -> Result<(), Failure> {
    if !empty.is_empty() {
        let text = format!("no window is left of {}: the machine was above {cpu_max} %", empty.join(", "));
        return Err(Failure::new(Exit::Failed, text).next("the same on a machine that has nothing else to do"));
    }
    if !missed.is_empty() {
        return Err(Failure::new(Exit::Failed, format!("bar missed: {}", missed.join(", "))));
    }
    Ok(())
}

fn cells(row: &Row, shape: &Shape) -> [String; 10] {
    let measured = |cell: String| if row.windows == 0 { String::new() } else { cell };
    [
        format!("{:.2}", row.load),
        row.policy.to_string(),
        of_all(row.windows, row.discarded),
        spread(row.p50_ms),
        spread(row.p90_ms),
        spread(row.p99_ms),
        spread(row.p999_ms),
        measured(share(row.failed, row.calls)),
        if shape.slow == 0 { String::new() } else { measured(format!("{:.1} %", row.slow_percent)) },
        row.p99_ms_bar
            .map_or_else(String::new, |bar| format!("p99 <= {bar:.0}{}", verdict(row.windows, row.is_missed()))),
    ]
}

/// How many windows the figures are of.
pub(super) fn of_all(windows: usize, discarded: usize) -> String {
    if discarded == 0 { windows.to_string() } else { format!("{windows} of {}", windows + discarded) }
}

/// The middle one, and the range where there is one.
pub(super) fn spread(spread: Option<Spread>) -> String {
    let Some(spread) = spread else { return String::new() };
    let number = |value: f64| if value.abs() < 99.95 { format!("{value:.1}") } else { format!("{value:.0}") };
    let (median, min, max) = (number(spread.median), number(spread.min), number(spread.max));
    if min == max { median } else { format!("{median} ({min}-{max})") }
}

/// Part of all, in percent.
pub(super) fn share(part: u64, all: u64) -> String {
    match part {
        0 => "0".to_owned(),
        part => format!("{:.3} %", part as f64 * 100.0 / all.max(1) as f64),
    }
}

/// Loads as people type them.
pub(super) fn load(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(load) if (0.01..=2.0).contains(&load) => Ok(load),
        _ => Err("a number from 0.01 to 2 is expected".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_the_middle_and_the_range() {
        assert_eq!(spread(Some(Spread { median: 240.4, min: 231.0, max: 255.2 })), "240 (231-255)");
        assert_eq!(spread(Some(Spread { median: 27.84, min: 27.81, max: 27.76 })), "27.8");
        assert_eq!((of_all(4, 1), of_all(5, 0)), ("4 of 5".to_owned(), "5".to_owned()));
        assert_eq!((share(0, 9), share(3, 1_000)), ("0".to_owned(), "0.300 %".to_owned()));
    }

    #[test]
    fn what_is_to_come_is_told_in_calls_and_in_time() {
        assert_eq!(offered(1_733.0, &[0.7, 0.85]), "1213 and 1473");
        assert_eq!(offered(1_000.0, &[0.8]), "800");
        assert_eq!(offered(1_000.0, &[0.7, 0.8, 0.9, 1.0]), "700 to 1000");
        assert_eq!(time_of(2, Duration::from_secs(8)), "2 windows, some 20 s");
        assert_eq!(time_of(40, Duration::from_secs(70)), "40 windows, some 48 min");
        assert_eq!((verdict(0, true), verdict(1, true), verdict(1, false)), ("  NOT MEASURED", "  MISSED", ""));
    }

    #[test]
    fn proxies_are_peers_and_the_others_are_not() {
        assert_eq!(policy("p2c"), Ok(Policy::P2c));
        assert!(policy("envoy").is_err());
        let refused = policy("nonsense").unwrap_err();
        assert!(refused.contains("peak_ewma") && !refused.contains("envoy"), "{refused}");
        assert_eq!(peer("haproxy"), Ok(Policy::Haproxy));
        assert!(peer("p2c").is_err() && peer("").is_err());
    }

    #[test]
    fn lengths_and_loads_are_bounded() {
        assert_eq!(window("60s"), Ok(Duration::from_secs(60)));
        assert!(window("0").is_err() && window("1h").is_err() && warm_up("11m").is_err());
        assert_eq!(warm_up("0"), Ok(Duration::ZERO));
        assert!(load("0.7").is_ok() && load("nan").is_err() && load("3").is_err());
    }

    #[test]
    fn nothing_to_show_is_a_failure_with_or_without_a_bar() {
        assert!(ended(&[], &[], 60).is_ok());
        assert!(ended(&["p2c at 0.70".to_owned()], &[], 60).is_err());
        assert!(ended(&[], &["lookaside at 0.70".to_owned()], 60).is_err());
    }
}
