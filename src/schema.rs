//! The published schema, and its verdicts in our words.

use std::sync::LazyLock;

use jsonschema::error::{ValidationError, ValidationErrorKind};
use serde_json::Value;

use crate::json;
use crate::problem::Problem;
use crate::shown;

/// What keys there are, of which type and range; written for users.
pub const TEXT: &str = include_str!("../schemas/environment.schema.json");

/// The same, parsed for the explanation of a bad file. A good file never needs it.
static SCHEMA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(TEXT).expect("the published schema is JSON"));

/// The schema, compiled at build time. A run then costs no compilation of a schema.
#[jsonschema::validator(path = "schemas/environment.schema.json")]
struct Validator;

/// Everything that the schema has against a document.
pub fn problems(document: &Value) -> Vec<Problem> {
    if Validator::is_valid(document) {
        return Vec::new();
    }
    Validator::iter_errors(document)
        .flat_map(|error| in_our_words(&error, document))
        .collect()
}

/// The keys of the section `backup`, each with its description.
pub fn backup_keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    let keys = SCHEMA["properties"]["backup"]["properties"].as_object();
    keys.into_iter()
        .flatten()
        .filter_map(|(key, property)| Some((key.as_str(), property["description"].as_str()?)))
}

/// Whether a word is a key that the schema describes, wherever.
pub fn knows_key(word: &str) -> bool {
    TEXT.contains(&format!("\"{word}\": {{"))
}

/// A good value for a place in the file, when the schema gives one.
pub fn example(path: &str) -> Option<&'static Value> {
    let pointer = format!("/{}", path.replace('.', "/"));
    at(&pointer).get("examples")?.get(0)
}

/// The part of the schema that describes a place in the file.
fn at(pointer: &str) -> &'static Value {
    pointer.split('/').skip(1).fold(&SCHEMA, |fragment, key| {
        let part = match fragment.get("items") {
            Some(items) => items,
            None => property(fragment, key),
        };
        let definition = part["$ref"]
            .as_str()
            .and_then(|name| SCHEMA.pointer(name.trim_start_matches('#')));
        definition.unwrap_or(part)
    })
}

fn in_our_words(error: &ValidationError<'_>, document: &Value) -> Vec<Problem> {
    let path = json::dotted(error.instance_path().as_str());
    let child = |key: &str| shown::child(&path, key);
    let fragment = at(error.instance_path().as_str());
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => unexpected
            .iter()
            .map(|key| unknown_key(child(key), key, fragment))
            .collect(),
        ValidationErrorKind::Required { property: missing } => {
            let key = missing.as_str().unwrap_or_default();
            let wanted = property(fragment, key);
            let problem = missing_key(child(key), key, wanted);
            let neighbour = misspelt(&path, key, error.instance(), fragment)
                .or_else(|| without_section(key, wanted, error.instance(), fragment))
                .or_else(|| misplaced(&path, key, wanted, document));
            vec![match neighbour {
                Some((found, fix)) => Problem {
                    found,
                    fix,
                    ..problem
                },
                None => problem,
            }]
        }
        _ => vec![Problem {
            found: shown::value(&path, error.instance()),
            allowed: describe(fragment),
            fix: advice(&path, error.instance(), fragment),
            path: if path.is_empty() {
                "(the whole file)".to_owned()
            } else {
                path
            },
        }],
    }
}

fn property<'a>(fragment: &'a Value, key: &str) -> &'a Value {
    [&fragment["properties"], &fragment["then"]["properties"]]
        .into_iter()
        .find_map(|properties| properties.get(key))
        .unwrap_or(&fragment["additionalProperties"])
}

/// A key beside a missing one that was probably meant to be it: what was found, and how to fix it.
fn misspelt(path: &str, key: &str, parent: &Value, fragment: &Value) -> Option<(String, String)> {
    let is_unknown = |other: &&String| !property(fragment, other).is_object();
    let others: Vec<&String> = parent.as_object()?.keys().filter(is_unknown).collect();
    let is_near = |other: &&&String| {
        let other = other.to_lowercase().replace('-', "_");
        strsim::jaro_winkler(&other, key) > 0.8 || key.ends_with(&format!("_{other}"))
    };
    let other = others.iter().find(is_near)?;
    let shown = shown::key(path, other);
    Some((
        format!("nothing, but a key {shown}"),
        format!("write `{key}` instead of it"),
    ))
}

/// A missing section whose own keys stand beside it.
fn without_section(
    key: &str,
    wanted: &Value,
    parent: &Value,
    fragment: &Value,
) -> Option<(String, String)> {
    let belongs_there =
        |inner: &&str| parent.get(inner).is_some() && property(fragment, inner).is_null();
    let mut inner = wanted["required"]
        .as_array()?
        .iter()
        .filter_map(Value::as_str);
    let inner = inner.find(belongs_there)?;
    Some((
        format!("nothing, but its key `{inner}` stands beside it"),
        format!("write \"{key}\": {{ ... }} around `{inner}`"),
    ))
}

/// A missing key that stands somewhere else, where no such key belongs.
fn misplaced(path: &str, key: &str, wanted: &Value, document: &Value) -> Option<(String, String)> {
    /// Other sections have keys of these names, too, which mean something else.
    const COMMON: [&str; 4] = ["host", "name", "password", "username"];
    fn search(value: &Value, key: &str, wanted: &Value, pointer: &str) -> Option<String> {
        let map = value.as_object()?;
        let is_right = |value: &Value| {
            let kind = match value {
                Value::Object(_) => "object",
                Value::String(_) => "string",
                _ => kind(value),
            };
            wanted["enum"].is_array() || types(wanted).contains(&kind)
        };
        if map.get(key).is_some_and(is_right) && property(at(pointer), key).is_null() {
            return Some(pointer.to_owned());
        }
        map.iter()
            .find_map(|(name, value)| search(value, key, wanted, &format!("{pointer}/{name}")))
    }
    if COMMON.contains(&key) {
        return None;
    }
    let elsewhere = json::dotted(&search(document, key, wanted, "")?);
    let place = |path: &str| match path {
        "" => "the top level".to_owned(),
        _ => format!("`{path}`"),
    };
    Some((
        format!("nothing, but it stands in {}", place(&elsewhere)),
        format!("move it from {} to {}", place(&elsewhere), place(path)),
    ))
}

fn missing_key(path: String, key: &str, wanted: &Value) -> Problem {
    let example = &wanted["examples"][0];
    let fix = if example.is_null() {
        "add this section".to_owned()
    } else {
        format!("add it, for example \"{key}\": {example}")
    };
    Problem {
        path,
        found: "nothing".to_owned(),
        allowed: describe(wanted),
        fix,
    }
}

/// Keys that people expect, and what they get instead.
const MEANT: [(&str, &str); 2] = [
    (
        "backup.enabled",
        "remove it: a section `backup` is enabled, and null disables it",
    ),
    (
        "backup.notify.email",
        "remove it; `command` runs a program of the host that sends mail",
    ),
];

fn unknown_key(path: String, key: &str, fragment: &Value) -> Problem {
    let known = fragment["properties"]
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys);
    let fix = match nearest(key, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => match MEANT.iter().find(|(meant, _)| *meant == path) {
            Some((_, fix)) => (*fix).to_owned(),
            None => "remove it".to_owned(),
        },
    };
    let known: Vec<&str> = known.map(String::as_str).collect();
    Problem {
        path,
        found: "an unknown key".to_owned(),
        allowed: known.join(", "),
        fix,
    }
}

/// The known word that the wanted one was probably meant to be.
pub fn nearest<'a>(wanted: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    let closeness = |key: &str| strsim::jaro_winkler(&wanted.to_lowercase(), key);
    known
        .map(|key| (closeness(key), key.as_str()))
        .filter(|(closeness, _)| *closeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}

/// Types that a fragment accepts.
fn types(fragment: &Value) -> Vec<&str> {
    match &fragment["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    }
}

/// The schema's name for the type of a number or a boolean.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Number(_) => "integer",
        Value::Bool(_) => "boolean",
        _ => "",
    }
}

fn describe(fragment: &Value) -> String {
    let words = |kind: &str| match kind {
        "integer" => match (&fragment["minimum"], &fragment["maximum"]) {
            (Value::Number(low), Value::Number(high)) => {
                format!("a whole number from {low} to {high}")
            }
            _ => "a whole number".to_owned(),
        },
        "string" if fragment["minLength"] == 1 => "text that is not empty".to_owned(),
        "string" => "text".to_owned(),
        "boolean" => "true or false".to_owned(),
        "object" => "an object".to_owned(),
        "array" => "a list".to_owned(),
        other => other.to_owned(),
    };
    match fragment["enum"].as_array() {
        Some(values) => values
            .iter()
            .map(Value::to_string)
            .collect::<Vec<_>>()
            .join(" or "),
        None => types(fragment)
            .into_iter()
            .map(words)
            .collect::<Vec<_>>()
            .join(" or "),
    }
}

/// Drivers that trackers have and backups do not have yet, in the spellings that people write.
const NOT_YET: [&str; 4] = ["postgresql", "postgres", "pgsql", "psql"];

/// What to write instead of a word that is not among the allowed ones.
fn another_word(path: &str, word: &str, fragment: &Value) -> Option<String> {
    if !shown::is_public(path, word) {
        return None;
    }
    if path.ends_with(".driver") && NOT_YET.contains(&word.to_lowercase().as_str()) {
        return Some("PostgreSQL is not supported yet".to_owned());
    }
    let allowed = fragment["enum"].as_array()?.iter();
    let allowed: Vec<String> = allowed
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let near = nearest(word, allowed.iter())?;
    Some(format!("did you mean {near:?}?"))
}

fn advice(path: &str, value: &Value, fragment: &Value) -> String {
    if let Some(fix) = value
        .as_str()
        .and_then(|word| another_word(path, word, fragment))
    {
        return fix;
    }
    if value == &Value::Bool(false) && types(fragment).contains(&"null") {
        return "write null to switch it off".to_owned();
    }
    if path.ends_with("schedule") && value.is_array() {
        return "write one text; \"0 3,15 * * *\" is twice a day".to_owned();
    }
    let default = &fragment["default"];
    let example = if default.is_null() {
        &fragment["examples"][0]
    } else {
        default
    };
    if let Value::String(text) = value
        && let Ok(bare) = serde_json::from_str::<Value>(text)
        && types(fragment).contains(&kind(&bare))
    {
        return if shown::is_public(path, text) {
            format!("write it without quotes: {bare}")
        } else {
            "write it without quotes".to_owned()
        };
    }
    match (example.is_null(), default.is_null()) {
        (true, _) => "write what is allowed".to_owned(),
        (false, true) => format!("write for example {example}"),
        (false, false) => {
            format!("write for example {example}, which is the default without this key")
        }
    }
}
