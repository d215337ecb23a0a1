//! Endpoints whose calls fail though they pass their checks: a quorum of clients takes them out, and a share that grows in
//! steps brings them back ([note 26](../../decisions/0026-ejection-by-quorum.md)). What is wrong with all of them is
//! nobody's fault, and the rest must be able to bear what it gets. Drain, disable and checks come first.
//!
//! Not kept over a restart of the balancer: clients tell of their calls within a second, so the next start finds out by
//! itself what is still true.

use std::{collections::BTreeMap, time::Duration};

use super::{endpoint::Endpoint, service::Service, words::Words};
use crate::{
    event::{Client, Outcomes},
    model::{Address, Timestamp},
};

mod usual;
mod voices;

use usual::Usual;
use voices::{Agreement, Counts, PERIODS, Voices, WINDOW};

/// The share of failed calls that is too much of an endpoint, permille, and how many times that of the others it is.
const FAILED_PERMILLE_MIN: u32 = 200;
const FAILED_TIMES_OTHERS: u32 = 3;

/// Utilisation to which the others may come by an ejection, permille.
const UTILIZATION_PERMILLE_MAX: u64 = 900;

/// Where utilisations are not known: endpoints that may be out, percent of all, and one more.
const OUT_PERCENT: usize = 10;

/// Of all endpoints, those that have their whole share after an ejection, percent: it is never what leads to a panic.
const WHOLE_PERCENT_MIN: usize = 50;

/// The time out; it doubles with every further ejection, and is forgotten after as long again, and a window, without one.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Shares on the way back, permille. Weights are whole numbers of at least 1 and usually around 100, so that a smaller first
/// step would make no difference.
const STEPS_PERMILLE: [u64; 3] = [10, 50, 250];

/// What makes a step: calls that go as those of the others do, or time without a bad one. Few clients call an endpoint that has
/// a hundredth of its share.
const STEP_CALLS: u32 = 10;
const STEP_TIME: Duration = Duration::from_secs(3);

/// An endpoint is looked at anew so long after the last time at the earliest. Where everything fails, every word of every client
/// is an accusation, and would otherwise be a turn of the table.
const LOOK: Duration = Duration::from_millis(500);

/// Of fewer calls than these a share of failures says nothing of what an endpoint gets done.
const SHARE_CALLS_MIN: u32 = 20;

/// What is held of an endpoint's calls.
#[derive(Debug, Default, Clone)]
pub(super) struct Outlier {
    voices: Voices,
    /// A quorum speaks against it, and it has not been looked at since.
    accused: bool,
    /// When it may be looked at again.
    look_at: Timestamp,
    standing: Standing,
    /// Ejections in a row.
    ejections: u32,
    /// Voices that are believed on its way back, when it is called by few and seldom: one if it took it out alone, else two.
    voices_min: usize,
    /// Since when it has had its whole share again.
    whole_since: Timestamp,
    /// What was seen, in words.
    seen: String,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Standing {
    #[default]
    Whole,
    /// Gets no calls, or if the others cannot do without it, as few as there can be.
    Out { until: Timestamp, kept: Option<Kept> },
    /// Comes back, in steps.
    Returning { step: usize, since: Timestamp },
}

/// Why an endpoint that should be out is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    OthersTooFull,
    OthersTooMany,
}

impl Outlier {
    /// Takes in what a client told. Returns whether that may change what the endpoint gets.
    fn told(&mut self, client: &Client, outcomes: &Outcomes, now: Timestamp) -> bool {
        if self.is_wanted_out() {
            // Of calls from before, or of the few that it gets without a choice.
            return false;
        }
        let count = |calls: u64| u32::try_from(calls).unwrap_or(u32::MAX);
        let counts = Counts { ok: count(outcomes.ok), failed: count(outcomes.failed) };
        if counts.is_none() {
            return false;
        }
        self.voices.add(client, counts, now);
        // What is evident without one of them is never more than what all of them told, which is quickly looked at.
        if counts.failed > 0 && !self.accused && self.voices.failed_permille_most(now) > FAILED_PERMILLE_MIN {
            let agreed = self.agreed(now);
            self.accused = agreed.is_some_and(|agreed| agreed.failed_permille_least > FAILED_PERMILLE_MIN);
        }
        self.is_up(now) || self.may_step(0, now)
    }

    fn agreed(&self, now: Timestamp) -> Option<Agreement> {
        self.voices.agree(if self.is_returning() { self.voices_min } else { 0 }, now)
    }

    /// Whether it is time to look at what speaks against it.
    fn is_up(&self, now: Timestamp) -> bool {
        self.accused && now >= self.look_at
    }

    /// The share of its calls that fail, whichever single voice is left out; `None` where too few were told of.
    pub(super) fn failed_share(&self, now: Timestamp) -> Option<f64> {
        let (_, calls) = self.voices.lately(now);
        (calls >= SHARE_CALLS_MIN).then(|| f64::from(self.voices.benign(now).failed_permille()) / 1e3)
    }

    /// Whether it gets no calls.
    pub(super) fn is_out(&self) -> bool {
        matches!(self.standing, Standing::Out { kept: None, .. })
    }

    fn is_wanted_out(&self) -> bool {
        matches!(self.standing, Standing::Out { .. })
    }

    fn is_returning(&self) -> bool {
        matches!(self.standing, Standing::Returning { .. })
    }

    /// Whether it gets all of its share.
    pub(super) fn is_whole(&self) -> bool {
        self.standing == Standing::Whole
    }

    /// The part of its weight that it gets, permille; at least the smallest, since it may be offered in a panic.
    pub(super) fn share_permille(&self) -> u64 {
        match self.standing {
            Standing::Whole => 1000,
            Standing::Out { .. } => STEPS_PERMILLE[0],
            Standing::Returning { step, .. } => STEPS_PERMILLE.get(step).copied().unwrap_or(1000),
        }
    }

    /// Why it gets less than its whole weight, in words that stay the same meanwhile.
    pub(super) fn words(&self) -> Option<String> {
        let percent = self.share_permille() / 10;
        match self.standing {
            Standing::Whole => None,
            Standing::Out { kept: None, .. } => Some(format!("{}; it comes back in steps", self.seen)),
            Standing::Out { kept: Some(kept), .. } => {
                let why = match kept {
                    Kept::OthersTooFull => "the others would be too full without it",
                    Kept::OthersTooMany => "enough others are out",
                };
                Some(format!("{}; {percent} % of its share, since {why}", self.seen))
            }
            Standing::Returning { .. } => Some(format!("comes back, with {percent} % of its share")),
        }
    }

    /// A check found it usable again, which is news of it that no call has brought.
    pub(super) fn forgive(&mut self, now: Timestamp) {
        *self = Self { ejections: self.ejections, whole_since: now, ..Self::default() };
    }

    /// The balancer itself was away: what was told before that is old.
    pub(super) fn resumed(&mut self, now: Timestamp) {
        self.voices = Voices::default();
        self.accused = false;
        if let Standing::Returning { since, .. } = &mut self.standing {
            *since = now;
        }
    }

    fn eject(&mut self, kept: Option<Kept>, agreed: &Agreement, now: Timestamp) {
        // One or two voices may take a window to say that it is no better than before.
        if now.since(self.whole_since) >= pause(self.ejections).saturating_add(WINDOW) && self.is_whole() {
            self.ejections = 0;
        }
        self.ejections = self.ejections.saturating_add(1);
        self.standing = Standing::Out { until: now.after(pause(self.ejections)), kept };
        self.seen = seen(agreed);
        self.voices_min = agreed.voices.min(2);
        self.voices = Voices::default();
    }

    /// Begins to come back if its time is over.
    fn advance(&mut self, now: Timestamp) {
        if let Standing::Out { until, .. } = self.standing
            && now >= until
        {
            self.stand_at(0, now);
        }
    }

    /// Takes a step on the way back if it is due; `usual` is the share of failures of the others, permille.
    fn step(&mut self, usual: u32, now: Timestamp) {
        if let Standing::Returning { step, .. } = self.standing
            && self.may_step(usual, now)
        {
            self.stand_at(step + 1, now);
        }
    }

    fn stand_at(&mut self, step: usize, now: Timestamp) {
        // Each step is judged by its own calls.
        self.voices = Voices::default();
        self.accused = false;
        self.look_at = now.after(LOOK);
        self.standing = match STEPS_PERMILLE.get(step) {
            Some(_) => Standing::Returning { step, since: now },
            None => Standing::Whole,
        };
        self.whole_since = now;
    }

    /// No single voice keeps it out: what one alone saw fail does not count.
    fn may_step(&self, usual: u32, now: Timestamp) -> bool {
        let Standing::Returning { since, .. } = self.standing else { return false };
        let (voices, calls) = self.voices.lately(now);
        if voices > 0 && voices < self.voices_min {
            return now.since(since) >= STEP_TIME;
        }
        let benign = self.voices.benign(now);
        // Not the one without a fault is looked for, but the one that is like others.
        let is_like_others = benign.failed_permille() < FAILED_PERMILLE_MIN
            || benign.failed_permille() <= usual.saturating_mul(FAILED_TIMES_OTHERS);
        (calls >= STEP_CALLS && is_like_others) || (benign.failed == 0 && now.since(since) >= STEP_TIME)
    }

    /// When time alone may change something.
    pub(super) fn due(&self, now: Timestamp) -> Option<Timestamp> {
        match self.standing {
            Standing::Whole | Standing::Returning { .. } if self.accused => Some(self.look_at),
            Standing::Whole => None,
            Standing::Out { until, .. } => Some(until),
            // After the first steps it waits for bad calls to be forgotten.
            Standing::Returning { since, .. } => Some(since.after(STEP_TIME).max(now.after(Duration::from_secs(1)))),
        }
    }
}

fn pause(ejections: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << ejections.saturating_sub(1).min(6)).min(PAUSE_MAX)
}

impl Service {
    /// What a client told of its calls; of an endpoint that is gone meanwhile it is no mistake.
    pub(super) fn calls_ended(&mut self, client: &Client, address: &Address, outcomes: &Outcomes, now: Timestamp) {
        let Some(endpoint) = self.endpoints.get_mut(address) else { return };
        self.urgent |= endpoint.outlier.told(client, outcomes, now);
        let calls = outcomes.ok.saturating_add(outcomes.failed);
        self.subsets.called(client, calls);
        self.zones.called(client, calls);
        if outcomes.failed > 0 || outcomes.suspect {
            let evidence_matters = endpoint.health.failed_checks() > 0;
            self.urgent |= endpoint.health.client_failed(now) | evidence_matters;
        }
    }

    /// Turns what clients told into ejections, the worst first, and brings back whose time has come.
    pub(super) fn judge_outliers(&mut self, words: Option<&Words>, now: Timestamp) {
        let mut accused: Vec<(Agreement, Address)> = Vec::new();
        let mut any_steps = false;
        for endpoint in self.endpoints.values_mut() {
            let outlier = &mut endpoint.outlier;
            outlier.advance(now);
            // If the others are no better: to look at all of them takes long.
            any_steps |= outlier.may_step(u32::MAX, now);
            if !outlier.is_up(now) {
                continue;
            }
            outlier.accused = false;
            outlier.look_at = now.after(LOOK);
            let endpoint = &*endpoint;
            if endpoint.may_be_offered()
                && counts(endpoint, words)
                // Whose checks fail is judged by these, and by what clients say beside them.
                && endpoint.health.failed_checks() == 0
                && let Some(agreed) = endpoint.outlier.agreed(now)
                && agreed.failed_permille_least > FAILED_PERMILLE_MIN
            {
                accused.push((agreed, endpoint.spec.address.clone()));
            }
        }
        if accused.is_empty() && !any_steps {
            return;
        }
        accused.sort_by(|(a, at_a), (b, at_b)| {
            b.failed_permille_least.cmp(&a.failed_permille_least).then_with(|| at_a.cmp(at_b))
        });
        let others = self.endpoints.values().filter(|endpoint| counts(endpoint, words));
        let mut known = Usual::of(others.map(|endpoint| &endpoint.outlier.voices), now);
        let mut usual = |outlier: &Outlier, periods| known.failed_permille(&outlier.voices, periods);
        // One whose calls fail as those of the others do has no fault of its own.
        accused.retain(|(agreed, address)| {
            let usual = self.endpoints.get(address).map_or(0, |endpoint| usual(&endpoint.outlier, agreed.periods));
            agreed.failed_permille_least > usual.saturating_mul(FAILED_TIMES_OTHERS)
        });
        let returning = self.endpoints.iter().filter(|(_, endpoint)| endpoint.outlier.is_returning());
        let returning: Vec<(Address, u32)> =
            returning.map(|(address, endpoint)| (address.clone(), usual(&endpoint.outlier, PERIODS))).collect();
        let mut room = Room::of(self, words);
        for (agreed, address) in accused {
            if let Some(endpoint) = self.endpoints.get_mut(&address)
                && let Some(kept) = room.take(endpoint)
            {
                endpoint.outlier.eject(kept, &agreed, now);
            }
        }
        for (address, usual) in returning {
            if let Some(endpoint) = self.endpoints.get_mut(&address) {
                endpoint.outlier.step(usual, now);
            }
        }
    }
}

fn seen(agreed: &Agreement) -> String {
    let Counts { ok, failed } = agreed.counts;
    let calls = ok.saturating_add(failed);
    match agreed.voices {
        1 => format!("{failed} of {calls} calls failed, seen by its only client"),
        voices => format!("{failed} of {calls} calls failed, seen by {} of {voices} clients", agreed.accusers),
    }
}

/// Whether an endpoint is one of those that a service has: not one that leaves, or was taken out.
fn counts(endpoint: &Endpoint, words: Option<&Words>) -> bool {
    (endpoint.trusted || endpoint.health.is_down())
        && !endpoint.is_leaving()
        && !words.is_some_and(|words| words.take_out(&endpoint.spec))
}

/// How many endpoints, and how much capacity, a service can do without.
struct Room {
    all: usize,
    whole: usize,
    whole_min: usize,
    out: usize,
    /// What there is to do and what there is to do it, of a tier; `None` where somebody has not said how full it is.
    tiers: BTreeMap<u32, Option<(u64, u64)>>,
}

impl Room {
    fn of(service: &Service, words: Option<&Words>) -> Self {
        let percent = WHOLE_PERCENT_MIN.max(service.config.panic_threshold_percent as usize);
        let mut room = Self { all: 0, whole: 0, whole_min: 0, out: 0, tiers: BTreeMap::new() };
        for endpoint in service.endpoints.values().filter(|endpoint| counts(endpoint, words)) {
            room.all += 1;
            room.out += usize::from(endpoint.outlier.is_out());
            room.whole += usize::from(endpoint.may_be_offered() && endpoint.outlier.is_whole());
            if endpoint.health.is_down() {
                continue;
            }
            // Of one that is out already, the others do not show yet that they have its calls; soon its reports do.
            let tier = room.tiers.entry(endpoint.spec.priority).or_insert(Some((0, 0)));
            // Who says that it does more than it can does all it can.
            let utilization = endpoint.load.utilization_permille().map(|permille| u64::from(permille.min(1000)));
            *tier = tier.zip(utilization).map(|((work, capacity), utilization)| {
                (work + utilization * endpoint.capacity_milli(), capacity + borne_milli(endpoint))
            });
        }
        room.whole_min = (room.all * percent).div_ceil(100).max(1);
        room
    }

    /// Takes an endpoint out of the reckoning: altogether, or for a reason that it is to be kept for, as far as it goes.
    /// `None` if the others need all of it.
    fn take(&mut self, endpoint: &Endpoint) -> Option<Option<Kept>> {
        // One on its way back was none of those.
        let whole = self.whole.saturating_sub(usize::from(endpoint.outlier.is_whole()));
        if whole < self.whole_min {
            return None;
        }
        self.whole = whole;
        let tier = self.tiers.get_mut(&endpoint.spec.priority).and_then(Option::as_mut);
        let kept = match tier {
            Some((work, capacity)) => {
                *capacity = capacity.saturating_sub(borne_milli(endpoint));
                (*work > UTILIZATION_PERMILLE_MAX * *capacity).then_some(Kept::OthersTooFull)
            }
            None => (self.out > self.all * OUT_PERCENT / 100).then_some(Kept::OthersTooMany),
        };
        self.out += usize::from(kept.is_none());
        Some(kept)
    }
}

/// The capacity that it gets calls for.
fn borne_milli(endpoint: &Endpoint) -> u64 {
    if endpoint.outlier.is_out() { 0 } else { endpoint.capacity_milli() * endpoint.outlier.share_permille() / 1000 }
}

#[cfg(test)]
mod tests;
