//! Why a text is not JSON: what it looks like instead, where, and what to do.
//!
//! The line that is shown may hold a secret. So every letter, digit and sign of it is replaced,
//! except quotes, brackets, commas, colons, and keys that the published schema knows.

use std::fmt;

use crate::schema;

/// A syntax error in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxProblem {
    what: String,
    /// Where, unless the whole file is something else.
    place: Option<Place>,
    /// What to do about it, as an imperative.
    pub fix: &'static str,
}

/// A place in a text, counted from 1, in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
    /// The line with everything masked that may be a secret.
    shown: String,
    /// How many characters of it stand before the place.
    before: usize,
}

impl fmt::Display for SyntaxProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let Some(place) = &self.place else {
            return Ok(());
        };
        let (line, column) = (place.line, place.column);
        let (shown, before) = (&place.shown, place.before);
        write!(f, "\n  line {line}, column {column}:")?;
        write!(f, "\n    {shown}\n    {:before$}^", "")
    }
}

impl SyntaxProblem {
    /// Explains the parser's error about a text.
    pub fn new(text: &str, error: &serde_json::Error) -> Self {
        if let Some((what, fix)) = another_format(text) {
            return Self {
                what: what.to_owned(),
                place: None,
                fix,
            };
        }
        let message = error.to_string();
        let end = message.rfind(" at line ").unwrap_or(message.len());
        let message = &message[..end];
        let at = offset(text, error.line(), error.column());
        let (what, fix, at) = explain(text, message, at);
        Self {
            what,
            place: Some(Place::new(text, at)),
            fix,
        }
    }
}

impl SyntaxProblem {
    /// The line and the column, unless the whole file is something else.
    #[must_use]
    pub fn position(&self) -> Option<(usize, usize)> {
        self.place.as_ref().map(|place| (place.line, place.column))
    }
}

/// What a file that is no JSON at all looks like.
fn another_format(text: &str) -> Option<(&'static str, &'static str)> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let Some(first) = lines.find(|line| !line.starts_with('#')) else {
        return Some((
            "the file is empty",
            "give the environment file that the deployer was given",
        ));
    };
    let word_end = first.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c)));
    let after_word = word_end.map_or("", |end| &first[end..]);
    let starts_with_word = word_end != Some(0);
    let is_yaml =
        first == "---" || (starts_with_word && (after_word == ":" || after_word.starts_with(": ")));
    if is_yaml {
        return Some((
            "it looks like YAML",
            "write it as JSON: keys and texts in double quotes, each section in { }",
        ));
    }
    let is_table = first.starts_with('[')
        && first.ends_with(']')
        && first[1..first.len() - 1].starts_with(|c: char| c.is_ascii_alphabetic());
    if is_table || (starts_with_word && after_word.trim_start().starts_with('=')) {
        return Some((
            "it looks like TOML",
            "write it as JSON: keys and texts in double quotes, each section in { }",
        ));
    }
    if first.starts_with('"') {
        return Some((
            "the braces around the whole file are missing",
            "write { before the first key and } after the last value",
        ));
    }
    None
}

/// The parser's message in our words, what to do, and the byte to point at.
fn explain(text: &str, message: &str, mut at: usize) -> (String, &'static str, usize) {
    // The parser points behind the line break that it found in a text.
    if message.starts_with("control character") && text[..at].ends_with('\n') {
        at = text[..at].trim_end().len();
    }
    let found = text[at..].chars().next().unwrap_or_default();
    let line_start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let typographic = text[line_start..]
        .lines()
        .next()
        .and_then(|line| line.find(is_typographic_quote));
    let (what, fix) = if message.starts_with("EOF") {
        let end = text.trim_end().len();
        return (
            "the file ends too early".to_owned(),
            "close every quote, bracket and brace; is the file complete?",
            end,
        );
    } else if message == "trailing comma" {
        let comma = text[..at].rfind(',').unwrap_or(at);
        return (
            "a comma before a closing bracket".to_owned(),
            "remove the comma",
            comma,
        );
    } else if let Some(quote) = typographic {
        return (
            "typographic quotes".to_owned(),
            "write straight double quotes (\") around keys and texts",
            line_start + quote,
        );
    } else {
        in_our_words(message, found)
    };
    (what.to_owned(), fix, at)
}

fn is_typographic_quote(c: char) -> bool {
    matches!(c, '“' | '”' | '„' | '‟' | '‘' | '’' | '«' | '»')
}

/// A message that needs no other place than the parser's.
fn in_our_words(message: &str, found: char) -> (&str, &'static str) {
    const QUOTES: &str = "put keys and texts in double quotes";
    match (message, found) {
        (_, '/' | '#') => (
            "a comment, which JSON does not have",
            "remove the comments; `description` of the section `environment` is for people",
        ),
        (_, '\'') => ("single quotes", "write double quotes (\")"),
        ("key must be a string", '}' | ']' | ',') => (
            "a key is missing",
            "write a key and its value, or remove it",
        ),
        ("key must be a string", _) => ("a key without double quotes", QUOTES),
        ("expected value", 'T' | 'F' | 'N' | 'y' | 'n' | 'o' | 'u') | ("expected ident", _) => (
            "a word that JSON does not know",
            "write true, false or null, or put a text in double quotes",
        ),
        ("expected value", c) if c.is_alphabetic() => ("a text without double quotes", QUOTES),
        ("expected value", '}' | ']' | ',') => {
            ("a value is missing", "write a value, or remove the key")
        }
        ("expected `:`", _) => (
            "no colon after a key",
            "write a colon between key and value",
        ),
        (message, _) if message.starts_with("expected `,`") => (
            "no comma between two entries",
            "add a comma after the entry before; write \\\" for a quote inside of a text",
        ),
        (message, _) if message.starts_with("control character") => (
            "a line break or a control character inside of a text",
            "close the text with a double quote, or write \\n for a line break in it",
        ),
        (message, _) if message.contains("escape") => (
            "a backslash that JSON does not know",
            "write \\\\ for each backslash of a text",
        ),
        ("trailing characters", _) => (
            "something after the end of the JSON",
            "remove what follows the last brace",
        ),
        (message, _) => (message, "fix the file there, or just before it"),
    }
}

/// The byte at which the parser's line and column are. It counts columns in bytes, from 1.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    let mut at = (before + column.saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl Place {
    fn new(text: &str, at: usize) -> Self {
        /// How much of a long line is shown.
        const BEFORE: usize = 50;
        const AFTER: usize = 20;
        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end = text[at..]
            .find('\n')
            .map_or(text.len(), |newline| at + newline);
        let column = text[start..at].chars().count();
        let skipped = column.saturating_sub(BEFORE);
        let window: Vec<char> = text[start..end]
            .trim_end()
            .chars()
            .skip(skipped)
            .take(BEFORE + AFTER)
            .collect();
        let indent = (window.iter().take(column - skipped))
            .take_while(|c| c.is_whitespace())
            .count();
        Self {
            line: text[..start].matches('\n').count() + 1,
            column: column + 1,
            shown: masked(&window[indent..]),
            before: column - skipped - indent,
        }
    }
}

/// A part of a line without what may be a secret, of the same length.
fn masked(part: &[char]) -> String {
    const KEPT: &str = "{}[],:\"'";
    let mut shown: String = part
        .iter()
        .map(|&c| match c {
            c if KEPT.contains(c) || is_typographic_quote(c) => c,
            c if c.is_whitespace() => ' ',
            _ => 'x',
        })
        .collect();
    // What opens a line opens a comment there, not a text.
    for comment in ["//", "/*", "#"] {
        let length = comment.len();
        if part.iter().take(length).copied().eq(comment.chars()) {
            shown.replace_range(..length, comment);
        }
    }
    let text: String = part.iter().collect();
    if !text.is_ascii() {
        return shown;
    }
    let is_letter = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut at = 0;
    while let Some(open) = text[at..].find('"').map(|quote| at + quote + 1) {
        let length = text[open..].find(|c| !is_letter(c)).unwrap_or(0);
        let rest = text[open + length..].strip_prefix('"');
        let is_key = rest.is_some_and(|rest| rest.trim_start().starts_with(':'));
        let word = &text[open..open + length];
        if is_key && schema::knows_key(word) {
            shown.replace_range(open..open + length, word);
        }
        at = open;
    }
    shown
}
