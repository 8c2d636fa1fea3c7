//! What is wrong with a file: one line per problem that says where, which key, what was expected and what is near.

use std::fmt;
use std::sync::Arc;

use super::tree::Mark;

/// Problems beyond this number are counted, not kept: a generated file can be wrong ten thousand times.
const KEPT: usize = 100;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken, but probably does not do what was meant.
    Warning,
}

impl Severity {
    /// The word in `check --json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as it was named by the user.
    pub file: Arc<str>,
    /// Where in the file; `None` for a value that the file does not give or a file that cannot be read.
    pub at: Option<Mark>,
    /// The path of the key, `peers.payments.timeout.connect`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what was expected.
    pub text: String,
    /// The nearest valid key or value.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(at) = self.at {
            write!(f, "{}:{}:", at.line, at.column)?;
        }
        if self.severity == Severity::Warning {
            f.write_str(" warning:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.text)?;
        match &self.hint {
            Some(hint) => write!(f, "; did you mean `{hint}`?"),
            None => Ok(()),
        }
    }
}

impl serde::Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = to.serialize_struct("Problem", 7)?;
        fields.serialize_field("severity", self.severity.word())?;
        fields.serialize_field("file", &*self.file)?;
        fields.serialize_field("line", &self.at.map(|at| at.line))?;
        fields.serialize_field("column", &self.at.map(|at| at.column))?;
        fields.serialize_field("key", &self.key)?;
        fields.serialize_field("message", &self.text)?;
        fields.serialize_field("hint", &self.hint)?;
        fields.end()
    }
}

/// Everything that is wrong with a file, in the order of its lines; shown one problem per line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    file: Arc<str>,
    kept: Vec<Problem>,
    errors: usize,
    more: usize,
}

impl Problems {
    /// No problems yet with the file of this name.
    pub fn new(file: impl Into<Arc<str>>) -> Self {
        Self { file: file.into(), kept: Vec::new(), errors: 0, more: 0 }
    }

    /// The file that is being read.
    pub fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// Adds an error about this file.
    pub fn error(&mut self, key: impl fmt::Display, at: Option<Mark>, text: impl Into<String>, hint: Option<String>) {
        self.push(Severity::Error, key.to_string(), at, text.into(), hint);
    }

    /// Adds a warning about this file.
    pub fn warning(&mut self, key: impl fmt::Display, at: Option<Mark>, text: impl Into<String>) {
        self.push(Severity::Warning, key.to_string(), at, text.into(), None);
    }

    /// Takes over the problems found in another file.
    pub fn append(&mut self, other: Self) {
        self.errors += other.errors;
        self.more += other.more;
        for problem in other.kept {
            self.keep(problem);
        }
    }

    /// Whether something is wrong with this key already, so that what follows from it need not be said.
    pub fn mention(&self, section: &str, key: &str) -> bool {
        let below = |path: &str| path.strip_prefix(section)?.strip_prefix('.')?.strip_prefix(key).map(str::to_owned);
        let ends = |rest: String| rest.is_empty() || rest.starts_with(['.', '[']);
        self.more > 0 || self.kept.iter().any(|problem| below(&problem.key).is_some_and(ends))
    }

    /// Whether something is wrong with any key of this section already.
    pub fn within(&self, section: &str) -> bool {
        let below = |path: &str| path.strip_prefix(section).is_some_and(|rest| rest.starts_with(['.', '[']));
        self.more > 0 || self.kept.iter().any(|problem| below(&problem.key))
    }

    /// Whether there is an error; warnings alone do not refuse a file.
    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// How many errors there are, those not kept included.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// The problems kept, each place once, in the order of lines.
    pub fn list(&self) -> &[Problem] {
        &self.kept
    }

    /// Puts the problems in the order of lines, those without a place last.
    pub fn sorted(mut self) -> Self {
        let own = Arc::clone(&self.file);
        self.kept.sort_by_key(|problem| (problem.file != own, problem.at.is_none(), problem.at));
        self
    }

    fn push(&mut self, severity: Severity, key: String, at: Option<Mark>, text: String, hint: Option<String>) {
        if severity == Severity::Error {
            self.errors += 1;
        }
        self.keep(Problem { severity, file: Arc::clone(&self.file), at, key, text, hint });
    }

    fn keep(&mut self, problem: Problem) {
        if self.kept.len() < KEPT {
            self.kept.push(problem);
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.kept.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\n{}: and {more} more", self.file),
        }
    }
}

/// The one of `known` that `word` was probably meant to be. Slips seldom fall on the first letter: where that differs,
/// one letter exchanged or two swapped is all that is forgiven, so that `mtls` is not taken for `tls`.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let meant = plain(word);
    let distance = |candidate: &'k str| {
        let plain = plain(candidate);
        let distance = strsim::osa_distance(&meant, &plain);
        let alike = plain.chars().next() == meant.chars().next() || (distance == 1 && plain.len() == meant.len());
        (alike && distance <= 1.max(candidate.len() / 3)).then_some((distance, candidate))
    };
    known.into_iter().filter_map(distance).min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// A text from a file as it may stand in a message: short, without control characters.
pub fn excerpt(text: &str) -> String {
    let mut out: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        out.push('…');
    }
    out.replace("\\\"", "\"").replace("\\'", "'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_where_what_and_what_is_near() {
        let mut problems = Problems::new("outrigger.yaml");
        problems.error("inbound", Some(Mark { line: 3, column: 5 }), "unknown key `ap`", Some("app".into()));
        problems.warning("", None, "nothing to do");
        assert_eq!(
            problems.to_string(),
            "outrigger.yaml:3:5: inbound: unknown key `ap`; did you mean `app`?\noutrigger.yaml: warning: nothing to do"
        );
        assert_eq!(problems.errors(), 1);
    }

    #[test]
    fn a_thousand_problems_are_counted_not_kept() {
        let mut problems = Problems::new("f");
        for _ in 0..1000 {
            problems.error("k", None, "bad", None);
        }
        assert_eq!((problems.list().len(), problems.errors()), (KEPT, 1000));
        assert!(problems.to_string().ends_with("f: and 900 more"));
    }

    #[test]
    fn the_nearest_word_is_near() {
        let known = ["keep-alive", "connect", "request", "idle", "tls"];
        for (word, expect) in [
            ("keepalive", Some("keep-alive")),
            ("keep_alive", Some("keep-alive")),
            ("conect", Some("connect")),
            ("Request", Some("request")),
            ("banana", None),
            ("vonnect", Some("connect")),
            ("ocnnect", Some("connect")),
            ("disconnect", None),
            ("mtls", None),
            ("tsl", Some("tls")),
        ] {
            assert_eq!(nearest(word, known), expect, "{word}");
        }
    }

    #[test]
    fn an_excerpt_is_short_and_harmless() {
        assert_eq!(excerpt("a\nb\u{1b}\"q\""), "a\\nb\\u{1b}\"q\"");
        assert_eq!(excerpt(&"x".repeat(100)).chars().count(), 61);
    }
}
