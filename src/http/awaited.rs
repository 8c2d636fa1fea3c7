//! A request's body whose sender waits to be asked for it, and what became of that.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};

use super::body::{Body, BodyError};

const ASKED: u8 = 1;
const WHOLE: u8 = 2;

/// Tells how far such a body came.
pub struct Asked(Arc<AtomicU8>);

impl Asked {
    /// Whether anyone wanted it.
    pub fn began(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= ASKED
    }

    /// Whether all of it was read.
    pub fn ended(&self) -> bool {
        self.0.load(Ordering::Relaxed) == WHOLE
    }
}

/// The body itself.
pub struct Awaited {
    body: Body,
    came: Arc<AtomicU8>,
}

impl Awaited {
    /// Watches `body`.
    pub fn watch(body: Body) -> (Body, Asked) {
        let came = Arc::new(AtomicU8::new(0));
        (Body::Awaited(Box::new(Self { body, came: came.clone() })), Asked(came))
    }

    /// What is watched.
    pub fn inner(&self) -> &Body {
        &self.body
    }

    /// Polls for the next frame, which asks for it.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.came.fetch_max(ASKED, Ordering::Relaxed);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let last = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers() || self.body.is_end_stream(),
            Some(Err(_)) => false,
        };
        if last {
            self.came.fetch_max(WHOLE, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }
}
