//! The JSON Schema (draft 2020-12) of the file, made from the list of keys, for editors and for CI.

use serde_json::{Map, Value, json};

use super::facts::Facts;
use super::peer::ControlFile;
use super::problem::Problems;
use super::section::{Fallback, Key, Kind};
use super::shape::Shape;
use super::tree::{What, parse};
use super::{Config, collect};

/// The schema of the configuration.
pub fn configuration() -> Value {
    whole(&Config::shape(), "Outrigger's configuration")
}

/// The schema of a control file.
pub fn control_file() -> Value {
    whole(&ControlFile::shape(), "Outrigger's control file")
}

fn whole(shape: &Shape, title: &str) -> Value {
    let mut definitions = Map::new();
    // A variable can stand in any scalar; what it becomes is checked by `outrigger check`.
    definitions
        .insert("variable".into(), json!({ "type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}" }));
    let root = of(shape, &mut definitions);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "$defs": definitions,
        "allOf": [root],
    })
}

fn of(shape: &Shape, definitions: &mut Map<String, Value>) -> Value {
    match shape {
        Shape::Scalar { name, expected, pattern, range, .. } => {
            let name = range.map_or_else(|| (*name).to_owned(), |(min, max)| format!("{name}-{min}-{max}"));
            let text = if pattern.is_empty() {
                json!({ "type": "string" })
            } else {
                json!({ "type": "string", "pattern": pattern })
            };
            let plain = match range {
                Some((min, max)) => json!({ "type": "integer", "minimum": min, "maximum": max }),
                // A name such as 7 or 1.10 reaches a validator as a number; for us it stays text.
                None => text,
            };
            let definition = json!({ "description": expected, "anyOf": [plain, { "$ref": "#/$defs/variable" }] });
            definitions.insert(name.clone(), definition);
            reference(&name)
        }
        Shape::Words(words) => json!({ "anyOf": [{ "enum": values(words) }, { "$ref": "#/$defs/variable" }] }),
        Shape::Or(word, other) => json!({ "anyOf": [{ "enum": values(&[word]) }, of(other, definitions)] }),
        Shape::List(item) => json!({ "type": "array", "items": of(item, definitions) }),
        Shape::OneOrMore(item) => {
            let item = of(item, definitions);
            json!({ "anyOf": [item, { "type": "array", "minItems": 1, "items": item }] })
        }
        Shape::Named(item) => json!({
            "type": "object",
            "propertyNames": { "pattern": collect::NAME_PATTERN },
            "additionalProperties": of(item, definitions),
        }),
        Shape::Section { name, about, keys, short } => {
            let section = section(about, keys, definitions);
            let short = short.and_then(|short| keys.iter().find(|key| key.name == short));
            let definition = match short {
                Some(key) => json!({ "anyOf": [of(&(key.shape)(), definitions), section] }),
                None => section,
            };
            definitions.insert((*name).to_owned(), definition);
            reference(name)
        }
    }
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

/// Words as a YAML 1.2 or 1.1 reader hands them to a validator: `true` and `off` may be booleans there.
fn values(words: &[&str]) -> Vec<Value> {
    let mut values: Vec<Value> = words.iter().map(|word| json!(word)).collect();
    values.extend(words.iter().filter_map(|word| match *word {
        "true" => Some(json!(true)),
        "false" | "off" => Some(json!(false)),
        _ => None,
    }));
    values
}

fn section(about: &[&str], keys: &[Key], definitions: &mut Map<String, Value>) -> Value {
    let mut properties = Map::new();
    for key in keys {
        let mut property = of(&(key.shape)(), definitions);
        if let Some(fields) = property.as_object_mut() {
            fields.insert("description".into(), json!(key.about()));
            if let Fallback::Is(_) | Fallback::Asks(_) = key.fallback {
                fields.insert("default".into(), default(&key.fallback.text(&Facts::PLAIN)));
            }
        }
        properties.insert(key.name.to_owned(), property);
    }
    let required: Vec<_> =
        keys.iter().filter(|key| matches!(key.fallback, Fallback::Required(_))).map(|key| key.name).collect();
    json!({
        "description": about.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "),
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": required,
    })
}

/// A default in JSON.
fn default(text: &str) -> Value {
    let mut problems = Problems::new("default");
    parse(text, &mut problems).map_or(Value::Null, |node| plain(&node.what))
}

fn plain(what: &What<'_>) -> Value {
    match what {
        What::Text(text) => match (text.parse::<u64>(), text.parse::<bool>()) {
            (Ok(number), _) => json!(number),
            (_, Ok(truth)) => json!(truth),
            _ => json!(text),
        },
        What::List(items) => items.iter().map(|item| plain(&item.what)).collect(),
        What::Map(entries) => entries.iter().map(|entry| (entry.key.to_string(), plain(&entry.value.what))).collect(),
        What::Null | What::Broken | What::Expanded(..) => Value::Null,
    }
}
