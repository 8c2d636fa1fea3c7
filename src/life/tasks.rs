//! The only place that spawns: every task has an owner that can count, await or abort it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};

/// A group of tasks: counted, awaited together, aborted together by aborting each handle.
#[derive(Clone, Default)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    running: AtomicUsize,
    idle: Notify,
}

/// A member's mark, dropped with it.
struct Running(Arc<Inner>);

pin_project! {
    /// A member of the group. An `async` block in its place would hold the task twice, as what it captures and as what it
    /// awaits, and tasks are moved several times before they run.
    struct Member<T> {
        #[pin]
        task: T,
        _running: Running,
    }
}

impl<T: Future> Future for Member<T> {
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        self.project().task.poll(cx)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Tasks {
    /// Runs `task` on the current runtime as a member of this group.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        tokio::spawn(self.member(task)).abort_handle()
    }

    /// Runs `task` and hands its result to whoever awaits the handle.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    pub fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        tokio::spawn(self.member(task))
    }

    fn member<T>(&self, task: T) -> Member<T> {
        self.inner.running.fetch_add(1, Ordering::AcqRel);
        Member { task, _running: Running(self.inner.clone()) }
    }

    /// How many members are running.
    pub fn running(&self) -> usize {
        self.inner.running.load(Ordering::Acquire)
    }

    /// Waits until no member is running.
    pub async fn idle(&self) {
        loop {
            let idle = self.inner.idle.notified();
            if self.running() == 0 {
                return;
            }
            idle.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn idle_waits_for_the_last_member() {
        let tasks = Tasks::default();
        let (go, gate) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn(async move {
            let _ = gate.await;
        });
        let aborted = tasks.spawn(std::future::pending());
        assert_eq!(tasks.running(), 2);
        let _ = go.send(());
        aborted.abort();
        tasks.idle().await;
        assert_eq!(tasks.running(), 0);
    }
}
