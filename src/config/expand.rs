//! `${NAME}` and `${NAME:-default}` in scalar values, so that one file serves several places; never in keys, no nesting.
//!
//! The variables come from the caller (`main.rs` reads the environment). `$${` stands for a plain `${`.

use std::borrow::Cow;

use super::problem::{Problems, excerpt};
use super::tree::{Node, Trail, What};

/// Where variables come from.
pub type Variables<'e> = &'e dyn Fn(&str) -> Option<String>;

/// Expands every scalar below `node`; what cannot be expanded is reported and left broken.
pub fn expand(node: &mut Node<'_>, trail: &Trail<'_>, variables: Variables<'_>, problems: &mut Problems) {
    match &mut node.what {
        What::List(items) => {
            for (n, item) in items.iter_mut().enumerate() {
                expand(item, &trail.item(n), variables, problems);
            }
        }
        What::Map(entries) => {
            for entry in entries {
                expand(&mut entry.value, &trail.key(&entry.key), variables, problems);
            }
        }
        What::Text(text) if text.contains("${") => match expanded(text, variables) {
            Ok((text, Some(names))) => node.what = What::Expanded(text, names.into()),
            Ok((plain, None)) => *text = Cow::Owned(plain),
            Err(wrong) => {
                problems.error(trail, node.at, wrong, None);
                node.what = What::Broken;
            }
        },
        _ => {}
    }
}

/// The text with its variables filled in and the names of those that the environment gave.
fn expanded(text: &str, variables: Variables<'_>) -> Result<(String, Option<String>), String> {
    let (mut out, mut used, mut rest) = (String::with_capacity(text.len()), None::<String>, text);
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some((inside, after)) = after.split_once('}') else {
            return Err(format!("`${{` without `}}` in `{}`; a plain `${{` is written `$${{`", excerpt(text)));
        };
        let (name, fallback) = match inside.split_once(":-") {
            Some((name, fallback)) => (name, Some(fallback)),
            None => (inside, None),
        };
        if !is_name(name) {
            return Err(format!("expected `${{NAME}}` or `${{NAME:-default}}`, found `${{{}}}`", excerpt(inside)));
        }
        match (variables(name).filter(|value| !value.is_empty() || fallback.is_none()), fallback) {
            (Some(value), _) => {
                out.push_str(&value);
                used = Some(used.map_or_else(|| name.to_owned(), |used| format!("{used}, {name}")));
            }
            (None, Some(fallback)) => out.push_str(fallback),
            (None, None) => {
                return Err(format!(
                    "the variable {name} is not set: set it, or give a default: `${{{name}:-default}}`"
                ));
            }
        }
        rest = after;
    }
    out.push_str(rest);
    Ok((out, used))
}

fn is_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db".into()),
            "PORT" => Some("5432".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_fill_in_and_defaults_stand_in() {
        for (text, expect, used) in [
            ("${HOST}:${PORT}", "db:5432", Some("HOST, PORT")),
            ("x${HOST:-y}z", "xdbz", Some("HOST")),
            ("${NONE:-y}", "y", None),
            ("${NONE:-}", "", None),
            ("${EMPTY:-y}", "y", None),
            ("${EMPTY}", "", Some("EMPTY")),
            ("$${HOST} $5 $", "${HOST} $5 $", None),
            ("${NONE:-a:-b}", "a:-b", None),
        ] {
            let (out, names) = expanded(text, &variable).unwrap();
            assert_eq!((out.as_str(), names.as_deref()), (expect, used), "{text}");
        }
        for text in ["${NONE}", "${HOST", "${}", "${1A}", "${A B}", "${HOST-x}"] {
            assert!(expanded(text, &variable).is_err(), "{text}");
        }
    }
}
