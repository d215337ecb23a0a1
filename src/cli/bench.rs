//! `lookaside bench`: what Lookaside costs on this machine, measured on whole processes. Each command starts what it needs as
//! children of its own, asks them over stdin and stdout, and ends them; nothing listens beyond loopback.

mod child;
mod fanout;
mod part;
mod sdk;

use serde::Serialize;

use crate::Global;
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};

/// Measure what Lookaside costs on this machine, with whole processes on loopback
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside bench sdk
  lookaside bench fanout -o json
  lookaside bench fanout --streams 20000 --check

Progress goes to stderr. Quiet the machine first: what else runs on it is in every figure but the ratios.")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Sdk(sdk::Args),
    Fanout(fanout::Args),
    #[command(hide = true)]
    Part(part::Args),
}

/// Runs one of them.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    match args.what {
        What::Sdk(args) => sdk::run(global, args).await,
        What::Fanout(args) => fanout::run(global, args).await,
        What::Part(args) => part::run(args).await,
    }
}

/// One figure.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Figure {
    /// What was measured, with its unit.
    name: String,
    /// Of which part of the run.
    of: String,
    value: f64,
    /// What it must not exceed, where we promise that.
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<f64>,
}

impl Figure {
    fn new(of: &str, name: &str, value: f64) -> Self {
        Self { name: name.to_owned(), of: of.to_owned(), value, bar: None }
    }

    fn at_most(self, bar: f64) -> Self {
        Self { bar: Some(bar), ..self }
    }

    fn is_missed(&self) -> bool {
        self.bar.is_some_and(|bar| self.value > bar)
    }

    fn row(&self) -> [String; 4] {
        let number = |value: f64| match value.abs() {
            below if below < 10.0 => format!("{value:.3}"),
            below if below < 100.0 => format!("{value:.1}"),
            _ => format!("{value:.0}"),
        };
        let bar = self.bar.map_or_else(String::new, |bar| {
            format!("<= {}{}", number(bar), if self.is_missed() { "  MISSED" } else { "" })
        });
        [self.of.clone(), self.name.clone(), number(self.value), bar]
    }
}

/// How a run was made, for whoever compares two.
#[derive(Serialize)]
struct Extra<S: Serialize> {
    version: &'static str,
    cores: usize,
    settings: S,
}

/// Writes what came of a run; with `check` a bar that was missed is a failure.
fn tell<S: Serialize>(
    global: &Global,
    kind: &'static str,
    settings: S,
    figures: Vec<Figure>,
    check: bool,
) -> Result<(), Failure> {
    let missed: Vec<String> =
        figures.iter().filter(|f| f.is_missed()).map(|f| format!("{} {}", f.of, f.name)).collect();
    match global.output {
        Format::Table => {
            let rows = figures.iter().map(Figure::row).collect();
            output::text(&output::table(["OF", "FIGURE", "VALUE", "BAR"], rows))?;
        }
        Format::Json => {
            let cores = std::thread::available_parallelism().map_or(0, usize::from);
            let extra = Extra { version: env!("CARGO_PKG_VERSION"), cores, settings };
            output::json(&Envelope::with(kind, "", extra, figures))?;
        }
    }
    match missed.as_slice() {
        missed if check && !missed.is_empty() => {
            Err(Failure::new(Exit::Failed, format!("above the bar: {}", missed.join(", "))))
        }
        _ => Ok(()),
    }
}

/// The middle one of some values; 0 of none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([]), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 9.0]), 3.0);
    }

    #[test]
    fn a_figure_says_when_it_is_above_its_bar() {
        let figure = Figure::new("SDK", "cpu_ratio", 1.2).at_most(1.1);
        assert!(figure.is_missed());
        assert_eq!(figure.row(), ["SDK", "cpu_ratio", "1.200", "<= 1.100  MISSED"]);
        assert!(!Figure::new("SDK", "cpu_ratio", 1.2).is_missed());
    }
}
