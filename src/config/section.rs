//! What a section of the file is made of: `section!` turns one list of keys into the type, its reader, its defaults,
//! its page of the reference, its JSON Schema and its lines in `outrigger config`. So none of them can disagree.
//!
//! Readers never stop at a problem: they note it, let the default stand in and read on, so that all are shown at once.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::facts::Facts;
use super::problem::{Problems, excerpt, nearest};
use super::shape::{Printed, Shape};
use super::tree::{Entry, Mark, Node, Trail, What, parse};

/// What readers need beside the tree.
pub struct Reader<'r> {
    /// What this machine adds to the file.
    pub facts: &'r Facts,
    /// Where problems go.
    pub problems: &'r mut Problems,
}

/// A type that a key can have.
pub trait Kind: Sized {
    /// What it looks like.
    fn shape() -> Shape;
    /// Reads it; `None` if it is wrong, with the reason in the reader's problems.
    fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self>;
    /// Writes it back, in the form of the file.
    fn print(&self) -> Printed;
}

/// Why a scalar is not of its kind, beyond "expected this, found that".
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wrong {
    /// The reason, if there is more to say than what was expected.
    pub why: Option<String>,
    /// What was probably meant.
    pub hint: Option<String>,
}

impl Wrong {
    /// With a reason.
    pub fn because(why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), hint: None }
    }

    /// With what was probably meant.
    pub fn meant(hint: impl Into<String>) -> Self {
        Self { why: None, hint: Some(hint.into()) }
    }
}

/// A kind that is written as one word, number or text.
pub trait Scalar: Sized {
    /// Its name in the JSON Schema.
    const NAME: &'static str;
    /// What it looks like, in words that follow "expected".
    fn expected() -> String;
    /// A regular expression (ECMA 262) that every text of this kind matches.
    fn pattern() -> String;
    /// The bounds, if it is a whole number.
    fn range() -> Option<(u64, u64)> {
        None
    }
    /// Reads it.
    fn parse(text: &str) -> Result<Self, Wrong>;
    /// Writes it.
    fn write(&self) -> String;
}

impl<T: Scalar> Kind for T {
    fn shape() -> Shape {
        Shape::Scalar {
            name: T::NAME,
            expected: T::expected(),
            pattern: T::pattern(),
            range: T::range(),
            accepts: |text| T::parse(text).is_ok(),
        }
    }

    fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let text = match &node.what {
            What::Text(text) => &**text,
            What::Expanded(text, _) => text,
            _ => return reader.mismatch(node, trail, &T::expected()),
        };
        match T::parse(text) {
            Ok(value) => Some(value),
            Err(Wrong { why, hint }) => {
                let mut message = format!("expected {}, found `{}`", T::expected(), excerpt(text));
                if let Some(why) = why {
                    message.push_str(": ");
                    message.push_str(&why);
                }
                reader.problems.error(trail, node.at, message, hint);
                None
            }
        }
    }

    fn print(&self) -> Printed {
        Printed::Scalar(self.write())
    }
}

impl Reader<'_> {
    /// Reports that something else stands where `expected` should.
    pub fn mismatch<T>(&mut self, node: &Node<'_>, trail: &Trail<'_>, expected: &str) -> Option<T> {
        let found = match &node.what {
            What::Null => "nothing (remove the key, or give it a value)".to_owned(),
            What::Text(text) => format!("`{}`", excerpt(text)),
            What::Expanded(text, _) => format!("`{}`", excerpt(text)),
            What::List(_) => "a list".to_owned(),
            What::Map(_) => "a mapping".to_owned(),
            What::Broken => return None,
        };
        self.problems.error(trail, node.at, format!("expected {expected}, found {found}"), None);
        None
    }
}

/// Where a value in force comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// The file.
    File(Mark),
    /// The file, by way of these variables of the environment.
    Env(Mark, Arc<str>),
}

impl Origin {
    fn of(node: &Node<'_>) -> Self {
        match (node.at, &node.what) {
            (Some(at), What::Expanded(_, names)) => Self::Env(at, Arc::clone(names)),
            (Some(at), _) => Self::File(at),
            (None, _) => Self::Default,
        }
    }

    /// Its place, if it has one.
    pub fn at(&self) -> Option<Mark> {
        match self {
            Self::Default => None,
            Self::File(at) | Self::Env(at, _) => Some(*at),
        }
    }
}

/// A value in force, with where it comes from and the path of its key.
#[derive(Clone, Debug)]
pub struct Set<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
    /// The path of its key, `inbound.ports[1].app`.
    pub path: Arc<str>,
}

impl<T> Deref for Set<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Set<T> {
    /// A value that follows from others.
    pub fn derived(value: T, path: impl fmt::Display) -> Self {
        Self { value, origin: Origin::Default, path: path.to_string().into() }
    }

    /// Whether nobody gave it.
    pub fn is_default(&self) -> bool {
        self.origin == Origin::Default
    }

    /// Reports that this value cannot be.
    pub fn refuse(&self, problems: &mut Problems, text: impl Into<String>) {
        problems.error(&self.path, self.origin.at(), text, None);
    }

    /// Reports that this value is probably not what was meant.
    pub fn warn(&self, problems: &mut Problems, text: impl Into<String>) {
        problems.warning(&self.path, self.origin.at(), text);
    }
}

impl<T: Kind> Set<T> {
    /// Reads a value that is there.
    pub fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let value = T::read(node, trail, reader)?;
        Some(Self { value, origin: Origin::of(node), path: trail.to_string().into() })
    }
}

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
            ) -> Vec<(&'static str, $crate::config::shape::Printed, $crate::config::section::Origin)> {
                use $crate::config::section::Field;
                [$( ($key, self.$field.print()) ),+]
                    .into_iter()
                    .filter_map(|(key, said)| said.map(|(printed, origin)| (key, printed, origin)))
                    .collect()
            }
        }

        impl $crate::config::section::Kind for $name {
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
                reader: &mut $crate::config::section::Reader<'_>,
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

/// Makes a type whose values are words.
macro_rules! words {
    (
        $(#[doc = $about:literal])+
        $name:ident { $( $(#[doc = $doc:literal])+ $variant:ident $word:literal; )+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[doc = $doc])+ $variant, )+ }

        impl $crate::config::section::Kind for $name {
            fn shape() -> $crate::config::shape::Shape {
                $crate::config::shape::Shape::Words(&[$($word),+])
            }

            fn read(
                node: &$crate::config::tree::Node<'_>,
                trail: &$crate::config::tree::Trail<'_>,
                reader: &mut $crate::config::section::Reader<'_>,
            ) -> Option<Self> {
                let at = reader.word(node, trail, &[$($word),+])?;
                [$( Self::$variant ),+].get(at).copied()
            }

            fn print(&self) -> $crate::config::shape::Printed {
                $crate::config::shape::Printed::Scalar(match self { $( Self::$variant => $word ),+ }.to_owned())
            }
        }
    };
}
pub(crate) use words;

impl Reader<'_> {
    /// Which of these words a scalar is.
    pub fn word(&mut self, node: &Node<'_>, trail: &Trail<'_>, words: &'static [&'static str]) -> Option<usize> {
        let text = match &node.what {
            What::Text(text) => &**text,
            What::Expanded(text, _) => text,
            _ => return self.mismatch(node, trail, &Shape::Words(words).expected()),
        };
        let at = words.iter().position(|word| *word == text);
        if at.is_none() {
            let message = format!("expected {}, found `{}`", Shape::Words(words).expected(), excerpt(text));
            let near = nearest(text, words.iter().copied()).map(str::to_owned);
            self.problems.error(trail, node.at, message, near);
        }
        at
    }
}
