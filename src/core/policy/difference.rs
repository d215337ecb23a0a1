//! In what the list of a cohort differs from the one it had before, and so how long it can wait: each list is a message to every
//! client of the cohort.

use std::{collections::BTreeMap, time::Duration};

use super::{Assigned, Assignment};
use crate::limits::{LOAD_LIST_PERIOD, ORDER_LIST_PERIOD};

/// The most that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Anything else: who is there, who gets calls at all, how the list is to be taken.
    All,
    /// Positive weights, and capacities.
    Loads,
    /// The order alone, or the details of reasons.
    Order,
}

impl Difference {
    /// How long after the list before it can wait.
    pub fn can_wait(self) -> Duration {
        match self {
            Self::All => Duration::ZERO,
            Self::Loads => LOAD_LIST_PERIOD,
            Self::Order => ORDER_LIST_PERIOD,
        }
    }
}

impl Assignment {
    /// In what a later list for the same cohort differs; `None` for the same list.
    pub fn difference(&self, after: &Self) -> Option<Difference> {
        if self.digest == after.digest {
            return None;
        }
        let same_frame = self.complete == after.complete
            && self.mode == after.mode
            && self.note == after.note
            && self.policy == after.policy
            && self.ring == after.ring
            && self.endpoints.len() == after.endpoints.len();
        if !same_frame {
            return Some(Difference::All);
        }
        let held: BTreeMap<_, _> = self.endpoints.iter().map(|e| (&e.spec.address, e)).collect();
        let mut difference = Difference::Order;
        for new in &after.endpoints {
            let Some(old) = held.get(&new.spec.address).filter(|old| is_same_place(old, new)) else {
                return Some(Difference::All);
            };
            if (old.weight, old.capacity_milli) != (new.weight, new.capacity_milli) {
                difference = Difference::Loads;
            }
        }
        Some(difference)
    }
}

fn is_same_place(old: &Assigned, new: &Assigned) -> bool {
    let place = |e: &Assigned| (e.priority, e.weight == 0, e.is_keyed_by_instance);
    let codes = |e: &Assigned| e.reasons.iter().map(|(code, _)| *code).collect::<Vec<_>>();
    old.spec == new.spec && place(old) == place(new) && codes(old) == codes(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::PolicyKind,
        model::{Address, EndpointSpec, ServiceName, Version},
        policy::{ListMode, digest},
        snapshot::Code,
    };

    fn list(weights: &[(&str, u32)], change: impl Fn(&mut Assignment)) -> Assignment {
        let endpoints = weights.iter().map(|(at, weight)| Assigned {
            spec: EndpointSpec::at(Address::parse(at).unwrap()),
            priority: 0,
            weight: *weight,
            capacity_milli: 0,
            reasons: vec![(Code::Overloaded, "97 %".to_owned())],
            is_keyed_by_instance: false,
        });
        let mut list = Assignment {
            service: ServiceName::parse("greeter").unwrap(),
            version: Version::default(),
            digest: 0,
            complete: true,
            mode: ListMode::Normal,
            note: String::new(),
            endpoints: endpoints.collect(),
            policy: PolicyKind::LeastLoad,
            ring: None,
        };
        change(&mut list);
        list.digest = digest(&list);
        list
    }

    #[test]
    fn order_and_weights_can_wait_and_nothing_else() {
        let two = [("a:1", 100), ("b:1", 100)];
        let before = list(&two, |_| {});
        let after = |weights: &[(&str, u32)]| before.difference(&list(weights, |_| {}));
        let changed = |change: fn(&mut Assignment)| before.difference(&list(&two, change));
        assert_eq!(after(&two), None);
        assert_eq!(changed(|list| list.version.sequence += 1), None);
        assert_eq!(after(&[("b:1", 100), ("a:1", 100)]), Some(Difference::Order));
        assert_eq!(changed(|list| list.endpoints[1].reasons[0].1 = "98 %".to_owned()), Some(Difference::Order));
        assert_eq!(after(&[("b:1", 50), ("a:1", 100)]), Some(Difference::Loads));
        assert_eq!(changed(|list| list.endpoints[0].capacity_milli = 900), Some(Difference::Loads));
        for weights in [&[("a:1", 100), ("b:1", 0)][..], &[("a:1", 100)], &[("a:1", 100), ("c:1", 100)]] {
            assert_eq!(after(weights), Some(Difference::All), "{weights:?}");
        }
        let changes: [fn(&mut Assignment); 7] = [
            |list| list.mode = ListMode::Panic,
            |list| list.complete = false,
            |list| list.note = "1 excluded".to_owned(),
            |list| list.policy = PolicyKind::RoundRobin,
            |list| list.endpoints[0].priority = 1,
            |list| list.endpoints[0].spec.incarnation = 2,
            |list| list.endpoints[0].reasons.clear(),
        ];
        assert_eq!(changes.map(changed), [Some(Difference::All); 7]);
        let waits = [Difference::All, Difference::Loads, Difference::Order].map(Difference::can_wait);
        assert_eq!(waits.map(|wait| wait.as_secs()), [0, 1, 5]);
    }
}
