//! Results as rows: one for each scenario, policy, window and measure.

use serde::Serialize;

use crate::digest::{Cell, Measure};

/// One value over seeds, with its 95 % interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Of which scenario.
    pub scenario: String,
    /// By which policy.
    pub policy: &'static str,
    /// Of which window of the measured time; `all` for the whole.
    pub window: String,
    /// What was measured, with its unit.
    pub measure: &'static str,
    /// The mean over seeds.
    pub mean: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end of it.
    pub high: f64,
    /// How many seeds.
    pub seeds: usize,
}

/// The first line of [`Row::csv`].
pub const CSV_HEAD: &str = "scenario,policy,window,measure,mean,low,high,seeds\n";

impl Row {
    /// As a line; the names that scenarios give themselves are quoted where they need it.
    pub fn csv(&self) -> String {
        let Self { scenario, policy, window, measure, mean, low, high, seeds } = self;
        let (scenario, window) = (quoted(scenario), quoted(window));
        format!("{scenario},{policy},{window},{measure},{mean:.6},{low:.6},{high:.6},{seeds}\n")
    }
}

fn quoted(name: &str) -> String {
    let plain = !name.contains([',', '"', '\n', '\r']);
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// All values of some cells of a scenario.
pub fn rows(scenario: &str, cells: &[Cell]) -> Vec<Row> {
    let mut rows = Vec::new();
    for cell in cells {
        for window in cell.windows() {
            for measure in Measure::ALL {
                let Some(estimate) = cell.estimate(window, measure) else { continue };
                rows.push(Row {
                    scenario: scenario.to_owned(),
                    policy: cell.policy.name(),
                    window: window.to_owned(),
                    measure: measure.name(),
                    mean: estimate.mean,
                    low: estimate.low(),
                    high: estimate.high(),
                    seeds: estimate.count,
                });
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_line_whatever_the_scenario_is_called() {
        let row = Row {
            scenario: "a \"b\", c".to_owned(),
            policy: "p2c",
            window: "all".to_owned(),
            measure: "rif_p99",
            mean: 1.5,
            low: 1.25,
            high: 1.75,
            seeds: 10,
        };
        assert_eq!(row.csv(), "\"a \"\"b\"\", c\",p2c,all,rif_p99,1.500000,1.250000,1.750000,10\n");
        assert_eq!(CSV_HEAD.matches(',').count() + 1, 8);
    }
}
