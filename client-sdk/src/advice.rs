//! What is said of calls, beside which endpoints there are: the rules per method, the budgets of retries and hedges, whether the
//! service has too much to do, and how many calls an endpoint may have. The application's word comes before a balancer's, and of balancers the newest word stands,
//! through any outage. What it means for a call is for the call to say.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use lookaside_proto::v1;

use crate::{
    picker::{RetryBudget, ShareBudget, Throttle},
    policy::{MethodPolicy, Methods},
};

/// Retries per hundred successes, unless somebody says otherwise.
const RETRY_BUDGET_PERCENT: u32 = 10;
/// Hedges per hundred calls, unless somebody says otherwise.
const HEDGE_BUDGET_PERCENT: u32 = 2;

/// What the application says of calls. `None` is for the balancer to say.
#[derive(Debug, Default)]
pub(crate) struct Own {
    pub(crate) methods: Methods,
    pub(crate) retry_budget_percent: Option<u32>,
    pub(crate) hedge_budget_percent: Option<u32>,
    pub(crate) endpoint_calls_max: Option<u32>,
}

/// The words on the calls of one service.
#[derive(Debug)]
pub(crate) struct Advice {
    own: OnceLock<Own>,
    balancers: ArcSwap<Said>,
    pub(crate) retries: RetryBudget,
    pub(crate) hedges: ShareBudget,
    pub(crate) throttle: Throttle,
}

#[derive(Debug, Default)]
struct Said {
    wire: v1::MethodPolicy,
    methods: Methods,
}

impl Default for Advice {
    fn default() -> Self {
        Self {
            own: OnceLock::new(),
            balancers: ArcSwap::default(),
            retries: RetryBudget::new(RETRY_BUDGET_PERCENT),
            hedges: ShareBudget::of_hedges(HEDGE_BUDGET_PERCENT),
            throttle: Throttle::default(),
        }
    }
}

impl Advice {
    /// Takes the application's word, once.
    pub(crate) fn take_own(&self, own: Own) {
        self.retries.set_percent(own.retry_budget_percent.unwrap_or(RETRY_BUDGET_PERCENT));
        self.hedges.set_percent(own.hedge_budget_percent.unwrap_or(HEDGE_BUDGET_PERCENT));
        let _ = self.own.set(own);
    }

    /// Takes the rules of a balancer; true when they are other ones than before. The error says why they are refused.
    pub(crate) fn take_policy(&self, wire: v1::MethodPolicy) -> Result<bool, String> {
        if self.balancers.load().wire == wire {
            return Ok(false);
        }
        let methods = Methods::parse(&wire)?;
        self.balancers.store(Arc::new(Said { wire, methods }));
        Ok(true)
    }

    /// Takes the budgets of a heartbeat: retries per hundred successes, hedges per hundred calls.
    pub(crate) fn take_budgets(&self, retry_percent: u32, hedge_percent: u32) {
        if self.own.get().is_none_or(|own| own.retry_budget_percent.is_none()) {
            self.retries.set_percent(retry_percent);
        }
        if self.own.get().is_none_or(|own| own.hedge_budget_percent.is_none()) {
            self.hedges.set_percent(hedge_percent);
        }
    }

    /// How a call of this method is made; `None` when nobody has said a word.
    pub(crate) fn policy_of(&self, path: &str) -> Option<Arc<MethodPolicy>> {
        let own = self.own.get().and_then(|own| own.methods.of(path));
        own.cloned().or_else(|| self.balancers.load().methods.of(path).cloned())
    }

    /// Calls that one endpoint may have in flight.
    pub(crate) fn endpoint_calls_max(&self) -> u32 {
        let own = self.own.get().and_then(|own| own.endpoint_calls_max);
        match own.unwrap_or_else(|| self.balancers.load().wire.endpoint_calls_max) {
            0 => u32::MAX,
            max => max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn said(path: &str, calls_max: u32) -> v1::MethodPolicy {
        let rule = v1::method_policy::Rule { path: path.into(), default_deadline_ms: 7, ..Default::default() };
        v1::MethodPolicy { rules: vec![rule], endpoint_calls_max: calls_max, ..Default::default() }
    }

    #[test]
    fn the_newest_rules_of_balancers_stand() {
        let advice = Advice::default();
        assert_eq!((advice.endpoint_calls_max(), advice.policy_of("/p.S/M")), (u32::MAX, None));
        assert_eq!(advice.take_policy(said("/p.S/", 3)), Ok(true));
        assert_eq!(advice.take_policy(said("/p.S/", 3)), Ok(false), "nothing new");
        assert_eq!(advice.endpoint_calls_max(), 3);
        assert!(advice.policy_of("/p.S/M").is_some());
        let mut many = said("/p.S/", 4);
        many.rules = vec![many.rules[0].clone(); 2_000];
        assert!(advice.take_policy(many).is_err());
        assert_eq!(advice.endpoint_calls_max(), 3, "those before stay");
        assert_eq!(advice.take_policy(v1::MethodPolicy::default()), Ok(true));
        assert!(advice.policy_of("/p.S/M").is_none());
    }

    #[test]
    fn the_applications_word_comes_first_however_short_its_path() {
        let advice = Advice::default();
        let own = MethodPolicy::new().default_deadline(Duration::from_secs(1));
        let methods = Methods::checked(vec![("/p.S/".to_owned(), own.clone())]).unwrap();
        advice.take_own(Own { methods, endpoint_calls_max: Some(0), ..Own::default() });
        advice.take_policy(said("/p.S/M", 3)).unwrap();
        assert_eq!(advice.policy_of("/p.S/M").as_deref(), Some(&own));
        assert_eq!(advice.endpoint_calls_max(), u32::MAX);
        advice.take_policy(said("/p.Other/M", 3)).unwrap();
        assert!(advice.policy_of("/p.Other/M").is_some());
    }

    #[test]
    fn budgets_are_the_applications_or_else_the_balancers() {
        let advice = Advice::default();
        advice.take_own(Own { retry_budget_percent: Some(0), ..Own::default() });
        advice.take_budgets(50, 100);
        advice.hedges.earn();
        assert!(advice.hedges.spend(1));
        while advice.retries.failed(0) {}
        (0..100_000).for_each(|_| advice.retries.went_well(0));
        assert!(!advice.retries.allows(0));
    }
}
