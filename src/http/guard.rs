//! A body under guard: counted, bounded in bytes, and never standing still for longer than its clocks allow.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::body::BodyError;
use super::trailers;
use crate::deadline::Deadline;

/// The clocks and bounds of one body. The timer exists only once a body has had to wait.
pub struct Guard {
    idle: Duration,
    deadline: Deadline,
    most: Option<u64>,
    carried: u64,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer runs since the last frame.
    waiting: bool,
}

impl Guard {
    /// Bounds for a body: `idle` between frames, `deadline` for its end, `most` bytes.
    pub fn new(idle: Duration, deadline: Deadline, most: Option<u64>) -> Self {
        Self { idle, deadline, most, carried: 0, timer: None, waiting: false }
    }

    /// Bytes carried so far.
    pub fn carried(&self) -> u64 {
        self.carried
    }

    /// Polls `body` for its next frame under the guard.
    pub fn poll_frame<B>(&mut self, body: &mut B, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>
    where
        B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
    {
        match Pin::new(body).poll_frame(cx) {
            Poll::Pending => self.poll_clock(cx).map(|error| Some(Err(error))),
            Poll::Ready(Some(Ok(frame))) => {
                self.waiting = false;
                self.carried += frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.most.is_some_and(|most| self.carried > most) {
                    return Poll::Ready(Some(Err(BodyError::TooLarge)));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            end => end,
        }
    }

    /// Nothing is there: runs out when the body has stood still for too long, or the deadline has passed.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let timer = match (&mut self.timer, self.waiting) {
            (Some(timer), true) => timer,
            (timer, _) => {
                let due = Deadline::after(Instant::now(), Some(self.idle)).min(self.deadline).instant();
                let due = due.unwrap_or_else(|| Instant::now() + self.idle);
                self.waiting = true;
                match timer {
                    Some(timer) => timer.as_mut().reset(due),
                    None => *timer = Some(Box::pin(tokio::time::sleep_until(due))),
                }
                match timer {
                    Some(timer) => timer,
                    None => return Poll::Pending,
                }
            }
        };
        ready!(timer.as_mut().poll(cx));
        let late = self.deadline.passed(Instant::now());
        Poll::Ready(if late { BodyError::Deadline } else { BodyError::Idle })
    }
}

/// What the corridor learns of a request's body while a leg sends it.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: AtomicU64,
    fault: AtomicU64,
}

/// Why a request's body ended early, as the corridor has to tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// More bytes than the limit.
    TooLarge,
    /// It stood still.
    Idle,
    /// Its framing or its connection broke.
    Broken,
    /// The exchange's deadline passed.
    Deadline,
}

impl Progress {
    /// Bytes sent so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Why it ended early, if it did.
    pub fn fault(&self) -> Option<Fault> {
        match self.fault.load(Ordering::Relaxed) {
            1 => Some(Fault::TooLarge),
            2 => Some(Fault::Idle),
            3 => Some(Fault::Broken),
            4 => Some(Fault::Deadline),
            _ => None,
        }
    }

    fn note(&self, error: &BodyError) {
        let fault = match error {
            BodyError::TooLarge => 1,
            BodyError::Idle => 2,
            BodyError::Deadline => 4,
            _ => 3,
        };
        self.fault.store(fault, Ordering::Relaxed);
    }
}

/// A request's body on its way to a leg.
pub struct Guarded<B> {
    body: B,
    guard: Guard,
    progress: std::sync::Arc<Progress>,
    /// Names that no trailer may have.
    held_back: Option<std::sync::Arc<[HeaderName]>>,
}

impl<B> Guarded<B> {
    /// Puts `body` under `guard` and tells `progress` what happens to it.
    pub fn new(body: B, guard: Guard, progress: std::sync::Arc<Progress>) -> Self {
        Self { body, guard, progress, held_back: None }
    }

    /// Keeps trailers of these names back.
    pub fn without(mut self, names: Option<std::sync::Arc<[HeaderName]>>) -> Self {
        self.held_back = names;
        self
    }

    /// How long it may stand still.
    pub fn idle(&self) -> Duration {
        self.guard.idle
    }
}

impl<B: HttpBody<Data = Bytes, Error = BodyError> + Unpin> HttpBody for Guarded<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(this.guard.poll_frame(&mut this.body, cx));
        match &frame {
            Some(Ok(_)) => this.progress.bytes.store(this.guard.carried(), Ordering::Relaxed),
            Some(Err(error)) => this.progress.note(error),
            None => {}
        }
        match (&this.held_back, frame) {
            (Some(names), Some(Ok(frame))) => Poll::Ready(trailers::without(frame, names).map(Ok)),
            (_, frame) => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::Body;
    use http_body_util::BodyExt;

    /// Gives `frames` frames, one each `every`, then waits for ever.
    struct Slow {
        every: Duration,
        frames: usize,
        timer: Option<Pin<Box<Sleep>>>,
    }

    impl HttpBody for Slow {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            if self.frames == 0 {
                return Poll::Pending;
            }
            let every = self.every;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(every)));
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            self.frames -= 1;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }

    fn slow(every: u64, guard: Guard) -> (Guarded<Slow>, std::sync::Arc<Progress>) {
        let progress = std::sync::Arc::new(Progress::default());
        let body = Slow { every: Duration::from_secs(every), frames: 3, timer: None };
        (Guarded::new(body, guard, progress.clone()), progress)
    }

    #[tokio::test(start_paused = true)]
    async fn the_idle_clock_starts_anew_with_each_frame() {
        let start = Instant::now();
        let (mut body, progress) = slow(50, Guard::new(Duration::from_secs(60), Deadline::NONE, None));
        while let Some(Ok(_)) = body.frame().await {}
        assert_eq!(start.elapsed().as_secs(), 3 * 50 + 60);
        assert_eq!((progress.bytes(), progress.fault()), (3, Some(Fault::Idle)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_body_that_still_moves() {
        let start = Instant::now();
        let deadline = Deadline::after(start, Some(Duration::from_secs(70)));
        let (mut body, _) = slow(50, Guard::new(Duration::from_secs(60), deadline, None));
        body.frame().await.unwrap().unwrap();
        assert!(matches!(body.frame().await, Some(Err(BodyError::Deadline))));
        assert_eq!(start.elapsed().as_secs(), 70);
    }

    #[tokio::test]
    async fn too_many_bytes_are_refused() {
        let guard = Guard::new(Duration::from_secs(60), Deadline::NONE, Some(3));
        let progress = std::sync::Arc::new(Progress::default());
        let mut body = Guarded::new(Body::text("four"), guard, progress.clone());
        assert!(matches!(body.frame().await, Some(Err(BodyError::TooLarge))));
        assert_eq!(progress.fault(), Some(Fault::TooLarge));
    }
}
