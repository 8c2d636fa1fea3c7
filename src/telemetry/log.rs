//! The proxy's own log: one line per event on stderr, as text, by the same way as the access log.

use std::io::{self, Write};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::lines::Lines;

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

/// Sends the events of this process to `lines`; `filter` is the value of OUTRIGGER_LOG, where there is one.
///
/// # Errors
/// When the filter cannot be read, or a log was set up before.
pub fn init(filter: Option<&str>, lines: Arc<Lines>) -> Result<(), LogError> {
    let text = filter.filter(|text| !text.trim().is_empty()).unwrap_or(DEFAULT);
    let filter = EnvFilter::builder().parse(text).map_err(|error| LogError::Filter(text.into(), error))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(Output(lines));
    log.try_init().map_err(|_| LogError::Twice)
}

struct Output(Arc<Lines>);

impl<'a> MakeWriter<'a> for Output {
    type Writer = Event<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Event(&self.0)
    }
}

/// Takes one event, which is formatted whole before it is written.
struct Event<'a>(&'a Lines);

impl Write for Event<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.put(|out| one_line(event, out));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes control characters, but for the newline at the end: an error's text may hold what a caller sent.
fn one_line(event: &[u8], out: &mut Vec<u8>) {
    for byte in event.strip_suffix(b"\n").unwrap_or(event) {
        if byte.is_ascii_control() {
            out.extend(byte.escape_ascii());
        } else {
            out.push(*byte);
        }
    }
    out.push(b'\n');
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
            let mut out = Vec::new();
            one_line(event, &mut out);
            assert_eq!(out, written);
        }
    }

    #[test]
    fn a_bad_filter_is_said() {
        let lines = Lines::start(io::sink(), Arc::default()).unwrap();
        let error = init(Some("outrigger=loudly"), lines).unwrap_err();
        assert!(error.to_string().starts_with("OUTRIGGER_LOG=`outrigger=loudly`"), "{error}");
    }
}
