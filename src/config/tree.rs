//! YAML text as a tree in which every key and value knows its place; knows no key of ours.
//!
//! A scalar stays text: whether `off`, `1.10` or `0777` is a word, a version or a number is decided by the key that
//! holds it, never by how it looks. What could blow up (aliases, nesting) is bounded here.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde_yaml::granit_parser::{Event, Options, Parser, ScalarStyle, Span};

use super::problem::{Problems, excerpt};

/// How deep values may be nested; the grammar needs less than ten levels.
const DEPTH: usize = 64;
/// How many values aliases may add to a file in all.
const ALIASED: usize = 100_000;

/// A place in a file; lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Mark {
    /// The first character of a file.
    pub const START: Self = Self { line: 1, column: 1 };

    fn of(span: &Span) -> Self {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { line: count(span.start.line()), column: count(span.start.col()).saturating_add(1) }
    }
}

/// A value and where it stands; `None` for a default, which stands nowhere.
#[derive(Clone, Debug)]
pub struct Node<'t> {
    /// Its first character.
    pub at: Option<Mark>,
    /// The value.
    pub what: What<'t>,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum What<'t> {
    /// Nothing: `key:`, `~` or `null`.
    Null,
    /// A scalar as written.
    Text(Cow<'t, str>),
    /// A scalar in which a variable of the environment took part.
    Expanded(String, Arc<str>),
    /// A sequence.
    List(Vec<Node<'t>>),
    /// A mapping in the order of the file.
    Map(Vec<Entry<'t>>),
    /// Something that was reported already; readers pass over it.
    Broken,
}

/// One key of a mapping with its value.
#[derive(Clone, Debug)]
pub struct Entry<'t> {
    /// The key.
    pub key: Cow<'t, str>,
    /// The key's first character.
    pub at: Option<Mark>,
    /// The value.
    pub value: Node<'t>,
}

/// The way from the root to a value; shown as `peers.payments.listen[1]`.
#[derive(Clone, Copy, Debug)]
pub enum Trail<'p> {
    /// The file itself.
    Root,
    /// A key of a mapping.
    Key(&'p Trail<'p>, &'p str),
    /// An item of a list.
    Item(&'p Trail<'p>, usize),
}

impl<'p> Trail<'p> {
    /// The way to a key below this one.
    pub fn key(&'p self, key: &'p str) -> Self {
        Self::Key(self, key)
    }

    /// The way to an item below this one.
    pub fn item(&'p self, at: usize) -> Self {
        Self::Item(self, at)
    }
}

impl fmt::Display for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(&excerpt(key)),
            Self::Key(above, key) => write!(f, "{above}.{}", excerpt(key)),
            Self::Item(above, at) => write!(f, "{above}[{at}]"),
        }
    }
}

/// Reads a text; `None` if it is not YAML, with the reason in `problems`. An empty text is an empty mapping.
pub fn parse<'t>(text: &'t str, problems: &mut Problems) -> Option<Node<'t>> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = DEPTH;
    options.block_nesting_limit = DEPTH;
    let mut builder = Builder { problems, open: Vec::new(), anchors: HashMap::new(), aliased: 0, root: None };
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => builder.event(event, &span)?,
            Err(error) => {
                let marker = error.marker();
                let at = Mark::of(&Span::new(*marker, *marker));
                let line = text.lines().nth(marker.line().saturating_sub(1)).unwrap_or_default();
                let quotes = if line.contains("${") { "; within brackets, `${…}` needs quotes" } else { "" };
                builder.refuse(at, format!("not valid YAML: {}{quotes}", error.info()));
                return None;
            }
        }
    }
    match builder.root {
        Some(Node { what: What::Null, at }) => Some(Node { at, what: What::Map(Vec::new()) }),
        Some(root) => Some(root),
        None => Some(Node { at: Some(Mark::START), what: What::Map(Vec::new()) }),
    }
}

/// A collection whose end has not been seen.
enum Open<'t> {
    List { at: Mark, anchor: usize, items: Vec<Node<'t>> },
    Map { at: Mark, anchor: usize, entries: Vec<Entry<'t>>, key: Option<(Cow<'t, str>, Mark)> },
}

struct Builder<'t, 'p> {
    problems: &'p mut Problems,
    open: Vec<Open<'t>>,
    anchors: HashMap<usize, Node<'t>>,
    aliased: usize,
    root: Option<Node<'t>>,
}

impl<'t> Builder<'t, '_> {
    /// Takes one event; `None` ends the reading.
    fn event(&mut self, event: Event<'t>, span: &Span) -> Option<()> {
        let at = Mark::of(span);
        if event.tag().is_some() {
            self.refuse(at, "a tag (`!name`) has no meaning here: remove it");
        }
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let what = if null { What::Null } else { What::Text(text) };
                self.attach(Node { at: Some(at), what }, anchor)
            }
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Open::List { at, anchor, items: Vec::new() });
                Some(())
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(Open::Map { at, anchor, entries: Vec::new(), key: None });
                Some(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::DocumentStart(..) if self.root.is_some() => {
                self.refuse(at, "a second document begins: one file holds one");
                None
            }
            _ => Some(()),
        }
    }

    fn alias(&mut self, anchor: usize, at: Mark) -> Option<()> {
        let Some(node) = self.anchors.get(&anchor) else {
            self.refuse(at, "an alias to the value that it stands in");
            return None;
        };
        let (size, depth) = node.extent();
        self.aliased = self.aliased.saturating_add(size);
        if self.aliased > ALIASED || self.open.len() + depth > DEPTH {
            self.refuse(at, format!("aliases add more than {ALIASED} values or {DEPTH} levels to the file"));
            return None;
        }
        let node = Node { at: Some(at), what: node.what.clone() };
        self.attach(node, 0)
    }

    fn close(&mut self) -> Option<()> {
        match self.open.pop()? {
            Open::List { at, anchor, items } => self.attach(Node { at: Some(at), what: What::List(items) }, anchor),
            Open::Map { at, anchor, mut entries, .. } => {
                self.refuse_duplicates(&mut entries);
                self.attach(Node { at: Some(at), what: What::Map(entries) }, anchor)
            }
        }
    }

    fn attach(&mut self, node: Node<'t>, anchor: usize) -> Option<()> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => match (key.take(), node.what) {
                (Some((key, at)), what) => entries.push(Entry { key, at: Some(at), value: Node { at: node.at, what } }),
                (None, What::Text(text)) => {
                    let at = node.at.unwrap_or(Mark::START);
                    let merge = text == "<<";
                    *key = Some((text, at));
                    if merge {
                        self.refuse(at, "`<<` is not supported: give the keys where they are used");
                    }
                }
                (None, _) => {
                    self.refuse(node.at.unwrap_or(Mark::START), "a key must be plain text");
                    return None;
                }
            },
        }
        Some(())
    }

    fn refuse_duplicates(&mut self, entries: &mut Vec<Entry<'t>>) {
        if all_differ(entries) {
            return;
        }
        let path = self.path();
        let mut first: HashMap<String, u32> = HashMap::with_capacity(entries.len());
        entries.retain(|entry| {
            let Some(before) = first.get(&*entry.key) else {
                first.insert(entry.key.to_string(), entry.at.map_or(0, |at| at.line));
                return true;
            };
            let text = format!("`{}` is given twice, first in line {before}", excerpt(&entry.key));
            self.problems.error(&path, entry.at, text, None);
            false
        });
    }

    /// Where the reading stands, in the words of [`Trail`].
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match open {
                Open::List { items, .. } => path.push_str(&format!("[{}]", items.len())),
                Open::Map { key: Some((key, _)), .. } if path.is_empty() => path.push_str(&excerpt(key)),
                Open::Map { key: Some((key, _)), .. } => path.push_str(&format!(".{}", excerpt(key))),
                Open::Map { key: None, .. } => {}
            }
        }
        path
    }

    fn refuse(&mut self, at: Mark, text: impl Into<String>) {
        let path = self.path();
        self.problems.error(path, Some(at), text, None);
    }
}

/// Whether no key is given twice; most mappings are too small to be worth a set.
fn all_differ(entries: &[Entry<'_>]) -> bool {
    if entries.len() > 8 {
        let mut seen = HashSet::with_capacity(entries.len());
        return entries.iter().all(|entry| seen.insert(&*entry.key));
    }
    entries.iter().enumerate().all(|(n, entry)| entries.iter().take(n).all(|before| before.key != entry.key))
}

impl Node<'_> {
    /// How many values it holds, itself included, and how many levels.
    fn extent(&self) -> (usize, usize) {
        let add = |(size, depth): (usize, usize), below: (usize, usize)| (size + below.0, depth.max(below.1));
        let (size, depth) = match &self.what {
            What::List(items) => items.iter().map(Self::extent).fold((0, 0), add),
            What::Map(entries) => entries.iter().map(|entry| entry.value.extent()).fold((0, 0), add),
            _ => (0, 0),
        };
        (size + 1, depth + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(text: &str) -> String {
        let mut problems = Problems::new("f");
        parse(text, &mut problems);
        problems.to_string()
    }

    #[test]
    fn scalars_stay_text_and_know_their_place() {
        let mut problems = Problems::new("f");
        let root = parse("a: off\nb: [1.10, 0777, \"null\", ~]\n", &mut problems).unwrap();
        let What::Map(entries) = root.what else { panic!("a mapping") };
        assert!(matches!(&entries[0].value.what, What::Text(text) if text == "off"));
        assert_eq!(entries[0].value.at, Some(Mark { line: 1, column: 4 }));
        let What::List(items) = &entries[1].value.what else { panic!("a list") };
        let texts: Vec<_> = items
            .iter()
            .map(|item| match &item.what {
                What::Text(text) => Some(text.to_string()),
                _ => None,
            })
            .collect();
        assert_eq!(texts, [Some("1.10".into()), Some("0777".into()), Some("null".into()), None]);
        assert_eq!(items[1].at, Some(Mark { line: 2, column: 11 }));
        assert!(problems.list().is_empty());
    }

    #[test]
    fn what_yaml_allows_and_we_do_not_has_a_place() {
        for (text, expect) in [
            ("a: 1\na: 2\n", "f:2:1: `a` is given twice, first in line 1"),
            ("a: 1\n---\nb: 2\n", "f:2:1: a second document begins"),
            ("a: !!int 1\n", "f:1:10: a: a tag (`!name`) has no meaning here"),
            ("? [a]\n: 1\n", "f:1:3: a key must be plain text"),
            ("a: &x {b: *x}\n", "f:1:11: a.b: an alias to the value that it stands in"),
            (
                "a: [${B}]",
                "f:1:6: a[1]: not valid YAML: while parsing a flow sequence, expected ',' or ']'; within brackets",
            ),
            ("a: &x {b: 1}\nc:\n  <<: *x\n", "f:3:3: c.<<: `<<` is not supported"),
        ] {
            assert!(problems_of(text).starts_with(expect), "{text:?}: {}", problems_of(text));
        }
        for text in ["a: [1\n", "a: \"b\n", "a:\n\t- b", "a: b: c", "%", "a: *nobody"] {
            assert!(problems_of(text).contains("not valid YAML"), "{text:?}: {}", problems_of(text));
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let before = level - 1;
            let tens = vec![format!("*a{before}"); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{tens}]\n"));
        }
        assert!(problems_of(&bomb).contains("aliases add more than"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = format!("a: {}{}", "[".repeat(20_000), "]".repeat(20_000));
        assert!(problems_of(&deep).contains("not valid YAML"));
        let block: String = (0..200).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        assert!(problems_of(&block).contains("not valid YAML"));
    }

    #[test]
    fn an_empty_file_is_an_empty_mapping() {
        for text in ["", "# only a comment\n", "---\n", "~\n"] {
            let mut problems = Problems::new("f");
            let root = parse(text, &mut problems).unwrap();
            assert!(matches!(root.what, What::Map(entries) if entries.is_empty()), "{text:?}");
        }
    }
}
