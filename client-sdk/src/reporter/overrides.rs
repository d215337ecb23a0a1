//! The overrides a backend was told of, kept to be repeated to every balancer: a balancer that forgot learns them again.
//! What they mean is the balancer's business.

use lookaside_proto::v1::{Override, OverrideAction, Registration, r#override::Scope};

/// Beyond this many the oldest words are forgotten: a report carries all of them.
const OVERRIDES_MAX: usize = 64;

/// The newest word for each scope and matter.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    kept: Vec<Override>,
}

impl Overrides {
    /// Takes what a balancer told; true when something was new.
    /// Words about others are none of a backend's business, and unsigned ones cannot be ordered: a balancer would
    /// refuse the report that repeats them.
    pub(crate) fn merge(&mut self, told: Vec<Override>, own: &Registration, now_unix_ms: u64) -> bool {
        let mut changed = false;
        for word in told {
            let is_signed = word.set_at_unix_ms > 0 && !word.replica.is_empty();
            if is_signed && concerns(&word, own) && !is_over(&word, now_unix_ms) {
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

fn concerns(word: &Override, own: &Registration) -> bool {
    let is_about_it = match &word.scope {
        Some(Scope::Address(address)) => *address == own.address,
        Some(Scope::Locality(locality)) => {
            own.locality.strip_prefix(locality.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        Some(Scope::WholeService(_)) => true,
        None => false,
    };
    word.service == own.service && is_about_it
}

fn is_over(word: &Override, now_unix_ms: u64) -> bool {
    word.expires_at_unix_ms != 0 && word.expires_at_unix_ms <= now_unix_ms
}

// Drains, disables and weights are separate matters, as they are to balancers: one does not take back another.
fn is_same_matter(held: &Override, word: &Override) -> bool {
    let matter = |word: &Override| match word.action() {
        OverrideAction::Drain | OverrideAction::Undrain => OverrideAction::Drain,
        OverrideAction::Disable | OverrideAction::Enable => OverrideAction::Disable,
        other @ (OverrideAction::Weight | OverrideAction::Unspecified) => other,
    };
    let scope = |word: &Override| match &word.scope {
        Some(Scope::Address(address)) => Some((0, address.clone())),
        Some(Scope::Locality(locality)) => Some((1, locality.clone())),
        Some(Scope::WholeService(_)) => Some((2, String::new())),
        None => None,
    };
    held.service == word.service && scope(held) == scope(word) && matter(held) == matter(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Registration {
        Registration {
            service: "s".to_owned(),
            address: "a:1".to_owned(),
            locality: "eu/a/x".to_owned(),
            ..Registration::default()
        }
    }

    fn word(action: OverrideAction, set_at_unix_ms: u64) -> Override {
        Override {
            service: "s".to_owned(),
            scope: Some(Scope::Address("a:1".to_owned())),
            action: action.into(),
            set_at_unix_ms,
            replica: "lb-0".to_owned(),
            ..Override::default()
        }
    }

    #[test]
    fn the_newest_word_wins_in_whichever_order_they_come() {
        let mut overrides = Overrides::default();
        assert!(overrides.merge(vec![word(OverrideAction::Undrain, 20)], &own(), 0));
        assert!(!overrides.merge(vec![word(OverrideAction::Drain, 10)], &own(), 0));
        assert_eq!(overrides.current(0), vec![word(OverrideAction::Undrain, 20)]);
    }

    #[test]
    fn weights_drains_and_disables_stand_beside_each_other() {
        let mut overrides = Overrides::default();
        let told = [(OverrideAction::Weight, 10), (OverrideAction::Disable, 20), (OverrideAction::Undrain, 30)];
        overrides.merge(told.map(|(action, at)| word(action, at)).to_vec(), &own(), 0);
        assert_eq!(overrides.current(0).len(), 3, "taking a drain back does not enable");
        overrides.merge(vec![word(OverrideAction::Enable, 40)], &own(), 0);
        assert_eq!(overrides.current(0).len(), 3, "an enable takes the place of the disable");
    }

    #[test]
    fn a_word_that_is_over_is_not_repeated() {
        let mut overrides = Overrides::default();
        let ending = Override { expires_at_unix_ms: 100, ..word(OverrideAction::Drain, 10) };
        overrides.merge(vec![ending], &own(), 50);
        assert_eq!(overrides.current(99).len(), 1);
        assert_eq!(overrides.current(100).len(), 0);
    }

    #[test]
    fn a_word_about_others_or_unsigned_is_not_repeated() {
        let drain = || word(OverrideAction::Drain, 10);
        for foreign in [
            Override { service: "other".to_owned(), ..drain() },
            Override { scope: Some(Scope::Address("b:1".to_owned())), ..drain() },
            Override { scope: Some(Scope::Locality("eu/ab".to_owned())), ..drain() },
            Override { scope: None, ..drain() },
            Override { replica: String::new(), ..drain() },
            Override { set_at_unix_ms: 0, ..drain() },
        ] {
            assert!(!Overrides::default().merge(vec![foreign.clone()], &own(), 0), "{foreign:?}");
        }
        for scope in [Scope::Locality("eu/a".to_owned()), Scope::Locality("eu".to_owned()), Scope::WholeService(true)] {
            assert!(Overrides::default().merge(vec![Override { scope: Some(scope), ..drain() }], &own(), 0));
        }
    }

    #[test]
    fn beyond_the_limit_the_oldest_word_goes() {
        let own = Registration { locality: vec!["z"; OVERRIDES_MAX + 1].join("/"), ..own() };
        let mut overrides = Overrides::default();
        for index in 0..=OVERRIDES_MAX {
            let mut word = word(OverrideAction::Drain, index as u64 + 1);
            word.scope = Some(Scope::Locality(vec!["z"; index + 1].join("/")));
            assert!(overrides.merge(vec![word], &own, 0));
        }
        let kept = overrides.current(0);
        assert_eq!(kept.len(), OVERRIDES_MAX);
        assert!(kept.iter().all(|word| word.set_at_unix_ms > 1));
    }
}
