//! Patterns as the file writes them: regular expressions for whole texts, and paths with free segments.

use regex::Regex;

/// A regular expression for a whole text; it takes time linear in the text.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// Bytes that a compiled expression may take.
const PATTERN_SIZE: usize = 256 * 1024;

impl Pattern {
    /// Compiles it.
    ///
    /// # Errors
    /// What is wrong with it, in a line.
    pub fn new(text: &str) -> Result<Self, String> {
        let build = |text: &str| regex::RegexBuilder::new(text).size_limit(PATTERN_SIZE).build();
        // The group keeps alternatives and flags between the anchors; only a text that is whole by itself stays in it.
        build(text).and_then(|_| build(&format!("^(?:{text})$"))).map(Self).map_err(|error| {
            match error {
                regex::Error::CompiledTooBig(_) => "takes more than 256 KiB: make it smaller".to_owned(),
                // The last line says what, those before it draw where.
                error => error.to_string().lines().last().unwrap_or("is not valid").trim().to_owned(),
            }
        })
    }

    /// Whether it matches the whole text.
    pub fn holds(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// As the file writes it.
    pub fn text(&self) -> &str {
        let anchored = self.0.as_str();
        anchored.strip_prefix("^(?:").and_then(|text| text.strip_suffix(")$")).unwrap_or(anchored)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

/// A path whose segments are given or free: `/users/{id}/orders`; a `*` at the end stands for all that follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    /// Each segment; `None` is any one that is not empty.
    segments: Vec<Option<String>>,
    /// Whether anything may follow.
    open: bool,
}

impl Template {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, in a line.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        let Some(path) = text.strip_prefix('/') else { return Err("a path begins with `/`") };
        let (path, open) = match path.strip_suffix('*') {
            Some("") => return Ok(Self { text: text.to_owned(), segments: Vec::new(), open: true }),
            Some(rest) if rest.ends_with('/') => (rest.trim_end_matches('/'), true),
            Some(_) => return Err("a `*` stands for whole segments: write `/*` at the end"),
            None => (path, false),
        };
        let segment = |part: &str| match part.strip_prefix('{').map(|name| name.strip_suffix('}')) {
            Some(Some(name)) if !name.is_empty() && !name.contains(['{', '}']) => Ok(None),
            None if !part.contains(['{', '}', '*', '?', '#']) => Ok(Some(part.to_owned())),
            _ => Err("a free segment is written `{name}` and stands alone between slashes"),
        };
        Ok(Self { text: text.to_owned(), segments: path.split('/').map(segment).collect::<Result<_, _>>()?, open })
    }

    /// As the file writes it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a path is of this form.
    pub fn holds(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        if self.segments.is_empty() {
            return self.open;
        }
        let mut parts = path.split('/');
        let each = self.segments.iter().all(|segment| match (segment, parts.next()) {
            (Some(text), Some(part)) => text == part,
            (None, Some(part)) => !part.is_empty(),
            (_, None) => false,
        });
        each && (self.open || parts.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_patterns_are_refused() {
        for text in ["x", "/a*", "/{a", "/a{b}", "/{}", "/{a{b}}", "/a?b", "/*/b"] {
            assert!(Template::new(text).is_err(), "{text}");
        }
        assert!(Pattern::new("(").unwrap_err().contains("unclosed"));
        assert!(Pattern::new("/a)|(?:/b").unwrap_err().contains("unopened"));
        assert!(Pattern::new("x{1000}{1000}").unwrap_err().contains("smaller"));
    }
}
