//! How clients make the calls of a service, as the file has it.

use std::{collections::BTreeSet, time::Duration};

use lookaside_core::{
    config::{ATTEMPTS_MAX, CallConfig, MethodPath, MethodRule, RetryCode},
    limits::METHOD_RULES_MAX,
};
use serde::Deserialize;

use super::Problems;
use crate::config::{
    problem::{Code, Location},
    tree::Spanned,
    value::{Maybe, Percent, Span},
};

/// Calls in flight on one endpoint: beyond this a limit limits nothing.
const ENDPOINT_CALLS_MAX: u32 = 1_000_000;

/// One rule.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MethodForm {
    path: Maybe<String>,
    deadline: Maybe<Span>,
    idempotent: Option<bool>,
    attempts: Maybe<u32>,
    retry_on: Maybe<Vec<RetryCode>>,
    backoff: Maybe<Span>,
    backoff_max: Maybe<Span>,
    hedge_after: Maybe<Span>,
    hedges: Maybe<u32>,
    idempotency_key: Option<bool>,
    stream_idle_limit: Maybe<Span>,
    stream_life_limit: Maybe<Span>,
}

/// What a service, or the defaults, say of calls.
pub(super) struct CallForm<'a> {
    pub(super) methods: &'a Maybe<Vec<Spanned<MethodForm>>>,
    pub(super) endpoint_calls_max: &'a Maybe<u32>,
    pub(super) retry_budget: Option<Percent>,
    pub(super) hedge_budget: Option<Percent>,
}

impl CallForm<'_> {
    /// Rules are taken whole: those of a service stand in place of the defaults', not beside them.
    pub(super) fn fill(&self, calls: &mut CallConfig, problems: &mut Problems) {
        let limit = &mut calls.endpoint_calls_max;
        problems.bounded("endpoint_calls_max", limit, self.endpoint_calls_max, 0, ENDPOINT_CALLS_MAX);
        calls.retry_budget_percent = self.retry_budget.map_or(calls.retry_budget_percent, |p| p.0);
        calls.hedge_budget_percent = self.hedge_budget.map_or(calls.hedge_budget_percent, |p| p.0);
        let Some(methods) = self.methods else { return };
        if let Some(beyond) = methods.value.get(METHOD_RULES_MAX) {
            problems.add(beyond.referenced, Code::TooMany, format!("more than {METHOD_RULES_MAX} rules for methods"));
        }
        let mut paths = BTreeSet::new();
        let rules = methods.value.iter().filter_map(|form| {
            let rule = form.value.rule(form.referenced, problems)?;
            if !paths.insert(rule.path.clone()) {
                problems.add(form.referenced, Code::Duplicate, format!("there is a rule for {} already", rule.path));
            }
            Some(rule)
        });
        calls.methods = rules.collect();
    }
}

impl MethodForm {
    fn rule(&self, at: Location, problems: &mut Problems) -> Option<MethodRule> {
        let Some(path) = &self.path else {
            problems.add(
                at,
                Code::MissingKey,
                "a rule needs a path: /package.Service/Method, /package.Service/, or \"\" for every method",
            );
            return None;
        };
        let path = problems.parsed(path.referenced, MethodPath::parse(&path.value))?;
        let mut rule = MethodRule::of(path);
        let ms = Duration::from_millis(1);
        rule.idempotent = self.idempotent.unwrap_or(rule.idempotent);
        rule.idempotency_key = self.idempotency_key.unwrap_or(rule.idempotency_key);
        rule.retry_on = self.retry_on.as_ref().map_or_else(Vec::new, |codes| codes.value.clone());
        problems.bounded("attempts", &mut rule.attempts, &self.attempts, 1, ATTEMPTS_MAX);
        problems.bounded("hedges", &mut rule.hedges, &self.hedges, 1, ATTEMPTS_MAX - 1);
        for (key, to, from, min) in [
            ("deadline", &mut rule.deadline, &self.deadline, Duration::ZERO),
            ("backoff", &mut rule.backoff, &self.backoff, ms),
            ("backoff_max", &mut rule.backoff_max, &self.backoff_max, ms),
            ("hedge_after", &mut rule.hedge_after, &self.hedge_after, Duration::ZERO),
            ("stream_idle_limit", &mut rule.stream_idle_limit, &self.stream_idle_limit, Duration::ZERO),
            ("stream_life_limit", &mut rule.stream_life_limit, &self.stream_life_limit, Duration::ZERO),
        ] {
            problems.span(key, to, from, min);
        }
        self.check_repeats(&rule, problems);
        self.check_times(&rule, problems);
        Some(rule)
    }

    /// What is executed a second time must bear it, and what is said of repeats is to have repeats.
    fn check_repeats(&self, rule: &MethodRule, problems: &mut Problems) {
        let retries = rule.attempts > 1;
        let is_hedged = rule.hedge_after > Duration::ZERO;
        let attempts = self.attempts.as_ref().filter(|_| retries).map(|at| ("attempts", at.referenced));
        let hedge = self.hedge_after.as_ref().filter(|_| is_hedged).map(|at| ("hedge_after", at.referenced));
        for (key, at) in attempts.into_iter().chain(hedge).filter(|_| !rule.idempotent) {
            problems.add(
                at,
                Code::NotIdempotent,
                format!(
                    "{key} without `idempotent: true`: a call whose answer was lost may have been executed, and this \
                     would execute it again"
                ),
            );
        }
        let retry_on = self.retry_on.as_ref().map(|at| ("retry_on", at.referenced));
        let backoff = self.backoff.as_ref().map(|at| ("backoff", at.referenced));
        let backoff_max = self.backoff_max.as_ref().map(|at| ("backoff_max", at.referenced));
        for (key, at) in [retry_on, backoff, backoff_max].into_iter().flatten().filter(|_| !retries) {
            problems.add(at, Code::NoEffect, format!("{key} without `attempts` of 2 or more: nothing is tried again"));
        }
        if let Some(hedges) = self.hedges.as_ref().filter(|_| !is_hedged) {
            problems.add(hedges.referenced, Code::NoEffect, "hedges without `hedge_after`: nothing is hedged");
        }
    }

    fn check_times(&self, rule: &MethodRule, problems: &mut Problems) {
        let at = [&self.backoff, &self.backoff_max].into_iter().flatten().next();
        if let Some(at) = at.filter(|_| rule.backoff > rule.backoff_max) {
            problems.add(
                at.referenced,
                Code::Conflict,
                format!("backoff ({:?}) must not be longer than backoff_max ({:?})", rule.backoff, rule.backoff_max),
            );
        }
        let is_late = rule.deadline > Duration::ZERO && rule.hedge_after >= rule.deadline;
        if let Some(at) = self.hedge_after.as_ref().filter(|_| is_late) {
            problems.add(
                at.referenced,
                Code::Conflict,
                format!("hedge_after ({:?}) must be shorter than deadline ({:?})", rule.hedge_after, rule.deadline),
            );
        }
    }
}
