//! A value of any shape with the place of each of its parts, for what only a platform or a service can judge.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::Value;

use super::fault::Place;
use super::read::Given;

/// The value.
#[derive(Clone, Debug)]
pub(super) enum Free {
    Scalar(Value),
    List(Vec<Given<Self>>),
    Map(Vec<(Given<String>, Given<Self>)>),
}

impl Free {
    /// The same without places.
    pub(super) fn plain(&self) -> Value {
        let inner = |given: &Given<Self>| given.value().map_or(Value::Null, Self::plain);
        match self {
            Self::Scalar(value) => value.clone(),
            Self::List(items) => items.iter().map(inner).collect(),
            Self::Map(pairs) => pairs
                .iter()
                .filter_map(|(key, value)| Some((key.value()?.clone(), inner(value))))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }

    /// Where a part stands that a JSON pointer (RFC 6901) leads to: the key of the last step that is there.
    pub(super) fn place_of(&self, pointer: &str) -> Option<Place> {
        let (step, rest) = match pointer.strip_prefix('/')?.split_once('/') {
            Some((step, _)) => (step, &pointer[step.len() + 1..]),
            None => (&pointer[1..], ""),
        };
        let step = step.replace("~1", "/").replace("~0", "~");
        let (place, inner) = match self {
            Self::Scalar(_) => return None,
            Self::List(items) => {
                let item = items.get(step.parse::<usize>().ok()?)?;
                (item.place()?, item)
            }
            Self::Map(pairs) => {
                let named = |(key, _): &&(Given<String>, Given<Self>)| key.value() == Some(&step);
                let (key, value) = pairs.iter().find(named)?;
                (key.place()?, value)
            }
        };
        let deeper = inner.value().and_then(|inner| inner.place_of(rest));
        Some(deeper.unwrap_or(place))
    }
}

struct FreeVisitor;

impl<'de> Visitor<'de> for FreeVisitor {
    type Value = Free;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Free, E> {
        Ok(Free::Scalar(value.into()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Free, E> {
        Ok(Free::Scalar(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Free, E> {
        Ok(Free::Scalar(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Free, E> {
        Ok(Free::Scalar(value.into()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Free, E> {
        Ok(Free::Scalar(value.into()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Free, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Free::List(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Free, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Free::Map(pairs))
    }
}

impl<'de> Deserialize<'de> for Free {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FreeVisitor)
    }
}

impl JsonSchema for Free {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Free".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "object" })
    }
}
