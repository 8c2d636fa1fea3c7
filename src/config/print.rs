//! Every value in force with where it comes from, in the form of the file.

use std::fmt::Write;

use super::Config;
use super::kind::{Kind, Origin};
use super::shape::{Printed, quoted};

/// The column at which origins begin.
const COLUMN: usize = 46;

/// The configuration as a file that says everything, each line with its origin.
pub fn values(config: &Config, file: &str) -> String {
    let mut printer = Printer { file, out: String::new() };
    if let Printed::Map(entries) = config.print() {
        printer.map(&entries, 0, "");
    }
    printer.out
}

struct Printer<'p> {
    file: &'p str,
    out: String,
}

impl Printer<'_> {
    /// `first` stands before the first key instead of the indentation, for an item of a list.
    fn map(&mut self, entries: &[(String, Printed, Origin)], indent: usize, first: &str) {
        for (n, (key, value, origin)) in entries.iter().enumerate() {
            let lead = if n == 0 && !first.is_empty() { first.to_owned() } else { " ".repeat(indent) };
            let key = format!("{lead}{}:", quoted(key, false));
            match value {
                Printed::Map(below) if value.is_block() => {
                    self.line(&key, None);
                    self.map(below, indent + 2, "");
                }
                Printed::List(items) if value.is_block() => {
                    self.line(&key, None);
                    for item in items {
                        self.item(item, indent + 2, origin);
                    }
                }
                _ => self.line(&format!("{key} {}", value.flow(false)), Some(origin)),
            }
        }
    }

    fn item(&mut self, item: &Printed, indent: usize, origin: &Origin) {
        let first = format!("{}- ", " ".repeat(indent));
        match item {
            Printed::Map(entries) if item.is_block() => self.map(entries, indent + 2, &first),
            _ => self.line(&format!("{first}{}", item.flow(false)), Some(origin)),
        }
    }

    fn line(&mut self, text: &str, origin: Option<&Origin>) {
        // Writing into a String cannot fail.
        let _ = match origin {
            None => writeln!(self.out, "{text}"),
            Some(Origin::Default) => writeln!(self.out, "{text:COLUMN$} # default"),
            Some(Origin::File(at)) => writeln!(self.out, "{text:COLUMN$} # {}:{}", self.file, at.line),
            Some(Origin::Env(None, names)) => writeln!(self.out, "{text:COLUMN$} # env {names}"),
            Some(Origin::Env(Some(at), names)) => {
                writeln!(self.out, "{text:COLUMN$} # {}:{}, env {names}", self.file, at.line)
            }
        };
    }
}
