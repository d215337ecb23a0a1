//! Operators' words on one service. On one scope and matter the newest word holds, whichever replica took it; a word that
//! takes another back is kept like any other, so that the older one cannot return from a backend that still repeats it.

use std::collections::BTreeMap;

use crate::{
    event::{Action, Override, Scope},
    limits::OVERRIDES_PER_SERVICE_MAX,
    model::{EndpointSpec, Timestamp, printable},
    table::Refusal,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    Drain,
    Disable,
    Weight,
}

impl Matter {
    fn of(action: Action) -> Self {
        match action {
            Action::Drain | Action::Undrain => Self::Drain,
            Action::Disable | Action::Enable => Self::Disable,
            Action::Weight(_) => Self::Weight,
        }
    }
}

#[derive(Debug, Clone)]
struct Word {
    word: Override,
    until: Option<Timestamp>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Words(BTreeMap<(Scope, Matter), Word>);

/// What words come to for one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Effective {
    pub(super) drained: Option<Override>,
    pub(super) disabled: Option<Override>,
    pub(super) weight_percent: Option<(u32, Override)>,
}

impl Effective {
    /// The words themselves.
    pub(super) fn words(self) -> Vec<Override> {
        [self.drained, self.disabled, self.weight_percent.map(|(_, word)| word)].into_iter().flatten().collect()
    }
}

impl Words {
    /// Takes a word in, unless a newer one on the same matter is known. Returns whether anything changed.
    pub(super) fn hear(&mut self, mut word: Override, now: Timestamp) -> Result<bool, Refusal> {
        word.reason = printable(&word.reason);
        word.actor = printable(&word.actor);
        word.replica = printable(&word.replica);
        let key = (word.scope.clone(), Matter::of(word.action));
        let until = word.remaining.take().map(|remaining| now.after(remaining));
        match self.0.get(&key) {
            Some(held) if order(&held.word) >= order(&word) => return Ok(false),
            Some(_) => {}
            None if self.0.len() >= OVERRIDES_PER_SERVICE_MAX => {
                return Err(Refusal::TooManyOverrides { service: word.service, max: OVERRIDES_PER_SERVICE_MAX });
            }
            None => {}
        }
        self.0.insert(key, Word { word, until });
        Ok(true)
    }

    /// Forgets what has ended. Returns whether anything did.
    pub(super) fn expire(&mut self, now: Timestamp) -> bool {
        let before = self.0.len();
        self.0.retain(|_, word| word.until.is_none_or(|until| now < until));
        self.0.len() != before
    }

    /// When the next word ends.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.0.values().filter_map(|word| word.until).min()
    }

    pub(super) fn effective(&self, spec: &EndpointSpec) -> Effective {
        let mut newest: BTreeMap<Matter, &Override> = BTreeMap::new();
        for ((scope, matter), held) in &self.0 {
            if !concerns(scope, spec) {
                continue;
            }
            let best = newest.entry(*matter).or_insert(&held.word);
            if order(best) < order(&held.word) {
                *best = &held.word;
            }
        }
        let mut effective = Effective::default();
        for word in newest.into_values() {
            match word.action {
                Action::Drain => effective.drained = Some(word.clone()),
                Action::Disable => effective.disabled = Some(word.clone()),
                Action::Weight(percent) => effective.weight_percent = Some((percent, word.clone())),
                Action::Undrain | Action::Enable => {}
            }
        }
        effective
    }

    /// All of them, those that take others back too, with what is left of their time.
    pub(super) fn all(&self, now: Timestamp) -> impl Iterator<Item = Override> + '_ {
        self.0
            .values()
            .map(move |held| Override { remaining: held.until.map(|until| until.since(now)), ..held.word.clone() })
    }
}

fn order(word: &Override) -> (u64, &str) {
    (word.set_at_unix_ms, &word.replica)
}

/// Whether a scope means an endpoint.
pub(super) fn concerns(scope: &Scope, spec: &EndpointSpec) -> bool {
    match scope {
        Scope::Address(address) => *address == spec.address,
        Scope::Locality(locality) => spec.locality.is_within(locality),
        Scope::Service => true,
    }
}
