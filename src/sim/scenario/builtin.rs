//! The scenarios that come with the program, each in a file of its own.

use super::{Error, Scenario};

/// Name and text of each.
pub const BUILTIN: [(&str, &str); 1] = [("headline", include_str!("../scenarios/headline.yaml"))];

/// The scenario of this name.
pub fn builtin(name: &str) -> Result<Scenario, Error> {
    let known = || BUILTIN.map(|(name, _)| name).join(", ");
    let unknown = || Error::Unknown { name: name.to_owned(), known: known() };
    let (_, yaml) = BUILTIN.iter().find(|(known, _)| *known == name).ok_or_else(unknown)?;
    Scenario::parse(yaml)
}
