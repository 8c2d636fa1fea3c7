//! The proxy's own log: one line per event on stderr, as text.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What is logged when nothing else is asked for.
const DEFAULT: &str = "info";

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("OUTRIGGER_LOG=`{0}`: {1}; write a level (error, warn, info, debug, trace) or MODULE=LEVEL pairs")]
    Filter(String, tracing_subscriber::filter::ParseError),
    /// A log was set up before.
    #[error("the log is set up already")]
    Twice,
}

/// Sends the events of this process to stderr; `filter` is the value of OUTRIGGER_LOG, where there is one.
///
/// # Errors
/// When the filter cannot be read, or a log was set up before.
pub fn init(filter: Option<&str>) -> Result<(), LogError> {
    let text = filter.filter(|text| !text.trim().is_empty()).unwrap_or(DEFAULT);
    let filter = EnvFilter::builder().parse(text).map_err(|error| LogError::Filter(text.into(), error))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(Stderr);
    log.try_init().map_err(|_| LogError::Twice)
}

/// Writes each event to stderr in one piece and on one line.
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = OneLine<io::StderrLock<'static>>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine(io::stderr().lock())
    }
}

/// Escapes control characters, but for the newline at the end: an error's text may hold what a caller sent.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let body = event.strip_suffix(b"\n").unwrap_or(event);
        if !body.iter().any(u8::is_ascii_control) {
            self.0.write_all(event)?;
            return Ok(event.len());
        }
        let mut clean = Vec::with_capacity(event.len() + 16);
        for byte in body {
            if byte.is_ascii_control() {
                clean.extend(byte.escape_ascii());
            } else {
                clean.push(*byte);
            }
        }
        clean.push(b'\n');
        self.0.write_all(&clean)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        for (event, written) in [
            (&b"plain\n"[..], &b"plain\n"[..]),
            (b"two\nlines\n", b"two\\nlines\n"),
            (b"\x1b[31mred\x07\n", b"\\x1b[31mred\\x07\n"),
            ("größe\n".as_bytes(), "größe\n".as_bytes()),
        ] {
            let mut out = OneLine(Vec::new());
            assert_eq!(out.write(event).unwrap(), event.len());
            assert_eq!(out.0, written);
        }
    }

    #[test]
    fn a_bad_filter_is_said() {
        let error = init(Some("outrigger=loudly")).unwrap_err();
        assert!(error.to_string().starts_with("OUTRIGGER_LOG=`outrigger=loudly`"), "{error}");
    }
}
