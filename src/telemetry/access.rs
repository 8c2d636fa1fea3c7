//! The access log: one line per exchange, put into a bounded buffer by the request path and written out by a thread of
//! its own, so that a slow reader of our output never delays a request.
//!
//! When the buffer is full, lines are dropped and counted; the request path never waits and, once the two buffers have
//! grown to what the load needs, never allocates.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::line::{Format, Line};
use super::metrics::Metrics;

/// Bytes of lines that may wait for the writer.
const BUFFER: usize = 256 * 1024;
/// At this many waiting bytes the writer stops gathering and writes.
const ENOUGH: usize = BUFFER / 4;
/// How long the writer gathers lines after the first, so that a busy log costs few system calls and wake-ups.
const GATHER: Duration = Duration::from_millis(5);
/// The longest write that a pipe takes in one piece (`PIPE_BUF`): the app may be writing to the same pipe.
const PIECE: usize = 4096;
/// How long the writer rests when its output, made non-blocking by someone who shares it, is full.
const FULL_OUTPUT_REST: Duration = Duration::from_millis(10);

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

/// This process's stderr, for [`AccessLog::start`]: stdout is the app's, which a consumer may read. Each write is one
/// piece of whole lines, so that it does not mix with those of our own log, which the same file takes line by line.
///
/// # Errors
/// When stderr is closed.
pub fn stderr() -> io::Result<File> {
    Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?))
}

/// The log's handle; shared by all data threads.
pub struct AccessLog {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    /// `Which` in the low bits, `Format` above: one load decides.
    choice: AtomicU8,
}

struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    finished: Condvar,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// The writer waits for the first line and must be woken.
    parked: bool,
    /// No more lines are taken; the writer ends once it has written the rest.
    closed: bool,
    finished: bool,
}

impl AccessLog {
    /// Starts the writer thread. Lines go to `output`.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub fn start(
        which: Which,
        format: Format,
        metrics: Arc<Metrics>,
        output: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), more: Condvar::new(), finished: Condvar::new() });
        let log = Self { shared: shared.clone(), metrics: metrics.clone(), choice: AtomicU8::new(0) };
        log.choose(which, format);
        let writer = Writer { output, metrics, complained: false };
        thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&shared))?;
        Ok(log)
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
        if !self.wants(line.status, line.reason.is_some()) {
            return;
        }
        let format = if self.choice.load(Ordering::Relaxed) & 4 == 0 { Format::Text } else { Format::Json };
        let mut queue = self.shared.queue.lock();
        let before = queue.bytes.len();
        if queue.closed || before >= BUFFER {
            drop(queue);
            self.metrics.access_lines_dropped.inc();
            return;
        }
        line.format(format, &mut queue.bytes);
        let crossed = before < ENOUGH && queue.bytes.len() >= ENOUGH;
        let wake = std::mem::take(&mut queue.parked) || crossed;
        drop(queue);
        if wake {
            self.shared.more.notify_one();
        }
    }

    /// Takes no more lines and waits until those that are in the buffer are written, at most `patience`. Returns
    /// whether they were.
    pub fn close(&self, patience: Duration) -> bool {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        self.shared.more.notify_one();
        self.shared.finished.wait_while_for(&mut queue, |queue| !queue.finished, patience);
        queue.finished
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.more.notify_one();
    }
}

struct Writer<W> {
    output: W,
    metrics: Arc<Metrics>,
    /// The last write failed and the log already says so.
    complained: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self, shared: &Shared) {
        let mut batch = Vec::new();
        while gather(shared, &mut batch) {
            self.put(&batch);
            batch.clear();
        }
        shared.queue.lock().finished = true;
        shared.finished.notify_all();
    }

    /// Writes whole lines, in pieces that a pipe does not mix with another writer's.
    fn put(&mut self, mut batch: &[u8]) {
        while !batch.is_empty() {
            let (piece, rest) = batch.split_at(piece_end(batch));
            if let Err(error) = write_all(&mut self.output, piece) {
                let lost = batch.iter().filter(|byte| **byte == b'\n').count();
                self.metrics.access_lines_dropped.add(lost as u64);
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(%error, "the access log cannot be written; its lines are dropped until it can");
                }
                return;
            }
            self.complained = false;
            batch = rest;
        }
    }
}

/// Waits for lines and takes them all; `false` when the log is closed and empty.
fn gather(shared: &Shared, batch: &mut Vec<u8>) -> bool {
    let mut queue = shared.queue.lock();
    while queue.bytes.is_empty() {
        if queue.closed {
            return false;
        }
        queue.parked = true;
        shared.more.wait(&mut queue);
    }
    queue.parked = false;
    if !queue.closed && queue.bytes.len() < ENOUGH {
        shared.more.wait_for(&mut queue, GATHER);
    }
    std::mem::swap(batch, &mut queue.bytes);
    true
}

/// Where the first piece ends: after the last line that fits, or after the first line where none does.
fn piece_end(batch: &[u8]) -> usize {
    let window = batch.get(..PIECE).unwrap_or(batch);
    let newline = |byte: &u8| *byte == b'\n';
    let end = window.iter().rposition(newline).or_else(|| batch.iter().position(newline));
    end.map_or(batch.len(), |at| at + 1)
}

fn write_all(output: &mut impl Write, mut piece: &[u8]) -> io::Result<()> {
    while !piece.is_empty() {
        match output.write(piece) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => piece = piece.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_OUTPUT_REST),
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::ids::{ClientAddr, Door};
    use crate::reason::{Reason, Side};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// An output that can be held, fails on demand, and remembers every write.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<PipeState>, Condvar)>);

    #[derive(Default)]
    struct PipeState {
        held: bool,
        entered: bool,
        broken: bool,
        writes: Vec<Vec<u8>>,
    }

    impl Pipe {
        fn hold(&self, held: bool) {
            self.0.0.lock().held = held;
            self.0.1.notify_all();
        }

        /// Waits until the writer stands in a held write.
        fn wait_entered(&self) {
            self.0.1.wait_while(&mut self.0.0.lock(), |state| !state.entered);
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().writes.concat()).unwrap()
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.0.lock();
            state.entered = true;
            self.0.1.notify_all();
            self.0.1.wait_while(&mut state, |state| state.held);
            if state.broken {
                return Err(ErrorKind::BrokenPipe.into());
            }
            state.writes.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start(which: Which) -> (AccessLog, Pipe, Arc<Metrics>) {
        let (pipe, metrics) = (Pipe::default(), Arc::new(Metrics::default()));
        let log = AccessLog::start(which, Format::Text, metrics.clone(), pipe.clone()).unwrap();
        (log, pipe, metrics)
    }

    fn line(status: u16) -> Line<'static> {
        Line { status: Some(status), ..Line::new(UNIX_EPOCH, Door::Inbound, ClientAddr(None)) }
    }

    #[test]
    fn lines_are_written_in_order_and_flushed_at_the_end() {
        let (log, pipe, metrics) = start(Which::All);
        for status in 200..599 {
            log.write(&line(status));
        }
        assert!(log.close(PATIENCE));
        log.write(&line(200));
        let text = pipe.text();
        let statuses: Vec<&str> = text.lines().map(|line| line.split(' ').nth(3).unwrap()).collect();
        assert_eq!(statuses, (200..599).map(|status| format!("status={status}")).collect::<Vec<_>>());
        assert_eq!(metrics.access_lines_dropped.get(), 1, "a line after the end is dropped");
        let pieces = &pipe.0.0.lock().writes;
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE && piece.ends_with(b"\n")));
    }

    #[test]
    fn only_what_was_asked_for_is_written() {
        let failed = Line { reason: Some((Reason::Reset, Side::Peer)), ..line(200) };
        for (which, expected) in [(Which::Off, 0), (Which::Failures, 2), (Which::All, 3)] {
            let (log, pipe, _) = start(which);
            for line in [&line(404), &line(503), &failed] {
                log.write(line);
            }
            assert!(log.close(PATIENCE));
            assert_eq!(pipe.text().lines().count(), expected, "{which:?}");
        }
    }

    #[test]
    fn the_choice_can_change() {
        let (log, pipe, _) = start(Which::Off);
        log.write(&line(200));
        log.choose(Which::All, Format::Json);
        log.write(&line(201));
        assert!(log.close(PATIENCE));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&pipe.text()).unwrap()["status"], 201);
    }

    #[test]
    fn a_stuck_output_drops_and_counts_but_never_waits() {
        let (log, pipe, metrics) = start(Which::All);
        pipe.hold(true);
        log.write(&line(200));
        pipe.wait_entered();
        let lines = 10_000;
        for _ in 0..lines {
            log.write(&line(200));
        }
        let dropped = metrics.access_lines_dropped.get();
        assert!(dropped > 0 && dropped < lines, "{dropped}");
        assert!(log.shared.queue.lock().bytes.len() < BUFFER + 1024);
        assert!(!log.close(Duration::ZERO), "closing does not wait for ever either");
        pipe.hold(false);
        assert!(log.close(PATIENCE));
        assert_eq!(pipe.text().lines().count() as u64, lines + 1 - dropped);
    }

    #[test]
    fn lines_lost_to_a_broken_output_are_counted() {
        let (log, pipe, metrics) = start(Which::All);
        pipe.0.0.lock().broken = true;
        log.write(&line(200));
        log.write(&line(200));
        assert!(log.close(PATIENCE));
        assert_eq!(metrics.access_lines_dropped.get(), 2);
    }

    #[test]
    fn pieces_end_at_lines() {
        let long = [b"x".repeat(PIECE).as_slice(), b"\ny\n"].concat();
        for (batch, end) in [(&b"a\nb\n"[..], 4), (&long, PIECE + 1), (b"no newline", 10)] {
            assert_eq!(piece_end(batch), end);
        }
        let many = b"1234567\n".repeat(PIECE);
        assert_eq!(piece_end(&many), PIECE);
    }
}
