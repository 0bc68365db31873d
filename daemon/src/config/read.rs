//! From a YAML tree to the types of [`super::file`], through serde, so that the same derives make the JSON
//! schema. Unlike serde's habit, reading never stops: a value of the wrong kind becomes
//! [`Given::Bad`] and a fault, an unknown or repeated key becomes a fault, and its neighbours are read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::{StrDeserializer, U32Deserializer};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

use super::fault::{Faults, Place, suggestion};
use super::yaml::{Body, Key, Node};

/// Entries of one list. What they become is larger than what was written.
const ENTRIES_MAX: usize = netboot::spec::NODES_MAX;
/// The newtype name by which [`Given`] asks the reader for the place.
const GIVEN: &str = "given with its place";
/// The newtype name by which a type asks for either a word, as text, or a map or list, as the newtype's inside.
pub(super) const WORD_OR_OTHER: &str = "a word, or a map or list";

/// A value of a file, if it was given, and its place. `Bad` was reported already.
#[derive(Clone, Debug, Default)]
pub(super) enum Given<T> {
    #[default]
    Absent,
    Bad(Place),
    Good(Place, T),
}

/// A map whose keys are values: in file order, each key once.
#[derive(Clone, Debug)]
pub(super) struct Table<T>(pub(super) Vec<(Given<String>, Given<T>)>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Given<T> {
    pub(super) fn value(&self) -> Option<&T> {
        match self {
            Self::Good(_, value) => Some(value),
            Self::Absent | Self::Bad(_) => None,
        }
    }

    pub(super) fn place(&self) -> Option<Place> {
        match self {
            Self::Absent => None,
            Self::Bad(place) | Self::Good(place, _) => Some(*place),
        }
    }

    pub(super) fn good(&self) -> Option<(Place, &T)> {
        match self {
            Self::Good(place, value) => Some((*place, value)),
            Self::Absent | Self::Bad(_) => None,
        }
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// Reads a tree as a `T`.
pub(super) fn read<'a, T: Deserialize<'a>>(node: &'a Node<'a>, faults: &'a Faults) -> Given<T> {
    let reader = Reader {
        node,
        key: "",
        faults,
    };
    Given::deserialize(reader).unwrap_or_default()
}

/// A value that can't be read as what was asked. The message is empty when the fault was added already.
#[derive(Debug)]
pub(super) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node<'a>,
    /// The key that led here.
    key: &'a str,
    faults: &'a Faults,
}

impl<'a> Reader<'a> {
    fn refuse(self, problem: &str, remedy: impl Into<String>) -> Refused {
        let Self { node, key, faults } = self;
        faults.add(node.place, key, &node.said(), problem, remedy);
        Refused(String::new())
    }

    fn text(self) -> Result<&'a str, Refused> {
        match &self.node.body {
            Body::Scalar(text) => Ok(text),
            Body::Null => Err(self.refuse("is empty", "write a value, or remove the key")),
            Body::List(_) => Err(self.refuse("is not one value", "write a single value here")),
            Body::Map(_) => Err(self.refuse(
                "is not one value",
                "write a single value here; quote it if it holds `: `",
            )),
        }
    }

    fn number(self, max: u64) -> Result<u64, Refused> {
        let text = self.text()?;
        match text.parse::<u64>() {
            Ok(number) if number <= max => Ok(number),
            _ => Err(self.refuse(
                "is not a number that fits here",
                format!("write a whole number from 0 to {max}"),
            )),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Refused;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match &self.node.body {
            Body::Null => visitor.visit_unit(),
            Body::Scalar(text) if self.node.plain => match typed(text) {
                Some(Value::Bool(truth)) => visitor.visit_bool(truth),
                Some(Value::Number(number)) => match (number.as_u64(), number.as_i64()) {
                    (Some(number), _) => visitor.visit_u64(number),
                    (None, Some(number)) => visitor.visit_i64(number),
                    (None, None) => visitor.visit_f64(number.as_f64().unwrap_or_default()),
                },
                _ => visitor.visit_str(text),
            },
            Body::Scalar(text) => visitor.visit_str(text),
            Body::List(_) => self.deserialize_seq(visitor),
            Body::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match &self.node.body {
            Body::Null => visitor.visit_none(),
            Body::Scalar(_) | Body::List(_) | Body::Map(_) => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        if name == GIVEN {
            let Place { file, line, column } = self.node.place;
            let place = [file, line, column];
            visitor.visit_seq(Placed {
                place: place.into_iter(),
                value: self,
            })
        } else if let (WORD_OR_OTHER, Body::Scalar(text)) = (name, &self.node.body) {
            visitor.visit_str(text)
        } else {
            visitor.visit_newtype_struct(self)
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match self.text()? {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(self.refuse("is neither true nor false", "write true or false")),
        }
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_u64(self.number(u64::from(u16::MAX))?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_u64(self.number(u64::from(u32::MAX))?)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match &self.node.body {
            Body::List(list) => visitor.visit_seq(List {
                items: list.iter(),
                entries: 0,
                list: self,
            }),
            Body::Null | Body::Scalar(_) | Body::Map(_) => Err(self.refuse(
                "is not a list",
                "write it as [one, two] or as lines that begin with `- `",
            )),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let Body::Map(map) = &self.node.body else {
            return Err(self.refuse("is not a map", "write `key: value` lines here"));
        };
        visitor.visit_map(Map {
            pairs: map.iter(),
            value: None,
            seen: BTreeMap::new(),
            fields: None,
            faults: self.faults,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let Body::Map(map) = &self.node.body else {
            let keys = fields.join(", ");
            return Err(self.refuse(
                "is not a map",
                format!("write `key: value` lines here; the keys are: {keys}"),
            ));
        };
        visitor.visit_map(Map {
            pairs: map.iter(),
            value: None,
            seen: BTreeMap::new(),
            fields: Some(fields),
            faults: self.faults,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let text = self.text()?;
        if variants.contains(&text) {
            visitor.visit_enum(text.into_deserializer())
        } else {
            let remedy = suggestion(text, variants.iter().copied());
            Err(self.refuse("is not known here", remedy))
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        tuple tuple_struct identifier ignored_any
    }
}

/// The number or truth value that an unquoted word is, as JSON spells them.
fn typed(text: &str) -> Option<Value> {
    serde_json::from_str(text)
        .ok()
        .filter(|value| matches!(value, Value::Bool(_) | Value::Number(_)))
}

/// A value behind its place, as a sequence of four.
struct Placed<'a> {
    place: std::array::IntoIter<u32, 3>,
    value: Reader<'a>,
}

impl<'a> de::SeqAccess<'a> for Placed<'a> {
    type Error = Refused;

    fn next_element_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refused> {
        if let Some(number) = self.place.next() {
            return seed.deserialize(U32Deserializer::new(number)).map(Some);
        }
        match seed.deserialize(self.value) {
            Ok(value) => Ok(Some(value)),
            Err(Refused(message)) => {
                if !message.is_empty() {
                    self.value
                        .refuse(&message, "see the README's section on the site's format");
                }
                Ok(None)
            }
        }
    }
}

struct List<'a> {
    items: std::slice::Iter<'a, Node<'a>>,
    entries: usize,
    list: Reader<'a>,
}

impl<'a> de::SeqAccess<'a> for List<'a> {
    type Error = Refused;

    fn next_element_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refused> {
        let Some(node) = self.items.next() else {
            return Ok(None);
        };
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            let reader = Reader { node, ..self.list };
            reader.refuse(
                "is one entry too many",
                format!("keep a list within {ENTRIES_MAX} entries"),
            );
            return Ok(None);
        }
        let item = Reader { node, ..self.list };
        if matches!(node.body, Body::Null) {
            item.refuse("stands in a list", "write a value, or remove the entry");
        }
        seed.deserialize(item).map(Some)
    }
}

struct Map<'a> {
    pairs: std::slice::Iter<'a, (Key<'a>, Node<'a>)>,
    value: Option<Reader<'a>>,
    seen: BTreeMap<&'a str, Place>,
    /// The keys there are, for a map that is a struct.
    fields: Option<&'static [&'static str]>,
    faults: &'a Faults,
}

impl<'a> Map<'a> {
    /// True when the key may be read: known, and not here before.
    fn accepts(&mut self, key: &'a Key<'a>) -> bool {
        let known = self
            .fields
            .is_none_or(|fields| fields.contains(&&*key.text));
        if !known {
            let remedy = match self.fields {
                Some(fields) if !self.faults.is_full() => {
                    suggestion(&key.text, fields.iter().copied())
                }
                _ => String::new(),
            };
            self.faults
                .add(key.place, &key.text, "", "is not a key here", remedy);
            return false;
        }
        if let Some(first) = self.seen.get(&*key.text) {
            let problem = format!("is given twice, first at {}", self.faults.say(*first));
            self.faults
                .add(key.place, &key.text, "", problem, "remove one of the two");
            return false;
        }
        self.seen.insert(&key.text, key.place);
        true
    }
}

impl<'a> de::MapAccess<'a> for Map<'a> {
    type Error = Refused;

    fn next_key_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refused> {
        while let Some((key, node)) = self.pairs.next() {
            if self.accepts(key) {
                self.value = Some(Reader {
                    node,
                    key: &key.text,
                    faults: self.faults,
                });
                return seed.deserialize(KeyReader(key)).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        let value = self.value.take();
        seed.deserialize(value.expect("serde asks for a value after its key"))
    }
}

/// A key, with its place for whoever asks.
#[derive(Clone, Copy)]
struct KeyReader<'a>(&'a Key<'a>);

impl<'de> Deserializer<'de> for KeyReader<'de> {
    type Error = Refused;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_str(&self.0.text)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let Place { file, line, column } = self.0.place;
        visitor.visit_seq(PlacedKey {
            place: [file, line, column].into_iter(),
            text: &self.0.text,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct PlacedKey<'a> {
    place: std::array::IntoIter<u32, 3>,
    text: &'a str,
}

impl<'a> de::SeqAccess<'a> for PlacedKey<'a> {
    type Error = Refused;

    fn next_element_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refused> {
        match self.place.next() {
            Some(number) => seed.deserialize(U32Deserializer::new(number)).map(Some),
            None => seed.deserialize(StrDeserializer::new(self.text)).map(Some),
        }
    }
}

struct GivenVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for GivenVisitor<T> {
    type Value = Given<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value with its place")
    }

    fn visit_none<E: de::Error>(self) -> Result<Given<T>, E> {
        Ok(Given::Absent)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Given<T>, D::Error> {
        deserializer.deserialize_newtype_struct(GIVEN, self)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut parts: A) -> Result<Given<T>, A::Error> {
        let mut number = || Ok(parts.next_element::<u32>()?.unwrap_or_default());
        let place = Place {
            file: number()?,
            line: number()?,
            column: number()?,
        };
        Ok(match parts.next_element()? {
            Some(value) => Given::Good(place, value),
            None => Given::Bad(place),
        })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_option(GivenVisitor(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Given<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

struct TableVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TableVisitor<T> {
    type Value = Table<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Table<T>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Table(pairs))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TableVisitor(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Table<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Table of {}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        schemars::json_schema!({ "type": "object", "additionalProperties": value })
    }
}
