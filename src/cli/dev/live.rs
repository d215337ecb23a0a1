//! How a run goes, on stderr while it goes: a table that redraws itself on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use lookaside_load::generator::Progress;

use super::summary::latency;
use crate::output;
use crate::view::percent;

/// Between two pictures, for people.
const PERIOD_TERMINAL: Duration = Duration::from_millis(250);
/// Between two lines, for logs.
const PERIOD_PLAIN: Duration = Duration::from_secs(5);
/// A terminal is seldom longer, and lines that have scrolled away cannot be redrawn.
const ROWS_MAX: usize = 20;

/// The narrowest terminal that is still common has one more.
const COLUMNS_MAX: usize = 79;

/// What is on stderr now.
pub(super) struct Live {
    on_terminal: bool,
    lines_drawn: usize,
}

impl Live {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { on_terminal: std::io::stderr().is_terminal() && !dumb, lines_drawn: 0 }
    }

    /// How often to draw.
    pub(super) fn period(&self) -> Duration {
        if self.on_terminal { PERIOD_TERMINAL } else { PERIOD_PLAIN }
    }

    /// Shows the progress in place of what was shown before.
    pub(super) fn draw(&mut self, progress: &Progress) {
        if !self.on_terminal {
            if !progress.elapsed.is_zero() && progress.calls > 0 {
                let used = progress.per_endpoint.iter().filter(|e| e.calls > 0).count();
                eprintln!("{}   {used} endpoints used", line(progress));
            }
            return;
        }
        let picture = picture(progress);
        self.clear();
        self.lines_drawn = picture.lines().count();
        eprintln!("{picture}");
    }

    /// Says something that stays.
    pub(super) fn say(&mut self, text: &str) {
        self.clear();
        eprintln!("{text}");
    }

    /// Takes the picture away.
    pub(super) fn clear(&mut self) {
        if self.lines_drawn > 0 {
            // Up by as many lines, then erase to the end of the screen.
            eprint!("\u{1b}[{}A\u{1b}[J", self.lines_drawn);
            // A picture that cannot be drawn is no reason to stop the run.
            let _ = std::io::stderr().flush();
            self.lines_drawn = 0;
        }
    }
}

fn line(progress: &Progress) -> String {
    format!(
        "{:>4}s  {} calls  {} failed  {} calls/s  p50 {}  p99 {}  {} in flight",
        progress.elapsed.as_secs(),
        progress.calls,
        progress.failed,
        progress.calls_per_s,
        latency(progress.p50_us),
        latency(progress.p99_us),
        progress.in_flight,
    )
}

fn picture(progress: &Progress) -> String {
    let per_s: u64 = progress.per_endpoint.iter().map(|e| e.calls_per_s).sum();
    let rows = progress
        .per_endpoint
        .iter()
        .take(ROWS_MAX)
        .map(|e| {
            [
                e.address.clone(),
                e.calls.to_string(),
                e.calls_per_s.to_string(),
                percent(e.calls_per_s as f64 / per_s.max(1) as f64),
                e.failed.to_string(),
            ]
        })
        .collect();
    let table = output::table(["ENDPOINT", "CALLS", "CALLS/S", "SHARE", "FAILED"], rows);
    let more = match progress.per_endpoint.len().saturating_sub(ROWS_MAX) {
        0 => String::new(),
        more => format!("\n... {more} more"),
    };
    // A line that wraps would be counted as one and drawn over two.
    let headline: String = line(progress).chars().take(COLUMNS_MAX).collect();
    format!("{headline}\n{table}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_it_goes() {
        let progress = Progress {
            elapsed: Duration::from_secs(5),
            calls: 3000,
            calls_per_s: 600,
            p50_us: 10_300,
            p99_us: 41_000,
            in_flight: 6,
            ..Progress::default()
        };
        assert_eq!(line(&progress), "   5s  3000 calls  0 failed  600 calls/s  p50 10.3ms  p99 41.0ms  6 in flight");
    }
}
