//! What a verified token says, and what a rule asks of it.

use serde_json::{Map, Value};

use super::matching::TextMatch;

/// The claims whose text is a list of words (RFC 8693 §4.2, RFC 9068 §2.2.3; `scp` is what some issuers call it).
const WORDS: [&str; 2] = ["scope", "scp"];

/// The claims of a token whose signature, issuer, audience and times were found good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(pub Map<String, Value>);

/// What one claim must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRule {
    /// Its name; where there is none of this name, dots lead into it.
    pub name: String,
    /// One of these must hold.
    pub texts: Vec<TextMatch>,
}

impl ClaimRule {
    /// Whether these claims say it.
    pub fn holds(&self, claims: &Claims) -> bool {
        let found = self.find(&claims.0).filter(|value| !value.is_null());
        let said = found.map(said).unwrap_or_default();
        self.texts.iter().any(|text| match text {
            TextMatch::Present(there) => found.is_some() == *there,
            text if WORDS.contains(&self.last()) => holds_words(text, &said),
            text => said.iter().any(|one| text.holds(one)),
        })
    }

    fn find<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c Value> {
        if let Some(whole) = claims.get(&self.name) {
            return Some(whole);
        }
        let mut steps = self.name.split('.');
        let first = claims.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    }

    fn last(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// The claim that a rule's name is looked up in: all that need be kept of a token for it.
pub fn root<'c>(name: &str, claims: &'c Map<String, Value>) -> Option<(&'c String, &'c Value)> {
    let first = || claims.get_key_value(name.split('.').next().unwrap_or_default());
    claims.get_key_value(name).or_else(first)
}

/// A claim's texts: its own, or those of its list; what is no text is taken as JSON writes it.
fn said(value: &Value) -> Vec<String> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    match value {
        Value::Array(items) => items.iter().filter_map(scalar).collect(),
        value => scalar(value).into_iter().collect(),
    }
}

/// Among words separated by spaces one must be meant; of an exact text with several words, all of them must be there.
fn holds_words(text: &TextMatch, said: &[String]) -> bool {
    let words = || said.iter().flat_map(|one| one.split(' ')).filter(|word| !word.is_empty());
    match text {
        TextMatch::Exact(wanted) => {
            let mut wanted = wanted.split(' ').filter(|word| !word.is_empty()).peekable();
            wanted.peek().is_some() && wanted.all(|one| words().any(|word| word == one))
        }
        text => words().any(|word| text.holds(word)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims() -> Claims {
        let Value::Object(map) = json!({
            "sub": "ann b",
            "scope": "orders.read  orders.write",
            "scp": ["a", "b c"],
            "groups": ["ops", 7, null, ["deep"]],
            "email_verified": true,
            "level": 3,
            "nothing": null,
            "realm_access": { "roles": ["admin"], "a.b": 1 },
            "https://shop.test/roles": ["owner"],
            "a": { "b": "nested" },
            "a.b": "whole",
        }) else {
            panic!("an object")
        };
        Claims(map)
    }

    fn exact(text: &str) -> TextMatch {
        TextMatch::Exact(text.into())
    }

    #[test]
    fn a_claim_is_compared_as_what_it_is() {
        for (name, text, expect) in [
            ("sub", "ann b", true),
            ("sub", "ann", false),
            ("sub", "Ann b", false),
            ("scope", "orders.write", true),
            ("scope", "orders.write orders.read", true),
            ("scope", "orders.write orders.none", false),
            ("scope", "orders", false),
            ("scope", "", false),
            ("scp", "c", true),
            ("groups", "ops", true),
            ("groups", "7", true),
            ("groups", "deep", false),
            ("email_verified", "true", true),
            ("email_verified", "yes", false),
            ("level", "3", true),
            ("level", "3.0", false),
            ("nothing", "null", false),
            ("realm_access.roles", "admin", true),
            ("realm_access", "admin", false),
            ("realm_access.a.b", "1", false),
            ("https://shop.test/roles", "owner", true),
            ("a.b", "whole", true),
            ("a.b", "nested", false),
            ("groups.0", "ops", false),
        ] {
            let rule = ClaimRule { name: name.into(), texts: vec![exact("other"), exact(text)] };
            assert_eq!(rule.holds(&claims()), expect, "{name}: {text}");
        }
    }

    #[test]
    fn presence_means_something_other_than_null() {
        for (name, expect) in [("sub", true), ("nothing", false), ("absent", false), ("realm_access", true)] {
            let rule = |there| ClaimRule { name: name.into(), texts: vec![TextMatch::Present(there)] };
            assert_eq!((rule(true).holds(&claims()), rule(false).holds(&claims())), (expect, !expect), "{name}");
        }
        let rule = ClaimRule { name: "sub".into(), texts: vec![TextMatch::Prefix("ann".into())] };
        assert!(rule.holds(&claims()));
    }
}
