//! What the value of a key is: `Kind`, the simpler `Scalar`, and `Set`, a value with its place and its origin.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::facts::Facts;
use super::problem::{Problems, excerpt, nearest};
use super::shape::{Printed, Shape};
use super::tree::{Mark, Node, Trail, What};

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
    /// What of a text that cannot be read is told.
    fn shown(text: &str) -> Cow<'_, str> {
        text.into()
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
                let mut message = format!("expected {}, found `{}`", T::expected(), excerpt(&T::shown(text)));
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

/// Where a value in force comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// The file.
    File(Mark),
    /// These variables of the environment, by way of the file where it has a place.
    Env(Option<Mark>, Arc<str>),
}

impl Origin {
    fn of(node: &Node<'_>) -> Self {
        match (node.at, &node.what) {
            (at, What::Expanded(_, names)) => Self::Env(at, Arc::clone(names)),
            (Some(at), _) => Self::File(at),
            (None, _) => Self::Default,
        }
    }

    /// Its place, if it has one.
    pub fn at(&self) -> Option<Mark> {
        match self {
            Self::Default => None,
            Self::File(at) => Some(*at),
            Self::Env(at, _) => *at,
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

/// Makes a type whose values are words.
macro_rules! words {
    (
        $(#[doc = $about:literal])+
        $name:ident { $( $(#[doc = $doc:literal])+ $variant:ident $word:literal; )+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[doc = $doc])+ $variant, )+ }

        impl $crate::config::kind::Kind for $name {
            fn shape() -> $crate::config::shape::Shape {
                $crate::config::shape::Shape::Words(&[$($word),+])
            }

            fn read(
                node: &$crate::config::tree::Node<'_>,
                trail: &$crate::config::tree::Trail<'_>,
                reader: &mut $crate::config::kind::Reader<'_>,
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
