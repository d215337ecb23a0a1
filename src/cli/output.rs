//! What commands write to stdout: a table for people, a versioned envelope for programs. Formats only; every word in it
//! comes from the balancer or from the command.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::exit::{Exit, Failure};

/// How data is written to stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// How the operator wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Asked {
    /// For people.
    Table,
    /// For programs: one JSON document, or one per line where a command goes on.
    Json,
    /// For spreadsheets: `simulate run` alone.
    Csv,
}

/// Milliseconds since 1970.
pub(crate) fn now_unix_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis())
        .unwrap_or(u64::MAX)
}

/// Extra keys of an envelope, for the kinds that have none.
#[derive(Serialize)]
pub(crate) struct NoExtra {}

/// The JSON that every command shares. Keys are only ever added.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Envelope<'a, Item, Extra = NoExtra> {
    api_version: &'static str,
    kind: &'static str,
    generated_at: String,
    /// Identity of the replica that answered.
    balancer: &'a str,
    #[serde(flatten)]
    extra: Extra,
    items: Vec<Item>,
}

impl<'a, Item: Serialize> Envelope<'a, Item> {
    /// An envelope of items alone, written now.
    pub(crate) fn new(kind: &'static str, balancer: &'a str, items: Vec<Item>) -> Self {
        Self::with(kind, balancer, NoExtra {}, items)
    }
}

impl<'a, Item: Serialize, Extra: Serialize> Envelope<'a, Item, Extra> {
    /// An envelope with keys of its own beside the items, written now.
    pub(crate) fn with(kind: &'static str, balancer: &'a str, extra: Extra, items: Vec<Item>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { api_version: "lookaside.dev/v1", kind, generated_at: rfc3339(now), balancer, extra, items }
    }
}

/// Writes a value as one line of JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let line =
        serde_json::to_string(value).map_err(|e| Failure::new(Exit::Failed, format!("cannot write JSON: {e}")))?;
    text(&line)
}

/// Writes text and a line end, at once: a reader of a pipe sees each line as it comes.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// Columns without borders. Never wraps: a row is a line, whatever the terminal's width.
pub(crate) fn table<const COLUMNS: usize>(header: [&str; COLUMNS], rows: Vec<[String; COLUMNS]>) -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.map(ToOwned::to_owned).to_vec());
    for row in rows {
        table.add_row(row.map(|cell| if cell.is_empty() { "-".to_owned() } else { clean(&cell) }).to_vec());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Text that a peer sent, made harmless: one line, no control characters for the terminal to obey.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A time since 1970 as RFC 3339 in UTC, to the millisecond.
pub(crate) fn rfc3339(since_epoch: Duration) -> String {
    let days = since_epoch.as_secs() / 86_400;
    // Days to a date, with years that begin in March so that the leap day comes last.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{}Z", clock_time(since_epoch))
}

/// The time of day of a time since 1970, in UTC, to the millisecond.
pub(crate) fn clock_time(since_epoch: Duration) -> String {
    let s = since_epoch.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", s / 3600, s / 60 % 60, s % 60, since_epoch.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_year_ends() {
        for (s, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(s)), text);
        }
    }

    #[test]
    fn a_table_has_a_line_per_row_and_no_borders() {
        let rows = vec![["a".to_owned(), String::new()], ["long\nname".to_owned(), "x".to_owned()]];
        assert_eq!(table(["NAME", "V"], rows), "NAME       V\na          -\nlong name  x");
    }

    #[test]
    fn an_envelope_has_the_promised_keys_in_order() {
        #[derive(Serialize)]
        struct Extra {
            complete: bool,
        }
        let mut envelope = Envelope::with("EndpointList", "lb-0", Extra { complete: true }, vec![1]);
        envelope.generated_at = rfc3339(Duration::from_millis(1_763_632_800_123));
        assert_eq!(
            serde_json::to_string(&envelope).unwrap(),
            r#"{"apiVersion":"lookaside.dev/v1","kind":"EndpointList","generatedAt":"2025-11-20T10:00:00.123Z","balancer":"lb-0","complete":true,"items":[1]}"#
        );
    }
}
