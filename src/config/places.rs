//! Where each key stands in the file, so that what goes wrong later (an address in use) can still name its line.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::problem::{Problem, Severity};
use super::tree::{Mark, Node, Trail, What};

/// The places of all keys and items of a file.
#[derive(Clone, Debug)]
pub struct Places {
    file: Arc<str>,
    of: HashMap<String, Mark>,
    /// Keys whose value is one word: the short form of a section, perhaps, whose own key then stands nowhere.
    words: HashSet<String>,
}

impl Places {
    /// The places of a tree.
    pub fn of(root: &Node<'_>, file: &Arc<str>) -> Self {
        let mut places = Self { file: Arc::clone(file), of: HashMap::new(), words: HashSet::new() };
        places.add(root, &Trail::Root);
        places
    }

    /// Where a key's value stands: that of its section where the section has the short form of one word.
    pub fn at(&self, key: &str) -> Option<Mark> {
        let short = || key.rsplit_once('.').map(|(section, _)| section).filter(|section| self.words.contains(*section));
        self.of.get(key).or_else(|| self.of.get(short()?)).copied()
    }

    /// The file that was read.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// A problem with what a key says, found after reading.
    pub fn problem(&self, key: &str, text: impl Into<String>) -> Problem {
        let at = self.at(key);
        Problem {
            severity: Severity::Error,
            file: Arc::clone(&self.file),
            at,
            key: key.into(),
            text: text.into(),
            hint: None,
        }
    }

    fn add(&mut self, node: &Node<'_>, trail: &Trail<'_>) {
        if let Some(at) = node.at {
            self.of.insert(trail.to_string(), at);
        }
        match &node.what {
            What::List(items) => items.iter().enumerate().for_each(|(n, item)| self.add(item, &trail.item(n))),
            What::Text(_) | What::Expanded(..) => {
                self.words.insert(trail.to_string());
            }
            What::Map(entries) => entries.iter().for_each(|entry| self.add(&entry.value, &trail.key(&entry.key))),
            _ => {}
        }
    }
}
