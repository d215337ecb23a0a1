//! Durations as people type and read them: `250ms`, `10s`, `5m`, `1h`. One unit per duration; nothing else is understood.

use std::time::Duration;

/// Longest duration that makes sense to anyone here: a year. Anything longer is a slip of the keyboard.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads a duration with its unit; a bare `0` needs none. Refuses, in words, what is negative, unitless or beyond a year.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_s = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => {
            return Err("a number and a unit are expected, such as 250ms, 10s, 5m or 1h".to_owned());
        }
    };
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    match Duration::try_from_secs_f64(number * unit_s) {
        Ok(duration) if duration <= DURATION_MAX => Ok(duration),
        _ => Err("longer than a year".to_owned()),
    }
}

/// An age for a table: two digits or so, the largest unit that keeps it honest.
pub(crate) fn age(ms: u64) -> String {
    let s = ms / 1000;
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    match ms {
        0..=999 => format!("{ms}ms"),
        1_000..=9_999 => format!("{}.{}s", s, ms % 1000 / 100),
        _ if m < 2 => format!("{s}s"),
        _ if h < 2 => format!("{m}m"),
        _ if d < 1 => format!("{h}h"),
        _ => format!("{d}d{}h", h % 24),
    }
}

/// A duration in whole milliseconds, for the wire.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, expected_ms) in
            [("0", 0), ("250ms", 250), ("10s", 10_000), ("1.5s", 1_500), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)]
        {
            assert_eq!(parse(text).map(ms), Ok(expected_ms), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "10", "-5s", "s", "1.2.3s", "10 s", "5d", "1e3s", "nan s", "99999999h", ".s", "٣s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_are_short() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_000, "1.0s"),
            (9_950, "9.9s"),
            (41_000, "41s"),
            (240_000, "4m"),
            (7_200_000, "2h"),
            (273_600_000, "3d4h"),
        ] {
            assert_eq!(age(ms), text);
        }
    }
}
