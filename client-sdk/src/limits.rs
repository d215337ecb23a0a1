//! How long a call may take: the caller's deadline, the default one, and the limits of a stream. Only says what is due when;
//! the timers are the call's.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

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
    /// Set by the caller, and sent on: holds for the whole call.
    caller: Option<Instant>,
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
    pub(crate) fn new(headers: &HeaderMap, defaults: &Defaults) -> Self {
        let started = Instant::now();
        let caller = headers.get(GRPC_TIMEOUT).and_then(|v| parse_timeout(v.as_bytes()));
        let at = |d: Duration| started.checked_add(d);
        Self {
            started,
            caller: caller.and_then(at),
            // Whoever sets a deadline has said how long.
            default: defaults.deadline.filter(|_| caller.is_none()).and_then(at),
            idle: defaults.stream_idle,
            life: defaults.stream_life,
        }
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
        let mut limits = Limits::new(&headers, &defaults);
        assert_eq!(limits.due(None).map(|d| d.1), Some(Expired::DefaultDeadline));
        limits.flows();
        assert_eq!(limits.due(Some(Instant::now())), None);
        headers.insert(GRPC_TIMEOUT, http::HeaderValue::from_static("60S"));
        let limits = Limits::new(&headers, &defaults);
        assert_eq!(limits.due(None).map(|d| d.1), Some(Expired::CallerDeadline));
    }
}
