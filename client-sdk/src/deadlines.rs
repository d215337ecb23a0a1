//! How long a call may take: the caller's deadline, the default one, and the limits of a stream. Only says what is due when;
//! the timers are the call's.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::{deadline, policy::MethodPolicy};

pub(crate) const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What a channel grants each call.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    pub(crate) deadline: Option<Duration>,
    pub(crate) stream_idle: Option<Duration>,
    pub(crate) stream_life: Option<Duration>,
}

/// The limits of one call.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    started: Instant,
    /// Set by the caller, or left of the call that is being served, and sent on: holds for the whole call.
    caller: Option<Instant>,
    /// The header says something longer, or nothing.
    is_shortened: bool,
    /// Ours, never sent: holds until a stream has begun to flow.
    default: Option<Instant>,
    idle: Option<Duration>,
    life: Option<Duration>,
}

/// Which limit a call ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    CallerDeadline,
    DefaultDeadline,
    StreamIdle,
    StreamLife,
}

impl Limits {
    pub(crate) fn new(headers: &HeaderMap, defaults: &Defaults, policy: Option<&MethodPolicy>) -> Self {
        let started = Instant::now();
        let at = |d: Duration| started.checked_add(d);
        let said = headers.get(GRPC_TIMEOUT).and_then(|v| parse_timeout(v.as_bytes())).and_then(at);
        let serving = deadline::current();
        let is_shortened = serving.is_some_and(|serving| said.is_none_or(|said| serving < said));
        let of_method = |own: Option<Duration>, of_channel: Option<Duration>| match own {
            Some(limit) => Some(limit).filter(|limit| !limit.is_zero()),
            None => of_channel,
        };
        let default = of_method(policy.and_then(|p| p.default_deadline), defaults.deadline);
        Self {
            started,
            caller: if is_shortened { serving } else { said },
            is_shortened,
            // Whoever sets a deadline has said how long.
            default: default.filter(|_| said.is_none()).and_then(at),
            idle: of_method(policy.and_then(|p| p.stream_idle), defaults.stream_idle),
            life: of_method(policy.and_then(|p| p.stream_life), defaults.stream_life),
        }
    }

    /// Whether the header does not say what is left.
    pub(crate) fn differs_from_header(&self) -> bool {
        self.is_shortened || self.elapsed() > Duration::from_millis(1)
    }

    /// Whether something that happens at this moment would come too late.
    pub(crate) fn is_over_at(&self, moment: Instant) -> bool {
        [self.caller, self.default].into_iter().flatten().any(|limit| limit <= moment)
    }

    /// Time since the call began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What is left of the caller's deadline.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.caller.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// The stream flows: a message was answered, or a second one was sent. The default deadline is met.
    pub(crate) fn flows(&mut self) {
        self.default = None;
    }

    /// The first limit that falls due. `last_message` is when the stream last moved, `None` before it flows.
    pub(crate) fn due(&self, last_message: Option<Instant>) -> Option<(Instant, Expired)> {
        let idle = last_message.zip(self.idle).and_then(|(at, idle)| at.checked_add(idle));
        let life = last_message.zip(self.life).and_then(|(_, life)| self.started.checked_add(life));
        let all = [
            (self.caller, Expired::CallerDeadline),
            (self.default, Expired::DefaultDeadline),
            (idle, Expired::StreamIdle),
            (life, Expired::StreamLife),
        ];
        all.into_iter().filter_map(|(at, what)| Some((at?, what))).min_by_key(|(at, _)| *at)
    }
}

/// Reads a `grpc-timeout`: at most eight digits and a unit. `None` when it is not one.
pub(crate) fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Writes a `grpc-timeout` in the finest unit that fits into eight digits, rounded down.
pub(crate) fn format_timeout(left: Duration) -> String {
    const COUNT_MAX: u128 = 99_999_999;
    let (count, unit) = [(left.as_nanos(), 'n'), (left.as_micros(), 'u'), (left.as_millis(), 'm')]
        .into_iter()
        .find(|(count, _)| *count <= COUNT_MAX)
        .unwrap_or((u128::from(left.as_secs()).min(COUNT_MAX), 'S'));
    format!("{count}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_and_written() {
        for (text, wanted) in [
            ("1S", Duration::from_secs(1)),
            ("250m", Duration::from_millis(250)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("7u", Duration::from_micros(7)),
        ] {
            assert_eq!(parse_timeout(text.as_bytes()), Some(wanted));
            assert_eq!(parse_timeout(format_timeout(wanted).as_bytes()), Some(wanted));
        }
        for text in ["", "S", "1", "1x", "123456789S", "-1S", "1.5S"] {
            assert_eq!(parse_timeout(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_default_deadline_yields_to_the_callers_and_to_a_flowing_stream() {
        let defaults = Defaults { deadline: Some(Duration::from_secs(15)), stream_idle: None, stream_life: None };
        let mut headers = HeaderMap::new();
        let mut limits = Limits::new(&headers, &defaults, None);
        assert_eq!(limits.due(None).map(|d| d.1), Some(Expired::DefaultDeadline));
        limits.flows();
        assert_eq!(limits.due(Some(Instant::now())), None);
        headers.insert(GRPC_TIMEOUT, http::HeaderValue::from_static("60S"));
        let limits = Limits::new(&headers, &defaults, None);
        assert_eq!(limits.due(None).map(|d| d.1), Some(Expired::CallerDeadline));
    }

    #[test]
    fn a_method_may_have_limits_of_its_own_or_none() {
        let defaults = Defaults {
            deadline: Some(Duration::from_secs(15)),
            stream_idle: Some(Duration::from_secs(15)),
            stream_life: None,
        };
        let policy = MethodPolicy::new().default_deadline(Duration::ZERO).stream_life_limit(Duration::from_secs(1));
        let limits = Limits::new(&HeaderMap::new(), &defaults, Some(&policy));
        assert_eq!(limits.due(None), None);
        assert_eq!((limits.idle, limits.life), (defaults.stream_idle, Some(Duration::from_secs(1))));
    }

    #[tokio::test]
    async fn what_is_left_of_the_call_that_is_served_shortens_a_deadline_and_never_lengthens_it() {
        let defaults = Defaults { deadline: Some(Duration::from_secs(15)), stream_idle: None, stream_life: None };
        let mut headers = HeaderMap::new();
        let limits = |headers: &HeaderMap| Limits::new(headers, &defaults, None);
        let left = |limits: &Limits| limits.left().map(|left| left.as_secs_f64().round() as u64);
        deadline::within(Duration::from_secs(5), async {
            assert_eq!((left(&limits(&headers)), limits(&headers).is_shortened), (Some(5), true));
            headers.insert(GRPC_TIMEOUT, http::HeaderValue::from_static("2S"));
            assert_eq!((left(&limits(&headers)), limits(&headers).is_shortened), (Some(2), false));
            headers.insert(GRPC_TIMEOUT, http::HeaderValue::from_static("60S"));
            assert_eq!((left(&limits(&headers)), limits(&headers).is_shortened), (Some(5), true));
        })
        .await;
        assert_eq!(left(&limits(&headers)), Some(60));
        // Without one of its own a call has the default beside it: an hour left upstream is no wish for an hour.
        headers.clear();
        deadline::within(Duration::from_secs(3600), async {
            assert_eq!(limits(&headers).due(None).map(|d| d.1), Some(Expired::DefaultDeadline));
        })
        .await;
    }
}
