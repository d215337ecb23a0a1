//! The overrides a backend was told of, kept to be repeated to every balancer: a balancer that forgot learns them again.
//! What they mean is the balancer's business.

use lookaside_proto::v1::{Override, r#override::Scope};

/// Beyond this many the oldest words are forgotten: a report carries all of them.
const OVERRIDES_MAX: usize = 256;

/// The newest word for each scope.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    kept: Vec<Override>,
}

impl Overrides {
    /// Takes what a balancer told; true when something was new.
    pub(crate) fn merge(&mut self, told: Vec<Override>, service: &str, now_unix_ms: u64) -> bool {
        let mut changed = false;
        for word in told {
            let concerns_us = word.service.is_empty() || word.service == service;
            if concerns_us && word.scope.is_some() && !is_over(&word, now_unix_ms) {
                changed |= self.take(word);
            }
        }
        changed
    }

    fn take(&mut self, word: Override) -> bool {
        if let Some(held) = self.kept.iter_mut().find(|held| is_same_matter(held, &word)) {
            let newer = (word.set_at_unix_ms, &word.replica) > (held.set_at_unix_ms, &held.replica);
            if newer {
                *held = word;
            }
            return newer;
        }
        if self.kept.len() >= OVERRIDES_MAX {
            let oldest = (0..self.kept.len()).min_by_key(|&index| self.kept[index].set_at_unix_ms);
            if let Some(oldest) = oldest {
                self.kept.swap_remove(oldest);
            }
        }
        self.kept.push(word);
        true
    }

    /// All that still hold.
    pub(crate) fn current(&mut self, now_unix_ms: u64) -> Vec<Override> {
        self.kept.retain(|word| !is_over(word, now_unix_ms));
        self.kept.clone()
    }
}

fn is_over(word: &Override, now_unix_ms: u64) -> bool {
    word.expires_at_unix_ms != 0 && word.expires_at_unix_ms <= now_unix_ms
}

// Weights and availability are separate matters: a drain does not take back a weight.
fn is_same_matter(held: &Override, word: &Override) -> bool {
    use lookaside_proto::v1::OverrideAction;
    let is_weight = |word: &Override| word.action() == OverrideAction::Weight;
    let scope = |word: &Override| match &word.scope {
        Some(Scope::Address(address)) => Some((0, address.clone())),
        Some(Scope::Locality(locality)) => Some((1, locality.clone())),
        Some(Scope::WholeService(_)) => Some((2, String::new())),
        None => None,
    };
    held.service == word.service && scope(held) == scope(word) && is_weight(held) == is_weight(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lookaside_proto::v1::OverrideAction;

    fn word(action: OverrideAction, set_at_unix_ms: u64) -> Override {
        Override {
            service: "s".to_owned(),
            scope: Some(Scope::Address("a:1".to_owned())),
            action: action.into(),
            set_at_unix_ms,
            ..Override::default()
        }
    }

    #[test]
    fn the_newest_word_wins_in_whichever_order_they_come() {
        let mut overrides = Overrides::default();
        assert!(overrides.merge(vec![word(OverrideAction::Undrain, 20)], "s", 0));
        assert!(!overrides.merge(vec![word(OverrideAction::Drain, 10)], "s", 0));
        assert_eq!(overrides.current(0), vec![word(OverrideAction::Undrain, 20)]);
    }

    #[test]
    fn a_weight_and_a_drain_stand_beside_each_other() {
        let mut overrides = Overrides::default();
        overrides.merge(vec![word(OverrideAction::Weight, 10), word(OverrideAction::Drain, 20)], "s", 0);
        assert_eq!(overrides.current(0).len(), 2);
    }

    #[test]
    fn a_word_that_is_over_or_about_another_service_is_not_repeated() {
        let mut overrides = Overrides::default();
        let ending = Override { expires_at_unix_ms: 100, ..word(OverrideAction::Drain, 10) };
        overrides.merge(vec![ending], "s", 50);
        assert_eq!(overrides.current(99).len(), 1);
        assert_eq!(overrides.current(100).len(), 0);
        assert!(!overrides.merge(vec![word(OverrideAction::Drain, 10)], "other", 0));
    }

    #[test]
    fn beyond_the_limit_the_oldest_word_goes() {
        let mut overrides = Overrides::default();
        for index in 0..=OVERRIDES_MAX as u64 {
            let mut word = word(OverrideAction::Drain, index);
            word.scope = Some(Scope::Address(index.to_string()));
            overrides.merge(vec![word], "s", 0);
        }
        let kept = overrides.current(0);
        assert_eq!(kept.len(), OVERRIDES_MAX);
        assert!(kept.iter().all(|word| word.set_at_unix_ms > 0));
    }
}
