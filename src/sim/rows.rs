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
    /// Lower end of its 95 % interval; none below two seeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Upper end of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
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
        let [low, high] = [low, high].map(|end| end.map_or_else(String::new, |end| format!("{end:.6}")));
        format!("{scenario},{policy},{window},{measure},{mean:.6},{low},{high},{seeds}\n")
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
                let [low, high] = estimate.interval().map_or([None; 2], |ends| ends.map(Some));
                rows.push(Row {
                    scenario: scenario.to_owned(),
                    policy: cell.policy.name(),
                    window: window.to_owned(),
                    measure: measure.name(),
                    mean: estimate.mean,
                    low,
                    high,
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
            low: Some(1.25),
            high: Some(1.75),
            seeds: 10,
        };
        assert_eq!(row.csv(), "\"a \"\"b\"\", c\",p2c,all,rif_p99,1.500000,1.250000,1.750000,10\n");
        let alone = Row { scenario: "a".to_owned(), low: None, high: None, seeds: 1, ..row };
        assert_eq!(alone.csv(), "a,p2c,all,rif_p99,1.500000,,,1\n");
        assert_eq!(CSV_HEAD.matches(',').count() + 1, 8);
    }
}
