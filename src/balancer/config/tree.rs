//! The file as a tree of values that know their places, between the YAML parser and the forms. Serde stops at the first
//! mistake; from a tree the forms can be read again without what was found wrong, so that all of it is found.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};

use super::problem::{Code, Location, Problem};

mod mistake;
mod reader;

use mistake::Mistake;
use reader::Reader;
pub(super) use reader::Spanned;

/// Mistakes looked for in one file; whoever has made more mends these first.
const PROBLEMS_MAX: usize = 100;

/// Reads a text into a form, together with every mistake of form that was found. `None` where nothing could be read.
pub(super) fn read<T: for<'de> Deserialize<'de> + Default>(text: &str) -> (Option<T>, Vec<Problem>) {
    let tree = match parse(text) {
        Ok(tree) => tree,
        Err(problem) => return (None, vec![problem]),
    };
    let Some(tree) = tree.filter(|tree| !matches!(tree.kind, Kind::Null)) else {
        return (Some(T::default()), Vec::new());
    };
    let problems = RefCell::new(Vec::new());
    loop {
        let before = problems.borrow().len();
        let form = T::deserialize(Reader { tree: &tree, problems: &problems });
        let mut found = problems.borrow_mut();
        match form {
            Ok(form) => return (Some(form), found.clone()),
            Err(Mistake::Told) if found.len() > before && found.len() < PROBLEMS_MAX => {}
            Err(Mistake::Told) => return (None, found.clone()),
            // Of the whole file, which has its place already: there is nothing to leave out.
            Err(Mistake::New(problem)) => {
                found.push(*problem);
                return (None, found.clone());
            }
        }
    }
}

fn parse(text: &str) -> Result<Option<Tree>, Problem> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let tree: Option<Tree> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let at = error.location().map(|at| located(&at)).unwrap_or_default();
        let words = error.to_string();
        // The parser puts the place into its words too; ours comes first, in the form that editors jump to.
        let reason = words.split(" at line ").next().unwrap_or_default().to_owned();
        match error.without_snippet() {
            serde_saphyr::Error::DuplicateMappingKey { key, .. } => {
                let key = key.as_ref().map(|key| format!(" `{key}`")).unwrap_or_default();
                Problem::new(at, Code::KeyTwice, format!("the key{key} is there already"))
            }
            // The parser's own set, which grows; all of it is about YAML as such.
            _ => Problem::new(at, Code::Syntax, reason),
        }
    })?;
    Ok(tree.map(|mut tree| {
        tree.take_texts(text);
        tree
    }))
}

fn located(at: &serde_saphyr::Location) -> Location {
    Location { line: at.line(), column: at.column(), length: at.span().len() }
}

#[derive(Debug)]
struct Tree {
    at: Location,
    kind: Kind,
    /// Bytes of the source: numbers as they were written.
    bytes: Option<(usize, usize)>,
    /// Found wrong: left out from now on.
    bad: Cell<bool>,
}

#[derive(Debug)]
enum Kind {
    Null,
    /// Something that YAML takes for more than a text, and the text.
    Bool(bool, String),
    Unsigned(u64, String),
    Signed(i64, String),
    Float(f64, String),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(Spanned<String>, Tree)>),
}

impl Tree {
    fn take_texts(&mut self, source: &str) {
        let written = self.bytes.and_then(|(from, length)| source.get(from..from.checked_add(length)?));
        match &mut self.kind {
            Kind::Bool(_, text) | Kind::Unsigned(_, text) | Kind::Signed(_, text) | Kind::Float(_, text) => {
                if let Some(written) = written {
                    *text = written.trim().to_owned();
                }
            }
            Kind::Null | Kind::Text(_) => {}
            Kind::List(items) => items.iter_mut().for_each(|item| item.take_texts(source)),
            Kind::Map(entries) => entries.iter_mut().for_each(|(_, value)| value.take_texts(source)),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = serde_saphyr::Spanned::<Kind>::deserialize(deserializer)?;
        let span = spanned.defined.span();
        let bytes = span.byte_offset().zip(span.byte_len());
        let bytes = bytes.and_then(|(from, length)| Some((usize::try_from(from).ok()?, usize::try_from(length).ok()?)));
        Ok(Self { at: located(&spanned.referenced), kind: spanned.value, bytes, bad: Cell::new(false) })
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Kind;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Kind, E> {
                Ok(Kind::Null)
            }

            fn visit_none<E: de::Error>(self) -> Result<Kind, E> {
                Ok(Kind::Null)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Kind, E> {
                Ok(Kind::Bool(value, value.to_string()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Kind, E> {
                Ok(Kind::Unsigned(value, value.to_string()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Kind, E> {
                let unsigned = u64::try_from(value).ok();
                Ok(unsigned.map_or(Kind::Signed(value, value.to_string()), |u| Kind::Unsigned(u, u.to_string())))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Kind, E> {
                Ok(Kind::Float(value, value.to_string()))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Kind, E> {
                Ok(Kind::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Kind, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Kind::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Kind, A::Error> {
                let mut map = Vec::new();
                while let Some((key, value)) = entries.next_entry::<serde_saphyr::Spanned<String>, Tree>()? {
                    map.push((Spanned { value: key.value, referenced: located(&key.referenced) }, value));
                }
                Ok(Kind::Map(map))
            }
        }

        deserializer.deserialize_any(Any)
    }
}
