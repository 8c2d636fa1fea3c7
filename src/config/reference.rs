//! `config/full.yaml`, made from the list of keys: each key at its default under one line that says what it is for.

use std::fmt::Write;

use super::Config;
use super::facts::Facts;
use super::section::{Fallback, Key, Section};
use super::shape::Shape;

/// The name that stands for any peer.
const NAME: &str = "payments";

const HEAD: &str = "\
# Every key of Outrigger's file, each at its default. A key that is commented out has no default: what stands there is
# an example. Only `service`, `inbound.app` and where a peer is are needed; everything else may be left out.
# This file is made from the program's own list of keys: `outrigger schema` gives the same to an editor.
";

/// The file as text.
pub fn reference() -> String {
    let mut page = Page { out: HEAD.to_owned(), shown: Vec::new() };
    page.keys(Config::keys(), 0);
    page.out
}

struct Page {
    out: String,
    /// The sections of lists that were shown already: each is shown once.
    shown: Vec<&'static str>,
}

impl Page {
    fn keys(&mut self, keys: &[Key], indent: usize) {
        for key in keys {
            if indent == 0 {
                self.out.push('\n');
            }
            self.key(key, indent);
        }
    }

    fn key(&mut self, key: &Key, indent: usize) {
        self.line(indent, &format!("# {}", key.about()));
        let unset = matches!(key.fallback, Fallback::Unset(_));
        let value = key.fallback.text(&Facts::PLAIN);
        let shape = match (key.shape)() {
            // The word is told by the line above.
            Shape::Or(_, section) if matches!(*section, Shape::Section { .. }) && (unset || value.starts_with('{')) => {
                *section
            }
            shape => shape,
        };
        match shape {
            Shape::Section { keys, .. } if unset => {
                self.line(indent, &format!("# {}:", key.name));
                self.brief(keys, indent, "  ");
            }
            Shape::Section { keys, .. } => {
                self.line(indent, &format!("{}:", key.name));
                self.keys(keys, indent + 2);
            }
            Shape::Named(item) if !unset => {
                self.line(indent, &format!("{}:", key.name));
                self.line(indent + 2, &format!("{NAME}:"));
                if let Shape::Section { keys, .. } = *item {
                    self.keys(keys, indent + 4);
                }
            }
            shape => {
                let mark = if unset { "# " } else { "" };
                self.line(indent, &format!("{mark}{}: {value}", key.name));
                let (item, first) = match shape {
                    Shape::List(item) | Shape::OneOrMore(item) => (*item, "  - "),
                    Shape::Or(_, other) => match *other {
                        Shape::Or(_, section) => (*section, "  "),
                        other => (other, "  "),
                    },
                    other => (other, ""),
                };
                if let Shape::Section { keys, name, .. } = item {
                    if self.shown.contains(&name) {
                        self.line(indent, &format!("# The keys of {} stand further up.", key.name));
                        return;
                    }
                    self.shown.push(name);
                    self.line(indent, &format!("# {}:", key.name));
                    self.brief(keys, indent, first);
                }
            }
        }
    }

    /// The keys of a section that is commented out, each on one line, those of sections within it below theirs.
    fn brief(&mut self, keys: &[Key], indent: usize, first: &str) {
        let rest = " ".repeat(first.len());
        for (n, key) in keys.iter().enumerate() {
            let lead = if n == 0 { first } else { &rest };
            let inner = match (key.shape)() {
                Shape::Section { keys, .. } => Some((keys, "  ")),
                Shape::List(item) | Shape::OneOrMore(item) => match *item {
                    Shape::Section { keys, .. } => Some((keys, "  - ")),
                    _ => None,
                },
                _ => None,
            };
            let value = if inner.is_some() { "".into() } else { key.fallback.text(&Facts::PLAIN) };
            let said = format!("{}: {value}", key.name);
            self.line(indent, &format!("# {lead}{said:<32} # {}", key.about()));
            if let Some((keys, first)) = inner {
                self.brief(keys, indent, &format!("{rest}{first}"));
            }
        }
    }

    fn line(&mut self, indent: usize, text: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.out, "{:indent$}{text}", "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_yaml_is_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/full.yaml");
        let shipped = std::fs::read_to_string(path).unwrap();
        let made = reference();
        let differs = made.lines().zip(shipped.lines()).find(|(made, shipped)| made != shipped);
        let again = "run `outrigger config --reference > config/full.yaml`";
        assert!(shipped == made, "{path} is out of date, first at {differs:?}: {again}");
    }

    #[test]
    fn every_line_fits_a_screen() {
        for line in reference().lines() {
            assert!(line.chars().count() <= 120, "{line}");
        }
    }
}
