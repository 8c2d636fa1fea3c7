//! What the values of a key look like (`Shape`, from which the schema and the reference come), and a value written
//! back in the form of the file (`Printed`).

use super::kind::Origin;
use super::section::Key;

/// What the values of a key look like.
pub enum Shape {
    /// One word, number or text.
    Scalar {
        /// Its name in the JSON Schema.
        name: &'static str,
        /// What follows "expected" in a message.
        expected: String,
        /// A regular expression that all its texts match.
        pattern: String,
        /// The bounds of a whole number.
        range: Option<(u64, u64)>,
        /// Whether a text is one.
        accepts: fn(&str) -> bool,
    },
    /// One of these words.
    Words(&'static [&'static str]),
    /// This word, or something else.
    Or(&'static str, Box<Shape>),
    /// A list.
    List(Box<Shape>),
    /// A list, or one item without the brackets.
    OneOrMore(Box<Shape>),
    /// A mapping from names of the user's choice.
    Named(Box<Shape>),
    /// A mapping from any texts.
    Keyed(Box<Shape>),
    /// A mapping with these keys.
    Section {
        /// Its name in the JSON Schema.
        name: &'static str,
        /// What it is for.
        about: &'static [&'static str],
        /// Its keys.
        keys: &'static [Key],
        /// The key that a scalar in its place stands for.
        short: Option<&'static str>,
    },
}

impl Shape {
    /// What follows "expected" in a message.
    pub fn expected(&self) -> String {
        match self {
            Self::Scalar { expected, .. } => expected.clone(),
            Self::Words(words) => match words.split_last() {
                Some((last, rest)) if !rest.is_empty() => format!("`{}` or `{last}`", rest.join("`, `")),
                _ => format!("`{}`", words.concat()),
            },
            Self::Or(word, other) => format!("`{word}` or {}", other.expected()),
            Self::List(item) => format!("a list, each item {}", item.expected()),
            Self::OneOrMore(item) => format!("{}, or a list of such", item.expected()),
            Self::Named(item) => format!("a mapping from names, each to {}", item.expected()),
            Self::Keyed(item) => format!("a mapping from texts, each to {}", item.expected()),
            Self::Section { keys, .. } => {
                let names: Vec<_> = keys.iter().map(|key| key.name).collect();
                format!("a mapping with keys of {}", names.join(", "))
            }
        }
    }
}

/// A value in the form of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Printed {
    /// A scalar.
    Scalar(String),
    /// A list.
    List(Vec<Printed>),
    /// A mapping, each value with where it comes from.
    Map(Vec<(String, Printed, Origin)>),
}

impl Printed {
    /// The value on one line, as YAML's flow style has it; `inside` is whether it stands within brackets.
    pub fn flow(&self, inside: bool) -> String {
        match self {
            Self::Scalar(text) => quoted(text, inside),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(|item| item.flow(true)).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Map(entries) if entries.is_empty() => "{}".to_owned(),
            Self::Map(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|(key, value, _)| format!("{}: {}", quoted(key, true), value.flow(true)))
                    .collect();
                format!("{{ {} }}", entries.join(", "))
            }
        }
    }

    /// Whether it is written over several lines: a mapping, or a list with one in it.
    pub fn is_block(&self) -> bool {
        match self {
            Self::Scalar(_) => false,
            Self::List(items) => items.iter().any(Self::is_block),
            Self::Map(entries) => !entries.is_empty(),
        }
    }
}

/// A scalar as YAML reads it back, in double quotes only where it must.
pub fn quoted(text: &str, inside: bool) -> String {
    let null = matches!(text, "" | "~" | "null" | "Null" | "NULL" | "---" | "...");
    let first = text.starts_with(|c: char| "-?:,[]{}#&*!|>'\"%@`<= ".contains(c));
    let amid = text.contains(": ") || text.contains(" #") || text.ends_with([':', ' ']) || text.contains("${");
    let control = text.chars().any(|c| c.is_control() || c == '\u{feff}');
    let bracket = inside && text.contains([',', '[', ']', '{', '}']);
    if !(null || first || amid || control || bracket) {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for c in text.replace("${", "$${").chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() || c == '\u{feff}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_yaml_would_misread_is_quoted() {
        for (text, inside, expect) in [
            ("127.0.0.1:80", false, "127.0.0.1:80"),
            ("[::]:80", false, "\"[::]:80\""),
            ("*.x", false, "\"*.x\""),
            ("a,b", false, "a,b"),
            ("a,b", true, "\"a,b\""),
            ("", false, "\"\""),
            ("null", false, "\"null\""),
            ("a\"b: c", false, "\"a\\\"b: c\""),
            ("${X}", false, "\"$${X}\""),
            ("spiffe://shop/search", true, "spiffe://shop/search"),
        ] {
            assert_eq!(quoted(text, inside), expect);
        }
    }
}
