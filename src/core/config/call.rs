//! How clients are to make the calls of a service: what is worth a second attempt, how long to wait, how much of it all.
//! The balancer passes this on and the SDK does it; what the application itself says of a method comes before it.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::limits::NAME_BYTES_MAX;

/// Executions one call may try, the first included: more is a storm, whatever the budget says (gRPC A6).
pub const ATTEMPTS_MAX: u32 = 5;

/// How the calls of a service are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallConfig {
    /// By method; the longest path that fits a call counts, and it alone.
    pub methods: Vec<MethodRule>,
    /// Calls a client may have in flight on one endpoint; 0 for any number.
    pub endpoint_calls_max: u32,
    /// Retries a client may send per hundred successes: enough for a bad endpoint, too few to crush the rest.
    pub retry_budget_percent: u32,
    /// Hedges a client may send per hundred calls: they are for the few that are slow.
    pub hedge_budget_percent: u32,
}

impl Default for CallConfig {
    fn default() -> Self {
        Self { methods: Vec::new(), endpoint_calls_max: 0, retry_budget_percent: 10, hedge_budget_percent: 2 }
    }
}

impl CallConfig {
    /// Whether it leaves all calls to what the application says.
    pub fn has_no_rules(&self) -> bool {
        self.methods.is_empty() && self.endpoint_calls_max == 0
    }
}

/// How calls of one method, or of many, are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodRule {
    /// Which.
    pub path: MethodPath,
    /// Until the first response message, by the client's own timer; zero for none.
    pub deadline: Duration,
    /// Executing it twice is as good as once.
    pub idempotent: bool,
    /// Executions that one call may try, the first included.
    pub attempts: u32,
    /// Ends that are worth another attempt; none means UNAVAILABLE alone.
    pub retry_on: Vec<RetryCode>,
    /// Longest wait before the second attempt; doubled for each further one.
    pub backoff: Duration,
    /// What the wait grows to at most.
    pub backoff_max: Duration,
    /// Wait before a call is sent a second time beside the first; zero for never.
    pub hedge_after: Duration,
    /// How often.
    pub hedges: u32,
    /// Every attempt of a call carries the same `idempotency-key`.
    pub idempotency_key: bool,
    /// Time without a message on an established stream; zero for any.
    pub stream_idle_limit: Duration,
    /// Life of a stream; zero for any.
    pub stream_life_limit: Duration,
}

impl MethodRule {
    /// One that changes nothing: one attempt, no limits.
    pub fn of(path: MethodPath) -> Self {
        Self {
            path,
            deadline: Duration::ZERO,
            idempotent: false,
            attempts: 1,
            retry_on: Vec::new(),
            backoff: Duration::from_millis(25),
            backoff_max: Duration::from_secs(1),
            hedge_after: Duration::ZERO,
            hedges: 1,
            idempotency_key: false,
            stream_idle_limit: Duration::ZERO,
            stream_life_limit: Duration::ZERO,
        }
    }
}

/// Which methods a rule is about: `/package.Service/Method`, `/package.Service/` for all of one, empty for all there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MethodPath(Arc<str>);

/// A text that is no path of methods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a path of methods: /package.Service/Method, /package.Service/ for a whole service, or \"\" for all"
)]
pub struct NotAPath {
    text: String,
}

impl MethodPath {
    /// Takes one of the three forms and nothing else.
    ///
    /// # Errors
    /// [`NotAPath`] shows the forms.
    pub fn parse(text: &str) -> Result<Self, NotAPath> {
        let is_word = |word: &str| {
            !word.is_empty()
                && word.len() <= NAME_BYTES_MAX
                && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        };
        let good = match text.split('/').collect::<Vec<_>>().as_slice() {
            [""] => true,
            ["", service, ""] => is_word(service),
            ["", service, method] => is_word(service) && is_word(method) && !method.contains('.'),
            [..] => false,
        };
        if good { Ok(Self(Arc::from(text))) } else { Err(NotAPath { text: crate::model::printable(text) }) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MethodPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "every method" } else { &self.0 })
    }
}

/// Ends of a call that another attempt may mend. OK needs none, and CANCELLED is the caller's own wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "the codes of gRPC, under their own names")]
pub enum RetryCode {
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl RetryCode {
    /// The number that goes over the wire.
    pub fn number(self) -> i32 {
        match self {
            Self::Unknown => 2,
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::FailedPrecondition => 9,
            Self::Aborted => 10,
            Self::OutOfRange => 11,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::DataLoss => 15,
            Self::Unauthenticated => 16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_method_or_a_service_or_everything() {
        for good in ["", "/greeter.v1.Greeter/", "/greeter.v1.Greeter/SayHello", "/S/m_1"] {
            assert_eq!(MethodPath::parse(good).unwrap().as_str(), good);
        }
        for bad in ["/", "//", "SayHello", "/greeter", "greeter/SayHello", "/a/b/c", "/a b/c", "/a/b.c", "/a//", "/*/"]
        {
            assert!(MethodPath::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_a_word_in_the_file_there_are_budgets_and_no_rules() {
        let calls = CallConfig::default();
        assert!(calls.has_no_rules());
        assert_eq!((calls.retry_budget_percent, calls.hedge_budget_percent), (10, 2));
    }
}
