//! JSON with the file's own words: paths such as `backup.retention_days`, duplicates of keys.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::shown::child;

/// Parses a text; the second part are the paths of keys that stand twice, where the first counts.
pub fn parse(text: &str) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let node = Node {
        path: String::new(),
        duplicates: &mut duplicates,
    };
    let value = node.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, duplicates))
}

/// A place in the document, on the way through it.
struct Node<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        // JSON Schema takes 7.0 for an integer; serde does not. `{:.0}` is exact below 2^53.
        let whole = (value.fract() == 0.0 && value.abs() < 9e15).then(|| format!("{value:.0}"));
        match whole.and_then(|digits| digits.parse::<i64>().ok()) {
            Some(integer) => Ok(integer.into()),
            None => Number::from_f64(value)
                .map(Value::Number)
                .ok_or_else(|| E::custom("not a number")),
        }
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Node {
            path: child(&self.path, &list.len().to_string()),
            duplicates: &mut *self.duplicates,
        })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = child(&self.path, &key);
            let node = Node {
                path: path.clone(),
                duplicates: &mut *self.duplicates,
            };
            let value = entries.next_value_seed(node)?;
            if map.contains_key(&key) {
                self.duplicates.push(path);
            } else {
                map.insert(key, value);
            }
        }
        Ok(Value::Object(map))
    }
}

/// A JSON pointer in our notation.
pub fn dotted(pointer: &str) -> String {
    let unescaped = |key: &str| key.replace("~1", "/").replace("~0", "~");
    pointer
        .split('/')
        .skip(1)
        .fold(String::new(), |path, key| child(&path, &unescaped(key)))
}

/// The value at a path of plain keys and of places in lists.
pub fn get<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(document, |value, key| match value {
            Value::Array(items) => items.get(key.parse::<usize>().ok()?),
            value => value.get(key),
        })
}

/// Puts a value at a path, or removes the value that is there.
///
/// If there is no such parent, nothing happens. An item of a list is replaced, and not removed.
pub fn replace(document: &mut Value, path: &str, value: Option<&Value>) {
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    let parent = match parent {
        "" => Some(document),
        _ => parent
            .split('.')
            .try_fold(document, |value, key| value.get_mut(key)),
    };
    match (parent, value) {
        (Some(Value::Object(map)), Some(value)) => {
            map.insert(key.to_owned(), value.clone());
        }
        (Some(Value::Object(map)), None) => {
            map.remove(key);
        }
        (Some(Value::Array(items)), Some(value)) => {
            let item = key
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get_mut(index));
            if let Some(item) = item {
                *item = value.clone();
            }
        }
        _ => {}
    }
}

/// Calls `visit` with the path and text of every string below `value`.
pub fn each_string(value: &Value, path: &str, visit: &mut impl FnMut(&str, &str)) {
    match value {
        Value::String(text) => visit(path, text),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                each_string(item, &child(path, &index.to_string()), visit);
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                each_string(value, &child(path, key), visit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
