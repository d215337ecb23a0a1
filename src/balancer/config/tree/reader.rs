//! The tree as forms read it: a deserializer that notes what is wrong, and where, instead of stopping for good.

use std::{cell::RefCell, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
        value::{BorrowedStrDeserializer, SeqAccessDeserializer},
    },
    forward_to_deserialize_any,
};

use super::{Kind, Mistake, Tree};
use crate::config::problem::{Location, Problem};

/// What a form asks for with this name is a value with its place.
const SPANNED: &str = "lookaside spanned";

/// A value and its place.
#[derive(Debug, Clone)]
pub(in crate::config) struct Spanned<T> {
    pub(in crate::config) value: T,
    /// Where the file gives it; of an alias, where that stands.
    pub(in crate::config) referenced: Location,
}

/// A value of the tree, as a form reads it.
#[derive(Clone, Copy)]
pub(super) struct Reader<'de> {
    pub(super) tree: &'de Tree,
    pub(super) problems: &'de RefCell<Vec<Problem>>,
}

impl<'de> Reader<'de> {
    fn of(self, tree: &'de Tree) -> Self {
        Self { tree, ..self }
    }

    /// Notes what is wrong with this value or in it, unless that has been done further in.
    fn note(self, mistake: Mistake) -> Mistake {
        if let Mistake::New(problem) = mistake.or_at(self.tree.at) {
            self.problems.borrow_mut().push(*problem);
            self.tree.bad.set(true);
        }
        Mistake::Told
    }

    fn text(self) -> Option<&'de str> {
        match &self.tree.kind {
            Kind::Bool(_, text)
            | Kind::Unsigned(_, text)
            | Kind::Signed(_, text)
            | Kind::Float(_, text)
            | Kind::Text(text) => Some(text),
            Kind::Null | Kind::List(_) | Kind::Map(_) => None,
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let read = match &self.tree.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(value, _) => visitor.visit_bool(*value),
            Kind::Unsigned(value, _) => visitor.visit_u64(*value),
            Kind::Signed(value, _) => visitor.visit_i64(*value),
            Kind::Float(value, _) => visitor.visit_f64(*value),
            Kind::Text(text) => visitor.visit_borrowed_str(text),
            Kind::List(items) => visitor.visit_seq(Items { reader: self, items: items.iter() }),
            Kind::Map(entries) => visitor.visit_map(Entries { reader: self, entries: entries.iter(), value: None }),
        };
        read.map_err(|mistake| mistake.or_at(self.tree.at))
    }

    /// A number is a text too, where a text is wanted.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.text() {
            Some(text) => {
                let read: Result<_, Mistake> = visitor.visit_borrowed_str(text);
                read.map_err(|mistake| mistake.or_at(self.tree.at))
            }
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        if matches!(self.tree.kind, Kind::Null) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match self.text() {
            Some(text) => {
                let word = BorrowedStrDeserializer::<Mistake>::new(text);
                visitor.visit_enum(word).map_err(|mistake| mistake.or_at(self.tree.at))
            }
            None => self.deserialize_any(visitor),
        }
    }

    /// By its keys alone: serde would take a list for the values in order.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match &self.tree.kind {
            Kind::List(_) => {
                Err(<Mistake as de::Error>::invalid_type(Unexpected::Seq, &"a mapping").or_at(self.tree.at))
            }
            Kind::Null
            | Kind::Bool(..)
            | Kind::Unsigned(..)
            | Kind::Signed(..)
            | Kind::Float(..)
            | Kind::Text(_)
            | Kind::Map(_) => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Mistake> {
        match name {
            SPANNED => visitor.visit_seq(WithPlace { reader: self, next: 0 }),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple tuple_struct
        map identifier ignored_any
    }
}

struct Items<'de> {
    reader: Reader<'de>,
    items: std::slice::Iter<'de, Tree>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mistake> {
        let Some(item) = self.items.by_ref().find(|item| !item.bad.get()) else { return Ok(None) };
        let reader = self.reader.of(item);
        seed.deserialize(reader).map(Some).map_err(|mistake| reader.note(mistake))
    }
}

struct Entries<'de> {
    reader: Reader<'de>,
    entries: std::slice::Iter<'de, (Spanned<String>, Tree)>,
    value: Option<&'de Tree>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mistake> {
        let Some((key, value)) = self.entries.by_ref().find(|(_, value)| !value.bad.get()) else { return Ok(None) };
        self.value = Some(value);
        let word = BorrowedStrDeserializer::new(key.value.as_str());
        let read: Result<_, Mistake> = seed.deserialize(word);
        read.map(Some).map_err(|mistake| self.reader.of(value).note(mistake.or_at(key.referenced)))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let value = self.value.take().ok_or_else(|| de::Error::custom("a value without its key"))?;
        let reader = self.reader.of(value);
        seed.deserialize(reader).map_err(|mistake| reader.note(mistake))
    }
}

/// Line, column, length, and the value itself.
struct WithPlace<'de> {
    reader: Reader<'de>,
    next: u8,
}

impl<'de> SeqAccess<'de> for WithPlace<'de> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mistake> {
        let Location { line, column, length } = self.reader.tree.at;
        self.next += 1;
        let number = match self.next {
            1 => line,
            2 => column,
            3 => length,
            4 => return seed.deserialize(self.reader).map(Some),
            _ => return Ok(None),
        };
        seed.deserialize(number.into_deserializer()).map(Some)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Spanned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Parts<T> {
            type Value = Spanned<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value and its place")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Spanned<T>, A::Error> {
                let (line, column, length, value) = Deserialize::deserialize(SeqAccessDeserializer::new(parts))?;
                Ok(Spanned { value, referenced: Location { line, column, length } })
            }
        }

        deserializer.deserialize_newtype_struct(SPANNED, Parts(PhantomData))
    }
}
