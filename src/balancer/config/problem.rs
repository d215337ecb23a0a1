//! What can be wrong with a configuration, and how it is told: a stable code, the place, the line itself, and what would
//! be right. One line each for logs, a picture for people.

use std::fmt::{self, Write as _};

/// Every kind of mistake there is. The codes stay: scripts and searches rely on them. Structure is 01xx, sense 02xx, what
/// cannot be changed at run time 03xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The file cannot be read.
    Unreadable,
    /// Not YAML, or not one document of it.
    Syntax,
    /// A key that is not known there.
    UnknownKey,
    /// A key that is there already.
    KeyTwice,
    /// A key that has to be there and is not.
    MissingKey,
    /// A list where a mapping belongs, a text where a number does.
    WrongKind,
    /// A word that is not one of those possible.
    UnknownWord,
    /// A text that is not of its form: a duration, an address, a name.
    BadValue,
    /// A number or a duration beyond its bounds.
    OutOfRange,
    /// More of something than there may be.
    TooMany,
    /// Two of what there may be one of.
    Duplicate,
    /// A key that belongs elsewhere.
    Misplaced,
    /// Two values that make no sense side by side.
    Conflict,
    /// What would execute a call twice that does not bear it.
    NotIdempotent,
    /// A key that does nothing without another.
    NoEffect,
    /// A listener that others reach, in plaintext, without a word that this is meant.
    Exposed,
    /// A change that a running balancer cannot make.
    NeedsRestart,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Unreadable,
        Self::Syntax,
        Self::UnknownKey,
        Self::KeyTwice,
        Self::MissingKey,
        Self::WrongKind,
        Self::UnknownWord,
        Self::BadValue,
        Self::OutOfRange,
        Self::TooMany,
        Self::Duplicate,
        Self::Misplaced,
        Self::Conflict,
        Self::NotIdempotent,
        Self::NoEffect,
        Self::Exposed,
        Self::NeedsRestart,
    ];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "LKS0101",
            Self::Syntax => "LKS0102",
            Self::UnknownKey => "LKS0103",
            Self::KeyTwice => "LKS0104",
            Self::MissingKey => "LKS0105",
            Self::WrongKind => "LKS0106",
            Self::UnknownWord => "LKS0107",
            Self::BadValue => "LKS0108",
            Self::OutOfRange => "LKS0109",
            Self::TooMany => "LKS0110",
            Self::Duplicate => "LKS0201",
            Self::Misplaced => "LKS0202",
            Self::Conflict => "LKS0203",
            Self::NotIdempotent => "LKS0204",
            Self::NoEffect => "LKS0205",
            Self::Exposed => "LKS0206",
            Self::NeedsRestart => "LKS0301",
        }
    }

    /// Whether it is about what else the file says: not to be told while a part of the file could not be read.
    pub(super) fn needs_the_whole(self) -> bool {
        match self {
            Self::MissingKey
            | Self::Conflict
            | Self::NotIdempotent
            | Self::NoEffect
            | Self::Exposed
            | Self::NeedsRestart => true,
            Self::Unreadable
            | Self::Syntax
            | Self::UnknownKey
            | Self::KeyTwice
            | Self::WrongKind
            | Self::UnknownWord
            | Self::BadValue
            | Self::OutOfRange
            | Self::TooMany
            | Self::Duplicate
            | Self::Misplaced => false,
        }
    }
}

/// A place in the file: counted in characters from 1; 0 where there is none.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Which line.
    pub line: u64,
    /// Which character of it.
    pub column: u64,
    /// How many characters are meant.
    pub length: u64,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub at: Location,
    /// Which kind.
    pub code: Code,
    /// What is wrong.
    pub reason: String,
    /// What was meant, probably.
    pub suggestion: Option<String>,
    /// What would be right; empty where the reason says it.
    pub help: String,
}

impl Problem {
    /// One with nothing to add.
    pub(super) fn new(at: Location, code: Code, reason: impl Into<String>) -> Self {
        Self { at, code, reason: reason.into(), suggestion: None, help: String::new() }
    }

    /// A word that is not one of those possible, and the one that looks most like it.
    pub(super) fn unknown(at: Location, code: Code, what: &str, word: &str, known: &[&str]) -> Self {
        let suggestion = nearest(word, known).map(str::to_owned);
        let help = if known.is_empty() { String::new() } else { format!("known here: {}", known.join(", ")) };
        Self { at, code, reason: format!("unknown {what} `{word}`"), suggestion, help }
    }
}

/// Without the file's name: in one line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.line > 0 {
            write!(f, "{}:{}: ", self.at.line, self.at.column)?;
        }
        write!(f, "{}: {}", self.code.name(), self.reason)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; did you mean `{suggestion}`?")?;
        }
        if self.help.is_empty() { Ok(()) } else { write!(f, " ({})", self.help) }
    }
}

/// A configuration that cannot be used: all that was found wrong with it, in the order of the file. Nothing of it was
/// used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines().join("\n"))]
pub struct Error {
    /// What the file is called.
    pub path: String,
    /// Never empty.
    pub problems: Vec<Problem>,
    text: String,
}

impl Error {
    pub(super) fn new(path: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self { path: path.to_owned(), problems, text: text.to_owned() }
    }

    /// A line per mistake that begins with `file:line:column`, as editors jump to.
    pub fn lines(&self) -> Vec<String> {
        let place = |problem: &Problem| if problem.at.line > 0 { ":" } else { ": " };
        self.problems.iter().map(|problem| format!("{}{}{problem}", self.path, place(problem))).collect()
    }

    /// For people: each mistake with its line and a mark below it.
    pub fn pictures(&self) -> String {
        let pictures: Vec<_> = self.problems.iter().map(|problem| self.picture(problem)).collect();
        pictures.join("\n")
    }

    fn picture(&self, problem: &Problem) -> String {
        let mut out = String::new();
        let Location { line, column, length } = problem.at;
        let suggestion = problem.suggestion.as_ref().map(|word| format!("did you mean `{word}`?")).unwrap_or_default();
        let margin = " ".repeat(line.to_string().len());
        // Writing to a string cannot fail.
        let _ = writeln!(out, "error[{}]: {}", problem.code.name(), problem.reason);
        let shown = usize::try_from(line).ok().and_then(|line| self.text.lines().nth(line.checked_sub(1)?));
        match shown {
            Some(shown) => {
                let before = usize::try_from(column.saturating_sub(1)).unwrap_or(0);
                let rest = shown.chars().count().saturating_sub(before).max(1);
                let marked = usize::try_from(length).unwrap_or(1).clamp(1, rest);
                let shown: String = shown.chars().map(harmless).collect();
                let mark = format!("{}{} {suggestion}", " ".repeat(before), "^".repeat(marked));
                let _ = writeln!(out, "{margin}--> {}:{line}:{column}", self.path);
                let _ = writeln!(out, "{margin} |\n{line} | {shown}\n{margin} | {}", mark.trim_end());
            }
            None => {
                let _ = writeln!(out, "{margin}--> {}", self.path);
            }
        }
        if !problem.help.is_empty() {
            let _ = writeln!(out, "{margin} = help: {}", problem.help);
        }
        out
    }
}

/// The file is shown to a terminal, which must not obey it; tabs would move the mark.
fn harmless(character: char) -> char {
    if character.is_control() { ' ' } else { character }
}

/// The known word that looks like this one, if one does: a third of it may be wrong.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    let near = known.iter().map(|known| (strsim::osa_distance(&word, &plain(known)), *known));
    let allowed = (word.chars().count() / 3).max(1);
    near.filter(|(distance, _)| *distance <= allowed).min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_word_that_was_meant_is_found_and_no_other() {
        let known = ["interval", "deadline", "least_load", "round_robin", "UNAVAILABLE"];
        for (word, meant) in [
            ("intervall", Some("interval")),
            ("dedaline", Some("deadline")),
            ("least-load", Some("least_load")),
            ("RoundRobin", Some("round_robin")),
            ("unavailable", Some("UNAVAILABLE")),
            ("x", None),
            ("timeout", None),
        ] {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
    }

    #[test]
    fn no_two_codes_have_one_name() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
    }

    #[test]
    fn a_mark_stands_below_what_is_meant_and_stays_in_the_line() {
        let at = Location { line: 2, column: 4, length: 99 };
        let problem = Problem::unknown(at, Code::UnknownKey, "key", "äb", &["ab"]);
        let error = Error::new("f.yaml", "a:\n\t{ äb\u{1b}: 1 }\n", vec![problem]);
        let expected = "error[LKS0103]: unknown key `äb`\n --> f.yaml:2:4\n  |\n2 |  { äb : 1 }\n  |    ^^^^^^^^ did you \
                        mean `ab`?\n  = help: known here: ab\n";
        assert_eq!(error.pictures(), expected);
        assert_eq!(error.to_string(), "f.yaml:2:4: LKS0103: unknown key `äb`; did you mean `ab`? (known here: ab)");
    }
}
