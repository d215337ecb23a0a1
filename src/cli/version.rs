//! `lookaside version`: what this binary is. Asks nobody.

use serde::Serialize;

use crate::Global;
use crate::exit::Failure;
use crate::output::{self, Format};

/// Print the version of this binary
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lookaside version -o json")]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// Prints the version.
pub(crate) fn run(global: &Global, Args {}: Args) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match global.output {
        Format::Table => output::text(&format!("lookaside {version}")),
        Format::Json => output::json(&output::Envelope::new("Version", "", vec![Version { version }])),
    }
}
