//! What a section of the file is made of: `section!` turns one list of keys into the type, its reader, its defaults,
//! its page of the reference, its JSON Schema and its lines in `outrigger config`. So none of them can disagree.
//!
//! Readers never stop at a problem: they note it, let the default stand in and read on, so that all are shown at once.

use std::borrow::Cow;

use super::facts::Facts;
use super::kind::{Kind, Origin, Reader, Set};
use super::problem::{Problems, excerpt, nearest};
use super::shape::{Printed, Shape};
use super::tree::{Entry, Mark, Node, Trail, What, parse};

/// What holds where the file says nothing.
#[derive(Clone, Copy)]
pub enum Fallback {
    /// This text.
    Is(&'static str),
    /// What the machine says.
    Asks(fn(&Facts) -> Cow<'static, str>),
    /// What other keys say; the text is what they would say in `config/full.yaml`.
    Follows(&'static str),
    /// Nothing; the text is an example.
    Unset(&'static str),
    /// Nothing, though `config/full.yaml` gives this example.
    Sample(&'static str),
    /// A problem; the text is an example.
    Required(&'static str),
}

impl Fallback {
    /// The default, or the example where there is none.
    pub fn text(self, facts: &Facts) -> Cow<'static, str> {
        match self {
            Self::Asks(ask) => ask(facts),
            Self::Is(text) | Self::Follows(text) | Self::Unset(text) | Self::Sample(text) | Self::Required(text) => {
                text.into()
            }
        }
    }
}

/// One key of a section.
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it is for, line by line.
    pub doc: &'static [&'static str],
    /// What holds without it.
    pub fallback: Fallback,
    /// What its values look like.
    pub shape: fn() -> Shape,
}

impl Key {
    /// What it is for, as one line.
    pub fn about(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// A place in a type for one key.
pub trait Field: Sized {
    /// What its values look like.
    fn shape() -> Shape;
    /// Fills it from what the section says, or from the fallback; `None` only if the fallback itself is broken.
    fn fill(said: Option<&Node<'_>>, key: &str, fallback: Fallback, around: &mut Around<'_, '_>) -> Option<Self>;
    /// Writes it back; `None` where nothing is set.
    fn print(&self) -> Option<(Printed, Origin)>;
}

/// The section that a field stands in.
pub struct Around<'a, 'r> {
    trail: &'a Trail<'a>,
    at: Option<Mark>,
    reader: &'a mut Reader<'r>,
}

impl<T: Kind> Field for Set<T> {
    fn shape() -> Shape {
        T::shape()
    }

    fn fill(said: Option<&Node<'_>>, key: &str, fallback: Fallback, around: &mut Around<'_, '_>) -> Option<Self> {
        let trail = around.trail.key(key);
        if let Some(set) = said.and_then(|node| Self::read(node, &trail, around.reader)) {
            return Some(set);
        }
        let text = fallback.text(around.reader.facts);
        let node = unwritten(&text, around.reader.problems)?;
        Self::read(&node, &trail, around.reader)
    }

    fn print(&self) -> Option<(Printed, Origin)> {
        Some((self.value.print(), self.origin.clone()))
    }
}

impl<T: Kind> Field for Option<Set<T>> {
    fn shape() -> Shape {
        T::shape()
    }

    fn fill(said: Option<&Node<'_>>, key: &str, fallback: Fallback, around: &mut Around<'_, '_>) -> Option<Self> {
        let trail = around.trail.key(key);
        match (said, fallback) {
            (Some(node), _) => Some(Set::read(node, &trail, around.reader)),
            (None, Fallback::Required(example)) => {
                let text = format!("is missing: expected {}, such as `{example}`", T::shape().expected());
                around.reader.problems.error(trail, around.at, text, None);
                Some(None)
            }
            (None, _) => Some(None),
        }
    }

    fn print(&self) -> Option<(Printed, Origin)> {
        self.as_ref().and_then(Field::print)
    }
}

/// A default as a tree without places.
fn unwritten<'t>(text: &'t str, problems: &mut Problems) -> Option<Node<'t>> {
    let what = match text {
        "{}" => What::Map(Vec::new()),
        "[]" => What::List(Vec::new()),
        _ if text.starts_with(['[', '{', '"']) => {
            let mut node = parse(text, problems)?;
            forget(&mut node);
            node.what
        }
        _ => What::Text(text.into()),
    };
    Some(Node { at: None, what })
}

fn forget(node: &mut Node<'_>) {
    node.at = None;
    match &mut node.what {
        What::List(items) => items.iter_mut().for_each(forget),
        What::Map(entries) => entries.iter_mut().for_each(|entry| forget(&mut entry.value)),
        _ => {}
    }
}

/// A type made by `section!`.
pub trait Section: Sized {
    /// What it is for, line by line.
    const ABOUT: &'static [&'static str];
    /// The key that a scalar in place of the section stands for.
    const SHORT: Option<&'static str>;
    /// Its keys, in the order of the reference.
    fn keys() -> &'static [Key];
    /// Takes each key from the fields.
    fn take(fields: &mut Fields<'_, '_, '_>) -> Option<Self>;
    /// Each key that is set, in the order of the reference.
    fn fields(&self) -> Vec<(&'static str, Printed, Origin)>;
}

/// The entries of a mapping while a section takes its keys from them.
pub struct Fields<'f, 't, 'r> {
    entries: Vec<Option<&'f Entry<'t>>>,
    around: Around<'f, 'r>,
}

impl Fields<'_, '_, '_> {
    /// Takes one key.
    pub fn take<F: Field>(&mut self, key: &str, fallback: Fallback) -> Option<F> {
        let entry = self.entries.iter_mut().find(|entry| entry.is_some_and(|entry| entry.key == key));
        let said = entry.and_then(Option::take).map(|entry| &entry.value);
        F::fill(said, key, fallback, &mut self.around)
    }

    /// Reports the keys that nobody took.
    fn refuse_rest(self, keys: &[Key]) {
        let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
        for entry in self.entries.into_iter().flatten().filter(|entry| entry.key != "<<") {
            let near = nearest(&entry.key, names.iter().copied());
            let mut text = format!("unknown key `{}`", excerpt(&entry.key));
            if near.is_none() {
                text.push_str(&format!("; known here: {}", names.join(", ")));
            }
            let trail = self.around.trail.key(&entry.key);
            self.around.reader.problems.error(trail, entry.at, text, near.map(str::to_owned));
        }
    }
}

/// Reads a section; what `section!` makes of `Kind::read`.
pub fn read_section<S: Section>(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<S> {
    let short;
    let entries = match (&node.what, S::SHORT) {
        (What::Map(entries), _) => entries.iter().map(Some).collect(),
        (What::Text(_) | What::Expanded(..), Some(key)) => {
            short = Entry { key: key.into(), at: node.at, value: node.clone() };
            vec![Some(&short)]
        }
        _ => return reader.mismatch(node, trail, &section_expected::<S>()),
    };
    let mut fields = Fields { entries, around: Around { trail, at: node.at, reader } };
    let section = S::take(&mut fields);
    fields.refuse_rest(S::keys());
    section
}

fn section_expected<S: Section>() -> String {
    let names: Vec<_> = S::keys().iter().map(|key| key.name).collect();
    format!("a mapping with keys of {}", names.join(", "))
}

/// Makes the type of a section and all that follows from its list of keys.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident $(= $short:literal)? {
            $( $(#[doc = $doc:literal])+ $field:ident $key:literal : $type:ty = $fallback:ident($value:expr); )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug)]
        pub struct $name { $( $(#[doc = $doc])+ pub $field: $type, )+ }

        impl $crate::config::section::Section for $name {
            const ABOUT: &'static [&'static str] = &[$($about),+];
            const SHORT: Option<&'static str> = [$(Some($short),)? None][0];

            fn keys() -> &'static [$crate::config::section::Key] {
                use $crate::config::section::{Fallback, Field, Key};
                const { &[$( Key {
                    name: $key,
                    doc: &[$($doc),+],
                    fallback: Fallback::$fallback($value),
                    shape: <$type as Field>::shape,
                } ),+] }
            }

            fn take(fields: &mut $crate::config::section::Fields<'_, '_, '_>) -> Option<Self> {
                use $crate::config::section::Fallback;
                // Every key is taken before any `?`, so that the problems of all of them are found.
                $( let $field = fields.take($key, Fallback::$fallback($value)); )+
                Some(Self { $( $field: $field?, )+ })
            }

            fn fields(
                &self,
            ) -> Vec<(&'static str, $crate::config::shape::Printed, $crate::config::kind::Origin)> {
                use $crate::config::section::Field;
                [$( ($key, self.$field.print()) ),+]
                    .into_iter()
                    .filter_map(|(key, said)| said.map(|(printed, origin)| (key, printed, origin)))
                    .collect()
            }
        }

        impl $crate::config::kind::Kind for $name {
            fn shape() -> $crate::config::shape::Shape {
                use $crate::config::section::Section;
                $crate::config::shape::Shape::Section {
                    name: stringify!($name),
                    about: Self::ABOUT,
                    keys: Self::keys(),
                    short: Self::SHORT,
                }
            }

            fn read(
                node: &$crate::config::tree::Node<'_>,
                trail: &$crate::config::tree::Trail<'_>,
                reader: &mut $crate::config::kind::Reader<'_>,
            ) -> Option<Self> {
                $crate::config::section::read_section(node, trail, reader)
            }

            fn print(&self) -> $crate::config::shape::Printed {
                $crate::config::shape::Printed::Map(
                    $crate::config::section::Section::fields(self)
                        .into_iter()
                        .map(|(key, printed, origin)| (key.to_owned(), printed, origin))
                        .collect(),
                )
            }
        }
    };
}
pub(crate) use section;
