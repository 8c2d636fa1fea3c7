//! The access log: which exchanges are written, and in which format; a line is formatted straight into the buffer of
//! [`Lines`], so that the request path neither waits nor allocates.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::line::{Format, Line};
use super::lines::Lines;

/// Which exchanges are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// None.
    Off,
    /// Those with a reason or a 5xx status.
    Failures,
    /// All.
    All,
}

/// The log's handle; shared by all data threads.
pub struct AccessLog {
    lines: Arc<Lines>,
    /// `Which` in the low bits, `Format` above: one load decides.
    choice: AtomicU8,
}

impl Clone for AccessLog {
    /// With the choice of this moment.
    fn clone(&self) -> Self {
        Self { lines: self.lines.clone(), choice: AtomicU8::new(self.choice.load(Ordering::Relaxed)) }
    }
}

impl AccessLog {
    /// A log that writes to `lines`.
    pub fn new(which: Which, format: Format, lines: Arc<Lines>) -> Self {
        let log = Self { lines, choice: AtomicU8::new(0) };
        log.choose(which, format);
        log
    }

    /// Changes what is written from now on.
    pub fn choose(&self, which: Which, format: Format) {
        let which = match which {
            Which::Off => 0,
            Which::Failures => 1,
            Which::All => 2,
        };
        let format = if format == Format::Json { 4 } else { 0 };
        self.choice.store(which | format, Ordering::Relaxed);
    }

    /// Whether an exchange that ended so would be written; ask before gathering the facts of a [`Line`].
    pub fn wants(&self, status: Option<u16>, failed: bool) -> bool {
        match self.choice.load(Ordering::Relaxed) & 3 {
            0 => false,
            1 => failed || status.is_some_and(|status| status >= 500),
            _ => true,
        }
    }

    /// Writes a line, if lines like it are wanted and the buffer has room. Never waits for the output.
    pub fn write(&self, line: &Line<'_>) {
        if !self.wants(line.status, line.reason.is_some() || !line.would_deny.is_empty()) {
            return;
        }
        let format = if self.choice.load(Ordering::Relaxed) & 4 == 0 { Format::Text } else { Format::Json };
        self.lines.put(|out| line.format(format, out));
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::super::lines::tests::{PATIENCE, Pipe};
    use super::*;
    use crate::ids::{ClientAddr, Door};
    use crate::reason::{Reason, Side};

    fn start(which: Which) -> (AccessLog, Pipe) {
        let pipe = Pipe::default();
        (AccessLog::new(which, Format::Text, Lines::start(pipe.clone(), Arc::default()).unwrap()), pipe)
    }

    fn line(status: u16) -> Line<'static> {
        Line { status: Some(status), ..Line::new(UNIX_EPOCH, Door::Inbound, ClientAddr(None)) }
    }

    #[test]
    fn only_what_was_asked_for_is_written() {
        let failed = Line { reason: Some((Reason::Reset, Side::Peer)), ..line(200) };
        let audited = Line { would_deny: "so", ..line(200) };
        for (which, expected) in [(Which::Off, 0), (Which::Failures, 3), (Which::All, 4)] {
            let (log, pipe) = start(which);
            for line in [&line(404), &line(503), &failed, &audited] {
                log.write(line);
            }
            assert!(log.lines.close(PATIENCE));
            assert_eq!(pipe.text().lines().count(), expected, "{which:?}");
        }
    }

    #[test]
    fn the_choice_can_change() {
        let (log, pipe) = start(Which::Off);
        log.write(&line(200));
        log.choose(Which::All, Format::Json);
        log.write(&line(201));
        assert!(log.lines.close(PATIENCE));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&pipe.text()).unwrap()["status"], 201);
    }
}
