//! Measures while a run goes on.

use super::{Failed, Figures, Histogram, OPEN_SHARE, OVERTIME_US_MAX, Run, SECOND_US, Second, Shares};
use crate::{dispatch::Policy, endpoint::Presence, scenario::Scenario};

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Well,
    Endpoint,
    Overload,
    Deadline,
    Nobody,
}

/// What an endpoint has come to by now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) presence: Presence,
    pub(crate) incarnation: u64,
    pub(crate) reached: u64,
    pub(crate) busy_us: f64,
    pub(crate) cores: u32,
}

/// Measures.
#[derive(Debug)]
pub(crate) struct Meter {
    from_us: u64,
    until_us: u64,
    /// Measured calls that have not ended.
    open: u64,
    pub(crate) total: Figures,
    /// Name, begin, end.
    pub(crate) windows: Vec<(String, u64, u64, Figures)>,
    pub(crate) timeline: Vec<Second>,
    /// Of the calls that ended well in the second that is on.
    second_us: Histogram,
    share_window_us: u64,
    pub(crate) shares: Vec<Shares>,
    before: Vec<Reading>,
    pub(crate) lists: u64,
}

impl Meter {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let (from_us, until_us) = (scenario.measured_from_us(), scenario.measured_until_us());
        let window = |window: &crate::scenario::Window| {
            let at = |ms: u64| from_us + ms * 1_000;
            (window.name.clone(), at(window.from_ms), at(window.until_ms), Figures::default())
        };
        Self {
            from_us,
            until_us,
            open: 0,
            total: Figures::default(),
            windows: scenario.windows.iter().map(window).collect(),
            timeline: vec![Second::default(); scenario.measured_ms.div_ceil(1_000) as usize],
            second_us: Histogram::default(),
            share_window_us: scenario.share_window_ms.min(scenario.measured_ms) * 1_000,
            shares: Vec::new(),
            before: Vec::new(),
            lists: 0,
        }
    }

    /// Whether a call that arrives now is measured.
    pub(crate) fn measures(&self, at_us: u64) -> bool {
        (self.from_us..self.until_us).contains(&at_us)
    }

    fn figures(&mut self, arrived_us: u64, change: impl Fn(&mut Figures)) {
        if !self.measures(arrived_us) {
            return;
        }
        change(&mut self.total);
        for (_, from, until, figures) in &mut self.windows {
            if (*from..*until).contains(&arrived_us) {
                change(figures);
            }
        }
    }

    fn second(&mut self, at_us: u64) -> Option<&mut Second> {
        if !self.measures(at_us) {
            return None;
        }
        self.timeline.get_mut(((at_us - self.from_us) / SECOND_US) as usize)
    }

    /// A call ended, of so much work.
    pub(crate) fn ended(&mut self, arrived_us: u64, size_us: f64, ended: Ended, now_us: u64) {
        self.open -= u64::from(self.measures(arrived_us));
        let latency_us = now_us - arrived_us;
        let slowdown_milli = (latency_us as f64 * 1_000.0 / size_us) as u64;
        self.figures(arrived_us, |figures| {
            figures.calls += 1;
            let Failed { endpoint, overload, deadline, nobody } = &mut figures.failed;
            match ended {
                Ended::Well => {
                    figures.latency_us.record(latency_us);
                    figures.slowdown_milli.record(slowdown_milli);
                }
                Ended::Endpoint => *endpoint += 1,
                Ended::Overload => *overload += 1,
                Ended::Deadline => *deadline += 1,
                Ended::Nobody => *nobody += 1,
            }
        });
        if let Some(second) = self.second(arrived_us) {
            second.calls += 1;
            second.failed += u64::from(ended != Ended::Well);
        }
        if ended == Ended::Well && self.measures(now_us) {
            self.second_us.record(latency_us);
        }
    }

    /// An attempt of a call was sent.
    pub(crate) fn sent(&mut self, arrived_us: u64, marked: bool, now_us: u64) {
        self.figures(arrived_us, |figures| {
            figures.attempts += 1;
            figures.attempts_marked += u64::from(marked);
        });
        if let Some(second) = self.second(now_us) {
            second.attempts += 1;
            second.attempts_marked += u64::from(marked);
        }
    }

    /// An attempt found so many calls in flight.
    pub(crate) fn found(&mut self, arrived_us: u64, rif: u32) {
        self.figures(arrived_us, |figures| figures.rif.record(u64::from(rif)));
    }

    /// A choice waits for the answers to so many probes.
    pub(crate) fn asked(&mut self, arrived_us: u64, probes: u64) {
        self.figures(arrived_us, |figures| {
            figures.asks += 1;
            figures.probes += probes;
        });
    }

    /// Probes were sent in the background.
    pub(crate) fn probed(&mut self, arrived_us: u64, probes: u64) {
        self.figures(arrived_us, |figures| figures.probes += probes);
    }

    /// A client got a list.
    pub(crate) fn listed(&mut self, now_us: u64) {
        self.lists += u64::from(self.measures(now_us));
    }

    /// A call arrived.
    pub(crate) fn called(&mut self, at_us: u64) {
        self.open += u64::from(self.measures(at_us));
    }

    /// Whether nothing that is measured can change any more.
    pub(crate) fn is_over(&self, now_us: u64) -> bool {
        let few = self.open <= self.total.calls / OPEN_SHARE;
        let overtime_us = (self.until_us - self.from_us).min(OVERTIME_US_MAX);
        now_us > self.until_us && (few || now_us > self.until_us + overtime_us)
    }

    /// Whether endpoints are to be read at the end of this second.
    pub(crate) fn wants_readings(&self, now_us: u64) -> bool {
        now_us >= self.from_us && (now_us - self.from_us).is_multiple_of(self.share_window_us)
    }

    /// A second of the measured time is over, or the measured time begins.
    pub(crate) fn second_over(&mut self, now_us: u64) {
        let p99 = self.second_us.quantile(0.99);
        self.second_us.clear();
        if let Some(second) = now_us.checked_sub(1).and_then(|at| self.second(at)) {
            second.latency_us_p99 = p99;
        }
    }

    /// The endpoints at the end of a stretch.
    pub(crate) fn read(&mut self, now: Vec<Reading>) {
        let window_us = self.share_window_us as f64;
        if !self.before.is_empty() {
            let of = |(before, now): (&Reading, &Reading)| {
                let stayed = [before, now].iter().all(|reading| reading.presence == Presence::Serving)
                    && before.incarnation == now.incarnation;
                let busy = (now.busy_us - before.busy_us) / f64::from(now.cores) / window_us;
                stayed.then_some((busy * 1e6) as u64)
            };
            let pairs = || self.before.iter().zip(&now);
            self.shares.push(Shares {
                attempts: pairs().map(|(before, now)| now.reached - before.reached).collect(),
                busy_millionth: pairs().map(of).collect(),
            });
        }
        self.before = now;
    }

    /// What came of it all.
    pub(crate) fn finish(self, scenario: &Scenario, policy: Policy, seed: u64, events: u64) -> Run {
        Run {
            scenario: scenario.name.clone(),
            policy,
            seed,
            service_time_us_mean: scenario.service_time_us_mean,
            total: self.total,
            windows: self.windows.into_iter().map(|(name, _, _, figures)| (name, figures)).collect(),
            timeline: self.timeline,
            shares: self.shares,
            lists: self.lists,
            events,
        }
    }
}
