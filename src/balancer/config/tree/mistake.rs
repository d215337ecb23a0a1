//! A mistake of form: what serde says of a value, in the words of whoever wrote the file.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use crate::config::problem::{Code, Location, Problem};

/// A mistake of form on its way out.
#[derive(Debug)]
pub(in crate::config) enum Mistake {
    /// Noted, and what it is about marked: the forms are to be read again without it.
    Told,
    /// Without a place as long as it is not known.
    New(Box<Problem>),
}

impl Mistake {
    fn new(code: Code, reason: String) -> Self {
        Self::New(Box::new(Problem::new(Location::default(), code, reason)))
    }

    /// The innermost place counts.
    pub(super) fn or_at(mut self, place: Location) -> Self {
        if let Self::New(problem) = &mut self
            && problem.at == Location::default()
        {
            problem.at = place;
        }
        self
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told => f.write_str("told already"),
            Self::New(problem) => f.write_str(&problem.reason),
        }
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: fmt::Display>(words: T) -> Self {
        Self::new(Code::BadValue, words.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Code::WrongKind, format!("this is {}, expected is {}", kind(found), wanted(expected)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Code::OutOfRange, format!("this is {}, expected is {}", kind(found), wanted(expected)))
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Self::New(Box::new(Problem::unknown(Location::default(), Code::UnknownWord, "word", word, known)))
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self::New(Box::new(Problem::unknown(Location::default(), Code::UnknownKey, "key", key, known)))
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Code::MissingKey, format!("the key `{key}` is missing"))
    }

    fn duplicate_field(key: &'static str) -> Self {
        Self::new(Code::KeyTwice, format!("the key `{key}` is there already"))
    }
}

/// What was found, in the words of YAML.
fn kind(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        Unexpected::Unit | Unexpected::Option => "empty".to_owned(),
        Unexpected::Str(text) => format!("`{text}`"),
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("`{value}`"),
        Unexpected::Signed(value) => format!("`{value}`"),
        Unexpected::Float(value) => format!("`{value}`"),
        other => other.to_string(),
    }
}

/// What was expected, without the names of our types.
fn wanted(expected: &dyn Expected) -> String {
    let words = expected.to_string();
    match words.as_str() {
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a string" => "a text".to_owned(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0".to_owned(),
        _ if words.starts_with("struct ") || words == "a map" => "a mapping".to_owned(),
        _ if words.starts_with("enum ") => "a word".to_owned(),
        _ => words,
    }
}
