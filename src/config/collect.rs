//! Kinds made of other kinds: lists, named things, and "this word or a value".

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use super::kind::{Kind, Origin, Reader, Scalar, Set, Wrong};
use super::shape::{Printed, Shape};
use super::tree::{Node, Trail, What};

/// A list.
#[derive(Clone, Debug)]
pub struct List<T>(pub Vec<Set<T>>);

/// A list, or one item without the brackets; never empty.
#[derive(Clone, Debug)]
pub struct OneOrMore<T>(pub Vec<Set<T>>);

/// Things under names of the user's choice, in the order of the file.
#[derive(Clone, Debug)]
pub struct Named<T>(pub Vec<(String, Set<T>)>);

/// Things under any texts that are not empty, in the order of the file.
#[derive(Clone, Debug)]
pub struct Keyed<T>(pub Vec<(String, Set<T>)>);

/// A value, or the word `any` for no condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrAny<T>(pub Option<T>);

/// A value, or the word `off` for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrOff<T>(pub Option<T>);

/// A machine with its numbers, `on` for those it has by default, or `off`.
#[derive(Clone, Debug)]
pub struct Switch<T>(pub Option<T>);

/// A value, or the word `none` for no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrNone<T>(pub Option<T>);

/// A value, or the word `all` for every one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrAll<T>(pub Option<T>);

/// A value, or the word `system` for what the system has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrSystem<T>(pub Option<T>);

/// A value, or the word `on` for that of the environment; where that is set it stands in before anything is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrOn<T>(pub Option<T>);

/// A value, or the word `source` for the caller's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrSource<T>(pub Option<T>);

/// Free text under free keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs(pub Vec<(String, String)>);

fn items<T: Kind>(nodes: &[Node<'_>], trail: &Trail<'_>, reader: &mut Reader<'_>) -> Vec<Set<T>> {
    nodes.iter().enumerate().filter_map(|(n, node)| Set::read(node, &trail.item(n), reader)).collect()
}

fn printed<T: Kind>(items: &[Set<T>]) -> Printed {
    Printed::List(items.iter().map(|item| item.value.print()).collect())
}

impl<T: Kind> Kind for List<T> {
    fn shape() -> Shape {
        Shape::List(Box::new(T::shape()))
    }

    fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.what {
            What::List(nodes) => Some(Self(items(nodes, trail, reader))),
            _ => reader.mismatch(node, trail, &Self::shape().expected()),
        }
    }

    fn print(&self) -> Printed {
        printed(&self.0)
    }
}

impl<T: Kind> Kind for OneOrMore<T> {
    fn shape() -> Shape {
        Shape::OneOrMore(Box::new(T::shape()))
    }

    fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.what {
            What::List(nodes) if nodes.is_empty() => {
                reader.problems.error(
                    trail,
                    node.at,
                    format!("expected {}, found an empty list", T::shape().expected()),
                    None,
                );
                None
            }
            What::List(nodes) => Some(Self(items(nodes, trail, reader))),
            _ => Set::read(node, trail, reader).map(|one| Self(vec![one])),
        }
    }

    fn print(&self) -> Printed {
        match self.0.as_slice() {
            [one] => one.value.print(),
            several => printed(several),
        }
    }
}

impl<T: Kind> Kind for Named<T> {
    fn shape() -> Shape {
        Shape::Named(Box::new(T::shape()))
    }

    fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let expected =
            "expected a name of at most 63 letters, digits, `-`, `_` or `.`, beginning with a letter or digit";
        keyed(node, trail, reader, (Self::shape(), is_name, expected)).map(Self)
    }

    fn print(&self) -> Printed {
        printed_map(&self.0)
    }
}

impl<T: Kind> Kind for Keyed<T> {
    fn shape() -> Shape {
        Shape::Keyed(Box::new(T::shape()))
    }

    fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        keyed(node, trail, reader, (Self::shape(), |key| !key.is_empty(), "expected a text that is not empty"))
            .map(Self)
    }

    fn print(&self) -> Printed {
        printed_map(&self.0)
    }
}

/// The entries of a mapping whose keys pass a test.
fn keyed<T: Kind>(
    node: &Node<'_>,
    trail: &Trail<'_>,
    reader: &mut Reader<'_>,
    (shape, fits, expected): (Shape, fn(&str) -> bool, &str),
) -> Option<Vec<(String, Set<T>)>> {
    let What::Map(entries) = &node.what else {
        return reader.mismatch(node, trail, &shape.expected());
    };
    let mut named = Vec::with_capacity(entries.len());
    for entry in entries {
        let trail = trail.key(&entry.key);
        if !fits(&entry.key) {
            reader.problems.error(trail, entry.at, expected, None);
        }
        if let Some(set) = Set::read(&entry.value, &trail, reader) {
            named.push((entry.key.to_string(), set));
        }
    }
    Some(named)
}

fn printed_map<T: Kind>(entries: &[(String, Set<T>)]) -> Printed {
    let entry = |(name, set): &(String, Set<T>)| (name.clone(), set.value.print(), set.origin.clone());
    Printed::Map(entries.iter().map(entry).collect())
}

/// What [`is_name`] accepts, as a regular expression.
pub const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$";

/// Whether a text can name a service or a peer: it becomes a metric's label, a host name and part of a log line.
pub fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.len() <= 63 && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) && text.bytes().all(inner)
}

macro_rules! or_word {
    ($name:ident, $word:literal) => {
        impl<T: Kind> Kind for $name<T> {
            fn shape() -> Shape {
                Shape::Or($word, Box::new(T::shape()))
            }

            fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
                match &node.what {
                    What::Text(text) if text == $word => Some(Self(None)),
                    What::Expanded(text, _) if text == $word => Some(Self(None)),
                    What::Null => reader.mismatch(node, trail, &Self::shape().expected()),
                    _ => T::read(node, trail, reader).map(|value| Self(Some(value))),
                }
            }

            fn print(&self) -> Printed {
                self.0.as_ref().map_or_else(|| Printed::Scalar($word.to_owned()), Kind::print)
            }
        }
    };
}
or_word!(OrAny, "any");
or_word!(OrOff, "off");
or_word!(OrNone, "none");
or_word!(OrAll, "all");
or_word!(OrSystem, "system");
or_word!(OrSource, "source");
or_word!(OrOn, "on");

impl<T: Kind> Kind for Switch<T> {
    fn shape() -> Shape {
        Shape::Or("off", Box::new(Shape::Or("on", Box::new(T::shape()))))
    }

    fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let word = match &node.what {
            What::Text(text) => &**text,
            What::Expanded(text, _) => text,
            What::Map(_) => return T::read(node, trail, reader).map(|value| Self(Some(value))),
            _ => return reader.mismatch(node, trail, &Self::shape().expected()),
        };
        match word {
            "off" => Some(Self(None)),
            "on" => {
                let empty = Node { at: node.at, what: What::Map(Vec::new()) };
                T::read(&empty, trail, reader).map(|value| Self(Some(value)))
            }
            _ => reader.mismatch(node, trail, &Self::shape().expected()),
        }
    }

    fn print(&self) -> Printed {
        self.0.as_ref().map_or_else(|| Printed::Scalar("off".to_owned()), Kind::print)
    }
}

/// Any text; what [`Pairs`] hold.
struct AnyText;

impl Scalar for AnyText {
    const NAME: &'static str = "text";

    fn expected() -> String {
        "a text".into()
    }

    fn pattern() -> String {
        String::new()
    }

    fn parse(_: &str) -> Result<Self, Wrong> {
        Ok(Self)
    }

    fn write(&self) -> String {
        String::new()
    }
}

impl Kind for Pairs {
    fn shape() -> Shape {
        Shape::Named(Box::new(AnyText::shape()))
    }

    fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let What::Map(entries) = &node.what else {
            return reader.mismatch(node, trail, &Self::shape().expected());
        };
        let mut facts = Vec::with_capacity(entries.len());
        for entry in entries {
            match &entry.value.what {
                What::Text(text) => facts.push((entry.key.to_string(), text.to_string())),
                What::Expanded(text, _) => facts.push((entry.key.to_string(), text.clone())),
                _ => reader.mismatch::<()>(&entry.value, &trail.key(&entry.key), "a text").unwrap_or_default(),
            }
        }
        Some(Self(facts))
    }

    fn print(&self) -> Printed {
        let entry = |(key, text): &(String, String)| (key.clone(), Printed::Scalar(text.clone()), Origin::Default);
        Printed::Map(self.0.iter().map(entry).collect())
    }
}

/// Every item that is the same by `key` as an earlier one, after the earlier one.
pub fn twice<T, K: Eq + Hash>(items: &[Set<T>], key: impl Fn(&T) -> K) -> Vec<(&Set<T>, &Set<T>)> {
    let mut first: HashMap<K, &Set<T>> = HashMap::with_capacity(items.len());
    let mut pairs = Vec::new();
    for item in items {
        match first.entry(key(&item.value)) {
            Entry::Occupied(before) => pairs.push((*before.get(), item)),
            Entry::Vacant(free) => {
                free.insert(item);
            }
        }
    }
    pairs
}
