//! How the calls of a method are made: how long they may take, whether they may be repeated, when and how often. Said by the
//! application when it makes its channel, or by the balancer; parsed here, at the edge. Acts on nothing: that is for `call`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use lookaside_proto::v1;
use tonic::Code;

use crate::Error;

/// Executions that one call may try, the first included.
pub(crate) const ATTEMPTS_MAX: u32 = 5;
/// Hedges that one call may start.
pub(crate) const HEDGES_MAX: u32 = 4;
/// Rules that a balancer may send; more of them are refused whole, and those before stay.
const RULES_MAX: usize = 1_000;
const BACKOFF_BASE: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How the calls of a method are made. Given to a channel by [`crate::Builder::method`].
///
/// ```
/// use std::time::Duration;
/// use lookaside_sdk::{Channel, MethodPolicy};
///
/// let builder = Channel::builder("greeter")
///     .method("/greeter.v1.Greeter/Get", MethodPolicy::new().idempotent().attempts(3).hedge_after(Duration::from_millis(80)))
///     .method("/greeter.v1.Greeter/", MethodPolicy::new().default_deadline(Duration::from_secs(2)));
/// # let _ = builder;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a policy does nothing until it is given to a channel"]
pub struct MethodPolicy {
    pub(crate) idempotent: bool,
    pub(crate) attempts_max: u32,
    pub(crate) retry_codes: Codes,
    pub(crate) backoff_base: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) idempotency_key: bool,
    pub(crate) hedge_delay: Option<Duration>,
    pub(crate) hedges_max: u32,
    /// `None` is whatever the channel has, zero is no limit; so are the next two.
    pub(crate) default_deadline: Option<Duration>,
    pub(crate) stream_idle: Option<Duration>,
    pub(crate) stream_life: Option<Duration>,
}

impl Default for MethodPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl MethodPolicy {
    /// As calls are made that nothing was said of: executed once, with the limits of the channel.
    pub fn new() -> Self {
        Self {
            idempotent: false,
            attempts_max: 1,
            retry_codes: Codes::UNAVAILABLE,
            backoff_base: BACKOFF_BASE,
            backoff_max: BACKOFF_MAX,
            idempotency_key: false,
            hedge_delay: None,
            hedges_max: 1,
            default_deadline: None,
            stream_idle: None,
            stream_life: None,
        }
    }

    /// Declares that executing a call twice is as good as once. Without this, no call that may have been executed is ever
    /// repeated.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Executions that one call may try, the first included: 1 to 5. Hedges do not count, nor do endpoints that provably did
    /// not process the call. Only for what is idempotent.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts_max = attempts;
        self
    }

    /// Ends that are worth another attempt. Default: `UNAVAILABLE` alone.
    pub fn retry_on(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.retry_codes = Codes::of(codes);
        self
    }

    /// Before the second attempt passes a random time up to `base`, doubled for each further one up to `max`; where an endpoint
    /// says by `grpc-retry-pushback-ms` how long to wait, that time. Default: 25 ms and 1 s.
    pub fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.backoff_base = base;
        self.backoff_max = max;
        self
    }

    /// Sends an `idempotency-key` header, random and the same for every attempt of a call, unless the application has set one:
    /// by it an endpoint can tell an attempt from another call.
    pub fn idempotency_key(mut self) -> Self {
        self.idempotency_key = true;
        self
    }

    /// Sends a call that is unanswered for so long to another endpoint beside the first; the first good answer wins, the others
    /// are cancelled. Only for what is idempotent.
    pub fn hedge_after(mut self, delay: Duration) -> Self {
        self.hedge_delay = Some(delay);
        self
    }

    /// How many such calls beside the first there may be, each after a further delay: 1 to 4. Default 1.
    pub fn hedges(mut self, hedges: u32) -> Self {
        self.hedges_max = hedges;
        self
    }

    /// Takes the place of [`crate::Builder::default_deadline`]; zero means no limit.
    pub fn default_deadline(mut self, deadline: Duration) -> Self {
        self.default_deadline = Some(deadline);
        self
    }

    /// Takes the place of [`crate::Builder::stream_idle_limit`]; zero means no limit.
    pub fn stream_idle_limit(mut self, limit: Duration) -> Self {
        self.stream_idle = Some(limit);
        self
    }

    /// Takes the place of [`crate::Builder::stream_life_limit`]; zero means no limit.
    pub fn stream_life_limit(mut self, limit: Duration) -> Self {
        self.stream_life = Some(limit);
        self
    }

    /// Whether a call may be executed more than once.
    pub(crate) fn repeats(&self) -> bool {
        self.idempotent && (self.attempts_max > 1 || self.hedge_delay.is_some())
    }

    fn check(&self) -> Result<(), &'static str> {
        if !self.idempotent && (self.attempts_max > 1 || self.hedge_delay.is_some()) {
            return Err("it would execute calls again, and is not declared idempotent");
        }
        if !(1..=ATTEMPTS_MAX).contains(&self.attempts_max) {
            return Err("attempts are 1 to 5");
        }
        if !(1..=HEDGES_MAX).contains(&self.hedges_max) {
            return Err("hedges are 1 to 4");
        }
        if self.backoff_base > self.backoff_max {
            return Err("the first back-off is longer than the longest");
        }
        Ok(())
    }

    /// What a balancer says; what it cannot mean is taken for what is nearest, and nothing makes a call repeatable but its word.
    fn parse(rule: &v1::method_policy::Rule) -> Self {
        let ms = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        let base = ms(rule.backoff_ms_base).unwrap_or(BACKOFF_BASE);
        let known = rule.retry_codes.iter().filter(|code| (1..=16).contains(*code));
        let codes = Codes::of(known.map(|code| Code::from_i32(*code)));
        Self {
            idempotent: rule.idempotent,
            attempts_max: rule.attempts_max.clamp(1, ATTEMPTS_MAX),
            retry_codes: if rule.retry_codes.is_empty() { Codes::UNAVAILABLE } else { codes },
            backoff_base: base,
            backoff_max: ms(rule.backoff_ms_max).unwrap_or(BACKOFF_MAX).max(base),
            idempotency_key: rule.idempotency_key,
            hedge_delay: ms(rule.hedge_delay_ms),
            hedges_max: rule.hedges_max.clamp(1, HEDGES_MAX),
            default_deadline: ms(rule.default_deadline_ms),
            stream_idle: ms(rule.stream_idle_limit_ms),
            stream_life: ms(rule.stream_life_limit_ms),
        }
    }
}

/// A set of status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Codes(u32);

impl Codes {
    pub(crate) const UNAVAILABLE: Self = Self(1 << (Code::Unavailable as u32));

    fn of(codes: impl IntoIterator<Item = Code>) -> Self {
        // An OK is no failure, whoever lists it.
        Self(codes.into_iter().filter(|code| *code != Code::Ok).fold(0, |set, code| set | 1 << (code as u32)))
    }

    pub(crate) fn contains(self, code: Code) -> bool {
        self.0 & (1 << (code as u32)) != 0
    }
}

/// The policies of one who has a say in it, by path. The longest path that fits a call counts.
#[derive(Debug, Default)]
pub(crate) struct Methods(HashMap<String, Arc<MethodPolicy>>);

impl Methods {
    /// What the application says.
    pub(crate) fn checked(said: Vec<(String, MethodPolicy)>) -> Result<Self, Error> {
        let mut methods = HashMap::with_capacity(said.len());
        for (path, policy) in said {
            let checked = if is_path(&path) {
                policy.check()
            } else {
                Err("say \"/package.Service/Method\", \"/package.Service/\", or \"\" for every method")
            };
            match checked {
                Ok(()) => methods.insert(path, Arc::new(policy)),
                Err(reason) => return Err(Error::Method { path, reason }),
            };
        }
        Ok(Self(methods))
    }

    /// What a balancer says. The error says why it is refused.
    pub(crate) fn parse(wire: &v1::MethodPolicy) -> Result<Self, String> {
        if wire.rules.len() > RULES_MAX {
            return Err(format!("{} rules for methods, at most {RULES_MAX}", wire.rules.len()));
        }
        let rules = wire.rules.iter().filter(|rule| is_path(&rule.path));
        Ok(Self(rules.map(|rule| (rule.path.clone(), Arc::new(MethodPolicy::parse(rule)))).collect()))
    }

    /// The policy of a call.
    pub(crate) fn of(&self, path: &str) -> Option<&Arc<MethodPolicy>> {
        if self.0.is_empty() {
            return None;
        }
        let service = || path.rfind('/').and_then(|end| self.0.get(&path[..=end]));
        self.0.get(path).or_else(service).or_else(|| self.0.get(""))
    }
}

fn is_path(path: &str) -> bool {
    path.is_empty() || (path.len() > 2 && path.starts_with('/') && path[1..].matches('/').count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods(paths: &[&str]) -> Methods {
        let deadline = |n: usize| MethodPolicy::new().default_deadline(Duration::from_secs(n as u64));
        Methods::checked(paths.iter().enumerate().map(|(n, path)| ((*path).to_owned(), deadline(n))).collect()).unwrap()
    }

    #[test]
    fn the_longest_path_that_fits_counts() {
        let methods = methods(&["", "/p.S/", "/p.S/M"]);
        let of = |path: &str| methods.of(path).and_then(|p| p.default_deadline).map(|d| d.as_secs());
        assert_eq!([of("/p.S/M"), of("/p.S/Other"), of("/p.Other/M")], [Some(2), Some(1), Some(0)]);
        assert!(self::methods(&["/p.S/M"]).of("/p.S/Mm").is_none());
        assert!(Methods::default().of("/p.S/M").is_none());
    }

    #[test]
    fn what_would_repeat_a_call_that_is_not_idempotent_is_refused() {
        let refused = |path: &str, policy: MethodPolicy| {
            Methods::checked(vec![(path.to_owned(), policy)]).unwrap_err().to_string()
        };
        let policy = MethodPolicy::new;
        assert!(refused("/p.S/M", policy().attempts(2)).contains("not declared idempotent"));
        assert!(refused("/p.S/M", policy().hedge_after(Duration::ZERO)).contains("not declared idempotent"));
        assert!(refused("/p.S/M", policy().idempotent().attempts(6)).contains("1 to 5"));
        assert!(refused("/p.S/M", policy().idempotent().attempts(0)).contains("1 to 5"));
        assert!(refused("/p.S/M", policy().hedges(5)).contains("1 to 4"));
        assert!(refused("/p.S/M", policy().backoff(BACKOFF_MAX * 2, BACKOFF_MAX)).contains("longer"));
        for path in ["p.S/M", "/", "//", "/p.S", "/p.S/M/x"] {
            assert!(refused(path, policy()).contains("/package.Service/Method"), "{path}");
        }
    }

    #[test]
    fn what_a_balancer_says_is_read_and_never_makes_a_call_repeatable_by_mistake() {
        let rule = v1::method_policy::Rule { path: "/p.S/M".into(), attempts_max: 99, ..Default::default() };
        let policy = MethodPolicy::parse(&rule);
        assert_eq!((policy.attempts_max, policy.repeats()), (ATTEMPTS_MAX, false));
        assert_eq!(policy, MethodPolicy::new().attempts(ATTEMPTS_MAX));
        let rule = v1::method_policy::Rule {
            idempotent: true,
            retry_codes: vec![0, 8, 14, 99],
            hedge_delay_ms: 50,
            backoff_ms_base: 5_000,
            ..rule
        };
        let policy = MethodPolicy::parse(&rule);
        assert!(policy.repeats() && policy.hedge_delay == Some(Duration::from_millis(50)));
        assert_eq!(policy.backoff_max, Duration::from_secs(5));
        let retried = |code| policy.retry_codes.contains(code);
        assert!(retried(Code::Unavailable) && retried(Code::ResourceExhausted));
        assert!(!retried(Code::Ok) && !retried(Code::Unknown) && !retried(Code::Internal));
        let wire = v1::MethodPolicy { rules: vec![rule; RULES_MAX + 1], ..Default::default() };
        assert!(Methods::parse(&wire).unwrap_err().contains("1001"));
    }
}
