//! What a message may show of an environment file: names of keys, and the values of a few paths.
//!
//! Every other value may be a secret, also under a misspelt key. A message then says what kind of
//! value it is. Imports nothing of ours.

use serde_json::Value;

/// The paths whose values may be shown. Everything that is not listed is not shown.
const PUBLIC: [&str; 25] = [
    "backup.allow_writer_stall",
    "backup.catch_up_hours",
    "backup.compression",
    "backup.database_scope",
    "backup.database_tls.verify",
    "backup.deploy_dir",
    "backup.destination",
    "backup.jitter_seconds",
    "backup.metrics.textfile_dir",
    "backup.notify.on",
    "backup.quiesce",
    "backup.restic.check",
    "backup.restic.keep_daily",
    "backup.restic.keep_monthly",
    "backup.restic.keep_weekly",
    "backup.restic.limit_upload_kib",
    "backup.retention_days",
    "backup.schedule",
    "backup.stop_timeout_seconds",
    "backup.strategy",
    "backup.verify_schedule",
    "backup.window_timeout_seconds",
    "environment.name",
    "ssh_credentials.port",
    "tracker.core.database.driver",
];

/// In a path, the place of a key that may itself be a secret.
const HIDDEN_KEY: &str = "[a key that is not shown]";

/// Whether a message may show this text, which stands at this path.
///
/// Also on a public path an address with a user and a password is not shown.
pub fn is_public(path: &str, text: &str) -> bool {
    let is_address =
        text.contains("://") || (text.find(':').zip(text.rfind('@'))).is_some_and(|(a, b)| a < b);
    PUBLIC.contains(&path) && !is_address
}

/// A value, as the object of "found:".
pub fn value(path: &str, value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) => value.to_string(),
        Value::Number(number) if PUBLIC.contains(&path) => number.to_string(),
        Value::Number(_) => "a number (not shown)".to_owned(),
        Value::String(content) => text(path, content),
        Value::Array(list) if list.is_empty() => "an empty list".to_owned(),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(map) if map.is_empty() => "an empty object".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// A text, as the object of "found:".
pub fn text(path: &str, text: &str) -> String {
    if text.is_empty() {
        "an empty text".to_owned()
    } else if is_public(path, text) {
        format!("the text {}", quoted(text))
    } else {
        "a text (not shown)".to_owned()
    }
}

/// A directory of the host that stands at this path, or lies below the one that stands there.
pub fn directory(path: &str, directory: &str) -> String {
    if is_public(path, directory) {
        format!("{directory:?}")
    } else {
        "a directory (not shown)".to_owned()
    }
}

/// The path of a key in the object at `path`, or of an item in the list there.
///
/// A key that does not look like the name of a setting may be a secret in the wrong place, so the
/// path does not name it.
pub fn child(path: &str, key: &str) -> String {
    match (path.is_empty(), key_is_shown(path, key)) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{path}.{key}"),
        (_, false) => format!("{path}{HIDDEN_KEY}"),
    }
}

/// A key in backquotes, or that it is not shown.
pub fn key(path: &str, key: &str) -> String {
    if key_is_shown(path, key) {
        format!("`{key}`")
    } else {
        "(not shown)".to_owned()
    }
}

/// Names of settings are short, and of letters, `_` and `-`. Those of variables may have digits.
fn key_is_shown(path: &str, key: &str) -> bool {
    const LONGEST: usize = 32;
    let made_of =
        |part: &str, allowed: fn(u8) -> bool| !part.is_empty() && part.bytes().all(allowed);
    let is_variable = key.contains('_')
        && (key.split('_'))
            .all(|part| made_of(part, |b| b.is_ascii_uppercase() || b.is_ascii_digit()));
    let is_name = made_of(key, |b| b.is_ascii_alphabetic() || b == b'_' || b == b'-');
    let is_index = key.len() <= 3 && made_of(key, |b| b.is_ascii_digit());
    let only_variables = path == "backup.restic.environment";
    key.len() <= LONGEST && (is_variable || (!only_variables && (is_name || is_index)))
}

/// A text in double quotes: no character of it reaches a terminal raw, long ones are cut.
fn quoted(text: &str) -> String {
    const MOST: usize = 80;
    let short: String = text.chars().take(MOST).collect();
    let more = if short.len() < text.len() {
        " (cut short)"
    } else {
        ""
    };
    format!("{short:?}{more}")
}
