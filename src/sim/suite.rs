//! The study: which scenarios, which policies in each, and what is written of them. Plays one scenario at a time, so that
//! whoever waits can be told; writes no file itself.

use crate::{
    batch::cells,
    digest::{ALL, Cell, Measure, close_gaps},
    dispatch::Policy,
    rows::{CSV_HEAD, Row, rows},
    scenario::{BUILTIN, Error, Scenario, builtin},
};

mod pictures;
mod report;

/// Seeds of each scenario and policy.
pub const SEEDS: u64 = 10;

/// A scenario that was played.
#[derive(Debug, Clone)]
pub struct Played {
    /// Which.
    pub scenario: Scenario,
    /// Each policy in it.
    pub cells: Vec<Cell>,
    /// How many seeds each had.
    pub seeds: u64,
}

/// A file of the study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name, without a folder.
    pub name: String,
    /// What is in it.
    pub text: String,
}

/// Names of the scenarios of the study. The largest is there to be run at all: its two
/// seconds say little.
pub fn scenarios() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name).filter(|name| *name != "endpoints_10000")
}

/// Policies that a scenario is played with.
pub fn policies(scenario: &str) -> Vec<Policy> {
    let has_part = |policy: &Policy| match scenario {
        // Twelve minutes of a steady load: what others do in one is in `load_08`.
        "balancer_gone" => matches!(policy, Policy::Bound | Policy::Lookaside | Policy::RoundRobin),
        // The pooled queue gives nothing up and repeats nothing, so it bounds nobody who does.
        "ramp" | "retry_storm" => *policy != Policy::Bound,
        // It looks at every endpoint for every call.
        "endpoints_1000" => *policy != Policy::Oracle,
        _ => true,
    };
    Policy::ALL.into_iter().filter(has_part).collect()
}

/// Plays a scenario with those policies that nothing is kept of, so that hours of work need not be done twice: `kept` gives
/// the cell of a policy from an earlier time, and `keep` gets each new one. `done` hears after each run how many there are,
/// and how many there will be.
pub fn play<E: From<Error>>(
    name: &str,
    seeds: u64,
    kept: impl Fn(Policy) -> Result<Option<Cell>, E>,
    keep: impl Fn(&Cell) -> Result<(), E>,
    done: impl Fn(usize, usize) + Sync,
) -> Result<Played, E> {
    let (scenario, policies) = (builtin(name)?, policies(name));
    let (mut known, mut missing) = (Vec::new(), Vec::new());
    for policy in &policies {
        match kept(*policy)?.filter(|cell| cell.seeds.len() as u64 == seeds) {
            Some(cell) => known.push(cell),
            None => missing.push(*policy),
        }
    }
    let all = missing.len() * seeds as usize;
    for cell in cells(&scenario, &missing, seeds, |count| done(count, all)) {
        keep(&cell)?;
        known.push(cell);
    }
    known.sort_by_key(|cell| policies.iter().position(|policy| *policy == cell.policy));
    close_gaps(&mut known);
    Ok(Played { scenario, cells: known, seeds })
}

/// Everything that is written of what was played: one CSV, one report, and pictures.
pub fn files(played: &[Played]) -> Vec<File> {
    let all = |played: &Played| rows(&played.scenario.name, &played.cells);
    let lines: String = played.iter().flat_map(all).map(|row: Row| row.csv()).collect();
    let pictures: Vec<File> = pictures::over(played).into_iter().chain(played.iter().flat_map(pictures::of)).collect();
    let report = report::write(played, &pictures);
    let mut files = vec![
        File { name: "results.csv".to_owned(), text: format!("{CSV_HEAD}{lines}") },
        File { name: "README.md".to_owned(), text: report },
    ];
    files.extend(pictures);
    files
}

impl Played {
    /// The cell of a policy.
    fn cell(&self, policy: Policy) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.policy == policy)
    }

    /// The cells that are shown: of the emulation of Prequal the setting with the best p99 here.
    fn shown(&self) -> impl Iterator<Item = &Cell> {
        let is_prequal = |policy| matches!(policy, Policy::Prequal0 | Policy::Prequal60 | Policy::Prequal84);
        let p99 = |cell: &&Cell| cell.estimate(ALL, Measure::P99).map_or(f64::MAX, |p99| p99.mean);
        let best = self.cells.iter().filter(|cell| is_prequal(cell.policy)).min_by(|a, b| p99(a).total_cmp(&p99(b)));
        let best = best.map(|cell| cell.policy);
        self.cells.iter().filter(move |cell| !is_prequal(cell.policy) || Some(cell.policy) == best)
    }
}

/// What a policy is called where people read it.
fn called(policy: Policy) -> &'static str {
    match policy {
        Policy::Bound => "pooled bound",
        Policy::Oracle => "oracle",
        Policy::Lookaside => "Lookaside",
        Policy::Random => "random",
        Policy::RoundRobin => "round robin",
        Policy::P2c => "P2C, own calls",
        Policy::PeakEwma => "Peak-EWMA",
        Policy::Wrr => "WRR (A58)",
        Policy::Pid => "PID",
        Policy::Prequal0 => "Prequal*, Q 0",
        Policy::Prequal60 => "Prequal*, Q 0.6",
        Policy::Prequal84 => "Prequal*, Q 0.84",
        Policy::ProbingP2c => "probing P2C",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batch::compare, digest::Digest};

    /// A scenario of the study, made short.
    fn played(name: &str) -> Played {
        let mut scenario = builtin(name).unwrap();
        scenario.endpoints[0].count = 2;
        scenario.clients.count = 2;
        (scenario.warm_up_ms, scenario.measured_ms) = (1_000, 3_000);
        let policies = [Policy::Bound, Policy::Lookaside, Policy::Prequal0, Policy::Prequal84, Policy::RoundRobin];
        let cells = compare(&scenario, &policies, 2, |_| {});
        Played { scenario, cells, seeds: 2 }
    }

    #[test]
    fn the_same_runs_give_the_same_bytes_and_every_picture_is_in_the_report() {
        let all = [played("headline"), played("load_05"), played("bursts")];
        let files = files(&all);
        assert_eq!(files, super::files(&[played("headline"), played("load_05"), played("bursts")]));
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        for wanted in ["results.csv", "README.md", "by-load.svg", "p99-headline.svg", "time-bursts.svg"] {
            assert!(names.contains(&wanted), "{wanted} is not in {names:?}");
        }
        let report = &files[1].text;
        for picture in names.iter().filter(|name| name.ends_with(".svg")) {
            assert!(report.contains(picture), "{picture} is not in the report");
        }
        assert!(report.contains("emulation"), "what is called Prequal is none");
        assert!(files[0].text.starts_with(CSV_HEAD) && files[0].text.contains("headline,lookaside,all,"));
    }

    #[test]
    fn what_was_kept_is_not_played_again_and_its_gaps_are_closed() {
        let kept = |policy: Policy| {
            let p99 = match policy {
                Policy::RoundRobin => 9.0,
                Policy::Bound => 5.0,
                _ => 6.0,
            };
            let windows = vec![(ALL.to_owned(), vec![(Measure::P99, p99)])];
            Ok(Some(Cell { policy, seeds: vec![Digest { windows, timeline: Vec::new() }] }))
        };
        let keep = |cell: &Cell| panic!("{:?} was played", cell.policy);
        let played = play::<Error>("headline", 1, kept, keep, |_, _| {}).unwrap();
        let order: Vec<Policy> = played.cells.iter().map(|cell| cell.policy).collect();
        assert_eq!(order, policies("headline"));
        let closed = played.cell(Policy::Lookaside).unwrap().estimate(ALL, Measure::GapClosedPercent).unwrap();
        assert_eq!(closed.mean, 75.0);
    }

    #[test]
    fn of_the_emulation_the_best_is_shown() {
        let shown = |p99s: [f64; 3]| {
            let prequal = [Policy::Prequal0, Policy::Prequal60, Policy::Prequal84];
            let cell = |(policy, p99)| {
                let windows = vec![(ALL.to_owned(), vec![(Measure::P99, p99)])];
                Cell { policy, seeds: vec![Digest { windows, timeline: Vec::new() }] }
            };
            let cells = prequal.into_iter().zip(p99s).chain([(Policy::P2c, 9.0)]).map(cell).collect();
            let played = Played { scenario: builtin("headline").unwrap(), cells, seeds: 1 };
            played.shown().map(|cell| cell.policy).collect::<Vec<_>>()
        };
        assert_eq!(shown([5.0, 6.0, 7.0]), [Policy::Prequal0, Policy::P2c]);
        assert_eq!(shown([5.0, 4.0, 7.0]), [Policy::Prequal60, Policy::P2c]);
    }
}
