//! The JSON Schema (draft 2020-12) of the file, made from the list of keys, for editors and for CI.

use serde_json::{Map, Value, json};

use super::facts::Facts;
use super::kind::Kind;
use super::peer::ControlFile;
use super::problem::Problems;
use super::section::{Fallback, Key};
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
            let plain = match range {
                Some((min, max)) => json!({ "type": "integer", "minimum": min, "maximum": max }),
                // Free text such as 1.10 reaches a validator as a number; for us it stays text.
                None if pattern.is_empty() => json!({ "type": ["string", "number", "boolean"] }),
                None => json!({ "type": "string", "pattern": pattern }),
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
        Shape::Keyed(item) => json!({
            "type": "object",
            "propertyNames": { "minLength": 1 },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::section::Section;

    /// Says where `value` breaks `schema`; knows exactly the keywords that schemas here use.
    fn check(schema: &Value, value: &Value, root: &Value, at: &str) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{at}: {what}: {value}"));
        for (keyword, rule) in schema.as_object().unwrap() {
            let fine = match keyword.as_str() {
                "$schema" | "$defs" | "title" | "description" | "default" => true,
                "$ref" => {
                    let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                    check(&root["$defs"][name], value, root, at)?;
                    true
                }
                "allOf" => {
                    rule.as_array().unwrap().iter().try_for_each(|one| check(one, value, root, at))?;
                    true
                }
                "anyOf" => {
                    let tried: Vec<_> =
                        rule.as_array().unwrap().iter().map(|one| check(one, value, root, at)).collect();
                    if tried.iter().all(Result::is_err) {
                        return Err(tried.into_iter().filter_map(Result::err).collect::<Vec<_>>().join(" | "));
                    }
                    true
                }
                "enum" => rule.as_array().unwrap().contains(value),
                "type" => match rule.as_str().unwrap_or("scalar") {
                    "scalar" => !(value.is_object() || value.is_array() || value.is_null()),
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_u64(),
                    other => panic!("the type {other}"),
                },
                "minimum" => value.as_u64().is_none_or(|number| number >= rule.as_u64().unwrap()),
                "maximum" => value.as_u64().is_none_or(|number| number <= rule.as_u64().unwrap()),
                "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap()),
                "pattern" => {
                    let pattern = regex::Regex::new(rule.as_str().unwrap()).unwrap();
                    value.as_str().is_none_or(|text| pattern.is_match(text))
                }
                "items" => {
                    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                        check(rule, item, root, &format!("{at}[{n}]"))?;
                    }
                    true
                }
                "properties" => {
                    for (key, value) in value.as_object().into_iter().flatten() {
                        if let Some(rule) = rule.get(key) {
                            check(rule, value, root, &format!("{at}.{key}"))?;
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    for (key, value) in value.as_object().into_iter().flatten() {
                        let listed = schema.get("properties").is_some_and(|known| known.get(key).is_some());
                        match rule {
                            Value::Bool(false) if !listed => return Err(format!("{at}: unknown key {key}")),
                            rule if rule.is_object() => check(rule, value, root, &format!("{at}.{key}"))?,
                            _ => {}
                        }
                    }
                    true
                }
                "propertyNames" => {
                    for key in value.as_object().into_iter().flatten().map(|(key, _)| key) {
                        check(rule, &json!(key), root, at)?;
                    }
                    true
                }
                "required" => rule.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some()),
                other => panic!("the keyword {other} is not known to this test"),
            };
            if !fine {
                return wrong(keyword);
            }
        }
        Ok(())
    }

    fn validate(schema: &Value, text: &str) -> Result<(), String> {
        let mut problems = Problems::new("f");
        let node = parse(text, &mut problems).unwrap();
        check(schema, &plain(&node.what), schema, "")
    }

    #[test]
    fn the_shipped_examples_validate() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config");
        let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}.yaml")).unwrap();
        for name in ["full", "minimal", "quickstart"] {
            validate(&configuration(), &read(name)).unwrap_or_else(|wrong| panic!("{name}{wrong}"));
        }
        validate(&control_file(), &read("peers")).unwrap_or_else(|wrong| panic!("{wrong}"));
    }

    #[test]
    fn every_default_and_every_example_validates() {
        fn walk(keys: &[Key], root: &Value) {
            for key in keys {
                let mut definitions = Map::new();
                let rule = of(&(key.shape)(), &mut definitions);
                let said = default(&key.fallback.text(&Facts::PLAIN));
                // A section's example may lack what it requires; its own keys are walked instead.
                match (key.shape)() {
                    Shape::Section { keys, .. } => walk(keys, root),
                    Shape::Named(item) | Shape::List(item) => {
                        if let Shape::Section { keys, .. } = *item {
                            walk(keys, root);
                        }
                        check(&rule, &said, root, key.name).unwrap();
                    }
                    _ => check(&rule, &said, root, key.name).unwrap(),
                }
            }
        }
        walk(Config::keys(), &configuration());
        walk(ControlFile::keys(), &control_file());
    }

    #[test]
    fn what_is_wrong_does_not_validate() {
        let schema = configuration();
        for text in [
            "{}",
            "service: x\nbogus: 1",
            "service: x\ngrace: 5",
            "service: x\nworkers: 0",
            "service: x\ninbound: { protocol: http3 }",
            "service: x\npeers: { a: { timeout: { connect: fast } } }",
            "service: x\npeers: { a b: {} }",
            "service: x\ninbound: { tls: { key: k } }",
            "service: x\ninbound: { listen: [] }",
        ] {
            assert!(validate(&schema, text).is_err(), "{text}");
        }
        validate(&schema, "service: x\ngrace: ${GRACE:-5s}\nadmin: off\nworkers: ${CPUS}").unwrap();
    }
}
