//! Which balancer to ask next. Clients begin at different ones, so that no replica gets them all.

use crate::picker::Rng;

/// Redirects followed in a row before waiting like after a failure: two balancers may point at each other.
const REDIRECTS_MAX: u32 = 5;
/// Balancers named by one redirect that are considered.
const REDIRECTED_TO_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Plan {
    known: Vec<String>,
    next: usize,
    /// To be asked first, once each.
    redirected: Vec<String>,
    redirects: u32,
}

impl Plan {
    /// `known` must not be empty, else every answer is.
    pub(super) fn new(known: Vec<String>, seed: u64) -> Self {
        let next = Rng::from_seed(seed).below(known.len() as u64) as usize;
        Self { known, next, redirected: Vec::new(), redirects: 0 }
    }

    pub(super) fn next(&mut self) -> String {
        if let Some(address) = self.redirected.pop() {
            return address;
        }
        let address = self.known.get(self.next).cloned().unwrap_or_default();
        self.next = (self.next + 1) % self.known.len().max(1);
        address
    }

    /// A stream was there for a while, or broke without a word of where to go: redirects are counted anew.
    pub(super) fn settle(&mut self) {
        self.redirects = 0;
    }

    /// Asks these next, or any other known one when none is named. False when it is time to wait instead.
    pub(super) fn redirect(&mut self, to: Vec<String>) -> bool {
        self.redirects += 1;
        if self.redirects > REDIRECTS_MAX {
            self.redirected.clear();
            self.redirects = 0;
            return false;
        }
        let sound = to.iter().take(REDIRECTED_TO_MAX).filter_map(|a| crate::target::address(a).ok());
        // Popped from the end: the first one named is the first one asked.
        self.redirected = sound.collect();
        self.redirected.reverse();
        !self.redirected.is_empty() || self.known.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_balancers_take_turns() {
        let mut plan = Plan::new(vec!["a:1".into(), "b:1".into()], 3);
        let first = plan.next();
        let second = plan.next();
        assert_ne!(first, second);
        assert_eq!(plan.next(), first);
    }

    #[test]
    fn a_redirect_is_followed_in_its_order_and_then_the_known_ones_return() {
        let mut plan = Plan::new(vec!["a:1".into()], 0);
        assert!(plan.redirect(vec!["x:1".into(), "nonsense".into(), "http://y:1".into()]));
        assert_eq!([plan.next(), plan.next(), plan.next()], ["x:1", "y:1", "a:1"]);
    }

    #[test]
    fn redirects_without_end_are_not_followed() {
        let mut plan = Plan::new(vec!["a:1".into()], 0);
        let followed = (0..20)
            .take_while(|_| {
                let go = plan.redirect(vec!["x:1".into()]);
                if go {
                    plan.next();
                }
                go
            })
            .count();
        assert_eq!(followed, REDIRECTS_MAX as usize);
    }

    #[test]
    fn balancers_that_all_leave_are_not_asked_in_a_circle_without_a_pause() {
        let mut plan = Plan::new(vec!["a:1".into(), "b:1".into()], 0);
        let mut followed = 0;
        while followed < 100 && plan.redirect(Vec::new()) {
            plan.next();
            followed += 1;
        }
        assert_eq!(followed, REDIRECTS_MAX);
        plan.settle();
        assert!(plan.redirect(Vec::new()));
    }
}
