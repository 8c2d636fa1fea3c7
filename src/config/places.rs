//! Where each key stands in the file, so that what goes wrong later (an address in use) can still name its line.

use std::collections::HashMap;
use std::sync::Arc;

use super::problem::{Problem, Severity};
use super::tree::{Mark, Node, Trail, What};

/// The places of all keys and items of a file.
#[derive(Clone, Debug)]
pub struct Places {
    file: Arc<str>,
    of: HashMap<String, Mark>,
}

impl Places {
    /// The places of a tree.
    pub fn of(root: &Node<'_>, file: &Arc<str>) -> Self {
        let mut places = Self { file: Arc::clone(file), of: HashMap::new() };
        places.add(root, &Trail::Root);
        places
    }

    /// A problem with what a key says, found after reading.
    pub fn problem(&self, key: &str, text: impl Into<String>) -> Problem {
        let at = self.of.get(key).copied();
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
            What::Map(entries) => entries.iter().for_each(|entry| self.add(&entry.value, &trail.key(&entry.key))),
            _ => {}
        }
    }
}
