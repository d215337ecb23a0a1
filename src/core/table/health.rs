//! What checks, clients and report streams say of one endpoint, and what follows from them for it alone. What follows
//! from many endpoints failing at once is [`super::judge`]'s.

use std::time::Duration;

use crate::{
    event::CheckOutcome,
    kept::KeptHealth,
    model::{Timestamp, printable},
    snapshot::{Check, Code},
};

/// How long a client's word on a failing endpoint corroborates a failed check. Clients repeat themselves every report
/// period, so this is several of their reports.
const CLIENT_EVIDENCE: Duration = Duration::from_secs(10);

/// The least time between two checks that clients' words ask for.
const SUSPICION_PERIOD: Duration = Duration::from_millis(250);

/// What is held of an endpoint's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing found out yet.
    New,
    /// Usable.
    Up,
    /// Not usable, and why.
    Down(Code, String),
}

#[derive(Debug, Clone)]
pub(super) struct Health {
    pub(super) verdict: Verdict,
    /// The last check that counts.
    pub(super) check: Option<Check>,
    failure: Option<(Code, String)>,
    /// Counts up whenever a check is wanted at once.
    pub(super) wanted: u64,
    client_failed_at: Option<Timestamp>,
    /// When a client's word last made us ask for a check.
    asked_at: Option<Timestamp>,
}

impl Health {
    pub(super) fn new() -> Self {
        Self { verdict: Verdict::New, check: None, failure: None, wanted: 1, client_failed_at: None, asked_at: None }
    }

    /// What was found out before the balancer itself started anew. A check is wanted, as of any new endpoint.
    pub(super) fn restored(health: KeptHealth) -> Self {
        match health {
            KeptHealth::Unknown => Self::new(),
            KeptHealth::Usable => Self { verdict: Verdict::Up, ..Self::new() },
            KeptHealth::Unusable { code, detail } => {
                Self { verdict: Verdict::Down(code, printable(&detail)), ..Self::new() }
            }
        }
    }

    /// What the next start is to know of it.
    pub(super) fn keep(&self) -> KeptHealth {
        match &self.verdict {
            Verdict::New => KeptHealth::Unknown,
            Verdict::Up => KeptHealth::Usable,
            Verdict::Down(code, detail) => KeptHealth::Unusable { code: *code, detail: detail.clone() },
        }
    }

    /// A new start of the backend: what was seen of the one before does not count, but a check is wanted.
    pub(super) fn restart(&mut self) {
        *self = Self { wanted: self.wanted + 1, ..Self::new() };
    }

    pub(super) fn want_check(&mut self) {
        self.wanted += 1;
    }

    /// Takes a check in. Positive evidence acts here; negative evidence waits for the judgement of the whole service.
    pub(super) fn checked(&mut self, outcome: CheckOutcome, rise: u32, now: Timestamp) {
        let failure = failure(outcome);
        let passed = failure.is_none();
        let streak = match &self.check {
            Some(last) if last.passed == passed => last.streak.saturating_add(1),
            _ => 1,
        };
        let result = match &failure {
            None => "SERVING".to_owned(),
            Some((code, detail)) if detail.is_empty() => code.name().to_owned(),
            Some((_, detail)) => detail.clone(),
        };
        self.check = Some(Check { at: now, result, passed, streak });
        if let (Verdict::Down(..), Some((code, detail))) = (&self.verdict, &failure) {
            // It is out as before, for what is known of it now.
            self.verdict = Verdict::Down(*code, detail.clone());
        }
        self.failure = failure;
        if passed {
            // A passed check answers what clients suspected before it.
            self.client_failed_at = None;
            match self.verdict {
                Verdict::New | Verdict::Up => self.verdict = Verdict::Up,
                Verdict::Down(..) if streak >= rise => self.verdict = Verdict::Up,
                // Do not let a recovered endpoint wait a whole interval for its next good mark.
                Verdict::Down(..) => self.want_check(),
            }
        }
    }

    /// Clients saw it fail. Returns whether that asks for a check: each report of a thousand clients would be too many.
    pub(super) fn client_failed(&mut self, now: Timestamp) -> bool {
        self.client_failed_at = Some(now);
        let answered_at = self.check.as_ref().map(|check| check.at);
        let asks = answered_at.max(self.asked_at).is_none_or(|at| now.since(at) >= SUSPICION_PERIOD);
        if asks {
            self.asked_at = Some(now);
            self.want_check();
        }
        asks
    }

    pub(super) fn clients_fail(&self, now: Timestamp) -> bool {
        self.client_failed_at.is_some_and(|at| now.since(at) < CLIENT_EVIDENCE)
    }

    /// Failed checks in a row, the last one included; 0 after a passed one.
    pub(super) fn failed_checks(&self) -> u32 {
        self.check.as_ref().filter(|check| !check.passed).map_or(0, |check| check.streak)
    }

    /// Whether nobody has looked at it yet.
    pub(super) fn is_unknown(&self) -> bool {
        self.verdict == Verdict::New && self.check.is_none()
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.verdict, Verdict::Down(..))
    }

    /// Takes the endpoint out for what the last check found.
    pub(super) fn fall(&mut self) {
        if let Some((code, detail)) = self.failure.clone() {
            self.verdict = Verdict::Down(code, detail);
        }
    }

    /// What the last check found, when it failed.
    pub(super) fn failure(&self) -> Option<&(Code, String)> {
        self.failure.as_ref()
    }

    /// The balancer itself was away: what it half knew then does not count.
    pub(super) fn forget_streak(&mut self) {
        if let Some(check) = &mut self.check {
            check.streak = 0;
        }
        self.client_failed_at = None;
        self.want_check();
    }
}

fn failure(outcome: CheckOutcome) -> Option<(Code, String)> {
    match outcome {
        CheckOutcome::Passed => None,
        CheckOutcome::NotServing => Some((Code::HealthNotServing, String::new())),
        CheckOutcome::Unreachable { detail } => Some((Code::HealthUnreachable, printable(&detail))),
        CheckOutcome::TimedOut { deadline } => {
            Some((Code::HealthTimeout, format!("no answer within {} ms", deadline.as_millis())))
        }
        CheckOutcome::NotGrpc { detail } => Some((Code::HealthNotGrpc, printable(&detail))),
    }
}
