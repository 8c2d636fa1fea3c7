//! Lines on their way to our output: put into a bounded buffer by whoever has one, written by a thread of its own, so
//! that a slow or stuck reader delays nobody.
//!
//! When the buffer is full, lines are dropped and counted; no one waits and, once the two buffers have grown to what
//! the load needs, no one allocates.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

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

/// This process's stderr, for [`Lines::start`]: stdout is the app's, which a consumer may read. Each write is one piece
/// of whole lines.
///
/// # Errors
/// When stderr is closed.
pub fn stderr() -> io::Result<File> {
    Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?))
}

/// The way to one output; shared by all who write to it.
pub struct Lines {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
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

impl Lines {
    /// Starts the writer thread. Lines go to `output`; those that are dropped are counted in `metrics`.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub fn start(output: impl Write + Send + 'static, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared { queue: Mutex::default(), more: Condvar::new(), finished: Condvar::new() });
        let lines = Self { shared: shared.clone(), metrics: metrics.clone() };
        let writer = Writer { output, metrics, complained: false };
        thread::Builder::new().name("log".into()).spawn(move || writer.run(&shared))?;
        Ok(Arc::new(lines))
    }

    /// Takes what `format` appends, whole lines, if the buffer has room. Never waits for the output.
    pub fn put(&self, format: impl FnOnce(&mut Vec<u8>)) {
        let mut queue = self.shared.queue.lock();
        let before = queue.bytes.len();
        if queue.closed || before >= BUFFER {
            drop(queue);
            self.metrics.lines_dropped.inc();
            return;
        }
        format(&mut queue.bytes);
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

impl Drop for Lines {
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
                self.metrics.lines_dropped.add(lost as u64);
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(%error, "the log cannot be written; its lines are dropped until it can");
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
pub(super) mod tests {
    use super::*;

    pub(in super::super) const PATIENCE: Duration = Duration::from_secs(60);

    /// An output that can be held, fails on demand, and remembers every write.
    #[derive(Clone, Default)]
    pub(in super::super) struct Pipe(Arc<(Mutex<PipeState>, Condvar)>);

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

        pub(in super::super) fn text(&self) -> String {
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

    fn start() -> (Arc<Lines>, Pipe, Arc<Metrics>) {
        let (pipe, metrics) = (Pipe::default(), Arc::new(Metrics::default()));
        (Lines::start(pipe.clone(), metrics.clone()).unwrap(), pipe, metrics)
    }

    fn say(lines: &Lines, text: &str) {
        lines.put(|out| out.extend_from_slice(text.as_bytes()));
    }

    #[test]
    fn lines_are_written_in_order_and_flushed_at_the_end() {
        let (lines, pipe, metrics) = start();
        let all: String =
            (0..400).map(|n| format!("line {n} of many that fill more than a piece of a pipe\n")).collect();
        for line in all.split_inclusive('\n') {
            say(&lines, line);
        }
        assert!(lines.close(PATIENCE));
        say(&lines, "late\n");
        assert_eq!(pipe.text(), all);
        assert_eq!(metrics.lines_dropped.get(), 1, "a line after the end is dropped");
        let pieces = &pipe.0.0.lock().writes;
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE && piece.ends_with(b"\n")));
    }

    #[test]
    fn a_stuck_output_drops_and_counts_but_never_waits() {
        let (lines, pipe, metrics) = start();
        pipe.hold(true);
        say(&lines, "first\n");
        pipe.wait_entered();
        let count = 10_000;
        for _ in 0..count {
            say(&lines, "one of many lines, too long for all of them to wait at once\n");
        }
        let dropped = metrics.lines_dropped.get();
        assert!(dropped > 0 && dropped < count, "{dropped}");
        assert!(lines.shared.queue.lock().bytes.len() < BUFFER + 1024);
        assert!(!lines.close(Duration::ZERO), "closing does not wait for ever either");
        pipe.hold(false);
        assert!(lines.close(PATIENCE));
        assert_eq!(pipe.text().lines().count() as u64, count + 1 - dropped);
    }

    #[test]
    fn lines_lost_to_a_broken_output_are_counted() {
        let (lines, pipe, metrics) = start();
        pipe.0.0.lock().broken = true;
        say(&lines, "a\nb\n");
        assert!(lines.close(PATIENCE));
        assert_eq!(metrics.lines_dropped.get(), 2);
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
