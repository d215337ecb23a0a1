//! What balancers say of calls, beside which endpoints there are: the rules per method, and the budgets of retries and hedges.
//! The newest word stands, through any outage; what it means for a call is for the call to say.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use arc_swap::ArcSwap;
use lookaside_proto::v1::MethodPolicy;

/// The newest words of any balancer on the calls of one service.
#[derive(Debug, Default)]
pub(crate) struct Advice {
    policy: ArcSwap<MethodPolicy>,
    retry_budget_percent: AtomicU32,
    hedge_budget_percent: AtomicU32,
}

impl Advice {
    /// Takes the rules; true when they are other ones than before.
    pub(crate) fn take_policy(&self, policy: MethodPolicy) -> bool {
        if *self.policy() == policy {
            return false;
        }
        self.policy.store(Arc::new(policy));
        true
    }

    /// Takes the budgets of a heartbeat: retries per hundred successes, hedges per hundred calls. 0 says nothing of them.
    pub(crate) fn take_budgets(&self, retry_percent: u32, hedge_percent: u32) {
        for (said, kept) in [(retry_percent, &self.retry_budget_percent), (hedge_percent, &self.hedge_budget_percent)] {
            if said > 0 {
                kept.store(said, Relaxed);
            }
        }
    }

    /// The rules; without any when no balancer has said a word.
    pub(crate) fn policy(&self) -> Arc<MethodPolicy> {
        self.policy.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_rules_stand_and_budgets_outlive_silence() {
        let advice = Advice::default();
        let policy = MethodPolicy { service: "s".into(), endpoint_calls_max: 3, ..Default::default() };
        assert!(advice.take_policy(policy.clone()));
        assert!(!advice.take_policy(policy.clone()), "nothing new");
        assert_eq!(*advice.policy(), policy);
        advice.take_budgets(10, 2);
        advice.take_budgets(0, 0);
        assert_eq!(advice.retry_budget_percent.load(Relaxed), 10);
        assert_eq!(advice.hedge_budget_percent.load(Relaxed), 2);
    }
}
