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
    /// Words that take others back. A backend is told of them too: it may repeat what they take back to a replica that
    /// has not heard of them.
    undone: Vec<Override>,
}

impl Effective {
    /// The words themselves.
    pub(super) fn words(self) -> Vec<Override> {
        let in_force = [self.drained, self.disabled, self.weight_percent.map(|(_, word)| word)];
        in_force.into_iter().flatten().chain(self.undone).collect()
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
        let held = self.0.get(&key).map(|held| order(&held.word) >= order(&word));
        match held {
            Some(true) => return Ok(false),
            Some(false) => {}
            None if self.0.len() >= OVERRIDES_PER_SERVICE_MAX && !self.forget_one_undone() => {
                return Err(Refusal::TooManyOverrides { service: word.service, max: OVERRIDES_PER_SERVICE_MAX });
            }
            None => {}
        }
        self.0.insert(key, Word { word, until });
        Ok(true)
    }

    /// Makes room by the oldest word that takes another back: addresses come and go, and their words would pile up until
    /// no order is taken any more. Returns whether there was one.
    fn forget_one_undone(&mut self) -> bool {
        let undone = self.0.iter().filter(|(_, held)| match held.word.action {
            Action::Undrain | Action::Enable => true,
            Action::Drain | Action::Disable | Action::Weight(_) => false,
        });
        let oldest = undone.min_by_key(|(_, held)| held.word.set_at_unix_ms).map(|(key, _)| key.clone());
        oldest.is_some_and(|key| self.0.remove(&key).is_some())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the newest of them was set, milliseconds since 1970.
    pub(super) fn newest_unix_ms(&self) -> u64 {
        self.0.values().map(|held| held.word.set_at_unix_ms).max().unwrap_or(0)
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
                Action::Undrain | Action::Enable => effective.undone.push(word.clone()),
            }
        }
        effective
    }

    /// Whether an endpoint is drained or disabled.
    pub(super) fn take_out(&self, spec: &EndpointSpec) -> bool {
        let effective = self.effective(spec);
        effective.drained.is_some() || effective.disabled.is_some()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, ServiceName};

    fn address(port: usize) -> Address {
        Address::parse(&format!("10.0.0.1:{port}")).unwrap()
    }

    fn word(action: Action, port: usize, set_at_unix_ms: u64) -> Override {
        Override {
            service: ServiceName::parse("s").unwrap(),
            scope: Scope::Address(address(port)),
            action,
            reason: String::new(),
            actor: String::new(),
            set_at_unix_ms,
            replica: "b".into(),
            expires_at_unix_ms: 0,
            remaining: None,
        }
    }

    #[test]
    fn a_word_that_takes_another_back_is_told_like_any_other() {
        let mut words = Words::default();
        words.hear(word(Action::Drain, 1, 10), Timestamp(0)).unwrap();
        words.hear(word(Action::Undrain, 1, 20), Timestamp(0)).unwrap();
        let effective = words.effective(&EndpointSpec::at(address(1)));
        assert_eq!(effective.drained, None);
        assert_eq!(effective.words(), [word(Action::Undrain, 1, 20)]);
    }

    #[test]
    fn words_that_take_others_back_make_room_and_those_in_force_do_not() {
        let mut words = Words::default();
        for port in 1..=OVERRIDES_PER_SERVICE_MAX {
            words.hear(word(Action::Undrain, port, port as u64), Timestamp(0)).unwrap();
        }
        assert_eq!(words.hear(word(Action::Drain, 5_000, 5_000), Timestamp(0)), Ok(true));
        assert_eq!(words.all(Timestamp(0)).count(), OVERRIDES_PER_SERVICE_MAX);
        for port in 6_000..6_000 + OVERRIDES_PER_SERVICE_MAX - 1 {
            words.hear(word(Action::Drain, port, 6_000), Timestamp(0)).unwrap();
        }
        let refused = words.hear(word(Action::Drain, 9_000, 9_000), Timestamp(0));
        assert!(matches!(refused, Err(Refusal::TooManyOverrides { .. })), "{refused:?}");
    }
}
