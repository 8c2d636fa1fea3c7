//! A request's body on its way out: held back while `Expect: 100-continue` is unanswered.
//!
//! ```text
//! held -> open      100, or a second without an answer (RFC 9110 §10.1.1)
//! held -> refused   a final answer came instead: nothing is sent, the answer is still read
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http::header::EXPECT;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use crate::http::body::{Body, BodyError};

/// How long a body is held for a 100 that may never come.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

const OPEN: u8 = 0;
const HELD: u8 = 1;
const REFUSED: u8 = 2;

/// What the answer's side tells the body's side, and learns from it.
#[derive(Debug)]
pub struct Flow {
    state: AtomicU8,
    ended: AtomicBool,
    waker: AtomicWaker,
}

impl Flow {
    fn new(held: bool) -> Arc<Self> {
        let state = AtomicU8::new(if held { HELD } else { OPEN });
        Arc::new(Self { state, ended: AtomicBool::new(false), waker: AtomicWaker::new() })
    }

    /// A 100 came.
    pub fn go_on(&self) {
        self.step(HELD, OPEN);
    }

    /// The final answer's head came.
    pub fn answered(&self) {
        self.step(HELD, REFUSED);
    }

    /// Whether the whole body was handed on.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn step(&self, from: u8, to: u8) {
        if self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.waker.wake();
        }
    }
}

/// A request's body with its [`Flow`]; bodies that are empty from the start have none.
pub struct Outgoing {
    body: Body,
    flow: Option<Arc<Flow>>,
    patience: Option<Pin<Box<Sleep>>>,
    touched: bool,
}

impl Outgoing {
    /// Wraps the body of a request with these fields.
    pub fn new(body: Body, headers: &HeaderMap) -> (Self, Option<Arc<Flow>>) {
        let flow = (!body.is_end_stream()).then(|| Flow::new(expects_continue(headers)));
        (Self { body, flow: flow.clone(), patience: None, touched: false }, flow)
    }

    /// The body as it was, provided that it was not touched.
    pub fn into_body(self) -> Body {
        self.body
    }

    /// Whether a piece of it was taken.
    pub fn touched(&self) -> bool {
        self.touched
    }

    /// Ready when a piece may be asked for.
    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(flow) = &self.flow else { return Poll::Ready(()) };
        if flow.state.load(Ordering::Acquire) == OPEN {
            return Poll::Ready(());
        }
        // Registered before the state is read again, so that no change is missed.
        flow.waker.register(cx.waker());
        match flow.state.load(Ordering::Acquire) {
            OPEN => Poll::Ready(()),
            HELD => {
                let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(CONTINUE_WAIT)));
                ready!(patience.as_mut().poll(cx));
                self.patience = None;
                flow.go_on();
                Poll::Ready(())
            }
            _ => Poll::Pending,
        }
    }

    fn end(&self) {
        if let Some(flow) = &self.flow {
            flow.ended.store(true, Ordering::Release);
        }
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        ready!(this.poll_gate(cx));
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        this.touched = true;
        if !matches!(frame, Some(Ok(_))) || this.body.is_end_stream() {
            this.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::Instant;

    use super::*;

    fn body(expect: Option<&'static str>) -> (Outgoing, Arc<Flow>) {
        let mut headers = HeaderMap::new();
        if let Some(expect) = expect {
            headers.insert(EXPECT, http::HeaderValue::from_static(expect));
        }
        let (outgoing, flow) = Outgoing::new(Body::text("hello"), &headers);
        (outgoing, flow.unwrap())
    }

    async fn next(body: &mut Outgoing) -> Option<Result<Frame<Bytes>, BodyError>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    fn is_pending(body: &mut Outgoing) -> bool {
        Pin::new(body).poll_frame(&mut Context::from_waker(std::task::Waker::noop())).is_pending()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_held_until_100_or_for_a_second() {
        let (mut body, flow) = self::body(Some("100-Continue"));
        assert!(is_pending(&mut body) && !body.touched());
        flow.go_on();
        assert!(next(&mut body).await.unwrap().is_ok());
        assert!(flow.ended() && body.touched());

        let (mut body, flow) = self::body(Some("100-continue"));
        let start = Instant::now();
        assert!(next(&mut body).await.unwrap().is_ok());
        assert_eq!(start.elapsed(), CONTINUE_WAIT);
        assert!(flow.ended());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_body_is_never_sent() {
        let (mut body, flow) = self::body(Some("100-continue"));
        flow.answered();
        tokio::time::advance(CONTINUE_WAIT * 10).await;
        assert!(is_pending(&mut body) && !body.touched());

        let (mut body, flow) = self::body(None);
        flow.answered();
        assert!(next(&mut body).await.unwrap().is_ok());
    }
}
