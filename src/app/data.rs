//! The data threads: one current-thread runtime for one worker, tokio's work-stealing one for more.

use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use crate::life::tasks::Tasks;

/// How long blocking work may hold up the end; there is none on the data path.
const LAST_WORK: Duration = Duration::from_millis(100);

/// The running data threads; [`Data::end`] ends them.
pub(super) struct Data {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    tasks: Tasks,
}

impl Data {
    /// Starts `workers` threads.
    ///
    /// # Errors
    /// When the system refuses threads or descriptors.
    pub(super) fn start(workers: usize) -> io::Result<Self> {
        let runtime = if workers <= 1 {
            Builder::new_current_thread().enable_all().build()?
        } else {
            Builder::new_multi_thread().worker_threads(workers).thread_name("data").enable_all().build()?
        };
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let (running, ready) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("data".into()).spawn(move || drive(runtime, stopped, &running))?;
        // A thread that cannot begin has said so by dropping its end; its handle tells at the end.
        let _ = ready.recv();
        Ok(Self { handle, stop: Some(stop), thread: Some(thread), tasks: Tasks::default() })
    }

    /// The runtime of the data threads.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs `task` on the data threads until the end.
    pub(super) fn own(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _runtime = self.handle.enter();
        self.tasks.spawn(task);
    }

    /// Ends the threads and whatever still runs on them.
    pub(super) fn end(mut self) {
        // A thread that has gone already needs no word.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the data thread ended by a panic");
        }
    }
}

fn drive(runtime: Runtime, stopped: oneshot::Receiver<()>, running: &mpsc::SyncSender<()>) {
    let _ = running.send(());
    // Either way the end has come.
    let _ = runtime.block_on(stopped);
    runtime.shutdown_timeout(LAST_WORK);
}
